//! What happens once in a session's life, and is waited for.

use std::{
    pin::pin,
    sync::atomic::{AtomicU8, Ordering},
};

use tokio::sync::Notify;

/// Something that happens once.
#[derive(Debug, Clone, Copy)]
pub(super) enum Milestone {
    /// The peer asked to finish and close.
    Draining = 1,
    /// The session is over.
    Over = 2,
    /// The peer has had its chance to read the last word, and nothing more is sent.
    Farewell = 4,
}

/// Which milestones were reached. One place to wait for all of them: a session has four waiters at
/// most most of the time.
#[derive(Default)]
pub(super) struct Milestones {
    reached: AtomicU8,
    changed: Notify,
}

impl Milestones {
    pub(super) fn reach(&self, milestone: Milestone) {
        self.reached.fetch_or(milestone as u8, Ordering::AcqRel);
        self.changed.notify_waiters();
    }

    pub(super) fn is_reached(&self, milestone: Milestone) -> bool {
        self.reached.load(Ordering::Acquire) & milestone as u8 != 0
    }

    /// Waits until it is reached. Cancel-safe.
    pub(super) async fn wait(&self, milestone: Milestone) {
        while !self.is_reached(milestone) {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.is_reached(milestone) {
                return;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_is_woken_by_the_milestone_it_waits_for() {
        let milestones = std::sync::Arc::new(Milestones::default());
        let waiter = tokio::spawn({
            let milestones = milestones.clone();
            async move { milestones.wait(Milestone::Over).await }
        });
        tokio::task::yield_now().await;
        milestones.reach(Milestone::Draining);
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        milestones.reach(Milestone::Over);
        waiter.await.unwrap();
        milestones.wait(Milestone::Draining).await;
        assert!(!milestones.is_reached(Milestone::Farewell));
    }
}
