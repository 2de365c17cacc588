//! What the writer, the keeper of keys and all readers share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use tokio::sync::{Notify, watch};
use wavry_credentials::{
    audit::{self, Event},
    key::aead,
};

use super::{Error, Guard, cache::Cache};
use crate::{
    keyvault::{
        LOG,
        counter::{Counter, Mark},
        keyring::{Keyring, Unopened},
        rotation,
        store::{Head, Row, Store, Transaction},
    },
    metrics as names,
};

/// Pause after the counter could not be written.
const PAUSE: Duration = Duration::from_millis(250);

pub(in crate::keyvault) struct Shared {
    pub(in crate::keyvault) store: Store,
    pub(super) audit: Arc<audit::Key>,
    keyring: ArcSwapOption<Keyring>,
    pub(super) counter: Option<Counter>,
    pub(super) accept_rollback: AtomicBool,
    /// How far the store has come; the counter follows it.
    marks: watch::Sender<Mark>,
    /// The term under which the counter was last written.
    counter_term: AtomicU32,
    counter_fails: AtomicBool,
    /// Whether something was deleted since the last [`Shared::scrub`].
    deleted: AtomicBool,
    /// Entries as they are kept, where nobody else can change them.
    pub(in crate::keyvault) cache: Cache,
    /// Told after each group that was written.
    pub(super) audited: watch::Sender<()>,
    /// Wakes the keeper of keys.
    pub(in crate::keyvault) keeper: Notify,
}

impl Shared {
    pub(super) fn new(store: Store, audit: Arc<audit::Key>, guard: Guard) -> Self {
        Self {
            store,
            audit,
            keyring: ArcSwapOption::empty(),
            counter: guard.counter.map(Counter::new),
            accept_rollback: guard.accept_rollback.into(),
            marks: watch::Sender::new(Mark::default()),
            counter_term: AtomicU32::new(0),
            counter_fails: AtomicBool::new(false),
            deleted: AtomicBool::new(false),
            cache: Cache::default(),
            audited: watch::Sender::new(()),
            keeper: Notify::new(),
        }
    }

    /// The keyring, if it is open.
    pub(in crate::keyvault) fn keyring(&self) -> Result<Arc<Keyring>, Error> {
        self.keyring.load_full().ok_or(Error::Sealed)
    }

    /// An entry as it is kept. It is asked of the store where another process may have changed it, so
    /// that what is revoked anywhere is revoked at once.
    pub(super) async fn row(&self, path: &str) -> Result<Option<Arc<Row>>, Error> {
        if self.store.is_shared() {
            return Ok(self.store.row(path).await?.map(Arc::new));
        }
        let epoch = match self.cache.get(path) {
            Ok(row) => return Ok(row),
            Err(epoch) => epoch,
        };
        let row = self.store.row(path).await?.map(Arc::new);
        self.cache.put(path, row.clone(), epoch);
        Ok(row)
    }

    pub(super) fn open_with(&self, keyring: Keyring) {
        self.keyring.store(Some(Arc::new(keyring)));
    }

    pub(super) fn seal(&self) {
        self.keyring.store(None);
    }

    /// Seals, unless another keyring than this one was opened meanwhile.
    pub(in crate::keyvault) fn forget(&self, keyring: &Arc<Keyring>) {
        self.keyring.compare_and_swap(keyring, None);
    }

    /// The keyring and the head that it vouches for, in a transaction that is to change something.
    pub(in crate::keyvault) async fn locked(
        &self,
        transaction: &mut Transaction,
    ) -> Result<(Arc<Keyring>, Head), Error> {
        let keyring = self.keyring()?;
        let head = transaction.head().cloned().ok_or(Error::Sealed)?;
        if keyring.generation == head.generation {
            return match keyring.vouches_for(&head) {
                true => Ok((keyring, head)),
                false => Err(Unopened::Head.into()),
            };
        }
        // Another process changed it.
        let terms = transaction.keyring().await?;
        let newer = match keyring.reopen(&head, &terms) {
            Err(error @ Unopened::OtherKey { .. }) => {
                let row = transaction.row(rotation::MASTER_KEY).await?;
                let key = row
                    .and_then(|row| handed_over(&keyring, &row))
                    .ok_or(error)?;
                Keyring::open(&head, &terms, Arc::new(key))
            }
            newer => newer,
        };
        let newer = Arc::new(newer?);
        self.keyring.compare_and_swap(&keyring, Some(newer.clone()));
        Ok((newer, head))
    }

    /// Takes the keyring as it is in the store, in place of one that turned out to be old.
    pub(in crate::keyvault) async fn refresh(&self, old: &Arc<Keyring>) -> Result<(), Error> {
        let (head, terms) = self.store.keyring().await?.ok_or(Error::Sealed)?;
        let newer = match old.reopen(&head, &terms) {
            Err(error @ Unopened::OtherKey { .. }) => {
                let row = self.store.row(rotation::MASTER_KEY).await?;
                match row.and_then(|row| handed_over(old, &row)) {
                    Some(key) => Keyring::open(&head, &terms, Arc::new(key)),
                    // What the old one opens may be gone by now. Then another task took up the new one.
                    None if self.keyring()?.generation > old.generation => return Ok(()),
                    None => Err(error),
                }
            }
            newer => newer,
        };
        // It may have been sealed, or refreshed, meanwhile.
        self.keyring.compare_and_swap(old, Some(Arc::new(newer?)));
        Ok(())
    }

    /// Writes events to the audit log, with one seal for all. Gives the number of the last line, and 0
    /// if there is none.
    pub(in crate::keyvault) async fn append(
        &self,
        transaction: &mut Transaction,
        events: &[&Event],
    ) -> Result<u64, Error> {
        if events.is_empty() {
            return Ok(0);
        }
        let mut log = transaction.log().clone();
        let lines: Vec<_> = events
            .iter()
            .map(|event| {
                let (head, line) = log.head.follow(event);
                log.head = head;
                (head.seq, line)
            })
            .collect();
        log.seal = Some(self.audit.seal(LOG, &log.head));
        transaction.put_lines(&lines, &log).await?;
        metrics::counter!(names::KEYVAULT_AUDIT_LINES).increment(lines.len() as u64);
        Ok(log.head.seq)
    }

    /// Tells the counter how far a commit has brought the store; 0 where it did not.
    pub(in crate::keyvault) fn committed(&self, position: u64, line: u64) {
        self.marks.send_if_modified(|mark| {
            let before = *mark;
            mark.position = mark.position.max(position);
            mark.line = mark.line.max(line);
            *mark != before
        });
    }

    /// Something was deleted, and is to be made unreadable.
    pub(in crate::keyvault) fn deleted(&self) {
        self.deleted.store(true, Ordering::Relaxed);
    }

    /// Makes what was deleted unreadable, if anything was.
    pub(in crate::keyvault) async fn scrub(&self) {
        if self.deleted.swap(false, Ordering::Relaxed)
            && let Err(error) = self.store.scrub().await
        {
            tracing::debug!(%error, "what was deleted is not overwritten yet");
            self.deleted();
        }
    }

    /// Refuses while the counter cannot be written: what was committed then could be rolled back unseen.
    pub(super) fn check_counter(&self) -> Result<(), Error> {
        match self.counter_fails.load(Ordering::Relaxed) {
            true => Err(Error::Counter),
            false => Ok(()),
        }
    }

    /// Lets the counter follow. It never ends.
    pub(super) async fn keep_counter(self: Arc<Self>) {
        let mut marks = self.marks.subscribe();
        loop {
            // The sender is `self`'s.
            let _ = marks.changed().await;
            loop {
                let mark = *marks.borrow_and_update();
                let Ok(keyring) = self.keyring() else { break };
                match self.write_counter(&keyring, mark).await {
                    Ok(()) => {
                        if self.counter_fails.swap(false, Ordering::Relaxed) {
                            tracing::info!("the KeyVault's counter is written again");
                        }
                        break;
                    }
                    Err(error) => {
                        metrics::counter!(names::KEYVAULT_COUNTER_FAILURES).increment(1);
                        if !self.counter_fails.swap(true, Ordering::Relaxed) {
                            let error = &error as &dyn std::error::Error;
                            tracing::error!(error, "the KeyVault's counter cannot be written");
                        }
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        }
    }

    /// Brings the counter under the current term, if it is not: old terms are going to be deleted.
    pub(in crate::keyvault) async fn renew_counter(
        &self,
        keyring: &Arc<Keyring>,
        head: &Head,
    ) -> Result<(), Error> {
        if self.counter.is_none() || self.counter_term.load(Ordering::Relaxed) == keyring.current {
            return Ok(());
        }
        self.committed(head.position, 0);
        let mark = *self.marks.borrow();
        self.write_counter(keyring, mark)
            .await
            .map_err(|_| Error::Counter)
    }

    /// Writes the counter as it is to be when the process ends.
    pub(super) async fn flush(&self) {
        if let Ok(keyring) = self.keyring() {
            let mark = *self.marks.borrow();
            if let Err(error) = self.write_counter(&keyring, mark).await {
                tracing::error!(%error, "the KeyVault's counter was not written at the end");
            }
        }
    }

    async fn write_counter(&self, keyring: &Arc<Keyring>, mark: Mark) -> std::io::Result<()> {
        let Some(counter) = self.counter.clone() else {
            return Ok(());
        };
        let term = keyring.current;
        let keyring = keyring.clone();
        // It syncs.
        tokio::task::spawn_blocking(move || counter.write(&keyring, mark))
            .await
            .map_err(std::io::Error::other)??;
        self.counter_term.store(term, Ordering::Relaxed);
        Ok(())
    }
}

/// The master key that another instance left for those with the one before it.
fn handed_over(keyring: &Keyring, row: &Row) -> Option<aead::Key> {
    let value = keyring.open_entry(row).ok()?;
    aead::Key::read(&value).ok()
}
