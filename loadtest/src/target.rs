//! The system under test.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use url::Url;
use wavry_credentials::cert::{self, Trust};
use wavry_proto::session::Request;
use wavry_transport::webtransport::{Client, Limits, Session};

use crate::{Error, progress, system::System};

/// Where the system under test is. Without `--url`, one is started for the scenario.
#[derive(Debug, Clone, clap::Args)]
#[group(id = "target")]
pub(crate) struct Args {
    /// An echo service of a system that is up
    #[arg(long, requires = "ca")]
    url: Option<Url>,
    /// PEM file of the authorities that its certificate is checked against
    #[arg(long, requires = "url")]
    ca: Option<PathBuf>,
    /// Address of a node's metrics, `ROLE=URL`; once for each node on the way
    #[arg(long, value_parser = parse_ops, requires = "url")]
    ops: Vec<(String, Url)>,
}

fn parse_ops(text: &str) -> Result<(String, Url), String> {
    let (role, url) = text
        .split_once('=')
        .ok_or("expected ROLE=URL, as in gateway=http://127.0.0.1:9100/metrics")?;
    let url = url.parse().map_err(|_| "not a URL".to_owned())?;
    Ok((role.to_owned(), url))
}

/// The parts of a ready file (`wavry dev --ready-file`) that a scenario needs.
#[derive(Debug, Deserialize)]
struct Ready {
    ca_file: PathBuf,
    services: BTreeMap<String, String>,
    ops: BTreeMap<String, String>,
    pids: BTreeMap<String, u32>,
}

/// A system to drive. One that was started here is told to stop when this is dropped.
pub(crate) struct Target {
    url: Url,
    ca: PathBuf,
    client: Client,
    /// Metrics by role (`gateway`, `relay-1`, …).
    pub(crate) ops: Vec<(String, Url)>,
    /// Process ids by role, of a system that was started here.
    pub(crate) processes: Vec<(String, u32)>,
    system: Option<System>,
}

impl Target {
    /// The system that `args` name, or a new one.
    pub(crate) async fn open(args: &Args) -> Result<Self, Error> {
        let (url, ca, ops, processes, system) = match (&args.url, &args.ca) {
            (Some(url), Some(ca)) => (url.clone(), ca.clone(), args.ops.clone(), vec![], None),
            _ => {
                progress("starting a system to drive");
                let (system, ready) = start().await?;
                // A URL that does not parse is not shown: there may be a token in it.
                let parse = |name: &str, text: &String| {
                    text.parse::<Url>()
                        .map_err(|_| Error::Start(format!("its URL of {name} is not one")))
                };
                let url = ready.services.get("echo").ok_or_else(|| {
                    Error::Start("its ready file names no service `echo`".to_owned())
                })?;
                let url = parse("echo", url)?;
                let ops = ready.ops.iter();
                let ops = ops.map(|(role, url)| Ok((role.clone(), parse(role, url)?)));
                let ops = ops.collect::<Result<_, Error>>()?;
                let processes = ready.pids.into_iter().collect();
                (url, ready.ca_file, ops, processes, Some(system))
            }
        };
        let client = client(&ca, SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)))?;
        Ok(Self {
            url,
            ca,
            client,
            ops,
            processes,
            system,
        })
    }

    /// Another client of the system, which sends from `local`.
    pub(crate) fn client(&self, local: SocketAddr) -> Result<Client, Error> {
        client(&self.ca, local)
    }

    /// A new session, on a connection of its own.
    pub(crate) async fn connect(&self) -> Result<Session, Error> {
        self.connecting(self.client.clone()).await?.await
    }

    /// A new session of `client`'s, to be made by whoever awaits what this gives.
    pub(crate) async fn connecting(
        &self,
        client: Client,
    ) -> Result<impl Future<Output = Result<Session, Error>> + Send + 'static, Error> {
        let host = self.url.host_str().unwrap_or_default();
        let port = self.url.port().unwrap_or(443);
        let name = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let remote = tokio::net::lookup_host((name.as_str(), port))
            .await
            .ok()
            .and_then(|mut found| found.find(SocketAddr::is_ipv4))
            .ok_or_else(|| Error::Argument(format!("{host} has no IPv4 address")))?;
        let mut path = self.url.path().to_owned();
        if let Some(query) = self.url.query() {
            path.push('?');
            path.push_str(query);
        }
        let request = Request {
            authority: format!("{host}:{port}"),
            path,
            ..Request::default()
        };
        Ok(async move {
            let connected = client.connect(remote, &name, request).await;
            connected
                .map(|(session, _)| session)
                .map_err(Error::Connect)
        })
    }

    /// Stops a system that was started here and waits until it is gone.
    pub(crate) async fn stop(self) -> Result<(), Error> {
        match self.system {
            Some(system) => system.stop().await,
            None => Ok(()),
        }
    }
}

/// A client that trusts the authorities in `ca`.
fn client(ca: &Path, local: SocketAddr) -> Result<Client, Error> {
    let tls = cert::client_config(&Trust::Authorities(ca.to_owned()))
        .map_err(|error| Error::Argument(error.to_string()))?;
    Client::new(local, tls, Limits::default())
        .map_err(|error| Error::Argument(format!("no UDP socket: {error}")))
}

/// `wavry dev` on free ports, in a directory of its own, with the roles as processes of their own.
async fn start() -> Result<(System, Ready), Error> {
    let state = System::directory()?;
    let directory = state.path().join("state");
    System::start(state, |command| {
        command
            .args(["dev", "--port", "0", "--state-dir"])
            .arg(directory);
    })
    .await
}
