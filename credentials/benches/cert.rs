//! What a handshake pays for its certificate, with one name and with very many, while they change.
//!
//! ```sh
//! cargo bench -p wavry-credentials --bench cert -- --json cert.json
//! ```
//!
//! * `look-up`: a ClientHello, as rustls hands it to a resolver, is answered with a certificate by its name. Names
//!   are asked for at random by one thread or two, while nothing changes or while another thread puts a
//!   hundred new certificates a second in use. What the ClientHello itself costs is measured in the same
//!   run and taken off.
//! * `swap`: one new certificate is put in use; all are put in use in one step.
//! * `handshake`: full TLS 1.3 handshakes in memory, client and server on one thread, with this resolver and with
//!   one certificate that is configured, in turns.
//!
//! Beside the store stand what rustls brings (`ResolvesServerCertUsingSni`), which cannot be changed and so is
//! replaced behind a lock by another one that was made before; `DashMap`; `RwLock<HashMap>`; and a bare
//! `HashMap`, which nothing can change while it is read.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what a command prints is its result"
)]

use std::{
    env, fs,
    hint::black_box,
    io::Cursor,
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use rustls::{
    ClientConfig, ClientConnection, ServerConfig, ServerConnection,
    client::Resumption,
    server::{Accepted, Acceptor, ResolvesServerCert},
};
use rustls_pki_types::ServerName;
use serde_json::json;
use wavry_credentials::cert::{Store, Trust, client_config};

use alternatives::{Bare, Dash, Locked, Nothing, Sni};
use certificates::Certificates;

#[path = "cert/alternatives.rs"]
mod alternatives;
#[path = "cert/certificates.rs"]
mod certificates;

/// How many names a table has.
const SIZES: [usize; 3] = [1, 1_000, 100_000];
/// Names that each thread asks for, at most.
const ASKED: usize = 4096;
/// New certificates in a second.
const SWAPS: u32 = 100;
/// Answers that are timed together.
const BATCH: u32 = 256;
/// A batch that takes so long waited for a processor, which has nothing to do with what was asked.
const PREEMPTED: Duration = Duration::from_millis(1);
/// Medians are taken of so many.
const ROUNDS: usize = 5;

struct Arguments {
    json: Option<String>,
    /// Of one round of one row.
    duration: Duration,
    handshakes: usize,
}

fn main() {
    let arguments = arguments();
    let (mut lookups, mut swaps, mut handshakes) = (Vec::new(), Vec::new(), None);
    for size in SIZES {
        eprintln!("{size} names: making certificates");
        let certificates = Certificates::new(size);
        let store = Store::new();
        let began = Instant::now();
        let pairs = (0..size).map(|n| certificates.pair(n)).collect();
        let read = began.elapsed();
        let began = Instant::now();
        store.install_all(pairs).unwrap();
        swaps.push(Swap {
            size,
            all: began.elapsed(),
            read,
            one: one_swap(&certificates, &store),
        });
        lookups.extend(look_up(&certificates, &store, arguments.duration));
        if size == SIZES[SIZES.len() - 1] {
            handshakes = Some(handshake(&certificates, &store, arguments.handshakes));
        }
    }
    let handshakes = handshakes.unwrap();
    print(&lookups, &swaps, &handshakes);
    if let Some(file) = &arguments.json {
        fs::write(file, to_json(&lookups, &swaps, &handshakes)).unwrap();
    }
}

fn arguments() -> Arguments {
    let mut arguments = Arguments {
        json: None,
        duration: Duration::from_millis(300),
        handshakes: 5_000,
    };
    let mut given = env::args().skip(1);
    while let Some(name) = given.next() {
        // Cargo's own.
        if name == "--bench" {
            continue;
        }
        let value = given.next().unwrap_or_default();
        let number = || value.parse().unwrap_or_else(|_| usage());
        match &*name {
            "--json" => arguments.json = Some(value),
            "--ms" => arguments.duration = Duration::from_millis(number() as u64),
            "--handshakes" => arguments.handshakes = number(),
            _ => usage(),
        }
    }
    arguments
}

fn usage() -> ! {
    eprintln!("usage: cert [--json FILE] [--ms N] [--handshakes N]");
    std::process::exit(2)
}

// Look-ups.

struct LookUp {
    size: usize,
    threads: usize,
    swapped: bool,
    table: &'static str,
    /// Nanoseconds of a thread for one look-up, without the ClientHello.
    nanoseconds: f64,
    /// Of all look-ups that were timed.
    allocations: u64,
}

type Change<'c> = Box<dyn FnMut() + Send + 'c>;

/// Something to look up in, and how one new certificate gets into it.
struct Table<'c> {
    name: &'static str,
    resolver: Arc<dyn ResolvesServerCert>,
    /// `None` if nothing can be changed. It is told how often it will be asked, and prepares for it.
    changes: Option<Box<dyn Fn(usize) -> Change<'c> + 'c>>,
}

const HELLO: &str = "ClientHello";
const STORE: &str = "store";
const BARE: &str = "HashMap";

fn look_up(certificates: &Certificates, store: &Store, duration: Duration) -> Vec<LookUp> {
    let tables = tables(certificates, store);
    let askers: Vec<_> = (0..2)
        .map(|thread| Asker::new(certificates, thread))
        .collect();
    let mut rows = Vec::new();
    for swapped in [false, true] {
        for threads in [1, 2] {
            let mut found: Vec<(Vec<f64>, u64)> =
                tables.iter().map(|_| Default::default()).collect();
            for _ in 0..ROUNDS {
                for (table, (times, allocations)) in tables.iter().zip(&mut found) {
                    let change = match (swapped, &table.changes) {
                        (false, _) => None,
                        // The ClientHello does not know whether anything changes.
                        (true, None) if table.name != HELLO => continue,
                        (true, None) => None,
                        (true, Some(changes)) => {
                            let times = duration.as_millis() as usize * SWAPS as usize / 1000;
                            Some(changes(times + 1))
                        }
                    };
                    let (time, counted) = asked(&askers[..threads], table, change, duration);
                    times.push(time);
                    *allocations += counted;
                }
            }
            let hello = median(&mut found[0].0);
            for (table, (times, allocations)) in tables.iter().zip(&mut found).skip(1) {
                if !times.is_empty() {
                    rows.push(LookUp {
                        size: certificates.len(),
                        threads,
                        swapped,
                        table: table.name,
                        nanoseconds: median(times) - hello,
                        allocations: *allocations,
                    });
                }
            }
        }
    }
    rows
}

fn tables<'c>(certificates: &'c Certificates, store: &'c Store) -> Vec<Table<'c>> {
    let all = || (0..certificates.len()).map(|n| (certificates.name(n), certificates.key(n)));
    let sni = Arc::new(Sni::new(certificates));
    let dash = Arc::new(Dash(all().collect()));
    let locked = Arc::new(Locked(RwLock::new(all().collect())));
    let table = |name, resolver| Table {
        name,
        resolver,
        changes: None,
    };
    vec![
        table(HELLO, Arc::new(Nothing) as Arc<dyn ResolvesServerCert>),
        Table {
            changes: Some(Box::new(move |times| {
                let pairs: Vec<_> = (0..times).map(|n| certificates.pair(n * 7919)).collect();
                let mut pairs = pairs.into_iter();
                Box::new(move || {
                    if let Some((origin, pair)) = pairs.next() {
                        store.install(&origin, pair).unwrap();
                    }
                })
            })),
            ..table(STORE, store.server_config().cert_resolver.clone())
        },
        table(BARE, Arc::new(Bare(all().collect()))),
        Table {
            changes: Some({
                let sni = sni.clone();
                Box::new(move |_| {
                    let sni = sni.clone();
                    Box::new(move || sni.swap())
                })
            }),
            ..table("ResolvesServerCertUsingSni", sni)
        },
        Table {
            changes: Some({
                let dash = dash.clone();
                Box::new(move |times| {
                    let mut new = certificates.new_keys(times).into_iter();
                    let dash = dash.clone();
                    Box::new(move || {
                        if let Some((name, key)) = new.next() {
                            dash.0.insert(name, key);
                        }
                    })
                })
            }),
            ..table("DashMap", dash)
        },
        Table {
            changes: Some({
                let locked = locked.clone();
                Box::new(move |times| {
                    let mut new = certificates.new_keys(times).into_iter();
                    let locked = locked.clone();
                    Box::new(move || {
                        if let Some((name, key)) = new.next() {
                            locked.0.write().unwrap().insert(name, key);
                        }
                    })
                })
            }),
            ..table("RwLock<HashMap>", locked)
        },
    ]
}

/// A thread that asks. What clients said is made once.
struct Asker {
    jobs: mpsc::SyncSender<(Arc<dyn ResolvesServerCert>, Duration)>,
    answers: mpsc::Receiver<(f64, u64)>,
}

impl Asker {
    fn new(certificates: &Certificates, thread: usize) -> Self {
        let names: Vec<_> = (0..ASKED.min(certificates.len()))
            // A prime step: neighbours in the list are no neighbours in a table.
            .map(|n| certificates.name((n * 2 + thread) * 104_729))
            .collect();
        let (jobs, todo) = mpsc::sync_channel::<(Arc<dyn ResolvesServerCert>, Duration)>(1);
        let (done, answers) = mpsc::sync_channel(1);
        thread::spawn(move || {
            let said: Vec<_> = names.iter().map(|name| client_hello(name)).collect();
            while let Ok((resolver, duration)) = todo.recv() {
                // What a thread allocates once, it has then.
                ask(&*resolver, &said, Duration::from_millis(20));
                done.send(ask(&*resolver, &said, duration)).unwrap();
            }
        });
        Self { jobs, answers }
    }
}

/// What a client that asks for a name begins with, as the server understood it.
fn client_hello(name: &str) -> Accepted {
    let config = client_without_trust();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(config, name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    let mut acceptor = Acceptor::default();
    acceptor.read_tls(&mut Cursor::new(bytes)).unwrap();
    acceptor.accept().ok().flatten().unwrap()
}

fn client_without_trust() -> Arc<ClientConfig> {
    Arc::new(client_config(&Trust::Hashes(Vec::new())).unwrap())
}

/// Nanoseconds for one answer, and allocations for all.
fn ask(resolver: &dyn ResolvesServerCert, said: &[Accepted], duration: Duration) -> (f64, u64) {
    let (mut time, mut answers) = (Duration::ZERO, 0_u64);
    let counted = allocation_counter::measure(|| {
        let began = Instant::now();
        let mut turn = 0;
        while began.elapsed() < duration {
            let batch = Instant::now();
            for _ in 0..BATCH {
                turn = if turn + 1 < said.len() { turn + 1 } else { 0 };
                black_box(resolver.resolve(black_box(&said[turn]).client_hello()));
            }
            let batch = batch.elapsed();
            if batch < PREEMPTED {
                time += batch;
                answers += u64::from(BATCH);
            }
        }
    });
    let time = time.as_secs_f64() * 1e9 / answers as f64;
    (time, counted.count_total)
}

/// The mean of all askers.
fn asked(
    askers: &[Asker],
    table: &Table<'_>,
    change: Option<Change<'_>>,
    duration: Duration,
) -> (f64, u64) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        if let Some(mut change) = change {
            let stop = &stop;
            scope.spawn(move || {
                let began = Instant::now();
                let mut done = 0;
                while !stop.load(Ordering::Relaxed) {
                    change();
                    done += 1;
                    let next = began + Duration::from_secs(1) * done / SWAPS;
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                }
            });
        }
        for asker in askers {
            asker.jobs.send((table.resolver.clone(), duration)).unwrap();
        }
        let answers = askers.iter().map(|asker| asker.answers.recv().unwrap());
        let (times, allocations): (Vec<f64>, Vec<u64>) = answers.unzip();
        stop.store(true, Ordering::Relaxed);
        let mean = times.iter().sum::<f64>() / times.len() as f64;
        (mean, allocations.iter().sum())
    })
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

// Swaps.

struct Swap {
    size: usize,
    /// To put all in use in one step.
    all: Duration,
    /// To read and check them before.
    read: Duration,
    /// To put one new one in use: the median and the 99th percentile.
    one: (Duration, Duration),
}

fn one_swap(certificates: &Certificates, store: &Store) -> (Duration, Duration) {
    let mut times: Vec<_> = (0..1000)
        .map(|n| {
            let (origin, pair) = certificates.pair(n * 7919);
            let began = Instant::now();
            store.install(&origin, pair).unwrap();
            began.elapsed()
        })
        .collect();
    times.sort_unstable();
    (times[500], times[990])
}

// Handshakes.

/// Rates against that of one configured certificate; of medians.
struct Handshakes {
    /// One name is asked for.
    one: f64,
    /// Any is, and so the certificate is another one each time.
    any: f64,
}

fn handshake(certificates: &Certificates, store: &Store, count: usize) -> Handshakes {
    let directory = tempfile::tempdir().unwrap();
    let roots = directory.path().join("ca.crt");
    fs::write(&roots, certificates.authority()).unwrap();
    let mut client = client_config(&Trust::Authorities(roots)).unwrap();
    client.resumption = Resumption::disabled();
    let client = Arc::new(client);
    let server = |resolver: Arc<dyn ResolvesServerCert>| {
        let mut config = store.server_config();
        config.cert_resolver = resolver;
        Arc::new(config)
    };
    let own = server(store.server_config().cert_resolver.clone());
    let fixed = rustls::sign::SingleCertAndKey::from((*certificates.key(0)).clone());
    let fixed = server(Arc::new(fixed));
    let fixed_name = certificates.name(0);
    let compare = |any: bool| {
        let (mut own_times, mut fixed_times) = (Vec::new(), Vec::new());
        for n in 0..count {
            let name = match any {
                true => certificates.name(n * 104_729),
                false => fixed_name.clone(),
            };
            // Neither is always the first.
            if n % 2 == 0 {
                own_times.push(shake(&client, &own, &name));
                fixed_times.push(shake(&client, &fixed, &fixed_name));
            } else {
                fixed_times.push(shake(&client, &fixed, &fixed_name));
                own_times.push(shake(&client, &own, &name));
            }
        }
        median(&mut fixed_times) / median(&mut own_times)
    };
    Handshakes {
        one: compare(false),
        any: compare(true),
    }
}

/// Seconds that a handshake took.
fn shake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>, name: &str) -> f64 {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let began = Instant::now();
    let mut client = ClientConnection::new(client.clone(), name).unwrap();
    let mut server = ServerConnection::new(server.clone()).unwrap();
    let mut bytes = Vec::with_capacity(8192);
    while client.is_handshaking() || server.is_handshaking() {
        bytes.clear();
        client.write_tls(&mut bytes).unwrap();
        server.read_tls(&mut &*bytes).unwrap();
        server.process_new_packets().unwrap();
        bytes.clear();
        server.write_tls(&mut bytes).unwrap();
        client.read_tls(&mut &*bytes).unwrap();
        client.process_new_packets().unwrap();
    }
    began.elapsed().as_secs_f64()
}

// Results.

/// Of the bare map in the same run, which nothing changed.
fn bare(lookups: &[LookUp], of: &LookUp) -> f64 {
    let same =
        |row: &&LookUp| row.table == BARE && (row.size, row.threads) == (of.size, of.threads);
    lookups.iter().find(same).unwrap().nanoseconds
}

fn print(lookups: &[LookUp], swaps: &[Swap], handshakes: &Handshakes) {
    println!("| look-up | names | threads | swaps/s | ns | against HashMap | allocations |");
    println!("|---|---|---|---|---|---|---|");
    for row in lookups {
        println!(
            "| {} | {} | {} | {} | {:.1} | {:.2} | {} |",
            row.table,
            row.size,
            row.threads,
            if row.swapped { SWAPS } else { 0 },
            row.nanoseconds,
            row.nanoseconds / bare(lookups, row),
            row.allocations
        );
    }
    println!();
    println!("| swap | one, p50 | one, p99 | all in one step | reading and checking all before |");
    println!("|---|---|---|---|---|");
    for row in swaps {
        println!(
            "| {} names | {:.1} µs | {:.1} µs | {:.1} ms | {:.0} ms |",
            row.size,
            row.one.0.as_secs_f64() * 1e6,
            row.one.1.as_secs_f64() * 1e6,
            row.all.as_secs_f64() * 1e3,
            row.read.as_secs_f64() * 1e3
        );
    }
    println!();
    println!(
        "| full handshakes, {} names | against one configured certificate |",
        SIZES[2]
    );
    println!("|---|---|");
    println!("| one is asked for | {:.3} |", handshakes.one);
    println!("| any is | {:.3} |", handshakes.any);
}

fn to_json(lookups: &[LookUp], swaps: &[Swap], handshakes: &Handshakes) -> String {
    let lookups: Vec<_> = lookups
        .iter()
        .map(|row| {
            json!({
                "table": row.table,
                "names": row.size,
                "threads": row.threads,
                "swaps_per_second": if row.swapped { SWAPS } else { 0 },
                "nanoseconds": row.nanoseconds,
                "against_hash_map": row.nanoseconds / bare(lookups, row),
                "allocations": row.allocations,
            })
        })
        .collect();
    let swaps: Vec<_> = swaps
        .iter()
        .map(|row| {
            json!({
                "names": row.size,
                "one_p50_microseconds": row.one.0.as_secs_f64() * 1e6,
                "one_p99_microseconds": row.one.1.as_secs_f64() * 1e6,
                "all_milliseconds": row.all.as_secs_f64() * 1e3,
                "read_milliseconds": row.read.as_secs_f64() * 1e3,
            })
        })
        .collect();
    let handshakes = json!({
        "one_name_against_one_certificate": handshakes.one,
        "any_name_against_one_certificate": handshakes.any,
    });
    let all = json!({ "look_ups": lookups, "swaps": swaps, "handshakes": handshakes });
    serde_json::to_string_pretty(&all).unwrap()
}
