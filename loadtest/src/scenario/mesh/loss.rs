//! Throughput where packets are lost in bursts, beside the same QUIC over the same losses without an overlay.

use std::{sync::Arc, time::Duration};

use super::Args;
use crate::{
    Error, Row,
    mesh::{Bed, Bulk},
    raw::Pair,
    report::Better,
    shaper::{Link, Loss},
};

/// Packets in a burst, on average.
const BURST: f64 = 3.0;

pub(super) async fn run(args: &Args) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    for percent in [2, 10, 25] {
        rows.extend(at(args, percent).await?);
    }
    Ok(rows)
}

async fn at(args: &Args, percent: u32) -> Result<Vec<Row>, Error> {
    let link = Link {
        rate: Some(50_000_000),
        loss: Loss::Bursty {
            part: f64::from(percent) / 100.0,
            burst: BURST,
        },
        ..Link::delayed(Duration::from_millis(10))
    };
    let bed = Bed::new(args.seed)?;
    let (gateway, exit) = (bed.node("gateway")?, bed.node("exit")?);
    let pair = Pair::connect(&bed.network).await?;
    let mut sessions = bed.sessions(&gateway, &exit, 1).await?;
    let [here, there] = sessions.remove(0);
    bed.network.both(gateway.host, exit.host, link);
    bed.network.both(pair.hosts[0], pair.hosts[1], link);
    // One at a time: they are not to take each other's processor.
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let mut ended = Vec::new();
    for _ in 0..args.rounds {
        let bulk = Bulk::start(here.clone(), there.clone());
        ours.push(bulk.measure(args.time()).await.0);
        ended.push(bulk.stop().await);
        let [here, there] = pair.ends.each_ref().map(Arc::clone);
        let bulk = Bulk::start(here, there);
        theirs.push(bulk.measure(args.time()).await.0);
        // What the baseline does to its streams is its own business.
        let _ = bulk.stop().await;
    }
    let failed = ended.iter().filter_map(|ended| ended.as_ref().err());
    for problem in failed.clone() {
        crate::progress(&format!("loss of {percent} %: {problem}"));
    }
    let mean = |rates: &[f64]| rates.iter().sum::<f64>() / rates.len().max(1) as f64;
    Ok(vec![
        Row::bounded(
            format!("loss_{percent}_percent_broken"),
            "streams",
            Better::Less,
            failed.count() as f64,
            0.0,
        ),
        Row::compared(
            format!("loss_{percent}_percent_goodput"),
            "Mbit/s",
            Better::More,
            mean(&ours),
            mean(&theirs),
            0.8,
        ),
    ])
}
