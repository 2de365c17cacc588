//! JSON Web Tokens of other issuers (RFC 7519): verified, never made.

use jsonwebtoken::{
    Algorithm, DecodingKey, Validation,
    jwk::{AlgorithmParameters, EllipticCurve, JwkSet},
};
use serde::{Deserialize, de::DeserializeOwned};

use super::Token;

/// Keys of an issuer.
pub struct Keys(Vec<Key>);

struct Key {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

const RSA: [Algorithm; 6] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// Not a public key, or of no kind that signs JWTs here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not public keys as PEM or JWKS, of RSA, P-256, P-384 or Ed25519")]
pub struct MalformedKeys;

/// Why a token does not hold. Nothing of it is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    /// Not a JWT.
    #[error("not a JWT")]
    Malformed,
    /// By none of the keys, or not by their algorithm.
    #[error("the signature is by none of the issuer's keys")]
    Signature,
    /// `exp` is past, or there is none.
    #[error("expired, or without expiry")]
    Expired,
    /// `nbf` is to come.
    #[error("not valid yet")]
    NotYetValid,
    /// `aud` does not name who asks.
    #[error("for another audience")]
    Audience,
    /// `iss` names somebody else.
    #[error("by another issuer")]
    Issuer,
}

/// What a token must say.
#[derive(Debug, Clone, Copy, Default)]
pub struct Expected<'a> {
    /// `aud` holds it.
    pub audience: Option<&'a str>,
    /// `iss` is it.
    pub issuer: Option<&'a str>,
}

impl Keys {
    /// Reads public keys, or certificates for theirs, in PEM.
    pub fn from_pem<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, MalformedKeys> {
        let key = |text: &str| {
            let pem = text.as_bytes();
            let (key, algorithms) = if let Ok(key) = DecodingKey::from_rsa_pem(pem) {
                (key, RSA.to_vec())
            } else if let Ok(key) = DecodingKey::from_ec_pem(pem) {
                (key, vec![Algorithm::ES256, Algorithm::ES384])
            } else {
                let key = DecodingKey::from_ed_pem(pem).map_err(|_| MalformedKeys)?;
                (key, vec![Algorithm::EdDSA])
            };
            Ok(Key {
                id: None,
                algorithms,
                key,
            })
        };
        texts
            .into_iter()
            .map(key)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Reads a JWKS (RFC 7517, section 5). Keys of other kinds are left out.
    pub fn from_jwks(text: &[u8]) -> Result<Self, MalformedKeys> {
        let set: JwkSet = serde_json::from_slice(text).map_err(|_| MalformedKeys)?;
        let mut keys = Vec::new();
        for jwk in &set.keys {
            let algorithms = match &jwk.algorithm {
                AlgorithmParameters::RSA(_) => RSA.to_vec(),
                AlgorithmParameters::EllipticCurve(key) => match key.curve {
                    EllipticCurve::P256 => vec![Algorithm::ES256],
                    EllipticCurve::P384 => vec![Algorithm::ES384],
                    _ => continue,
                },
                AlgorithmParameters::OctetKeyPair(_) => vec![Algorithm::EdDSA],
                _ => continue,
            };
            keys.push(Key {
                id: jwk.common.key_id.clone(),
                algorithms,
                key: DecodingKey::from_jwk(jwk).map_err(|_| MalformedKeys)?,
            });
        }
        if keys.is_empty() {
            return Err(MalformedKeys);
        }
        Ok(Self(keys))
    }
}

#[derive(Deserialize)]
struct Registered {
    exp: Option<f64>,
    nbf: Option<f64>,
    iss: Option<String>,
    #[serde(default)]
    aud: Audiences,
}

#[derive(Default, Deserialize)]
#[serde(untagged)]
enum Audiences {
    #[default]
    None,
    One(String),
    Many(Vec<String>),
}

impl Audiences {
    fn has(&self, audience: &str) -> bool {
        match self {
            Self::None => false,
            Self::One(one) => one == audience,
            Self::Many(many) => many.iter().any(|one| one == audience),
        }
    }
}

impl Token {
    /// The claims of a JWT that one of `keys` signed, that is good at `now` (seconds since the Unix
    /// epoch), and that says what is expected.
    #[expect(clippy::disallowed_methods, reason = "a token is checked here")]
    pub fn verify_jwt<C: DeserializeOwned>(
        &self,
        keys: &Keys,
        expected: Expected<'_>,
        now: u64,
    ) -> Result<C, Untrusted> {
        let text = self.0.expose();
        let header = jsonwebtoken::decode_header(text).map_err(|_| Untrusted::Malformed)?;
        let fits = |key: &&Key| {
            let named = |id: &String| header.kid.as_ref().is_none_or(|kid| kid == id);
            key.algorithms.contains(&header.alg) && key.id.as_ref().is_none_or(named)
        };
        let mut validation = Validation::new(header.alg);
        // Time is an argument here, so that these are looked at below.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        let signed =
            |key: &Key| jsonwebtoken::decode::<Registered>(text, &key.key, &validation).ok();
        let registered = keys.0.iter().filter(fits).find_map(signed);
        let claims = registered.ok_or(Untrusted::Signature)?.claims;
        if claims.exp.is_none_or(|exp| exp <= now as f64) {
            return Err(Untrusted::Expired);
        }
        if claims.nbf.is_some_and(|nbf| nbf > now as f64) {
            return Err(Untrusted::NotYetValid);
        }
        if expected
            .audience
            .is_some_and(|audience| !claims.aud.has(audience))
        {
            return Err(Untrusted::Audience);
        }
        if expected
            .issuer
            .is_some_and(|issuer| claims.iss.as_deref() != Some(issuer))
        {
            return Err(Untrusted::Issuer);
        }
        self.unverified_jwt()
    }

    /// What a JWT says, whoever signed it: to be told to who can verify it.
    #[expect(clippy::disallowed_methods, reason = "a token is read here")]
    pub fn unverified_jwt<C: DeserializeOwned>(&self) -> Result<C, Untrusted> {
        jsonwebtoken::dangerous::insecure_decode_claims(self.0.expose())
            .map_err(|_| Untrusted::Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::{
        Engine as _,
        engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
    };
    use ed25519_dalek::{Signer as _, SigningKey, pkcs8::EncodePublicKey as _};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn signed(key: &SigningKey, header: &Value, claims: &Value) -> Token {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        let signature = key.sign(message.as_bytes()).to_bytes();
        Token::new(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn pem(key: &SigningKey) -> String {
        let der = key.verifying_key().to_public_key_der().unwrap();
        let body = STANDARD.encode(der.as_bytes());
        format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n")
    }

    fn jwks(key: &SigningKey, id: &str) -> String {
        let x = URL_SAFE_NO_PAD.encode(key.verifying_key().to_bytes());
        json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": x, "kid": id, "alg": "EdDSA"}]})
            .to_string()
    }

    const EDDSA: &str = r#"{"alg":"EdDSA","kid":"1"}"#;

    fn header(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    fn verify(token: &Token, keys: &Keys, expected: Expected<'_>) -> Result<Value, Untrusted> {
        token.verify_jwt(keys, expected, 1000)
    }

    #[test]
    fn a_token_holds_by_its_issuers_key_until_it_expires_and_for_its_audience() {
        let claims =
            json!({"iss": "k", "aud": ["vault", "x"], "exp": 1001, "nbf": 1000, "sub": "s"});
        let token = signed(&key(1), &header(EDDSA), &claims);
        let expected = Expected {
            audience: Some("vault"),
            issuer: Some("k"),
        };
        for keys in [
            Keys::from_pem([pem(&key(2)).as_str(), &pem(&key(1))]).unwrap(),
            Keys::from_jwks(jwks(&key(1), "1").as_bytes()).unwrap(),
        ] {
            assert_eq!(verify(&token, &keys, expected).unwrap()["sub"], "s");
            let at = |now| token.verify_jwt::<Value>(&keys, expected, now).map(|_| ());
            assert_eq!(at(1001), Err(Untrusted::Expired));
            assert_eq!(at(999), Err(Untrusted::NotYetValid));
        }
        let keys = Keys::from_pem([pem(&key(1)).as_str()]).unwrap();
        let other = Expected {
            audience: Some("other"),
            ..expected
        };
        assert_eq!(verify(&token, &keys, other), Err(Untrusted::Audience));
        let other = Expected {
            issuer: Some("other"),
            ..expected
        };
        assert_eq!(verify(&token, &keys, other), Err(Untrusted::Issuer));
        let stranger = Keys::from_pem([pem(&key(2)).as_str()]).unwrap();
        assert_eq!(
            verify(&token, &stranger, expected),
            Err(Untrusted::Signature)
        );
        let renamed = Keys::from_jwks(jwks(&key(1), "2").as_bytes()).unwrap();
        assert_eq!(
            verify(&token, &renamed, expected),
            Err(Untrusted::Signature)
        );
    }

    #[test]
    fn no_other_algorithm_is_taken_and_none_not_at_all() {
        let keys = Keys::from_pem([pem(&key(1)).as_str()]).unwrap();
        let claims = json!({"exp": 2000});
        for alg in ["HS256", "RS256", "ES256"] {
            let token = signed(&key(1), &json!({"alg": alg}), &claims);
            assert_eq!(
                verify(&token, &keys, Expected::default()),
                Err(Untrusted::Signature),
                "{alg}"
            );
        }
        let token = signed(&key(1), &json!({"alg": "none"}), &claims);
        assert_eq!(
            verify(&token, &keys, Expected::default()),
            Err(Untrusted::Malformed)
        );
        let endless = signed(&key(1), &header(EDDSA), &json!({}));
        assert_eq!(
            verify(&endless, &keys, Expected::default()),
            Err(Untrusted::Expired)
        );
        let nobodys = signed(&key(1), &header(EDDSA), &claims);
        let expected = Expected {
            audience: Some("vault"),
            issuer: None,
        };
        assert_eq!(verify(&nobodys, &keys, expected), Err(Untrusted::Audience));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        assert!(
            Keys::from_pem([
                "",
                "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"
            ])
            .is_err()
        );
        assert!(Keys::from_jwks(br#"{"keys":[]}"#).is_err());
        assert!(Keys::from_jwks(br#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_tokens_never_panic(text: String, parts in "[A-Za-z0-9_.-]{0,80}") {
            let keys = Keys::from_pem([pem(&key(1)).as_str()]).unwrap();
            for text in [text, parts] {
                prop_assert!(verify(&Token::new(text), &keys, Expected::default()).is_err());
            }
        }

        #[test]
        fn arbitrary_key_sets_never_panic(text: String) {
            let _ = Keys::from_jwks(text.as_bytes());
            let _ = Keys::from_pem([text.as_str()]);
        }
    }
}
