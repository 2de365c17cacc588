//! The gateway: terminates WebTransport, authenticates, routes, and carries sessions into the mesh.
//!
//! [`Gateway::start`] reads certificate and secrets, binds the UDP port, joins the cluster and returns
//! once clients can be served. [`Gateway::run`] serves them: each request goes through the states of
//! `session` — accepted, authenticated, routed, live — and is refused with a status by the first
//! that it does not pass. Told to leave, the gateway takes no more sessions, asks the live ones to
//! finish, and closes those that have not at the deadline.

mod admission;
mod certificate;
pub mod config;
mod core;
mod error;
mod exits;
mod expiry;
pub mod forward;
mod https;
mod limits;
mod metrics;
mod plain;
mod refresh;
pub mod route;
mod session;
#[cfg(test)]
mod tests;
pub mod token;

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, info, info_span};
use wavry_credentials::{
    cert,
    clock::since_epoch,
    identity,
    membership::{self, Candidate, Membership},
    source,
};
use wavry_proto::control::Roster;
use wavry_transport::{mesh, socket, webtransport};

use crate::{certificate::Care, core::Core, https::Https};
pub use crate::{
    config::Config,
    error::{RunError, StartError},
    metrics::describe as describe_metrics,
};

/// How often the master may learn a new number of sessions, what was carried is counted, and exits are looked
/// at.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// For how long the clients are waited for that were told to go away.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A gateway that can serve.
pub struct Gateway {
    front: Front,
    address: SocketAddr,
    membership: Membership,
    /// Keeps the certificate current.
    _care: Care,
}

/// What clients meet: the server, and what sessions need.
struct Front {
    core: Arc<Core>,
    server: webtransport::Server,
    /// HTTPS over TCP, where it is wanted.
    https: Option<https::Serving>,
    sessions: TaskTracker,
    drain_timeout: Duration,
}

/// Looks at all that a gateway needs, without starting it.
pub async fn check(config: &Config) -> Vec<source::Finding> {
    let mut findings = certificate::check(&config.certificate).await;
    findings.extend(membership::check(&membership_of(config)).await);
    findings
}

fn membership_of(config: &Config) -> membership::Config {
    membership::Config {
        master: config.master.clone(),
        ca_file: config.ca_file.clone(),
        state_dir: config.state_dir.clone(),
        services: Vec::new(),
        max_roster_age: config.max_roster_age,
        identity_lifetime: config.identity_lifetime,
        identity_key: None,
        registration_token: None,
    }
}

impl Gateway {
    /// Reads certificate and secrets, binds the ports and joins the cluster, for which it waits as
    /// long as the master cannot be reached, as it does for a certificate that has to be obtained.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let certificates = cert::Store::new();
        let prepared = certificate::prepare(&config.certificate, &certificates).await?;
        let candidate = Candidate::new(membership_of(&config)).await?;
        let in_listen = StartError::bind("listen", config.listen);
        let sockets = socket::bind_shards(config.listen, config.shards).map_err(&in_listen)?;

        let https = match config.https_listen {
            None => None,
            Some(listen) => {
                let (challenges, limits) = (prepared.challenges(), config.webtransport.clone());
                let bound = Https::bind(listen, &certificates, challenges, limits).await;
                let bound = bound.map_err(|source| StartError::BindTcp {
                    key: "https_listen",
                    address: listen,
                    source,
                })?;
                Some(bound.start())
            }
        };

        // From here on nothing but others can be in the way; a certificate is obtained meanwhile.
        let mut care = prepared.start(&certificates)?;
        let membership = candidate.join().await?;
        care.joined(&certificates, &membership)?;
        let roster = membership.roster();
        let identity::MeshTls {
            server,
            client,
            key: shown,
            authenticator,
        } = membership.mesh_tls()?;
        let mesh = mesh::bind_shards(config.mesh_bind, mesh::sockets())
            .and_then(|sockets| {
                mesh::Endpoint::sharded(
                    sockets,
                    mesh::Config {
                        node: membership.node_id().clone(),
                        server_tls: server,
                        client_tls: client,
                        key: shown,
                        authenticator,
                        roster: roster.clone(),
                        leases: mesh::Leases {
                            changed: membership.leases().changed(),
                            source: Arc::new(membership.leases()),
                        },
                        limits: mesh::Limits {
                            open_timeout: config.open_timeout,
                            ..mesh::Limits::default()
                        },
                    },
                )
            })
            .map_err(StartError::bind("mesh_bind", config.mesh_bind))?;

        let limits = config.webtransport.clone();
        let server = webtransport::Server::sharded(sockets, certificates.server_config(), limits)
            .map_err(&in_listen)?;
        let address = server.local_addr().map_err(&in_listen)?;
        care.has_certificate().await;
        info!(%address, node = %membership.node_id(), "serving");
        Ok(Self {
            _care: care,
            front: Front::new(
                config.drain_timeout,
                Core::new(
                    config,
                    membership.cluster().clone(),
                    membership.node_id().clone(),
                    certificates,
                    roster,
                    mesh,
                ),
                server,
            )
            .with_https(https, address.port()),
            address,
            membership,
        })
    }

    /// The UDP address at which clients connect.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The roster that the gateway acts on; one that [is empty](Roster::is_empty) while the newest is too old
    /// for that, so that every session is refused.
    pub fn roster(&self) -> watch::Receiver<Arc<Roster>> {
        self.membership.roster()
    }

    /// Looks at its part of the mesh.
    pub fn viewer(&self) -> mesh::Viewer {
        let core = &self.front.core;
        core.mesh.viewer().with_sessions(core.sessions.clone())
    }

    /// Serves until `shutdown`, then drains and returns within `drain_timeout` and a few seconds.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), RunError> {
        let outcome = tokio::select! {
            outcome = self.front.serve(&shutdown) => outcome,
            never = self.report() => match never {},
        };
        self.front.drain().await;
        self.membership.leave().await;
        self.front.close().await;
        info!("gone");
        outcome
    }

    /// Keeps the number of sessions current that heartbeats tell the master, the counters of what sessions
    /// carry, and what is known of exits.
    async fn report(&self) -> Infallible {
        let mut tick = interval(REPORT_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.membership
                .report_sessions(self.front.sessions.len() as u64);
            session::count(self.front.core.ledger.take());
            self.front.core.certificates.count_look_ups();
            self.front.core.turn_exits();
        }
    }
}

impl Front {
    fn new(drain_timeout: Duration, core: Core, server: webtransport::Server) -> Self {
        let core = Arc::new(core);
        let answering = core.clone();
        server.answer(move |request| {
            std::future::ready(plain::answer(&answering, &request, since_epoch()))
        });
        Self {
            core,
            server,
            https: None,
            sessions: TaskTracker::new(),
            drain_timeout,
        }
    }

    /// Has requests answered over TCP, too; HTTP/3 is at UDP port `port`.
    fn with_https(mut self, https: Option<https::Serving>, port: u16) -> Self {
        if let Some(https) = &https {
            https.answer(self.core.clone(), port);
        }
        self.https = https;
        self
    }

    /// Serves until `shutdown`.
    async fn serve(&self, shutdown: &CancellationToken) -> Result<(), RunError> {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                requested = self.server.accept() => match requested {
                    Some(requested) => self.take(requested),
                    None => return Err(RunError::ListenerLost),
                },
            }
        }
    }

    /// Takes one request as far as it gets, in a task of its own.
    fn take(&self, requested: webtransport::Requested) {
        let core = self.core.clone();
        let id = core.next_id();
        let span = info_span!(
            "session",
            id,
            client = %requested.remote_address(),
            service = tracing::field::Empty,
        );
        self.sessions
            .spawn(async move { session::serve(&core, id, requested).await }.instrument(span));
    }

    /// Lets sessions finish until the deadline and closes the rest. Requests get 503.
    async fn drain(&self) {
        info!(sessions = self.sessions.len(), "draining");
        self.core.draining.cancel();
        self.server.drain();
        self.sessions.close();
        let refuse = async {
            while let Some(requested) = self.server.accept().await {
                self.take(requested);
            }
            std::future::pending::<Infallible>().await
        };
        let finish = async {
            let finished = timeout(self.drain_timeout, self.sessions.wait()).await;
            if finished.is_err() {
                info!(sessions = self.sessions.len(), "drain deadline passed");
                self.core.closing.cancel();
                // A session that was told to close and does not is cut with its connection.
                let _ = timeout(CLOSE_TIMEOUT, self.sessions.wait()).await;
            }
        };
        tokio::select! {
            () = finish => {}
            never = refuse => match never {},
        }
    }

    /// Ends every connection.
    async fn close(&self) {
        if let Some(https) = &self.https {
            let _ = timeout(CLOSE_TIMEOUT, https.close()).await;
        }
        let _ = timeout(CLOSE_TIMEOUT, self.server.close()).await;
        let _ = timeout(CLOSE_TIMEOUT, self.core.mesh.close()).await;
    }
}
