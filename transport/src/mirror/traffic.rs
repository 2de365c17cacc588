//! What goes through mirrors, counted while it goes.

use std::{
    ops::{AddAssign, Sub},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

/// What goes through one mirror.
#[derive(Debug, Default)]
pub struct Traffic {
    pub(super) a_to_b: Arc<Counts>,
    pub(super) b_to_a: Arc<Counts>,
    taken: Mutex<Moved>,
}

/// What went through a mirror.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// From `a` to `b`.
    pub a_to_b: Carried,
    /// From `b` to `a`.
    pub b_to_a: Carried,
}

/// What went through one direction of a mirror.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Carried {
    /// Streams, of both kinds.
    pub streams: u64,
    /// Stream bytes.
    pub bytes: u64,
    /// Datagrams handed on.
    pub datagrams: u64,
    /// Datagrams dropped here.
    pub datagrams_dropped: u64,
}

impl Traffic {
    /// Everything so far.
    pub fn moved(&self) -> Moved {
        Moved {
            a_to_b: self.a_to_b.carried(),
            b_to_a: self.b_to_a.carried(),
        }
    }

    /// What nobody took before.
    pub fn take(&self) -> Moved {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.moved();
        let before = std::mem::replace(&mut *taken, now);
        Moved {
            a_to_b: now.a_to_b - before.a_to_b,
            b_to_a: now.b_to_a - before.b_to_a,
        }
    }
}

/// The traffic of all live mirrors, for whoever counts it from time to time, so that counting costs
/// the mirrors nothing.
#[derive(Debug, Default)]
pub struct Ledger {
    /// As many as the mirrors that live, and that ended since [`Ledger::take`].
    live: Mutex<Vec<Weak<Traffic>>>,
}

impl Ledger {
    /// One mirror's traffic. What is not taken by its end is to be taken by its holder.
    pub fn add(&self) -> Arc<Traffic> {
        let traffic = Arc::<Traffic>::default();
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.push(Arc::downgrade(&traffic));
        traffic
    }

    /// What nobody took before of what went through live mirrors.
    pub fn take(&self) -> Moved {
        let mut sum = Moved::default();
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.retain(|traffic| {
            let traffic = traffic.upgrade();
            if let Some(traffic) = &traffic {
                let moved = traffic.take();
                sum.a_to_b += moved.a_to_b;
                sum.b_to_a += moved.b_to_a;
            }
            traffic.is_some()
        });
        sum
    }
}

impl AddAssign for Carried {
    fn add_assign(&mut self, more: Self) {
        self.streams += more.streams;
        self.bytes += more.bytes;
        self.datagrams += more.datagrams;
        self.datagrams_dropped += more.datagrams_dropped;
    }
}

impl Sub for Carried {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            streams: self.streams - before.streams,
            bytes: self.bytes - before.bytes,
            datagrams: self.datagrams - before.datagrams,
            datagrams_dropped: self.datagrams_dropped - before.datagrams_dropped,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) streams: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) datagrams: AtomicU64,
    pub(super) datagrams_dropped: AtomicU64,
}

impl Counts {
    pub(super) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    fn carried(&self) -> Carried {
        Carried {
            streams: self.streams.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            datagrams: self.datagrams.load(Ordering::Relaxed),
            datagrams_dropped: self.datagrams_dropped.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(moved: Moved) -> [u64; 2] {
        [moved.a_to_b.bytes, moved.b_to_a.bytes]
    }

    #[test]
    fn every_byte_is_taken_once_by_the_ledger_or_by_its_mirror() {
        let ledger = Ledger::default();
        let (one, two) = (ledger.add(), ledger.add());
        Counts::add(&one.a_to_b.bytes, 3);
        Counts::add(&two.b_to_a.bytes, 4);
        assert_eq!(bytes(ledger.take()), [3, 4]);
        assert_eq!(bytes(ledger.take()), [0, 0]);
        Counts::add(&one.a_to_b.bytes, 5);
        assert_eq!(bytes(one.take()), [5, 0]);
        assert_eq!(bytes(ledger.take()), [0, 0]);
        assert_eq!(bytes(one.moved()), [8, 0]);
    }

    #[test]
    fn a_ledger_forgets_mirrors_that_ended() {
        let ledger = Ledger::default();
        let held = ledger.add();
        drop(ledger.add());
        ledger.take();
        assert_eq!(ledger.live.lock().unwrap().len(), 1);
        drop(held);
        ledger.take();
        assert!(ledger.live.lock().unwrap().is_empty());
    }
}
