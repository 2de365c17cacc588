//! Which session tokens hold under a roster.

use std::{collections::HashMap, sync::Arc};

use sha2::{Digest as _, Sha256};
use wavry_proto::{
    control::Roster,
    id::{ClusterName, ServiceName, SubjectDigest},
    token::{self, KeyId, Session},
};

use super::{KeySet, MalformedKey, Rejected, Scope};

/// The keys that sign session tokens, and what was revoked, as one roster has them. Cheap to clone.
#[derive(Clone, Default)]
pub struct Standing {
    keys: KeySet,
    /// Of services whose owners have keys: those, and the cluster's.
    of_services: Arc<HashMap<ServiceName, KeySet>>,
    revoked: Arc<HashMap<SubjectDigest, Vec<Revoked>>>,
}

/// A subject's tokens that hold no more: for which service (`None`: for all), issued up to when.
type Revoked = (Option<ServiceName>, u64);

/// What of a token may stop to hold before it expires: the key that signed it, and its subject's
/// tokens up to some second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grounds {
    /// The key that signed it.
    pub key: KeyId,
    /// Its subject.
    pub subject: SubjectDigest,
    /// When it was issued, in seconds since the Unix epoch.
    pub iat: u64,
}

/// What stands for a subject in rosters.
pub fn digest(subject: &str) -> SubjectDigest {
    let hash = Sha256::digest(subject.as_bytes());
    let mut digest = [0; 16];
    digest.copy_from_slice(&hash[..16]);
    SubjectDigest(digest)
}

impl Standing {
    /// As `roster` has it.
    pub fn of(roster: &Roster) -> Result<Self, MalformedKey> {
        let mut revoked: HashMap<_, Vec<_>> = HashMap::new();
        for revocation in &roster.revoked {
            let of_subject = revoked.entry(revocation.subject).or_default();
            of_subject.push((revocation.service.clone(), revocation.through));
        }
        let mut of_services = HashMap::new();
        for service in roster.services.iter().filter(|s| !s.keys.is_empty()) {
            let keys = roster.token_keys.iter().chain(&service.keys);
            let keys = KeySet::from_paserk(&keys.collect::<Vec<_>>())?;
            of_services.insert(service.name.clone(), keys);
        }
        Ok(Self {
            keys: KeySet::from_paserk(&roster.token_keys)?,
            of_services: Arc::new(of_services),
            revoked: Arc::new(revoked),
        })
    }

    /// Verifies a token for `service` as [`KeySet::verify`] does, and that it was not revoked.
    pub fn verify(
        &self,
        token: &str,
        cluster: &ClusterName,
        service: &ServiceName,
        now: u64,
    ) -> Result<(Session, Grounds), Rejected> {
        let scope = Scope {
            cluster,
            audience: service.as_str(),
            binding: &[],
        };
        let claims: Session = self.keys_for(service).verify(token, scope, now)?;
        let grounds = Grounds {
            key: token::parse(token).map_err(|_| Rejected::Malformed)?.key,
            subject: digest(&claims.sub),
            iat: claims.validity.iat,
        };
        match self.holds(service, &grounds) {
            true => Ok((claims, grounds)),
            false => Err(Rejected::Revoked),
        }
    }

    /// Whether a token for `service` that held before has neither lost its key nor been revoked.
    pub fn holds(&self, service: &ServiceName, grounds: &Grounds) -> bool {
        let revoked = self.revoked.get(&grounds.subject).map_or(&[][..], |of| of);
        let is_revoked = revoked.iter().any(|(of, through)| {
            of.as_ref().is_none_or(|of| of == service) && grounds.iat <= *through
        });
        self.keys_for(service).has(&grounds.key) && !is_revoked
    }

    fn keys_for(&self, service: &ServiceName) -> &KeySet {
        self.of_services.get(service).unwrap_or(&self.keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::SigningKey;
    use wavry_proto::{
        control::{Access, RefuseWith, Revocation, Service},
        token::Validity,
    };

    const NOW: u64 = 1_800_000_000;

    fn service(name: &str) -> ServiceName {
        name.parse().unwrap()
    }

    fn roster(keys: &[&SigningKey], revoked: Vec<Revocation>) -> Roster {
        Roster {
            token_keys: keys.iter().map(|key| key.public_paserk()).collect(),
            revoked,
            ..Roster::empty("c1".parse().unwrap())
        }
    }

    fn token(key: &SigningKey, service: &str, sub: &str, iat: u64) -> String {
        let claims = Session {
            jti: "1".into(),
            sub: sub.into(),
            sid: None,
            claims: serde_json::Map::new(),
            validity: Validity {
                iat,
                nbf: iat,
                exp: NOW + 60,
            },
        };
        let scope = Scope {
            cluster: &"c1".parse().unwrap(),
            audience: service,
            binding: &[],
        };
        key.sign(&claims, scope)
    }

    fn outcome(standing: &Standing, token: &str, of: &str) -> Option<Rejected> {
        let cluster = "c1".parse().unwrap();
        standing.verify(token, &cluster, &service(of), NOW).err()
    }

    #[test]
    fn a_revocation_is_of_one_subjects_tokens_for_one_service_or_all_up_to_a_second() {
        let key = SigningKey::generate();
        let of_echo = Revocation {
            service: Some(service("echo")),
            subject: digest("ann"),
            through: NOW - 10,
        };
        let of_all = Revocation {
            service: None,
            subject: digest("bob"),
            through: NOW - 10,
        };
        let standing = Standing::of(&roster(&[&key], vec![of_echo, of_all])).unwrap();
        for (service, sub, iat, revoked) in [
            ("echo", "ann", NOW - 10, true),
            ("echo", "ann", NOW - 100, true),
            ("echo", "ann", NOW - 9, false),
            ("chat", "ann", NOW - 10, false),
            ("echo", "bob", NOW - 10, true),
            ("chat", "bob", NOW - 10, true),
            ("chat", "bob", NOW - 9, false),
            ("echo", "Ann", NOW - 10, false),
        ] {
            let token = token(&key, service, sub, iat);
            let expected = revoked.then_some(Rejected::Revoked);
            let what = format!("{service} {sub} {iat}");
            assert_eq!(outcome(&standing, &token, service), expected, "{what}");
        }
    }

    #[test]
    fn an_owners_key_signs_for_its_service_beside_the_clusters_and_for_no_other() {
        let [cluster, owner] = [SigningKey::generate(), SigningKey::generate()];
        let mut roster = roster(&[&cluster], Vec::new());
        roster.services = ["echo", "chat"]
            .map(|name| Service {
                name: service(name),
                hosts: Vec::new(),
                access: Access::Token,
                allowed_origins: Vec::new(),
                max_sessions: None,
                refuse_with: RefuseWith::Status,
                keys: Vec::new(),
            })
            .into();
        roster.services[0].keys = vec![owner.public_paserk()];
        let standing = Standing::of(&roster).unwrap();
        for (key, of, outcome_) in [
            (&cluster, "echo", None),
            (&owner, "echo", None),
            (&cluster, "chat", None),
            (&owner, "chat", Some(Rejected::UnknownKey)),
        ] {
            let token = token(key, of, "ann", NOW);
            assert_eq!(outcome(&standing, &token, of), outcome_, "{of}");
        }
        // A token that the owner made out to another service does not become one for it.
        let elsewhere = token(&owner, "chat", "ann", NOW);
        assert_eq!(
            outcome(&standing, &elsewhere, "echo"),
            Some(Rejected::Signature)
        );

        let named = "c1".parse().unwrap();
        let by_owner = token(&owner, "echo", "ann", NOW);
        let (_, grounds) = standing
            .verify(&by_owner, &named, &service("echo"), NOW)
            .unwrap();
        roster.services[0].keys.clear();
        let after = Standing::of(&roster).unwrap();
        assert!(
            !after.holds(&service("echo"), &grounds),
            "the owner's key went"
        );
    }

    #[test]
    fn what_held_stops_to_hold_with_its_key_or_its_subject_and_with_nothing_else() {
        let [key, other] = [SigningKey::generate(), SigningKey::generate()];
        let echo = service("echo");
        let before = Standing::of(&roster(&[&key], Vec::new())).unwrap();
        let cluster = "c1".parse().unwrap();
        let token = token(&key, "echo", "ann", NOW);
        let (_, grounds) = before.verify(&token, &cluster, &echo, NOW).unwrap();
        assert!(before.holds(&echo, &grounds));

        let revocation = |sub: &str, through| Revocation {
            service: None,
            subject: digest(sub),
            through,
        };
        for (keys, revoked, holds) in [
            (vec![&key, &other], vec![], true),
            (vec![&other], vec![], false),
            (vec![&key], vec![revocation("ann", NOW)], false),
            (vec![&key], vec![revocation("ann", NOW - 1)], true),
            (vec![&key], vec![revocation("bob", NOW)], true),
        ] {
            let after = Standing::of(&roster(&keys, revoked)).unwrap();
            assert_eq!(after.holds(&echo, &grounds), holds);
        }
    }
}
