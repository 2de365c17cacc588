//! What the handles of one session share.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::Notify;
use wavry_proto::webtransport::{code, flow::Kind, session};

use super::{
    backlog::Backlog,
    connection::Connection,
    credit::{Place, Reading},
    milestone::{Milestone, Milestones},
    stream,
};
use crate::{
    datagram::Queue,
    session::{Close, Closed},
};

/// A peer that ends a session resets its streams or closes the connection, and that may be seen
/// before the word that tells why. How long to wait for it.
pub(super) const REASON_WAIT: Duration = Duration::from_secs(1);

/// A stream that the peer opened: its halves and what was read together with its header.
pub(super) struct Incoming {
    pub(super) send: Option<quinn::SendStream>,
    pub(super) recv: quinn::RecvStream,
    pub(super) first: Bytes,
    pub(super) place: Place,
}

impl Incoming {
    pub(super) fn kind(&self) -> Kind {
        match self.send {
            Some(_) => Kind::Bidi,
            None => Kind::Uni,
        }
    }

    pub(super) fn refuse(self, h3_code: u64) {
        stream::refuse(self.send, Some(self.recv), h3_code);
    }
}

/// One session.
pub(super) struct Shared {
    pub(super) connection: Arc<Connection>,
    /// The id of its CONNECT stream.
    pub(super) id: u64,
    pub(super) bi: Backlog<Incoming>,
    pub(super) uni: Backlog<Incoming>,
    pub(super) datagrams: Queue,
    pub(super) milestones: Milestones,
    pub(super) state: Mutex<session::Session>,
    /// Whether there is flow control.
    pub(super) limited: bool,
    /// There is something to say on the CONNECT stream.
    pub(super) say: Notify,
    /// There is more credit, or another stream may be opened.
    pub(super) more: Notify,
    pub(super) reading: Reading,
    /// What the session may hold of its connection's window, in bytes.
    pub(super) window: AtomicU64,
    /// The code to reset the CONNECT stream with, as the peer broke a rule.
    pub(super) broken: OnceLock<u64>,
    closed: OnceLock<Closed>,
    /// Streams to be reset once the peer has had the last word. `None` from then on. As many at most
    /// as the connection's streams ([`super::Limits::streams`], and what the peer grants).
    parting: Mutex<Option<Vec<Halves>>>,
}

type Halves = (Option<quinn::SendStream>, Option<quinn::RecvStream>);

impl Shared {
    pub(super) fn new(connection: Arc<Connection>, id: u64, state: session::Session) -> Self {
        let datagrams = Queue::new(connection.meter.clone());
        Self {
            limited: state.has_flow_control(),
            state: Mutex::new(state),
            say: Notify::new(),
            more: Notify::new(),
            reading: Reading::default(),
            window: AtomicU64::new(0),
            broken: OnceLock::new(),
            connection,
            id,
            bi: Backlog::default(),
            uni: Backlog::default(),
            datagrams,
            milestones: Milestones::default(),
            closed: OnceLock::new(),
            parting: Mutex::new(Some(Vec::new())),
        }
    }

    /// Ends the session; the first call decides how. Streams that nobody took [part](Self::part)
    /// here, the others when their holder next touches them.
    pub(super) fn end(&self, closed: Closed) {
        let last_word = matches!(closed, Closed::Here(_));
        if self.closed.set(closed).is_err() {
            return;
        }
        if !last_word {
            self.release();
        }
        self.milestones.reach(Milestone::Over);
        // What came before the end can still be read. A connection that is lost ends all the same.
        let _ = self.connection.datagrams.sweep(&*self.connection);
        self.datagrams.close();
        for incoming in self.bi.close().into_iter().chain(self.uni.close()) {
            self.part(incoming.send, Some(incoming.recv));
        }
    }

    /// Resets a stream of this session, which is over: after the last word, if there is one to say.
    /// Within a packet QUIC stacks put RESET_STREAM and STOP_SENDING ahead of stream data, and a
    /// peer that sees its streams die first may not get to learn why.
    pub(super) fn part(&self, send: Option<quinn::SendStream>, recv: Option<quinn::RecvStream>) {
        let mut parting = self.parting.lock().unwrap_or_else(PoisonError::into_inner);
        match parting.as_mut() {
            Some(held) => held.push((send, recv)),
            None => stream::refuse(send, recv, code::SESSION_GONE),
        }
    }

    /// Resets what has parted, and from now on at once: the last word is said.
    pub(super) fn release(&self) {
        let mut parting = self.parting.lock().unwrap_or_else(PoisonError::into_inner);
        for (send, recv) in parting.take().into_iter().flatten() {
            stream::refuse(send, recv, code::SESSION_GONE);
        }
    }

    /// How the session ended, given that its connection was lost. The peer's last word may have
    /// come just before, so whoever reads the CONNECT stream gets the chance to find it.
    pub(super) async fn lost(&self, error: &quinn::ConnectionError) -> Closed {
        if let Some(closed) = self.over_within(REASON_WAIT).await {
            return closed;
        }
        self.end(Closed::Lost(error.to_string()));
        self.over().await
    }

    /// How the session ended; `None` while it lives.
    pub(super) fn closed_now(&self) -> Option<Closed> {
        self.closed.get().cloned()
    }

    /// Resolves when the session is over. Cancel-safe.
    pub(super) async fn over(&self) -> Closed {
        self.milestones.wait(Milestone::Over).await;
        // It is set before the milestone is reached.
        self.closed_now().unwrap_or(Closed::Here(Close::default()))
    }

    /// How the session ended, if it does so within `wait`.
    pub(super) async fn over_within(&self, wait: Duration) -> Option<Closed> {
        tokio::time::timeout(wait, self.over()).await.ok()
    }
}
