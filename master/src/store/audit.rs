//! The audit log in the database. A line and its seal are written in one transaction, with whatever
//! they tell of where that is in the database too: both are there, or neither.

use sqlx::PgConnection;
use wavry_credentials::audit::{
    Event, Head, Key, Line, Verifier,
    verify::{Bad, Reading},
};

use super::{Error, Store};
use crate::{
    audit_sink::{Log, Page},
    database::sql::{Pool, Source, Transaction, query},
};

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
        let mut transaction = self.write().await?;
        append(&mut transaction, &self.audit, event).await?;
        Ok(transaction.commit().await?)
    }

    /// Checks the end of the log: its newest line is what the seal says.
    pub async fn check_audit(&self) -> Result<(), ReadError> {
        let verifier = self.audit.verifier();
        let mut transaction = self.read().await?;
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
    const NAME: &'static str = LOG;
    type Error = Error;
    type Claim = Option<PgConnection>;

    async fn claim(&self, sink: &str) -> Result<Option<Self::Claim>, Error> {
        match &self.pool {
            // One process uses the file.
            Pool::Sqlite(_) => Ok(Some(None)),
            // Given back when the connection is dropped.
            Pool::Postgres(pool) => {
                let mut connection = pool.acquire().await?.detach();
                let is_ours: bool = sqlx::query_scalar(
                    "SELECT pg_try_advisory_lock(hashtext('master audit sink'), hashtext($1))",
                )
                .bind(sink)
                .fetch_one(&mut connection)
                .await?;
                Ok(is_ours.then_some(Some(connection)))
            }
        }
    }

    async fn page(&self, after: u64) -> Result<Page, Error> {
        let mut transaction = self.read().await?;
        let lines = lines_after(&mut transaction, after.cast_signed()).await?;
        let lines = lines.into_iter();
        let lines = lines.map(|(seq, line)| (seq.cast_unsigned(), line));
        Ok((lines.collect(), seal(&mut transaction).await?))
    }

    async fn delivered(&self, sink: &str) -> Result<u64, Error> {
        let seq: Option<i64> = query("SELECT seq FROM audit_sink WHERE name = $1")
            .bind(sink)
            .value(&self.pool)
            .await?;
        Ok(seq.unwrap_or_default().cast_unsigned())
    }

    async fn keep_delivered(&self, sink: &str, seq: u64) -> Result<(), Error> {
        query(
            "INSERT INTO audit_sink (name, seq) VALUES ($1, $2)
             ON CONFLICT (name) DO UPDATE SET seq = excluded.seq",
        )
        .bind(sink)
        .bind(seq)
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

/// Checks the whole log as a transaction sees it.
pub(crate) async fn verify(
    transaction: &mut Transaction,
    verifier: &Verifier,
) -> Result<(), ReadError> {
    let sealed = match seal(transaction).await? {
        Some(seal) => vec![verifier.open(LOG, &seal).map_err(|_| ReadError::Foreign)?],
        None => Vec::new(),
    };
    let mut reading = Reading::expecting(sealed);
    // From before any number there should be: one that was changed must be read too.
    let mut after = i64::MIN;
    loop {
        let lines = lines_after(&mut *transaction, after).await;
        let lines = lines.map_err(Error::from)?;
        for (seq, text) in &lines {
            reading.line(text)?;
            after = *seq;
        }
        if lines.is_empty() {
            reading.end()?;
            return Ok(());
        }
    }
}

/// Writes an event in a transaction that goes on to do what it tells.
pub(crate) async fn append(
    transaction: &mut Transaction,
    key: &Key,
    event: &Event,
) -> Result<(), Error> {
    let head = newest(transaction).await?.unwrap_or_default();
    let (head, line) = head.follow(event);
    query("INSERT INTO audit_line (seq, line) VALUES ($1, $2)")
        .bind(head.seq)
        .bind(line)
        .execute(&mut *transaction)
        .await?;
    query(
        "INSERT INTO audit_seal (one, seal) VALUES (1, $1)
         ON CONFLICT (one) DO UPDATE SET seal = excluded.seal",
    )
    .bind(key.seal(LOG, &head))
    .execute(&mut *transaction)
    .await?;
    Ok(())
}

async fn newest(transaction: &mut Transaction) -> Result<Option<Head>, Error> {
    let line: Option<String> = query("SELECT line FROM audit_line ORDER BY seq DESC LIMIT 1")
        .value(&mut *transaction)
        .await?;
    let head = line.map(|line| Line::read(&line).map(|line| line.head));
    head.transpose().map_err(|_| Error::Row("audit_line"))
}

async fn seal(transaction: &mut Transaction) -> Result<Option<String>, Error> {
    let seal = query("SELECT seal FROM audit_seal");
    Ok(seal.value(&mut *transaction).await?)
}

pub(crate) async fn lines_after(
    source: impl Into<Source<'_>>,
    after: i64,
) -> Result<Vec<(i64, String)>, sqlx::Error> {
    query("SELECT seq, line FROM audit_line WHERE seq > $1 ORDER BY seq LIMIT $2")
        .bind(after)
        .bind(PAGE)
        .all(source)
        .await?
        .iter()
        .map(|row| Ok((row.get(0)?, row.get(1)?)))
        .collect()
}
