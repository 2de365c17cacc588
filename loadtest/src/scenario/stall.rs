//! Sessions that never read beside one that works. All go to the same service, so that they share
//! the connections between gateway and relay; more of them stall than there are connections.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{task::JoinSet, time::timeout};
use wavry_transport::session::{Close, SendStream, Session};

use super::Common;
use crate::{
    Better, Error, Report, Row,
    measure::{self, median},
    progress,
    target::Target,
};

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Sessions that never read
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    stalled: u32,
    /// Streams that each of them fills
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=200))]
    streams: u32,
    /// Times the throughput is taken with and without them; the medians are reported
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Milliseconds that one measurement takes
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(10..=600_000))]
    round_ms: u64,
    #[command(flatten)]
    pub(super) common: Common,
}

/// A session that works keeps this much of its throughput.
const GOAL: f64 = 0.95;

/// A stream on which a write waits for so long is full; so is a session on which no stream opens.
const FULL_AFTER: Duration = Duration::from_millis(300);

pub(super) async fn run(args: &Args) -> Result<Report, Error> {
    let target = Target::open(&args.common.target).await?;
    let session = target.connect().await?;
    let round = Duration::from_millis(args.round_ms);
    measure::stream_throughput(&session, round.min(Duration::from_millis(300))).await?;

    let (mut beside, mut alone) = (Vec::new(), Vec::new());
    for number in 1..=args.rounds {
        progress(&format!("round {number} of {}", args.rounds));
        alone.push(measure::stream_throughput(&session, round).await?);
        let stalled = stall(&target, args).await?;
        beside.push(measure::stream_throughput(&session, round).await?);
        for session in stalled {
            session.close(Close::default());
        }
    }
    session.close(Close::default());
    target.stop().await?;
    Ok(Report {
        scenario: "stall",
        results: vec![
            Row::plain("stalled_sessions", "sessions", args.stalled.into()),
            Row::compared(
                "throughput_beside_stalled",
                "bytes/s",
                Better::More,
                median(beside),
                median(alone),
                GOAL,
            ),
        ],
        failures: Vec::new(),
    })
}

/// Sessions whose every stream is full of what nobody reads.
async fn stall(target: &Target, args: &Args) -> Result<Vec<Arc<impl Session>>, Error> {
    let mut sessions = Vec::new();
    let mut streams = JoinSet::new();
    for _ in 0..args.stalled {
        let session = Arc::new(target.connect().await?);
        for _ in 0..args.streams {
            streams.spawn(fill(session.clone()));
        }
        sessions.push(session);
    }
    while let Some(filled) = streams.join_next().await {
        match filled {
            Ok(filled) => filled?,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
    Ok(sessions)
}

/// Writes until nothing goes any more. The stream stays open as long as the session.
async fn fill<S: Session>(session: Arc<S>) -> Result<(), Error> {
    let chunk = Bytes::from(vec![0x57; 64 * 1024]);
    let Ok(opened) = timeout(FULL_AFTER, session.open_bi()).await else {
        return Ok(());
    };
    let (mut send, recv) = opened?;
    while let Ok(written) = timeout(FULL_AFTER, send.write(chunk.clone())).await {
        written?;
    }
    tokio::spawn(async move {
        session.closed().await;
        drop((send, recv));
    });
    Ok(())
}
