//! Transit: keys that stay here and are used by name.
//!
//! Of a key there is a record at `policy/NAME`, and of each version the key itself at `key/NAME/N`.
//! They are never exported, and never derived from another: a request for either is refused.

mod budget;

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use wavry_credentials::{
    bearer::{Document, Plaintext},
    key::transit::{self, Key, data_key},
    secret::Secret,
};

pub(in crate::keyvault) use budget::Budgets;

use super::{At, list};
use crate::keyvault::{
    barrier::{Change, Revision},
    call::{Answer, Call, Noted, Operation, Planned, Refusal},
};

pub(super) async fn handle(at: At<'_>, call: &Call) -> Result<Planned, Refusal> {
    use Operation::{Create, Delete, List, Read, Update};
    let segments: Vec<&str> = at.rest.trim_end_matches('/').split('/').collect();
    match (&segments[..], call.operation) {
        (["keys"], List) => list(at, "policy/", call).await,
        (["keys", name], Create | Update) => create(at, name, call).await,
        (["keys", name], Read) => show(at, name).await,
        (["keys", name], Delete) => delete(at, name).await,
        (["keys", name, "config"], Create | Update) => configure(at, name, call).await,
        (["keys", name, "rotate"], Create | Update) => rotate(at, name).await,
        (["keys", name, "trim"], Create | Update) => trim(at, name, call).await,
        (["encrypt", name], Create | Update) => encrypt(at, name, call).await,
        (["decrypt", name], Create | Update) => decrypt(at, name, call).await,
        (["rewrap", name], Create | Update) => rewrap(at, name, call).await,
        (["datakey", form @ ("plaintext" | "wrapped"), name], Create | Update) => {
            new_data_key(at, name, *form == "plaintext", call).await
        }
        // Ed25519 hashes by itself; the algorithm that a client names after the key is of no meaning.
        (["sign", name] | ["sign", name, _], Create | Update) => sign(at, name, call).await,
        (["verify", name] | ["verify", name, _], Create | Update) => verify(at, name, call).await,
        (
            [
                "keys" | "encrypt" | "decrypt" | "rewrap" | "datakey" | "sign" | "verify",
                ..,
            ],
            _,
        ) => Err(Refusal::Unsupported),
        _ => Err(Refusal::Absent),
    }
}

pub(super) async fn exists(at: At<'_>) -> Result<bool, Refusal> {
    match at.rest.split_once('/') {
        Some(("keys", name)) if !name.contains('/') => Ok(at
            .barrier
            .read(&at.entry(&format!("policy/{name}")))
            .await?
            .is_some()),
        _ => Ok(true),
    }
}

/// What is known of a key without having it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Policy {
    kind: Kind,
    latest_version: u32,
    /// Ciphertexts of older versions are not decrypted, signatures not verified.
    min_decryption_version: u32,
    /// 0: the latest.
    min_encryption_version: u32,
    /// Older versions are no more.
    min_available_version: u32,
    deletion_allowed: bool,
    versions: BTreeMap<u32, About>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    #[serde(rename = "aes256-gcm96")]
    Aes256Gcm,
    #[serde(rename = "ed25519")]
    Ed25519,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct About {
    #[serde(with = "time::serde::rfc3339")]
    created: OffsetDateTime,
    /// Base64, of a key that signs.
    public_key: Option<String>,
}

impl Kind {
    fn of_key(self) -> transit::Kind {
        match self {
            Self::Aes256Gcm => transit::Kind::Aes256Gcm,
            Self::Ed25519 => transit::Kind::Ed25519,
        }
    }
}

impl Policy {
    /// Adds a version, and plans to keep its key.
    fn add_version(&mut self, at: At<'_>, name: &str, change: &mut Change) {
        let key = Key::generate(self.kind.of_key());
        self.latest_version += 1;
        let about = About {
            created: at.now,
            public_key: key.public().map(|public| STANDARD.encode(public)),
        };
        self.versions.insert(self.latest_version, about);
        change.put(key_entry(at, name, self.latest_version), key.to_paserk());
    }

    /// The version that new ciphertexts and signatures are made with, when `asked` for one or none.
    fn version_to_make(&self, asked: Option<u32>) -> Result<u32, Refusal> {
        let least = match self.min_encryption_version {
            0 => 1,
            least => least,
        };
        match asked.unwrap_or(0) {
            0 => Ok(self.latest_version),
            asked
                if (least..=self.latest_version).contains(&asked)
                    && asked >= self.min_available_version =>
            {
                Ok(asked)
            }
            _ => Err(Refusal::invalid(
                "key_version: not one that may be used for this",
            )),
        }
    }

    fn shown(&self, name: &str) -> Value {
        let shown = |about: &About| match &about.public_key {
            None => json!(about.created.unix_timestamp()),
            Some(public) => json!({
                "creation_time": about.created.format(&Rfc3339).unwrap_or_default(),
                "name": "ed25519",
                "public_key": public,
            }),
        };
        let usable = self.versions.range(self.min_decryption_version..);
        let keys = usable.map(|(number, about)| (number.to_string(), shown(about)));
        json!({
            "name": name,
            "type": self.kind,
            "keys": keys.collect::<serde_json::Map<_, _>>(),
            "latest_version": self.latest_version,
            "min_decryption_version": self.min_decryption_version,
            "min_encryption_version": self.min_encryption_version,
            "min_available_version": self.min_available_version,
            "deletion_allowed": self.deletion_allowed,
            "derived": false,
            "exportable": false,
            "allow_plaintext_backup": false,
            "auto_rotate_period": 0,
            "supports_encryption": self.kind == Kind::Aes256Gcm,
            "supports_decryption": self.kind == Kind::Aes256Gcm,
            "supports_signing": self.kind == Kind::Ed25519,
            "supports_derivation": false,
        })
    }
}

fn key_entry(at: At<'_>, name: &str, version: u32) -> String {
    at.entry(&format!("key/{name}/{version}"))
}

/// Where it is kept how often a version of a key has encrypted.
fn uses_entry(at: At<'_>, name: &str, version: u32) -> String {
    at.entry(&format!("uses/{name}/{version}"))
}

fn policy_entry(at: At<'_>, name: &str) -> String {
    at.entry(&format!("policy/{name}"))
}

async fn find(at: At<'_>, name: &str) -> Result<Option<(Revision, Policy)>, Refusal> {
    Ok(at.barrier.read_record(&policy_entry(at, name)).await?)
}

async fn known(at: At<'_>, name: &str) -> Result<(Revision, Policy), Refusal> {
    let found = find(at, name).await?;
    found.ok_or_else(|| Refusal::invalid("encryption key not found"))
}

async fn key(at: At<'_>, name: &str, policy: &Policy, version: u32) -> Result<Key, Refusal> {
    let entry = at.barrier.read(&key_entry(at, name, version)).await?;
    let entry = entry.ok_or(Refusal::Internal("a version of a key is missing"))?;
    Key::from_paserk(policy.kind.of_key(), &entry.value)
        .map_err(|_| Refusal::Internal("a version of a key is not a key"))
}

/// What `plaintext` is under a version of a key, which counts it.
async fn sealed(
    at: At<'_>,
    name: &str,
    (policy, version): (&Policy, u32),
    context: &[u8],
    plaintext: &Secret<Vec<u8>>,
) -> Result<String, Refusal> {
    let key = key(at, name, policy, version).await?;
    if policy.kind == Kind::Aes256Gcm {
        at.transit
            .take(at.barrier, &uses_entry(at, name, version))
            .await?;
    }
    let sealed = key.encrypt(context, plaintext).map_err(wrong_kind)?;
    Ok(Made::text(version, &sealed))
}

/// Plans a changed record.
fn keep(at: At<'_>, name: &str, policy: &Policy, read: Option<Revision>) -> Change {
    let mut change = Change::default();
    change.expect(policy_entry(at, name), read);
    change.put_record(policy_entry(at, name), policy);
    change
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NewKey {
    r#type: Option<Kind>,
    derived: bool,
    convergent_encryption: bool,
    exportable: bool,
    allow_plaintext_backup: bool,
}

async fn create(at: At<'_>, name: &str, call: &Call) -> Result<Planned, Refusal> {
    let new: NewKey = call.body()?;
    if new.derived || new.convergent_encryption || new.exportable || new.allow_plaintext_backup {
        return Err(Refusal::invalid(
            "keys are neither derived nor convergent, and never leave the KeyVault",
        ));
    }
    if let Some((_, policy)) = find(at, name).await? {
        let data = Document::of(&policy.shown(name));
        return Ok(Planned::answer(Answer::Data(data)));
    }
    let mut policy = Policy {
        kind: new.r#type.unwrap_or(Kind::Aes256Gcm),
        latest_version: 0,
        min_decryption_version: 1,
        min_encryption_version: 0,
        min_available_version: 0,
        deletion_allowed: false,
        versions: BTreeMap::new(),
    };
    let mut change = Change::default();
    policy.add_version(at, name, &mut change);
    change.merge(keep(at, name, &policy, None));
    let data = Document::of(&policy.shown(name));
    Ok(Planned::of(change, Ok(Answer::Data(data))))
}

async fn show(at: At<'_>, name: &str) -> Result<Planned, Refusal> {
    let (_, policy) = find(at, name).await?.ok_or(Refusal::Absent)?;
    let data = Document::of(&policy.shown(name));
    Ok(Planned::answer(Answer::Data(data)))
}

async fn delete(at: At<'_>, name: &str) -> Result<Planned, Refusal> {
    let (revision, policy) = known(at, name).await?;
    if !policy.deletion_allowed {
        return Err(Refusal::invalid("deletion is not allowed for this key"));
    }
    let mut change = Change::default();
    change.expect(policy_entry(at, name), Some(revision));
    change.delete(policy_entry(at, name));
    for version in policy.versions.keys() {
        change.delete(key_entry(at, name, *version));
        change.delete(uses_entry(at, name, *version));
    }
    Ok(Planned::done(change))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NewConfig {
    min_decryption_version: Option<u32>,
    min_encryption_version: Option<u32>,
    deletion_allowed: Option<bool>,
    exportable: bool,
    allow_plaintext_backup: bool,
}

async fn configure(at: At<'_>, name: &str, call: &Call) -> Result<Planned, Refusal> {
    let new: NewConfig = call.body()?;
    if new.exportable || new.allow_plaintext_backup {
        return Err(Refusal::invalid("keys never leave the KeyVault"));
    }
    let (revision, mut policy) = known(at, name).await?;
    if let Some(least) = new.min_decryption_version {
        policy.min_decryption_version = least.max(1);
    }
    if let Some(least) = new.min_encryption_version {
        policy.min_encryption_version = least;
    }
    let least = policy.min_encryption_version;
    if policy.min_decryption_version > policy.latest_version
        || least > policy.latest_version
        || (least > 0 && least < policy.min_decryption_version)
        || policy.min_decryption_version < policy.min_available_version
    {
        return Err(Refusal::invalid(
            "min_decryption_version ≤ min_encryption_version ≤ the latest version does not hold",
        ));
    }
    if let Some(allowed) = new.deletion_allowed {
        policy.deletion_allowed = allowed;
    }
    let change = keep(at, name, &policy, Some(revision));
    let data = Document::of(&policy.shown(name));
    Ok(Planned::of(change, Ok(Answer::Data(data))))
}

async fn rotate(at: At<'_>, name: &str) -> Result<Planned, Refusal> {
    let (revision, mut policy) = known(at, name).await?;
    let mut change = Change::default();
    policy.add_version(at, name, &mut change);
    change.merge(keep(at, name, &policy, Some(revision)));
    let noted = Noted {
        action: Some(wavry_credentials::audit::Action::Rotate),
        version: Some(policy.latest_version.into()),
        ..Noted::default()
    };
    let data = Document::of(&policy.shown(name));
    Ok(Planned::of(change, Ok(Answer::Data(data))).noting(noted))
}

#[derive(Deserialize)]
struct Trim {
    min_available_version: u32,
}

async fn trim(at: At<'_>, name: &str, call: &Call) -> Result<Planned, Refusal> {
    let Trim {
        min_available_version: least,
    } = call.body()?;
    let (revision, mut policy) = known(at, name).await?;
    if least < policy.min_available_version
        || least > policy.min_decryption_version
        || policy.min_encryption_version == 0
        || least > policy.min_encryption_version
    {
        return Err(Refusal::invalid(
            "min_available_version: above min_decryption_version or min_encryption_version, or below what it was",
        ));
    }
    let kept = policy.versions.split_off(&least);
    let gone = std::mem::replace(&mut policy.versions, kept);
    policy.min_available_version = least;
    let mut change = keep(at, name, &policy, Some(revision));
    for version in gone.keys() {
        change.delete(key_entry(at, name, *version));
        change.delete(uses_entry(at, name, *version));
    }
    let data = Document::of(&policy.shown(name));
    Ok(Planned::of(change, Ok(Answer::Data(data))))
}

/// Base64 that is no secret: ciphertexts, signatures, associated data.
#[derive(Default, Deserialize)]
#[serde(try_from = "String")]
struct Base64(Vec<u8>);

impl TryFrom<String> for Base64 {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        STANDARD.decode(text).map(Self).map_err(|_| "not base64")
    }
}

/// What the engine makes: `vault:v1:…`, with the version of the key that made it.
struct Made {
    version: u32,
    bytes: Vec<u8>,
}

impl Made {
    fn read(text: &str) -> Option<Self> {
        let (version, bytes) = text.strip_prefix("vault:v")?.split_once(':')?;
        Some(Self {
            version: version.parse().ok()?,
            bytes: STANDARD.decode(bytes).ok()?,
        })
    }

    fn text(version: u32, bytes: &[u8]) -> String {
        format!("vault:v{version}:{}", STANDARD.encode(bytes))
    }

    /// One of a version that is still accepted.
    fn accepted(text: &str, policy: &Policy) -> Result<Self, Refusal> {
        Self::read(text)
            .filter(|made| {
                made.version >= policy.min_decryption_version
                    && policy.versions.contains_key(&made.version)
            })
            .ok_or_else(|| {
                Refusal::invalid("not of this engine's making, or by a version of the key that is not accepted any more")
            })
    }
}

#[derive(Deserialize)]
struct Encrypt {
    plaintext: Option<Plaintext>,
    #[serde(default)]
    associated_data: Base64,
    key_version: Option<u32>,
    batch_input: Option<serde::de::IgnoredAny>,
}

async fn encrypt(at: At<'_>, name: &str, call: &Call) -> Result<Planned, Refusal> {
    let body: Encrypt = call.body()?;
    no_batch(body.batch_input.is_some())?;
    let plaintext = body
        .plaintext
        .ok_or_else(|| Refusal::invalid("missing plaintext to encrypt"))?;
    let (_, policy) = known(at, name).await?;
    let version = policy.version_to_make(body.key_version)?;
    let context = &body.associated_data.0;
    let ciphertext = sealed(at, name, (&policy, version), context, &plaintext.0).await?;
    let data = json!({"ciphertext": ciphertext, "key_version": version});
    Ok(Planned::answer(Answer::Data(Document::of(&data))))
}

#[derive(Deserialize)]
struct Decrypt {
    ciphertext: Option<String>,
    #[serde(default)]
    associated_data: Base64,
    key_version: Option<u32>,
    batch_input: Option<serde::de::IgnoredAny>,
}

/// The plaintext of a ciphertext, and the key's record.
async fn opened(at: At<'_>, name: &str, body: &Decrypt) -> Result<(Plaintext, Policy), Refusal> {
    no_batch(body.batch_input.is_some())?;
    let ciphertext = body.ciphertext.as_deref();
    let ciphertext = ciphertext.ok_or_else(|| Refusal::invalid("missing ciphertext to decrypt"))?;
    let (_, policy) = known(at, name).await?;
    let made = Made::accepted(ciphertext, &policy)?;
    let key = key(at, name, &policy, made.version).await?;
    let plaintext = key
        .decrypt(&body.associated_data.0, &made.bytes)
        .map_err(|_| {
            Refusal::invalid(
                "the ciphertext does not authenticate under this key and associated data",
            )
        })?;
    Ok((Plaintext(plaintext), policy))
}

async fn decrypt(at: At<'_>, name: &str, call: &Call) -> Result<Planned, Refusal> {
    let (plaintext, _) = opened(at, name, &call.body()?).await?;
    let data = Document::object([("plaintext", plaintext.document())]);
    Ok(Planned::answer(Answer::Data(data)))
}

async fn rewrap(at: At<'_>, name: &str, call: &Call) -> Result<Planned, Refusal> {
    let body: Decrypt = call.body()?;
    let (plaintext, policy) = opened(at, name, &body).await?;
    let version = policy.version_to_make(body.key_version)?;
    let context = &body.associated_data.0;
    let ciphertext = sealed(at, name, (&policy, version), context, &plaintext.0).await?;
    let data = json!({"ciphertext": ciphertext, "key_version": version});
    Ok(Planned::answer(Answer::Data(Document::of(&data))))
}

#[derive(Deserialize)]
struct NewDataKey {
    bits: Option<u32>,
    #[serde(default)]
    associated_data: Base64,
}

async fn new_data_key(
    at: At<'_>,
    name: &str,
    shows: bool,
    call: &Call,
) -> Result<Planned, Refusal> {
    let body: NewDataKey = call.body()?;
    let length = match body.bits {
        None | Some(256) => 32,
        Some(128) => 16,
        Some(512) => 64,
        Some(_) => return Err(Refusal::invalid("bits: not 128, 256 or 512")),
    };
    let (_, policy) = known(at, name).await?;
    let version = policy.latest_version;
    let plaintext = data_key(length);
    let context = &body.associated_data.0;
    let ciphertext = sealed(at, name, (&policy, version), context, &plaintext).await?;
    let mut members = vec![
        ("ciphertext", Document::of(&ciphertext)),
        ("key_version", Document::of(&version)),
    ];
    if shows {
        members.push(("plaintext", Plaintext(plaintext).document()));
    }
    Ok(Planned::answer(Answer::Data(Document::object(members))))
}

#[derive(Deserialize)]
struct Sign {
    input: Base64,
    key_version: Option<u32>,
    batch_input: Option<serde::de::IgnoredAny>,
}

async fn sign(at: At<'_>, name: &str, call: &Call) -> Result<Planned, Refusal> {
    let body: Sign = call.body()?;
    no_batch(body.batch_input.is_some())?;
    let (_, policy) = known(at, name).await?;
    let version = policy.version_to_make(body.key_version)?;
    let key = key(at, name, &policy, version).await?;
    let signature = key.sign(&body.input.0).map_err(wrong_kind)?;
    let mut data = json!({"signature": Made::text(version, &signature), "key_version": version});
    if let Some(public) = key.public() {
        data["public_key"] = STANDARD.encode(public).into();
    }
    Ok(Planned::answer(Answer::Data(Document::of(&data))))
}

#[derive(Deserialize)]
struct Verify {
    input: Base64,
    signature: String,
    batch_input: Option<serde::de::IgnoredAny>,
}

async fn verify(at: At<'_>, name: &str, call: &Call) -> Result<Planned, Refusal> {
    let body: Verify = call.body()?;
    no_batch(body.batch_input.is_some())?;
    let (_, policy) = known(at, name).await?;
    let made = Made::accepted(&body.signature, &policy)?;
    let public = policy.versions.get(&made.version);
    let public = public.and_then(|about| about.public_key.as_deref());
    let public: Option<[u8; 32]> =
        public.and_then(|public| STANDARD.decode(public).ok()?.try_into().ok());
    let public = public.ok_or_else(|| wrong_kind(transit::Refused))?;
    let valid = transit::verify(&public, &body.input.0, &made.bytes);
    let data = Document::of(&json!({"valid": valid}));
    Ok(Planned::answer(Answer::Data(data)))
}

fn no_batch(is_batch: bool) -> Result<(), Refusal> {
    match is_batch {
        true => Err(Refusal::invalid(
            "batch_input is not taken: send one request for each",
        )),
        false => Ok(()),
    }
}

fn wrong_kind(_: transit::Refused) -> Refusal {
    Refusal::invalid("this type of key does not do that")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_made_is_read_with_its_version() {
        let made = Made::read(&Made::text(7, b"\0\xff")).unwrap();
        assert_eq!((made.version, &made.bytes[..]), (7, &b"\0\xff"[..]));
        for text in [
            "",
            "vault:v1",
            "vault:v:AA==",
            "vault:v1:%",
            "vault:v-1:AA==",
        ] {
            assert!(Made::read(text).is_none(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_texts_never_panic(text: String) {
            let _ = Made::read(&text);
            let _ = Made::read(&format!("vault:v1:{text}"));
        }
    }
}
