//! The crate's `datagram`, as far as the hand-over goes.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

#[path = "../../src/datagram/inbox.rs"]
pub mod inbox;
#[path = "../../src/datagram/queue.rs"]
pub mod queue;
#[path = "../../src/datagram/wire.rs"]
pub mod wire;

/// Loom's locks instead of the standard library's.
pub mod sync {
    pub(in crate::datagram) use loom::sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    };
}

pub const QUEUE_LEN: usize = 4;
pub const QUEUE_BYTES: usize = 16;

/// Counts what becomes of datagrams.
#[derive(Clone, Default)]
pub struct Meter(Arc<Counts>);

#[derive(Default)]
struct Counts {
    received: AtomicU64,
    dropped: AtomicU64,
}

impl Meter {
    pub fn received(&self) {
        self.0.received.fetch_add(1, Relaxed);
    }

    pub fn receive_queue_full(&self, count: u64) {
        self.0.dropped.fetch_add(count, Relaxed);
    }

    pub fn receive_buffer_full(&self, count: u64) {
        self.0.dropped.fetch_add(count, Relaxed);
    }

    pub fn session_closed(&self, count: u64) {
        self.0.dropped.fetch_add(count, Relaxed);
    }

    /// Datagrams read, and dropped.
    pub fn counts(&self) -> (u64, u64) {
        (self.0.received.load(Relaxed), self.0.dropped.load(Relaxed))
    }
}
