//! Until when a token is good: arithmetic over seconds since the Unix epoch.

use serde::{Deserialize, Serialize};

use super::Limits;

/// When a token was made, until when it is good, and how far that can be put off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lifetime {
    /// When it was made.
    pub created: u64,
    /// For how long it was good then, in seconds; 0: without end.
    pub ttl: u64,
    /// Until when it is good; `None`: without end.
    pub expires: Option<u64>,
    /// Whether it can be made to last longer.
    pub renewable: bool,
    /// When it was last.
    pub renewed: Option<u64>,
    /// Each renewal gives it this long, however old it is; 0: it has none.
    pub period: u64,
    /// How old it may become, in seconds; 0: any age, of a token with a period or without end.
    pub max_ttl: u64,
    /// As was asked for at the beginning, which holds for tokens with a period too; 0: was not.
    pub explicit_max_ttl: u64,
}

/// What is wished for a token's lifetime. Zero: nothing is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wishes {
    /// For how long from its beginning, in seconds.
    pub ttl: u64,
    /// How old it may become, in seconds.
    pub max_ttl: u64,
    /// The same, for tokens with a period too.
    pub explicit_max_ttl: u64,
    /// How long each renewal gives it, in seconds.
    pub period: u64,
    /// Whether it can be made to last longer.
    pub renewable: bool,
}

/// A token that cannot be made to last longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("lease is not renewable")]
pub struct NotRenewable;

impl Lifetime {
    /// Of a token that is made now.
    pub fn new(wishes: Wishes, limits: Limits, now: u64) -> Self {
        let max_ttl = match wishes.period {
            0 => smallest(wishes.max_ttl, limits.max_ttl),
            _ => 0,
        };
        let mut lifetime = Self {
            created: now,
            ttl: 0,
            expires: None,
            renewable: wishes.renewable,
            renewed: None,
            period: wishes.period,
            max_ttl,
            explicit_max_ttl: wishes.explicit_max_ttl,
        };
        let wanted = match (wishes.period, wishes.ttl) {
            (0, 0) => limits.default_ttl,
            (0, ttl) => ttl,
            (period, _) => period,
        };
        let expires = lifetime.capped(now, wanted);
        lifetime.ttl = expires - now;
        lifetime.expires = Some(expires);
        lifetime
    }

    /// Of a token without end.
    pub fn endless(now: u64) -> Self {
        Self {
            created: now,
            ttl: 0,
            expires: None,
            renewable: false,
            renewed: None,
            period: 0,
            max_ttl: 0,
            explicit_max_ttl: 0,
        }
    }

    /// Whether it is good.
    pub fn is_good(&self, now: u64) -> bool {
        self.expires.is_none_or(|expires| now < expires)
    }

    /// For how long it is still good, in seconds; 0: without end.
    pub fn left(&self, now: u64) -> u64 {
        self.expires
            .map_or(0, |expires| expires.saturating_sub(now))
    }

    /// Makes it last longer: for `wanted` seconds from now, or as it was made for, within its bounds.
    /// It may also become shorter by that.
    pub fn renew(&mut self, wanted: Option<u64>, now: u64) -> Result<(), NotRenewable> {
        if !self.renewable || !self.is_good(now) || self.expires.is_none() {
            return Err(NotRenewable);
        }
        let wanted = match (self.period, wanted) {
            (0, Some(wanted)) if wanted > 0 => wanted,
            (0, _) => self.ttl,
            (period, _) => period,
        };
        self.expires = Some(self.capped(now, wanted));
        self.renewed = Some(now);
        Ok(())
    }

    /// When `wanted` seconds from now are over, or the token is as old as it may become.
    fn capped(&self, now: u64, wanted: u64) -> u64 {
        let end = now.saturating_add(wanted);
        match smallest(self.max_ttl, self.explicit_max_ttl) {
            0 => end,
            oldest => end.min(self.created.saturating_add(oldest)),
        }
    }
}

/// The smaller of two bounds of which zero is none.
pub(in crate::keyvault) fn smallest(one: u64, other: u64) -> u64 {
    match (one, other) {
        (0, bound) | (bound, 0) => bound,
        (one, other) => one.min(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits {
        default_ttl: 900,
        max_ttl: 10_000,
    };

    fn lifetime(wishes: Wishes) -> Lifetime {
        Lifetime::new(
            Wishes {
                renewable: true,
                ..wishes
            },
            LIMITS,
            1000,
        )
    }

    #[test]
    fn a_token_is_good_for_as_long_as_was_wished_within_its_bounds() {
        let wishes = Wishes::default();
        for (wishes, ttl) in [
            (wishes, 900),
            (Wishes { ttl: 60, ..wishes }, 60),
            (
                Wishes {
                    ttl: 60_000,
                    ..wishes
                },
                10_000,
            ),
            (
                Wishes {
                    ttl: 1800,
                    explicit_max_ttl: 300,
                    ..wishes
                },
                300,
            ),
            (
                Wishes {
                    max_ttl: 100,
                    ..wishes
                },
                100,
            ),
            (
                Wishes {
                    max_ttl: 60_000,
                    ttl: 50_000,
                    ..wishes
                },
                10_000,
            ),
            (
                Wishes {
                    period: 1800,
                    ttl: 60,
                    ..wishes
                },
                1800,
            ),
            (
                Wishes {
                    period: 50_000,
                    max_ttl: 100,
                    ..wishes
                },
                50_000,
            ),
            (
                Wishes {
                    period: 1800,
                    explicit_max_ttl: 60,
                    ..wishes
                },
                60,
            ),
        ] {
            let lifetime = lifetime(wishes);
            assert_eq!(lifetime.ttl, ttl, "{wishes:?}");
            assert!(lifetime.is_good(1000 + ttl - 1) && !lifetime.is_good(1000 + ttl));
        }
    }

    #[test]
    fn renewals_end_where_the_token_is_as_old_as_it_may_become() {
        let mut token = lifetime(Wishes {
            ttl: 600,
            max_ttl: 1000,
            ..Wishes::default()
        });
        token.renew(None, 1500).unwrap();
        assert_eq!(token.expires, Some(2000));
        assert_eq!(token.renew(None, 2000), Err(NotRenewable));

        let mut periodic = lifetime(Wishes {
            period: 600,
            ..Wishes::default()
        });
        for time in (1500..100_000).step_by(500) {
            periodic.renew(Some(5), time).unwrap();
            assert_eq!(periodic.left(time), 600);
        }
        let mut bounded = lifetime(Wishes {
            period: 600,
            explicit_max_ttl: 700,
            ..Wishes::default()
        });
        bounded.renew(None, 1500).unwrap();
        assert_eq!(bounded.left(1500), 200);
    }

    #[test]
    fn what_is_not_renewable_stays_as_it_is() {
        let mut token = Lifetime::new(Wishes::default(), LIMITS, 1000);
        assert_eq!(token.renew(None, 1001), Err(NotRenewable));
        let mut root = Lifetime::endless(1000);
        assert_eq!(root.renew(None, 1001), Err(NotRenewable));
        assert!(root.is_good(u64::MAX));
    }

    proptest! {
        #[test]
        fn no_renewal_passes_a_bound(
            ttl in 0..20_000_u64, max in 0..20_000_u64, explicit in 0..20_000_u64,
            renewals in proptest::collection::vec((0..5000_u64, 0..50_000_u64), 0..10),
        ) {
            let mut token = lifetime(Wishes { ttl, max_ttl: max, explicit_max_ttl: explicit, ..Wishes::default() });
            let oldest = [max, explicit, LIMITS.max_ttl].into_iter().filter(|bound| *bound > 0).min().unwrap();
            let mut now = 1000;
            for (later, wanted) in renewals {
                now += later;
                let good = token.is_good(now);
                prop_assert_eq!(token.renew(Some(wanted), now).is_ok(), good);
                prop_assert!(token.expires.unwrap() <= 1000 + oldest);
            }
        }
    }
}
