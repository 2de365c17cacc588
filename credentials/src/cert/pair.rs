//! A chain and its key, checked before anybody uses them.

use std::{net::IpAddr, path::Path, time::SystemTime};

use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, pem::PemObject};

use super::{Error, Facts, store::certified_key};
use crate::{
    key::{certificates_from_pem, tls_from_pem},
    secret::Secret,
};

/// A chain and its key that belong to each other.
#[derive(Clone)]
pub struct Pair {
    pub(super) certified: CertifiedKey,
    pub(super) facts: Facts,
}

impl Pair {
    /// Reads a PEM chain and its PEM key from files.
    pub fn read(chain: &Path, key: &Path) -> Result<Self, Error> {
        Self::checked(certified_key(chain, key)?, chain)
    }

    /// Takes a PEM chain, and its key in PEM. `origin` is what errors call it.
    pub fn from_pem(origin: &Path, chain: &str, key: &Secret<Vec<u8>>) -> Result<Self, Error> {
        let certificates = CertificateDer::pem_slice_iter(chain.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| Error::malformed(origin, "is not PEM"))?;
        Self::of(origin, certificates, key)
    }

    /// The same with a chain that is kept like a secret.
    pub(crate) fn from_secrets(
        origin: &Path,
        chain: &Secret<Vec<u8>>,
        key: &Secret<Vec<u8>>,
    ) -> Result<Self, Error> {
        let certificates = certificates_from_pem(chain);
        let certificates = certificates.map_err(|_| Error::malformed(origin, "is not PEM"))?;
        Self::of(origin, certificates, key)
    }

    fn of(
        origin: &Path,
        certificates: Vec<CertificateDer<'static>>,
        key: &Secret<Vec<u8>>,
    ) -> Result<Self, Error> {
        if certificates.is_empty() {
            return Err(Error::malformed(origin, "has no certificate in it"));
        }
        let key = tls_from_pem(key).map_err(|problem| Error::malformed(origin, problem))?;
        let certified = CertifiedKey::new(certificates, key);
        certified
            .keys_match()
            .map_err(|_| Error::malformed(origin, "does not belong to the key that is with it"))?;
        Self::checked(certified, origin)
    }

    fn checked(certified: CertifiedKey, origin: &Path) -> Result<Self, Error> {
        if !is_ordered(&certified.cert) {
            return Err(Error::malformed(
                origin,
                "has certificates that are not each issued by the next one",
            ));
        }
        let facts = Facts::read(&certified.cert[0])
            .ok_or_else(|| Error::malformed(origin, "is not an X.509 certificate"))?;
        Ok(Self { certified, facts })
    }

    /// As handshakes use it.
    pub(crate) fn into_certified(self) -> CertifiedKey {
        self.certified
    }

    /// The certificate itself.
    pub fn leaf(&self) -> &CertificateDer<'static> {
        &self.certified.cert[0]
    }

    /// From when it holds.
    pub fn not_before(&self) -> SystemTime {
        self.facts.not_before
    }

    /// Until when it holds.
    pub fn not_after(&self) -> SystemTime {
        self.facts.not_after
    }

    /// Whether it is a certificate for this name or address, and not only by a wildcard.
    pub fn names(&self, name: &str) -> bool {
        match name.parse::<IpAddr>() {
            Ok(address) => self.facts.addresses.contains(&address),
            Err(_) => self.facts.dns_names.iter().any(|own| own == name),
        }
    }
}

/// Whether each certificate names the next one as its issuer.
fn is_ordered(chain: &[CertificateDer<'_>]) -> bool {
    chain.windows(2).all(|pair| {
        let read = |der| x509_parser::parse_x509_certificate(der).ok();
        match (read(&pair[0]), read(&pair[1])) {
            (Some((_, one)), Some((_, issuer))) => {
                one.issuer().as_raw() == issuer.subject().as_raw()
            }
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

    use super::*;

    fn key() -> KeyPair {
        KeyPair::generate().unwrap()
    }

    fn secret(key: &KeyPair) -> Secret<Vec<u8>> {
        Secret::new(key.serialize_pem().into_bytes())
    }

    fn issuer() -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::new(["issuer".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, key()).unwrap()
    }

    fn refusal(chain: &str, key: &KeyPair) -> String {
        match Pair::from_pem("issued".as_ref(), chain, &secret(key)) {
            Ok(_) => panic!("it was taken"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_chain_in_its_order_with_its_key_is_taken_and_no_other() {
        let (leaf_key, issuer) = (key(), issuer());
        let names = ["gateway.example", "192.0.2.1", "*.wild.example"].map(str::to_owned);
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let leaf = params.signed_by(&leaf_key, &issuer).unwrap().pem();
        let chain = leaf.clone() + &issuer.pem();
        let pair = Pair::from_pem("issued".as_ref(), &chain, &secret(&leaf_key)).unwrap();
        assert!(pair.names("gateway.example") && pair.names("192.0.2.1"));
        for other in ["other.example", "192.0.2.2", "a.wild.example"] {
            assert!(!pair.names(other), "{other}");
        }
        assert!(refusal(&chain, &key()).contains("does not belong to the key"));
        assert!(refusal(&(leaf.clone() + &leaf), &leaf_key).contains("each issued by the next"));
        assert!(refusal("", &leaf_key).contains("no certificate"));
        assert!(refusal("-----BEGIN CERTIFICATE-----\n??", &leaf_key).contains("PEM"));
    }
}
