//! Secrets that are kept in a KeyVault: a master that starts with them, and a watch that follows one.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};
use support::{DEADLINE, RoleProcess, keyvault::KeyVault, output, stderr, wavry};
use wavry_credentials::{
    cert::{self, DevelopmentAuthority},
    key::format,
    source::{self, Source as _},
};

/// A KeyVault, and a unit that may read below `secret/`.
struct World {
    directory: tempfile::TempDir,
    vault: KeyVault,
}

impl World {
    fn new() -> Self {
        cert::install_crypto_provider();
        let directory = tempfile::tempdir().unwrap();
        let authority = DevelopmentAuthority::open(directory.path()).unwrap();
        authority.issue("master", &["127.0.0.1"]).unwrap();
        let database = directory.path().join("keyvault.sqlite");
        let command = KeyVault::command(directory.path(), &database);
        let vault = KeyVault::start(directory.path(), command);
        let (role_id, secret_id) = vault.unit("master");
        for (file, text) in [("role_id", role_id), ("secret_id", secret_id)] {
            source::write_private(&directory.path().join(file), text.as_bytes()).unwrap();
        }
        Self { directory, vault }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn url(&self) -> String {
        format!("https://{}", self.vault.process.address())
    }

    fn keep(&self, path: &str, data: Value) {
        let path = format!("/v1/secret/data/{path}");
        self.vault.does("POST", &path, &json!({"data": data}));
    }

    fn source(&self, path: &str, field: Option<&str>) -> source::KeyVault {
        let config = source::keyvault::Config {
            url: self.url(),
            ca_file: Some(self.at("ca.crt")),
            role_id: Some(self.at("role_id")),
            secret_id: Some(self.at("secret_id")),
        };
        source::KeyVault::new(config, path, field.map(str::to_owned)).unwrap()
    }

    /// A master that finds its keys in the KeyVault.
    fn master(&self) -> Command {
        let text = format!(
            "[master]\nlisten = \"127.0.0.1:0\"\ndatabase = {:?}\ncertificate = {:?}\n\
             [ops]\nlisten = \"127.0.0.1:0\"\n",
            self.at("master.sqlite"),
            self.at("master.crt")
        );
        fs::write(self.at("master.toml"), text).unwrap();
        let mut command = wavry(&["master", "--config"]);
        command
            .arg(self.at("master.toml"))
            .env("WAVRY_TLS_KEY_FILE", self.at("master.key"))
            .env("WAVRY_KEYVAULT_URL", self.url())
            .env("WAVRY_KEYVAULT_CA", self.at("ca.crt"))
            .env("WAVRY_KEYVAULT_ROLE_ID_FILE", self.at("role_id"))
            .env("WAVRY_KEYVAULT_SECRET_ID_FILE", self.at("secret_id"))
            .env("WAVRY_MASTER_KEY_KEYVAULT", "secret/wavry/master")
            .env("WAVRY_AUDIT_KEY_KEYVAULT", "secret/wavry/master")
            .env("WAVRY_AUDIT_KEY_FIELD", "audit_key");
        command
    }
}

fn paserk(directory: &Path, name: &str) -> String {
    let file = directory.join(name);
    let path = file.display().to_string();
    let made = output(wavry(&["key", "generate", "--out", &path]));
    assert!(made.status.success(), "{}", stderr(&made));
    fs::read_to_string(file).unwrap().trim().to_owned()
}

#[test]
fn a_master_starts_with_the_keys_that_a_keyvault_keeps_for_it() {
    let world = World::new();
    let refused = |what: &str| {
        let said = output(world.master());
        assert_eq!(said.status.code(), Some(1), "{what}");
        stderr(&said)
    };
    let text = refused("there is no key");
    assert!(text.contains("KeyVault path secret/wavry/master"), "{text}");
    assert!(text.contains("404"), "{text}");

    world.keep(
        "wavry/master",
        json!({"value": "canary-of-no-key", "audit_key": "x"}),
    );
    let text = refused("it is no key");
    assert!(
        text.contains("secret master_key in KeyVault path secret/wavry/master"),
        "{text}"
    );
    assert!(text.contains("line 1, column 1"), "{text}");
    assert!(!text.contains("canary"), "{text}");

    let keys = ["signing.key", "audit.key"].map(|name| paserk(world.directory.path(), name));
    world.keep(
        "wavry/master",
        json!({"value": keys[0], "audit_key": keys[1]}),
    );
    let master = RoleProcess::start(world.master(), &world.at("master.ready"));
    assert!(master.address().ip().is_loopback());
}

#[tokio::test]
async fn a_new_version_in_the_keyvault_is_published_and_a_bad_one_is_not() {
    let world = World::new();
    world.keep("db", json!({"password": "one"}));
    let source = world.source("secret/db", Some("password"));
    let interval = Duration::from_millis(50);
    let mut watched = source::watch("db_password", source, interval, format::password)
        .await
        .unwrap();
    assert!(watched.borrow_and_update().matches(b"one"));
    // Two lines are no password; then one is.
    world.keep("db", json!({"password": "two\nlines"}));
    world.keep("db", json!({"other": "no password at all"}));
    world.keep("db", json!({"password": "three"}));
    let changed = watched.wait_for(|now| !now.matches(b"one"));
    let changed = tokio::time::timeout(DEADLINE, changed).await.unwrap();
    assert!(changed.unwrap().matches(b"three"));
}

#[tokio::test]
async fn a_token_that_was_revoked_is_replaced_by_a_new_login() {
    let world = World::new();
    world.keep("db", json!({"value": "one"}));
    let source = world.source("secret/db", None);
    let first = source.read(None).await.unwrap().unwrap();
    assert!(first.text.matches(b"one"));
    let same = source.read(Some(&first.version)).await.unwrap();
    assert!(same.is_none(), "it is the version that is known");

    let accessors = world
        .vault
        .does("LIST", "/v1/auth/token/accessors", &Value::Null);
    for accessor in accessors["keys"].as_array().unwrap() {
        let body = json!({"accessor": accessor});
        let (_, token) = world
            .vault
            .ask("POST", "/v1/auth/token/lookup-accessor", &body);
        if token["data"]["path"] == "auth/approle/login" {
            world
                .vault
                .does("POST", "/v1/auth/token/revoke-accessor", &body);
        }
    }
    world.keep("db", json!({"value": "two"}));
    let second = source.read(Some(&first.version)).await.unwrap().unwrap();
    assert!(second.text.matches(b"two"));
}

#[tokio::test]
async fn what_a_unit_may_not_read_is_an_error_that_says_so() {
    let world = World::new();
    let source = world.source("transit/db", None);
    let refused = source.read(None).await.err().unwrap().to_string();
    assert!(refused.contains("transit/db"), "{refused}");
    assert!(refused.contains("403"), "{refused}");
    fs::remove_file(world.at("secret_id")).unwrap();
    let source = world.source("secret/db", None);
    let refused = source.read(None).await.err().unwrap().to_string();
    assert!(refused.contains("secret_id"), "{refused}");
}
