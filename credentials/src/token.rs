//! PASETO v4.public tokens, signed and verified by purpose.
//!
//! The footer is `{"kid":"k4.pid…"}` and nothing else. The implicit assertion is purpose, cluster,
//! audience and, where one exists, the channel binding ([`wavry_proto::token::implicit_assertion`]
//! has its encoding); it is not sent, so a token is only good for whoever expects it.

pub mod lease;
mod standing;

use std::{collections::HashMap, sync::Arc};

use pasetors::{
    Public,
    keys::AsymmetricPublicKey,
    paserk::{FormatAsPaserk, Id},
    token::UntrustedToken,
    version4::{PublicToken, V4},
};
use wavry_proto::{
    id::{ClusterName, PublicKey},
    token::{self, Claims, KeyId, NotValid},
};

use crate::{
    identity::Identity,
    key::{Ed25519, MacKey, aead::Forged, format},
    secret::Secret,
};

pub use standing::{Grounds, Standing, digest};

/// Where a token is good: its cluster, audience and channel binding (empty for none).
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// The cluster.
    pub cluster: &'a ClusterName,
    /// Who is to accept it.
    pub audience: &'a str,
    /// TLS exporter of the connection it is bound to, or empty.
    pub binding: &'a [u8],
}

impl Scope<'_> {
    pub(crate) fn assertion<C: Claims>(&self) -> Vec<u8> {
        token::implicit_assertion(C::PURPOSE, self.cluster, self.audience, self.binding)
    }
}

/// An Ed25519 key that signs tokens.
pub struct SigningKey {
    key: Arc<Ed25519>,
    public: AsymmetricPublicKey<V4>,
    footer: String,
}

impl SigningKey {
    /// A new one.
    pub fn generate() -> Self {
        Self::of(Arc::new(Ed25519::generate()))
    }

    /// Reads PASERK `k4.secret`; white space around it is ignored.
    pub fn from_paserk(text: &Secret<Vec<u8>>) -> Result<Self, MalformedKey> {
        let key = Ed25519::from_paserk(text).map_err(|_| MalformedKey("k4.secret"))?;
        Ok(Self::of(Arc::new(key)))
    }

    /// Reads it in any form that [`mod@format`] knows.
    pub fn read(text: &Secret<Vec<u8>>) -> Result<Self, format::Fault> {
        Ok(Self::of(Arc::new(format::ed25519(text)?)))
    }

    /// As PASERK `k4.secret`.
    pub fn to_paserk(&self) -> Secret<Vec<u8>> {
        self.key.to_paserk()
    }

    /// The public half as PASERK `k4.public`.
    pub fn public_paserk(&self) -> String {
        paserk(&self.public)
    }

    /// The public half.
    pub fn public_key(&self) -> PublicKey {
        PublicKey(self.key.public())
    }

    /// The id that stands in the footer of what this key signs.
    pub fn key_id(&self) -> KeyId {
        key_id(&self.public)
    }

    /// Signs `claims`. Claims whose token is longer than [`Claims::MAX_LEN`] verify nowhere.
    pub fn sign<C: Claims>(&self, claims: &C, scope: Scope<'_>) -> String {
        let payload = serde_json::to_vec(claims).expect("claims are plain data with text keys");
        let assertion = scope.assertion::<C>();
        self.key
            .paseto(&payload, self.footer.as_bytes(), &assertion)
    }

    /// An Ed25519 signature (RFC 8032).
    pub(crate) fn signature(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message)
    }

    /// The set that holds this key's public half alone.
    pub fn key_set(&self) -> KeySet {
        KeySet::index([self.public.clone()])
    }

    /// Seals another key so that only this one [opens](Self::open) it: AES-256-GCM under a key that is
    /// derived for that alone, with the other's public half as associated data.
    pub fn seal(&self, other: &Self) -> Vec<u8> {
        let context = other.public_paserk();
        let sealing = self.key.sealing_key();
        sealing.seal(context.as_bytes(), &other.to_paserk())
    }

    /// Opens a key that this one sealed, and whose public half is `public` (PASERK `k4.public`).
    pub fn open(&self, sealed: &[u8], public: &str) -> Result<Self, MalformedKey> {
        let malformed = || MalformedKey("sealed");
        let opened = self.key.sealing_key().open(public.as_bytes(), sealed);
        let key = Self::from_paserk(&opened.map_err(|_| malformed())?)?;
        match key.public_paserk() == public {
            true => Ok(key),
            false => Err(malformed()),
        }
    }

    /// Seals a secret that is no key of this kind, for the place that `context` names, so that only this key
    /// [opens](Self::open_secret) it there.
    pub fn seal_secret(&self, context: &str, secret: &Secret<Vec<u8>>) -> Vec<u8> {
        self.key.sealing_key().seal(context.as_bytes(), secret)
    }

    /// Opens a secret that this key sealed for the place that `context` names.
    pub fn open_secret(&self, context: &str, sealed: &[u8]) -> Result<Secret<Vec<u8>>, Forged> {
        self.key.sealing_key().open(context.as_bytes(), sealed)
    }

    /// A key to hide identifiers with; see [`Ed25519::mac_key`].
    pub(crate) fn mac_key(&self, purpose: &str) -> MacKey {
        self.key.mac_key(purpose)
    }

    fn of(key: Arc<Ed25519>) -> Self {
        let public = AsymmetricPublicKey::from(&key.public()).expect("a public key has 32 bytes");
        let footer = token::footer(&key_id(&public));
        Self {
            key,
            public,
            footer,
        }
    }
}

impl From<&Identity> for SigningKey {
    fn from(identity: &Identity) -> Self {
        Self::of(identity.key().clone())
    }
}

/// Not a PASERK key of the kind expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a PASERK {0} key")]
pub struct MalformedKey(pub &'static str);

/// Public keys, found by the `kid` in a token's footer. Cheap to clone.
#[derive(Clone, Default)]
pub struct KeySet {
    keys: Arc<HashMap<KeyId, AsymmetricPublicKey<V4>>>,
}

impl KeySet {
    /// From PASERK `k4.public` texts.
    pub fn from_paserk<S: AsRef<str>>(keys: &[S]) -> Result<Self, MalformedKey> {
        let keys = keys.iter().map(|key| {
            AsymmetricPublicKey::try_from(key.as_ref().trim())
                .map_err(|_| MalformedKey("k4.public"))
        });
        Ok(Self::index(keys.collect::<Result<Vec<_>, _>>()?))
    }

    /// From nodes' identities.
    pub fn from_public_keys(keys: &[PublicKey]) -> Self {
        let keys = keys
            .iter()
            .map(|key| AsymmetricPublicKey::from(&key.0).expect("a public key has 32 bytes"));
        Self::index(keys)
    }

    /// Checks length, grammar, key, signature, scope and — against `now`, seconds since the Unix
    /// epoch — validity: no longer than its purpose may have, 30 s of skew on `nbf` and `iat`, none on
    /// `exp`.
    pub fn verify<C: Claims>(
        &self,
        token: &str,
        scope: Scope<'_>,
        now: u64,
    ) -> Result<C, Rejected> {
        if token.len() > C::MAX_LEN {
            return Err(Rejected::TooLong);
        }
        let unverified = token::parse(token).map_err(|_| Rejected::Malformed)?;
        let key = self.keys.get(&unverified.key).ok_or(Rejected::UnknownKey)?;
        let payload = signed_payload(key, token, &scope.assertion::<C>())?;
        let claims: C = serde_json::from_str(&payload).map_err(|_| Rejected::Claims)?;
        if let Some(validity) = claims.validity() {
            validity.lasts(C::MAX_LIFETIME)?;
            validity.check(now)?;
        }
        Ok(claims)
    }

    /// This set, and one key more (PASERK `k4.public`).
    pub(crate) fn with(&self, key: &str) -> Result<Self, MalformedKey> {
        let more = Self::from_paserk(&[key])?;
        let all = self.keys.values().chain(more.keys.values());
        Ok(Self::index(all.cloned()))
    }

    /// Whether a key is in it.
    pub fn has(&self, key: &KeyId) -> bool {
        self.keys.contains_key(key)
    }

    fn index(keys: impl IntoIterator<Item = AsymmetricPublicKey<V4>>) -> Self {
        let keys = keys.into_iter().map(|key| (key_id(&key), key)).collect();
        Self {
            keys: Arc::new(keys),
        }
    }
}

/// What `key` signed, together with the token's footer and `assertion`.
fn signed_payload(
    key: &AsymmetricPublicKey<V4>,
    token: &str,
    assertion: &[u8],
) -> Result<String, Rejected> {
    let untrusted =
        UntrustedToken::<Public, V4>::try_from(token).map_err(|_| Rejected::Malformed)?;
    let trusted = PublicToken::verify(key, &untrusted, None, Some(assertion))
        .map_err(|_| Rejected::Signature)?;
    Ok(trusted.payload().to_owned())
}

/// A public key as PASERK `k4.public`.
pub fn paserk_of(key: &PublicKey) -> String {
    paserk(&AsymmetricPublicKey::from(&key.0).expect("a public key has 32 bytes"))
}

/// Its PASERK id, `k4.pid`.
pub fn id_of(key: &PublicKey) -> KeyId {
    key_id(&AsymmetricPublicKey::from(&key.0).expect("a public key has 32 bytes"))
}

/// The public key in PASERK `k4.public`.
pub fn public_of(text: &str) -> Result<PublicKey, MalformedKey> {
    let malformed = || MalformedKey("k4.public");
    let key = AsymmetricPublicKey::<V4>::try_from(text.trim()).map_err(|_| malformed())?;
    let bytes = key.as_bytes().try_into().map_err(|_| malformed())?;
    Ok(PublicKey(bytes))
}

fn paserk(key: &impl FormatAsPaserk) -> String {
    let mut text = String::new();
    key.fmt(&mut text).expect("writing to a String cannot fail");
    text
}

fn key_id(key: &AsymmetricPublicKey<V4>) -> KeyId {
    paserk(&Id::from(key))
        .parse()
        .expect("pasetors writes well-formed ids")
}

/// Why a token is not accepted. Says nothing of its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// Over the length limit.
    #[error("token is too long")]
    TooLong,
    /// Not a v4.public token with a footer that names a key.
    #[error("token is malformed")]
    Malformed,
    /// Signed by a key that is not in the set.
    #[error("token is signed by an unknown key")]
    UnknownKey,
    /// Signature does not verify: forged, or meant for another purpose, cluster or audience.
    #[error("token does not verify for this purpose and audience")]
    Signature,
    /// Verified, but not what this purpose carries, or expires before it begins.
    #[error("token has the wrong claims")]
    Claims,
    /// Not valid yet.
    #[error("token is not valid yet")]
    NotYetValid,
    /// Not valid any more.
    #[error("token has expired")]
    Expired,
    /// Valid for longer than a token of its purpose may be.
    #[error("token holds for longer than one of its purpose may")]
    TooLasting,
    /// Issued before its subject, or its node, was revoked.
    #[error("token was revoked")]
    Revoked,
}

impl Rejected {
    /// A short label for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::UnknownKey => "unknown_key",
            Self::Signature => "signature",
            Self::Claims => "claims",
            Self::NotYetValid => "not_yet_valid",
            Self::Expired => "expired",
            Self::TooLasting => "too_lasting",
            Self::Revoked => "revoked",
        }
    }
}

impl From<NotValid> for Rejected {
    fn from(why: NotValid) -> Self {
        match why {
            NotValid::Never => Self::Claims,
            NotValid::NotYet => Self::NotYetValid,
            NotValid::Expired => Self::Expired,
            NotValid::TooLasting => Self::TooLasting,
        }
    }
}

#[cfg(test)]
mod vectors;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source;
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    use proptest::prelude::*;
    use serde::Deserialize;
    use wavry_proto::{
        control::Roster,
        token::{MAX_TOKEN_LEN, NodeRequest, Session, Validity},
    };

    const NOW: u64 = 1_800_000_000;

    fn cluster() -> ClusterName {
        "c1".parse().unwrap()
    }

    fn session(validity: Validity) -> Session {
        Session {
            jti: "1".into(),
            sub: "ann".into(),
            sid: None,
            claims: serde_json::Map::new(),
            validity,
        }
    }

    fn valid() -> Validity {
        Validity {
            iat: NOW,
            nbf: NOW,
            exp: NOW + 60,
        }
    }

    fn key_set(key: &SigningKey) -> KeySet {
        KeySet::from_paserk(&[key.public_paserk()]).unwrap()
    }

    /// Signs a payload that our own types would not produce.
    fn sign_text(key: &SigningKey, payload: &str, assertion: &[u8]) -> String {
        key.key
            .paseto(payload.as_bytes(), key.footer.as_bytes(), assertion)
    }

    #[test]
    fn a_token_verifies_for_its_scope_while_it_holds() {
        let key = SigningKey::generate();
        let cluster = cluster();
        let scope = Scope {
            cluster: &cluster,
            audience: "echo",
            binding: b"",
        };
        let claims = session(valid());
        let token = key.sign(&claims, scope);
        let keys = key_set(&key);
        assert_eq!(keys.verify(&token, scope, NOW), Ok(claims.clone()));
        assert_eq!(keys.verify(&token, scope, NOW - 30), Ok(claims.clone()));
        assert_eq!(keys.verify(&token, scope, NOW + 59), Ok(claims));
        assert_eq!(
            keys.verify::<Session>(&token, scope, NOW - 31),
            Err(Rejected::NotYetValid)
        );
        assert_eq!(
            keys.verify::<Session>(&token, scope, NOW + 60),
            Err(Rejected::Expired)
        );
    }

    #[test]
    fn a_token_of_another_cluster_audience_binding_or_purpose_does_not_verify() {
        let key = SigningKey::generate();
        let (cluster, elsewhere) = (cluster(), "c2".parse().unwrap());
        let scope = Scope {
            cluster: &cluster,
            audience: "echo",
            binding: b"one connection",
        };
        let token = key.sign(&session(valid()), scope);
        let keys = key_set(&key);
        for other in [
            Scope {
                cluster: &elsewhere,
                ..scope
            },
            Scope {
                audience: "other",
                ..scope
            },
            Scope {
                binding: b"another connection",
                ..scope
            },
            Scope {
                binding: b"",
                ..scope
            },
        ] {
            assert_eq!(
                keys.verify::<Session>(&token, other, NOW),
                Err(Rejected::Signature)
            );
        }
        assert_eq!(
            keys.verify::<NodeRequest>(&token, scope, NOW),
            Err(Rejected::Signature)
        );
        assert!(keys.verify::<Session>(&token, scope, NOW).is_ok());
    }

    #[test]
    fn a_token_of_an_unknown_key_is_refused_and_so_is_one_that_borrows_a_known_kid() {
        let (key, other) = (SigningKey::generate(), SigningKey::generate());
        let cluster = cluster();
        let scope = Scope {
            cluster: &cluster,
            audience: "echo",
            binding: b"",
        };
        let keys = key_set(&key);
        let foreign = other.sign(&session(valid()), scope);
        assert_eq!(
            keys.verify::<Session>(&foreign, scope, NOW),
            Err(Rejected::UnknownKey)
        );
        assert_eq!(
            KeySet::default().verify::<Session>(&foreign, scope, NOW),
            Err(Rejected::UnknownKey)
        );
        let own = key.sign(&session(valid()), scope);
        let (body, _) = foreign.rsplit_once('.').unwrap();
        let (_, footer) = own.rsplit_once('.').unwrap();
        assert_eq!(
            keys.verify::<Session>(&format!("{body}.{footer}"), scope, NOW),
            Err(Rejected::Signature)
        );
    }

    #[test]
    fn truncated_and_overlong_tokens_are_refused_for_what_they_are() {
        let key = SigningKey::generate();
        let cluster = cluster();
        let scope = Scope {
            cluster: &cluster,
            audience: "echo",
            binding: b"",
        };
        let keys = key_set(&key);
        let token = key.sign(&session(valid()), scope);
        for length in 0..token.len() {
            assert_eq!(
                keys.verify::<Session>(&token[..length], scope, NOW),
                Err(Rejected::Malformed)
            );
        }
        let mut long = session(valid());
        long.sub = "a".repeat(9 * 1024);
        let long = key.sign(&long, scope);
        assert!(long.len() > MAX_TOKEN_LEN);
        assert_eq!(
            keys.verify::<Session>(&long, scope, NOW),
            Err(Rejected::TooLong)
        );
    }

    #[test]
    fn signed_nonsense_and_a_validity_that_ends_before_it_begins_are_wrong_claims() {
        let key = SigningKey::generate();
        let cluster = cluster();
        let scope = Scope {
            cluster: &cluster,
            audience: "echo",
            binding: b"",
        };
        let keys = key_set(&key);
        let assertion = scope.assertion::<Session>();
        let deep = "[".repeat(4000);
        for payload in [
            "x",
            "{}",
            "null",
            &deep,
            r#"{"jti":"1","sub":"ann","iat":-1,"nbf":0,"exp":9}"#,
            r#"{"jti":"1","sub":"ann","iat":0,"nbf":0,"exp":99999999999999999999}"#,
            r#"{"jti":"1","sub":"ann","iat":0,"nbf":0}"#,
            r#"{"jti":"1","sub":"ann","iat":0,"nbf":0,"exp":1900000000,"exp":1900000000}"#,
            r#"{"jti":"1","sub":"ann","iat":1800000000,"nbf":1800000000,"exp":1800000000}"#,
        ] {
            assert_eq!(
                keys.verify::<Session>(&sign_text(&key, payload, &assertion), scope, NOW),
                Err(Rejected::Claims),
                "{payload:.60}"
            );
        }
    }

    #[test]
    fn a_token_that_would_hold_for_longer_than_its_purpose_may_is_refused() {
        let key = SigningKey::generate();
        let cluster = cluster();
        let scope = Scope {
            cluster: &cluster,
            audience: "echo",
            binding: b"",
        };
        let lasting = |seconds| Validity {
            exp: NOW + seconds,
            ..valid()
        };
        for (seconds, outcome) in [
            (token::MAX_LIFETIME, None),
            (token::MAX_LIFETIME + 1, Some(Rejected::TooLasting)),
        ] {
            let token = key.sign(&session(lasting(seconds)), scope);
            let verified = key_set(&key).verify::<Session>(&token, scope, NOW);
            assert_eq!(verified.err(), outcome);
        }
        let node = NodeRequest {
            sub: "relay-1".parse().unwrap(),
            validity: lasting(61),
        };
        let token = key.sign(&node, scope);
        let verified = key_set(&key).verify::<NodeRequest>(&token, scope, NOW);
        assert_eq!(verified, Err(Rejected::TooLasting));
    }

    #[test]
    fn a_sealed_key_is_opened_by_the_key_that_sealed_it_for_what_it_is_and_by_no_other() {
        let [master, other, key] = [(); 3].map(|()| SigningKey::generate());
        let (sealed, public) = (master.seal(&key), key.public_paserk());
        let opened = master.open(&sealed, &public).unwrap();
        assert!(opened.to_paserk().matches(paserk_text(&key).as_bytes()));
        assert_ne!(master.seal(&key), sealed, "the nonce is another each time");
        assert!(other.open(&sealed, &public).is_err());
        assert!(master.open(&sealed, &other.public_paserk()).is_err());
        assert!(master.open(&other.seal(&key), &public).is_err());
        for at in 0..sealed.len() {
            assert!(master.open(&sealed[..at], &public).is_err());
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(master.open(&changed, &public).is_err());
        }
        let mut longer = sealed.clone();
        longer.push(0);
        assert!(master.open(&longer, &public).is_err());
    }

    /// The text of a key that was made for a test.
    fn paserk_text(key: &SigningKey) -> String {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key");
        source::write_secret(&file, &key.to_paserk()).unwrap();
        std::fs::read_to_string(file).unwrap()
    }

    #[test]
    fn several_keys_verify_at_once_so_that_they_can_rotate() {
        let (old, new) = (SigningKey::generate(), SigningKey::generate());
        let cluster = cluster();
        let scope = Scope {
            cluster: &cluster,
            audience: "echo",
            binding: b"",
        };
        let keys = KeySet::from_paserk(&[old.public_paserk(), new.public_paserk()]).unwrap();
        for key in [old, new] {
            let token = key.sign(&session(valid()), scope);
            assert!(keys.verify::<Session>(&token, scope, NOW).is_ok());
        }
    }

    #[test]
    fn a_nodes_own_token_verifies_with_its_identity() {
        let identity = Identity::generate();
        let cluster = cluster();
        let scope = Scope {
            cluster: &cluster,
            audience: "master",
            binding: &[9; 32],
        };
        let claims = NodeRequest {
            sub: "relay-1".parse().unwrap(),
            validity: valid(),
        };
        let token = SigningKey::from(&identity).sign(&claims, scope);
        let keys = KeySet::from_public_keys(&[identity.public_key()]);
        assert_eq!(keys.verify(&token, scope, NOW), Ok(claims));
    }

    #[test]
    fn a_roster_larger_than_any_token_verifies() {
        let key = SigningKey::generate();
        let cluster = cluster();
        let scope = Scope {
            cluster: &cluster,
            audience: "nodes",
            binding: b"",
        };
        let mut roster = Roster::empty(cluster.clone());
        roster.token_keys = vec![key.public_paserk(); 1000];
        let token = key.sign(&roster, scope);
        assert!(token.len() > MAX_TOKEN_LEN);
        assert_eq!(key_set(&key).verify(&token, scope, NOW), Ok(roster));
    }

    #[test]
    fn a_signing_key_survives_paserk_and_white_space() {
        let key = SigningKey::generate();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key");
        source::write_secret(&file, &key.to_paserk()).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        let padded = format!("  {text}\n").into_bytes();
        let read = SigningKey::from_paserk(&Secret::new(padded)).unwrap();
        assert!(read.to_paserk().matches(text.as_bytes()));
        assert_eq!(read.public_paserk(), key.public_paserk());
    }

    #[test]
    fn texts_that_are_not_keys_are_refused() {
        let key = SigningKey::generate();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key");
        source::write_secret(&file, &key.to_paserk()).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        let mut halves_apart = text.clone().into_bytes();
        halves_apart[12] ^= 1;
        let zeros = format!("k4.secret.{}", URL_SAFE_NO_PAD.encode([0; 64]));
        for bad in [
            b"".to_vec(),
            text.as_bytes()[..95].to_vec(),
            text.replace("k4", "k2").into_bytes(),
            text.replace("secret", "local").into_bytes(),
            format!("{text}A").into_bytes(),
            halves_apart,
            zeros.into_bytes(),
            key.public_paserk().into_bytes(),
        ] {
            assert!(SigningKey::from_paserk(&Secret::new(bad)).is_err());
        }
        assert!(KeySet::from_paserk(&[text]).is_err());
        assert!(KeySet::from_paserk(&["k4.public.AAAA"]).is_err());
    }

    #[test]
    fn the_official_vectors_hold() {
        #[derive(Deserialize)]
        struct Vectors {
            tokens: Vec<Signed>,
            secrets: Vec<Key>,
            publics: Vec<Key>,
            pids: Vec<Key>,
        }
        #[derive(Deserialize)]
        struct Signed {
            name: String,
            key: String,
            token: String,
            payload: String,
            footer: String,
            implicit_assertion: String,
        }
        #[derive(Deserialize)]
        struct Key {
            key: String,
            paserk: String,
        }
        let vectors: Vectors =
            serde_json::from_str(include_str!("../tests/paseto-v4-public.json")).unwrap();
        for vector in vectors.tokens {
            let seed = hex::decode(&vector.key[..64]).unwrap().try_into().unwrap();
            let key = Ed25519::from_seed(Secret::<[u8; 32]>::new(seed));
            assert_eq!(hex::encode(key.public()), vector.key[64..]);
            let key = SigningKey::of(Arc::new(key));
            let (footer, assertion) = (vector.footer.as_bytes(), vector.implicit_assertion);
            let payload = vector.payload.as_bytes();
            let token = key.key.paseto(payload, footer, assertion.as_bytes());
            assert_eq!(token, vector.token, "{}", vector.name);
            let untrusted = UntrustedToken::try_from(vector.token.as_str()).unwrap();
            PublicToken::verify(&key.public, &untrusted, None, Some(assertion.as_bytes())).unwrap();
        }
        for vector in vectors.secrets {
            let text = Secret::new(vector.paserk.clone().into_bytes());
            let key = SigningKey::from_paserk(&text).unwrap();
            let seed = hex::decode(&vector.key[..64]).unwrap().try_into().unwrap();
            let same = Ed25519::from_seed(Secret::<[u8; 32]>::new(seed));
            assert_eq!(key.key.sign(b"hello"), same.sign(b"hello"));
            assert_eq!(hex::encode(key.key.public()), vector.key[64..]);
            assert!(key.to_paserk().matches(vector.paserk.as_bytes()));
        }
        for vector in vectors.publics {
            let key = AsymmetricPublicKey::try_from(vector.paserk.as_str()).unwrap();
            assert_eq!(hex::encode(key.as_bytes()), vector.key);
        }
        for vector in vectors.pids {
            let key = AsymmetricPublicKey::from(&hex::decode(vector.key).unwrap()).unwrap();
            assert_eq!(key_id(&key).to_string(), vector.paserk);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_tokens_never_panic(text: String, body: Vec<u8>, public: [u8; 32]) {
            let keys = KeySet::from_public_keys(&[PublicKey(public)]);
            let footer = token::footer(keys.keys.keys().next().unwrap());
            let cluster = cluster();
            let scope = Scope { cluster: &cluster, audience: "echo", binding: b"" };
            let shaped = format!(
                "v4.public.{}.{}",
                URL_SAFE_NO_PAD.encode(&body),
                URL_SAFE_NO_PAD.encode(footer)
            );
            for token in [text, shaped] {
                prop_assert!(keys.verify::<Session>(&token, scope, NOW).is_err());
            }
        }

        #[test]
        fn arbitrary_keys_never_panic(text: String, bytes: Vec<u8>) {
            let _ = KeySet::from_paserk(&[&text]);
            prop_assert!(SigningKey::from_paserk(&Secret::new(bytes)).is_err());
            let encoded = format!("k4.secret.{text}").into_bytes();
            prop_assert!(SigningKey::from_paserk(&Secret::new(encoded)).is_err());
        }

        #[test]
        fn one_flipped_bit_anywhere_is_refused(at: prop::sample::Index, bit in 0u8..7) {
            let key = SigningKey::generate();
            let cluster = cluster();
            let scope = Scope { cluster: &cluster, audience: "echo", binding: b"" };
            let mut token = key.sign(&session(valid()), scope).into_bytes();
            let at = at.index(token.len());
            token[at] ^= 1 << bit;
            let token = String::from_utf8(token).unwrap();
            prop_assert!(key_set(&key).verify::<Session>(&token, scope, NOW).is_err());
        }
    }
}
