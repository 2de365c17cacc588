//! A KeyVault on a disk that cannot be written: no secret leaves it, and it goes on by itself.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::Instant,
};

use serde_json::{Value, json};

use crate::{
    ANSWER_DEADLINE, World,
    support::{DEADLINE, RoleProcess, filesystem::Meddled, keyvault::KeyVault},
};

const SECRET: &str = "/v1/secret/data/app";
const CANARY: &str = "canary-of-a-stored-secret";

fn vault(world: &World) -> KeyVault {
    let database = world.at("small/keyvault.sqlite");
    let command = KeyVault::command(world.directory.path(), &database);
    let vault = KeyVault::start(world.directory.path(), world.filesystem.command(&command));
    vault.does("POST", SECRET, &json!({"data": {"password": CANARY}}));
    assert_eq!(read(&vault), 200);
    vault
}

/// The status of a read. A secret comes with 200, and with nothing else.
fn read(vault: &KeyVault) -> u16 {
    let started = Instant::now();
    let (status, said) = vault.ask("GET", SECRET, &Value::Null);
    let elapsed = started.elapsed();
    assert!(elapsed < ANSWER_DEADLINE, "{elapsed:?}: {said}");
    let holds_it = said.to_string().contains(CANARY);
    assert_eq!(holds_it, status == 200, "{status}: {said}");
    status
}

/// Nothing is given out, and nothing is written.
fn is_refused(vault: &KeyVault) {
    for _ in 0..3 {
        assert_eq!(read(vault), 503);
    }
    let other = json!({"data": {"password": "another"}});
    assert_eq!(vault.ask("POST", SECRET, &other).0, 503);
    let login = json!({"role_id": "x", "secret_id": "y"});
    let (status, _) = vault.ask_as("", "POST", "/v1/auth", &login);
    assert_eq!(status, 503, "a refusal is on record, or none is told");
}

fn recovers(vault: &mut KeyVault, pid: u32) {
    let started = Instant::now();
    while read(vault) != 200 {
        assert!(started.elapsed() < DEADLINE, "it does not recover");
    }
    assert_eq!(vault.process.pid(), pid);
    assert!(crate::support::is_alive(pid));
}

#[test]
fn a_full_disk_lets_no_secret_out_and_is_forgotten_when_there_is_room() {
    let world = World::new();
    let mut vault = vault(&world);
    let pid = vault.process.pid();
    world.filesystem.fill();
    is_refused(&vault);
    world.filesystem.empty();
    recovers(&mut vault, pid);
}

#[test]
fn a_read_only_disk_lets_no_secret_out_and_is_forgotten_when_it_can_be_written() {
    let world = World::new();
    let mut vault = vault(&world);
    let pid = vault.process.pid();
    let read_only = Meddled::read_only(pid);
    // What was under way when it began may have come to its end.
    let started = Instant::now();
    while read(&vault) != 503 {
        assert!(started.elapsed() < DEADLINE, "it writes all the same");
    }
    is_refused(&vault);
    drop(read_only);
    recovers(&mut vault, pid);
}

#[test]
fn a_blocked_store_lets_no_secret_out_and_is_forgotten_when_it_is_let_go() {
    let world = World::new();
    let mut vault = vault(&world);
    let pid = vault.process.pid();
    let lock = Lock::of(&world, "keyvault.sqlite");
    for _ in 0..2 {
        assert_eq!(read(&vault), 503);
    }
    drop(lock);
    recovers(&mut vault, pid);
}

#[test]
fn a_master_whose_store_is_blocked_refuses_and_goes_on_when_it_is_let_go() {
    let world = World::new();
    let master: RoleProcess = world.master();
    let directory = world.directory.path();
    let lock = Lock::of(&world, "master.sqlite");
    for _ in 0..2 {
        assert_eq!(crate::refused(directory, &master), 503);
    }
    drop(lock);
    crate::wait_until_well(directory, &master);
}

/// Somebody else who writes to a store, and does not come to an end.
struct Lock(Child);

impl Lock {
    fn of(world: &World, database: &str) -> Self {
        let script = "import sqlite3, sys\n\
                      store = sqlite3.connect(sys.argv[1], isolation_level=None)\n\
                      store.execute('BEGIN IMMEDIATE')\n\
                      print('locked', flush=True)\n\
                      sys.stdin.read()";
        let mut python = Command::new("python3");
        python.args(["-c", script]);
        python.arg(world.at("small").join(database));
        let mut python = world.filesystem.command(&python);
        let mut child = python
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is installed");
        let mut said = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut said).unwrap();
        assert_eq!(said, "locked\n");
        Self(child)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
