//! A node's Ed25519 identity, and the TLS of the mesh that it proves itself with (RFC 7250).

mod mesh;

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey, pkcs8::DecodePrivateKey};
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use tokio::sync::watch;
use wavry_proto::{control::Roster, id::PublicKey};
use zeroize::{Zeroize, Zeroizing};

use crate::secret::Secret;

/// DER of a PKCS#8 Ed25519 key up to the 32 bytes of the key (RFC 8410, section 7). Version 1,
/// without the public half, which OpenSSL does not read.
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
const PEM_START: &str = "-----BEGIN PRIVATE KEY-----\n";
const PEM_END: &str = "\n-----END PRIVATE KEY-----\n";

/// A node's Ed25519 key pair.
pub struct Identity {
    /// Zeroes itself when dropped; boxed so that moving an identity leaves no copy behind.
    key: Box<SigningKey>,
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
        Self::from_seed(Secret::random().expose())
    }

    /// Reads PKCS#8 PEM.
    pub fn from_pem(pem: &Secret<Vec<u8>>) -> Result<Self, Error> {
        let mut der =
            PrivatePkcs8KeyDer::from_pem_slice(pem.expose()).map_err(|_| Error::Malformed)?;
        let key = SigningKey::from_pkcs8_der(der.secret_pkcs8_der());
        der.zeroize();
        let key = key.map_err(|_| Error::Malformed)?;
        // A file of zeros is nobody's key, and the PASETO library panics on one.
        if key.as_bytes() == &[0; 32] {
            return Err(Error::Malformed);
        }
        Ok(Self { key: Box::new(key) })
    }

    /// As PKCS#8 PEM.
    pub fn to_pem(&self) -> Secret<Vec<u8>> {
        let der = self.to_der();
        // Exactly the room that is needed, so that no growth leaves a copy behind.
        let mut pem = vec![0; PEM_START.len() + 64 + PEM_END.len()];
        let (start, rest) = pem.split_at_mut(PEM_START.len());
        let (body, end) = rest.split_at_mut(64);
        start.copy_from_slice(PEM_START.as_bytes());
        end.copy_from_slice(PEM_END.as_bytes());
        STANDARD
            .encode_slice(*der, body)
            .expect("48 bytes are 64 characters");
        Secret::new(pem)
    }

    /// The public half.
    pub fn public_key(&self) -> PublicKey {
        PublicKey(self.key.verifying_key().to_bytes())
    }

    /// An Ed25519 signature (RFC 8032).
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }

    /// TLS for the mesh: this identity's raw public key, and a peer's key accepted if and only if
    /// the current roster lists it — for the node that is dialled, where this side dials.
    ///
    /// TLS 1.3 only, both sides authenticated, no ticket and no 0-RTT: resumption would pass by the
    /// roster. A handshake reads memory only. No ALPN is set.
    pub fn mesh_tls(&self, roster: watch::Receiver<Arc<Roster>>) -> Result<MeshTls, Error> {
        mesh::tls(self, roster)
    }

    pub(crate) fn from_seed(seed: &[u8; 32]) -> Self {
        Self {
            key: Box::new(SigningKey::from_bytes(seed)),
        }
    }

    /// The seed and the public half after it, as PASERK has it.
    pub(crate) fn keypair_bytes(&self) -> Zeroizing<[u8; 64]> {
        Zeroizing::new(self.key.to_keypair_bytes())
    }

    fn to_der(&self) -> Zeroizing<[u8; 48]> {
        let mut der = Zeroizing::new([0; 48]);
        der[..16].copy_from_slice(&PKCS8_PREFIX);
        der[16..].copy_from_slice(self.key.as_bytes());
        der
    }
}

/// TLS configurations for both directions of the mesh.
pub struct MeshTls {
    /// For connections that peers open.
    pub server: Arc<rustls::ServerConfig>,
    /// For connections to peers; the server name is the peer's node id.
    pub client: Arc<rustls::ClientConfig>,
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
        assert_eq!(hex::encode(identity.key.as_bytes()), SEED);
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
        let zeros = Identity::from_seed(&[0; 32]).to_pem();
        let zeros = std::str::from_utf8(zeros.expose()).unwrap();
        for text in ["", "nonsense", &PEM[..60], &p256, &public, zeros] {
            let pem = Secret::new(text.as_bytes().to_vec());
            assert!(matches!(Identity::from_pem(&pem), Err(Error::Malformed)));
        }
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
