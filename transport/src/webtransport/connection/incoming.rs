//! Streams that the peer opens, up to whose they are.
//!
//! What came with a stream's first packet mostly tells it all, and then no task is needed. One whose
//! header does not come has a task of its own and keeps no other waiting.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use quinn::VarInt;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;
use wavry_proto::{
    h3::{self, code},
    webtransport::{code as wt_code, flow::Kind, stream as wt_stream},
};

use super::{
    super::{
        credit::Place,
        server::{self, Intake},
        shared::{Incoming, Shared},
        stream::{MAX_CHUNK, refuse},
    },
    Connection, REMEMBERED, Side,
};
use crate::metrics::{STREAMS_REFUSED, refusal};

/// What a stream's first bytes say.
enum Head {
    /// It is one of this session's.
    Session(u64),
    /// It is HTTP/3's, and this is its type or the type of its first frame.
    Http(u64),
}

/// A stream whose header is being read.
struct Header {
    incoming: Incoming,
    kind: Kind,
    /// Bytes of an integer that is not complete.
    held: BytesMut,
    /// The signal of a stream of a session was read; the session's id follows.
    signalled: bool,
}

impl Header {
    /// Reads as far as the bytes go that came last; `None` when more are needed.
    fn read(&mut self) -> Option<Head> {
        loop {
            let bytes = std::mem::take(&mut self.incoming.first);
            if bytes.is_empty() {
                return None;
            }
            let (value, rest) = wt_stream::take_varint(&mut self.held, bytes)?;
            self.incoming.first = rest;
            let signal = match self.kind {
                Kind::Bidi => wt_stream::BI,
                Kind::Uni => wt_stream::UNI,
            };
            match (self.signalled, value == signal) {
                (true, _) => return Some(Head::Session(value)),
                (false, true) => self.signalled = true,
                (false, false) => return Some(Head::Http(value)),
            }
        }
    }

    async fn more(&mut self) -> Result<bool, quinn::ReadError> {
        let chunk = self.incoming.recv.read_chunk(MAX_CHUNK, true).await?;
        self.incoming.first = match chunk {
            Some(chunk) => chunk.bytes,
            None => return Ok(false),
        };
        Ok(true)
    }
}

/// The end of a stream whose header was not complete.
#[derive(Clone, Copy)]
enum Cut {
    Finished,
    Reset,
    TooLate,
}

impl Connection {
    pub(super) async fn accept_uni(self: &Arc<Self>) {
        while let Ok(recv) = self.quic.accept_uni().await {
            self.arrived(None, recv, None);
        }
    }

    pub(super) async fn accept_bi(self: &Arc<Self>, intake: Option<Arc<Intake>>) {
        while let Ok((send, recv)) = self.quic.accept_bi().await {
            self.lock().bidi.saw();
            self.arrived(Some(send), recv, intake.as_ref());
        }
    }

    /// Takes a stream as far as what came of it allows, and leaves the rest to a task. Tasks are as
    /// many as the streams granted.
    fn arrived(
        self: &Arc<Self>,
        send: Option<quinn::SendStream>,
        recv: quinn::RecvStream,
        intake: Option<&Arc<Intake>>,
    ) {
        let kind = match send {
            Some(_) => Kind::Bidi,
            None => Kind::Uni,
        };
        let mut header = Header {
            incoming: Incoming {
                send,
                recv,
                first: Bytes::new(),
                place: Place::new(self.clone(), kind),
            },
            kind,
            held: BytesMut::new(),
            signalled: false,
        };
        self.grant(kind);
        let more = match header.more().now_or_never() {
            Some(Ok(true)) => true,
            Some(Ok(false)) => return self.cut_off(header, Cut::Finished, false),
            Some(Err(_)) => return self.cut_off(header, Cut::Reset, false),
            None => false,
        };
        let read = if more { header.read() } else { None };
        match read {
            Some(head) => self.begun(head, header.incoming, self.header_deadline(), intake),
            None => {
                let rest = self.clone().read_header(header, more, intake.cloned());
                tokio::spawn(rest.in_current_span());
            }
        }
    }

    fn header_deadline(&self) -> Instant {
        Instant::now() + self.limits.header_timeout
    }

    /// Reads the rest of a header, of which something came before, or not. There is no deadline for
    /// the first byte: a stream is there as soon as a later one of its kind is (RFC 9000, section
    /// 2.1), while its own bytes may wait for the connection's flow control.
    async fn read_header(
        self: Arc<Self>,
        mut header: Header,
        mut begun: bool,
        intake: Option<Arc<Intake>>,
    ) {
        let mut deadline = begun.then(|| self.header_deadline());
        loop {
            let more = match deadline {
                Some(deadline) => timeout_at(deadline, header.more()).await,
                None => Ok(header.more().await),
            };
            match more {
                Ok(Ok(true)) => begun = true,
                Ok(Ok(false)) => return self.cut_off(header, Cut::Finished, begun),
                Ok(Err(_)) => return self.cut_off(header, Cut::Reset, begun),
                Err(_) => return self.cut_off(header, Cut::TooLate, begun),
            }
            let deadline = *deadline.get_or_insert_with(|| self.header_deadline());
            if let Some(head) = header.read() {
                return self.begun(head, header.incoming, deadline, intake.as_ref());
            }
        }
    }

    /// A stream ended before its header did, of which something came or not. It may have been of any
    /// session, as without RESET_STREAM_AT a reset overtakes the header, and each is given back what
    /// it might have cost.
    fn cut_off(&self, header: Header, cut: Cut, begun: bool) {
        let sessions: Vec<_> = self.lock().sessions.values().cloned().collect();
        for session in sessions {
            session.missed(header.kind);
        }
        let Incoming { send, recv, .. } = header.incoming;
        match (cut, header.kind) {
            (Cut::TooLate, _) => {
                count_refused(refusal::HEADER_TIMEOUT);
                refuse(send, Some(recv), code::REQUEST_INCOMPLETE);
            }
            // RFC 9114, section 7.1: what began with a byte began a frame.
            (Cut::Finished, Kind::Bidi) if begun && !header.signalled => {
                self.violation(code::FRAME_ERROR, &"a frame type that is cut off");
            }
            (Cut::Finished, _) => refuse(send, Some(recv), code::REQUEST_INCOMPLETE),
            (Cut::Reset, _) => refuse(send, None, code::REQUEST_CANCELLED),
        }
    }

    /// Hands a stream on, now that it is known what it is.
    fn begun(
        self: &Arc<Self>,
        head: Head,
        incoming: Incoming,
        deadline: Instant,
        intake: Option<&Arc<Intake>>,
    ) {
        let kind = match head {
            Head::Session(id) if !wt_stream::is_session_id(id) => {
                return self.violation(code::ID_ERROR, &"stream of an impossible session");
            }
            Head::Session(id) => return self.belongs(id, incoming, deadline),
            Head::Http(kind) => kind,
        };
        let Incoming {
            send, recv, first, ..
        } = incoming;
        match (send, intake, kind) {
            (Some(send), Some(intake), _) => {
                let id = VarInt::from(send.id()).into_inner();
                {
                    let mut table = self.lock();
                    table.next_request = table.next_request.max(id + 4);
                }
                let (this, intake) = (self.clone(), intake.clone());
                let serve =
                    server::serve_request(this, send, recv, (kind, first), deadline, intake);
                let mut serve = Box::pin(serve.in_current_span());
                // Mostly the whole request came with the first packet, and then no task is needed.
                if serve.as_mut().now_or_never().is_none() {
                    tokio::spawn(serve);
                }
            }
            (Some(_), None, _) => {
                self.violation(code::STREAM_CREATION_ERROR, &"request from a server");
            }
            (
                None,
                _,
                h3::stream::CONTROL | h3::stream::QPACK_ENCODER | h3::stream::QPACK_DECODER,
            ) => self.peer_opened(kind, recv, first),
            (None, _, h3::stream::PUSH) => {
                // Only a server may push, and we grant no push ids.
                let code = match self.side {
                    Side::Server => code::STREAM_CREATION_ERROR,
                    Side::Client => code::ID_ERROR,
                };
                self.violation(code, &"push stream");
            }
            // RFC 9114, section 6.2: unknown types are not an error.
            (None, ..) => refuse(None, Some(recv), code::STREAM_CREATION_ERROR),
        }
    }

    /// Gives a stream to its session, or leaves it to a task that waits for that.
    fn belongs(self: &Arc<Self>, id: u64, incoming: Incoming, deadline: Instant) {
        match self.find(id) {
            Some(found) => deliver(found, incoming),
            None => {
                let wait = self.clone().wait_for_session(id, incoming, deadline);
                tokio::spawn(wait.in_current_span());
            }
        }
    }

    /// The session `id`, or `None` when it is over; nothing where it is not known.
    fn find(&self, id: u64) -> Option<Option<Arc<Shared>>> {
        let table = self.lock();
        match table.sessions.get(&id) {
            Some(shared) => Some(Some(shared.clone())),
            None => table.gone.contains(&id).then_some(None),
        }
    }

    async fn wait_for_session(self: Arc<Self>, id: u64, incoming: Incoming, deadline: Instant) {
        let found = async {
            let _place = self.waiting.try_acquire().ok()?;
            loop {
                let mut added = std::pin::pin!(self.added.notified());
                added.as_mut().enable();
                if let Some(found) = self.find(id) {
                    return Some(found);
                }
                timeout_at(deadline, added).await.ok()?;
            }
        };
        match found.await {
            Some(found) => deliver(found, incoming),
            None => {
                count_refused(refusal::UNKNOWN_SESSION);
                self.remember_refused(id, &incoming);
                incoming.refuse(wt_code::BUFFERED_STREAM_REJECTED);
            }
        }
    }

    /// Notes for a session that may yet come that a stream of it was refused.
    fn remember_refused(&self, id: u64, incoming: &Incoming) {
        let mut table = self.lock();
        if table.refused.len() == REMEMBERED {
            table.refused.pop_front();
        }
        table.refused.push_back((id, incoming.kind()));
    }
}

/// Gives a stream to its session, which is over if it is `None`.
fn deliver(session: Option<Arc<Shared>>, mut incoming: Incoming) {
    let Some(shared) = session else {
        count_refused(refusal::SESSION_GONE);
        return incoming.refuse(wt_code::SESSION_GONE);
    };
    if let Err(error) = incoming.place.belongs_to(&shared) {
        count_refused(refusal::FLOW_CONTROL);
        shared.fail(&error);
        return shared.part(incoming.send, Some(incoming.recv));
    }
    shared.reading.begin();
    let backlog = match incoming.kind() {
        Kind::Bidi => &shared.bi,
        Kind::Uni => &shared.uni,
    };
    if let Err(Incoming { send, recv, .. }) = backlog.push(incoming) {
        count_refused(refusal::SESSION_GONE);
        shared.part(send, Some(recv));
    }
}

fn count_refused(reason: &'static str) {
    metrics::counter!(STREAMS_REFUSED, "reason" => reason).increment(1);
}
