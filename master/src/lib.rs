//! The control plane: registry, roster, tokens. Never on the data path.
//!
//! A [`Master`] reads its secrets, opens its [`store`], binds its listener, and then serves nodes:
//! they register once with a registration token and a proof that they hold their key, tell every
//! few seconds that they are there, and hold a request open for the next roster. The roster is
//! signed when it changes and served from memory.
//!
//! * [`backup`]: copies of all it remembers.
//! * [`fn@check`]: what it would stop at, looked at before it starts.
//! * [`authority`]: who signs the certificates of masters and nodes.
//! * [`config`]: what the master is told.
//! * [`audit_sink`]: copies of the audit log elsewhere; [`audit_reader`]: the log, read and checked.
//! * [`database`]: where one is, and SQL for both kinds.
//! * [`keys`]: the life of keys that sign; [`signing`]: where they are kept.
//! * [`identity`]: the lives of nodes' identities.
//! * [`lease`]: which gateway orders a certificate that all of a fleet use.
//! * [`store`]: what it remembers, the audit log too.
//! * [`presence`]: which nodes are heard of.
//! * [`operate`]: what operators ask of it.
//! * [`problem`]: every way it says no.
//! * [`provision`]: the tokens its key signs.
//! * [`keyvault`]: secrets, kept encrypted and handed out by policy.

mod api;
pub mod audit_reader;
pub mod audit_sink;
mod audited;
pub mod authority;
pub mod backup;
mod channel;
mod check;
pub mod config;
pub mod database;
mod error;
pub mod identity;
pub mod keys;
pub mod keyvault;
pub mod lease;
mod metrics;
mod once;
pub mod operate;
#[cfg(test)]
#[path = "../tests/support/postgres.rs"]
mod postgres_server;
pub mod presence;
pub mod problem;
pub mod provision;
mod rate;
mod registry;
mod ring;
mod server;
mod shown;
pub mod signing;
#[cfg(test)]
mod simulation;
pub mod store;

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time::MissedTickBehavior};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use wavry_credentials::{audit, cert, clock::unix_time, source};

pub use check::{check, check_keyvault};
pub use config::Config;
pub use error::StartError;
pub use metrics::{describe as describe_metrics, describe_keyvault as describe_keyvault_metrics};

use audited::Strangers;
use authority::Demand;
use once::UnderWay;
use registry::{Registry, Times};
use signing::Custody;
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
    audit_sinks: Vec<audit_sink::Config>,
    keyvault: Option<keyvault::KeyVault>,
    certificates: Certificates,
}

/// The certificates of the master's HTTPS, kept up to date.
enum Certificates {
    /// Files that are watched.
    Files(Abort),
    /// What the cluster's own authority issues.
    Own {
        serving: authority::Serving,
        config: authority::Config,
        store: cert::Store,
    },
}

impl Master {
    /// Reads secrets and certificate, opens the database, and binds. Clients that connect from now
    /// on are served as soon as [`Master::run`] is.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let file = config.master_key.as_deref();
        let custody = Custody::open(file, config.signing.as_ref()).await;
        let custody = custody.map_err(|error| match error {
            signing::Error::Secret(source) => StartError::Secret(source),
            error => error.into(),
        })?;
        let file = config.audit_key.as_deref();
        let audit_key = source::load("audit_key", file, |text| {
            audit::Key::read(text, config.cluster.clone())
        })
        .await?;
        let audit_key = Arc::new(audit_key);
        let certificates = cert::Store::new();
        let files = match config.certificate {
            None => None,
            Some(chain) => {
                let key = match config.tls_key {
                    Some(file) => file,
                    None => source::locate("tls_key")?,
                };
                certificates.load(&chain, &key)?;
                Some((chain, key))
            }
        };

        let unusable = |source| StartError::Store {
            database: config.database.clone(),
            source,
        };
        let store = store::Store::open(&config.database, audit_key.clone())
            .await
            .map_err(unusable)?;
        store.check_audit().await.map_err(|source| match source {
            store::audit::ReadError::Store(source) => unusable(source),
            source => StartError::Audit {
                database: config.database.clone(),
                source,
            },
        })?;
        let adopted = store.adopt(&custody, unix_time()).await;
        adopted.map_err(|error| match error {
            signing::Error::Store(source) => unusable(source),
            error => error.into(),
        })?;
        if let Some(authority) = &config.authority {
            let make = || authority::successor(&custody, &config.cluster, &authority.pace);
            let adopted = store.adopt_authority(&custody, make, unix_time()).await;
            adopted.map_err(|error| match error {
                authority::Error::Store(source) => unusable(source),
                error => StartError::Authority(error),
            })?;
        }
        let configured = store.configure(&config.services).await;
        configured.map_err(|error| match error {
            ServiceError::Store(source) => unusable(source),
            source => StartError::Service(source),
        })?;
        // Nodes may hold what was signed long ago, and shall know that it is current.
        store.renew(None).await.map_err(unusable)?;
        let times = Times {
            suspect_after: config.suspect_after,
            gone_after: config.gone_after,
            roster_refresh: config.roster_refresh,
            pace: config.key_pace,
            identity_pace: config.identity_pace,
        };
        let authority = config.authority.clone();
        let registry = Registry::new(store, custody, config.cluster, times, authority)
            .await
            .map_err(unusable)?;
        let mut tls = match &config.authority {
            None => certificates.server_config(),
            Some(_) => certificates.asking_config(registry.vouching()),
        };
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let certificates = match (files, config.authority) {
            (None, Some(config)) => {
                let authorities = registry.published().borrow().authorities.clone();
                let serving = authority::issue(&authorities, &config, &certificates);
                Certificates::Own {
                    serving: serving.map_err(StartError::Authority)?,
                    config,
                    store: certificates,
                }
            }
            (files, _) => {
                let (chain, key) = files.unwrap_or_default();
                Certificates::Files(Abort(certificates.watch(&chain, &key)))
            }
        };

        let keyvault = match &config.keyvault {
            None => None,
            Some(vault) => {
                let started = keyvault::KeyVault::start(vault, audit_key.clone()).await;
                Some(started.map_err(|error| StartError::KeyVault(Box::new(error)))?)
            }
        };

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
            under_way: UnderWay::default(),
            audit_key,
            strangers: Strangers::default(),
            rates: api::Rates::new(&config.limits),
            leases: config.leases,
            heartbeat_interval: config.heartbeat_interval,
            request_timeout: config.limits.request_timeout,
            poll_timeout: config.limits.poll_timeout,
            leaving: leaving.clone(),
        }));
        // What is no route of the master's is the KeyVault's, and so are its limits.
        let router = match &keyvault {
            Some(vault) => {
                let vault = keyvault::api::router(vault.clone());
                let vault = shown::as_listed(vault, registry.clone(), Demand::Optional);
                router.fallback_service(vault)
            }
            None => router,
        };
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
            audit_sinks: config.audit_sinks,
            keyvault,
            certificates,
        })
    }

    /// The address clients connect to.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Whether this master sees what others write to the database that they share, as that changes. While it
    /// does not, it sends nodes elsewhere.
    pub fn is_current(&self) -> watch::Receiver<bool> {
        self.registry.is_current()
    }

    /// Serves until `shutdown`, then ends held requests, waits for the others within the drain
    /// timeout, and closes the database. It never stops by itself.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Infallible> {
        let leaving = self.leaving;
        let registry = self.registry.clone();
        let _certificates = match self.certificates {
            Certificates::Files(watch) => watch,
            Certificates::Own {
                serving,
                config,
                store,
            } => {
                let keep = serving.keep(self.registry.clone(), config, store);
                Abort(tokio::spawn(keep))
            }
        };
        let sinks = self.audit_sinks.into_iter();
        let _sinks: Vec<_> = sinks
            .map(|sink| Abort(tokio::spawn(self.registry.copy_audit_to(sink))))
            .collect();
        let _upkeep = self
            .keyvault
            .clone()
            .map(|vault| Abort(tokio::spawn(vault.keep_up())));
        let following = self.registry.clone();
        let following = async move { following.follow_others().await };
        let signing = self.registry.clone();
        let signing = async move { signing.sign_rosters().await };
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
        let service = server::Service {
            tls: self.tls,
            router: self.router,
            limits: self.limits,
            needs_exporter: true,
            metrics: server::Names {
                connections: metrics::CONNECTIONS,
                handshakes_failed: metrics::HANDSHAKES_FAILED,
            },
        };
        let serve = server::serve(self.listener, service, leaving.clone(), self.drain_timeout);
        let leave = async {
            shutdown.cancelled().await;
            leaving.cancel();
            std::future::pending().await
        };
        tokio::select! {
            () = serve => (),
            () = keeping => (),
            () = following => (),
            () = signing => (),
            () = leave => (),
        }
        if let Some(vault) = self.keyvault {
            vault.close().await;
        }
        self.registry.close().await;
        tracing::info!("master stopped");
        Ok(())
    }
}

/// Ends a task when dropped.
struct Abort(JoinHandle<()>);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}
