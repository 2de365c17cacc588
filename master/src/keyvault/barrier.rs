//! Entries: encrypted, changed in transactions, and never without their audit lines.
//!
//! One task writes ([`writer`]): it takes what has queued up and commits it as one transaction, so that
//! what is durable costs one sync for all who wait at the same time. A reader decrypts beside it, with
//! keys that are shared and never locked.

mod change;
#[cfg(test)]
mod tests;
mod writer;

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot, watch};
use wavry_credentials::{
    audit,
    key::{aead, record},
    secret::Secret,
};

pub use change::{Change, Revision};

use super::{
    keyring::{Keyring, Unopened, Unreadable},
    seal,
    store::{self, Store},
};
use crate::{audit_sink, registry::unix_time};
use writer::{Job, Writer};

/// How long a commit may take, its time in the queue included.
pub const DEADLINE: Duration = Duration::from_secs(2);
/// Changes that wait to be committed. A group takes some milliseconds, so that a full queue is worked
/// off within [`DEADLINE`] by far; an herd of 2,000 units that restart at once finds room.
const QUEUE: usize = 4096;
/// Paths read at once to make a list.
const PAGE: u32 = 512;

/// An entry that was read.
pub struct Entry {
    /// Which version it is.
    pub revision: Revision,
    /// What it holds.
    pub value: Secret<Vec<u8>>,
}

/// Why entries cannot be read or written. Holds no entry's content.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The master key was not given.
    #[error("the KeyVault is sealed")]
    Sealed,
    /// What the store holds in this entry's place is not what was written there.
    #[error("entry {path} was changed in the store: it does not authenticate")]
    Integrity {
        /// The entry.
        path: String,
    },
    /// An entry is not a record of the kind that belongs there.
    #[error("entry {path} is not a record of its kind")]
    Record {
        /// The entry.
        path: String,
    },
    /// The keyring cannot be opened.
    #[error(transparent)]
    Keyring(#[from] Unopened),
    /// The current term's key wrapped as many keys as it may.
    #[error("the keyring's current term is used up: rotate it")]
    Exhausted,
    /// Too many changes wait already.
    #[error("too many changes wait to be written")]
    Busy,
    /// It took longer than [`DEADLINE`].
    #[error("the store did not write in time")]
    TooSlow,
    /// The process ends.
    #[error("the KeyVault is closed")]
    Closed,
    /// The store failed.
    #[error("the store failed")]
    Store(#[source] Arc<store::Error>),
}

impl Error {
    /// Whether the same may well succeed later.
    pub fn is_of_the_moment(&self) -> bool {
        matches!(
            self,
            Self::Sealed | Self::Busy | Self::TooSlow | Self::Closed | Self::Store(_)
        )
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        Self::Store(Arc::new(error))
    }
}

/// Why a change was not made.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitError {
    /// An entry is not what the change expects: read again, and plan again.
    #[error("an entry changed meanwhile")]
    Conflict,
    /// It cannot be made.
    #[error(transparent)]
    Failed(#[from] Error),
}

/// What everything behind the barrier is read and written through.
#[derive(Clone)]
pub struct Barrier {
    store: Store,
    keyring: Arc<ArcSwapOption<Keyring>>,
    audit: Arc<audit::Key>,
    queue: mpsc::Sender<Job>,
    /// Told after each group that was written.
    audited: watch::Sender<()>,
}

impl Barrier {
    /// Starts the writer, which ends with the last of the barriers.
    pub(super) fn new(store: Store, audit: Arc<audit::Key>) -> Self {
        let keyring = Arc::new(ArcSwapOption::empty());
        let (queue, jobs) = mpsc::channel(QUEUE);
        let audited = watch::Sender::new(());
        let writer = Writer {
            store: store.clone(),
            keyring: keyring.clone(),
            audit: audit.clone(),
            audited: audited.clone(),
        };
        tokio::spawn(writer.run(jobs));
        Self {
            store,
            keyring,
            audit,
            queue,
            audited,
        }
    }

    /// Reads an entry.
    pub async fn read(&self, path: &str) -> Result<Option<Entry>, Error> {
        // Twice: the keyring, or the row that was read, may be older than the other.
        for _ in 0..2 {
            let keyring = self.keyring.load_full().ok_or(Error::Sealed)?;
            let Some(row) = self.store.row(path).await? else {
                return Ok(None);
            };
            match keyring.open_entry(&row) {
                Ok(value) => {
                    let revision = Revision(row.revision);
                    return Ok(Some(Entry { revision, value }));
                }
                Err(Unreadable::UnknownTerm) => self.refresh(&keyring).await?,
                Err(Unreadable::Forged) => break,
            }
        }
        Err(Error::Integrity {
            path: path.to_owned(),
        })
    }

    /// Reads a record of our own.
    pub async fn read_record<T: DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<Option<(Revision, T)>, Error> {
        let Some(entry) = self.read(path).await? else {
            return Ok(None);
        };
        let record = record::read(&entry.value).map_err(|_| Error::Record {
            path: path.to_owned(),
        })?;
        Ok(Some((entry.revision, record)))
    }

    /// Names below `prefix`, which ends in `/` or is empty, one level deep, in order of their bytes;
    /// those of folders end in `/`. Begins behind the name `after`, and gives `limit` at most.
    pub async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, Error> {
        if self.keyring.load().is_none() {
            return Err(Error::Sealed);
        }
        let end = format!("{prefix}{}", char::MAX);
        let mut from = after.map_or_else(|| prefix.to_owned(), |after| behind(prefix, after));
        let mut names = Vec::new();
        while names.len() < limit {
            let paths = self.store.paths(&from, &end, PAGE).await?;
            let is_last = paths.len() < PAGE as usize;
            for path in paths {
                if *path < *from {
                    // Of a folder that is listed already.
                    continue;
                }
                let name = path.strip_prefix(prefix).unwrap_or_default();
                let name = name.find('/').map_or(name, |slash| &name[..=slash]);
                from = behind(prefix, name);
                names.push(name.to_owned());
                if names.len() == limit {
                    break;
                }
            }
            if is_last {
                break;
            }
        }
        Ok(names)
    }

    /// Makes a change, durably, with its audit lines.
    pub async fn commit(&self, change: Change) -> Result<(), CommitError> {
        if let Some(path) = change.unwritable {
            return Err(Error::Record { path }.into());
        }
        let (done, outcome) = oneshot::channel();
        let job = Job { change, done };
        self.queue.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Error::Busy,
            mpsc::error::TrySendError::Closed(_) => Error::Closed,
        })?;
        match tokio::time::timeout(DEADLINE, outcome).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Error::Closed.into()),
            Err(_) => Err(Error::TooSlow.into()),
        }
    }

    /// The lines of the audit log after number `after` with their numbers, in order, some thousand at
    /// most, and the seal of the newest.
    pub async fn audit_lines(
        &self,
        after: u64,
    ) -> Result<(Vec<(u64, String)>, Option<String>), Error> {
        Ok(self.store.audit_lines(after).await?)
    }

    /// Copies the audit log to a sink, as long as it is polled.
    pub fn copy_audit_to(&self, sink: audit_sink::Config) -> impl Future<Output = ()> + use<> {
        audit_sink::follow(self.store.clone(), sink, self.audited.subscribe())
    }

    /// Hides identifiers in audit events.
    pub fn audit_key(&self) -> &audit::Key {
        &self.audit
    }

    /// Whether the master key was given.
    pub fn is_unsealed(&self) -> bool {
        self.keyring.load().is_some()
    }

    pub(super) async fn initialise(
        &self,
        master_key: &aead::Key,
        seal: seal::Config,
    ) -> Result<bool, Error> {
        let mut transaction = self.store.begin().await?;
        if transaction.head().await?.is_some() {
            return Ok(false);
        }
        let (head, term) = Keyring::generate(master_key, unix_time());
        let seal = serde_json::to_string(&seal).map_err(|_| store::Error::Row("seal"))?;
        transaction.put_seal_config(&seal).await?;
        transaction.put_terms(&[term]).await?;
        transaction.put_head(&head).await?;
        transaction.commit().await?;
        Ok(true)
    }

    pub(super) async fn unseal(&self, master_key: aead::Key) -> Result<(), Error> {
        let (head, terms) = self.store.keyring().await?.ok_or(Error::Sealed)?;
        let keyring = Keyring::open(&head, &terms, Arc::new(master_key))?;
        self.keyring.store(Some(Arc::new(keyring)));
        Ok(())
    }

    pub(super) fn seal(&self) {
        self.keyring.store(None);
    }

    /// Takes the keyring as it is in the store, in place of one that turned out to be old.
    async fn refresh(&self, old: &Arc<Keyring>) -> Result<(), Error> {
        let (head, terms) = self.store.keyring().await?.ok_or(Error::Sealed)?;
        let keyring = Arc::new(old.reopen(&head, &terms)?);
        // It may have been sealed, or refreshed, meanwhile.
        self.keyring
            .compare_and_swap(&Some(old.clone()), Some(keyring));
        Ok(())
    }
}

/// The first path behind the entry or folder `name`, which is not in it.
fn behind(prefix: &str, name: &str) -> String {
    match name.strip_suffix('/') {
        // `0` follows `/`.
        Some(folder) => format!("{prefix}{folder}0"),
        None => format!("{prefix}{name}\u{1}"),
    }
}
