//! Copies of an audit log elsewhere, for whatever carries logs away: a file of JSON lines, or a syslog
//! receiver.
//!
//! A sink follows the database, which is the log: nothing waits for it, and what could not be written
//! for a while is caught up later, from where the sink was. A line may come twice (its number tells), and
//! none is left out. What a sink holds in memory is one page of lines.

mod config;
mod connection;
mod file;
mod syslog;

use std::{convert::Infallible, error::Error as StdError, time::Duration};

use metrics::Label;
use tokio::sync::watch;

pub use config::{Config, Host, RawSink, Syslog, Target, Tls, Transport, sinks};
pub(crate) use connection::check;

use crate::metrics as names;

/// A log that sinks follow.
pub(crate) trait Log: Send + Sync + 'static {
    /// Its name in metrics, the log and its seals.
    const NAME: &'static str;
    /// Why it cannot be read now.
    type Error: StdError + Send + Sync + 'static;
    /// The right to serve a sink that several processes would serve, until it is dropped.
    type Claim: Send;

    /// The lines after number `after` with their numbers, in order, some thousand at most, and the seal
    /// of the newest line there was.
    fn page(&self, after: u64) -> impl Future<Output = Result<Page, Self::Error>> + Send;
    /// Number of the last line that a sink has for certain; 0 if it has none.
    fn delivered(&self, sink: &str) -> impl Future<Output = Result<u64, Self::Error>> + Send;
    /// Takes the right to serve a sink; `None` while another process has it.
    fn claim(
        &self,
        sink: &str,
    ) -> impl Future<Output = Result<Option<Self::Claim>, Self::Error>> + Send;
    /// Keeps that number.
    fn keep_delivered(
        &self,
        sink: &str,
        seq: u64,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// Lines with their numbers, and the newest seal.
pub(crate) type Page = (Vec<(u64, String)>, Option<String>);

/// Lines that were written are told by this; several are one piece of news.
pub(crate) type News = watch::Receiver<()>;

/// How long a sink waits for news at most: another instance may write to the same log.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Keeps a sink up with the log, as long as it is polled.
pub(crate) async fn follow<L: Log>(log: L, sink: Config, mut news: News) {
    let mut progress = Progress::new(L::NAME, &sink.name);
    loop {
        let ended: Result<Infallible, Error> = match &sink.target {
            Target::File(path) => file::follow(&log, path, &mut news, &mut progress).await,
            Target::Syslog(target) => match log.claim(&sink.name).await {
                Ok(Some(_claim)) => syslog::follow(&log, target, &mut news, &mut progress).await,
                // Another process serves it, and may end.
                Ok(None) => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                    continue;
                }
                Err(error) => Err(Error::log(error)),
            },
        };
        let Err(error) = ended;
        tokio::time::sleep(progress.failed(&error)).await;
    }
}

/// Waits for news, but not for ever.
async fn next(news: &mut News) {
    let told = tokio::time::timeout(LOOK_AGAIN, news.changed()).await;
    if let Ok(Err(_)) = told {
        // Nobody writes to the log any more: this task is about to end, and has nothing to do until then.
        std::future::pending().await
    }
}

/// Why a sink is behind.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the audit log cannot be read")]
    Log(#[source] Box<dyn StdError + Send + Sync>),
    #[error("it cannot be written")]
    Io(#[from] std::io::Error),
    #[error("it took longer than {0:?}")]
    TooSlow(Duration),
    #[error("its seal cannot be written")]
    Seal(#[from] wavry_credentials::source::Error),
    #[error("TLS with it cannot be set up")]
    Tls(#[from] wavry_credentials::cert::Error),
}

impl Error {
    fn log(error: impl StdError + Send + Sync + 'static) -> Self {
        Self::Log(Box::new(error))
    }
}

/// How a sink is doing. Counts what it wrote and each failure; the log hears when it falls behind and
/// when it has caught up.
struct Progress<'a> {
    log: &'static str,
    sink: &'a str,
    failures: u32,
}

/// Wait after the first failure; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

impl<'a> Progress<'a> {
    fn new(log: &'static str, sink: &'a str) -> Self {
        Self {
            log,
            sink,
            failures: 0,
        }
    }

    fn labels(&self) -> Vec<Label> {
        vec![
            Label::from_static_parts("log", self.log),
            Label::new("sink", self.sink.to_owned()),
        ]
    }

    /// `lines` more were written, up to line number `newest`.
    fn wrote(&self, lines: usize, newest: u64) {
        metrics::counter!(names::SINK_LINES, self.labels()).increment(lines as u64);
        metrics::gauge!(names::SINK_NEWEST, self.labels()).set(newest as f64);
    }

    /// The sink has all there is.
    fn caught_up(&mut self) {
        if self.failures > 0 {
            let Self { log, sink, .. } = self;
            tracing::info!(log, sink, "audit sink has caught up");
        }
        self.failures = 0;
    }

    /// Notes a failure, and gives the wait before the next attempt.
    fn failed(&mut self, error: &Error) -> Duration {
        metrics::counter!(names::SINK_FAILURES, self.labels()).increment(1);
        if self.failures == 0 {
            let error = error as &dyn StdError;
            let Self { log, sink, .. } = self;
            tracing::error!(error, log, sink, "audit sink is behind");
        }
        let wait = FIRST_WAIT.saturating_mul(1 << self.failures.min(10));
        self.failures = self.failures.saturating_add(1);
        wait.min(LONGEST_WAIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_ten_seconds_and_begin_again_once_it_has_caught_up() {
        let mut progress = Progress::new("master", "siem");
        let error = Error::TooSlow(Duration::from_secs(1));
        let waits: Vec<_> = (0..40)
            .map(|_| progress.failed(&error).as_millis())
            .collect();
        assert_eq!(waits[..8], [100, 200, 400, 800, 1600, 3200, 6400, 10_000]);
        assert!(waits[8..].iter().all(|wait| *wait == 10_000));
        progress.caught_up();
        assert_eq!(progress.failed(&error), FIRST_WAIT);
    }
}
