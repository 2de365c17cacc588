//! The relay: as exit, takes sessions from gateways and dials their upstreams; as transit relay, forwards
//! packets of other nodes, which it cannot read.
//!
//! [`Relay::start`] reads secrets, binds the mesh port, joins the cluster and tells it the services it
//! has upstreams for. [`Relay::run`] serves gateways: for each session it finds the upstream, dials
//! it, hands its answer back, and carries the session until it is over. `transit` does the forwarding, on a
//! thread and a socket of its own. Told to leave, the relay says so to the master, asks its sessions to
//! finish, closes those that have not at the deadline, and forwards until other nodes have found other ways.

pub mod config;
mod error;
mod metrics;
#[cfg(test)]
mod tests;
mod transit;
mod upstream;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ::metrics::{counter, gauge};
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, info, info_span};
use wavry_credentials::{
    identity,
    membership::{self, Candidate, Membership},
    source,
};
use wavry_proto::{
    control::{Role, Roster},
    id::ServiceName,
    placement::{LOAD, Load},
    session::{
        Close, Header, REFUSED_BY_RELAY, RELAY_LIMIT, Response, UNKNOWN_SERVICE, close_code,
    },
};
use wavry_transport::{
    mesh,
    mirror::Ledger,
    session::{Closed, Session as _},
};

pub use crate::{
    config::Config,
    error::{RunError, StartError},
    metrics::describe as describe_metrics,
};
use crate::{
    metrics as names,
    transit::Forwarding,
    upstream::{Dialled, Upstream, webtransport},
};

/// How often the master may learn a new number of sessions, and what was carried is counted.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// For how long the gateways are waited for that were told to go away.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// For how long a transit relay that leaves waits at the least, if it has to, until nothing comes over its flows any more.
/// It goes when that was so for [`QUIET`](wavry_transport::transit::QUIET); before that come the roster that lists it no
/// more, and the nodes that take other ways.
const FLOWS_LEFT: Duration = Duration::from_secs(10);

/// A relay that can serve.
pub struct Relay {
    exit: Arc<Exit>,
    mesh: mesh::Endpoint,
    address: SocketAddr,
    membership: Membership,
    /// Through which transit relays it is reached, where it is reached by no other way.
    attached: Option<watch::Receiver<mesh::Attached>>,
    transit: Option<Forwarding>,
    drain_timeout: Duration,
}

/// What every session needs of the relay.
struct Exit {
    upstreams: BTreeMap<ServiceName, Upstream>,
    roster: watch::Receiver<Arc<Roster>>,
    permits: Semaphore,
    max_sessions: usize,
    /// What goes through mirrored sessions.
    ledger: Ledger,
    requests: AtomicU64,
    /// Where live sessions are.
    sessions: mesh::Sessions,
    /// The relay takes no new sessions, and live ones are asked to finish.
    draining: CancellationToken,
    /// Live sessions are closed.
    closing: CancellationToken,
}

/// Looks at all that a relay needs, without starting it.
pub async fn check(config: &Config) -> Vec<source::Finding> {
    membership::check(&membership_of(config)).await
}

fn membership_of(config: &Config) -> membership::Config {
    membership::Config {
        master: config.master.clone(),
        ca_file: config.ca_file.clone(),
        state_dir: config.state_dir.clone(),
        services: config.upstreams.keys().cloned().collect(),
        max_roster_age: config.max_roster_age,
        identity_lifetime: config.identity_lifetime,
        identity_key: None,
        registration_token: None,
    }
}

impl Relay {
    /// Reads secrets, binds the mesh port and joins the cluster, for which it waits as long as the
    /// master cannot be reached.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let bind = |source| StartError::Bind {
            address: config.mesh_listen,
            source,
        };
        let upstreams = config
            .upstreams
            .iter()
            .map(|(service, upstream)| {
                let dialable = Upstream::new(service.as_str(), upstream, config.idle_timeout)?;
                Ok((service.clone(), dialable))
            })
            .collect::<Result<BTreeMap<_, _>, StartError>>()?;
        let candidate = Candidate::new(membership_of(&config)).await?;
        let sockets = mesh::bind_shards(config.mesh_listen, mesh::sockets()).map_err(bind)?;

        let membership = candidate.join().await?;
        let roster = membership.roster();
        let identity::MeshTls {
            server,
            client,
            key,
            authenticator,
        } = membership.mesh_tls()?;
        let transit = match &config.transit {
            None => None,
            Some(transit) => {
                let bind = |source| StartError::BindTransit {
                    address: transit.listen,
                    source,
                };
                let forwarding = Forwarding::start(transit, &membership, authenticator.clone());
                Some(forwarding.await.map_err(bind)?)
            }
        };
        let mesh = mesh::Endpoint::sharded(
            sockets,
            mesh::Config {
                node: membership.node_id().clone(),
                server_tls: server,
                client_tls: client,
                key,
                authenticator,
                roster: roster.clone(),
                leases: mesh::Leases {
                    changed: membership.leases().changed(),
                    source: Arc::new(membership.leases()),
                },
                limits: mesh::Limits::default(),
            },
        )
        .map_err(bind)?;
        let address = mesh.local_addr();
        let attached = config.behind_nat.then(|| mesh.attach());
        if attached.is_none() {
            membership.announce(match config.advertise.is_empty() {
                true => vec![address],
                false => config.advertise,
            });
        }
        if let Some(forwarding) = &transit {
            membership.offer_transit(forwarding.addresses().to_vec());
            info!(address = %forwarding.local_addr(), "forwarding");
        }
        info!(%address, node = %membership.node_id(), "serving");
        Ok(Self {
            exit: Arc::new(Exit::new(upstreams, roster, config.max_sessions)),
            mesh,
            address,
            membership,
            attached,
            transit,
            drain_timeout: config.drain_timeout,
        })
    }

    /// The UDP address at which gateways connect.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The roster that the relay acts on; one that [is empty](Roster::is_empty) while the newest is too old
    /// for that, so that it has no peers.
    pub fn roster(&self) -> watch::Receiver<Arc<Roster>> {
        self.membership.roster()
    }

    /// Looks at its part of the mesh.
    pub fn viewer(&self) -> mesh::Viewer {
        let transit = self.transit.as_ref().map(Forwarding::viewer);
        let viewer = self.mesh.viewer().with_transit(transit);
        viewer.with_sessions(self.exit.sessions.clone())
    }

    /// Serves until `shutdown`, then drains and returns within `drain_timeout` and a few seconds; a relay that forwards
    /// packets of others within ten seconds and a few, if that is longer.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), RunError> {
        let mut attached = self.attached.take();
        let sessions = TaskTracker::new();
        let mut report = interval(REPORT_INTERVAL);
        report.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let outcome = loop {
            tokio::select! {
                () = shutdown.cancelled() => break Ok(()),
                requested = self.mesh.accept() => match requested {
                    Some(requested) => self.exit.take(requested, &sessions),
                    None => break Err(RunError::MeshLost),
                },
                () = Forwarding::lost(&mut self.transit) => break Err(RunError::TransitLost),
                mesh::Attached { relays, seen } = attached_elsewhere(&mut attached) => {
                    self.membership.attached(relays, seen);
                }
                _ = report.tick() => {
                    self.membership.report_sessions(sessions.len() as u64);
                    webtransport::count(self.exit.ledger.take());
                }
            }
        };
        let left = Instant::now();
        self.drain(&sessions).await;
        if let Some(transit) = self.transit {
            // Flows are others' sessions, which do not end with those here: they are left for other ways, which takes
            // as long as it takes.
            transit
                .finish(left + self.drain_timeout.max(FLOWS_LEFT))
                .await;
        }
        info!("gone");
        outcome
    }

    /// Says that it leaves, lets sessions finish until the deadline, and closes the rest.
    async fn drain(&self, sessions: &TaskTracker) {
        info!(sessions = sessions.len(), "draining");
        sessions.close();
        // Until the master knows, gateways may still choose this relay, and are served.
        let take_the_last = async {
            while let Some(requested) = self.mesh.accept().await {
                self.exit.take(requested, sessions);
            }
            std::future::pending::<()>().await;
        };
        let finish = async {
            self.membership.leave().await;
            self.exit.draining.cancel();
            if let Some(transit) = &self.transit {
                transit.drain();
            }
            if timeout(self.drain_timeout, sessions.wait()).await.is_err() {
                info!(sessions = sessions.len(), "drain deadline passed");
                self.exit.closing.cancel();
                // A session that was told to close and does not is cut with its connection.
                let _ = timeout(CLOSE_TIMEOUT, sessions.wait()).await;
            }
        };
        tokio::select! {
            () = finish => {}
            () = take_the_last => {}
        }
        let _ = timeout(CLOSE_TIMEOUT, self.mesh.close()).await;
    }
}

/// Waits until the node is attached to other relays than before; forever where it does not have to be.
async fn attached_elsewhere(
    attached: &mut Option<watch::Receiver<mesh::Attached>>,
) -> mesh::Attached {
    if let Some(attached) = attached
        && attached.changed().await.is_ok()
    {
        return attached.borrow_and_update().clone();
    }
    std::future::pending().await
}

impl Exit {
    fn new(
        upstreams: BTreeMap<ServiceName, Upstream>,
        roster: watch::Receiver<Arc<Roster>>,
        max_sessions: usize,
    ) -> Self {
        let max_sessions = max_sessions.min(Semaphore::MAX_PERMITS);
        Self {
            upstreams,
            roster,
            permits: Semaphore::new(max_sessions),
            max_sessions,
            ledger: Ledger::default(),
            requests: AtomicU64::new(0),
            sessions: mesh::Sessions::default(),
            draining: CancellationToken::new(),
            closing: CancellationToken::new(),
        }
    }

    /// Serves one session in a task of its own.
    fn take(self: &Arc<Self>, requested: mesh::Requested, sessions: &TaskTracker) {
        let exit = self.clone();
        let id = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let span = info_span!(
            "session",
            id,
            gateway = %requested.peer(),
            service = %requested.open().service,
            client = %requested.open().client,
        );
        sessions.spawn(async move { exit.serve(id, requested).await }.instrument(span));
    }

    /// Takes one session as far as it gets; `number` is its id in the log.
    async fn serve(&self, number: u64, requested: mesh::Requested) {
        if self.draining.is_cancelled() {
            return refuse(requested, "draining", 503).await;
        }
        let is_gateway = self
            .roster
            .borrow()
            .node(requested.peer())
            .is_some_and(|node| node.role == Role::Gateway);
        if !is_gateway {
            return refuse(requested, "not_a_gateway", 403).await;
        }
        let Some(upstream) = self.upstreams.get(&requested.open().service) else {
            return refuse(requested, UNKNOWN_SERVICE, 404).await;
        };
        let Ok(_permit) = self.permits.try_acquire() else {
            return refuse(requested, RELAY_LIMIT, 503).await;
        };
        let dialled = match upstream.dial(requested.open()).await {
            Ok(dialled) => dialled,
            Err(error) => {
                info!(%error, "not dialled");
                return answer(requested, error.reason(), error.into_response()).await;
            }
        };
        let service = requested.open().service.to_string();
        let mut response = dialled.response();
        response.headers.push(Header {
            name: LOAD.to_owned(),
            value: self.load().to_string(),
        });
        match requested.accept(response).await {
            Ok(session) => {
                let _live = Live::new(&service, upstream.kind());
                let _noted = self.sessions.note(number, &session);
                let reason = self.carry(session, &dialled).await;
                counter!(names::ENDED, "service" => service, "reason" => reason).increment(1);
            }
            Err(closed) => gone(&closed),
        }
    }

    /// How full this relay is.
    fn load(&self) -> Load {
        let free = self.permits.available_permits();
        Load::of(self.max_sessions.saturating_sub(free), self.max_sessions)
    }

    /// Carries a session until it is over; returns why it is.
    async fn carry(&self, session: mesh::Session, dialled: &Dialled) -> &'static str {
        let session = Arc::new(session);
        let leave = async {
            self.draining.cancelled().await;
            session.drain();
            dialled.drain();
            self.closing.cancelled().await;
            session.close(Close::new(close_code::DRAINED, "relay drained"));
            std::future::pending::<std::convert::Infallible>().await
        };
        let ended = tokio::select! {
            ended = dialled.carry(&session, &self.ledger) => ended,
            never = leave => match never {},
        };
        // The reason that came with the code is the application's, and stays out of logs.
        let code = match ended.session {
            Closed::Peer(close) | Closed::Here(close) => Some(close.code),
            Closed::Lost(_) => None,
        };
        info!(reason = ended.reason, code, "over");
        ended.reason
    }
}

/// Refuses without having asked an upstream.
async fn refuse(requested: mesh::Requested, reason: &'static str, status: u16) {
    let mut response = Response::status(status);
    response.headers.push(Header {
        name: REFUSED_BY_RELAY.to_owned(),
        value: reason.to_owned(),
    });
    answer(requested, reason, response).await;
}

async fn answer(requested: mesh::Requested, reason: &'static str, response: Response) {
    counter!(names::REFUSED, "reason" => reason).increment(1);
    info!(reason, status = response.status, "refused");
    requested.reject(response).await;
}

/// A gateway that left before it had its answer.
fn gone(closed: &Closed) {
    counter!(names::REFUSED, "reason" => "gateway_gone").increment(1);
    info!(%closed, "gateway gone before its answer");
}

/// Counts one live session.
struct Live {
    upstream: &'static str,
}

impl Live {
    fn new(service: &str, upstream: &'static str) -> Self {
        counter!(names::OPENED, "service" => service.to_owned()).increment(1);
        gauge!(names::SESSIONS, "upstream" => upstream).increment(1);
        info!(upstream, "live");
        Self { upstream }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        gauge!(names::SESSIONS, "upstream" => self.upstream).decrement(1);
    }
}
