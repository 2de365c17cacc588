//! What the KeyVault keeps, in SQLite or PostgreSQL: ciphertext, wrapped keys, the audit log. The only
//! SQL of the KeyVault. It knows no key and understands nothing of what it keeps.
//!
//! Whoever changes anything does it in a [`Transaction`]; there is one at a time among all processes
//! that use the store. Reads see what was committed and wait for nobody.

mod postgres;
mod sqlite;

use std::{collections::HashMap, sync::Arc};

use sqlx::PgConnection;
use wavry_credentials::audit::{self, verify::Bad};

use super::LOG;
pub use crate::database::{InUse, Location};
use crate::{audit_sink, database::Unreachable};

/// Why the store could not be read or written.
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
    /// A row that no version of Wavry wrote.
    #[error("database row in {0} cannot be read")]
    Row(&'static str),
    /// Another process uses the file.
    #[error(transparent)]
    InUse(#[from] InUse),
    /// The audit log's end is not what was written. `wavry audit verify` names the first bad line.
    #[error("the audit log does not hold: {0}")]
    Audit(Bad),
    /// The audit log's seal is of another cluster or key.
    #[error("the seal of the audit log does not verify: it is of another cluster or key")]
    ForeignSeal,
    /// It took longer than an answer may wait.
    #[error("the store did not answer in time")]
    TooSlow,
    /// What failed for all who read at the same time.
    #[error(transparent)]
    Together(Arc<Self>),
}

/// An entry as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) path: String,
    pub(super) revision: u64,
    /// The term whose key wraps this entry's own.
    pub(super) term: u32,
    pub(super) wrapped_key: Vec<u8>,
    pub(super) ciphertext: Vec<u8>,
}

/// How far the writes have come. It carries a MAC under the key of its term.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    /// Which KeyVault this is; random.
    pub(super) vault: [u8; 16],
    /// Grows with each change.
    pub(super) position: u64,
    /// Grows with each change of the keyring.
    pub(super) generation: u64,
    /// The current term.
    pub(super) term: u32,
    /// Id of the current master key.
    pub(super) master_key: String,
    /// How many keys its key wrapped.
    pub(super) wraps: u64,
    /// Of the set of all entries.
    pub(super) digest: [u8; 32],
    pub(super) mac: [u8; 32],
}

/// A key of the keyring, wrapped under a master key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WrappedTerm {
    pub(super) term: u32,
    /// Id of the master key.
    pub(super) master_key: String,
    /// In seconds since the Unix epoch.
    pub(super) created: u64,
    pub(super) wrapped_key: Vec<u8>,
}

/// How far the audit log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Log {
    pub(super) head: audit::Head,
    /// Of the head; none of an empty log.
    pub(super) seal: Option<String>,
}

/// The store.
#[derive(Clone)]
pub(super) enum Store {
    Sqlite(sqlite::Sqlite),
    Postgres(postgres::Postgres),
}

macro_rules! either {
    ($self:expr, $kind:ident, $store:ident => $work:expr) => {
        match $self {
            $kind::Sqlite($store) => $work,
            $kind::Postgres($store) => $work,
        }
    };
}

impl Store {
    pub(super) async fn open(location: &Location) -> Result<Self, Error> {
        Ok(match location {
            Location::Sqlite(file) => Self::Sqlite(sqlite::Sqlite::open(file).await?),
            Location::Postgres(server) => Self::Postgres(postgres::Postgres::open(server).await?),
        })
    }

    /// How it is unsealed, as text; `None` when it was never initialised.
    pub(super) async fn seal_config(&self) -> Result<Option<String>, Error> {
        either!(self, Store, store => store.seal_config().await)
    }

    /// Head and keyring, of one moment; `None` when it was never initialised.
    pub(super) async fn keyring(&self) -> Result<Option<(Head, Vec<WrappedTerm>)>, Error> {
        either!(self, Store, store => store.keyring().await)
    }

    pub(super) async fn row(&self, path: &str) -> Result<Option<Row>, Error> {
        either!(self, Store, store => store.row(path).await)
    }

    /// Paths from `from` on and before `to`, in order of their bytes.
    pub(super) async fn paths(
        &self,
        from: &str,
        to: &str,
        limit: u32,
    ) -> Result<Vec<String>, Error> {
        either!(self, Store, store => store.paths(from, to, limit).await)
    }

    /// Lines of the audit log after number `after` with their numbers, in order, some thousand at
    /// most, and the seal.
    pub(super) async fn audit_lines(
        &self,
        after: u64,
    ) -> Result<(Vec<(u64, String)>, Option<String>), Error> {
        either!(self, Store, store => store.audit_lines(after).await)
    }

    /// Number of the last line that an audit sink has for certain; 0 if it has none.
    async fn delivered(&self, sink: &str) -> Result<u64, Error> {
        either!(self, Store, store => store.delivered(sink).await)
    }

    /// Keeps that number.
    async fn keep_delivered(&self, sink: &str, seq: u64) -> Result<(), Error> {
        either!(self, Store, store => store.keep_delivered(sink, seq).await)
    }

    /// The newest line of the audit log.
    pub(super) async fn newest_line(&self) -> Result<(Log, Option<String>), Error> {
        either!(self, Store, store => store.newest_line().await)
    }

    /// Shows path, revision and term of every entry, and gives the head and how far the audit log goes,
    /// all of one moment.
    pub(super) async fn scan(
        &self,
        each: impl FnMut(&str, u64, u32) + Send,
    ) -> Result<Option<(Head, Log)>, Error> {
        either!(self, Store, store => store.scan(each).await)
    }

    /// How many entries there are, and of how many the keys are wrapped under another term.
    pub(super) async fn count(&self, term: u32) -> Result<(u64, u64), Error> {
        either!(self, Store, store => store.count(term).await)
    }

    /// Whether other processes may use it.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self, Self::Postgres(_))
    }

    /// Takes what was deleted out of where it may still be read.
    pub(super) async fn scrub(&self) -> Result<(), Error> {
        match self {
            Self::Sqlite(store) => store.scrub().await,
            // Dead rows go with the next vacuum, and the write-ahead log with its archive: only a key
            // that is gone makes them unreadable, which is what a rotation is for.
            Self::Postgres(_) => Ok(()),
        }
    }

    /// Begins to change something: waits for others to end theirs.
    pub(super) async fn begin(&self) -> Result<Transaction, Error> {
        Ok(match self {
            Self::Sqlite(store) => Transaction::Sqlite(store.begin().await?),
            Self::Postgres(store) => Transaction::Postgres(store.begin().await?),
        })
    }

    /// Checks the end of the audit log: its newest line is what head and seal say.
    pub(super) async fn check_audit(&self, verifier: &audit::Verifier) -> Result<(), Error> {
        let (log, newest) = self.newest_line().await?;
        let sealed = match &log.seal {
            Some(seal) => verifier.open(LOG, seal).map_err(|_| Error::ForeignSeal)?,
            None => audit::Head::default(),
        };
        let bad = |line, why| Error::Audit(Bad::Line { line, why });
        let newest = match newest {
            Some(text) => {
                let line = audit::Line::read(&text);
                line.map_err(|why| bad(sealed.seq, why))?.head
            }
            None => audit::Head::default(),
        };
        let line = newest.seq + 1;
        match () {
            () if newest == sealed && log.head == sealed => Ok(()),
            () if sealed.seq > newest.seq => Err(Error::Audit(Bad::Truncated {
                line,
                sealed: sealed.seq,
            })),
            () => Err(Error::Audit(Bad::Seal { line: newest.seq })),
        }
    }

    /// Closes it, and lets go of its lock.
    pub(super) async fn close(&self) {
        either!(self, Store, store => store.close().await)
    }
}

impl audit_sink::Log for Store {
    const NAME: &'static str = LOG;
    type Error = Error;
    type Claim = Option<PgConnection>;

    async fn page(&self, after: u64) -> Result<audit_sink::Page, Error> {
        self.audit_lines(after).await
    }

    async fn delivered(&self, sink: &str) -> Result<u64, Error> {
        self.delivered(sink).await
    }

    async fn keep_delivered(&self, sink: &str, seq: u64) -> Result<(), Error> {
        self.keep_delivered(sink, seq).await
    }

    async fn claim(&self, sink: &str) -> Result<Option<Self::Claim>, Error> {
        match self {
            // One process uses the file.
            Self::Sqlite(_) => Ok(Some(None)),
            Self::Postgres(store) => Ok(store.claim(sink).await?.map(Some)),
        }
    }
}

/// Changes that are made together or not at all; not when it is dropped.
pub(super) enum Transaction {
    Sqlite(sqlite::Transaction),
    Postgres(postgres::Transaction),
}

impl Transaction {
    /// How far the audit log went when this began.
    pub(super) fn log(&self) -> &Log {
        either!(self, Transaction, store => store.log())
    }

    /// How far writes had come when this began; `None` before the KeyVault is initialised.
    pub(super) fn head(&self) -> Option<&Head> {
        either!(self, Transaction, store => store.head())
    }

    pub(super) async fn keyring(&mut self) -> Result<Vec<WrappedTerm>, Error> {
        either!(self, Transaction, store => store.keyring().await)
    }

    /// Revisions of those of `paths` that are there.
    pub(super) async fn revisions(
        &mut self,
        paths: &[&str],
    ) -> Result<HashMap<String, u64>, Error> {
        either!(self, Transaction, store => store.revisions(paths).await)
    }

    pub(super) async fn row(&mut self, path: &str) -> Result<Option<Row>, Error> {
        either!(self, Transaction, store => store.row(path).await)
    }

    /// Writes entries over those of the same paths.
    pub(super) async fn put(&mut self, rows: &[Row]) -> Result<(), Error> {
        either!(self, Transaction, store => store.put(rows).await)
    }

    pub(super) async fn delete(&mut self, paths: &[String]) -> Result<(), Error> {
        either!(self, Transaction, store => store.delete(paths).await)
    }

    /// Entries whose key is wrapped under another term, in order of their paths, those after `after`.
    pub(super) async fn rows_of_other_terms(
        &mut self,
        term: u32,
        after: &str,
        limit: u32,
    ) -> Result<Vec<Row>, Error> {
        either!(self, Transaction, store => store.rows_of_other_terms(term, after, limit).await)
    }

    /// How many entries have their key wrapped under another term.
    pub(super) async fn count_other_terms(&mut self, term: u32) -> Result<u64, Error> {
        either!(self, Transaction, store => store.count_other_terms(term).await)
    }

    /// Gives entries that are there other wrapped keys.
    pub(super) async fn rewrap(&mut self, rows: &[Row]) -> Result<(), Error> {
        either!(self, Transaction, store => store.rewrap(rows).await)
    }

    /// Forgets every wrapped key but those of `term` under `master_key`.
    pub(super) async fn retire(&mut self, term: u32, master_key: &str) -> Result<(), Error> {
        either!(self, Transaction, store => store.retire(term, master_key).await)
    }

    /// Says that process `id` has seen a generation of the keyring at `now`.
    pub(super) async fn put_instance(
        &mut self,
        id: &[u8; 16],
        generation: u64,
        now: u64,
    ) -> Result<(), Error> {
        either!(self, Transaction, store => store.put_instance(id, generation, now).await)
    }

    /// How many of the processes seen at `since` or later have not seen `generation`. Forgets those
    /// that were not seen.
    pub(super) async fn instances_behind(
        &mut self,
        generation: u64,
        since: u64,
    ) -> Result<u64, Error> {
        either!(self, Transaction, store => store.instances_behind(generation, since).await)
    }

    pub(super) async fn put_seal_config(&mut self, config: &str) -> Result<(), Error> {
        either!(self, Transaction, store => store.put_seal_config(config).await)
    }

    pub(super) async fn put_terms(&mut self, terms: &[WrappedTerm]) -> Result<(), Error> {
        either!(self, Transaction, store => store.put_terms(terms).await)
    }

    pub(super) async fn put_head(&mut self, head: &Head) -> Result<(), Error> {
        either!(self, Transaction, store => store.put_head(head).await)
    }

    /// Adds lines with their numbers to the audit log, which then goes as far as `log` says.
    pub(super) async fn put_lines(
        &mut self,
        lines: &[(u64, String)],
        log: &Log,
    ) -> Result<(), Error> {
        either!(self, Transaction, store => store.put_lines(lines, log).await)
    }

    pub(super) async fn commit(self) -> Result<(), Error> {
        either!(self, Transaction, store => store.commit().await)
    }
}
