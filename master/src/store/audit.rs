//! The audit log in the database. A line and its seal are written in one transaction, with whatever
//! they tell of where that is in the database too: both are there, or neither.

use sqlx::{Sqlite, SqliteExecutor, Transaction};
use wavry_credentials::audit::{Event, Head, Key, Line, verify::Bad};

use super::{Error, Store};
use crate::audit_sink::{Log, Page};

/// The log's name in its seals.
pub const LOG: &str = "master";
/// Lines read at once.
pub(crate) const PAGE: i64 = 1000;

/// Why an audit log cannot be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The database.
    #[error(transparent)]
    Store(#[from] Error),
    /// The database is neither a master's nor a KeyVault's.
    #[error("holds no audit log")]
    NoLog,
    /// The seal does not hold for this cluster and key.
    #[error("the seal does not verify: it is of another cluster or key")]
    Foreign,
    /// The log is not what was written.
    #[error(transparent)]
    Damaged(#[from] Bad),
}

impl Store {
    /// Writes an event in a transaction of its own.
    pub async fn audit(&self, event: &Event) -> Result<(), Error> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        append(&mut transaction, &self.audit, event).await?;
        Ok(transaction.commit().await?)
    }

    /// Checks the end of the log: its newest line is what the seal says.
    pub async fn check_audit(&self) -> Result<(), ReadError> {
        let verifier = self.audit.verifier();
        let mut transaction = self.pool.begin().await.map_err(Error::from)?;
        let head = newest(&mut transaction).await?.unwrap_or_default();
        let seal = seal(&mut transaction).await?;
        let sealed = match &seal {
            Some(seal) => verifier.open(LOG, seal).map_err(|_| ReadError::Foreign)?,
            None => Head::default(),
        };
        let line = head.seq + 1;
        match () {
            () if head == sealed => Ok(()),
            () if sealed.seq > head.seq => Err(Bad::Truncated {
                line,
                sealed: sealed.seq,
            })?,
            () => Err(Bad::Seal { line: head.seq })?,
        }
    }
}

impl Log for Store {
    type Error = Error;
    type Claim = ();

    async fn claim(&self, _sink: &str) -> Result<Option<()>, Error> {
        Ok(Some(()))
    }

    async fn page(&self, after: u64) -> Result<Page, Error> {
        let mut transaction = self.pool.begin().await?;
        let lines = lines_after(&mut *transaction, after).await?;
        Ok((lines, seal(&mut transaction).await?))
    }

    async fn delivered(&self, sink: &str) -> Result<u64, Error> {
        let seq: Option<i64> = sqlx::query_scalar("SELECT seq FROM audit_sink WHERE name = ?")
            .bind(sink)
            .fetch_optional(&self.pool)
            .await?;
        Ok(seq.unwrap_or_default().cast_unsigned())
    }

    async fn keep_delivered(&self, sink: &str, seq: u64) -> Result<(), Error> {
        sqlx::query(
            "INSERT INTO audit_sink (name, seq) VALUES (?, ?)
             ON CONFLICT (name) DO UPDATE SET seq = excluded.seq",
        )
        .bind(sink)
        .bind(seq.cast_signed())
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

/// Writes an event in a transaction that goes on to do what it tells.
pub(super) async fn append(
    transaction: &mut Transaction<'static, Sqlite>,
    key: &Key,
    event: &Event,
) -> Result<(), Error> {
    let head = newest(transaction).await?.unwrap_or_default();
    let (head, line) = head.follow(event);
    sqlx::query("INSERT INTO audit_line (seq, line) VALUES (?, ?)")
        .bind(head.seq.cast_signed())
        .bind(line)
        .execute(&mut **transaction)
        .await?;
    sqlx::query(
        "INSERT INTO audit_seal (one, seal) VALUES (1, ?)
         ON CONFLICT (one) DO UPDATE SET seal = excluded.seal",
    )
    .bind(key.seal(LOG, &head))
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

async fn newest(transaction: &mut Transaction<'static, Sqlite>) -> Result<Option<Head>, Error> {
    let line: Option<String> =
        sqlx::query_scalar("SELECT line FROM audit_line ORDER BY seq DESC LIMIT 1")
            .fetch_optional(&mut **transaction)
            .await?;
    let head = line.map(|line| Line::read(&line).map(|line| line.head));
    head.transpose().map_err(|_| Error::Row("audit_line"))
}

async fn seal(transaction: &mut Transaction<'static, Sqlite>) -> Result<Option<String>, Error> {
    Ok(sqlx::query_scalar("SELECT seal FROM audit_seal")
        .fetch_optional(&mut **transaction)
        .await?)
}

async fn lines_after(
    database: impl SqliteExecutor<'_>,
    after: u64,
) -> Result<Vec<(u64, String)>, Error> {
    let lines: Vec<(i64, String)> =
        sqlx::query_as("SELECT seq, line FROM audit_line WHERE seq > ? ORDER BY seq LIMIT ?")
            .bind(after.cast_signed())
            .bind(PAGE)
            .fetch_all(database)
            .await?;
    let lines = lines.into_iter();
    Ok(lines
        .map(|(seq, line)| (seq.cast_unsigned(), line))
        .collect())
}
