//! The KeyVault that is driven, and connections to it.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;
use url::Url;
use wavry_credentials::{
    bearer::Token,
    cert::{DevelopmentAuthority, Trust, client_config},
    source,
    token::SigningKey,
};

use crate::{Error, progress, system::System};

/// How long one request is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest answer.
const MAX_ANSWER: usize = 1024 * 1024;

/// Where the KeyVault is. Without `--url`, one is started for the scenario.
#[derive(Debug, Clone, clap::Args)]
#[group(id = "keyvault")]
pub(crate) struct Args {
    /// A KeyVault that is up and unsealed, as https://HOST:PORT
    #[arg(long, requires_all = ["ca", "token_file"])]
    url: Option<Url>,
    /// PEM file of the authorities that its certificate is checked against
    #[arg(long, requires = "url")]
    ca: Option<PathBuf>,
    /// File with a token that may set up policies, AppRole and secrets. It gets a mount and a policy
    /// named `loadtest`, which stay
    #[arg(long, requires = "url")]
    token_file: Option<PathBuf>,
    /// Where the one that is started keeps its secrets: postgres://USER@HOST/DATABASE, which is to be
    /// empty; otherwise a file of its own
    #[arg(long, conflicts_with = "url")]
    database: Option<String>,
}

/// A KeyVault to drive. One that was started here is told to stop when this is dropped.
pub(super) struct Target {
    pub(super) server: Arc<Server>,
    /// May set up what the scenario needs.
    pub(super) root: Arc<Token>,
    system: Option<System>,
}

impl Target {
    /// The KeyVault that `args` name, or a new one.
    pub(super) async fn open(args: &Args) -> Result<Self, Error> {
        let (Some(url), Some(ca), Some(token)) = (&args.url, &args.ca, &args.token_file) else {
            return Self::start(args.database.as_deref()).await;
        };
        let argument = |error: &dyn std::fmt::Display| Error::Argument(error.to_string());
        let host = url
            .host_str()
            .ok_or_else(|| argument(&"--url has no host"))?;
        let port = url.port_or_known_default().unwrap_or(443);
        let root = source::read_file(token).map_err(|error| argument(&error))?;
        let root = Token::read(&root).map_err(|error| argument(&error))?;
        Ok(Self {
            server: Arc::new(Server::new(host, port, ca)?),
            root: Arc::new(root),
            system: None,
        })
    }

    /// `wavry keyvault` on a free port, initialised and unsealed.
    async fn start(database: Option<&str>) -> Result<Self, Error> {
        progress("starting a KeyVault to drive");
        let failed = |error: &dyn std::fmt::Display| Error::Start(error.to_string());
        let state = System::directory()?;
        let at = |name: &str| state.path().join(name);
        let authority = DevelopmentAuthority::open(state.path()).map_err(|e| failed(&e))?;
        let issued = authority.issue("server", &["localhost", "127.0.0.1"]);
        issued.map_err(|e| failed(&e))?;
        let audit_key = at("audit.key");
        source::write_secret(&audit_key, &SigningKey::generate().to_paserk())
            .map_err(|e| failed(&e))?;
        let (certificate, key, ca) = (at("server.crt"), at("server.key"), at("ca.crt"));
        let file = at("keyvault.db");
        let (system, ready) = System::start(state, |command| {
            command
                .args(["keyvault", "--listen", "127.0.0.1:0", "--database"])
                .arg(database.map_or(file.as_path(), Path::new))
                .arg("--certificate")
                .arg(certificate)
                .args(["--ops-listen", "127.0.0.1:0"])
                .env("WAVRY_AUDIT_KEY_FILE", audit_key)
                .env("WAVRY_TLS_KEY_FILE", key);
        })
        .await?;
        let Ready { address } = ready;
        let server = Server::new(&address.ip().to_string(), address.port(), &ca)?;
        let root = server.initialise().await?;
        Ok(Self {
            server: Arc::new(server),
            root: Arc::new(root),
            system: Some(system),
        })
    }

    /// Stops a KeyVault that was started here and waits until it is gone.
    pub(super) async fn stop(self) -> Result<(), Error> {
        match self.system {
            Some(system) => system.stop().await,
            None => Ok(()),
        }
    }
}

/// The part of a ready file (`wavry keyvault --ready-file`) that is needed.
#[derive(Deserialize)]
struct Ready {
    address: SocketAddr,
}

/// The KeyVault.
pub(super) struct Server {
    tls: TlsConnector,
    host: String,
    port: u16,
}

impl Server {
    fn new(host: &str, port: u16, ca: &Path) -> Result<Self, Error> {
        let mut tls = client_config(&Trust::Authorities(ca.to_owned()))
            .map_err(|error| Error::Argument(error.to_string()))?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        // A herd comes with nothing that it kept from before.
        tls.resumption = rustls::client::Resumption::disabled();
        Ok(Self {
            tls: Arc::new(tls).into(),
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
        })
    }

    /// Makes a new KeyVault usable. Gives its root token.
    async fn initialise(&self) -> Result<Token, Error> {
        let mut connection = self.connect().await?;
        let shares = json!({"secret_shares": 1, "secret_threshold": 1}).to_string();
        let path = "/v1/sys/init";
        let made = connection
            .call(Method::PUT, path, None, Some(&shares))
            .await?;
        let key = json!({"key": text(&made, "/keys/0")?}).to_string();
        let path = "/v1/sys/unseal";
        connection.call(Method::PUT, path, None, Some(&key)).await?;
        Ok(Token::new(text(&made, "/root_token")?.to_owned()))
    }

    pub(super) async fn connect(&self) -> Result<Connection, Error> {
        let connect = async {
            let stream = TcpStream::connect((&*self.host, self.port)).await?;
            stream.set_nodelay(true)?;
            let name = self.host.clone().try_into();
            let name = name.map_err(std::io::Error::other)?;
            let stream = self.tls.connect(name, stream).await?;
            let handshake = http1::handshake(TokioIo::new(stream)).await;
            handshake.map_err(std::io::Error::other)
        };
        let (sender, connection) = timeout(PATIENCE, connect)
            .await
            .map_err(|_| refused("connect", "nothing within the time"))?
            .map_err(|error| refused("connect", &error.to_string()))?;
        // It ends with its sender.
        tokio::spawn(connection);
        Ok(Connection {
            sender,
            host: format!("{}:{}", self.host, self.port),
        })
    }
}

pub(super) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    host: String,
}

impl Connection {
    /// Sends a request that is to be answered well.
    pub(super) async fn call(
        &mut self,
        method: Method,
        path: &str,
        token: Option<&Token>,
        body: Option<&String>,
    ) -> Result<Value, Error> {
        let (status, answer) = self.send(method, path, token, body).await?;
        match status.is_success() {
            true => Ok(answer),
            false => Err(refused(path, &status.to_string())),
        }
    }

    pub(super) async fn send(
        &mut self,
        method: Method,
        path: &str,
        token: Option<&Token>,
        body: Option<&String>,
    ) -> Result<(StatusCode, Value), Error> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.host);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, token.authorization());
        }
        let body = body.cloned().unwrap_or_default();
        let request = request
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| refused(path, &error.to_string()))?;
        let answered = async {
            // The connection may not have seen yet that the last answer was read to its end.
            self.sender.ready().await?;
            let answer = self.sender.send_request(request).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
            Ok::<_, hyper::Error>((status, body))
        };
        let (status, body) = timeout(PATIENCE, answered)
            .await
            .map_err(|_| refused(path, "no answer within the time"))?
            .map_err(|error| refused(path, &error.to_string()))?;
        let body = body.map_err(|error| refused(path, &error.to_string()))?;
        let body = body.to_bytes();
        let body = match body.is_empty() {
            true => Value::Null,
            // Its text may be a secret: where it is malformed is enough.
            false => serde_json::from_slice(&body).map_err(|_| refused(path, "not JSON"))?,
        };
        Ok((status, body))
    }
}

pub(super) fn text<'a>(answer: &'a Value, pointer: &str) -> Result<&'a str, Error> {
    let text = answer.pointer(pointer).and_then(Value::as_str);
    text.ok_or_else(|| refused(pointer, "is missing in the answer"))
}

pub(super) fn refused(what: &str, problem: &str) -> Error {
    Error::KeyVault {
        what: what.to_owned(),
        problem: problem.to_owned(),
    }
}
