//! Somebody who writes to the database file.

use std::path::Path;

use sqlx::{Connection as _, Row as _, SqliteConnection, sqlite::SqliteConnectOptions};

use super::*;

struct Raw(SqliteConnection);

type Fields = (i64, i64, Vec<u8>, Vec<u8>);

impl Raw {
    async fn open(world: &World) -> Self {
        let options = SqliteConnectOptions::new().filename(world.file());
        Self(SqliteConnection::connect_with(&options).await.unwrap())
    }

    async fn run(&mut self, sql: &'static str) {
        sqlx::query(sql).execute(&mut self.0).await.unwrap();
    }

    async fn get(&mut self, path: &str) -> Option<Fields> {
        let row =
            sqlx::query("SELECT revision, term, wrapped_key, ciphertext FROM entry WHERE path = ?")
                .bind(path)
                .fetch_optional(&mut self.0)
                .await
                .unwrap();
        row.map(|row| (row.get(0), row.get(1), row.get(2), row.get(3)))
    }

    async fn set(&mut self, path: &str, fields: &Fields) {
        sqlx::query("REPLACE INTO entry (path, revision, term, wrapped_key, ciphertext) VALUES (?, ?, ?, ?, ?)")
            .bind(path)
            .bind(fields.0)
            .bind(fields.1)
            .bind(&fields.2)
            .bind(&fields.3)
            .execute(&mut self.0)
            .await
            .unwrap();
    }
}

impl World {
    pub(super) fn file(&self) -> &Path {
        match &self.location {
            Location::Sqlite(file) => file,
            Location::Postgres(_) => panic!("not a file"),
        }
    }
}

/// Reading `path` names it as changed, and writing over it or deleting it does not.
async fn is_noticed(barrier: &Barrier, raw: &mut Raw, path: &str) {
    let before = raw.get(path).await;
    // As after a restart: what was read before is known to be good.
    barrier.shared.cache.clear();
    match barrier.read(path).await {
        Err(Error::Integrity { path: named }) => assert_eq!(named, path),
        Err(error) => panic!("{error}"),
        Ok(entry) => panic!("it was read: {}", entry.is_some()),
    }
    for change in [put(path, "over it"), delete(path)] {
        match barrier.commit(change).await {
            Err(CommitError::Failed(Error::Integrity { path: named })) => assert_eq!(named, path),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(raw.get(path).await, before);
}

#[tokio::test]
async fn a_bit_that_was_flipped_anywhere_is_noticed_and_never_written_over() {
    let world = World::sqlite();
    let vault = world.vault().await;
    let barrier = vault.barrier();
    barrier.commit(put("a", "first value")).await.unwrap();
    barrier.commit(put("b", "other value")).await.unwrap();
    let mut raw = Raw::open(&world).await;
    let good = raw.get("a").await.unwrap();

    let mut changed = Vec::new();
    for bit in 0..62 {
        changed.push((good.0 ^ (1 << bit), good.1, good.2.clone(), good.3.clone()));
        changed.push((good.0, good.1 ^ (1 << bit), good.2.clone(), good.3.clone()));
    }
    // Nonce, key and tag; nonce, value and tag.
    for byte in 0..good.2.len() {
        let mut wrapped = good.2.clone();
        wrapped[byte] ^= 1 << (byte % 8);
        changed.push((good.0, good.1, wrapped, good.3.clone()));
    }
    for byte in 0..good.3.len() {
        let mut ciphertext = good.3.clone();
        ciphertext[byte] ^= 1 << (byte % 8);
        changed.push((good.0, good.1, good.2.clone(), ciphertext));
    }
    for length in [0, 11, 12, 27, good.2.len() - 1] {
        changed.push((good.0, good.1, good.2[..length].to_vec(), good.3.clone()));
        changed.push((
            good.0,
            good.1,
            good.2.clone(),
            good.3[..length.min(good.3.len() - 1)].to_vec(),
        ));
    }
    for fields in changed {
        raw.set("a", &fields).await;
        is_noticed(barrier, &mut raw, "a").await;
    }
    raw.set("a", &good).await;
    barrier.shared.cache.clear();
    assert!(reads(barrier, "a", "first value").await);
    // Others were not touched by any of it.
    assert!(reads(barrier, "b", "other value").await);
    vault.close().await;
}

#[tokio::test]
async fn entries_that_changed_places_are_noticed() {
    let world = World::sqlite();
    let vault = world.vault().await;
    let barrier = vault.barrier();
    barrier.commit(put("a", "1")).await.unwrap();
    barrier.commit(put("b", "2")).await.unwrap();
    let mut raw = Raw::open(&world).await;
    let (a, b) = (raw.get("a").await.unwrap(), raw.get("b").await.unwrap());
    let swaps = [
        b.clone(),
        (b.0, a.1, a.2.clone(), a.3.clone()),
        (a.0, a.1, b.2.clone(), b.3.clone()),
        (a.0, a.1, a.2.clone(), b.3.clone()),
        (a.0, a.1, b.2.clone(), a.3.clone()),
    ];
    for fields in swaps {
        raw.set("a", &fields).await;
        is_noticed(barrier, &mut raw, "a").await;
    }
    // Under a name that nothing was written to.
    raw.set("c", &a).await;
    is_noticed(barrier, &mut raw, "c").await;
    vault.close().await;
}

#[tokio::test]
async fn entries_taken_away_added_or_put_back_are_noticed_when_it_is_unsealed() {
    for trick in ["away", "added", "older"] {
        let world = World::sqlite();
        let vault = world.vault().await;
        vault.barrier().commit(put("a", "1")).await.unwrap();
        let mut raw = Raw::open(&world).await;
        let older = raw.get("a").await.unwrap();
        vault.barrier().commit(put("a", "2")).await.unwrap();
        vault.barrier().commit(put("b", "1")).await.unwrap();
        vault.close().await;
        match trick {
            "away" => raw.run("DELETE FROM entry WHERE path = 'b'").await,
            "added" => raw.set("c", &older).await,
            _ => raw.set("a", &older).await,
        }
        let vault = world.open(false).await.unwrap();
        let refused = vault.unseal(world.key()).await;
        assert!(
            matches!(refused, Err(Error::Rollback(Rollback::Entries))),
            "{trick}"
        );
        assert!(!vault.barrier().is_unsealed());
        vault.close().await;
    }
}

#[tokio::test]
async fn a_head_that_was_changed_stops_all_writing() {
    let world = World::sqlite();
    let vault = world.vault().await;
    vault.barrier().commit(put("a", "1")).await.unwrap();
    let mut raw = Raw::open(&world).await;
    raw.run("UPDATE head SET wraps = wraps - 1").await;
    let refused = vault.barrier().commit(put("a", "2")).await;
    let refused = refused.unwrap_err();
    assert!(matches!(
        refused,
        CommitError::Failed(Error::Keyring(Unopened::Head))
    ));
    raw.run("UPDATE head SET wraps = wraps + 1").await;
    vault.barrier().commit(put("a", "2")).await.unwrap();
    vault.close().await;
}

#[tokio::test]
async fn an_audit_log_whose_end_was_cut_off_or_changed_is_not_opened() {
    for trick in [
        "DELETE FROM audit_line WHERE seq = 3",
        "UPDATE audit_line SET line = replace(line, 'three', 'seven') WHERE seq = 3",
        "UPDATE audit_head SET seq = 2",
    ] {
        let world = World::sqlite();
        let vault = world.vault().await;
        for subject in ["one", "two", "three"] {
            let mut change = Change::default();
            change.record(event(subject));
            vault.barrier().commit(change).await.unwrap();
        }
        vault.close().await;
        let mut raw = Raw::open(&world).await;
        sqlx::query(trick).execute(&mut raw.0).await.unwrap();
        let refused = world.open(false).await.err();
        assert!(matches!(refused, Some(store::Error::Audit(_))), "{trick}");
    }
}

#[tokio::test]
async fn what_was_deleted_is_in_no_file_any_more() {
    let world = World::sqlite();
    let vault = world.vault().await;
    vault.barrier().commit(put("kept", "1")).await.unwrap();
    vault.barrier().commit(put("gone", "2")).await.unwrap();
    let mut raw = Raw::open(&world).await;
    let (kept, gone) = (
        raw.get("kept").await.unwrap(),
        raw.get("gone").await.unwrap(),
    );
    drop(raw);
    assert!(in_files(&world, &gone.2));
    vault.barrier().commit(delete("gone")).await.unwrap();
    vault.barrier().shared.scrub().await;
    assert!(in_files(&world, &kept.2));
    assert!(!in_files(&world, &gone.2), "its key is still there");
    assert!(!in_files(&world, &gone.3), "its value is still there");
    vault.close().await;
}

/// Whether these bytes are anywhere in the database's files.
pub(super) fn in_files(world: &World, bytes: &[u8]) -> bool {
    let files = std::fs::read_dir(world.directory.path()).unwrap();
    let files = files.map(|file| file.unwrap().path());
    let mut contents = files
        .filter(|file| file.is_file())
        .map(|file| std::fs::read(file).unwrap());
    contents.any(|content| content.windows(bytes.len()).any(|window| window == bytes))
}
