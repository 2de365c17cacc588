//! A KeyVault with secrets to read, and a unit that may.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Value, json};
use wavry_credentials::{
    audit::{self, Action, Event},
    bearer::{Document, Json, Token},
    key::aead,
    secret::Secret,
    token::SigningKey,
};
use wavry_master::keyvault::{
    Config, KeyVault,
    barrier::{Barrier, Change, Guard},
    call::{Answer, Call, Operation},
    login,
    path::Canonical,
    policy::Policies,
    seal,
    store::Location,
    token::{Limits, Tokens},
};

/// Secrets that are read in turn, of 256 bytes.
pub(crate) const ENTRIES: usize = 2000;
/// Secrets written at once while it is filled.
const FILLING: usize = 100;
/// Secret-ids by which units log in.
const SECRET_IDS: usize = 100;

pub(crate) struct World {
    pub(crate) vault: KeyVault,
    pub(crate) tokens: Tokens,
    pub(crate) policies: Policies,
    /// Of a unit that may read all secrets.
    pub(crate) token: Token,
}

impl World {
    /// A new one, unsealed and filled.
    pub(crate) async fn new(location: Location) -> Self {
        Self::with(location, aead::Key::generate(), &audit_key()).await
    }

    pub(crate) async fn with(location: Location, key: aead::Key, audit: &Arc<audit::Key>) -> Self {
        let vault = open(location, audit).await;
        let root = vault.bootstrap(key, seal::Config::Key).await;
        let root = root.expect("it is initialised").expect("it is new");
        let ask = async |operation, path: &str, body| {
            let call = call(operation, path, &root, Some(body));
            vault.handle(call).await.expect("root may")
        };
        let policy = r#"path "secret/data/*" { capabilities = ["read"] }
            path "auth/token/lookup-self" { capabilities = ["read"] }"#;
        let policy = json!({"policy": policy});
        ask(Operation::Update, "sys/policies/acl/unit", policy).await;
        let wanted = json!({"policies": ["unit"], "ttl": "1h"});
        let answer = ask(Operation::Update, "auth/token/create-orphan", wanted).await;
        let Answer::Auth(auth) = answer else {
            panic!("no token was made")
        };
        for first in (0..ENTRIES).step_by(FILLING) {
            let writes = (first..ENTRIES.min(first + FILLING)).map(async |i| {
                let body = json!({"data": {"password": "p".repeat(230)}});
                ask(Operation::Update, &secret_path(i), body).await;
            });
            futures_util::future::join_all(writes).await;
        }
        let approle = json!({"type": "approle"});
        ask(Operation::Update, "sys/auth/approle", approle).await;
        let role = json!({"token_policies": ["unit"], "token_ttl": "15m"});
        ask(Operation::Update, ROLE, role).await;
        let role_id = json!({"role_id": "bench"});
        ask(Operation::Update, &format!("{ROLE}/role-id"), role_id).await;
        for i in 0..SECRET_IDS {
            let path = format!("{ROLE}/custom-secret-id");
            let chosen = json!({"secret_id": secret_id(i)});
            ask(Operation::Update, &path, chosen).await;
        }
        let mut change = Change::default();
        for i in 0..ENTRIES {
            change.put(entry_path(i), value());
        }
        vault.barrier().commit(change).await.expect("it is filled");
        // What is kept in memory once it was read is there from the first read that counts.
        for i in 0..ENTRIES {
            let entry = vault.barrier().read(&entry_path(i)).await;
            assert!(entry.is_ok_and(|entry| entry.is_some()), "it is filled");
        }
        let barrier = || vault.barrier().clone();
        Self {
            tokens: Tokens::new(barrier(), Arc::default(), Limits::default()),
            policies: Policies::new(barrier()),
            token: auth.client_token,
            vault,
        }
    }

    pub(crate) fn barrier(&self) -> &Barrier {
        self.vault.barrier()
    }
}

pub(crate) async fn open(location: Location, audit: &Arc<audit::Key>) -> KeyVault {
    let config = Config {
        guard: Guard::default(),
        // What one costs is to be seen, not the rate to which they are held.
        logins: login::Limits {
            rate: u32::MAX,
            burst: u32::MAX,
            ..login::Limits::default()
        },
        ..Config::at(location)
    };
    let vault = KeyVault::open(&config, audit.clone()).await;
    vault.expect("it opens")
}

pub(crate) fn audit_key() -> Arc<audit::Key> {
    let key = SigningKey::generate().to_paserk();
    let key = audit::Key::from_paserk(&key, "bench".parse().expect("a name"));
    Arc::new(key.expect("a key"))
}

/// A call as HTTP makes it.
pub(crate) fn call(operation: Operation, path: &str, token: &Token, body: Option<Value>) -> Call {
    let body = body.map(|body| Json::new(Document::of(&body).into_secret()).expect("JSON"));
    Call {
        operation,
        path: Canonical::parse(path).expect("a path"),
        query: BTreeMap::new(),
        token: Some(token.copied()),
        body,
        client: ([127, 0, 0, 1], 40_000).into(),
        peer_certificates: Vec::new(),
        wrap_ttl: None,
        request: "5b6b1c6e-0000-4000-8000-2f6f3d1c9a10".to_owned(),
    }
}

/// A unit's login, as HTTP makes it.
pub(crate) fn login(i: usize) -> Call {
    let shown = json!({"role_id": "bench", "secret_id": secret_id(i)});
    Call {
        token: None,
        ..call(
            Operation::Update,
            "auth/approle/login",
            &Token::new(String::new()),
            Some(shown),
        )
    }
}

const ROLE: &str = "auth/approle/role/bench";

fn secret_id(i: usize) -> String {
    format!("secret-id-of-a-benchmark-{}", i % SECRET_IDS)
}

/// Where a unit reads.
pub(crate) fn secret_path(i: usize) -> String {
    format!("secret/data/unit-{}/password", i % ENTRIES)
}

/// An entry that is no engine's.
pub(crate) fn entry_path(i: usize) -> String {
    format!("bench/0123456789abcdef/unit-{}/password", i % ENTRIES)
}

pub(crate) fn value() -> Secret<Vec<u8>> {
    Secret::new(vec![7; 256])
}

/// What the audit log tells of a read.
pub(crate) fn event(at: usize) -> Event {
    let path = secret_path(at);
    let mut event = Event::now(Action::Read, &*path, &*path);
    "unit".clone_into(&mut event.actor);
    event.request = Some("5b6b1c6e-0000-4000-8000-2f6f3d1c9a10".to_owned());
    event.source = Some(([127, 0, 0, 1], 40_000).into());
    event
}
