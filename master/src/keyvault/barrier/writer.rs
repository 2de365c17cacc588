//! Group commit: one task, one transaction for all that wait.

use std::{collections::HashMap, sync::Arc};

use tokio::sync::{mpsc, oneshot};
use wavry_credentials::key::aead::MAX_SEALED;

use super::{Change, CommitError, DEADLINE, Error, Revision, Shared};
use crate::{
    keyvault::{
        keyring::{self, Keyring},
        store::{Head, Transaction},
    },
    metrics as names,
};

/// Changes committed together: enough to spread the cost of a sync, and few enough to be planned in
/// some milliseconds.
const GROUP: usize = 512;

/// A change that waits.
pub(super) struct Job {
    pub(super) change: Change,
    pub(super) done: oneshot::Sender<Result<(), CommitError>>,
}

/// Commits until nobody can send any more.
pub(super) async fn run(shared: Arc<Shared>, mut jobs: mpsc::Receiver<Job>) {
    let mut group = Vec::with_capacity(GROUP);
    let mut is_failing = false;
    while jobs.recv_many(&mut group, GROUP).await > 0 {
        // Whoever waited in vain was told so: it must not happen behind their back.
        group.retain(|job| !job.done.is_closed());
        if group.is_empty() {
            continue;
        }
        let commit = commit(&shared, &group, is_failing);
        let committed = tokio::time::timeout(DEADLINE, commit).await;
        let outcomes = match committed.unwrap_or(Err(Error::TooSlow)) {
            Ok(outcomes) => {
                if is_failing {
                    tracing::info!("the KeyVault's store is written again");
                }
                is_failing = false;
                metrics::histogram!(names::KEYVAULT_GROUP_CHANGES).record(group.len() as f64);
                outcomes
            }
            Err(error) => {
                metrics::counter!(names::KEYVAULT_COMMIT_FAILURES).increment(1);
                if !is_failing {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "the KeyVault's store cannot be written");
                }
                is_failing = true;
                vec![Err(error.into()); group.len()]
            }
        };
        shared.audited.send_replace(());
        for (job, outcome) in group.drain(..).zip(outcomes) {
            // Nobody waits any more: it is done all the same.
            let _ = job.done.send(outcome);
        }
    }
}

async fn commit(
    shared: &Shared,
    group: &[Job],
    is_after_failure: bool,
) -> Result<Vec<Result<(), CommitError>>, Error> {
    shared.check_counter()?;
    let mut transaction = shared.store.begin().await?;
    if is_after_failure {
        // What could not be awaited may be committed all the same. By now it is, or never will be.
        shared.cache.clear();
    }
    let mut plan = match shared.locked(&mut transaction).await {
        Ok((keyring, head)) => {
            let mut plan = Plan::new(keyring, head);
            plan.look(group, shared, &mut transaction).await?;
            Some(plan)
        }
        // What is refused while it is sealed is put on record all the same.
        Err(Error::Sealed) => None,
        Err(error) => return Err(error),
    };
    let mut outcomes = Vec::with_capacity(group.len());
    let mut events = Vec::new();
    for job in group {
        let planned = match &mut plan {
            Some(plan) => plan.add(&job.change),
            None if job.change.writes.is_empty() && job.change.expected.is_empty() => Ok(()),
            None => Err(Error::Sealed.into()),
        };
        if planned.is_ok() {
            events.extend(&job.change.events);
        }
        outcomes.push(planned);
    }
    let mut position = 0;
    let mut replaces = false;
    if let Some(plan) = plan {
        position = plan.head.position;
        replaces = !plan.before.is_empty();
        plan.write(&mut transaction).await?;
    }
    let line = shared.append(&mut transaction, &events).await?;
    transaction.commit().await?;
    // Before anyone is told.
    if group.iter().any(|job| !job.change.writes.is_empty()) {
        let changes = group.iter().map(|job| &job.change);
        let written = changes.flat_map(|change| change.writes.keys());
        shared.cache.changed(written.map(|path| &**path));
    }
    shared.committed(position, line);
    if replaces {
        shared.deleted();
    }
    Ok(outcomes)
}

/// What a group of changes comes to.
struct Plan<'a> {
    keyring: Arc<Keyring>,
    head: Head,
    /// Revisions of the entries that are expected or written, as far as the plan goes.
    now: HashMap<&'a str, u64>,
    /// Those that are written, as they are in the store: their revision and term, and whether they
    /// authenticate.
    before: HashMap<&'a str, Before>,
    /// What is written at last, by path: the change that does, and the revision.
    writes: HashMap<&'a str, (&'a Change, u64)>,
}

struct Before {
    revision: u64,
    term: u32,
    is_intact: bool,
}

impl<'a> Plan<'a> {
    fn new(keyring: Arc<Keyring>, head: Head) -> Self {
        Self {
            keyring,
            head,
            now: HashMap::new(),
            before: HashMap::new(),
            writes: HashMap::new(),
        }
    }

    /// Looks at what is there of all that the group is about.
    async fn look(
        &mut self,
        group: &'a [Job],
        shared: &Shared,
        transaction: &mut Transaction,
    ) -> Result<(), Error> {
        let changes = || group.iter().map(|job| &job.change);
        let expected = changes().flat_map(|change| &change.expected);
        let written = changes().flat_map(|change| change.writes.keys());
        let mut paths: Vec<&str> = expected.map(|(path, _)| &**path).collect();
        paths.sort_unstable();
        paths.dedup();
        // What was read through the cache a moment ago, as the tokens of a thousand readers, is so
        // still: nobody else changes entries while this transaction lasts.
        paths.retain(|path| match shared.known_revision(path) {
            Some(revision) => {
                self.now.extend(revision.map(|revision| (*path, revision)));
                false
            }
            None => true,
        });
        paths.extend(written.clone().map(|path| &**path));
        paths.sort_unstable();
        paths.dedup();
        let revisions = match paths.is_empty() {
            true => HashMap::new(),
            false => transaction.revisions(&paths).await?,
        };
        for path in paths {
            if let Some(revision) = revisions.get(path) {
                self.now.insert(path, *revision);
            }
        }
        for path in written {
            if self.now.contains_key(&**path)
                && !self.before.contains_key(&**path)
                && let Some(row) = transaction.row(path).await?
            {
                let before = Before {
                    revision: row.revision,
                    term: row.term,
                    is_intact: self.keyring.open_entry(&row).is_ok(),
                };
                self.before.insert(path, before);
            }
        }
        Ok(())
    }

    /// Adds a change to the plan, or says why it cannot be made.
    fn add(&mut self, change: &'a Change) -> Result<(), CommitError> {
        let is_so = |(path, revision): &(String, Option<Revision>)| {
            self.now.get(&**path).copied() == revision.map(|Revision(number)| number)
        };
        if !change.expected.iter().all(is_so) {
            return Err(CommitError::Conflict);
        }
        // What was tampered with is evidence, and is not written over.
        let mut paths = change.writes.keys();
        if let Some(path) =
            paths.find(|path| self.before.get(&***path).is_some_and(|b| !b.is_intact))
        {
            let path = path.clone();
            return Err(Error::Integrity { path }.into());
        }
        if change.writes.is_empty() {
            return Ok(());
        }
        let puts = change.writes.values().flatten().count() as u64;
        if self.head.wraps + puts > MAX_SEALED {
            return Err(Error::Exhausted.into());
        }
        self.head.wraps += puts;
        self.head.position += 1;
        for (path, value) in &change.writes {
            match value {
                Some(_) => self.now.insert(path, self.head.position),
                None => self.now.remove(&**path),
            };
            self.writes.insert(path, (change, self.head.position));
        }
        Ok(())
    }

    async fn write(mut self, transaction: &mut Transaction) -> Result<(), Error> {
        if self.writes.is_empty() {
            return Ok(());
        }
        let mut rows = Vec::new();
        let mut deleted = Vec::new();
        for (path, (change, revision)) in self.writes {
            if let Some(before) = self.before.get(path)
                && let Some(mark) = self.keyring.mark(path, before.revision, before.term)
            {
                keyring::subtract(&mut self.head.digest, &mark);
            }
            match change.writes.get(path) {
                Some(Some(value)) => {
                    let row = self.keyring.seal_entry(path, revision, value);
                    if let Some(mark) = self.keyring.mark(path, revision, row.term) {
                        keyring::add(&mut self.head.digest, &mark);
                    }
                    rows.push(row);
                }
                _ => deleted.push(path.to_owned()),
            }
        }
        transaction.put(&rows).await?;
        transaction.delete(&deleted).await?;
        self.keyring.sign(&mut self.head);
        Ok(transaction.put_head(&self.head).await?)
    }
}
