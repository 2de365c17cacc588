//! What a node makes of rosters. Pure: bytes and time are arguments.
//!
//! It takes those of its cluster, signed by keys that it pinned, and newer than what it has; from then on it
//! trusts the keys that the roster names; and it acts on a roster until that is too old.

use std::time::Duration;

use wavry_proto::{
    control::Roster,
    id::{ClusterName, Epoch},
    token::Succession,
};

use crate::token::{KeySet, MalformedKey, Scope};

/// Most statements of succession that are followed: a key a year for longer than any node is away, and
/// some for accidents.
const MAX_SUCCESSION: usize = 64;

/// What the node trusts: what registration told it, and what that led it to.
#[derive(Clone)]
pub struct Pinned {
    cluster: ClusterName,
    keys: KeySet,
}

impl Pinned {
    /// Trusts these keys, PASERK `k4.public`, and no others, for rosters of `cluster`.
    pub fn new(cluster: ClusterName, keys: &[String]) -> Result<Self, MalformedKey> {
        Ok(Self {
            cluster,
            keys: KeySet::from_paserk(keys)?,
        })
    }

    /// Whom to trust once `roster` was taken: the keys that it names and no others, or the same as before
    /// where it names none (`None`).
    pub fn after(&self, roster: &Roster) -> Result<Option<Self>, MalformedKey> {
        match roster.roster_keys.as_slice() {
            [] => Ok(None),
            keys => Self::new(self.cluster.clone(), keys).map(Some),
        }
    }

    /// Reads a signed roster of epoch `least` or a later one. The error is a label. `now` is in
    /// seconds since the Unix epoch.
    pub fn accept(&self, token: &[u8], least: Epoch, now: u64) -> Result<Roster, &'static str> {
        let token = std::str::from_utf8(token).map_err(|_| "malformed")?;
        let scope = Scope {
            cluster: &self.cluster,
            audience: "nodes",
            binding: &[],
        };
        let roster: Roster = self
            .keys
            .verify(token.trim(), scope, now)
            .map_err(|rejected| rejected.reason())?;
        // The signature covers the cluster; what the roster calls itself must agree.
        if roster.cluster != self.cluster {
            return Err("cluster");
        }
        if roster.epoch < least {
            return Err("epoch");
        }
        Ok(roster)
    }

    /// Trusts also the keys that those it trusts say take their place, and so on. `statements` are in the
    /// order in which they were made; those that do not verify are passed over. Whether there was any.
    pub fn follow(&mut self, statements: &[String], now: u64) -> bool {
        let mut followed = false;
        for statement in statements.iter().take(MAX_SUCCESSION) {
            let scope = Scope {
                cluster: &self.cluster,
                audience: "nodes",
                binding: &[],
            };
            let said = self.keys.verify::<Succession>(statement, scope, now);
            if let Ok(Succession { next }) = said
                && let Ok(with) = self.keys.with(&next)
            {
                self.keys = with;
                followed = true;
            }
        }
        followed
    }
}

/// Age of a roster at `now`, since the Unix epoch. One of the future, by a master whose clock is
/// ahead, has none.
pub fn age(roster: &Roster, now: Duration) -> Duration {
    now.saturating_sub(Duration::from_secs(roster.issued_at))
}

/// Whether a roster is not acted on any more at `now`: it might list what was revoked since.
pub fn is_too_old(roster: &Roster, max_age: Duration, now: Duration) -> bool {
    age(roster, now) >= max_age
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::SigningKey;

    fn cluster(name: &str) -> ClusterName {
        name.parse().unwrap()
    }

    fn pinned(key: &SigningKey) -> Pinned {
        Pinned::new(cluster("ours"), &[key.public_paserk()]).unwrap()
    }

    fn roster(epoch: u64) -> Roster {
        Roster {
            epoch: Epoch(epoch),
            ..Roster::empty(cluster("ours"))
        }
    }

    fn sign(key: &SigningKey, roster: &Roster, signed_for: &str, audience: &str) -> Vec<u8> {
        let scope = Scope {
            cluster: &cluster(signed_for),
            audience,
            binding: &[],
        };
        key.sign(roster, scope).into_bytes()
    }

    #[test]
    fn a_newer_roster_of_the_cluster_by_a_pinned_key_is_taken() {
        let key = SigningKey::generate();
        let token = sign(&key, &roster(7), "ours", "nodes");
        for least in [0, 6, 7] {
            let taken = pinned(&key).accept(&token, Epoch(least), 0).unwrap();
            assert_eq!(taken, roster(7));
        }
    }

    #[test]
    fn a_roster_never_goes_back() {
        let key = SigningKey::generate();
        let token = sign(&key, &roster(7), "ours", "nodes");
        for least in [8, 9, u64::MAX] {
            assert_eq!(pinned(&key).accept(&token, Epoch(least), 0), Err("epoch"));
        }
    }

    #[test]
    fn succession_is_followed_from_a_trusted_key_on_and_from_no_other() {
        let keys: Vec<_> = (0..4).map(|_| SigningKey::generate()).collect();
        let says = |by: &SigningKey, next: &SigningKey| {
            let scope = Scope {
                cluster: &cluster("ours"),
                audience: "nodes",
                binding: &[],
            };
            let next = next.public_paserk();
            by.sign(&Succession { next }, scope)
        };
        let chain = [says(&keys[0], &keys[1]), says(&keys[1], &keys[2])];
        let takes = |pinned: &Pinned, key: &SigningKey| {
            let token = sign(key, &roster(7), "ours", "nodes");
            pinned.accept(&token, Epoch(1), 0).is_ok()
        };
        let mut from_first = pinned(&keys[0]);
        assert!(from_first.follow(&chain, 0));
        assert!(takes(&from_first, &keys[2]) && !takes(&from_first, &keys[3]));
        let mut from_second = pinned(&keys[1]);
        assert!(from_second.follow(&chain, 0));
        assert!(takes(&from_second, &keys[2]));
        assert!(!takes(&from_second, &keys[0]), "it does not lead back");
        let mut stranger = pinned(&keys[3]);
        let mut junk = chain.to_vec();
        junk.extend(["nonsense".to_owned(), "k4.public.x".to_owned()]);
        assert!(!stranger.follow(&junk, 0));
        assert!(!takes(&stranger, &keys[2]));
    }

    #[test]
    fn who_took_a_roster_trusts_the_keys_that_it_names_and_no_others() {
        let [one, two] = [SigningKey::generate(), SigningKey::generate()];
        let naming = |keys: Vec<String>| Roster {
            roster_keys: keys,
            ..roster(7)
        };
        let before = pinned(&one);
        assert!(before.after(&naming(Vec::new())).unwrap().is_none());
        assert!(before.after(&naming(vec!["k4.public.x".into()])).is_err());
        let after = before.after(&naming(vec![two.public_paserk()]));
        let after = after.unwrap().unwrap();
        let takes = |key| {
            let token = sign(key, &roster(8), "ours", "nodes");
            after.accept(&token, Epoch(8), 0).is_ok()
        };
        assert!(takes(&two) && !takes(&one));
    }

    #[test]
    fn a_roster_of_the_future_has_no_age_and_one_is_too_old_from_its_bound_on() {
        let roster = Roster {
            issued_at: 100,
            ..roster(7)
        };
        let [before, after] = [90, 130].map(Duration::from_secs);
        assert_eq!(age(&roster, before), Duration::ZERO);
        assert_eq!(age(&roster, after), Duration::from_secs(30));
        assert!(!is_too_old(&roster, Duration::from_secs(31), after));
        assert!(is_too_old(&roster, Duration::from_secs(30), after));
    }

    #[test]
    fn a_roster_by_another_key_or_for_others_is_refused() {
        let key = SigningKey::generate();
        let pinned = pinned(&key);
        let foreign = Roster {
            epoch: Epoch(7),
            ..Roster::empty(cluster("theirs"))
        };
        for (token, label) in [
            (
                sign(&SigningKey::generate(), &roster(7), "ours", "nodes"),
                "unknown_key",
            ),
            (sign(&key, &roster(7), "theirs", "nodes"), "signature"),
            (sign(&key, &roster(7), "ours", "master"), "signature"),
            (sign(&key, &foreign, "ours", "nodes"), "cluster"),
            (b"v4.public.x".to_vec(), "malformed"),
            (vec![0xff; 9], "malformed"),
            (Vec::new(), "malformed"),
        ] {
            assert_eq!(pinned.accept(&token, Epoch(0), 0), Err(label));
        }
    }
}
