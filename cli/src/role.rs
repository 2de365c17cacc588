//! Runs one role as a process: configuration, recorder, ops, role, ready file, until a signal.

use std::{
    convert::Infallible,
    future::{Future, pending},
    net::SocketAddr,
    path::PathBuf,
};

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;
use wavry_credentials::source::Finding;
use wavry_transport::mesh::Viewer;

use crate::{check, config, log, ops, ready, shutdown};

/// A role that this binary can play.
pub(crate) trait Role: config::Table {
    /// It, once it serves.
    type Running: Send;

    /// Describes its metrics to the recorder.
    fn describe_metrics();
    /// Looks at all that it needs, without starting it.
    fn check(config: &Self::Config) -> impl Future<Output = Vec<Finding>>;
    /// Returns when it can serve.
    fn start(config: Self::Config) -> impl Future<Output = anyhow::Result<Self::Running>>;
    /// Where it serves.
    fn address(running: &Self::Running) -> SocketAddr;
    /// Keeps `ready` what it is to be while the role serves. One that serves is ready unless it knows better.
    fn keep_ready(
        _running: &Self::Running,
        ready: ops::Ready,
    ) -> impl Future<Output = Infallible> + Send + use<Self> {
        async move {
            ready.set(true);
            pending().await
        }
    }
    /// Looks at its part of the mesh, if it has one.
    fn viewer(_running: &Self::Running) -> Option<Viewer> {
        None
    }
    /// Serves until `shutdown`, then drains.
    fn run(
        running: Self::Running,
        shutdown: CancellationToken,
    ) -> impl Future<Output = anyhow::Result<()>>;
}

/// Flags that every role's subcommand has.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// TOML file with the role's table and [ops] and [log]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Write {"role","pid","address","ops"} to FILE once the role serves
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Address of the ops listener (metrics, health, readiness); overrides ops.listen
    #[arg(long, value_name = "ADDRESS")]
    ops_listen: Option<String>,
    /// How log lines look; overrides log.format
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<log::Format>,
    /// Look at the configuration and every secret that it takes, say what is wrong, and do not start
    #[arg(long)]
    check: bool,
    /// Also shut down when standard input ends
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
}

impl Args {
    /// The flags that every role has, as configuration.
    pub(crate) fn flags(&self) -> config::Flags {
        let mut flags = config::Flags::default();
        flags.set("ops.listen", "--ops-listen", self.ops_listen.clone());
        let format = self.log_format.map(|format| match format {
            log::Format::Human => "human",
            log::Format::Json => "json",
        });
        flags.set("log.format", "--log-format", format);
        flags
    }
}

/// Plays role `R` until it is told to stop.
pub(crate) async fn run<R: Role>(args: &Args, flags: &config::Flags) -> anyhow::Result<()> {
    let config::Loaded { role, ops, log } =
        config::load::<R>(args.config.as_deref(), environment(), flags)?;
    if args.check {
        return check::report(&R::check(&role).await);
    }
    log::start(log);

    let metrics = ops::install_recorder()?;
    describe_metrics::<R>();
    count_build(R::NAME);

    let shutdown = shutdown::on_signal()?;
    if args.until_stdin_closes {
        shutdown::on_stdin_end(shutdown.clone());
    }
    let is_ready = ops::Ready::default();
    let mesh = ops::Mesh::default();
    let ops = ops::Ops::bind(&ops, metrics, is_ready.clone(), mesh.clone()).await?;
    let ops_address = ops.address();
    // Ops answers until the very end, also while the role drains.
    let ops_shutdown = CancellationToken::new();
    let ops = tokio::spawn(ops.run(ops_shutdown.clone()));

    let running = tokio::select! {
        started = R::start(role) => started.with_context(|| format!("{} cannot start", R::NAME))?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let address = R::address(&running);
    mesh.serves(R::viewer(&running));
    is_ready.set(true);
    let readiness = R::keep_ready(&running, is_ready.clone());
    tracing::info!(role = R::NAME, %address, ops = %ops_address, "serving");
    if let Some(file) = &args.ready_file {
        let content = ready::Role {
            role: R::NAME.to_owned(),
            pid: std::process::id(),
            address,
            ops: Some(format!("http://{ops_address}/metrics")),
        };
        ready::write(file, &content)?;
    }

    let ready_until_told = async {
        shutdown.run_until_cancelled(readiness).await;
        is_ready.set(false);
        pending().await
    };
    let result = tokio::select! {
        result = R::run(running, shutdown.clone()) => result,
        never = ready_until_told => never,
    };
    ops_shutdown.cancel();
    let _ = ops.await;
    result.with_context(|| format!("{} failed", R::NAME))
}

pub(crate) fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok()?;
        Some((name, value.to_string_lossy().into_owned()))
    })
}

/// Describes what a role can count, and what the layers under it can.
fn describe_metrics<R: Role>() {
    metrics::describe_gauge!("wavry_build_info", "1, labelled with version and role");
    wavry_credentials::metrics::describe();
    wavry_transport::metrics::describe();
    R::describe_metrics();
}

fn count_build(role: &'static str) {
    metrics::gauge!("wavry_build_info", "version" => env!("CARGO_PKG_VERSION"), "role" => role)
        .set(1.0);
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path, sync::Mutex};

    use metrics::{
        Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    };
    use serde_json::Value;

    use super::*;
    use crate::roles::{Gateway, KeyVault, Master, Relay};

    /// Keeps the names, and in which words each kind was described.
    #[derive(Default)]
    struct Names(Mutex<BTreeSet<(String, &'static str)>>);

    impl Names {
        fn add(&self, name: &KeyName, kind: &'static str) {
            self.0
                .lock()
                .unwrap()
                .insert((name.as_str().to_owned(), kind));
        }
    }

    impl Recorder for Names {
        fn describe_counter(&self, name: KeyName, _: Option<Unit>, _: SharedString) {
            self.add(&name, "counter");
        }
        fn describe_gauge(&self, name: KeyName, _: Option<Unit>, _: SharedString) {
            self.add(&name, "gauge");
        }
        fn describe_histogram(&self, name: KeyName, _: Option<Unit>, _: SharedString) {
            self.add(&name, "histogram");
        }
        fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
            Counter::noop()
        }
        fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::noop()
        }
        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::noop()
        }
    }

    #[test]
    fn the_documented_metrics_are_those_of_the_code() {
        let names = Names::default();
        metrics::with_local_recorder(&names, || {
            describe_metrics::<Master>();
            describe_metrics::<KeyVault>();
            describe_metrics::<Gateway>();
            describe_metrics::<Relay>();
        });
        let described = names.0.into_inner().unwrap();

        let page = include_str!("../../docs/METRICS.md");
        let documented: BTreeSet<(String, &str)> = page
            .lines()
            .filter_map(|line| {
                let mut cells = line.strip_prefix("| `wavry_")?.split(" | ");
                let name = cells.next()?.trim_end_matches('`');
                Some((format!("wavry_{name}"), cells.next()?.trim()))
            })
            .collect();
        let missing: Vec<_> = described.difference(&documented).collect();
        let gone: Vec<_> = documented.difference(&described).collect();
        assert!(missing.is_empty(), "not in docs/METRICS.md: {missing:?}");
        assert!(gone.is_empty(), "not in the code: {gone:?}");
        for (name, kind) in &described {
            assert_eq!(name.ends_with("_total"), *kind == "counter", "{name}");
        }

        let rules = files("prometheus");
        assert!(rules.len() > 3, "{rules:?}");
        for file in rules.into_iter().chain(files("grafana")) {
            let text = fs::read_to_string(&file).unwrap();
            let words = text.split(|c: char| c != '_' && !c.is_ascii_alphanumeric());
            let mut used = words.filter(|word| word.starts_with("wavry_")).peekable();
            assert!(used.peek().is_some(), "{} uses none", file.display());
            for name in used {
                let is_described = described.iter().any(|(known, _)| known == name);
                assert!(
                    is_described,
                    "{name}, which {} is about, is not in the code",
                    file.display()
                );
            }
        }
    }

    /// The files of a folder of `deploy`.
    fn files(folder: &str) -> Vec<PathBuf> {
        let deploy = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");
        let entries = fs::read_dir(Path::new(deploy).join(folder)).unwrap();
        let files = entries.map(|entry| entry.unwrap().path());
        files.filter(|file| file.is_file()).collect()
    }

    #[test]
    fn the_board_of_the_mesh_has_all_that_is_counted_of_it_and_no_panel_hides_another() {
        let board = include_str!("../../deploy/grafana/mesh.json");
        let board: Value = serde_json::from_str(board).unwrap();
        let (mut ids, mut places, mut shown) = (BTreeSet::new(), BTreeSet::new(), String::new());
        for panel in board["panels"].as_array().unwrap() {
            let title = panel["title"].as_str().unwrap();
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}");
            let at = |side: &str| panel["gridPos"][side].as_u64().unwrap();
            for x in at("x")..at("x") + at("w") {
                for y in at("y")..at("y") + at("h") {
                    assert!(x < 24 && places.insert((x, y)), "{title}");
                }
            }
            if panel["type"] == "row" {
                continue;
            }
            for target in panel["targets"].as_array().unwrap() {
                let expression = target["expr"].as_str().unwrap();
                assert!(expression.contains("$instance"), "{title}: {expression}");
                shown.push_str(expression);
            }
        }
        let names = Names::default();
        metrics::with_local_recorder(&names, describe_metrics::<Relay>);
        let described = names.0.into_inner().unwrap();
        let mut of_mesh = 0;
        for (name, _) in &described {
            let of = ["overlay_", "transit_", "mesh_"];
            let of_transport = name.strip_prefix("wavry_transport_");
            if of_transport.is_some_and(|name| of.iter().any(|of| name.starts_with(of))) {
                of_mesh += 1;
                assert!(
                    shown.contains(&format!("{name}{{")),
                    "{name} is on no panel"
                );
            }
        }
        assert!(of_mesh > 20, "{described:?}");
    }
}
