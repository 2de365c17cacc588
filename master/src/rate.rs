//! How often somebody may ask: on average so often a second, and more at once after a pause. Pure: time is
//! an argument.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Whom requests are counted for, at most: some hundred bytes each. Beyond it, newcomers share one account.
const MAX_ACCOUNTS: usize = 10_000;
/// As many seconds' worth of requests may come at once.
const BURST: u32 = 10;

/// An account for each who asks (GCRA, as in ATM's traffic management).
pub(crate) struct Rate<Who> {
    /// From one request to the next, on average.
    interval: Duration,
    accounts: Mutex<Accounts<Who>>,
}

/// Until when what was asked so far would have taken at the average pace.
struct Accounts<Who> {
    each: HashMap<Who, Instant>,
    others: Option<Instant>,
}

impl<Who: Eq + Hash> Rate<Who> {
    pub(crate) fn new(per_second: u32) -> Self {
        Self {
            interval: Duration::from_secs(1) / per_second.max(1),
            accounts: Mutex::new(Accounts {
                each: HashMap::new(),
                others: None,
            }),
        }
    }

    /// Whether a request is admitted, else how long to wait for that.
    pub(crate) fn admit(&self, who: Who, now: Instant) -> Result<(), Duration> {
        let accounts = &mut *self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if accounts.each.len() >= MAX_ACCOUNTS && !accounts.each.contains_key(&who) {
            // Who has not asked for a while has nothing on account.
            accounts.each.retain(|_, until| *until > now);
        }
        let until = match accounts.each.len() < MAX_ACCOUNTS || accounts.each.contains_key(&who) {
            true => accounts.each.entry(who).or_insert(now),
            false => accounts.others.get_or_insert(now),
        };
        let ahead = until.saturating_duration_since(now);
        let burst = self.interval * per_burst(self.interval);
        if ahead + self.interval > burst {
            return Err(ahead + self.interval - burst);
        }
        *until = now + ahead + self.interval;
        Ok(())
    }
}

/// Requests that may come at once.
fn per_burst(interval: Duration) -> u32 {
    let seconds = Duration::from_secs(BURST.into());
    u32::try_from(seconds.as_nanos() / interval.as_nanos().max(1)).unwrap_or(u32::MAX)
}

/// What counts as one address: of IPv6 the 64 bits that one customer has at least.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = u128::from(address) & !u128::from(u64::MAX);
            IpAddr::V6(network.into())
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_seconds_worth_comes_at_once_and_then_so_many_a_second() {
        let rate = Rate::new(5);
        let start = Instant::now();
        let admitted = |seconds: u64| {
            let now = start + Duration::from_secs(seconds);
            (0..100).filter(|_| rate.admit("a", now).is_ok()).count()
        };
        assert_eq!(admitted(0), 50);
        assert_eq!(rate.admit("a", start), Err(Duration::from_millis(200)));
        assert_eq!(rate.admit("b", start), Ok(()));
        assert_eq!(admitted(1), 5);
        assert_eq!(admitted(3), 10);
        assert_eq!(admitted(1000), 50);
    }

    #[test]
    fn many_who_ask_once_cost_bounded_memory_and_do_not_shut_out_who_was_there() {
        let rate = Rate::new(1);
        let start = Instant::now();
        assert_eq!(rate.admit(0, start), Ok(()));
        let admitted = (1..100_000).filter(|who| rate.admit(*who, start).is_ok());
        // Newcomers beyond the bound share what one has.
        assert_eq!(admitted.count(), MAX_ACCOUNTS - 1 + 10);
        assert_eq!(rate.accounts.lock().unwrap().each.len(), MAX_ACCOUNTS);
        assert_eq!(rate.admit(0, start), Ok(()));
        // Once they are forgotten, there is room again.
        let later = start + Duration::from_secs(60);
        assert_eq!(rate.admit(200_000, later), Ok(()));
        assert!(rate.accounts.lock().unwrap().each.len() < MAX_ACCOUNTS);
    }

    #[test]
    fn an_address_of_ipv6_counts_with_its_neighbours() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
        assert_ne!(of("2001:db8:0:1::1"), of("2001:db8::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.2"), of("192.0.2.1"));
    }
}
