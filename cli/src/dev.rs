//! `wavry dev`: a whole cluster on this machine, from nothing.
//!
//! Every role is its own process of this executable and reads its configuration and its secrets
//! from files, exactly as in production. This process only makes the files, starts the roles,
//! serves the demo page, and watches.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::Write as _,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use serde::Serialize;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;
use url::Url;
use wavry_credentials::cert::Trust;
use wavry_proto::{control::Role, id::ServiceName};

use crate::{demo, log, probe, ready, sample, shutdown};

mod child;
mod keyvault;
mod state;
mod tail;

use child::{Event, Running, Spec};
use state::State;

/// `wavry dev`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory that keeps certificates, keys, tokens, configurations and logs
    #[arg(long, value_name = "DIR", default_value = ".wavry")]
    state_dir: PathBuf,
    /// Address that the gateway listens on and is reached at
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// UDP port of the gateway; 0 for any
    #[arg(long, default_value_t = 4433)]
    port: u16,
    /// TCP port of the demo page; 0 for any, which is also the default with --port 0
    #[arg(long)]
    demo_port: Option<u16>,
    /// TCP port of the master; 0 for any, which is also the default with --port 0
    #[arg(long)]
    master_port: Option<u16>,
    /// Write FILE once everything answers: JSON with gateway, ca_file, certificate_hashes, demo,
    /// master, services, ops and pids. Only its owner can read it: it holds a token
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Print the logs of all processes as they come
    #[arg(long, short)]
    verbose: bool,
    /// Also shut down when standard input ends
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
}

const DEMO_PORT: u16 = 4480;
const MASTER_PORT: u16 = 4443;
/// From the last process that serves to the first answer through all of them.
const ANSWER_DEADLINE: Duration = Duration::from_secs(20);
/// How often certificates are looked at; they are renewed a day ahead.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(3600);

/// The ready file.
#[derive(Debug, Serialize)]
struct Ready<'a> {
    gateway: &'a str,
    ca_file: &'a Path,
    certificate_hashes: Vec<String>,
    demo: &'a str,
    master: &'a str,
    keyvault: KeyVault<'a>,
    services: BTreeMap<&'static str, String>,
    ops: BTreeMap<&'a str, &'a str>,
    pids: BTreeMap<&'a str, u32>,
}

/// A service of the development cluster.
struct Service {
    name: &'static str,
    public: bool,
    subprotocols: &'static [&'static str],
    about: &'static str,
}

const SERVICES: [Service; 2] = [
    Service {
        name: "echo",
        public: true,
        subprotocols: &[],
        about: "Built into relay-a: streams and datagrams come back as they are. Anyone may connect.",
    },
    Service {
        name: "sample",
        public: false,
        subprotocols: &[sample::SUBPROTOCOL],
        about: "A WebTransport server of its own, behind relay-b: tells the time on a stream each \
                second, sends lines back in upper case, and obeys the lines “close CODE REASON” and \
                “reset CODE”. Needs a token, which this page has.",
    },
];

/// Brings everything up and keeps it up until a signal.
pub(crate) async fn run(args: &Args) -> anyhow::Result<()> {
    log::start_for_tool("warn");
    let shutdown = shutdown::on_signal()?;
    if args.until_stdin_closes {
        shutdown::on_stdin_end(shutdown.clone());
    }
    if let Some(file) = &args.ready_file {
        remove_old(file)?;
    }
    let state = Arc::new(State::open(&args.state_dir, &args.host.to_string())?);
    let any_port = args.port == 0;
    let port_or = |port: Option<u16>, fixed| port.unwrap_or(if any_port { 0 } else { fixed });
    let demo = demo::Demo::bind(port_or(args.demo_port, DEMO_PORT)).await?;
    if args.verbose {
        tail::start(
            &state,
            &["master", "sample", "relay-a", "relay-b", "gateway"],
        )
        .context("logs")?;
    }
    let started = tokio::select! {
        started = start(&state, args, port_or(args.master_port, MASTER_PORT), &demo) => started?,
        () = shutdown.cancelled() => return Ok(()),
    };

    let cluster = Arc::new(Cluster::new(&started, &state, args, demo.url()));
    let page_shutdown = CancellationToken::new();
    let page = cluster.clone();
    let source: demo::Source = Arc::new(move || page.demo_config());
    let page = tokio::spawn(demo.run(source, page_shutdown.clone()));

    let answered = tokio::select! {
        answered = cluster.wait_until_it_answers() => answered,
        () = shutdown.cancelled() => Ok(()),
    };
    // Told to stop before it answered, it drains at once; on a failure the processes are killed as
    // their handles are dropped.
    let result = match answered {
        Ok(()) => serve(started, &cluster, args, shutdown).await,
        Err(error) => Err(error),
    };
    page_shutdown.cancel();
    let _ = page.await;
    if let Some(file) = &args.ready_file {
        remove_old(file)?;
    }
    result
}

/// What serves, in the order in which it drains.
struct Started {
    gateway: Running,
    relays: [Running; 2],
    sample: Running,
    master: Running,
}

impl Started {
    fn all(&self) -> [&Running; 5] {
        let [a, b] = &self.relays;
        [&self.master, &self.gateway, a, b, &self.sample]
    }

    fn into_stages(self) -> [Vec<Running>; 4] {
        [
            vec![self.gateway],
            self.relays.into(),
            vec![self.sample],
            vec![self.master],
        ]
    }
}

/// The KeyVault, for clients of Vault's: VAULT_ADDR, and the file with a token.
#[derive(Debug, Serialize)]
struct KeyVault<'a> {
    address: &'a str,
    root_token_file: PathBuf,
}

/// Makes what every role needs and starts them all.
async fn start(
    state: &State,
    args: &Args,
    master_port: u16,
    demo: &demo::Demo,
) -> anyhow::Result<Started> {
    let [echo, sample] = SERVICES.map(|service| service.name.parse::<ServiceName>());
    let (echo, sample) = (echo?, sample?);
    let services = SERVICES
        .iter()
        .map(|service| {
            Ok(state::Service {
                name: service.name.parse()?,
                public: service.public,
                allowed_origins: demo.origins(),
            })
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    state.provision("gateway", Role::Gateway, Vec::new())?;
    state.provision("relay-a", Role::Relay, vec![echo.clone()])?;
    state.provision("relay-b", Role::Relay, vec![sample.clone()])?;

    keyvault::prepare(state).await?;

    let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let master = spec(
        state,
        "master",
        "master",
        &state.write_master(&services)?,
        loopback(master_port),
    );
    let master = Spec {
        secrets: vec![
            ("WAVRY_MASTER_KEY_FILE", state.path("master/master.key")),
            ("WAVRY_AUDIT_KEY_FILE", state.path("master/audit.key")),
            ("WAVRY_TLS_KEY_FILE", state.path("tls/master.key")),
            ("WAVRY_KEYVAULT_KEY_FILE", state.path(keyvault::KEY)),
        ],
        ..master
    };
    let service = Spec {
        name: "sample",
        arguments: vec![
            "sample".into(),
            "--certificate".into(),
            state.path("tls/sample.crt").into(),
        ],
        secrets: vec![("WAVRY_TLS_KEY_FILE", state.path("tls/sample.key"))],
        listen: loopback(0),
        log: log_file(state, "sample"),
        ready_file: state.path("run/sample.json"),
    };
    let (master, service) = tokio::try_join!(master.start(), service.start())?;

    let at = master.role().address;
    let upstream = format!("https://localhost:{}/", service.role().address.port());
    let relay_a = state.write_relay("relay-a", at, &echo, "echo:")?;
    let relay_b = state.write_relay("relay-b", at, &sample, &upstream)?;
    let relay_a = node(state, "relay-a", "relay", &relay_a, loopback(0));
    let relay_b = node(state, "relay-b", "relay", &relay_b, loopback(0));
    let gateway = state.write_gateway(at)?;
    let gateway_at = SocketAddr::new(args.host, args.port);
    let mut gateway = node(state, "gateway", "gateway", &gateway, gateway_at);
    gateway
        .secrets
        .push(("WAVRY_TLS_KEY_FILE", state.path("tls/gateway.key")));
    let (gateway, relay_a, relay_b) =
        tokio::try_join!(gateway.start(), relay_a.start(), relay_b.start())?;
    Ok(Started {
        gateway,
        relays: [relay_a, relay_b],
        sample: service,
        master,
    })
}

fn spec(
    state: &State,
    name: &'static str,
    subcommand: &str,
    config: &Path,
    listen: SocketAddr,
) -> Spec {
    Spec {
        name,
        arguments: [subcommand, "--config"]
            .map(OsString::from)
            .into_iter()
            .chain([config.into()])
            .collect(),
        secrets: Vec::new(),
        listen,
        log: log_file(state, name),
        ready_file: state.path(&format!("run/{name}.json")),
    }
}

fn node(
    state: &State,
    name: &'static str,
    subcommand: &str,
    config: &Path,
    listen: SocketAddr,
) -> Spec {
    let directory = state.path(name);
    Spec {
        secrets: vec![
            ("WAVRY_IDENTITY_KEY_FILE", directory.join("identity.key")),
            (
                "WAVRY_REGISTRATION_TOKEN_FILE",
                directory.join("registration.token"),
            ),
        ],
        ..spec(state, name, subcommand, config, listen)
    }
}

fn log_file(state: &State, name: &str) -> PathBuf {
    state.path(&format!("log/{name}.log"))
}

/// What clients are told of the cluster.
struct Cluster {
    state: Arc<State>,
    gateway: String,
    master: String,
    demo: String,
}

impl Cluster {
    fn new(started: &Started, state: &Arc<State>, args: &Args, demo: String) -> Self {
        // A wildcard is an address to listen on and not one to connect to.
        let host = match args.host {
            IpAddr::V4(host) if host.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
            IpAddr::V6(host) if host.is_unspecified() => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
            host => host,
        };
        let gateway = SocketAddr::new(host, started.gateway.role().address.port());
        Self {
            state: state.clone(),
            gateway: format!("https://{gateway}"),
            master: format!("https://{}", started.master.role().address),
            demo,
        }
    }

    /// The URL of a service, with a fresh token where one is needed.
    fn url(&self, service: &Service) -> anyhow::Result<String> {
        let url = format!("{}/{}", self.gateway, service.name);
        if service.public {
            return Ok(url);
        }
        let token = self.state.session_token(&service.name.parse()?)?;
        Ok(format!("{url}?token={token}"))
    }

    fn demo_config(&self) -> anyhow::Result<demo::Config> {
        let services = SERVICES.iter().map(|service| {
            Ok(demo::Service {
                name: service.name.to_owned(),
                url: self.url(service)?,
                subprotocols: service
                    .subprotocols
                    .iter()
                    .map(|&name| name.to_owned())
                    .collect(),
                about: service.about.to_owned(),
            })
        });
        Ok(demo::Config {
            gateway: self.gateway.clone(),
            certificate_hashes: self.state.certificate_hashes()?,
            services: services.collect::<anyhow::Result<_>>()?,
        })
    }

    /// Opens a session to every service, until each has accepted one.
    async fn wait_until_it_answers(&self) -> anyhow::Result<()> {
        const INTERVAL: Duration = Duration::from_millis(50);
        let trust = Trust::Authorities(self.state.ca_file());
        let deadline = Instant::now() + ANSWER_DEADLINE;
        for service in &SERVICES {
            let url: Url = self
                .url(service)?
                .parse()
                .map_err(|_| anyhow!("service URL"))?;
            loop {
                match probe::check(&url, &trust).await {
                    Ok(_) => break,
                    Err(error) if Instant::now() > deadline => {
                        return Err(error.context(format!("{} does not answer", service.name)));
                    }
                    Err(_) => tokio::time::sleep(INTERVAL).await,
                }
            }
        }
        Ok(())
    }

    fn write_ready_file(
        &self,
        file: &Path,
        roles: &BTreeMap<&'static str, ready::Role>,
    ) -> anyhow::Result<()> {
        let services = SERVICES
            .iter()
            .map(|service| Ok((service.name, self.url(service)?)));
        let content = Ready {
            gateway: &self.gateway,
            ca_file: &self.state.ca_file(),
            certificate_hashes: self.state.certificate_hashes()?,
            demo: &self.demo,
            master: &self.master,
            keyvault: KeyVault {
                address: &self.master,
                root_token_file: keyvault::root_file(&self.state),
            },
            services: services.collect::<anyhow::Result<_>>()?,
            ops: roles
                .iter()
                .filter_map(|(name, role)| Some((*name, role.ops.as_deref()?)))
                .collect(),
            pids: roles.iter().map(|(name, role)| (*name, role.pid)).collect(),
        };
        ready::write(file, &content)
    }
}

/// Watches over what was started, until a signal or a failure of its own; then drains it.
async fn serve(
    started: Started,
    cluster: &Cluster,
    args: &Args,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut roles: BTreeMap<&'static str, ready::Role> = started
        .all()
        .into_iter()
        .map(|running| (running.name(), running.role().clone()))
        .collect();
    let refresh = |roles: &BTreeMap<&'static str, ready::Role>| match &args.ready_file {
        Some(file) => cluster.write_ready_file(file, roles),
        None => Ok(()),
    };
    // Each process sends an event a restart at most, and restarts back off.
    let (events, mut happened) = mpsc::channel(16);
    let stages = started.into_stages().map(|stage| {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for running in stage {
            tasks.spawn(running.supervise(events.clone(), stop.clone()));
        }
        (stop, tasks)
    });
    say(&overview(cluster, &roles))?;
    refresh(&roles)?;

    let mut renewal = tokio::time::interval(RENEWAL_INTERVAL);
    let result = loop {
        tokio::select! {
            () = shutdown.cancelled() => break Ok(()),
            _ = renewal.tick() => match cluster.state.renew_certificates() {
                Ok(false) => {}
                Ok(true) => if let Err(error) = refresh(&roles) { break Err(error) },
                Err(error) => tracing::error!(%error, "certificates cannot be renewed"),
            },
            Some(event) = happened.recv() => match event {
                Event::Died(name, why) => say(&format!("{name} {why}; starting it again"))?,
                Event::Restarted(name, role) => {
                    say(&format!("{name} serves again, pid {}", role.pid))?;
                    roles.insert(name, role);
                    if let Err(error) = refresh(&roles) { break Err(error) }
                }
            },
        }
    };
    say("draining: gateway, relays, sample service, master")?;
    for (stop, mut tasks) in stages {
        stop.cancel();
        while tasks.join_next().await.is_some() {}
    }
    result
}

fn overview(cluster: &Cluster, roles: &BTreeMap<&'static str, ready::Role>) -> String {
    let state = &cluster.state;
    let mut lines = vec![
        String::new(),
        format!("  {:9} {:>7}  {:22} metrics", "process", "pid", "address"),
    ];
    for (name, role) in roles {
        let ops = role.ops.as_deref().unwrap_or("-");
        lines.push(format!(
            "  {name:9} {:>7}  {:22} {ops}",
            role.pid,
            role.address.to_string()
        ));
    }
    lines.extend([
        String::new(),
        format!("  Open    {}", cluster.demo),
        format!(
            "  Or      wavry probe {}/echo --ca {}",
            cluster.gateway,
            state.ca_file().display()
        ),
        format!("  Logs    {}", state.path("log").display()),
        "  Ctrl-C drains and stops.".to_owned(),
        String::new(),
    ]);
    lines.join("\n")
}

fn say(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{text}").context("standard output")
}

/// An old ready file would tell of processes that are gone.
fn remove_old(file: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("ready file {}", file.display()))
        }
        _ => Ok(()),
    }
}
