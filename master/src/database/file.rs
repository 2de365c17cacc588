//! A database file is one process's.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read as _, Seek as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// Why a database file cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum InUse {
    /// Another process uses it.
    #[error("{path} is in use by {holder}", path = .path.display())]
    Held {
        /// The database.
        path: PathBuf,
        /// Who uses it, as it said itself.
        holder: String,
    },
    /// The file that holds the lock cannot be used.
    #[error("{path} cannot be locked", path = .path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
}

/// Takes the lock that goes with database `file`, and says in it who holds it. It is let go of with the
/// file that is given, and with the process.
pub(crate) fn lock(file: &Path) -> Result<File, InUse> {
    let mut path = file.as_os_str().to_owned();
    path.push(".lock");
    let path = PathBuf::from(path);
    let unusable = |source| InUse::Lock {
        path: path.clone(),
        source,
    };
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(unusable)?;
    match lock.try_lock() {
        Ok(()) => {
            let holder = format!("process {}\n", std::process::id());
            lock.set_len(0)
                .and_then(|()| lock.rewind())
                .and_then(|()| lock.write_all(holder.as_bytes()))
                .map_err(unusable)?;
            Ok(lock)
        }
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Who it is is good to know, and not needed to refuse.
            let _ = (&mut lock).take(256).read_to_string(&mut holder);
            let holder = match holder.trim() {
                "" => "another process",
                holder => holder,
            };
            Err(InUse::Held {
                path: file.to_owned(),
                holder: holder.to_owned(),
            })
        }
        Err(TryLockError::Error(source)) => Err(unusable(source)),
    }
}
