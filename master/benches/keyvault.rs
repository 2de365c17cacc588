//! What the KeyVault's store does in a second, and what of its cost is encryption, audit and sync.
//!
//! ```sh
//! cargo bench -p wavry-master --bench keyvault -- --seconds 10 --json keyvault.json
//! ```
//!
//! With `--rotation`, two instances on one PostgreSQL are read from a thousand times a second, on record,
//! while the master key is replaced; a read that fails makes the command fail.
//!
//! Each line is one composition of the same parts, on SQLite and on PostgreSQL (a server of its own,
//! started here): what is left out in one of them shows what it costs. The parts can be left out here
//! only. Databases lie in the directory that `TMPDIR` names, whose disk the syncs are of.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what a command prints is its result"
)]

use std::{
    env, fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use wavry_credentials::{
    audit::{self, Action, Event},
    key::aead,
    secret::Secret,
    token::SigningKey,
};
use wavry_master::keyvault::{
    Config, KeyVault,
    barrier::{Barrier, Change, Guard, Rotate},
    seal,
    store::Location,
};

#[path = "../tests/support/postgres.rs"]
mod postgres;

/// Secrets that are read in turn, of 256 bytes.
const ENTRIES: usize = 2000;
/// Who asks at the same time: units behind keep-alive connections.
const CLIENTS: usize = 256;
/// Reads in a second while the master key is replaced.
const RATE: u32 = 1000;

/// What is done over and over.
#[derive(Clone, Copy)]
enum Work {
    /// Nothing is kept and nothing is told: two decryptions.
    Decrypt,
    /// An entry is read, and nobody told.
    Read,
    /// Somebody is told, and nothing read.
    Audit,
    /// An entry is read once that is on record.
    AuditedRead,
    /// As audited reads, one after the other: nobody to share a sync with.
    Alone,
    /// An entry gets a new version, on record.
    AuditedWrite,
}

const WORKS: [(Work, &str); 6] = [
    (Work::Decrypt, "decrypt (no store, no audit)"),
    (Work::Read, "read (no audit)"),
    (Work::Audit, "audit (no read)"),
    (Work::AuditedRead, "audited read"),
    (Work::Alone, "audited read, one client"),
    (Work::AuditedWrite, "audited write"),
];

struct Figure {
    store: &'static str,
    work: &'static str,
    per_second: f64,
    p50: Duration,
    p99: Duration,
    failed: u64,
}

fn main() {
    let Arguments {
        duration,
        json,
        rotation,
    } = arguments();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let figures = runtime.block_on(async {
        let mut figures = Vec::new();
        if rotation {
            let server = postgres::Server::start(true);
            let url = server.database("rotation").await;
            let location = Location::Postgres(url.parse().expect("a URL"));
            figures.push(rotate_under_load(&location, duration).await);
            return figures;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("keyvault.db");
        measure("SQLite", Location::Sqlite(file), duration, &mut figures).await;
        let server = postgres::Server::start(true);
        let url = server.database("keyvault").await;
        let location = Location::Postgres(url.parse().expect("a URL"));
        measure("PostgreSQL", location, duration, &mut figures).await;
        figures
    });
    print(&figures);
    if let Some(file) = json {
        fs::write(file, to_json(&figures)).expect("the figures are written");
    }
    if figures.iter().any(|figure| figure.failed > 0) {
        std::process::exit(1);
    }
}

struct Arguments {
    duration: Duration,
    json: Option<String>,
    rotation: bool,
}

fn arguments() -> Arguments {
    let mut seconds = 5;
    let mut json = None;
    let mut rotation = false;
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match &*argument {
            "--seconds" => {
                let text = arguments.next().unwrap_or_default();
                seconds = text.parse().expect("--seconds NUMBER");
            }
            "--json" => json = arguments.next(),
            "--rotation" => rotation = true,
            // cargo's own.
            "--bench" => {}
            other => panic!("unknown argument {other}: --seconds NUMBER --json FILE --rotation"),
        }
    }
    Arguments {
        duration: Duration::from_secs(seconds),
        json,
        rotation,
    }
}

async fn measure(
    store: &'static str,
    location: Location,
    duration: Duration,
    figures: &mut Vec<Figure>,
) {
    let vault = filled(location).await;
    for (work, name) in WORKS {
        let clients = match work {
            Work::Alone => 1,
            _ => CLIENTS,
        };
        figures.push(run(store, name, work, vault.barrier(), clients, duration).await);
    }
    vault.close().await;
}

/// A KeyVault with entries to read.
async fn filled(location: Location) -> KeyVault {
    let vault = open(location, &audit_key()).await;
    let key = aead::Key::generate();
    vault
        .initialise(&key, seal::Config::Key)
        .await
        .expect("it is initialised");
    vault.unseal(key).await.expect("it is unsealed");
    let mut change = Change::default();
    for i in 0..ENTRIES {
        change.put(path(i), secret());
    }
    vault.barrier().commit(change).await.expect("it is filled");
    vault
}

async fn open(location: Location, audit: &Arc<audit::Key>) -> KeyVault {
    let config = Config {
        guard: Guard::default(),
        ..Config::at(location)
    };
    KeyVault::open(&config, audit.clone())
        .await
        .expect("it opens")
}

fn audit_key() -> Arc<audit::Key> {
    let key = SigningKey::generate().to_paserk();
    let key = audit::Key::from_paserk(&key, "bench".parse().expect("a name"));
    Arc::new(key.expect("a key"))
}

/// Reads at a steady rate from two instances, and replaces the master key a third of the way.
async fn rotate_under_load(location: &Location, duration: Duration) -> Figure {
    let audit = audit_key();
    let one = open(location.clone(), &audit).await;
    let key = aead::Key::generate();
    let text = key.to_paserk();
    one.initialise(&key, seal::Config::Key)
        .await
        .expect("it is initialised");
    one.unseal(key).await.expect("it is unsealed");
    let mut change = Change::default();
    for i in 0..ENTRIES {
        change.put(path(i), secret());
    }
    one.barrier().commit(change).await.expect("it is filled");
    let other = open(location.clone(), &audit).await;
    let key = aead::Key::read(&text).expect("a key");
    other.unseal(key).await.expect("it is unsealed");

    let rotation = {
        let barrier = one.barrier().clone();
        tokio::spawn(async move {
            tokio::time::sleep(duration / 3).await;
            let began = Instant::now();
            let rotate = Rotate {
                master_key: Some(aead::Key::generate()),
                seal: None,
                event: Event::now(Action::Rekey, "master key", "bench"),
            };
            barrier.rotate(rotate).await.expect("it begins");
            while barrier.rotation().await.expect("it is unsealed").is_running {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            began.elapsed()
        })
    };
    let began = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_secs(1) / RATE);
    let mut reads = tokio::task::JoinSet::new();
    let mut at = 0;
    while began.elapsed() < duration {
        tick.tick().await;
        at += 1;
        let barrier = if at % 2 == 0 { &one } else { &other }.barrier().clone();
        reads.spawn(async move {
            let began = Instant::now();
            let is_done = read(&barrier, at).await && tell(&barrier, at).await;
            (began.elapsed(), is_done)
        });
    }
    let mut times = Vec::new();
    let mut failed = 0;
    while let Some(read) = reads.join_next().await {
        let (time, is_done) = read.expect("no reader panics");
        times.push(time);
        failed += u64::from(!is_done);
    }
    let elapsed = began.elapsed();
    let took = rotation.await.expect("it does not panic");
    eprintln!("the master key was replaced in {:.1} s", took.as_secs_f64());
    one.close().await;
    other.close().await;
    Figure::of(
        "PostgreSQL, two instances",
        "audited reads across a rotation",
        times,
        failed,
        elapsed,
    )
}

async fn run(
    store: &'static str,
    name: &'static str,
    work: Work,
    barrier: &Barrier,
    clients: usize,
    duration: Duration,
) -> Figure {
    let stop = Arc::new(AtomicBool::new(false));
    let began = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let (barrier, stop) = (barrier.clone(), stop.clone());
            tokio::spawn(async move {
                let key = aead::Key::generate();
                let wrapped = key.wrap(b"place", &key);
                let sealed = key.seal(b"place", &secret());
                let mut times = Vec::new();
                let mut failed = 0;
                let mut at = client * 7919;
                while !stop.load(Ordering::Relaxed) {
                    at += 1;
                    // What waits for nothing lets others run all the same.
                    tokio::task::yield_now().await;
                    let began = Instant::now();
                    let is_done = match work {
                        Work::Decrypt => {
                            let key = key.unwrap(b"place", &wrapped);
                            key.and_then(|key| key.open(b"place", &sealed)).is_ok()
                        }
                        Work::Read => read(&barrier, at).await,
                        Work::Audit => tell(&barrier, at).await,
                        Work::AuditedRead | Work::Alone => {
                            read(&barrier, at).await && tell(&barrier, at).await
                        }
                        Work::AuditedWrite => {
                            let mut change = Change::default();
                            change.put(path(at % ENTRIES), secret());
                            change.record(event(at));
                            barrier.commit(change).await.is_ok()
                        }
                    };
                    times.push(began.elapsed());
                    failed += u64::from(!is_done);
                }
                (times, failed)
            })
        })
        .collect();
    tokio::time::sleep(duration).await;
    stop.store(true, Ordering::Relaxed);
    let mut times = Vec::new();
    let mut failed = 0;
    for task in tasks {
        let (its_times, its_failed) = task.await.expect("no client panics");
        times.extend(its_times);
        failed += its_failed;
    }
    Figure::of(store, name, times, failed, began.elapsed())
}

impl Figure {
    fn of(
        store: &'static str,
        work: &'static str,
        mut times: Vec<Duration>,
        failed: u64,
        elapsed: Duration,
    ) -> Self {
        times.sort_unstable();
        let percentile = |percent: usize| {
            let at = (times.len() * percent / 100).min(times.len().saturating_sub(1));
            times.get(at).copied().unwrap_or_default()
        };
        Self {
            store,
            work,
            per_second: times.len() as f64 / elapsed.as_secs_f64(),
            p50: percentile(50),
            p99: percentile(99),
            failed,
        }
    }
}

async fn read(barrier: &Barrier, at: usize) -> bool {
    let entry = barrier.read(&path(at % ENTRIES)).await;
    entry.is_ok_and(|entry| entry.is_some())
}

async fn tell(barrier: &Barrier, at: usize) -> bool {
    let mut change = Change::default();
    change.record(event(at));
    barrier.commit(change).await.is_ok()
}

fn path(i: usize) -> String {
    format!("logical/0123456789abcdef/unit-{i}/password")
}

fn secret() -> Secret<Vec<u8>> {
    Secret::new(vec![7; 256])
}

fn event(at: usize) -> Event {
    let mut event = Event::now(
        Action::Read,
        format!("unit-{}", at % ENTRIES),
        "secret/data/x",
    );
    "unit".clone_into(&mut event.actor);
    event.request = Some(format!("{at:016x}"));
    event.source = Some(([127, 0, 0, 1], 40_000).into());
    event
}

fn print(figures: &[Figure]) {
    println!("| store | work | per second | p50 | p99 | failed |");
    println!("|---|---|---:|---:|---:|---:|");
    for figure in figures {
        println!(
            "| {} | {} | {:.0} | {:.2} ms | {:.2} ms | {} |",
            figure.store,
            figure.work,
            figure.per_second,
            milliseconds(figure.p50),
            milliseconds(figure.p99),
            figure.failed
        );
    }
}

fn to_json(figures: &[Figure]) -> String {
    let figures: Vec<_> = figures
        .iter()
        .map(|figure| {
            serde_json::json!({
                "store": figure.store,
                "work": figure.work,
                "per_second": figure.per_second,
                "p50_ms": milliseconds(figure.p50),
                "p99_ms": milliseconds(figure.p99),
                "failed": figure.failed,
            })
        })
        .collect();
    serde_json::Value::from(figures).to_string()
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
