//! Requests for certificates (PKCS #10, RFC 2986). `fuzz` reads this file by itself.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{
    CertificateSigningRequestParams, PKCS_ECDSA_P256_SHA256, PublicKey, PublicKeyData as _,
};
use rustls_pki_types::CertificateSigningRequestDer;

/// Longest request for a certificate, in bytes (DER): several times that of a P-256 key.
pub const MAX_REQUEST_LEN: usize = 4096;
/// An uncompressed point of P-256 (SEC 1, section 2.3.3).
const POINT_LEN: usize = 65;
const UNCOMPRESSED: u8 = 4;

/// A request for a certificate whose signature holds. All it says but for its key is passed over: what a
/// certificate says, who issues it knows.
#[derive(Debug)]
pub struct Request(PublicKey);

/// What is no request for a certificate that can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a PKCS #10 request that a P-256 key has signed, of {MAX_REQUEST_LEN} bytes at most")]
pub struct MalformedRequest;

impl Request {
    /// Reads DER, and checks that who asks holds the key.
    pub fn read(der: &[u8]) -> Result<Self, MalformedRequest> {
        if der.len() > MAX_REQUEST_LEN {
            return Err(MalformedRequest);
        }
        let request = CertificateSigningRequestDer::from(der);
        let request = CertificateSigningRequestParams::from_der(&request);
        let key = request.map_err(|_| MalformedRequest)?.public_key;
        let point = key.der_bytes();
        // The algorithm is that of the signature, which other curves may have too.
        let is_p256 = key.algorithm() == &PKCS_ECDSA_P256_SHA256
            && point.len() == POINT_LEN
            && point[0] == UNCOMPRESSED;
        is_p256.then_some(Self(key)).ok_or(MalformedRequest)
    }

    /// Reads base64 of DER.
    pub fn from_base64(text: &str) -> Result<Self, MalformedRequest> {
        if text.len() > MAX_REQUEST_LEN.div_ceil(3) * 4 {
            return Err(MalformedRequest);
        }
        let der = STANDARD.decode(text).map_err(|_| MalformedRequest)?;
        Self::read(&der)
    }

    /// The key that signed it, which the certificate is to be for.
    pub(super) fn key(&self) -> &PublicKey {
        &self.0
    }
}
