//! A disk that is full or read-only under a role that must put on record what it does: it refuses within
//! its deadline, gives nothing away, and goes on by itself once it can write again.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../support/mod.rs"]
mod support;

mod keyvault;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use support::{
    DEADLINE, RoleProcess,
    filesystem::{Filesystem, Meddled},
    https::{Https, status},
    output, stderr, wavry,
};
use wavry_credentials::cert::{self, DevelopmentAuthority};

/// An answer must be there within two seconds; the rest is the connection, on a busy machine.
const ANSWER_DEADLINE: Duration = Duration::from_secs(4);

/// A master whose database is alone on a small filesystem.
struct World {
    directory: tempfile::TempDir,
    filesystem: Filesystem,
}

impl World {
    fn new() -> Self {
        cert::install_crypto_provider();
        let directory = tempfile::tempdir().unwrap();
        let authority = DevelopmentAuthority::open(directory.path()).unwrap();
        authority.issue("master", &["127.0.0.1"]).unwrap();
        let filesystem = Filesystem::small(&directory.path().join("small"));
        let world = Self {
            directory,
            filesystem,
        };
        for key in ["signing.key", "audit.key"] {
            let file = world.at(key).display().to_string();
            let made = output(wavry(&["key", "generate", "--out", &file]));
            assert!(made.status.success(), "{}", stderr(&made));
        }
        world
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn master(&self) -> RoleProcess {
        let text = format!(
            "[master]\nlisten = \"127.0.0.1:0\"\ndatabase = {:?}\ncertificate = {:?}\n\
             [[master.services]]\nname = \"echo\"\n[ops]\nlisten = \"127.0.0.1:0\"\n",
            self.at("small/master.sqlite"),
            self.at("master.crt")
        );
        let mut command = self.role("master", &text);
        self.signing(&mut command);
        command.env("WAVRY_TLS_KEY_FILE", self.at("master.key"));
        let command = self.filesystem.command(&command);
        RoleProcess::start(command, &self.at("master.ready"))
    }

    /// A relay that registers as soon as it can.
    fn relay(&self, master: &RoleProcess) -> RoleProcess {
        let mut provision = wavry(&["provision", "relay", "exit", "--services", "echo", "--out"]);
        provision.arg(self.at("exit"));
        self.signing(&mut provision);
        let made = output(provision);
        assert!(made.status.success(), "{}", stderr(&made));
        let text = format!(
            "[relay]\nmesh_listen = \"127.0.0.1:0\"\nstate_dir = {:?}\nmaster = \"https://{}\"\n\
             ca_file = {:?}\n[relay.upstreams.echo]\nurl = \"echo:\"\n[ops]\nlisten = \"127.0.0.1:0\"\n",
            self.at("exit/state"),
            master.address(),
            self.at("ca.crt")
        );
        let mut command = self.role("relay", &text);
        for (variable, file) in [
            ("WAVRY_IDENTITY_KEY_FILE", "exit/identity.key"),
            ("WAVRY_REGISTRATION_TOKEN_FILE", "exit/registration.token"),
        ] {
            command.env(variable, self.at(file));
        }
        RoleProcess::start(command, &self.at("relay.ready"))
    }

    fn role(&self, role: &str, text: &str) -> Command {
        let file = self.at(&format!("{role}.toml"));
        fs::write(&file, text).unwrap();
        let mut command = wavry(&[role, "--config"]);
        command.arg(file);
        command
    }

    fn signing(&self, command: &mut Command) {
        command
            .env("WAVRY_MASTER_KEY_FILE", self.at("signing.key"))
            .env("WAVRY_AUDIT_KEY_FILE", self.at("audit.key"));
    }

    /// Lines of the audit log, which must verify.
    fn lines_on_record(&self) -> u64 {
        let mut command = wavry(&["audit", "verify", "--database"]);
        command.arg(self.at("small/master.sqlite"));
        self.signing(&mut command);
        let said = output(self.filesystem.command(&command));
        assert!(said.status.success(), "{}", stderr(&said));
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        let (_, rest) = text.split_once(": ").expect("FILE: N lines hold");
        let number = rest.split(' ').next().and_then(|word| word.parse().ok());
        number.expect("a number of lines")
    }
}

/// A request that must be put on record, because it is refused: its status.
fn refused(directory: &Path, master: &RoleProcess) -> u16 {
    let started = Instant::now();
    let master = Https::of(&directory.join("ca.crt"), master.address());
    let answer = master.ask("POST", "/v1/nodes/heartbeat", &[], b"{}");
    let elapsed = started.elapsed();
    assert!(elapsed < ANSWER_DEADLINE, "{elapsed:?}: {answer}");
    let status = status(&answer);
    if status == 503 {
        assert!(answer.contains("not-audited"), "{answer}");
        assert!(
            answer.to_ascii_lowercase().contains("retry-after"),
            "{answer}"
        );
    }
    status
}

/// Waits until a request is answered as when everything is well.
fn wait_until_well(directory: &Path, master: &RoleProcess) {
    let started = Instant::now();
    while refused(directory, master) != 401 {
        assert!(started.elapsed() < DEADLINE, "it does not recover");
    }
}

#[test]
fn a_full_disk_is_answered_with_503_and_what_waited_goes_on_when_there_is_room() {
    let world = World::new();
    let directory = world.directory.path();
    let mut master = world.master();
    assert_eq!(refused(directory, &master), 401);
    assert_eq!(world.lines_on_record(), 1);

    world.filesystem.fill();
    let pid = master.pid();
    thread::scope(|scope| {
        let relay = scope.spawn(|| world.relay(&master));
        for _ in 0..3 {
            assert_eq!(refused(directory, &master), 503);
        }
        assert!(!relay.is_finished(), "a node was admitted off the record");
        world.filesystem.empty();
        wait_until_well(directory, &master);
        relay.join().expect("the relay registers");
    });
    assert!(support::is_alive(pid));
    // The first refusal, one after the room was given back, and the registration.
    assert!(world.lines_on_record() >= 3);
}

#[test]
fn a_disk_that_became_read_only_is_answered_with_503_until_it_can_be_written() {
    let world = World::new();
    let directory = world.directory.path();
    let mut master = world.master();
    assert_eq!(refused(directory, &master), 401);

    let read_only = Meddled::read_only(master.pid());
    // What was under way when it began may have come to its end.
    let started = Instant::now();
    while refused(directory, &master) != 503 {
        assert!(started.elapsed() < DEADLINE, "it writes all the same");
        // Strangers have few refusals written; the others are told without.
        thread::sleep(Duration::from_millis(100));
    }
    for _ in 0..3 {
        assert_eq!(refused(directory, &master), 503);
    }
    drop(read_only);
    wait_until_well(directory, &master);
    assert!(world.lines_on_record() >= 2);
}
