//! How far the store has come, kept apart from it: a store that is behind its counter was rolled back.
//!
//! A small file with two slots that are written in turn, so that a crash spoils one at most. Each says
//! which KeyVault it is of, how far entries and audit log had come, and carries a MAC under a key of the
//! keyring. It is written after each commit and not waited for: what it can miss is what was committed
//! while it was being written once.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use super::keyring::Keyring;

const MAGIC: &[u8; 8] = b"wavryctr";
/// Magic, KeyVault, position, number of the audit line, term, MAC.
const SLOT_LEN: usize = 8 + 16 + 8 + 8 + 4 + 32;
/// In another sector each, so that the disk does not write both at once.
const SLOTS: [u64; 2] = [0, 4096];

/// How far a store has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
pub(super) struct Mark {
    /// Position of its head.
    pub(super) position: u64,
    /// Number of its newest audit line.
    pub(super) line: u64,
}

impl Mark {
    /// Whether a store at `self` had been at `other`.
    pub(super) fn is_behind(self, other: Self) -> bool {
        self.position < other.position || self.line < other.line
    }

    fn max(self, other: Self) -> Self {
        Self {
            position: self.position.max(other.position),
            line: self.line.max(other.line),
        }
    }
}

/// What the counter tells of a store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rollback {
    /// The store has been further than it is.
    #[error(
        "the store was rolled back: it is at change {position} and audit line {line}, and {counter} \
         says that it was at {seen_position} and {seen_line}",
        counter = .counter.display()
    )]
    Behind {
        /// The counter.
        counter: PathBuf,
        /// Of the store.
        position: u64,
        /// Of the store.
        line: u64,
        /// Of the counter.
        seen_position: u64,
        /// Of the counter.
        seen_line: u64,
    },
    /// There is no counter, and the store is not new.
    #[error("{counter} is missing: whether the store was rolled back cannot be told", counter = .counter.display())]
    Missing {
        /// The counter.
        counter: PathBuf,
    },
    /// It is another KeyVault's, or was changed.
    #[error("{counter} does not authenticate: it is of another store, or was changed", counter = .counter.display())]
    Foreign {
        /// The counter.
        counter: PathBuf,
    },
    /// Entries were removed, or older versions put back, behind the KeyVault's back.
    #[error("entries were added to the store, removed from it or put back as they were before")]
    Entries,
}

/// The counter's file.
#[derive(Debug, Clone)]
pub(super) struct Counter {
    path: PathBuf,
}

impl Counter {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Compares the counter with a store that is at `mark`.
    pub(super) fn check(&self, keyring: &Keyring, mark: Mark) -> io::Result<Result<(), Rollback>> {
        let counter = self.path.clone();
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(match mark.position {
                    0 => Ok(()),
                    _ => Err(Rollback::Missing { counter }),
                });
            }
            Err(error) => return Err(error),
        };
        let seen = read(&file, keyring)?
            .into_iter()
            .flatten()
            .reduce(Mark::max);
        Ok(match seen {
            None => Err(Rollback::Foreign { counter }),
            Some(seen) if mark.is_behind(seen) => Err(Rollback::Behind {
                counter,
                position: mark.position,
                line: mark.line,
                seen_position: seen.position,
                seen_line: seen.line,
            }),
            Some(_) => Ok(()),
        })
    }

    /// Writes a mark, durably, over the older of the two.
    pub(super) fn write(&self, keyring: &Keyring, mark: Mark) -> io::Result<()> {
        let file = self.open()?;
        let [first, second] = read(&file, keyring)?;
        let older = if first <= second { SLOTS[0] } else { SLOTS[1] };
        put(&file, older, keyring, mark)
    }

    /// Begins anew at a mark, whatever was there.
    pub(super) fn reset(&self, keyring: &Keyring, mark: Mark) -> io::Result<()> {
        let file = self.open()?;
        for slot in SLOTS {
            put(&file, slot, keyring, mark)?;
        }
        // The file's name is only durable once its directory is.
        let directory = self.path.parent().filter(|d| !d.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }

    fn open(&self) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&self.path)
    }
}

fn put(file: &File, slot: u64, keyring: &Keyring, mark: Mark) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(SLOT_LEN);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(keyring.vault());
    bytes.extend_from_slice(&mark.position.to_be_bytes());
    bytes.extend_from_slice(&mark.line.to_be_bytes());
    bytes.extend_from_slice(&keyring.current.to_be_bytes());
    let mac = keyring.counter_mac(keyring.current, &bytes);
    bytes.extend_from_slice(&mac.unwrap_or_default());
    file.write_all_at(&bytes, slot)?;
    file.sync_data()
}

/// What the slots say; `None` of one that is empty, was spoilt or does not authenticate.
fn read(file: &File, keyring: &Keyring) -> io::Result<[Option<Mark>; 2]> {
    let mut marks = [None; 2];
    for (mark, slot) in marks.iter_mut().zip(SLOTS) {
        let mut bytes = [0; SLOT_LEN];
        match file.read_exact_at(&mut bytes, slot) {
            Ok(()) => *mark = parse(&bytes, keyring),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(error),
        }
    }
    Ok(marks)
}

fn parse(bytes: &[u8; SLOT_LEN], keyring: &Keyring) -> Option<Mark> {
    let (body, mac) = bytes.split_last_chunk::<32>()?;
    let (magic, rest) = body.split_first_chunk::<8>()?;
    let (vault, rest) = rest.split_first_chunk::<16>()?;
    let (position, rest) = rest.split_first_chunk()?;
    let (line, term) = rest.split_first_chunk()?;
    let term = u32::from_be_bytes(term.try_into().ok()?);
    let is_ours = magic == MAGIC
        && vault == keyring.vault()
        && keyring
            .counter_mac(term, body)
            .is_some_and(|ours| ours == *mac);
    is_ours.then(|| Mark {
        position: u64::from_be_bytes(*position),
        line: u64::from_be_bytes(*line),
    })
}
