//! Copies of a master's database in a file that either kind of database can be made from.
//!
//! A backup is text, a JSON object a line: what it is, then each row of each table, then a seal of all of
//! that by the audit key. It is of one moment, also while masters write. Nothing in it is readable that is
//! not so in the database: keys that sign are sealed under the secret `master_key`.
//!
//! What happened after a backup was taken is not in it. A database made from one therefore takes no
//! registration token that was issued before (it may have been used), and its next epoch is one that no
//! node has seen (ADR 0008).

mod table;
mod text;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use wavry_credentials::{
    audit::{Action, Event, Key},
    clock::unix_time,
};
use wavry_proto::token::CLOCK_SKEW;

use crate::{
    database::{
        Location,
        sql::{Transaction, query},
    },
    store::{self, Store, audit::ReadError},
};

use table::{PAGED, TABLES, Table};
use text::{Reader, Writer};

/// The name of a backup in its seal.
const LOG: &str = "master backup";

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// When it was taken, in seconds since the Unix epoch.
    pub taken: u64,
    /// The roster's epoch.
    pub epoch: u64,
    /// Version of the schema.
    pub schema: i64,
    /// Version of Wavry that took it.
    pub version: String,
    /// Rows of all tables.
    pub rows: u64,
}

/// Why there is no backup, or no database from one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The audit log in the database or in the backup does not hold.
    #[error("the audit log does not hold")]
    Audit(#[from] ReadError),
    /// The file cannot be read or written.
    #[error("{path}", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file is no backup of this cluster's, or not all of it, or was changed.
    #[error("{path}, line {line}: {what}", path = .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The database or backup is of another version.
    #[error(
        "it has schema {found}, and this version of Wavry has {expected}; use the one it is of"
    )]
    Schema {
        /// Of the database or backup.
        found: i64,
        /// Of this program.
        expected: i64,
    },
    /// There is a registry in the database.
    #[error("there is a registry in this database already, and it is not overwritten")]
    NotEmpty,
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Error {
    fn file(path: &Path, source: std::io::Error) -> Self {
        Self::File {
            path: path.to_owned(),
            source,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    backup: String,
    taken: u64,
    epoch: u64,
    schema: i64,
    version: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    table: String,
    row: Vec<Value>,
}

impl Row {
    fn of(table: &Table, row: Vec<Value>) -> Self {
        Self {
            table: table.name.to_owned(),
            row,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seal {
    seal: String,
}

/// Writes a backup of the database at `location` into a new file, and checks it. Masters may be at work.
/// `actor` is who asks for it, in the audit log, whose end is checked first.
pub async fn backup(
    location: &Location,
    key: Arc<Key>,
    actor: &str,
    file: &Path,
) -> Result<Summary, Error> {
    let store = Store::beside(location, key.clone()).await?;
    let written = write_and_check(&store, &key, actor, file).await;
    store.close().await;
    written
}

async fn write_and_check(
    store: &Store,
    key: &Key,
    actor: &str,
    file: &Path,
) -> Result<Summary, Error> {
    let found = store.schema().await?;
    if found != store::schema() {
        let expected = store::schema();
        return Err(Error::Schema { found, expected });
    }
    store.check_audit().await?;
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let writer = Writer::new(&part)?;
    let written = async {
        let mut event = Event::now(Action::Backup, "master", "wavry master backup");
        event.actor = actor.to_owned();
        store.audit(&event).await?;
        write(store, key, writer).await?;
        let summary = check(&part, key)?;
        // Unlike a renaming, this does not replace what is there.
        fs::hard_link(&part, file).map_err(|source| Error::file(file, source))?;
        Ok(summary)
    };
    let written = written.await;
    // It has another name now, or is of no use.
    let _ = fs::remove_file(&part);
    written
}

async fn write(store: &Store, key: &Key, mut out: Writer) -> Result<(), Error> {
    let mut transaction = store.read().await?;
    let epoch = query("SELECT epoch FROM roster")
        .one(&mut transaction)
        .await?;
    out.line(&Header {
        backup: LOG.to_owned(),
        taken: unix_time(),
        epoch: epoch.number(0)?,
        schema: store::schema(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })?;
    for table in TABLES {
        for row in query(table.select).all(&mut transaction).await? {
            out.line(&Row::of(table, table.read(&row)?))?;
        }
    }
    // The log may be far longer than everything else.
    let mut after = i64::MIN;
    loop {
        let page = query(PAGED.select)
            .bind(after)
            .all(&mut transaction)
            .await?;
        let Some(last) = page.last() else { break };
        after = last.get(0)?;
        for row in &page {
            out.line(&Row::of(&PAGED, PAGED.read(row)?))?;
        }
    }
    let seal = key.seal(LOG, &out.head());
    out.line(&Seal { seal })?;
    out.end()
}

/// Makes the database at `location`, in which there is no registry yet, from a backup. All of it is checked
/// before anything is written, and the audit log in it before that counts.
pub async fn restore(
    location: &Location,
    key: Arc<Key>,
    actor: &str,
    file: &Path,
) -> Result<Summary, Error> {
    let summary = check(file, &key)?;
    let store = Store::open(location, key.clone()).await?;
    let restored = async {
        let mut transaction = store.write().await?;
        if !is_empty(&mut transaction).await? {
            return Err(Error::NotEmpty);
        }
        read(file, &mut transaction).await?;
        store::audit::verify(&mut transaction, &key.verifier()).await?;
        let now = unix_time();
        query("UPDATE roster SET epoch = $1")
            .bind(now.max(summary.epoch.saturating_add(1)))
            .execute(&mut transaction)
            .await?;
        query("UPDATE forgotten SET issued_through = $1 WHERE issued_through < $1")
            .bind(now.saturating_add(CLOCK_SKEW))
            .execute(&mut transaction)
            .await?;
        let mut event = Event::now(Action::Restore, "master", "wavry master restore");
        event.actor = actor.to_owned();
        store::audit::append(&mut transaction, &key, &event).await?;
        Ok(transaction.commit().await?)
    };
    let restored = restored.await;
    store.close().await;
    restored.map(|()| summary)
}

/// Whether the database is as its schema made it: a master that starts makes a key first of all.
async fn is_empty(transaction: &mut Transaction) -> Result<bool, sqlx::Error> {
    let used = "SELECT (SELECT count(*) FROM signing_key) + (SELECT count(*) FROM audit_line)";
    Ok(query(used).one(transaction).await?.number(0)? == 0)
}

/// Puts the rows of a backup that was checked in place of what is there.
async fn read(file: &Path, transaction: &mut Transaction) -> Result<(), Error> {
    for table in TABLES {
        query(table.delete).execute(&mut *transaction).await?;
    }
    let mut reader = Reader::open(file)?;
    reader.next()?;
    while let Some(line) = reader.next()? {
        // The last line is the seal, which was checked.
        let Ok(Row { table, row }) = serde_json::from_slice(&line) else {
            break;
        };
        let table = Table::named(&table);
        let insert = table.and_then(|table| table.insert(&row));
        let insert = insert.ok_or_else(|| reader.damaged("this is no row of a table there is"))?;
        insert.execute(&mut *transaction).await?;
    }
    Ok(())
}

/// Reads a backup to its end: it is whole, and of this cluster's audit key.
pub fn check(file: &Path, key: &Key) -> Result<Summary, Error> {
    let mut reader = Reader::open(file)?;
    let first = reader.next()?.unwrap_or_default();
    let header: Header = serde_json::from_slice(&first)
        .ok()
        .filter(|header: &Header| header.backup == LOG)
        .ok_or_else(|| reader.damaged("this is no backup of a master"))?;
    if header.schema != store::schema() {
        return Err(Error::Schema {
            found: header.schema,
            expected: store::schema(),
        });
    }
    let mut rows = 0;
    loop {
        let head = reader.head();
        let line = reader.next()?;
        let line = line.ok_or_else(|| reader.damaged("its end is missing"))?;
        if serde_json::from_slice::<Row>(&line).is_ok() {
            rows += 1;
            continue;
        }
        let Ok(Seal { seal }) = serde_json::from_slice(&line) else {
            return Err(reader.damaged("this is neither a row nor a seal"));
        };
        let sealed = key.verifier().open(LOG, &seal);
        let sealed = sealed.map_err(|_| reader.damaged("the seal is of another cluster or key"))?;
        if sealed != head {
            return Err(reader.damaged("the lines before it are not those that were sealed"));
        }
        if reader.next()?.is_some() {
            return Err(reader.damaged("there is something after its end"));
        }
        return Ok(Summary {
            taken: header.taken,
            epoch: header.epoch,
            schema: header.schema,
            version: header.version,
            rows,
        });
    }
}
