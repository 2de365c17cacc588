//! Datagrams between QUIC and sessions: nothing is lost here without a reason that is counted.
//!
//! quinn drops silently in two places: the oldest unsent datagram when its send buffer is full,
//! and the oldest unread one when its receive buffer is. [`Meter::send`] never lets the first
//! happen; [`Receiver`] reads without pause and counts the second.

use std::{
    collections::VecDeque,
    future::Future,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use metrics::Counter;
use tokio::{sync::Notify, time::Sleep};

use crate::{
    metrics::{DATAGRAMS, DATAGRAMS_DROPPED, reason},
    session::{Closed, DatagramError},
};

/// quinn's datagram send buffer, in bytes, for every connection: 20 ms at 200 Mbit/s, 40 ms at
/// 100 Mbit/s. What waits longer is better dropped and counted than delivered late.
pub const SEND_BUFFER: usize = 512 * 1024;

/// quinn's datagram receive buffer, in bytes, for every connection. A [`Receiver`] empties it at
/// once, so it adds no delay; it covers 50 ms at 20,000 full-size datagrams a second in which the
/// reading task is not scheduled.
pub const RECEIVE_BUFFER: usize = 1280 * 1024;

/// Most datagrams that wait in a session: 50 ms at 20,000 a second.
pub const QUEUE_LEN: usize = 1024;

/// Most bytes that wait in a session: [`QUEUE_LEN`] datagrams of the mesh's full size (1,200 B).
pub const QUEUE_BYTES: usize = 1200 * 1024;

/// How long quinn's own drops may stay uncounted.
const SETTLE: Duration = Duration::from_secs(1);

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
}

/// Reads a connection's datagrams. There must be one per connection, polled without pause.
pub struct Receiver {
    connection: quinn::Connection,
    meter: Meter,
    /// Datagrams taken from quinn.
    read: u64,
    /// Datagrams counted as dropped by quinn.
    dropped: u64,
    /// Rings when it is time to look for drops; `None` while nothing was read since the last look,
    /// because quinn drops only what a later read finds missing. It runs on through many reads: a
    /// timer costs as much as a datagram does.
    look: Option<Pin<Box<Sleep>>>,
}

impl Receiver {
    /// Reads from `connection`.
    pub fn new(connection: quinn::Connection, meter: Meter) -> Self {
        Self {
            connection,
            meter,
            read: 0,
            dropped: 0,
            look: None,
        }
    }

    /// The next datagram. Gives way to other tasks when many are there at once. Cancel-safe.
    pub async fn recv(&mut self) -> Result<Bytes, quinn::ConnectionError> {
        tokio::task::coop::consume_budget().await;
        let taken = loop {
            if let Some(taken) = self.taken_or_due().await {
                break taken;
            }
            // What had arrived before this look and is not there to be read was dropped.
            let arrived = self.connection.stats().frame_rx.datagram;
            match self.connection.read_datagram().now_or_never() {
                Some(taken) => break taken,
                None => {
                    self.look = None;
                    self.settle(arrived);
                }
            }
        };
        match taken {
            Ok(_) => {
                self.read += 1;
                self.meter.0.received.increment(1);
                self.look
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep(SETTLE)));
            }
            Err(_) => self.settle(self.connection.stats().frame_rx.datagram),
        }
        taken
    }

    /// What is read next, or `None` when it is time to look for drops.
    async fn taken_or_due(&mut self) -> Option<Result<Bytes, quinn::ConnectionError>> {
        let Self {
            connection, look, ..
        } = self;
        let mut reading = pin!(connection.read_datagram());
        std::future::poll_fn(|cx| match (reading.as_mut().poll(cx), &mut *look) {
            (Poll::Ready(taken), _) => Poll::Ready(Some(taken)),
            (Poll::Pending, Some(look)) => look.as_mut().poll(cx).map(|()| None),
            (Poll::Pending, None) => Poll::Pending,
        })
        .await
    }

    fn settle(&mut self, arrived: u64) {
        let missing = arrived.saturating_sub(self.read);
        if missing > self.dropped {
            self.meter
                .0
                .receive_buffer_full
                .increment(missing - self.dropped);
            self.dropped = missing;
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.settle(self.connection.stats().frame_rx.datagram);
    }
}

/// A session's datagrams that wait for its reader: at most [`QUEUE_LEN`] and [`QUEUE_BYTES`]; the
/// oldest makes room for the newest.
pub struct Queue {
    state: Mutex<Waiting>,
    arrived: Notify,
    meter: Meter,
}

#[derive(Default)]
struct Waiting {
    datagrams: VecDeque<Bytes>,
    bytes: usize,
    closed: bool,
}

impl Queue {
    /// An empty queue.
    pub fn new(meter: Meter) -> Self {
        Self {
            state: Mutex::default(),
            arrived: Notify::new(),
            meter,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a datagram's payload. After [`close`](Self::close) it is dropped and counted.
    pub fn push(&self, payload: Bytes) {
        let mut waiting = self.lock();
        if waiting.closed {
            drop(waiting);
            self.meter.0.session_closed.increment(1);
            return;
        }
        let mut dropped = 0;
        while waiting.datagrams.len() >= QUEUE_LEN
            || (waiting.bytes + payload.len() > QUEUE_BYTES && !waiting.datagrams.is_empty())
        {
            if let Some(oldest) = waiting.datagrams.pop_front() {
                waiting.bytes -= oldest.len();
                dropped += 1;
            }
        }
        waiting.bytes += payload.len();
        waiting.datagrams.push_back(payload);
        drop(waiting);
        self.arrived.notify_one();
        if dropped > 0 {
            self.meter.0.receive_queue_full.increment(dropped);
        }
    }

    /// The oldest datagram; waits for one. `None` once closed and empty. Cancel-safe.
    pub async fn pop(&self) -> Option<Bytes> {
        loop {
            let arrived = self.arrived.notified();
            {
                let mut waiting = self.lock();
                if let Some(payload) = waiting.datagrams.pop_front() {
                    waiting.bytes -= payload.len();
                    return Some(payload);
                }
                if waiting.closed {
                    return None;
                }
            }
            arrived.await;
        }
    }

    /// Takes no more; what waits can still be popped.
    pub fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_waiters();
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let left = self.lock().datagrams.len();
        if left > 0 {
            self.meter.0.session_closed.increment(left as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::link;

    #[tokio::test]
    async fn a_full_queue_drops_its_oldest() {
        let queue = Queue::new(Meter::new(link::MESH));
        for n in 0..QUEUE_LEN as u32 + 2 {
            queue.push(Bytes::copy_from_slice(&n.to_be_bytes()));
        }
        assert_eq!(queue.pop().await.unwrap(), &2u32.to_be_bytes()[..]);
        assert_eq!(queue.lock().datagrams.len(), QUEUE_LEN - 1);
    }

    #[tokio::test]
    async fn a_queue_is_bounded_in_bytes_and_still_takes_one_of_any_size() {
        let queue = Queue::new(Meter::new(link::MESH));
        queue.push(Bytes::from_static(b"small"));
        queue.push(Bytes::from(vec![0; QUEUE_BYTES + 1]));
        assert_eq!(queue.pop().await.unwrap().len(), QUEUE_BYTES + 1);
        assert_eq!(queue.lock().bytes, 0);
    }

    #[tokio::test]
    async fn a_closed_queue_gives_what_waits_and_then_ends() {
        let queue = Queue::new(Meter::new(link::MESH));
        queue.push(Bytes::from_static(b"last"));
        queue.close();
        queue.push(Bytes::from_static(b"late"));
        assert_eq!(queue.pop().await.unwrap(), "last");
        assert_eq!(queue.pop().await, None);
    }

    #[tokio::test]
    async fn closing_wakes_a_waiting_reader() {
        let queue = Arc::new(Queue::new(Meter::new(link::MESH)));
        let reader = tokio::spawn({
            let queue = queue.clone();
            async move { queue.pop().await }
        });
        tokio::task::yield_now().await;
        queue.close();
        assert_eq!(reader.await.unwrap(), None);
    }
}
