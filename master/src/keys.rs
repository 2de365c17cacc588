//! The life of keys that sign tokens and rosters: published, then signing, then accepted, then retired.
//! Pure: time is an argument.
//!
//! A key is published before it signs, for as long as a node may go without hearing of it, so that
//! whoever acts on a roster at all knows the key that signed a token. One that signs no more is accepted
//! until the last token that it signed has expired. A key that somebody else may hold goes through none
//! of that: the next one signs at once, and nothing that it signed holds any more.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use wavry_proto::token::{CLOCK_SKEW, MAX_LIFETIME};

/// Where in its life a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Known to nodes, and signs nothing yet.
    Published,
    /// Signs. There is one.
    Signing,
    /// Signs no more; what it signed holds until it expires.
    Accepted,
    /// Nothing that it signed holds.
    Retired,
    /// Nothing that it signed holds, as somebody else may have it.
    Revoked,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Published,
        Self::Signing,
        Self::Accepted,
        Self::Retired,
        Self::Revoked,
    ];

    /// The state as it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Published => "published",
            Self::Signing => "signing",
            Self::Accepted => "accepted",
            Self::Retired => "retired",
            Self::Revoked => "revoked",
        }
    }
}

/// Why a key is to take another's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// It has served for long enough.
    Schedule,
    /// An operator wants it, and there is no hurry.
    Request,
    /// Somebody else may hold it.
    Compromise,
}

impl Reason {
    /// The reason as it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Schedule => "schedule",
            Self::Request => "request",
            Self::Compromise => "compromise",
        }
    }
}

/// How long keys stay in each part of their life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// A key that has signed for so long is rotated.
    pub lifetime: Duration,
    /// From being published to signing.
    pub wait: Duration,
    /// From signing no more to being retired.
    pub overlap: Duration,
}

impl Default for Pace {
    /// A year; a day, which is the longest that nodes act on a roster unless they are told otherwise;
    /// and as long as the longest token, with the skew of clocks.
    fn default() -> Self {
        Self {
            lifetime: Duration::from_secs(365 * 24 * 3600),
            wait: Duration::from_secs(24 * 3600),
            overlap: Duration::from_secs(MAX_LIFETIME + CLOCK_SKEW),
        }
    }
}

/// A key, but for the key itself. Times are in seconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    /// PASERK `k4.pid`.
    pub kid: String,
    /// Where in its life it is.
    pub state: State,
    /// When it became what it is.
    pub since: u64,
    /// When it is to become the next thing, if that is settled: a published key to sign, an accepted one
    /// to be retired.
    pub until: Option<u64>,
    /// How long the key before it is accepted once this one signs, in seconds.
    pub overlap: u64,
}

/// What is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Due {
    /// This key signs from now on, and the one that did is accepted for `overlap` seconds.
    Sign {
        /// The key.
        kid: String,
        /// For how long the one before it is accepted.
        overlap: u64,
    },
    /// What this key signed holds no more.
    Retire {
        /// The key.
        kid: String,
    },
    /// A new key is to be published.
    Rotate,
}

/// What is due at `now`, in the order in which it is to be done.
pub fn due(keys: &[Life], pace: &Pace, now: u64) -> Vec<Due> {
    let is_over = |life: &&Life| life.until.is_some_and(|until| now >= until);
    let of = |state| keys.iter().filter(move |life| life.state == state);
    let retired = of(State::Accepted).filter(is_over).map(|life| Due::Retire {
        kid: life.kid.clone(),
    });
    let mut due: Vec<_> = retired.collect();
    let is_old = |life: &Life| now >= life.since.saturating_add(pace.lifetime.as_secs());
    match of(State::Published).next() {
        Some(life) if is_over(&life) => due.push(Due::Sign {
            kid: life.kid.clone(),
            overlap: life.overlap,
        }),
        Some(_) => {}
        None if of(State::Signing).any(is_old) => due.push(Due::Rotate),
        None => {}
    }
    due
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PACE: Pace = Pace {
        lifetime: Duration::from_secs(1000),
        wait: Duration::from_secs(100),
        overlap: Duration::from_secs(200),
    };

    fn life(kid: &str, state: State, since: u64, until: Option<u64>) -> Life {
        Life {
            kid: kid.to_owned(),
            state,
            since,
            until,
            overlap: 200,
        }
    }

    /// Does what is due, as the store does it.
    fn turn(keys: &mut Vec<Life>, now: u64) -> usize {
        let due = due(keys, &PACE, now);
        let count = due.len();
        for due in due {
            match due {
                Due::Retire { kid } => {
                    let key = keys.iter_mut().find(|key| key.kid == kid).unwrap();
                    (key.state, key.since, key.until) = (State::Retired, now, None);
                }
                Due::Sign { kid, overlap } => {
                    for key in keys.iter_mut() {
                        match key.state {
                            State::Signing => {
                                (key.state, key.since) = (State::Accepted, now);
                                key.until = Some(now + overlap);
                            }
                            State::Published if key.kid == kid => {
                                (key.state, key.since, key.until) = (State::Signing, now, None);
                            }
                            _ => {}
                        }
                    }
                }
                Due::Rotate => {
                    let kid = keys.len().to_string();
                    let until = now + PACE.wait.as_secs();
                    keys.push(life(&kid, State::Published, now, Some(until)));
                }
            }
        }
        count
    }

    #[test]
    fn a_key_goes_through_its_life_at_the_stated_times() {
        let mut keys = vec![life("0", Signing, 0, None)];
        let states = |keys: &[Life]| keys.iter().map(|key| key.state).collect::<Vec<_>>();
        use State::{Accepted, Published, Retired, Signing};
        for (now, expected) in [
            (999, vec![Signing]),
            (1000, vec![Signing, Published]),
            (1099, vec![Signing, Published]),
            (1100, vec![Accepted, Signing]),
            (1299, vec![Accepted, Signing]),
            (1300, vec![Retired, Signing]),
            (2099, vec![Retired, Signing]),
            (2100, vec![Retired, Signing, Published]),
            (2200, vec![Retired, Accepted, Signing]),
        ] {
            turn(&mut keys, now);
            assert_eq!(states(&keys), expected, "at {now}");
        }
    }

    proptest! {
        #[test]
        fn one_key_signs_at_any_time_and_each_was_published_before_and_is_accepted_after(
            steps in prop::collection::vec(0u64..400, 1..200),
        ) {
            let mut keys = vec![life("0", State::Signing, 0, None)];
            let mut now = 0;
            for step in steps {
                now += step;
                let before = keys.clone();
                while turn(&mut keys, now) > 0 {}
                let signing = keys.iter().filter(|key| key.state == State::Signing).count();
                prop_assert_eq!(signing, 1);
                prop_assert!(due(&keys, &PACE, now).is_empty());
                for old in &before {
                    let new = keys.iter().find(|key| key.kid == old.kid).unwrap();
                    prop_assert!(new.state >= old.state, "{:?} after {:?}", new, old);
                    // A key that just signed is still accepted, whatever time has passed.
                    if old.state == State::Signing {
                        prop_assert!(new.state <= State::Accepted);
                    }
                }
            }
        }
    }
}
