//! What is to be told of a transit relay: looked at where it runs, between two batches of packets.

use std::{
    cmp::Reverse,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use wavry_proto::view::{self, Claimant};

use super::{Transit, news::News};

/// How long a look is waited for: the relay's thread comes round many times in this.
const PATIENCE: Duration = Duration::from_secs(2);

/// Looks at a transit relay while it runs.
#[derive(Clone)]
pub struct Viewer {
    tell: mpsc::Sender<News>,
}

/// Somebody wants to know.
pub(super) struct Look {
    /// Claimants, and attached nodes, at most.
    limit: usize,
    told: oneshot::Sender<view::Transit>,
}

impl Viewer {
    pub(super) fn new(tell: mpsc::Sender<News>) -> Self {
        Self { tell }
    }

    /// What it carries, with `limit` claimants and attached nodes at most; `None` where it does not run any more.
    pub async fn look(&self, limit: usize) -> Option<view::Transit> {
        let looking = async {
            let (told, telling) = oneshot::channel();
            self.tell
                .send(News::Look(Look { limit, told }))
                .await
                .ok()?;
            telling.await.ok()
        };
        timeout(PATIENCE, looking).await.ok()?
    }
}

impl Transit {
    /// Tells whoever looks.
    pub(super) fn show(&self, Look { limit, told }: Look) {
        // Whoever asked may have gone.
        let _ = told.send(self.view(limit, Instant::now()));
    }

    fn view(&self, limit: usize, now: Instant) -> view::Transit {
        let mut claimants: Vec<_> = self.flows.claimants().collect();
        claimants.sort_by_key(|(node, flows)| (Reverse(*flows), *node));
        let claimants_left_out = claimants.len().saturating_sub(limit);
        let claimants = claimants.into_iter().take(limit);
        let mut attached: Vec<_> = self.flows.attached_nodes(now).cloned().collect();
        attached.sort();
        let attached_left_out = attached.len().saturating_sub(limit);
        attached.truncate(limit);
        let dropped = self.drops.0.iter();
        view::Transit {
            flows: self.flows.len(),
            claimants: claimants
                .map(|(node, flows)| Claimant {
                    node: node.clone(),
                    flows,
                })
                .collect(),
            claimants_left_out,
            attached,
            attached_left_out,
            silence: self.flows.is_in_silence(now),
            draining: self.flows.is_draining(),
            queued_bytes: self.egress.bytes(),
            packets: self.total.packets + self.tally.packets,
            bytes: self.total.bytes + self.tally.bytes,
            dropped: dropped
                .map(|(reason, packets)| ((*reason).to_owned(), *packets))
                .collect(),
        }
    }
}
