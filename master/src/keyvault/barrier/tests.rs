//! What a store and the barrier over it owe, whatever the database is.

mod contract;
mod rollback;
mod rotation;
mod sinks;
mod tampering;

use std::{path::PathBuf, sync::Arc};

use tempfile::TempDir;
use wavry_credentials::audit::{self, Action, Event, verify::Reading};

use super::*;
use crate::keyvault::{Config, KeyVault, LOG, store::Location, tests::audit_key};

/// A KeyVault that can be closed and opened again.
struct World {
    directory: TempDir,
    location: Location,
    audit: Arc<audit::Key>,
    master_key: Secret<Vec<u8>>,
}

impl World {
    fn sqlite() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let location = Location::Sqlite(directory.path().join("keyvault.db"));
        Self::at(directory, location)
    }

    fn at(directory: TempDir, location: Location) -> Self {
        let world = Self {
            directory,
            location,
            audit: audit_key(),
            master_key: aead::Key::generate().to_paserk(),
        };
        std::fs::create_dir(world.apart()).unwrap();
        world
    }

    fn key(&self) -> aead::Key {
        aead::Key::read(&self.master_key).unwrap()
    }

    /// Where the counter is, as if on another disk.
    fn apart(&self) -> PathBuf {
        self.directory.path().join("apart")
    }

    fn counter(&self) -> PathBuf {
        self.apart().join("counter")
    }

    async fn open(&self, accept_rollback: bool) -> Result<KeyVault, store::Error> {
        let guard = Guard {
            counter: Some(self.counter()),
            accept_rollback,
        };
        let config = Config {
            guard,
            ..Config::at(self.location.clone())
        };
        KeyVault::open(&config, self.audit.clone()).await
    }

    /// Unsealed, and initialised if it was not.
    async fn vault(&self) -> KeyVault {
        let vault = self.open(false).await.unwrap();
        vault
            .initialise(&self.key(), seal::Config::Key)
            .await
            .unwrap();
        vault.unseal(self.key()).await.unwrap();
        vault
    }
}

fn value(text: &str) -> Secret<Vec<u8>> {
    Secret::new(text.as_bytes().to_vec())
}

fn put(path: &str, text: &str) -> Change {
    let mut change = Change::default();
    change.put(path, value(text));
    change
}

fn delete(path: &str) -> Change {
    let mut change = Change::default();
    change.delete(path);
    change
}

fn event(subject: &str) -> Event {
    Event::now(Action::Issue, subject, "test")
}

async fn reads(barrier: &Barrier, path: &str, text: &str) -> bool {
    let entry = barrier.read(path).await.unwrap();
    entry.is_some_and(|entry| entry.value.matches(text.as_bytes()))
}

/// The events of the log, which verifies.
async fn verified(vault: &KeyVault) -> Vec<Event> {
    let verifier = vault.barrier().audit_key().verifier();
    let mut after = 0;
    let mut events = Vec::new();
    let (_, seal) = vault.barrier().audit_lines(u64::MAX >> 1).await.unwrap();
    let sealed = seal.map(|seal| verifier.open(LOG, &seal).unwrap());
    let mut reading = Reading::expecting(sealed.into_iter().collect());
    loop {
        let (lines, _) = vault.barrier().audit_lines(after).await.unwrap();
        let Some((last, _)) = lines.last() else { break };
        after = *last;
        for (_, line) in &lines {
            events.push(reading.line(line).unwrap().event);
        }
    }
    reading.end().unwrap();
    events
}
