//! What streams may use of their session, and what a session may use of its connection.

use std::{
    pin::pin,
    sync::{
        Arc, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use wavry_proto::webtransport::{
    flow::{Initial, Kind, Windows},
    session,
};

use super::{Limits, connection::Connection, quic, shared::Shared};
use crate::session::Closed;

/// Stream payload in bytes that each session is granted at first, where there is flow control: it is
/// there before the first capsule, and 16 sessions that are not read hold half the connection's
/// window with it.
const FIRST_DATA: u64 = 256 * 1024;
/// What that grows to while the session is read: 80 ms of 400 Mbit/s.
pub(super) const SESSION_WINDOW: u64 = 4 * 1024 * 1024;
/// Most credit that a write takes at once, in bytes: while the stream's own window is full, it is
/// kept from the session's other streams.
const MAX_PIECE: u64 = 64 * 1024;

/// What sessions are granted at first.
pub(super) fn initial(limits: &Limits) -> Initial {
    let streams = quic::FIRST_STREAMS.min(limits.streams);
    Initial {
        data: FIRST_DATA,
        bidi: streams,
        uni: streams,
    }
}

/// How far what sessions are granted grows.
pub(super) fn windows(limits: &Limits) -> Windows {
    Windows {
        data: SESSION_WINDOW,
        streams: limits.streams,
    }
}

/// What is read of a session, and what is not.
#[derive(Default)]
pub(super) struct Reading {
    /// Streams on which the peer may send.
    streams: AtomicUsize,
    /// Those of them whose reader waits for more.
    hungry: AtomicUsize,
    /// Bytes that were read.
    bytes: AtomicU64,
}

impl Reading {
    pub(super) fn begin(&self) {
        self.streams.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.streams.fetch_sub(1, Ordering::Relaxed);
    }

    /// Streams that may hold something that nobody reads.
    pub(super) fn unread(&self) -> usize {
        let hungry = self.hungry.load(Ordering::Relaxed);
        self.streams.load(Ordering::Relaxed).saturating_sub(hungry)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Waits for `read`; meanwhile its stream is hungry. Cancel-safe if `read` is.
    pub(super) async fn wait<T>(&self, read: impl Future<Output = T>) -> T {
        struct Hungry<'a>(&'a AtomicUsize);
        impl Drop for Hungry<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let mut read = pin!(read);
        let mut hungry = None;
        std::future::poll_fn(|cx| {
            let polled = read.as_mut().poll(cx);
            if polled.is_pending() && hungry.is_none() {
                self.hungry.fetch_add(1, Ordering::Relaxed);
                hungry = Some(Hungry(&self.hungry));
            }
            polled
        })
        .await
    }
}

/// A stream that the peer opened, as long as it is not over. Dropped, it returns as credit.
pub(super) struct Place {
    connection: Arc<Connection>,
    kind: Kind,
    session: Option<Arc<Shared>>,
}

impl Place {
    pub(super) fn new(connection: Arc<Connection>, kind: Kind) -> Self {
        connection
            .open_streams(kind)
            .fetch_add(1, Ordering::Relaxed);
        Self {
            connection,
            kind,
            session: None,
        }
    }

    /// It is a stream of this session: a violation if that has no room for it.
    pub(super) fn belongs_to(&mut self, session: &Arc<Shared>) -> Result<(), session::Error> {
        if session.limited {
            session.update(|state| state.opened(self.kind))?;
        }
        self.session = Some(session.clone());
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let open = self.connection.open_streams(self.kind);
        open.fetch_sub(1, Ordering::Relaxed);
        if let Some(session) = self.session.take()
            && session.limited
        {
            session.update(|state| state.over(self.kind));
        }
    }
}

/// Credit for stream payload that was taken. What is left of it when dropped is given back.
pub(super) struct Credit<'a> {
    session: &'a Shared,
    left: u64,
}

impl Credit<'_> {
    pub(super) fn left(&self) -> usize {
        // At most `MAX_PIECE`.
        self.left as usize
    }

    pub(super) fn spend(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes as u64);
    }
}

impl Drop for Credit<'_> {
    fn drop(&mut self) {
        if self.left > 0 {
            self.session.update(|state| state.give_back(self.left));
            self.session.more.notify_waiters();
        }
    }
}

/// The permission to open a stream. Given back unless it was used.
pub(super) struct Permit<'a> {
    session: Option<&'a Shared>,
    kind: Kind,
}

impl Permit<'_> {
    pub(super) fn used(mut self) {
        self.session = None;
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            session.update(|state| state.unopen(self.kind));
            session.more.notify_waiters();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, session::Session> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the session's state, and sees to it that what is to be said then is said.
    pub(super) fn update<T>(&self, change: impl FnOnce(&mut session::Session) -> T) -> T {
        let mut state = self.state();
        let changed = change(&mut state);
        let wants = state.wants_transmit();
        drop(state);
        if wants {
            self.say.notify_one();
        }
        changed
    }

    /// Ends the session because its peer broke a rule.
    pub(super) fn fail(&self, error: &session::Error) {
        if self.closed_now().is_some() {
            return;
        }
        tracing::debug!(%error, "session broke the protocol");
        let _ = self.broken.set(error.code());
        self.end(Closed::Lost(error.to_string()));
    }

    /// The permission to open a stream of this kind; waits for it. Cancel-safe.
    pub(super) async fn permit(&self, kind: Kind) -> Permit<'_> {
        let mut session = None;
        if self.limited {
            self.wait(|state| state.open(kind).then_some(())).await;
            session = Some(self);
        }
        Permit { session, kind }
    }

    /// Credit for up to `want` bytes, at least one; waits for it. Cancel-safe.
    pub(super) async fn credit(&self, want: usize) -> Credit<'_> {
        let want = (want as u64).min(MAX_PIECE);
        let take = |state: &mut session::Session| Some(state.take(want)).filter(|left| *left > 0);
        let left = self.wait(take).await;
        Credit {
            session: self,
            left,
        }
    }

    async fn wait<T>(&self, take: impl Fn(&mut session::Session) -> Option<T>) -> T {
        loop {
            let mut more = pin!(self.more.notified());
            more.as_mut().enable();
            if let Some(taken) = self.update(&take) {
                return taken;
            }
            more.await;
        }
    }

    /// The application read stream payload.
    pub(super) fn read(&self, bytes: usize) {
        let bytes = bytes as u64;
        self.reading.bytes.fetch_add(bytes, Ordering::Relaxed);
        if !self.limited {
            return;
        }
        match self.update(|state| state.read(bytes)) {
            Ok(0) => {}
            Ok(grown) => {
                self.window.fetch_add(grown, Ordering::Relaxed);
                self.connection.share();
            }
            Err(error) => self.fail(&error),
        }
    }

    /// A stream ended, and nobody knows how much was sent on it. It cannot be more than QUIC allowed.
    pub(super) fn lost_payload(&self) {
        if self.limited {
            self.update(|state| state.lost(quic::STREAM_WINDOW.into()));
        }
    }

    /// A stream ended before it told its session.
    pub(super) fn missed(&self, kind: Kind) {
        if self.limited {
            self.update(|state| {
                state.missed(kind);
                state.lost(quic::STREAM_WINDOW.into());
            });
        }
    }
}
