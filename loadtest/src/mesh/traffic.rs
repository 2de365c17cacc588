//! What goes over sessions while something happens to their path.

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{task::JoinHandle, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use wavry_transport::{
    mesh::Session,
    session::{RecvStream as _, SendStream as _, Session as _},
};

use crate::Error;

/// Bytes of a message.
const MESSAGE: usize = 64;

/// Pauses that a session remembers: those over two paces, so that there are few.
const REMEMBERED: usize = 4_096;

/// For what was sent last to arrive, however bad the path is.
const PATIENCE: Duration = Duration::from_secs(30);

/// Messages with numbers, at a steady pace, on a stream and as datagrams of each session.
pub(crate) struct Numbered {
    pace: Duration,
    stop: CancellationToken,
    running: Vec<JoinHandle<Outcome>>,
}

/// What came of them on one session.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Messages on the stream.
    pub(crate) sent: u64,
    /// Those that came in order and as they were sent.
    pub(crate) exact: u64,
    pub(crate) datagrams_sent: u64,
    pub(crate) datagrams_exact: u64,
    /// How it ended, if it did.
    pub(crate) closed: Option<String>,
    /// When a pause on the stream was over, and how long it was.
    pauses: Vec<(Instant, Duration)>,
}

impl Outcome {
    /// The longest time within a span for which the stream stood still, beyond its pace.
    pub(crate) fn stall(&self, pace: Duration, from: Instant, until: Instant) -> Duration {
        let within = self
            .pauses
            .iter()
            .filter(|(over, _)| (from..=until).contains(over));
        let longest = within.map(|(_, pause)| *pause).max();
        longest.unwrap_or_default().saturating_sub(pace)
    }
}

/// The longest stall of each session.
pub(crate) fn stalls(
    outcomes: &[Outcome],
    pace: Duration,
    from: Instant,
    until: Instant,
) -> Vec<Duration> {
    let stall = |outcome: &Outcome| outcome.stall(pace, from, until);
    outcomes.iter().map(stall).collect()
}

impl Numbered {
    pub(crate) fn start(sessions: &[[Arc<Session>; 2]], pace: Duration) -> Self {
        let stop = CancellationToken::new();
        let running = sessions
            .iter()
            .map(|[here, there]| {
                let (here, there, stop) = (here.clone(), there.clone(), stop.clone());
                tokio::spawn(async move {
                    let mut outcome = Outcome::default();
                    if let Err(error) = run(&here, &there, pace, &stop, &mut outcome).await {
                        outcome.closed = Some(error);
                    }
                    outcome
                })
            })
            .collect();
        Self {
            pace,
            stop,
            running,
        }
    }

    pub(crate) fn pace(&self) -> Duration {
        self.pace
    }

    /// Sends no more, waits for what is on its way, and gives what came of it, session by session.
    pub(crate) async fn stop(self) -> Result<Vec<Outcome>, Error> {
        self.stop.cancel();
        let mut outcomes = Vec::new();
        for running in self.running {
            let outcome = running.await;
            outcomes.push(outcome.map_err(|error| Error::Mesh(error.to_string()))?);
        }
        Ok(outcomes)
    }
}

fn message(number: u64) -> [u8; MESSAGE] {
    let mut message = [0; MESSAGE];
    for (at, part) in message.chunks_mut(8).enumerate() {
        part.copy_from_slice(&(number.rotate_left(at as u32 * 8)).to_be_bytes());
    }
    message
}

async fn run(
    here: &Session,
    there: &Session,
    pace: Duration,
    stop: &CancellationToken,
    outcome: &mut Outcome,
) -> Result<(), String> {
    let datagrams = AtomicU64::new(0);
    let sent = AtomicU64::new(0);
    let mut exact = 0;
    let mut pauses = Vec::new();
    let sending = async {
        let mut send = here.open_uni().await.map_err(|error| error.to_string())?;
        let mut tick = tokio::time::interval(pace);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !stop.is_cancelled() {
            tick.tick().await;
            let number = sent.fetch_add(1, Ordering::Relaxed);
            let message = Bytes::copy_from_slice(&message(number));
            // One that finds no room is lost, as any datagram may be.
            let _ = here.send_datagram(message.clone());
            send.write(message)
                .await
                .map_err(|error| error.to_string())?;
        }
        send.finish().map_err(|error| error.to_string())
    };
    let receiving = async {
        let mut recv = there.accept_uni().await.map_err(|e| e.to_string())?;
        let (mut left, mut last) = (Vec::new(), Instant::now());
        while let Some(chunk) = recv.read().await.map_err(|error| error.to_string())? {
            let pause = last.elapsed();
            last = Instant::now();
            if pause > 2 * pace && pauses.len() < REMEMBERED {
                pauses.push((last, pause));
            }
            left.extend_from_slice(&chunk);
            let whole = left.len() / MESSAGE * MESSAGE;
            for part in left.drain(..whole).collect::<Vec<_>>().chunks(MESSAGE) {
                if part != message(exact) {
                    return Err(format!("message {exact} is not as it was sent"));
                }
                exact += 1;
            }
        }
        Ok(())
    };
    let counting = async {
        while let Ok(datagram) = there.recv_datagram().await {
            let number = datagram.first_chunk::<8>().map(|n| u64::from_be_bytes(*n));
            if number.is_some_and(|number| datagram[..] == message(number)) {
                datagrams.fetch_add(1, Ordering::Relaxed);
            }
        }
        std::future::pending::<()>().await;
    };
    let both = async { tokio::try_join!(sending, receiving).map(drop) };
    // A stall is no end: only one that outlasts all patience is.
    let stopped = async {
        stop.cancelled().await;
        tokio::time::sleep(PATIENCE).await;
    };
    let ended = tokio::select! {
        ended = both => ended,
        () = counting => Ok(()),
        () = stopped => Err("what was sent last did not come".to_owned()),
    };
    outcome.sent = sent.into_inner();
    outcome.datagrams_sent = outcome.sent;
    outcome.datagrams_exact = datagrams.into_inner();
    outcome.exact = exact;
    outcome.pauses = pauses;
    ended
}

/// One stream that is always full.
pub(crate) struct Bulk {
    stop: CancellationToken,
    received: Arc<AtomicU64>,
    longest: Arc<AtomicU64>,
    sending: JoinHandle<Result<u64, String>>,
    receiving: JoinHandle<Result<(), String>>,
    /// A session is closed with its last end.
    _session: [Arc<dyn Any + Send + Sync>; 2],
}

impl Bulk {
    pub(crate) fn start<S: wavry_transport::session::Session>(here: Arc<S>, there: Arc<S>) -> Self {
        let stop = CancellationToken::new();
        let (received, longest) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let until = stop.clone();
        let session: [Arc<dyn Any + Send + Sync>; 2] = [here.clone(), there.clone()];
        let sending = tokio::spawn(async move {
            let mut send = here.open_uni().await.map_err(|error| error.to_string())?;
            let (mut number, mut bytes) = (0, 0);
            while !until.is_cancelled() {
                let chunk = Bytes::from(block(number));
                number += 1;
                bytes += chunk.len() as u64;
                send.write(chunk).await.map_err(|error| error.to_string())?;
            }
            send.finish().map_err(|error| error.to_string())?;
            Ok(bytes)
        });
        let (count, gap) = (received.clone(), longest.clone());
        let receiving = tokio::spawn(async move {
            let mut recv = there
                .accept_uni()
                .await
                .map_err(|error| error.to_string())?;
            let mut last: Option<Instant> = None;
            let (mut number, mut expected) = (0, Vec::new());
            let mut at = 0;
            while let Some(chunk) = recv.read().await.map_err(|error| error.to_string())? {
                if let Some(last) = last.replace(Instant::now()) {
                    gap.fetch_max(last.elapsed().as_micros() as u64, Ordering::Relaxed);
                }
                let mut rest = &chunk[..];
                while !rest.is_empty() {
                    if at == expected.len() {
                        expected = block(number);
                        number += 1;
                        at = 0;
                    }
                    let len = rest.len().min(expected.len() - at);
                    if rest[..len] != expected[at..at + len] {
                        return Err("a byte is not as it was sent".to_owned());
                    }
                    at += len;
                    rest = &rest[len..];
                }
                count.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            }
            Ok(())
        });
        Self {
            stop,
            received,
            longest,
            sending,
            receiving,
            _session: session,
        }
    }

    /// Bytes that came in this time, in Mbit/s, and the longest pause between two pieces meanwhile.
    pub(crate) async fn measure(&self, time: Duration) -> (f64, Duration) {
        let before = self.received.load(Ordering::Relaxed);
        self.longest.store(0, Ordering::Relaxed);
        let start = Instant::now();
        tokio::time::sleep(time).await;
        let came = self.received.load(Ordering::Relaxed) - before;
        let longest = Duration::from_micros(self.longest.load(Ordering::Relaxed));
        (
            came as f64 * 8.0 / 1e6 / start.elapsed().as_secs_f64(),
            longest,
        )
    }

    /// Sends no more; whether all that was sent came, as it was sent.
    pub(crate) async fn stop(self) -> Result<(), String> {
        self.stop.cancel();
        let all = async {
            let sent = self.sending.await.map_err(|error| error.to_string())??;
            self.receiving.await.map_err(|error| error.to_string())??;
            match self.received.load(Ordering::Relaxed) {
                came if came == sent => Ok(()),
                came => Err(format!("{came} of {sent} bytes came")),
            }
        };
        tokio::time::timeout(PATIENCE * 4, all)
            .await
            .unwrap_or_else(|_| Err("what was sent last did not come".to_owned()))
    }
}

/// A piece of 32 KiB whose bytes follow from its number.
fn block(number: u64) -> Vec<u8> {
    let mut block = vec![0; 32 * 1024];
    for (at, part) in block.chunks_mut(8).enumerate() {
        let value = (number << 12 | at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        part.copy_from_slice(&value.to_be_bytes());
    }
    block
}
