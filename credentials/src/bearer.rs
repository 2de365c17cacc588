//! Bearer tokens as their holders present them: secrets, until they expire. One of the two places
//! that see a secret's bytes; [`crate::key`] is the other.

mod json;
pub mod jwt;
mod unit;

use std::{fmt, str::FromStr};

use aws_lc_rs::hmac;
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use wavry_proto::{
    control::Register,
    id::{ClusterName, ServiceName},
    token::{Claims, MAX_TOKEN_LEN, Session},
};

use zeroize::Zeroizing;

use crate::{
    audit, random,
    secret::Secret,
    token::{Grounds, KeySet, Rejected, Scope, Standing},
};

pub use json::{Document, Json, MAX_DEPTH, Members, Misread, Plaintext};
pub(crate) use unit::approle_login;
pub use unit::with_password;

/// A token that proves who its holder is.
pub struct Token(pub(crate) Secret<String>);

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

    /// A new one that nobody can guess: `prefix` and 256 random bits as base64url.
    pub fn random(prefix: &str) -> Self {
        let bytes = Zeroizing::new(random::bytes::<32>());
        // Exactly the room that is needed, so that no growth leaves a copy behind.
        let mut text = vec![0; prefix.len() + 43];
        text[..prefix.len()].copy_from_slice(prefix.as_bytes());
        URL_SAFE_NO_PAD
            .encode_slice(*bytes, &mut text[prefix.len()..])
            .expect("32 bytes are 43 characters");
        Self::new(String::from_utf8(text).expect("base64url is ASCII"))
    }

    /// Another copy, for an answer to its holder.
    #[expect(clippy::disallowed_methods, reason = "a token is copied here")]
    pub fn copied(&self) -> Self {
        Self::new(self.0.expose().to_owned())
    }

    /// As [`Token::random`], with 144 random bits: what people are to type.
    pub fn short(prefix: &str) -> Self {
        let bytes = Zeroizing::new(random::bytes::<18>());
        let mut text = vec![0; prefix.len() + 24];
        text[..prefix.len()].copy_from_slice(prefix.as_bytes());
        URL_SAFE_NO_PAD
            .encode_slice(*bytes, &mut text[prefix.len()..])
            .expect("18 bytes are 24 characters");
        Self::new(String::from_utf8(text).expect("base64url is ASCII"))
    }

    /// What tells it in an audit log.
    #[expect(clippy::disallowed_methods, reason = "a token is identified here")]
    pub fn identifier(&self, key: &audit::Key) -> String {
        key.identifier(self.0.expose())
    }

    /// It, byte for byte XOR another text of the same length, as base64 without padding: for who
    /// knows the other text, and nobody else.
    #[expect(clippy::disallowed_methods, reason = "a token is hidden here")]
    pub fn hidden_with(&self, other: &Self) -> Option<String> {
        let (own, other) = (self.0.expose().as_bytes(), other.0.expose().as_bytes());
        if own.len() != other.len() {
            return None;
        }
        let hidden: Vec<u8> = own.iter().zip(other).map(|(a, b)| a ^ b).collect();
        Some(STANDARD_NO_PAD.encode(hidden))
    }

    /// Whether it is `length` bytes long.
    #[expect(clippy::disallowed_methods, reason = "only its length is seen")]
    pub fn has_length(&self, length: usize) -> bool {
        self.0.expose().len() == length
    }

    /// Whether it is longer than `length` bytes.
    #[expect(clippy::disallowed_methods, reason = "only its length is seen")]
    pub fn is_longer_than(&self, length: usize) -> bool {
        self.0.expose().len() > length
    }

    /// Whether its text is this. Takes as long wherever they differ.
    pub fn matches(&self, text: &str) -> bool {
        self.0.matches(text.as_bytes())
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

/// A member of an object that is taken in with it.
impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

/// A key under which a store knows tokens that it does not hold.
pub struct Fingerprints(hmac::Key);

/// What a store knows a token by: its HMAC-SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprints {
    /// A new key, to be kept as a secret.
    pub fn generate() -> Secret<Vec<u8>> {
        Secret::new(random::bytes::<32>().to_vec())
    }

    /// From the key.
    #[expect(clippy::disallowed_methods, reason = "a key is used here")]
    pub fn new(key: &Secret<Vec<u8>>) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key.expose()))
    }

    /// What a token is known by, for `purpose`: a token of one kind is not known as one of another.
    #[expect(clippy::disallowed_methods, reason = "a token is looked up here")]
    pub fn of(&self, purpose: &str, token: &Token) -> Fingerprint {
        self.of_name(purpose, token.0.expose())
    }

    /// What a name that is no secret is known by.
    pub fn of_name(&self, purpose: &str, name: &str) -> Fingerprint {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(purpose.as_bytes());
        // It is in no purpose, so that purpose and name cannot trade bytes.
        context.update(&[0]);
        context.update(name.as_bytes());
        let tag = context.sign();
        Fingerprint(tag.as_ref().try_into().expect("SHA-256 gives 32 bytes"))
    }
}

/// Not the hexadecimal of a fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a fingerprint")]
pub struct NotAFingerprint;

impl FromStr for Fingerprint {
    type Err = NotAFingerprint;
    fn from_str(text: &str) -> Result<Self, NotAFingerprint> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| NotAFingerprint)?;
        Ok(Self(bytes))
    }
}

/// As hexadecimal.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes)
            .map_err(|_| D::Error::custom("not a fingerprint"))?;
        Ok(Self(bytes))
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
    fn random_tokens_differ_and_begin_with_what_tells_their_kind() {
        let (one, other) = (Token::random("hvs."), Token::random("hvs."));
        assert!(!one.is_longer_than(47) && one.is_longer_than(46));
        let text = one.authorization();
        assert!(text.starts_with("Bearer hvs."));
        assert_ne!(text, other.authorization());
    }

    #[test]
    fn a_token_that_was_hidden_is_found_with_what_hid_it_only() {
        let (token, other) = (Token::short("hvs."), Token::short("otp."));
        assert!(token.has_length(28) && !token.has_length(27));
        let hidden = STANDARD_NO_PAD
            .decode(token.hidden_with(&other).unwrap())
            .unwrap();
        let hidden = Token::new(String::from_utf8(hidden).unwrap());
        let shown = STANDARD_NO_PAD
            .decode(hidden.hidden_with(&other).unwrap())
            .unwrap();
        assert!(token.matches(std::str::from_utf8(&shown).unwrap()));
        assert_eq!(token.hidden_with(&Token::random("")), None);
    }

    #[test]
    fn a_fingerprint_depends_on_key_purpose_and_token() {
        let key = Fingerprints::generate();
        let (one, same) = (Fingerprints::new(&key), Fingerprints::new(&key));
        let other = Fingerprints::new(&Fingerprints::generate());
        let token = Token::new("t".to_owned());
        let print = one.of("token", &token);
        assert_eq!(print, same.of("token", &token));
        assert_eq!(print, one.of_name("token", "t"));
        assert_ne!(print, other.of("token", &token));
        assert_ne!(print, one.of("secret-id", &token));
        assert_ne!(print, one.of("token", &Token::new("u".to_owned())));
        let text = serde_json::to_string(&print).unwrap();
        assert_eq!(text, format!("\"{print}\""));
        assert_eq!(serde_json::from_str::<Fingerprint>(&text).unwrap(), print);
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
