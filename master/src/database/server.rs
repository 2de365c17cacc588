//! Where a database of PostgreSQL is, and how it is reached.
//!
//! A connection that leaves this host is encrypted, and its server has shown a certificate for its name by an
//! authority that the URL names, unless the URL says otherwise. The password, where there is one, is the
//! secret `database_password`; a new version of it is used without a restart.

use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use sqlx::{
    Connection as _, Executor as _, PgConnection, PgPool, Postgres, Transaction,
    postgres::{PgConnectOptions, PgPoolOptions, PgSslMode},
};
use tokio::sync::watch;
use url::Url;
use wavry_credentials::{
    bearer,
    cert::{self, Trust},
    key::format,
    secret::Secret,
    source,
};

/// Name of the secret.
const PASSWORD: &str = "database_password";
/// How often it is looked whether there is another one.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How the database is reached.
#[derive(Clone)]
pub struct Server {
    options: Box<PgConnectOptions>,
    /// PEM file of the authorities that vouch for it.
    authorities: Option<PathBuf>,
    /// File of the password; `None` for where [`source::find`] finds it.
    password: Option<PathBuf>,
}

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

/// What is no URL of a PostgreSQL database, or holds what does not belong there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnusableUrl {
    /// Not a URL of PostgreSQL.
    #[error("expected postgres://USER@HOST:PORT/DATABASE")]
    Malformed,
    /// A password does not belong into a configuration.
    #[error(
        "the password is secret database_password (WAVRY_DATABASE_PASSWORD_FILE), and not in the URL"
    )]
    Password,
    /// A parameter that is not known here.
    #[error("of parameters there are host, sslmode and sslrootcert")]
    Parameter,
    /// A way to connect on which nobody knows with whom.
    #[error("sslmode is verify-full, verify-ca or disable")]
    Mode,
    /// What the server's certificate is to be checked against is not said.
    #[error(
        "sslrootcert is missing: the PEM file of the authorities that vouch for a server on another host \
         (sslmode=disable for a connection that is not encrypted)"
    )]
    Authorities,
}

/// Why a database cannot be connected to.
#[derive(Debug, thiserror::Error)]
pub enum Unreachable {
    /// The password cannot be read.
    #[error(transparent)]
    Password(#[from] source::Error),
    /// The password is not what a password is.
    #[error("secret {PASSWORD} is not text")]
    NoText,
    /// The authorities cannot be read.
    #[error("sslrootcert: {0}")]
    Authorities(#[from] cert::Error),
    /// It was not connected to.
    #[error("no connection to {server} ({how})")]
    Refused {
        /// Its URL.
        server: String,
        /// How it was tried.
        how: String,
        /// What went wrong.
        source: sqlx::Error,
    },
}

impl FromStr for Server {
    type Err = UnusableUrl;

    // Not by the driver, which would take passwords from the URL, the environment and a file of its own.
    fn from_str(text: &str) -> Result<Self, UnusableUrl> {
        let url: Url = text.parse().map_err(|_| UnusableUrl::Malformed)?;
        if !["postgres", "postgresql"].contains(&url.scheme()) || url.fragment().is_some() {
            return Err(UnusableUrl::Malformed);
        }
        let authority = text.split_once("://").map_or("", |(_, rest)| rest);
        let authority = authority.split(['/', '?']).next().unwrap_or_default();
        let user = authority.rsplit_once('@').map(|(user, _)| user);
        if user.is_some_and(|user| user.contains(':')) {
            return Err(UnusableUrl::Password);
        }
        let (mut host, mut mode, mut authorities) = (None, None, None);
        for (name, value) in url.query_pairs() {
            match &*name {
                "host" => host = Some(value.into_owned()),
                "sslmode" => {
                    mode = Some(match &*value {
                        "verify-full" => PgSslMode::VerifyFull,
                        "verify-ca" => PgSslMode::VerifyCa,
                        "disable" => PgSslMode::Disable,
                        _ => return Err(UnusableUrl::Mode),
                    });
                }
                "sslrootcert" => authorities = Some(PathBuf::from(&*value)),
                "password" => return Err(UnusableUrl::Password),
                _ => return Err(UnusableUrl::Parameter),
            }
        }
        let host = match host {
            Some(host) => host,
            None => decoded(url.host_str().unwrap_or_default().trim_matches(['[', ']']))?,
        };
        let database = decoded(url.path().trim_start_matches('/'))?;
        if host.is_empty() || database.contains('/') {
            return Err(UnusableUrl::Malformed);
        }
        let default = match is_here(&host) {
            true => PgSslMode::Disable,
            false => PgSslMode::VerifyFull,
        };
        let mode = mode.unwrap_or(default);
        if !matches!(mode, PgSslMode::Disable) && authorities.is_none() {
            return Err(UnusableUrl::Authorities);
        }
        let mut options = PgConnectOptions::new_without_pgpass()
            // None, in the place of one from the environment.
            .password("")
            .host(&host)
            .port(url.port().unwrap_or(5432))
            .ssl_mode(mode);
        if let Some(file) = &authorities {
            options = options.ssl_root_cert(file);
        }
        if !url.username().is_empty() {
            options = options.username(&decoded(url.username())?);
        }
        if !database.is_empty() {
            options = options.database(&database);
        }
        Ok(Self {
            options: Box::new(options),
            authorities,
            password: None,
        })
    }
}

/// Whether what is sent to a host stays on this one: a socket's directory, or a loopback address.
fn is_here(host: &str) -> bool {
    let is_loopback = |address: IpAddr| address.is_loopback();
    host.starts_with('/') || host == "localhost" || host.parse().is_ok_and(is_loopback)
}

/// A part of a URL without percent-encoding.
fn decoded(part: &str) -> Result<String, UnusableUrl> {
    // As in a query, but for the plus sign, which stands for itself.
    let part = part.replace('+', "%2B");
    let mut pairs = url::form_urlencoded::parse(part.as_bytes());
    let (decoded, _) = pairs.next().unwrap_or_default();
    match pairs.next().is_some() || part.contains(['=', '&']) {
        true => Err(UnusableUrl::Malformed),
        false => Ok(decoded.into_owned()),
    }
}

impl Server {
    /// Reads what connecting takes, and follows the password.
    pub(crate) async fn login(&self) -> Result<Login, Unreachable> {
        if let Some(file) = &self.authorities {
            // The driver reads it at each connection, and does not say which file it was.
            cert::client_config(&Trust::Authorities(file.clone()))?;
        }
        let password = match source::find(PASSWORD, self.password.as_deref()) {
            // The server may ask for none.
            Err(source::Error::Missing { .. }) => None,
            Err(error) => return Err(error.into()),
            Ok(place) => Some(source::watch(PASSWORD, place, LOOK_EVERY, format::password).await?),
        };
        let is_encrypted = !matches!(self.options.get_ssl_mode(), PgSslMode::Disable);
        if !is_encrypted && !is_here(self.options.get_host()) {
            tracing::warn!(
                database = %self,
                "the connection to the database leaves this host and is not encrypted (sslmode=disable)"
            );
        }
        Ok(Login {
            server: self.to_string(),
            how: match &self.authorities {
                Some(file) if is_encrypted => format!("encrypted, sslrootcert {}", file.display()),
                _ => "not encrypted".to_owned(),
            },
            options: (*self.options).clone(),
            password,
        })
    }
}

/// How to connect: with the password as it is now.
pub(crate) struct Login {
    server: String,
    how: String,
    options: PgConnectOptions,
    password: Option<watch::Receiver<Arc<Secret<Vec<u8>>>>>,
}

impl Login {
    /// The same with other options.
    pub(crate) fn with(
        mut self,
        change: impl FnOnce(PgConnectOptions) -> PgConnectOptions,
    ) -> Self {
        self.options = change(self.options);
        self
    }

    /// One connection.
    pub(crate) async fn connection(&self) -> Result<PgConnection, Unreachable> {
        let connected = PgConnection::connect_with(&self.options()?).await;
        connected.map_err(|error| self.refused(error))
    }

    /// A pool. As long as it is not closed, its new connections are made with the newest password.
    pub(crate) async fn pool(self, pool: PgPoolOptions) -> Result<PgPool, Unreachable> {
        let connected = pool.connect_with(self.options()?).await;
        let pool = connected.map_err(|error| self.refused(error))?;
        tokio::spawn(self.keep(pool.clone()));
        Ok(pool)
    }

    /// The options of a connection. They hold the password.
    fn options(&self) -> Result<PgConnectOptions, Unreachable> {
        let options = self.options.clone();
        let Some(watched) = &self.password else {
            return Ok(options);
        };
        let password = watched.borrow().clone();
        bearer::with_password(&password, |text| options.password(text))
            .map_err(|_| Unreachable::NoText)
    }

    async fn keep(mut self, pool: PgPool) {
        let mut closed = pool.close_event();
        loop {
            let Some(watched) = &mut self.password else {
                return;
            };
            tokio::select! {
                changed = watched.changed() => if changed.is_err() { return },
                () = &mut closed => return,
            }
            match self.options() {
                Ok(options) => pool.set_connect_options(options),
                Err(error) => tracing::warn!(%error, "the database's old password stays in use"),
            }
        }
    }

    fn refused(&self, source: sqlx::Error) -> Unreachable {
        Unreachable::Refused {
            server: self.server.clone(),
            how: self.how.clone(),
            source,
        }
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
mod tests;
