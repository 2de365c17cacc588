//! Who signs tokens and rosters: a key at hand, or one that stays in a vault ([`transit`]).
//!
//! A [`Signer`] is one Ed25519 key. [`sign`] makes a PASETO v4.public token with it, whoever it is: what is
//! to be signed (the PAE of header, payload, footer and implicit assertion) is made here, and what came back
//! is checked here before anybody sees it.

pub mod transit;

use std::pin::Pin;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use wavry_proto::{
    id::PublicKey,
    token::{self, Claims},
};

use crate::{
    identity,
    source::keyvault::Failure,
    token::{Scope, SigningKey, id_of},
};

/// Start of each token (PASETO, section "v4.public").
const HEADER: &str = "v4.public.";

/// A signature, once it is there.
pub type Signing<'a> = Pin<Box<dyn Future<Output = Result<[u8; 64], SignError>> + Send + 'a>>;

/// An Ed25519 key that signs, wherever it is.
pub trait Signer: Send + Sync + 'static {
    /// Its public half.
    fn public(&self) -> PublicKey;

    /// The signature of `message` (RFC 8032). It comes, or an error does, within a time that the signer knows.
    fn sign(&self, message: Bytes) -> Signing<'_>;
}

/// Why nothing was signed. Holds nothing of what was to be signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The vault did not sign.
    #[error("key {place} did not sign")]
    Vault {
        /// MOUNT/KEY there.
        place: String,
        /// Why.
        #[source]
        failure: Failure,
    },
    /// It took too long, were it for others that were first.
    #[error("key {place} did not sign in time")]
    TooSlow {
        /// MOUNT/KEY there.
        place: String,
    },
    /// What it answers is not what was asked for.
    #[error(
        "what the vault says of key {place} is not of an Ed25519 key, or not by the one that is known"
    )]
    Foreign {
        /// MOUNT/KEY there.
        place: String,
    },
    /// A signature that the key did not make.
    #[error("the signature is not by the key that was asked for")]
    Wrong,
}

/// A token that says `claims`, signed by `signer`. Claims whose token is longer than [`Claims::MAX_LEN`] verify
/// nowhere.
pub async fn sign<C: Claims>(
    signer: &dyn Signer,
    claims: &C,
    scope: Scope<'_>,
) -> Result<String, SignError> {
    let payload = serde_json::to_vec(claims).expect("claims are plain data with text keys");
    let footer = token::footer(&id_of(&signer.public()));
    let assertion = scope.assertion::<C>();
    signed(signer, payload, footer.as_bytes(), &assertion).await
}

/// A token of these parts.
pub(crate) async fn signed(
    signer: &dyn Signer,
    mut payload: Vec<u8>,
    footer: &[u8],
    assertion: &[u8],
) -> Result<String, SignError> {
    let message = Bytes::from(pae([HEADER.as_bytes(), &payload, footer, assertion]));
    let signature = signer.sign(message.clone()).await?;
    if !identity::verify(&signer.public(), &message, &signature) {
        return Err(SignError::Wrong);
    }
    drop(message);
    payload.extend_from_slice(&signature);
    let mut token = HEADER.to_owned();
    token.reserve_exact((payload.len() + footer.len()).div_ceil(3) * 4 + 8);
    URL_SAFE_NO_PAD.encode_string(&payload, &mut token);
    if !footer.is_empty() {
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(footer, &mut token);
    }
    Ok(token)
}

/// How several texts are one, and no others are the same (PASETO, "PAE definition"): their number, then each
/// with its length before it, all as 64-bit little endian.
fn pae<const N: usize>(pieces: [&[u8]; N]) -> Vec<u8> {
    let length = |piece: &[u8]| (piece.len() as u64).to_le_bytes();
    let total: usize = pieces.iter().map(|piece| 8 + piece.len()).sum();
    let mut encoded = Vec::with_capacity(8 + total);
    encoded.extend_from_slice(&(N as u64).to_le_bytes());
    for piece in pieces {
        encoded.extend_from_slice(&length(piece));
        encoded.extend_from_slice(piece);
    }
    encoded
}

/// A key at hand signs at once.
impl Signer for SigningKey {
    fn public(&self) -> PublicKey {
        self.public_key()
    }

    fn sign(&self, message: Bytes) -> Signing<'_> {
        let signature = self.signature(&message);
        Box::pin(std::future::ready(Ok(signature)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::KeySet;
    use proptest::prelude::*;
    use wavry_proto::token::{Session, Validity};

    fn ready<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(future)
    }

    /// Another key than it says.
    struct Impostor(SigningKey, SigningKey);

    impl Signer for Impostor {
        fn public(&self) -> PublicKey {
            self.0.public_key()
        }

        fn sign(&self, message: Bytes) -> Signing<'_> {
            Signer::sign(&self.1, message)
        }
    }

    proptest! {
        #[test]
        fn a_signer_makes_the_token_that_the_library_makes(sub in "\\PC{0,40}", binding: Vec<u8>) {
            let key = SigningKey::generate();
            let cluster = "c1".parse().unwrap();
            let scope = Scope { cluster: &cluster, audience: "echo", binding: &binding };
            let claims = Session {
                jti: "1".into(),
                sub,
                sid: None,
                claims: serde_json::Map::new(),
                validity: Validity { iat: 5, nbf: 5, exp: 60 },
            };
            let token = ready(sign(&key, &claims, scope)).unwrap();
            prop_assert_eq!(&token, &key.sign(&claims, scope));
            let keys = KeySet::from_public_keys(&[key.public_key()]);
            prop_assert_eq!(keys.verify::<Session>(&token, scope, 6), Ok(claims));
        }
    }

    #[test]
    fn what_another_key_signed_is_not_used() {
        let impostor = Impostor(SigningKey::generate(), SigningKey::generate());
        let made = ready(signed(&impostor, b"{}".to_vec(), b"", b""));
        assert!(matches!(made, Err(SignError::Wrong)));
    }
}
