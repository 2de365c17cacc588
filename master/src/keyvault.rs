//! The KeyVault: keeps secrets, and hands them to whom its policies allow.
//!
//! Everything it keeps is an entry behind the [`barrier`]: encrypted under a key of its own, which is
//! wrapped under the current term of the [`keyring`], whose keys are wrapped under the master key. The
//! master key is never stored; until it is given, the KeyVault is sealed. What a request changes is
//! planned as a [`barrier::Change`] and committed together with its audit lines, or not at all; nothing
//! is answered before.
//!
//! * [`barrier`]: entries, read and committed.
//! * [`keyring`]: the keys that wrap entries' keys; [`rotation`]: how others take their places.
//! * [`counter`]: how far the store has come, kept apart from it.
//! * [`seal`]: where the master key comes from.
//! * [`store`]: what is kept, in SQLite or PostgreSQL.
//! * [`call`]: what is asked and said; [`api`]: how that looks in HTTP.
//! * [`authorize`]: the one way from a call to its answer, by [`token`] and [`policy`]; [`login`]: how
//!   units get tokens.
//! * [`dispatch`]: what lies where; [`mount`], [`engine`], [`wrapping`] and [`sys`] answer.
//! * [`standalone`]: a KeyVault that runs alone.

pub mod api;
pub mod authorize;
pub mod barrier;
pub mod call;
mod ceremony;
pub mod clock;
pub mod config;
mod counter;
mod dispatch;
mod engine;
mod keyring;
pub mod login;
mod member;
pub mod mount;
mod namespace;
mod parameter;
pub mod path;
pub mod policy;
mod rotation;
pub mod seal;
mod standalone;
pub mod store;
mod sys;
pub mod token;
pub mod ttl;
#[cfg(test)]
mod world;
mod wrapping;

use std::sync::{Arc, Mutex, PoisonError};

use tokio::{
    sync::{Notify, Semaphore},
    task::JoinSet,
};
use wavry_credentials::{audit, bearer::Token, key::aead};

use crate::audit_sink;
#[cfg(test)]
use crate::postgres_server;

pub use config::Vault as Config;
pub use counter::Rollback;
pub use keyring::Unopened;
pub use standalone::{Standalone, StartError};

use authorize::Authorizer;
use barrier::{Barrier, Change, CommitError, Error};
use ceremony::Ceremonies;
use config::Seal;
use dispatch::Mounts;
use store::Store;

/// The audit log's name in its seals.
pub const LOG: &str = "keyvault";

/// In each how many rounds of upkeep wrapped answers and what logins keep are looked at.
const RARE_ROUNDS: u32 = 10;

/// Whether the KeyVault can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It has no keyring yet.
    Uninitialised,
    /// Its keyring is wrapped under a master key that was not given yet.
    Sealed,
    /// Entries can be read and written.
    Unsealed,
}

/// A KeyVault that is open.
#[derive(Clone)]
pub struct KeyVault {
    store: Store,
    barrier: Barrier,
    authorizer: Arc<Authorizer>,
    mounts: Arc<Mounts>,
    transit: Arc<engine::Budgets>,
    ceremonies: Arc<Ceremonies>,
    seal_by: Seal,
    /// A master key that came from a secret before there was a keyring.
    held_key: Arc<Mutex<Option<aead::Key>>>,
    /// Something is to be swept away.
    upkeep: Arc<Notify>,
    audit_sinks: Arc<[audit_sink::Config]>,
    /// Held while a long body is read and answered.
    long_bodies: Arc<Semaphore>,
}

impl KeyVault {
    /// Opens the store, sealed. `audit` seals its audit log.
    pub async fn open(config: &Config, audit: Arc<audit::Key>) -> Result<Self, store::Error> {
        let store = Store::open(&config.store).await?;
        store.check_audit(&audit.verifier()).await?;
        let barrier = Barrier::new(store.clone(), audit, config.guard.clone());
        let authorizer = Authorizer::new(barrier.clone(), config.tokens, config.logins);
        Ok(Self {
            store,
            barrier,
            authorizer: Arc::new(authorizer),
            mounts: Arc::default(),
            transit: Arc::default(),
            ceremonies: Arc::default(),
            seal_by: config.seal,
            held_key: Arc::default(),
            upkeep: Arc::default(),
            audit_sinks: config.audit_sinks.clone().into(),
            long_bodies: Arc::new(Semaphore::new(api::LONG_BODIES)),
        })
    }

    /// Its entries.
    pub fn barrier(&self) -> &Barrier {
        &self.barrier
    }

    /// Whether it can be used.
    pub async fn status(&self) -> Result<Status, Error> {
        if self.barrier.is_unsealed() {
            return Ok(Status::Unsealed);
        }
        Ok(match self.store.keyring().await? {
            Some(_) => Status::Sealed,
            None => Status::Uninitialised,
        })
    }

    /// Makes a keyring under a master key. Gives whether there was none before.
    pub async fn initialise(
        &self,
        master_key: &aead::Key,
        seal: seal::Config,
    ) -> Result<bool, Error> {
        self.barrier.initialise(master_key, seal).await
    }

    /// Makes a keyring, unseals it, and fills it with what a fresh KeyVault has. Gives the root token,
    /// or nothing if there was a keyring.
    pub async fn bootstrap(
        &self,
        master_key: aead::Key,
        seal: seal::Config,
    ) -> Result<Option<Token>, Error> {
        if !self.initialise(&master_key, seal).await? {
            return Ok(None);
        }
        self.unseal(master_key).await?;
        let mut change = Change::default();
        mount::initialize(&mut change);
        let tokens = self.authorizer.tokens();
        let root = tokens.issue_root(&mut change, "sys/init").await?;
        match self.barrier.commit(change).await {
            Ok(()) => Ok(Some(root.token)),
            // Nobody else has the key yet.
            Err(CommitError::Conflict) => Ok(None),
            Err(CommitError::Failed(error)) => Err(error),
        }
    }

    /// How it is unsealed; `None` before it is initialised.
    pub async fn seal_config(&self) -> Result<Option<seal::Config>, Error> {
        let config = self.store.seal_config().await?;
        let read = |config: String| serde_json::from_str(&config);
        let config = config.map(read).transpose();
        Ok(config.map_err(|_| store::Error::Row("seal"))?)
    }

    /// Opens the keyring.
    pub async fn unseal(&self, master_key: aead::Key) -> Result<(), Error> {
        self.barrier.unseal(master_key).await?;
        metrics::gauge!(crate::metrics::KEYVAULT_UNSEALED).set(1.0);
        Ok(())
    }

    /// Forgets the keys, and what was read with them.
    pub fn seal(&self) {
        self.barrier.seal();
        self.authorizer.forget();
        self.mounts.forget();
        metrics::gauge!(crate::metrics::KEYVAULT_UNSEALED).set(0.0);
    }

    /// Closes the store.
    pub async fn close(&self) {
        self.barrier.flush().await;
        self.seal();
        self.store.close().await;
    }

    /// Copies the audit log to its sinks, and sweeps away what expired and what was unmounted, now and
    /// then. It never ends.
    pub async fn keep_up(self) {
        // They end with this future.
        let mut sinks = JoinSet::new();
        for sink in self.audit_sinks.iter() {
            sinks.spawn(self.barrier.copy_audit_to(sink.clone()));
        }
        let mut sweep = token::Sweep::default();
        let mut rounds = 0_u32;
        loop {
            let _ = tokio::time::timeout(token::PAUSE, self.upkeep.notified()).await;
            if !self.barrier.is_unsealed() {
                continue;
            }
            let tokens = self.authorizer.tokens();
            rounds = rounds.wrapping_add(1);
            let swept = async {
                mount::sweep(&self.barrier).await?;
                if rounds.is_multiple_of(RARE_ROUNDS) {
                    wrapping::sweep(tokens).await?;
                    login::sweep(&self.authorizer).await?;
                }
                tokens.sweep(&mut sweep).await?;
                Ok::<_, call::Refusal>(())
            };
            if let Err(refusal) = swept.await {
                let reason = refusal.word();
                tracing::warn!(
                    reason,
                    "what expired was not swept away; it will be tried again"
                );
            }
        }
    }

    /// Takes a master key that came from a secret: unseals with it, or holds it until there is a
    /// keyring to be made.
    async fn use_key(&self, key: aead::Key) -> Result<(), Error> {
        match self.status().await? {
            Status::Uninitialised => {
                let mut held = self.held_key.lock().unwrap_or_else(PoisonError::into_inner);
                *held = Some(key);
                Ok(())
            }
            _ => self.unseal(key).await,
        }
    }

    fn take_held_key(&self) -> Option<aead::Key> {
        let mut held = self.held_key.lock().unwrap_or_else(PoisonError::into_inner);
        held.take()
    }

    /// How many shares there are, and how many make the master key.
    async fn shares(&self) -> Result<(u8, u8), Error> {
        Ok(match self.seal_config().await? {
            Some(seal::Config::Shares { count, threshold }) => (count, threshold),
            _ => (0, 0),
        })
    }
}

/// What names something, and cannot be guessed (RFC 9562, version 4).
fn random_id() -> String {
    let id = uuid::Builder::from_random_bytes(wavry_credentials::random::bytes());
    id.into_uuid().to_string()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::path::Path;
    use wavry_credentials::token::SigningKey;

    pub(crate) fn audit_key() -> Arc<audit::Key> {
        let key = SigningKey::generate().to_paserk();
        Arc::new(audit::Key::from_paserk(&key, "c1".parse().unwrap()).unwrap())
    }

    /// A new KeyVault in a directory, unsealed.
    pub(crate) async fn unsealed(directory: &Path) -> KeyVault {
        let store = store::Location::Sqlite(directory.join("keyvault.db"));
        let config = Config {
            guard: barrier::Guard {
                counter: Some(directory.join("keyvault.counter")),
                accept_rollback: false,
            },
            ..Config::at(store)
        };
        let vault = KeyVault::open(&config, audit_key()).await.unwrap();
        let key = aead::Key::generate();
        assert!(vault.initialise(&key, seal::Config::Key).await.unwrap());
        vault.unseal(key).await.unwrap();
        vault
    }

    #[tokio::test]
    async fn a_vault_goes_from_uninitialised_to_sealed_to_unsealed() {
        let directory = tempfile::tempdir().unwrap();
        let vault = unsealed(directory.path()).await;
        assert_eq!(vault.status().await.unwrap(), Status::Unsealed);
        vault.seal();
        assert_eq!(vault.status().await.unwrap(), Status::Sealed);
        vault.close().await;
        let empty = Config::at(store::Location::Sqlite(directory.path().join("empty.db")));
        let vault = KeyVault::open(&empty, audit_key()).await.unwrap();
        assert_eq!(vault.status().await.unwrap(), Status::Uninitialised);
    }
}
