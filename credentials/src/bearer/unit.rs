//! What a unit of a KeyVault presents there (Vault's HTTP API).

use bytes::Bytes;
use http::HeaderValue;
use serde::Serialize;

use super::{Malformed, Token};
use crate::secret::Secret;

impl Token {
    /// The value of an `x-vault-token` header that carries it.
    #[expect(clippy::disallowed_methods, reason = "a token is sent from here")]
    pub(crate) fn vault_header(&self) -> Result<HeaderValue, Malformed> {
        let mut value = HeaderValue::from_str(self.0.expose()).map_err(|_| Malformed)?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// The value of an `x-amz-security-token` header that carries it (AWS's temporary credentials).
    pub(crate) fn aws_header(&self) -> Result<HeaderValue, Malformed> {
        self.vault_header()
    }
}

/// The body of a login by AppRole.
#[expect(clippy::disallowed_methods, reason = "a login is sent from here")]
pub(crate) fn approle_login(
    role_id: &Secret<Vec<u8>>,
    secret_id: &Secret<Vec<u8>>,
) -> Result<Bytes, Malformed> {
    #[derive(Serialize)]
    struct Login<'a> {
        role_id: &'a str,
        secret_id: &'a str,
    }
    let login = Login {
        role_id: std::str::from_utf8(role_id.expose()).map_err(|_| Malformed)?,
        secret_id: std::str::from_utf8(secret_id.expose()).map_err(|_| Malformed)?,
    };
    serde_json::to_vec(&login)
        .map(Bytes::from)
        .map_err(|_| Malformed)
}

/// Gives a password to who logs in with it: a library that takes it as text, and keeps it.
#[expect(clippy::disallowed_methods, reason = "it is sent by who takes it")]
pub fn with_password<T>(
    password: &Secret<Vec<u8>>,
    take: impl FnOnce(&str) -> T,
) -> Result<T, Malformed> {
    let text = std::str::from_utf8(password.expose()).map_err(|_| Malformed)?;
    Ok(take(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_into_a_header_that_shows_it_to_nobody() {
        let header = Token::new("hvs.s3cret".to_owned()).vault_header().unwrap();
        assert_eq!(header.as_bytes(), b"hvs.s3cret");
        assert!(!format!("{header:?}").contains("s3cret"));
        assert!(Token::new("a\nb".to_owned()).vault_header().is_err());
    }

    #[test]
    fn a_login_is_json_whatever_the_ids_hold() {
        let secret = |text: &str| Secret::new(text.as_bytes().to_vec());
        let body = approle_login(&secret("role"), &secret("a\"b")).unwrap();
        assert_eq!(&body[..], br#"{"role_id":"role","secret_id":"a\"b"}"#);
        let bytes = Secret::new(vec![0xff]);
        assert!(approle_login(&bytes, &secret("x")).is_err());
    }
}
