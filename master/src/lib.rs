//! The control plane: registry, roster, tokens. Never on the data path.
//!
//! A [`Master`] reads its secrets, opens its [`store`], binds its listener, and then serves nodes:
//! they register once with a registration token and a proof that they hold their key, tell every
//! few seconds that they are there, and hold a request open for the next roster. The roster is
//! signed when it changes and served from memory.
//!
//! * [`config`]: what the master is told.
//! * [`keys`]: the life of keys that sign.
//! * [`store`]: what it remembers, the audit log too.
//! * [`presence`]: which nodes are heard of.
//! * [`operate`]: what operators ask of it.
//! * [`problem`]: every way it says no.
//! * [`provision`]: the tokens its key signs.
//! * [`keyvault`]: secrets, kept encrypted and handed out by policy.

mod api;
mod audit_file;
mod audited;
mod channel;
pub mod config;
mod error;
pub mod keys;
pub mod keyvault;
mod metrics;
pub mod operate;
pub mod presence;
pub mod problem;
pub mod provision;
mod registry;
mod ring;
mod server;
pub mod store;

use std::{convert::Infallible, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use axum::Router;
use tokio::{net::TcpListener, task::JoinHandle, time::MissedTickBehavior};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use wavry_credentials::{audit, cert, clock::unix_time, secret::Secret, source, token::SigningKey};

pub use config::Config;
pub use error::StartError;
pub use metrics::describe as describe_metrics;

use audited::Strangers;
use registry::{Registry, Times};
use store::ServiceError;

/// A master that is bound and ready to serve.
pub struct Master {
    listener: TcpListener,
    address: SocketAddr,
    tls: TlsAcceptor,
    router: Router,
    registry: Registry,
    limits: config::Limits,
    heartbeat_interval: Duration,
    drain_timeout: Duration,
    leaving: CancellationToken,
    audit_file: Option<PathBuf>,
    certificate_watch: Abort,
}

impl Master {
    /// Reads secrets and certificate, opens the database, and binds. Clients that connect from now
    /// on are served as soon as [`Master::run`] is.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let master_key = read_secret("master_key", config.master_key.as_ref())?;
        let key = SigningKey::from_paserk(&master_key).map_err(|_| StartError::MasterKey)?;
        let audit_key = read_secret("audit_key", config.audit_key.as_ref())?;
        let audit_key = audit::Key::from_paserk(&audit_key, config.cluster.clone())
            .map_err(|_| StartError::AuditKey)?;
        let audit_key = Arc::new(audit_key);
        let tls_key = match config.tls_key {
            Some(file) => file,
            None => source::locate("tls_key")?,
        };
        let certificates = cert::Store::new();
        certificates.load(&config.certificate, &tls_key)?;
        let mut tls = certificates.server_config();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];

        let unusable = |source| StartError::Store {
            file: config.database.clone(),
            source,
        };
        let store = store::Store::open(&config.database, audit_key.clone())
            .await
            .map_err(unusable)?;
        store.check_audit().await.map_err(|source| match source {
            store::audit::ReadError::Store(source) => unusable(source),
            source => StartError::Audit {
                file: config.database.clone(),
                source,
            },
        })?;
        store.adopt(&key, unix_time()).await.map_err(unusable)?;
        let configured = store.configure(&config.services).await;
        configured.map_err(|error| match error {
            ServiceError::Store(source) => unusable(source),
            source => StartError::Service(source),
        })?;
        // Nodes may hold what was signed long ago, and shall know that it is current.
        let snapshot = store.renew().await.map_err(unusable)?;
        let times = Times {
            suspect_after: config.suspect_after,
            gone_after: config.gone_after,
            roster_refresh: config.roster_refresh,
            pace: config.key_pace,
        };
        let registry = Registry::new(store, snapshot, key, config.cluster, times)
            .await
            .map_err(unusable)?;

        let cannot_listen = |source| StartError::Listen {
            address: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen)
            .await
            .map_err(cannot_listen)?;
        let address = listener.local_addr().map_err(cannot_listen)?;
        let leaving = CancellationToken::new();
        let router = api::router(Arc::new(api::Api {
            registry: registry.clone(),
            audit_key,
            strangers: Strangers::default(),
            heartbeat_interval: config.heartbeat_interval,
            request_timeout: config.limits.request_timeout,
            poll_timeout: config.limits.poll_timeout,
            leaving: leaving.clone(),
        }));
        Ok(Self {
            listener,
            address,
            tls: TlsAcceptor::from(Arc::new(tls)),
            router,
            registry,
            limits: config.limits,
            heartbeat_interval: config.heartbeat_interval,
            drain_timeout: config.drain_timeout,
            leaving,
            audit_file: config.audit_file,
            certificate_watch: Abort(certificates.watch(&config.certificate, &tls_key)),
        })
    }

    /// The address clients connect to.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`, then ends held requests, waits for the others within the drain
    /// timeout, and closes the database. It never stops by itself.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Infallible> {
        let leaving = self.leaving;
        let registry = self.registry.clone();
        let _certificate_watch = self.certificate_watch;
        let _audit_file = self
            .audit_file
            .map(|file| Abort(tokio::spawn(self.registry.copy_audit_to(file))));
        let keeping = async move {
            let mut tick = tokio::time::interval(self.heartbeat_interval);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                registry.keep().await;
            }
        };
        // Connections end with this future, also when it is dropped.
        let _ended = leaving.clone().drop_guard();
        tracing::info!(address = %self.address, "master serves");
        let serve = server::serve(
            self.listener,
            self.tls,
            self.router,
            self.limits,
            leaving.clone(),
            self.drain_timeout,
        );
        let leave = async {
            shutdown.cancelled().await;
            leaving.cancel();
            std::future::pending().await
        };
        tokio::select! {
            () = serve => (),
            () = keeping => (),
            () = leave => (),
        }
        self.registry.close().await;
        tracing::info!("master stopped");
        Ok(())
    }
}

fn read_secret(name: &str, file: Option<&PathBuf>) -> Result<Secret<Vec<u8>>, source::Error> {
    match file {
        Some(file) => source::read_file(file),
        None => source::read(name),
    }
}

/// Ends a task when dropped.
struct Abort(JoinHandle<()>);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}
