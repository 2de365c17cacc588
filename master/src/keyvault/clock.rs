//! The time by which credentials expire. It never goes back.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use crate::registry::unix_time;

/// The clock of the wall, held by a monotonic one: when it is set back, time goes on here from where
/// it was, so that nothing that expired is good again.
pub struct Clock {
    start: Instant,
    /// The wall's time at `start`, or a later one that was seen since.
    latest: AtomicU64,
    wall_at_start: AtomicU64,
}

impl Clock {
    /// Begins with the wall's time.
    pub fn new() -> Self {
        let now = unix_time();
        Self {
            start: Instant::now(),
            latest: AtomicU64::new(now),
            wall_at_start: AtomicU64::new(now),
        }
    }

    /// Now, in seconds since the Unix epoch.
    pub fn now(&self) -> u64 {
        self.observe(unix_time(), self.start.elapsed())
    }

    /// Takes note that it has been `time` already, in a process that ended.
    pub fn has_been(&self, time: u64) {
        let elapsed = self.start.elapsed().as_secs();
        self.wall_at_start
            .fetch_max(time.saturating_sub(elapsed), Ordering::Relaxed);
        self.latest.fetch_max(time, Ordering::Relaxed);
    }

    fn observe(&self, wall: u64, elapsed: Duration) -> u64 {
        let monotonic = self.wall_at_start.load(Ordering::Relaxed) + elapsed.as_secs();
        let now = wall.max(monotonic);
        self.latest.fetch_max(now, Ordering::Relaxed).max(now)
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(wall: u64) -> Clock {
        Clock {
            start: Instant::now(),
            latest: AtomicU64::new(wall),
            wall_at_start: AtomicU64::new(wall),
        }
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_go_back_and_goes_on() {
        let clock = at(1000);
        assert_eq!(clock.observe(1010, Duration::from_secs(10)), 1010);
        assert_eq!(clock.observe(10, Duration::from_secs(11)), 1011);
        assert_eq!(clock.observe(11, Duration::from_secs(60)), 1060);
        // Set forward, and back again.
        assert_eq!(clock.observe(5000, Duration::from_secs(61)), 5000);
        assert_eq!(clock.observe(1062, Duration::from_secs(62)), 5000);
    }

    #[test]
    fn a_process_goes_on_from_where_another_was() {
        let clock = at(1000);
        clock.has_been(2000);
        assert_eq!(clock.observe(1000, Duration::ZERO), 2000);
        assert_eq!(clock.observe(1001, Duration::from_secs(10)), 2010);
    }

    proptest! {
        #[test]
        fn time_never_goes_back(walls: Vec<u32>, step in 0_u64..100) {
            let clock = at(1_000_000);
            let mut before = 0;
            for (i, wall) in walls.into_iter().enumerate() {
                let now = clock.observe(wall.into(), Duration::from_secs(i as u64 * step));
                prop_assert!(now >= before);
                before = now;
            }
        }
    }
}
