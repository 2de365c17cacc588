//! Streams that a session's peer opened and that nobody took yet.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// A queue that is closed once. It needs no bound of its own: a stream in it holds one of the
/// streams that the connection grants its peer ([`super::Limits::streams`]).
pub(super) struct Backlog<T> {
    /// `None` once closed.
    items: Mutex<Option<VecDeque<T>>>,
    arrived: Notify,
}

impl<T> Default for Backlog<T> {
    fn default() -> Self {
        Self {
            items: Mutex::new(Some(VecDeque::new())),
            arrived: Notify::new(),
        }
    }
}

impl<T> Backlog<T> {
    fn lock(&self) -> MutexGuard<'_, Option<VecDeque<T>>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an item; gives it back once closed.
    pub(super) fn push(&self, item: T) -> Result<(), T> {
        match self.lock().as_mut() {
            Some(items) => items.push_back(item),
            None => return Err(item),
        }
        self.arrived.notify_one();
        Ok(())
    }

    /// The oldest item; waits for one. `None` once closed. Cancel-safe.
    pub(super) async fn pop(&self) -> Option<T> {
        loop {
            let arrived = self.arrived.notified();
            if let Some(item) = self.lock().as_mut()?.pop_front() {
                return Some(item);
            }
            arrived.await;
        }
    }

    /// Takes no more, and gives what nobody took.
    pub(super) fn close(&self) -> VecDeque<T> {
        let left = self.lock().take().unwrap_or_default();
        self.arrived.notify_waiters();
        left
    }
}
