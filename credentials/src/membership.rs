//! A node's place in a cluster: registration, heartbeats, and the roster it watches. What it makes of rosters,
//! [`roster`] decides.

mod age;
mod certificate;
mod check;
mod identities;
mod kept;
mod leases;
mod metrics;
mod record;
mod requests;
mod retry;
pub mod roster;
mod rotate;
mod trust;
mod work;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{sync::watch, task::JoinSet, time::timeout};
use wavry_proto::{
    control::Roster,
    id::{ClusterName, NodeId, PublicKey, ServiceName},
};

use crate::{
    cert,
    clock::unix_time,
    identity::{Identity, MeshTls, Shown, rotation::Pace},
    master::{self, Failure},
    secret::Secret,
    source,
    token::lease::Verifier,
};

pub use check::check;
pub use leases::Leases;
pub use requests::Requests;

use certificate::{Certificates, Renewal};
use identities::Identities;
use kept::Kept;
pub(crate) use metrics::describe as describe_metrics;
use record::Record;
use rotate::Rotation;
use trust::Trust;
use work::{Link, Said};

/// File in the state directory of what registration gave.
const MEMBERSHIP: &str = "membership.json";

/// What a node needs to join its cluster.
#[derive(Debug, Clone)]
pub struct Config {
    /// The master: `https://HOST:PORT`, or several with commas between them.
    pub master: String,
    /// PEM file of the authorities that the master's certificate is checked against.
    pub ca_file: PathBuf,
    /// Directory that keeps what registration gave — node id, cluster and roster keys —, the newest
    /// roster, and the identities that follow the secret `identity_key`.
    pub state_dir: PathBuf,
    /// Services this node has upstreams for.
    pub services: Vec<ServiceName>,
    /// The node acts on a roster for so long after it was signed.
    pub max_roster_age: Duration,
    /// How long an identity serves before another takes its place.
    pub identity_lifetime: Duration,
    /// File of the secret `identity_key`; `None` for where [`source::locate`] finds it.
    pub identity_key: Option<PathBuf>,
    /// File of the secret `registration_token`; `None` for where [`source::locate`] finds it.
    pub registration_token: Option<PathBuf>,
}

/// A node that belongs to a cluster. Heartbeats and the roster's watch go on in the background
/// until it is dropped; when the master is away, the last roster stays for as long as it may.
pub struct Membership {
    link: Arc<Link>,
    roster: watch::Receiver<Arc<Roster>>,
    /// Set when the master knows that the node leaves.
    farewell: watch::Receiver<bool>,
    master: watch::Receiver<bool>,
    leases: Leases,
    /// The background work; it ends when this is dropped.
    _work: JoinSet<()>,
}

/// Why a node cannot join.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A secret or state file.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// The identity.
    #[error(transparent)]
    Identity(#[from] crate::identity::Error),
    /// The address given for the master, or the authorities that vouch for it.
    #[error(transparent)]
    Master(#[from] master::Unusable),
    /// The master refused; waiting does not help.
    #[error("the master refused: {status} {detail}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The master's words.
        detail: String,
    },
    /// Configuration or state that cannot be used.
    #[error("{0}")]
    Invalid(String),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused { status, detail, .. } => Self::Refused { status, detail },
            other => Self::Invalid(other.to_string()),
        }
    }
}

/// How long [`Membership::leave`] waits for the master.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// A node that has what joining takes: secrets and state were read, and nobody was asked yet.
pub struct Candidate {
    client: master::Client,
    /// The one that is shown.
    identity: Identity,
    identities: Identities,
    services: Vec<ServiceName>,
    max_roster_age: Duration,
    pace: Pace,
    kept: Kept,
    certificates: Certificates,
    standing: Standing,
}

enum Standing {
    /// This identity has registered.
    Registered { record: Record, file: PathBuf },
    /// It is to, and what that gives goes into the file.
    ToRegister {
        provisioned: PublicKey,
        token: Secret<Vec<u8>>,
        file: PathBuf,
    },
}

impl Candidate {
    /// Reads the identity (secret `identity_key`, or the one that followed it) and, unless this identity registered before, the
    /// registration token (secret `registration_token`).
    pub async fn new(config: Config) -> Result<Self, Error> {
        let file = config.identity_key.as_deref();
        let provisioned = source::load("identity_key", file, Identity::read).await?;
        fs::create_dir_all(&config.state_dir).map_err(|error| {
            Error::Invalid(format!(
                "state directory {}: {error}",
                config.state_dir.display()
            ))
        })?;
        let key = provisioned.public_key();
        let (identities, identity) = Identities::open(&config.state_dir, provisioned, unix_time())?;
        let client = master::Client::new(&config.master, &config.ca_file)?;
        let file = config.state_dir.join(MEMBERSHIP);
        let standing = match Record::read(&file)? {
            Some(record) if record.public_key == key => Standing::Registered { record, file },
            _ => Standing::ToRegister {
                provisioned: key,
                token: read_secret("registration_token", config.registration_token.as_ref())?,
                file,
            },
        };
        Ok(Self {
            client,
            identity,
            identities,
            services: config.services,
            max_roster_age: config.max_roster_age,
            pace: Pace {
                lifetime: config.identity_lifetime,
            },
            kept: Kept::in_directory(&config.state_dir),
            certificates: Certificates::in_directory(&config.state_dir),
            standing,
        })
    }

    /// Has `store` serve with the node's certificate, which is one of a TLS server where the node is a KeyVault: in
    /// the place of what it has from `origin`, at once with the one that is kept, if there is one that has not
    /// expired, and with each that is issued from now on.
    #[must_use]
    pub fn serving(mut self, store: cert::Store, origin: &Path) -> Self {
        let record = match &self.standing {
            Standing::Registered { record, .. } => Some(record),
            Standing::ToRegister { .. } => None,
        };
        self.certificates.serve(store, origin, record);
        self
    }

    /// Registers if that is still to be done, and waits for the first roster: the master's, or, where
    /// no master answers, the one that was kept, if it is not too old. Otherwise a master that cannot
    /// be reached is waited for.
    ///
    /// Until [`Membership::announce`] is called the node has no address, and the roster shows it
    /// as an exit for nothing.
    pub async fn join(self) -> Result<Membership, Error> {
        let Self {
            client,
            identity,
            identities,
            services,
            max_roster_age,
            pace,
            kept,
            mut certificates,
            standing,
        } = self;
        let (record, file) = match standing {
            Standing::Registered { record, file } => (record, file),
            Standing::ToRegister {
                provisioned,
                token,
                file,
            } => {
                let registering =
                    work::register(&client, &identity, provisioned, &token, &services);
                let record = registering.await?;
                record.write(&file)?;
                (record, file)
            }
        };
        let trust = Trust::of(&record, file)?;
        let shown = Shown::new(identity)?;
        let link = Arc::new(Link::new(client, shown, record, trust, services, kept));

        let first = work::first_roster(&link, max_roster_age, &mut certificates);
        let (first, connection) = first.await?;
        let (master_sender, master) = watch::channel(connection.is_some());
        let first = Arc::new(first);
        let (newest_sender, newest) = watch::channel(first.clone());
        let (roster_sender, roster) = watch::channel(first);
        let (farewell_sender, farewell) = watch::channel(false);
        let (task_sender, task) = watch::channel(None);
        let mut work = JoinSet::new();
        work.spawn(work::follow_roster(link.clone(), connection, newest_sender));
        work.spawn(age::publish(newest, max_roster_age, roster_sender));
        work.spawn(work::send_heartbeats(
            link.clone(),
            roster.clone(),
            farewell_sender,
            task_sender,
            master_sender,
        ));
        let leases = Leases::new();
        let verifier = Verifier::new(link.record.cluster.clone(), roster.clone());
        let (node, requests) = (link.record.node_id.clone(), Requests::new(link.clone()));
        work.spawn(
            leases
                .clone()
                .keep(node, requests, roster.clone(), verifier),
        );
        let rotation = Rotation {
            link: link.clone(),
            identities,
            pace,
            roster: roster.clone(),
            task,
            foreign: Vec::new(),
        };
        work.spawn(rotation.run());
        let renewal = Renewal {
            link: link.clone(),
            certificates,
            roster: roster.clone(),
        };
        work.spawn(renewal.run());
        Ok(Membership {
            link,
            roster,
            farewell,
            master,
            leases,
            _work: work,
        })
    }
}

impl Membership {
    /// Joins at once: [`Candidate::new`] and [`Candidate::join`].
    pub async fn join(config: Config) -> Result<Self, Error> {
        Candidate::new(config).await?.join().await
    }

    /// The node's id.
    pub fn node_id(&self) -> &NodeId {
        &self.link.record.node_id
    }

    /// The cluster.
    pub fn cluster(&self) -> &ClusterName {
        &self.link.record.cluster
    }

    /// The identity that the node shows now.
    pub fn identity(&self) -> Arc<Identity> {
        self.link.shown.present().identity.clone()
    }

    /// TLS for the mesh, by the identity that the node shows at the time of each handshake; see
    /// [`Identity::mesh_tls`].
    pub fn mesh_tls(&self) -> Result<MeshTls, crate::identity::Error> {
        self.link.shown.mesh_tls(self.roster())
    }

    /// The current roster, or [`Roster::empty`] while the newest is too old to act on; the sender is
    /// gone when the membership is.
    pub fn roster(&self) -> watch::Receiver<Arc<Roster>> {
        self.roster.clone()
    }

    /// Leases of flows through transit relays that this node claims.
    pub fn leases(&self) -> Leases {
        self.leases.clone()
    }

    /// Checks the leases of flows that others claim.
    pub fn lease_verifier(&self) -> Verifier {
        Verifier::new(self.cluster().clone(), self.roster())
    }

    /// Whether a master answers this node, and can sign.
    pub fn master(&self) -> watch::Receiver<bool> {
        self.master.clone()
    }

    /// Sends requests to the master as this node.
    pub fn requests(&self) -> Requests {
        Requests::new(self.link.clone())
    }

    /// Tells the master where the mesh reaches this node, from the next heartbeat on (at once).
    pub fn announce(&self, addresses: Vec<SocketAddr>) {
        self.link.said.send_if_modified(|said| {
            let news = said.addresses != addresses;
            said.addresses = addresses;
            news
        });
    }

    /// Tells the master where this node, which is a relay, forwards packets of others, from the next heartbeat
    /// on (at once).
    pub fn offer_transit(&self, addresses: Vec<SocketAddr>) {
        self.link.said.send_if_modified(|said| {
            let news = said.transit != addresses;
            said.transit = addresses;
            news
        });
    }

    /// Tells the master that nobody reaches this node but through these relays, and what address they see it at, if
    /// they agree; from the next heartbeat on (at once).
    pub fn attached(&self, relays: Vec<NodeId>, seen: Option<SocketAddr>) {
        self.link.said.send_if_modified(|said| {
            let addresses = Vec::from_iter(seen);
            let news = said.attached != relays || said.addresses != addresses;
            (said.attached, said.addresses) = (relays, addresses);
            news
        });
    }

    /// Reports the number of live sessions with each heartbeat.
    pub fn report_sessions(&self, sessions: u64) {
        self.link.sessions.store(sessions, Ordering::Relaxed);
    }

    /// Tells the master that the node leaves, and waits until it knows or a second has passed.
    pub async fn leave(&self) {
        self.link
            .said
            .send_modify(|said: &mut Said| said.draining = true);
        let mut farewell = self.farewell.clone();
        let known = farewell.wait_for(|known| *known);
        if !matches!(timeout(FAREWELL_TIMEOUT, known).await, Ok(Ok(_))) {
            tracing::warn!("the master was not told that this node leaves");
        }
    }
}

fn read_secret(name: &str, file: Option<&PathBuf>) -> Result<Secret<Vec<u8>>, source::Error> {
    match file {
        Some(file) => source::read_file(file),
        None => source::read(name),
    }
}
