//! The gateway: terminates WebTransport, authenticates, routes, and carries sessions into the mesh.
//!
//! [`Gateway::start`] reads the certificate, binds the UDP port, joins the cluster and returns once
//! clients can be served. [`Gateway::run`] serves them: each request goes through the states of
//! `session` — accepted, authenticated, routed, live — and is refused with a status by the first
//! that it does not pass. Told to leave, the gateway takes no more sessions, asks the live ones to
//! finish, and closes those that have not at the deadline.

pub mod config;
mod core;
mod error;
mod exits;
pub mod forward;
mod limits;
mod metrics;
pub mod route;
mod session;
pub mod token;

use std::{
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use tokio::{
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, info, info_span};
use wavry_credentials::{
    cert, identity,
    membership::{self, Membership},
    source,
};
use wavry_transport::{mesh, webtransport};

pub use crate::{
    config::Config,
    error::{RunError, StartError},
    metrics::describe as describe_metrics,
};
use crate::{core::Core, session::Accepted};

/// How often the master may learn a new number of sessions.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// For how long the clients are waited for that were told to go away.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A gateway that can serve.
pub struct Gateway {
    core: Arc<Core>,
    server: webtransport::Server,
    address: SocketAddr,
    membership: Membership,
    certificate_watch: JoinHandle<()>,
    drain_timeout: Duration,
}

impl Gateway {
    /// Reads the certificate, binds the port and joins the cluster, for which it waits as long as
    /// the master cannot be reached.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let certificates = cert::Store::new();
        let key = source::locate("tls_key")?;
        certificates.load(&config.certificate, &key)?;
        let in_listen = StartError::bind("listen", config.listen);
        let socket = UdpSocket::bind(config.listen).map_err(&in_listen)?;

        let membership = Membership::join(membership::Config {
            master: config.master,
            ca_file: config.ca_file,
            state_dir: config.state_dir,
            services: Vec::new(),
        })
        .await?;
        let roster = membership.roster();
        let identity::MeshTls { server, client } =
            membership.identity().mesh_tls(roster.clone())?;
        let mesh = mesh::bind(config.mesh_bind)
            .and_then(|socket| {
                mesh::Endpoint::new(
                    socket,
                    mesh::Config {
                        node: membership.node_id().clone(),
                        server_tls: server,
                        client_tls: client,
                        roster: roster.clone(),
                        limits: mesh::Limits::default(),
                    },
                )
            })
            .map_err(StartError::bind("mesh_bind", config.mesh_bind))?;

        let server =
            webtransport::Server::new(socket, certificates.server_config(), config.webtransport)
                .map_err(&in_listen)?;
        let address = server.local_addr().map_err(&in_listen)?;
        info!(%address, node = %membership.node_id(), "serving");
        Ok(Self {
            core: Arc::new(Core {
                cluster: membership.cluster().clone(),
                roster,
                keys: core::Keys::default(),
                mesh,
                exits: exits::Exits::default(),
                limits: limits::Limits::new(config.max_sessions, config.sessions_per_ip),
                forward_headers: config.forward_headers,
                idle_timeout: config.idle_timeout,
                open_timeout: config.open_timeout,
                requests: Default::default(),
                draining: CancellationToken::new(),
                closing: CancellationToken::new(),
            }),
            server,
            address,
            membership,
            certificate_watch: certificates.watch(&config.certificate, &key),
            drain_timeout: config.drain_timeout,
        })
    }

    /// The UDP address at which clients connect.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`, then drains and returns within `drain_timeout` and a few seconds.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), RunError> {
        let sessions = TaskTracker::new();
        let mut report = interval(REPORT_INTERVAL);
        report.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let outcome = loop {
            tokio::select! {
                () = shutdown.cancelled() => break Ok(()),
                requested = self.server.accept() => match requested {
                    Some(requested) => self.take(requested, &sessions),
                    None => break Err(RunError::ListenerLost),
                },
                _ = report.tick() => self.membership.report_sessions(sessions.len() as u64),
            }
        };
        self.drain(&sessions).await;
        self.certificate_watch.abort();
        outcome
    }

    /// Serves one request in a task of its own.
    fn take(&self, requested: webtransport::Requested, sessions: &TaskTracker) {
        let core = self.core.clone();
        let client = requested.remote_address();
        let span =
            info_span!("session", id = core.next_id(), %client, service = tracing::field::Empty);
        sessions.spawn(async move { serve(&core, requested).await }.instrument(span));
    }

    /// Lets sessions finish until the deadline, closes the rest, and leaves.
    async fn drain(&self, sessions: &TaskTracker) {
        info!(sessions = sessions.len(), "draining");
        self.core.draining.cancel();
        self.server.drain();
        sessions.close();
        let refuse_the_rest = async {
            while let Some(requested) = self.server.accept().await {
                self.take(requested, sessions);
            }
            std::future::pending::<()>().await;
        };
        let finish = async {
            if timeout(self.drain_timeout, sessions.wait()).await.is_err() {
                info!(sessions = sessions.len(), "drain deadline passed");
                self.core.closing.cancel();
                // A session that was told to close and does not is cut with its connection.
                let _ = timeout(CLOSE_TIMEOUT, sessions.wait()).await;
            }
        };
        tokio::select! {
            () = finish => {}
            () = refuse_the_rest => {}
        }
        self.membership.leave().await;
        let _ = timeout(CLOSE_TIMEOUT, self.server.close()).await;
        let _ = timeout(CLOSE_TIMEOUT, self.core.mesh.close()).await;
        info!("gone");
    }
}

/// Takes one request as far as it gets.
async fn serve(core: &Core, requested: webtransport::Requested) {
    let accepted = Accepted::new(core, requested);
    let authenticated = match accepted.authenticate() {
        Ok(authenticated) => authenticated,
        Err(refused) => return refused.answer().await,
    };
    let routed = match authenticated.route().await {
        Ok(routed) => routed,
        Err(refused) => return refused.answer().await,
    };
    match routed.go_live().await {
        Ok(live) => live.carry().await,
        Err(closed) => session::client_gone(&closed),
    }
}
