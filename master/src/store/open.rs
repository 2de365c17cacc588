//! The master's databases, opened: one process's file, or a server that several masters share.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use sqlx::{
    Connection as _,
    migrate::Migrator,
    postgres::PgPoolOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use wavry_credentials::{audit::Key, clock::unix_time};

use super::{Error, Store};
use crate::database::{
    Location, Server, lock,
    sql::{Pool, query},
};

/// How long a write waits for another process to let go of the file: less than the deadline of an
/// audited answer, so that the next one finds the connection free.
const BUSY_TIMEOUT: Duration = Duration::from_millis(1500);
/// How long to wait for a connection to the server, or for a turn on the one to the file: a start waits so
/// long, and answers have deadlines of their own.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
/// A statement that takes longer is of no use to anyone who waits: the deadline of an audited answer.
const STATEMENT_TIMEOUT: &str = "2s";
/// A master that stands still in a transaction holds up all others for so long.
const IDLE_TIMEOUT: &str = "3s";
/// One for the writer, one for notifications, the rest for reads, which are short.
const CONNECTIONS: u32 = 8;

static SQLITE: Migrator = sqlx::migrate!("migrations/sqlite");
static POSTGRES: Migrator = sqlx::migrate!("migrations/postgres");

/// Version of the schema that this program works with; the same for both.
pub(crate) fn schema() -> i64 {
    let newest = |migrations: &Migrator| migrations.iter().map(|one| one.version).max();
    newest(&SQLITE).max(newest(&POSTGRES)).unwrap_or_default()
}

impl Store {
    /// Opens the database, making the file when there is none, and brings its schema up to date.
    /// `audit` seals its audit log.
    pub async fn open(location: &Location, audit: Arc<Key>) -> Result<Self, Error> {
        let (pool, lock) = match location {
            Location::Sqlite(file) => {
                let lock = lock(file)?;
                (sqlite(file).await?, Some(lock))
            }
            Location::Postgres(server) => (postgres(server).await?, None),
        };
        Ok(Self {
            pool,
            audit,
            lock: Arc::new(Mutex::new(lock)),
            newest: Arc::default(),
            time: Arc::new(unix_time),
        })
    }

    /// What another master has of the same database, whose clock is `time`.
    #[cfg(test)]
    pub(crate) fn another(&self, time: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self {
            newest: Arc::default(),
            time: Arc::new(time),
            ..self.clone()
        }
    }

    /// Opens a database that is there, beside masters that use it, and leaves its schema as it is.
    pub(crate) async fn beside(location: &Location, audit: Arc<Key>) -> Result<Self, Error> {
        let pool = match location {
            Location::Sqlite(file) => {
                let options = sqlite_options(file).create_if_missing(false);
                Pool::Sqlite(sqlite_pool().connect_with(options).await?)
            }
            Location::Postgres(server) => {
                let pool = PgPoolOptions::new().max_connections(1);
                let login = server.login().await?;
                let login = login.with(|options| options.application_name("wavry backup"));
                Pool::Postgres(login.pool(pool).await?)
            }
        };
        Ok(Self {
            pool,
            audit,
            lock: Arc::default(),
            newest: Arc::default(),
            time: Arc::new(unix_time),
        })
    }

    /// Version of the schema that the database has.
    pub(crate) async fn schema(&self) -> Result<i64, Error> {
        let version = query("SELECT max(version) FROM _sqlx_migrations");
        let version: Option<Option<i64>> = version.value(&self.pool).await?;
        Ok(version.flatten().unwrap_or_default())
    }
}

async fn sqlite(file: &Path) -> Result<Pool, Error> {
    let options = sqlite_options(file).create_if_missing(true);
    let pool = sqlite_pool().connect_with(options).await?;
    SQLITE.run(&pool).await?;
    Ok(Pool::Sqlite(pool))
}

fn sqlite_options(file: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(file)
        .journal_mode(SqliteJournalMode::Wal)
        // A used token must stay used through a power cut.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(true)
}

fn sqlite_pool() -> SqlitePoolOptions {
    sound(SqlitePoolOptions::new())
        // SQLite writes one transaction at a time; a queue in order beats polling its lock.
        .max_connections(1)
        .acquire_timeout(ACQUIRE_TIMEOUT)
}

/// A pool that closes a connection whose transaction could be neither committed nor undone, as on a
/// full disk: SQLite has undone it by itself then, which the driver does not notice, and no other
/// transaction could begin.
fn sound(options: SqlitePoolOptions) -> SqlitePoolOptions {
    options.after_release(|connection, _| {
        Box::pin(async move {
            // Whatever is still to be done on it, is done before this.
            connection.ping().await?;
            Ok(!connection.is_in_transaction())
        })
    })
}

async fn postgres(server: &Server) -> Result<Pool, Error> {
    let login = server.login().await?;
    let login = login.with(|options| options.application_name("wavry master"));
    // Without the deadlines of answers: other masters may be bringing the schema up to date.
    let mut connection = login.connection().await?;
    POSTGRES.run(&mut connection).await?;
    connection.close().await?;
    let login = login.with(|options| {
        options.options([
            ("statement_timeout", STATEMENT_TIMEOUT),
            ("idle_in_transaction_session_timeout", IDLE_TIMEOUT),
        ])
    });
    let pool = PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(ACQUIRE_TIMEOUT);
    Ok(Pool::Postgres(login.pool(pool).await?))
}
