//! Keys that take others' places.

use tokio::time::Instant;

use super::*;
use crate::keyvault::{keyring, postgres_server::Server, store::WrappedTerm};

const PATIENCE: Duration = Duration::from_secs(30);

fn rotate(master_key: Option<aead::Key>) -> Rotate {
    Rotate {
        master_key,
        seal: None,
        event: Event::now(Action::Rekey, "master key", "test"),
    }
}

/// Waits until a rotation is at its end. Progress never goes back.
async fn ended(vault: &KeyVault) {
    let deadline = Instant::now() + PATIENCE;
    let mut percent = 0;
    loop {
        let progress = vault.barrier().rotation().await.unwrap();
        assert!(progress.percent() >= percent);
        percent = progress.percent();
        if !progress.is_running {
            assert_eq!(percent, 100);
            return;
        }
        assert!(Instant::now() < deadline, "it does not end: {progress:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn filled(world: &World, entries: u32) -> KeyVault {
    let vault = world.vault().await;
    let mut change = Change::default();
    for i in 0..entries {
        change.put(format!("e/{i:04}"), value(&i.to_string()));
    }
    vault.barrier().commit(change).await.unwrap();
    vault
}

async fn all_are_read(vault: &KeyVault, entries: u32) {
    for i in 0..entries {
        let path = format!("e/{i:04}");
        assert!(
            reads(vault.barrier(), &path, &i.to_string()).await,
            "{path}"
        );
    }
}

async fn raw(vault: &KeyVault) -> (store::Head, Vec<WrappedTerm>, Vec<store::Row>) {
    let store = &vault.barrier().shared.store;
    let (head, terms) = store.keyring().await.unwrap().unwrap();
    let mut rows = Vec::new();
    for path in store.paths("", "\u{10ffff}", 10_000).await.unwrap() {
        rows.push(store.row(&path).await.unwrap().unwrap());
    }
    (head, terms, rows)
}

/// A retired master key opens nothing: neither the keyring, nor as the key of anything that the store
/// holds, whatever the place.
async fn opens_nothing(vault: &KeyVault, old: &aead::Key, new: &aead::Key) {
    let (head, terms, rows) = raw(vault).await;
    let copy = aead::Key::read(&old.to_paserk()).unwrap();
    assert!(matches!(
        Keyring::open(&head, &terms, Arc::new(copy)),
        Err(Unopened::OtherKey { .. })
    ));
    let mut contexts: Vec<Vec<u8>> = vec![Vec::new()];
    for id in [old.id(), new.id()] {
        for term in &terms {
            let created = term.created;
            for number in 1..=term.term {
                contexts.push(keyring::term_context(&head.vault, number, created, &id));
            }
        }
    }
    for row in &rows {
        contexts.extend(keyring::entry_contexts(&head.vault, row, 1..=head.term));
    }
    let sealed = terms.iter().map(|term| &term.wrapped_key);
    let sealed = sealed.chain(
        rows.iter()
            .flat_map(|row| [&row.wrapped_key, &row.ciphertext]),
    );
    let (mut tried, mut opened) = (0, 0);
    for sealed in sealed {
        for context in &contexts {
            assert!(old.open(context, sealed).is_err());
            opened += usize::from(new.open(context, sealed).is_ok());
            tried += 1;
        }
    }
    // The new one does open the keyring this way, so that trying means something.
    assert_eq!(opened, 1, "of {tried}");
}

#[tokio::test]
async fn a_new_term_takes_over_every_entry_and_the_old_one_is_gone() {
    let world = World::sqlite();
    let vault = filled(&world, 200).await;
    let (before, terms, rows) = raw(&vault).await;
    assert_eq!(before.term, 1);
    vault.barrier().rotate(rotate(None)).await.unwrap();
    // In the meantime everything is read and written.
    all_are_read(&vault, 200).await;
    ended(&vault).await;
    all_are_read(&vault, 200).await;
    let (head, now, rows_now) = raw(&vault).await;
    assert_eq!(head.term, 2);
    assert!(now.iter().all(|term| term.term == 2));
    assert!(rows_now.iter().all(|row| row.term == 2));
    assert_eq!(vault.barrier().key_status().await.unwrap().term, 2);
    // Neither the old term nor what was under it is in a file.
    let deadline = Instant::now() + PATIENCE;
    while tampering::in_files(&world, &terms[0].wrapped_key)
        || tampering::in_files(&world, &rows[7].wrapped_key)
    {
        assert!(Instant::now() < deadline, "old keys stay in the files");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    vault.close().await;
    let vault = world.vault().await;
    all_are_read(&vault, 200).await;
    vault.close().await;
}

#[tokio::test]
async fn an_old_master_key_opens_nothing_once_it_is_retired() {
    let mut world = World::sqlite();
    let vault = filled(&world, 100).await;
    let old = world.key();
    let new = aead::Key::generate();
    let new_text = new.to_paserk();
    vault.barrier().rotate(rotate(Some(new))).await.unwrap();
    ended(&vault).await;
    all_are_read(&vault, 100).await;
    let same = aead::Key::read(&new_text).unwrap();
    let again = vault.barrier().rotate(rotate(Some(same))).await;
    assert!(matches!(again, Err(RotateError::SameKey)));

    opens_nothing(&vault, &old, &aead::Key::read(&new_text).unwrap()).await;
    vault.close().await;

    let vault = world.open(false).await.unwrap();
    assert!(matches!(vault.unseal(old).await, Err(Error::Keyring(_))));
    vault.close().await;
    world.master_key = new_text;
    let vault = world.vault().await;
    all_are_read(&vault, 100).await;
    vault.close().await;
}

#[tokio::test]
async fn who_comes_late_with_an_old_keyring_goes_on_with_the_one_that_another_took_up() {
    let world = World::sqlite();
    let vault = filled(&world, 10).await;
    let shared = &vault.barrier().shared;
    let late = shared.keyring().unwrap();
    let new = Some(aead::Key::generate());
    vault.barrier().rotate(rotate(new)).await.unwrap();
    ended(&vault).await;
    // Nothing in the store opens under the old one any more.
    shared.refresh(&late).await.unwrap();
    all_are_read(&vault, 10).await;
    vault.close().await;
}

#[tokio::test]
async fn an_entry_that_does_not_authenticate_keeps_the_old_keys_and_stays_as_it_is() {
    let world = World::sqlite();
    let vault = filled(&world, 10).await;
    let shared = &vault.barrier().shared;
    let mut bad = shared.store.row("e/0003").await.unwrap().unwrap();
    bad.ciphertext[3] ^= 1;
    let mut transaction = shared.store.begin().await.unwrap();
    transaction.put(&[bad.clone()]).await.unwrap();
    transaction.commit().await.unwrap();
    vault.barrier().rotate(rotate(None)).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while vault.barrier().rotation().await.unwrap().done < 9 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let progress = vault.barrier().rotation().await.unwrap();
    assert!(progress.is_running);
    assert_eq!((progress.entries, progress.done), (10, 9));
    assert_eq!(shared.store.row("e/0003").await.unwrap(), Some(bad));
    let again = vault.barrier().rotate(rotate(None)).await;
    assert!(matches!(again, Err(RotateError::Running)));
    vault.close().await;
}

#[tokio::test]
async fn two_instances_read_on_while_the_master_key_is_replaced() {
    const ENTRIES: u32 = 500;
    let server = Server::start(false);
    let url = server.database("rotated").await;
    let location = Location::Postgres(url.parse().unwrap());
    let world = World::at(tempfile::tempdir().unwrap(), location.clone());
    let one = filled(&world, ENTRIES).await;
    // The other has a counter of its own, as it would on its own machine.
    let elsewhere = World {
        master_key: world.key().to_paserk(),
        audit: world.audit.clone(),
        ..World::at(tempfile::tempdir().unwrap(), location)
    };
    let other = elsewhere.open(true).await.unwrap();
    other.unseal(elsewhere.key()).await.unwrap();

    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let readers: Vec<_> = (0..4)
        .map(|reader| {
            let barrier = if reader % 2 == 0 { &one } else { &other }
                .barrier()
                .clone();
            let stop = stop.clone();
            tokio::spawn(async move {
                let mut count = 0_u32;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let i = (count * 7 + reader) % ENTRIES;
                    let path = format!("e/{i:04}");
                    assert!(reads(&barrier, &path, &i.to_string()).await, "{path}");
                    let mut change = Change::default();
                    change.record(event("read"));
                    barrier.commit(change).await.unwrap();
                    count += 1;
                }
                count
            })
        })
        .collect();
    let new = aead::Key::generate();
    let new_text = new.to_paserk();
    one.barrier().rotate(rotate(Some(new))).await.unwrap();
    ended(&one).await;
    // The one that did not begin it goes on, and writes.
    other.barrier().commit(put("after", "1")).await.unwrap();
    assert!(reads(one.barrier(), "after", "1").await);
    all_are_read(&other, ENTRIES).await;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for reader in readers {
        assert!(reader.await.unwrap() > 0);
    }
    let new = aead::Key::read(&new_text).unwrap();
    opens_nothing(&other, &elsewhere.key(), &new).await;
    one.close().await;
    other.close().await;
    let refused = elsewhere.open(false).await.unwrap();
    let wrong = refused.unseal(elsewhere.key()).await;
    assert!(matches!(wrong, Err(Error::Keyring(_))));
    refused.unseal(new).await.unwrap();
    all_are_read(&refused, ENTRIES).await;
    refused.close().await;
}
