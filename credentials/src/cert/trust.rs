//! Whom a client trusts.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    CertificateError, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{
        WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{Error, Facts, hash, read_certificates};

/// Longest validity of a certificate that is trusted by its hash (W3C WebTransport, "custom
/// certificate requirements": two weeks).
const MAX_VALIDITY: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// Whom a client trusts.
#[derive(Debug, Clone)]
pub enum Trust {
    /// The authorities in this PEM file.
    Authorities(PathBuf),
    /// A certificate with one of these SHA-256 hashes, under the rules of W3C WebTransport's
    /// `serverCertificateHashes`: P-256, at most 14 days, valid now. The name is not checked.
    Hashes(Vec<[u8; 32]>),
    /// The authorities of the operating system.
    System,
}

/// TLS for a client. No ALPN is set.
pub fn client_config(trust: &Trust) -> Result<rustls::ClientConfig, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("aws-lc-rs has the cipher suites of TLS 1.2 and 1.3");
    let builder = match trust {
        Trust::Authorities(file) => builder.with_root_certificates(authorities(file)?),
        Trust::System => builder.with_root_certificates(system_authorities()?),
        Trust::Hashes(hashes) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Pinned {
                hashes: hashes.clone(),
                algorithms,
            })),
    };
    Ok(builder.with_no_client_auth())
}

fn authorities(file: &Path) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(file)? {
        roots
            .add(certificate)
            .map_err(|_| Error::malformed(file, "holds what is not an X.509 certificate"))?;
    }
    Ok(roots)
}

fn system_authorities() -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    // Some stores hold certificates that no TLS library reads; the others are good all the same.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(Error::Malformed {
            file: "the operating system's certificate store".into(),
            problem: "has no authority (package ca-certificates)".into(),
        });
    }
    Ok(roots)
}

/// Trusts certificates by their hash.
#[derive(Debug)]
struct Pinned {
    hashes: Vec<[u8; 32]>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        if !self.hashes.contains(&hash(end_entity)) {
            return Err(CertificateError::UnknownIssuer.into());
        }
        let facts = Facts::read(end_entity).ok_or(CertificateError::BadEncoding)?;
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs());
        if now < facts.not_before {
            return Err(CertificateError::NotValidYet.into());
        }
        if now > facts.not_after {
            return Err(CertificateError::Expired.into());
        }
        let validity = facts.not_after.duration_since(facts.not_before);
        if !facts.is_p256 || !validity.is_ok_and(|validity| validity <= MAX_VALIDITY) {
            return Err(CertificateError::InvalidPurpose.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
