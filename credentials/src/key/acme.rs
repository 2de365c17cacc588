//! Keys that an ACME client uses (RFC 8555): of its accounts, and of certificates that it asks for.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use instant_acme::{AccountCredentials, ExternalAccountKey};
use zeroize::Zeroizing;

use super::{
    Malformed,
    format::{Fault, fault},
};
use crate::secret::Secret;

/// A private key for a certificate that is asked for: P-256.
pub(crate) struct CertificateKey(rcgen::KeyPair);

impl CertificateKey {
    /// A new one.
    pub(crate) fn generate() -> Result<Self, rcgen::Error> {
        rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map(Self)
    }

    /// DER of a request for a certificate with `names` (PKCS #10).
    pub(crate) fn request(&self, names: &[String]) -> Result<Vec<u8>, rcgen::Error> {
        let mut params = rcgen::CertificateParams::new(names)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        Ok(params.serialize_request(&self.0)?.der().to_vec())
    }

    /// What [`to_pem`](Self::to_pem) wrote.
    pub(crate) fn from_pem(pem: &Secret<Vec<u8>>) -> Result<Self, Malformed> {
        super::issuing_from_pem(pem).map(Self)
    }

    /// As PKCS#8 PEM.
    pub(crate) fn to_pem(&self) -> Secret<Vec<u8>> {
        Secret::new(self.0.serialize_pem().into_bytes())
    }
}

/// An account, with its key, from the text that [`account_to_text`] made.
#[expect(clippy::disallowed_methods, reason = "a key is read here")]
pub(crate) fn account_from_text(text: &Secret<Vec<u8>>) -> Result<AccountCredentials, Malformed> {
    serde_json::from_slice(text.expose()).map_err(|_| Malformed)
}

/// An account, with its key, as JSON.
pub(crate) fn account_to_text(account: &AccountCredentials) -> Secret<Vec<u8>> {
    // More than it needs, so that no growth leaves a copy behind.
    let mut text = Vec::with_capacity(4096);
    serde_json::to_writer(&mut text, account).expect("an account is plain data with text keys");
    Secret::new(text)
}

/// The key that binds an account to one elsewhere (RFC 8555, section 7.3.4), in base64url as authorities
/// give it.
#[expect(clippy::disallowed_methods, reason = "a key is read here")]
pub(crate) fn external_account(
    id: &str,
    text: &Secret<Vec<u8>>,
) -> Result<ExternalAccountKey, Fault> {
    let bytes = text.expose();
    let text = bytes.trim_ascii();
    let padding = text.iter().rev().take_while(|byte| **byte == b'=').count();
    let key = URL_SAFE_NO_PAD.decode(&text[..text.len() - padding]);
    let key = key.map_err(|_| fault(bytes, 0, "a key in base64url"))?;
    Ok(ExternalAccountKey::new(id.to_owned(), &Zeroizing::new(key)))
}

/// The URL of the authority's directory in the text of an account.
#[expect(
    clippy::disallowed_methods,
    reason = "what stands beside a key is read here"
)]
pub(crate) fn account_directory(text: &Secret<Vec<u8>>) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Account {
        directory: String,
    }
    let account: Account = serde_json::from_slice(text.expose()).ok()?;
    Some(account.directory)
}
