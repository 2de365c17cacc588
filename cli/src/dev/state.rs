//! What `wavry dev` keeps: certificates, keys, tokens and configurations, as files.

use std::{
    fs::{self, File, TryLockError},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, value};
use wavry_credentials::{
    audit,
    cert::{self, DevelopmentAuthority},
    identity::Identity,
    process,
    secret::Secret,
    source,
    token::SigningKey,
};
use wavry_master::provision::{self, Issuer};
use wavry_proto::{
    control::Role,
    id::{ClusterName, NodeId, ServiceName},
    placement::Placement,
};

use super::keyvault;
use crate::provision::DEFAULT_CLUSTER;

/// A registration token is used within seconds of being made.
const REGISTRATION_TTL: Duration = Duration::from_secs(600);
/// A session token in the ready file and on the page outlives the day's work.
const SESSION_TTL: Duration = Duration::from_secs(24 * 3600);

/// The state directory, held by one process at a time.
pub(crate) struct State {
    directory: PathBuf,
    cluster: ClusterName,
    issuer: Issuer,
    /// Signs what is issued.
    key: SigningKey,
    authority: DevelopmentAuthority,
    subjects: Vec<String>,
    _lock: File,
}

/// Who has a TLS certificate.
const CERTIFICATES: [&str; 3] = ["master", "gateway", "sample"];

impl State {
    /// Opens the directory, or makes it and everything in it that is not there yet. Certificates
    /// are for `host` and for the loopback names.
    pub(crate) fn open(directory: &Path, host: &str) -> anyhow::Result<Self> {
        let shown = directory.display();
        fs::create_dir_all(directory).with_context(|| format!("state directory {shown}"))?;
        let directory = directory
            .canonicalize()
            .with_context(|| format!("state directory {shown}"))?;
        let lock = lock(&directory)?;
        for part in [
            "tls", "log", "run", "master", "gateway", "relay-a", "relay-b",
        ] {
            let part = directory.join(part);
            fs::create_dir_all(&part).with_context(|| format!("{}", part.display()))?;
        }

        let authority = DevelopmentAuthority::open(&directory.join("tls"))?;
        let mut subjects = vec![
            "localhost".to_owned(),
            "127.0.0.1".to_owned(),
            "::1".to_owned(),
        ];
        if !subjects.iter().any(|subject| subject == host) {
            subjects.push(host.to_owned());
        }
        let cluster: ClusterName = DEFAULT_CLUSTER.parse()?;
        let key = signing_key(&directory.join("master/master.key"))?;
        let key = SigningKey::from_paserk(&key)?;
        let audit_key = signing_key(&directory.join("master/audit.key"))?;
        let audit_key = audit::Key::from_paserk(&audit_key, cluster.clone())?;
        let log = directory.join("log/provision.jsonl");
        let log = audit::file::Log::new(log, provision::LOG, audit_key);
        let state = Self {
            issuer: Issuer::new(log, process::user()),
            key,
            cluster,
            directory,
            authority,
            subjects,
            _lock: lock,
        };
        state.renew_certificates()?;
        Ok(state)
    }

    /// Issues again what is not good for another day; tells whether anything was.
    pub(crate) fn renew_certificates(&self) -> anyhow::Result<bool> {
        let subjects: Vec<&str> = self.subjects.iter().map(String::as_str).collect();
        // A certificate for other names is no good, however fresh.
        let names_file = self.path("tls/names");
        let names = subjects.join("\n");
        let same_names = fs::read_to_string(&names_file).is_ok_and(|old| old == names);
        let mut renewed = false;
        for name in CERTIFICATES {
            if !same_names || !self.authority.is_fresh(name) {
                self.authority.issue(name, &subjects)?;
                renewed = true;
            }
        }
        fs::write(&names_file, names).with_context(|| format!("{}", names_file.display()))?;
        Ok(renewed)
    }

    /// The cluster's name.
    pub(crate) fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// A path in the directory.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        self.directory.join(inside)
    }

    /// The authority's certificate.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.path("tls/ca.crt")
    }

    /// SHA-256 of the gateway's certificate, as hexadecimal.
    pub(crate) fn certificate_hashes(&self) -> anyhow::Result<Vec<String>> {
        let hash = cert::file_hash(&self.path("tls/gateway.crt"))?;
        Ok(vec![
            hash.iter().map(|byte| format!("{byte:02x}")).collect(),
        ])
    }

    /// A fresh token for `service`.
    pub(crate) fn session_token(&self, service: &ServiceName) -> anyhow::Result<String> {
        let nothing = serde_json::Map::new();
        let subject = "developer".to_owned();
        let issue = self
            .issuer
            .session(service, subject, None, nothing, SESSION_TTL)?;
        Ok(issue.sign_with(&self.key, &self.cluster))
    }

    /// Makes a node's identity unless it has one, and a registration token, which it uses if it has
    /// not registered before.
    pub(crate) fn provision(
        &self,
        name: &str,
        role: Role,
        services: Vec<ServiceName>,
    ) -> anyhow::Result<()> {
        let identity = self.path(name).join("identity.key");
        if !identity.exists() {
            source::write_secret(&identity, &Identity::generate().to_pem())?;
        }
        let node: NodeId = name.parse()?;
        let issue = self.issuer.registration(
            node,
            role,
            services,
            Placement::default(),
            REGISTRATION_TTL,
        )?;
        let token = issue.sign_with(&self.key, &self.cluster);
        source::write_private(
            &self.path(name).join("registration.token"),
            token.as_bytes(),
        )?;
        Ok(())
    }

    /// Writes the master's configuration; the file's path.
    pub(crate) fn write_master(&self, services: &[Service]) -> anyhow::Result<PathBuf> {
        let mut table = Table::new();
        table["cluster"] = value(self.cluster.as_str());
        table["database"] = path_value(&self.path("master/master.sqlite"));
        table["certificate"] = path_value(&self.path("tls/master.crt"));
        table["heartbeat_interval"] = value("500ms");
        table["suspect_after"] = value("2s");
        table["drain_timeout"] = value("2s");
        let mut vault = Table::new();
        vault["database"] = path_value(&self.path(keyvault::DATABASE));
        vault["seal"] = value("key");
        table["keyvault"] = Item::Table(vault);
        let mut tables = ArrayOfTables::new();
        for service in services {
            let mut entry = Table::new();
            entry["name"] = value(service.name.as_str());
            entry["access"] = value(if service.public { "public" } else { "token" });
            entry["allowed_origins"] = value(service.allowed_origins.iter().collect::<Array>());
            tables.push(entry);
        }
        table["services"] = Item::ArrayOfTables(tables);
        self.write_config("master", "master", table)
    }

    /// Writes the gateway's configuration; the file's path.
    pub(crate) fn write_gateway(&self, master: SocketAddr) -> anyhow::Result<PathBuf> {
        let mut table = self.node_table("gateway", master);
        table["certificate"] = path_value(&self.path("tls/gateway.crt"));
        self.write_config("gateway", "gateway", table)
    }

    /// Writes the configuration of relay `name`, an exit for one service; the file's path.
    pub(crate) fn write_relay(
        &self,
        name: &str,
        master: SocketAddr,
        service: &ServiceName,
        upstream: &str,
    ) -> anyhow::Result<PathBuf> {
        let mut table = self.node_table(name, master);
        let mut entry = Table::new();
        entry["url"] = value(upstream);
        if upstream.starts_with("https:") {
            entry["ca_file"] = path_value(&self.ca_file());
        }
        let mut upstreams = Table::new();
        upstreams.set_implicit(true);
        upstreams[service.as_str()] = Item::Table(entry);
        table["upstreams"] = Item::Table(upstreams);
        self.write_config(name, "relay", table)
    }

    fn node_table(&self, name: &str, master: SocketAddr) -> Table {
        let mut table = Table::new();
        table["master"] = value(format!("https://{master}"));
        table["ca_file"] = path_value(&self.ca_file());
        table["state_dir"] = path_value(&self.path(name).join("state"));
        table["drain_timeout"] = value("3s");
        table
    }

    fn write_config(&self, name: &str, role: &str, table: Table) -> anyhow::Result<PathBuf> {
        let mut document = DocumentMut::new();
        document[role] = Item::Table(table);
        let mut ops = Table::new();
        ops["listen"] = value("127.0.0.1:0");
        document["ops"] = Item::Table(ops);
        let file = self.path(name).join(format!("{role}.toml"));
        fs::write(&file, document.to_string()).with_context(|| format!("{}", file.display()))?;
        Ok(file)
    }
}

/// A service as the master is told of it.
pub(crate) struct Service {
    /// Its name.
    pub(crate) name: ServiceName,
    /// Whether anyone may connect.
    pub(crate) public: bool,
    /// Origins a browser may connect from.
    pub(crate) allowed_origins: Vec<String>,
}

fn lock(directory: &Path) -> anyhow::Result<File> {
    let file = directory.join("lock");
    let lock = File::create(&file).with_context(|| format!("{}", file.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => bail!(
            "another `wavry dev` uses {}; stop it or choose another --state-dir",
            directory.display()
        ),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("{}", file.display()))
        }
    }
}

/// The text of a key, which is made if it is not there.
fn signing_key(file: &Path) -> anyhow::Result<Secret<Vec<u8>>> {
    if !file.exists() {
        source::write_secret(file, &SigningKey::generate().to_paserk())?;
    }
    Ok(source::read_file(file)?)
}

fn path_value(path: &Path) -> Item {
    value(path.to_string_lossy().into_owned())
}
