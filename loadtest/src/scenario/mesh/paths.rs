//! Paths that die, come and go, become narrow or other ones, under sessions that have to live on.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use wavry_proto::overlay::transit::Limits;
use wavry_transport::mesh::Session;

use super::{Args, milliseconds, stall_rows, survival};
use crate::{
    Error, Row,
    mesh::{Bed, Bulk, Node, Numbered, Relay, stalls},
    report::Better,
    shaper::{Change, Link, Nat},
};

/// From one message to the next on each stream: a stall is measured as well as this.
const PACE: Duration = Duration::from_millis(40);

/// Nothing happens for this long at first, so that what is measured then can be told from what the host does by
/// itself.
const QUIET: Duration = Duration::from_secs(3);

/// And for this long after it happened stalls are its own.
const AFTER: Duration = Duration::from_secs(5);

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A gateway and an exit that do not reach each other, and two relays of which both together are the best way: a
/// round trip of 30 ms, against 70 through either alone.
struct TwoHops {
    bed: Bed,
    gateway: Node,
    exit: Node,
    first: Relay,
    _second: Relay,
    sessions: Vec<[Arc<Session>; 2]>,
}

/// What a round trip over the best way is not above, and one over another way is.
const BEST: Duration = Duration::from_millis(60);

impl TwoHops {
    async fn new(args: &Args) -> Result<Self, Error> {
        let bed = Bed::new(args.seed)?;
        let (gateway, exit) = (bed.node("gateway")?, bed.node("exit")?);
        let relays = [
            bed.relay("transit-1", Limits::default()).await?,
            bed.relay("transit-2", Limits::default()).await?,
        ];
        let [first, second] = bed.in_order(&gateway, &exit, relays);
        let network = &bed.network;
        network.both(gateway.host, exit.host, Link::blackhole());
        network.both(gateway.host, first.host, Link::delayed(ms(5)));
        network.both(first.host, second.host, Link::delayed(ms(5)));
        network.both(second.host, exit.host, Link::delayed(ms(5)));
        network.both(gateway.host, second.host, Link::delayed(ms(30)));
        network.both(first.host, exit.host, Link::delayed(ms(30)));
        let sessions = bed.sessions(&gateway, &exit, args.sessions).await?;
        let (near, far) = (first.host.address(), second.host.address());
        gateway.until_sent_to(&exit, near, BEST, 1).await?;
        exit.until_sent_to(&gateway, far, BEST, 1).await?;
        Ok(Self {
            bed,
            gateway,
            exit,
            first,
            _second: second,
            sessions,
        })
    }

    /// Messages go over all sessions, `happen` does something, and they go on; when that was, and the rows.
    async fn under(
        &mut self,
        name: &str,
        stall_p99: f64,
        stall_most: f64,
        happen: impl AsyncFnOnce(&mut Self) -> Result<(), Error>,
    ) -> Result<Vec<Row>, Error> {
        let (changes, back) = (
            self.gateway.watch(&self.exit),
            self.exit.watch(&self.gateway),
        );
        let numbered = Numbered::start(&self.sessions, PACE);
        let begun = Instant::now();
        tokio::time::sleep(QUIET).await;
        let happened = Instant::now();
        happen(self).await?;
        tokio::time::sleep_until((happened + AFTER).into()).await;
        let pace = numbered.pace();
        let over = Instant::now();
        let outcomes = numbered.stop().await?;
        let mut rows = survival(name, &outcomes);
        // The first messages have to wait for streams to be opened.
        let quiet = stalls(&outcomes, pace, begun + QUIET / 2, happened);
        let quiet = crate::measure::Times::new(quiet).percentile(99);
        rows.push(Row::plain(format!("{name}_quiet_stall_p99"), "ms", quiet));
        let after = stalls(&outcomes, pace, happened, over);
        rows.extend(stall_rows(name, after, stall_p99, stall_most));
        for (side, changes) in [("gateway", changes), ("exit", back)] {
            let changes = changes.since(happened);
            let first = changes.first().map(|at| milliseconds(*at - happened));
            let title = format!("{name}_{side}_changed_after");
            rows.push(Row::plain(title, "ms", first.unwrap_or(f64::NAN)));
        }
        Ok(rows)
    }
}

/// The relay in use is killed.
pub(super) async fn kill(args: &Args) -> Result<Vec<Row>, Error> {
    let mut mesh = TwoHops::new(args).await?;
    mesh.under("kill", 400.0, 1_000.0, async |mesh| mesh.first.kill().await)
        .await
}

/// What the gateway sends over the path in use is lost.
pub(super) async fn blackhole(args: &Args) -> Result<Vec<Row>, Error> {
    let mut mesh = TwoHops::new(args).await?;
    let rows = mesh.under("blackhole", 400.0, 1_000.0, async |mesh| {
        let (from, to) = (mesh.gateway.host, mesh.first.host);
        mesh.bed.network.link(from, to, Link::blackhole());
        Ok(())
    });
    let mut rows = rows.await?;
    for row in &mut rows {
        if row.name == "blackhole_gateway_changed_after" {
            *row = Row::bounded(row.name.clone(), "ms", Better::Less, row.wavry, 500.0);
        }
    }
    Ok(rows)
}

/// The relay in use is told to leave.
pub(super) async fn drain(args: &Args) -> Result<Vec<Row>, Error> {
    let mut mesh = TwoHops::new(args).await?;
    let asked = Instant::now() + QUIET;
    let rows = mesh.under("drain", 100.0, 1_000.0, async |mesh| {
        // As the master tells of it.
        mesh.bed.change(&mesh.first.id, |node| node.transit.clear());
        mesh.first.drain().await
    });
    let mut rows = rows.await?;
    let status = mesh.first.ended().await?;
    if !status.success() {
        return Err(Error::Mesh(format!("the relay ended with {status}")));
    }
    // It may have ended while messages still went: no later than this.
    let took = asked.elapsed().as_secs_f64();
    rows.push(Row::bounded(
        "drain_empty_within",
        "s",
        Better::Less,
        took,
        10.0,
    ));
    Ok(rows)
}

/// A gateway and an exit with a direct path and one through a relay.
struct Two {
    bed: Bed,
    gateway: Node,
    exit: Node,
    relay: Relay,
}

impl Two {
    async fn new(args: &Args, direct: Link, near: Link, far: Link) -> Result<Self, Error> {
        let bed = Bed::new(args.seed)?;
        let (gateway, exit) = (bed.node("gateway")?, bed.node("exit")?);
        let relay = bed.relay("transit", Limits::default()).await?;
        bed.network.both(gateway.host, exit.host, direct);
        bed.network.both(gateway.host, relay.host, near);
        bed.network.both(relay.host, exit.host, far);
        Ok(Self {
            bed,
            gateway,
            exit,
            relay,
        })
    }

    async fn bulk(&self) -> Result<Bulk, Error> {
        let mut sessions = self.bed.sessions(&self.gateway, &self.exit, 1).await?;
        let [here, there] = sessions.remove(0);
        Ok(Bulk::start(here, there))
    }
}

/// The better of two links comes and goes.
pub(super) async fn flap(args: &Args) -> Result<Vec<Row>, Error> {
    const HALF: Duration = Duration::from_millis(500);
    let rated = |delay| Link {
        rate: Some(20_000_000),
        ..Link::delayed(ms(delay))
    };
    let mesh = Two::new(args, rated(5), rated(10), Link::delayed(ms(5))).await?;
    let hosts = (mesh.gateway.host, mesh.exit.host);
    let network = &mesh.bed.network;
    let bulk = mesh.bulk().await?;
    // The stable path alone.
    network.both(hosts.0, hosts.1, Link::blackhole());
    let relay = mesh.relay.host.address();
    mesh.gateway
        .until_sent_to(&mesh.exit, relay, ms(1_000), 0)
        .await?;
    // What the change has lost is forgotten by then.
    bulk.measure(ms(3_000)).await;
    let (stable, _) = bulk.measure(args.time()).await;
    // The better one again, which is then in use.
    network.both(hosts.0, hosts.1, rated(5));
    let direct = mesh.exit.host.address();
    mesh.gateway
        .until_sent_to(&mesh.exit, direct, ms(1_000), 1)
        .await?;
    let time = args.time() * 6;
    let flaps = (time.as_millis() / HALF.as_millis()) as u32;
    network.schedule((0..flaps).flat_map(|flap| {
        let link = match flap % 2 {
            0 => Link::blackhole(),
            _ => rated(5),
        };
        [hosts, (hosts.1, hosts.0)].map(|(from, to)| (HALF * flap, Change::Link(from, to, link)))
    }));
    let (since, changes) = (Instant::now(), mesh.gateway.watch(&mesh.exit));
    let (flapping, longest) = bulk.measure(time).await;
    let changed = changes.since(since).len() as f64;
    let exact = bulk.stop().await;
    let most = (time.as_secs_f64() / 5.0).ceil();
    Ok(vec![
        exactness("flap", &exact),
        Row::bounded("flap_changes", "changes", Better::Less, changed, most),
        Row::compared(
            "flap_goodput",
            "Mbit/s",
            Better::More,
            flapping,
            stable,
            0.9,
        ),
        Row::plain("flap_longest_gap", "ms", milliseconds(longest)),
    ])
}

/// Paths of 40 ms and of 1 ms take turns every two seconds, as the roster says.
pub(super) async fn switch(args: &Args) -> Result<Vec<Row>, Error> {
    const TURN: Duration = Duration::from_secs(2);
    let bed = Bed::new(args.seed)?;
    let (gateway, exit) = (bed.node("gateway")?, bed.node("exit")?);
    let relays = [
        bed.relay("transit-1", Limits::default()).await?,
        bed.relay("transit-2", Limits::default()).await?,
    ];
    bed.network.both(gateway.host, exit.host, Link::blackhole());
    for (relay, micros) in relays.iter().zip([20_000, 500]) {
        let first = Link {
            rate: Some(100_000_000),
            ..Link::delayed(Duration::from_micros(micros))
        };
        bed.network.both(gateway.host, relay.host, first);
    }
    let mut sessions = bed.sessions(&gateway, &exit, 1).await?;
    let [here, there] = sessions.remove(0);
    let bulk = Bulk::start(here, there);
    let entered = || -> u64 {
        let tallies = relays
            .iter()
            .map(|relay| bed.network.tally(gateway.host, relay.host));
        tallies.map(|tally| tally.bytes).sum()
    };
    // With the slow path alone, until it is as fast as it gets.
    let listed = relays.each_ref().map(|relay| vec![relay.host.address()]);
    bed.change(&relays[1].id, |node| node.transit.clear());
    gateway
        .until_sent_to(&exit, listed[0][0], ms(1_000), 0)
        .await?;
    bulk.measure(args.time() / 2).await;
    let (steady, _) = bulk.measure(args.time() / 2).await;
    let turns = (args.time().as_millis() * 2 / TURN.as_millis()).max(2) as usize;
    let before = entered();
    let since = Instant::now();
    let changes = gateway.watch(&exit);
    let switching = async {
        for turn in 0..turns {
            let (comes, goes) = ((turn + 1) % 2, turn % 2);
            // The next one is proved before the one in use is left.
            bed.change(&relays[comes].id, |node| {
                node.transit = listed[comes].clone();
            });
            tokio::time::sleep(TURN - ms(500)).await;
            bed.change(&relays[goes].id, |node| node.transit.clear());
            tokio::time::sleep(ms(500)).await;
        }
    };
    let ((goodput, longest), ()) = tokio::join!(bulk.measure(TURN * turns as u32), switching);
    let took = since.elapsed().as_secs_f64();
    let carried = (entered() - before) as f64 * 8.0 / 1e6 / took;
    let changed = changes.since(since).len() as f64;
    let late = bed.network.lateness().percentile(100);
    let exact = bulk.stop().await;
    Ok(vec![
        exactness("switch", &exact),
        Row::bounded(
            "switch_changes",
            "changes",
            Better::More,
            changed,
            turns as f64 - 1.0,
        ),
        Row::plain("switch_steady_goodput", "Mbit/s", steady),
        Row::bounded("switch_goodput", "Mbit/s", Better::More, goodput, 85.0),
        Row::bounded(
            "switch_longest_gap",
            "ms",
            Better::Less,
            milliseconds(longest),
            60.0,
        ),
        // Headers, and what was sent again.
        Row::plain("switch_overhead", "%", (carried / goodput - 1.0) * 100.0),
        // A machine that stands still makes a gap, too.
        Row::plain("switch_shaper_late_most", "ms", milliseconds(late)),
    ])
}

/// The direct path carries no more than 1,280 bytes from one moment to the next.
pub(super) async fn mtu(args: &Args) -> Result<Vec<Row>, Error> {
    let wide = Link {
        rate: Some(20_000_000),
        mtu: Some(1_500),
        ..Link::delayed(ms(5))
    };
    let mesh = Two::new(args, wide, Link::delayed(ms(10)), Link::delayed(ms(10))).await?;
    let bulk = mesh.bulk().await?;
    let direct = mesh.exit.host.address();
    mesh.gateway
        .until_sent_to(&mesh.exit, direct, ms(1_000), 1)
        .await?;
    let (before, _) = bulk.measure(args.time() / 2).await;
    let narrow = Link {
        mtu: Some(1_280),
        ..wide
    };
    mesh.bed
        .network
        .both(mesh.gateway.host, mesh.exit.host, narrow);
    let (after, longest) = bulk.measure(args.time()).await;
    let exact = bulk.stop().await;
    Ok(vec![
        exactness("mtu", &exact),
        Row::plain("mtu_goodput_before", "Mbit/s", before),
        Row::plain("mtu_goodput_after", "Mbit/s", after),
        Row::bounded(
            "mtu_longest_gap",
            "ms",
            Better::Less,
            milliseconds(longest),
            1_000.0,
        ),
    ])
}

/// The router of a gateway, and then that of an exit, is started anew, three times.
pub(super) async fn rebind(args: &Args) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    for side in [Side::Gateway, Side::Exit] {
        rows.extend(rebind_of(side, args).await?);
    }
    Ok(rows)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Gateway,
    Exit,
}

async fn rebind_of(side: Side, args: &Args) -> Result<Vec<Row>, Error> {
    let bed = Bed::new(args.seed)?;
    let node = |name, own| match side == own {
        true => bed.node_behind(name, Nat::usual()),
        false => bed.node(name),
    };
    let (gateway, exit) = (node("gateway", Side::Gateway)?, node("exit", Side::Exit)?);
    let relays = [
        bed.relay("transit-1", Limits::default()).await?,
        bed.relay("transit-2", Limits::default()).await?,
    ];
    let hosts = [gateway.host, exit.host, relays[0].host, relays[1].host];
    for (at, one) in hosts.iter().enumerate() {
        for other in &hosts[at + 1..] {
            bed.network.both(*one, *other, Link::delayed(ms(10)));
        }
    }
    let (name, behind) = match side {
        Side::Gateway => ("rebind_gateway", &gateway),
        Side::Exit => ("rebind_exit", &exit),
    };
    bed.until_attached(behind, 2).await?;
    let sessions = bed.sessions(&gateway, &exit, args.sessions).await?;
    let numbered = Numbered::start(&sessions, PACE);
    tokio::time::sleep(QUIET).await;
    let happened = Instant::now();
    for _ in 0..3 {
        bed.network.change(Change::Rebind(behind.host));
        tokio::time::sleep(AFTER).await;
    }
    let over = Instant::now();
    let outcomes = numbered.stop().await?;
    let mut rows = survival(name, &outcomes);
    let stalls = stalls(&outcomes, PACE, happened, over);
    rows.extend(stall_rows(name, stalls, 1_000.0, 1_000.0));
    Ok(rows)
}

/// Whether a stream came as it was sent.
fn exactness(name: &str, ended: &Result<(), String>) -> Row {
    if let Err(problem) = ended {
        crate::progress(&format!("{name}: {problem}"));
    }
    let exact = f64::from(u8::from(ended.is_ok()));
    Row::bounded(
        format!("{name}_streams_exact"),
        "streams",
        Better::More,
        exact,
        1.0,
    )
}
