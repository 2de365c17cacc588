//! The store in PostgreSQL, used by any number of processes.

mod reads;

use std::{collections::HashMap, time::Duration};

use futures_util::TryStreamExt as _;
use sqlx::{
    PgConnection, PgPool, Row as _,
    postgres::{PgPoolOptions, PgRow},
};
use wavry_credentials::audit;

use super::{Error, Head, Log, Row, WrappedTerm};
use crate::database::{self, Server};
use reads::Reads;

/// How long a read waits for a connection: an answer's deadline.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// A statement that takes longer is of no use to anyone who waits.
const STATEMENT_TIMEOUT: &str = "2s";
/// One for the writer, the rest for reads, which are short.
const CONNECTIONS: u32 = 8;
/// Lines of the audit log read at once.
const PAGE: i64 = 1000;

#[derive(Clone)]
pub(in crate::keyvault) struct Postgres {
    pool: PgPool,
    reads: Reads,
}

pub(in crate::keyvault) struct Transaction {
    inner: sqlx::Transaction<'static, sqlx::Postgres>,
    log: Log,
    head: Option<Head>,
}

impl Postgres {
    pub(super) async fn open(server: &Server) -> Result<Self, Error> {
        let login = server.login().await?.with(|options| {
            options
                .application_name("wavry keyvault")
                .options([("statement_timeout", STATEMENT_TIMEOUT)])
        });
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // A connection that broke shows when it is used, and what is read is read again.
            .test_before_acquire(false);
        let pool = login.pool(pool).await?;
        sqlx::migrate!("keyvault/postgres").run(&pool).await?;
        let reads = Reads::new(&pool);
        Ok(Self { pool, reads })
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }

    pub(super) async fn seal_config(&self) -> Result<Option<String>, Error> {
        Ok(sqlx::query_scalar("SELECT config FROM seal")
            .fetch_optional(&self.pool)
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
        self.reads.row(path).await
    }

    pub(super) async fn paths(
        &self,
        from: &str,
        to: &str,
        limit: u32,
    ) -> Result<Vec<String>, Error> {
        Ok(sqlx::query_scalar(
            "SELECT path FROM entry WHERE path >= $1 AND path < $2 ORDER BY path LIMIT $3",
        )
        .bind(from)
        .bind(to)
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await?)
    }

    pub(super) async fn audit_lines(
        &self,
        after: u64,
    ) -> Result<(Vec<(u64, String)>, Option<String>), Error> {
        let mut transaction = self.snapshot().await?;
        let lines: Vec<(i64, String)> =
            sqlx::query_as("SELECT seq, line FROM audit_line WHERE seq > $1 ORDER BY seq LIMIT $2")
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
            sqlx::query_as("SELECT count(*), count(*) FILTER (WHERE term <> $1) FROM entry")
                .bind(i64::from(term))
                .fetch_one(&self.pool)
                .await?;
        Ok((all.cast_unsigned(), others.cast_unsigned()))
    }

    pub(super) async fn delivered(&self, sink: &str) -> Result<u64, Error> {
        let seq: Option<i64> = sqlx::query_scalar("SELECT seq FROM audit_sink WHERE name = $1")
            .bind(sink)
            .fetch_optional(&self.pool)
            .await?;
        Ok(seq.unwrap_or_default().cast_unsigned())
    }

    pub(super) async fn keep_delivered(&self, sink: &str, seq: u64) -> Result<(), Error> {
        sqlx::query(
            "INSERT INTO audit_sink (name, seq) VALUES ($1, $2)
             ON CONFLICT (name) DO UPDATE SET seq = excluded.seq",
        )
        .bind(sink)
        .bind(seq.cast_signed())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Takes the right to serve a sink, which is given back when the connection is dropped.
    pub(super) async fn claim(&self, sink: &str) -> Result<Option<PgConnection>, Error> {
        let mut connection = self.pool.acquire().await?.detach();
        let is_ours: bool =
            sqlx::query_scalar("SELECT pg_try_advisory_lock(hashtext('audit sink'), hashtext($1))")
                .bind(sink)
                .fetch_one(&mut connection)
                .await?;
        Ok(is_ours.then_some(connection))
    }

    /// Changes follow each other in one order: who makes one holds the row of the audit log's head. What
    /// is read after it, in a statement of its own, is as whoever held it before has left it.
    pub(super) async fn begin(&self) -> Result<Transaction, Error> {
        let mut inner = database::begin(&self.pool, "BEGIN").await?;
        // Both with one message to the server.
        let rows = sqlx::raw_sql(LOCKED_HEADS).fetch_all(&mut *inner).await?;
        let row = rows.last().ok_or(sqlx::Error::RowNotFound)?;
        let (log, head) = read_heads(row)?;
        Ok(Transaction { inner, log, head })
    }

    /// A transaction whose reads are all of one moment.
    async fn snapshot(&self) -> Result<Transaction, Error> {
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        let mut inner = database::begin(&self.pool, begin).await?;
        let row = sqlx::query(HEADS).fetch_one(&mut *inner).await?;
        let (log, head) = read_heads(&row)?;
        Ok(Transaction { inner, log, head })
    }
}

macro_rules! heads {
    ($before:literal) => {
        concat!(
            $before,
            "SELECT audit_head.seq, audit_head.hash, audit_head.seal, vault, position,
             generation, term, master_key, wraps, digest, mac
             FROM audit_head LEFT JOIN head ON head.one = audit_head.one"
        )
    };
}
/// One row, whether there is a head or not.
const HEADS: &str = heads!("");
const LOCKED_HEADS: &str = heads!("SELECT 1 FROM audit_head FOR UPDATE; ");
const ROW: &str = "SELECT revision, term, wrapped_key, ciphertext FROM entry WHERE path = $1";

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
        let rows: Vec<(String, i64)> =
            sqlx::query_as("SELECT path, revision FROM entry WHERE path = ANY ($1)")
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
        if rows.is_empty() {
            return Ok(());
        }
        let paths: Vec<&str> = rows.iter().map(|row| &*row.path).collect();
        let revisions: Vec<i64> = rows.iter().map(|row| row.revision.cast_signed()).collect();
        let terms: Vec<i64> = rows.iter().map(|row| row.term.into()).collect();
        let wrapped_keys: Vec<&[u8]> = rows.iter().map(|row| &*row.wrapped_key).collect();
        let ciphertexts: Vec<&[u8]> = rows.iter().map(|row| &*row.ciphertext).collect();
        sqlx::query(
            "INSERT INTO entry (path, revision, term, wrapped_key, ciphertext)
             SELECT * FROM UNNEST ($1::text[], $2::bigint[], $3::bigint[], $4::bytea[], $5::bytea[])
             ON CONFLICT (path) DO UPDATE SET revision = excluded.revision,
                 term = excluded.term, wrapped_key = excluded.wrapped_key,
                 ciphertext = excluded.ciphertext",
        )
        .bind(paths)
        .bind(revisions)
        .bind(terms)
        .bind(wrapped_keys)
        .bind(ciphertexts)
        .execute(&mut *self.inner)
        .await?;
        Ok(())
    }

    pub(super) async fn delete(&mut self, paths: &[String]) -> Result<(), Error> {
        if paths.is_empty() {
            return Ok(());
        }
        sqlx::query("DELETE FROM entry WHERE path = ANY ($1)")
            .bind(paths)
            .execute(&mut *self.inner)
            .await?;
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
             WHERE term <> $1 AND path > $2 ORDER BY path LIMIT $3",
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
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM entry WHERE term <> $1")
            .bind(i64::from(term))
            .fetch_one(&mut *self.inner)
            .await?;
        Ok(count.cast_unsigned())
    }

    pub(super) async fn rewrap(&mut self, rows: &[Row]) -> Result<(), Error> {
        for row in rows {
            sqlx::query("UPDATE entry SET term = $1, wrapped_key = $2 WHERE path = $3")
                .bind(i64::from(row.term))
                .bind(&row.wrapped_key)
                .bind(&row.path)
                .execute(&mut *self.inner)
                .await?;
        }
        Ok(())
    }

    pub(super) async fn retire(&mut self, term: u32, master_key: &str) -> Result<(), Error> {
        sqlx::query("DELETE FROM keyring WHERE term <> $1 OR master_key <> $2")
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
            "INSERT INTO instance (id, generation, seen) VALUES ($1, $2, $3)
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
        sqlx::query("DELETE FROM instance WHERE seen < $1")
            .bind(since.cast_signed())
            .execute(&mut *self.inner)
            .await?;
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM instance WHERE generation < $1")
            .bind(generation.cast_signed())
            .fetch_one(&mut *self.inner)
            .await?;
        Ok(count.cast_unsigned())
    }

    pub(super) async fn put_seal_config(&mut self, config: &str) -> Result<(), Error> {
        sqlx::query(
            "INSERT INTO seal (one, config) VALUES (1, $1)
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
                "INSERT INTO keyring (term, master_key, created, wrapped_key)
                 VALUES ($1, $2, $3, $4)",
            )
            .bind(i64::from(term.term))
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
             VALUES (1, $1, $2, $3, $4, $5, $6, $7, $8)
             ON CONFLICT (one) DO UPDATE SET position = excluded.position,
                 generation = excluded.generation, term = excluded.term,
                 master_key = excluded.master_key, wraps = excluded.wraps,
                 digest = excluded.digest, mac = excluded.mac",
        )
        .bind(&head.vault[..])
        .bind(head.position.cast_signed())
        .bind(head.generation.cast_signed())
        .bind(i64::from(head.term))
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
        let numbers: Vec<i64> = lines.iter().map(|(seq, _)| seq.cast_signed()).collect();
        let texts: Vec<&str> = lines.iter().map(|(_, line)| &**line).collect();
        sqlx::query(
            "INSERT INTO audit_line (seq, line) SELECT * FROM UNNEST ($1::bigint[], $2::text[])",
        )
        .bind(numbers)
        .bind(texts)
        .execute(&mut *self.inner)
        .await?;
        sqlx::query("UPDATE audit_head SET seq = $1, hash = $2, seal = $3")
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
fn read_heads(row: &PgRow) -> Result<(Log, Option<Head>), Error> {
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

fn read_row(path: &str, row: &PgRow) -> Result<Row, Error> {
    Ok(Row {
        path: path.to_owned(),
        revision: row.try_get::<i64, _>(0)?.cast_unsigned(),
        term: term(row.try_get(1)?),
        wrapped_key: row.try_get(2)?,
        ciphertext: row.try_get(3)?,
    })
}
