//! Databases: where one is, who may use it, and SQL that SQLite and PostgreSQL both understand.

mod file;
mod server;
pub(crate) mod sql;

use std::{fmt, path::PathBuf, str::FromStr};

pub use file::InUse;
pub(crate) use file::lock;
pub(crate) use server::begin;
pub use server::{Server, Unreachable, UnusableUrl};

/// Where a database is.
#[derive(Debug, Clone)]
pub enum Location {
    /// A file of SQLite, used by one process.
    Sqlite(PathBuf),
    /// A database of PostgreSQL, used by any number of processes.
    Postgres(Server),
}

impl From<PathBuf> for Location {
    fn from(file: PathBuf) -> Self {
        Self::Sqlite(file)
    }
}

/// What has `://` in it is a URL, anything else a file.
impl FromStr for Location {
    type Err = UnusableUrl;

    fn from_str(text: &str) -> Result<Self, UnusableUrl> {
        match text.contains("://") {
            true => Ok(Self::Postgres(text.parse()?)),
            false => Ok(Self::Sqlite(text.into())),
        }
    }
}

/// As it is told of in logs and errors.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(file) => file.display().fmt(f),
            Self::Postgres(server) => server.fmt(f),
        }
    }
}
