//! PASETO v4.public tokens, signed and verified by purpose.
//!
//! The footer is `{"kid":"k4.pid…"}` and nothing else. The implicit assertion is purpose, cluster,
//! audience and, where one exists, the channel binding; it is not sent, so a token is only good
//! for whoever expects it.

use wavry_proto::{
    id::{ClusterName, PublicKey},
    token::Claims,
};

use crate::{identity::Identity, secret::Secret};

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

/// An Ed25519 key that signs tokens.
pub struct SigningKey {}

impl SigningKey {
    /// A new one.
    pub fn generate() -> Self {
        todo!()
    }

    /// Reads PASERK `k4.secret`; white space around it is ignored.
    pub fn from_paserk(_text: &Secret<Vec<u8>>) -> Result<Self, MalformedKey> {
        todo!()
    }

    /// As PASERK `k4.secret`.
    pub fn to_paserk(&self) -> Secret<Vec<u8>> {
        todo!()
    }

    /// The public half as PASERK `k4.public`.
    pub fn public_paserk(&self) -> String {
        todo!()
    }

    /// Signs `claims`.
    pub fn sign<C: Claims>(&self, _claims: &C, _scope: Scope<'_>) -> String {
        todo!()
    }
}

impl From<&Identity> for SigningKey {
    fn from(_identity: &Identity) -> Self {
        todo!()
    }
}

/// Not a PASERK key of the kind expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a PASERK {0} key")]
pub struct MalformedKey(pub &'static str);

/// Public keys, found by the `kid` in a token's footer.
#[derive(Clone, Default)]
pub struct KeySet {}

impl KeySet {
    /// From PASERK `k4.public` texts.
    pub fn from_paserk<S: AsRef<str>>(_keys: &[S]) -> Result<Self, MalformedKey> {
        todo!()
    }

    /// From nodes' identities.
    pub fn from_public_keys(_keys: &[PublicKey]) -> Self {
        todo!()
    }

    /// Checks length, grammar, key, signature, scope and — against `now`, seconds since the Unix
    /// epoch — validity: 30 s of skew on `nbf` and `iat`, none on `exp`.
    pub fn verify<C: Claims>(
        &self,
        _token: &str,
        _scope: Scope<'_>,
        _now: u64,
    ) -> Result<C, Rejected> {
        todo!()
    }
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
    /// Verified, but not what this purpose carries.
    #[error("token has the wrong claims")]
    Claims,
    /// Not valid yet.
    #[error("token is not valid yet")]
    NotYetValid,
    /// Not valid any more.
    #[error("token has expired")]
    Expired,
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
        }
    }
}
