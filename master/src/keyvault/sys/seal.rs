//! Initialisation, sealing and unsealing, root tokens and new shares: what whoever holds shares of the
//! master key does, and what anybody may know of it.

use serde::Deserialize;
use serde_json::{Value, json};
use wavry_credentials::{
    audit::{Action, Event},
    bearer::{Document, Token},
    key::{
        aead,
        shamir::{self, Share},
    },
};

use crate::keyvault::{
    KeyVault, Status,
    barrier::Change,
    call::{Answer, Call, Noted, Operation, Planned, Refusal},
    ceremony::Collected,
    config,
    rotation::{Rotate, RotateError},
    seal,
    wrapping::rfc3339,
};

/// What Vault's clients take the KeyVault for.
const VERSION: &str = concat!("1.15.6+wavry.", env!("CARGO_PKG_VERSION"));

/// Plans an answer about the seal.
pub(super) async fn handle(vault: &KeyVault, call: &Call, rest: &str) -> Result<Planned, Refusal> {
    use Operation::{Delete, Read, Update};
    match (rest, call.operation) {
        ("init", Read) => {
            let is_initialised = vault.status().await? != Status::Uninitialised;
            let body = json!({"initialized": is_initialised});
            Ok(bare(&body))
        }
        ("init", Update) => init(vault, call).await,
        ("seal-status", Read) => Ok(bare(&status(vault).await?)),
        ("health", Read) => health(vault, call).await,
        ("leader", Read) => Ok(bare(&json!({
            "ha_enabled": false,
            "is_self": true,
            "leader_address": "",
            "leader_cluster_address": "",
            "performance_standby": false,
        }))),
        ("unseal", Update) => unseal(vault, call).await,
        // It is done behind the commit, which needs the keys.
        ("seal", Update) => Ok(Planned::answer(Answer::Done).noting(noted(Action::Seal))),
        ("key-status", Read) => {
            let status = vault.barrier.key_status().await?;
            let data = json!({
                "term": status.term,
                "install_time": rfc3339(status.since),
                "encryptions": status.wraps,
            });
            Ok(Planned::answer(Answer::data(&data)))
        }
        ("rotate", Update) => {
            rotate(vault, call, Action::Rotate, None, None).await?;
            Ok(Planned::answer(Answer::Done).noting(noted(Action::Rotate)))
        }
        ("rekey/init", Read) => rekey_progress(vault).await,
        ("rekey/init", Update) => rekey_start(vault, call).await,
        ("rekey/init", Delete) => {
            vault.ceremonies.rekey.cancel();
            Ok(Planned::answer(Answer::Done))
        }
        ("rekey/update", Update) => rekey_update(vault, call).await,
        ("generate-root/attempt", Read) => root_progress(vault).await,
        ("generate-root/attempt", Update) => root_start(vault, call).await,
        ("generate-root/attempt", Delete) => {
            vault.ceremonies.root.cancel();
            Ok(Planned::answer(Answer::Done))
        }
        ("generate-root/update", Update) => root_update(vault, call).await,
        ("rekey/backup" | "rekey/recovery-key-backup", Read) => {
            Err(Refusal::invalid("no backed-up keys found"))
        }
        (
            "init" | "unseal" | "seal" | "seal-status" | "health" | "leader" | "rotate"
            | "key-status",
            _,
        ) => Err(Refusal::Unsupported),
        _ => Err(Refusal::Absent),
    }
}

fn bare(body: &Value) -> Planned {
    Planned::answer(Answer::Bare(http::StatusCode::OK, Document::of(body)))
}

fn noted(action: Action) -> Noted {
    Noted {
        action: Some(action),
        ..Noted::default()
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Init {
    secret_shares: Option<u8>,
    secret_threshold: Option<u8>,
    recovery_shares: Option<u8>,
    recovery_threshold: Option<u8>,
    pgp_keys: Option<serde::de::IgnoredAny>,
    root_token_pgp_key: Option<serde::de::IgnoredAny>,
}

/// Most shares there are: more people than that keep no secret.
const MAX_SHARES: u8 = 32;

fn checked(count: u8, threshold: u8) -> Result<(u8, u8), Refusal> {
    let fits = (1..=MAX_SHARES).contains(&count)
        && (1..=count).contains(&threshold)
        && (threshold > 1 || count == 1);
    match fits {
        true => Ok((count, threshold)),
        false => Err(Refusal::invalid(
            "secret_shares is from 1 to 32, secret_threshold from 2 to that, or both are 1",
        )),
    }
}

async fn init(vault: &KeyVault, call: &Call) -> Result<Planned, Refusal> {
    let body: Init = call.body()?;
    if body.pgp_keys.is_some() || body.root_token_pgp_key.is_some() {
        return Err(Refusal::invalid("PGP is not supported"));
    }
    let already = || Refusal::invalid("Vault is already initialized");
    if vault.status().await? != Status::Uninitialised {
        return Err(already());
    }
    let (key, seal, shares) = match vault.seal_by {
        config::Seal::Key => (
            vault.take_held_key().ok_or_else(already)?,
            seal::Config::Key,
            Vec::new(),
        ),
        config::Seal::Shares => {
            let (count, threshold) = checked(
                body.secret_shares.or(body.recovery_shares).unwrap_or(5),
                body.secret_threshold
                    .or(body.recovery_threshold)
                    .unwrap_or(3),
            )?;
            let key = aead::Key::generate();
            let shares = shamir::split(&key, count, threshold);
            (key, seal::Config::Shares { count, threshold }, shares)
        }
    };
    let root = vault.bootstrap(key, seal).await?.ok_or_else(already)?;
    if seal != seal::Config::Key {
        // As Vault has it: who holds the shares unseals.
        vault.seal();
    }
    let body = Document::object([
        ("keys", texts(&shares, Share::to_hex)),
        ("keys_base64", texts(&shares, Share::to_base64)),
        ("root_token", Document::from(&root)),
    ]);
    let answer = Answer::Bare(http::StatusCode::OK, body);
    Ok(Planned::answer(answer).noting(noted(Action::Init)))
}

fn texts(shares: &[Share], text: impl Fn(&Share) -> Token) -> Document {
    Document::array(shares.iter().map(|share| Document::from(&text(share))))
}

/// `sys/seal-status`.
async fn status(vault: &KeyVault) -> Result<Value, Refusal> {
    let status = vault.status().await?;
    let (count, threshold) = vault.shares().await?;
    let progress = vault.ceremonies.unseal.progress();
    Ok(json!({
        "type": match vault.seal_by {
            config::Seal::Shares => "shamir",
            config::Seal::Key => "key",
        },
        "initialized": status != Status::Uninitialised,
        "sealed": status != Status::Unsealed,
        "t": threshold,
        "n": count,
        "progress": progress.given,
        "nonce": progress.nonce,
        "version": VERSION,
        "build_date": "",
        "migration": false,
        "recovery_seal": false,
        "storage_type": "wavry",
    }))
}

async fn health(vault: &KeyVault, call: &Call) -> Result<Planned, Refusal> {
    let status = vault.status().await?;
    let wished = |name: &str| call.query.get(name)?.parse().ok();
    let (code, wish) = match status {
        Status::Unsealed => (200, "activecode"),
        Status::Sealed => (503, "sealedcode"),
        Status::Uninitialised => (501, "uninitcode"),
    };
    let code = wished(wish)
        .and_then(|code: u16| http::StatusCode::from_u16(code).ok())
        .filter(|code| code.as_u16() >= 200)
        .unwrap_or(http::StatusCode::from_u16(code).unwrap_or_default());
    let body = json!({
        "initialized": status != Status::Uninitialised,
        "sealed": status != Status::Unsealed,
        "standby": false,
        "performance_standby": false,
        "replication_performance_mode": "disabled",
        "replication_dr_mode": "disabled",
        "server_time_utc": vault.authorizer.tokens().now(),
        "version": VERSION,
    });
    Ok(Planned::answer(Answer::Bare(code, Document::of(&body))))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Given {
    key: Option<Token>,
    nonce: Option<String>,
    reset: bool,
}

impl Given {
    fn share(&self) -> Result<Share, Refusal> {
        let key = self.key.as_ref();
        let key = key.ok_or_else(|| {
            Refusal::invalid(
                "'key' must be specified in request body as JSON, or 'reset' set to true",
            )
        })?;
        Share::read(key)
            .map_err(|_| Refusal::invalid("'key' must be a valid hex or base64 string of a share"))
    }
}

async fn unseal(vault: &KeyVault, call: &Call) -> Result<Planned, Refusal> {
    let given: Given = call.body()?;
    let ceremony = &vault.ceremonies.unseal;
    if given.reset {
        ceremony.cancel();
        return Ok(bare(&status(vault).await?));
    }
    match vault.status().await? {
        Status::Unsealed => return Ok(bare(&status(vault).await?)),
        Status::Uninitialised => return Err(Refusal::invalid("Vault is not initialized")),
        Status::Sealed => (),
    }
    if vault.seal_by == config::Seal::Key {
        return Err(Refusal::invalid(
            "the master key is a secret that is read at the start, and has no shares",
        ));
    }
    let share = given.share()?;
    let (_, threshold) = vault.shares().await?;
    let Collected::All(shares) = ceremony.give(share, threshold) else {
        return Ok(bare(&status(vault).await?));
    };
    ceremony.cancel();
    let invalid = || Refusal::invalid("Unseal failed: these are not shares of the master key");
    let key = shamir::combine(&shares).map_err(|_| invalid())?;
    vault
        .unseal(key)
        .await
        .map_err(|error| match error.is_of_the_moment() {
            true => error.into(),
            false => invalid(),
        })?;
    Ok(bare(&status(vault).await?).noting(noted(Action::Unseal)))
}

/// Whether enough shares were given, and they make the master key.
async fn collected(
    vault: &KeyVault,
    ceremony: &crate::keyvault::ceremony::Ceremony,
    given: &Given,
) -> Result<bool, Refusal> {
    let nonce = given.nonce.as_deref().unwrap_or_default();
    if !ceremony.is(nonce) {
        return Err(Refusal::invalid(
            "incorrect nonce supplied, or nothing is in progress",
        ));
    }
    let (_, threshold) = vault.shares().await?;
    let Collected::All(shares) = ceremony.give(given.share()?, threshold) else {
        return Ok(false);
    };
    let invalid = || Refusal::invalid("these are not shares of the master key");
    let key = shamir::combine(&shares).map_err(|_| invalid())?;
    match vault.barrier.is_master_key(key).await? {
        true => Ok(true),
        false => Err(invalid()),
    }
}

/// Only a KeyVault that is unsealed by shares has holders of shares.
fn needs_shares(vault: &KeyVault) -> Result<(), Refusal> {
    match vault.seal_by {
        _ if !vault.barrier.is_unsealed() => Err(Refusal::Sealed),
        config::Seal::Shares => Ok(()),
        config::Seal::Key => Err(Refusal::invalid("the master key has no shares")),
    }
}

async fn root_progress(vault: &KeyVault) -> Result<Planned, Refusal> {
    needs_shares(vault)?;
    let (_, threshold) = vault.shares().await?;
    let progress = vault.ceremonies.root.progress();
    Ok(bare(&json!({
        "started": progress.is_started,
        "nonce": progress.nonce,
        "progress": progress.given,
        "required": threshold,
        "complete": false,
        "encoded_token": "",
        "encoded_root_token": "",
        "pgp_fingerprint": "",
        "otp": "",
        "otp_length": ROOT_TOKEN_LEN,
    })))
}

/// Bytes of a root token, and so of what it is hidden with.
const ROOT_TOKEN_LEN: usize = crate::keyvault::token::ROOT_LEN;

#[derive(Default, Deserialize)]
#[serde(default)]
struct RootStart {
    otp: Option<Token>,
    pgp_key: Option<serde::de::IgnoredAny>,
}

async fn root_start(vault: &KeyVault, call: &Call) -> Result<Planned, Refusal> {
    needs_shares(vault)?;
    let body: RootStart = call.body()?;
    if body.pgp_key.is_some() {
        return Err(Refusal::invalid("PGP is not supported"));
    }
    let otp = match body.otp {
        Some(otp) if otp.has_length(ROOT_TOKEN_LEN) => otp,
        Some(_) => return Err(Refusal::invalid("otp: must be as long as otp_length says")),
        None => Token::short(crate::keyvault::token::PREFIX),
    };
    let shown = Document::from(&otp);
    if !vault.ceremonies.root.start(Some(otp)) {
        return Err(Refusal::invalid("root generation already in progress"));
    }
    let (_, threshold) = vault.shares().await?;
    let progress = vault.ceremonies.root.progress();
    let body = json!({
        "started": true,
        "nonce": progress.nonce,
        "progress": 0,
        "required": threshold,
        "complete": false,
        "otp_length": ROOT_TOKEN_LEN,
    });
    let body = match Document::of(&body).public_members() {
        Some(members) => members.with([("otp", shown)]),
        None => Document::of(&body),
    };
    Ok(Planned::answer(Answer::Bare(http::StatusCode::OK, body)))
}

async fn root_update(vault: &KeyVault, call: &Call) -> Result<Planned, Refusal> {
    needs_shares(vault)?;
    let given: Given = call.body()?;
    let ceremony = &vault.ceremonies.root;
    if !collected(vault, ceremony, &given).await? {
        return root_progress(vault).await;
    }
    let otp = ceremony
        .finish()
        .ok_or_else(|| Refusal::invalid("nothing is in progress"))?;
    let mut change = Change::default();
    let tokens = vault.authorizer.tokens();
    let root = tokens.issue_root(&mut change, "sys/generate-root").await?;
    let hidden = root.token.hidden_with(&otp);
    let (_, threshold) = vault.shares().await?;
    let body = json!({
        "started": false,
        "nonce": given.nonce,
        "progress": threshold,
        "required": threshold,
        "complete": true,
        "encoded_token": hidden,
        "encoded_root_token": hidden,
        "pgp_fingerprint": "",
    });
    let answer = Answer::Bare(http::StatusCode::OK, Document::of(&body));
    Ok(Planned::of(change, Ok(answer)).noting(Noted {
        secret: Some(root.record.accessor),
        ..noted(Action::Issue)
    }))
}

/// Puts a new term, and perhaps a new master key, in the old one's place.
async fn rotate(
    vault: &KeyVault,
    call: &Call,
    action: Action,
    master_key: Option<aead::Key>,
    seal: Option<seal::Config>,
) -> Result<(), Refusal> {
    let path = call.path.as_str();
    let mut event = Event::now(action, "keyring", path);
    event.request = Some(call.request.clone());
    event.source = Some(call.client);
    let rotate = Rotate {
        master_key,
        seal,
        event,
    };
    vault
        .barrier
        .rotate(rotate)
        .await
        .map_err(|error| match error {
            RotateError::Running => Refusal::invalid("another rotation is under way"),
            RotateError::SameKey => Refusal::invalid("this is the master key already"),
            RotateError::Failed(error) => error.into(),
        })
}

async fn rekey_progress(vault: &KeyVault) -> Result<Planned, Refusal> {
    needs_shares(vault)?;
    let (_, required) = vault.shares().await?;
    let progress = vault.ceremonies.rekey.progress();
    let (count, threshold) = vault.ceremonies.rekey.shares();
    Ok(bare(&json!({
        "started": progress.is_started,
        "nonce": progress.nonce,
        "progress": progress.given,
        "required": required,
        "n": count,
        "t": threshold,
        "pgp_fingerprints": null,
        "backup": false,
        "verification_required": false,
    })))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RekeyStart {
    secret_shares: Option<u8>,
    secret_threshold: Option<u8>,
    pgp_keys: Option<Vec<serde::de::IgnoredAny>>,
    backup: bool,
    require_verification: bool,
}

async fn rekey_start(vault: &KeyVault, call: &Call) -> Result<Planned, Refusal> {
    needs_shares(vault)?;
    let body: RekeyStart = call.body()?;
    let has_pgp = body.pgp_keys.is_some_and(|keys| !keys.is_empty());
    if has_pgp || body.backup || body.require_verification {
        return Err(Refusal::invalid(
            "neither PGP nor verification is supported",
        ));
    }
    let shares = checked(
        body.secret_shares.unwrap_or(5),
        body.secret_threshold.unwrap_or(3),
    )?;
    if !vault.ceremonies.rekey.start_shares(shares) {
        return Err(Refusal::invalid("rekey already in progress"));
    }
    rekey_progress(vault).await
}

async fn rekey_update(vault: &KeyVault, call: &Call) -> Result<Planned, Refusal> {
    needs_shares(vault)?;
    let given: Given = call.body()?;
    let ceremony = &vault.ceremonies.rekey;
    let (count, threshold) = ceremony.shares();
    if !collected(vault, ceremony, &given).await? {
        return rekey_progress(vault).await;
    }
    let key = aead::Key::generate();
    let shares = shamir::split(&key, count, threshold);
    let seal = seal::Config::Shares { count, threshold };
    rotate(vault, call, Action::Rekey, Some(key), Some(seal)).await?;
    ceremony.finish();
    let rest = json!({
        "complete": true,
        "nonce": given.nonce,
        "n": count,
        "t": threshold,
        "backup": false,
        "pgp_fingerprints": null,
        "verification_required": false,
    });
    let keys = [
        ("keys", texts(&shares, Share::to_hex)),
        ("keys_base64", texts(&shares, Share::to_base64)),
    ];
    let body = match Document::of(&rest).public_members() {
        Some(members) => members.with(keys),
        None => Document::object(keys),
    };
    let answer = Answer::Bare(http::StatusCode::OK, body);
    Ok(Planned::answer(answer).noting(noted(Action::Rekey)))
}
