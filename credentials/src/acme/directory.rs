//! A gateway alone: what is kept is in a directory, and nobody else is asked.

use std::{future::pending, path::Path, sync::Arc, time::Duration};

use instant_acme::AccountCredentials;

use super::{
    challenge::{Answered, Answers},
    demand::Pace,
    kept::Kept,
    schedule::Record,
    storage::{Pending, Storage, Taken},
    work::failure::Trouble,
};
use crate::{
    cert::{
        self, Pair,
        pairs::{Issued, Pairs},
    },
    clock::since_epoch,
    secret::Secret,
};

/// What is kept of one certificate, and what all have: accounts, and how many orders there were for hosts.
pub(super) struct Directory {
    name: String,
    accounts: Arc<Kept>,
    kept: Arc<Kept>,
    pairs: Arc<Pairs>,
    answers: Answers,
}

impl Directory {
    /// Opens it, and makes it where it is not there. `accounts` is what all certificates have, `own` where this one is.
    pub(super) fn open(accounts: Arc<Kept>, own: &Path, answers: Answers) -> std::io::Result<Self> {
        let kept = Kept::open(own)?;
        let pairs = Pairs::open(own.join("pairs")).map_err(std::io::Error::other)?;
        Ok(Self {
            name: own.to_string_lossy().into_owned(),
            accounts,
            kept: Arc::new(kept),
            pairs: Arc::new(pairs),
            answers,
        })
    }
}

impl Storage for Directory {
    async fn newest(&self) -> Option<(Pair, Issued)> {
        self.pairs.newest()
    }

    async fn find(&self, hash: &[u8; 32]) -> Option<(Pair, Issued)> {
        self.pairs.find(|pair| cert::hash(pair.leaf()) == *hash)
    }

    fn record(&self) -> Record {
        self.kept.record()
    }

    async fn take(&self) -> Result<Taken, Trouble> {
        Ok(Taken::Ours(Box::default()))
    }

    async fn charge(&self, pace: Pace) -> Result<Option<Duration>, Trouble> {
        let accounts = self.accounts.clone();
        let charged = tokio::task::spawn_blocking(move || accounts.charge(pace, since_epoch()));
        charged
            .await
            .map_err(Trouble::storage)?
            .map_err(Trouble::storage)
    }

    async fn keep(&self) {
        pending().await
    }

    async fn give_back(&self, record: &Record) {
        self.answers.take_down(&self.name);
        if let Err(trouble) = self.write_record(record).await {
            let error = &trouble.said;
            tracing::warn!(error, "how authorities have fared is not written down");
        }
    }

    async fn write_record(&self, record: &Record) -> Result<(), Trouble> {
        let (kept, record) = (self.kept.clone(), record.clone());
        on_disk(move || kept.write_record(&record)).await
    }

    /// An order ends with its process (ADR 0016).
    async fn write_pending(&self, _pending: &Pending) -> Result<(), Trouble> {
        Ok(())
    }

    async fn put_up(&self, answers: Vec<Answered>) -> Result<(), Trouble> {
        self.answers.put_up(&self.name, &answers)
    }

    async fn write_pair(
        &self,
        chain: &str,
        key: Secret<Vec<u8>>,
        issued: &Issued,
    ) -> Result<(), Trouble> {
        let (pairs, chain, issued) = (self.pairs.clone(), chain.to_owned(), issued.clone());
        on_disk(move || pairs.write(&chain, &key, &issued)).await
    }

    async fn newer(&self) -> (Pair, Issued) {
        pending().await
    }

    async fn account(
        &self,
        name: &str,
        directory: &str,
    ) -> Result<Option<AccountCredentials>, Trouble> {
        Ok(self.accounts.account(name, directory))
    }

    async fn write_account(&self, name: &str, account: &AccountCredentials) -> Result<(), Trouble> {
        self.accounts
            .write_account(name, account)
            .map_err(Trouble::storage)
    }

    async fn forget_account(&self, name: &str) {
        self.accounts.forget_account(name);
    }
}

/// Writes where it does not hold up sessions.
pub(super) async fn on_disk<E: std::error::Error + Send + 'static>(
    write: impl FnOnce() -> Result<(), E> + Send + 'static,
) -> Result<(), Trouble> {
    match tokio::task::spawn_blocking(write).await {
        Ok(written) => written.map_err(Trouble::storage),
        Err(ended) => Err(Trouble::storage(ended)),
    }
}
