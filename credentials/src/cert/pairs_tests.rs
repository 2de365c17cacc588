use std::{env, process::Command};

use rcgen::{CertificateParams, KeyPair};

use super::*;

/// Names the directory to a writer that is to be killed.
const DIRECTORY: &str = "WAVRY_TEST_PAIRS";

fn pair() -> (String, Secret<Vec<u8>>, Vec<u8>) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["gateway.example".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let pem = Secret::new(key.serialize_pem().into_bytes());
    (certificate.pem(), pem, certificate.der().to_vec())
}

fn issued(authority: &str) -> Issued {
    Issued {
        authority: authority.to_owned(),
    }
}

#[test]
fn the_newest_pair_is_read_and_one_before_it_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let pairs = Pairs::open(directory.path().join("pairs")).unwrap();
    assert!(pairs.newest().is_none());
    for number in 1..5 {
        let (chain, key, leaf) = pair();
        let issued = issued(&number.to_string());
        pairs.write(&chain, &key, &issued).unwrap();
        let (newest, by) = pairs.newest().unwrap();
        assert_eq!((newest.leaf().as_ref(), by), (&leaf[..], issued));
    }
    assert_eq!(pairs.numbers(), [3, 4]);
}

#[test]
fn pairs_that_are_written_at_once_are_written_one_after_the_other() {
    let directory = tempfile::tempdir().unwrap();
    let pairs = Pairs::open(directory.path().join("pairs")).unwrap();
    std::thread::scope(|scope| {
        let pairs = &pairs;
        let writers: Vec<_> = (0..8)
            .map(|number: u8| {
                scope.spawn(move || {
                    let (chain, key, _) = pair();
                    pairs.write(&chain, &key, &issued(&number.to_string()))
                })
            })
            .collect();
        for writer in writers {
            writer.join().unwrap().unwrap();
        }
    });
    assert_eq!(pairs.numbers(), [7, 8]);
}

#[test]
fn a_pair_that_was_damaged_is_passed_over_for_the_one_before_it() {
    let directory = tempfile::tempdir().unwrap();
    let pairs = Pairs::open(directory.path().join("pairs")).unwrap();
    let (chain, key, leaf) = pair();
    pairs.write(&chain, &key, &issued("a")).unwrap();
    let (other, other_key, _) = pair();
    pairs.write(&other, &other_key, &issued("a")).unwrap();
    source::write_secret(&pairs.of(2).join(KEY), &key).unwrap();
    assert_eq!(pairs.newest().unwrap().0.leaf().as_ref(), &leaf[..]);
    fs::remove_file(pairs.of(1).join(ISSUED)).unwrap();
    assert!(pairs.newest().is_none());
}

#[test]
fn what_was_left_half_written_is_swept_away() {
    let directory = tempfile::tempdir().unwrap();
    let pairs = Pairs::open(directory.path().join("pairs")).unwrap();
    fs::create_dir(directory.path().join("pairs/.half")).unwrap();
    assert!(pairs.newest().is_none());
    let (chain, key, _) = pair();
    pairs.write(&chain, &key, &issued("a")).unwrap();
    assert_eq!(
        fs::read_dir(directory.path().join("pairs"))
            .unwrap()
            .count(),
        1
    );
}

#[test]
fn whenever_a_writer_is_killed_the_old_pair_is_there_or_the_new_one() {
    if let Some(directory) = env::var_os(DIRECTORY) {
        let pairs = Pairs::open(directory.into()).unwrap();
        let (chain, key, _) = pair();
        pairs.write(&chain, &key, &issued("new")).unwrap();
        return;
    }
    let (mut old, mut new) = (0, 0);
    for call in ["mkdir", "fsync", "rename", "unlink", "unlinkat", "rmdir"] {
        for time in 1.. {
            let directory = tempfile::tempdir().unwrap();
            let pairs = Pairs::open(directory.path().join("pairs")).unwrap();
            for _ in 0..KEPT {
                let (chain, key, _) = pair();
                pairs.write(&chain, &key, &issued("old")).unwrap();
            }
            let was_killed = write_and_be_killed_at(&pairs.directory, call, time);
            let (_, by) = pairs.newest().expect("a pair that fits");
            match by.authority.as_str() {
                _ if !was_killed => break,
                "old" => old += 1,
                _ => new += 1,
            }
            // And the next renewal works on what was left.
            let (chain, key, leaf) = pair();
            pairs.write(&chain, &key, &issued("next")).unwrap();
            assert_eq!(pairs.newest().unwrap().0.leaf().as_ref(), &leaf[..]);
            assert!(fs::read_dir(&pairs.directory).unwrap().count() <= KEPT + 1);
        }
    }
    // Two directories, seven syncs and four renames; then what is old is removed, file by file.
    assert!(
        old >= 11 && new >= 4,
        "killed {old} times before the new pair was there, {new} after"
    );
}

/// Has this test write a pair, and be killed when it makes `call` for the `time`-th time; whether it was.
fn write_and_be_killed_at(directory: &Path, call: &str, time: usize) -> bool {
    let ended = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e"])
        .arg(format!("trace={call}"))
        .arg("-e")
        .arg(format!("inject={call}:signal=KILL:when={time}"))
        .arg(env::current_exe().unwrap())
        .args([
            "cert::pairs::tests::whenever_a_writer_is_killed_the_old_pair_is_there_or_the_new_one",
            "--exact",
        ])
        .env(DIRECTORY, directory)
        .output()
        .expect("strace, which scripts/test.sh installs");
    let said = String::from_utf8_lossy(&ended.stdout);
    assert!(!said.contains("FAILED"), "{said}");
    !ended.status.success()
}
