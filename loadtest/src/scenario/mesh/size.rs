//! The network itself, and a mesh of many relays.

use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

use wavry_proto::overlay::{
    paths::{Route, Standing, View},
    transit::Limits,
};

use super::{Args, milliseconds};
use crate::{
    Error, Row,
    mesh::{Bed, Node, Relay, failed},
    report::Better,
    shaper::{Link, Shaper},
};

/// Datagrams of the largest size that nodes send, at 200 Mbit/s.
const SIZE: usize = 1_288;
const RATE: f64 = 200e6;

/// What the network carries, how late, and for how much of a core.
pub(super) async fn shaper(args: &Args) -> Result<Vec<Row>, Error> {
    let network = Shaper::start(args.seed).map_err(failed)?;
    let sockets = [
        UdpSocket::bind("127.0.0.1:0"),
        UdpSocket::bind("127.0.0.1:0"),
    ];
    let [here, there] = sockets.map(|socket| socket.map_err(failed));
    let (here, there) = (here?, there?);
    let (from, to) = (
        network.host().map_err(failed)?,
        network.host().map_err(failed)?,
    );
    network.attach(from, here.local_addr().map_err(failed)?);
    network.attach(to, there.local_addr().map_err(failed)?);
    network.both(from, to, Link::delayed(Duration::from_millis(20)));
    there
        .set_read_timeout(Some(Duration::from_millis(500)))
        .map_err(failed)?;
    let (time, at) = (args.time(), to.address());
    let sending = std::thread::spawn(move || {
        let (start, mut sent) = (Instant::now(), 0u64);
        let payload = [0x57; SIZE];
        while start.elapsed() < time {
            let due = (start.elapsed().as_secs_f64() * RATE / 8.0 / SIZE as f64) as u64;
            while sent < due {
                sent += u64::from(here.send_to(&payload, at).is_ok());
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        sent
    });
    let receiving = std::thread::spawn(move || {
        let (mut came, mut buffer) = (0u64, [0; 2_048]);
        while there.recv(&mut buffer).is_ok() {
            came += 1;
        }
        came
    });
    let used = network.processor_time();
    let joined = tokio::task::spawn_blocking(move || (sending.join(), receiving.join()));
    let (Ok(sent), Ok(came)) = joined.await.map_err(failed)? else {
        return Err(failed("a thread panicked"));
    };
    let used = network.processor_time().zip(used);
    let used = used.map_or(f64::NAN, |(now, then)| (now - then).as_secs_f64());
    let lateness = network.lateness();
    let carried = network.tally(from, to).packets as f64;
    let rate = carried * SIZE as f64 * 8.0 / 1e6 / time.as_secs_f64();
    Ok(vec![
        Row::plain("shaper_sent", "packets", sent as f64),
        Row::plain("shaper_carried", "packets", carried),
        Row::plain("shaper_came", "packets", came as f64),
        Row::bounded("shaper_rate", "Mbit/s", Better::More, rate, 190.0),
        Row::plain(
            "shaper_processor",
            "% of a core",
            used / time.as_secs_f64() * 100.0,
        ),
        Row::plain(
            "shaper_late_p50",
            "ms",
            milliseconds(lateness.percentile(50)),
        ),
        Row::plain(
            "shaper_late_p99",
            "ms",
            milliseconds(lateness.percentile(99)),
        ),
    ])
}

/// Relays, gateways and exits.
const RELAYS: usize = 12;
const ENDS: usize = 3;

/// Twelve relays, each a process, between three gateways and three exits: until all ways stand by, what probes
/// cost, and until they do again once two relays are dead.
pub(super) async fn twelve(args: &Args) -> Result<Vec<Row>, Error> {
    let bed = Bed::new(args.seed)?;
    let mut relays = Vec::new();
    for number in 0..RELAYS {
        let name = format!("transit-{number}");
        relays.push(bed.relay(&name, Limits::default()).await?);
    }
    let nodes = |kind: &str| {
        let node = |number| bed.node(&format!("{kind}-{number}"));
        (0..ENDS).map(node).collect::<Result<Vec<_>, _>>()
    };
    let (gateways, exits) = (nodes("gateway")?, nodes("exit")?);
    let begun = Instant::now();
    let mut sessions = Vec::new();
    for gateway in &gateways {
        for exit in &exits {
            sessions.extend(bed.sessions(gateway, exit, 1).await?);
        }
    }
    all_stand_by(&gateways, &exits, 3).await?;
    let converged = begun.elapsed();

    // Nothing is sent but what keeps connections alive, and probes. A packet counts once on each link.
    let carried = || -> u64 {
        let all = gateways.iter().chain(&exits).map(|node| node.host);
        let all: Vec<_> = all.chain(relays.iter().map(|relay| relay.host)).collect();
        let pairs = all
            .iter()
            .flat_map(|one| all.iter().map(move |other| (*one, *other)));
        pairs
            .map(|(one, other)| bed.network.tally(one, other).packets)
            .sum()
    };
    let before = carried();
    tokio::time::sleep(args.time()).await;
    let each = (carried() - before) as f64 / args.time().as_secs_f64();

    // The two that most ways lead through.
    let through = |relay: &Relay| {
        let pairs = gateways
            .iter()
            .flat_map(|gateway| exits.iter().map(move |exit| (gateway, exit)));
        let views = pairs.flat_map(|(gateway, exit)| gateway.endpoint.paths(&exit.id));
        views
            .filter(|view| crate::mesh::first(view.route) == relay.host.address())
            .count()
    };
    relays.sort_by_key(|relay| std::cmp::Reverse(through(relay)));
    let died = Instant::now();
    for relay in &mut relays[..2] {
        relay.kill().await?;
        // As the master does for a node that is not heard of any more.
        bed.change(&relay.id, |node| node.transit.clear());
    }
    all_stand_by(&gateways, &exits, 3).await?;
    let again = died.elapsed();
    Ok(vec![
        Row::plain("twelve_pairs", "pairs", (ENDS * ENDS) as f64),
        Row::plain("twelve_converged_after", "ms", milliseconds(converged)),
        Row::plain(
            "twelve_idle_packets_each_pair",
            "1/s",
            each / (ENDS * ENDS) as f64,
        ),
        Row::plain("twelve_converged_again_after", "ms", milliseconds(again)),
    ])
}

/// Waits until each gateway has so many flows to each exit that carry something.
async fn all_stand_by(gateways: &[Node], exits: &[Node], flows: usize) -> Result<(), Error> {
    let carries = |view: &&View| {
        matches!(view.route, Route::Flow { .. }) && view.standing == Standing::Proved
    };
    for gateway in gateways {
        for exit in exits {
            let enough = |views: &[View]| views.iter().filter(carries).count() >= flows;
            gateway.until(exit, "all ways stand by", enough).await?;
        }
    }
    Ok(())
}
