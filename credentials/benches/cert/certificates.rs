//! Certificates for as many names as are wanted, one for each.

use std::{path::PathBuf, sync::Arc};

use rcgen::{CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{
    crypto::aws_lc_rs::sign::any_ecdsa_type,
    sign::{CertifiedKey, SigningKey},
};
use rustls_pki_types::PrivateKeyDer;
use wavry_credentials::{cert::Pair, secret::Secret};

pub(crate) struct Certificates {
    authority: CertifiedIssuer<'static, KeyPair>,
    /// They share it: nothing here depends on whose it is.
    key: KeyPair,
    signer: Arc<dyn SigningKey>,
    all: Vec<Arc<CertifiedKey>>,
}

impl Certificates {
    pub(crate) fn new(size: usize) -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "bench");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let der = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut made = Self {
            authority,
            key,
            signer: any_ecdsa_type(&der).unwrap(),
            all: Vec::new(),
        };
        made.all = (0..size).map(|n| Arc::new(made.issue(n))).collect();
        made
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// PEM of who issued them.
    pub(crate) fn authority(&self) -> String {
        self.authority.pem()
    }

    /// A name; beyond the last comes the first again.
    pub(crate) fn name(&self, n: usize) -> String {
        name(n % self.all.len())
    }

    pub(crate) fn key(&self, n: usize) -> Arc<CertifiedKey> {
        self.all[n % self.all.len()].clone()
    }

    /// A certificate of the same name, newly read, and where it would be from.
    pub(crate) fn pair(&self, n: usize) -> (PathBuf, Pair) {
        let origin = PathBuf::from(self.name(n));
        let chain = pem::encode(&self.key(n).cert[0]);
        let key = Secret::new(self.key.serialize_pem().into_bytes());
        let pair = Pair::from_pem(&origin, &chain, &key).unwrap();
        (origin, pair)
    }

    /// As many new ones, with their names.
    pub(crate) fn new_keys(&self, count: usize) -> Vec<(String, Arc<CertifiedKey>)> {
        let new = |n| (self.name(n), Arc::new(CertifiedKey::clone(&self.key(n))));
        (0..count).map(|n| new(n * 7919)).collect()
    }

    fn issue(&self, n: usize) -> CertifiedKey {
        let mut params = CertificateParams::new([name(n)]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let certificate = params.signed_by(&self.key, &self.authority).unwrap();
        CertifiedKey::new(vec![certificate.der().clone()], self.signer.clone())
    }
}

fn name(n: usize) -> String {
    format!("service-{n}.tenant-{}.gateway.example", n % 97)
}

mod pem {
    use base64::{Engine as _, engine::general_purpose::STANDARD};

    pub(super) fn encode(der: &[u8]) -> String {
        let lines = STANDARD.encode(der);
        let lines: Vec<_> = lines
            .as_bytes()
            .chunks(64)
            .map(|line| std::str::from_utf8(line).unwrap())
            .collect();
        let lines = lines.join("\n");
        format!("-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n")
    }
}
