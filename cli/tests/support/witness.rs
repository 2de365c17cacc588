//! A client that keeps the certificates it is shown.

use std::{
    collections::HashSet,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
};

use rustls::{
    DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
};
use wavry_credentials::cert::{Trust, client_config};
use wavry_transport::{
    session::Request,
    webtransport::{Client, Limits, Session},
};

/// Looks at certificates as webpki does, and keeps those that it saw, in their order.
#[derive(Debug)]
pub(crate) struct Witness {
    inner: Arc<WebPkiServerVerifier>,
    seen: Mutex<Vec<CertificateDer<'static>>>,
}

impl Witness {
    pub(crate) fn new(root: &Path) -> Self {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(root).unwrap())
            .unwrap();
        let inner = WebPkiServerVerifier::builder(Arc::new(roots)).build();
        Self {
            inner: inner.unwrap(),
            seen: Mutex::default(),
        }
    }

    /// How many there were, and whether one came back that had been replaced.
    pub(crate) fn seen(&self) -> (usize, bool) {
        let seen = self.seen.lock().unwrap();
        let distinct: HashSet<_> = seen.iter().collect();
        (distinct.len(), distinct.len() < seen.len())
    }

    /// The one that was seen last.
    pub(crate) fn last(&self) -> Option<CertificateDer<'static>> {
        self.seen.lock().unwrap().last().cloned()
    }
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let mut seen = self.seen.lock().unwrap();
        if seen.last() != Some(leaf) {
            seen.push(leaf.clone().into_owned());
        }
        drop(seen);
        self.inner.verify_server_cert(leaf, others, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// A client that makes full handshakes only.
pub(crate) fn client(root: &Path, witness: &Arc<Witness>) -> Client {
    let mut tls = client_config(&Trust::Authorities(root.into())).unwrap();
    tls.resumption = Resumption::disabled();
    tls.dangerous().set_certificate_verifier(witness.clone());
    Client::new(([127, 0, 0, 1], 0).into(), tls, Limits::default()).unwrap()
}

pub(crate) async fn open(client: &Client, gateway: SocketAddr) -> Session {
    let request = Request {
        authority: gateway.to_string(),
        path: "/echo".to_owned(),
        origin: None,
        headers: Vec::new(),
        subprotocols: Vec::new(),
    };
    let opened = client.connect(gateway, "127.0.0.1", request).await;
    match opened {
        Ok((session, _)) => session,
        Err(error) => panic!("a handshake failed: {error}"),
    }
}
