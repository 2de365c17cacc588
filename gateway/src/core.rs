//! What every session needs of the gateway.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use wavry_credentials::{cert, token::Standing};
use wavry_proto::{
    control::Roster,
    id::{ClusterName, NodeId, ServiceName},
};
use wavry_transport::{mesh, mirror::Ledger};

use crate::{
    Config,
    exits::{Exits, Failure},
    expiry, forward,
    limits::Limits,
};

/// Sessions at once that are accepted only to tell their client something by a close. Each is held for
/// the few round trips that the client takes to learn the code, and 3 s at most; further ones are
/// answered with a status.
const PARTINGS: usize = 1024;

/// Shared by all sessions; holds no session.
pub(crate) struct Core {
    pub(crate) cluster: ClusterName,
    /// This gateway.
    pub(crate) node: NodeId,
    /// What handshakes show.
    pub(crate) certificates: cert::Store,
    pub(crate) roster: watch::Receiver<Arc<Roster>>,
    pub(crate) standing: Standings,
    pub(crate) mesh: mesh::Endpoint,
    pub(crate) exits: Exits,
    /// Where live sessions are.
    pub(crate) sessions: mesh::Sessions,
    pub(crate) limits: Limits,
    /// Until when live sessions with tokens may live.
    pub(crate) expiries: Arc<expiry::Table>,
    pub(crate) expiry_notice: Duration,
    /// Places for sessions that are accepted only to be closed.
    pub(crate) partings: Semaphore,
    /// What goes through live sessions.
    pub(crate) ledger: Ledger,
    pub(crate) forward_headers: forward::Headers,
    pub(crate) idle_timeout: Duration,
    pub(crate) open_timeout: Duration,
    /// Requests taken so far; the last one's id in logs.
    pub(crate) requests: AtomicU64,
    /// Sessions that drew an exit so far.
    draws: AtomicU64,
    /// The gateway takes no new sessions, and live ones are asked to finish.
    pub(crate) draining: CancellationToken,
    /// Live sessions are closed.
    pub(crate) closing: CancellationToken,
}

impl Core {
    pub(crate) fn new(
        config: Config,
        cluster: ClusterName,
        node: NodeId,
        certificates: cert::Store,
        roster: watch::Receiver<Arc<Roster>>,
        mesh: mesh::Endpoint,
    ) -> Self {
        Self {
            cluster,
            node,
            certificates,
            roster,
            standing: Standings::default(),
            mesh,
            exits: Exits::default(),
            sessions: mesh::Sessions::default(),
            limits: Limits::new(
                config.max_sessions,
                config.sessions_per_ip,
                config.sessions_per_subject,
            ),
            expiries: Arc::default(),
            expiry_notice: config.expiry_notice,
            partings: Semaphore::new(PARTINGS),
            ledger: Ledger::default(),
            forward_headers: config.forward_headers,
            idle_timeout: config.idle_timeout,
            open_timeout: config.open_timeout,
            requests: AtomicU64::new(0),
            draws: AtomicU64::new(0),
            draining: CancellationToken::new(),
            closing: CancellationToken::new(),
        }
    }

    /// The exits for a session with `service`, best first.
    pub(crate) fn exits_for(&self, service: &ServiceName) -> Vec<NodeId> {
        let roster = self.roster.borrow().clone();
        let here = roster.node(&self.node);
        let region = here.and_then(|node| node.placement.region.as_ref());
        let mut hasher = DefaultHasher::new();
        let drawn = self.draws.fetch_add(1, Ordering::Relaxed);
        (self.node.as_str(), drawn).hash(&mut hasher);
        self.exits.order(&roster, service, region, hasher.finish())
    }

    /// Looks at exits that failed, and keeps what is known of all.
    pub(crate) fn turn_exits(self: &Arc<Self>) {
        let roster = self.roster.borrow().clone();
        let round_trip = |exit: &NodeId| self.mesh.round_trip_time(exit);
        for exit in self.exits.turn(&roster, round_trip) {
            let core = self.clone();
            tokio::spawn(async move {
                let reaching = timeout(core.open_timeout, core.mesh.reach(&exit));
                match reaching.await {
                    Ok(Ok(())) => core.exits.reached(&exit),
                    Ok(Err(_)) | Err(_) => core.exits.failed(&exit, Failure::Unreachable),
                }
            });
        }
    }

    /// An id for one more request.
    pub(crate) fn next_id(&self) -> u64 {
        self.requests.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Which session tokens hold, read once from each roster.
#[derive(Default)]
pub(crate) struct Standings {
    read: Mutex<Option<(Arc<Roster>, Standing)>>,
}

impl Standings {
    /// What holds under `roster`.
    pub(crate) fn of(&self, roster: &Arc<Roster>) -> Standing {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, standing)) = &*read
            && Arc::ptr_eq(of, roster)
        {
            return standing.clone();
        }
        let standing = Standing::of(roster).unwrap_or_else(|error| {
            warn!(%error, epoch = %roster.epoch, "no token can be verified");
            Standing::default()
        });
        *read = Some((roster.clone(), standing.clone()));
        standing
    }
}
