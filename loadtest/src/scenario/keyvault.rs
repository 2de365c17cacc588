//! Units that log in and read their secret, as one herd and then at a steady pace: HTTPS to a KeyVault
//! that is up, in Vault's API, so that it can be measured beside other servers that speak it.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpStream, task::JoinSet, time::timeout};
use tokio_rustls::TlsConnector;
use url::Url;
use wavry_credentials::{
    bearer::Token,
    cert::{Trust, client_config},
    source,
};

use crate::{Error, Report, Row, measure::Times, progress};

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub(super) json: bool,
    /// The KeyVault, as https://HOST:PORT, unsealed
    #[arg(long)]
    url: Url,
    /// PEM file of the authorities that its certificate is checked against
    #[arg(long)]
    ca: PathBuf,
    /// File with a token that may set up policies, AppRole and secrets. It gets a mount and a policy
    /// named `loadtest`, which stay
    #[arg(long)]
    token_file: PathBuf,
    /// Units that log in at once, each on a connection of its own, and read one secret each
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    units: u32,
    /// Seconds within which all of them are to have their secret
    #[arg(long, default_value_t = 5.0)]
    herd_within: f64,
    /// Connections that read without pause afterwards
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1000))]
    connections: u32,
    /// Seconds of that
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
}

/// Where everything of this scenario is: an auth method and a policy of this name, and secrets below it.
const NAME: &str = "loadtest";
/// How long one request is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest answer.
const MAX_ANSWER: usize = 1024 * 1024;
/// Secrets written and ids made at once while it is set up.
const SETTING_UP: u32 = 32;

pub(super) async fn run(args: &Args) -> Result<Report, Error> {
    let server = Arc::new(Server::new(args)?);
    progress(&format!("setting up {} units", args.units));
    let units = set_up(args, &server).await?;

    progress("the herd logs in");
    let began = Instant::now();
    let mut herd = JoinSet::new();
    for unit in units {
        let server = server.clone();
        herd.spawn(async move {
            let began = Instant::now();
            let token = unit.log_in_and_read(&server).await?;
            Ok::<_, Error>((unit, token, began.elapsed()))
        });
    }
    let mut ready = Vec::new();
    let mut times = Vec::new();
    let mut failures = Vec::new();
    while let Some(served) = herd.join_next().await {
        match served.map_err(|panicked| Error::Argument(panicked.to_string()))? {
            Ok((unit, token, time)) => {
                times.push(time);
                ready.push((unit, token));
            }
            Err(error) => failures.push(error.to_string()),
        }
    }
    let herd_took = began.elapsed().as_secs_f64();
    let herd = Times::new(times);
    let refused = failures.len();
    failures.truncate(3);
    if herd_took > args.herd_within {
        failures.push(format!("the herd took {herd_took:.1} s"));
    }

    progress("reading");
    let read = read_on(args, &server, ready).await?;
    if read.failed > 0 {
        failures.push(format!("{} reads failed", read.failed));
    }
    Ok(Report {
        scenario: "keyvault",
        results: vec![
            Row::plain("herd: units served", "units", herd.len() as f64),
            Row::plain("herd: units refused", "units", refused as f64),
            Row::plain("herd: all served", "s", herd_took),
            Row::plain("herd: log in and read, p50", "ms", herd.percentile(50)),
            Row::plain("herd: log in and read, p99", "ms", herd.percentile(99)),
            Row::plain("audited reads", "1/s", read.per_second),
            Row::plain("audited reads, p50", "ms", read.times.percentile(50)),
            Row::plain("audited reads, p99", "ms", read.times.percentile(99)),
        ],
        failures,
    })
}

/// A unit's way in.
struct Unit {
    number: u32,
    /// What it logs in with, as the body of its request. It is made for this run, and used once.
    login: String,
}

impl Unit {
    fn path(&self) -> String {
        format!("/v1/secret/data/{NAME}/{}", self.number)
    }

    async fn log_in_and_read(&self, server: &Server) -> Result<Token, Error> {
        let mut connection = server.connect().await?;
        let path = format!("/v1/auth/{NAME}/login");
        let answer = connection
            .call(Method::POST, &path, None, Some(&self.login))
            .await?;
        let token = text(&answer, "/auth/client_token")?;
        let token = Token::new(token.to_owned());
        self.read(&mut connection, &token).await?;
        Ok(token)
    }

    async fn read(&self, connection: &mut Connection, token: &Token) -> Result<(), Error> {
        let answer = connection
            .call(Method::GET, &self.path(), Some(token), None)
            .await?;
        match answer.pointer("/data/data/number") == Some(&json!(self.number)) {
            true => Ok(()),
            false => Err(refused(&self.path(), "another secret came")),
        }
    }
}

async fn set_up(args: &Args, server: &Arc<Server>) -> Result<Vec<Unit>, Error> {
    let root =
        source::read_file(&args.token_file).map_err(|error| Error::Argument(error.to_string()))?;
    let root = Token::read(&root).map_err(|error| Error::Argument(error.to_string()))?;
    let root = Arc::new(root);
    let mut connection = server.connect().await?;
    let mount = json!({"type": "approle"}).to_string();
    let mounted = connection
        .send(
            Method::POST,
            &format!("/v1/sys/auth/{NAME}"),
            Some(&root),
            Some(&mount),
        )
        .await?;
    // It is there from an earlier run.
    if !mounted.0.is_success() && mounted.0 != StatusCode::BAD_REQUEST {
        return Err(refused("sys/auth", &mounted.0.to_string()));
    }
    let policy = format!("path \"secret/data/{NAME}/*\" {{ capabilities = [\"read\"] }}");
    let policy = json!({"policy": policy}).to_string();
    let path = format!("/v1/sys/policies/acl/{NAME}");
    connection
        .call(Method::PUT, &path, Some(&root), Some(&policy))
        .await?;
    let role = format!("/v1/auth/{NAME}/role/unit");
    let settings = json!({"token_policies": [NAME], "token_ttl": "10m", "secret_id_num_uses": 1});
    let settings = settings.to_string();
    connection
        .call(Method::POST, &role, Some(&root), Some(&settings))
        .await?;
    let answer = connection
        .call(Method::GET, &format!("{role}/role-id"), Some(&root), None)
        .await?;
    let role_id: Arc<str> = text(&answer, "/data/role_id")?.into();

    let mut workers = JoinSet::new();
    for worker in 0..SETTING_UP.min(args.units) {
        let (server, root, role_id) = (server.clone(), root.clone(), role_id.clone());
        let (role, count) = (role.clone(), args.units);
        workers.spawn(async move {
            let mut connection = server.connect().await?;
            let mut units = Vec::new();
            for number in (worker..count).step_by(SETTING_UP as usize) {
                let secret =
                    json!({"data": {"number": number, "password": "p".repeat(64)}}).to_string();
                let path = format!("/v1/secret/data/{NAME}/{number}");
                connection
                    .call(Method::POST, &path, Some(&root), Some(&secret))
                    .await?;
                let answer = connection
                    .call(
                        Method::POST,
                        &format!("{role}/secret-id"),
                        Some(&root),
                        Some(&"{}".to_owned()),
                    )
                    .await?;
                let secret_id = text(&answer, "/data/secret_id")?;
                let login = json!({"role_id": &*role_id, "secret_id": secret_id}).to_string();
                units.push(Unit { number, login });
            }
            Ok::<_, Error>(units)
        });
    }
    let mut units = Vec::new();
    while let Some(made) = workers.join_next().await {
        units.extend(made.map_err(|panicked| Error::Argument(panicked.to_string()))??);
    }
    Ok(units)
}

struct Read {
    times: Times,
    per_second: f64,
    failed: u64,
}

/// Reads without pause, each connection as units of its own.
async fn read_on(
    args: &Args,
    server: &Arc<Server>,
    units: Vec<(Unit, Token)>,
) -> Result<Read, Error> {
    let stop = Arc::new(AtomicBool::new(false));
    let units = Arc::new(units);
    let mut readers = JoinSet::new();
    let began = Instant::now();
    for reader in 0..args.connections as usize {
        let (server, units, stop) = (server.clone(), units.clone(), stop.clone());
        let step = args.connections as usize;
        readers.spawn(async move {
            let mut connection = server.connect().await?;
            let mut times = Vec::new();
            let mut failed = 0;
            let mine = units.iter().skip(reader % units.len().max(1)).step_by(step);
            for (unit, token) in mine.cycle() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let began = Instant::now();
                match unit.read(&mut connection, token).await {
                    Ok(()) => times.push(began.elapsed()),
                    Err(_) => {
                        failed += 1;
                        connection = server.connect().await?;
                    }
                }
            }
            Ok::<_, Error>((times, failed))
        });
    }
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    stop.store(true, Ordering::Relaxed);
    let (mut times, mut failed) = (Vec::new(), 0);
    while let Some(read) = readers.join_next().await {
        let read = read.map_err(|panicked| Error::Argument(panicked.to_string()))?;
        let (its_times, its_failed) = read?;
        times.extend(its_times);
        failed += its_failed;
    }
    Ok(Read {
        per_second: times.len() as f64 / began.elapsed().as_secs_f64(),
        times: Times::new(times),
        failed,
    })
}

/// The KeyVault.
struct Server {
    tls: TlsConnector,
    host: String,
    port: u16,
}

impl Server {
    fn new(args: &Args) -> Result<Self, Error> {
        let argument = |problem: &str| Error::Argument(format!("--url {problem}"));
        let host = args.url.host_str().ok_or_else(|| argument("has no host"))?;
        let mut tls = client_config(&Trust::Authorities(args.ca.clone()))
            .map_err(|error| Error::Argument(error.to_string()))?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            tls: Arc::new(tls).into(),
            host: host.trim_matches(['[', ']']).to_owned(),
            port: args.url.port_or_known_default().unwrap_or(443),
        })
    }

    async fn connect(&self) -> Result<Connection, Error> {
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

struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    host: String,
}

impl Connection {
    /// Sends a request that is to be answered well.
    async fn call(
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

    async fn send(
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

fn text<'a>(answer: &'a Value, pointer: &str) -> Result<&'a str, Error> {
    let text = answer.pointer(pointer).and_then(Value::as_str);
    text.ok_or_else(|| refused(pointer, "is missing in the answer"))
}

fn refused(what: &str, problem: &str) -> Error {
    Error::KeyVault {
        what: what.to_owned(),
        problem: problem.to_owned(),
    }
}
