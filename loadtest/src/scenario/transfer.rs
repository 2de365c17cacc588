//! Bytes in many streams at once. Each stream carries its own pattern and every byte that comes
//! back is compared with it, so that nothing lost, doubled or moved between streams goes unseen.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinSet;
use wavry_transport::session::{Close, RecvStream, SendStream, Session};

use super::Common;
use crate::{Error, Report, Row, pattern::Pattern, progress, target::Target};

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Bytes in all
    #[arg(long, default_value_t = 1 << 30, value_parser = clap::value_parser!(u64).range(1..))]
    bytes: u64,
    /// Streams at once
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    streams: u64,
    /// Seed of the pattern
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    pub(super) common: Common,
}

/// No byte for so long, on any stream: the transfer hangs.
const STALL: Duration = Duration::from_secs(30);

pub(super) async fn run(args: &Args) -> Result<Report, Error> {
    let target = Target::open(&args.common.target).await?;
    let session = Arc::new(target.connect().await?);
    let checked = Arc::new(AtomicU64::new(0));
    progress(&format!("{} bytes in {} streams", args.bytes, args.streams));

    let start = Instant::now();
    let mut streams = JoinSet::new();
    for stream in 0..args.streams {
        // The first ones take what does not divide.
        let share = args.bytes / args.streams + u64::from(stream < args.bytes % args.streams);
        let pattern = Pattern::new(args.seed, stream);
        streams.spawn(carry(session.clone(), pattern, share, checked.clone()));
    }
    let (mut exact, mut failures) = (0u64, Vec::new());
    loop {
        let before = checked.load(Ordering::Relaxed);
        match tokio::time::timeout(STALL, streams.join_next()).await {
            Ok(None) => break,
            Ok(Some(Ok(Ok(())))) => exact += 1,
            Ok(Some(Ok(Err(problem)))) => failures.push(problem),
            Ok(Some(Err(panicked))) => std::panic::resume_unwind(panicked.into_panic()),
            Err(_) if checked.load(Ordering::Relaxed) > before => {}
            Err(_) => {
                failures.push(format!("{} streams stand still", streams.len()));
                streams.abort_all();
                break;
            }
        }
    }
    let elapsed = start.elapsed().as_secs_f64();
    session.close(Close::default());
    target.stop().await?;

    let checked = checked.load(Ordering::Relaxed);
    if checked != args.bytes {
        failures.push(format!("{checked} of {} bytes came back", args.bytes));
    }
    failures.truncate(10);
    Ok(Report {
        scenario: "transfer",
        results: vec![
            Row::plain("bytes_sent", "bytes", args.bytes as f64),
            Row::plain("bytes_back_exact", "bytes", checked as f64),
            Row::plain("streams", "streams", args.streams as f64),
            Row::plain("streams_exact", "streams", exact as f64),
            Row::plain("duration", "s", elapsed),
            Row::plain("throughput", "bytes/s", checked as f64 / elapsed),
        ],
        failures,
    })
}

/// Sends `len` bytes of the pattern on a new stream and compares what comes back.
async fn carry<S: Session>(
    session: Arc<S>,
    pattern: Pattern,
    len: u64,
    checked: Arc<AtomicU64>,
) -> Result<(), String> {
    const CHUNK: u64 = 32 * 1024;
    let (mut send, mut recv) = session.open_bi().await.map_err(|e| e.to_string())?;
    let mut out = pattern.clone();
    let write = async move {
        let mut left = len;
        while left > 0 {
            let chunk = out.take(left.min(CHUNK) as usize);
            left -= chunk.len() as u64;
            send.write(chunk).await.map_err(|e| e.to_string())?;
        }
        send.finish().map_err(|e| e.to_string())
    };
    let mut back = pattern;
    let read = async {
        let mut seen = 0u64;
        while let Some(chunk) = recv.read().await.map_err(|e| e.to_string())? {
            back.check(&chunk)
                .map_err(|at| format!("a stream came back different at byte {at}"))?;
            seen += chunk.len() as u64;
            checked.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        }
        match seen == len {
            true => Ok(()),
            false => Err(format!("a stream came back with {seen} of {len} bytes")),
        }
    };
    futures_util::future::try_join(write, read)
        .await
        .map(|_| ())
}
