//! Killed at every system call that writes, syncs, renames or removes a file, one after the other: what is
//! there afterwards is what was there before or what was to be, and it goes on.
//!
//! A kill loses nothing that was written, synced or not. So the calls are also looked at in the order in
//! which they come: nothing is told before it is synced, and nothing is put in place, or taken away, before
//! what it depends on is.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{ChildStdout, Stdio},
    time::{Duration, Instant},
};

use wavry_credentials::{
    audit::{
        self, Action, Event,
        file::{self, Log, seal_file},
    },
    key::aead,
    secret::Secret,
    source,
};
use wavry_master::{
    audit_sink,
    keyvault::{
        KeyVault, LOG,
        barrier::{Change, Error, Rotate},
    },
};

use crate::{
    strace::{self, ANSWER, Call, Series, Strace},
    vault::{
        COUNTER, DATABASE, audit_key, command, current, directory_to_be_killed_in, events,
        initialised, next, open, read_key, runtime, unsealed, write_audit_key,
    },
};

const PATIENCE: Duration = Duration::from_secs(20);
/// More calls of one series than any operation makes: it would not end.
const MANY: u32 = 500;
const KILLED: i32 = 9;

#[test]
fn a_put_that_is_killed_at_any_system_call_is_made_or_not() {
    kill_at_every_call::<Put>("calls::a_put_that_is_killed_at_any_system_call_is_made_or_not");
}

#[test]
fn a_rotation_that_is_killed_at_any_system_call_goes_on() {
    kill_at_every_call::<Rotation>("calls::a_rotation_that_is_killed_at_any_system_call_goes_on");
}

#[test]
fn an_audit_line_whose_writer_is_killed_at_any_system_call_is_there_or_not() {
    kill_at_every_call::<Append>(
        "calls::an_audit_line_whose_writer_is_killed_at_any_system_call_is_there_or_not",
    );
}

#[test]
fn a_log_in_a_file_whose_writer_is_killed_at_any_system_call_verifies() {
    kill_at_every_call::<LogInFile>(
        "calls::a_log_in_a_file_whose_writer_is_killed_at_any_system_call_verifies",
    );
}

/// What is killed. The process that does it is another one than the one that prepares and checks.
trait Operation: Sized {
    /// Whether the store is written once. Then the counter is to follow it.
    const IS_ONE_COMMIT: bool = false;
    /// Makes what is there before.
    async fn prepare(directory: &Path);
    /// Gets ready, in a process that is not killed before it is.
    async fn begin(directory: &Path) -> Self;
    /// Does it. When it returns, others are told.
    async fn work(&self);
    /// Lets what goes on beside it come to its end.
    async fn end(self) {}
    /// Looks at what is there; `told` if others were told that it is done. Gives whether it is.
    async fn check(directory: &Path, told: bool) -> bool;
}

#[expect(clippy::print_stdout, reason = "a test tells how often it killed")]
fn kill_at_every_call<O: Operation>(test: &str) {
    if let Some(directory) = directory_to_be_killed_in() {
        runtime().block_on(be_killed::<O>(&directory));
    }
    let template = tempfile::tempdir().expect("a directory");
    runtime().block_on(O::prepare(template.path()));

    // Once from beginning to end.
    let directory = copy(template.path());
    let (told, was_killed) = run(test, directory.path(), None);
    assert!(told && !was_killed);
    let calls = strace::read_log(directory.path());
    check_order::<O>(&calls);
    assert!(runtime().block_on(O::check(directory.path(), told)));

    let mut killed = 0;
    let (mut undone, mut done) = (0, 0);
    for series in strace::series(directory.path(), &calls) {
        let mut number = 1;
        loop {
            let directory = copy(template.path());
            let (told, was_killed) = run(test, directory.path(), Some((&series, number)));
            let is_done = runtime().block_on(O::check(directory.path(), told));
            if !was_killed {
                assert!(told);
                break;
            }
            match is_done {
                true => done += 1,
                false => undone += 1,
            }
            number += 1;
            assert!(number < MANY, "{series:?}");
        }
        killed += number - 1;
        println!("{:>4} × {series}", number - 1);
    }
    println!("killed at {killed} calls: {undone} times as before, {done} times done");
    assert!(undone > 0 && done > 0, "both were seen");
}

/// Does it in another process, which is killed at the call of that number, or none. Gives whether it told,
/// and whether it was killed.
fn run(test: &str, directory: &Path, at: Option<(&Series, u32)>) -> (bool, bool) {
    let mut command = command(test, directory);
    let mut child = command
        .stdin(Stdio::piped())
        .spawn()
        .expect("this test can be started");
    let mut says = BufReader::new(child.stdout.take().expect("it is piped"));
    assert!(hears(&mut says, ">ready"), "it does not get ready");
    let strace = match at {
        Some((series, number)) => Strace::killing(child.id(), directory, series, number),
        None => Strace::logging(child.id(), directory),
    };
    let mut asked = child.stdin.take().expect("it is piped");
    asked.write_all(b"\n").expect("it listens");
    let told = hears(&mut says, ANSWER);
    let status = child.wait().expect("it ends");
    strace.wait();
    assert!(
        status.success() || status.signal() == Some(KILLED),
        "{status}"
    );
    (told, !status.success())
}

/// Whether this line comes; the harness says a few words before.
fn hears(says: &mut BufReader<ChildStdout>, wanted: &str) -> bool {
    let mut line = String::new();
    while says.read_line(&mut line).expect("it can be read") > 0 {
        if line.strip_suffix('\n') == Some(wanted) {
            return true;
        }
        line.clear();
    }
    false
}

async fn be_killed<O: Operation>(directory: &Path) -> ! {
    let operation = O::begin(directory).await;
    say(">ready");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("it is asked");
    operation.work().await;
    say(ANSWER);
    operation.end().await;
    std::process::exit(0);
}

fn say(line: &str) {
    let mut stdout = std::io::stdout();
    stdout
        .write_all(format!("{line}\n").as_bytes())
        .and_then(|()| stdout.flush())
        .expect("somebody listens");
}

fn copy(template: &Path) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    for entry in fs::read_dir(template).expect("it is read") {
        let entry = entry.expect("it is read");
        let copy = directory.path().join(entry.file_name());
        fs::copy(entry.path(), copy).expect("it is copied");
    }
    directory
}

/// Holds the calls to the order that a power cut asks for.
fn check_order<O: Operation>(calls: &[Call]) {
    let is = |file: &Path, name: &str| file.file_name().is_some_and(|it| it == name);
    let log_of_writes = format!("{DATABASE}-wal");
    // Files that were written, and not synced since.
    let mut unsynced: BTreeSet<PathBuf> = BTreeSet::new();
    let mut has_answered = false;
    for call in calls {
        if call.is_answer {
            has_answered = true;
            // Nobody waits for the counter, nor for a copy; what is shared memory is made anew.
            let bad = unsynced.iter().find(|file| {
                let file = file.to_string_lossy();
                !["-shm", COUNTER, COPY].iter().any(|it| file.contains(it))
            });
            assert_eq!(bad, None, "told before it was synced");
        }
        match &*call.name {
            "fsync" | "fdatasync" if call.ends => {
                unsynced.retain(|file| !call.files.contains(file));
            }
            "fsync" | "fdatasync" => {}
            // What takes a file's place is synced before it does.
            "rename" | "renameat" | "renameat2" if call.begins => {
                let [from, to] = &*call.files else {
                    panic!("{call:?}")
                };
                assert!(!unsynced.contains(from), "{call:?}");
                unsynced.extend(to.parent().map(Path::to_owned));
            }
            // What the write-ahead log has is in the database before it goes.
            "ftruncate" | "unlink" if call.begins && is(&call.files[0], &log_of_writes) => {
                let database = call.files[0].with_file_name(DATABASE);
                assert!(!unsynced.contains(&database), "{call:?}");
            }
            "pwrite64" if call.begins => {
                let file = &call.files[0];
                // A counter that is ahead of its store makes it look rolled back, and a database that is
                // ahead of its write-ahead log cannot be mended.
                if is(file, DATABASE) || O::IS_ONE_COMMIT && is(file, COUNTER) {
                    let log = file.with_file_name(&log_of_writes);
                    assert!(!unsynced.contains(&log), "{call:?}");
                }
                unsynced.insert(file.clone());
            }
            _ if call.begins => unsynced.extend(call.files.iter().cloned()),
            _ => {}
        }
    }
    assert!(has_answered);
}

/// Entries are written, one over another, and one is deleted, on record.
struct Put(KeyVault);

impl Operation for Put {
    const IS_ONE_COMMIT: bool = true;

    async fn prepare(directory: &Path) {
        let vault = initialised(directory).await;
        let mut change = Change::default();
        for path in ["one", "other", "gone"] {
            change.put(path, Secret::new(b"old".to_vec()));
        }
        vault.barrier().commit(change).await.expect("it is made");
        vault.close().await;
    }

    async fn begin(directory: &Path) -> Self {
        Self(unsealed(directory).await)
    }

    async fn work(&self) {
        let mut change = Change::default();
        for path in ["one", "other", "new"] {
            change.put(path, Secret::new(b"new".to_vec()));
        }
        change.delete("gone");
        change.record(Event::now(Action::Write, "one", "test"));
        self.0.barrier().commit(change).await.expect("it is made");
    }

    async fn end(self) {
        self.0.close().await;
    }

    async fn check(directory: &Path, told: bool) -> bool {
        let vault = unsealed(directory).await;
        let read = async |path| {
            let entry = vault.barrier().read(path).await.expect("it is whole");
            entry.map(|entry| match entry.value.matches(b"new") {
                true => "new",
                false if entry.value.matches(b"old") => "old",
                false => panic!("{path} is neither"),
            })
        };
        let is_done = read("one").await == Some("new");
        let (one, gone, new) = match is_done {
            true => ("new", None, Some("new")),
            false => ("old", Some("old"), None),
        };
        assert_eq!(read("other").await, Some(one));
        assert_eq!(read("gone").await, gone);
        assert_eq!(read("new").await, new);
        assert_eq!(events(&vault).await.len(), usize::from(is_done));
        assert!(is_done || !told);
        works_on(&vault).await;
        vault.close().await;
        is_done
    }
}

/// One can write on.
async fn works_on(vault: &KeyVault) {
    let mut change = Change::default();
    change.put("later", Secret::new(b"later".to_vec()));
    change.record(Event::now(Action::Write, "later", "test"));
    vault.barrier().commit(change).await.expect("it is made");
}

/// The master key is replaced, entries get new wrappings, old keys are deleted.
struct Rotation {
    vault: KeyVault,
    directory: PathBuf,
}

const ENTRIES: u32 = 8;

impl Operation for Rotation {
    async fn prepare(directory: &Path) {
        let vault = initialised(directory).await;
        let mut change = Change::default();
        for i in 0..ENTRIES {
            change.put(format!("entry/{i}"), Secret::new(vec![7; 100]));
        }
        vault.barrier().commit(change).await.expect("it is made");
        vault.close().await;
        let key = aead::Key::generate().to_paserk();
        source::write_secret(&next(directory), &key).expect("it is written");
    }

    async fn begin(directory: &Path) -> Self {
        Self {
            vault: unsealed(directory).await,
            directory: directory.to_owned(),
        }
    }

    async fn work(&self) {
        let rotate = Rotate {
            master_key: read_key(&next(&self.directory)),
            seal: None,
            event: Event::now(Action::Rekey, "master key", "test"),
        };
        let begun = self.vault.barrier().rotate(rotate).await;
        begun.expect("it begins");
        is_settled(&self.vault).await;
    }

    async fn end(self) {
        self.vault.close().await;
    }

    /// It is done if it was begun: it goes on by itself.
    async fn check(directory: &Path, told: bool) -> bool {
        let vault = unsealed(directory).await;
        is_settled(&vault).await;
        for i in 0..ENTRIES {
            let entry = vault.barrier().read(&format!("entry/{i}")).await;
            let entry = entry.expect("it is whole").expect("it is there");
            assert!(entry.value.matches(&[7; 100]));
        }
        let is_done = vault
            .barrier()
            .key_status()
            .await
            .expect("it is whole")
            .term
            == 2;
        assert!(is_done || !told);
        // That it was begun, and that old keys are gone.
        assert_eq!(events(&vault).await.len(), if is_done { 2 } else { 0 });
        works_on(&vault).await;
        vault.close().await;

        let (good, bad) = match is_done {
            true => (next(directory), current(directory)),
            false => (current(directory), next(directory)),
        };
        let vault = open(directory).await;
        let refused = vault.unseal(read_key(&bad).expect("it is there")).await;
        assert!(matches!(refused, Err(Error::Keyring(_))), "{refused:?}");
        vault
            .unseal(read_key(&good).expect("it is there"))
            .await
            .expect("it opens");
        vault.close().await;
        is_done
    }
}

/// Waits until no rotation is under way.
async fn is_settled(vault: &KeyVault) {
    let deadline = Instant::now() + PATIENCE;
    while vault
        .barrier()
        .rotation()
        .await
        .expect("it is whole")
        .is_running
    {
        assert!(Instant::now() < deadline, "the rotation does not end");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The audit log gets a line, and its copy in a file does.
struct Append {
    vault: KeyVault,
    directory: PathBuf,
}

/// File of the copy.
const COPY: &str = "copy.jsonl";

impl Append {
    async fn append(vault: &KeyVault, subject: &str) {
        let mut change = Change::default();
        change.record(Event::now(Action::Read, subject, "test"));
        vault.barrier().commit(change).await.expect("it is made");
    }

    /// Copies what there is, until all of it is there.
    async fn copied(vault: &KeyVault, directory: &Path) {
        let target = directory.join(COPY);
        let sink = vault.barrier().copy_audit_to(audit_sink::Config {
            name: "copy".to_owned(),
            target: audit_sink::Target::File(target.clone()),
        });
        let is_there = async {
            let wanted = events(vault).await.len() as u64;
            let verifier = vault.barrier().audit_key().verifier();
            let deadline = Instant::now() + PATIENCE;
            loop {
                let is_sealed = fs::read(seal_file(&target)).is_ok_and(|seal| {
                    let head = verifier.open(LOG, String::from_utf8_lossy(&seal).trim());
                    head.expect("it is whole").seq == wanted
                });
                if is_sealed {
                    break;
                }
                assert!(Instant::now() < deadline, "the copy stays behind");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            () = sink => {}
            () = is_there => {}
        }
    }
}

impl Operation for Append {
    const IS_ONE_COMMIT: bool = true;

    async fn prepare(directory: &Path) {
        let vault = initialised(directory).await;
        Self::append(&vault, "before").await;
        Self::copied(&vault, directory).await;
        vault.close().await;
    }

    async fn begin(directory: &Path) -> Self {
        Self {
            vault: unsealed(directory).await,
            directory: directory.to_owned(),
        }
    }

    async fn work(&self) {
        Self::append(&self.vault, "line").await;
    }

    async fn end(self) {
        Self::copied(&self.vault, &self.directory).await;
        self.vault.close().await;
    }

    async fn check(directory: &Path, told: bool) -> bool {
        let vault = unsealed(directory).await;
        let in_log = events(&vault).await;
        let is_done = in_log.len() == 2;
        assert_eq!(in_log.len(), 1 + usize::from(is_done));
        assert!(is_done || !told);
        // What it has of lines verifies, and is of the log.
        let verifier = vault.barrier().audit_key().verifier();
        let read = || {
            let mut lines = Vec::new();
            let show = |_: &str, line: audit::Line| lines.push(line.event);
            file::read(&directory.join(COPY), LOG, &verifier, show).expect("it is whole");
            lines
        };
        assert!(in_log.starts_with(&read()));
        works_on(&vault).await;
        Self::copied(&vault, directory).await;
        assert_eq!(read(), events(&vault).await);
        vault.close().await;
        is_done
    }
}

/// A log that is in a file and nowhere else, as of nodes that are provisioned, gets a line.
struct LogInFile(Log);

const NAME: &str = "test";

fn log_file(directory: &Path) -> PathBuf {
    directory.join("log.jsonl")
}

impl Operation for LogInFile {
    async fn prepare(directory: &Path) {
        write_audit_key(directory);
        Self::begin(directory).await.work().await;
    }

    async fn begin(directory: &Path) -> Self {
        let key = audit_key(directory);
        Self(Log::new(log_file(directory), NAME, key))
    }

    async fn work(&self) {
        let event = Event::now(Action::Issue, "node", "provision");
        self.0.append(&event).expect("it is written");
    }

    async fn check(directory: &Path, told: bool) -> bool {
        let lines = || {
            let verifier = audit_key(directory).verifier();
            let head = file::read(&log_file(directory), NAME, &verifier, |_, _| ());
            head.expect("it is whole").seq
        };
        let is_done = lines() == 2;
        assert_eq!(lines(), 1 + u64::from(is_done));
        assert!(is_done || !told);
        Self::begin(directory).await.work().await;
        assert_eq!(lines(), 2 + u64::from(is_done));
        is_done
    }
}
