//! Tokens in the barrier: found, made, made to last longer, ended.

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwapOption;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use wavry_credentials::{
    bearer::{Fingerprint, Fingerprints, Token},
    random,
};

use super::{Lifetime, Limits, MAX_DEPTH, MAX_LEN, NotRenewable, PREFIX, Record, Scope, Wishes};
use crate::keyvault::{
    barrier::{Barrier, Change, CommitError, Error, Revision},
    call::Auth,
    clock::Clock,
};

/// The key of fingerprints.
const KEY: &str = "token-key";

/// Reads tokens, and plans what becomes of them.
#[derive(Clone)]
pub struct Tokens {
    barrier: Barrier,
    clock: Arc<Clock>,
    limits: Limits,
    fingerprints: Arc<ArcSwapOption<Fingerprints>>,
}

/// A token that is good.
#[derive(Debug, Clone)]
pub struct Found {
    /// What it is known by.
    pub fingerprint: Fingerprint,
    /// Which version of its record this is.
    pub revision: Revision,
    /// What is kept of it.
    pub record: Record,
    /// Those that it ends with, and which versions of them are good.
    pub(super) ancestors: Vec<(Fingerprint, Revision)>,
}

impl Found {
    /// Plans nothing, but that it is still good: a call that its revocation overtakes is a conflict.
    /// Those of one token do not disturb each other by it.
    pub fn expect(&self, change: &mut Change) {
        change.expect(path(self.fingerprint), Some(self.revision));
        for (ancestor, revision) in &self.ancestors {
            change.expect(path(*ancestor), Some(*revision));
        }
    }
}

/// A token to be made.
pub struct New<'a> {
    /// What it may do, and for whom.
    pub scope: Scope,
    /// How long it should last.
    pub wishes: Wishes,
    /// The token that makes it, if it ends with that.
    pub parent: Option<&'a Found>,
    /// The path where it is made.
    pub path: String,
    /// Facts about it.
    pub meta: BTreeMap<String, String>,
    /// What it is called.
    pub display_name: String,
    /// How often it can be used; 0: without bound.
    pub num_uses: u64,
    /// Where it may be used from.
    pub bound_cidrs: Vec<IpNet>,
    /// The token role by which it is made.
    pub role: Option<String>,
    /// Id of the mount where its holder logged in.
    pub mount: Option<String>,
}

/// A token that is made when the change is committed.
pub struct Issued {
    /// It.
    pub token: Token,
    /// What is kept of it.
    pub record: Record,
}

/// An accessor, and whose it is.
#[derive(Serialize, Deserialize)]
pub(super) struct Accessor {
    pub(super) token: Fingerprint,
    pub(super) accessor: String,
}

impl Tokens {
    /// Those behind a barrier.
    pub fn new(barrier: Barrier, clock: Arc<Clock>, limits: Limits) -> Self {
        Self {
            barrier,
            clock,
            limits,
            fingerprints: Arc::default(),
        }
    }

    /// The time by which they expire.
    pub fn now(&self) -> u64 {
        self.clock.now()
    }

    /// How long they last where nobody says otherwise.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    pub(in crate::keyvault) fn barrier(&self) -> &Barrier {
        &self.barrier
    }

    pub(in crate::keyvault) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Forgets the key of fingerprints, as of a KeyVault that is sealed.
    pub fn forget(&self) {
        self.fingerprints.store(None);
    }

    /// The key of fingerprints, which is made when the first one is wanted.
    pub async fn fingerprints(&self) -> Result<Arc<Fingerprints>, Error> {
        if let Some(held) = self.fingerprints.load_full() {
            return Ok(held);
        }
        let key = loop {
            if let Some(entry) = self.barrier.read(KEY).await? {
                break entry.value;
            }
            let mut change = Change::default();
            change.expect(KEY, None);
            change.put(KEY, Fingerprints::generate());
            match self.barrier.commit(change).await {
                // Whoever came first: what is kept is the one.
                Ok(()) | Err(CommitError::Conflict) => (),
                Err(CommitError::Failed(error)) => return Err(error),
            }
        };
        let made = Arc::new(Fingerprints::new(&key));
        self.fingerprints.store(Some(made.clone()));
        Ok(made)
    }

    /// The token, if it is good: known, not expired, not used up, and all of those that made it, too.
    pub async fn find(&self, token: &Token) -> Result<Option<Found>, Error> {
        if token.is_longer_than(MAX_LEN) {
            return Ok(None);
        }
        let fingerprint = self.fingerprints().await?.of("token", token);
        self.find_by(fingerprint).await
    }

    /// The token with this accessor, if it is good.
    pub async fn find_by_accessor(&self, accessor: &str) -> Result<Option<Found>, Error> {
        let path = self.accessor_path(accessor).await?;
        let Some((_, held)) = self.barrier.read_record::<Accessor>(&path).await? else {
            return Ok(None);
        };
        self.find_by(held.token).await
    }

    async fn find_by(&self, fingerprint: Fingerprint) -> Result<Option<Found>, Error> {
        let Some((revision, record)) = self
            .barrier
            .read_record::<Record>(&path(fingerprint))
            .await?
        else {
            return Ok(None);
        };
        if record.released || !record.lifetime.is_good(self.now()) {
            return Ok(None);
        }
        let ancestors = self.good_ancestors(&record).await?;
        Ok(ancestors.map(|ancestors| Found {
            fingerprint,
            revision,
            record,
            ancestors,
        }))
    }

    /// The tokens with which this one ends; `None` if one of them has ended.
    pub(super) async fn good_ancestors(
        &self,
        record: &Record,
    ) -> Result<Option<Vec<(Fingerprint, Revision)>>, Error> {
        let mut parent = record.parent;
        let mut good = Vec::new();
        while let Some(fingerprint) = parent {
            let held = self
                .barrier
                .read_record::<Record>(&path(fingerprint))
                .await?;
            let Some((revision, ancestor)) = held else {
                return Ok(None);
            };
            good.push((fingerprint, revision));
            if ancestor.released {
                break;
            }
            if good.len() > MAX_DEPTH || !ancestor.lifetime.is_good(self.now()) {
                return Ok(None);
            }
            parent = ancestor.parent;
        }
        Ok(Some(good))
    }

    /// Plans a new token.
    pub async fn issue(&self, change: &mut Change, new: New<'_>) -> Result<Issued, Error> {
        let lifetime = Lifetime::new(new.wishes, self.limits, self.now());
        self.plan(change, Token::random(PREFIX), new, lifetime)
            .await
    }

    /// Plans a token with the root policy and without end: the first one of a KeyVault, or one that
    /// the holders of its shares make.
    pub async fn issue_root(&self, change: &mut Change, path: &str) -> Result<Issued, Error> {
        let new = New {
            scope: Scope {
                policies: vec![crate::keyvault::policy::ROOT.to_owned()],
                ..Scope::default()
            },
            wishes: Wishes::default(),
            parent: None,
            path: path.to_owned(),
            meta: BTreeMap::new(),
            display_name: "root".to_owned(),
            num_uses: 0,
            bound_cidrs: Vec::new(),
            role: None,
            mount: None,
        };
        let lifetime = Lifetime::endless(self.now());
        // Short: it may be typed, and is hidden byte by byte where shares made it.
        let token = Token::short(PREFIX);
        self.plan(change, token, new, lifetime).await
    }

    async fn plan(
        &self,
        change: &mut Change,
        token: Token,
        new: New<'_>,
        lifetime: Lifetime,
    ) -> Result<Issued, Error> {
        let fingerprint = self.fingerprints().await?.of("token", &token);
        let record = Record {
            accessor: accessor(),
            scope: new.scope,
            lifetime,
            parent: new.parent.map(|parent| parent.fingerprint),
            depth: new.parent.map_or(0, |parent| parent.record.depth + 1),
            path: new.path,
            meta: new.meta,
            display_name: new.display_name,
            uses_left: new.num_uses,
            num_uses: new.num_uses,
            bound_cidrs: new.bound_cidrs,
            role: new.role,
            mount: new.mount,
            released: false,
        };
        change.put_record(path(fingerprint), &record);
        let accessor = Accessor {
            token: fingerprint,
            accessor: record.accessor.clone(),
        };
        change.put_record(self.accessor_path(&accessor.accessor).await?, &accessor);
        Ok(Issued { token, record })
    }

    /// Plans that a use of the token is counted; whether it was the last one. It is a conflict when
    /// another use is counted at the same time, so that each use counts once.
    pub async fn count_use(&self, change: &mut Change, found: &Found) -> Result<bool, Error> {
        match found.record.uses_left {
            0 => return Ok(false),
            1 => self.end(change, found).await?,
            left => {
                let mut record = found.record.clone();
                record.uses_left = left - 1;
                change.expect(path(found.fingerprint), Some(found.revision));
                change.put_record(path(found.fingerprint), &record);
            }
        }
        Ok(found.record.uses_left == 1)
    }

    /// Plans that it lasts longer. Gives the record as it will be.
    pub fn renew(
        &self,
        change: &mut Change,
        found: &Found,
        wanted: Option<u64>,
    ) -> Result<Record, NotRenewable> {
        let mut record = found.record.clone();
        record.lifetime.renew(wanted, self.now())?;
        change.expect(path(found.fingerprint), Some(found.revision));
        change.put_record(path(found.fingerprint), &record);
        Ok(record)
    }

    /// Plans its end, and with it the end of those that it made.
    pub async fn end(&self, change: &mut Change, found: &Found) -> Result<(), Error> {
        change.expect(path(found.fingerprint), Some(found.revision));
        change.delete(path(found.fingerprint));
        change.delete(self.accessor_path(&found.record.accessor).await?);
        Ok(())
    }

    /// Plans its end alone: those that it made live on.
    pub async fn release(&self, change: &mut Change, found: &Found) -> Result<(), Error> {
        let mut record = found.record.clone();
        record.released = true;
        change.expect(path(found.fingerprint), Some(found.revision));
        change.put_record(path(found.fingerprint), &record);
        change.delete(self.accessor_path(&found.record.accessor).await?);
        Ok(())
    }

    /// Accessors of tokens, a thousand at most; behind the entry `after`.
    pub async fn accessors(&self) -> Result<Vec<String>, Error> {
        const MOST: usize = 1000;
        let mut accessors = Vec::new();
        for name in self.barrier.list("token-accessor/", None, MOST).await? {
            let path = format!("token-accessor/{name}");
            if let Some((_, held)) = self.barrier.read_record::<Accessor>(&path).await? {
                accessors.push(held.accessor);
            }
        }
        Ok(accessors)
    }

    pub(super) async fn accessor_path(&self, accessor: &str) -> Result<String, Error> {
        let fingerprint = self.fingerprints().await?.of_name("accessor", accessor);
        Ok(format!("token-accessor/{fingerprint}"))
    }
}

impl Issued {
    /// As its holder is told of it.
    pub fn into_auth(self) -> Auth {
        auth(self.token, self.record, 0)
    }
}

/// A token as its holder is told of it at a time.
pub(super) fn auth(token: Token, record: Record, now: u64) -> Auth {
    let left = match now {
        0 => record.lifetime.ttl,
        now => record.lifetime.left(now),
    };
    Auth {
        client_token: token,
        accessor: record.accessor,
        policies: record.scope.policies,
        metadata: record.meta,
        lease_duration: std::time::Duration::from_secs(left),
        renewable: record.lifetime.renewable,
        orphan: record.parent.is_none(),
        num_uses: record.uses_left,
    }
}

pub(super) fn path(token: Fingerprint) -> String {
    format!("token/{token}")
}

/// 144 random bits: who has an accessor can end its token.
fn accessor() -> String {
    URL_SAFE_NO_PAD.encode(random::bytes::<18>())
}
