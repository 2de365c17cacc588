//! How long a node acts on a roster. One that is too old might list nodes that were revoked since,
//! so that the node then acts on [`Roster::empty`]: it has no peers and no services until a master
//! answers.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use wavry_proto::control::Roster;

use super::{
    metrics as names,
    roster::{age, is_too_old},
};
use crate::clock::since_epoch;

/// How often the age is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Publishes what `newest` has while it is younger than `max_age`, and nothing after. It ends with
/// `newest`.
pub(super) async fn publish(
    mut newest: watch::Receiver<Arc<Roster>>,
    max_age: Duration,
    published: watch::Sender<Arc<Roster>>,
) {
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            changed = newest.changed() => if changed.is_err() { return },
            _ = tick.tick() => {}
        }
        let roster = newest.borrow_and_update().clone();
        let now = since_epoch();
        let (age, is_stale) = (age(&roster, now), is_too_old(&roster, max_age, now));
        metrics::gauge!(names::ROSTER_AGE).set(age.as_secs_f64());
        metrics::gauge!(names::ROSTER_STALE).set(if is_stale { 1.0 } else { 0.0 });
        published.send_if_modified(|acted_on| {
            if is_stale == acted_on.is_empty() && (is_stale || Arc::ptr_eq(acted_on, &roster)) {
                return false;
            }
            if is_stale {
                let epoch = roster.epoch;
                tracing::error!(%epoch, ?age, "the roster is too old to act on; no master answers");
                *acted_on = Arc::new(Roster::empty(roster.cluster.clone()));
            } else {
                *acted_on = roster.clone();
            }
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wavry_proto::id::Epoch;

    fn roster(epoch: u64, age: u64) -> Arc<Roster> {
        Arc::new(Roster {
            epoch: Epoch(epoch),
            issued_at: since_epoch().as_secs() - age,
            ..Roster::empty("c1".parse().unwrap())
        })
    }

    #[tokio::test]
    async fn a_roster_is_published_until_it_is_too_old_and_a_newer_one_at_once() {
        let max_age = Duration::from_secs(100);
        let (sender, newest) = watch::channel(roster(1, 98));
        let (published, mut acted_on) = watch::channel(newest.borrow().clone());
        let publishing = tokio::spawn(publish(newest, max_age, published));
        acted_on.wait_for(|roster| roster.is_empty()).await.unwrap();

        sender.send_replace(roster(2, 5));
        acted_on.wait_for(|r| r.epoch == Epoch(2)).await.unwrap();
        sender.send_replace(roster(3, 4));
        acted_on.wait_for(|r| r.epoch == Epoch(3)).await.unwrap();

        drop(sender);
        publishing.await.unwrap();
        assert!(acted_on.changed().await.is_err());
    }
}
