//! Connections to peers: a few each, dialled when first wanted, replaced when lost. Sessions take turns: that
//! spreads them more evenly than a hash does, and no session ever has to find its connection again.

use std::{
    collections::HashMap,
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use wavry_proto::{control::Roster, id::NodeId};

use crate::mesh::{core::lock, link::Link};

/// A connection that could not be replaced is not dialled again for so long, while another carries sessions.
const PAUSE: Duration = Duration::from_secs(1);

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
    /// One that is lost stays until another takes its place.
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
    /// A connection that takes sessions: the next one in turn, which `dial` makes where there is none. One
    /// caller dials at a time, and those who waited for it share its failure. Where there was one that is
    /// lost, another carries the session while it is replaced.
    pub(super) async fn link(
        self: &Arc<Self>,
        dial: impl Future<Output = Result<Arc<Link>, String>> + Send + 'static,
    ) -> Result<Arc<Link>, String> {
        let asked = Instant::now();
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.shards.len();
        let is_new = match self.shards[turn].try_lock() {
            Ok(shard) => match &shard.link {
                Some(link) if link.takes_sessions() => return Ok(link.clone()),
                link => link.is_none(),
            },
            // Somebody dials.
            Err(_) => false,
        };
        if !is_new && let Some(other) = self.other(turn) {
            let peer = self.clone();
            tokio::spawn(async move { peer.replace(turn, dial).await });
            return Ok(other);
        }
        let mut shard = self.shards[turn].lock().await;
        if let Some(link) = shard.link.as_ref().filter(|link| link.takes_sessions()) {
            return Ok(link.clone());
        }
        let reason = match &shard.failed {
            Some((at, reason)) if *at > asked => reason.clone(),
            _ => match shard.dial(dial).await {
                Ok(link) => return Ok(link),
                Err(reason) => reason,
            },
        };
        drop(shard);
        self.other(turn).ok_or(reason)
    }

    /// Another connection than the one whose turn it is.
    fn other(&self, turn: usize) -> Option<Arc<Link>> {
        let after = self.shards[turn + 1..].iter();
        after
            .chain(&self.shards[..turn])
            .filter_map(|other| other.try_lock().ok()?.link.clone())
            .find(|link| link.takes_sessions())
    }

    /// Makes a connection anew, unless somebody does, or it failed a moment ago.
    async fn replace(&self, turn: usize, dial: impl Future<Output = Result<Arc<Link>, String>>) {
        let Ok(mut shard) = self.shards[turn].try_lock() else {
            return;
        };
        let is_there = shard
            .link
            .as_ref()
            .is_some_and(|link| link.takes_sessions());
        let failed = shard.failed.as_ref();
        if !is_there && failed.is_none_or(|(at, _)| at.elapsed() >= PAUSE) {
            let _ = shard.dial(dial).await; // told by the dialler, and remembered
        }
    }
}

impl Shard {
    async fn dial(
        &mut self,
        dial: impl Future<Output = Result<Arc<Link>, String>>,
    ) -> Result<Arc<Link>, String> {
        let dialled = dial.await;
        match &dialled {
            Ok(link) => self.link = Some(link.clone()),
            Err(reason) => self.failed = Some((Instant::now(), reason.clone())),
        }
        dialled
    }
}
