//! Certificates by name, in a snapshot that handshakes read.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use metrics::{counter, gauge};
use rustls::{
    crypto::aws_lc_rs,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use rustls_pki_types::CertificateDer;
use tokio::{sync::watch, task::JoinHandle};

use super::{
    Authorities, Error, Pair, hash,
    look_ups::{LookUps, OUTCOMES, Outcome},
    names::Names,
    read_certificates,
};
use crate::{
    key::tls_from_pem,
    metrics as names,
    source::{
        self, Version, version_of,
        watch::{Follower, Seen, Watched},
    },
};

/// How often watched files are looked at.
pub const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// How far clocks may differ that say from when a certificate holds.
const SKEW: Duration = Duration::from_secs(5 * 60);

const FILE: &str = "file";
pub(super) const KEYVAULT: &str = "keyvault";
const ACME: &str = "acme";
const OWN: &str = "self";
const AUTHORITY: &str = "authority";

/// Certificates by name. A handshake reads an immutable snapshot: no lock, no file, no network.
/// Clones share their certificates.
#[derive(Clone, Default)]
pub struct Store(Arc<Shared>);

/// What is told of a name.
type Missed = dyn Fn(&str) + Send + Sync;

#[derive(Default)]
struct Shared {
    /// What handshakes read. Whoever replaces it holds `loaded`.
    current: ArcSwap<Snapshot>,
    look_ups: LookUps,
    /// Told of names that handshakes asked for and that are not there.
    missed: OnceLock<Box<Missed>>,
    loaded: Mutex<Loaded>,
    /// Whether anything is loaded.
    filled: watch::Sender<bool>,
}

impl Store {
    /// An empty store: every handshake fails until certificates are loaded.
    pub fn new() -> Self {
        Self::default()
    }

    /// Has `missed` told of each name that a handshake asks for and that is not there. It reads memory only. The
    /// first one stays.
    pub(crate) fn tell_of_missed(&self, missed: impl Fn(&str) + Send + Sync + 'static) {
        let _ = self.0.missed.set(Box::new(missed));
    }

    /// Loads a PEM chain and its PEM key for the names in the certificate; the first chain loaded is
    /// also the default, for clients that name none of them. What was loaded from the same chain
    /// file before is replaced, once key and certificate are checked against each other.
    pub fn load(&self, chain: &Path, key: &Path) -> Result<(), Error> {
        self.take(FILE, Entry::read(chain, key))
    }

    /// Puts a pair in use that an authority issued, in the place of what was installed from the same
    /// `origin` before, unless it has expired.
    pub fn install(&self, origin: &Path, pair: Pair) -> Result<(), Error> {
        self.take(ACME, Entry::new(origin, None, pair))
    }

    /// The same with many, in one step: all of them, or none if one has expired.
    pub fn install_all(&self, pairs: Vec<(PathBuf, Pair)>) -> Result<(), Error> {
        let entries = pairs
            .into_iter()
            .map(|(origin, pair)| Entry::new(&origin, None, pair));
        match entries.collect::<Result<Vec<_>, _>>() {
            Ok(entries) => {
                entries.iter().for_each(|_| count(ACME, "loaded"));
                self.put(ACME, entries);
                Ok(())
            }
            Err(error) => self.take(ACME, Err(error)),
        }
    }

    /// Puts a pair in use that this process signed itself, in the place of the one before, and tells of
    /// the one that comes after it.
    pub(super) fn install_own(&self, origin: &Path, pair: Pair, next: &Pair) -> Result<(), Error> {
        self.take(OWN, Entry::new(origin, None, pair))?;
        let next = Pinnable::of(next.leaf(), next.not_after());
        self.0.loaded().announced.insert(origin.to_owned(), next);
        Ok(())
    }

    /// Puts a pair in use that the cluster's own authority issued, in the place of the one before from the same
    /// `origin`.
    pub fn install_member(&self, origin: &Path, pair: Pair) -> Result<(), Error> {
        self.take(AUTHORITY, Entry::new(origin, None, pair))
    }

    fn take(&self, source: &'static str, entry: Result<Entry, Error>) -> Result<(), Error> {
        count(source, if entry.is_ok() { "loaded" } else { "failed" });
        self.put(source, [entry?]);
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
            .with_cert_resolver(Arc::new(Resolver(self.0.clone())))
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
            .with_cert_resolver(Arc::new(Resolver(self.0.clone()))))
    }

    /// TLS for a server that asks its clients for the certificates of nodes, and serves those that show none too.
    /// What one that is shown is worth is another question: [`Authorities::member`]. No ALPN is set.
    pub fn asking_config(&self, authorities: &Authorities) -> rustls::ServerConfig {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("aws-lc-rs has the cipher suites of TLS 1.2 and 1.3")
            .with_client_cert_verifier(authorities.asking())
            .with_cert_resolver(Arc::new(Resolver(self.0.clone())));
        // Who resumes a session shows what its first handshake showed.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config
    }

    /// Tells the recorder how often handshakes have found what they asked for.
    pub fn count_look_ups(&self) {
        for (total, outcome) in self.0.look_ups.totals().into_iter().zip(OUTCOMES) {
            counter!(names::LOOK_UPS, "outcome" => outcome).absolute(total);
        }
    }

    /// Waits until there is a certificate.
    pub async fn filled(&self) {
        let mut filled = self.0.filled.subscribe();
        // The sender is in `self`.
        let _ = filled.wait_for(|filled| *filled).await;
    }

    /// The earliest expiry of what is loaded.
    pub fn expiry(&self) -> Option<SystemTime> {
        let loaded = self.0.loaded();
        loaded.entries.iter().map(|entry| entry.expires).min()
    }

    /// The certificates that clients may trust by their hash, as pages do with `serverCertificateHashes`:
    /// those in use, and after each the one that is to take its place.
    pub fn pinnable(&self) -> Vec<Pinnable> {
        let loaded = self.0.loaded();
        let pinnable = loaded.entries.iter().filter(|entry| entry.may_be_pinned);
        let pinnable = pinnable.flat_map(|entry| {
            let current = Pinnable::of(&entry.key.cert[0], entry.expires);
            let next = loaded.announced.get(&entry.chain).copied();
            [Some(current), next].into_iter().flatten()
        });
        pinnable.collect()
    }

    fn watch_every(&self, interval: Duration, chain: &Path, key: &Path) -> JoinHandle<()> {
        let follower = self.follower(chain, key);
        let shared = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            let publish = |entry| {
                if let Some(shared) = shared.upgrade() {
                    Self(shared).put(FILE, [entry]);
                }
            };
            let ended = async {
                while shared.strong_count() > 0 {
                    tokio::time::sleep(interval).await;
                }
            };
            tokio::select! {
                () = follower.follow(interval, publish) => {}
                () = ended => {}
            }
        })
    }

    /// Who follows a pair of files from what is in use of it.
    fn follower(&self, chain: &Path, key: &Path) -> Follower<Files> {
        let known = self.0.loaded().version_of(chain);
        let files = Files {
            chain: chain.to_owned(),
            key: key.to_owned(),
        };
        Follower::from(files, known)
    }

    /// Puts entries in the place of what their chain files held before, in one step.
    pub(super) fn put(&self, source: &'static str, entries: impl IntoIterator<Item = Entry>) {
        let mut loaded = self.0.loaded();
        let mut changed = HashSet::new();
        for entry in entries {
            let entry = Arc::new(entry);
            let old = loaded.entry_of(&entry.chain);
            changed.extend(loaded.put(entry.clone()));
            // An alarm must not tell of what is in use no more.
            for label in old.iter().flat_map(|old| old.labels()) {
                if !entry.labels().any(|other| other == label) {
                    tell(source, label, f64::NAN, f64::NAN);
                }
            }
            for label in entry.labels() {
                let holds = [entry.holds_from, entry.expires].map(unix_seconds);
                tell(source, label, holds[0], holds[1]);
            }
        }
        let (mut exact, mut wildcard) = (Vec::new(), Vec::new());
        for name in &changed {
            let key = loaded.key_of(name);
            match name.strip_prefix("*.") {
                Some(parent) => wildcard.push((parent, key)),
                None => exact.push((&**name, key)),
            }
        }
        let current = self.0.current.load();
        self.0.current.store(Arc::new(Snapshot {
            exact: current.exact.with(&exact),
            wildcard: current.wildcard.with(&wildcard),
            default: loaded.entries.first().map(|entry| entry.key.clone()),
        }));
        counter!(names::CERTIFICATE_SWAPS).increment(1);
        self.0.filled.send_replace(true);
    }
}

impl Shared {
    fn loaded(&self) -> MutexGuard<'_, Loaded> {
        // Who panicked left no entry half put.
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let loaded = self.0.loaded();
        let names = loaded.entries.iter().flat_map(|entry| &entry.names);
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

impl Pinnable {
    fn of(certificate: &CertificateDer<'_>, expires: SystemTime) -> Self {
        Self {
            hash: hash(certificate),
            expires,
        }
    }
}

/// One loaded chain with its key.
pub(super) struct Entry {
    /// The chain's file, or where else it came from.
    chain: PathBuf,
    /// Of its files; `None` if one was away for a moment, or there are none.
    version: Option<Version>,
    names: Vec<Arc<str>>,
    /// Of no use to look-ups: who dials an address asks for no name.
    addresses: Vec<Arc<str>>,
    issuer: String,
    holds_from: SystemTime,
    expires: SystemTime,
    may_be_pinned: bool,
    key: Arc<CertifiedKey>,
}

impl Entry {
    fn read(chain: &Path, key: &Path) -> Result<Self, Error> {
        // Before the content, so that a change in between is seen as one.
        let version = version_of_pair(chain, key);
        Self::holding(chain, version, Pair::read(chain, key)?)
    }

    /// Of a pair that somebody else made, which must hold by now.
    pub(super) fn holding(
        chain: &Path,
        version: Option<Version>,
        pair: Pair,
    ) -> Result<Self, Error> {
        if pair.not_before() > SystemTime::now() + SKEW {
            let file = chain.display().to_string();
            return Err(Error::NotYet { file });
        }
        Self::new(chain, version, pair)
    }

    fn new(chain: &Path, version: Option<Version>, pair: Pair) -> Result<Self, Error> {
        let Pair { certified, facts } = pair;
        if facts.not_after <= SystemTime::now() {
            let file = chain.display().to_string();
            return Err(Error::Expired { file });
        }
        Ok(Self {
            chain: chain.to_owned(),
            version,
            may_be_pinned: facts.may_be_pinned(),
            names: facts.dns_names.into_iter().map(Arc::from).collect(),
            addresses: facts
                .addresses
                .iter()
                .map(|address| address.to_string().into())
                .collect(),
            issuer: facts.issuer,
            holds_from: facts.not_before,
            expires: facts.not_after,
            key: Arc::new(certified),
        })
    }

    /// What metrics tell it by: a name or an address, and its issuer.
    fn labels(&self) -> impl Iterator<Item = (&Arc<str>, &str)> {
        let names = self.names.iter().chain(&self.addresses);
        names.map(|name| (name, self.issuer.as_str()))
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

/// What is loaded.
#[derive(Default)]
struct Loaded {
    /// In the order in which they were first loaded.
    entries: Vec<Arc<Entry>>,
    /// By chain file.
    places: HashMap<PathBuf, usize>,
    /// By chain file, what is to take the place of its entry.
    announced: HashMap<PathBuf, Pinnable>,
    /// For each name the places of the entries that have it, ascending.
    holders: HashMap<Arc<str>, Vec<usize>>,
}

impl Loaded {
    /// Puts an entry in the place of what its chain file held, or at the end. Gives the names of both.
    fn put(&mut self, entry: Arc<Entry>) -> Vec<Arc<str>> {
        let mut changed = Vec::new();
        let place = match self.places.get(&entry.chain) {
            Some(place) => *place,
            None => self.entries.len(),
        };
        if let Some(old) = self.entries.get(place) {
            for name in &old.names {
                if let Some(holders) = self.holders.get_mut(name) {
                    holders.retain(|holder| *holder != place);
                }
            }
            changed.extend(old.names.iter().cloned());
        }
        for name in &entry.names {
            let holders = self.holders.entry(name.clone()).or_default();
            if let Err(at) = holders.binary_search(&place) {
                holders.insert(at, place);
            }
        }
        changed.extend(entry.names.iter().cloned());
        match self.entries.get_mut(place) {
            Some(old) => *old = entry,
            None => {
                self.places.insert(entry.chain.clone(), place);
                self.entries.push(entry);
            }
        }
        changed
    }

    /// Of those that have the name, the entry that was first loaded last serves it.
    fn key_of(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        let place = self.holders.get(name)?.last()?;
        Some(&self.entries[*place].key)
    }

    fn entry_of(&self, chain: &Path) -> Option<Arc<Entry>> {
        let place = self.places.get(chain)?;
        Some(self.entries[*place].clone())
    }

    fn version_of(&self, chain: &Path) -> Option<Version> {
        self.entry_of(chain)?.version.clone()
    }
}

/// What handshakes read. Never changed, only replaced.
#[derive(Default)]
struct Snapshot {
    exact: Names,
    /// By what is behind `*.`.
    wildcard: Names,
    default: Option<Arc<CertifiedKey>>,
}

impl Snapshot {
    /// The certificate for a lower-case name: its own, its wildcard's, the default.
    /// `missed` is told of a name that is not there.
    fn find(
        &self,
        name: Option<&str>,
        missed: impl FnOnce(&str),
    ) -> (Outcome, Option<&Arc<CertifiedKey>>) {
        if let Some(name) = name {
            if let Some(key) = self.exact.get(name) {
                return (Outcome::Hit, Some(key));
            }
            let parent = name.split_once('.').map(|(_, parent)| parent);
            if let Some(key) = parent.and_then(|parent| self.wildcard.get(parent)) {
                return (Outcome::Wildcard, Some(key));
            }
            missed(name);
        }
        match &self.default {
            Some(key) => (Outcome::Default, Some(key)),
            None => (Outcome::Miss, None),
        }
    }
}

struct Resolver(Arc<Shared>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // rustls hands the name on in lower case.
        let missed = |name: &str| {
            if let Some(missed) = self.0.missed.get() {
                missed(name);
            }
        };
        let current = self.0.current.load();
        let (outcome, key) = current.find(hello.server_name(), missed);
        self.0.look_ups.count(outcome);
        key.cloned()
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

/// A chain and its key, which change together.
struct Files {
    chain: PathBuf,
    key: PathBuf,
}

impl Watched for Files {
    type Meaning = Entry;
    type Error = Error;

    fn name(&self) -> String {
        format!("certificate {}", self.chain.display())
    }

    fn count(&self, outcome: &'static str) {
        count(FILE, outcome);
    }

    fn may_pass(&self, error: &Error) -> bool {
        matches!(error, Error::NotYet { .. })
    }

    async fn read(&self, known: Option<&Version>) -> Result<Option<Seen<Self>>, Error> {
        let (chain, key, known) = (self.chain.clone(), self.key.clone(), known.cloned());
        let read = move || {
            // A file that is away for a moment is being replaced.
            let version = version_of_pair(&chain, &key)?;
            (known.as_ref() != Some(&version)).then(|| Seen {
                version,
                meaning: Entry::read(&chain, &key),
            })
        };
        // Not read while the runtime shuts down.
        Ok(tokio::task::spawn_blocking(read).await.unwrap_or_default())
    }
}

/// What tells one state of a pair of files from another; `None` while either is away.
fn version_of_pair(chain: &Path, key: &Path) -> Option<Version> {
    Some(version_of(chain)?.and(&version_of(key)?))
}

pub(super) fn count(source: &'static str, outcome: &'static str) {
    counter!(names::CERTIFICATE_LOADS, "source" => source, "outcome" => outcome).increment(1);
}

fn tell(source: &'static str, (name, issuer): (&Arc<str>, &str), from: f64, until: f64) {
    for (metric, value) in [
        (names::CERTIFICATE_NOT_BEFORE, from),
        (names::CERTIFICATE_EXPIRY, until),
    ] {
        let labels = [
            ("name", name.to_string()),
            ("source", source.to_owned()),
            ("issuer", issuer.to_owned()),
        ];
        gauge!(metric, &labels).set(value);
    }
}

fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

#[cfg(test)]
mod tests;
