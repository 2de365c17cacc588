//! Members that show forged leases, and strangers that forge all, as fast as they can.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use wavry_proto::overlay::transit::Limits;

use super::{
    Args,
    hostile::{FLOW, MIB, mean, paced, stranger, strangers_flood},
};
use crate::{
    Error, Row,
    mesh::{Bed, Bulk, Forger, failed},
    report::Better,
    shaper::{Host, Link},
};

/// Members that forge: what they may have checked is more than all may.
const FORGERS: usize = 12;

/// Claims of all of them in a second: as many have their tags checked at most, and half of these a cookie.
const CLAIMS: u64 = 20_000;

/// Signatures that a relay checks in a second: for all, and for one.
const SIGNATURES: f64 = 2_000.0;

/// What was sent last has come by then, and was counted.
const SETTLED: Duration = Duration::from_secs(5);

pub(super) async fn forge(args: &Args) -> Result<Vec<Row>, Error> {
    let bed = Bed::new(args.seed)?;
    let (gateway, exit) = (bed.node("gateway")?, bed.node("exit")?);
    let limits = Limits {
        bytes_per_second: FLOW,
        ..Limits::default()
    };
    let mut relay = bed.relay("transit", limits).await?;
    bed.network.both(gateway.host, exit.host, Link::blackhole());
    let near = Link::delayed(Duration::from_millis(5));
    bed.network.both(gateway.host, relay.host, near);
    let key = bed.sign_leases();
    let forgers: Result<Vec<_>, _> = (0..FORGERS)
        .map(|number| bed.forger(&format!("forger-{number}"), &relay, &exit, &key))
        .collect();
    let mut forgers = forgers?;
    let hosts: Vec<Host> = forgers.iter().map(|forger| forger.host).collect();
    let (stranger, at) = stranger(&bed)?;
    let mut sessions = bed.sessions(&gateway, &exit, 1).await?;
    let [here, there] = sessions.remove(0);
    let bulk = Bulk::start(here, there);
    bulk.measure(args.time() / 2).await;

    let resident = relay.resident()?;
    let before = relay.counts().await?;
    let (mut quiet, mut flooded, mut most) = (Vec::new(), Vec::new(), resident);
    let (mut claimed, mut forged) = (0, 0);
    for _ in 0..args.rounds {
        quiet.push(bulk.measure(args.time()).await.0);
        let stop = CancellationToken::new();
        let members = tokio::spawn(claims(forgers, relay.host, stop.clone()));
        let strangers = strangers_flood(stranger.clone(), &relay, &exit, stop.clone());
        let strangers = tokio::spawn(strangers);
        flooded.push(bulk.measure(args.time()).await.0);
        most = most.max(relay.resident()?);
        stop.cancel();
        let sent;
        (forgers, sent) = members.await.map_err(failed)?;
        claimed += sent;
        forged += strangers.await.map_err(failed)?;
    }
    let exact = bulk.stop().await;
    let granted: u64 = forgers.iter().map(|forger| forger.granted).sum();

    // Every packet that came to its socket is in one counter.
    let to = relay.host;
    let came = || {
        let all = [gateway.host, exit.host, at]
            .into_iter()
            .chain(hosts.iter().copied());
        all.map(|host| bed.network.tally(host, to).packets)
            .sum::<u64>()
    };
    let settling = tokio::time::Instant::now() + SETTLED;
    let (after, uncounted, not_taken) = loop {
        let counts = relay.counts().await?;
        let uncounted = came() as i64 - counts.packets();
        let not_taken = relay.overflowed()?;
        if uncounted == not_taken as i64 || tokio::time::Instant::now() > settling {
            break (counts, uncounted as f64, not_taken as f64);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    // What the kernel has no room for it counts in batches: of how many packets, nobody knows.
    let title = "forge_packets_uncounted";
    let uncounted = match not_taken > 0.0 {
        true => Row::plain(title, "packets", uncounted),
        false => Row::bounded(title, "packets", Better::Less, uncounted.abs(), 0.0),
    };
    let counts = after.since(&before);
    let answered = bed.network.tally(relay.host, at);
    let signatures = counts.leases("signature");
    // A budget is of a second of the relay's, which begins when it will.
    let seconds = (args.time().as_secs_f64().ceil() + 1.0) * args.rounds as f64;
    Ok(vec![
        Row::compared(
            "forge_others_goodput",
            "Mbit/s",
            Better::More,
            mean(&flooded),
            mean(&quiet),
            0.95,
        ),
        Row::bounded(
            "forge_streams_broken",
            "streams",
            Better::Less,
            f64::from(u8::from(exact.is_err())),
            0.0,
        ),
        Row::bounded(
            "forge_relay_memory",
            "MiB",
            Better::Less,
            most.saturating_sub(resident) as f64 / MIB,
            32.0,
        ),
        Row::plain("forge_claims_sent", "packets", claimed as f64),
        Row::plain("forge_strangers_sent", "packets", forged as f64),
        Row::plain(
            "forge_claims_asked_for_proof",
            "claims",
            counts.claims("prove"),
        ),
        Row::plain(
            "forge_claims_refused",
            "claims",
            counts.claims("forged") + counts.claims("busy"),
        ),
        Row::bounded(
            "forge_claims_granted",
            "claims",
            Better::Less,
            granted as f64,
            0.0,
        ),
        Row::bounded(
            "forge_signatures_checked",
            "signatures",
            Better::Less,
            signatures,
            SIGNATURES * seconds,
        ),
        uncounted,
        Row::plain("forge_batches_not_taken", "batches", not_taken),
        Row::bounded(
            "forge_strangers_answered",
            "packets",
            Better::Less,
            (answered.packets + answered.lost()) as f64,
            0.0,
        ),
    ])
}

/// All of them claim, in turns, until `stop`; they are given back, with how many claims were sent.
async fn claims(mut forgers: Vec<Forger>, to: Host, stop: CancellationToken) -> (Vec<Forger>, u64) {
    const EACH: u64 = 4;
    let mut turn = 0;
    let sent = paced(CLAIMS, EACH, stop, || {
        turn += 1;
        let all = forgers.len();
        forgers[turn % all].claim(EACH, to)
    });
    let sent = sent.await;
    (forgers, sent)
}
