//! Secrets in a KeyVault, over its HTTP API: ours, or any that speaks Vault's.
//!
//! `WAVRY_<NAME>_KEYVAULT` is a path in a KV engine of version 2, mount first (`secret/wavry/master`);
//! `WAVRY_<NAME>_FIELD` is the field there, `value` unless set. The KeyVault is at `WAVRY_KEYVAULT_URL`,
//! vouched for by the authorities in `WAVRY_KEYVAULT_CA` (a PEM file; those of the system if not set).
//! This process logs in there by AppRole, with the secrets `keyvault_role_id` and `keyvault_secret_id`, which
//! are read from files, and renews its token until the token's last time has come; then it logs in anew.

use std::{
    ffi::OsString,
    fmt, io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde::Deserialize;
use tokio::{net::TcpStream, sync::Mutex, time::timeout};
use tokio_rustls::TlsConnector;

use super::{Error, Found, Source, Version, read_as};
use crate::{
    bearer::{self, Token},
    cert::{self, Trust},
    key::format,
    secret::Secret,
};

/// From the first packet to the end of the answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// Longest answer, in bytes: the longest body that a KeyVault takes.
const MAX_ANSWER: usize = 1024 * 1024;
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
        let found = self.client.read(&self.request, &self.field, known);
        found.await.map_err(|failure| Error::KeyVault {
            place: self.place.clone(),
            failure: Box::new(failure),
        })
    }
}

impl fmt::Debug for KeyVault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyVault").field(&self.place).finish()
    }
}

/// A unit of a KeyVault.
struct Client {
    config: Config,
    host: String,
    port: u16,
    authority: String,
    name: ServerName<'static>,
    /// The token it has, and until when. Held while a new one is fetched: nobody needs two.
    session: Mutex<Option<Session>>,
}

struct Session {
    token: Token,
    /// When it is to be renewed, or replaced.
    renew_at: Instant,
    is_renewable: bool,
}

#[derive(Deserialize)]
struct Login {
    auth: Lease,
}

#[derive(Deserialize)]
struct Lease {
    lease_duration: u64,
    #[serde(default)]
    renewable: bool,
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

impl Client {
    fn new(config: Config) -> Result<Self, Failure> {
        let uri: Uri = config.url.parse().map_err(|_| Failure::Address)?;
        let authority = uri.authority().ok_or(Failure::Address)?.clone();
        let has_more = uri.path() != "/" || uri.query().is_some();
        if uri.scheme_str() != Some("https") || has_more || authority.as_str().contains('@') {
            return Err(Failure::Address);
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        Ok(Self {
            name: ServerName::try_from(host.clone()).map_err(|_| Failure::Address)?,
            port: authority.port_u16().unwrap_or(443),
            authority: authority.as_str().to_owned(),
            session: Mutex::default(),
            config,
            host,
        })
    }

    async fn read(
        &self,
        path: &str,
        field: &str,
        known: Option<&Version>,
    ) -> Result<Option<Found>, Failure> {
        let mut session = self.session.lock().await;
        let mut is_new = self.make_current(&mut session).await?;
        loop {
            let token = session.as_ref().map(|session| &session.token);
            match self.ask(Method::GET, path, token, Bytes::new()).await {
                // The token was revoked, or the KeyVault is another one: a new login tells.
                Err(Failure::Refused(StatusCode::FORBIDDEN)) if !is_new => {
                    *session = Some(self.log_in().await?);
                    is_new = true;
                }
                Err(failure) => return Err(failure),
                Ok(answer) => {
                    let read: Read = format::beside(&answer)?;
                    let version = Version(read.data.metadata.version.to_string());
                    if known == Some(&version) {
                        return Ok(None);
                    }
                    let text = format::field(&answer, &["data", "data", field])?;
                    return Ok(Some(Found { version, text }));
                }
            }
        }
    }

    /// Sees to it that there is a token with time left. Gives whether it is new.
    async fn make_current(&self, session: &mut Option<Session>) -> Result<bool, Failure> {
        if let Some(held) = session {
            if Instant::now() < held.renew_at {
                return Ok(false);
            }
            if held.is_renewable {
                let path = "/v1/auth/token/renew-self";
                let renewed = self.ask(Method::POST, path, Some(&held.token), "{}".into());
                // What could not be renewed is replaced.
                if let Ok(answer) = renewed.await
                    && let Ok(Login { auth }) = format::beside(&answer)
                    && auth.lease_duration > 1
                {
                    held.renew_at = half(auth.lease_duration);
                    return Ok(false);
                }
            }
        }
        *session = Some(self.log_in().await?);
        Ok(true)
    }

    async fn log_in(&self) -> Result<Session, Failure> {
        let secret = |name, file: &Option<PathBuf>| {
            let read = read_as(name, file.as_deref(), format::password);
            read.map_err(|error| Failure::Login(Box::new(error)))
        };
        let role_id = secret("keyvault_role_id", &self.config.role_id)?;
        let secret_id = secret("keyvault_secret_id", &self.config.secret_id)?;
        let body = bearer::approle_login(&role_id, &secret_id).map_err(|_| Failure::Ids)?;
        let answer = self
            .ask(Method::POST, "/v1/auth/approle/login", None, body)
            .await?;
        let Login { auth } = format::beside(&answer)?;
        let token = format::field(&answer, &["auth", "client_token"])?;
        Ok(Session {
            token: Token::read(&token).map_err(|_| Failure::Token)?,
            renew_at: half(auth.lease_duration),
            is_renewable: auth.renewable,
        })
    }

    /// Sends a request over a connection of its own: there is one each few minutes at most.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        token: Option<&Token>,
        body: Bytes,
    ) -> Result<Secret<Vec<u8>>, Failure> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.authority)
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = token {
            let token = token.vault_header().map_err(|_| Failure::Token)?;
            request = request.header("x-vault-token", token);
        }
        let request = request.body(Full::new(body)).map_err(|_| Failure::Path)?;
        let answer = timeout(DEADLINE, self.answer(request));
        answer.await.map_err(|_| Failure::TooSlow)?
    }

    async fn answer(&self, request: Request<Full<Bytes>>) -> Result<Secret<Vec<u8>>, Failure> {
        let trust = match &self.config.ca_file {
            Some(file) => Trust::Authorities(file.clone()),
            None => Trust::System,
        };
        let mut tls = cert::client_config(&trust)?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        let tls = TlsConnector::from(Arc::new(tls));
        let stream = tls.connect(self.name.clone(), stream).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|_| Failure::Broken)?;
        let exchange = async {
            let response = sender.send_request(request).await;
            let (parts, body) = response.map_err(|_| Failure::Broken)?.into_parts();
            if !parts.status.is_success() {
                return Err(Failure::Refused(parts.status));
            }
            let body = Limited::new(body, MAX_ANSWER).collect().await;
            let body = body.map_err(|_| Failure::Broken)?.to_bytes();
            Ok(Secret::new(body.to_vec()))
        };
        tokio::select! {
            answer = exchange => answer,
            // It ends before the answer only when it broke.
            _ = connection => Err(Failure::Broken),
        }
    }
}

/// When half of a lease will be over.
fn half(seconds: u64) -> Instant {
    // A lease of weeks is looked after as often as one of days.
    Instant::now() + Duration::from_secs(seconds.min(7 * 24 * 60 * 60)) / 2
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
