//! How the sessions of one connection share it: its window and its streams grow with them, and one
//! that is not read does not hold up the others for ever.
//!
//! Where there is flow control it does that. What is here is for peers without it, and for credit
//! that was given for what nobody knows: how much of a stream that was reset had been sent.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
};

use quinn::VarInt;
use tokio::time::{Instant, sleep};
use wavry_proto::{session::close_code, webtransport::flow::Kind};

use super::{
    super::{
        Limits,
        quic::{CONNECTION_WINDOW, CONTROL_STREAMS, FIRST_STREAMS, STREAM_WINDOW, Side},
        shared::Shared,
    },
    Connection,
};
use crate::{
    metrics::SESSIONS_UNREAD,
    session::{Close, Closed},
};

/// What a session may hold of the window where its peer knows no flow control, in bytes.
pub(in super::super) const SHARE: u64 = CONNECTION_WINDOW as u64;
/// Streams that can hold that much.
const SHARE_STREAMS: usize = (CONNECTION_WINDOW / STREAM_WINDOW) as usize;

/// How many streams of one kind the peer is granted: more, the more it has open.
pub(super) struct Grant {
    granted: u64,
    /// For each session.
    max: u64,
    /// Granted on top: HTTP/3's own streams.
    extra: u64,
    /// How many were seen, which is no less than have ended.
    seen: u64,
}

impl Grant {
    pub(super) fn uni(limits: &Limits) -> Self {
        Self {
            granted: FIRST_STREAMS.min(limits.streams),
            max: limits.streams,
            extra: CONTROL_STREAMS,
            seen: 0,
        }
    }

    pub(super) fn bidi(side: Side, limits: &Limits) -> Self {
        Self {
            granted: FIRST_STREAMS.min(limits.streams),
            max: limits.streams,
            extra: side.requests(limits),
            seen: 0,
        }
    }

    /// A stream was opened.
    pub(super) fn saw(&mut self) {
        self.seen += 1;
    }

    /// Whether the peer may have opened the stream with this index among those of its kind: as many
    /// are granted again as have ended.
    pub(super) fn reaches(&self, index: u64) -> bool {
        index < self.seen + self.granted + self.extra
    }

    /// The new limit, when it is time to raise it.
    fn more(&mut self, open: u64, sessions: usize) -> Option<VarInt> {
        let max = self.max.saturating_mul(sessions.max(1) as u64);
        if self.granted >= max || open * 2 < self.granted + self.extra {
            return None;
        }
        self.granted = (self.granted * 2).min(max);
        VarInt::from_u64(self.granted + self.extra).ok()
    }
}

/// A session that holds more than its share.
struct Suspect {
    since: Instant,
    /// Bytes that were read of it by then.
    read: u64,
    /// DATA_BLOCKED frames that had come before.
    blocked: u64,
}

impl Connection {
    /// Raises the limit on streams of a kind when the peer has used half of it.
    pub(super) fn grant(&self, kind: Kind) {
        let open = self.open_streams(kind).load(Ordering::Relaxed) as u64;
        let mut table = self.lock();
        let sessions = table.sessions.len();
        match kind {
            Kind::Bidi => {
                if let Some(count) = table.bidi.more(open, sessions) {
                    self.quic.set_max_concurrent_bi_streams(count);
                }
            }
            Kind::Uni => {
                if let Some(count) = table.uni.more(open, sessions) {
                    self.quic.set_max_concurrent_uni_streams(count);
                }
            }
        }
    }

    /// Gives the connection the window that its sessions need.
    pub(in super::super) fn share(&self) {
        let mut table = self.lock();
        let windows = table
            .sessions
            .values()
            .map(|session| session.window.load(Ordering::Relaxed));
        let window = match table.sessions.len() {
            0 | 1 => SHARE,
            // One stream's window more, for the CONNECT streams.
            _ => SHARE.max(windows.sum::<u64>() + u64::from(STREAM_WINDOW)),
        };
        if std::mem::replace(&mut table.window, window) != window {
            let window = VarInt::from_u64(window).unwrap_or(VarInt::MAX);
            self.quic.set_receive_window(window);
        }
    }

    /// Closes sessions that hold up others: of which nothing was read for `header_timeout`, while
    /// they had more streams unread than their share has room for, and the peer had more to send
    /// than the connection's window lets it (DATA_BLOCKED).
    pub(super) async fn keep_fair(&self) {
        loop {
            self.is_shared().await;
            // Apart: most connections are never shared.
            Box::pin(self.watch_shares()).await;
        }
    }

    /// Looks at the sessions until there is but one.
    async fn watch_shares(&self) {
        let patience = self.limits.header_timeout;
        let mut suspects = HashMap::new();
        let mut blocked_before = self.blocked();
        loop {
            sleep(patience / 8).await;
            let sessions: Vec<_> = self.lock().sessions.values().cloned().collect();
            if sessions.len() < 2 {
                return;
            }
            let blocked = self.blocked();
            suspects.retain(|id, _| sessions.iter().any(|session| session.id == *id));
            for session in sessions {
                let read = session.reading.bytes();
                if session.reading.unread() <= SHARE_STREAMS {
                    suspects.remove(&session.id);
                    continue;
                }
                let now = || Suspect {
                    since: Instant::now(),
                    read,
                    blocked: blocked_before,
                };
                let suspect = suspects.entry(session.id).or_insert_with(now);
                if suspect.read != read {
                    *suspect = now();
                } else if blocked > suspect.blocked && suspect.since.elapsed() >= patience {
                    give_up(&session);
                }
            }
            blocked_before = blocked;
        }
    }

    /// Waits until there is more than one session.
    async fn is_shared(&self) {
        loop {
            let mut added = std::pin::pin!(self.added.notified());
            added.as_mut().enable();
            if self.lock().sessions.len() > 1 {
                return;
            }
            added.await;
        }
    }

    fn blocked(&self) -> u64 {
        self.quic.stats().frame_rx.data_blocked
    }
}

fn give_up(session: &Arc<Shared>) {
    tracing::warn!(
        session = session.id,
        streams = session.reading.unread(),
        "session closed: it is not read, and holds up others"
    );
    metrics::counter!(SESSIONS_UNREAD).increment(1);
    let reason = "not read, and holding up other sessions";
    session.end(Closed::Here(Close::new(close_code::UNREAD, reason)));
}
