//! A store that is put back as it was, and one that somebody else uses.

use std::fs;

use super::*;

/// What the files of a database hold.
struct Backup(Vec<(PathBuf, Option<Vec<u8>>)>);

impl Backup {
    fn of(world: &World) -> Self {
        let file = world.file().display().to_string();
        let files = ["", "-wal", "-shm"].map(|end| PathBuf::from(format!("{file}{end}")));
        Self(files.map(|file| (file.clone(), fs::read(file).ok())).into())
    }

    fn restore(&self) {
        for (file, content) in &self.0 {
            match content {
                Some(content) => fs::write(file, content).unwrap(),
                None => drop(fs::remove_file(file)),
            }
        }
    }
}

async fn refusal(world: &World) -> Rollback {
    let vault = world.open(false).await.unwrap();
    let refused = vault.unseal(world.key()).await;
    assert!(!vault.barrier().is_unsealed());
    vault.close().await;
    match refused {
        Err(Error::Rollback(rollback)) => rollback,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_store_that_was_rolled_back_is_refused_until_it_is_accepted_which_is_put_on_record() {
    let world = World::sqlite();
    let vault = world.vault().await;
    vault.barrier().commit(put("a", "1")).await.unwrap();
    vault.close().await;
    let backup = Backup::of(&world);
    let vault = world.vault().await;
    for text in ["2", "3"] {
        vault.barrier().commit(put("a", text)).await.unwrap();
    }
    let newest = vault.barrier().read("a").await.unwrap().unwrap().revision;
    vault.close().await;

    backup.restore();
    assert!(matches!(
        refusal(&world).await,
        Rollback::Behind {
            position: 1,
            seen_position: 3,
            ..
        }
    ));
    // It stays refused, however often it is tried.
    assert!(matches!(refusal(&world).await, Rollback::Behind { .. }));

    let vault = world.open(true).await.unwrap();
    vault.unseal(world.key()).await.unwrap();
    assert!(reads(vault.barrier(), "a", "1").await);
    let events = verified(&vault).await;
    assert_eq!(events[0].action, Action::Rollback);
    assert_eq!(events[0].path, "--accept-rollback");
    assert!(
        events[0].outcome.contains("rolled back"),
        "{}",
        events[0].outcome
    );
    // A revision that somebody has seen does not come again with something else.
    vault.barrier().commit(put("a", "4")).await.unwrap();
    assert!(vault.barrier().read("a").await.unwrap().unwrap().revision > newest);
    vault.close().await;
    // Accepted once; from then on it is noticed again.
    backup.restore();
    assert!(matches!(refusal(&world).await, Rollback::Behind { .. }));
}

#[tokio::test]
async fn an_audit_log_that_was_rolled_back_alone_is_noticed() {
    let world = World::sqlite();
    let vault = world.vault().await;
    vault.barrier().commit(put("a", "1")).await.unwrap();
    vault.close().await;
    let backup = Backup::of(&world);
    let vault = world.vault().await;
    let mut change = Change::default();
    change.record(event("read"));
    vault.barrier().commit(change).await.unwrap();
    vault.close().await;
    backup.restore();
    assert!(matches!(
        refusal(&world).await,
        Rollback::Behind {
            line: 0,
            seen_line: 1,
            ..
        }
    ));
}

#[tokio::test]
async fn a_counter_that_is_gone_another_stores_or_changed_is_no_counter() {
    let world = World::sqlite();
    let vault = world.vault().await;
    vault.barrier().commit(put("a", "1")).await.unwrap();
    vault.close().await;
    let good = fs::read(world.counter()).unwrap();

    fs::remove_file(world.counter()).unwrap();
    assert!(matches!(refusal(&world).await, Rollback::Missing { .. }));

    let other = World::sqlite();
    other.vault().await.close().await;
    fs::copy(other.counter(), world.counter()).unwrap();
    assert!(matches!(refusal(&world).await, Rollback::Foreign { .. }));

    // One slot may be spoilt by a crash, and not both.
    for slot in [0, 4096] {
        let mut bytes = good.clone();
        bytes[slot + 24] ^= 1;
        fs::write(world.counter(), &bytes).unwrap();
        world.vault().await.close().await;
    }
    let mut bytes = good.clone();
    bytes[24] ^= 1;
    bytes[4096 + 24] ^= 1;
    fs::write(world.counter(), &bytes).unwrap();
    assert!(matches!(refusal(&world).await, Rollback::Foreign { .. }));
}

#[tokio::test]
async fn nothing_is_written_while_the_counter_cannot_be_and_then_it_is_again() {
    let world = World::sqlite();
    let vault = world.vault().await;
    vault.barrier().commit(put("a", "1")).await.unwrap();
    // As if its disk were gone.
    let away = world.directory.path().join("away");
    fs::rename(world.apart(), &away).unwrap();
    let mut refused = None;
    for i in 0..1000 {
        if let Err(error) = vault.barrier().commit(put("a", &i.to_string())).await {
            refused = Some(error);
            break;
        }
        tokio::task::yield_now().await;
    }
    assert!(matches!(refused, Some(CommitError::Failed(Error::Counter))));
    assert!(vault.barrier().read("a").await.is_ok());
    fs::rename(&away, world.apart()).unwrap();
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while vault.barrier().commit(put("a", "2")).await.is_err() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "it does not recover"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    vault.close().await;
    world.vault().await.close().await;
}

#[tokio::test]
async fn a_second_process_does_not_open_the_file_and_names_the_first() {
    let world = World::sqlite();
    let vault = world.vault().await;
    let refused = world.open(false).await.err();
    let text = refused.unwrap().to_string();
    assert!(
        text.contains(&format!("process {}", std::process::id())),
        "{text}"
    );
    vault.close().await;
    world.vault().await.close().await;
}

#[tokio::test]
async fn a_store_that_cannot_be_written_refuses_in_time_and_is_written_again_when_it_can_be() {
    use sqlx::{Connection as _, Executor as _};
    let world = World::sqlite();
    let vault = world.vault().await;
    vault.barrier().commit(put("a", "1")).await.unwrap();
    let mut blocker = sqlx::SqliteConnection::connect(&world.file().display().to_string())
        .await
        .unwrap();
    blocker.execute("BEGIN IMMEDIATE").await.unwrap();
    let began = tokio::time::Instant::now();
    let mut change = Change::default();
    change.record(event("read"));
    let refused = vault.barrier().commit(change).await.unwrap_err();
    match refused {
        CommitError::Failed(error) => assert!(error.is_of_the_moment(), "{error}"),
        CommitError::Conflict => panic!("no conflict"),
    }
    assert!(began.elapsed() < DEADLINE + Duration::from_millis(500));
    blocker.execute("ROLLBACK").await.unwrap();
    vault.barrier().commit(put("a", "2")).await.unwrap();
    assert!(verified(&vault).await.is_empty());
    vault.close().await;
}

#[tokio::test]
async fn a_disk_that_is_full_or_read_only_refuses_and_is_written_again_when_it_can_be() {
    let world = World::sqlite();
    let vault = world.vault().await;
    vault.barrier().commit(put("a", "1")).await.unwrap();
    let Store::Sqlite(sqlite) = &vault.barrier().shared.store else {
        panic!("it is SQLite");
    };
    for (hindrance, relief) in [
        (
            "PRAGMA max_page_count = 1",
            "PRAGMA max_page_count = 1000000",
        ),
        ("PRAGMA query_only = ON", "PRAGMA query_only = OFF"),
    ] {
        sqlite.run(hindrance).await;
        let large = "x".repeat(100_000);
        let began = tokio::time::Instant::now();
        let refused = vault.barrier().commit(put("b", &large)).await.unwrap_err();
        match refused {
            CommitError::Failed(error) => assert!(error.is_of_the_moment(), "{error}"),
            CommitError::Conflict => panic!("no conflict"),
        }
        assert!(began.elapsed() < DEADLINE + Duration::from_millis(500));
        assert!(reads(vault.barrier(), "a", "1").await);
        sqlite.run(relief).await;
        let mut change = put("b", &large);
        change.record(event(hindrance));
        vault.barrier().commit(change).await.unwrap();
        assert!(reads(vault.barrier(), "b", &large).await);
        vault.barrier().commit(delete("b")).await.unwrap();
    }
    assert_eq!(verified(&vault).await.len(), 2);
    vault.close().await;
    world.vault().await.close().await;
}

#[tokio::test]
async fn what_was_committed_though_nobody_could_await_it_is_seen_by_the_next_change() {
    let world = World::sqlite();
    let vault = world.vault().await;
    vault.barrier().commit(put("a", "1")).await.unwrap();
    let revision = vault.barrier().read("a").await.unwrap().unwrap().revision;
    let Store::Sqlite(sqlite) = &vault.barrier().shared.store else {
        panic!("it is SQLite");
    };
    // As a commit that took longer than its deadline leaves it.
    sqlite.run("DELETE FROM entry WHERE path = 'a'").await;
    sqlite.run("PRAGMA query_only = ON").await;
    vault.barrier().commit(put("b", "1")).await.unwrap_err();
    sqlite.run("PRAGMA query_only = OFF").await;
    let mut change = Change::default();
    change.expect("a", Some(revision));
    change.record(event("read"));
    let outcome = vault.barrier().commit(change).await;
    assert!(matches!(outcome, Err(CommitError::Conflict)));
    vault.close().await;
}
