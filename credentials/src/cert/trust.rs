//! Whom a client trusts.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, Error as TlsError,
    RootCertStore, SignatureScheme,
    client::{
        ResolvesClientCert, WantsClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{
        WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
    },
    sign::SingleCertAndKey,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{Error, Facts, hash, read_certificates, store::certified_key};

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
pub fn client_config(trust: &Trust) -> Result<ClientConfig, Error> {
    Ok(verifying(trust)?.with_no_client_auth())
}

/// TLS for a client that shows the chain in a PEM file to servers that ask for one. No ALPN is set.
pub fn client_config_with(trust: &Trust, chain: &Path, key: &Path) -> Result<ClientConfig, Error> {
    let shown = SingleCertAndKey::from(certified_key(chain, key)?);
    Ok(verifying(trust)?.with_client_cert_resolver(Arc::new(shown)))
}

/// TLS for a client that trusts these and shows what `shown` says. No ALPN is set.
pub(crate) fn client_config_for(
    roots: RootCertStore,
    shown: Arc<dyn ResolvesClientCert>,
) -> ClientConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("aws-lc-rs has the cipher suites of TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_client_cert_resolver(shown)
}

/// The authorities in a PEM file: one at least, each an X.509 certificate.
pub(crate) fn authorities_in(file: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    authorities(file)?;
    read_certificates(file)
}

fn verifying(trust: &Trust) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("aws-lc-rs has the cipher suites of TLS 1.2 and 1.3");
    Ok(match trust {
        Trust::Authorities(file) => builder.with_root_certificates(authorities(file)?),
        Trust::System => builder.with_root_certificates(system_authorities()?),
        Trust::Hashes(hashes) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Pinned {
                hashes: hashes.clone(),
                algorithms,
            })),
    })
}

pub(super) fn authorities(file: &Path) -> Result<RootCertStore, Error> {
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
        if !facts.may_be_pinned() {
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

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384};
    use rustls::sign::CertifiedKey;
    use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    use time::OffsetDateTime;

    use super::{super::handshake::shake_hands, *};
    use crate::{
        cert::{DevelopmentAuthority, Store, file_hash},
        source,
    };

    const DAY: time::Duration = time::Duration::days(1);

    fn certificate(
        algorithm: &'static rcgen::SignatureAlgorithm,
        starts_in: time::Duration,
        ends_in: time::Duration,
    ) -> (CertificateDer<'static>, KeyPair) {
        let now = OffsetDateTime::now_utc();
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (now + starts_in, now + ends_in);
        (params.self_signed(&key).unwrap().der().clone(), key)
    }

    /// A server that shows `certificate` and signs with `key`, fitting or not.
    fn server(certificate: CertificateDer<'static>, key: &KeyPair) -> rustls::ServerConfig {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let key = aws_lc_rs::sign::any_supported_type(&key).unwrap();
        let key = SingleCertAndKey::from(CertifiedKey::new(vec![certificate], key));
        rustls::ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(key))
    }

    fn pinned(hashes: &[[u8; 32]]) -> ClientConfig {
        client_config(&Trust::Hashes(hashes.to_vec())).unwrap()
    }

    #[tokio::test]
    async fn an_authoritys_certificate_is_trusted_for_its_names_by_those_who_trust_the_authority() {
        let directory = tempfile::tempdir().unwrap();
        let other = directory.path().join("other");
        DevelopmentAuthority::open(&other).unwrap();
        let authority = DevelopmentAuthority::open(directory.path()).unwrap();
        authority.issue("gateway", &["localhost", "::1"]).unwrap();
        let store = Store::new();
        let file = |name: &str| directory.path().join(name);
        store
            .load(&file("gateway.crt"), &file("gateway.key"))
            .unwrap();
        for (roots, name, trusted) in [
            ("ca.crt", "localhost", true),
            ("ca.crt", "::1", true),
            ("ca.crt", "elsewhere", false),
            ("other/ca.crt", "localhost", false),
        ] {
            let client = client_config(&Trust::Authorities(file(roots))).unwrap();
            let outcome = shake_hands(store.server_config(), client, name).await;
            assert_eq!(outcome.is_ok(), trusted, "{roots} {name}: {outcome:?}");
        }
        let client = pinned(&[[0; 32], file_hash(&file("gateway.crt")).unwrap()]);
        let outcome = shake_hands(store.server_config(), client, "elsewhere").await;
        assert!(outcome.is_ok(), "{outcome:?}");
    }

    #[tokio::test]
    async fn a_pinned_certificate_must_be_the_one_p256_two_weeks_at_most_and_valid_now() {
        let (p256, p384) = (&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384);
        for (case, algorithm, starts_in, ends_in, refusal) in [
            ("two weeks", p256, -DAY, 13 * DAY, None),
            (
                "a second more",
                p256,
                -DAY,
                13 * DAY + time::Duration::seconds(1),
                Some("InvalidPurpose"),
            ),
            ("another curve", p384, -DAY, DAY, Some("InvalidPurpose")),
            ("over", p256, -2 * DAY, -DAY, Some("Expired")),
            ("not begun", p256, DAY, 2 * DAY, Some("NotValidYet")),
        ] {
            let (certificate, key) = certificate(algorithm, starts_in, ends_in);
            let client = pinned(&[hash(&certificate)]);
            let outcome = shake_hands(server(certificate, &key), client, "localhost").await;
            match refusal {
                None => assert!(outcome.is_ok(), "{case}: {outcome:?}"),
                Some(why) => assert!(outcome.unwrap_err().contains(why), "{case}"),
            }
        }
        let (certificate, key) = certificate(p256, -DAY, DAY);
        for hashes in [&[][..], &[[0; 32]]] {
            let server = server(certificate.clone(), &key);
            assert!(
                shake_hands(server, pinned(hashes), "localhost")
                    .await
                    .is_err()
            );
        }
    }

    #[tokio::test]
    async fn a_pinned_certificate_without_its_key_is_refused() {
        let (certificate, _) = certificate(&PKCS_ECDSA_P256_SHA256, -DAY, DAY);
        let thief = KeyPair::generate().unwrap();
        let client = pinned(&[hash(&certificate)]);
        let refusal = shake_hands(server(certificate, &thief), client, "localhost").await;
        let refusal = refusal.unwrap_err();
        assert!(refusal.contains("BadSignature"), "{refusal}");
    }

    #[tokio::test]
    async fn the_systems_authorities_do_not_vouch_for_a_stranger() {
        match client_config(&Trust::System) {
            Ok(client) => {
                let (certificate, key) = certificate(&PKCS_ECDSA_P256_SHA256, -DAY, DAY);
                let outcome = shake_hands(server(certificate, &key), client, "localhost").await;
                assert!(outcome.is_err());
            }
            Err(error) => assert!(error.to_string().contains("ca-certificates"), "{error}"),
        }
    }

    #[test]
    fn a_file_without_authorities_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("roots.pem");
        let refusal = || {
            client_config(&Trust::Authorities(file.clone()))
                .unwrap_err()
                .to_string()
        };
        assert!(refusal().contains("roots.pem"));
        for content in [
            "",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "-----BEGIN CERTIFICATE-----\nAA",
        ] {
            source::write_public(&file, content.as_bytes()).unwrap();
            assert!(refusal().contains("roots.pem"), "{content}");
        }
    }
}
