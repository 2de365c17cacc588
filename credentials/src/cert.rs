//! Certificates: the store that a handshake reads from memory, and whom a client trusts.

pub mod authority;
mod development;
#[cfg(test)]
mod handshake;
mod import;
mod keyvault;
mod look_ups;
mod member;
mod names;
mod pair;
pub(crate) mod pairs;
mod self_signed;
mod store;
mod trust;
mod turns;

use std::{
    net::IpAddr,
    path::Path,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use sha2::{Digest, Sha256};
use x509_parser::{extensions::GeneralName, prelude::X509Certificate};

pub use development::DevelopmentAuthority;
pub use import::import;
pub use keyvault::InKeyVault;
pub use member::{Authorities, Member, NotVouchedFor, renewal};
pub use pair::Pair;
pub use self_signed::{Rotation, SelfSigned};
pub use store::{POLL_INTERVAL, Pinnable, Store};
pub use trust::{Trust, client_config, client_config_with};
pub(crate) use trust::{authorities_in, client_config_for};

use crate::source::{self, Finding};

/// Longest validity of a certificate that is trusted by its hash (W3C WebTransport, "custom
/// certificate requirements": two weeks).
const MAX_PINNED_VALIDITY: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// Why certificates cannot be used. No variant holds key material.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that must not or cannot be used.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// A file's content is not what it should be.
    #[error("{file}: {problem}")]
    Malformed {
        /// The file or what it stands for.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// Its time is over.
    #[error("{file}: has expired")]
    Expired {
        /// The file or what it stands for.
        file: String,
    },
    /// Its time has not come.
    #[error("{file}: does not hold yet")]
    NotYet {
        /// The file or what it stands for.
        file: String,
    },
}

impl Error {
    /// Whether it is about a pair that has nothing wrong with it but its time.
    pub fn is_of_time(&self) -> bool {
        matches!(self, Self::Expired { .. } | Self::NotYet { .. })
    }

    fn malformed(file: &Path, problem: impl Into<String>) -> Self {
        Self::Malformed {
            file: file.display().to_string(),
            problem: problem.into(),
        }
    }
}

/// SHA-256 of the first certificate of a PEM file.
pub fn file_hash(chain: &Path) -> Result<[u8; 32], Error> {
    Ok(hash(&read_certificates(chain)?[0]))
}

/// Looks at a PEM chain and its key as [`Store::load`] would: `key`, or secret `tls_key`.
pub fn check(chain: &Path, key: Option<&Path>) -> Finding {
    let key = key.map_or_else(|| source::locate("tls_key"), |key| Ok(key.to_owned()));
    let loaded = key.map_err(Error::from).and_then(|key| {
        Store::new().load(chain, &key)?;
        Ok(format!("{} with {}", chain.display(), key.display()))
    });
    Finding::new("certificate and secret tls_key", loaded)
}

/// What a certificate says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Host names and addresses.
    pub names: Vec<String>,
    /// From when it holds.
    pub not_before: SystemTime,
    /// Until when.
    pub not_after: SystemTime,
    /// SHA-256 of it.
    pub hash: [u8; 32],
    /// Whether clients may trust it by that hash.
    pub may_be_pinned: bool,
}

/// What the certificates of a PEM file say.
pub fn summaries(file: &Path) -> Result<Vec<Summary>, Error> {
    let read = |certificate: &CertificateDer<'_>| {
        let facts = Facts::read(certificate)
            .ok_or_else(|| Error::malformed(file, "is not an X.509 certificate"))?;
        let addresses = facts.addresses.iter().map(ToString::to_string);
        Ok(Summary {
            may_be_pinned: facts.may_be_pinned(),
            names: facts.dns_names.iter().cloned().chain(addresses).collect(),
            not_before: facts.not_before,
            not_after: facts.not_after,
            hash: hash(certificate),
        })
    };
    read_certificates(file)?.iter().map(read).collect()
}

/// When a certificate (DER) expires; `None` if it is not one.
pub fn not_after(der: &[u8]) -> Option<SystemTime> {
    Facts::read(&CertificateDer::from(der)).map(|facts| facts.not_after)
}

/// A certificate (DER) as PEM (RFC 7468).
pub fn to_pem(der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let lines = body.as_bytes().chunks(64).map(String::from_utf8_lossy);
    let lines: Vec<_> = lines.collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
}

/// Installs the process-wide TLS provider (aws-lc-rs). Called once, first thing in `main`.
pub fn install_crypto_provider() {
    // It only fails when one is installed already, which leaves nothing to do.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// SHA-256 of a certificate.
pub(crate) fn hash(certificate: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(certificate).into()
}

/// The certificates of a PEM file: one at least.
fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = source::read_public(path)?;
    let certificates = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| Error::malformed(path, "is not PEM"))?;
    if certificates.is_empty() {
        return Err(Error::malformed(path, "has no certificate in it"));
    }
    Ok(certificates)
}

/// What a certificate says of itself.
#[derive(Clone)]
struct Facts {
    /// Its DNS names, lower case; `*.` in front of one stands for any one label.
    dns_names: Vec<String>,
    addresses: Vec<IpAddr>,
    not_before: SystemTime,
    not_after: SystemTime,
    /// The organisation that issued it, else the name by which it is known; as it says itself.
    issuer: String,
    is_p256: bool,
}

impl Facts {
    /// `None` if it is not a certificate.
    fn read(certificate: &CertificateDer<'_>) -> Option<Self> {
        use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY};

        let (rest, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
        if !rest.is_empty() {
            return None;
        }
        let key = &certificate.public_key().algorithm;
        let (dns_names, addresses) = subjects(&certificate);
        let curve = key.parameters.as_ref().and_then(|p| p.as_oid().ok());
        Some(Self {
            dns_names,
            addresses,
            not_before: at(certificate.validity().not_before.timestamp())?,
            not_after: at(certificate.validity().not_after.timestamp())?,
            issuer: issuer(&certificate),
            is_p256: key.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == Some(OID_EC_P256),
        })
    }

    /// Whether a client that has its hash may trust it while it is valid (W3C WebTransport, "custom
    /// certificate requirements").
    fn may_be_pinned(&self) -> bool {
        let validity = self.not_after.duration_since(self.not_before);
        self.is_p256 && validity.is_ok_and(|validity| validity <= MAX_PINNED_VALIDITY)
    }
}

/// Longest name of an issuer that is told on, in characters.
const MAX_ISSUER: usize = 64;

fn issuer(certificate: &X509Certificate<'_>) -> String {
    let issuer = certificate.issuer();
    let mut names = issuer.iter_organization().chain(issuer.iter_common_name());
    let name = names
        .find_map(|name| name.as_str().ok())
        .unwrap_or_default();
    name.chars()
        .filter(|c| !c.is_control())
        .take(MAX_ISSUER)
        .collect()
}

fn subjects(certificate: &X509Certificate<'_>) -> (Vec<String>, Vec<IpAddr>) {
    let (mut dns_names, mut addresses) = (Vec::new(), Vec::new());
    let names = certificate.subject_alternative_name().ok().flatten();
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::DNSName(name) => dns_names.push(name.to_ascii_lowercase()),
            GeneralName::IPAddress(bytes) => addresses.extend(address(bytes)),
            _ => {}
        }
    }
    (dns_names, addresses)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

fn at(seconds: i64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_crypto_provider_may_be_installed_twice() {
        install_crypto_provider();
        install_crypto_provider();
        assert!(rustls::crypto::CryptoProvider::get_default().is_some());
    }

    #[test]
    fn a_file_without_a_certificate_has_no_hash() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.crt");
        assert!(matches!(file_hash(&path), Err(Error::Source(_))));
        source::write_public(&path, b"nothing here").unwrap();
        assert!(matches!(file_hash(&path), Err(Error::Malformed { .. })));
    }

    #[test]
    fn a_files_hash_is_that_of_its_first_certificate() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.crt");
        let one = rcgen::generate_simple_self_signed(["one".to_owned()]).unwrap();
        let two = rcgen::generate_simple_self_signed(["two".to_owned()]).unwrap();
        let chain = one.cert.pem() + &two.cert.pem();
        source::write_public(&path, chain.as_bytes()).unwrap();
        assert_eq!(file_hash(&path).unwrap(), hash(one.cert.der()));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_no_certificate(bytes: Vec<u8>) {
            prop_assert!(Facts::read(&CertificateDer::from(bytes)).is_none());
        }
    }
}
