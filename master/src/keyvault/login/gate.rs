//! What keeps a flood of logins, and guessing, from doing harm. Time is an argument.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use wavry_credentials::bearer::Fingerprint;

/// How many logins are let in, and how often one may fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Logins a second in the long run.
    pub rate: u32,
    /// Logins at once, as of a herd of units that restart.
    pub burst: u32,
    /// Failures of one role or alias, one after another, that lock it; 0: never.
    pub failures: u32,
    /// For how long it is locked, and after how long a failure is forgotten.
    pub lock_out: Duration,
}

impl Default for Limits {
    /// A herd of 4,000 at once, 500 a second then; locked for a minute after five failures. What is
    /// guessed are 256 random bits or what somebody chose in their place, so that a minute is enough,
    /// and who knows a role-id cannot keep its unit out for long.
    fn default() -> Self {
        Self {
            rate: 500,
            burst: 4000,
            failures: 5,
            lock_out: Duration::from_secs(60),
        }
    }
}

/// Roles and aliases whose failures are counted. An entry takes some 100 bytes.
const MAX_FAILING: usize = 10_000;

/// Lets logins in, or says when to come again.
pub(crate) struct Gate {
    limits: Limits,
    bucket: Mutex<Bucket>,
    failing: Mutex<HashMap<Fingerprint, Failing>>,
}

struct Bucket {
    /// In thousandths of a login, so that no refill is lost to rounding.
    tokens: u64,
    filled: Option<Instant>,
}

#[derive(Clone, Copy)]
struct Failing {
    failures: u32,
    last: Instant,
}

impl Gate {
    /// With these limits.
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            bucket: Mutex::new(Bucket {
                tokens: u64::from(limits.burst) * 1000,
                filled: None,
            }),
            failing: Mutex::default(),
            limits,
        }
    }

    /// Lets one login in, or says when there is room again.
    pub(crate) fn admit(&self, now: Instant) -> Result<(), Duration> {
        let rate = u64::from(self.limits.rate.max(1));
        let full = u64::from(self.limits.burst.max(1)) * 1000;
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let filled = *bucket.filled.get_or_insert(now);
        let passed = now.saturating_duration_since(filled).as_millis();
        let passed = u64::try_from(passed).unwrap_or(u64::MAX);
        if passed > 0 {
            // A login a second is one thousandth of a login a millisecond.
            bucket.tokens = bucket
                .tokens
                .saturating_add(passed.saturating_mul(rate))
                .min(full);
            bucket.filled = Some(now);
        }
        match bucket.tokens.checked_sub(1000) {
            Some(left) => {
                bucket.tokens = left;
                Ok(())
            }
            None => Err(whole_seconds(Duration::from_millis(
                (1000 - bucket.tokens).div_ceil(rate),
            ))),
        }
    }

    /// Whether who is known by `who` may try, or when again.
    pub(crate) fn may_try(&self, who: Fingerprint, now: Instant) -> Result<(), Duration> {
        if self.limits.failures == 0 {
            return Ok(());
        }
        let failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(held) = failing.get(&who) else {
            return Ok(());
        };
        let over = held.last + self.limits.lock_out;
        match held.failures >= self.limits.failures && now < over {
            true => Err(whole_seconds(over - now)),
            false => Ok(()),
        }
    }

    /// Counts a failure. Whether it is the one that locks.
    pub(crate) fn failed(&self, who: Fingerprint, now: Instant) -> bool {
        let forgotten = |held: &Failing| now >= held.last + self.limits.lock_out;
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        if failing.len() >= MAX_FAILING && !failing.contains_key(&who) {
            failing.retain(|_, held| !forgotten(held));
            // Who fails under ten thousand names in a minute meets the rate of logins first; the
            // one that failed least recently makes room.
            if failing.len() >= MAX_FAILING
                && let Some(oldest) = failing.iter().min_by_key(|(_, held)| held.last)
            {
                let oldest = *oldest.0;
                failing.remove(&oldest);
            }
        }
        let held = failing.entry(who).or_insert(Failing {
            failures: 0,
            last: now,
        });
        if forgotten(held) {
            held.failures = 0;
        }
        held.failures = held.failures.saturating_add(1);
        held.last = now;
        self.limits.failures > 0 && held.failures == self.limits.failures
    }

    /// Forgets the failures of who has shown who they are.
    pub(crate) fn succeeded(&self, who: Fingerprint) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        failing.remove(&who);
    }
}

/// As `Retry-After` says it (RFC 9110, section 10.2.3): one second at least.
fn whole_seconds(time: Duration) -> Duration {
    Duration::from_secs(time.as_millis().div_ceil(1000).max(1) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use wavry_credentials::bearer::Fingerprints;

    fn who(name: &str) -> Fingerprint {
        Fingerprints::new(&wavry_credentials::secret::Secret::new(vec![1; 32]))
            .of_name("role", name)
    }

    fn gate(limits: Limits) -> Gate {
        Gate::new(limits)
    }

    #[test]
    fn a_herd_is_let_in_and_a_flood_waits() {
        let gate = gate(Limits {
            rate: 10,
            burst: 100,
            ..Limits::default()
        });
        let start = Instant::now();
        for _ in 0..100 {
            assert_eq!(gate.admit(start), Ok(()));
        }
        assert_eq!(gate.admit(start), Err(Duration::from_secs(1)));
        let later = start + Duration::from_millis(250);
        assert_eq!(gate.admit(later), Ok(()));
        assert_eq!(gate.admit(later), Ok(()));
        assert!(gate.admit(later).is_err());
        let much_later = start + Duration::from_secs(3600);
        for _ in 0..100 {
            assert_eq!(gate.admit(much_later), Ok(()));
        }
        assert!(gate.admit(much_later).is_err());
    }

    #[test]
    fn who_fails_too_often_waits_and_nobody_else_does() {
        let limits = Limits::default();
        let gate = gate(limits);
        let start = Instant::now();
        for attempt in 1..=5 {
            assert_eq!(gate.may_try(who("web"), start), Ok(()));
            assert_eq!(gate.failed(who("web"), start), attempt == 5);
        }
        assert_eq!(
            gate.may_try(who("web"), start),
            Err(Duration::from_secs(60))
        );
        assert_eq!(gate.may_try(who("batch"), start), Ok(()));
        let half = start + Duration::from_millis(30_500);
        assert_eq!(gate.may_try(who("web"), half), Err(Duration::from_secs(30)));
        let over = start + limits.lock_out;
        assert_eq!(gate.may_try(who("web"), over), Ok(()));
        // Failures from before are forgotten.
        assert!(!gate.failed(who("web"), over));
        assert_eq!(gate.may_try(who("web"), over), Ok(()));
    }

    #[test]
    fn a_success_forgives() {
        let gate = gate(Limits::default());
        let now = Instant::now();
        for _ in 0..4 {
            gate.failed(who("web"), now);
        }
        gate.succeeded(who("web"));
        assert!(!gate.failed(who("web"), now));
    }

    #[test]
    fn failures_take_bounded_memory() {
        let gate = gate(Limits::default());
        let start = Instant::now();
        for i in 0..MAX_FAILING + 10 {
            gate.failed(who(&i.to_string()), start + Duration::from_micros(i as u64));
        }
        assert_eq!(gate.failing.lock().unwrap().len(), MAX_FAILING);
    }

    proptest! {
        #[test]
        fn no_more_than_burst_and_rate_allow_is_let_in(
            rate in 1..50_u32, burst in 1..50_u32, waits in proptest::collection::vec(0..200_u64, 1..200),
        ) {
            let gate = gate(Limits { rate, burst, ..Limits::default() });
            let start = Instant::now();
            let (mut passed, mut admitted) = (0, 0_u64);
            for wait in waits {
                passed += wait;
                admitted += u64::from(gate.admit(start + Duration::from_millis(passed)).is_ok());
                prop_assert!(admitted <= u64::from(burst) + passed * u64::from(rate) / 1000);
            }
        }
    }
}
