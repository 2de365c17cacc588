//! What the handles of one session share.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use wavry_proto::webtransport::code;

use super::{backlog::Backlog, connection::Connection, stream};
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
}

impl Incoming {
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
    /// The peer asked to finish and close.
    pub(super) draining: CancellationToken,
    /// This side wants WT_DRAIN_SESSION sent.
    pub(super) drain_wanted: Notify,
    /// The peer has had its chance to read the last word, and nothing more is sent.
    pub(super) farewell: CancellationToken,
    over: CancellationToken,
    closed: OnceLock<Closed>,
}

impl Shared {
    pub(super) fn new(connection: Arc<Connection>, id: u64) -> Self {
        let datagrams = Queue::new(connection.meter.clone());
        Self {
            connection,
            id,
            bi: Backlog::default(),
            uni: Backlog::default(),
            datagrams,
            draining: CancellationToken::new(),
            drain_wanted: Notify::new(),
            farewell: CancellationToken::new(),
            over: CancellationToken::new(),
            closed: OnceLock::new(),
        }
    }

    /// Ends the session; the first call decides how. Streams that nobody took are reset here, the
    /// others when their holder next touches them.
    pub(super) fn end(&self, closed: Closed) {
        if self.closed.set(closed).is_err() {
            return;
        }
        self.over.cancel();
        self.datagrams.close();
        for incoming in self.bi.close().into_iter().chain(self.uni.close()) {
            incoming.refuse(code::SESSION_GONE);
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
        self.over.cancelled().await;
        // It is set before the token is cancelled.
        self.closed_now().unwrap_or(Closed::Here(Close::default()))
    }

    /// How the session ended, if it does so within `wait`.
    pub(super) async fn over_within(&self, wait: Duration) -> Option<Closed> {
        tokio::time::timeout(wait, self.over()).await.ok()
    }
}
