//! What a store and the barrier over it owe, whatever the database is.

use super::*;
use crate::keyvault::{KeyVault, LOG, tests::unsealed};
use wavry_credentials::audit::{Action, Event, verify::Reading};

fn value(text: &str) -> Secret<Vec<u8>> {
    Secret::new(text.as_bytes().to_vec())
}

fn put(path: &str, text: &str) -> Change {
    let mut change = Change::default();
    change.put(path, value(text));
    change
}

fn event(subject: &str) -> Event {
    Event::now(Action::Issue, subject, "test")
}

async fn reads(barrier: &Barrier, path: &str, text: &str) -> bool {
    let entry = barrier.read(path).await.unwrap();
    entry.is_some_and(|entry| entry.value.matches(text.as_bytes()))
}

#[tokio::test]
async fn what_was_committed_is_read_listed_and_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let vault = unsealed(directory.path()).await;
    let barrier = vault.barrier();
    for path in ["a/b", "a/b/c", "a/b/d/e", "a/b-c", "a/c", "b"] {
        barrier.commit(put(path, path)).await.unwrap();
    }
    assert!(reads(barrier, "a/b/c", "a/b/c").await);
    assert!(barrier.read("a").await.unwrap().is_none());
    let list = barrier.list("a/", None, 10).await.unwrap();
    assert_eq!(list, ["b", "b-c", "b/", "c"]);
    let mut one_by_one = Vec::new();
    while let [name] = &barrier
        .list("a/", one_by_one.last().map(|n: &String| &**n), 1)
        .await
        .unwrap()[..]
    {
        one_by_one.push(name.clone());
    }
    assert_eq!(one_by_one, list);
    assert_eq!(barrier.list("", None, 10).await.unwrap(), ["a/", "b"]);

    let mut change = Change::default();
    change.delete("a/b");
    barrier.commit(change).await.unwrap();
    assert!(barrier.read("a/b").await.unwrap().is_none());
    assert!(reads(barrier, "a/b/c", "a/b/c").await);
}

#[tokio::test]
async fn revisions_grow_and_a_change_that_expects_another_one_does_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let vault = unsealed(directory.path()).await;
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
    assert!(barrier.audit_lines(0).await.unwrap().0.is_empty());

    let mut next = put("a", "2");
    next.expect("a", Some(revision));
    barrier.commit(next).await.unwrap();
    assert!(barrier.read("a").await.unwrap().unwrap().revision > revision);

    // An entry that comes back is another one.
    let seen = barrier.read("a").await.unwrap().unwrap().revision;
    let mut delete = Change::default();
    delete.delete("a");
    barrier.commit(delete).await.unwrap();
    barrier.commit(put("a", "3")).await.unwrap();
    assert!(barrier.read("a").await.unwrap().unwrap().revision > seen);
}

#[tokio::test]
async fn of_many_that_expect_the_same_revision_exactly_one_commits() {
    let directory = tempfile::tempdir().unwrap();
    let vault = unsealed(directory.path()).await;
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
    assert_eq!(vault.barrier().audit_lines(0).await.unwrap().0.len(), 1);
}

#[tokio::test]
async fn every_change_has_its_lines_and_the_log_verifies() {
    let directory = tempfile::tempdir().unwrap();
    let vault = unsealed(directory.path()).await;
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
    assert_eq!(verified(&vault).await, 300);
}

/// Number of lines in the log, which verifies.
async fn verified(vault: &KeyVault) -> u64 {
    let (lines, seal) = vault.barrier().audit_lines(0).await.unwrap();
    let sealed = vault
        .barrier()
        .audit_key()
        .verifier()
        .open(LOG, &seal.unwrap());
    let mut reading = Reading::expecting(vec![sealed.unwrap()]);
    for (_, line) in &lines {
        reading.line(line).unwrap();
    }
    reading.end().unwrap().seq
}

#[tokio::test]
async fn a_sealed_vault_gives_and_takes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let vault = unsealed(directory.path()).await;
    let barrier = vault.barrier();
    barrier.commit(put("a", "1")).await.unwrap();
    vault.seal();
    assert!(matches!(barrier.read("a").await, Err(Error::Sealed)));
    assert!(matches!(
        barrier.list("", None, 1).await,
        Err(Error::Sealed)
    ));
    let refused = barrier.commit(put("a", "2")).await;
    assert!(matches!(refused, Err(CommitError::Failed(Error::Sealed))));
    let other = vault.unseal(aead::Key::generate()).await;
    assert!(matches!(
        other,
        Err(Error::Keyring(Unopened::OtherKey { .. }))
    ));
}

#[tokio::test]
async fn records_are_read_as_what_they_were_written_as() {
    let directory = tempfile::tempdir().unwrap();
    let vault = unsealed(directory.path()).await;
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
    assert!(matches!(
        refused,
        Err(CommitError::Failed(Error::Record { .. }))
    ));
}
