//! The store in a file of SQLite, used by one process.

use std::{
    collections::HashMap,
    fs::File,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::TryStreamExt as _;
use sqlx::{
    AssertSqlSafe, Connection as _, Row as _, SqlitePool,
    sqlite::{
        SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
    },
};
use wavry_credentials::audit;

use super::{Error, Head, Log, Row, WrappedTerm};
use crate::database::lock;

/// How long a write waits for a reader of another kind (a backup) to let go of the file: less than the
/// deadline of an answer.
const BUSY_TIMEOUT: Duration = Duration::from_millis(1500);
const SCRUB_TIMEOUT: Duration = Duration::from_millis(50);
/// How long a read waits for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// Each is a thread of its own; reads are short, and more than the processors make nothing faster.
const READERS: u32 = 4;
/// Lines of the audit log read at once.
const PAGE: i64 = 1000;
/// Rows that one statement inserts. Statements are prepared once for each of these sizes.
const BATCHES: [usize; 3] = [64, 8, 1];

#[derive(Clone)]
pub(in crate::keyvault) struct Sqlite {
    writer: SqlitePool,
    readers: SqlitePool,
    /// Waits for readers of old states, while writers wait for it: not for long.
    scrubber: SqlitePool,
    /// Until it is closed.
    lock: Arc<Mutex<Option<File>>>,
}

pub(in crate::keyvault) struct Transaction {
    inner: sqlx::Transaction<'static, sqlx::Sqlite>,
    log: Log,
    head: Option<Head>,
}

impl Sqlite {
    pub(super) async fn open(file: &Path) -> Result<Self, Error> {
        let lock = lock(file)?;
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // What was answered must outlive a power cut.
            .synchronous(SqliteSynchronous::Full)
            // What is deleted is written over with zeros.
            .pragma("secure_delete", "ON")
            .busy_timeout(BUSY_TIMEOUT);
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // SQLite itself ends a transaction for which the disk has no room, and the library, which
            // cannot end it again, would take it for going on for ever: another connection then.
            .before_acquire(|connection, _| {
                let is_free = !connection.is_in_transaction();
                Box::pin(async move { Ok(is_free) })
            })
            .connect_with(options.clone())
            .await?;
        sqlx::migrate!("keyvault/sqlite").run(&writer).await?;
        let scrubber = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_lazy_with(options.clone().busy_timeout(SCRUB_TIMEOUT));
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // A ping for each read would double its cost; a file does not go away.
            .test_before_acquire(false)
            .connect_with(options.pragma("query_only", "ON"))
            .await?;
        Ok(Self {
            writer,
            readers,
            scrubber,
            lock: Arc::new(Mutex::new(Some(lock))),
        })
    }

    pub(super) async fn close(&self) {
        self.readers.close().await;
        self.scrubber.close().await;
        self.writer.close().await;
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        drop(lock.take());
    }

    pub(super) async fn seal_config(&self) -> Result<Option<String>, Error> {
        Ok(sqlx::query_scalar("SELECT config FROM seal")
            .fetch_optional(&self.readers)
            .await?)
    }

    pub(super) async fn keyring(&self) -> Result<Option<(Head, Vec<WrappedTerm>)>, Error> {
        let mut transaction = self.snapshot().await?;
        match transaction.head.take() {
            Some(head) => Ok(Some((head, transaction.keyring().await?))),
            None => Ok(None),
        }
    }

    pub(super) async fn row(&self, path: &str) -> Result<Option<Row>, Error> {
        let row = sqlx::query(ROW)
            .bind(path)
            .fetch_optional(&self.readers)
            .await?;
        row.map(|row| read_row(path, &row)).transpose()
    }

    pub(super) async fn paths(
        &self,
        from: &str,
        to: &str,
        limit: u32,
    ) -> Result<Vec<String>, Error> {
        Ok(sqlx::query_scalar(
            "SELECT path FROM entry WHERE path >= ? AND path < ? ORDER BY path LIMIT ?",
        )
        .bind(from)
        .bind(to)
        .bind(limit)
        .fetch_all(&self.readers)
        .await?)
    }

    pub(super) async fn audit_lines(
        &self,
        after: u64,
    ) -> Result<(Vec<(u64, String)>, Option<String>), Error> {
        let mut transaction = self.snapshot().await?;
        let lines: Vec<(i64, String)> =
            sqlx::query_as("SELECT seq, line FROM audit_line WHERE seq > ? ORDER BY seq LIMIT ?")
                .bind(after.cast_signed())
                .bind(PAGE)
                .fetch_all(&mut *transaction.inner)
                .await?;
        let lines = lines.into_iter();
        let lines = lines.map(|(seq, line)| (seq.cast_unsigned(), line));
        Ok((lines.collect(), transaction.log.seal))
    }

    pub(super) async fn newest_line(&self) -> Result<(Log, Option<String>), Error> {
        let mut transaction = self.snapshot().await?;
        let line = sqlx::query_scalar("SELECT line FROM audit_line ORDER BY seq DESC LIMIT 1")
            .fetch_optional(&mut *transaction.inner)
            .await?;
        Ok((transaction.log, line))
    }

    pub(super) async fn scan(
        &self,
        mut each: impl FnMut(&str, u64, u32) + Send,
    ) -> Result<Option<(Head, Log)>, Error> {
        let mut transaction = self.snapshot().await?;
        let Some(head) = transaction.head.take() else {
            return Ok(None);
        };
        let mut rows =
            sqlx::query("SELECT path, revision, term FROM entry").fetch(&mut *transaction.inner);
        while let Some(row) = rows.try_next().await? {
            let revision = row.try_get::<i64, _>(1)?.cast_unsigned();
            each(row.try_get(0)?, revision, term(row.try_get(2)?));
        }
        drop(rows);
        Ok(Some((head, transaction.log)))
    }

    pub(super) async fn count(&self, term: u32) -> Result<(u64, u64), Error> {
        let (all, others): (i64, i64) =
            sqlx::query_as("SELECT count(*), count(*) FILTER (WHERE term <> ?) FROM entry")
                .bind(i64::from(term))
                .fetch_one(&self.readers)
                .await?;
        Ok((all.cast_unsigned(), others.cast_unsigned()))
    }

    /// Moves what was committed into the database file, where what was deleted was written over with
    /// zeros, and empties the write-ahead log, which has it still.
    pub(super) async fn scrub(&self) -> Result<(), Error> {
        let (busy, _, _): (i64, i64, i64) = sqlx::query_as("PRAGMA wal_checkpoint(TRUNCATE)")
            .fetch_one(&self.scrubber)
            .await?;
        match busy {
            0 => Ok(()),
            // A reader holds on to an older state; next time.
            _ => Err(Error::TooSlow),
        }
    }

    /// Does something to the connection that writes.
    #[cfg(test)]
    pub(in crate::keyvault) async fn run(&self, sql: &'static str) {
        sqlx::query(sql).execute(&self.writer).await.unwrap();
    }

    pub(super) async fn delivered(&self, sink: &str) -> Result<u64, Error> {
        let seq: Option<i64> = sqlx::query_scalar("SELECT seq FROM audit_sink WHERE name = ?")
            .bind(sink)
            .fetch_optional(&self.readers)
            .await?;
        Ok(seq.unwrap_or_default().cast_unsigned())
    }

    pub(super) async fn keep_delivered(&self, sink: &str, seq: u64) -> Result<(), Error> {
        sqlx::query(
            "INSERT INTO audit_sink (name, seq) VALUES (?, ?)
             ON CONFLICT (name) DO UPDATE SET seq = excluded.seq",
        )
        .bind(sink)
        .bind(seq.cast_signed())
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    pub(super) async fn begin(&self) -> Result<Transaction, Error> {
        begin_with(&self.writer, "BEGIN IMMEDIATE").await
    }

    /// A transaction whose reads are all of one moment.
    async fn snapshot(&self) -> Result<Transaction, Error> {
        begin_with(&self.readers, "BEGIN").await
    }
}

async fn begin_with(pool: &SqlitePool, begin: &'static str) -> Result<Transaction, Error> {
    let mut inner = pool.begin_with(begin).await?;
    let row = sqlx::query(HEADS).fetch_one(&mut *inner).await?;
    let (log, head) = read_heads(&row)?;
    Ok(Transaction { inner, log, head })
}

/// One row, whether there is a head or not.
const HEADS: &str = "SELECT audit_head.seq, audit_head.hash, audit_head.seal, vault, position,
    generation, term, master_key, wraps, digest, mac
    FROM audit_head LEFT JOIN head ON head.one = audit_head.one";
const ROW: &str = "SELECT revision, term, wrapped_key, ciphertext FROM entry WHERE path = ?";

impl Transaction {
    pub(super) fn log(&self) -> &Log {
        &self.log
    }

    pub(super) fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }

    pub(super) async fn keyring(&mut self) -> Result<Vec<WrappedTerm>, Error> {
        let rows: Vec<(i64, String, i64, Vec<u8>)> = sqlx::query_as(
            "SELECT term, master_key, created, wrapped_key FROM keyring ORDER BY term",
        )
        .fetch_all(&mut *self.inner)
        .await?;
        rows.into_iter()
            .map(|(term, master_key, created, wrapped_key)| {
                Ok(WrappedTerm {
                    term: term.try_into().map_err(|_| Error::Row("keyring"))?,
                    master_key,
                    created: created.cast_unsigned(),
                    wrapped_key,
                })
            })
            .collect()
    }

    pub(super) async fn revisions(
        &mut self,
        paths: &[&str],
    ) -> Result<HashMap<String, u64>, Error> {
        let paths = serde_json::to_string(paths).map_err(|_| Error::Row("entry"))?;
        let rows: Vec<(String, i64)> = sqlx::query_as(
            "SELECT path, revision FROM entry WHERE path IN (SELECT value FROM json_each(?))",
        )
        .bind(paths)
        .fetch_all(&mut *self.inner)
        .await?;
        let rows = rows.into_iter();
        Ok(rows.map(|(path, at)| (path, at.cast_unsigned())).collect())
    }

    pub(super) async fn row(&mut self, path: &str) -> Result<Option<Row>, Error> {
        let row = sqlx::query(ROW)
            .bind(path)
            .fetch_optional(&mut *self.inner)
            .await?;
        row.map(|row| read_row(path, &row)).transpose()
    }

    pub(super) async fn put(&mut self, rows: &[Row]) -> Result<(), Error> {
        for row in rows {
            sqlx::query(
                "INSERT INTO entry (path, revision, term, wrapped_key, ciphertext)
                 VALUES (?, ?, ?, ?, ?)
                 ON CONFLICT (path) DO UPDATE SET revision = excluded.revision,
                     term = excluded.term, wrapped_key = excluded.wrapped_key,
                     ciphertext = excluded.ciphertext",
            )
            .bind(&row.path)
            .bind(row.revision.cast_signed())
            .bind(row.term)
            .bind(&row.wrapped_key)
            .bind(&row.ciphertext)
            .execute(&mut *self.inner)
            .await?;
        }
        Ok(())
    }

    pub(super) async fn delete(&mut self, paths: &[String]) -> Result<(), Error> {
        for path in paths {
            sqlx::query("DELETE FROM entry WHERE path = ?")
                .bind(path)
                .execute(&mut *self.inner)
                .await?;
        }
        Ok(())
    }

    pub(super) async fn rows_of_other_terms(
        &mut self,
        term: u32,
        after: &str,
        limit: u32,
    ) -> Result<Vec<Row>, Error> {
        let rows = sqlx::query(
            "SELECT revision, term, wrapped_key, ciphertext, path FROM entry
             WHERE term <> ? AND path > ? ORDER BY path LIMIT ?",
        )
        .bind(i64::from(term))
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(&mut *self.inner)
        .await?;
        rows.iter()
            .map(|row| read_row(row.try_get(4)?, row))
            .collect()
    }

    pub(super) async fn count_other_terms(&mut self, term: u32) -> Result<u64, Error> {
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM entry WHERE term <> ?")
            .bind(i64::from(term))
            .fetch_one(&mut *self.inner)
            .await?;
        Ok(count.cast_unsigned())
    }

    pub(super) async fn rewrap(&mut self, rows: &[Row]) -> Result<(), Error> {
        for row in rows {
            sqlx::query("UPDATE entry SET term = ?, wrapped_key = ? WHERE path = ?")
                .bind(i64::from(row.term))
                .bind(&row.wrapped_key)
                .bind(&row.path)
                .execute(&mut *self.inner)
                .await?;
        }
        Ok(())
    }

    pub(super) async fn retire(&mut self, term: u32, master_key: &str) -> Result<(), Error> {
        sqlx::query("DELETE FROM keyring WHERE term <> ? OR master_key <> ?")
            .bind(i64::from(term))
            .bind(master_key)
            .execute(&mut *self.inner)
            .await?;
        Ok(())
    }

    pub(super) async fn put_instance(
        &mut self,
        id: &[u8; 16],
        generation: u64,
        now: u64,
    ) -> Result<(), Error> {
        sqlx::query(
            "INSERT INTO instance (id, generation, seen) VALUES (?, ?, ?)
             ON CONFLICT (id) DO UPDATE SET generation = excluded.generation, seen = excluded.seen",
        )
        .bind(&id[..])
        .bind(generation.cast_signed())
        .bind(now.cast_signed())
        .execute(&mut *self.inner)
        .await?;
        Ok(())
    }

    pub(super) async fn instances_behind(
        &mut self,
        generation: u64,
        since: u64,
    ) -> Result<u64, Error> {
        sqlx::query("DELETE FROM instance WHERE seen < ?")
            .bind(since.cast_signed())
            .execute(&mut *self.inner)
            .await?;
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM instance WHERE generation < ?")
            .bind(generation.cast_signed())
            .fetch_one(&mut *self.inner)
            .await?;
        Ok(count.cast_unsigned())
    }

    pub(super) async fn put_seal_config(&mut self, config: &str) -> Result<(), Error> {
        sqlx::query(
            "INSERT INTO seal (one, config) VALUES (1, ?)
             ON CONFLICT (one) DO UPDATE SET config = excluded.config",
        )
        .bind(config)
        .execute(&mut *self.inner)
        .await?;
        Ok(())
    }

    pub(super) async fn put_terms(&mut self, terms: &[WrappedTerm]) -> Result<(), Error> {
        for term in terms {
            sqlx::query(
                "INSERT INTO keyring (term, master_key, created, wrapped_key) VALUES (?, ?, ?, ?)",
            )
            .bind(term.term)
            .bind(&term.master_key)
            .bind(term.created.cast_signed())
            .bind(&term.wrapped_key)
            .execute(&mut *self.inner)
            .await?;
        }
        Ok(())
    }

    pub(super) async fn put_head(&mut self, head: &Head) -> Result<(), Error> {
        sqlx::query(
            "INSERT INTO head (one, vault, position, generation, term, master_key, wraps, digest, mac)
             VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (one) DO UPDATE SET position = excluded.position,
                 generation = excluded.generation, term = excluded.term,
                 master_key = excluded.master_key, wraps = excluded.wraps,
                 digest = excluded.digest, mac = excluded.mac",
        )
        .bind(&head.vault[..])
        .bind(head.position.cast_signed())
        .bind(head.generation.cast_signed())
        .bind(head.term)
        .bind(&head.master_key)
        .bind(head.wraps.cast_signed())
        .bind(&head.digest[..])
        .bind(&head.mac[..])
        .execute(&mut *self.inner)
        .await?;
        Ok(())
    }

    pub(super) async fn put_lines(
        &mut self,
        lines: &[(u64, String)],
        log: &Log,
    ) -> Result<(), Error> {
        let mut rest = lines;
        while let Some(size) = BATCHES.into_iter().find(|size| *size <= rest.len()) {
            let (batch, more) = rest.split_at(size);
            let places = vec!["(?, ?)"; size].join(", ");
            let insert = format!("INSERT INTO audit_line (seq, line) VALUES {places}");
            // Nothing but marks for values was put together.
            let mut query = sqlx::query(AssertSqlSafe(insert));
            for (seq, line) in batch {
                query = query.bind(seq.cast_signed()).bind(line);
            }
            query.execute(&mut *self.inner).await?;
            rest = more;
        }
        sqlx::query("UPDATE audit_head SET seq = ?, hash = ?, seal = ?")
            .bind(log.head.seq.cast_signed())
            .bind(&log.head.hash[..])
            .bind(&log.seal)
            .execute(&mut *self.inner)
            .await?;
        Ok(())
    }

    pub(super) async fn commit(self) -> Result<(), Error> {
        Ok(self.inner.commit().await?)
    }
}

/// How far log and entries have come, from a row of [`HEADS`].
fn read_heads(row: &SqliteRow) -> Result<(Log, Option<Head>), Error> {
    let malformed = || Error::Row("head");
    let bytes = |column: usize| row.try_get::<Vec<u8>, _>(column);
    let number = |column: usize| row.try_get::<i64, _>(column).map(i64::cast_unsigned);
    let log = Log {
        head: audit::Head {
            seq: number(0)?,
            hash: bytes(1)?.try_into().map_err(|_| malformed())?,
        },
        seal: row.try_get(2)?,
    };
    let Some(vault) = row.try_get::<Option<Vec<u8>>, _>(3)? else {
        return Ok((log, None));
    };
    let head = Head {
        vault: vault.try_into().map_err(|_| malformed())?,
        position: number(4)?,
        generation: number(5)?,
        term: number(6)?.try_into().map_err(|_| malformed())?,
        master_key: row.try_get(7)?,
        wraps: number(8)?,
        digest: bytes(9)?.try_into().map_err(|_| malformed())?,
        mac: bytes(10)?.try_into().map_err(|_| malformed())?,
    };
    Ok((log, Some(head)))
}

/// A number that does not fit was not written by us: the entry will not authenticate.
fn term(number: i64) -> u32 {
    number.try_into().unwrap_or(u32::MAX)
}

fn read_row(path: &str, row: &SqliteRow) -> Result<Row, Error> {
    Ok(Row {
        path: path.to_owned(),
        revision: row.try_get::<i64, _>(0)?.cast_unsigned(),
        term: term(row.try_get(1)?),
        wrapped_key: row.try_get(2)?,
        ciphertext: row.try_get(3)?,
    })
}
