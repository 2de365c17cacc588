//! Whether the store is what it was when this KeyVault last wrote it.

use std::sync::{Arc, atomic::Ordering};

use wavry_credentials::{
    audit::{Action, Event},
    key::aead,
};

use super::{Error, Shared};
use crate::keyvault::{
    counter::{Mark, Rollback},
    keyring::{self, Keyring},
};

impl Shared {
    /// Opens the keyring, if the store was not rolled back or if that is accepted.
    pub(super) async fn unseal(&self, master_key: aead::Key) -> Result<(), Error> {
        let master_key = Arc::new(master_key);
        let (head, terms) = self.store.keyring().await?.ok_or(Error::Sealed)?;
        let keyring = Keyring::open(&head, &terms, master_key.clone())?;

        let mut digest = [0; 32];
        let mut is_foreign = false;
        let scanned =
            self.store.scan(
                |path, revision, term| match keyring.mark(path, revision, term) {
                    Some(mark) => keyring::add(&mut digest, &mark),
                    None => is_foreign = true,
                },
            );
        let (head, log) = scanned.await?.ok_or(Error::Sealed)?;
        if head.generation != keyring.generation {
            // Another instance changed the keyring between the two; what it changes, it changes for
            // seconds at most.
            return Box::pin(self.unseal_again(master_key)).await;
        }
        if !keyring.vouches_for(&head) {
            return Err(keyring::Unopened::Head.into());
        }
        let mark = Mark {
            position: head.position,
            line: log.head.seq,
        };
        let rollback = match digest == head.digest && !is_foreign {
            true => self.compare(&keyring, mark).await?,
            false => Err(Rollback::Entries),
        };
        match rollback {
            Ok(()) => self.reset(&keyring, mark).await?,
            Err(rollback) if self.accept_rollback.swap(false, Ordering::Relaxed) => {
                self.accept(&keyring, mark, digest, rollback).await?;
            }
            Err(rollback) => return Err(rollback.into()),
        }
        self.committed(mark.position, mark.line);
        self.cache.clear();
        self.open_with(keyring);
        Ok(())
    }

    async fn unseal_again(&self, master_key: Arc<aead::Key>) -> Result<(), Error> {
        let copy = aead::Key::read(&master_key.to_paserk()).map_err(|_| Error::Sealed)?;
        self.unseal(copy).await
    }

    /// Compares the store with its counter.
    async fn compare(&self, keyring: &Keyring, mark: Mark) -> Result<Result<(), Rollback>, Error> {
        match &self.counter {
            Some(counter) => counter.check(keyring, mark).map_err(|error| {
                tracing::error!(%error, counter = %counter.path().display(), "the counter cannot be read");
                Error::Counter
            }),
            None => Ok(Ok(())),
        }
    }

    async fn reset(&self, keyring: &Keyring, mark: Mark) -> Result<(), Error> {
        match &self.counter {
            Some(counter) => counter.reset(keyring, mark).map_err(|error| {
                tracing::error!(%error, counter = %counter.path().display(), "the counter cannot be written");
                Error::Counter
            }),
            None => Ok(()),
        }
    }

    /// Takes the store as it is from now on, and puts that on record.
    async fn accept(
        &self,
        keyring: &Keyring,
        mark: Mark,
        digest: [u8; 32],
        rollback: Rollback,
    ) -> Result<(), Error> {
        let mut transaction = self.store.begin().await?;
        let mut head = transaction.head().cloned().ok_or(Error::Sealed)?;
        if head.position != mark.position {
            // Another instance writes on: what was looked at is not what would be accepted.
            return Err(rollback.into());
        }
        tracing::warn!(%rollback, "a rollback is accepted");
        // Revisions must not come twice: go on behind whatever was there.
        if let Rollback::Behind { seen_position, .. } = rollback {
            head.position = head.position.max(seen_position);
        }
        head.position += 1;
        head.digest = digest;
        keyring.sign(&mut head);
        transaction.put_head(&head).await?;
        let mut event = Event::now(Action::Rollback, "store", "--accept-rollback");
        "operator".clone_into(&mut event.actor);
        event.outcome = rollback.to_string();
        let line = self.append(&mut transaction, &[&event]).await?;
        transaction.commit().await?;
        self.reset(
            keyring,
            Mark {
                position: head.position,
                line,
            },
        )
        .await?;
        self.committed(head.position, line);
        Ok(())
    }
}
