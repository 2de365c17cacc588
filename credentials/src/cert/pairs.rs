//! Certificates and their keys on disk: a directory for each pair, which is there as a whole or not at all.
//!
//! A pair is written into a directory whose name begins with a dot, synced, and given its number by one
//! rename. The highest number is the newest pair. Whenever the process or the machine stops, what is there
//! is the old pair or the new one.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

use crate::{
    cert::{self, Pair},
    random,
    secret::Secret,
    source,
};

const CHAIN: &str = "chain.pem";
const KEY: &str = "key.pem";
const ISSUED: &str = "issued.json";
/// Pairs that are kept: the newest, and the one before it.
const KEPT: usize = 2;

/// What is known of a pair beside what it says itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Issued {
    /// The name of the authority that issued it.
    pub(crate) authority: String,
}

/// Why a pair is not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    File(#[from] source::Error),
    #[error("{directory} cannot be written: {source}", directory = .directory.display())]
    Directory {
        directory: PathBuf,
        source: io::Error,
    },
}

/// The directory of all pairs.
pub(crate) struct Pairs {
    directory: PathBuf,
    /// Held while a pair is written: each takes away what looks half written, and the next number.
    writing: Mutex<()>,
}

impl Pairs {
    /// Opens the directory, and makes it where it is not there.
    pub(crate) fn open(directory: PathBuf) -> Result<Self, Error> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(|source| Error::Directory {
                directory: directory.clone(),
                source,
            })?;
        Ok(Self {
            directory,
            writing: Mutex::default(),
        })
    }

    /// The newest pair that can be read. One that cannot is told of, and passed over for the one before.
    pub(crate) fn newest(&self) -> Option<(Pair, Issued)> {
        let numbers = self.numbers();
        numbers.into_iter().rev().find_map(|number| {
            let directory = self.of(number);
            match read(&directory) {
                Ok(found) => Some(found),
                Err(error) => {
                    tracing::error!(%error, "a certificate that was kept cannot be used");
                    None
                }
            }
        })
    }

    /// The newest pair that is meant.
    pub(crate) fn find(&self, is_meant: impl Fn(&Pair) -> bool) -> Option<(Pair, Issued)> {
        let mut kept = self.numbers().into_iter().rev();
        kept.find_map(|number| {
            read(&self.of(number))
                .ok()
                .filter(|(pair, _)| is_meant(pair))
        })
    }

    /// Those that can be read, the oldest first. What cannot is told of, and passed over.
    pub(crate) fn kept(&self) -> Vec<Pair> {
        let kept = self.numbers().into_iter().filter_map(|number| {
            let read = read(&self.of(number));
            let told = |error: &cert::Error| {
                tracing::error!(%error, "a certificate that was kept cannot be used");
            };
            read.inspect_err(told).ok()
        });
        kept.map(|(pair, _)| pair).collect()
    }

    /// Writes a pair, and takes away those that are older than the one before it.
    pub(crate) fn write(
        &self,
        chain: &str,
        key: &Secret<Vec<u8>>,
        issued: &Issued,
    ) -> Result<(), Error> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.sweep();
        let numbers = self.numbers();
        let number = numbers.last().map_or(1, |last| last + 1);
        let new = self
            .directory
            .join(format!(".{}", hex::encode(random::bytes::<8>())));
        let written = (|| {
            let failed = |source| Error::Directory {
                directory: new.clone(),
                source,
            };
            fs::DirBuilder::new()
                .mode(0o700)
                .create(&new)
                .map_err(failed)?;
            // Each is synced, and the directory after it.
            source::write_secret(&new.join(KEY), key)?;
            source::write_public(&new.join(CHAIN), chain.as_bytes())?;
            let issued = serde_json::to_vec(issued).expect("plain data with text keys");
            source::write_public(&new.join(ISSUED), &issued)?;
            fs::rename(&new, self.of(number))
                .and_then(|()| fs::File::open(&self.directory)?.sync_all())
                .map_err(failed)
        })();
        if written.is_err() {
            let _ = fs::remove_dir_all(&new);
            return written;
        }
        for old in numbers.iter().rev().skip(KEPT - 1) {
            // What stays is only old.
            let _ = fs::remove_dir_all(self.of(*old));
        }
        Ok(())
    }

    /// Takes away what a process left that ended while it wrote.
    fn sweep(&self) {
        for entry in fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten()
        {
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    /// The numbers of what is there, ascending.
    fn numbers(&self) -> Vec<u64> {
        let entries = fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten();
        let mut numbers: Vec<u64> = entries
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        numbers.sort_unstable();
        numbers
    }

    fn of(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{number:08}"))
    }
}

fn read(directory: &Path) -> Result<(Pair, Issued), cert::Error> {
    let pair = Pair::read(&directory.join(CHAIN), &directory.join(KEY))?;
    let file = directory.join(ISSUED);
    let issued = source::read_public(&file)?;
    let issued = serde_json::from_slice(&issued).map_err(|_| cert::Error::Malformed {
        file: file.display().to_string(),
        problem: "is not what was written there".to_owned(),
    })?;
    Ok((pair, issued))
}

#[cfg(test)]
#[path = "pairs_tests.rs"]
mod tests;
