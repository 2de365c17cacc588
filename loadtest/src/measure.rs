//! What is measured. The other end echoes streams and datagrams.

use std::time::{Duration, Instant};

use bytes::Bytes;
use wavry_transport::session::{DatagramError, RecvStream, SendStream, Session};

use crate::Error;

/// How long an echo is waited for before the measurement is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// Times in order, for percentiles.
#[derive(Debug, Clone)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn new(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The time that `percent` of all are not over (nearest rank), in milliseconds.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0
            .get(rank - 1)
            .map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    }
}

/// One message after the other on one stream.
pub(crate) async fn stream_round_trips<S: Session>(
    session: &S,
    duration: Duration,
) -> Result<Times, Error> {
    const MESSAGE: usize = 64;
    let (mut send, mut recv) = session.open_bi().await?;
    let mut times = Vec::new();
    let end = Instant::now() + duration;
    while Instant::now() < end {
        let sent = Instant::now();
        send.write(Bytes::from_static(&[0x57; MESSAGE])).await?;
        within("the echo of a message", read_exactly(&mut recv, MESSAGE)).await?;
        times.push(sent.elapsed());
    }
    send.finish()?;
    within("the end of a stream", read_to_end(&mut recv)).await?;
    Ok(Times::new(times))
}

/// One datagram after the other; one that is lost is not counted.
pub(crate) async fn datagram_round_trips<S: Session>(
    session: &S,
    duration: Duration,
) -> Result<Times, Error> {
    const LOST_AFTER: Duration = Duration::from_millis(500);
    let mut times = Vec::new();
    let end = Instant::now() + duration;
    let mut number = 0u64;
    while Instant::now() < end {
        number += 1;
        let sent = Instant::now();
        let mut payload = [0; 64];
        payload[..8].copy_from_slice(&number.to_be_bytes());
        match session.send_datagram(Bytes::copy_from_slice(&payload)) {
            Ok(()) | Err(DatagramError::Full) => {}
            Err(DatagramError::Session(closed)) => return Err(closed.into()),
            Err(error) => return Err(Error::Argument(error.to_string())),
        }
        let echoed = async {
            loop {
                let echo = session.recv_datagram().await?;
                if echo[..] == payload[..] {
                    return Ok::<_, Error>(());
                }
            }
        };
        if let Ok(echoed) = tokio::time::timeout(LOST_AFTER, echoed).await {
            echoed?;
            times.push(sent.elapsed());
        }
    }
    if times.is_empty() {
        return Err(Error::Silent {
            what: "the echo of a datagram",
            waited: duration,
        });
    }
    Ok(Times::new(times))
}

/// Bytes per second that go there and come back on one stream.
pub(crate) async fn stream_throughput<S: Session>(
    session: &S,
    duration: Duration,
) -> Result<f64, Error> {
    let chunk = Bytes::from(vec![0x57; 64 * 1024]);
    let (mut send, mut recv) = session.open_bi().await?;
    let start = Instant::now();
    let write = tokio::spawn(async move {
        while start.elapsed() < duration {
            send.write(chunk.clone()).await?;
        }
        send.finish()
    });
    let echoed = tokio::time::timeout(duration + PATIENCE, read_to_end(&mut recv))
        .await
        .map_err(|_| Error::Silent {
            what: "the end of a stream",
            waited: PATIENCE,
        })??;
    let elapsed = start.elapsed();
    match write.await {
        Ok(written) => written?,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
    Ok(echoed as f64 / elapsed.as_secs_f64())
}

/// Datagrams per second that come back while a fixed number is under way.
pub(crate) async fn datagram_rate<S: Session>(
    session: &S,
    duration: Duration,
) -> Result<f64, Error> {
    // Enough to keep every hop busy, and under 64 KiB, so that no hop's buffer is the measure.
    const UNDER_WAY: usize = 60;
    const LOST_AFTER: Duration = Duration::from_millis(50);
    let payload = Bytes::from(vec![0x57; session.max_datagram_size().min(1000)]);
    let (mut under_way, mut echoed) = (0usize, 0u64);
    let start = Instant::now();
    while start.elapsed() < duration {
        while under_way < UNDER_WAY {
            match session.send_datagram(payload.clone()) {
                Ok(()) => under_way += 1,
                Err(DatagramError::Full) => break,
                Err(DatagramError::Session(closed)) => return Err(closed.into()),
                Err(error) => return Err(Error::Argument(error.to_string())),
            }
        }
        match tokio::time::timeout(LOST_AFTER, session.recv_datagram()).await {
            Ok(echo) => {
                echo?;
                echoed += 1;
                under_way = under_way.saturating_sub(1);
            }
            Err(_) => under_way = 0,
        }
    }
    Ok(echoed as f64 / start.elapsed().as_secs_f64())
}

/// The middle value; of two middle ones, their mean.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

async fn within<T>(
    what: &'static str,
    future: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(result) => result,
        Err(_) => Err(Error::Silent {
            what,
            waited: PATIENCE,
        }),
    }
}

async fn read_exactly(recv: &mut impl RecvStream, mut wanted: usize) -> Result<(), Error> {
    while wanted > 0 {
        let Some(chunk) = recv.read().await? else {
            return Err(Error::Short {
                missing: wanted as u64,
            });
        };
        wanted = wanted.saturating_sub(chunk.len());
    }
    Ok(())
}

async fn read_to_end(recv: &mut impl RecvStream) -> Result<u64, Error> {
    let mut read = 0;
    while let Some(chunk) = recv.read().await? {
        read += chunk.len() as u64;
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let times = Times::new((1..=200).rev().map(Duration::from_millis).collect());
        assert_eq!(times.percentile(50), 100.0);
        assert_eq!(times.percentile(99), 198.0);
        assert_eq!(
            Times::new(vec![Duration::from_millis(7)]).percentile(50),
            7.0
        );
    }

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_two() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[tokio::test]
    async fn the_baseline_echoes_what_is_measured() {
        wavry_credentials::cert::install_crypto_provider();
        let baseline = crate::raw::Baseline::start().unwrap();
        let session = baseline.connect().await.unwrap();
        let short = Duration::from_millis(50);
        let times = stream_round_trips(&session, short).await.unwrap();
        assert!(times.percentile(50) > 0.0);
        let times = datagram_round_trips(&session, short).await.unwrap();
        assert!(times.percentile(50) > 0.0);
        assert!(stream_throughput(&session, short).await.unwrap() > 0.0);
        assert!(datagram_rate(&session, short).await.unwrap() > 0.0);
    }
}
