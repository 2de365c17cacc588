//! Keys of a vault's transit engine: they sign there, and never leave it.
//!
//! The vault is a Wavry KeyVault, or any that speaks Vault's HTTP API. This process is a unit there
//! ([`source::keyvault`](crate::source::keyvault)), whose policy needs `update` on `MOUNT/sign/KEY`, `read` on
//! `MOUNT/keys/KEY`, and `update` on `MOUNT/keys/KEY/rotate` where the master is to make versions itself.

use std::{
    collections::HashMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::Method;
use serde::{Deserialize, Serialize};
use tokio::{sync::Semaphore, time::timeout};
use wavry_proto::id::PublicKey;

use super::{SignError, Signer, Signing};
use crate::{
    key::format::beside,
    metrics as names,
    secret::Secret,
    source::keyvault::{self, Client, Failure},
};

/// A key in a vault, and how it is used.
#[derive(Debug, Clone)]
pub struct Config {
    /// The vault, and what it is opened with.
    pub keyvault: keyvault::Config,
    /// Where its transit engine is mounted.
    pub mount: String,
    /// The key's name there.
    pub key: String,
    /// From being asked to the signature, with the wait for others.
    pub deadline: Duration,
    /// Most signatures at once; more wait, within their deadline.
    pub parallel: usize,
}

/// A key of a vault's transit engine, with all its versions.
pub struct Transit {
    client: Client,
    place: String,
    mount: String,
    key: String,
    deadline: Duration,
    /// Who waits for one has a deadline, and comes from a request or a task that the master bounds.
    permits: Semaphore,
}

/// A version of a key: that which signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// From 1.
    pub number: u32,
    /// Its public half.
    pub public: PublicKey,
}

#[derive(Deserialize)]
struct Shown {
    data: Key,
}

#[derive(Deserialize)]
struct Key {
    r#type: String,
    latest_version: u32,
    keys: HashMap<String, Half>,
}

/// Of a version of a key that signs.
#[derive(Deserialize)]
struct Half {
    public_key: String,
}

#[derive(Serialize)]
struct ToSign {
    input: String,
    key_version: u32,
}

#[derive(Deserialize)]
struct Signed {
    data: Signature,
}

#[derive(Deserialize)]
struct Signature {
    signature: String,
}

impl Transit {
    /// Nothing is sent yet.
    pub fn new(config: Config) -> Result<Arc<Self>, Failure> {
        for segment in config.mount.split('/').chain([&*config.key]) {
            let is_one = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            if matches!(segment, "" | "." | "..") || !segment.bytes().all(is_one) {
                return Err(Failure::Path);
            }
        }
        Ok(Arc::new(Self {
            client: Client::new(config.keyvault)?,
            place: format!("{}/{}", config.mount, config.key),
            mount: config.mount,
            key: config.key,
            deadline: config.deadline,
            permits: Semaphore::new(config.parallel),
        }))
    }

    /// MOUNT/KEY.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The newest version of the key.
    pub async fn latest(&self) -> Result<Version, SignError> {
        let path = format!("/v1/{}/keys/{}", self.mount, self.key);
        let answer = self.ask(Method::GET, &path, Bytes::new()).await?;
        read_latest(&answer).ok_or_else(|| self.foreign())
    }

    /// Makes a new version; it is the newest, unless somebody else made one as well.
    pub async fn rotate(&self) -> Result<Version, SignError> {
        let path = format!("/v1/{}/keys/{}/rotate", self.mount, self.key);
        self.ask(Method::POST, &path, "{}".into()).await?;
        self.latest().await
    }

    /// A version of the key, to sign with.
    pub fn version(self: &Arc<Self>, version: Version) -> VersionedKey {
        VersionedKey {
            transit: self.clone(),
            version,
        }
    }

    async fn sign(&self, version: Version, message: Bytes) -> Result<[u8; 64], SignError> {
        let body = ToSign {
            input: STANDARD.encode(&message),
            key_version: version.number,
        };
        drop(message);
        let body = serde_json::to_vec(&body).map_err(|_| self.foreign())?;
        let path = format!("/v1/{}/sign/{}", self.mount, self.key);
        let answer = self.ask(Method::POST, &path, body.into()).await?;
        read_signature(&answer, version.number).ok_or_else(|| self.foreign())
    }

    /// Asks the vault, when it is this one's turn.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Secret<Vec<u8>>, SignError> {
        let asked = async {
            let _permit = self.permits.acquire().await;
            self.client.ask(method, path, body).await
        };
        let place = || self.place.clone();
        match timeout(self.deadline, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(failure)) => Err(SignError::Vault {
                place: place(),
                failure,
            }),
            Err(_) => Err(SignError::TooSlow { place: place() }),
        }
    }

    fn foreign(&self) -> SignError {
        SignError::Foreign {
            place: self.place.clone(),
        }
    }
}

impl fmt::Debug for Transit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Transit").field(&self.place).finish()
    }
}

fn read_latest(answer: &Secret<Vec<u8>>) -> Option<Version> {
    let Shown { data } = beside(answer).ok()?;
    let half = data.keys.get(&data.latest_version.to_string())?;
    let public: [u8; 32] = STANDARD.decode(&half.public_key).ok()?.try_into().ok()?;
    (data.r#type == "ed25519").then_some(Version {
        number: data.latest_version,
        public: PublicKey(public),
    })
}

/// Of `vault:vN:BASE64`.
fn read_signature(answer: &Secret<Vec<u8>>, version: u32) -> Option<[u8; 64]> {
    let Signed { data } = beside(answer).ok()?;
    let made = data.signature.strip_prefix("vault:v")?;
    let (by, signature) = made.split_once(':')?;
    let signature = STANDARD.decode(signature).ok()?.try_into().ok()?;
    (by.parse() == Ok(version)).then_some(signature)
}

/// One version of a key in a vault.
pub struct VersionedKey {
    transit: Arc<Transit>,
    version: Version,
}

impl Signer for VersionedKey {
    fn public(&self) -> PublicKey {
        self.version.public
    }

    fn sign(&self, message: Bytes) -> Signing<'_> {
        Box::pin(async move {
            let began = Instant::now();
            let signed = self.transit.sign(self.version, message).await;
            let outcome = match &signed {
                Ok(_) => "signed",
                Err(SignError::TooSlow { .. }) => "timeout",
                Err(SignError::Vault {
                    failure: Failure::Refused(_),
                    ..
                }) => "refused",
                Err(SignError::Vault { .. }) => "unreachable",
                Err(SignError::Foreign { .. } | SignError::Wrong) => "foreign",
            };
            metrics::counter!(names::SIGNATURES, "outcome" => outcome).increment(1);
            metrics::histogram!(names::SIGNATURE_SECONDS).record(began.elapsed().as_secs_f64());
            signed
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn answer(value: &serde_json::Value) -> Secret<Vec<u8>> {
        Secret::new(value.to_string().into_bytes())
    }

    #[test]
    fn a_signature_by_another_version_or_of_another_length_is_none() {
        let said = |signature: String| answer(&json!({"data": {"signature": signature}}));
        let whole = STANDARD.encode([7; 64]);
        let read = |text: String| read_signature(&said(text), 3);
        assert_eq!(read(format!("vault:v3:{whole}")), Some([7; 64]));
        for text in [
            format!("vault:v2:{whole}"),
            format!("vault:v3:{}", STANDARD.encode([7; 63])),
            format!("v3:{whole}"),
            "vault:v3".to_owned(),
        ] {
            assert_eq!(read(text.clone()), None, "{text}");
        }
    }

    #[test]
    fn the_newest_version_is_read_and_only_of_a_key_that_signs() {
        let half = |byte| json!({"public_key": STANDARD.encode([byte; 32])});
        let key = |kind: &str| {
            let keys = json!({"1": half(1), "2": half(2)});
            answer(&json!({"data": {"type": kind, "latest_version": 2, "keys": keys}}))
        };
        let latest = read_latest(&key("ed25519")).unwrap();
        assert_eq!((latest.number, latest.public), (2, PublicKey([2; 32])));
        assert_eq!(read_latest(&key("ecdsa-p256")), None);
        let times =
            json!({"data": {"type": "aes256-gcm96", "latest_version": 1, "keys": {"1": 5}}});
        assert_eq!(read_latest(&answer(&times)), None);
    }

    #[test]
    fn a_mount_and_a_key_are_names() {
        let new = |mount: &str, key: &str| {
            Transit::new(Config {
                keyvault: keyvault::Config {
                    url: "https://keyvault.example:8200".to_owned(),
                    ..keyvault::Config::default()
                },
                mount: mount.to_owned(),
                key: key.to_owned(),
                deadline: Duration::from_secs(1),
                parallel: 1,
            })
        };
        assert_eq!(
            new("a/transit", "wavry").unwrap().place(),
            "a/transit/wavry"
        );
        for (mount, key) in [
            ("", "k"),
            ("transit", ""),
            ("t/../sys", "k"),
            ("t", "a/b"),
            ("t", "a?b"),
        ] {
            assert!(new(mount, key).is_err(), "{mount} {key}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_answers_never_panic(text: Vec<u8>, signature: String) {
            let _ = read_latest(&Secret::new(text.clone()));
            let _ = read_signature(&Secret::new(text), 1);
            let said = json!({"data": {"signature": format!("vault:v{signature}")}});
            let _ = read_signature(&answer(&said), 1);
        }
    }
}
