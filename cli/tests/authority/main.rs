//! Certificates of a cluster's own authority, in processes that are killed while they renew them, and in a KeyVault that
//! runs alone.

#![allow(
    clippy::unwrap_used,
    reason = "it is test code, outside of test functions"
)]

#[path = "../support/mod.rs"]
mod support;

mod keyvault;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant, SystemTime},
};

use serde_json::Value;
use support::{
    DEADLINE, RoleProcess, cluster::Cluster, filesystem::Meddled, output, signal, stderr, wait_for,
    wait_until_gone, wavry,
};
use wavry_credentials::cert::Pair;

/// The pair that a node keeps, by its number, which grows with each renewal.
fn kept(state: &Path) -> Option<(u64, Pair)> {
    let pairs = state.join("certificate/pairs");
    let entries = fs::read_dir(&pairs).ok()?.flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok());
    let newest = numbers.max()?;
    let [chain, key] = files(state, newest);
    let pair = Pair::read(&chain, &key);
    Some((newest, pair.expect("a chain with the key that is its own")))
}

fn files(state: &Path, number: u64) -> [PathBuf; 2] {
    let pair = state.join(format!("certificate/pairs/{number:08}"));
    ["chain.pem", "key.pem"].map(|file| pair.join(file))
}

/// How many there have been.
fn renewals(state: &Path) -> u64 {
    // One that is being swept away is not read.
    let pairs = fs::read_dir(state.join("certificate/pairs"));
    let entries = pairs.into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.max().unwrap_or_default()
}

/// A cluster whose nodes need certificates, which hold for four seconds.
fn cluster() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.add("open", "echo:", false);
    cluster.issue_certificates("certificate_lifetime = \"4s\"\nnode_certificates = \"required\"");
    cluster.start()
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.unwrap().success());
}

/// The same command.
fn again(command: &Command) -> Command {
    let mut again = Command::new(command.get_program());
    again.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => again.env(name, value),
            None => again.env_remove(name),
        };
    }
    again
}

/// A node that is killed where a thread of it makes `call` for the `time`-th time.
fn starts_and_is_killed(node: &Command, ready: &Path, call: &str, time: usize) -> Child {
    let mut strace = Command::new("strace");
    strace
        .args(["-f", "-qq", "-o", "/dev/null", "-e"])
        .arg(format!("trace={call}"))
        .arg("-e")
        .arg(format!("inject={call}:signal=KILL:when={time}"))
        .arg(node.get_program())
        .args(node.get_args())
        .arg("--ready-file")
        .arg(ready);
    for (name, value) in node.get_envs() {
        match value {
            Some(value) => strace.env(name, value),
            None => strace.env_remove(name),
        };
    }
    let _ = fs::remove_file(ready);
    strace
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("strace is installed")
}

/// Whether the node was killed before it had renewed its certificate, and has done all that goes with it.
fn was_killed(mut strace: Child, ready: &Path, state: &Path, before: u64) -> bool {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if strace.try_wait().unwrap().is_some() {
            return true;
        }
        let attempts = fs::read(state.join("certificate/attempts.json")).unwrap_or_default();
        let attempts: Value = serde_json::from_slice(&attempts).unwrap_or_default();
        // That is what is written last.
        if renewals(state) > before
            && attempts["failures"] == 0
            && let Ok(text) = fs::read(ready)
        {
            let ready: Value = serde_json::from_slice(&text).unwrap();
            signal(ready["pid"].as_u64().unwrap().try_into().unwrap(), "KILL");
            strace.wait().unwrap();
            return false;
        }
        assert!(Instant::now() < deadline, "neither killed nor renewed");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn whenever_a_node_is_killed_while_it_renews_it_boots_with_a_matching_pair_and_renews_the_next() {
    let mut cluster = cluster();
    let state = cluster.directory().join("exit/state");
    // With as many as are kept, a renewal takes one away, too.
    wait_for("two renewals", || renewals(&state) >= 3);
    let relay = cluster.kill_relay();
    let (before, expired) = kept(&state).unwrap();
    wait_for("it expires", || expired.not_after() < SystemTime::now());
    let template = cluster.directory().join("template");
    copy(&state, &template);
    let ready = cluster.directory().join("traced.ready");

    let (mut old, mut new) = (0, 0);
    for call in ["mkdir", "fsync", "rename", "unlink", "unlinkat", "rmdir"] {
        for time in 1.. {
            copy(&template, &state);
            let strace = starts_and_is_killed(&relay, &ready, call, time);
            if !was_killed(strace, &ready, &state, before) {
                break;
            }
            let (left, _) = kept(&state).expect("a pair");
            match left == before {
                true => old += 1,
                false => new += 1,
            }
            // It starts, which takes a certificate that holds, and renews that.
            let node = RoleProcess::start(again(&relay), &cluster.directory().join("relay.after"));
            wait_for("another certificate", || renewals(&state) > left);
            drop(node);
            kept(&state).expect("a pair");
        }
    }
    // A directory, three files and the attempts are written before the pair is there.
    assert!(
        old >= 8 && new >= 4,
        "killed {old} times before the new pair was there, {new} after"
    );
}

/// Certificates of nodes that the master has put on record.
fn issued(cluster: &Cluster) -> usize {
    let database = cluster.directory().join("master.sqlite");
    let mut query = wavry(&["audit", "query", "--action", "issue", "--database"]);
    query.arg(database);
    let said = output(query);
    assert!(said.status.success(), "{}", stderr(&said));
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let is_one = |line: &&str| line.contains("/v1/nodes/certificate");
    text.lines().filter(is_one).count()
}

#[test]
fn what_a_master_issued_and_did_not_give_out_as_it_was_killed_is_asked_for_again() {
    let mut cluster = cluster();
    let states = ["exit/state", "edge/state"].map(|state| cluster.directory().join(state));
    let had = || -> u64 { states.iter().map(|state| renewals(state)).sum() };
    let mut lost = 0;
    for _ in 0..8 {
        wait_for("a certificate of each", || {
            states.iter().all(|state| renewals(state) > 0)
        });
        // What is on record is written by then, and not yet answered.
        let master = cluster.pid("master");
        let _meddled = Meddled::killed_at(master, "fsync,fdatasync");
        wait_until_gone(&[master]);
        lost = issued(&cluster).saturating_sub(usize::try_from(had()).unwrap());
        let before = states.each_ref().map(|state| renewals(state));
        cluster.restart_master();
        cluster.trust_authorities();
        for (state, before) in states.iter().zip(before) {
            wait_for("another certificate", || renewals(state) > before);
            kept(state).expect("a pair");
        }
        if lost > 0 {
            break;
        }
    }
    assert!(lost > 0, "no certificate was lost");
    // All of it is as good as before.
    let report = cluster.probe("open", &[]);
    assert!(report.is_object());
}
