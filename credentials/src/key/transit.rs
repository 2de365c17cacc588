//! Keys that stay in the KeyVault and are used by name: they encrypt, or they sign.

use ed25519_dalek::{Signature, VerifyingKey};

use super::{Ed25519, Malformed, aead};
use crate::{random, secret::Secret};

/// What a key does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// AES-256-GCM, with random nonces of 96 bits.
    Aes256Gcm,
    /// Ed25519 (RFC 8032).
    Ed25519,
}

/// One version of a key.
pub struct Key(Inner);

enum Inner {
    Aead(aead::Key),
    Ed25519(Ed25519),
}

/// The key is of the other kind, or the text is not one of its making.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the key cannot do this, or did not make what it was given")]
pub struct Refused;

impl Key {
    /// A new one.
    pub fn generate(kind: Kind) -> Self {
        Self(match kind {
            Kind::Aes256Gcm => Inner::Aead(aead::Key::generate()),
            Kind::Ed25519 => Inner::Ed25519(Ed25519::generate()),
        })
    }

    /// As PASERK, to be kept behind the barrier.
    pub fn to_paserk(&self) -> Secret<Vec<u8>> {
        match &self.0 {
            Inner::Aead(key) => key.to_paserk(),
            Inner::Ed25519(key) => key.to_paserk(),
        }
    }

    /// What was kept.
    pub fn from_paserk(kind: Kind, text: &Secret<Vec<u8>>) -> Result<Self, Refused> {
        Ok(Self(match kind {
            Kind::Aes256Gcm => Inner::Aead(aead::Key::read(text).map_err(|_| Refused)?),
            Kind::Ed25519 => {
                let key = Ed25519::from_paserk(text);
                Inner::Ed25519(key.map_err(|Malformed| Refused)?)
            }
        }))
    }

    /// Nonce, ciphertext and tag. `context` is not in it, and must be the same to decrypt it.
    pub fn encrypt(&self, context: &[u8], plaintext: &Secret<Vec<u8>>) -> Result<Vec<u8>, Refused> {
        match &self.0 {
            Inner::Aead(key) => Ok(key.seal(context, plaintext)),
            Inner::Ed25519(_) => Err(Refused),
        }
    }

    /// What was encrypted.
    pub fn decrypt(&self, context: &[u8], ciphertext: &[u8]) -> Result<Secret<Vec<u8>>, Refused> {
        match &self.0 {
            Inner::Aead(key) => key.open(context, ciphertext).map_err(|_| Refused),
            Inner::Ed25519(_) => Err(Refused),
        }
    }

    /// An Ed25519 signature.
    pub fn sign(&self, message: &[u8]) -> Result<[u8; 64], Refused> {
        match &self.0 {
            Inner::Ed25519(key) => Ok(key.sign(message)),
            Inner::Aead(_) => Err(Refused),
        }
    }

    /// The half that checks signatures; of a key that signs.
    pub fn public(&self) -> Option<[u8; 32]> {
        match &self.0 {
            Inner::Ed25519(key) => Some(key.public()),
            Inner::Aead(_) => None,
        }
    }
}

/// Whether `signature` is by the key whose public half is `public`.
pub fn verify(public: &[u8; 32], message: &[u8], signature: &[u8]) -> bool {
    let (Ok(key), Ok(signature)) = (
        VerifyingKey::from_bytes(public),
        Signature::from_slice(signature),
    ) else {
        return false;
    };
    key.verify_strict(message, &signature).is_ok()
}

/// A key for its holder's own use, of `length` bytes.
pub fn data_key(length: usize) -> Secret<Vec<u8>> {
    let filled = Secret::filled(length, |room| {
        random::fill(room);
        Ok::<_, std::convert::Infallible>(length)
    });
    match filled {
        Ok(key) => key,
        Err(never) => match never {},
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_was_kept_does_what_it_did() {
        let key = Key::generate(Kind::Aes256Gcm);
        let sealed = key.encrypt(b"a", &Secret::new(b"s3cret".to_vec())).unwrap();
        let kept = Key::from_paserk(Kind::Aes256Gcm, &key.to_paserk()).unwrap();
        assert!(kept.decrypt(b"a", &sealed).unwrap().matches(b"s3cret"));
        assert!(kept.decrypt(b"b", &sealed).is_err());
        assert!(Key::from_paserk(Kind::Ed25519, &key.to_paserk()).is_err());
        assert!(key.sign(b"x").is_err());

        let key = Key::generate(Kind::Ed25519);
        let kept = Key::from_paserk(Kind::Ed25519, &key.to_paserk()).unwrap();
        let signature = kept.sign(b"x").unwrap();
        assert!(verify(&key.public().unwrap(), b"x", &signature));
        assert!(!verify(&key.public().unwrap(), b"y", &signature));
        assert!(!verify(&key.public().unwrap(), b"x", &signature[1..]));
        assert!(key.decrypt(b"", &sealed).is_err());
    }

    #[test]
    fn data_keys_are_as_long_as_asked_and_differ() {
        let key = data_key(64);
        assert!(!key.matches(&[0; 64]));
        assert!(!data_key(32).matches(&[0; 32]));
    }
}
