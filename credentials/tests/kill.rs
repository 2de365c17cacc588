//! A log whose writer is killed, over and over. On its own because it starts itself as that writer.

use std::{
    env,
    io::Read as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use wavry_credentials::{
    audit::{
        Action, Event, Key,
        file::{self, Log},
    },
    source,
    token::SigningKey,
};

const KILLS: u64 = 500;
const DEADLINE: Duration = Duration::from_secs(60);
/// Names the directory to a writer.
const DIRECTORY: &str = "WAVRY_TEST_KILL_DIRECTORY";
const TEST: &str =
    "a_log_verifies_however_often_its_writer_is_killed_and_no_line_that_was_told_is_lost";

#[test]
fn a_log_verifies_however_often_its_writer_is_killed_and_no_line_that_was_told_is_lost() {
    if let Some(directory) = env::var_os(DIRECTORY) {
        write_until_killed(Path::new(&directory));
    }
    let directory = tempfile::tempdir().unwrap();
    let key = SigningKey::generate().to_paserk();
    source::write_secret(&directory.path().join("key"), &key).unwrap();
    let log = log(directory.path());
    let verify = || {
        let verifier = log.key().verifier();
        let file = directory.path().join("log");
        file::read(&file, "test", &verifier, |_, _| ()).unwrap().seq
    };

    let mut told = 0;
    for kill in 0..KILLS {
        let mut writer = start(directory.path());
        let mut acknowledged = writer.stdout.take().unwrap();
        // The first line of this writer, and a time after it that is another for each kill.
        let mut first = [0];
        acknowledged.read_exact(&mut first).unwrap();
        let until = Instant::now() + Duration::from_micros(kill * 7919 % 6000);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        writer.kill().unwrap();
        writer.wait().unwrap();
        let mut more = Vec::new();
        acknowledged.read_to_end(&mut more).unwrap();
        told += 1 + more.len() as u64;
        // Goes on where it was, whatever the kill left.
        log.append(&event()).unwrap();
        told += 1;
        if kill % 50 == 0 {
            assert!(verify() >= told);
        }
    }
    let lines = verify();
    // A line may be there that its writer could not tell of any more.
    assert!(
        (told..=told + KILLS).contains(&lines),
        "{lines} lines, {told} told"
    );
}

fn start(directory: &Path) -> Child {
    let mut command = Command::new(env::current_exe().expect("this test runs"));
    command
        .args([TEST, "--exact", "--nocapture", "--quiet"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut writer = command.spawn().expect("this test can be started");
    // The harness says a few words before the test begins.
    let stdout = writer.stdout.as_mut().expect("it is piped");
    let deadline = Instant::now() + DEADLINE;
    let mut byte = [0];
    while byte != [b'>'] {
        stdout.read_exact(&mut byte).expect("the writer begins");
        assert!(Instant::now() < deadline, "the writer does not begin");
    }
    writer
}

/// Writes lines, and says `.` for each that is durable.
fn write_until_killed(directory: &Path) -> ! {
    use std::io::Write as _;
    let log = log(directory);
    let mut stdout = std::io::stdout();
    let mut say = |text: &[u8]| {
        stdout
            .write_all(text)
            .and_then(|()| stdout.flush())
            .expect("somebody listens");
    };
    say(b">");
    loop {
        log.append(&event()).expect("the log can be written");
        say(b".");
    }
}

fn log(directory: &Path) -> Log {
    let key = source::read_file(&directory.join("key")).expect("the key is there");
    let cluster = "test".parse().expect("a name");
    let key = Key::from_paserk(&key, cluster).expect("a key");
    Log::new(directory.join("log"), "test", key)
}

fn event() -> Event {
    Event::now(Action::Issue, "node", "provision")
}
