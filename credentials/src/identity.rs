//! A node's Ed25519 identity, and how it proves itself with it in the mesh: in TLS (RFC 7250), and in the
//! probes of the overlay beneath.

mod mesh;
mod pairs;
pub mod rotation;
mod shown;

use std::sync::Arc;

use ed25519_dalek::{Signature, VerifyingKey};
use tokio::sync::watch;
use wavry_proto::{control::Roster, id::PublicKey, overlay::Authenticator};

use crate::{
    key::{Ed25519, format},
    secret::Secret,
};

pub use shown::{Present, Shown};

/// A node's Ed25519 key pair.
pub struct Identity {
    key: Arc<Ed25519>,
}

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a PKCS#8 PEM with an Ed25519 key.
    #[error("not an Ed25519 key in PKCS#8 PEM")]
    Malformed,
    /// rustls refused it.
    #[error("TLS configuration")]
    Tls(#[from] rustls::Error),
}

impl Identity {
    /// A new one from the operating system's random source.
    pub fn generate() -> Self {
        Self::of(Ed25519::generate())
    }

    /// Reads PKCS#8 PEM.
    pub fn from_pem(pem: &Secret<Vec<u8>>) -> Result<Self, Error> {
        Ed25519::from_pem(pem)
            .map(Self::of)
            .map_err(|_| Error::Malformed)
    }

    /// Reads it in any form that [`mod@format`] knows.
    pub fn read(text: &Secret<Vec<u8>>) -> Result<Self, format::Fault> {
        format::ed25519(text).map(Self::of)
    }

    /// As PKCS#8 PEM.
    pub fn to_pem(&self) -> Secret<Vec<u8>> {
        self.key.to_pem()
    }

    /// The public half.
    pub fn public_key(&self) -> PublicKey {
        PublicKey(self.key.public())
    }

    /// An Ed25519 signature (RFC 8032).
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message)
    }

    /// TLS for the mesh: this identity's raw public key, and a peer's key accepted if and only if
    /// the current roster lists it — for the node that is dialled, where this side dials.
    ///
    /// TLS 1.3 only, both sides authenticated, no ticket and no 0-RTT: resumption would pass by the
    /// roster. A handshake reads memory only. No ALPN is set.
    pub fn mesh_tls(&self, roster: watch::Receiver<Arc<Roster>>) -> Result<MeshTls, Error> {
        let same = Self {
            key: self.key.clone(),
        };
        Shown::new(same)?.mesh_tls(roster)
    }

    /// The key itself, for what else it signs.
    pub(crate) fn key(&self) -> &Arc<Ed25519> {
        &self.key
    }

    fn of(key: Ed25519) -> Self {
        Self { key: Arc::new(key) }
    }
}

/// TLS configurations for both directions of the mesh, and what is authenticated beside them.
pub struct MeshTls {
    /// For connections that peers open.
    pub server: Arc<rustls::ServerConfig>,
    /// For connections to peers; the server name is the peer's node id.
    pub client: Arc<rustls::ClientConfig>,
    /// The key that both show.
    pub key: watch::Receiver<PublicKey>,
    /// Authenticates what nodes say to each other outside of TLS.
    pub authenticator: Arc<dyn Authenticator>,
}

/// Whether `signature` over `message` is by `key`. Strict: weak keys and non-canonical signatures,
/// which RFC 8032 leaves open, are refused.
pub fn verify(key: &PublicKey, message: &[u8], signature: &[u8]) -> bool {
    let (Ok(key), Ok(signature)) = (
        VerifyingKey::from_bytes(&key.0),
        Signature::from_slice(signature),
    ) else {
        return false;
    };
    key.verify_strict(message, &signature).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// From the PASETO test vectors: the same key in each form.
    const SEED: &str = "b4cbfb43df4ce210727d953e4a713307fa19bb7d9f85041438d9e11b942a3774";
    const PUBLIC: &str = "1eb9dbbbbc047c03fd70604e0071f0987e16b28b757225c11f00415d0e20b1a2";
    const PEM: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEILTL+0PfTOIQcn2VPkpxMwf6Gbt9n4UEFDjZ4RuUKjd0\n-----END PRIVATE KEY-----\n";

    #[test]
    fn the_key_of_a_known_pem_is_read_and_written_the_same() {
        let identity = Identity::from_pem(&Secret::new(PEM.as_bytes().to_vec())).unwrap();
        let seed = hex::decode(SEED).unwrap().try_into().unwrap();
        let same = Ed25519::from_seed(Secret::<[u8; 32]>::new(seed));
        assert_eq!(identity.sign(b"hello"), same.sign(b"hello"));
        assert_eq!(identity.public_key().to_string(), PUBLIC);
        assert!(identity.to_pem().matches(PEM.as_bytes()));
    }

    #[test]
    fn a_pem_with_the_public_half_in_it_is_read() {
        // PKCS#8 version 2 (RFC 5958), as ring and rcgen write it.
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let pem = Secret::new(pair.serialize_pem().into_bytes());
        let identity = Identity::from_pem(&pem).unwrap();
        assert_eq!(identity.public_key().0, pair.public_key_raw());
    }

    #[test]
    fn what_is_not_an_ed25519_key_is_refused() {
        let p256 = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let public = PEM.replace("PRIVATE", "PUBLIC");
        for text in ["", "nonsense", &PEM[..60], &p256, &public] {
            let pem = Secret::new(text.as_bytes().to_vec());
            assert!(matches!(Identity::from_pem(&pem), Err(Error::Malformed)));
        }
        let zeros = Ed25519::from_seed(Secret::new([0; 32])).to_pem();
        assert!(matches!(Identity::from_pem(&zeros), Err(Error::Malformed)));
    }

    #[test]
    fn a_signature_holds_for_its_key_and_message_only() {
        let (one, other) = (Identity::generate(), Identity::generate());
        let signature = one.sign(b"hello");
        assert!(verify(&one.public_key(), b"hello", &signature));
        assert!(!verify(&other.public_key(), b"hello", &signature));
        assert!(!verify(&one.public_key(), b"hullo", &signature));
        assert!(!verify(&one.public_key(), b"hello", &signature[..63]));
    }

    #[test]
    fn a_weak_key_verifies_nothing() {
        // The neutral element: with it, R = identity and S = 0 satisfy the lax equation for any message.
        let mut key = [0; 32];
        key[0] = 1;
        let mut signature = [0; 64];
        signature[0] = 1;
        assert!(!verify(&PublicKey(key), b"anything", &signature));
    }

    proptest! {
        #[test]
        fn arbitrary_keys_and_signatures_never_panic(key: [u8; 32], message: Vec<u8>, signature: Vec<u8>) {
            prop_assert!(!verify(&PublicKey(key), &message, &signature));
        }

        #[test]
        fn arbitrary_pem_never_panics(bytes: Vec<u8>) {
            prop_assert!(Identity::from_pem(&Secret::new(bytes)).is_err());
        }
    }
}
