//! Killed five hundred times, wherever it is, while it writes entries, audit lines and its counter, and
//! replaces its master key.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdout},
    time::{Duration, Instant},
};

use wavry_credentials::{
    audit::{Action, Event},
    key::aead,
    secret::Secret,
    source,
};
use wavry_master::keyvault::{
    KeyVault,
    barrier::{Change, CommitError, Rotate, RotateError},
};

use crate::vault::{
    self, command, current, directory_to_be_killed_in, events, next, read_key, runtime, unsealed,
};

const KILLS: u64 = 500;
const TEST: &str =
    "moments::what_was_told_is_kept_however_often_it_is_killed_and_nothing_is_half_done";
/// Entries that a rotation has to work on besides.
const BALLAST: u32 = 200;

#[test]
fn what_was_told_is_kept_however_often_it_is_killed_and_nothing_is_half_done() {
    if let Some(directory) = directory_to_be_killed_in() {
        runtime().block_on(write_until_killed(&directory));
    }
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    runtime().block_on(async {
        let vault = vault::initialised(directory).await;
        let mut change = Change::default();
        for i in 0..BALLAST {
            change.put(format!("ballast/{i}"), Secret::new(vec![7; 100]));
        }
        vault.barrier().commit(change).await.unwrap();
        vault.close().await;
    });

    let mut last = 0;
    let mut rotations = 0;
    for kill in 0..KILLS {
        let (mut child, mut says) = start(directory);
        // The first change of this one, and a time after it that is another for each kill.
        let mut told = read_number(&mut says).expect("it writes");
        let until = Instant::now() + Duration::from_micros(kill * 7919 % 9000);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        while let Some(number) = read_number(&mut says) {
            told = number;
        }
        let (number, term) = runtime().block_on(check(directory, kill % 25 == 0));
        assert!(told > last, "it goes on where it was");
        // One may be done that it could not tell of any more.
        assert!(
            (told..=told + 1).contains(&number),
            "{told} was told, {number} is there"
        );
        last = number;
        // A new term for each, and the first is none.
        rotations = term - 1;
    }
    // Each goes on through some thirty kills.
    assert!(rotations >= 5, "only {rotations} rotations were begun");
}

/// What is there after a kill is whole: the number of the last change, and the current term.
async fn check(directory: &Path, with_log: bool) -> (u64, u32) {
    let vault = unsealed(directory).await;
    let barrier = vault.barrier();
    let number = async |path| {
        let record = barrier.read_record::<u64>(path).await.expect("it is whole");
        record.map(|(_, number)| number)
    };
    let (one, other) = (number("one").await, number("other").await);
    assert_eq!(one, other, "half a change was made");
    assert_eq!(number("before").await, one.map(|one| one - 1));
    for i in 0..BALLAST {
        let entry = barrier
            .read(&format!("ballast/{i}"))
            .await
            .expect("it is whole");
        assert!(entry.expect("it is whole").value.matches(&[7; 100]));
    }
    let one = one.expect("it is whole");
    if with_log {
        let events = events(&vault).await;
        let numbers: Vec<u64> = events
            .iter()
            .filter(|event| event.action == Action::Write)
            .map(|event| event.subject.parse().expect("it is whole"))
            .collect();
        assert_eq!(
            numbers,
            (1..=one).collect::<Vec<_>>(),
            "each change has its line"
        );
    }
    let term = barrier.key_status().await.expect("it is whole").term;
    vault.close().await;
    (one, term)
}

fn start(directory: &Path) -> (Child, BufReader<ChildStdout>) {
    let mut child = command(TEST, directory)
        .spawn()
        .expect("this test can be started");
    let stdout = child.stdout.take().expect("it is piped");
    (child, BufReader::new(stdout))
}

/// The next number that was said as a whole; the harness says a few words before.
fn read_number(says: &mut BufReader<ChildStdout>) -> Option<u64> {
    let mut line = String::new();
    while says.read_line(&mut line).expect("it can be read") > 0 {
        let number = line
            .strip_prefix('>')
            .and_then(|line| line.strip_suffix('\n'));
        if let Some(number) = number {
            return Some(number.parse().expect("a number"));
        }
        line.clear();
    }
    None
}

/// Makes changes, and says the number of each that is durable.
async fn write_until_killed(directory: &Path) -> ! {
    let vault = unsealed(directory).await;
    let barrier = vault.barrier();
    let number = barrier.read_record::<u64>("one").await.expect("it is read");
    let mut number = number.map_or(0, |(_, number)| number);
    let mut stdout = std::io::stdout();
    loop {
        let before = number;
        number += 1;
        let mut change = Change::default();
        change.put_record("one", &number);
        change.put_record("other", &number);
        change.put_record("before", &before);
        change.record(Event::now(Action::Write, number.to_string(), "test"));
        match barrier.commit(change).await {
            Ok(()) => {}
            Err(CommitError::Conflict) => panic!("nobody else writes"),
            Err(CommitError::Failed(error)) => panic!("{error}"),
        }
        stdout
            .write_all(format!(">{number}\n").as_bytes())
            .and_then(|()| stdout.flush())
            .expect("somebody listens");
        // Behind the first change: from then on it may be killed.
        rotate(directory, &vault).await;
    }
}

/// Begins to replace the master key, unless another replacement is under way.
async fn rotate(directory: &Path, vault: &KeyVault) {
    if vault
        .barrier()
        .rotation()
        .await
        .expect("it is unsealed")
        .is_running
    {
        return;
    }
    settle(directory, vault).await;
    let new = aead::Key::generate();
    source::write_secret(&next(directory), &new.to_paserk()).expect("it is written");
    let rotate = Rotate {
        master_key: Some(new),
        seal: None,
        event: Event::now(Action::Rekey, "master key", "test"),
    };
    match vault.barrier().rotate(rotate).await {
        Ok(()) | Err(RotateError::Running) => {}
        Err(error) => panic!("{error}"),
    }
}

/// The next key is the current one, if a rotation to it was at its end.
async fn settle(directory: &Path, vault: &KeyVault) {
    let status = vault.barrier().key_status().await.expect("it is unsealed");
    if let Some(next_key) = read_key(&next(directory))
        && next_key.id() == status.master_key
    {
        fs::rename(next(directory), current(directory)).expect("it is renamed");
    }
}
