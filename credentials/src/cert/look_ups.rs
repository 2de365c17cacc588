//! How often handshakes find a certificate: counted on a line of memory for each thread, summed up by who tells of it.

use std::{
    cell::Cell,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};

/// Lines: more than threads that shake hands. Two threads on one line would only be slower.
const LINES: usize = 64;

/// How a name was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// By itself.
    Hit,
    /// By the wildcard of its domain.
    Wildcard,
    /// It was not, or there was none: the default.
    Default,
    /// There is nothing to show.
    Miss,
}

/// Their labels, in their order.
pub(super) const OUTCOMES: [&str; 4] = ["hit", "wildcard", "default", "miss"];

/// Look-ups by outcome.
pub(super) struct LookUps(Box<[Line]>);

#[derive(Default)]
#[repr(align(64))]
struct Line([AtomicU64; OUTCOMES.len()]);

impl Default for LookUps {
    fn default() -> Self {
        Self((0..LINES).map(|_| Line::default()).collect())
    }
}

impl LookUps {
    /// Writes to no memory that another thread reads often, and allocates nothing.
    pub(super) fn count(&self, outcome: Outcome) {
        self.0[own_line()].0[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many there were so far.
    pub(super) fn totals(&self) -> [u64; OUTCOMES.len()] {
        let mut totals = [0; OUTCOMES.len()];
        for line in &self.0 {
            for (total, count) in totals.iter_mut().zip(&line.0) {
                *total += count.load(Ordering::Relaxed);
            }
        }
        totals
    }
}

fn own_line() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static LINE: Cell<usize> = const { Cell::new(LINES) };
    }
    LINE.with(|line| {
        if line.get() == LINES {
            line.set(THREADS.fetch_add(1, Ordering::Relaxed) % LINES);
        }
        line.get()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_threads_count_is_summed_up() {
        let look_ups = LookUps::default();
        std::thread::scope(|scope| {
            for _ in 0..2 * LINES {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        look_ups.count(Outcome::Hit);
                    }
                    look_ups.count(Outcome::Miss);
                });
            }
        });
        assert_eq!(
            look_ups.totals(),
            [2000 * LINES as u64, 0, 0, 2 * LINES as u64]
        );
    }
}
