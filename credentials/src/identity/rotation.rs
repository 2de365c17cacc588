//! The rotation of a node's identity, step by step. Pure: time and what was heard are arguments, and what
//! is to be written is told.
//!
//! The node makes the next key and keeps it; asks the master to admit it; shows it once the master says
//! that whoever may meet the node knows it; and forgets the key before once the roster lists it no more.
//! Whatever is kept at any moment is enough to go on from: of the keys that the node has, the roster lists
//! the one that it shows.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use wavry_proto::{control::IdentityTask, id::PublicKey};

/// The keys that a node has, as it keeps them. The record of them is written as a whole or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// The key that the node shows.
    pub present: PublicKey,
    /// Since when, in seconds since the Unix epoch.
    pub since: u64,
    /// The key that is to take its place.
    pub next: Option<PublicKey>,
    /// The key whose place it took, while that may be listed.
    pub before: Option<PublicKey>,
}

/// What a node knows of its rotation from the master.
#[derive(Debug, Clone, Copy, Default)]
pub struct Heard<'a> {
    /// What the last heartbeat was told.
    pub task: Option<IdentityTask>,
    /// The keys that the roster lists for the node; `None` when it does not list the node.
    pub listed: Option<&'a [PublicKey]>,
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make a key, and do what [`Keys::made`] says.
    Make,
    /// Ask the master to admit this key.
    Ask(PublicKey),
    /// Do these, in order; whatever fails ends it, and it is tried again.
    Do([Act; 2]),
}

/// Something that outlives the process, or shows to others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Keep this key; once done, it is durable.
    WriteKey(PublicKey),
    /// Keep this record in the place of the one before; once done, it is durable.
    WriteRecord(Keys),
    /// Show this key from now on.
    Show(PublicKey),
    /// Forget this key.
    RemoveKey(PublicKey),
}

/// How long an identity serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// At the latest after so long another is made; by chance up to a tenth of it earlier.
    pub lifetime: Duration,
}

/// A rotation that does not come about is an emergency when this part of the lifetime has passed beyond it.
const MARGIN_PARTS: u32 = 5;

impl Default for Pace {
    /// 30 days.
    fn default() -> Self {
        Self {
            lifetime: Duration::from_secs(30 * 24 * 3600),
        }
    }
}

impl Pace {
    /// For how long a rotation may fail before the identity is older than it should ever be: a fifth of
    /// the lifetime.
    pub fn margin(&self) -> Duration {
        self.lifetime / MARGIN_PARTS
    }
}

impl Keys {
    /// Of a node that has one key, which it shows since `now`.
    pub fn one(present: PublicKey, now: u64) -> Self {
        Self {
            present,
            since: now,
            next: None,
            before: None,
        }
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = PublicKey> {
        [Some(self.present), self.next, self.before]
            .into_iter()
            .flatten()
    }

    /// When the present key has served for long enough, in seconds since the Unix epoch. The chance in it
    /// is the key's own, so that nodes that began together do not all rotate together, and a restart
    /// changes nothing.
    pub fn due(&self, pace: &Pace) -> u64 {
        let chance = u32::from(u16::from_le_bytes([self.present.0[0], self.present.0[1]]));
        let earlier = (pace.lifetime / 10).saturating_mul(chance) / u32::from(u16::MAX);
        self.since
            .saturating_add((pace.lifetime - earlier).as_secs())
    }

    /// By when it should have been replaced, whatever stood in the way.
    pub fn expiry(&self, pace: &Pace) -> u64 {
        let latest = pace.lifetime.saturating_add(pace.margin());
        self.since.saturating_add(latest.as_secs())
    }

    /// What is to be done at `now`, if anything.
    pub fn step(&self, heard: Heard<'_>, pace: &Pace, now: u64) -> Option<Step> {
        let listed = heard.listed?;
        if let Some(next) = self.next {
            return match heard.task {
                Some(IdentityTask::Show(key)) if key == next => Some(self.showing(next, now)),
                _ if listed.contains(&next) => None,
                _ => Some(Step::Ask(next)),
            };
        }
        if let Some(before) = self.before {
            let is_over = listed.contains(&self.present) && !listed.contains(&before);
            return is_over.then(|| self.forgetting(before));
        }
        let is_ordered = heard.task == Some(IdentityTask::Rotate);
        (is_ordered || now >= self.due(pace)).then_some(Step::Make)
    }

    /// What is to be done with a key that was made.
    pub fn made(&self, next: PublicKey) -> [Act; 2] {
        let keys = Self {
            next: Some(next),
            ..self.clone()
        };
        [Act::WriteKey(next), Act::WriteRecord(keys)]
    }

    fn showing(&self, next: PublicKey, now: u64) -> Step {
        let keys = Self {
            present: next,
            since: now,
            next: None,
            before: Some(self.present),
        };
        Step::Do([Act::WriteRecord(keys), Act::Show(next)])
    }

    fn forgetting(&self, before: PublicKey) -> Step {
        let keys = Self {
            before: None,
            ..self.clone()
        };
        Step::Do([Act::WriteRecord(keys), Act::RemoveKey(before)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PACE: Pace = Pace {
        lifetime: Duration::from_secs(1000),
    };
    const N: PublicKey = PublicKey([0; 32]);
    const NEXT: PublicKey = PublicKey([1; 32]);

    fn heard(task: Option<IdentityTask>, listed: &[PublicKey]) -> Heard<'_> {
        Heard {
            task,
            listed: Some(listed),
        }
    }

    /// The record that a step writes.
    fn record(acts: &[Act]) -> Keys {
        let record = acts.iter().find_map(|act| match act {
            Act::WriteRecord(keys) => Some(keys.clone()),
            _ => None,
        });
        record.unwrap()
    }

    #[test]
    fn a_rotation_goes_its_way_and_each_thing_is_kept_before_it_is_used() {
        let first = Keys::one(N, 0);
        assert_eq!(first.step(heard(None, &[N]), &PACE, 999), None);
        assert_eq!(first.step(heard(None, &[N]), &PACE, 1000), Some(Step::Make));
        let acts = first.made(NEXT);
        assert_eq!(acts[0], Act::WriteKey(NEXT), "the key before what names it");

        let made = record(&acts);
        let step =
            |keys: &Keys, task, listed: &[PublicKey]| keys.step(heard(task, listed), &PACE, 1000);
        assert_eq!(step(&made, None, &[N]), Some(Step::Ask(NEXT)));
        assert_eq!(
            step(&made, None, &[N, NEXT]),
            None,
            "peers are to know it first"
        );
        let other = Some(IdentityTask::Show(PublicKey([9; 32])));
        assert_eq!(step(&made, other, &[N, NEXT]), None);
        let show = Some(IdentityTask::Show(NEXT));
        let Some(Step::Do(acts)) = step(&made, show, &[N, NEXT]) else {
            panic!("it is not shown");
        };
        assert_eq!(acts[1], Act::Show(NEXT), "shown once it is kept");

        let shown = record(&acts);
        assert_eq!(
            (shown.present, shown.since, shown.before),
            (NEXT, 1000, Some(N))
        );
        assert_eq!(step(&shown, Some(IdentityTask::Rotate), &[N, NEXT]), None);
        assert_eq!(step(&shown, None, &[]), None);
        let Some(Step::Do(acts)) = step(&shown, None, &[NEXT]) else {
            panic!("the old key is kept");
        };
        assert_eq!(acts[1], Act::RemoveKey(N), "removed once nothing names it");
        assert_eq!(record(&acts), Keys::one(NEXT, 1000));
    }

    #[test]
    fn an_order_does_not_wait_for_the_time_and_a_node_that_is_not_listed_does_nothing() {
        let keys = Keys::one(N, 0);
        let ordered = Some(IdentityTask::Rotate);
        assert_eq!(keys.step(heard(ordered, &[N]), &PACE, 1), Some(Step::Make));
        let unlisted = Heard {
            task: ordered,
            listed: None,
        };
        assert_eq!(keys.step(unlisted, &PACE, 5000), None);
        assert_eq!(keys.expiry(&PACE), 1200);
    }

    proptest! {
        #[test]
        fn a_key_is_due_within_the_last_tenth_of_its_lifetime(key: [u8; 32], since in 0u64..1 << 40) {
            let due = Keys::one(PublicKey(key), since).due(&PACE) - since;
            prop_assert!((900..=1000).contains(&due), "{}", due);
        }

        #[test]
        fn any_time_and_lifetime_is_borne(key: [u8; 32], since: u64, lifetime: u64, now: u64) {
            let pace = Pace { lifetime: Duration::from_secs(lifetime) };
            let keys = Keys::one(PublicKey(key), since);
            prop_assert!(keys.expiry(&pace) >= keys.due(&pace));
            keys.step(heard(None, &[PublicKey(key)]), &pace, now);
        }
    }
}
