//! What a probe does with its session. Every payload is a line of digits, so that services that
//! speak in lines can echo it too.

use std::time::{Duration, Instant};

use bytes::Bytes;
use wavry_transport::session::{
    Closed, DatagramError, ReadError, RecvStream, SendStream, Session, WriteError,
};

use super::{Datagrams, Streams, millis};

/// The session is over, which ends a probe.
#[derive(Debug, thiserror::Error)]
#[error("session {0}")]
pub(crate) struct Ended(#[from] Closed);

/// How long a service may take for its first echo before it counts as one that does not echo.
const ECHO_DEADLINE: Duration = Duration::from_secs(2);
/// Between two datagrams: enough samples in a second, and no queue of their own making.
const DATAGRAM_INTERVAL: Duration = Duration::from_millis(5);
/// Payload of a datagram and of a round trip: 19 digits and a line feed.
const LINE: usize = 20;
/// Most round trips that are kept; at loopback speed five seconds make fewer.
const MAX_SAMPLES: usize = 200_000;
/// Bytes written at once when measuring throughput.
const CHUNK: usize = 64 * 1024;

/// Sends datagrams at a steady pace and matches their echoes.
pub(crate) async fn datagrams<S: Session>(
    session: &S,
    duration: Duration,
    notes: &mut Vec<String>,
) -> Result<Datagrams, Ended> {
    let mut report = Datagrams::default();
    if session.max_datagram_size() < LINE {
        notes.push("datagrams: the peer takes none".to_owned());
        return Ok(report);
    }
    let started = Instant::now();
    let stop_sending = started + duration.max(DATAGRAM_INTERVAL);
    let mut sent_at: Vec<Option<Instant>> = Vec::new();
    let mut samples = Vec::new();
    let mut interval = tokio::time::interval(DATAGRAM_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let now = Instant::now();
        // Stragglers are waited for as long as it took to send, within reason.
        let give_up = stop_sending + (duration / 2).min(ECHO_DEADLINE);
        if now >= give_up || (now >= stop_sending && sent_at.iter().all(Option::is_none)) {
            break;
        }
        tokio::select! {
            _ = interval.tick() => if now < stop_sending && sent_at.len() < MAX_SAMPLES {
                let at = Instant::now();
                match session.send_datagram(line(sent_at.len())) {
                    Ok(()) => {
                        report.datagrams_sent += 1;
                        sent_at.push(Some(at));
                    }
                    Err(DatagramError::Session(closed)) => return Err(closed.into()),
                    Err(DatagramError::Full | DatagramError::TooLarge { .. }) => {}
                }
            },
            received = session.recv_datagram() => {
                let payload = received?;
                let index = std::str::from_utf8(&payload).ok().and_then(|text| {
                    text.strip_suffix('\n')?.parse::<usize>().ok()
                });
                if let Some(at) = index.and_then(|index| sent_at.get_mut(index)?.take()) {
                    report.datagrams_received += 1;
                    samples.push(at.elapsed());
                }
            }
        }
    }
    let [p50, p90, p99] = percentiles(samples);
    report.datagram_rtt_p50_ms = p50;
    report.datagram_rtt_p90_ms = p90;
    report.datagram_rtt_p99_ms = p99;
    if p50.is_none() {
        notes.push("datagrams: none came back; the service does not echo them".to_owned());
    }
    Ok(report)
}

/// Sends a line and waits for as many bytes, again and again, over one bidirectional stream.
pub(crate) async fn stream_round_trips<S: Session>(
    session: &S,
    duration: Duration,
    report: &mut Streams,
    notes: &mut Vec<String>,
) -> Result<(), Ended> {
    let Ok(opened) = tokio::time::timeout(ECHO_DEADLINE, session.open_bi()).await else {
        notes.push("streams: the peer grants none".to_owned());
        return Ok(());
    };
    let (mut send, mut recv) = opened?;
    let started = Instant::now();
    let mut samples = Vec::new();
    while started.elapsed() < duration && samples.len() < MAX_SAMPLES {
        let at = Instant::now();
        let trip = tokio::time::timeout(
            ECHO_DEADLINE,
            round_trip(&mut send, &mut recv, samples.len()),
        );
        match trip.await {
            Ok(Ok(())) => samples.push(at.elapsed()),
            Ok(Err(Broken::Ended(ended))) => return Err(ended),
            Ok(Err(Broken::Stream(why))) => {
                notes.push(format!("streams: {why}"));
                break;
            }
            Err(_) => {
                notes.push(format!("streams: no echo within {ECHO_DEADLINE:?}"));
                break;
            }
        }
    }
    if send.finish().is_err() {
        send.reset(0);
    }
    report.stream_round_trips = samples.len() as u64;
    let [p50, p90, p99] = percentiles(samples);
    report.stream_rtt_p50_ms = p50;
    report.stream_rtt_p90_ms = p90;
    report.stream_rtt_p99_ms = p99;
    Ok(())
}

/// Writes as fast as the session takes it and reads what comes back.
pub(crate) async fn throughput<S: Session>(
    session: &S,
    duration: Duration,
    report: &mut Streams,
    notes: &mut Vec<String>,
) -> Result<(), Ended> {
    let Ok(opened) = tokio::time::timeout(ECHO_DEADLINE, session.open_bi()).await else {
        notes.push("throughput: the peer grants no stream".to_owned());
        return Ok(());
    };
    let (mut send, mut recv) = opened?;
    let started = Instant::now();
    let stop = started + duration;
    let chunk = Bytes::from([&[b'0'; 63][..], b"\n"].concat().repeat(CHUNK / 64));
    let up = async {
        let mut written = 0u64;
        while Instant::now() < stop {
            // A write that is cut short leaves the stream good for a reset only, as is due then.
            match tokio::time::timeout(duration + ECHO_DEADLINE, send.write(chunk.clone())).await {
                Ok(Ok(())) => written += chunk.len() as u64,
                Ok(Err(WriteError::Session(closed))) => return Err(Ended(closed)),
                Ok(Err(_)) => return Ok(None),
                Err(_) => {
                    send.reset(0);
                    return Ok(None);
                }
            }
        }
        let _ = send.finish();
        // Until the peer has it all: what only lies in a buffer has not gone up.
        let _ = tokio::time::timeout(ECHO_DEADLINE, send.stopped()).await;
        Ok(Some(written as f64 / started.elapsed().as_secs_f64()))
    };
    let down = async {
        let mut first: Option<(Instant, u64)> = None;
        let mut last = started;
        let mut received = 0u64;
        loop {
            let wait = tokio::time::timeout(duration + ECHO_DEADLINE, recv.read());
            match wait.await {
                Ok(Ok(Some(chunk))) => {
                    last = Instant::now();
                    received += chunk.len() as u64;
                    first.get_or_insert((last, chunk.len() as u64));
                }
                Ok(Ok(None)) | Err(_) => break,
                Ok(Err(ReadError::Reset(_))) => break,
                Ok(Err(ReadError::Session(closed))) => return Err(Ended(closed)),
            }
        }
        Ok(first.and_then(|(at, before)| {
            let seconds = last.duration_since(at).as_secs_f64();
            (seconds > 0.0).then(|| (received - before) as f64 / seconds)
        }))
    };
    let (up, down) = tokio::try_join!(up, down)?;
    if up.is_none() {
        notes.push("throughput: the service does not read the stream".to_owned());
    }
    if down.is_none() {
        notes.push("throughput: nothing came back; the service does not echo streams".to_owned());
    }
    report.stream_up_bytes_per_second = up.map(f64::round);
    report.stream_down_bytes_per_second = down.map(f64::round);
    Ok(())
}

/// Why a round trip was not made.
enum Broken {
    Ended(Ended),
    Stream(String),
}

async fn round_trip(
    send: &mut impl SendStream,
    recv: &mut impl RecvStream,
    index: usize,
) -> Result<(), Broken> {
    match send.write(line(index)).await {
        Ok(()) => {}
        Err(WriteError::Session(closed)) => return Err(Broken::Ended(closed.into())),
        Err(error) => return Err(Broken::Stream(error.to_string())),
    }
    let mut missing = LINE;
    while missing > 0 {
        match recv.read().await {
            Ok(Some(chunk)) => missing = missing.saturating_sub(chunk.len()),
            Ok(None) => return Err(Broken::Stream("ended by the service".to_owned())),
            Err(ReadError::Session(closed)) => return Err(Broken::Ended(closed.into())),
            Err(error) => return Err(Broken::Stream(error.to_string())),
        }
    }
    Ok(())
}

fn line(index: usize) -> Bytes {
    format!("{index:0width$}\n", width = LINE - 1).into()
}

/// 50th, 90th and 99th percentile in milliseconds.
fn percentiles(mut samples: Vec<Duration>) -> [Option<f64>; 3] {
    samples.sort_unstable();
    [50, 90, 99].map(|percent| {
        let rank = (samples.len() * percent).div_ceil(100);
        samples.get(rank.checked_sub(1)?).copied().map(millis)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let samples = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(percentiles(samples), [Some(50.0), Some(90.0), Some(99.0)]);
        assert_eq!(percentiles(vec![Duration::from_millis(3)]), [Some(3.0); 3]);
        assert_eq!(percentiles(Vec::new()), [None; 3]);
    }

    #[test]
    fn a_line_is_as_long_as_it_says() {
        assert_eq!(line(0).len(), LINE);
        assert_eq!(line(MAX_SAMPLES).len(), LINE);
    }
}
