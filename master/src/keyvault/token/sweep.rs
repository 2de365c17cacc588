//! Tokens that ended are swept away, in the background and in small batches.

use std::{collections::HashSet, time::Duration};

use wavry_credentials::bearer::Fingerprint;

use super::{Record, Tokens, store::path};
use crate::{
    keyvault::barrier::{Change, CommitError, Error, Revision},
    metrics as names,
};

/// Tokens that are looked at in one go.
const BATCH: usize = 256;
/// Time between two goes. A million tokens are looked at within seven hours; a token that ended is
/// worth nothing however long it lies.
pub const PAUSE: Duration = Duration::from_secs(6);
/// How late it is, for a process that starts.
const TIME: &str = "token-time";

/// After how many seconds it is put down again.
const KEEP_EVERY: u64 = 60;

/// Where a sweep is.
#[derive(Default)]
pub struct Sweep {
    after: Option<String>,
    /// Tokens that others name as the one that made them.
    parents: HashSet<Fingerprint>,
    /// Tokens that ended without those that they made.
    released: Vec<(Fingerprint, Revision)>,
    swept: u64,
    good: u64,
}

impl Tokens {
    /// Looks at the next tokens, and takes away those that ended. Gives how many the sweep took
    /// when it has seen all.
    pub async fn sweep(&self, sweep: &mut Sweep) -> Result<Option<u64>, Error> {
        self.keep_time().await?;
        let names = self
            .barrier()
            .list("token/", sweep.after.as_deref(), BATCH)
            .await?;
        let is_last = names.len() < BATCH;
        let mut gone = Vec::new();
        for name in &names {
            let path = format!("token/{name}");
            let Some((revision, record)) = self.barrier().read_record::<Record>(&path).await?
            else {
                continue;
            };
            if record.released {
                let fingerprint = name.parse().map_err(|_| Error::Record { path })?;
                sweep.released.push((fingerprint, revision));
                continue;
            }
            let is_good = record.lifetime.is_good(self.now())
                && self.good_ancestors(&record).await?.is_some();
            match is_good {
                true => {
                    sweep.good += 1;
                    sweep.parents.extend(record.parent);
                }
                false => gone.push((path, revision, Some(record.accessor))),
            }
        }
        sweep.after = names.last().cloned();
        if is_last {
            // Nothing new is made by those that were released, so that what none names stays so.
            let unnamed = sweep
                .released
                .iter()
                .filter(|(token, _)| !sweep.parents.contains(token));
            gone.extend(unnamed.map(|(token, revision)| (path(*token), *revision, None)));
        }
        for (path, revision, accessor) in gone {
            let mut change = Change::default();
            change.expect(&*path, Some(revision));
            change.delete(path);
            if let Some(accessor) = accessor {
                change.delete(self.accessor_path(&accessor).await?);
            }
            match self.barrier().commit(change).await {
                Ok(()) => sweep.swept += 1,
                // It is another one by now.
                Err(CommitError::Conflict) => (),
                Err(CommitError::Failed(error)) => return Err(error),
            }
        }
        if !is_last {
            return Ok(None);
        }
        metrics::gauge!(names::KEYVAULT_TOKENS).set(sweep.good as f64);
        Ok(Some(std::mem::take(sweep).swept))
    }

    /// Sweeps once over all tokens.
    pub async fn sweep_all(&self) -> Result<u64, Error> {
        let mut sweep = Sweep::default();
        loop {
            if let Some(swept) = self.sweep(&mut sweep).await? {
                return Ok(swept);
            }
        }
    }

    /// Puts down how late it is, and goes on from what was put down: a clock that was set back while
    /// no process ran makes nothing good again.
    async fn keep_time(&self) -> Result<(), Error> {
        let held = self.barrier().read_record::<u64>(TIME).await?;
        if let Some((_, time)) = held {
            self.clock().has_been(time);
            if self.now() < time + KEEP_EVERY {
                return Ok(());
            }
        }
        let mut change = Change::default();
        change.put_record(TIME, &self.now());
        match self.barrier().commit(change).await {
            Ok(()) | Err(CommitError::Conflict) => Ok(()),
            Err(CommitError::Failed(error)) => Err(error),
        }
    }
}
