//! Leases of flows, as transit relays check them.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use wavry_proto::{
    control::Roster,
    id::ClusterName,
    overlay::lease::{self, Unfit, Verified},
    token::{self, KeyId, Lease},
};

use super::{KeySet, Rejected, Scope};
use crate::clock::unix_time;

/// Whom leases are for.
pub const AUDIENCE: &str = "transit";

/// Checks leases by the keys that the roster lists.
pub struct Verifier {
    cluster: ClusterName,
    roster: watch::Receiver<Arc<Roster>>,
    keys: Mutex<Keys>,
}

/// The keys of a roster.
#[derive(Default)]
struct Keys {
    texts: Vec<String>,
    set: KeySet,
}

impl Verifier {
    /// For leases of `cluster`.
    pub fn new(cluster: ClusterName, roster: watch::Receiver<Arc<Roster>>) -> Self {
        Self {
            cluster,
            roster,
            keys: Mutex::default(),
        }
    }

    /// The keys that the roster lists now.
    fn keys(&self) -> KeySet {
        let roster = self.roster.borrow().clone();
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.texts != roster.token_keys {
            let set = KeySet::from_paserk(&roster.token_keys);
            *keys = Keys {
                set: set.unwrap_or_else(|_| {
                    tracing::warn!("the roster names a key that is none; no lease is accepted");
                    KeySet::default()
                }),
                texts: roster.token_keys.clone(),
            };
        }
        keys.set.clone()
    }

    /// [`verify`](lease::Verifier::verify) at `now`, in seconds since the Unix epoch.
    pub(crate) fn verify_at(&self, packed: &[u8], now: u64) -> Result<Verified, Unfit> {
        let (key, token) = token::unpack(packed).map_err(|_| Unfit::Forged)?;
        let scope = Scope {
            cluster: &self.cluster,
            audience: AUDIENCE,
            binding: &[],
        };
        let lease = self.keys().verify::<Lease>(&token, scope, now);
        let lease = lease.map_err(|rejected| match rejected {
            Rejected::Expired => Unfit::Expired,
            Rejected::NotYetValid => Unfit::NotYet,
            _ => Unfit::Forged,
        })?;
        let left = lease.validity.exp.saturating_sub(now);
        Ok(Verified {
            lease,
            key,
            left: std::time::Duration::from_secs(left),
        })
    }
}

impl lease::Verifier for Verifier {
    fn verify(&self, lease: &[u8]) -> Result<Verified, Unfit> {
        self.verify_at(lease, unix_time())
    }

    fn trusts(&self, key: &KeyId) -> bool {
        self.keys().has(key)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use wavry_proto::{
        id::Epoch,
        overlay::{
            lease::{MAX_PACKED_LEN, Verifier as _},
            packet::Label,
        },
        token::{MAX_LEASE_LIFETIME, Session, Validity},
    };

    use super::*;
    use crate::token::SigningKey;

    const NOW: u64 = 1_800_000_000;

    fn cluster(name: &str) -> ClusterName {
        name.parse().unwrap()
    }

    fn lease(iat: u64, lasts: u64) -> Lease {
        Lease {
            sub: "a".parse().unwrap(),
            peer: "b".parse().unwrap(),
            hops: vec!["t".parse().unwrap()],
            flow: Label::from_random(1),
            bps: 1,
            pps: 2,
            epoch: Epoch(3),
            validity: Validity {
                iat,
                nbf: iat,
                exp: iat + lasts,
            },
        }
    }

    fn packed<C: token::Claims>(key: &SigningKey, claims: &C, of: &str, audience: &str) -> Vec<u8> {
        let scope = Scope {
            cluster: &cluster(of),
            audience,
            binding: &[],
        };
        token::pack(&key.sign(claims, scope)).unwrap()
    }

    fn listing(keys: &[&SigningKey]) -> Arc<Roster> {
        Arc::new(Roster {
            token_keys: keys.iter().map(|key| key.public_paserk()).collect(),
            ..Roster::empty(cluster("c1"))
        })
    }

    #[test]
    fn a_lease_holds_for_its_time_and_no_other_token_is_one() {
        let [key, other] = [SigningKey::generate(), SigningKey::generate()];
        let roster = watch::Sender::new(listing(&[&key]));
        let verifier = Verifier::new(cluster("c1"), roster.subscribe());
        let verified = |packed: &[u8], now| {
            let verified = verifier.verify_at(packed, now);
            verified.map(|verified| (verified.lease, verified.left))
        };
        let said = lease(NOW, 100);
        let good = packed(&key, &said, "c1", AUDIENCE);
        let left = |seconds| Ok((said.clone(), Duration::from_secs(seconds)));
        assert_eq!(verified(&good, NOW), left(100));
        assert_eq!(verified(&good, NOW + 99), left(1));
        assert_eq!(verified(&good, NOW - 30), left(130));
        assert_eq!(verified(&good, NOW - 31), Err(Unfit::NotYet));
        assert_eq!(verified(&good, NOW + 100), Err(Unfit::Expired));

        let session = Session {
            jti: "1".into(),
            sub: "a".into(),
            sid: None,
            claims: serde_json::Map::new(),
            validity: said.validity,
        };
        let mut changed = good.clone();
        changed[60] ^= 1;
        for (what, packed) in [
            ("another key's", packed(&other, &said, "c1", AUDIENCE)),
            ("another cluster's", packed(&key, &said, "c2", AUDIENCE)),
            ("for others", packed(&key, &said, "c1", "nodes")),
            ("another purpose's", packed(&key, &session, "c1", AUDIENCE)),
            (
                "too lasting",
                packed(&key, &lease(NOW, MAX_LEASE_LIFETIME + 1), "c1", AUDIENCE),
            ),
            ("changed", changed),
            ("cut", good[..80].to_vec()),
            ("nothing", Vec::new()),
        ] {
            assert_eq!(verified(&packed, NOW), Err(Unfit::Forged), "{what}");
        }
    }

    #[test]
    fn a_lease_holds_no_more_once_its_key_is_not_listed() {
        let [key, next] = [SigningKey::generate(), SigningKey::generate()];
        let roster = watch::Sender::new(listing(&[&key, &next]));
        let verifier = Verifier::new(cluster("c1"), roster.subscribe());
        let good = packed(&key, &lease(NOW, 100), "c1", AUDIENCE);
        assert!(verifier.trusts(&key.key_id()) && verifier.trusts(&next.key_id()));
        assert!(verifier.verify_at(&good, NOW).is_ok());
        roster.send_replace(listing(&[&next]));
        assert!(!verifier.trusts(&key.key_id()) && verifier.trusts(&next.key_id()));
        assert_eq!(verifier.verify_at(&good, NOW), Err(Unfit::Forged));
    }

    #[test]
    fn the_longest_lease_is_within_its_bound_when_it_is_packed() {
        let longest: wavry_proto::id::NodeId = "a".repeat(63).parse().unwrap();
        let said = Lease {
            sub: longest.clone(),
            peer: longest.clone(),
            hops: vec![longest; 3],
            bps: u64::MAX,
            pps: u64::MAX,
            epoch: Epoch(u64::MAX),
            ..lease(u64::MAX - 1, 1)
        };
        let packed = packed(&SigningKey::generate(), &said, "c1", AUDIENCE);
        assert!(packed.len() <= MAX_PACKED_LEN, "{}", packed.len());
    }
}
