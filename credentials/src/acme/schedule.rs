//! When a certificate is renewed, and when an authority is asked again. Pure.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::machine::Time;

/// The wait after a first failure.
const FIRST: Duration = Duration::from_secs(60);
/// The longest wait that is not the authority's own wish.
const LONGEST: Duration = Duration::from_secs(6 * 60 * 60);
/// An authority that limits and does not say for how long is left alone for at least so long.
pub(super) const UNSAID_LIMIT: Duration = Duration::from_secs(60 * 60);
/// An authority's wish to be left alone is honoured for so long at most. Let's Encrypt's longest limit
/// is a week; what asks for more is mistaken, and must not end renewals for good.
const LONGEST_WISH: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// How an authority has fared. Kept over restarts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Backoff {
    /// Attempts since the last one that succeeded.
    failures: u32,
    /// It is left alone until then, in seconds since the Unix epoch.
    until: u64,
}

impl Backoff {
    /// Whether it may be asked.
    pub(super) fn permits(&self, now: Time) -> bool {
        self.until() <= now
    }

    /// Attempts since the last one that succeeded.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// It may be asked again at once; how often it has failed is not forgotten.
    pub(super) fn forgive(&mut self) {
        self.until = 0;
    }

    /// Until when it is left alone.
    pub(super) fn until(&self) -> Time {
        Duration::from_secs(self.until)
    }

    /// An attempt begins. It counts as one that failed until it is known to have succeeded, so that one
    /// that ends with its process is followed by a wait, too.
    pub(super) fn begin(&mut self, now: Time, chance: u16) {
        self.failures = self.failures.saturating_add(1);
        self.fail(now, None, chance);
    }

    /// The attempt that began last failed; `wish`: the authority wants to be left alone until then.
    /// Half of the wait is fixed, half is `chance`, which is uniform over its type, so that gateways that
    /// failed together do not come back together.
    pub(super) fn fail(&mut self, now: Time, wish: Option<Time>, chance: u16) {
        let doublings = self.failures.saturating_sub(1).min(16);
        let full = FIRST.saturating_mul(1 << doublings).min(LONGEST);
        let own = now + full / 2 + portion(full / 2, chance);
        let wish = wish.map_or(own, |wish| wish.min(now + LONGEST_WISH));
        self.until = ceil(own.max(wish));
    }

    /// A clock that was set back does not leave an authority alone for longer than any wait is.
    fn at_most(self, now: Time) -> Self {
        Self {
            until: self.until.min(ceil(now + LONGEST_WISH)),
            ..self
        }
    }
}

/// How all authorities have fared, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    authorities: BTreeMap<String, Backoff>,
}

impl Record {
    /// What is kept of these authorities, in their order.
    pub(super) fn of<'a>(&self, names: impl Iterator<Item = &'a str>, now: Time) -> Vec<Backoff> {
        let known = |name| self.authorities.get(name).copied().unwrap_or_default();
        names.map(|name| known(name).at_most(now)).collect()
    }

    /// The record of these.
    pub(super) fn new<'a>(of: impl Iterator<Item = (&'a str, Backoff)>) -> Self {
        let authorities = of.map(|(name, backoff)| (name.to_owned(), backoff));
        Self {
            authorities: authorities.collect(),
        }
    }
}

/// When an authority suggests that a certificate is renewed (RFC 9773, section 4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) start: Time,
    pub(super) end: Time,
}

/// How long a certificate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) start: Time,
    pub(super) end: Time,
}

impl Validity {
    /// When to renew: at a moment of the window, or of what of it lies in the first nine tenths of the lifetime, that
    /// `chance` gives; else in the first quarter of the last third. A window that ends before it starts is none. One
    /// that comes too late for another attempt is brought forward to the last tenth; one that is past is now.
    pub(super) fn renew_at(&self, window: Option<Window>, chance: u16) -> Time {
        let lifetime = self.end.saturating_sub(self.start);
        match window.filter(|window| window.start < window.end) {
            Some(window) => {
                let latest = self.end.saturating_sub(lifetime / 10);
                // The part of it in which there is this certificate, where there is one.
                let start = match window.end > self.start {
                    true => window.start.max(self.start).min(latest),
                    false => window.start,
                };
                start + portion(window.end.min(latest).saturating_sub(start), chance)
            }
            None => self.end.saturating_sub(lifetime / 3) + portion(lifetime / 12, chance),
        }
    }
}

/// `chance` of `whole`.
fn portion(whole: Duration, chance: u16) -> Duration {
    whole.mul_f64(f64::from(chance) / f64::from(u16::MAX))
}

fn ceil(time: Time) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: u64 = 3600;

    fn at(seconds: u64) -> Time {
        Duration::from_secs(seconds)
    }

    #[test]
    fn waits_double_from_a_minute_to_six_hours_and_half_of_each_is_chance() {
        for (chance, part) in [(u16::MAX, 1), (0, 2)] {
            let mut backoff = Backoff::default();
            let mut waits = Vec::new();
            for _ in 0..40 {
                backoff.begin(at(1000), chance);
                waits.push(backoff.until - 1000);
            }
            let full = [60, 120, 240, 480, 960, 1920, 3840, 7680, 15360];
            assert_eq!(waits[..9], full.map(|wait| wait / part));
            assert!(waits[9..].iter().all(|wait| *wait == 6 * HOUR / part));
        }
    }

    #[test]
    fn an_authoritys_wish_to_be_left_alone_is_honoured_for_a_week_at_most() {
        let mut backoff = Backoff::default();
        backoff.begin(at(0), 0);
        backoff.fail(at(0), Some(at(5 * HOUR)), 0);
        assert_eq!(backoff.until, 5 * HOUR);
        backoff.fail(at(0), Some(at(10)), 0);
        assert_eq!(backoff.until, 30, "a wish does not shorten the wait");
        backoff.fail(at(0), Some(at(10 * 365 * 24 * HOUR)), 0);
        assert_eq!(backoff.until, 7 * 24 * HOUR);
        assert!(!backoff.permits(at(7 * 24 * HOUR - 1)));
        assert!(backoff.permits(at(7 * 24 * HOUR)));
    }

    #[test]
    fn a_clock_that_was_set_back_between_two_starts_leaves_nobody_alone_for_years() {
        let mut backoff = Backoff::default();
        backoff.begin(at(2_000_000_000), 0);
        let record = Record::new([("a", backoff)].into_iter());
        let text = serde_json::to_string(&record).unwrap();
        let record: Record = serde_json::from_str(&text).unwrap();
        let read = record.of(["a", "b"].into_iter(), at(1_000_000_000));
        assert_eq!(read[0].failures, 1);
        assert_eq!(read[0].until, 1_000_000_000 + 7 * 24 * HOUR);
        assert_eq!(read[1], Backoff::default());
    }

    #[test]
    fn without_a_window_the_last_third_decides() {
        let validity = Validity {
            start: at(0),
            end: at(90 * 24 * HOUR),
        };
        assert_eq!(validity.renew_at(None, 0), at(60 * 24 * HOUR));
        assert_eq!(
            validity.renew_at(None, u16::MAX),
            at(67 * 24 * HOUR + 12 * HOUR)
        );
    }

    #[test]
    fn a_window_decides_where_there_is_one_that_makes_sense() {
        let validity = Validity {
            start: at(0),
            end: at(1000),
        };
        let window = |start, end| {
            Some(Window {
                start: at(start),
                end: at(end),
            })
        };
        assert_eq!(validity.renew_at(window(100, 200), 0), at(100));
        assert_eq!(validity.renew_at(window(100, 200), u16::MAX), at(200));
        assert_eq!(validity.renew_at(window(2000, 3000), 7), at(900));
        // One that is longer than the lifetime: some moment of the lifetime.
        let short = Validity {
            start: at(1000),
            end: at(1060),
        };
        for (chance, then) in [(0, 1000), (u16::MAX / 3, 1018), (u16::MAX, 1054)] {
            assert_eq!(short.renew_at(window(100, 2000), chance), at(then));
        }
        assert_eq!(
            short.renew_at(window(100, 200), u16::MAX),
            at(200),
            "past: at once"
        );
        assert_eq!(
            validity.renew_at(window(200, 100), 0),
            at(667) - Duration::from_nanos(333_333_333)
        );
    }

    proptest! {
        #[test]
        fn a_renewal_is_never_planned_for_after_the_end(
            start in 0..u64::from(u32::MAX),
            lifetime in 0..u64::from(u32::MAX),
            window in prop::option::of((0..u64::from(u32::MAX), 0..u64::from(u32::MAX))),
            chance: u16,
        ) {
            let validity = Validity { start: at(start), end: at(start + lifetime) };
            let window = window.map(|(start, end)| Window { start: at(start), end: at(end) });
            prop_assert!(validity.renew_at(window, chance) <= validity.end);
        }
    }
}
