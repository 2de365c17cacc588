//! Policies in the barrier, and the ACLs that are made of them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::{Acl, DEFAULT, DEFAULT_TEXT, Policy, ROOT};
use crate::keyvault::{
    barrier::{Barrier, Change, Error, Revision},
    token::Scope,
};

/// Written with each policy: ACLs that were made of an older version are not used.
const GENERATION: &str = "policy-generation";
/// ACLs that are kept. Units with the same policies share one only if they are one unit, so this is
/// for the units of a large herd; an ACL of ten rules takes 2 KB.
const MAX_ACLS: usize = 4096;
/// Names in one answer.
const MAX_NAMES: usize = 10_000;

/// Reads policies, and plans what becomes of them.
#[derive(Clone)]
pub struct Policies {
    barrier: Barrier,
    acls: Arc<Mutex<Acls>>,
}

#[derive(Default)]
struct Acls {
    generation: Option<Revision>,
    made: HashMap<Scope, Arc<Acl>>,
}

/// What is kept of a policy.
#[derive(Serialize, Deserialize)]
struct Record {
    text: String,
}

/// It cannot be changed, or not be taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fixed {
    /// The root policy.
    #[error("cannot update \"root\" policy")]
    Root,
    /// The default policy.
    #[error("cannot delete \"default\" policy")]
    Default,
}

impl Policies {
    /// Those behind a barrier.
    pub fn new(barrier: Barrier) -> Self {
        Self {
            barrier,
            acls: Arc::default(),
        }
    }

    /// Forgets what was read, as of a KeyVault that is sealed.
    pub fn forget(&self) {
        *self.acls.lock().unwrap_or_else(PoisonError::into_inner) = Acls::default();
    }

    /// The text of a policy, by its canonical name.
    pub async fn text(&self, name: &str) -> Result<Option<String>, Error> {
        if name == ROOT {
            return Ok(Some(String::new()));
        }
        let record = self.barrier.read_record::<Record>(&path(name)).await?;
        let built_in = || (name == DEFAULT).then(|| DEFAULT_TEXT.to_owned());
        Ok(record.map(|(_, record)| record.text).or_else(built_in))
    }

    /// Names of all policies.
    pub async fn names(&self) -> Result<Vec<String>, Error> {
        let mut names = self.barrier.list("policy/", None, MAX_NAMES).await?;
        names.extend([DEFAULT.to_owned(), ROOT.to_owned()]);
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Plans that a policy has this text, which was parsed before.
    pub fn put(&self, change: &mut Change, name: &str, text: String) -> Result<(), Fixed> {
        if name == ROOT {
            return Err(Fixed::Root);
        }
        change.put_record(path(name), &Record { text });
        change.put_record(GENERATION, &());
        Ok(())
    }

    /// Plans that a policy is no more.
    pub fn delete(&self, change: &mut Change, name: &str) -> Result<(), Fixed> {
        match name {
            ROOT => return Err(Fixed::Root),
            DEFAULT => return Err(Fixed::Default),
            _ => (),
        }
        change.delete(path(name));
        change.put_record(GENERATION, &());
        Ok(())
    }

    /// What a scope's policies together allow, as long as none changes: a change that is planned by it
    /// expects that. A policy that is not there allows nothing.
    pub async fn acl(&self, change: &mut Change, scope: &Scope) -> Result<Arc<Acl>, Error> {
        if scope.policies.iter().any(|name| name == ROOT) {
            return Ok(Arc::new(Acl::root()));
        }
        // Read first: what is read after it is at least as new.
        let generation = self.barrier.read_record::<()>(GENERATION).await?;
        let generation = generation.map(|(revision, ())| revision);
        change.expect(GENERATION, generation);
        {
            let mut acls = self.acls.lock().unwrap_or_else(PoisonError::into_inner);
            if acls.generation != generation || acls.made.len() >= MAX_ACLS {
                acls.made.clear();
                acls.generation = generation;
            }
            if let Some(acl) = acls.made.get(scope) {
                return Ok(acl.clone());
            }
        }
        let mut policies = Vec::with_capacity(scope.policies.len());
        for name in &scope.policies {
            if let Some(text) = self.text(name).await? {
                let policy =
                    Policy::parse(&text).map_err(|_| Error::Record { path: path(name) })?;
                policies.push(Arc::new(policy));
            }
        }
        let acl = Arc::new(Acl::new(&policies, &scope.identity));
        let mut acls = self.acls.lock().unwrap_or_else(PoisonError::into_inner);
        if acls.generation == generation {
            acls.made.insert(scope.clone(), acl.clone());
        }
        Ok(acl)
    }
}

fn path(name: &str) -> String {
    format!("policy/{name}")
}
