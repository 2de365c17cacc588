//! The session layer beside bare quinn and other libraries': the same client, the same application,
//! each server a process of its own.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use crate::{
    Better, Error, Report, Row,
    measure::median,
    progress,
    servers::{self, Certificates, Client, Kind, Moved, Process, Session},
};

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Servers to compare; all that are compiled in unless given
    #[arg(long = "server", value_enum)]
    servers: Vec<Kind>,
    /// What to measure; everything unless given
    #[arg(long = "measure", value_enum)]
    measures: Vec<Measure>,
    /// Times each measurement is taken on each server, in turns, each time on new processes; the
    /// medians are reported
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Milliseconds that one measurement takes
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(10..=600_000))]
    round_ms: u64,
    /// Handshakes at once
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=100))]
    concurrency: u32,
    /// Idle sessions, each on a connection of its own
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    sessions: u32,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub(super) json: bool,
}

/// One server, for the others' comparison: `wavry loadtest server KIND`.
#[derive(Debug, Clone, clap::Args)]
pub struct ServerArgs {
    /// Which one
    #[arg(value_enum)]
    kind: Kind,
    /// Directory that a comparison made its certificates in
    #[arg(long)]
    certificates: PathBuf,
}

/// What is measured of each server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Measure {
    /// Connections made, sessions opened on them, and both closed
    Handshakes,
    /// Bytes that go to the server on one stream
    Upload,
    /// Bytes that go there and come back on one stream
    Echo,
    /// Datagrams that the server takes
    Datagrams,
    /// Datagrams that come back, sixty under way
    DatagramEcho,
    /// Memory that a session keeps while nothing happens
    Idle,
}

impl Measure {
    const ALL: [Self; 6] = [
        Self::Handshakes,
        Self::Upload,
        Self::Echo,
        Self::Datagrams,
        Self::DatagramEcho,
        Self::Idle,
    ];
}

/// Of bare quinn's rate.
const GOAL_STREAMS: f64 = 0.95;
const GOAL_DATAGRAMS: f64 = 0.90;
/// What an idle session may keep, in bytes.
const IDLE_ALLOWANCE: f64 = 24.0 * 1024.0;
/// Sessions opened before the memory of one is measured: what the first ones cost is the server's.
const FIRST_SESSIONS: u32 = 100;
/// Idle sessions are opened so many at once.
const OPENING: usize = 32;
/// How long sessions are left alone before their memory is looked at.
const SETTLE: Duration = Duration::from_secs(2);

/// One server and a session on it.
struct Subject {
    kind: Kind,
    process: Process,
    client: Client,
    session: Session,
}

/// One round's result.
#[derive(Debug, Clone, Copy)]
struct Taken {
    kind: Kind,
    measure: Measure,
    /// Per second.
    rate: f64,
    /// The server's processor time for one of what is counted, in microseconds.
    processor: Option<f64>,
    /// Share that did not arrive.
    lost: f64,
}

pub(super) async fn run(args: &Args) -> Result<Report, Error> {
    let kinds = match args.servers.is_empty() {
        true => <Kind as clap::ValueEnum>::value_variants().to_vec(),
        false => args.servers.clone(),
    };
    let measures = match args.measures.is_empty() {
        true => Measure::ALL.to_vec(),
        false => args.measures.clone(),
    };
    if !kinds.contains(&Kind::Wavry) {
        return Err(Error::Argument("--server: compare with `wavry`".to_owned()));
    }
    let directory = tempfile::tempdir().map_err(|error| Error::Baseline(error.to_string()))?;
    let certificates = Certificates::issue(directory.path())?;

    let mut rows = Vec::new();
    let moving: Vec<_> = measures.iter().filter(|m| **m != Measure::Idle).collect();
    if !moving.is_empty() {
        let round = Duration::from_millis(args.round_ms);
        let warm_up = round.min(Duration::from_millis(200));
        let mut taken = Vec::new();
        for number in 1..=args.rounds {
            progress(&format!("round {number} of {}", args.rounds));
            // Where a process has its memory and its threads is luck that lasts as long as it does,
            // and worth a tenth.
            let mut subjects = Vec::new();
            for &kind in &kinds {
                subjects.push(Subject::start(kind, directory.path(), &certificates).await?);
            }
            for &&measure in &moving {
                for turn in 0..subjects.len() {
                    // Nobody always follows the same one.
                    let subject = &subjects[(turn + number as usize) % subjects.len()];
                    // The first packets, windows and threads are no part of the measure.
                    subject.take(measure, warm_up, args.concurrency).await?;
                    taken.push(subject.take(measure, round, args.concurrency).await?);
                }
            }
            for subject in subjects {
                subject.stop().await;
            }
        }
        for &&measure in &moving {
            rows.extend(compare(measure, &kinds, &taken));
        }
    }
    if measures.contains(&Measure::Idle) {
        let mut figures = Vec::new();
        for &kind in &kinds {
            progress(&format!(
                "{} idle sessions on {}",
                args.sessions,
                kind.name()
            ));
            let process = Process::start(kind, directory.path()).await?;
            let client = Client::new(kind, process.address(), &certificates)?;
            let bytes = idle(&process, client, args.sessions).await?;
            process.stop().await;
            figures.push((kind, bytes));
        }
        rows.push(beside(
            "idle_session_memory",
            "bytes",
            Better::Less,
            &figures,
            None,
        ));
        let own = figures.iter().find(|(kind, _)| *kind == Kind::Wavry);
        if let Some(&(_, bytes)) = own {
            rows.push(Row::compared(
                "idle_session_allowance",
                "bytes",
                Better::Less,
                bytes,
                IDLE_ALLOWANCE,
                1.0,
            ));
        }
    }
    Ok(Report {
        scenario: "servers",
        results: rows,
        failures: Vec::new(),
    })
}

/// Serves until standard input ends, and says where on standard output.
pub(crate) async fn serve(args: &ServerArgs) -> Result<(), Error> {
    // As in a node, whose counters count.
    metrics_exporter_prometheus::PrometheusBuilder::new()
        .install_recorder()
        .map_err(|error| Error::Argument(format!("this process's own metrics: {error}")))?;
    let certificates = Certificates::of(&args.certificates);
    let serving = servers::serve(args.kind, &certificates, |address| {
        use std::io::Write as _;
        // Nobody who reads it: then nobody connects either.
        let _ = writeln!(std::io::stdout(), "{address}");
    });
    let (end, ended) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = end.send(());
    });
    tokio::select! {
        served = serving => served,
        _ = ended => Ok(()),
    }
}

impl Subject {
    async fn start(
        kind: Kind,
        directory: &std::path::Path,
        certificates: &Certificates,
    ) -> Result<Self, Error> {
        let process = Process::start(kind, directory).await?;
        let client = Client::new(kind, process.address(), certificates)?;
        let session = client.connect().await?;
        Ok(Self {
            kind,
            process,
            client,
            session,
        })
    }

    async fn stop(self) {
        self.session.close();
        self.client.close().await;
        self.process.stop().await;
    }

    async fn take(
        &self,
        measure: Measure,
        duration: Duration,
        concurrency: u32,
    ) -> Result<Taken, Error> {
        let session = &self.session;
        let used = self.process.processor_time();
        let moved = match measure {
            Measure::Handshakes => handshakes(&self.client, duration, concurrency).await?,
            Measure::Upload => session.upload(duration).await?,
            Measure::Echo => session.echo(duration).await?,
            Measure::Datagrams => session.datagrams(duration).await?,
            Measure::DatagramEcho => session.datagram_echo(duration).await?,
            Measure::Idle => return Err(Error::Argument("idle has no rate".to_owned())),
        };
        let count = moved.count as f64;
        let processor = self.process.processor_time().zip(used);
        Ok(Taken {
            kind: self.kind,
            measure,
            rate: count / moved.elapsed.as_secs_f64(),
            processor: processor.map(|(now, then)| (now - then).as_secs_f64() * 1e6 / count),
            lost: moved.lost as f64 / (count + moved.lost as f64),
        })
    }
}

/// Sessions that are opened, each on a connection of its own, and closed with it.
async fn handshakes(client: &Client, duration: Duration, at_once: u32) -> Result<Moved, Error> {
    let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let start = Instant::now();
    let worker = async || {
        while !stop.load(Ordering::Relaxed) && start.elapsed() < duration {
            match client.connect().await {
                Ok(session) => session.close(),
                Err(error) => {
                    stop.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
            done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    let workers = futures_util::future::join_all((0..at_once).map(|_| worker())).await;
    let elapsed = start.elapsed();
    workers.into_iter().collect::<Result<(), Error>>()?;
    Ok(Moved {
        count: done.into_inner(),
        lost: 0,
        elapsed,
    })
}

/// Bytes by which the server grew for each session.
async fn idle(process: &Process, client: Client, sessions: u32) -> Result<f64, Error> {
    let client = Arc::new(client);
    let mut held = open(&client, FIRST_SESSIONS).await?;
    tokio::time::sleep(SETTLE).await;
    let before = process.resident()?;
    held.extend(open(&client, sessions).await?);
    tokio::time::sleep(SETTLE).await;
    let after = process.resident()?;
    for session in held {
        session.close();
    }
    Ok(after.saturating_sub(before) as f64 / f64::from(sessions))
}

async fn open(client: &Arc<Client>, count: u32) -> Result<Vec<Session>, Error> {
    let mut opening = JoinSet::new();
    let mut opened = Vec::with_capacity(count as usize);
    for _ in 0..count {
        if opening.len() == OPENING {
            opened.extend(next(&mut opening).await.transpose()?);
        }
        let client = client.clone();
        opening.spawn(async move { client.connect().await });
    }
    while let Some(session) = next(&mut opening).await.transpose()? {
        opened.push(session);
    }
    Ok(opened)
}

async fn next(opening: &mut JoinSet<Result<Session, Error>>) -> Option<Result<Session, Error>> {
    match opening.join_next().await? {
        Ok(opened) => Some(opened),
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

/// The rows of one measure.
fn compare(measure: Measure, kinds: &[Kind], taken: &[Taken]) -> Vec<Row> {
    let (name, unit, goal) = match measure {
        Measure::Handshakes => ("handshakes", "1/s", GOAL_STREAMS),
        Measure::Upload => ("upload", "bytes/s", GOAL_STREAMS),
        Measure::Echo => ("echo", "bytes/s", GOAL_STREAMS),
        Measure::Datagrams => ("datagrams", "1/s", GOAL_DATAGRAMS),
        Measure::DatagramEcho => ("datagram_echo", "1/s", GOAL_DATAGRAMS),
        Measure::Idle => return Vec::new(),
    };
    // Of one, or of a megabyte.
    let (processor_unit, scale) = match measure {
        Measure::Upload | Measure::Echo => ("µs/MB", 1e6),
        _ => ("µs", 1.0),
    };
    let figures = |figure: &dyn Fn(&Taken) -> Option<f64>| -> Vec<(Kind, f64)> {
        let of = |kind: Kind| {
            let own = taken
                .iter()
                .filter(|taken| (taken.kind, taken.measure) == (kind, measure));
            median(own.filter_map(figure).collect())
        };
        kinds.iter().map(|&kind| (kind, of(kind))).collect()
    };
    let rates = figures(&|taken| Some(taken.rate));
    let mut rows = vec![beside(name, unit, Better::More, &rates, Some(goal))];
    let processor = figures(&|taken| taken.processor.map(|micros| micros * scale));
    if processor.iter().all(|(_, figure)| figure.is_finite()) {
        let name = format!("{name}_server_time");
        rows.push(beside(name, processor_unit, Better::Less, &processor, None));
    }
    if measure == Measure::Datagrams {
        let lost = figures(&|taken| Some(taken.lost * 100.0));
        rows.push(beside("datagrams_lost", "%", Better::Less, &lost, None));
    }
    rows
}

/// Wavry's figure beside bare quinn's and the others'.
fn beside(
    name: impl Into<String>,
    unit: &'static str,
    better: Better,
    figures: &[(Kind, f64)],
    goal: Option<f64>,
) -> Row {
    let of = |kind: Kind| figures.iter().find(|(k, _)| *k == kind).map(|(_, f)| *f);
    let own = of(Kind::Wavry).unwrap_or(f64::NAN);
    let mut row = match of(Kind::Quinn) {
        Some(bare) => Row::compared(name, unit, better, own, bare, 0.0),
        None => Row::plain(name, unit, own),
    };
    row.goal = goal;
    let others = figures
        .iter()
        .filter(|(kind, _)| !matches!(kind, Kind::Wavry | Kind::Quinn));
    row.others = others
        .map(|(kind, figure)| (kind.name(), *figure))
        .collect();
    row
}
