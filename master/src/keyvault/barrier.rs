//! Entries: encrypted, changed in transactions, and never without their audit lines.
//!
//! One task writes ([`writer`]): it takes what has queued up and commits it as one transaction, so that
//! what is durable costs one sync for all who wait at the same time. A reader decrypts beside it, with
//! keys that are shared and never locked.

mod cache;
mod change;
mod shared;
#[cfg(test)]
mod tests;
mod unseal;
mod writer;

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};
use wavry_credentials::{
    audit,
    key::{aead, record},
    secret::Secret,
};

pub use super::rotation::{KeyStatus, Progress, Rotate, RotateError};
pub use change::{Change, Revision};

use super::{
    counter::Rollback,
    keyring::{Keyring, Unopened, Unreadable},
    rotation::{self, Keeper},
    seal,
    store::{self, Store},
};
use crate::{Abort, audit_sink, metrics as names, registry::unix_time};
use writer::Job;

pub(super) use shared::Shared;

/// How long a commit may take, its time in the queue included, and how long a read.
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
    /// The store was rolled back, or may have been.
    #[error(transparent)]
    Rollback(#[from] Rollback),
    /// How far the store has come cannot be noted.
    #[error("the counter cannot be written or read")]
    Counter,
    /// The current term's key wrapped as many keys as it may.
    #[error("the keyring's current term is used up: rotate it")]
    Exhausted,
    /// Too many changes wait already.
    #[error("too many changes wait to be written")]
    Busy,
    /// It took longer than [`DEADLINE`].
    #[error("the store did not answer in time")]
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
            Self::Sealed
                | Self::Busy
                | Self::TooSlow
                | Self::Closed
                | Self::Counter
                | Self::Store(_)
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

/// How a rollback of the store is noticed.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    /// The file that tells how far the store has come, best on another disk. Without it nothing does.
    pub counter: Option<PathBuf>,
    /// Takes the store as it is, once. It is put on record.
    pub accept_rollback: bool,
}

/// What everything behind the barrier is read and written through.
#[derive(Clone)]
pub struct Barrier {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Job>,
    /// They end with the last of the barriers. The writer does too, once the queue is empty.
    _tasks: Arc<[Abort; 2]>,
}

impl Barrier {
    /// Starts the tasks that work for it.
    pub(super) fn new(store: Store, audit: Arc<audit::Key>, guard: Guard) -> Self {
        let shared = Arc::new(Shared::new(store, audit, guard));
        let (queue, jobs) = mpsc::channel(QUEUE);
        tokio::spawn(writer::run(shared.clone(), jobs));
        let keeper = Keeper::new(shared.clone());
        let tasks = [
            Abort(tokio::spawn(keeper.run())),
            Abort(tokio::spawn(shared.clone().keep_counter())),
        ];
        Self {
            shared,
            queue,
            _tasks: Arc::new(tasks),
        }
    }

    /// Reads an entry.
    pub async fn read(&self, path: &str) -> Result<Option<Entry>, Error> {
        in_time(self.read_from(Place::Nearest, path)).await
    }

    /// Reads a record of our own.
    pub async fn read_record<T: DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<Option<(Revision, T)>, Error> {
        record(path, self.read(path).await?)
    }

    /// Reads a record from the store, whether it was read before or not: how long that takes tells
    /// nobody what others asked for.
    pub async fn read_record_from_store<T: DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<Option<(Revision, T)>, Error> {
        record(path, in_time(self.read_from(Place::Store, path)).await?)
    }

    async fn read_from(&self, from: Place, path: &str) -> Result<Option<Entry>, Error> {
        // Twice: the keyring, or the row that was read, may be older than the other.
        for _ in 0..2 {
            let keyring = self.shared.keyring()?;
            let row = match from {
                Place::Nearest => self.shared.row(path).await?,
                Place::Store => self.shared.stored_row(path).await?,
            };
            let Some(row) = row else {
                return Ok(None);
            };
            match keyring.open_entry(&row) {
                Ok(value) => {
                    let revision = Revision(row.revision);
                    return Ok(Some(Entry { revision, value }));
                }
                Err(Unreadable::UnknownTerm) => {
                    self.shared.cache.changed([path]);
                    self.shared.refresh(&keyring).await?;
                }
                Err(Unreadable::Forged) => break,
            }
        }
        metrics::counter!(names::KEYVAULT_INTEGRITY_FAILURES).increment(1);
        Err(Error::Integrity {
            path: path.to_owned(),
        })
    }

    /// Names below `prefix`, which ends in `/` or is empty, one level deep, in order of their bytes;
    /// those of folders end in `/`. Begins behind the name `after`, and gives `limit` at most.
    pub async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, Error> {
        self.shared.keyring()?;
        let end = format!("{prefix}{}", char::MAX);
        let mut from = after.map_or_else(|| prefix.to_owned(), |after| behind(prefix, after));
        let mut names = Vec::new();
        while names.len() < limit {
            let paths = self.shared.store.paths(&from, &end, PAGE);
            let paths = in_time(async { Ok(paths.await?) }).await?;
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
            mpsc::error::TrySendError::Full(_) => {
                metrics::counter!(names::KEYVAULT_CHANGES_REFUSED, "reason" => "queue_full")
                    .increment(1);
                Error::Busy
            }
            mpsc::error::TrySendError::Closed(_) => Error::Closed,
        })?;
        match tokio::time::timeout(DEADLINE, outcome).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Error::Closed.into()),
            Err(_) => {
                metrics::counter!(names::KEYVAULT_CHANGES_REFUSED, "reason" => "deadline")
                    .increment(1);
                Err(Error::TooSlow.into())
            }
        }
    }

    /// The lines of the audit log after number `after` with their numbers, in order, some thousand at
    /// most, and the seal of the newest.
    pub async fn audit_lines(
        &self,
        after: u64,
    ) -> Result<(Vec<(u64, String)>, Option<String>), Error> {
        Ok(self.shared.store.audit_lines(after).await?)
    }

    /// Copies the audit log to a sink, as long as it is polled.
    pub fn copy_audit_to(&self, sink: audit_sink::Config) -> impl Future<Output = ()> + use<> {
        audit_sink::follow(
            self.shared.store.clone(),
            sink,
            self.shared.audited.subscribe(),
        )
    }

    /// How often the store was asked for an entry that was not there, and for one that was.
    #[cfg(test)]
    pub(super) fn asked(&self) -> [usize; 2] {
        self.shared.asked.so_far()
    }

    /// Hides identifiers in audit events.
    pub fn audit_key(&self) -> &audit::Key {
        &self.shared.audit
    }

    /// Whether the master key was given.
    pub fn is_unsealed(&self) -> bool {
        self.shared.keyring().is_ok()
    }

    /// Begins to put a new term, and a new master key, in place of the current ones. Entries are worked
    /// on after it returned, and the old keys are deleted at last.
    pub async fn rotate(&self, rotate: Rotate) -> Result<(), RotateError> {
        rotation::begin(&self.shared, rotate).await
    }

    /// How far the rotation has come.
    pub async fn rotation(&self) -> Result<Progress, Error> {
        rotation::progress(&self.shared).await
    }

    /// The current term.
    pub async fn key_status(&self) -> Result<KeyStatus, Error> {
        rotation::key_status(&self.shared).await
    }

    pub(super) async fn initialise(
        &self,
        master_key: &aead::Key,
        seal: seal::Config,
    ) -> Result<bool, Error> {
        let mut transaction = self.shared.store.begin().await?;
        if transaction.head().is_some() {
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
        self.shared.unseal(master_key).await?;
        // It may go on with a rotation.
        self.shared.keeper.notify_one();
        Ok(())
    }

    /// Whether a key opens the keyring.
    pub(super) async fn is_master_key(&self, key: aead::Key) -> Result<bool, Error> {
        let (head, terms) = self.shared.store.keyring().await?.ok_or(Error::Sealed)?;
        Ok(Keyring::open(&head, &terms, Arc::new(key)).is_ok())
    }

    pub(super) fn seal(&self) {
        self.shared.seal();
    }

    /// Writes down how far it has come.
    pub(super) async fn flush(&self) {
        self.shared.flush().await;
    }
}

/// What is read by the deadline.
async fn in_time<T>(read: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(DEADLINE, read)
        .await
        .unwrap_or(Err(Error::TooSlow))
}

/// Where an entry is read from.
#[derive(Clone, Copy)]
enum Place {
    /// What was read before, if nobody can have changed it.
    Nearest,
    Store,
}

/// An entry as the record that it is.
fn record<T: DeserializeOwned>(
    path: &str,
    entry: Option<Entry>,
) -> Result<Option<(Revision, T)>, Error> {
    let Some(entry) = entry else {
        return Ok(None);
    };
    let record = record::read(&entry.value).map_err(|_| Error::Record {
        path: path.to_owned(),
    })?;
    Ok(Some((entry.revision, record)))
}

/// The first path behind the entry or folder `name`, which is not in it.
fn behind(prefix: &str, name: &str) -> String {
    match name.strip_suffix('/') {
        // `0` follows `/`.
        Some(folder) => format!("{prefix}{folder}0"),
        None => format!("{prefix}{name}\u{1}"),
    }
}
