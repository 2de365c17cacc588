//! A KeyVault's log, as those see it who read it from outside.

use sqlx::{Connection as _, SqliteConnection};
use wavry_credentials::audit::{Action, Event, file};

use super::*;
use crate::{
    audit_sink::{RawSink, sinks},
    keyvault::{KeyVault, barrier::Change, tests::unsealed},
};

/// Longer than anything here takes.
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(20);

async fn record(vault: &KeyVault, subject: &str) {
    let mut change = Change::default();
    change.record(Event::now(Action::Read, subject, "/v1/secret/data/db"));
    vault.barrier().commit(change).await.unwrap();
}

#[tokio::test]
async fn a_keyvaults_log_is_read_and_verified_beside_it_and_every_change_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("keyvault.db");
    let vault = unsealed(directory.path()).await;
    for subject in ["one", "two", "three", "four"] {
        record(&vault, subject).await;
    }
    let verifier = vault.barrier().audit_key().verifier();
    let location = Location::from(database.clone());
    let reader = Reader::open(&location).await.unwrap();
    let mut subjects = Vec::new();
    let show = |_: &str, line: Line| subjects.push(line.event.subject);
    let head = reader.verify(&verifier, show).await.unwrap();
    assert_eq!(head.seq, 4);
    assert_eq!(subjects, ["one", "two", "three", "four"]);
    assert_eq!(reader.lines(3).await.unwrap()[0].0, 4);

    for (change, first) in [
        (
            "UPDATE audit_line SET line = replace(line, 'two', 'six') WHERE seq = 2",
            2,
        ),
        ("DELETE FROM audit_line WHERE seq = 2", 2),
        ("DELETE FROM audit_line WHERE seq > 2", 3),
        ("UPDATE audit_line SET seq = -1 WHERE seq = 3", 1),
    ] {
        let url = format!("sqlite://{}", database.display());
        let mut direct = SqliteConnection::connect(&url).await.unwrap();
        let mut transaction = direct.begin_with("BEGIN IMMEDIATE").await.unwrap();
        let kept = "CREATE TEMP TABLE kept AS SELECT * FROM audit_line";
        sqlx::raw_sql(kept)
            .execute(&mut *transaction)
            .await
            .unwrap();
        sqlx::raw_sql(change)
            .execute(&mut *transaction)
            .await
            .unwrap();
        transaction.commit().await.unwrap();
        match reader.verify(&verifier, |_, _| ()).await {
            Err(ReadError::Damaged(bad)) => assert_eq!(bad.line(), first, "{change}: {bad}"),
            other => panic!("{change}: {other:?}"),
        }
        let restore = "DELETE FROM audit_line; INSERT INTO audit_line SELECT * FROM kept";
        sqlx::raw_sql(restore).execute(&mut direct).await.unwrap();
        direct.close().await.unwrap();
    }
    assert!(reader.verify(&verifier, |_, _| ()).await.is_ok());
}

#[tokio::test]
async fn a_keyvaults_log_goes_to_its_sinks() {
    let directory = tempfile::tempdir().unwrap();
    let vault = unsealed(directory.path()).await;
    let copy = directory.path().join("copy.jsonl");
    let raw = RawSink {
        name: "copy".into(),
        url: format!("file://{}", copy.display()),
        ..RawSink::default()
    };
    let sink = sinks(vec![raw]).unwrap().remove(0);
    record(&vault, "one").await;
    let following = tokio::spawn(vault.barrier().copy_audit_to(sink));
    record(&vault, "two").await;
    let verifier = vault.barrier().audit_key().verifier();
    let caught_up = async {
        let lines = || file::read(&copy, keyvault::LOG, &verifier, |_, _| ());
        while lines().map_or(0, |head| head.seq) != 2 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, caught_up).await.unwrap();
    following.abort();
}

#[tokio::test]
async fn a_database_without_a_log_is_told_from_one_with_a_damaged_log() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("other.sqlite");
    let url = format!("sqlite://{}?mode=rwc", file.display());
    let mut other = SqliteConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("CREATE TABLE something (one TEXT)")
        .execute(&mut other)
        .await
        .unwrap();
    let opened = Reader::open(&file.into()).await.err();
    assert!(matches!(opened, Some(ReadError::NoLog)), "{opened:?}");
    let gone = Reader::open(&directory.path().join("gone").into())
        .await
        .err();
    assert!(matches!(gone, Some(ReadError::Store(_))), "{gone:?}");
}
