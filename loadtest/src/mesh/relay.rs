//! A transit relay in a process of its own: it can be killed, and its memory is its alone.

use std::{
    collections::BTreeMap,
    io::Write as _,
    net::SocketAddr,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use metrics_exporter_prometheus::PrometheusBuilder;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;
use wavry_credentials::{identity::Identity, token::lease::Verifier};
use wavry_proto::{
    control::Roster,
    id::{NodeId, PublicKey},
    overlay::transit::Limits,
};
use wavry_transport::{
    mesh,
    transit::{self, Transit},
};

use super::failed;
use crate::{Error, ops, servers::resident, shaper::Host};

/// How long it may take to be there, to answer, or to end.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What the process is told, one line each.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    /// This is the roster now.
    Roster(Arc<Roster>),
    /// Leave as soon as nobody sends through it.
    Drain,
    /// Tell the page of metrics.
    Metrics,
}

/// What it says first.
#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    key: PublicKey,
    address: SocketAddr,
}

/// The process. It is killed when this is dropped.
pub(crate) struct Relay {
    pub(crate) id: NodeId,
    pub(crate) host: Host,
    pub(crate) key: PublicKey,
    /// Where its socket really is.
    pub(crate) address: SocketAddr,
    child: Child,
    words: mpsc::Sender<Word>,
    said: Lines<BufReader<ChildStdout>>,
}

impl Relay {
    /// Starts one from the current executable; it follows the roster.
    pub(super) async fn start(
        name: &str,
        host: Host,
        limits: Limits,
        mut roster: watch::Receiver<Arc<Roster>>,
    ) -> Result<Self, Error> {
        let mut child = Command::new(std::env::current_exe().map_err(failed)?)
            .args(["loadtest", "transit-relay", name])
            .arg("--bytes-per-second")
            .arg(limits.bytes_per_second.to_string())
            .arg("--packets-per-second")
            .arg(limits.packets_per_second.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (mut stdin, stdout) = pipes.ok_or_else(|| failed("a process without pipes"))?;
        let mut said = BufReader::new(stdout).lines();
        let hello: Hello = read(&mut said).await?;
        let (words, mut told) = mpsc::channel(1);
        tokio::spawn(async move {
            roster.mark_changed();
            loop {
                let word = tokio::select! {
                    changed = roster.changed() => match changed {
                        Ok(()) => Word::Roster(roster.borrow_and_update().clone()),
                        Err(_) => break,
                    },
                    word = told.recv() => match word {
                        Some(word) => word,
                        None => break,
                    },
                };
                let Ok(mut line) = serde_json::to_vec(&word) else {
                    break;
                };
                line.push(b'\n');
                if stdin.write_all(&line).await.is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            id: name.parse().map_err(failed)?,
            host,
            key: hello.key,
            address: hello.address,
            child,
            words,
            said,
        })
    }

    /// Ends it without a word (SIGKILL).
    pub(crate) async fn kill(&mut self) -> Result<(), Error> {
        self.child.kill().await.map_err(failed)
    }

    /// Tells it to leave.
    pub(crate) async fn drain(&self) -> Result<(), Error> {
        self.words.send(Word::Drain).await.map_err(failed)
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn ended(&mut self) -> Result<ExitStatus, Error> {
        let ended = tokio::time::timeout(TIMEOUT, self.child.wait()).await;
        ended
            .map_err(|_| failed("a relay that was told to leave is still there"))?
            .map_err(failed)
    }

    /// What became of the packets that came to it, so far.
    pub(crate) async fn counts(&mut self) -> Result<Counts, Error> {
        self.words.send(Word::Metrics).await.map_err(failed)?;
        let page: String = read(&mut self.said).await?;
        let of = |what: &str, label| {
            ops::by_label(
                &page,
                &format!("wavry_transport_transit_{what}_total"),
                label,
            )
        };
        Ok(Counts {
            forwarded: ops::count(&page, "wavry_transport_transit_packets_total"),
            dropped: of("dropped", "reason"),
            claims: of("claims", "ruling"),
            attaches: of("attaches", "ruling"),
            leases: of("leases", "by"),
        })
    }

    /// Packets that the kernel had no room for in its socket: it never saw them.
    pub(crate) fn overflowed(&self) -> Result<u64, Error> {
        let port = format!(":{:04X}", self.address.port());
        let table = std::fs::read_to_string("/proc/net/udp").map_err(failed)?;
        let of_port = |line: &&str| {
            let local = line.split_whitespace().nth(1);
            local.is_some_and(|local| local.ends_with(&port))
        };
        let line = table.lines().find(of_port);
        let drops = line.and_then(|line| line.split_whitespace().last()?.parse().ok());
        drops.ok_or_else(|| failed("the kernel does not tell of a relay's socket"))
    }

    /// Bytes of memory that it has in use.
    pub(crate) fn resident(&self) -> Result<u64, Error> {
        resident(self.child.id().ok_or_else(|| failed("a relay has ended"))?)
    }
}

/// What became of packets that came to a relay.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    forwarded: i64,
    /// What it did not forward, by reason.
    pub(crate) dropped: BTreeMap<String, i64>,
    claims: BTreeMap<String, i64>,
    attaches: BTreeMap<String, i64>,
    leases: BTreeMap<String, i64>,
}

impl Counts {
    /// What was counted since `before`.
    pub(crate) fn since(mut self, before: &Self) -> Self {
        let less = |counts: &mut BTreeMap<String, i64>, before: &BTreeMap<String, i64>| {
            for (what, count) in counts {
                *count -= before.get(what).copied().unwrap_or_default();
            }
        };
        self.forwarded -= before.forwarded;
        less(&mut self.dropped, &before.dropped);
        less(&mut self.claims, &before.claims);
        less(&mut self.attaches, &before.attaches);
        less(&mut self.leases, &before.leases);
        self
    }

    /// Packets: each is forwarded, or dropped, or was a claim or an attach.
    pub(crate) fn packets(&self) -> i64 {
        let each = [&self.dropped, &self.claims, &self.attaches];
        self.forwarded + each.into_iter().flat_map(BTreeMap::values).sum::<i64>()
    }

    /// Claims that were ruled on so.
    pub(crate) fn claims(&self, ruling: &str) -> f64 {
        self.claims.get(ruling).copied().unwrap_or_default() as f64
    }

    /// Leases that were looked at, by `signature` or by `memory`.
    pub(crate) fn leases(&self, by: &str) -> f64 {
        self.leases.get(by).copied().unwrap_or_default() as f64
    }
}

async fn read<T: DeserializeOwned>(said: &mut Lines<BufReader<ChildStdout>>) -> Result<T, Error> {
    let line = tokio::time::timeout(TIMEOUT, said.next_line()).await;
    let line = line.map_err(|_| failed("a relay is silent"))?;
    let line = line
        .map_err(failed)?
        .ok_or_else(|| failed("a relay ended"))?;
    serde_json::from_str(&line).map_err(|_| failed("a relay says what nobody understands"))
}

/// The process's side.
#[derive(Debug, Clone, clap::Args)]
pub struct RelayArgs {
    /// Its id
    name: NodeId,
    /// Of each flow
    #[arg(long)]
    bytes_per_second: u64,
    /// Of each flow
    #[arg(long)]
    packets_per_second: u64,
}

/// Forwards until standard input ends, or until it was told to leave and nobody sends through it.
pub(crate) async fn serve(args: &RelayArgs) -> Result<(), Error> {
    let metrics = PrometheusBuilder::new()
        .install_recorder()
        .map_err(failed)?;
    let identity = Identity::generate();
    let roster = Roster::empty("loadtest".parse().map_err(failed)?);
    let cluster = roster.cluster.clone();
    let (publish, roster) = watch::channel(Arc::new(roster));
    let tls = identity.mesh_tls(roster.clone()).map_err(failed)?;
    let config = transit::Config {
        node: args.name.clone(),
        verifier: Arc::new(Verifier::new(cluster, roster.clone())),
        // There is none: the roster permits all.
        master: watch::channel(false).1,
        roster,
        authenticator: tls.authenticator,
        limits: Limits {
            bytes_per_second: args.bytes_per_second,
            packets_per_second: args.packets_per_second,
            ..Limits::default()
        },
        link: None,
    };
    let socket = mesh::bind(([127, 0, 0, 1], 0).into()).map_err(failed)?;
    let transit = Transit::new(socket, config).map_err(failed)?;
    say(&Hello {
        key: identity.public_key(),
        address: transit.local_addr(),
    })?;
    let draining = CancellationToken::new();
    let mut running = tokio::spawn(transit.run(draining.clone(), CancellationToken::new()));
    // Reading from standard input cannot be given up: the thread ends with the process.
    let (read, mut words) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if read.blocking_send(line).is_err() {
                break;
            }
        }
    });
    loop {
        let line = tokio::select! {
            _ = &mut running => return Ok(()),
            line = words.recv() => line,
        };
        let Some(line) = line else { return Ok(()) };
        match serde_json::from_str(&line).map_err(failed)? {
            Word::Roster(roster) => {
                publish.send_replace(roster);
            }
            Word::Drain => draining.cancel(),
            Word::Metrics => say(&metrics.render())?,
        }
    }
}

fn say(what: &impl Serialize) -> Result<(), Error> {
    let line = serde_json::to_string(what).map_err(failed)?;
    writeln!(std::io::stdout(), "{line}").map_err(failed)
}
