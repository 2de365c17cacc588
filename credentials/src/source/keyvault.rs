//! Secrets in a KeyVault, over its HTTP API: ours, or any that speaks Vault's.
//!
//! `WAVRY_<NAME>_KEYVAULT` is a path in a KV engine of version 2, mount first (`secret/wavry/master`);
//! `WAVRY_<NAME>_FIELD` is the field there, `value` unless set. The KeyVault is at `WAVRY_KEYVAULT_URL`,
//! vouched for by the authorities in `WAVRY_KEYVAULT_CA` (a PEM file; those of the system if not set).
//! This process logs in there by AppRole, with the secrets `keyvault_role_id` and `keyvault_secret_id`, which
//! are read from files, and renews its token until the token's last time has come; then it logs in anew.

mod client;

use std::{env, ffi::OsString, fmt, io, path::PathBuf, sync::Arc};

use bytes::Bytes;
use http::{Method, StatusCode};
use serde::Deserialize;

use super::{Error, Found, Source, Version};
use crate::{bearer::Document, cert, key::format, secret::Secret};

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
    /// As the variables say (see the module).
    pub fn from_environment() -> Result<Self, Error> {
        Self::from_variables(&|variable: &str| {
            env::var_os(variable).filter(|value| !value.is_empty())
        })
    }

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
    secret: SecretPath,
    field: String,
}

impl KeyVault {
    /// The secret at `path`, which is MOUNT/PATH, in `field` there.
    pub fn new(config: Config, path: &str, field: Option<String>) -> Result<Self, Error> {
        let client = Client::new(config).map_err(|failure| Error::at(path, failure))?;
        Ok(Self {
            secret: SecretPath::new(Arc::new(client), path)?,
            field: field.unwrap_or_else(|| DEFAULT_FIELD.to_owned()),
        })
    }
}

impl Source for KeyVault {
    fn place(&self) -> String {
        self.secret.place()
    }

    async fn read(&self, known: Option<&Version>) -> Result<Option<Found>, Error> {
        let Some((version, answer)) = self.secret.read(known).await? else {
            return Ok(None);
        };
        let text = self.secret.field(&answer, &self.field)?;
        Ok(Some(Found { version, text }))
    }
}

/// Where a KV engine of version 2 has a secret with some fields, and who reads it.
pub(crate) struct SecretPath {
    client: Arc<Client>,
    path: String,
    /// Of the request that reads it.
    request: String,
}

impl SecretPath {
    /// At `path`, which is MOUNT/PATH.
    pub(crate) fn new(client: Arc<Client>, path: &str) -> Result<Self, Error> {
        let is_name = |name: &str| {
            let is_one = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            !name.is_empty() && name != "." && name != ".." && name.bytes().all(is_one)
        };
        let parts = path.split_once('/');
        let (mount, rest) = parts.ok_or_else(|| Error::at(path, Failure::Path))?;
        if !path.split('/').all(is_name) {
            return Err(Error::at(path, Failure::Path));
        }
        Ok(Self {
            client,
            request: format!("/v1/{mount}/data/{rest}"),
            path: path.to_owned(),
        })
    }

    /// As messages say it.
    pub(crate) fn place(&self) -> String {
        place(&self.path)
    }

    /// The whole answer, and which version of the secret it holds; `None` while that is version `known`.
    pub(crate) async fn read(
        &self,
        known: Option<&Version>,
    ) -> Result<Option<(Version, Secret<Vec<u8>>)>, Error> {
        let answer = self.client.ask(Method::GET, &self.request, Bytes::new());
        let answer = answer
            .await
            .map_err(|failure| Error::at(&self.path, failure))?;
        let read: Read = format::beside(&answer).map_err(|fault| self.malformed(fault))?;
        let Metadata {
            version,
            created_time,
        } = read.data.metadata;
        // A secret that was made anew counts from 1 again.
        let version = Version(format!("{version} {created_time}"));
        Ok((known != Some(&version)).then_some((version, answer)))
    }

    /// The whole answer; `None` if there is no such secret.
    pub(crate) async fn find(&self) -> Result<Option<Secret<Vec<u8>>>, Error> {
        match self
            .client
            .ask(Method::GET, &self.request, Bytes::new())
            .await
        {
            Ok(answer) => Ok(Some(answer)),
            Err(Failure::Refused(StatusCode::NOT_FOUND)) => Ok(None),
            Err(failure) => Err(Error::at(&self.path, failure)),
        }
    }

    /// Writes a new version with these fields.
    pub(crate) async fn write<'a>(
        &self,
        fields: impl IntoIterator<Item = (&'a str, Document)>,
    ) -> Result<(), Error> {
        let body = Document::object([("data", Document::object(fields))]).into_body();
        let written = self.client.ask(Method::POST, &self.request, body).await;
        written
            .map(drop)
            .map_err(|failure| Error::at(&self.path, failure))
    }

    /// What a field of the secret holds.
    pub(crate) fn field(
        &self,
        answer: &Secret<Vec<u8>>,
        field: &str,
    ) -> Result<Secret<Vec<u8>>, Error> {
        let text = format::field(answer, &["data", "data", field]);
        text.map_err(|fault| self.malformed(fault))
    }

    fn malformed(&self, fault: format::Fault) -> Error {
        Error::at(&self.path, Failure::Malformed(fault))
    }
}

fn place(path: &str) -> String {
    format!("KeyVault path {path}")
}

impl Error {
    fn at(path: &str, failure: Failure) -> Self {
        Self::KeyVault {
            place: place(path),
            failure: Box::new(failure),
        }
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
    #[serde(default)]
    created_time: String,
}

impl fmt::Debug for KeyVault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyVault").field(&self.place()).finish()
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
        assert_eq!(vault.secret.request, "/v1/secret/data/wavry/master");
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
