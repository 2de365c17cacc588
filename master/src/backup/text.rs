//! The lines of a backup, written and read, and the hash over those so far.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead as _, BufReader, BufWriter, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::Serialize;
use sha2::{Digest as _, Sha256};
use wavry_credentials::audit::Head;

use super::Error;

/// Longest line that is read, in bytes: many times a service with all that it may have.
const MAX_LINE: u64 = 1024 * 1024;

/// How many lines there were, and the hash of all of them.
#[derive(Default)]
struct Sum {
    lines: u64,
    hash: Sha256,
}

impl Sum {
    fn add(&mut self, line: &[u8]) {
        self.lines += 1;
        self.hash.update(line);
    }

    fn head(&self) -> Head {
        Head {
            seq: self.lines,
            hash: self.hash.clone().finalize().into(),
        }
    }
}

/// A new file, readable by its owner alone.
pub(super) struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
    sum: Sum,
}

impl Writer {
    pub(super) fn new(path: &Path) -> Result<Self, Error> {
        let mut new = OpenOptions::new();
        let opened = new.write(true).create_new(true).mode(0o600).open(path);
        Ok(Self {
            file: BufWriter::new(opened.map_err(|source| Error::file(path, source))?),
            path: path.to_owned(),
            sum: Sum::default(),
        })
    }

    pub(super) fn line(&mut self, line: &impl Serialize) -> Result<(), Error> {
        let line = serde_json::to_vec(line).map_err(io::Error::from);
        let written = line.and_then(|mut line| {
            line.push(b'\n');
            self.sum.add(&line);
            self.file.write_all(&line)
        });
        written.map_err(|source| Error::file(&self.path, source))
    }

    pub(super) fn head(&self) -> Head {
        self.sum.head()
    }

    /// What was written is on the disk when this returns.
    pub(super) fn end(mut self) -> Result<(), Error> {
        let ended = self
            .file
            .flush()
            .and_then(|()| self.file.get_ref().sync_all());
        ended.map_err(|source| Error::file(&self.path, source))
    }
}

pub(super) struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    sum: Sum,
}

impl Reader {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let opened = File::open(path);
        Ok(Self {
            file: BufReader::new(opened.map_err(|source| Error::file(path, source))?),
            path: path.to_owned(),
            sum: Sum::default(),
        })
    }

    /// The next line, with its end.
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>, Error> {
        let mut line = Vec::new();
        let read = (&mut self.file).take(MAX_LINE).read_until(b'\n', &mut line);
        read.map_err(|source| Error::file(&self.path, source))?;
        if line.is_empty() {
            return Ok(None);
        }
        self.sum.add(&line);
        match line.ends_with(b"\n") {
            true => Ok(Some(line)),
            false => Err(self.damaged("the line is cut off, or too long")),
        }
    }

    /// Of the lines that were read.
    pub(super) fn head(&self) -> Head {
        self.sum.head()
    }

    /// What is wrong with the line that was read last.
    pub(super) fn damaged(&self, what: &'static str) -> Error {
        Error::Damaged {
            path: self.path.clone(),
            line: self.sum.lines,
            what,
        }
    }
}
