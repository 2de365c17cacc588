//! A KeyVault that runs alone: its listener, and its life.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use wavry_credentials::{
    audit, cert,
    membership::{self, Candidate},
    source,
};

use super::{
    KeyVault, api, barrier,
    config::{self, Seal, Vault},
    member::Listed,
    store,
};
use crate::{
    Abort, metrics as names,
    server::{self, Names, Service},
    shown::{self, Roster as _},
};

/// What errors call the certificate that the master issues.
const ORIGIN: &str = "the KeyVault's certificate";

/// A KeyVault that is bound and ready to serve, sealed or not.
pub struct Standalone {
    listener: TcpListener,
    address: SocketAddr,
    service: Service,
    vault: KeyVault,
    drain_timeout: std::time::Duration,
    leaving: CancellationToken,
    /// What keeps its certificate up to date.
    keeping: Abort,
}

/// Why a KeyVault does not start. Nothing is bound when it is about a secret, a certificate or the
/// store.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A secret is missing or must not be used; the error names variable and path.
    #[error(transparent)]
    Secret(#[from] source::Error),
    /// The secret `keyvault_key` is not a key.
    #[error("secret keyvault_key")]
    MasterKey(#[source] wavry_credentials::key::aead::MalformedKey),
    /// The certificate cannot be served.
    #[error(transparent)]
    Certificate(#[from] cert::Error),
    /// It cannot be a node of its cluster.
    #[error(transparent)]
    Membership(#[from] membership::Error),
    /// The authorities of clients cannot be used.
    #[error("{path} (keyvault.client_ca)", path = .file.display())]
    ClientAuthorities {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: cert::Error,
    },
    /// The store cannot be used.
    #[error("cannot use the KeyVault's store")]
    Store(#[from] store::Error),
    /// The store cannot be opened with this master key, or is not what was written.
    #[error("cannot unseal the KeyVault")]
    Unseal(#[from] barrier::Error),
    /// The address is taken, or not of this host.
    #[error("cannot listen on {address} (keyvault.listen)")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: std::io::Error,
    },
}

impl Standalone {
    /// Reads secrets and certificate, opens the store, and binds. Clients that connect from now on
    /// are served as soon as [`Standalone::run`] is.
    pub async fn start(config: config::Standalone) -> Result<Self, StartError> {
        let audit_key = source::load("audit_key", None, |text| {
            audit::Key::read(text, config.cluster)
        })
        .await?;
        let certificates = cert::Store::new();
        let listed = Listed::default();
        let demand = config.node.as_ref().map(|node| node.node_certificates);
        let keeping = match config.node {
            None => files(&certificates, config.certificate)?,
            Some(node) => join(node, config.certificate, &certificates, &listed).await?,
        };
        let mut tls = match (&config.clients, demand) {
            (None, None) => certificates.server_config(),
            (_, Some(_)) => certificates.asking_config(listed.vouching()),
            (Some(clients), None) => {
                let unusable = |source| StartError::ClientAuthorities {
                    file: clients.authorities.clone(),
                    source,
                };
                certificates
                    .mutual_config(&clients.authorities, clients.required)
                    .map_err(unusable)?
            }
        };
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let vault = KeyVault::start(&config.vault, Arc::new(audit_key)).await?;
        let router = api::router(vault.clone());
        let router = match demand {
            None => router,
            Some(demand) => shown::as_listed(router, listed, demand),
        };

        let cannot_listen = |source| StartError::Listen {
            address: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen)
            .await
            .map_err(cannot_listen)?;
        let address = listener.local_addr().map_err(cannot_listen)?;
        Ok(Self {
            listener,
            address,
            service: Service {
                tls: TlsAcceptor::from(Arc::new(tls)),
                router,
                limits: config.limits,
                needs_exporter: false,
                metrics: Names {
                    connections: names::KEYVAULT_CONNECTIONS,
                    handshakes_failed: names::KEYVAULT_HANDSHAKES_FAILED,
                },
            },
            vault,
            drain_timeout: config.drain_timeout,
            leaving: CancellationToken::new(),
            keeping,
        })
    }

    /// The address clients connect to.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`, then waits for requests under way within the drain timeout, seals,
    /// and closes the store. It never stops by itself.
    pub async fn run(self, shutdown: CancellationToken) {
        let leaving = self.leaving;
        let _keeping = self.keeping;
        let _ended = leaving.clone().drop_guard();
        let _upkeep = Abort(tokio::spawn(self.vault.clone().keep_up()));
        tracing::info!(address = %self.address, "KeyVault serves");
        let serve = server::serve(
            self.listener,
            self.service,
            leaving.clone(),
            self.drain_timeout,
        );
        let leave = async {
            shutdown.cancelled().await;
            leaving.cancel();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = serve => (),
            () = leave => (),
        }
        self.vault.close().await;
        tracing::info!("KeyVault stopped");
    }
}

/// Serves with what is in files, as that changes.
fn files(certificates: &cert::Store, chain: Option<PathBuf>) -> Result<Abort, StartError> {
    let (chain, key) = (chain.unwrap_or_default(), source::locate("tls_key")?);
    certificates.load(&chain, &key)?;
    Ok(Abort(certificates.watch(&chain, &key)))
}

/// Serves with what the master issues: with the certificate that is kept, or else with the one in the file, until
/// there is another. Where there is neither, a master is waited for.
async fn join(
    node: config::Node,
    file: Option<PathBuf>,
    certificates: &cert::Store,
    listed: &Listed,
) -> Result<Abort, StartError> {
    let origin = file.clone().unwrap_or_else(|| ORIGIN.into());
    let candidate = Candidate::new(node.membership).await?;
    let candidate = candidate.serving(certificates.clone(), &origin);
    if let (None, Some(chain)) = (certificates.expiry(), &file) {
        let loaded = source::locate("tls_key").map_err(cert::Error::from);
        let loaded = loaded.and_then(|key| certificates.load(chain, &key));
        if let Err(error) = loaded {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "there is no certificate until the master issues one");
        }
    }
    let listed = listed.clone();
    if certificates.expiry().is_some() {
        return Ok(Abort(tokio::spawn(listed.follow(candidate.join()))));
    }
    let membership = candidate.join().await?;
    tracing::info!("waiting for the certificate that the master is to issue");
    certificates.filled().await;
    let joined = std::future::ready(Ok(membership));
    Ok(Abort(tokio::spawn(listed.follow(joined))))
}

impl KeyVault {
    /// Opens the store, and unseals it if the master key is a secret that is there; one that was
    /// never initialised waits for that.
    pub async fn start(config: &Vault, audit: Arc<audit::Key>) -> Result<Self, StartError> {
        let vault = Self::open(config, audit).await?;
        if config.seal == Seal::Key {
            let read = |text: &_| Ok(wavry_credentials::key::aead::Key::read(text));
            let key = source::load("keyvault_key", None, read).await?;
            vault.use_key(key.map_err(StartError::MasterKey)?).await?;
        }
        Ok(vault)
    }
}
