//! The store in PostgreSQL, used by any number of processes.

use std::{collections::HashMap, time::Duration};

use sqlx::{
    PgConnection, PgPool, Row as _,
    postgres::{PgConnectOptions, PgPoolOptions, PgRow},
};
use wavry_credentials::audit;

use super::{Error, Head, Log, Row, WrappedTerm};

/// How long a read waits for a connection: an answer's deadline.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// A statement that takes longer is of no use to anyone who waits.
const STATEMENT_TIMEOUT: &str = "2s";
/// One for the writer, the rest for reads, which are short.
const CONNECTIONS: u32 = 8;
/// Lines of the audit log read at once.
const PAGE: i64 = 1000;

/// How the database is reached. Its password is not part of it.
#[derive(Debug, Clone)]
pub struct Server {
    options: Box<PgConnectOptions>,
}

/// What is no URL of a PostgreSQL database, or holds a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnusableUrl {
    /// Not a URL of PostgreSQL.
    #[error("expected postgres://USER@HOST:PORT/DATABASE")]
    Malformed,
    /// A password does not belong into a configuration.
    #[error("the password belongs into a file of its own, not into the URL")]
    Password,
}

impl Server {
    /// How to connect.
    pub(crate) fn options(&self) -> PgConnectOptions {
        (*self.options).clone()
    }
}

impl std::str::FromStr for Server {
    type Err = UnusableUrl;
    fn from_str(text: &str) -> Result<Self, UnusableUrl> {
        let (scheme, rest) = text.split_once("://").ok_or(UnusableUrl::Malformed)?;
        if !["postgres", "postgresql"].contains(&scheme) {
            return Err(UnusableUrl::Malformed);
        }
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        let user = authority.rsplit_once('@').map(|(user, _)| user);
        if user.is_some_and(|user| user.contains(':')) || rest.contains("password=") {
            return Err(UnusableUrl::Password);
        }
        let options: PgConnectOptions = text.parse().map_err(|_| UnusableUrl::Malformed)?;
        Ok(Self {
            options: Box::new(options),
        })
    }
}

#[derive(Clone)]
pub(in crate::keyvault) struct Postgres {
    pool: PgPool,
}

pub(in crate::keyvault) struct Transaction(sqlx::Transaction<'static, sqlx::Postgres>);

impl Postgres {
    pub(super) async fn open(server: &Server) -> Result<Self, Error> {
        let options = server
            .options()
            .application_name("wavry keyvault")
            .options([("statement_timeout", STATEMENT_TIMEOUT)]);
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // A connection that broke shows when it is used, and what is read is read again.
            .test_before_acquire(false)
            .connect_with(options)
            .await?;
        sqlx::migrate!("keyvault/postgres").run(&pool).await?;
        Ok(Self { pool })
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
        match transaction.head().await? {
            Some(head) => Ok(Some((head, transaction.keyring().await?))),
            None => Ok(None),
        }
    }

    pub(super) async fn row(&self, path: &str) -> Result<Option<Row>, Error> {
        let row = sqlx::query(ROW)
            .bind(path)
            .fetch_optional(&self.pool)
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
                .fetch_all(&mut *transaction.0)
                .await?;
        let seal = sqlx::query_scalar("SELECT seal FROM audit_head")
            .fetch_one(&mut *transaction.0)
            .await?;
        let lines = lines.into_iter();
        let lines = lines.map(|(seq, line)| (seq.cast_unsigned(), line));
        Ok((lines.collect(), seal))
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

    pub(super) async fn begin(&self) -> Result<Transaction, Error> {
        let mut transaction = self.pool.begin().await?;
        // Whoever changes anything holds this row: changes follow each other in one order.
        sqlx::query("SELECT 1 FROM audit_head FOR UPDATE")
            .execute(&mut *transaction)
            .await?;
        Ok(Transaction(transaction))
    }

    /// A transaction whose reads are all of one moment.
    async fn snapshot(&self) -> Result<Transaction, Error> {
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        Ok(Transaction(self.pool.begin_with(begin).await?))
    }
}

const ROW: &str = "SELECT revision, term, wrapped_key, ciphertext FROM entry WHERE path = $1";

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
        let rows: Vec<(String, i64)> =
            sqlx::query_as("SELECT path, revision FROM entry WHERE path = ANY ($1)")
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
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    pub(super) async fn delete(&mut self, paths: &[String]) -> Result<(), Error> {
        if paths.is_empty() {
            return Ok(());
        }
        sqlx::query("DELETE FROM entry WHERE path = ANY ($1)")
            .bind(paths)
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }

    pub(super) async fn put_seal_config(&mut self, config: &str) -> Result<(), Error> {
        sqlx::query(
            "INSERT INTO seal (one, config) VALUES (1, $1)
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
                "INSERT INTO keyring (term, master_key, created, wrapped_key)
                 VALUES ($1, $2, $3, $4)",
            )
            .bind(i64::from(term.term))
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
             VALUES (1, $1, $2, $3, $4, $5, $6, $7)
             ON CONFLICT (one) DO UPDATE SET position = excluded.position,
                 generation = excluded.generation, term = excluded.term, wraps = excluded.wraps,
                 digest = excluded.digest, mac = excluded.mac",
        )
        .bind(&head.vault[..])
        .bind(head.position.cast_signed())
        .bind(head.generation.cast_signed())
        .bind(i64::from(head.term))
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
        let numbers: Vec<i64> = lines.iter().map(|(seq, _)| seq.cast_signed()).collect();
        let texts: Vec<&str> = lines.iter().map(|(_, line)| &**line).collect();
        sqlx::query(
            "INSERT INTO audit_line (seq, line) SELECT * FROM UNNEST ($1::bigint[], $2::text[])",
        )
        .bind(numbers)
        .bind(texts)
        .execute(&mut *self.0)
        .await?;
        sqlx::query("UPDATE audit_head SET seq = $1, hash = $2, seal = $3")
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

fn read_row(path: &str, row: &PgRow) -> Result<Row, Error> {
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
