//! A syslog receiver. Syslog has no acknowledgements: a line counts as delivered once the connection it
//! went over has been well for a while longer. What has not, goes again over the next connection.

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use tokio::time::{Instant, sleep_until};
use wavry_credentials::audit::syslog::Origin;

use super::{Error, Log, News, Progress, config::Syslog, connection::Connection, next};

/// How long after it was sent a line counts as delivered: longer than the system takes to notice that a
/// peer is gone ([`super::connection::UNACKNOWLEDGED`]).
const SETTLED_AFTER: Duration = Duration::from_secs(8);
/// Lines sent within this time settle together: [`Unsettled`] holds SETTLED_AFTER / TOGETHER entries, and
/// one more at each end.
const TOGETHER: Duration = Duration::from_secs(1);

/// Sends what the log has and the receiver has not, and again whenever there is news.
pub(super) async fn follow(
    log: &impl Log,
    target: &Syslog,
    news: &mut News,
    progress: &mut Progress<'_>,
) -> Result<Infallible, Error> {
    let origin = Origin::of_this_process(target.facility);
    let sink = progress.sink;
    let mut sent = log.delivered(sink).await.map_err(Error::log)?;
    let mut connection = Connection::open(target).await?;
    let mut unsettled = Unsettled::default();
    loop {
        news.mark_unchanged();
        loop {
            let (lines, _) = log.page(sent).await.map_err(Error::log)?;
            let Some((newest, _)) = lines.last() else {
                break;
            };
            for (_, line) in &lines {
                connection.send(&origin.message(line)).await?;
            }
            connection.flush().await?;
            sent = *newest;
            unsettled.sent(sent, Instant::now());
            progress.wrote(lines.len(), sent);
        }
        progress.caught_up();
        tokio::select! {
            () = next(news) => {}
            error = connection.broken() => return Err(error.into()),
            settled = unsettled.settled() => log.keep_delivered(sink, settled).await.map_err(Error::log)?,
        }
    }
}

/// Lines that were sent and may yet turn out to be lost.
#[derive(Default)]
struct Unsettled(VecDeque<(Instant, u64)>);

impl Unsettled {
    /// All lines up to number `seq` were sent.
    fn sent(&mut self, seq: u64, now: Instant) {
        match self.0.back_mut() {
            // It settles with the last that may join it.
            Some((since, newest)) if now < *since + TOGETHER => *newest = seq,
            _ => self.0.push_back((now, seq)),
        }
    }

    /// When, and up to which number, lines next come to count as delivered.
    fn due(&self) -> Option<(Instant, u64)> {
        let (since, seq) = self.0.front()?;
        Some((*since + TOGETHER + SETTLED_AFTER, *seq))
    }

    /// Waits for that; for ever, while no lines are under way.
    async fn settled(&mut self) -> u64 {
        let Some((due, seq)) = self.due() else {
            return std::future::pending().await;
        };
        sleep_until(due).await;
        self.0.pop_front();
        seq
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_settle_in_order_and_each_long_enough_after_it_was_sent() {
        let start = Instant::now();
        let sent_at = |seq: u64| start + Duration::from_millis(7 * seq);
        let mut unsettled = Unsettled::default();
        assert_eq!(unsettled.due(), None);
        for seq in 1..=1000 {
            unsettled.sent(seq, sent_at(seq));
        }
        assert!(unsettled.0.len() <= 8, "{}", unsettled.0.len());
        let mut settled = 0;
        while let Some((due, seq)) = unsettled.due() {
            assert!(seq > settled);
            assert!(due >= sent_at(seq) + SETTLED_AFTER, "{seq}");
            assert!(
                due <= sent_at(settled + 1) + TOGETHER + SETTLED_AFTER,
                "{seq}"
            );
            settled = seq;
            unsettled.0.pop_front();
        }
        assert_eq!(settled, 1000);
    }
}
