//! The keys at work: which one signs, and which are accepted.

use std::{collections::BTreeMap, sync::Arc};

use wavry_credentials::{signer::Signer, token::KeySet};
use wavry_proto::control::PublishedKey;

use crate::{
    keys::{Life, State},
    metrics as names,
    signing::Custody,
    store::{
        self,
        keys::{Kept, signing_of},
    },
};

/// The keys as they are now.
pub(crate) struct Ring {
    /// Signs tokens and rosters.
    pub(crate) signing: Arc<dyn Signer>,
    /// Whose tokens the master accepts.
    pub(crate) accepted: KeySet,
    /// Those that sign session tokens, for whoever checks them.
    pub(crate) published: Vec<PublishedKey>,
    /// Those that sign rosters from now on, as PASERK `k4.public`.
    pub(crate) roster: Vec<String>,
    /// Every key that ever signed, oldest first.
    pub(crate) kept: Vec<Kept>,
}

impl Ring {
    /// Of every key that ever signed, oldest first; `custody` has them.
    pub(crate) fn of(keys: Vec<Kept>, custody: &Custody) -> Result<Self, store::Error> {
        let bad = || store::Error::Row("signing_key");
        let counts: Vec<_> = keys.iter().filter(|key| counts(key)).collect();
        let texts: Vec<_> = counts.iter().map(|key| key.paserk.as_str()).collect();
        let published = counts.iter().map(|key| PublishedKey {
            kid: key.life.kid.clone(),
            paserk: key.paserk.clone(),
        });
        let sign_rosters = counts
            .iter()
            .filter(|key| key.life.state != State::Accepted);
        let ring = Self {
            signing: custody.signer(signing_of(&keys).ok_or_else(bad)?)?,
            accepted: KeySet::from_paserk(&texts).map_err(|_| bad())?,
            published: published.collect(),
            roster: sign_rosters.map(|key| key.paserk.clone()).collect(),
            kept: keys,
        };
        let next = ring
            .kept
            .iter()
            .filter(|key| key.life.state == State::Published);
        for key in next {
            if let Err(error) = custody.signer(key) {
                let (error, kid) = (&error as &dyn std::error::Error, &key.life.kid);
                tracing::error!(
                    error,
                    kid,
                    "this master will not be able to sign with the next key"
                );
            }
        }
        ring.report();
        Ok(ring)
    }

    /// Their lives.
    pub(crate) fn lives(&self) -> Vec<Life> {
        self.kept.iter().map(|key| key.life.clone()).collect()
    }

    fn report(&self) {
        let mut counts: BTreeMap<_, u32> = State::ALL.map(|state| (state, 0)).into();
        for life in self.lives() {
            *counts.entry(life.state).or_default() += 1;
            if life.state == State::Signing {
                metrics::gauge!(names::KEY_SIGNS_SINCE).set(life.since as f64);
            }
        }
        for (state, count) in counts {
            metrics::gauge!(names::KEYS, "state" => state.as_str()).set(count);
        }
    }
}

/// Whether what the key signed holds.
fn counts(key: &Kept) -> bool {
    matches!(
        key.life.state,
        State::Published | State::Signing | State::Accepted
    )
}
