//! How many streams a session's peer may open, and what becomes of the credit of a stream that was
//! reset.
//!
//! A receiver gives credit back as its application reads. Of a stream that ends with a reset it
//! cannot know how much was sent, so the sender says so (STREAM_ABANDONED), and what was sent but
//! never read is given back once both are known. Until then the stream counts as open, which
//! bounds this table by the stream credit.

use std::collections::{HashMap, hash_map::Entry};

use crate::mesh::{
    credit::{Exceeded, ReceiveCredit},
    header::Side,
};

/// A QUIC stream's direction, which its id tells (RFC 9000, section 2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Bidirectional.
    Bidi,
    /// Unidirectional.
    Uni,
}

/// The kind of the stream with this QUIC id.
pub fn kind(stream: u64) -> Kind {
    if stream & 2 == 0 {
        Kind::Bidi
    } else {
        Kind::Uni
    }
}

/// Which side opened the stream with this QUIC id.
pub fn opener(stream: u64) -> Side {
    if stream & 1 == 0 {
        Side::Client
    } else {
        Side::Server
    }
}

/// What a peer did that an honest one does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// It opened more streams than it was granted.
    #[error("more streams than were granted")]
    TooManyStreams,
    /// It said of a stream that less was sent than was read, or that more was than was granted.
    #[error("more stream data than was granted or reported")]
    Data,
    /// It reported a stream that does not exist, or twice.
    #[error("report of a stream that is not there")]
    UnknownStream,
}

impl From<Exceeded> for Violation {
    fn from(_: Exceeded) -> Self {
        Self::Data
    }
}

/// What is to be told to the peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Grants {
    /// A new MAX_DATA.
    pub data: Option<u64>,
    /// A new MAX_STREAMS_BIDI.
    pub bidi: Option<u64>,
    /// A new MAX_STREAMS_UNI.
    pub uni: Option<u64>,
}

/// The streams of a session that this side receives on.
#[derive(Debug)]
pub struct Streams {
    here: Side,
    bidi: Counter,
    uni: Counter,
    live: HashMap<u64, Live>,
}

#[derive(Debug)]
struct Live {
    receiving: Receiving,
    /// Whether this side's half of a bidirectional stream that the peer opened is not over.
    sending: bool,
}

#[derive(Debug, Clone, Copy)]
enum Receiving {
    /// Data may come.
    Open,
    /// Reset; how much was sent is not known yet.
    Reset { read: u64 },
    /// Abandoned, it was said; how much will be read is not known yet.
    Abandoned { sent: u64 },
    /// Finished and read to its end, or reset and accounted for.
    Over,
}

/// A total of streams that only grows, and a window that starts small, because a slot costs memory
/// in QUIC whether it is used or not, and doubles while the peer uses more than half of it.
#[derive(Debug)]
struct Counter {
    window: u64,
    window_max: u64,
    opened: u64,
    over: u64,
    granted: u64,
}

/// Streams of each kind granted at first.
pub const INITIAL_WINDOW: u64 = 16;

impl Counter {
    fn new(max: u64) -> Self {
        let window_max = max.max(1);
        let window = INITIAL_WINDOW.min(window_max);
        Self {
            window,
            window_max,
            opened: 0,
            over: 0,
            granted: window,
        }
    }

    fn open(&mut self) -> Result<Option<u64>, Violation> {
        if self.opened >= self.granted {
            return Err(Violation::TooManyStreams);
        }
        self.opened += 1;
        if (self.opened - self.over) * 2 > self.window && self.window < self.window_max {
            self.window = (self.window * 2).min(self.window_max);
            return Ok(self.grant());
        }
        Ok(None)
    }

    fn close(&mut self) -> Option<u64> {
        self.over += 1;
        let due = self.over + self.window - self.granted;
        (due >= self.window.div_ceil(2)).then(|| self.grant())?
    }

    fn grant(&mut self) -> Option<u64> {
        self.granted = self.over + self.window;
        Some(self.granted)
    }
}

impl Streams {
    /// For the end of a connection that is `here`, which lets its peer have up to `max` streams of
    /// each kind open.
    pub fn new(here: Side, max: u64) -> Self {
        Self {
            here,
            bidi: Counter::new(max),
            uni: Counter::new(max),
            live: HashMap::new(),
        }
    }

    /// Streams of a kind the peer may have open at this moment.
    pub fn window(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Bidi => self.bidi.window,
            Kind::Uni => self.uni.window,
        }
    }

    /// Streams that are not over.
    pub fn live(&self) -> usize {
        self.live.len()
    }

    /// This side opened a bidirectional stream.
    pub fn opened_here(&mut self, stream: u64) {
        self.live.insert(
            stream,
            Live {
                receiving: Receiving::Open,
                sending: false,
            },
        );
    }

    /// The peer opened a stream: its header came, or a reset that tells the session.
    pub fn opened_by_peer(&mut self, stream: u64) -> Result<Grants, Violation> {
        if self.live.contains_key(&stream) {
            // STREAM_ABANDONED was faster, and counted it.
            return Ok(Grants::default());
        }
        self.insert(stream, Receiving::Open)
    }

    fn insert(&mut self, stream: u64, receiving: Receiving) -> Result<Grants, Violation> {
        if opener(stream) == self.here {
            return Err(Violation::UnknownStream);
        }
        let mut grants = Grants::default();
        let kind = kind(stream);
        match kind {
            Kind::Bidi => grants.bidi = self.bidi.open()?,
            Kind::Uni => grants.uni = self.uni.open()?,
        }
        let sending = kind == Kind::Bidi;
        self.live.insert(stream, Live { receiving, sending });
        Ok(grants)
    }

    /// The stream was read to its end.
    pub fn finished(&mut self, stream: u64) -> Grants {
        if let Some(live) = self.live.get_mut(&stream) {
            live.receiving = Receiving::Over;
        }
        self.settle(stream)
    }

    /// The stream was reset after `read` bytes of it were consumed.
    pub fn reset(
        &mut self,
        stream: u64,
        read: u64,
        credit: &ReceiveCredit,
    ) -> Result<Grants, Violation> {
        let Some(live) = self.live.get_mut(&stream) else {
            return Ok(Grants::default());
        };
        let data = match live.receiving {
            Receiving::Open => {
                live.receiving = Receiving::Reset { read };
                return Ok(Grants::default());
            }
            Receiving::Abandoned { sent } => {
                live.receiving = Receiving::Over;
                credit.consume(sent.checked_sub(read).ok_or(Violation::Data)?)?
            }
            Receiving::Reset { .. } | Receiving::Over => None,
        };
        Ok(Grants {
            data,
            ..self.settle(stream)
        })
    }

    /// The peer says that it reset the stream after spending `sent` bytes of credit on it.
    pub fn abandoned(
        &mut self,
        stream: u64,
        sent: u64,
        credit: &ReceiveCredit,
    ) -> Result<Grants, Violation> {
        if sent > credit.granted() {
            return Err(Violation::Data);
        }
        let Some(live) = self.live.get_mut(&stream) else {
            return self.insert(stream, Receiving::Abandoned { sent });
        };
        let data = match live.receiving {
            Receiving::Open => {
                live.receiving = Receiving::Abandoned { sent };
                return Ok(Grants::default());
            }
            Receiving::Reset { read } => {
                live.receiving = Receiving::Over;
                credit.consume(sent.checked_sub(read).ok_or(Violation::Data)?)?
            }
            Receiving::Abandoned { .. } | Receiving::Over => return Err(Violation::UnknownStream),
        };
        Ok(Grants {
            data,
            ..self.settle(stream)
        })
    }

    /// This side's half of a bidirectional stream is over: finished or reset.
    pub fn sent(&mut self, stream: u64) -> Grants {
        if let Some(live) = self.live.get_mut(&stream) {
            live.sending = false;
        }
        self.settle(stream)
    }

    fn settle(&mut self, stream: u64) -> Grants {
        let mut grants = Grants::default();
        let Entry::Occupied(live) = self.live.entry(stream) else {
            return grants;
        };
        if !matches!(live.get().receiving, Receiving::Over) || live.get().sending {
            return grants;
        }
        live.remove();
        if opener(stream) != self.here {
            match kind(stream) {
                Kind::Bidi => grants.bidi = self.bidi.close(),
                Kind::Uni => grants.uni = self.uni.close(),
            }
        }
        grants
    }
}
