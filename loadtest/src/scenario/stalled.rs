//! Sessions that write and never read, beside one that does both: it must not feel them. They share
//! gateway, relay and the few mesh connections between the two.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::task::JoinSet;
use wavry_transport::{
    session::{Close, SendStream, Session},
    webtransport,
};

use super::Common;
use crate::{Better, Error, Report, Row, measure, progress, target::Target};

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Sessions that never read
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    sessions: u32,
    /// Streams that each of them opens
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=128))]
    streams: u32,
    /// Times the throughput is taken without and with them; the medians are reported
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Milliseconds that one measurement takes
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(10..=600_000))]
    round_ms: u64,
    #[command(flatten)]
    pub(super) common: Common,
}

/// The share of its throughput that a session keeps.
const GOAL: f64 = 0.95;
/// Nothing was taken for so long: every buffer on the way is full.
const STALLED_AFTER: Duration = Duration::from_millis(300);
/// A path takes a few windows and no more; one that still takes bytes then has no bound.
const STALL_DEADLINE: Duration = Duration::from_secs(20);

pub(super) async fn run(args: &Args) -> Result<Report, Error> {
    let target = Target::open(&args.common.target).await?;
    let session = target.connect().await?;
    let round = Duration::from_millis(args.round_ms);
    measure::stream_throughput(&session, round.min(Duration::from_millis(500))).await?;

    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    let mut held = 0;
    for number in 1..=args.rounds {
        progress(&format!("round {number} of {}", args.rounds));
        alone.push(measure::stream_throughput(&session, round).await?);
        let stalled = Stalled::start(&target, args).await?;
        held = held.max(stalled.taken.load(Ordering::Relaxed));
        beside.push(measure::stream_throughput(&session, round).await?);
        stalled.end();
    }
    session.close(Close::default());
    target.stop().await?;

    // The baseline is the same session alone.
    let row = Row::compared(
        "stream_throughput_beside_stalled",
        "bytes/s",
        Better::More,
        measure::median(beside),
        measure::median(alone),
        GOAL,
    );
    let sessions = f64::from(args.sessions);
    Ok(Report {
        scenario: "stalled",
        results: vec![
            row,
            Row::plain("stalled_sessions", "sessions", sessions),
            Row::plain("held_per_stalled_session", "bytes", held as f64 / sessions),
        ],
        failures: Vec::new(),
    })
}

/// Sessions whose streams are full and stay so.
struct Stalled {
    sessions: Vec<Arc<webtransport::Session>>,
    taken: Arc<AtomicU64>,
    _writing: JoinSet<()>,
}

impl Stalled {
    async fn start(target: &Target, args: &Args) -> Result<Self, Error> {
        let taken = Arc::new(AtomicU64::new(0));
        let (mut sessions, mut writing) = (Vec::new(), JoinSet::new());
        for _ in 0..args.sessions {
            let session = Arc::new(target.connect().await?);
            for _ in 0..args.streams {
                let (mut send, unread) = session.open_bi().await?;
                let taken = taken.clone();
                writing.spawn(async move {
                    let chunk = Bytes::from(vec![0x57; 16 * 1024]);
                    while send.write(chunk.clone()).await.is_ok() {
                        taken.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                    }
                    drop(unread);
                });
            }
            sessions.push(session);
        }
        let filled = async {
            let mut before = 0;
            loop {
                tokio::time::sleep(STALLED_AFTER).await;
                let now = taken.load(Ordering::Relaxed);
                if now == before {
                    return;
                }
                before = now;
            }
        };
        if tokio::time::timeout(STALL_DEADLINE, filled).await.is_err() {
            return Err(Error::Argument(format!(
                "a service that echoes still takes bytes after {STALL_DEADLINE:?}, though nobody reads"
            )));
        }
        Ok(Self {
            sessions,
            taken,
            _writing: writing,
        })
    }

    fn end(self) {
        for session in self.sessions {
            session.close(Close::default());
        }
    }
}
