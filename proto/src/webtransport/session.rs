//! One session, from its establishment to its end: capsules in, events and capsules out
//! (draft-ietf-webtrans-http3-16, sections 4.7, 5 and 6).
//!
//! Whoever drives it feeds the content of the CONNECT stream's DATA frames to [`Session::receive`],
//! acts on what [`Session::poll`] gives, and writes what [`Session::transmit`] has. Streams are his
//! own business, but for the credit that they need.

use bytes::{BufMut, Bytes};

use super::{
    capsule::{self, Capsule, Malformed},
    code,
    flow::{Flow, Kind, Violation},
};
use crate::{h3, session::Close};

/// A session's state.
#[derive(Debug)]
pub struct Session {
    capsules: capsule::Decoder,
    /// In a box, as most peers know none.
    flow: Option<Box<Flow>>,
    peer_drains: bool,
    peer_closed: bool,
    drain: Word,
    close: Word,
    reason: Close,
}

/// Something that this side says at most once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Unsaid,
    Due,
    Said,
}

impl Word {
    /// Whether it is to be said now, which it is then.
    fn say(&mut self) -> bool {
        let due = *self == Self::Due;
        if due {
            *self = Self::Said;
        }
        due
    }
}

/// What the peer said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It asks to finish and close. Comes once.
    Drain,
    /// It closed the session. The last event.
    Closed(Close),
    /// A datagram, which came as a capsule.
    Datagram(Bytes),
    /// More stream payload may be sent.
    Data,
    /// More streams of this kind may be opened.
    Streams(Kind),
}

/// What a peer did that costs it the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A capsule is malformed.
    #[error(transparent)]
    Capsule(#[from] Malformed),
    /// The CONNECT stream ended within a capsule.
    #[error("the session ended within a capsule")]
    Truncated,
    /// Something follows WT_CLOSE_SESSION.
    #[error("content after the close")]
    AfterClose,
    /// A rule of flow control was broken.
    #[error(transparent)]
    Flow(#[from] Violation),
}

impl Error {
    /// The HTTP/3 code to reset the CONNECT stream with.
    pub const fn code(&self) -> u64 {
        match self {
            Self::Flow(_) => code::FLOW_CONTROL_ERROR,
            Self::Capsule(_) | Self::Truncated | Self::AfterClose => h3::code::MESSAGE_ERROR,
        }
    }
}

impl Session {
    /// A session of a peer to which flow control capsules are `capsules`. There are no limits
    /// unless they are [enabled](capsule::Flow::Enabled), which is when `flow` counts.
    pub fn new(capsules: capsule::Flow, flow: Option<Flow>) -> Self {
        Self {
            capsules: capsule::Decoder::new(capsules),
            flow: flow
                .filter(|_| capsules == capsule::Flow::Enabled)
                .map(Box::new),
            peer_drains: false,
            peer_closed: false,
            drain: Word::Unsaid,
            close: Word::Unsaid,
            reason: Close::default(),
        }
    }

    /// Whether there are limits.
    pub fn has_flow_control(&self) -> bool {
        self.flow.is_some()
    }

    /// Content of the CONNECT stream came. [`poll`](Self::poll) until it has nothing before more.
    pub fn receive(&mut self, content: &[u8]) {
        self.capsules.push(content);
    }

    /// What the peer said next; `None` when more content is needed.
    pub fn poll(&mut self) -> Result<Option<Event>, Error> {
        loop {
            if self.peer_closed {
                let rest = !self.capsules.at_boundary();
                return if rest {
                    Err(Error::AfterClose)
                } else {
                    Ok(None)
                };
            }
            let Some(capsule) = self.capsules.next()? else {
                return Ok(None);
            };
            let event = match (capsule, &mut self.flow) {
                (Capsule::Close(close), _) => {
                    self.peer_closed = true;
                    Event::Closed(close)
                }
                (Capsule::Drain, _) if std::mem::replace(&mut self.peer_drains, true) => continue,
                (Capsule::Drain, _) => Event::Drain,
                (Capsule::Datagram(payload), _) => Event::Datagram(payload),
                (Capsule::MaxData(total), Some(flow)) => {
                    flow.max_data(total)?;
                    Event::Data
                }
                (Capsule::MaxStreams(kind, total), Some(flow)) => {
                    flow.max_streams(kind, total)?;
                    Event::Streams(kind)
                }
                (Capsule::StreamsBlocked(_, limit), Some(_)) => {
                    Flow::streams_blocked(limit)?;
                    continue;
                }
                // It asks for nothing: credit returns as data is read.
                (Capsule::DataBlocked(_), _) => continue,
                // The decoder reads no limits where there are none.
                (
                    Capsule::MaxData(_) | Capsule::MaxStreams(..) | Capsule::StreamsBlocked(..),
                    None,
                ) => {
                    continue;
                }
            };
            return Ok(Some(event));
        }
    }

    /// The peer ended the CONNECT stream. Without WT_CLOSE_SESSION that is a close with code 0 and
    /// no reason, and an event; `None` where it had said it before.
    pub fn finish(&mut self) -> Result<Option<Close>, Error> {
        if !self.capsules.at_boundary() {
            return Err(match self.peer_closed {
                true => Error::AfterClose,
                false => Error::Truncated,
            });
        }
        let before = std::mem::replace(&mut self.peer_closed, true);
        Ok((!before).then(Close::default))
    }

    /// Asks the peer to finish and close. Says so once, however often called.
    pub fn drain(&mut self) {
        if self.drain == Word::Unsaid {
            self.drain = Word::Due;
        }
    }

    /// Closes the session. Whether it was open until then.
    pub fn close(&mut self, close: Close) -> bool {
        if self.is_over() {
            return false;
        }
        self.close = Word::Due;
        self.reason = close;
        true
    }

    /// Whether the session is over, from whichever side.
    pub fn is_over(&self) -> bool {
        self.peer_closed || self.close != Word::Unsaid
    }

    /// Appends what is to be said on the CONNECT stream. Whether there was anything. Once that was
    /// WT_CLOSE_SESSION, there is never anything more, and the stream is to be finished.
    pub fn transmit(&mut self, buf: &mut impl BufMut) -> bool {
        if self.is_over() {
            let say = self.close.say();
            if say {
                Capsule::Close(std::mem::take(&mut self.reason)).encode(buf);
            }
            return say;
        }
        let mut any = self.drain.say();
        if any {
            Capsule::Drain.encode(buf);
        }
        for capsule in self.flow.iter_mut().flat_map(|flow| flow.due()) {
            capsule.encode(buf);
            any = true;
        }
        any
    }

    /// Whether [`transmit`](Self::transmit) has anything.
    pub fn wants_transmit(&self) -> bool {
        if self.is_over() {
            return self.close == Word::Due;
        }
        self.drain == Word::Due || self.flow.as_ref().is_some_and(|flow| flow.is_due())
    }

    /// Takes credit for up to `want` bytes of stream payload; 0 when there is none now.
    pub fn take(&mut self, want: u64) -> u64 {
        self.flow.as_mut().map_or(want, |flow| flow.take(want))
    }

    /// Gives back credit that was taken and not used.
    pub fn give_back(&mut self, unused: u64) {
        if let Some(flow) = &mut self.flow {
            flow.give_back(unused);
        }
    }

    /// Takes the permission to open a stream; `false` when there is none now.
    pub fn open(&mut self, kind: Kind) -> bool {
        self.flow.as_mut().is_none_or(|flow| flow.open(kind))
    }

    /// Gives back a permission that was not used.
    pub fn unopen(&mut self, kind: Kind) {
        if let Some(flow) = &mut self.flow {
            flow.unopen(kind);
        }
    }

    /// The peer opened a stream.
    pub fn opened(&mut self, kind: Kind) -> Result<(), Error> {
        match &mut self.flow {
            Some(flow) => Ok(flow.opened(kind)?),
            None => Ok(()),
        }
    }

    /// A stream that the peer opened is over.
    pub fn over(&mut self, kind: Kind) {
        if let Some(flow) = &mut self.flow {
            flow.over(kind);
        }
    }

    /// The peer opened a stream that may have been this session's, see [`Flow::missed`].
    pub fn missed(&mut self, kind: Kind) {
        if let Some(flow) = &mut self.flow {
            flow.missed(kind);
        }
    }

    /// The application read stream payload. Returns by how many bytes the window has grown.
    pub fn read(&mut self, bytes: u64) -> Result<u64, Error> {
        match &mut self.flow {
            Some(flow) => Ok(flow.read(bytes)?),
            None => Ok(0),
        }
    }

    /// Stream payload may never be read, see [`Flow::lost`].
    pub fn lost(&mut self, most: u64) {
        if let Some(flow) = &mut self.flow {
            flow.lost(most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::flow::{Initial, Windows},
        *,
    };
    use crate::varint;
    use proptest::prelude::*;

    const INITIAL: Initial = Initial {
        data: 100,
        bidi: 4,
        uni: 4,
    };

    fn session() -> Session {
        let windows = Windows {
            data: 400,
            streams: 16,
        };
        let flow = Flow::new(INITIAL, windows, INITIAL);
        Session::new(capsule::Flow::Enabled, Some(flow))
    }

    fn plain() -> Session {
        Session::new(capsule::Flow::Unknown, None)
    }

    fn encoded(capsules: &[Capsule]) -> Vec<u8> {
        let mut buf = Vec::new();
        capsules.iter().for_each(|capsule| capsule.encode(&mut buf));
        buf
    }

    /// All that is polled after this content.
    fn events(session: &mut Session, content: &[u8]) -> Result<Vec<Event>, Error> {
        session.receive(content);
        let mut events = Vec::new();
        while let Some(event) = session.poll()? {
            events.push(event);
        }
        Ok(events)
    }

    fn said(session: &mut Session) -> Vec<u8> {
        let mut buf = Vec::new();
        let wanted = session.wants_transmit();
        assert_eq!(session.transmit(&mut buf), wanted);
        assert_eq!(wanted, !buf.is_empty());
        buf
    }

    #[test]
    fn a_drain_is_told_once_each_way() {
        let mut session = plain();
        let drain = encoded(&[Capsule::Drain]);
        assert_eq!(
            events(&mut session, &drain.repeat(3)),
            Ok(vec![Event::Drain])
        );
        assert_eq!(events(&mut session, &drain), Ok(vec![]));
        session.drain();
        session.drain();
        assert_eq!(said(&mut session), drain);
        session.drain();
        assert_eq!(said(&mut session), b"");
    }

    #[test]
    fn the_close_is_the_last_word_and_the_first_one_counts() {
        let mut session = session();
        session.drain();
        assert!(session.close(Close::new(7, "bye")));
        assert!(!session.close(Close::new(8, "no")));
        session.lost(100);
        assert_eq!(
            said(&mut session),
            encoded(&[Capsule::Close(Close::new(7, "bye"))])
        );
        session.drain();
        assert_eq!(said(&mut session), b"");
    }

    #[test]
    fn nothing_follows_the_peers_close() {
        let close = encoded(&[Capsule::Close(Close::new(1, "x"))]);
        let mut session = plain();
        assert_eq!(
            events(&mut session, &close),
            Ok(vec![Event::Closed(Close::new(1, "x"))])
        );
        assert_eq!(session.finish(), Ok(None));
        assert!(!session.close(Close::default()));
        assert_eq!(said(&mut session), b"");
        assert_eq!(events(&mut session, b"\0"), Err(Error::AfterClose));

        let mut session = plain();
        let more = [&close[..], b"\x17"].concat();
        session.receive(&more);
        assert!(matches!(session.poll(), Ok(Some(Event::Closed(_)))));
        assert_eq!(session.poll(), Err(Error::AfterClose));
        assert_eq!(session.finish(), Err(Error::AfterClose));
        assert_eq!(Error::AfterClose.code(), h3::code::MESSAGE_ERROR);
    }

    #[test]
    fn the_end_of_the_stream_is_a_close_unless_it_cuts_a_capsule() {
        let mut session = plain();
        assert_eq!(session.finish(), Ok(Some(Close::default())));
        assert!(session.is_over());
        let mut session = plain();
        assert_eq!(events(&mut session, &[0x17, 5, 1]), Ok(vec![]));
        assert_eq!(session.finish(), Err(Error::Truncated));
    }

    #[test]
    fn credit_comes_with_capsules_and_violations_cost_the_session() {
        let mut session = session();
        assert_eq!(session.take(1000), 100);
        assert_eq!(session.take(1), 0);
        assert_eq!(said(&mut session), encoded(&[Capsule::DataBlocked(100)]));
        let more = [
            Capsule::MaxData(150),
            Capsule::MaxStreams(Kind::Uni, 9),
            Capsule::DataBlocked(varint::MAX),
        ];
        assert_eq!(
            events(&mut session, &encoded(&more)),
            Ok(vec![Event::Data, Event::Streams(Kind::Uni)])
        );
        assert_eq!(session.take(1000), 50);
        let error = events(&mut session, &encoded(&[Capsule::MaxData(149)])).unwrap_err();
        assert_eq!(error.code(), code::FLOW_CONTROL_ERROR);
        assert_eq!(
            session.read(101).unwrap_err().code(),
            code::FLOW_CONTROL_ERROR
        );
    }

    #[test]
    fn without_flow_control_there_are_no_limits() {
        let flow = Flow::new(
            INITIAL,
            Windows {
                data: 1,
                streams: 1,
            },
            INITIAL,
        );
        for mut session in [
            plain(),
            Session::new(capsule::Flow::Ignored, Some(flow)),
            Session::new(capsule::Flow::Enabled, None),
        ] {
            assert!(!session.has_flow_control());
            let limits = [Capsule::MaxData(0), Capsule::MaxStreams(Kind::Bidi, 0)];
            assert_eq!(events(&mut session, &encoded(&limits)), Ok(vec![]));
            assert_eq!(session.take(1 << 40), 1 << 40);
            for _ in 0..100 {
                assert!(session.open(Kind::Bidi));
                session.opened(Kind::Bidi).unwrap();
            }
            assert_eq!(session.read(1 << 40), Ok(0));
            assert_eq!(said(&mut session), b"");
        }
    }

    /// One thing that happens to a session.
    #[derive(Debug, Clone)]
    enum Step {
        Receive(Vec<u8>),
        Finish,
        Drain,
        Close,
        Transmit,
        Take(u64),
        GiveBack(u64),
        Open(Kind),
        Opened(Kind),
        Over(Kind),
        Missed(Kind),
        Read(u64),
        Lost(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let kind = prop_oneof![Just(Kind::Bidi), Just(Kind::Uni)];
        let amount = prop_oneof![0..300u64, any::<u64>()];
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..40).prop_map(Step::Receive),
            capsule::tests::any_capsule().prop_map(|c| Step::Receive(encoded(&[c]))),
            Just(Step::Finish),
            Just(Step::Drain),
            Just(Step::Close),
            Just(Step::Transmit),
            amount.clone().prop_map(Step::Take),
            amount.clone().prop_map(Step::GiveBack),
            kind.clone().prop_map(Step::Open),
            kind.clone().prop_map(Step::Opened),
            kind.clone().prop_map(Step::Over),
            kind.prop_map(Step::Missed),
            amount.clone().prop_map(Step::Read),
            amount.prop_map(Step::Lost),
        ]
    }

    proptest! {
        /// Whatever a peer and an application do in whatever order: what is said is well-formed, says
        /// nothing twice, grants only more and more, and ends with the close.
        #[test]
        fn what_is_said_is_sound_whatever_happens(
            enabled: bool,
            steps in prop::collection::vec(step(), 0..200),
        ) {
            let mut session = if enabled { session() } else { plain() };
            let (mut all, mut drains, mut closed) = (Vec::new(), 0, 0);
            for step in steps {
                match step {
                    Step::Receive(content) => {
                        let Ok(events) = events(&mut session, &content) else { break };
                        drains += events.iter().filter(|e| **e == Event::Drain).count();
                        closed += events.iter().filter(|e| matches!(e, Event::Closed(_))).count();
                    }
                    Step::Finish => match session.finish() {
                        Ok(close) => closed += usize::from(close.is_some()),
                        Err(_) => break,
                    },
                    Step::Drain => session.drain(),
                    Step::Close => { session.close(Close::new(5, "five")); }
                    Step::Transmit => all.extend(said(&mut session)),
                    Step::Take(want) => prop_assert!(session.take(want) <= want),
                    Step::GiveBack(unused) => session.give_back(unused),
                    Step::Open(kind) => { session.open(kind); }
                    Step::Opened(kind) => if session.opened(kind).is_err() { break },
                    Step::Over(kind) => session.over(kind),
                    Step::Missed(kind) => session.missed(kind),
                    Step::Read(bytes) => if session.read(bytes).is_err() { break },
                    Step::Lost(most) => session.lost(most),
                }
                prop_assert!(drains <= 1 && closed <= 1);
            }
            let mut peer = capsule::Decoder::new(capsule::Flow::Enabled);
            peer.push(&all);
            let (mut last, mut over) = ([0; 3], false);
            let mut drained = false;
            while let Some(capsule) = peer.next().unwrap() {
                prop_assert!(!over, "something follows the close");
                let (slot, total) = match capsule {
                    Capsule::Close(_) => { over = true; continue }
                    Capsule::Drain => {
                        prop_assert!(!std::mem::replace(&mut drained, true));
                        continue;
                    }
                    Capsule::MaxData(total) => (0, total),
                    Capsule::MaxStreams(kind, total) => (1 + usize::from(kind == Kind::Uni), total),
                    Capsule::DataBlocked(_) | Capsule::StreamsBlocked(..) => continue,
                    Capsule::Datagram(_) => panic!("no datagram was sent"),
                };
                prop_assert!(enabled && total > last[slot]);
                last[slot] = total;
            }
            prop_assert!(peer.at_boundary());
        }
    }
}
