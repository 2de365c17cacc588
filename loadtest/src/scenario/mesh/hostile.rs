//! Members that take more than is theirs, strangers, and a way that changes what it carries.

use std::{
    net::UdpSocket,
    sync::Arc,
    time::{Duration, Instant},
};

use quinn::udp::Transmit;
use tokio_util::sync::CancellationToken;
use wavry_proto::overlay::{
    TAG_LEN,
    packet::{Claim, Header, Kind, Label, Next},
    paths::Route,
    transit::Limits,
};

use super::{Args, survival};
use crate::{
    Error, Row,
    mesh::{Bed, Bulk, Node, Numbered, Relay, failed},
    report::Better,
    shaper::{Host, Link},
};

/// What a flow may send in a second: 20 Mbit/s.
pub(super) const FLOW: u64 = 2_500_000;

/// How many times that the member sends.
const TIMES: u64 = 5;

/// Packets that strangers send, each second, of each kind.
const FORGED: u64 = 5_000;

/// Payload of the member's flood: what the largest packet has.
const PAYLOAD: usize = 1_280;

pub(super) const MIB: f64 = 1024.0 * 1024.0;

/// One gateway floods its own flow, a stranger floods the relay with flows and claims that are nobody's, and
/// another gateway wants what is its own.
pub(super) async fn flood(args: &Args) -> Result<Vec<Row>, Error> {
    let bed = Bed::new(args.seed)?;
    let (other, flooder) = (bed.node("gateway-1")?, bed.node("gateway-2")?);
    let exit = bed.node("exit")?;
    let limits = Limits {
        bytes_per_second: FLOW,
        ..Limits::default()
    };
    let mut relay = bed.relay("transit", limits).await?;
    for gateway in [&other, &flooder] {
        bed.network.both(gateway.host, exit.host, Link::blackhole());
        let near = Link::delayed(Duration::from_millis(5));
        bed.network.both(gateway.host, relay.host, near);
    }
    let mut sessions = bed.sessions(&other, &exit, 1).await?;
    let [here, there] = sessions.remove(0);
    let _member = bed.sessions(&flooder, &exit, 1).await?;
    let bulk = Bulk::start(here, there);
    bulk.measure(args.time() / 2).await;

    let (stranger, at) = stranger(&bed)?;

    let before = relay.counts().await?;
    let resident_before = relay.resident()?;
    let (mut quiet, mut flooded, mut most) = (Vec::new(), Vec::new(), resident_before);
    let (mut forged, mut flood) = (0, 0);
    for _ in 0..args.rounds {
        quiet.push(bulk.measure(args.time()).await.0);
        let stop = CancellationToken::new();
        let member = member_floods(&flooder, &exit, stop.clone())?;
        let strangers = strangers_flood(stranger.clone(), &relay, &exit, stop.clone());
        let (member, strangers) = (tokio::spawn(member), tokio::spawn(strangers));
        flooded.push(bulk.measure(args.time()).await.0);
        most = most.max(relay.resident()?);
        stop.cancel();
        flood += member.await.map_err(failed)?;
        forged += strangers.await.map_err(failed)?;
    }
    let exact = bulk.stop().await;
    let came = bed.network.tally(at, relay.host);
    // The relay answers once it has looked at what came before.
    let dropped = relay.counts().await?.since(&before).dropped;
    let answered = bed.network.tally(relay.host, at);
    let of = |reasons: &[&str]| {
        let counts = reasons.iter().filter_map(|reason| dropped.get(*reason));
        counts.sum::<i64>() as f64
    };
    let refused = of(&[
        "unknown_flow",
        "malformed",
        "unauthenticated",
        "unknown_sender",
        "too_many_claims",
    ]);
    Ok(vec![
        Row::compared(
            "flood_others_goodput",
            "Mbit/s",
            Better::More,
            mean(&flooded),
            mean(&quiet),
            0.95,
        ),
        Row::bounded(
            "flood_streams_broken",
            "streams",
            Better::Less,
            f64::from(u8::from(exact.is_err())),
            0.0,
        ),
        Row::bounded(
            "flood_relay_memory",
            "MiB",
            Better::Less,
            most.saturating_sub(resident_before) as f64 / MIB,
            32.0,
        ),
        Row::plain("flood_member_sent", "packets", flood as f64),
        Row::plain("flood_member_over_rate", "packets", of(&["rate"])),
        Row::plain("flood_strangers_sent", "packets", forged as f64),
        Row::plain("flood_strangers_came", "packets", came.packets as f64),
        Row::bounded(
            "flood_strangers_refused",
            "packets",
            Better::More,
            refused,
            came.packets as f64,
        ),
        Row::bounded(
            "flood_strangers_answered",
            "packets",
            Better::Less,
            (answered.packets + answered.lost()) as f64,
            0.0,
        ),
    ])
}

pub(super) fn mean(rates: &[f64]) -> f64 {
    rates.iter().sum::<f64>() / rates.len().max(1) as f64
}

/// Somebody who is not in the roster, and the host that it is at.
pub(super) fn stranger(bed: &Bed) -> Result<(Arc<UdpSocket>, Host), Error> {
    let stranger = UdpSocket::bind("127.0.0.1:0").map_err(failed)?;
    stranger.set_nonblocking(true).map_err(failed)?;
    let at = bed.network.host().map_err(failed)?;
    bed.network
        .attach(at, stranger.local_addr().map_err(failed)?);
    Ok((Arc::new(stranger), at))
}

/// Sends packets that are nothing over the node's own flow, [`TIMES`] as many as it may; how many those were.
fn member_floods(
    node: &Node,
    exit: &Node,
    stop: CancellationToken,
) -> Result<impl Future<Output = u64> + use<>, Error> {
    let Some(Route::Flow { via, id }) = node.active(exit).map(|view| view.route) else {
        return Err(failed("the flooding gateway has no flow"));
    };
    let header = Header {
        kind: Kind::Flow,
        label: id,
    };
    let packet = [&header.to_wire()[..], &[0x41; PAYLOAD]].concat();
    let batch = packet.repeat(10);
    let socket = node.socket.clone();
    let each = FLOW * TIMES / packet.len() as u64;
    Ok(paced(each, 10, stop, move || {
        let sent = socket.try_send(&Transmit {
            destination: via,
            ecn: None,
            contents: &batch,
            segment_size: Some(packet.len()),
            src_ip: None,
        });
        if sent.is_ok() { 10 } else { 0 }
    }))
}

/// Sends packets on flows that nobody claimed, and claims of a member without its key; how many those were.
pub(super) fn strangers_flood(
    socket: Arc<UdpSocket>,
    relay: &Relay,
    exit: &Node,
    stop: CancellationToken,
) -> impl Future<Output = u64> + use<> {
    let to: Host = relay.host;
    let claim = Claim {
        flow: Label::from_random(7),
        nonce: 7,
        cookie: 7,
        from: exit.id.clone(),
        to: relay.id.clone(),
        peer: exit.id.clone(),
        hops: vec![relay.id.clone()],
        next: Next::At(exit.host.address()),
        lease: vec![7; 300],
    };
    let mut claims = Vec::new();
    claim.write(&mut claims, |_, tags| tags.extend([[7; TAG_LEN]; 2]));
    let mut number = 0u64;
    paced(FORGED * 2, 10, stop, move || {
        let mut sent = 0;
        for _ in 0..5 {
            number += 1;
            let header = Header {
                kind: Kind::Flow,
                label: Label::from_random(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            };
            let forged = [&header.to_wire()[..], &[0x41; 100]].concat();
            for packet in [&forged, &claims] {
                sent += u64::from(socket.send_to(packet, to.address()).is_ok());
            }
        }
        sent
    })
}

/// Calls `send`, which sends `batch` packets, so often that it is `each` of them in a second.
pub(super) async fn paced(
    each: u64,
    batch: u64,
    stop: CancellationToken,
    mut send: impl FnMut() -> u64,
) -> u64 {
    let (start, mut turns, mut sent) = (Instant::now(), 0u64, 0);
    let mut tick = tokio::time::interval(Duration::from_millis(2));
    while !stop.is_cancelled() {
        tick.tick().await;
        let due = start.elapsed().as_micros() as u64 * each / 1_000_000 / batch;
        while turns < due {
            turns += 1;
            sent += send();
        }
    }
    sent
}

/// The links of the only relay flip a bit in a part of all packets and repeat others.
pub(super) async fn tamper(args: &Args) -> Result<Vec<Row>, Error> {
    let bed = Bed::new(args.seed)?;
    let (gateway, exit) = (bed.node("gateway")?, bed.node("exit")?);
    let relay = bed.relay("transit", Limits::default()).await?;
    bed.network.both(gateway.host, exit.host, Link::blackhole());
    let sessions = bed.sessions(&gateway, &exit, args.sessions).await?;
    let link = Link {
        flip: 0.02,
        repeat: 0.1,
        ..Link::delayed(Duration::from_millis(5))
    };
    bed.network.both(gateway.host, relay.host, link);
    bed.network.both(relay.host, exit.host, link);
    let numbered = Numbered::start(&sessions, Duration::from_millis(40));
    tokio::time::sleep(args.time()).await;
    let outcomes = numbered.stop().await?;
    let tally = bed.network.tally(relay.host, exit.host);
    let mut rows = survival("tamper", &outcomes);
    rows.push(Row::plain(
        "tamper_packets",
        "packets",
        tally.packets as f64,
    ));
    Ok(rows)
}
