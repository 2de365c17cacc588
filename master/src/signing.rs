//! Where keys that sign are kept: in the master's database, sealed under the secret `master_key`, or in a vault,
//! which signs with them and never gives them away.
//!
//! What needs the vault is done here, before a transaction is begun or a lock is taken: a new version of its key,
//! and what the key that signs says of the next one. The store writes what came of it, if it still holds then.

use std::{path::Path, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use wavry_credentials::{
    signer::{
        self, SignError, Signer,
        transit::{self, Transit, Version},
    },
    source::{self, keyvault},
    token::{Scope, SigningKey, id_of, paserk_of, public_of},
};
use wavry_proto::{
    config::{Invalid, at_least_one, required},
    id::{ClusterName, PublicKey},
    token::Succession,
};

use crate::{
    audit_reader::Reader,
    database::Location,
    ring::Ring,
    store::{
        self,
        audit::ReadError,
        keys::{Kept, VaultKey, signing_of},
    },
};

/// Table `master.signing`, as it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawSigning {
    /// Where keys are made from now on. Those that there are stay where they are, and are used until their time
    /// is over.
    pub new_keys: Place,
    /// `https://HOST:PORT` of the vault.
    pub url: Option<String>,
    /// PEM file of the authorities that vouch for the vault; those of the system if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<std::path::PathBuf>,
    /// Where the vault's transit engine is mounted.
    pub mount: String,
    /// Name of an Ed25519 key there.
    pub key: Option<String>,
    /// From asking for a signature to having it, with the wait for others.
    #[serde(with = "wavry_proto::duration")]
    pub deadline: Duration,
    /// Most requests to the vault at once.
    pub parallel: usize,
}

/// Where a key is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// In the master's database, sealed under the secret `master_key`.
    Database,
    /// In the vault.
    #[default]
    Vault,
}

impl Default for RawSigning {
    fn default() -> Self {
        Self {
            new_keys: Place::default(),
            url: None,
            ca_file: None,
            mount: "transit".to_owned(),
            key: None,
            deadline: Duration::from_secs(5),
            parallel: 8,
        }
    }
}

/// A vault whose key signs, as it was checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where keys are made from now on.
    pub new_keys: Place,
    /// The vault and the key there.
    pub transit: transit::Config,
}

/// A request that needs a signature ends within the time that any request has.
const MAX_DEADLINE: Duration = Duration::from_secs(10);

impl TryFrom<RawSigning> for Config {
    type Error = Invalid;

    fn try_from(raw: RawSigning) -> Result<Self, Invalid> {
        if raw.deadline.is_zero() || raw.deadline > MAX_DEADLINE {
            return Err(Invalid::new("deadline", "must be at most 10s, and not 0"));
        }
        at_least_one("parallel", raw.parallel as u64)?;
        let transit = transit::Config {
            keyvault: keyvault::Config {
                url: required("url", raw.url)?,
                ca_file: raw.ca_file,
                ..keyvault::Config::default()
            },
            mount: raw.mount,
            key: required("key", raw.key)?,
            deadline: raw.deadline,
            parallel: raw.parallel,
        };
        Transit::new(transit.clone()).map_err(|failure| match failure {
            keyvault::Failure::Path => Invalid::new("key", "mount and key must be names"),
            _ => Invalid::new("url", "must be https://HOST:PORT"),
        })?;
        Ok(Self {
            new_keys: raw.new_keys,
            transit,
        })
    }
}

/// Whoever has the keys that sign.
pub(crate) struct Custody {
    /// What the secret `master_key` holds: opens those in the database. There may be none where the vault has all.
    master: Option<SigningKey>,
    vault: Option<Arc<Transit>>,
    new_keys: Place,
}

/// A key that is to sign, and is not on record yet.
pub(crate) struct NewKey {
    pub(crate) public: PublicKey,
    /// The secret half, sealed.
    pub(crate) sealed: Option<Vec<u8>>,
    pub(crate) vault: Option<VaultKey>,
}

/// The key that follows the one that signs, with what that one signed of it.
pub(crate) struct Successor {
    pub(crate) key: NewKey,
    /// PASERK id of the key that signs, which must still do so.
    pub(crate) predecessor: String,
    pub(crate) statement: String,
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The secret `master_key` is missing or must not be used.
    #[error(transparent)]
    Secret(#[from] source::Error),
    /// The vault cannot be told of.
    #[error("master.signing")]
    Vault(#[from] keyvault::Failure),
    /// The vault did not do its part.
    #[error("the key in the vault (master.signing)")]
    Sign(#[from] SignError),
    /// The database.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The database, opened to be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl NewKey {
    pub(crate) fn kid(&self) -> String {
        id_of(&self.public).to_string()
    }

    pub(crate) fn paserk(&self) -> String {
        paserk_of(&self.public)
    }
}

impl Custody {
    /// Reads the secret `master_key`, from `file` or where the credentials' source finds it. Where new keys are
    /// the vault's it may be missing.
    pub(crate) async fn open(file: Option<&Path>, config: Option<&Config>) -> Result<Self, Error> {
        let new_keys = config.map_or(Place::Database, |config| config.new_keys);
        let master = match source::load("master_key", file, SigningKey::read).await {
            Ok(key) => Some(key),
            Err(source::Error::Missing { .. }) if new_keys == Place::Vault => None,
            Err(error) => return Err(error.into()),
        };
        let vault = config.map(|config| Transit::new(config.transit.clone()));
        Ok(Self {
            master,
            vault: vault.transpose()?,
            new_keys,
        })
    }

    /// The secret `master_key`.
    pub(crate) fn master(&self) -> Option<&SigningKey> {
        self.master.as_ref()
    }

    /// What signs with a key that is kept.
    pub(crate) fn signer(&self, kept: &Kept) -> Result<Arc<dyn Signer>, store::Error> {
        let bad = || store::Error::Row("signing_key");
        if let Some(sealed) = &kept.sealed {
            let master = self.master.as_ref().ok_or(store::Error::NoMasterKey)?;
            let key = master.open(sealed, &kept.paserk).map_err(|_| bad())?;
            return Ok(Arc::new(key));
        }
        let key = kept.vault.as_ref().ok_or_else(bad)?;
        let vault = self
            .vault
            .as_ref()
            .filter(|vault| vault.place() == key.place);
        let vault = vault.ok_or_else(|| store::Error::NoVault(key.place.clone()))?;
        Ok(Arc::new(vault.version(Version {
            number: key.version,
            public: public_of(&kept.paserk).map_err(|_| bad())?,
        })))
    }

    /// A key to begin with, where none of those that are kept can be used: the secret `master_key` itself, or one
    /// in the vault.
    pub(crate) async fn first(&self, kept: &[Kept]) -> Result<NewKey, Error> {
        match self.new_keys {
            Place::Vault => Ok(self.of_vault(kept.iter(), false).await?),
            Place::Database => {
                let master = self.master.as_ref().ok_or(store::Error::NoMasterKey)?;
                Ok(sealed_by(master, master))
            }
        }
    }

    /// A key that follows the one that signs, and what that one says of it. If the present one may be somebody
    /// else's (`is_compromised`), so may be what the vault has made until now and nobody used.
    pub(crate) async fn successor(
        &self,
        ring: &Ring,
        cluster: &ClusterName,
        is_compromised: bool,
    ) -> Result<Successor, Error> {
        let key = match self.new_keys {
            Place::Vault => self.of_vault(ring.kept.iter(), is_compromised).await?,
            Place::Database => {
                let master = self.master.as_ref().ok_or(store::Error::NoMasterKey)?;
                sealed_by(master, &SigningKey::generate())
            }
        };
        let statement = Succession { next: key.paserk() };
        let scope = Scope {
            cluster,
            audience: "nodes",
            binding: &[],
        };
        Ok(Successor {
            statement: signer::sign(&*ring.signing, &statement, scope).await?,
            predecessor: id_of(&ring.signing.public()).to_string(),
            key,
        })
    }

    /// A version of the vault's key that never signed: one that is there, or a new one.
    async fn of_vault(
        &self,
        kept: impl Iterator<Item = &Kept>,
        makes_one: bool,
    ) -> Result<NewKey, Error> {
        let vault = self.vault.as_ref().ok_or(keyvault::Failure::Address)?;
        let used = kept.filter_map(|kept| kept.vault.as_ref());
        let used = used.filter(|key| key.place == vault.place());
        let used = used.map(|key| key.version).max().unwrap_or_default();
        let version = match makes_one {
            true => vault.rotate().await?,
            false => match vault.latest().await? {
                latest if latest.number > used => latest,
                _ => vault.rotate().await?,
            },
        };
        Ok(NewKey {
            public: version.public,
            sealed: None,
            vault: Some(VaultKey {
                place: vault.place().to_owned(),
                version: version.number,
            }),
        })
    }
}

fn sealed_by(master: &SigningKey, key: &SigningKey) -> NewKey {
    NewKey {
        public: key.public_key(),
        sealed: Some(master.seal(key)),
        vault: None,
    }
}

/// All keys are in the database.
#[cfg(test)]
impl From<SigningKey> for Custody {
    fn from(master: SigningKey) -> Self {
        Self {
            master: Some(master),
            vault: None,
            new_keys: Place::Database,
        }
    }
}

/// What signs as a master does that has this database, `master_key` and, where it has one, vault.
pub async fn signer(
    database: &Location,
    master_key: Option<&Path>,
    config: Option<&Config>,
) -> Result<Arc<dyn Signer>, Error> {
    let custody = Custody::open(master_key, config).await?;
    let reader = Reader::open(database).await?;
    let keys = reader.keys().await?;
    let signing = signing_of(&keys).ok_or(store::Error::Row("signing_key"))?;
    Ok(custody.signer(signing)?)
}

/// The vault's key as it is now, for who asks whether it can be used.
pub(crate) async fn look(config: &Config) -> Result<String, Error> {
    let vault = Transit::new(config.transit.clone())?;
    let latest = vault.latest().await?;
    Ok(format!(
        "{} is there, its newest version is {}",
        vault.place(),
        latest.number
    ))
}
