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

pub mod barrier;
mod counter;
mod keyring;
#[cfg(test)]
#[path = "../tests/support/postgres.rs"]
mod postgres_server;
mod rotation;
pub mod seal;
pub mod store;

use std::sync::Arc;

use wavry_credentials::{audit, key::aead};

pub use counter::Rollback;
pub use keyring::Unopened;

use barrier::{Barrier, Error, Guard};
use store::{Location, Store};

/// The audit log's name in its seals.
pub const LOG: &str = "keyvault";

/// What the KeyVault is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it keeps what it keeps.
    pub store: Location,
    /// How a rollback of it is noticed.
    pub guard: Guard,
}

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
}

impl KeyVault {
    /// Opens the store, sealed. `audit` seals its audit log.
    pub async fn open(config: &Config, audit: Arc<audit::Key>) -> Result<Self, store::Error> {
        let store = Store::open(&config.store).await?;
        store.check_audit(&audit.verifier()).await?;
        Ok(Self {
            barrier: Barrier::new(store.clone(), audit, config.guard.clone()),
            store,
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

    /// How it is unsealed; `None` before it is initialised.
    pub async fn seal_config(&self) -> Result<Option<seal::Config>, Error> {
        let config = self.store.seal_config().await?;
        let read = |config: String| serde_json::from_str(&config);
        let config = config.map(read).transpose();
        Ok(config.map_err(|_| store::Error::Row("seal"))?)
    }

    /// Opens the keyring.
    pub async fn unseal(&self, master_key: aead::Key) -> Result<(), Error> {
        self.barrier.unseal(master_key).await
    }

    /// Forgets the keys.
    pub fn seal(&self) {
        self.barrier.seal();
    }

    /// Closes the store.
    pub async fn close(&self) {
        self.barrier.flush().await;
        self.seal();
        self.store.close().await;
    }
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
        let config = Config {
            store: Location::Sqlite(directory.join("keyvault.db")),
            guard: Guard {
                counter: Some(directory.join("keyvault.counter")),
                accept_rollback: false,
            },
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
        let empty = Config {
            store: Location::Sqlite(directory.path().join("empty.db")),
            guard: Guard::default(),
        };
        let vault = KeyVault::open(&empty, audit_key()).await.unwrap();
        assert_eq!(vault.status().await.unwrap(), Status::Uninitialised);
    }
}
