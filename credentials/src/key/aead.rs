//! Authenticated encryption with AES-256-GCM (NIST SP 800-38D): keys that encrypt values, and keys
//! that wrap other keys.
//!
//! What is sealed is its nonce (96 bits, random for each), the ciphertext and the tag (128 bits), in
//! this order. One key may seal [`MAX_SEALED`] times (SP 800-38D, section 8.3); who keeps a key counts.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    hmac,
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use zeroize::Zeroizing;

use super::MacKey;
use crate::{random, secret::Secret};

/// Bytes of a key.
pub const KEY_LEN: usize = 32;
/// How many times a key may seal with random nonces.
pub const MAX_SEALED: u64 = 1 << 32;
const NONCE_LEN: usize = 12;
const TAG_LEN: usize = 16;
/// How much longer what is sealed is, in bytes.
pub const OVERHEAD: usize = NONCE_LEN + TAG_LEN;
/// Bytes of a wrapped key.
pub const WRAPPED_LEN: usize = KEY_LEN + OVERHEAD;

const PASERK_HEADER: &str = "k4.local.";
/// Characters of base64url for 32 bytes.
const PASERK_TEXT_LEN: usize = 43;

/// A file that does not hold a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a key of 32 bytes as PASERK k4.local, hexadecimal or base64")]
pub struct MalformedKey;

/// What does not come from who holds the key, or was sealed for another place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("does not authenticate under its key")]
pub struct Forged;

/// An AES-256-GCM key.
pub struct Key(Secret<[u8; KEY_LEN]>);

impl Key {
    /// A new one.
    pub fn generate() -> Self {
        Self(Secret::random())
    }

    /// Of bytes that nobody can guess.
    pub(crate) fn of(bytes: Secret<[u8; KEY_LEN]>) -> Self {
        Self(bytes)
    }

    #[expect(clippy::disallowed_methods, reason = "a key is used here")]
    pub(super) fn bytes(&self) -> &[u8; KEY_LEN] {
        self.0.expose()
    }

    /// Reads PASERK `k4.local`, 64 hexadecimal digits or base64; white space around it is ignored. A
    /// key of zeros is none.
    #[expect(clippy::disallowed_methods, reason = "a key is read here")]
    pub fn read(text: &Secret<Vec<u8>>) -> Result<Self, MalformedKey> {
        let text = text.expose().trim_ascii();
        // Whole groups of three bytes, as the decoders want it.
        let mut bytes = Zeroizing::new([0; 48]);
        let length = match text.strip_prefix(PASERK_HEADER.as_bytes()) {
            Some(text) if text.len() == PASERK_TEXT_LEN => {
                URL_SAFE_NO_PAD.decode_slice(text, &mut bytes[..]).ok()
            }
            Some(_) => None,
            None if text.len() == 2 * KEY_LEN => hex::decode_to_slice(text, &mut bytes[..KEY_LEN])
                .ok()
                .map(|()| KEY_LEN),
            None if text.len() == 44 => STANDARD.decode_slice(text, &mut bytes[..]).ok(),
            None => None,
        };
        let Some(KEY_LEN) = length else {
            return Err(MalformedKey);
        };
        let mut key = Zeroizing::new([0; KEY_LEN]);
        key.copy_from_slice(&bytes[..KEY_LEN]);
        let key = Secret::new(*key);
        match key.matches(&[0; KEY_LEN]) {
            true => Err(MalformedKey),
            false => Ok(Self(key)),
        }
    }

    /// As PASERK `k4.local`.
    #[expect(clippy::disallowed_methods, reason = "a key is written here")]
    pub fn to_paserk(&self) -> Secret<Vec<u8>> {
        // Exactly the room that is needed, so that no growth leaves a copy behind.
        let mut text = vec![0; PASERK_HEADER.len() + PASERK_TEXT_LEN];
        let (header, body) = text.split_at_mut(PASERK_HEADER.len());
        header.copy_from_slice(PASERK_HEADER.as_bytes());
        URL_SAFE_NO_PAD
            .encode_slice(self.0.expose(), body)
            .expect("32 bytes are 43 characters");
        Secret::new(text)
    }

    /// What tells keys apart without telling them: 64 bits of an HMAC, as hexadecimal.
    pub fn id(&self) -> String {
        hex::encode(&self.mac_key("wavry key id").mac(b"")[..8])
    }

    /// A key for HMAC-SHA-256, another one for each `purpose`; this key cannot be had from it.
    #[expect(clippy::disallowed_methods, reason = "a key is used here")]
    pub fn mac_key(&self, purpose: &str) -> MacKey {
        let root = hmac::Key::new(hmac::HMAC_SHA256, self.0.expose());
        let derived = hmac::sign(&root, purpose.as_bytes());
        MacKey(hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()))
    }

    /// Encrypts `value` for the place that `context` names.
    #[expect(clippy::disallowed_methods, reason = "a value is encrypted here")]
    pub fn seal(&self, context: &[u8], value: &Secret<Vec<u8>>) -> Vec<u8> {
        self.seal_bytes(context, value.expose())
    }

    /// Decrypts what was sealed for the place that `context` names.
    pub fn open(&self, context: &[u8], sealed: &[u8]) -> Result<Secret<Vec<u8>>, Forged> {
        let (nonce, body) = sealed
            .split_first_chunk::<NONCE_LEN>()
            .filter(|(_, body)| body.len() >= TAG_LEN)
            .ok_or(Forged)?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        // Only ever in the pages of the secret, which are zeroed if it does not authenticate.
        Secret::filled(body.len(), |room| {
            room.copy_from_slice(body);
            let opened = self.cipher().open_in_place(nonce, Aad::from(context), room);
            opened.map(|value| value.len()).map_err(|_| Forged)
        })
    }

    /// Encrypts another key for the place that `context` names.
    #[expect(clippy::disallowed_methods, reason = "a key is encrypted here")]
    pub fn wrap(&self, context: &[u8], key: &Self) -> Vec<u8> {
        self.seal_bytes(context, key.0.expose())
    }

    /// The key that was wrapped for the place that `context` names.
    pub fn unwrap(&self, context: &[u8], wrapped: &[u8]) -> Result<Self, Forged> {
        let bytes = self.open(context, wrapped)?;
        bytes.into_array().map(Self).ok_or(Forged)
    }

    fn seal_bytes(&self, context: &[u8], value: &[u8]) -> Vec<u8> {
        let nonce = random::bytes::<NONCE_LEN>();
        // The value is encrypted where it is put, and nothing grows: no copy of it is left.
        let mut sealed = Vec::with_capacity(OVERHEAD + value.len());
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(value);
        let tag = self
            .cipher()
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(context),
                &mut sealed[NONCE_LEN..],
            )
            .expect("a value is shorter than 64 GiB");
        sealed.extend_from_slice(tag.as_ref());
        sealed
    }

    /// The library's form of the key, which it zeroes when it is dropped.
    #[expect(clippy::disallowed_methods, reason = "a key is used here")]
    fn cipher(&self) -> LessSafeKey {
        let key = UnboundKey::new(&AES_256_GCM, self.0.expose());
        LessSafeKey::new(key.expect("a key has 32 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn secret(bytes: &[u8]) -> Secret<Vec<u8>> {
        Secret::new(bytes.to_vec())
    }

    #[test]
    fn a_sealed_value_opens_for_its_key_and_place_only() {
        let key = Key::generate();
        let sealed = key.seal(b"here", &secret(b"s3cret"));
        assert!(key.open(b"here", &sealed).unwrap().matches(b"s3cret"));
        assert_eq!(key.open(b"there", &sealed).err(), Some(Forged));
        assert_eq!(Key::generate().open(b"here", &sealed).err(), Some(Forged));
    }

    #[test]
    fn a_wrapped_key_does_what_the_key_does() {
        let (outer, inner) = (Key::generate(), Key::generate());
        let wrapped = outer.wrap(b"term 1", &inner);
        assert_eq!(wrapped.len(), WRAPPED_LEN);
        let unwrapped = outer.unwrap(b"term 1", &wrapped).unwrap();
        let sealed = inner.seal(b"x", &secret(b"s3cret"));
        assert!(unwrapped.open(b"x", &sealed).is_ok());
        assert_eq!(unwrapped.id(), inner.id());
        assert!(outer.unwrap(b"term 2", &wrapped).is_err());
        // A value of another length is no key.
        let short = outer.seal(b"term 1", &secret(b"short"));
        assert!(outer.unwrap(b"term 1", &short).is_err());
    }

    #[test]
    fn nonces_are_never_the_same() {
        let key = Key::generate();
        let nonces = (0..1000).map(|_| key.seal(b"", &secret(b""))[..NONCE_LEN].to_vec());
        assert_eq!(nonces.collect::<std::collections::HashSet<_>>().len(), 1000);
    }

    #[test]
    fn a_key_is_read_from_each_form() {
        let key = Key::generate();
        let bytes = *key.bytes();
        let base64 = STANDARD.encode(bytes);
        let paserk = String::from_utf8(key.to_paserk_for_test()).unwrap();
        for text in [hex::encode(bytes), base64, format!(" {paserk}\n")] {
            assert_eq!(Key::read(&secret(text.as_bytes())).unwrap().id(), key.id());
        }
        for text in [
            "",
            "k4.local.",
            "k4.local.AAAA",
            "k4.secret.x",
            &"0".repeat(64),
            &"g".repeat(64),
        ] {
            assert!(Key::read(&secret(text.as_bytes())).is_err(), "{text}");
        }
    }

    impl Key {
        #[expect(clippy::disallowed_methods, reason = "a test looks")]
        fn to_paserk_for_test(&self) -> Vec<u8> {
            self.to_paserk().expose().to_vec()
        }
    }

    proptest! {
        #[test]
        fn what_was_sealed_is_opened_and_no_byte_of_it_can_be_changed(
            value: Vec<u8>, context: Vec<u8>, at: prop::sample::Index, bit in 0_u8..8,
        ) {
            let key = Key::generate();
            let mut sealed = key.seal(&context, &secret(&value));
            prop_assert!(key.open(&context, &sealed).is_ok_and(|opened| opened.matches(&value)));
            let at = at.index(sealed.len());
            sealed[at] ^= 1 << bit;
            prop_assert!(key.open(&context, &sealed).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let key = Key::generate();
            prop_assert!(key.open(b"", &bytes).is_err());
            prop_assert!(key.unwrap(b"", &bytes).is_err());
            let _ = Key::read(&secret(&bytes));
        }
    }
}
