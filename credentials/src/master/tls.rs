//! TLS to the masters as it is now: whom to trust, and which certificate to show.

use std::{
    fmt,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::{
    RootCertStore, SignatureScheme,
    client::{ResolvesClientCert, Resumption},
    sign::CertifiedKey,
};
use rustls_pki_types::CertificateDer;
use tokio_rustls::TlsConnector;
use wavry_proto::control::Authorities;

use crate::cert::{self, Pair};

/// TLS to the masters.
pub(super) struct Tls {
    /// Whom the file of authorities names.
    file: Vec<CertificateDer<'static>>,
    /// What the roster says of authorities.
    said: Mutex<Authorities>,
    shown: Arc<Shown>,
    connector: ArcSwap<TlsConnector>,
    /// Grows with each change, so that connections from before it are told from others.
    generation: AtomicU64,
}

impl Tls {
    pub(super) fn new(ca_file: &Path) -> Result<Self, cert::Error> {
        let file = cert::authorities_in(ca_file)?;
        let shown = Arc::default();
        let connector = ArcSwap::from_pointee(connector(&file, &Authorities::default(), &shown));
        Ok(Self {
            file,
            said: Mutex::default(),
            shown,
            connector,
            generation: AtomicU64::new(0),
        })
    }

    pub(super) fn connector(&self) -> Arc<TlsConnector> {
        self.connector.load_full()
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Trusts those that the roster trusts beside those in the file, and none that it says are revoked.
    pub(super) fn trust(&self, authorities: &Authorities) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if *said == *authorities {
            return;
        }
        said.clone_from(authorities);
        let connector = connector(&self.file, authorities, &self.shown);
        self.connector.store(Arc::new(connector));
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Shows this certificate to masters that ask for one, as long as it holds.
    pub(super) fn show(&self, pair: Pair) {
        let until = pair.not_after();
        let key = Arc::new(pair.into_certified());
        self.shown.0.store(Some(Arc::new(Held { key, until })));
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Shows none.
    pub(super) fn hide(&self) {
        if self.shown.0.swap(None).is_some() {
            self.generation.fetch_add(1, Ordering::Release);
        }
    }
}

fn connector(
    file: &[CertificateDer<'static>],
    said: &Authorities,
    shown: &Arc<Shown>,
) -> TlsConnector {
    let trusted = said
        .trusted
        .iter()
        .filter_map(|text| STANDARD.decode(text).ok());
    let all = file.iter().cloned().chain(trusted.map(Into::into));
    let is_revoked =
        |one: &CertificateDer<'_>| said.revoked.contains(&hex::encode(cert::hash(one)));
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(all.filter(|one| !is_revoked(one)));
    let mut tls = cert::client_config_for(roots, shown.clone());
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A session that is resumed shows what the first one showed, and verifies nobody.
    tls.resumption = Resumption::disabled();
    TlsConnector::from(Arc::new(tls))
}

/// The certificate that is shown, if there is one.
#[derive(Default)]
struct Shown(ArcSwapOption<Held>);

struct Held {
    key: Arc<CertifiedKey>,
    until: SystemTime,
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let held = self.0.load();
        let held = held
            .as_ref()
            .filter(|held| SystemTime::now() < held.until)?;
        Some(held.key.clone())
    }

    fn has_certs(&self) -> bool {
        self.0.load().is_some()
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shown").finish_non_exhaustive()
    }
}
