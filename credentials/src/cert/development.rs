//! A certificate authority for development.

use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData as _,
};
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::aws_lc_rs,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use time::OffsetDateTime;

use super::{Error, Facts, read_certificates, store::certified_key};
use crate::{
    key::issuing_from_pem,
    secret::Secret,
    source::{self, write_public, write_secret},
};

const NAME: &str = "Wavry development CA";
const ROOT_VALIDITY: time::Duration = time::Duration::days(3650);
/// Just under the two weeks that browsers accept, backdating included: both ends count.
const LEAF_VALIDITY: time::Duration = time::Duration::seconds(14 * 24 * 60 * 60 - 1);
/// For clients whose clock is a little behind.
const BACKDATING: time::Duration = time::Duration::minutes(1);
const FRESH_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// A certificate authority for development: a local root and 14-day P-256 certificates.
pub struct DevelopmentAuthority {
    directory: PathBuf,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl DevelopmentAuthority {
    /// Reads `ca.crt` and `ca.key` in `directory`, or makes them (and it).
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let (certificate_file, key_file) = (directory.join("ca.crt"), directory.join("ca.key"));
        match (certificate_file.exists(), key_file.exists()) {
            (true, true) => {}
            (true, false) => {
                return Err(Error::malformed(
                    &key_file,
                    "is gone: remove ca.crt beside it to make a new authority",
                ));
            }
            // The key is written first: one without a certificate was never used.
            (false, _) => make_root(directory, &certificate_file, &key_file)?,
        }
        let pem = source::read_file(&key_file)?;
        let key = issuing_from_pem(&pem)
            .map_err(|_| Error::malformed(&key_file, "has no private key in PEM"))?;
        // Others that are trusted may stand beside its own.
        let mut trusted = read_certificates(&certificate_file)?.into_iter();
        let certificate = trusted.find(|one| is_of(one, &key)).ok_or_else(|| {
            let file = certificate_file.display();
            Error::malformed(
                &key_file,
                format!("does not belong to a certificate in {file}"),
            )
        })?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|_| Error::malformed(&certificate_file, "is not an authority"))?;
        Ok(Self {
            directory: directory.to_owned(),
            certificate,
            issuer,
        })
    }

    /// Writes `NAME.crt` and `NAME.key` for these DNS names and addresses: P-256, 14 days. The root
    /// that signs it is in `ca.crt`.
    pub fn issue(&self, name: &str, subjects: &[&str]) -> Result<(), Error> {
        let (certificate_file, key_file) = self.files(name);
        let failed = |error| failed(&certificate_file, error);
        let Some(&subject) = subjects.first() else {
            return Err(Error::malformed(&certificate_file, "needs a name"));
        };
        let key = new_key(&certificate_file)?;
        let mut params =
            CertificateParams::new(subjects.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
                .map_err(failed)?;
        params.distinguished_name.remove(DnType::CommonName);
        params
            .distinguished_name
            .push(DnType::CommonName, format!("{NAME}: {subject}"));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Whoever serves also calls others, and may have to show who it is.
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = validity(LEAF_VALIDITY);
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        // A reader that meets the new key with the old certificate refuses the pair and looks again.
        write_key(&key_file, &key)?;
        write_public(&certificate_file, certificate.pem().as_bytes())?;
        Ok(())
    }

    /// Whether `NAME.crt` is there with its key, belongs to this authority and is good for another
    /// day.
    pub fn is_fresh(&self, name: &str) -> bool {
        let (certificate_file, key_file) = self.files(name);
        let Ok(pair) = certified_key(&certificate_file, &key_file) else {
            return false;
        };
        let tomorrow = SystemTime::now() + FRESH_FOR;
        let Ok(tomorrow) = tomorrow.duration_since(SystemTime::UNIX_EPOCH) else {
            return false;
        };
        self.signed(&pair.cert[0], UnixTime::since_unix_epoch(tomorrow))
    }

    fn signed(&self, leaf: &CertificateDer<'_>, when: UnixTime) -> bool {
        let Some(name) = a_name_of(leaf) else {
            return false;
        };
        let mut roots = RootCertStore::empty();
        if roots.add(self.certificate.clone()).is_err() {
            return false;
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .is_ok_and(|verifier| {
                verifier
                    .verify_server_cert(leaf, &[], &name, &[], when)
                    .is_ok()
            })
    }

    fn files(&self, name: &str) -> (PathBuf, PathBuf) {
        (
            self.directory.join(format!("{name}.crt")),
            self.directory.join(format!("{name}.key")),
        )
    }
}

fn make_root(directory: &Path, certificate_file: &Path, key_file: &Path) -> Result<(), Error> {
    let failed = |error| failed(certificate_file, error);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| Error::malformed(directory, format!("cannot be made: {error}")))?;
    let key = new_key(certificate_file)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = validity(ROOT_VALIDITY);
    let certificate = params.self_signed(&key).map_err(failed)?;
    write_key(key_file, &key)?;
    write_public(certificate_file, certificate.pem().as_bytes())?;
    Ok(())
}

/// Whether a certificate is for this key.
fn is_of(certificate: &CertificateDer<'_>, key: &KeyPair) -> bool {
    x509_parser::parse_x509_certificate(certificate)
        .is_ok_and(|(_, parsed)| parsed.public_key().subject_public_key.data == key.der_bytes())
}

fn new_key(file: &Path) -> Result<KeyPair, Error> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| failed(file, error))
}

fn write_key(file: &Path, key: &KeyPair) -> Result<(), Error> {
    Ok(write_secret(file, &Secret::new(key.serialize_pem()))?)
}

/// rcgen's errors speak of what was asked for, never of keys.
fn failed(file: &Path, error: rcgen::Error) -> Error {
    Error::malformed(file, format!("cannot be made: {error}"))
}

fn validity(length: time::Duration) -> (OffsetDateTime, OffsetDateTime) {
    let start = OffsetDateTime::now_utc() - BACKDATING;
    (start, start + length)
}

/// A name that the certificate is good for, so that the rest of it can be verified.
fn a_name_of(leaf: &CertificateDer<'_>) -> Option<ServerName<'static>> {
    let facts = Facts::read(leaf)?;
    let mut names = facts.dns_names.into_iter();
    names
        .find_map(|name| ServerName::try_from(name).ok())
        .or_else(|| Some((*facts.addresses.first()?).into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn an_authority_is_kept_and_opened_again() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("new").join("state");
        let first = DevelopmentAuthority::open(&directory).unwrap();
        first.issue("gateway", &["localhost"]).unwrap();
        let second = DevelopmentAuthority::open(&directory).unwrap();
        assert_eq!(first.certificate, second.certificate);
        assert!(second.is_fresh("gateway"));
        second
            .issue("master", &["127.0.0.1", "::1", "localhost"])
            .unwrap();
        assert!(first.is_fresh("master"));
    }

    #[test]
    fn an_authority_is_found_among_others_that_are_trusted() {
        let directory = tempfile::tempdir().unwrap();
        let (own, other) = (directory.path().join("own"), directory.path().join("other"));
        let authority = DevelopmentAuthority::open(&own).unwrap();
        DevelopmentAuthority::open(&other).unwrap();
        let read = |directory: &Path| fs::read_to_string(directory.join("ca.crt")).unwrap();
        let (ours, theirs) = (read(&own), read(&other));
        for trusted in [format!("{theirs}{ours}"), format!("{ours}{theirs}")] {
            write_public(&own.join("ca.crt"), trusted.as_bytes()).unwrap();
            let again = DevelopmentAuthority::open(&own).unwrap();
            assert_eq!(again.certificate, authority.certificate);
        }
        write_public(&own.join("ca.crt"), theirs.as_bytes()).unwrap();
        assert!(DevelopmentAuthority::open(&own).is_err());
    }

    #[test]
    fn keys_are_private_and_certificates_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let authority = DevelopmentAuthority::open(directory.path()).unwrap();
        authority.issue("gateway", &["localhost"]).unwrap();
        for key in ["ca.key", "gateway.key"] {
            let metadata = fs::metadata(directory.path().join(key)).unwrap();
            assert_eq!(metadata.mode() & 0o7777, 0o600, "{key}");
        }
    }

    #[test]
    fn a_leaf_is_p256_for_two_weeks_at_most_and_carries_its_names() {
        let directory = tempfile::tempdir().unwrap();
        let authority = DevelopmentAuthority::open(directory.path()).unwrap();
        authority
            .issue("gateway", &["localhost", "127.0.0.1", "*.test"])
            .unwrap();
        let chain = read_certificates(&directory.path().join("gateway.crt")).unwrap();
        let facts = Facts::read(&chain[0]).unwrap();
        let days = |n: u64| Duration::from_secs(n * 24 * 60 * 60);
        let validity = facts.not_after.duration_since(facts.not_before).unwrap();
        assert!(facts.is_p256);
        assert!(validity < days(14) && validity > days(13));
        assert!(facts.not_before < SystemTime::now());
        assert_eq!(facts.dns_names, ["localhost", "*.test"]);
        assert_eq!(facts.addresses, [std::net::IpAddr::from([127, 0, 0, 1])]);
    }

    #[test]
    fn a_leaf_is_fresh_only_with_its_key_under_its_authority() {
        let directory = tempfile::tempdir().unwrap();
        let own = directory.path().join("own");
        let authority = DevelopmentAuthority::open(&own).unwrap();
        assert!(!authority.is_fresh("gateway"));
        authority.issue("gateway", &["127.0.0.1"]).unwrap();
        assert!(authority.is_fresh("gateway"));

        let other = DevelopmentAuthority::open(&directory.path().join("other")).unwrap();
        other.issue("gateway", &["127.0.0.1"]).unwrap();
        for file in ["gateway.crt", "gateway.key"] {
            fs::copy(directory.path().join("other").join(file), own.join(file)).unwrap();
        }
        assert!(!authority.is_fresh("gateway"));

        authority.issue("gateway", &["127.0.0.1"]).unwrap();
        fs::remove_file(own.join("gateway.key")).unwrap();
        assert!(!authority.is_fresh("gateway"));
    }

    #[test]
    fn a_leaf_is_not_fresh_in_its_last_day() {
        let directory = tempfile::tempdir().unwrap();
        let authority = DevelopmentAuthority::open(directory.path()).unwrap();
        authority.issue("gateway", &["localhost"]).unwrap();
        let chain = read_certificates(&directory.path().join("gateway.crt")).unwrap();
        let expires = Facts::read(&chain[0]).unwrap().not_after;
        let unix = |time: SystemTime| {
            UnixTime::since_unix_epoch(time.duration_since(SystemTime::UNIX_EPOCH).unwrap())
        };
        assert!(authority.signed(&chain[0], unix(expires)));
        assert!(!authority.signed(&chain[0], unix(expires + Duration::from_secs(1))));
    }

    #[test]
    fn an_authority_that_lost_its_key_or_got_another_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let key = directory.path().join("ca.key");
        DevelopmentAuthority::open(directory.path()).unwrap();
        let other = new_key(&key).unwrap();
        write_key(&key, &other).unwrap();
        let refusal = |directory: &Path| match DevelopmentAuthority::open(directory) {
            Ok(_) => panic!("the authority was opened"),
            Err(error) => error.to_string(),
        };
        assert!(refusal(directory.path()).contains("does not belong"));
        fs::remove_file(&key).unwrap();
        assert!(refusal(directory.path()).contains("ca.key"));
    }

    #[test]
    fn a_leaf_without_names_or_with_an_impossible_one_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let authority = DevelopmentAuthority::open(directory.path()).unwrap();
        assert!(authority.issue("gateway", &[]).is_err());
        assert!(authority.issue("gateway", &["ünïcode"]).is_err());
    }
}
