//! Units that log in and read their secret, as one herd and then without pause: HTTPS to a KeyVault in
//! Vault's API, so that it can be measured beside other servers that speak it.

mod target;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use http::{Method, StatusCode};
use serde_json::json;
use tokio::task::JoinSet;
use wavry_credentials::bearer::Token;

use self::target::{Connection, Server, Target, refused, text};
use crate::{Error, Report, Row, measure::Times, progress};

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    target: target::Args,
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
/// Secrets written and ids made at once while it is set up.
const SETTING_UP: u32 = 32;

pub(super) async fn run(args: &Args) -> Result<Report, Error> {
    let target = Target::open(&args.target).await?;
    let server = &target.server;
    progress(&format!("setting up {} units", args.units));
    let units = set_up(args, server, &target.root).await?;

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
    let read = read_on(args, server, ready).await?;
    target.stop().await?;
    if read.failed > 0 {
        failures.push(format!("{} reads failed", read.failed));
    }
    Ok(Report {
        scenario: "keyvault",
        results: vec![
            Row::plain("units_served", "units", herd.len() as f64),
            Row::plain("units_refused", "units", refused as f64),
            Row::plain("herd", "s", herd_took),
            Row::plain("log_in_and_read_p50", "ms", herd.percentile(50)),
            Row::plain("log_in_and_read_p99", "ms", herd.percentile(99)),
            Row::plain("audited_reads", "1/s", read.per_second),
            Row::plain("audited_read_p50", "ms", read.times.percentile(50)),
            Row::plain("audited_read_p99", "ms", read.times.percentile(99)),
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

async fn set_up(args: &Args, server: &Arc<Server>, root: &Arc<Token>) -> Result<Vec<Unit>, Error> {
    let mut connection = server.connect().await?;
    let mount = json!({"type": "approle"}).to_string();
    let mounted = connection
        .send(
            Method::POST,
            &format!("/v1/sys/auth/{NAME}"),
            Some(root),
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
        .call(Method::PUT, &path, Some(root), Some(&policy))
        .await?;
    let role = format!("/v1/auth/{NAME}/role/unit");
    let settings = json!({"token_policies": [NAME], "token_ttl": "10m", "secret_id_num_uses": 1});
    let settings = settings.to_string();
    connection
        .call(Method::POST, &role, Some(root), Some(&settings))
        .await?;
    let answer = connection
        .call(Method::GET, &format!("{role}/role-id"), Some(root), None)
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
