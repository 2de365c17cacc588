//! A unit of a KeyVault: its connection, its login, and the token that it has from there.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde::Deserialize;
use tokio::{net::TcpStream, sync::Mutex, time::timeout};
use tokio_rustls::TlsConnector;

use super::{Config, Failure};
use crate::{
    bearer::{self, Token},
    cert::{self, Trust},
    key::format,
    secret::Secret,
    source::read_as,
};

/// From the first packet to the end of the answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// Longest answer, in bytes: the longest body of a secret that a KeyVault takes.
const MAX_ANSWER: usize = 1024 * 1024;
/// A token that took the place of one that was refused is not replaced for so long: it is refused for what its
/// policies do not allow, and another would be as well.
const REPLACED_FOR: Duration = Duration::from_secs(10);

/// A unit of a KeyVault.
pub(crate) struct Client {
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
    since: Instant,
    /// Whether it took the place of one that was refused.
    replaces: bool,
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

impl Client {
    /// Of the KeyVault that is configured; nothing is sent yet.
    pub(crate) fn new(config: Config) -> Result<Self, Failure> {
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

    /// The answer to a request of this unit, which logs in where it has no token that is good.
    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Secret<Vec<u8>>, Failure> {
        let began = Instant::now();
        let (token, since) = self.token(None).await?;
        let asked = self.send(method.clone(), path, Some(token), body.clone());
        match asked.await {
            // The token was revoked, or the KeyVault is another one: a new login tells.
            Err(Failure::Refused(StatusCode::FORBIDDEN)) if since < began => {
                match self.token(Some(since)).await? {
                    (_, same) if same == since => Err(Failure::Refused(StatusCode::FORBIDDEN)),
                    (token, _) => self.send(method, path, Some(token), body).await,
                }
            }
            answer => answer,
        }
    }

    /// A token with time left, and since when there is one. If the one since then was refused, it is replaced,
    /// unless it took another's place itself a moment ago.
    async fn token(&self, refused: Option<Instant>) -> Result<(HeaderValue, Instant), Failure> {
        let mut session = self.session.lock().await;
        match &mut *session {
            Some(held) if refused == Some(held.since) => {
                if !held.replaces || held.since.elapsed() > REPLACED_FOR {
                    let replaces = true;
                    *session = Some(Session {
                        replaces,
                        ..self.log_in().await?
                    });
                }
            }
            _ => self.make_current(&mut session).await?,
        }
        let held = session.as_ref().ok_or(Failure::Token)?;
        let token = held.token.vault_header().map_err(|_| Failure::Token)?;
        Ok((token, held.since))
    }

    /// Sees to it that there is a token with time left.
    async fn make_current(&self, session: &mut Option<Session>) -> Result<(), Failure> {
        if let Some(held) = session {
            if Instant::now() < held.renew_at {
                return Ok(());
            }
            if held.is_renewable {
                let path = "/v1/auth/token/renew-self";
                let token = held.token.vault_header().map_err(|_| Failure::Token)?;
                let renewed = self.send(Method::POST, path, Some(token), "{}".into());
                // What could not be renewed is replaced.
                if let Ok(answer) = renewed.await
                    && let Ok(Login { auth }) = format::beside(&answer)
                    && auth.lease_duration > 1
                {
                    held.renew_at = half(auth.lease_duration);
                    return Ok(());
                }
            }
        }
        *session = Some(self.log_in().await?);
        Ok(())
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
            .send(Method::POST, "/v1/auth/approle/login", None, body)
            .await?;
        let Login { auth } = format::beside(&answer)?;
        let token = format::field(&answer, &["auth", "client_token"])?;
        Ok(Session {
            token: Token::read(&token).map_err(|_| Failure::Token)?,
            since: Instant::now(),
            replaces: false,
            renew_at: half(auth.lease_duration),
            is_renewable: auth.renewable,
        })
    }

    /// Sends a request over a connection of its own, so that none waits for another: they are few, and far
    /// less than what is asked for costs the KeyVault.
    async fn send(
        &self,
        method: Method,
        path: &str,
        token: Option<HeaderValue>,
        body: Bytes,
    ) -> Result<Secret<Vec<u8>>, Failure> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.authority)
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = token {
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
