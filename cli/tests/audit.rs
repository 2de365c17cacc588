//! `wavry audit`, on logs that the other commands wrote.

mod support;

use std::{path::Path, process::Output};

use support::{output, stderr, wavry};

/// A directory with keys, in which four tokens were issued; the log.
fn issued(directory: &Path) -> std::path::PathBuf {
    for key in ["master.key", "audit.key"] {
        let file = directory.join(key).display().to_string();
        assert!(
            output(wavry(&["key", "generate", "--out", &file]))
                .status
                .success()
        );
    }
    for subject in ["ann", "bob", "cid", "ann"] {
        let arguments = ["token", "session", "chat", "--subject", subject];
        let made = with_keys(directory, &arguments);
        assert!(made.status.success(), "{}", stderr(&made));
    }
    directory.join("provision.jsonl")
}

fn with_keys(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = wavry(arguments);
    command.env("WAVRY_MASTER_KEY_FILE", directory.join("master.key"));
    command.env("WAVRY_AUDIT_KEY_FILE", directory.join("audit.key"));
    output(command)
}

fn subjects(said: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&said.stdout);
    let lines = text.lines().map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).expect("a JSON object");
        line["subject"].as_str().unwrap_or_default().to_owned()
    });
    lines.collect()
}

#[test]
fn what_was_issued_is_found_and_verifies() {
    let directory = tempfile::tempdir().unwrap();
    let log = issued(directory.path()).display().to_string();
    let audit = |arguments: &[&str]| {
        let mut all = vec!["audit", arguments[0], "--file", &log];
        all.extend(&arguments[1..]);
        with_keys(directory.path(), &all)
    };
    assert_eq!(subjects(&audit(&["tail", "-n", "2"])), ["cid", "ann"]);
    let found = audit(&["query", "--subject", "ann", "--action", "issue"]);
    assert_eq!(subjects(&found), ["ann", "ann"]);
    assert!(subjects(&audit(&["query", "--until", "2020-01-01T00:00:00Z"])).is_empty());
    let verified = audit(&["verify"]);
    assert!(verified.status.success(), "{}", stderr(&verified));
    assert!(String::from_utf8_lossy(&verified.stdout).contains("4 lines hold"));
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(!text.contains("v4.public."), "{text}");
}

#[test]
fn a_log_that_was_changed_fails_and_its_first_bad_line_is_named() {
    type Change = fn(&mut Vec<&str>);
    let changes: [(Change, &str); 3] = [
        (
            |lines| {
                lines.remove(1);
            },
            "line 2 ",
        ),
        (|lines| lines.swap(2, 3), "line 3 "),
        (|lines| lines.truncate(3), "line 4 is missing"),
    ];
    for (change, expected) in changes {
        let directory = tempfile::tempdir().unwrap();
        let log = issued(directory.path());
        let text = std::fs::read_to_string(&log).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        change(&mut lines);
        std::fs::write(&log, lines.join("\n") + "\n").unwrap();
        let log = log.display().to_string();
        let said = with_keys(directory.path(), &["audit", "verify", "--file", &log]);
        assert_eq!(said.status.code(), Some(1));
        assert!(stderr(&said).contains(expected), "{}", stderr(&said));
    }
}

#[test]
fn what_cannot_be_put_on_record_is_not_issued() {
    let directory = tempfile::tempdir().unwrap();
    issued(directory.path());
    let nowhere = directory
        .path()
        .join("none/audit.jsonl")
        .display()
        .to_string();
    let arguments = [
        "token",
        "session",
        "chat",
        "--subject",
        "x",
        "--audit-log",
        &nowhere,
    ];
    let said = with_keys(directory.path(), &arguments);
    assert!(!said.status.success());
    assert!(said.stdout.is_empty());
    assert!(stderr(&said).contains(&nowhere), "{}", stderr(&said));
}
