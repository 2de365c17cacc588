//! Which rosters a node takes: those of its cluster, signed by keys it pinned, and newer than what
//! it has.

use wavry_proto::{
    control::Roster,
    id::{ClusterName, Epoch},
    token::Succession,
};

use crate::token::{KeySet, Scope};

/// Most statements of succession that are followed: a key a year for longer than any node is away, and
/// some for accidents.
const MAX_SUCCESSION: usize = 64;

/// What the node trusts: what registration told it, and what that led it to.
#[derive(Clone)]
pub(super) struct Pinned {
    pub(super) cluster: ClusterName,
    pub(super) keys: KeySet,
}

impl Pinned {
    /// Reads a signed roster of epoch `least` or a later one. The error is a label. `now` is in
    /// seconds since the Unix epoch.
    pub(super) fn accept(
        &self,
        token: &[u8],
        least: Epoch,
        now: u64,
    ) -> Result<Roster, &'static str> {
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
    pub(super) fn follow(&mut self, statements: &[String], now: u64) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::SigningKey;

    fn cluster(name: &str) -> ClusterName {
        name.parse().unwrap()
    }

    fn pinned(key: &SigningKey) -> Pinned {
        Pinned {
            cluster: cluster("ours"),
            keys: KeySet::from_paserk(&[key.public_paserk()]).unwrap(),
        }
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
