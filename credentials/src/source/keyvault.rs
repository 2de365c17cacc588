//! Secrets in a KeyVault, over its HTTP API: ours, or any that speaks Vault's.
//!
//! `WAVRY_<NAME>_KEYVAULT` is a path in a KV engine of version 2, mount first (`secret/wavry/master`);
//! `WAVRY_<NAME>_FIELD` is the field there, `value` unless set. The KeyVault is at `WAVRY_KEYVAULT_URL`,
//! vouched for by the authorities in `WAVRY_KEYVAULT_CA` (a PEM file; those of the system if not set).
//! This process logs in there by AppRole, with the secrets `keyvault_role_id` and `keyvault_secret_id`, which
//! are read from files, and renews its token until the token's last time has come; then it logs in anew.

mod client;

use std::{ffi::OsString, fmt, io, path::PathBuf};

use bytes::Bytes;
use http::{Method, StatusCode};
use serde::Deserialize;

use super::{Error, Found, Source, Version};
use crate::{cert, key::format};

pub(crate) use client::Client;

/// Field of a secret unless told otherwise.
const DEFAULT_FIELD: &str = "value";

/// Where the KeyVault is, and where the secrets are that it is opened with.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// `https://HOST:PORT`.
    pub url: String,
    /// PEM file of the authorities that vouch for it; those of the system if `None`.
    pub ca_file: Option<PathBuf>,
    /// File of the secret `keyvault_role_id`; `None` for where [`super::locate`] finds it.
    pub role_id: Option<PathBuf>,
    /// File of the secret `keyvault_secret_id`; `None` for where [`super::locate`] finds it.
    pub secret_id: Option<PathBuf>,
}

impl Config {
    pub(super) fn from_variables(
        variable_of: &impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, Error> {
        const URL: &str = "WAVRY_KEYVAULT_URL";
        let url = variable_of(URL).ok_or_else(|| Error::KeyVault {
            place: "the KeyVault".to_owned(),
            failure: Box::new(Failure::NotSet(URL)),
        })?;
        Ok(Self {
            url: url.to_string_lossy().into_owned(),
            ca_file: variable_of("WAVRY_KEYVAULT_CA").map(PathBuf::from),
            ..Self::default()
        })
    }
}

/// Why a KeyVault did not give a secret. Holds no answer's content.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A variable is needed.
    #[error("{0} is not set")]
    NotSet(&'static str),
    /// Not an address of one.
    #[error("the KeyVault's address is not https://HOST:PORT")]
    Address,
    /// Not a path in one.
    #[error("expected MOUNT/PATH, as in secret/wavry/master")]
    Path,
    /// The authorities cannot be used.
    #[error(transparent)]
    Certificate(#[from] cert::Error),
    /// What it is opened with cannot be read.
    #[error("{0}")]
    Login(Box<Error>),
    /// What it is opened with is no text.
    #[error("keyvault_role_id or keyvault_secret_id is not text")]
    Ids,
    /// The token that it gave is none.
    #[error("the KeyVault gave a token that is none")]
    Token,
    /// It cannot be reached.
    #[error("the KeyVault cannot be reached: {0}")]
    Unreachable(#[from] io::Error),
    /// The connection broke.
    #[error("the connection to the KeyVault broke")]
    Broken,
    /// It took longer than ten seconds.
    #[error("the KeyVault did not answer in time")]
    TooSlow,
    /// It said no.
    #[error("the KeyVault refused with {0}")]
    Refused(StatusCode),
    /// Its answer is none.
    #[error("the KeyVault's answer cannot be read: {0}")]
    Malformed(#[from] format::Fault),
}

/// A secret in a KeyVault.
pub struct KeyVault {
    client: Client,
    /// Of the request that reads it.
    request: String,
    place: String,
    field: String,
}

impl KeyVault {
    /// The secret at `path`, which is MOUNT/PATH, in `field` there.
    pub fn new(config: Config, path: &str, field: Option<String>) -> Result<Self, Error> {
        let place = format!("KeyVault path {path}");
        let failed = |failure| Error::KeyVault {
            place: place.clone(),
            failure: Box::new(failure),
        };
        let is_name = |name: &str| {
            let is_one = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            !name.is_empty() && name != "." && name != ".." && name.bytes().all(is_one)
        };
        let (mount, rest) = path.split_once('/').ok_or_else(|| failed(Failure::Path))?;
        if !path.split('/').all(is_name) {
            return Err(failed(Failure::Path));
        }
        Ok(Self {
            client: Client::new(config).map_err(failed)?,
            request: format!("/v1/{mount}/data/{rest}"),
            field: field.unwrap_or_else(|| DEFAULT_FIELD.to_owned()),
            place,
        })
    }
}

impl Source for KeyVault {
    fn place(&self) -> String {
        self.place.clone()
    }

    async fn read(&self, known: Option<&Version>) -> Result<Option<Found>, Error> {
        self.read_now(known)
            .await
            .map_err(|failure| Error::KeyVault {
                place: self.place.clone(),
                failure: Box::new(failure),
            })
    }
}

impl KeyVault {
    async fn read_now(&self, known: Option<&Version>) -> Result<Option<Found>, Failure> {
        let answer = self.client.ask(Method::GET, &self.request, Bytes::new());
        let answer = answer.await?;
        let read: Read = format::beside(&answer)?;
        let version = Version(read.data.metadata.version.to_string());
        if known == Some(&version) {
            return Ok(None);
        }
        let text = format::field(&answer, &["data", "data", &self.field])?;
        Ok(Some(Found { version, text }))
    }
}

#[derive(Deserialize)]
struct Read {
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    version: u64,
}

impl fmt::Debug for KeyVault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyVault").field(&self.place).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            url: "https://keyvault.example:8200".to_owned(),
            ..Config::default()
        }
    }

    #[test]
    fn a_path_is_a_mount_and_what_is_in_it() {
        let vault = KeyVault::new(config(), "secret/wavry/master", None).unwrap();
        assert_eq!(vault.request, "/v1/secret/data/wavry/master");
        assert_eq!(vault.field, "value");
        assert_eq!(vault.place(), "KeyVault path secret/wavry/master");
        for path in [
            "",
            "secret",
            "secret/",
            "/secret/a",
            "secret//a",
            "secret/../sys",
            "secret/a?b",
            "secret/a b",
        ] {
            let refused = KeyVault::new(config(), path, None);
            assert!(refused.is_err(), "{path}");
        }
    }

    #[test]
    fn an_address_is_https_and_holds_no_more() {
        for url in [
            "",
            "http://h:1",
            "h:1",
            "https://u@h",
            "https://h/v1",
            "https://h?x",
        ] {
            let config = Config {
                url: url.to_owned(),
                ..config()
            };
            assert!(KeyVault::new(config, "secret/a", None).is_err(), "{url}");
        }
    }
}
