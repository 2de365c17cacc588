//! Audit logs in databases, read and checked while their owner runs or not: a master's and a KeyVault's.

use sqlx::{
    postgres::PgPoolOptions,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};
use wavry_credentials::audit::{Head, Line, Verifier, verify::Reading};

use crate::{
    database::{
        Location,
        sql::{Pool, query},
    },
    keyvault,
    store::{
        self, Error,
        audit::{ReadError, lines_after},
        authority,
        keys::Kept,
    },
};

/// A log, open for reading.
pub struct Reader {
    pool: Pool,
    owner: Owner,
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
    /// Opens the database of a master or KeyVault, which must be there.
    pub async fn open(location: &Location) -> Result<Self, ReadError> {
        let pool = match location {
            Location::Sqlite(file) => {
                let options = SqliteConnectOptions::new().filename(file).read_only(true);
                let pool = SqlitePoolOptions::new().max_connections(1);
                let pool = pool.connect_with(options).await;
                Pool::Sqlite(pool.map_err(Error::from)?)
            }
            Location::Postgres(server) => {
                let login = server.login().await.map_err(Error::from)?;
                let pool = PgPoolOptions::new().max_connections(1);
                Pool::Postgres(login.pool(pool).await.map_err(Error::from)?)
            }
        };
        let tables = query(match pool.is_postgres() {
            false => "SELECT name FROM sqlite_master WHERE type = 'table'",
            true => "SELECT tablename::text FROM pg_tables WHERE schemaname = current_schema()",
        });
        let tables: Vec<String> = tables.column(&pool).await.map_err(Error::from)?;
        let has = |name| tables.iter().any(|table| table == name);
        let owner = match (has("audit_seal"), has("audit_head")) {
            (true, false) => Owner::Master,
            (false, true) => Owner::KeyVault,
            _ => return Err(ReadError::NoLog),
        };
        Ok(Self { pool, owner })
    }

    /// The keys of a master.
    pub(crate) async fn keys(&self) -> Result<Vec<Kept>, ReadError> {
        match self.owner {
            Owner::Master => Ok(store::keys::read(&self.pool).await?),
            Owner::KeyVault => Err(ReadError::NoLog),
        }
    }

    /// The authorities that a master trusts with certificates, the newest last.
    pub(crate) async fn authorities(&self) -> Result<Vec<authority::Kept>, ReadError> {
        match self.owner {
            Owner::Master => Ok(authority::read(&self.pool).await?),
            Owner::KeyVault => Err(ReadError::NoLog),
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
        Ok(lines_after(&self.pool, after).await?)
    }

    async fn seal(&self) -> Result<Option<String>, Error> {
        let seal: Option<Option<String>> = query(self.owner.seal()).value(&self.pool).await?;
        Ok(seal.flatten())
    }
}

#[cfg(test)]
mod tests;
