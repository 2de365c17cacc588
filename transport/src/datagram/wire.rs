//! Stands for a QUIC connection where the hand-over of datagrams is tested, here and in the model
//! test.

use std::{
    collections::{HashMap, VecDeque},
    sync::PoisonError,
    task::{Poll, Waker},
};

use bytes::Bytes;

use super::{
    inbox::{Recipients, Source},
    queue::Queue,
    sync::{Mutex, MutexGuard},
};

/// Keeps and drops datagrams as quinn does, and wakes as it does: all who wait, when something comes
/// to an empty buffer.
pub(crate) struct Wire {
    state: Mutex<State>,
    room: usize,
}

#[derive(Default)]
struct State {
    buffer: VecDeque<Bytes>,
    arrived: u64,
    lost: bool,
    readers: HashMap<u64, Waker>,
    reads: u64,
}

impl Wire {
    /// With room for so many datagrams.
    pub(crate) fn new(room: usize) -> Self {
        Self {
            state: Mutex::new(State::default()),
            room,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A datagram of this session arrives.
    pub(crate) fn arrive(&self, session: u8, payload: u8) {
        let readers = {
            let mut state = self.lock();
            state.arrived += 1;
            let was_empty = state.buffer.is_empty();
            if state.buffer.len() == self.room {
                state.buffer.pop_front();
            }
            let datagram = Bytes::copy_from_slice(&[session, payload]);
            state.buffer.push_back(datagram);
            match was_empty {
                true => std::mem::take(&mut state.readers),
                false => HashMap::new(),
            }
        };
        readers.into_values().for_each(Waker::wake);
    }

    /// The connection is lost.
    pub(crate) fn lose(&self) {
        let readers = {
            let mut state = self.lock();
            state.lost = true;
            std::mem::take(&mut state.readers)
        };
        readers.into_values().for_each(Waker::wake);
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().readers.len()
    }
}

impl Source for std::sync::Arc<Wire> {
    type Lost = ();

    async fn read(&self) -> Result<Bytes, ()> {
        let reading = Reading {
            wire: self,
            id: {
                let mut state = self.lock();
                state.reads += 1;
                state.reads
            },
        };
        std::future::poll_fn(|cx| {
            let mut state = reading.wire.lock();
            if let Some(datagram) = state.buffer.pop_front() {
                return Poll::Ready(Ok(datagram));
            }
            if state.lost {
                return Poll::Ready(Err(()));
            }
            state.readers.insert(reading.id, cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    fn arrived(&self) -> u64 {
        self.lock().arrived
    }
}

struct Reading<'a> {
    wire: &'a Wire,
    id: u64,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.wire.lock().readers.remove(&self.id);
    }
}

/// Sessions 0, 1 and so on: a datagram's first byte says whose it is.
impl Recipients for Vec<Queue> {
    type Id = u8;

    fn sort(&self, datagram: Bytes, own: Option<u8>) -> Option<Bytes> {
        let payload = datagram.slice(1..);
        if own == Some(datagram[0]) {
            return Some(payload);
        }
        if let Some(queue) = self.get(usize::from(datagram[0])) {
            queue.push(payload);
        }
        None
    }
}
