//! Attempts at something the master does for the node: how long to wait between them, and what to
//! say of them.

use std::time::Duration;

use super::metrics as names;
use crate::master::Failure;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(5);

/// Attempts at one operation. Each failure is counted; the log hears when the reason changes.
pub(super) struct Attempts {
    operation: &'static str,
    backoff: Backoff,
    trouble: Option<&'static str>,
}

impl Attempts {
    pub(super) fn at(operation: &'static str) -> Self {
        Self {
            operation,
            backoff: Backoff::default(),
            trouble: None,
        }
    }

    /// Notes a failure, and gives the wait before the next attempt.
    pub(super) fn failed(&mut self, failure: &Failure) -> Duration {
        let (operation, reason) = (self.operation, failure.reason());
        metrics::counter!(names::MASTER_FAILURES, "operation" => operation, "reason" => reason)
            .increment(1);
        if self.trouble.replace(reason) != Some(reason) {
            let error = failure as &dyn std::error::Error;
            tracing::warn!(
                operation,
                reason,
                error,
                "the master does not help; trying on"
            );
        }
        self.backoff.after(chance())
    }

    /// Notes a success.
    pub(super) fn succeeded(&mut self) {
        self.backoff.reset();
        if self.trouble.take().is_some() {
            tracing::info!(operation = self.operation, "the master helps again");
        }
    }
}

/// Exponential back-off: 50 ms, doubled up to 5 s. Pure: chance is an argument.
#[derive(Debug, Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    /// An attempt succeeded.
    fn reset(&mut self) {
        self.failures = 0;
    }

    /// Half of the wait is fixed, half is `chance`, which is uniform over
    /// its type, so that nodes that lost the master together do not come back together.
    fn after(&mut self, chance: u16) -> Duration {
        let full = FIRST
            .saturating_mul(1 << self.failures.min(16))
            .min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        full / 2 + (full / 2) * u32::from(chance) / u32::from(u16::MAX)
    }
}

/// From 0 to 1, at random.
pub(super) fn fraction() -> f64 {
    f64::from(chance()) / f64::from(u16::MAX)
}

fn chance() -> u16 {
    let mut bytes = [0; 2];
    // Without randomness nodes only come back more closely together.
    let _ = rustls::crypto::aws_lc_rs::default_provider()
        .secure_random
        .fill(&mut bytes);
    u16::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_from_50_ms_to_5_s_and_start_again_after_a_success() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..40)
            .map(|_| backoff.after(u16::MAX).as_millis())
            .collect();
        assert_eq!(waits[..8], [50, 100, 200, 400, 800, 1600, 3200, 5000]);
        assert!(waits[8..].iter().all(|wait| *wait == 5000));
        backoff.reset();
        assert_eq!(backoff.after(u16::MAX), FIRST);
    }

    #[test]
    fn half_of_each_wait_is_chance() {
        for chance in [0, 1, u16::MAX / 2, u16::MAX] {
            let wait = Backoff { failures: 30 }.after(chance);
            assert!(wait >= LONGEST / 2 && wait <= LONGEST, "{wait:?}");
        }
        assert_eq!(Backoff::default().after(0), FIRST / 2);
    }
}
