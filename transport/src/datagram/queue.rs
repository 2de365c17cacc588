//! A session's datagrams that wait for its reader.

use std::{
    collections::VecDeque,
    sync::PoisonError,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;

use super::{
    Meter, QUEUE_BYTES, QUEUE_LEN,
    sync::{AtomicBool, Mutex, MutexGuard, Ordering},
};

/// A session's datagrams that wait for its reader: at most [`QUEUE_LEN`] and [`QUEUE_BYTES`]; the
/// oldest makes room for the newest.
pub struct Queue {
    state: Mutex<State>,
    /// There is something to pop, or it is closed. Written under the lock.
    ready: AtomicBool,
    meter: Meter,
}

#[derive(Default)]
struct State {
    datagrams: VecDeque<Bytes>,
    bytes: usize,
    closed: bool,
    /// Who waits: as many as the tasks that came since the last datagram did.
    readers: Vec<Waker>,
}

impl State {
    /// Takes those who wait. Whoever wakes them does it without the lock.
    fn take_readers(&mut self) -> (Option<Waker>, Vec<Waker>) {
        let one = self.readers.pop();
        // There is rarely a second one, and the first keeps its place for the next time.
        let more = match self.readers.is_empty() {
            true => Vec::new(),
            false => std::mem::take(&mut self.readers),
        };
        (one, more)
    }
}

impl Queue {
    /// An empty queue.
    pub fn new(meter: Meter) -> Self {
        Self {
            state: Mutex::new(State::default()),
            ready: AtomicBool::new(false),
            meter,
        }
    }

    /// Whether [`poll_pop`](Self::poll_pop) would not have to wait. Costs no lock; one who adds at the
    /// same time may not be seen yet.
    pub(super) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a datagram's payload. After [`close`](Self::close) it is dropped and counted.
    pub fn push(&self, payload: Bytes) {
        let mut state = self.lock();
        if state.closed {
            drop(state);
            return self.meter.session_closed(1);
        }
        let mut dropped = 0;
        while state.datagrams.len() >= QUEUE_LEN
            || (state.bytes + payload.len() > QUEUE_BYTES && !state.datagrams.is_empty())
        {
            if let Some(oldest) = state.datagrams.pop_front() {
                state.bytes -= oldest.len();
                dropped += 1;
            }
        }
        state.bytes += payload.len();
        state.datagrams.push_back(payload);
        self.ready.store(true, Ordering::Release);
        let readers = state.take_readers();
        drop(state);
        wake(readers);
        if dropped > 0 {
            self.meter.receive_queue_full(dropped);
        }
    }

    /// The oldest datagram, or a wake-up when there is something new; `None` once closed and empty.
    pub fn poll_pop(&self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut state = self.lock();
        if let Some(payload) = state.datagrams.pop_front() {
            state.bytes -= payload.len();
            if state.datagrams.is_empty() && !state.closed {
                self.ready.store(false, Ordering::Release);
            }
            return Poll::Ready(Some(payload));
        }
        if state.closed {
            return Poll::Ready(None);
        }
        if !state.readers.iter().any(|r| r.will_wake(cx.waker())) {
            state.readers.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Takes no more; what waits can still be popped.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        self.ready.store(true, Ordering::Release);
        let readers = state.take_readers();
        drop(state);
        wake(readers);
    }
}

fn wake((one, more): (Option<Waker>, Vec<Waker>)) {
    one.into_iter().chain(more).for_each(Waker::wake);
}

impl Drop for Queue {
    fn drop(&mut self) {
        let left = self.lock().datagrams.len();
        if left > 0 {
            self.meter.session_closed(left as u64);
        }
    }
}
