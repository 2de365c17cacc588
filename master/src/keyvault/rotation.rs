//! Keys that take others' places while entries are read and written.
//!
//! A rotation begins with one transaction: a new term, current from then on, and if it is the master
//! key that changes, all terms wrapped under the new one as well; the old one still opens the keyring.
//! From then on each instance's [`Keeper`] gives entries of old terms new wrappings, some at a time,
//! until none is left. When every instance that is there has taken up the new keyring, old terms and
//! what the old master key opened are deleted. How far it has come is in the rows themselves: whoever
//! starts after a crash goes on.

use std::{sync::Arc, time::Duration};

use tokio::time::MissedTickBehavior;
use wavry_credentials::{
    audit::{Action, Event},
    key::aead,
    random,
};

use super::{
    barrier::{Error, Shared},
    keyring::{self, Keyring, Unopened, Unreadable},
    seal, store,
};
use crate::{metrics as names, registry::unix_time};

/// Where the master key is kept for instances that were given the one before it. Who can read it holds
/// the keyring already.
pub(super) const MASTER_KEY: &str = "core/master-key";
/// Entries that get new wrappings in one transaction: some milliseconds, for which writes wait.
const STEP: u32 = 64;
/// How often an instance shows itself, and looks whether the keyring changed.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long an instance that shows no more is waited for, in seconds.
const PATIENCE: u64 = 15;
/// Half of what a term's key may wrap: the rest is time to rotate in.
const WRAPS: u64 = aead::MAX_SEALED / 2;

/// How far a rotation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Whether there is an old term or master key still.
    pub is_running: bool,
    /// Entries there are.
    pub entries: u64,
    /// Those whose key is wrapped under the current term.
    pub done: u64,
}

impl Progress {
    /// In percent, rounded down.
    pub fn percent(&self) -> u64 {
        (self.done * 100).checked_div(self.entries).unwrap_or(100)
    }
}

/// The current term, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyStatus {
    /// From 1.
    pub term: u32,
    /// When it was made, in seconds since the Unix epoch.
    pub since: u64,
    /// Entries' keys that it has wrapped.
    pub wraps: u64,
    /// Id of the current master key.
    pub master_key: String,
}

/// Why no rotation was begun.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RotateError {
    /// Another one is not at its end.
    #[error("another rotation is under way")]
    Running,
    /// The key that was given is the current one.
    #[error("this is the master key already")]
    SameKey,
    /// The store or the keyring.
    #[error(transparent)]
    Failed(#[from] Error),
}

impl From<store::Error> for RotateError {
    fn from(error: store::Error) -> Self {
        Self::Failed(error.into())
    }
}

/// What a rotation puts in place of what.
pub struct Rotate {
    /// The new master key; none for a new term alone.
    pub master_key: Option<aead::Key>,
    /// How the KeyVault is unsealed from then on, if otherwise.
    pub seal: Option<seal::Config>,
    /// What the audit log tells.
    pub event: Event,
}

/// Begins a rotation.
pub(super) async fn begin(shared: &Shared, rotate: Rotate) -> Result<(), RotateError> {
    let mut transaction = shared.store.begin().await?;
    let (keyring, mut head) = shared.locked(&mut transaction).await?;
    let kept = transaction.keyring().await?;
    if !keyring.is_settled(&head, &kept) {
        return Err(RotateError::Running);
    }
    let new = rotate.master_key.as_ref();
    if new.is_some_and(|key| key.id() == head.master_key) {
        return Err(RotateError::SameKey);
    }
    if let Some(new) = new {
        // For the other instances: under the term that they know.
        let value = new.to_paserk();
        let old = transaction.row(MASTER_KEY).await?;
        head.position += 1;
        head.wraps += 1;
        let row = keyring.seal_entry(MASTER_KEY, head.position, &value);
        if let Some(old) = old {
            remove_mark(&keyring, &mut head.digest, &old);
        }
        add_mark(&keyring, &mut head.digest, &row);
        transaction.put(&[row]).await?;
    }
    if let Some(seal) = rotate.seal {
        let seal = serde_json::to_string(&seal).map_err(|_| store::Error::Row("seal"))?;
        transaction.put_seal_config(&seal).await?;
    }
    let terms = keyring.grow(&mut head, &kept, new, unix_time());
    transaction.put_terms(&terms).await?;
    transaction.put_head(&head).await?;
    let log = shared.append(&mut transaction, &[&rotate.event]).await?;
    transaction.commit().await?;
    shared.cache.changed([MASTER_KEY]);
    shared.refresh(&keyring).await?;
    shared.committed(head.position, log);
    shared.keeper.notify_one();
    Ok(())
}

/// How far the rotation has come.
pub(super) async fn progress(shared: &Shared) -> Result<Progress, Error> {
    let keyring = shared.keyring()?;
    let (head, wrapped) = shared.store.keyring().await?.ok_or(Error::Sealed)?;
    let (entries, others) = shared.store.count(head.term).await?;
    Ok(Progress {
        is_running: !keyring.is_settled(&head, &wrapped),
        entries,
        done: entries - others,
    })
}

/// The current term.
pub(super) async fn key_status(shared: &Shared) -> Result<KeyStatus, Error> {
    shared.keyring()?;
    let (head, wrapped) = shared.store.keyring().await?.ok_or(Error::Sealed)?;
    let current = wrapped.iter().find(|wrapped| wrapped.term == head.term);
    Ok(KeyStatus {
        term: head.term,
        since: current.map_or(0, |wrapped| wrapped.created),
        wraps: head.wraps,
        master_key: head.master_key,
    })
}

/// Keeps an instance's keyring up to date, and works on rotations. One for each instance.
pub(super) struct Keeper {
    shared: Arc<Shared>,
    instance: [u8; 16],
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            instance: random::bytes(),
        }
    }

    /// It never ends.
    pub(super) async fn run(self) {
        let mut tick = tokio::time::interval(INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_failing = false;
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.shared.keeper.notified() => {}
            }
            match self.keep().await {
                Ok(()) | Err(Error::Sealed) => is_failing = false,
                Err(error) => {
                    metrics::counter!(names::KEYVAULT_KEEPER_FAILURES).increment(1);
                    if !is_failing {
                        let error = &error as &dyn std::error::Error;
                        tracing::error!(error, "the KeyVault's keys cannot be kept up to date");
                    }
                    is_failing = true;
                }
            }
        }
    }

    async fn keep(&self) -> Result<(), Error> {
        self.show().await?;
        self.shared.scrub().await;
        let keyring = self.shared.keyring()?;
        let (head, wrapped) = self.shared.store.keyring().await?.ok_or(Error::Sealed)?;
        metrics::gauge!(names::KEYVAULT_TERM_WRAPS).set(head.wraps as f64);
        let left = metrics::gauge!(names::KEYVAULT_ROTATION_LEFT);
        if keyring.is_settled(&head, &wrapped) {
            left.set(0.0);
            if head.wraps > WRAPS {
                let mut event = Event::now(Action::Rotate, "keyring", "core/keyring");
                "keyvault".clone_into(&mut event.actor);
                let rotate = Rotate {
                    master_key: None,
                    seal: None,
                    event,
                };
                match begin(&self.shared, rotate).await {
                    Ok(()) | Err(RotateError::Running | RotateError::SameKey) => {}
                    Err(RotateError::Failed(error)) => return Err(error),
                }
            }
            return Ok(());
        }
        let (_, others) = self.shared.store.count(head.term).await?;
        left.set(others as f64);
        let mut after = String::new();
        while let Some((last, rewrapped)) = self.step(&after).await? {
            left.decrement(rewrapped as f64);
            after = last;
        }
        self.retire().await
    }

    /// Takes up what others did to the keyring, and shows that this instance has.
    async fn show(&self) -> Result<(), Error> {
        let keyring = self.shared.keyring()?;
        let mut transaction = self.shared.store.begin().await?;
        let (keyring, head) = match self.shared.locked(&mut transaction).await {
            Err(error @ Error::Keyring(Unopened::OtherKey { .. })) => {
                // The keys were changed while nobody here looked: what is left of them is of no use.
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the keyring was changed for good: this KeyVault seals itself, and wants the new \
                     master key"
                );
                self.shared.forget(&keyring);
                return Err(error);
            }
            locked => locked?,
        };
        self.shared.renew_counter(&keyring, &head).await?;
        // Alone, there is nobody to wait for it, and an idle store is left in peace.
        if self.shared.store.is_shared() {
            let now = unix_time();
            transaction
                .put_instance(&self.instance, keyring.generation, now)
                .await?;
            transaction.commit().await?;
        }
        Ok(())
    }

    /// Gives some entries new wrappings: those after path `after`. Gives the last of them, and how many
    /// got one.
    async fn step(&self, after: &str) -> Result<Option<(String, usize)>, Error> {
        let mut transaction = self.shared.store.begin().await?;
        let (keyring, mut head) = self.shared.locked(&mut transaction).await?;
        let rows = transaction
            .rows_of_other_terms(head.term, after, STEP)
            .await?;
        let Some(last) = rows.last().map(|row| row.path.clone()) else {
            return Ok(None);
        };
        let mut rewrapped = Vec::with_capacity(rows.len());
        for mut row in rows {
            let old = row.clone();
            match keyring.rewrap_entry(&mut row) {
                Ok(()) => {
                    remove_mark(&keyring, &mut head.digest, &old);
                    add_mark(&keyring, &mut head.digest, &row);
                    rewrapped.push(row);
                }
                // It stays as it is, and with it the key that it was under.
                Err(Unreadable::Forged | Unreadable::UnknownTerm) => {
                    metrics::counter!(names::KEYVAULT_INTEGRITY_FAILURES).increment(1);
                    tracing::error!(path = %row.path, "an entry does not authenticate and holds up the rotation");
                }
            }
        }
        head.position += 1;
        head.wraps += rewrapped.len() as u64;
        transaction.rewrap(&rewrapped).await?;
        keyring.sign(&mut head);
        transaction.put_head(&head).await?;
        transaction.commit().await?;
        let paths = rewrapped.iter().map(|row| &*row.path);
        self.shared.cache.changed(paths);
        self.shared.committed(head.position, 0);
        Ok(Some((last, rewrapped.len())))
    }

    /// Deletes old keys, if nothing and nobody needs them any more.
    async fn retire(&self) -> Result<(), Error> {
        let mut transaction = self.shared.store.begin().await?;
        let (keyring, mut head) = self.shared.locked(&mut transaction).await?;
        if transaction.count_other_terms(head.term).await? > 0 {
            return Ok(());
        }
        let since = unix_time().saturating_sub(PATIENCE);
        let behind = transaction.instances_behind(head.generation, since).await?;
        if behind > 0 {
            tracing::debug!(instances = behind, "old keys are kept for other instances");
            return Ok(());
        }
        transaction.retire(head.term, &head.master_key).await?;
        head.position += 1;
        head.generation += 1;
        keyring.sign(&mut head);
        transaction.put_head(&head).await?;
        let mut event = Event::now(Action::Destroy, "old keys", "core/keyring");
        "keyvault".clone_into(&mut event.actor);
        event.secret = Some(format!("{} term {}", head.master_key, head.term));
        let log = self.shared.append(&mut transaction, &[&event]).await?;
        transaction.commit().await?;
        self.shared.refresh(&keyring).await?;
        self.shared.committed(head.position, log);
        self.shared.deleted();
        self.shared.scrub().await;
        tracing::info!(term = head.term, "old keys are gone");
        Ok(())
    }
}

fn remove_mark(keyring: &Keyring, digest: &mut [u8; 32], row: &store::Row) {
    if let Some(mark) = keyring.mark(&row.path, row.revision, row.term) {
        keyring::subtract(digest, &mark);
    }
}

fn add_mark(keyring: &Keyring, digest: &mut [u8; 32], row: &store::Row) {
    if let Some(mark) = keyring.mark(&row.path, row.revision, row.term) {
        keyring::add(digest, &mark);
    }
}
