//! How often each key may still encrypt: 2³² times, because its nonces are random (SP 800-38D, section
//! 8.3).
//!
//! A count for each message would be a write for each, and all of one key would be in each other's way.
//! So each process takes many at a time off what is left, durably, before it uses the first of them. What
//! it did not use when it ends is lost.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use wavry_credentials::key::aead::MAX_SEALED;

use crate::keyvault::{
    barrier::{Barrier, Change, CommitError},
    call::Refusal,
};

/// Messages that are taken off at a time: a write for each 65,536 of them, and if a process ends a
/// thousand times in the middle of it, 1.5 % of a key's messages are lost.
const BLOCK: u64 = 1 << 16;
/// Keys whose rest is remembered. When there are more, all take anew.
const MAX_KEYS: usize = 4096;

/// What this process has taken and not used yet, by the path at which the key's count is kept.
#[derive(Default)]
pub(in crate::keyvault) struct Budgets(Mutex<HashMap<String, u64>>);

impl Budgets {
    /// Takes one message off what the key at `path` may still encrypt.
    pub(super) async fn take(&self, barrier: &Barrier, path: &str) -> Result<(), Refusal> {
        while !self.take_held(path) {
            let held = barrier.read_record::<u64>(path).await?;
            let (revision, taken) = match held {
                Some((revision, taken)) => (Some(revision), taken),
                None => (None, 0),
            };
            let taken = taken.saturating_add(BLOCK);
            if taken > MAX_SEALED {
                return Err(Refusal::invalid(
                    "this version of the key has encrypted as much as it may: rotate it",
                ));
            }
            let mut change = Change::default();
            change.expect(path, revision);
            change.put_record(path, &taken);
            match barrier.commit(change).await {
                Ok(()) => self.add(path),
                // Another call, or another process, took some meanwhile.
                Err(CommitError::Conflict) => (),
                Err(CommitError::Failed(error)) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn take_held(&self, path: &str) -> bool {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match held.get_mut(path) {
            Some(left) if *left > 0 => {
                *left -= 1;
                true
            }
            _ => false,
        }
    }

    fn add(&self, path: &str) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if held.len() >= MAX_KEYS && !held.contains_key(path) {
            held.clear();
        }
        *held.entry(path.to_owned()).or_default() += BLOCK;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::keyvault::world::World;

    #[tokio::test]
    async fn a_version_that_has_encrypted_as_much_as_it_may_decrypts_on_and_is_rotated() {
        let world = World::new().await;
        let root = world.root();
        root.post("sys/mounts/transit", json!({"type": "transit"}))
            .await
            .unwrap();
        root.post("transit/keys/k", json!({})).await.unwrap();
        let encrypt = || root.post("transit/encrypt/k", json!({"plaintext": "aGk="}));
        let sealed = encrypt().await.unwrap();
        let barrier = world.vault.barrier();
        let mounts = barrier.list("logical/", None, 10).await.unwrap();
        let mut path = None;
        for mount in mounts {
            let folder = format!("logical/{mount}uses/k/");
            if !barrier.list(&folder, None, 10).await.unwrap().is_empty() {
                path = Some(format!("{folder}1"));
            }
        }
        let path = path.expect("the count is kept");
        let (_, taken) = barrier.read_record::<u64>(&path).await.unwrap().unwrap();
        assert_eq!(taken, BLOCK);

        // One block is left, and of the one that was taken one message.
        let mut change = Change::default();
        change.put_record(&*path, &(MAX_SEALED - BLOCK));
        barrier.commit(change).await.unwrap();
        let keep = |left| {
            let mut held = world.vault.transit.0.lock().unwrap();
            held.insert(path.clone(), left);
        };
        keep(1);
        encrypt().await.unwrap();
        encrypt().await.unwrap();
        let (_, taken) = barrier.read_record::<u64>(&path).await.unwrap().unwrap();
        assert_eq!(taken, MAX_SEALED);
        keep(1);
        encrypt().await.unwrap();
        let refusal = encrypt().await.unwrap_err();
        assert!(refusal.to_string().contains("rotate"), "{refusal}");
        let opened = root
            .post(
                "transit/decrypt/k",
                json!({"ciphertext": sealed["ciphertext"]}),
            )
            .await;
        assert_eq!(opened.unwrap()["plaintext"], "aGk=");
        root.post("transit/keys/k/rotate", json!({})).await.unwrap();
        assert_eq!(encrypt().await.unwrap()["key_version"], 2);
    }

    #[tokio::test]
    async fn calls_at_a_time_take_what_they_use_and_no_more() {
        let world = World::new().await;
        let barrier = world.vault.barrier();
        let budgets = Budgets::default();
        let takes = (0..100).map(|_| budgets.take(barrier, "uses"));
        let taken = futures_util::future::join_all(takes).await;
        assert!(taken.iter().all(Result::is_ok));
        let (_, kept) = barrier.read_record::<u64>("uses").await.unwrap().unwrap();
        let left = budgets.0.lock().unwrap()["uses"];
        assert_eq!(kept, left + 100);
    }
}
