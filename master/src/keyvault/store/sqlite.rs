//! The store in a file of SQLite, used by one process.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions, TryLockError},
    io::{Read as _, Seek as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sqlx::{
    AssertSqlSafe, Row as _, SqlitePool,
    sqlite::{
        SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
    },
};
use wavry_credentials::audit;

use super::{Error, Head, Log, Row, WrappedTerm};
use crate::store::sound;

/// How long a write waits for a reader of another kind (a backup) to let go of the file: less than the
/// deadline of an answer.
const BUSY_TIMEOUT: Duration = Duration::from_millis(1500);
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
    _lock: Arc<File>,
}

pub(in crate::keyvault) struct Transaction(sqlx::Transaction<'static, sqlx::Sqlite>);

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
        let writer = sound(SqlitePoolOptions::new())
            .max_connections(1)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_with(options.clone())
            .await?;
        sqlx::migrate!("keyvault/sqlite").run(&writer).await?;
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
            _lock: Arc::new(lock),
        })
    }

    pub(super) async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    pub(super) async fn seal_config(&self) -> Result<Option<String>, Error> {
        Ok(sqlx::query_scalar("SELECT config FROM seal")
            .fetch_optional(&self.readers)
            .await?)
    }

    pub(super) async fn keyring(&self) -> Result<Option<(Head, Vec<WrappedTerm>)>, Error> {
        let mut transaction = Transaction(self.readers.begin().await?);
        match transaction.head().await? {
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
        let mut transaction = self.readers.begin().await?;
        let lines: Vec<(i64, String)> =
            sqlx::query_as("SELECT seq, line FROM audit_line WHERE seq > ? ORDER BY seq LIMIT ?")
                .bind(after.cast_signed())
                .bind(PAGE)
                .fetch_all(&mut *transaction)
                .await?;
        let seal = sqlx::query_scalar("SELECT seal FROM audit_head")
            .fetch_one(&mut *transaction)
            .await?;
        let lines = lines.into_iter();
        let lines = lines.map(|(seq, line)| (seq.cast_unsigned(), line));
        Ok((lines.collect(), seal))
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
        Ok(Transaction(
            self.writer.begin_with("BEGIN IMMEDIATE").await?,
        ))
    }
}

const ROW: &str = "SELECT revision, term, wrapped_key, ciphertext FROM entry WHERE path = ?";

impl Transaction {
    pub(super) async fn log(&mut self) -> Result<Log, Error> {
        let row = sqlx::query("SELECT seq, hash, seal FROM audit_head")
            .fetch_one(&mut *self.0)
            .await?;
        let hash: Vec<u8> = row.try_get(1)?;
        Ok(Log {
            head: audit::Head {
                seq: row.try_get::<i64, _>(0)?.cast_unsigned(),
                hash: hash.try_into().map_err(|_| Error::Row("audit_head"))?,
            },
            seal: row.try_get(2)?,
        })
    }

    pub(super) async fn head(&mut self) -> Result<Option<Head>, Error> {
        let row =
            sqlx::query("SELECT vault, position, generation, term, wraps, digest, mac FROM head")
                .fetch_optional(&mut *self.0)
                .await?;
        let Some(row) = row else { return Ok(None) };
        let malformed = || Error::Row("head");
        let bytes = |column: usize| row.try_get::<Vec<u8>, _>(column);
        let number = |column: usize| row.try_get::<i64, _>(column).map(i64::cast_unsigned);
        Ok(Some(Head {
            vault: bytes(0)?.try_into().map_err(|_| malformed())?,
            position: number(1)?,
            generation: number(2)?,
            term: number(3)?.try_into().map_err(|_| malformed())?,
            wraps: number(4)?,
            digest: bytes(5)?.try_into().map_err(|_| malformed())?,
            mac: bytes(6)?.try_into().map_err(|_| malformed())?,
        }))
    }

    pub(super) async fn keyring(&mut self) -> Result<Vec<WrappedTerm>, Error> {
        let rows: Vec<(i64, String, i64, Vec<u8>)> = sqlx::query_as(
            "SELECT term, master_key, created, wrapped_key FROM keyring ORDER BY term",
        )
        .fetch_all(&mut *self.0)
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
        .fetch_all(&mut *self.0)
        .await?;
        let rows = rows.into_iter();
        Ok(rows.map(|(path, at)| (path, at.cast_unsigned())).collect())
    }

    pub(super) async fn row(&mut self, path: &str) -> Result<Option<Row>, Error> {
        let row = sqlx::query(ROW)
            .bind(path)
            .fetch_optional(&mut *self.0)
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
            .execute(&mut *self.0)
            .await?;
        }
        Ok(())
    }

    pub(super) async fn delete(&mut self, paths: &[String]) -> Result<(), Error> {
        for path in paths {
            sqlx::query("DELETE FROM entry WHERE path = ?")
                .bind(path)
                .execute(&mut *self.0)
                .await?;
        }
        Ok(())
    }

    pub(super) async fn put_seal_config(&mut self, config: &str) -> Result<(), Error> {
        sqlx::query(
            "INSERT INTO seal (one, config) VALUES (1, ?)
             ON CONFLICT (one) DO UPDATE SET config = excluded.config",
        )
        .bind(config)
        .execute(&mut *self.0)
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
            .execute(&mut *self.0)
            .await?;
        }
        Ok(())
    }

    pub(super) async fn put_head(&mut self, head: &Head) -> Result<(), Error> {
        sqlx::query(
            "INSERT INTO head (one, vault, position, generation, term, wraps, digest, mac)
             VALUES (1, ?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (one) DO UPDATE SET position = excluded.position,
                 generation = excluded.generation, term = excluded.term, wraps = excluded.wraps,
                 digest = excluded.digest, mac = excluded.mac",
        )
        .bind(&head.vault[..])
        .bind(head.position.cast_signed())
        .bind(head.generation.cast_signed())
        .bind(head.term)
        .bind(head.wraps.cast_signed())
        .bind(&head.digest[..])
        .bind(&head.mac[..])
        .execute(&mut *self.0)
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
            query.execute(&mut *self.0).await?;
            rest = more;
        }
        sqlx::query("UPDATE audit_head SET seq = ?, hash = ?, seal = ?")
            .bind(log.head.seq.cast_signed())
            .bind(&log.head.hash[..])
            .bind(&log.seal)
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }

    pub(super) async fn commit(self) -> Result<(), Error> {
        Ok(self.0.commit().await?)
    }
}

fn read_row(path: &str, row: &SqliteRow) -> Result<Row, Error> {
    // A number that does not fit was not written by us: the entry will not authenticate.
    let term = row.try_get::<i64, _>(1)?.try_into().unwrap_or(u32::MAX);
    Ok(Row {
        path: path.to_owned(),
        revision: row.try_get::<i64, _>(0)?.cast_unsigned(),
        term,
        wrapped_key: row.try_get(2)?,
        ciphertext: row.try_get(3)?,
    })
}

/// Takes the lock that goes with database `file`, and says in it who holds it.
fn lock(file: &Path) -> Result<File, Error> {
    let mut path = file.as_os_str().to_owned();
    path.push(".lock");
    let path = PathBuf::from(path);
    let unusable = |source| Error::Lock {
        path: path.clone(),
        source,
    };
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(unusable)?;
    match lock.try_lock() {
        Ok(()) => {
            let holder = format!("process {}\n", std::process::id());
            lock.set_len(0)
                .and_then(|()| lock.rewind())
                .and_then(|()| lock.write_all(holder.as_bytes()))
                .map_err(unusable)?;
            Ok(lock)
        }
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Who it is is good to know, and not needed to refuse.
            let _ = (&mut lock).take(256).read_to_string(&mut holder);
            let holder = match holder.trim() {
                "" => "another process",
                holder => holder,
            };
            Err(Error::InUse {
                path: file.to_owned(),
                holder: holder.to_owned(),
            })
        }
        Err(TryLockError::Error(source)) => Err(unusable(source)),
    }
}
