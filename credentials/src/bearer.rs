//! Bearer tokens as their holders present them: secrets, until they expire. One of the two places
//! that see a secret's bytes; [`crate::key`] is the other.

mod unit;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use wavry_proto::{
    control::Register,
    id::{ClusterName, ServiceName},
    token::{Claims, MAX_TOKEN_LEN, Session},
};

use crate::{
    secret::Secret,
    token::{Grounds, KeySet, Rejected, Scope, Standing},
};

pub(crate) use unit::approle_login;

/// A token that proves who its holder is.
pub struct Token(Secret<String>);

/// A file that does not hold a token: not text, empty, or longer than any token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a token")]
pub struct Malformed;

impl Token {
    /// Takes in a token that arrived as text.
    pub fn new(text: String) -> Self {
        Self(Secret::new(text))
    }

    /// Reads what a file holds; white space around it is ignored.
    #[expect(clippy::disallowed_methods, reason = "a token is read here")]
    pub fn read(file: &Secret<Vec<u8>>) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(file.expose()).map_err(|_| Malformed)?;
        let text = text.trim();
        if text.is_empty() || text.len() > MAX_TOKEN_LEN {
            return Err(Malformed);
        }
        Ok(Self::new(text.to_owned()))
    }

    /// Verifies it; see [`KeySet::verify`].
    #[expect(clippy::disallowed_methods, reason = "a token is checked here")]
    pub fn verify<C: Claims>(
        &self,
        keys: &KeySet,
        scope: Scope<'_>,
        now: u64,
    ) -> Result<C, Rejected> {
        keys.verify(self.0.expose(), scope, now)
    }

    /// Verifies a session token; see [`Standing::verify`].
    #[expect(clippy::disallowed_methods, reason = "a token is checked here")]
    pub fn verify_session(
        &self,
        standing: &Standing,
        cluster: &ClusterName,
        service: &ServiceName,
        now: u64,
    ) -> Result<(Session, Grounds), Rejected> {
        standing.verify(self.0.expose(), cluster, service, now)
    }

    /// The value of an `authorization` header that carries it (RFC 6750, section 2.1).
    #[expect(clippy::disallowed_methods, reason = "a token is sent from here")]
    pub fn authorization(&self) -> String {
        format!("Bearer {}", self.0.expose())
    }

    /// Puts it into the request for which it was made.
    #[expect(clippy::disallowed_methods, reason = "a token is sent from here")]
    pub(crate) fn put_in(&self, request: &mut Register) {
        request.token = self.0.expose().to_owned();
    }

    /// The `jti` of a PASETO that the holder was given, and whose signature only its issuer checks.
    #[expect(clippy::disallowed_methods, reason = "a token is read here")]
    pub(crate) fn id(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Payload {
            jti: String,
        }
        let body = self.0.expose().strip_prefix("v4.public.")?;
        let body = URL_SAFE_NO_PAD.decode(body.split('.').next()?).ok()?;
        let (payload, _signature) = body.split_last_chunk::<64>()?;
        let payload: Payload = serde_json::from_slice(payload).ok()?;
        Some(payload.jti)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(file: &[u8]) -> Result<Token, Malformed> {
        Token::read(&Secret::new(file.to_vec()))
    }

    #[test]
    fn a_file_may_end_in_a_line_break_and_its_token_does_not() {
        let token = read(b" v4.public.x\r\n").unwrap();
        assert_eq!(token.authorization(), "Bearer v4.public.x");
    }

    #[test]
    fn files_without_a_token_are_refused() {
        for file in [&b""[..], b" \n", b"\xff", &[b'a'; MAX_TOKEN_LEN + 1]] {
            assert!(read(file).is_err());
        }
    }

    #[test]
    fn the_id_of_a_token_is_read_without_its_issuers_key() {
        let mut body = br#"{"jti":"one","sub":"x"}"#.to_vec();
        body.extend([0; 64]);
        let text = format!("v4.public.{}.Zm9v", URL_SAFE_NO_PAD.encode(&body));
        assert_eq!(Token::new(text).id().as_deref(), Some("one"));
    }

    proptest! {
        #[test]
        fn arbitrary_files_never_panic(file: Vec<u8>, text: String) {
            let _ = read(&file).map(|token| token.id());
            let _ = Token::new(format!("v4.public.{text}")).id();
        }
    }
}
