//! What a transit relay hears beside packets.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;
use wavry_proto::control::Roster;

use super::view::Look;

/// News that wait. Each is dealt with within a millisecond; whoever finds no place waits for one.
pub(super) const NEWS: usize = 8;

/// How often flows that are over are forgotten, and metrics are brought up to date.
const SWEEP: Duration = Duration::from_secs(1);

pub(super) enum News {
    /// No flow is to be granted any more.
    Drain,
    Roster(Arc<Roster>),
    /// Whether a master answers.
    Master(bool),
    /// Somebody wants to know.
    Look(Look),
    Sweep,
    /// Nothing is to be forwarded any more.
    Stop,
}

/// Where they come from.
///
/// A task of its own waits for them: the one that forwards is woken for nearly each batch of packets, and asks for one
/// thing then, in place of five of which most take a lock.
pub(super) struct Sources {
    pub(super) roster: watch::Receiver<Arc<Roster>>,
    pub(super) master: watch::Receiver<bool>,
    pub(super) draining: CancellationToken,
    pub(super) stopped: CancellationToken,
}

impl Sources {
    /// Tells of them until it is stopped, or nobody hears it.
    pub(super) async fn tell(mut self, news: mpsc::Sender<News>) {
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What is known of it already.
        self.master.mark_changed();
        let (mut drains, mut lists, mut hears) = (true, true, true);
        loop {
            let told = tokio::select! {
                biased;
                () = self.stopped.cancelled() => News::Stop,
                () = self.draining.cancelled(), if drains => {
                    drains = false;
                    News::Drain
                }
                changed = self.roster.changed(), if lists => match changed {
                    Ok(()) => News::Roster(self.roster.borrow_and_update().clone()),
                    // Whoever published it is gone: the last roster stays.
                    Err(_) => {
                        lists = false;
                        continue;
                    }
                },
                changed = self.master.changed(), if hears => match changed {
                    Ok(()) => News::Master(*self.master.borrow_and_update()),
                    Err(_) => {
                        hears = false;
                        continue;
                    }
                },
                _ = sweep.tick() => News::Sweep,
            };
            let last = matches!(told, News::Stop);
            if news.send(told).await.is_err() || last {
                break;
            }
        }
    }
}
