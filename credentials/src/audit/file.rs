//! A log in a file of JSON lines, with its newest seal in a file beside it (`FILE.seal`).
//!
//! Several processes may write one log: each line is written under a lock of the file. A line is
//! durable before [`Log::append`] returns. What a crash left half-written was never told to anyone, and
//! the next line takes its place.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    Event, Head, Key, Line, Verifier,
    syslog::line_within,
    verify::{Bad, Reading},
};
use crate::source;

/// Longest line, in bytes: the texts of an event, escaped six times over, and the rest.
const MAX_LINE: u64 = 16 * 1024;
/// How long another process may hold the lock. It takes one line and three syncs.
const LOCK_DEADLINE: Duration = Duration::from_secs(2);
const LOCK_INTERVAL: Duration = Duration::from_millis(5);

/// A log to write to.
pub struct Log {
    path: PathBuf,
    name: &'static str,
    key: Key,
}

/// Why nothing was written, and the log can or cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be used.
    #[error("audit log {path} {problem}", path = .path.display())]
    Unavailable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// The seal cannot be written.
    #[error(transparent)]
    Seal(#[from] source::Error),
    /// The seal does not hold for this log and key.
    #[error("the seal of audit log {path} does not verify: it is of another log, cluster or key", path = .path.display())]
    Foreign {
        /// The log.
        path: PathBuf,
    },
    /// The log is not what was written.
    #[error("audit log {path} is damaged: {bad}", path = .path.display())]
    Damaged {
        /// The log.
        path: PathBuf,
        /// The first line that is bad.
        bad: Bad,
    },
}

impl Log {
    /// The log `name` in file `path`, which is made when the first line is written.
    pub fn new(path: impl Into<PathBuf>, name: &'static str, key: Key) -> Self {
        Self {
            path: path.into(),
            name,
            key,
        }
    }

    /// The key that seals it.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Writes an event. Nothing may be answered or issued before this returned.
    pub fn append(&self, event: &Event) -> Result<(), Error> {
        let cannot = |problem| move |source| self.unavailable(problem, source);
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.path)
            .map_err(cannot("cannot be opened"))?;
        lock(&file).map_err(cannot("cannot be locked"))?;
        let (head, end) = self.newest(&mut file)?;
        // Whatever stands behind the last whole line was never acknowledged.
        file.set_len(end).map_err(cannot("cannot be written"))?;
        let (next, mut text) = head.follow(event);
        text.push('\n');
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_data())
            .map_err(cannot("cannot be written"))?;
        let seal = self.key.seal(self.name, &next);
        Ok(source::write_public(
            &seal_file(&self.path),
            seal.as_bytes(),
        )?)
        // Closing the file unlocks it.
    }

    /// The newest whole line's head, and where that line ends. The seal must not be ahead of it.
    fn newest(&self, file: &mut File) -> Result<(Head, u64), Error> {
        let cannot = |source| self.unavailable("cannot be read", source);
        let length = file.seek(SeekFrom::End(0)).map_err(cannot)?;
        let start = length.saturating_sub(2 * MAX_LINE);
        file.seek(SeekFrom::Start(start)).map_err(cannot)?;
        let mut tail = Vec::new();
        file.take(2 * MAX_LINE)
            .read_to_end(&mut tail)
            .map_err(cannot)?;
        let whole = tail.iter().rposition(|byte| *byte == b'\n');
        let whole = whole.map_or(0, |newline| newline + 1);
        let text = &tail[..whole.saturating_sub(1)];
        let text = text
            .rsplit(|byte| *byte == b'\n')
            .next()
            .unwrap_or_default();

        let sealed = read_seal(&self.path, self.name, &self.key.verifier())?;
        let head = match std::str::from_utf8(text) {
            Ok("") => Head::default(),
            text => {
                // Its number is not known if it is none: that of the seal is the best guess.
                let line = sealed.map_or(1, |head| head.seq);
                Line::read(text.unwrap_or_default())
                    .map_err(|why| self.damaged(Bad::Line { line, why }))?
                    .head
            }
        };
        // One line may be ahead of its seal: the process ended between the two.
        let (line, sealed) = (head.seq + 1, sealed.unwrap_or_default());
        if sealed.seq > head.seq {
            let sealed = sealed.seq;
            return Err(self.damaged(Bad::Truncated { line, sealed }));
        }
        if sealed.seq == head.seq && sealed.hash != head.hash {
            return Err(self.damaged(Bad::Seal { line: head.seq }));
        }
        Ok((head, start + whole as u64))
    }

    fn unavailable(&self, problem: &'static str, source: io::Error) -> Error {
        unavailable(&self.path, problem, source)
    }

    fn damaged(&self, bad: Bad) -> Error {
        Error::Damaged {
            path: self.path.clone(),
            bad,
        }
    }
}

/// Reads log `name` in file `path` from its beginning, gives each line to `show`, and checks all of it:
/// how far it goes. An unfinished line at the end is passed over.
pub fn read(
    path: &Path,
    name: &str,
    verifier: &Verifier,
    show: impl FnMut(&str, Line),
) -> Result<Head, Error> {
    // Before the lines: those that are written meanwhile are ahead of it.
    let sealed = read_seal(path, name, verifier)?;
    let reading = Reading::expecting(sealed.into_iter().collect());
    read_lines(path, reading, |text| text, show)
}

/// The same of what a syslog receiver kept of an audit sink's messages, one a line: whatever it put in
/// front is passed over, and lines may come again. `seal` is a file with a seal of the log, as the sink's
/// owner has it; without one, a cut-off end is not seen.
pub fn read_messages(
    path: &Path,
    seal: Option<&Path>,
    name: &str,
    verifier: &Verifier,
    show: impl FnMut(&str, Line),
) -> Result<Head, Error> {
    let sealed = seal.map(|seal| open_seal(path, seal, name, verifier));
    let reading = Reading::of_copy(sealed.transpose()?.into_iter().collect());
    read_lines(path, reading, line_within, show)
}

fn read_lines(
    path: &Path,
    mut reading: Reading,
    line_of: impl Fn(&str) -> &str,
    mut show: impl FnMut(&str, Line),
) -> Result<Head, Error> {
    let cannot = |source| unavailable(path, "cannot be read", source);
    let damaged = |bad| Error::Damaged {
        path: path.to_owned(),
        bad,
    };
    let mut file = BufReader::new(File::open(path).map_err(cannot)?);
    loop {
        let mut line = Vec::new();
        let mut bounded = file.by_ref().take(MAX_LINE);
        bounded.read_until(b'\n', &mut line).map_err(cannot)?;
        let is_whole = line.pop_if(|byte| *byte == b'\n').is_some();
        if !is_whole && (line.len() as u64) < MAX_LINE {
            return reading.end().map_err(damaged);
        }
        let text = String::from_utf8_lossy(&line);
        let text = line_of(&text);
        let read = reading.line(text).map_err(damaged)?;
        show(text, read);
    }
}

/// What the seal beside `path` vouches for; `None` when there is none.
fn read_seal(path: &Path, name: &str, verifier: &Verifier) -> Result<Option<Head>, Error> {
    let file = seal_file(path);
    let is_there = file.exists();
    let head = is_there.then(|| open_seal(path, &file, name, verifier));
    head.transpose()
}

/// What the seal of log `path` in file `seal` vouches for.
fn open_seal(path: &Path, seal: &Path, name: &str, verifier: &Verifier) -> Result<Head, Error> {
    let seal = source::read_public(seal)?;
    let seal = String::from_utf8_lossy(&seal);
    let head = verifier.open(name, seal.trim());
    head.map_err(|_| Error::Foreign {
        path: path.to_owned(),
    })
}

/// Where the seal of the log in file `path` is.
pub fn seal_file(path: &Path) -> PathBuf {
    let mut file = path.as_os_str().to_owned();
    file.push(".seal");
    file.into()
}

fn unavailable(path: &Path, problem: &'static str, source: io::Error) -> Error {
    Error::Unavailable {
        path: path.to_owned(),
        problem,
        source,
    }
}

fn lock(file: &File) -> io::Result<()> {
    let deadline = Instant::now() + LOCK_DEADLINE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if Instant::now() > deadline => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_INTERVAL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Action, MalformedLine, tests::cluster};
    use crate::{secret::Secret, token::SigningKey};
    use std::{fs, sync::Arc};

    struct World {
        directory: tempfile::TempDir,
        key: Secret<Vec<u8>>,
    }

    impl World {
        fn new() -> Self {
            Self {
                directory: tempfile::tempdir().unwrap(),
                key: SigningKey::generate().to_paserk(),
            }
        }

        fn path(&self) -> PathBuf {
            self.directory.path().join("audit.jsonl")
        }

        fn log(&self) -> Log {
            let key = Key::from_paserk(&self.key, cluster()).unwrap();
            Log::new(self.path(), "test", key)
        }

        fn with_lines(count: u64) -> Self {
            let world = Self::new();
            for i in 0..count {
                world.log().append(&event(i)).unwrap();
            }
            world
        }

        fn verify(&self) -> Result<u64, Error> {
            let verifier = self.log().key.verifier();
            read(&self.path(), "test", &verifier, |_, _| ()).map(|head| head.seq)
        }

        fn edit(&self, change: impl FnOnce(&mut Vec<String>)) {
            let text = fs::read_to_string(self.path()).unwrap();
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            change(&mut lines);
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            fs::write(self.path(), text).unwrap();
        }
    }

    fn event(i: u64) -> Event {
        Event::now(Action::Issue, format!("node-{i}"), "provision")
    }

    #[test]
    fn what_was_written_is_read_in_order_and_verifies() {
        let world = World::with_lines(3);
        let mut subjects = Vec::new();
        let verifier = world.log().key.verifier();
        let head = read(&world.path(), "test", &verifier, |_, line| {
            subjects.push(line.event.subject);
        });
        assert_eq!(head.unwrap().seq, 3);
        assert_eq!(subjects, ["node-0", "node-1", "node-2"]);
    }

    #[test]
    fn a_log_is_its_owners_alone() {
        use std::os::unix::fs::MetadataExt as _;
        let world = World::with_lines(1);
        assert_eq!(fs::metadata(world.path()).unwrap().mode() & 0o7777, 0o600);
    }

    #[test]
    fn a_log_that_was_changed_is_found_and_not_written_on() {
        type Change = fn(&mut Vec<String>);
        let changes: [(Change, u64); 4] = [
            (|lines| lines[3] = lines[3].replace("node-3", "node-9"), 4),
            (
                |lines| {
                    lines.remove(1);
                },
                2,
            ),
            (|lines| lines.swap(2, 3), 3),
            (|lines| lines.truncate(2), 3),
        ];
        for (change, first) in changes {
            let world = World::with_lines(4);
            world.edit(change);
            match world.verify() {
                Err(Error::Damaged { bad, .. }) => assert_eq!(bad.line(), first, "{bad}"),
                other => panic!("{first}: {other:?}"),
            }
        }
        // What a glance at the end shows is shown before anything is written.
        for change in [changes[0].0, changes[2].0, changes[3].0] {
            let world = World::with_lines(4);
            world.edit(change);
            let refused = world.log().append(&event(9));
            assert!(matches!(refused, Err(Error::Damaged { .. })), "{refused:?}");
        }
    }

    #[test]
    fn a_line_without_its_seal_is_taken_over_and_half_a_line_is_not() {
        let world = World::with_lines(2);
        let seal = fs::read(seal_file(&world.path())).unwrap();
        world.log().append(&event(2)).unwrap();
        // As if the process had ended before it wrote the third seal, and within the fourth line.
        fs::write(seal_file(&world.path()), seal).unwrap();
        let mut file = OpenOptions::new().append(true).open(world.path()).unwrap();
        file.write_all(b"{\"seq\":4,\"prev\":\"ab").unwrap();
        assert_eq!(world.verify().unwrap(), 3);
        world.log().append(&event(3)).unwrap();
        assert_eq!(world.verify().unwrap(), 4);
    }

    #[test]
    fn the_seal_of_another_key_is_no_seal() {
        let (world, other) = (World::with_lines(2), World::new());
        let verifier = other.log().key.verifier();
        let read = read(&world.path(), "test", &verifier, |_, _| ());
        assert!(matches!(read, Err(Error::Foreign { .. })));
        let log = Log::new(
            world.path(),
            "test",
            Key::from_paserk(&other.key, cluster()).unwrap(),
        );
        assert!(matches!(log.append(&event(2)), Err(Error::Foreign { .. })));
    }

    #[test]
    fn several_writers_make_one_log() {
        let world = Arc::new(World::new());
        let writers: Vec<_> = (0..4)
            .map(|_| {
                let world = world.clone();
                std::thread::spawn(move || {
                    (0..5).for_each(|i| world.log().append(&event(i)).unwrap())
                })
            })
            .collect();
        for writer in writers {
            writer.join().unwrap();
        }
        assert_eq!(world.verify().unwrap(), 20);
    }

    #[test]
    fn a_file_that_is_no_log_is_left_alone() {
        let world = World::new();
        fs::write(world.path(), "something else\n").unwrap();
        match world.log().append(&event(0)) {
            Err(Error::Damaged { bad, .. }) => {
                let why = MalformedLine::Shape;
                assert_eq!(bad, Bad::Line { line: 1, why });
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(fs::read(world.path()).unwrap(), b"something else\n");
    }

    #[test]
    fn a_directory_that_cannot_be_written_refuses_the_line() {
        let world = World::new();
        fs::create_dir(world.path()).unwrap();
        let refused = world.log().append(&event(0));
        assert!(matches!(refused, Err(Error::Unavailable { .. })));
    }
}
