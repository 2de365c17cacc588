//! A cluster in a directory of its own: authority, certificate, keys, and masters to start.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tempfile::TempDir;
use tokio::{sync::watch, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use wavry_credentials::{
    audit,
    cert::{self, DevelopmentAuthority},
    identity::Identity,
    membership::{self, Membership},
    source,
    token::SigningKey,
};
use wavry_master::{
    Config, Master,
    config::{Raw, RawService},
    database::Location,
    provision,
};
use wavry_proto::{
    control::{Role, Roster},
    id::{ClusterName, NodeId, ServiceName},
    placement::Placement,
};

/// Far more than anything here takes; what comes later comes never.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) struct World {
    directory: TempDir,
    pub(crate) key: SigningKey,
    pub(crate) cluster: ClusterName,
}

impl World {
    pub(crate) fn new() -> Self {
        cert::install_crypto_provider();
        let directory = tempfile::tempdir().unwrap();
        let authority = DevelopmentAuthority::open(directory.path()).unwrap();
        authority.issue("master", &["127.0.0.1"]).unwrap();
        let key = SigningKey::generate();
        let file = directory.path().join("master_key");
        source::write_secret(&file, &key.to_paserk()).unwrap();
        let audit_key = directory.path().join("audit_key");
        source::write_secret(&audit_key, &SigningKey::generate().to_paserk()).unwrap();
        Self {
            directory,
            key,
            cluster: "test".parse().unwrap(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Where a master's database is that is told nothing else.
    pub(crate) fn database(&self) -> Location {
        self.path("master.sqlite").into()
    }

    /// A master with service `echo`, that looks often for silence but suspects late.
    pub(crate) fn config(&self) -> Config {
        let raw = Raw {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            cluster: self.cluster.to_string(),
            database: Some(self.database().to_string()),
            certificate: Some(self.path("master.crt")),
            heartbeat_interval: Duration::from_millis(50),
            suspect_after: DEADLINE,
            services: vec![RawService {
                name: "echo".into(),
                ..RawService::default()
            }],
            ..Raw::default()
        };
        let mut config = Config::try_from(raw).unwrap();
        config.master_key = Some(self.path("master_key"));
        config.audit_key = Some(self.path("audit_key"));
        config.tls_key = Some(self.path("master.key"));
        // Tests ask again at once.
        config.limits.registration_rate = 100_000;
        config
    }

    pub(crate) async fn start(&self) -> Running {
        self.start_with(self.config()).await
    }

    pub(crate) async fn start_with(&self, config: Config) -> Running {
        let master = Master::start(config).await.unwrap();
        let address = master.local_addr();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { master.run(shutdown).await.unwrap() }
        });
        Running {
            address,
            shutdown,
            task,
        }
    }

    pub(crate) fn token(&self, node: &str, role: Role, services: &[&str]) -> String {
        let services = services.iter().map(|s| s.parse().unwrap()).collect();
        let ttl = Duration::from_secs(60);
        let issue = self.issuer().registration(
            node.parse().unwrap(),
            role,
            services,
            Placement::default(),
            ttl,
        );
        self.signed(&issue.unwrap())
    }

    /// Signed with the master key that is there now.
    pub(crate) fn signed(&self, issue: &provision::Issue) -> String {
        let key = source::read_file(&self.path("master_key")).unwrap();
        let key = SigningKey::from_paserk(&key).unwrap();
        issue.sign_with(&key, &self.cluster)
    }

    /// Who puts tokens on record in `provision.jsonl`.
    pub(crate) fn issuer(&self) -> provision::Issuer {
        let file = self.path("provision.jsonl");
        let log = audit::file::Log::new(file, provision::LOG, self.audit_key());
        provision::Issuer::new(log, "tester".to_owned())
    }

    pub(crate) fn audit_key(&self) -> audit::Key {
        let key = source::read_file(&self.path("audit_key")).unwrap();
        audit::Key::from_paserk(&key, self.cluster.clone()).unwrap()
    }

    /// What a node needs to join: a fresh identity, and a token for these services.
    pub(crate) fn node(
        &self,
        master: &Running,
        node: &str,
        role: Role,
        services: &[&str],
    ) -> membership::Config {
        let identity = self.path(&format!("{node}.identity"));
        source::write_secret(&identity, &Identity::generate().to_pem()).unwrap();
        let token = self.path(&format!("{node}.token"));
        source::write_private(&token, self.token(node, role, services).as_bytes()).unwrap();
        membership::Config {
            master: format!("https://{}", master.address),
            ca_file: self.path("ca.crt"),
            state_dir: self.path(&format!("{node}.state")),
            services: services.iter().map(|s| s.parse().unwrap()).collect(),
            max_roster_age: Duration::from_secs(3600),
            identity_lifetime: Duration::from_secs(30 * 24 * 3600),
            identity_key: Some(identity),
            registration_token: Some(token),
        }
    }
}

/// A master at work.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    pub(crate) async fn stop(self) -> SocketAddr {
        self.shutdown.cancel();
        timeout(DEADLINE, self.task).await.unwrap().unwrap();
        self.address
    }
}

pub(crate) fn node_id(text: &str) -> NodeId {
    text.parse().unwrap()
}

pub(crate) fn service(text: &str) -> ServiceName {
    text.parse().unwrap()
}

pub(crate) async fn join(config: membership::Config) -> Membership {
    timeout(DEADLINE, Membership::join(config))
        .await
        .expect("the node joins in time")
        .unwrap()
}

/// The first roster of which this holds.
pub(crate) async fn roster_where(
    rosters: &mut watch::Receiver<Arc<Roster>>,
    holds: impl Fn(&Roster) -> bool,
) -> Arc<Roster> {
    timeout(DEADLINE, rosters.wait_for(|roster| holds(roster)))
        .await
        .expect("the roster comes in time")
        .expect("the membership is there")
        .clone()
}

pub(crate) fn exits(roster: &Roster, name: &str) -> usize {
    roster.exits(&service(name)).count()
}
