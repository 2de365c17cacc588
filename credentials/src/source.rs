//! The one door through which a secret is read.
//!
//! A secret named `master_key` comes from the file that `WAVRY_MASTER_KEY_FILE` names, else from
//! `/run/secrets/wavry_master_key`. It is the same in development, CI and production.

use std::path::{Path, PathBuf};

use crate::secret::Secret;

/// Why a secret could not be read or written. No variant holds a value.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no file.
    #[error("no {name}: set {variable} to the file that holds it, or put it at {default}")]
    Missing {
        /// The secret's name.
        name: String,
        /// The variable that could name a file.
        variable: String,
        /// The file that is read when the variable is not set.
        default: PathBuf,
    },
    /// The file is there and must not or cannot be used.
    #[error("{path} {problem}", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// The file that secret `name` (lower case, `_`) is read from. The error names both places.
pub fn locate(_name: &str) -> Result<PathBuf, Error> {
    todo!()
}

/// Reads secret `name`; see the module.
pub fn read(_name: &str) -> Result<Secret<Vec<u8>>, Error> {
    todo!()
}

/// Reads a secret from a file: opened without following links, a regular file, owned by this user
/// or root, no access for group and others, at most 64 KiB.
pub fn read_file(_path: &Path) -> Result<Secret<Vec<u8>>, Error> {
    todo!()
}

/// Writes a file that only its owner can read: to a new file beside it, synced, then renamed over.
pub fn write_private(_path: &Path, _bytes: &[u8]) -> Result<(), Error> {
    todo!()
}
