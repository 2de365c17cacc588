//! Connections to peers: a few each, dialled when first wanted, replaced when lost.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::time::Instant;
use wavry_proto::{control::Roster, id::NodeId};

use crate::mesh::{core::lock, link::Link};

#[derive(Default)]
pub(super) struct Pool {
    peers: Mutex<HashMap<NodeId, Arc<Peer>>>,
}

/// The connections to one peer.
pub(super) struct Peer {
    shards: Vec<tokio::sync::Mutex<Shard>>,
    next: AtomicUsize,
}

#[derive(Default)]
struct Shard {
    link: Option<Arc<Link>>,
    /// When dialling failed last, and why.
    failed: Option<(Instant, String)>,
}

impl Pool {
    pub(super) fn peer(&self, node: &NodeId, shards: usize) -> Arc<Peer> {
        lock(&self.peers)
            .entry(node.clone())
            .or_insert_with(|| {
                Arc::new(Peer {
                    shards: (0..shards.max(1)).map(|_| Default::default()).collect(),
                    next: AtomicUsize::new(0),
                })
            })
            .clone()
    }

    /// Forgets peers that are not in the roster.
    pub(super) fn retain(&self, roster: &Roster) {
        lock(&self.peers).retain(|node, _| roster.node(node).is_some());
    }
}

impl Peer {
    /// A live connection; `dial` makes one where there is none. One caller dials at a time, and
    /// those who waited for it share its failure.
    pub(super) async fn link(
        &self,
        dial: impl AsyncFnOnce() -> Result<Arc<Link>, String>,
    ) -> Result<Arc<Link>, String> {
        let asked = Instant::now();
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.shards.len();
        let mut shard = self.shards[turn].lock().await;
        if let Some(link) = shard.link.as_ref().filter(|link| link.takes_sessions()) {
            return Ok(link.clone());
        }
        shard.link = None;
        let reason = match &shard.failed {
            Some((at, reason)) if *at > asked => reason.clone(),
            _ => match dial().await {
                Ok(link) => {
                    shard.link = Some(link.clone());
                    return Ok(link);
                }
                Err(reason) => {
                    shard.failed = Some((Instant::now(), reason.clone()));
                    reason
                }
            },
        };
        drop(shard);
        self.shards
            .iter()
            .filter_map(|other| other.try_lock().ok()?.link.clone())
            .find(|link| link.takes_sessions())
            .ok_or(reason)
    }
}
