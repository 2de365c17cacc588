//! Where a database of PostgreSQL is.

use std::fmt;

use sqlx::{Executor as _, PgPool, Postgres, Transaction, postgres::PgConnectOptions};

/// How the database is reached. A password is read from the file that libpq reads it from:
/// `PGPASSFILE`, else `~/.pgpass`, of mode 0600.
#[derive(Clone)]
pub struct Server {
    options: Box<PgConnectOptions>,
}

/// Without the password, which the options hold once it was read.
impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("host", &self.options.get_host())
            .field("port", &self.options.get_port())
            .field("user", &self.options.get_username())
            .field("database", &self.options.get_database())
            .finish_non_exhaustive()
    }
}

/// As in a URL, without parameters.
impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = &self.options;
        let (user, host, port) = (
            options.get_username(),
            options.get_host(),
            options.get_port(),
        );
        let database = options.get_database().unwrap_or(user);
        write!(f, "postgres://{user}@{host}:{port}/{database}")
    }
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

/// Begins a transaction with a statement, which others may follow, as locks. Whoever fails, or stops
/// waiting, leaves no connection behind that is within a transaction.
pub(crate) async fn begin(
    pool: &PgPool,
    statements: &'static str,
) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
    let (begin, then) = statements.split_once(';').unwrap_or((statements, ""));
    let pool = pool.clone();
    // The driver ends a transaction only once it knows that it began. So this goes on when nobody waits
    // for it, and is ended then.
    let begun = tokio::spawn(async move {
        let mut transaction = pool.begin_with(begin).await?;
        if !then.is_empty() {
            transaction.execute(then).await?;
        }
        Ok(transaction)
    });
    begun.await.unwrap_or(Err(sqlx::Error::WorkerCrashed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_database_and_never_a_password() {
        let server: Server = "postgres://wavry@db.example:5433/vault".parse().unwrap();
        let text = format!("{server:?}");
        assert!(
            text.contains("db.example") && text.contains("vault"),
            "{text}"
        );
        for url in [
            "postgres://wavry:s3cret@db.example/vault",
            "postgres://wavry:@db.example/vault",
            "postgres://db.example/vault?password=s3cret",
        ] {
            assert_eq!(
                url.parse::<Server>().err(),
                Some(UnusableUrl::Password),
                "{url}"
            );
        }
        for url in ["", "keyvault.db", "mysql://a@b/c", "postgres://a@b:port/c"] {
            assert_eq!(
                url.parse::<Server>().err(),
                Some(UnusableUrl::Malformed),
                "{url}"
            );
        }
    }

    #[test]
    fn a_server_does_not_print_its_password() {
        let server: Server = "postgres://wavry@db.example/vault".parse().unwrap();
        let options = server.options.password("s3cret");
        let server = Server {
            options: Box::new(options),
        };
        assert!(!format!("{server:?}").contains("s3cret"));
    }
}
