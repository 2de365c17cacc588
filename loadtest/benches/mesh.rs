//! What a hop costs: a session between two nodes, directly, through transit relays that cannot read it, through
//! forwarders that do nothing but the same system calls, and through relays that end QUIC and begin it anew.
//!
//! ```sh
//! cargo bench -p wavry-loadtest --bench mesh -- --seconds 3 --rounds 3 --json mesh.json
//! ```
//!
//! `--hops 2` measures ways with so many hops alone, and the direct one.
//!
//! Each node has one thread. Those between the two ends share the last core, whatever their number; the ends have the
//! others. What is between is measured by the processor time of its threads, which `/proc` has to the nanosecond.
//! All variants take turns in each round, to and fro, so that whatever else the machine does hits all of them; figures
//! are medians over rounds. So are ratios: of the ratios of each round, whose two figures were measured one after the
//! other.
//!
//! * `bulk`: one stream for so many seconds.
//! * `datagrams`: payloads of 1,100 and of 100 bytes, as many as come through.
//! * `round trip`: one datagram of 32 bytes at a time, there and back.
//!
//! With `--sockets` it is what several sockets of a node bring, and nothing else: two nodes with a thread for each
//! core, eight connections through one transit relay, one socket each and one for each core in turns, or as many as
//! `--sockets N` says.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what a command prints is its result"
)]

use std::{
    collections::BTreeMap,
    env, fs,
    future::poll_fn,
    io,
    net::SocketAddr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use quinn::{
    AsyncUdpSocket,
    udp::{BATCH_SIZE, RecvMeta, Transmit},
};
use serde_json::json;
use tokio::{runtime::Handle, sync::watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use wavry_credentials::{cert, identity::Identity, token::lease::Verifier};
use wavry_proto::{
    control::{Node, Role, Roster},
    id::NodeId,
    mesh::Open,
    overlay::transit::Limits,
    session::{Close, Request, Response},
};
use wavry_transport::{
    mesh::{self, Endpoint},
    mirror::{self, Traffic},
    session::{RecvStream as _, SendStream as _, Session as _},
    transit::{self, Transit},
};

#[path = "mesh/lane.rs"]
mod lane;
#[path = "mesh/sockets.rs"]
mod sockets;
#[path = "mesh/wire.rs"]
mod wire;

use self::{
    lane::{Core, Lane},
    wire::Wire,
};

const CHUNK: usize = 64 * 1024;

/// Datagrams that are on their way at once: fewer than any queue holds, so that what is measured is what comes
/// through, and not how fast packets can be thrown away.
const IN_FLIGHT: u64 = 256;

/// What is between the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Hop {
    /// Nothing.
    Direct,
    /// A transit relay.
    Blind,
    /// The same system calls, and no look at the packet.
    Dumb,
    /// QUIC ends and begins anew.
    Ending,
}

impl Hop {
    fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Blind => "blind",
            Self::Dumb => "dumb",
            Self::Ending => "ending",
        }
    }
}

fn main() {
    let arguments: Vec<_> = env::args().skip(1).filter(|a| a != "--bench").collect();
    let of = |flag: &str| {
        let at = arguments.iter().position(|argument| argument == flag)?;
        arguments.get(at + 1).cloned()
    };
    let seconds = of("--seconds").map_or(3.0, |text| text.parse::<f64>().unwrap());
    let rounds = of("--rounds").map_or(3, |text| text.parse::<usize>().unwrap());
    let only = of("--hops").map(|text| text.parse::<usize>().unwrap());
    let time = Duration::from_secs_f64(seconds);
    cert::install_crypto_provider();

    if arguments.iter().any(|argument| argument == "--sockets") {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let several = of("--sockets").and_then(|text| text.parse().ok());
        return compare_sockets(several.unwrap_or(cores), rounds, time);
    }
    let variants = [
        (Hop::Direct, 0),
        (Hop::Dumb, 1),
        (Hop::Blind, 1),
        (Hop::Ending, 1),
        (Hop::Dumb, 2),
        (Hop::Blind, 2),
        (Hop::Ending, 2),
        (Hop::Dumb, 3),
        (Hop::Blind, 3),
        (Hop::Ending, 3),
    ];
    let mut figures = Figures::default();
    for round in 1..=rounds {
        let turns: Vec<_> = match round % 2 {
            0 => variants.into_iter().rev().collect(),
            _ => variants.to_vec(),
        };
        for (hop, hops) in turns {
            if hops > 0 && only.is_some_and(|only| only != hops) {
                continue;
            }
            eprintln!("round {round} of {rounds}: {} {hops}", hop.name());
            let way = Way::new(hop, hops);
            for (name, value) in way.measure(time) {
                let values = figures.0.entry((hops, hop.name(), name));
                values.or_default().push(value);
            }
        }
    }
    print(&figures);
    if let Some(file) = of("--json") {
        let rows: Vec<_> = figures
            .0
            .iter()
            .map(|((hops, hop, name), values)| {
                let value = median(values.clone());
                json!({ "hops": hops, "hop": hop, "name": name, "value": value, "rounds": values })
            })
            .collect();
        let report =
            json!({ "scenario": "mesh", "rounds": rounds, "seconds": seconds, "results": rows });
        fs::write(file, serde_json::to_vec_pretty(&report).unwrap()).unwrap();
    }
}

/// What each round gave, by hops, what is between, and figure.
#[derive(Default)]
struct Figures(BTreeMap<(usize, &'static str, &'static str), Vec<f64>>);

impl Figures {
    fn of(&self, hops: usize, hop: Hop, name: &'static str) -> Option<f64> {
        let values = self.0.get(&(hops, hop.name(), name))?;
        Some(median(values.clone()))
    }

    /// The median of one variant's figure over another's.
    fn ratio(&self, hops: usize, over: Hop, under: Hop, name: &'static str) -> f64 {
        let of = |hop: Hop| &self.0[&(hops, hop.name(), name)];
        let pairs = of(over).iter().zip(of(under));
        median(pairs.map(|(over, under)| over / under).collect())
    }

    /// What a hop adds to a round trip, one variant's over another's.
    fn added(&self, hops: usize, over: Hop, under: Hop) -> f64 {
        let direct = &self.0[&(0, Hop::Direct.name(), FIGURES[6])];
        let of = |hop: Hop| &self.0[&(hops, hop.name(), FIGURES[6])];
        let rounds = of(over).iter().zip(of(under)).zip(direct);
        median(
            rounds
                .map(|((over, under), direct)| (over - direct) / (under - direct))
                .collect(),
        )
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Prints what several sockets carry against one: the median of rounds, each of which has both.
fn compare_sockets(several: usize, rounds: usize, time: Duration) {
    let mut ratios: [Vec<f64>; 4] = Default::default();
    for round in 0..rounds {
        // Who is first takes turns, too.
        let turns = if round % 2 == 0 {
            [1, several]
        } else {
            [several, 1]
        };
        let mut figures = turns.map(|count| (count, sockets::Pair::new(count).measure(time)));
        figures.sort_by_key(|(count, _)| *count);
        let [(_, one), (_, more)] = figures;
        eprintln!("round {} of {rounds}: {one:.2?}, {more:.2?}", round + 1);
        for (ratios, (one, more)) in ratios.iter_mut().zip(one.iter().zip(more)) {
            ratios.push(more / one);
        }
    }
    let told = sockets::FIGURES.iter().zip(ratios.map(median));
    let told: Vec<_> = told
        .map(|(name, ratio)| format!("{name} {ratio:.2}"))
        .collect();
    println!("{several} sockets against one, 1 hop: {}", told.join(", "));
}

/// The figures of a way, in the order in which they are printed.
const FIGURES: [&str; 8] = [
    "bulk Gbit/s",
    "bulk relay CPU-s/Gbit",
    "1100 B datagrams k/s",
    "1100 B relay CPU-s/Gbit",
    "100 B datagrams k/s",
    "100 B relay CPU-µs each",
    "round trip p50 µs",
    "round trip p99 µs",
];

fn print(figures: &Figures) {
    println!(
        "{:<5} {:<7} {}",
        "hops",
        "between",
        FIGURES.map(|name| format!("{name:>24}")).concat()
    );
    let between = [Hop::Dumb, Hop::Blind, Hop::Ending];
    let relays = [1, 2, 3].into_iter();
    let rows = relays.flat_map(|hops| between.map(|hop| (hops, hop)));
    for (hops, hop) in [(0, Hop::Direct)].into_iter().chain(rows) {
        if figures.of(hops, hop, FIGURES[0]).is_none() {
            continue;
        }
        let values = FIGURES.map(|name| {
            let value = figures.of(hops, hop, name);
            value.map_or(format!("{:>24}", "–"), |value| format!("{value:>24.3}"))
        });
        println!("{hops:<5} {:<7} {}", hop.name(), values.concat());
    }
    println!();
    println!(
        "blind against dumb (1: the same; more is better), and relay CPU of ending against blind:"
    );
    for hops in [1, 2, 3] {
        if figures.of(hops, Hop::Blind, FIGURES[0]).is_none() {
            continue;
        }
        let more = |at: usize| figures.ratio(hops, Hop::Blind, Hop::Dumb, FIGURES[at]);
        let less = |at: usize| figures.ratio(hops, Hop::Dumb, Hop::Blind, FIGURES[at]);
        let ending = |at: usize| figures.ratio(hops, Hop::Ending, Hop::Blind, FIGURES[at]);
        println!(
            "{hops} hops: bulk {:.2}, CPU {:.2}; 1100 B {:.2}, CPU {:.2}; 100 B {:.2}, CPU {:.2}; added round trip per hop {:.2}; CPU bulk {:.1}, 1100 B {:.1}, 100 B {:.1}",
            more(0),
            less(1),
            more(2),
            less(3),
            more(4),
            less(5),
            figures.added(hops, Hop::Blind, Hop::Dumb),
            ending(1),
            ending(3),
            ending(5),
        );
    }
}

/// A session between two ends, and what is between them.
struct Way {
    a: Lane,
    b: Lane,
    hops: Vec<Lane>,
    here: Arc<mesh::Session>,
    there: Arc<mesh::Session>,
    _keep: Vec<Box<dyn std::any::Any>>,
}

fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

fn id(name: &str) -> NodeId {
    name.parse().unwrap()
}

/// A roster under construction, and the identities in it.
struct Cluster {
    roster: watch::Sender<Arc<Roster>>,
}

impl Cluster {
    fn new() -> Self {
        let roster = Roster::empty("bench".parse().unwrap());
        Self {
            roster: watch::Sender::new(Arc::new(roster)),
        }
    }

    fn list(
        &self,
        name: &str,
        identity: &Identity,
        addresses: &[SocketAddr],
        transit: &[SocketAddr],
    ) {
        self.roster.send_modify(|roster| {
            let mut next = (**roster).clone();
            next.epoch.0 += 1;
            next.nodes.push(Node {
                id: id(name),
                role: Role::Relay,
                keys: vec![identity.public_key()],
                addresses: addresses.to_vec(),
                transit: transit.to_vec(),
                attached: Vec::new(),
                services: Vec::new(),
                registration: 1,
                leases: Default::default(),
                placement: Default::default(),
            });
            *roster = Arc::new(next);
        });
    }

    /// A node on `lane`, with one connection at most; it is listed at `at`, or where it is.
    fn node(&self, lane: &Lane, name: &str, wire: &Arc<Wire>, at: Option<SocketAddr>) -> Endpoint {
        let limits = mesh::Limits {
            shards: 1,
            ..mesh::Limits::default()
        };
        self.node_on(&lane.runtime, name, std::slice::from_ref(wire), at, limits)
    }

    fn node_on(
        &self,
        runtime: &Handle,
        name: &str,
        wires: &[Arc<Wire>],
        at: Option<SocketAddr>,
        limits: mesh::Limits,
    ) -> Endpoint {
        let identity = Identity::generate();
        let tls = identity.mesh_tls(self.roster.subscribe()).unwrap();
        let config = mesh::Config {
            node: id(name),
            server_tls: tls.server,
            client_tls: tls.client,
            key: tls.key,
            authenticator: tls.authenticator,
            roster: self.roster.subscribe(),
            leases: mesh::Leases::none(),
            limits,
        };
        let sockets = wires.iter().cloned();
        let sockets = sockets
            .map(|wire| wire as Arc<dyn AsyncUdpSocket>)
            .collect();
        let _entered = runtime.enter();
        let endpoint = Endpoint::sharded(sockets, config).unwrap();
        self.list(name, &identity, &[at.unwrap_or(endpoint.local_addr())], &[]);
        endpoint
    }

    fn transit(&self, lane: &Lane, name: &str) -> (Arc<Wire>, SocketAddr, DropGuard) {
        let identity = Identity::generate();
        let tls = identity.mesh_tls(self.roster.subscribe()).unwrap();
        let config = transit::Config {
            node: id(name),
            roster: self.roster.subscribe(),
            authenticator: tls.authenticator,
            verifier: Arc::new(Verifier::new(
                "bench".parse().unwrap(),
                self.roster.subscribe(),
            )),
            // There is none: the roster permits all.
            master: watch::channel(false).1,
            limits: Limits {
                bytes_per_second: u64::from(u32::MAX),
                packets_per_second: u64::from(u32::MAX),
                ..Limits::default()
            },
            link: None,
        };
        let stopped = CancellationToken::new();
        let until = stopped.clone();
        let (wire, address) = lane.run(async move {
            let wire = Wire::bind();
            let transit = Transit::new(wire.clone(), config).unwrap();
            let address = transit.local_addr();
            tokio::spawn(transit.run(CancellationToken::new(), until));
            (wire, address)
        });
        // It is no exit: nothing answers there.
        self.list(name, &identity, &[([127, 0, 0, 1], 9).into()], &[address]);
        (wire, address, stopped.drop_guard())
    }
}

fn open() -> Open {
    Open {
        service: "bench".parse().unwrap(),
        request: Request {
            authority: "example.test".to_owned(),
            path: "/".to_owned(),
            origin: None,
            headers: Vec::new(),
            subprotocols: Vec::new(),
        },
        client: ([192, 0, 2, 1], 1).into(),
        subject: None,
        claims: None,
    }
}

impl Way {
    fn new(hop: Hop, count: usize) -> Self {
        let (a, b) = (Lane::start(Core::Others), Lane::start(Core::Others));
        let hops: Vec<_> = (0..count).map(|_| Lane::start(Core::Last)).collect();
        let cluster = Cluster::new();
        let at_a = a.run(async { Wire::bind() });
        let at_b = b.run(async { Wire::bind() });
        let (to_a, to_b) = (at_a.local_addr().unwrap(), at_b.local_addr().unwrap());
        let mut keep: Vec<Box<dyn std::any::Any>> = Vec::new();
        let (near, far) = match hop {
            Hop::Direct => {
                let near = cluster.node(&a, "a", &at_a, None);
                (near, cluster.node(&b, "b", &at_b, None))
            }
            Hop::Dumb => {
                // A chain: what comes from the side of b goes towards a, anything else towards b.
                let sockets: Vec<_> = hops
                    .iter()
                    .map(|lane| lane.run(async { Wire::bind() }))
                    .collect();
                let at: Vec<_> = sockets.iter().map(|s| s.local_addr().unwrap()).collect();
                if count > 1 {
                    // As those of transit relays, which look there for each batch.
                    let nobody = ([127, 0, 0, 1], 9).into();
                    sockets.iter().for_each(|wire| wire.cut(nobody));
                }
                for (index, (lane, socket)) in hops.iter().zip(sockets).enumerate() {
                    let before = index.checked_sub(1).map_or(to_a, |before| at[before]);
                    let after = at.get(index + 1).copied().unwrap_or(to_b);
                    lane.runtime.spawn(forward(socket, before, after));
                }
                let near = cluster.node(&a, "a", &at_a, at.last().copied());
                (near, cluster.node(&b, "b", &at_b, at.first().copied()))
            }
            Hop::Blind => {
                let near = cluster.node(&a, "a", &at_a, None);
                let far = cluster.node(&b, "b", &at_b, None);
                at_a.cut(to_b);
                at_b.cut(to_a);
                let relays: Vec<_> = hops
                    .iter()
                    .zip(["t1", "t2", "t3"])
                    .map(|(lane, name)| cluster.transit(lane, name))
                    .collect();
                // The way through all of them is the only one: each reaches those beside it and nobody else.
                let ways = wavry_proto::overlay::ways::ways(
                    &cluster.roster.borrow(),
                    &id("a"),
                    &id("b"),
                    |_| true,
                );
                let way = ways.iter().find(|way| way.hops.len() == count).unwrap();
                let order: Vec<_> = way
                    .hops
                    .iter()
                    .map(|hop| relays.iter().find(|relay| relay.1 == hop.address).unwrap())
                    .collect();
                for (at, (wire, _, _)) in order.iter().enumerate() {
                    for (other, (_, address, _)) in order.iter().enumerate() {
                        if at.abs_diff(other) > 1 {
                            wire.cut(*address);
                        }
                    }
                    if at + 1 < count {
                        wire.cut(to_b);
                    }
                    if at > 0 {
                        at_a.cut(order[at].1);
                    }
                }
                keep.extend(relays.into_iter().map(|relay| Box::new(relay) as Box<_>));
                (near, far)
            }
            Hop::Ending => {
                let near = cluster.node(&a, "a", &at_a, None);
                let far = cluster.node(&b, "b", &at_b, None);
                let mut next = "b";
                for (lane, name) in hops.iter().zip(["t1", "t2", "t3"]).rev() {
                    let wire = lane.run(async { Wire::bind() });
                    let node = cluster.node(lane, name, &wire, None);
                    lane.runtime.spawn(end_and_begin(node, id(next)));
                    next = name;
                }
                (near, far)
            }
        };
        let first = match hop {
            Hop::Ending => id("t1"),
            _ => id("b"),
        };
        let opener = near.clone();
        let opened = {
            let (tell, told) = std::sync::mpsc::sync_channel(1);
            a.runtime.spawn(async move {
                let _ = tell.send(opener.open(&first, open()).await.unwrap().0);
            });
            told
        };
        let accepter = far.clone();
        let there = b.run(async move {
            let requested = accepter.accept().await.unwrap();
            requested.accept(Response::ok()).await.unwrap()
        });
        let here = opened.recv().unwrap();
        keep.push(Box::new((near, far, cluster)));
        Self {
            a,
            b,
            hops,
            here: Arc::new(here),
            there: Arc::new(there),
            _keep: keep,
        }
    }

    /// Processor time of what is between the ends.
    fn used(&self) -> Duration {
        self.hops.iter().map(Lane::used).sum()
    }

    fn measure(&self, time: Duration) -> Vec<(&'static str, f64)> {
        self.round_trips(100);
        let mut figures = Vec::new();
        let before = self.used();
        let (bytes, took) = self.bulk(time);
        let gigabits = bytes as f64 * 8.0 / 1e9;
        figures.push((FIGURES[0], gigabits / took.as_secs_f64()));
        figures.push((FIGURES[1], (self.used() - before).as_secs_f64() / gigabits));
        for (size, at) in [(1100, 2), (100, 4)] {
            let before = self.used();
            let (count, took) = self.datagrams(size, time);
            let used = (self.used() - before).as_secs_f64();
            figures.push((FIGURES[at], count as f64 / took.as_secs_f64() / 1e3));
            figures.push((
                FIGURES[at + 1],
                match at {
                    2 => used / (count as f64 * size as f64 * 8.0 / 1e9),
                    _ => used * 1e6 / count as f64,
                },
            ));
        }
        let mut trips = self.round_trips((time.as_secs_f64() * 1000.0) as usize);
        trips.sort();
        for (part, at) in [(0.5, 6), (0.99, 7)] {
            let trip = trips[(trips.len() as f64 * part) as usize];
            figures.push((FIGURES[at], trip.as_secs_f64() * 1e6));
        }
        if self.hops.is_empty() {
            // Nobody is there to be measured.
            figures.retain(|(name, _)| !name.contains("CPU"));
        }
        figures
    }

    fn bulk(&self, time: Duration) -> (u64, Duration) {
        let here = self.here.clone();
        self.a.runtime.spawn(async move {
            let mut send = here.open_uni().await.unwrap();
            let chunk = Bytes::from(vec![7; CHUNK]);
            let start = Instant::now();
            while start.elapsed() < time {
                send.write(chunk.clone()).await.unwrap();
            }
            send.finish().unwrap();
        });
        let there = self.there.clone();
        self.b.run(async move {
            let mut recv = there.accept_uni().await.unwrap();
            let (start, mut bytes) = (Instant::now(), 0);
            while let Some(chunk) = recv.read().await.unwrap() {
                bytes += chunk.len() as u64;
            }
            (bytes, start.elapsed())
        })
    }

    /// What came of datagrams, and in which time.
    fn datagrams(&self, size: usize, time: Duration) -> (u64, Duration) {
        let stop = CancellationToken::new();
        let sending = send_datagrams(self.here.clone(), size, time, stop.clone());
        self.a.runtime.spawn(sending);
        let came = self.b.run(count_datagrams(self.there.clone(), stop));
        // Words that are left would count for what is measured next.
        let here = self.here.clone();
        self.a.run(async move {
            while let Ok(Ok(_)) =
                tokio::time::timeout(Duration::from_millis(100), here.recv_datagram()).await
            {
            }
        });
        came
    }

    fn round_trips(&self, count: usize) -> Vec<Duration> {
        let (there, stop) = (self.there.clone(), CancellationToken::new());
        let stopped = stop.clone();
        self.b.runtime.spawn(async move {
            loop {
                tokio::select! {
                    () = stopped.cancelled() => break,
                    datagram = there.recv_datagram() => {
                        let _ = there.send_datagram(datagram.unwrap());
                    }
                }
            }
        });
        let here = self.here.clone();
        let trips = self.a.run(async move {
            let mut trips = Vec::with_capacity(count);
            let mut number = 0u64;
            while trips.len() < count {
                number += 1;
                let payload = [number.to_be_bytes(); 4].concat();
                let start = Instant::now();
                let _ = here.send_datagram(Bytes::from(payload.clone()));
                let back = async {
                    // Words of what was measured before may come, too.
                    while here.recv_datagram().await.unwrap() != payload {}
                };
                if tokio::time::timeout(Duration::from_millis(200), back)
                    .await
                    .is_ok()
                {
                    trips.push(start.elapsed());
                }
            }
            trips
        });
        stop.cancel();
        trips
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.here.close(Close::new(0, ""));
    }
}

/// Sends datagrams, with a word back for each half of [`IN_FLIGHT`].
async fn send_datagrams(
    here: Arc<mesh::Session>,
    size: usize,
    time: Duration,
    stop: CancellationToken,
) {
    let payload = Bytes::from(vec![7; size]);
    let (mut sent, mut known, mut counted) = (0u64, 0u64, 0u64);
    let start = Instant::now();
    while start.elapsed() < time {
        while sent < known + IN_FLIGHT {
            let _ = here.send_datagram(payload.clone());
            sent += 1;
        }
        let word = tokio::time::timeout(Duration::from_millis(50), here.recv_datagram());
        match word.await {
            Ok(Ok(word)) => {
                let count = u64::from_be_bytes(word[..8].try_into().unwrap());
                // What was lost is never counted: what came since makes room for as many.
                known = (known + count.saturating_sub(counted)).min(sent);
                counted = count.max(counted);
            }
            // The word, or what it was for, was lost.
            _ => known = sent,
        }
    }
    stop.cancel();
}

/// Counts them until told to stop, and how long that is.
async fn count_datagrams(there: Arc<mesh::Session>, stop: CancellationToken) -> (u64, Duration) {
    let (start, mut count) = (Instant::now(), 0u64);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            datagram = there.recv_datagram() => {
                datagram.unwrap();
                count += 1;
                if count.is_multiple_of(IN_FLIGHT / 2) {
                    let _ = there.send_datagram(Bytes::copy_from_slice(&count.to_be_bytes()));
                }
            }
        }
    }
    let took = start.elapsed();
    // What is still on its way is nobody's.
    while let Ok(Ok(_)) =
        tokio::time::timeout(Duration::from_millis(100), there.recv_datagram()).await
    {}
    (count, took)
}

/// Sends on what comes, in the batches in which it comes.
async fn forward(socket: Arc<Wire>, before: SocketAddr, after: SocketAddr) {
    let each = socket.max_receive_segments().max(1) * 1500;
    let mut memory = vec![0; each * BATCH_SIZE];
    loop {
        let mut meta = [RecvMeta::default(); BATCH_SIZE];
        let count = poll_fn(|cx| {
            let mut parts = memory.chunks_mut(each);
            let mut bufs: [io::IoSliceMut<'_>; BATCH_SIZE] =
                std::array::from_fn(|_| io::IoSliceMut::new(parts.next().unwrap_or_default()));
            socket.poll_recv(cx, &mut bufs, &mut meta)
        });
        let Ok(count) = count.await else { continue };
        for (part, meta) in memory.chunks(each).zip(&meta).take(count) {
            let most = meta.stride.max(1) * socket.max_transmit_segments().max(1);
            for batch in part[..meta.len].chunks(most) {
                let _ = socket.try_send(&Transmit {
                    destination: if meta.addr == after { before } else { after },
                    ecn: meta.ecn,
                    contents: batch,
                    segment_size: (batch.len() > meta.stride).then_some(meta.stride),
                    src_ip: None,
                });
            }
        }
    }
}

/// A relay that ends a session's QUIC and begins it anew to the next node.
async fn end_and_begin(node: Endpoint, next: NodeId) {
    while let Some(requested) = node.accept().await {
        let (onward, response) = node.open(&next, requested.open().clone()).await.unwrap();
        let session = requested.accept(response).await.unwrap();
        tokio::spawn(async move {
            let options = mirror::Options {
                idle_timeout: Duration::from_secs(60),
                b_lost: Close::new(0, ""),
                a_lost: Close::new(0, ""),
            };
            mirror::mirror(&session, &onward, &options, &Traffic::default()).await;
        });
    }
}
