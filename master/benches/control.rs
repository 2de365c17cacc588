//! What the control plane costs: tokens, registrations, and the roster of a large cluster.
//!
//! ```sh
//! cargo bench -p wavry-master --bench control -- --json control.json
//! ```
//!
//! * `verify`: session tokens that one thread checks in a second, beside the bare signature check of
//!   two libraries over the same bytes.
//! * `register`: nodes that come, each over a TLS connection of its own, with a proof of its key; on
//!   SQLite and on PostgreSQL (a server of its own, started here).
//! * `roster`: what the roster of `--nodes` nodes and `--services` services takes to sign, send, check
//!   and keep, and how long a change of it is under way to all of `--watchers` nodes.
//!
//! All of it, the nodes too, is in one process here. So the watchers take a roster off the wire and leave it at
//! that: a node of a cluster has a machine of its own to check and keep it on, and what that takes is a figure
//! of its own.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what a command prints is its result"
)]

use std::{
    env, fs,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ed25519_dalek::{Signer as _, Verifier as _};
use futures_util::{StreamExt as _, stream};
use hyper::{Method, StatusCode};
use tokio::sync::mpsc;
use wavry_credentials::{
    audit::{Action, Event},
    clock::unix_time,
    identity::Identity,
    membership::{self, Membership},
    token::{KeySet, Scope, SigningKey},
};
use wavry_master::{
    database::Location,
    store::{Admission, Announcement, Store},
};
use wavry_proto::{
    control::{Access, RefuseWith, Role, Roster, Service},
    id::PublicKey,
    token::{self, Session, Validity},
};

use wire::Wire;
use world::{World, node_id, service};

#[path = "../tests/support/postgres.rs"]
mod postgres;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../tests/it/wire.rs"]
mod wire;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../tests/it/world.rs"]
mod world;

/// Nodes that register at the same time.
const AT_ONCE: usize = 16;
/// Nodes that register in all.
const REGISTRATIONS: usize = 500;
/// Changes of the roster that are followed to every watcher.
const CHANGES: usize = 10;
/// Copies of a roster that are kept to see what one takes.
const COPIES: usize = 20;

struct Figure {
    name: String,
    unit: &'static str,
    value: f64,
    /// Of the bare signature check in the same run; 1 is as fast.
    ratio: Option<f64>,
}

struct Arguments {
    json: Option<String>,
    seconds: u64,
    nodes: usize,
    services: usize,
    watchers: usize,
}

fn main() {
    let arguments = arguments();
    let mut figures = verify(Duration::from_secs(arguments.seconds));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let world = World::new();
        figures.push(register("SQLite", &world, world.database()).await);
        let server = postgres::Server::start(true);
        let url = server.database("control").await;
        let location = Location::Postgres(url.parse().unwrap());
        figures.push(register("PostgreSQL", &World::new(), location).await);
        figures.extend(roster(&arguments).await);
    });
    print(&figures);
    if let Some(file) = &arguments.json {
        fs::write(file, to_json(&figures)).unwrap();
    }
}

fn arguments() -> Arguments {
    let mut arguments = Arguments {
        json: None,
        seconds: 3,
        nodes: 1000,
        services: 10_000,
        watchers: 100,
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
            "--seconds" => arguments.seconds = number() as u64,
            "--nodes" => arguments.nodes = number(),
            "--services" => arguments.services = number(),
            "--watchers" => arguments.watchers = number(),
            _ => usage(),
        }
    }
    arguments
}

fn usage() -> ! {
    eprintln!(
        "usage: control [--json FILE] [--seconds N] [--nodes N] [--services N] [--watchers N]"
    );
    std::process::exit(2)
}

/// Session tokens against bare signatures, on this thread, in turns.
fn verify(duration: Duration) -> Vec<Figure> {
    const ROUNDS: u32 = 5;
    let key = SigningKey::generate();
    let cluster = "bench".parse().unwrap();
    let scope = Scope {
        cluster: &cluster,
        audience: "echo",
        binding: b"",
    };
    let now = unix_time();
    let claims = Session {
        jti: "0123456789abcdef".into(),
        sub: "somebody@example.org".into(),
        sid: None,
        claims: serde_json::Map::new(),
        validity: Validity {
            iat: now,
            nbf: now,
            exp: now + 3600,
        },
    };
    let signed = key.sign(&claims, scope);
    let keys = key.key_set();

    // As long as what is signed of the token: payload, footer and assertion, each with its length.
    let assertion = token::implicit_assertion(
        <Session as token::Claims>::PURPOSE,
        &cluster,
        scope.audience,
        b"",
    );
    let message = vec![0x57; signed.len() + assertion.len()];
    let dalek = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
    let signature = dalek.sign(&message);
    let dalek = dalek.verifying_key();
    let aws = aws_lc_rs::signature::UnparsedPublicKey::new(
        &aws_lc_rs::signature::ED25519,
        dalek.to_bytes(),
    );

    let share = duration / ROUNDS;
    let mut rates = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        rates[0].push(rate(share, || {
            keys.verify::<Session>(&signed, scope, now).is_ok()
        }));
        rates[1].push(rate(share, || dalek.verify(&message, &signature).is_ok()));
        rates[2].push(rate(share, || {
            aws.verify(&message, &signature.to_bytes()).is_ok()
        }));
    }
    let [own, dalek, aws] = rates.map(median);
    let figure = |name: &str, value, ratio| Figure {
        name: name.to_owned(),
        unit: "1/s",
        value,
        ratio,
    };
    vec![
        figure("verify: session token", own, None),
        figure("verify: signature, ed25519-dalek", dalek, Some(own / dalek)),
        figure("verify: signature, aws-lc", aws, Some(own / aws)),
    ]
}

/// How often in a second `check` says yes.
fn rate(duration: Duration, check: impl Fn() -> bool) -> f64 {
    let began = Instant::now();
    let mut done = 0_u32;
    while began.elapsed() < duration {
        for _ in 0..16 {
            assert!(std::hint::black_box(check()), "what was signed verifies");
            done += 1;
        }
    }
    f64::from(done) / began.elapsed().as_secs_f64()
}

/// Nodes that come one after the other, some at once, until all are members with a roster.
async fn register(store: &str, world: &World, database: Location) -> Figure {
    let mut config = world.config();
    config.database = database;
    let master = world.start_with(config).await;
    let nodes: Vec<_> = (0..REGISTRATIONS)
        .map(|n| world.node(&master, &format!("node-{n}"), Role::Relay, &["echo"]))
        .collect();
    let began = Instant::now();
    let members: Vec<_> = stream::iter(nodes)
        .map(join)
        .buffer_unordered(AT_ONCE)
        // A member would send heartbeats: it has joined, and that is all.
        .map(drop)
        .collect()
        .await;
    let elapsed = began.elapsed();
    master.stop().await;
    Figure {
        name: format!("register: nodes, {store}"),
        unit: "1/s",
        value: members.len() as f64 / elapsed.as_secs_f64(),
        ratio: None,
    }
}

async fn join(config: membership::Config) -> Membership {
    Membership::join(config).await.unwrap()
}

/// A large cluster's roster.
async fn roster(arguments: &Arguments) -> Vec<Figure> {
    let world = Arc::new(World::new());
    let identities = populate(&world, arguments).await;
    let mut config = world.config();
    config.services = services(arguments.services);
    config.heartbeat_interval = Duration::from_secs(20);
    config.suspect_after = Duration::from_secs(3600);
    let master = world.start_with(config).await;

    eprintln!("{} watchers", arguments.watchers);
    let news = join(world.node(&master, "news", Role::Relay, &["service-0"])).await;
    // The epoch of each roster that came, and when.
    let (came, mut arrivals) = mpsc::channel(1024);
    let watchers: Vec<_> = identities
        .into_iter()
        .enumerate()
        .map(|(number, identity)| {
            let world = world.clone();
            tokio::spawn(watch(world, master.address, number, identity, came.clone()))
        })
        .collect();
    let mut newest = vec![0; watchers.len()];
    // All of them have one, and wait for the next.
    while newest.contains(&0) {
        let (number, epoch, _) = arrivals.recv().await.unwrap();
        newest[number] = epoch;
    }

    let id = node_id("news");
    let (mut first, mut every) = (Vec::new(), Vec::new());
    for change in 1..=CHANGES {
        let address = SocketAddr::from(([10, 9, 9, 9], change as u16));
        let mut rosters = news.roster();
        let began = Instant::now();
        news.announce(vec![address]);
        let has = |roster: &Arc<Roster>| {
            let node = roster.node(&id);
            node.is_some_and(|node| node.addresses.first() == Some(&address))
        };
        let epoch = rosters.wait_for(has).await.unwrap().epoch.0;
        let mut times = Vec::new();
        while newest.iter().any(|newest| *newest < epoch) {
            let (number, it, at) = arrivals.recv().await.unwrap();
            newest[number] = it;
            if it >= epoch {
                times.push(at.duration_since(began).as_secs_f64() * 1e3);
            }
        }
        // Those which had it before the one that looks into it are in `times` as well.
        times.sort_by(f64::total_cmp);
        first.push(times[0]);
        every.push(times[times.len() - 1]);
    }
    let roster = news.roster().borrow().clone();
    for watcher in &watchers {
        watcher.abort();
    }
    drop(news);
    master.stop().await;

    let figure = |name: &str, unit, value| Figure {
        name: name.to_owned(),
        unit,
        value,
        ratio: None,
    };
    let mut figures = one_roster(&world, &roster);
    figures.push(figure("roster: first watcher has it", "ms", median(first)));
    figures.push(figure("roster: every watcher has it", "ms", median(every)));
    figures
}

/// Takes each roster off the wire as a node does, and tells of its epoch.
async fn watch(
    world: Arc<World>,
    address: SocketAddr,
    number: usize,
    identity: Identity,
    came: mpsc::Sender<(usize, u64, Instant)>,
) {
    let mut wire = Wire::open(&world, address).await;
    let mut path = "/v1/roster".to_owned();
    loop {
        // It holds for less time than this may take.
        let bearer = wire.bearer(&world, &identity, &node_id(&watcher_name(number)));
        let (status, tag, _) = wire.send(Method::GET, &path, Some(&bearer), "").await;
        if status == StatusCode::NOT_MODIFIED {
            continue;
        }
        assert_eq!(status, StatusCode::OK);
        let epoch: u64 = tag.unwrap().trim_matches('"').parse().unwrap();
        let arrived = (number, epoch, Instant::now());
        if came.send(arrived).await.is_err() {
            return;
        }
        path = format!("/v1/roster?after={epoch}");
    }
}

fn watcher_name(number: usize) -> String {
    format!("watcher-{number}")
}

/// What a node does with each roster that comes.
fn one_roster(world: &World, roster: &Roster) -> Vec<Figure> {
    let scope = Scope {
        cluster: &world.cluster,
        audience: "bench",
        binding: b"",
    };
    let began = Instant::now();
    let signed = world.key.sign(roster, scope);
    let sign = began.elapsed();
    let keys: KeySet = world.key.key_set();
    let apply = || {
        let verified = keys.verify::<Roster>(&signed, scope, unix_time());
        verified.unwrap()
    };
    let mut times = Vec::new();
    let before = resident();
    let copies: Vec<Roster> = (0..COPIES)
        .map(|_| {
            let began = Instant::now();
            let copy = apply();
            times.push(began.elapsed().as_secs_f64() * 1e3);
            copy
        })
        .collect();
    let grown = resident().saturating_sub(before) as f64 / COPIES as f64;
    assert!(copies.iter().all(|copy| copy == roster));
    let figure = |name: &str, unit, value| Figure {
        name: name.to_owned(),
        unit,
        value,
        ratio: None,
    };
    vec![
        figure("roster: nodes in it", "", roster.nodes.len() as f64),
        figure("roster: services in it", "", roster.services.len() as f64),
        figure("roster: as it is sent", "KiB", signed.len() as f64 / 1024.0),
        figure("roster: signing it", "ms", sign.as_secs_f64() * 1e3),
        figure("roster: checking and reading it", "ms", median(times)),
        figure("roster: kept by a node", "KiB", grown / 1024.0),
    ]
}

/// Puts nodes into the database before a master opens it, and gives the identities of those that watch.
async fn populate(world: &World, arguments: &Arguments) -> Vec<Identity> {
    let audit = Arc::new(world.audit_key());
    let store = Store::open(&world.database(), audit).await.unwrap();
    for n in 0..arguments.nodes {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&(n as u64).to_be_bytes());
        let granted = format!("service-{}", n % arguments.services.max(1));
        let address = SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 4434));
        let announcement = Announcement {
            addresses: vec![address],
            transit: Vec::new(),
            attached: Vec::new(),
            services: vec![service(&granted)],
            draining: false,
        };
        admit(
            &store,
            &format!("relay-{n}"),
            Role::Relay,
            PublicKey(key),
            announcement,
        )
        .await;
        if n % 100 == 99 {
            eprintln!("{} nodes", n + 1);
        }
    }
    let mut identities = Vec::new();
    for n in 0..arguments.watchers {
        let identity = Identity::generate();
        let announcement = Announcement {
            addresses: Vec::new(),
            transit: Vec::new(),
            attached: Vec::new(),
            services: Vec::new(),
            draining: false,
        };
        let key = identity.public_key();
        admit(&store, &watcher_name(n), Role::Gateway, key, announcement).await;
        identities.push(identity);
    }
    store.close().await;
    identities
}

async fn admit(store: &Store, name: &str, role: Role, key: PublicKey, announcement: Announcement) {
    let admission = Admission {
        jti: format!("jti-{name}"),
        issued_at: unix_time(),
        expires_at: unix_time() + 600,
        node: node_id(name),
        role,
        granted: announcement.services.clone(),
        placement: Default::default(),
        key,
        announcement,
        event: Event::now(Action::Register, name.to_owned(), "bench"),
    };
    store.register(&admission, unix_time()).await.unwrap();
}

fn services(count: usize) -> Vec<Service> {
    (0..count)
        .map(|n| Service {
            name: service(&format!("service-{n}")),
            hosts: vec![format!("service-{n}.example.org")],
            access: Access::Token,
            allowed_origins: vec![format!("https://app-{n}.example.org")],
            max_sessions: None,
            refuse_with: RefuseWith::Status,
            keys: Vec::new(),
        })
        .collect()
}

/// `VmRSS` of this process, in bytes.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.unwrap().parse::<u64>().unwrap() * 1024
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn print(figures: &[Figure]) {
    println!("| | | | token check's part of it |");
    println!("|---|---:|---|---:|");
    for figure in figures {
        let ratio = figure.ratio.map(|ratio| format!("{ratio:.2}"));
        println!(
            "| {} | {:.1} | {} | {} |",
            figure.name,
            figure.value,
            figure.unit,
            ratio.unwrap_or_default()
        );
    }
}

fn to_json(figures: &[Figure]) -> String {
    let figures: Vec<_> = figures
        .iter()
        .map(|figure| {
            serde_json::json!({
                "name": figure.name,
                "unit": figure.unit,
                "value": figure.value,
                "ratio": figure.ratio,
            })
        })
        .collect();
    serde_json::to_string_pretty(&figures).unwrap()
}
