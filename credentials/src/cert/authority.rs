//! A cluster's own authority: a P-256 key that signs short-lived certificates, of masters and of nodes.
//! Time is an argument.

mod request;

use std::{
    net::IpAddr,
    path::Path,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use wavry_proto::id::ClusterName;

use super::{Error, Facts, Pair, hash, member::Member};
use crate::{key::issuing_from_pem, secret::Secret};

pub use request::{MAX_REQUEST_LEN, MalformedRequest, Request};

/// For clocks that are behind, and an eighth of the lifetime at most.
const BACKDATING: Duration = Duration::from_secs(60);
/// What errors call it.
const NAME: &str = "the cluster's authority";
/// X.520 serialNumber, which here is that of a node's registration.
pub(super) const SERIAL_NUMBER: [u64; 4] = [2, 5, 4, 5];

/// From when until when a certificate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    from: SystemTime,
    until: SystemTime,
}

impl Validity {
    /// For so long from `now` on, and from a minute before (less for short ones), as clocks differ.
    pub fn from(now: SystemTime, lifetime: Duration) -> Self {
        Self {
            from: now - BACKDATING.min(lifetime / 8),
            until: now + lifetime,
        }
    }

    /// No longer than until `end`.
    fn within(self, end: SystemTime) -> Self {
        Self {
            until: self.until.min(end),
            ..self
        }
    }
}

/// An authority that was made, before it is kept.
pub struct NewAuthority {
    /// Its certificate, which it signed itself (DER).
    pub certificate: Vec<u8>,
    /// Its key, PKCS #8 PEM.
    pub key: Secret<Vec<u8>>,
}

/// An authority at work.
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    not_after: SystemTime,
}

impl Authority {
    /// Makes one for a cluster, with a key of its own. It may sign certificates of TLS servers and clients, and no
    /// other authority.
    pub fn generate(cluster: &ClusterName, validity: Validity) -> Result<NewAuthority, Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        // The same for all of a cluster's: servers that ask for certificates name it. Their key ids tell them apart.
        let name = format!("Wavry authority of {cluster}");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        (params.not_before, params.not_after) = (whole(validity.from), whole(validity.until));
        let certificate = params.self_signed(&key).map_err(failed)?;
        Ok(NewAuthority {
            certificate: certificate.der().to_vec(),
            key: pem(&key),
        })
    }

    /// Opens one that was made.
    pub fn open(certificate: &[u8], key: &Secret<Vec<u8>>) -> Result<Self, Error> {
        let malformed = |problem: &str| Error::malformed(Path::new(NAME), problem);
        let certificate = CertificateDer::from(certificate.to_vec());
        let facts = Facts::read(&certificate)
            .ok_or_else(|| malformed("has no certificate that can be read"))?;
        let key = issuing_from_pem(key).map_err(|_| malformed("has no key that can be read"))?;
        let is_its_own =
            x509_parser::parse_x509_certificate(&certificate).is_ok_and(|(_, parsed)| {
                parsed.public_key().subject_public_key.data == key.der_bytes()
            });
        if !is_its_own {
            return Err(malformed("has a key that is not its certificate's"));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(failed)?;
        Ok(Self {
            certificate,
            issuer,
            not_after: facts.not_after,
        })
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// When its certificate expires.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// SHA-256 of its certificate.
    pub fn hash(&self) -> [u8; 32] {
        hash(&self.certificate)
    }

    /// Makes a key and a certificate for a TLS server with these names and addresses.
    pub fn serve(&self, names: &[String], validity: Validity) -> Result<Pair, Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut params = self.leaf(names, validity)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        if let Some(name) = names.first().filter(|name| name.len() <= MAX_COMMON_NAME) {
            let name = name.as_str();
            params.distinguished_name.push(DnType::CommonName, name);
        }
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Pair::from_pem(Path::new(NAME), &certificate.pem(), &pem(&key))
    }

    /// Signs a certificate of a node, in PEM, for the key that asks for it. Where the node is found at `names`, it is
    /// one of a TLS server, too.
    pub fn admit(
        &self,
        request: &Request,
        member: &Member,
        names: &[String],
        validity: Validity,
    ) -> Result<String, Error> {
        let mut params = self.leaf(names, validity)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !names.is_empty() {
            let serves = ExtendedKeyUsagePurpose::ServerAuth;
            params.extended_key_usages.push(serves);
        }
        let name = &mut params.distinguished_name;
        name.push(DnType::CommonName, member.node.as_str());
        let registration = DnType::from_oid(&SERIAL_NUMBER);
        name.push(registration, member.registration.to_string());
        let uri = member.uri().try_into().map_err(failed)?;
        params.subject_alt_names.insert(0, SanType::URI(uri));
        let certificate = params
            .signed_by(request.key(), &self.issuer)
            .map_err(failed)?;
        Ok(certificate.pem())
    }

    fn leaf(&self, names: &[String], validity: Validity) -> Result<CertificateParams, Error> {
        let mut params = CertificateParams::new(names).map_err(failed)?;
        params.distinguished_name = DistinguishedName::new();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let validity = validity.within(self.not_after);
        (params.not_before, params.not_after) = (whole(validity.from), whole(validity.until));
        Ok(params)
    }
}

/// Longest common name (X.520, upper bound).
const MAX_COMMON_NAME: usize = 64;

/// Whether a certificate can be had for a name: a DNS name, or an address.
pub fn is_name(name: &str) -> bool {
    name.parse::<IpAddr>().is_ok()
        || (!name.is_empty() && rustls_pki_types::DnsName::try_from(name).is_ok())
}

fn pem(key: &KeyPair) -> Secret<Vec<u8>> {
    Secret::new(key.serialize_pem().into_bytes())
}

/// rcgen's errors speak of what was asked for, never of keys.
fn failed(error: rcgen::Error) -> Error {
    Error::malformed(Path::new(NAME), format!("did not sign: {error}"))
}

/// In whole seconds, as certificates have it.
fn whole(time: SystemTime) -> OffsetDateTime {
    let time = OffsetDateTime::from(time);
    time.replace_nanosecond(0).unwrap_or(time)
}

#[cfg(test)]
mod tests;
