//! What the master remembers, in SQLite or PostgreSQL. Every change of what the roster shows grows the
//! epoch in the same transaction; a change that the roster does not show leaves it.
//!
//! Who changes anything holds the roster's row, so that there is one at a time among all masters that
//! use the database. Reads see what was committed and wait for nobody.

pub mod audit;
pub(crate) mod authority;
mod feed;
mod fleet;
mod identity;
mod issue;
pub(crate) mod keys;
mod lives;
mod node;
mod once;
mod open;
mod placement;
mod presence;
mod revocation;
mod service;
mod snapshot;
#[cfg(test)]
mod tests;

use std::{
    fs::File,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sqlx::postgres::PgDatabaseError;
use wavry_credentials::audit::Key;
use wavry_proto::id::Epoch;

use crate::database::{
    InUse, Unreachable,
    sql::{Pool, Source, Transaction, query},
};

use snapshot::{Part, read_snapshot};

pub use authority::CertifyError;
pub use fleet::{FleetError, MAX_ENTRIES};
pub use identity::RotateIdentityError;
pub use node::{Admission, Announcement, HeartbeatError, RegisterError, Written};
pub use once::{Done, KEPT, MAX_KEPT, Once, OnceError, Order};
pub(crate) use open::schema;
pub use placement::{Move, MoveError};
pub use revocation::{MAX_REVOCATIONS, RevokeError};
pub use service::{MAX_SERVICES, ServiceError};
pub use snapshot::Snapshot;
pub(crate) use snapshot::State;

/// The registry: nodes, services, used tokens, the epoch.
#[derive(Clone)]
pub struct Store {
    pool: Pool,
    audit: Arc<Key>,
    /// Of the file, until it is closed.
    lock: Arc<Mutex<Option<File>>>,
    /// What this process wrote or read last. It is what the database holds while that has its epoch.
    newest: Arc<Mutex<Option<Arc<Snapshot>>>>,
    /// Seconds since the Unix epoch, which the roster's epoch is no less than.
    time: Arc<dyn Fn() -> u64 + Send + Sync>,
}

/// Why the registry could not be read or written. Holds no request's content.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database said no.
    #[error("database")]
    Database(#[from] sqlx::Error),
    /// The database cannot be connected to.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// The schema could not be brought up to date.
    #[error("database schema")]
    Schema(#[from] sqlx::migrate::MigrateError),
    /// The file cannot be taken.
    #[error(transparent)]
    InUse(#[from] InUse),
    /// A row that no version of Wavry wrote.
    #[error("database row in {0} cannot be read")]
    Row(&'static str),
    /// The secret `master_key` is a key that was revoked.
    #[error("the master key is one that was revoked; make a new one")]
    RevokedKey,
    /// A key that signs is in a vault that the configuration does not have.
    #[error("a key that signs is {0} in a vault, and master.signing names no such key")]
    NoVault(String),
    /// A key that signs cannot be opened.
    #[error("a key that signs is sealed under the secret master_key, and there is none")]
    NoMasterKey,
    /// An order that was not carried out, and about whose key that is.
    #[error(transparent)]
    Once(#[from] OnceError),
    /// It took longer than an answer may wait for its audit line.
    #[error("database did not write in time")]
    TooSlow,
}

impl Error {
    /// Whether the database cannot be written now and may be later: it is locked, full, read-only or
    /// out of reach.
    pub fn is_of_the_moment(&self) -> bool {
        match self {
            Self::TooSlow => true,
            Self::Database(sqlx::Error::PoolTimedOut | sqlx::Error::Io(_)) => true,
            Self::Database(sqlx::Error::Database(error)) => {
                let code = error.code().unwrap_or_default();
                match error.try_downcast_ref::<PgDatabaseError>() {
                    Some(_) => UNAVAILABLE.iter().any(|class| code.starts_with(class)),
                    // Extended codes have the primary one in their last byte.
                    None => code
                        .parse::<u32>()
                        .is_ok_and(|code| UNWRITABLE.contains(&(code & 0xff))),
                }
            }
            Self::Database(_)
            | Self::Schema(_)
            | Self::Unreachable(_)
            | Self::InUse(_)
            | Self::Row(_)
            | Self::Once(_)
            | Self::NoVault(_)
            | Self::NoMasterKey
            | Self::RevokedKey => false,
        }
    }
}

/// SQLITE_BUSY, _LOCKED, _READONLY, _IOERR, _FULL, _CANTOPEN.
const UNWRITABLE: [u32; 6] = [5, 6, 8, 10, 13, 14];
/// Of PostgreSQL: connection failed, transaction rolled back (read-only, ended for idleness, deadlock), out
/// of resources, locked, cancelled or shutting down, system error.
const UNAVAILABLE: [&str; 8] = ["08", "25006", "25P03", "40", "53", "55P03", "57", "58"];

impl Store {
    /// Gives what the roster shows an epoch of its own, although nothing changed. Where its epoch is not
    /// `held` any more, somebody else did.
    pub async fn renew(&self, held: Option<Epoch>) -> Result<Snapshot, Error> {
        let mut change = self.change().await?;
        let mut renewed = change.before.as_ref().clone();
        if held.is_some_and(|held| held != renewed.epoch) {
            return Ok(renewed);
        }
        renewed.epoch = write_epoch(&mut change.transaction, renewed.epoch, change.time).await?;
        feed::tell(&mut change.transaction).await?;
        change.end(&renewed).await?;
        Ok(renewed)
    }

    /// Closes the database, and lets go of its file.
    pub async fn close(&self) {
        self.pool.close().await;
        drop(locked(&self.lock).take());
    }

    async fn change(&self) -> Result<Change, Error> {
        let mut transaction = self.write().await?;
        let epoch = read_epoch(&mut transaction).await?;
        let newest = locked(&self.newest).clone();
        let before = match newest.filter(|newest| newest.epoch == epoch) {
            Some(newest) => newest,
            None => Arc::new(read_snapshot(&mut transaction).await?),
        };
        Ok(Change {
            transaction,
            before,
            newest: self.newest.clone(),
            time: (self.time)(),
        })
    }

    /// A transaction that may change things. What is read in it is as whoever wrote before left it.
    pub(crate) async fn write(&self) -> Result<Transaction, Error> {
        Ok(self.pool.begin("BEGIN IMMEDIATE", LOCK).await?)
    }

    /// A transaction whose reads are all of one moment.
    pub(crate) async fn read(&self) -> Result<Transaction, Error> {
        let postgres = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        Ok(self.pool.begin("BEGIN", postgres).await?)
    }
}

/// In a statement of its own: what is read after it is not older than the wait.
const LOCK: &str = "BEGIN; SELECT 1 FROM roster FOR UPDATE";

/// A write under way. Dropped without a commit, it is undone.
struct Change {
    transaction: Transaction,
    /// What the roster showed before: of its epoch, and so of any master that has it.
    before: Arc<Snapshot>,
    newest: Arc<Mutex<Option<Arc<Snapshot>>>>,
    /// When it began, in seconds since the Unix epoch.
    time: u64,
}

impl Change {
    /// Commits; gives the snapshot if what the roster shows has changed, which it has in no other part than
    /// these.
    async fn commit(mut self, parts: &[Part]) -> Result<Option<Snapshot>, Error> {
        let mut after = self.before.as_ref().clone();
        for part in parts {
            after.read_again(*part, &mut self.transaction).await?;
        }
        #[cfg(debug_assertions)]
        assert_eq!(
            after,
            read_snapshot(&mut self.transaction).await?,
            "{parts:?}"
        );
        let changed = after != *self.before;
        if changed {
            after.epoch = write_epoch(&mut self.transaction, after.epoch, self.time).await?;
            feed::tell(&mut self.transaction).await?;
        }
        self.end(&after).await?;
        Ok(changed.then_some(after))
    }

    /// Commits what the database shows as `after` then.
    async fn end(self, after: &Snapshot) -> Result<(), Error> {
        self.transaction.commit().await?;
        *locked(&self.newest) = Some(Arc::new(after.clone()));
        Ok(())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn read_epoch(database: impl Into<Source<'_>>) -> Result<Epoch, Error> {
    let epoch = query("SELECT epoch FROM roster").one(database).await?;
    Ok(Epoch(epoch.number(0)?))
}

/// Gives the roster its next epoch. That is at least `time`, in seconds since the Unix epoch, so that
/// a database that was restored from an old copy soon has one that no node has seen.
async fn write_epoch(
    transaction: &mut Transaction,
    epoch: Epoch,
    time: u64,
) -> Result<Epoch, Error> {
    let next = Epoch((epoch.0 + 1).max(time));
    query("UPDATE roster SET epoch = $1")
        .bind(next.0)
        .execute(&mut *transaction)
        .await?;
    Ok(next)
}
