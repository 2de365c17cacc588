//! The time that tokens are checked against: since the Unix epoch, and never going back.
//!
//! The system's clock can be set. Where it is set forward, what expires meanwhile has expired; where
//! it is set back, time goes on from where it was, so that nothing that has expired holds again
//! before the process ends.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use crate::metrics as names;

/// What the system's clock may fall back by without being told of: that much it does when it is
/// disciplined.
const TOLD_FROM: i64 = 1_000_000_000;

/// Time since the Unix epoch, never before any that was given to this process. A clock before 1970
/// makes every token not valid yet.
pub fn since_epoch() -> Duration {
    static CLOCK: LazyLock<(Instant, Clock)> = LazyLock::new(|| (Instant::now(), Clock::default()));
    let (start, clock) = &*CLOCK;
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    clock.read(wall.unwrap_or_default(), start.elapsed())
}

/// [`since_epoch`] in whole seconds.
pub fn unix_time() -> u64 {
    since_epoch().as_secs()
}

/// The farthest that a wall clock was ahead of a monotonic one. Pure: both are arguments.
pub struct Clock {
    /// In nanoseconds, which reach to the year 2262.
    ahead: AtomicI64,
    /// Whether it was told that the wall clock is behind.
    told: AtomicBool,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            ahead: AtomicI64::new(i64::MIN),
            told: AtomicBool::new(false),
        }
    }
}

impl Clock {
    /// The time since the Unix epoch when the wall clock shows `wall`, and the monotonic one, which began with
    /// the process, `elapsed`.
    pub fn read(&self, wall: Duration, elapsed: Duration) -> Duration {
        let ahead = nanos(wall) - nanos(elapsed);
        let farthest = self.ahead.fetch_max(ahead, Ordering::Relaxed).max(ahead);
        self.tell(farthest - ahead);
        let now = farthest.saturating_add(nanos(elapsed));
        Duration::from_nanos(now.max(0).unsigned_abs())
    }

    /// Reports a wall clock that was set back, and that it caught up.
    fn tell(&self, behind: i64) {
        let is_behind = behind >= TOLD_FROM;
        if self.told.load(Ordering::Relaxed) == is_behind
            || self.told.swap(is_behind, Ordering::Relaxed) == is_behind
        {
            return;
        }
        let seconds = behind / TOLD_FROM;
        metrics::gauge!(names::CLOCK_BEHIND).set(seconds as f64);
        match is_behind {
            true => tracing::warn!(
                seconds,
                "the system's clock was set back; tokens are checked against where it was"
            ),
            false => tracing::info!("the system's clock is where it was again"),
        }
    }
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(clock: &Clock, wall: u64, elapsed: u64) -> u64 {
        let read = clock.read(Duration::from_secs(wall), Duration::from_secs(elapsed));
        read.as_secs()
    }

    #[test]
    fn a_clock_set_back_goes_on_from_where_it_was_and_one_set_forward_is_followed() {
        let clock = Clock::default();
        assert_eq!(at(&clock, 1000, 0), 1000);
        assert_eq!(at(&clock, 1010, 10), 1010);
        assert_eq!(at(&clock, 720, 20), 1020, "set back by five minutes");
        assert_eq!(at(&clock, 1330, 30), 1330, "set forward by five minutes");
        assert_eq!(at(&clock, 1040, 40), 1340, "and back again");
    }

    #[test]
    fn what_has_expired_stays_expired_when_the_clock_is_set_back() {
        let clock = Clock::default();
        let token = wavry_proto::token::Validity {
            iat: 1000,
            nbf: 1000,
            exp: 1060,
        };
        assert_eq!(token.check(at(&clock, 1000, 0)), Ok(()));
        assert!(token.check(at(&clock, 1061, 61)).is_err());
        assert!(token.check(at(&clock, 1001, 62)).is_err());
        assert!(token.check(at(&clock, 0, 63)).is_err());
    }

    #[test]
    fn the_processs_clock_is_the_systems_unless_that_was_set_back() {
        let wall = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap();
        assert!(since_epoch() >= wall);
        assert!(since_epoch() - wall < Duration::from_secs(60));
    }

    proptest! {
        #[test]
        fn time_never_goes_back(walls in prop::collection::vec(any::<u32>(), 1..50)) {
            let clock = Clock::default();
            let mut before = 0;
            for (elapsed, wall) in (0..).zip(walls) {
                let now = at(&clock, u64::from(wall), elapsed);
                prop_assert!(now >= before && now >= u64::from(wall));
                before = now;
            }
        }
    }
}
