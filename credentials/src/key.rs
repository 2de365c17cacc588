//! Private keys: from the text they are kept in to what is done with them. One of the two places
//! that see a secret's bytes; [`crate::bearer`] is the other.
//!
//! A key rests in [`Secret`] pages. Each operation makes the form that its library wants, on the
//! stack or for a moment on the heap, and zeroes it. TLS keys are the exception: rustls hands them
//! to aws-lc, which keeps them in memory of its own.
//!
//! * `acme`: keys of accounts with authorities, and of certificates that are asked for.
//! * [`aead`]: keys that encrypt, and wrap other keys.
//! * [`ring`]: keys that several processes seal with for each other.
//! * [`record`]: records of our own as secret text.
//! * [`shamir`]: a key in shares.
//! * [`tsig`]: keys that sign changes of the DNS.
//! * `sigv4`: keys that sign requests to AWS.
//! * [`transit`]: keys that the KeyVault uses for others.
//! * [`mod@format`]: the forms in which people keep secrets.

pub(crate) mod acme;
pub mod aead;
pub mod format;
pub mod record;
pub mod ring;
pub mod shamir;
pub(crate) mod sigv4;
pub mod transit;
pub mod tsig;

use std::sync::Arc;

use aws_lc_rs::hmac;
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use ed25519_dalek::{Signer, SigningKey, VerifyingKey, pkcs8::DecodePrivateKey};
use pasetors::{
    keys::AsymmetricSecretKey,
    version4::{PublicToken, V4},
};
use rustls::crypto::aws_lc_rs::sign;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use zeroize::{Zeroize, Zeroizing};

use crate::secret::Secret;

/// DER of a PKCS#8 Ed25519 key up to the 32 bytes of the key (RFC 8410, section 7). Version 1,
/// without the public half, which OpenSSL does not read.
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
const PEM_START: &str = "-----BEGIN PRIVATE KEY-----\n";
const PEM_END: &str = "\n-----END PRIVATE KEY-----\n";
const PASERK_HEADER: &str = "k4.secret.";
/// Characters of base64url for the 64 bytes of a PASERK `k4.secret`.
const PASERK_TEXT_LEN: usize = 86;

/// What purports to be a key and is none, or not of the kind expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// An Ed25519 private key, which is its seed (RFC 8032, section 5.1.5).
pub(crate) struct Ed25519 {
    seed: Secret<[u8; 32]>,
    public: [u8; 32],
}

impl Ed25519 {
    /// A new one.
    pub(crate) fn generate() -> Self {
        Self::from_seed(Secret::random())
    }

    pub(crate) fn from_seed(seed: Secret<[u8; 32]>) -> Self {
        let public = signing_key(&seed).verifying_key().to_bytes();
        Self { seed, public }
    }

    /// Reads PKCS#8 PEM.
    #[expect(clippy::disallowed_methods, reason = "a key is read here")]
    pub(crate) fn from_pem(pem: &Secret<Vec<u8>>) -> Result<Self, Malformed> {
        let mut der = PrivatePkcs8KeyDer::from_pem_slice(pem.expose()).map_err(|_| Malformed)?;
        let key = SigningKey::from_pkcs8_der(der.secret_pkcs8_der());
        der.zeroize();
        let key = key.map_err(|_| Malformed)?;
        Self::checked(Secret::new(key.to_bytes()))
    }

    /// As PKCS#8 PEM.
    pub(crate) fn to_pem(&self) -> Secret<Vec<u8>> {
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

    /// Reads PASERK `k4.secret`; white space around it is ignored.
    #[expect(clippy::disallowed_methods, reason = "a key is read here")]
    pub(crate) fn from_paserk(text: &Secret<Vec<u8>>) -> Result<Self, Malformed> {
        let text = text.expose().trim_ascii();
        let text = text
            .strip_prefix(PASERK_HEADER.as_bytes())
            .filter(|text| text.len() == PASERK_TEXT_LEN)
            .ok_or(Malformed)?;
        // Whole groups of three bytes, as the decoder wants it.
        let mut bytes = Zeroizing::new([0; 66]);
        let length = URL_SAFE_NO_PAD
            .decode_slice(text, &mut bytes[..])
            .map_err(|_| Malformed)?;
        let (seed, public) = bytes[..length].split_first_chunk().ok_or(Malformed)?;
        let key = Self::checked(Secret::new(*seed))?;
        // The halves must belong together.
        if key.public != *public {
            return Err(Malformed);
        }
        Ok(key)
    }

    /// As PASERK `k4.secret`.
    pub(crate) fn to_paserk(&self) -> Secret<Vec<u8>> {
        // Exactly the room that is needed, so that no growth leaves a copy behind.
        let mut text = vec![0; PASERK_HEADER.len() + PASERK_TEXT_LEN];
        let (header, body) = text.split_at_mut(PASERK_HEADER.len());
        header.copy_from_slice(PASERK_HEADER.as_bytes());
        URL_SAFE_NO_PAD
            .encode_slice(*self.halves(), body)
            .expect("64 bytes are 86 characters");
        Secret::new(text)
    }

    /// The public half.
    pub(crate) fn public(&self) -> [u8; 32] {
        self.public
    }

    /// An Ed25519 signature (RFC 8032).
    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        signing_key(&self.seed).sign(message).to_bytes()
    }

    /// A PASETO v4.public token.
    pub(crate) fn paseto(&self, payload: &[u8], footer: &[u8], assertion: &[u8]) -> String {
        let halves = self.halves();
        // Zeroes itself when dropped.
        let key = AsymmetricSecretKey::<V4>::from(&halves[..])
            .expect("the key was checked when it was read");
        PublicToken::sign(&key, payload, Some(footer), Some(assertion))
            .expect("the caller's payload is not empty")
    }

    /// A key for HMAC-SHA-256 (RFC 2104), another one for each `purpose`; this key cannot be had from
    /// it.
    #[expect(clippy::disallowed_methods, reason = "a key is used here")]
    pub(crate) fn mac_key(&self, purpose: &str) -> MacKey {
        let root = hmac::Key::new(hmac::HMAC_SHA256, self.seed.expose());
        let derived = hmac::sign(&root, purpose.as_bytes());
        MacKey(hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()))
    }

    /// A key for HMAC-SHA-256 that this key and the one whose public half is `other` have in common, and
    /// nobody else: X25519 (RFC 7748) between the two, as points of the same curve, hashed with `purpose` and
    /// both public halves. That one pair of keys may serve for both was shown by E. Thormarker (IACR ePrint
    /// 2021/509). `None` where `other` is no key, or a weak one.
    #[expect(clippy::disallowed_methods, reason = "a key is used here")]
    pub(crate) fn common_mac_key(&self, other: &[u8; 32], purpose: &str) -> Option<MacKey> {
        let point = VerifyingKey::from_bytes(other).ok()?;
        if point.is_weak() {
            return None;
        }
        // Clamped, so that nothing of order 8 in the other's key tells anything of this one.
        let scalar = Zeroizing::new(SigningKey::from_bytes(self.seed.expose()).to_scalar_bytes());
        let common = Zeroizing::new(point.to_montgomery().mul_clamped(*scalar).to_bytes());
        let root = hmac::Key::new(hmac::HMAC_SHA256, &common[..]);
        let (low, high) = (self.public.min(*other), self.public.max(*other));
        let derived = hmac::sign(&root, &[purpose.as_bytes(), &low, &high].concat());
        Some(MacKey(hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref())))
    }

    /// A key that seals other signing keys; this key cannot be had from it.
    #[expect(clippy::disallowed_methods, reason = "a key is used here")]
    pub(crate) fn sealing_key(&self) -> aead::Key {
        let root = hmac::Key::new(hmac::HMAC_SHA256, self.seed.expose());
        let derived = hmac::sign(&root, b"wavry signing keys");
        let bytes = derived.as_ref().try_into();
        aead::Key::of(Secret::new(bytes.expect("SHA-256 gives 32 bytes")))
    }

    /// As a key that rustls signs with.
    pub(crate) fn tls(&self) -> Result<Arc<dyn rustls::sign::SigningKey>, rustls::Error> {
        let der = self.to_der();
        sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(&der[..]))
    }

    /// A file of zeros is nobody's key, and the PASETO library panics on one.
    fn checked(seed: Secret<[u8; 32]>) -> Result<Self, Malformed> {
        if seed.matches(&[0; 32]) {
            return Err(Malformed);
        }
        Ok(Self::from_seed(seed))
    }

    /// The seed and the public half after it, as PASERK has it.
    #[expect(clippy::disallowed_methods, reason = "a key is written here")]
    fn halves(&self) -> Zeroizing<[u8; 64]> {
        let mut halves = Zeroizing::new([0; 64]);
        halves[..32].copy_from_slice(self.seed.expose());
        halves[32..].copy_from_slice(&self.public);
        halves
    }

    #[expect(clippy::disallowed_methods, reason = "a key is written here")]
    fn to_der(&self) -> Zeroizing<[u8; 48]> {
        let mut der = Zeroizing::new([0; 48]);
        der[..16].copy_from_slice(&PKCS8_PREFIX);
        der[16..].copy_from_slice(self.seed.expose());
        der
    }
}

/// It zeroes itself when dropped.
#[expect(clippy::disallowed_methods, reason = "a key is used here")]
fn signing_key(seed: &Secret<[u8; 32]>) -> SigningKey {
    SigningKey::from_bytes(seed.expose())
}

/// A key for HMAC-SHA-256 (RFC 2104).
pub struct MacKey(hmac::Key);

impl MacKey {
    /// HMAC-SHA-256 of `message`.
    pub fn mac(&self, message: &[u8]) -> [u8; 32] {
        let tag = hmac::sign(&self.0, message);
        tag.as_ref().try_into().expect("SHA-256 gives 32 bytes")
    }
}

/// The certificates in PEM that is kept like a secret, with their key.
#[expect(
    clippy::disallowed_methods,
    reason = "what stands beside a key is read here"
)]
pub(crate) fn certificates_from_pem(
    pem: &Secret<Vec<u8>>,
) -> Result<Vec<CertificateDer<'static>>, Malformed> {
    let certificates = CertificateDer::pem_slice_iter(pem.expose()).collect::<Result<_, _>>();
    certificates.map_err(|_| Malformed)
}

/// The private key in a PEM file, as rustls signs with it. The error says what the file is not.
#[expect(clippy::disallowed_methods, reason = "a key is read here")]
pub(crate) fn tls_from_pem(
    pem: &Secret<Vec<u8>>,
) -> Result<Arc<dyn rustls::sign::SigningKey>, &'static str> {
    let mut der =
        PrivateKeyDer::from_pem_slice(pem.expose()).map_err(|_| "has no private key in PEM")?;
    let key = sign::any_supported_type(&der);
    der.zeroize();
    key.map_err(|_| "is not a key that TLS can use")
}

/// The private key in a PEM file, to sign certificates with.
#[expect(clippy::disallowed_methods, reason = "a key is read here")]
pub(crate) fn issuing_from_pem(pem: &Secret<Vec<u8>>) -> Result<rcgen::KeyPair, Malformed> {
    let pem = std::str::from_utf8(pem.expose()).map_err(|_| Malformed)?;
    rcgen::KeyPair::from_pem(pem).map_err(|_| Malformed)
}
