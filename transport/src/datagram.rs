//! Datagrams between QUIC and sessions: nothing is lost here without a reason that is counted.
//!
//! quinn drops silently in two places: the oldest unsent datagram when its send buffer is full,
//! and the oldest unread one when its receive buffer is. [`Meter::send`] never lets the first
//! happen; [`Inbox`] says who reads, so that it is done in time, and counts the second. What waits
//! for a session's reader waits in its [`Queue`].

mod inbox;
mod queue;
mod sync;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wire;

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt;
use metrics::Counter;

pub use self::{
    inbox::{Inbox, Recipients, Source},
    queue::Queue,
};
use crate::{
    metrics::{DATAGRAMS, DATAGRAMS_DROPPED, reason},
    session::{Closed, DatagramError},
};

/// quinn's datagram send buffer, in bytes, for every connection: 20 ms at 200 Mbit/s. Where a connection sends less in
/// [`SEND_WAITS`], it takes no more than that.
pub const SEND_BUFFER: usize = 512 * 1024;

/// For how long a datagram waits to be sent: as long as in a transit relay's queue. One that would wait longer is better
/// dropped and counted than delivered late.
pub const SEND_WAITS: Duration = Duration::from_millis(50);

/// But so many bytes wait on any connection: fifty datagrams of full size that came at once, before it is known
/// how fast it is.
pub const SEND_BURST: usize = 64 * 1024;

/// quinn's datagram receive buffer, in bytes, for every connection. An [`Inbox`] empties it at once,
/// or within 20 ms where a session reads for itself; it covers 50 ms at 20,000 full-size datagrams a
/// second in which the reading task is not scheduled.
pub const RECEIVE_BUFFER: usize = 1280 * 1024;

/// Most datagrams that wait in a session: 50 ms at 20,000 a second.
pub const QUEUE_LEN: usize = 1024;

/// Most bytes that wait in a session: [`QUEUE_LEN`] datagrams of the mesh's full size (1,200 B).
pub const QUEUE_BYTES: usize = 1200 * 1024;

/// The counters of one link. Looked up once per endpoint; clones share them.
#[derive(Clone)]
pub struct Meter(Arc<Counters>);

struct Counters {
    sent: Counter,
    received: Counter,
    send_buffer_full: Counter,
    too_large: Counter,
    receive_queue_full: Counter,
    receive_buffer_full: Counter,
    unknown_session: Counter,
    malformed: Counter,
    session_closed: Counter,
}

impl Meter {
    /// Counters for `link`, a value of [`crate::metrics::link`].
    pub fn new(link: &'static str) -> Self {
        let passed = |direction: &'static str| metrics::counter!(DATAGRAMS, "link" => link, "direction" => direction);
        let dropped = |reason: &'static str| metrics::counter!(DATAGRAMS_DROPPED, "link" => link, "reason" => reason);
        Self(Arc::new(Counters {
            sent: passed("sent"),
            received: passed("received"),
            send_buffer_full: dropped(reason::SEND_BUFFER_FULL),
            too_large: dropped(reason::TOO_LARGE),
            receive_queue_full: dropped(reason::RECEIVE_QUEUE_FULL),
            receive_buffer_full: dropped(reason::RECEIVE_BUFFER_FULL),
            unknown_session: dropped(reason::UNKNOWN_SESSION),
            malformed: dropped(reason::MALFORMED),
            session_closed: dropped(reason::SESSION_CLOSED),
        }))
    }

    /// Sends `encoded`, of which the first `header` bytes are not payload, now or not at all, and
    /// counts what became of it. Sizes in the error are of payload.
    pub fn send(
        &self,
        connection: &quinn::Connection,
        header: usize,
        encoded: Bytes,
    ) -> Result<(), DatagramError> {
        let len = encoded.len();
        if !is_sent_soon(connection, len) {
            self.0.send_buffer_full.increment(1);
            return Err(DatagramError::Full);
        }
        // Polled once, `send_datagram_wait` sends if there is room and gives up if there is not,
        // under one lock: no other sender can take the room between a check and the sending.
        match connection.send_datagram_wait(encoded).now_or_never() {
            Some(Ok(())) => {
                self.0.sent.increment(1);
                Ok(())
            }
            None => {
                self.0.send_buffer_full.increment(1);
                Err(DatagramError::Full)
            }
            Some(Err(quinn::SendDatagramError::ConnectionLost(error))) => {
                Err(Closed::Lost(error.to_string()).into())
            }
            Some(Err(
                quinn::SendDatagramError::TooLarge
                | quinn::SendDatagramError::UnsupportedByPeer
                | quinn::SendDatagramError::Disabled,
            )) => {
                let max = connection.max_datagram_size().unwrap_or(0);
                Err(self.too_large(len.saturating_sub(header), max.saturating_sub(header)))
            }
        }
    }

    /// Counts a datagram that is over a limit before it came to [`send`](Self::send).
    pub fn too_large(&self, len: usize, max: usize) -> DatagramError {
        self.0.too_large.increment(1);
        DatagramError::TooLarge { len, max }
    }

    /// Counts a datagram for a session that is not there.
    pub fn unknown_session(&self) {
        self.0.unknown_session.increment(1);
    }

    /// Counts a datagram whose header does not decode.
    pub fn malformed(&self) {
        self.0.malformed.increment(1);
    }

    fn received(&self) {
        self.0.received.increment(1);
    }

    fn receive_queue_full(&self, count: u64) {
        self.0.receive_queue_full.increment(count);
    }

    fn receive_buffer_full(&self, count: u64) {
        self.0.receive_buffer_full.increment(count);
    }

    fn session_closed(&self, count: u64) {
        self.0.session_closed.increment(count);
    }
}

/// Whether what waits on a connection, and `len` bytes more, do not wait for longer than [`SEND_WAITS`].
fn is_sent_soon(connection: &quinn::Connection, len: usize) -> bool {
    let waiting = SEND_BUFFER.saturating_sub(connection.datagram_send_buffer_space()) + len;
    waiting <= SEND_BURST || {
        let path = connection.stats().path;
        waiting <= sent_within(SEND_WAITS, path.cwnd, path.rtt)
    }
}

/// Bytes that are sent in `time` where a window of them is in a round trip.
fn sent_within(time: Duration, window: u64, round_trip: Duration) -> usize {
    let sent = u128::from(window) * time.as_nanos() / round_trip.as_nanos().max(1);
    usize::try_from(sent).unwrap_or(usize::MAX)
}

impl Source for quinn::Connection {
    type Lost = quinn::ConnectionError;

    fn read(&self) -> impl Future<Output = Result<Bytes, quinn::ConnectionError>> + Send {
        self.read_datagram()
    }

    fn arrived(&self) -> u64 {
        self.stats().frame_rx.datagram
    }
}
