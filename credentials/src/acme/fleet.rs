//! Gateways that share certificates: what is kept is at the master, sealed by the gateways for each other, and
//! whoever has the lease of a certificate orders it (ADR 0027).
//!
//! * [`Fleet`]: what one gateway knows of what all share. It asks the master for changes as long as it runs; the
//!   question tells the master what the gateway has taken in.
//! * [`news`]: what is told of one certificate, until it is taken in.
//! * [`share`]: one certificate's [`Storage`](super::storage::Storage).

mod metrics;
mod news;
mod share;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Mutex as Lock, PoisonError},
    time::Duration,
};

use http::Method;
use tokio::sync::{Mutex, watch};
use wavry_proto::{
    control::fleet::{
        ACKNOWLEDGED, Acknowledged, CHANGES, Changed, Changes, ENTRY, EntryName, LEASE, Leased,
        MAX_CHANGES_LEN, MAX_SEALED, TakeLease, WriteEntry, Written,
    },
    id::ClusterName,
};

use super::{
    Shared,
    challenge::{Answered, Answers},
    machine::Reason,
    work::failure::Trouble,
};
use crate::{
    clock::since_epoch,
    key::{record, ring::Ring},
    master::Failure,
    membership::Requests,
    secret::Secret,
};

pub(super) use metrics::describe;
pub(super) use share::Share;

/// A question for changes is held for 25 s; the rest is for the way.
const CHANGES_DEADLINE: Duration = Duration::from_secs(35);
/// A write that was not answered is sent again until then: it does the same again, and another master may be
/// there a moment later.
const WRITE_DEADLINE: Duration = Duration::from_secs(8);
/// Between two attempts at it.
const PAUSE: Duration = Duration::from_millis(250);
/// After the master has not answered: it is away.
const AWAY: Duration = Duration::from_secs(2);
/// How long other gateways are waited for that have not said that they have an answer. One that is not there any
/// more is known to the master as such after some ten seconds only.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(3);
/// Longest answer to a request for a lease: two sealed values in base64.
const MAX_LEASED: usize = 2 * (MAX_SEALED / 3 + 1) * 4 + 4096;
/// What entries of accounts begin with. No name of a certificate has a stroke.
const ACCOUNT: &str = "account/";
/// The entry that counts the first certificates of hosts.
const ORDERED: &str = "count/hosts";

/// What this gateway shares with the others.
pub(super) struct Fleet {
    requests: Requests,
    keys: Ring,
    cluster: ClusterName,
    answers: Answers,
    /// Where this gateway keeps its own copies.
    directory: PathBuf,
    /// What is told of each certificate: its pair, sealed. Bounded by what the master keeps.
    told: Lock<HashMap<EntryName, watch::Sender<String>>>,
    /// Accounts by the names of their authorities, sealed.
    accounts: Lock<HashMap<String, String>>,
    /// Held while this gateway counts what is ordered for hosts.
    counting: Mutex<()>,
    /// Leases of accounts that are being made.
    account_fences: Lock<HashMap<String, u64>>,
}

impl Fleet {
    pub(super) fn new(shared: Shared, answers: Answers, directory: PathBuf) -> Self {
        let Shared {
            requests,
            keys,
            cluster,
        } = shared;
        Self {
            requests,
            keys,
            cluster,
            answers,
            directory,
            told: Lock::default(),
            accounts: Lock::default(),
            counting: Mutex::default(),
            account_fences: Lock::default(),
        }
    }

    /// Takes in what the others share, for as long as it is polled.
    pub(super) async fn follow(&self) {
        metrics::heard(Duration::ZERO);
        let mut revision = 0;
        let mut is_away = false;
        loop {
            let path = format!("{CHANGES}?after={revision}");
            let changes = self.requests.get(&path, CHANGES_DEADLINE, MAX_CHANGES_LEN);
            match changes.await {
                Ok(Changes {
                    revision: newest,
                    entries,
                }) => {
                    is_away = false;
                    for changed in entries {
                        self.take_in(changed);
                    }
                    revision = newest;
                    metrics::heard(since_epoch());
                }
                Err(failure) => {
                    if !std::mem::replace(&mut is_away, true) {
                        let error = &failure as &dyn std::error::Error;
                        tracing::warn!(
                            error,
                            "what gateways share is not told; what is in use stays, and nothing is ordered"
                        );
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn take_in(&self, changed: Changed) {
        let entry = changed.entry;
        if let Some(sealed) = changed.answers
            && let Err(trouble) = self.show(&entry, &sealed)
        {
            metrics::refused("answers");
            let error = &trouble.said;
            tracing::error!(%entry, error, "another gateway's answers are not put up");
        }
        let Some(product) = changed.product else {
            return;
        };
        match entry.as_str().strip_prefix(ACCOUNT) {
            Some(authority) => self.know_account(authority, product),
            None => {
                self.told(&entry).send_replace(product);
            }
        }
    }

    /// Puts up another gateway's answers, or takes them down where there are none.
    fn show(&self, entry: &EntryName, sealed: &str) -> Result<(), Trouble> {
        if sealed.is_empty() {
            self.answers.take_down(entry.as_str());
            return Ok(());
        }
        let text = self.open(entry, "answers", sealed)?;
        let answers: Vec<Answered> = record::read(&text).map_err(Trouble::storage)?;
        self.answers.put_up(entry.as_str(), &answers)
    }

    fn know_account(&self, authority: &str, sealed: String) {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        match sealed.is_empty() {
            true => accounts.remove(authority),
            false => accounts.insert(authority.to_owned(), sealed),
        };
    }

    /// What is told of a certificate.
    fn told(&self, entry: &EntryName) -> watch::Sender<String> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.entry(entry.clone()).or_default().clone()
    }

    fn seal(&self, entry: &EntryName, what: &str, value: &Secret<Vec<u8>>) -> String {
        self.keys.seal(&self.context(entry, what), value)
    }

    fn open(
        &self,
        entry: &EntryName,
        what: &str,
        sealed: &str,
    ) -> Result<Secret<Vec<u8>>, Trouble> {
        let opened = self.keys.open(&self.context(entry, what), sealed);
        opened.map_err(|_| {
            let said = format!(
                "{entry}: no key of the secret fleet_key opens what another gateway keeps there"
            );
            Trouble::new(Reason::Storage, said)
        })
    }

    /// The place that something is sealed for: the master cannot have it pass for something else.
    fn context(&self, entry: &EntryName, what: &str) -> Vec<u8> {
        format!("wavry fleet\0{}\0{entry}\0{what}", self.cluster).into_bytes()
    }

    async fn lease(&self, entry: &EntryName, fence: Option<u64>) -> Result<Leased, Failure> {
        let ask = TakeLease {
            entry: entry.clone(),
            fence,
        };
        let asked = self.requests.send(Method::POST, LEASE, &ask, MAX_LEASED);
        asked.await
    }

    /// Writes an entry; again where it is not known whether it was written.
    async fn write(&self, write: &WriteEntry) -> Result<Written, Failure> {
        let until = tokio::time::Instant::now() + WRITE_DEADLINE;
        loop {
            let sent = self.requests.send(Method::PUT, ENTRY, write, MAX_LEASED);
            match sent.await {
                Err(failure) if failure.is_in_doubt() && tokio::time::Instant::now() < until => {
                    tokio::time::sleep(PAUSE).await;
                }
                written => return written,
            }
        }
    }

    /// Waits until the gateways that are there have taken a revision in, or too long.
    async fn acknowledged(&self, revision: u64) {
        let path = format!("{ACKNOWLEDGED}?revision={revision}");
        let all = async {
            loop {
                let asked = self.requests.get(&path, ACKNOWLEDGED_WITHIN, 4096).await;
                match asked {
                    Ok(Acknowledged { behind: 0 }) => return,
                    Ok(_) => {}
                    Err(_) => tokio::time::sleep(PAUSE).await,
                }
            }
        };
        let outcome = match tokio::time::timeout(ACKNOWLEDGED_WITHIN, all).await {
            Ok(()) => "all",
            Err(_) => "too_late",
        };
        metrics::acknowledged(outcome);
    }
}

/// What the master says, as the machine hears it.
fn trouble(failure: &Failure) -> Trouble {
    Trouble::new(Reason::Storage, failure.to_string())
}
