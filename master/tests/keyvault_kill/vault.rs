//! The KeyVault in a directory, opened and looked at.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use wavry_credentials::{
    audit::{self, Event, verify::Reading},
    key::aead,
    source,
    token::SigningKey,
};
use wavry_master::keyvault::{
    Config, KeyVault, LOG,
    barrier::{Error, Guard},
    seal,
    store::Location,
};

/// Names the directory to a KeyVault that is to be killed.
pub(crate) const DIRECTORY: &str = "WAVRY_TEST_KILL_DIRECTORY";
pub(crate) const DATABASE: &str = "keyvault.db";
pub(crate) const COUNTER: &str = "counter";

/// The directory, in a process that is to be killed.
pub(crate) fn directory_to_be_killed_in() -> Option<PathBuf> {
    env::var_os(DIRECTORY).map(PathBuf::from)
}

/// Starts `test` of this executable as a process that is to be killed.
pub(crate) fn command(test: &str, directory: &Path) -> Command {
    let mut command = Command::new(env::current_exe().expect("this test runs"));
    command
        .args([test, "--exact", "--nocapture", "--quiet"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    command
}

/// A new KeyVault, its keys in files beside it.
pub(crate) async fn initialised(directory: &Path) -> KeyVault {
    write_audit_key(directory);
    let key = aead::Key::generate();
    source::write_secret(&current(directory), &key.to_paserk()).expect("it is written");
    let vault = open(directory).await;
    let made = vault.initialise(&key, seal::Config::Key).await;
    assert!(made.expect("it is initialised"));
    vault.unseal(key).await.expect("it is unsealed");
    vault
}

pub(crate) fn write_audit_key(directory: &Path) {
    let key = SigningKey::generate().to_paserk();
    source::write_secret(&directory.join("audit"), &key).expect("it is written");
}

pub(crate) fn audit_key(directory: &Path) -> audit::Key {
    let key = source::read_file(&directory.join("audit")).expect("the key is there");
    audit::Key::from_paserk(&key, "test".parse().expect("a name")).expect("a key")
}

/// Opens it with the current or the next master key: one of them always does it.
pub(crate) async fn unsealed(directory: &Path) -> KeyVault {
    let vault = open(directory).await;
    let mut refused = None;
    for file in [current(directory), next(directory)] {
        if let Some(key) = read_key(&file) {
            match vault.unseal(key).await {
                Ok(()) => return vault,
                Err(error @ Error::Keyring(_)) => refused = Some(error),
                Err(error) => panic!("{error}"),
            }
        }
    }
    panic!("{refused:?}");
}

pub(crate) async fn open(directory: &Path) -> KeyVault {
    let config = Config {
        guard: Guard {
            counter: Some(directory.join(COUNTER)),
            accept_rollback: false,
        },
        ..Config::at(Location::Sqlite(directory.join(DATABASE)))
    };
    KeyVault::open(&config, Arc::new(audit_key(directory)))
        .await
        .expect("it opens")
}

/// The events of the log, which verifies.
pub(crate) async fn events(vault: &KeyVault) -> Vec<Event> {
    let (_, seal) = vault.barrier().audit_lines(0).await.expect("it is whole");
    let verifier = vault.barrier().audit_key().verifier();
    let sealed = seal.map(|seal| verifier.open(LOG, &seal).expect("it is whole"));
    let mut reading = Reading::expecting(sealed.into_iter().collect());
    let mut events = Vec::new();
    let mut after = 0;
    loop {
        let page = vault.barrier().audit_lines(after).await;
        let (lines, _) = page.expect("it is whole");
        let Some((last, _)) = lines.last() else { break };
        after = *last;
        for (_, line) in &lines {
            events.push(reading.line(line).expect("it is whole").event);
        }
    }
    reading.end().expect("it is whole");
    events
}

/// File of the master key.
pub(crate) fn current(directory: &Path) -> PathBuf {
    directory.join("key")
}

/// File of the master key that takes its place.
pub(crate) fn next(directory: &Path) -> PathBuf {
    directory.join("key.next")
}

pub(crate) fn read_key(file: &Path) -> Option<aead::Key> {
    let text = fs::exists(file)
        .expect("it can be looked at")
        .then(|| source::read_file(file).expect("it is read"));
    text.map(|text| aead::Key::read(&text).expect("a key"))
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}
