//! The same on SQLite and PostgreSQL.

use super::*;
use crate::{audit_sink::Log, keyvault::postgres_server::Server};

/// Tests of both databases: on SQLite each of its own, on PostgreSQL one after the other with one server.
macro_rules! contract {
    ($($name:ident)*) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $name() {
                super::$name(&super::World::sqlite()).await;
            })*
        }

        #[tokio::test]
        async fn postgresql_owes_the_same() {
            let server = Server::start(false);
            $(
                println!("{}", stringify!($name));
                let url = server.database(stringify!($name)).await;
                let location = Location::Postgres(url.parse().unwrap());
                $name(&World::at(tempfile::tempdir().unwrap(), location)).await;
            )*
        }
    };
}

contract! {
    what_was_committed_is_read_listed_and_deleted
    revisions_grow_and_a_change_that_expects_another_one_does_nothing
    of_many_that_expect_the_same_revision_exactly_one_commits
    every_change_has_its_lines_and_the_log_verifies
    a_sealed_vault_gives_and_takes_nothing_and_tells_its_log
    records_are_read_as_what_they_were_written_as
    what_was_written_is_there_after_a_restart
    changes_of_one_group_see_each_other
    a_vault_is_initialised_once
    it_is_kept_how_far_each_sink_is
}

async fn it_is_kept_how_far_each_sink_is(world: &World) {
    let vault = world.vault().await;
    let store = &vault.barrier().shared.store;
    assert_eq!(Log::delivered(store, "siem").await.unwrap(), 0);
    for seq in [3, 7] {
        Log::keep_delivered(store, "siem", seq).await.unwrap();
        assert_eq!(Log::delivered(store, "siem").await.unwrap(), seq);
    }
    assert_eq!(Log::delivered(store, "other").await.unwrap(), 0);

    let claimed = Log::claim(store, "siem").await.unwrap();
    assert!(claimed.is_some());
    assert!(Log::claim(store, "other").await.unwrap().is_some());
    let is_taken = Log::claim(store, "siem").await.unwrap().is_none();
    assert_eq!(is_taken, store.is_shared());
    drop(claimed);
    // The server notices that the connection is gone.
    let given_back = async {
        while Log::claim(store, "siem").await.unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), given_back)
        .await
        .unwrap();
    vault.close().await;
}

#[tokio::test]
async fn whoever_stops_waiting_or_fails_leaves_no_connection_in_a_transaction() {
    let server = Server::start(false);
    let url = server.database("abandoned").await;
    let location = Location::Postgres(url.parse().unwrap());
    let world = World::at(tempfile::tempdir().unwrap(), location);
    let (one, other) = (world.vault().await, world.vault().await);
    let store = &one.barrier().shared.store;
    for polls in 1..40 {
        let mut begun = Box::pin(store.scan(|_, _, _| ()));
        for _ in 0..polls {
            if futures_util::poll!(&mut begun).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    for i in 0..20 {
        let path = format!("a{i}");
        one.barrier().commit(put(&path, "1")).await.unwrap();
        assert!(reads(one.barrier(), &path, "1").await);
    }

    // The other one holds the lock for longer than a statement may take.
    let held = other.barrier().shared.store.begin().await.unwrap();
    let waiting: Vec<_> = (0..8).map(|_| store.begin()).collect();
    let refused = futures_util::future::join_all(waiting).await;
    assert!(refused.iter().all(Result::is_err));
    drop((held, refused));
    for i in 0..20 {
        let path = format!("b{i}");
        one.barrier().commit(put(&path, "1")).await.unwrap();
    }
}

#[tokio::test]
async fn a_read_of_a_server_that_does_not_answer_ends_in_time_and_later_ones_are_answered() {
    let server = Server::start(false);
    let url = server.database("still").await;
    let location = Location::Postgres(url.parse().unwrap());
    let world = World::at(tempfile::tempdir().unwrap(), location);
    let vault = world.vault().await;
    let barrier = vault.barrier();
    barrier.commit(put("a", "1")).await.unwrap();
    server.signal_backends("-STOP");
    let began = std::time::Instant::now();
    let refused = tokio::join!(
        barrier.read("b"),
        barrier.read_record_from_store::<String>("c"),
        barrier.list("", None, 10),
    );
    // Who has a connection is too slow; who wants one more may be told first that there is none.
    assert!(refused.0.is_err() && refused.1.is_err() && refused.2.is_err());
    assert!(began.elapsed() < 2 * DEADLINE);
    server.signal_backends("-CONT");
    let answered = async {
        while !matches!(barrier.read("b").await, Ok(None)) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), answered)
        .await
        .expect("it is answered again");
    assert!(reads(barrier, "a", "1").await);
    vault.close().await;
}

#[tokio::test]
async fn two_instances_on_postgresql_write_one_store() {
    let server = Server::start(false);
    let url = server.database("shared").await;
    let location = Location::Postgres(url.parse().unwrap());
    let world = World::at(tempfile::tempdir().unwrap(), location);
    let (one, other) = (world.vault().await, world.vault().await);
    let tasks: Vec<_> = (0..100)
        .map(|i| {
            let barrier = if i % 2 == 0 { &one } else { &other }.barrier().clone();
            tokio::spawn(async move {
                let mut change = put("one", &i.to_string());
                change.expect("one", None);
                change.put(format!("own/{i}"), value("x"));
                change.record(event(&i.to_string()));
                barrier.commit(change).await.is_ok()
            })
        })
        .collect();
    let mut winners = 0;
    for task in tasks {
        winners += usize::from(task.await.unwrap());
    }
    assert_eq!(winners, 1);
    assert_eq!(verified(&other).await.len(), 1);
    // What one deletes, the other's next commit that depends on it misses.
    let revision = other.barrier().read("one").await.unwrap().unwrap().revision;
    one.barrier().commit(delete("one")).await.unwrap();
    let mut read = Change::default();
    read.expect("one", Some(revision));
    read.record(event("read"));
    let refused = other.barrier().commit(read).await;
    assert!(matches!(refused, Err(CommitError::Conflict)));
    one.close().await;
    other.close().await;
    // The digest that both kept up is that of what is there.
    world.vault().await.close().await;
}

async fn what_was_committed_is_read_listed_and_deleted(world: &World) {
    let vault = world.vault().await;
    let barrier = vault.barrier();
    for path in ["a/b", "a/b/c", "a/b/d/e", "a/b-c", "a/c", "b", "a/\u{e4}"] {
        barrier.commit(put(path, path)).await.unwrap();
    }
    assert!(reads(barrier, "a/b/c", "a/b/c").await);
    assert!(barrier.read("a").await.unwrap().is_none());
    let list = barrier.list("a/", None, 10).await.unwrap();
    assert_eq!(list, ["b", "b-c", "b/", "c", "\u{e4}"]);
    let mut one_by_one: Vec<String> = Vec::new();
    loop {
        let after = one_by_one.last().map(|name| &**name);
        let page = barrier.list("a/", after, 1).await.unwrap();
        let [name] = &page[..] else { break };
        one_by_one.push(name.clone());
    }
    assert_eq!(one_by_one, list);
    assert_eq!(barrier.list("", None, 10).await.unwrap(), ["a/", "b"]);
    assert!(barrier.list("c/", None, 10).await.unwrap().is_empty());

    barrier.commit(delete("a/b")).await.unwrap();
    assert!(barrier.read("a/b").await.unwrap().is_none());
    assert!(reads(barrier, "a/b/c", "a/b/c").await);
    vault.close().await;
}

async fn revisions_grow_and_a_change_that_expects_another_one_does_nothing(world: &World) {
    let vault = world.vault().await;
    let barrier = vault.barrier();
    let mut first = put("a", "1");
    first.expect("a", None);
    barrier.commit(first).await.unwrap();
    let revision = barrier.read("a").await.unwrap().unwrap().revision;

    let mut again = put("a", "2");
    again.expect("a", None);
    again.put("b", value("2"));
    again.record(event("never"));
    let refused = barrier.commit(again).await;
    assert!(matches!(refused, Err(CommitError::Conflict)));
    assert!(reads(barrier, "a", "1").await);
    assert!(barrier.read("b").await.unwrap().is_none());
    assert!(verified(&vault).await.is_empty());

    let mut next = put("a", "2");
    next.expect("a", Some(revision));
    barrier.commit(next).await.unwrap();
    let seen = barrier.read("a").await.unwrap().unwrap().revision;
    assert!(seen > revision);

    // An entry that comes back is another one.
    barrier.commit(delete("a")).await.unwrap();
    barrier.commit(put("a", "3")).await.unwrap();
    assert!(barrier.read("a").await.unwrap().unwrap().revision > seen);
    vault.close().await;
}

async fn of_many_that_expect_the_same_revision_exactly_one_commits(world: &World) {
    let vault = world.vault().await;
    let tasks: Vec<_> = (0..100)
        .map(|i| {
            let barrier = vault.barrier().clone();
            tokio::spawn(async move {
                let mut change = put("one", &i.to_string());
                change.expect("one", None);
                change.record(event(&i.to_string()));
                barrier.commit(change).await.is_ok()
            })
        })
        .collect();
    let mut winners = 0;
    for task in tasks {
        winners += usize::from(task.await.unwrap());
    }
    assert_eq!(winners, 1);
    assert_eq!(verified(&vault).await.len(), 1);
    vault.close().await;
}

async fn every_change_has_its_lines_and_the_log_verifies(world: &World) {
    let vault = world.vault().await;
    let tasks: Vec<_> = (0..300)
        .map(|i| {
            let barrier = vault.barrier().clone();
            tokio::spawn(async move {
                let mut change = match i % 3 {
                    0 => put(&format!("x/{i}"), "x"),
                    _ => Change::default(),
                };
                change.record(event(&i.to_string()));
                barrier.commit(change).await.unwrap();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let mut subjects: Vec<u32> = verified(&vault)
        .await
        .iter()
        .map(|event| event.subject.parse().unwrap())
        .collect();
    subjects.sort_unstable();
    assert_eq!(subjects, (0..300).collect::<Vec<_>>());
    vault.close().await;
}

async fn a_sealed_vault_gives_and_takes_nothing_and_tells_its_log(world: &World) {
    let vault = world.vault().await;
    let barrier = vault.barrier();
    barrier.commit(put("a", "1")).await.unwrap();
    vault.seal();
    assert!(matches!(barrier.read("a").await, Err(Error::Sealed)));
    let list = barrier.list("", None, 1).await;
    assert!(matches!(list, Err(Error::Sealed)));
    let refused = barrier.commit(put("a", "2")).await;
    assert!(matches!(refused, Err(CommitError::Failed(Error::Sealed))));
    let mut told = Change::default();
    told.record(event("refused"));
    barrier.commit(told).await.unwrap();
    assert_eq!(verified(&vault).await.len(), 1);
    let other = vault.unseal(aead::Key::generate()).await;
    let keyring = other.unwrap_err();
    assert!(matches!(keyring, Error::Keyring(Unopened::OtherKey { .. })));
    vault.unseal(world.key()).await.unwrap();
    assert!(reads(barrier, "a", "1").await);
    vault.close().await;
}

async fn records_are_read_as_what_they_were_written_as(world: &World) {
    let vault = world.vault().await;
    let mut change = Change::default();
    change.put_record("r", &("a", 7));
    vault.barrier().commit(change).await.unwrap();
    let read = vault.barrier().read_record::<(String, u8)>("r").await;
    assert_eq!(read.unwrap().unwrap().1, ("a".to_owned(), 7));
    let other = vault.barrier().read_record::<bool>("r").await;
    assert!(matches!(other, Err(Error::Record { .. })));
    let mut change = Change::default();
    change.put_record("m", &std::collections::HashMap::from([((1, 2), 3)]));
    let refused = vault.barrier().commit(change).await;
    let refused = refused.unwrap_err();
    assert!(matches!(refused, CommitError::Failed(Error::Record { .. })));
    vault.close().await;
}

async fn what_was_written_is_there_after_a_restart(world: &World) {
    let vault = world.vault().await;
    for i in 0..20 {
        let mut change = put(&format!("a/{i}"), &i.to_string());
        change.record(event(&i.to_string()));
        vault.barrier().commit(change).await.unwrap();
    }
    vault.barrier().commit(delete("a/3")).await.unwrap();
    vault.close().await;
    let vault = world.vault().await;
    for i in 0..20 {
        let is_there = reads(vault.barrier(), &format!("a/{i}"), &i.to_string()).await;
        assert_eq!(is_there, i != 3);
    }
    assert_eq!(verified(&vault).await.len(), 20);
    vault.close().await;
}

async fn changes_of_one_group_see_each_other(world: &World) {
    let vault = world.vault().await;
    let barrier = vault.barrier();
    // Polled together, they are one group.
    let (first, second, third) = tokio::join!(
        barrier.commit(put("a", "1")),
        async {
            let mut change = put("a", "2");
            change.expect("a", None);
            barrier.commit(change).await
        },
        barrier.commit(delete("b")),
    );
    first.unwrap();
    third.unwrap();
    assert!(matches!(second, Err(CommitError::Conflict)));
    assert!(reads(barrier, "a", "1").await);
    vault.close().await;
}

async fn a_vault_is_initialised_once(world: &World) {
    let vault = world.open(false).await.unwrap();
    assert_eq!(vault.seal_config().await.unwrap(), None);
    let seal = seal::Config::Shares {
        count: 5,
        threshold: 3,
    };
    assert!(vault.initialise(&world.key(), seal).await.unwrap());
    let other = aead::Key::generate();
    let again = vault.initialise(&other, seal::Config::Key).await;
    assert!(!again.unwrap());
    assert_eq!(vault.seal_config().await.unwrap(), Some(seal));
    vault.unseal(world.key()).await.unwrap();
    vault.close().await;
}
