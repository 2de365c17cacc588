//! Certificates by name, in a snapshot that handshakes read.

use std::{
    collections::HashMap,
    fmt, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use metrics::{counter, gauge};
use rustls::{
    crypto::aws_lc_rs,
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use tokio::task::JoinHandle;

use super::{Error, Pair, hash, read_certificates};
use crate::{key::tls_from_pem, metrics as names, source};

/// How often watched files are looked at.
pub const POLL_INTERVAL: Duration = Duration::from_secs(2);

const FILE: &str = "file";
const ACME: &str = "acme";

/// Certificates by name. A handshake reads an immutable snapshot: no lock, no file, no network.
/// Clones share their certificates.
#[derive(Clone, Default)]
pub struct Store {
    current: Arc<ArcSwap<Snapshot>>,
}

impl Store {
    /// An empty store: every handshake fails until certificates are loaded.
    pub fn new() -> Self {
        Self::default()
    }

    /// Loads a PEM chain and its PEM key for the names in the certificate; the first chain loaded is
    /// also the default, for clients that name none of them. What was loaded from the same chain
    /// file before is replaced, once key and certificate are checked against each other.
    pub fn load(&self, chain: &Path, key: &Path) -> Result<(), Error> {
        self.put(FILE, Entry::read(chain, key))
    }

    /// Puts a pair in use that an authority issued, in the place of what was installed from the same
    /// `origin` before, unless it has expired.
    pub(crate) fn install(&self, origin: &Path, pair: Pair) -> Result<(), Error> {
        self.put(ACME, Entry::new(origin, None, pair))
    }

    fn put(&self, source: &'static str, entry: Result<Entry, Error>) -> Result<(), Error> {
        let entry = entry.map(Arc::new);
        let outcome = if entry.is_ok() { "loaded" } else { "failed" };
        counter!(names::CERTIFICATE_LOADS, "source" => source, "outcome" => outcome).increment(1);
        let entry = entry?;
        self.current.rcu(|current| current.with(entry.clone()));
        for name in &entry.names {
            gauge!(names::CERTIFICATE_EXPIRY, "name" => name.clone(), "source" => source)
                .set(unix_seconds(entry.expires));
        }
        Ok(())
    }

    /// Loads the files again whenever they change, and keeps the last good ones when they cannot be
    /// used. Ends when the store and every configuration made from it are gone, or by `abort`.
    pub fn watch(&self, chain: &Path, key: &Path) -> JoinHandle<()> {
        self.watch_every(POLL_INTERVAL, chain, key)
    }

    /// TLS for a server that takes its certificates from here. No ALPN is set.
    pub fn server_config(&self) -> rustls::ServerConfig {
        let provider = Arc::new(aws_lc_rs::default_provider());
        rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("aws-lc-rs has the cipher suites of TLS 1.2 and 1.3")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Resolver(self.current.clone())))
    }

    /// TLS for a server whose clients show certificates that the authorities in a PEM file vouch for;
    /// if `required`, each must.
    pub fn mutual_config(
        &self,
        authorities: &Path,
        required: bool,
    ) -> Result<rustls::ServerConfig, Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let roots = Arc::new(super::trust::authorities(authorities)?);
        let mut verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
        if !required {
            verifier = verifier.allow_unauthenticated();
        }
        let verifier = verifier
            .build()
            .map_err(|_| Error::malformed(authorities, "holds no authorities"))?;
        Ok(rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("aws-lc-rs has the cipher suites of TLS 1.2 and 1.3")
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(Resolver(self.current.clone()))))
    }

    /// The earliest expiry of what is loaded.
    pub fn expiry(&self) -> Option<SystemTime> {
        let current = self.current.load();
        current.entries.iter().map(|entry| entry.expires).min()
    }

    /// The certificates in use that clients may trust by their hash, as pages do with
    /// `serverCertificateHashes`.
    pub fn pinnable(&self) -> Vec<Pinnable> {
        let current = self.current.load();
        let pinnable = current.entries.iter().filter(|entry| entry.may_be_pinned);
        let pinnable = pinnable.map(|entry| Pinnable {
            hash: hash(&entry.key.cert[0]),
            expires: entry.expires,
        });
        pinnable.collect()
    }

    fn watch_every(&self, interval: Duration, chain: &Path, key: &Path) -> JoinHandle<()> {
        let current = Arc::downgrade(&self.current);
        let mut files = Files {
            chain: chain.to_owned(),
            key: key.to_owned(),
            refused: None,
        };
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(interval).await;
                let Some(current) = current.upgrade() else {
                    return;
                };
                let look = move || {
                    files.look(&Store { current });
                    files
                };
                match tokio::task::spawn_blocking(look).await {
                    Ok(looked) => files = looked,
                    // The runtime is shutting down.
                    Err(_) => return,
                }
            }
        })
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let current = self.current.load();
        let names = current.entries.iter().flat_map(|entry| &entry.names);
        f.debug_set().entries(names).finish()
    }
}

/// A certificate that clients may trust by its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pinnable {
    /// SHA-256 of it.
    pub hash: [u8; 32],
    /// When it expires.
    pub expires: SystemTime,
}

/// One loaded chain with its key.
struct Entry {
    /// The chain's file, or where else it came from.
    chain: PathBuf,
    stamps: Option<Stamps>,
    names: Vec<String>,
    expires: SystemTime,
    may_be_pinned: bool,
    key: Arc<CertifiedKey>,
}

impl Entry {
    fn read(chain: &Path, key: &Path) -> Result<Self, Error> {
        // Before the content, so that a change in between is seen as one.
        let stamps = Stamps::of(chain, key);
        Self::new(chain, stamps, Pair::read(chain, key)?)
    }

    fn new(chain: &Path, stamps: Option<Stamps>, pair: Pair) -> Result<Self, Error> {
        let Pair { certified, facts } = pair;
        if facts.not_after <= SystemTime::now() {
            return Err(Error::malformed(chain, "has expired"));
        }
        Ok(Self {
            chain: chain.to_owned(),
            stamps,
            may_be_pinned: facts.may_be_pinned(),
            names: facts.dns_names,
            expires: facts.not_after,
            key: Arc::new(certified),
        })
    }
}

/// Reads a chain and its key, and checks that they belong together.
pub(super) fn certified_key(chain: &Path, key: &Path) -> Result<CertifiedKey, Error> {
    let certificates = read_certificates(chain)?;
    let pem = source::read_file(key)?;
    let signer = tls_from_pem(&pem).map_err(|problem| Error::malformed(key, problem))?;
    let certified = CertifiedKey::new(certificates, signer);
    certified.keys_match().map_err(|_| {
        Error::malformed(
            key,
            format!("does not belong to the certificate in {}", chain.display()),
        )
    })?;
    Ok(certified)
}

/// What handshakes read. Never changed, only replaced.
#[derive(Default)]
struct Snapshot {
    /// In the order they were first loaded.
    entries: Vec<Arc<Entry>>,
    /// By lower-case name.
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By what is behind `*.`, lower case.
    wildcard: HashMap<String, Arc<CertifiedKey>>,
}

impl Snapshot {
    /// This one with `entry` in the place of what its chain file held, or at the end.
    fn with(&self, entry: Arc<Entry>) -> Self {
        let mut entries = self.entries.clone();
        match entries.iter_mut().find(|old| old.chain == entry.chain) {
            Some(old) => *old = entry,
            None => entries.push(entry),
        }
        let (mut exact, mut wildcard) = (HashMap::new(), HashMap::new());
        for entry in &entries {
            for name in &entry.names {
                let (table, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut wildcard, parent),
                    None => (&mut exact, name.as_str()),
                };
                table.insert(name.to_owned(), entry.key.clone());
            }
        }
        Self {
            entries,
            exact,
            wildcard,
        }
    }

    /// The certificate for a lower-case name: its own, its wildcard's, the default.
    fn find(&self, name: Option<&str>) -> Option<&Arc<CertifiedKey>> {
        let named = name.and_then(|name| {
            self.exact.get(name).or_else(|| {
                let (_, parent) = name.split_once('.')?;
                self.wildcard.get(parent)
            })
        });
        named.or_else(|| Some(&self.entries.first()?.key))
    }
}

struct Resolver(Arc<ArcSwap<Snapshot>>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // rustls hands the name on in lower case.
        self.0.load().find(hello.server_name()).cloned()
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

/// A pair of files under watch.
struct Files {
    chain: PathBuf,
    key: PathBuf,
    /// What was refused last; it is not read again until it changes.
    refused: Option<Stamps>,
}

impl Files {
    /// Loads the files if they are not those that are in use.
    fn look(&mut self, store: &Store) {
        let stamps = Stamps::of(&self.chain, &self.key);
        let current = store.current.load();
        let used = current.entries.iter().find(|e| e.chain == self.chain);
        // A file that is away for a moment is being replaced.
        if stamps.is_none() || stamps == self.refused || used.is_some_and(|e| e.stamps == stamps) {
            return;
        }
        match store.load(&self.chain, &self.key) {
            Ok(()) => {
                self.refused = None;
                tracing::info!(chain = %self.chain.display(), "certificate loaded again");
            }
            Err(error) => {
                self.refused = stamps;
                tracing::warn!(%error, "changed certificate cannot be used; the last good one stays");
            }
        }
    }
}

/// Tells one state of a pair of files from another without reading them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamps([[i64; 7]; 2]);

impl Stamps {
    /// `None` while either file is away.
    fn of(chain: &Path, key: &Path) -> Option<Self> {
        let stamp = |path: &Path| {
            let metadata = fs::metadata(path).ok()?;
            Some([
                metadata.dev() as i64,
                metadata.ino() as i64,
                metadata.size() as i64,
                metadata.mtime(),
                metadata.mtime_nsec(),
                // Permissions that were put right change this one only.
                metadata.ctime(),
                metadata.ctime_nsec(),
            ])
        };
        Some(Self([stamp(chain)?, stamp(key)?]))
    }
}

fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use metrics_exporter_prometheus::PrometheusBuilder;
    use rcgen::{CertificateParams, KeyPair};
    use time::OffsetDateTime;

    use super::{super::handshake::shake_hands, *};
    use crate::cert::{DevelopmentAuthority, Trust, client_config, file_hash};

    /// A directory with an authority, and the paths of what it issued.
    struct World {
        directory: tempfile::TempDir,
        authority: DevelopmentAuthority,
    }

    impl World {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let authority = DevelopmentAuthority::open(directory.path()).unwrap();
            Self {
                directory,
                authority,
            }
        }

        fn issue(&self, name: &str, subjects: &[&str]) -> (PathBuf, PathBuf) {
            self.authority.issue(name, subjects).unwrap();
            self.files(name)
        }

        fn files(&self, name: &str) -> (PathBuf, PathBuf) {
            let file = |end: &str| self.directory.path().join(format!("{name}.{end}"));
            (file("crt"), file("key"))
        }

        fn watched(&self, name: &str) -> Files {
            let (chain, key) = self.files(name);
            Files {
                chain,
                key,
                refused: None,
            }
        }
    }

    fn hash_of(key: &CertifiedKey) -> [u8; 32] {
        hash(&key.cert[0])
    }

    fn found(store: &Store, name: Option<&str>) -> [u8; 32] {
        hash_of(store.current.load().find(name).unwrap())
    }

    #[test]
    fn a_name_finds_its_own_certificate_then_its_wildcard_then_the_default() {
        let world = World::new();
        let store = Store::new();
        let (first, first_key) = world.issue("first", &["a.test", "127.0.0.1"]);
        let (second, second_key) = world.issue("second", &["*.test", "B.example"]);
        store.load(&first, &first_key).unwrap();
        store.load(&second, &second_key).unwrap();
        let (first, second) = (file_hash(&first).unwrap(), file_hash(&second).unwrap());
        for (name, hash) in [
            (Some("a.test"), first),
            (Some("c.test"), second),
            (Some("b.example"), second),
            (Some("test"), first),
            (Some("c.d.test"), first),
            (Some("elsewhere"), first),
            (None, first),
        ] {
            assert_eq!(found(&store, name), hash, "{name:?}");
        }
    }

    #[tokio::test]
    async fn a_handshake_gets_the_certificate_for_its_name_in_any_case() {
        let world = World::new();
        let store = Store::new();
        let client = || {
            let roots = world.directory.path().join("ca.crt");
            client_config(&Trust::Authorities(roots)).unwrap()
        };
        let empty = shake_hands(store.server_config(), client(), "a.test").await;
        assert!(empty.is_err());

        let (first, first_key) = world.issue("first", &["a.test", "127.0.0.1"]);
        let (second, second_key) = world.issue("second", &["b.test"]);
        store.load(&first, &first_key).unwrap();
        store.load(&second, &second_key).unwrap();
        for (name, chain) in [
            ("a.test", &first),
            ("B.TEST", &second),
            ("127.0.0.1", &first),
        ] {
            let seen = shake_hands(store.server_config(), client(), name).await;
            let hash = hash(&seen.unwrap());
            assert_eq!(hash, file_hash(chain).unwrap(), "{name}");
        }
    }

    #[test]
    fn a_pair_that_cannot_be_used_is_refused_by_name_and_replaces_nothing() {
        let world = World::new();
        let store = Store::new();
        let (chain, key) = world.issue("gateway", &["localhost"]);
        let (_, other_key) = world.issue("other", &["localhost"]);
        store.load(&chain, &key).unwrap();
        let before = found(&store, None);

        let refusal = |chain: &Path, key: &Path| store.load(chain, key).unwrap_err().to_string();
        assert!(refusal(&chain, &other_key).contains("other.key: does not belong"));
        assert!(refusal(&key, &key).contains("gateway.key"));
        assert!(refusal(&chain, &chain).contains("chmod 600"));
        assert!(refusal(&chain, Path::new("/gone")).contains("/gone"));
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(refusal(&chain, &key).contains("chmod 600"));
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();

        let pair = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.not_after = OffsetDateTime::now_utc() - time::Duration::seconds(1);
        let expired = params.self_signed(&pair).unwrap().pem();
        source::write_public(&chain, expired.as_bytes()).unwrap();
        source::write_private(&key, pair.serialize_pem().as_bytes()).unwrap();
        assert!(refusal(&chain, &key).contains("expired"));

        assert_eq!(found(&store, None), before);
    }

    #[test]
    fn what_may_be_trusted_by_its_hash_is_told_and_a_long_lived_certificate_is_not() {
        let world = World::new();
        let store = Store::new();
        assert!(store.pinnable().is_empty());
        let (chain, key) = world.issue("short", &["short.example"]);
        store.load(&chain, &key).unwrap();
        let long = KeyPair::generate().unwrap();
        let now = OffsetDateTime::now_utc();
        let mut params = CertificateParams::new(["long.example".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (now, now + time::Duration::days(90));
        let certificate = params.self_signed(&long).unwrap();
        let (long_chain, long_key) = world.files("long");
        source::write_public(&long_chain, certificate.pem().as_bytes()).unwrap();
        source::write_private(&long_key, long.serialize_pem().as_bytes()).unwrap();
        store.load(&long_chain, &long_key).unwrap();
        let told = store.pinnable();
        let hashes: Vec<_> = told.iter().map(|pinnable| pinnable.hash).collect();
        assert_eq!(hashes, [file_hash(&chain).unwrap()]);
        assert!(told[0].expires > SystemTime::now());
    }

    #[test]
    fn expiry_is_the_earliest_and_shows_in_the_metrics() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let text = metrics::with_local_recorder(&recorder, || {
            names::describe();
            let world = World::new();
            let store = Store::new();
            assert_eq!(store.expiry(), None);
            let (chain, key) = world.issue("gateway", &["a.test", "b.test"]);
            let before = SystemTime::now();
            store.load(&chain, &key).unwrap();
            let left = store.expiry().unwrap().duration_since(before).unwrap();
            let days = left.as_secs_f64() / (24.0 * 60.0 * 60.0);
            assert!((13.9..14.0).contains(&days), "{days}");
            assert!(store.load(&chain, Path::new("/gone")).is_err());
            recorder.handle().render()
        });
        for line in [
            r#"wavry_gateway_certificate_expiry_timestamp_seconds{name="a.test",source="file"}"#,
            r#"wavry_gateway_certificate_expiry_timestamp_seconds{name="b.test",source="file"}"#,
            r#"wavry_credentials_certificate_loads_total{source="file",outcome="loaded"} 1"#,
            r#"wavry_credentials_certificate_loads_total{source="file",outcome="failed"} 1"#,
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn changed_files_are_loaded_again_and_unchanged_ones_are_not() {
        let world = World::new();
        let store = Store::new();
        let (chain, key) = world.issue("gateway", &["localhost"]);
        store.load(&chain, &key).unwrap();
        let mut files = world.watched("gateway");
        let first = store.current.load_full();
        files.look(&store);
        assert!(Arc::ptr_eq(&first, &store.current.load_full()));

        world.issue("gateway", &["localhost"]);
        files.look(&store);
        assert_eq!(found(&store, None), file_hash(&chain).unwrap());
        assert_ne!(found(&store, None), hash_of(&first.entries[0].key));
        assert_eq!(store.current.load().entries.len(), 1);
    }

    #[test]
    fn a_change_that_cannot_be_used_keeps_the_last_good_pair_until_it_is_put_right() {
        let world = World::new();
        let store = Store::new();
        let (chain, key) = world.issue("gateway", &["localhost"]);
        store.load(&chain, &key).unwrap();
        let good = found(&store, None);
        let mut files = world.watched("gateway");

        let pem = fs::read(&chain).unwrap();
        source::write_public(&chain, b"half a").unwrap();
        files.look(&store);
        assert_eq!(found(&store, None), good);
        fs::remove_file(&chain).unwrap();
        files.look(&store);
        assert_eq!(found(&store, None), good);

        // Key first: for a moment the pair does not fit.
        source::write_public(&chain, &pem).unwrap();
        let (new_chain, new_key) = world.issue("new", &["localhost"]);
        fs::rename(&new_key, &key).unwrap();
        files.look(&store);
        assert_eq!(found(&store, None), good);
        fs::rename(&new_chain, &chain).unwrap();
        files.look(&store);
        assert_eq!(found(&store, None), file_hash(&chain).unwrap());
        assert_ne!(found(&store, None), good);

        // Permissions alone are a change, too.
        let last = found(&store, None);
        world.issue("gateway", &["localhost"]);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        files.look(&store);
        assert_eq!(found(&store, None), last);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        files.look(&store);
        assert_eq!(found(&store, None), file_hash(&chain).unwrap());
    }

    #[tokio::test]
    async fn a_watch_loads_what_changes_and_ends_with_its_store() {
        let world = World::new();
        let store = Store::new();
        let (chain, key) = world.issue("gateway", &["localhost"]);
        store.load(&chain, &key).unwrap();
        let config = store.server_config();
        let watch = store.watch_every(Duration::from_millis(1), &chain, &key);
        world.issue("gateway", &["localhost"]);
        let hash = file_hash(&chain).unwrap();
        let loaded = async {
            while found(&store, None) != hash {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let limit = Duration::from_secs(10);
        tokio::time::timeout(limit, loaded).await.unwrap();
        drop(store);
        assert!(!watch.is_finished());
        drop(config);
        tokio::time::timeout(limit, watch).await.unwrap().unwrap();
    }
}
