//! The time by which a KeyVault's credentials expire. It never goes back, nor does it when a process
//! takes another's place.

use std::sync::atomic::{AtomicU64, Ordering};

use wavry_credentials::clock::unix_time;

/// The process's clock, which never goes back, and as far ahead of it as it must be not to be behind
/// what was kept by another process.
#[derive(Default)]
pub struct Clock {
    /// In seconds.
    ahead: AtomicU64,
}

impl Clock {
    /// Now, in seconds since the Unix epoch.
    pub fn now(&self) -> u64 {
        unix_time() + self.ahead.load(Ordering::Relaxed)
    }

    /// Takes note that it has been `time` already.
    pub fn has_been(&self, time: u64) {
        let ahead = time.saturating_sub(unix_time());
        self.ahead.fetch_max(ahead, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_goes_on_from_where_another_was_and_not_before() {
        let clock = Clock::default();
        let now = clock.now();
        clock.has_been(now - 100);
        assert!((now..now + 5).contains(&clock.now()));
        clock.has_been(now + 100);
        assert!((now + 100..now + 105).contains(&clock.now()));
        clock.has_been(now + 50);
        assert!((now + 100..now + 105).contains(&clock.now()));
    }
}
