//! The type every secret lives in.

use rustls::crypto::aws_lc_rs;
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

/// A secret. It has no `Debug`, `Display`, `Serialize`, `Clone`, `PartialEq` or `Deref`; its bytes
/// stay in one heap allocation and are zeroed when it is dropped.
pub struct Secret<T: Zeroize> {
    value: Box<T>,
}

impl<T: Zeroize> Secret<T> {
    /// Takes a value in. The caller zeroes whatever copies it made on the way.
    pub fn new(value: T) -> Self {
        Self {
            value: Box::new(value),
        }
    }

    /// The one way out.
    pub fn expose(&self) -> &T {
        &self.value
    }
}

impl<T: Zeroize + AsRef<[u8]>> Secret<T> {
    /// Whether the bytes are these. Takes as long wherever they differ; only their length shows.
    pub fn matches(&self, bytes: &[u8]) -> bool {
        (*self.value).as_ref().ct_eq(bytes).into()
    }
}

impl<const N: usize> Secret<[u8; N]> {
    /// Random bytes from the cryptographic generator that TLS uses.
    pub fn random() -> Self {
        let mut secret = Self::new([0; N]);
        aws_lc_rs::default_provider()
            .secure_random
            .fill(&mut *secret.value)
            .expect("the operating system's random source answers");
        secret
    }
}

impl<T: Zeroize> Drop for Secret<T> {
    fn drop(&mut self) {
        self.value.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    #[test]
    fn a_dropped_secret_is_zeroed() {
        struct Witness(Arc<AtomicBool>);
        impl Zeroize for Witness {
            fn zeroize(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let zeroed = Arc::new(AtomicBool::new(false));
        drop(Secret::new(Witness(zeroed.clone())));
        assert!(zeroed.load(Ordering::Relaxed));
    }

    #[test]
    fn a_secret_matches_its_own_bytes_only() {
        let secret = Secret::new(b"correct horse".to_vec());
        assert!(secret.matches(b"correct horse"));
        for other in [
            &b"correct horsf"[..],
            b"correct hors",
            b"correct horse ",
            b"",
        ] {
            assert!(!secret.matches(other));
        }
    }

    #[test]
    fn random_secrets_differ() {
        let (one, other) = (Secret::<[u8; 32]>::random(), Secret::<[u8; 32]>::random());
        assert!(!one.matches(other.expose()));
        assert!(!one.matches(&[0; 32]));
    }
}
