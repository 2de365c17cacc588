//! Audit logs in databases, read and checked while their owner runs or not: a master's and a KeyVault's.

use std::path::Path;

use sqlx::{
    PgPool, SqlitePool,
    postgres::PgPoolOptions,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};
use wavry_credentials::{
    audit::{Head, Line, Verifier, verify::Reading},
    token::SigningKey,
};

use crate::{
    keyvault::{self, store::Server},
    store::{
        self, Error,
        audit::{PAGE, ReadError},
    },
};

/// A log, open for reading.
pub struct Reader {
    pool: Pool,
    owner: Owner,
}

enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

#[derive(Clone, Copy)]
enum Owner {
    Master,
    KeyVault,
}

impl Owner {
    /// The log's name in its seals.
    fn log(self) -> &'static str {
        match self {
            Self::Master => store::audit::LOG,
            Self::KeyVault => keyvault::LOG,
        }
    }

    fn seal(self) -> &'static str {
        match self {
            Self::Master => "SELECT seal FROM audit_seal",
            Self::KeyVault => "SELECT seal FROM audit_head",
        }
    }
}

impl Reader {
    /// Opens a SQLite file of a master or KeyVault, which must be there.
    pub async fn open(file: &Path) -> Result<Self, ReadError> {
        let options = SqliteConnectOptions::new().filename(file).read_only(true);
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(options)
            .await
            .map_err(Error::from)?;
        let tables: Vec<String> = sqlx::query_scalar(
            "SELECT name FROM sqlite_master
             WHERE type = 'table' AND name IN ('audit_seal', 'audit_head')",
        )
        .fetch_all(&pool)
        .await
        .map_err(Error::from)?;
        let owner = match tables.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["audit_seal"] => Owner::Master,
            ["audit_head"] => Owner::KeyVault,
            _ => return Err(ReadError::NoLog),
        };
        let pool = Pool::Sqlite(pool);
        Ok(Self { pool, owner })
    }

    /// Opens a KeyVault's database in PostgreSQL.
    pub async fn connect(server: &Server) -> Result<Self, ReadError> {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .connect_with(server.options())
            .await
            .map_err(Error::from)?;
        Ok(Self {
            pool: Pool::Postgres(pool),
            owner: Owner::KeyVault,
        })
    }

    /// The key with which a master signs now; `master` is what its secret `master_key` holds.
    pub async fn signing_key(&self, master: &SigningKey) -> Result<SigningKey, ReadError> {
        match (&self.pool, self.owner) {
            (Pool::Sqlite(pool), Owner::Master) => Ok(store::keys::signing(pool, master).await?),
            _ => Err(ReadError::NoLog),
        }
    }

    /// The lines after number `after` with their numbers, in order, some thousand at most.
    pub async fn lines(&self, after: u64) -> Result<Vec<(u64, String)>, ReadError> {
        let lines = self.page(after.cast_signed()).await?.into_iter();
        Ok(lines
            .map(|(seq, line)| (seq.cast_unsigned(), line))
            .collect())
    }

    /// Reads the log from its beginning, gives each line to `show`, and checks all of it: how far it
    /// goes.
    pub async fn verify(
        &self,
        verifier: &Verifier,
        mut show: impl FnMut(&str, Line),
    ) -> Result<Head, ReadError> {
        // Before the lines: those that are written meanwhile are ahead of it.
        let sealed = match self.seal().await? {
            Some(seal) => {
                let head = verifier.open(self.owner.log(), &seal);
                vec![head.map_err(|_| ReadError::Foreign)?]
            }
            None => Vec::new(),
        };
        let mut reading = Reading::expecting(sealed);
        // From before any number there should be: one that was changed must be read too.
        let mut after = i64::MIN;
        loop {
            let lines = self.page(after).await?;
            for (seq, text) in &lines {
                let line = reading.line(text)?;
                show(text, line);
                after = *seq;
            }
            if lines.is_empty() {
                return Ok(reading.end()?);
            }
        }
    }

    async fn page(&self, after: i64) -> Result<Vec<(i64, String)>, Error> {
        const LINES: &str = "SELECT seq, line FROM audit_line WHERE seq > $1 ORDER BY seq LIMIT $2";
        Ok(match &self.pool {
            Pool::Sqlite(pool) => {
                let query = sqlx::query_as(LINES).bind(after).bind(PAGE);
                query.fetch_all(pool).await?
            }
            Pool::Postgres(pool) => {
                let query = sqlx::query_as(LINES).bind(after).bind(PAGE);
                query.fetch_all(pool).await?
            }
        })
    }

    async fn seal(&self) -> Result<Option<String>, Error> {
        let seal: Option<Option<String>> = match &self.pool {
            Pool::Sqlite(pool) => {
                let query = sqlx::query_scalar(self.owner.seal());
                query.fetch_optional(pool).await?
            }
            Pool::Postgres(pool) => {
                let query = sqlx::query_scalar(self.owner.seal());
                query.fetch_optional(pool).await?
            }
        };
        Ok(seal.flatten())
    }
}

#[cfg(test)]
mod tests;
