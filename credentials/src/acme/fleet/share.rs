//! One certificate that gateways share.

use std::{
    path::Path,
    sync::{Arc, Mutex as Lock, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use instant_acme::AccountCredentials;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use wavry_proto::control::fleet::{EntryName, Leased, WriteEntry};

use super::{ACCOUNT, AWAY, Fleet, ORDERED, metrics, news::News, trouble};
use crate::{
    acme::{
        challenge::Answered,
        demand::{Ordered, Pace},
        directory::on_disk,
        machine::Reason,
        schedule::Record,
        storage::{Left, Pending, Storage, Taken},
        work::failure::Trouble,
    },
    cert::{
        Pair,
        pairs::{Issued, Pairs},
    },
    clock::since_epoch,
    key::{acme as keys, record},
    secret::Secret,
};

/// A lease is renewed so often; it lasts three times as long.
const RENEW: Duration = Duration::from_secs(5);
/// A lease that another gateway has is asked for again after so long at most: that one may give it back.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// How long an account is waited for that another gateway makes.
const ACCOUNT_WITHIN: Duration = Duration::from_secs(60);

/// Its affairs.
pub(in crate::acme) struct Share {
    fleet: Arc<Fleet>,
    entry: EntryName,
    /// This gateway's own copies, for when it starts while no master answers.
    pairs: Arc<Pairs>,
    state: Lock<State>,
    news: News,
}

#[derive(Default)]
struct State {
    lease: Option<Lease>,
    record: Record,
    order: Option<Order>,
    /// The newest certificate that is known.
    leaf: Option<CertificateDer<'static>>,
}

#[derive(Clone, Copy)]
struct Lease {
    fence: u64,
    renewed: Instant,
    lasts: Duration,
}

/// What a holder leaves to the next one.
#[derive(Serialize, Deserialize)]
struct Draft {
    record: Record,
    order: Option<Order>,
}

/// An order under way; its key is sealed apart.
#[derive(Clone, Serialize, Deserialize)]
struct Order {
    authority: String,
    url: String,
    key: String,
}

/// A pair; its key is sealed apart.
#[derive(Serialize, Deserialize)]
struct Product {
    chain: String,
    authority: String,
    /// In milliseconds since the Unix epoch.
    issued_at: u64,
    key: String,
}

impl Share {
    /// Of the certificate that `entry` names.
    pub(in crate::acme) fn open(fleet: Arc<Fleet>, entry: EntryName) -> std::io::Result<Self> {
        let pairs = fleet.directory.join(Path::new(entry.as_str()));
        let pairs = Pairs::open(pairs).map_err(std::io::Error::other)?;
        let leaf = pairs.newest().map(|(pair, _)| pair.leaf().clone());
        Ok(Self {
            news: News::of(&fleet.told(&entry)),
            fleet,
            entry,
            pairs: Arc::new(pairs),
            state: Lock::new(State {
                leaf,
                ..State::default()
            }),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the entry under the lease.
    async fn write(&self, mut write: WriteEntry) -> Result<u64, Trouble> {
        let lease = self.state().lease;
        let lost = || Trouble::new(Reason::Storage, "the lease of the certificate is lost");
        write.fence = lease.ok_or_else(lost)?.fence;
        let written = self.fleet.write(&write).await;
        let written = written.map_err(|failure| trouble(&failure))?;
        if let Some(lease) = &mut self.state().lease {
            lease.renewed = Instant::now();
        }
        Ok(written.revision)
    }

    fn nothing(&self) -> WriteEntry {
        WriteEntry {
            entry: self.entry.clone(),
            fence: 0,
            draft: None,
            answers: None,
            product: None,
            release: false,
        }
    }

    /// The draft of what is known now.
    fn draft(&self) -> Result<String, Trouble> {
        let state = self.state();
        let draft = Draft {
            record: state.record.clone(),
            order: state.order.clone(),
        };
        let text = record::write(&draft).map_err(Trouble::storage)?;
        Ok(self.fleet.seal(&self.entry, "draft", &text))
    }

    /// What the holder before has left.
    fn read_draft(&self, sealed: &str) -> Result<(Record, Option<Pending>), Trouble> {
        let text = self.fleet.open(&self.entry, "draft", sealed)?;
        let draft: Draft = record::read(&text).map_err(Trouble::storage)?;
        let pending = draft.order.as_ref().map(|order| {
            let key = self.fleet.open(&self.entry, "pending key", &order.key)?;
            Ok::<_, Trouble>(Pending {
                authority: order.authority.clone(),
                url: order.url.clone(),
                key: keys::CertificateKey::from_pem(&key)
                    .map_err(|_| Trouble::new(Reason::Storage, "a key that is none"))?,
            })
        });
        let pending = pending.transpose()?;
        let mut state = self.state();
        (state.record, state.order) = (draft.record.clone(), draft.order);
        Ok((draft.record, pending))
    }

    /// A pair that another gateway obtained, kept here too; `None` for the one that is known already.
    async fn read_product(&self, sealed: &str) -> Result<Option<(Pair, Issued)>, Trouble> {
        let text = self.fleet.open(&self.entry, "product", sealed)?;
        let product: Product = record::read(&text).map_err(Trouble::storage)?;
        let key = self.fleet.open(&self.entry, "key", &product.key)?;
        let pair = Pair::from_pem(
            "what another gateway obtained".as_ref(),
            &product.chain,
            &key,
        );
        let pair = pair.map_err(Trouble::storage)?;
        if self.state().leaf.as_ref() == Some(pair.leaf()) {
            return Ok(None);
        }
        let issued = Issued {
            authority: product.authority,
        };
        let (pairs, chain, kept) = (self.pairs.clone(), product.chain, issued.clone());
        on_disk(move || pairs.write(&chain, &key, &kept)).await?;
        self.state().leaf = Some(pair.leaf().clone());
        metrics::shared(since_epoch().saturating_sub(Duration::from_millis(product.issued_at)));
        Ok(Some((pair, issued)))
    }

    /// Takes what came with the lease, or says why it cannot be used.
    async fn left(&self, draft: Option<String>, product: Option<String>) -> Result<Left, Trouble> {
        let (record, pending) = match draft {
            Some(draft) => {
                let (record, pending) = self.read_draft(&draft)?;
                (Some(record), pending)
            }
            None => (None, None),
        };
        let pair = match product {
            Some(product) => self.read_product(&product).await?,
            None => None,
        };
        Ok(Left {
            record,
            pending,
            pair,
        })
    }

    fn is_lost(&self) {
        metrics::lease("lost");
        self.state().lease = None;
        metrics::holds(-1.0);
    }
}

impl Storage for Share {
    async fn newest(&self) -> Option<(Pair, Issued)> {
        self.pairs.newest()
    }

    fn record(&self) -> Record {
        Record::default()
    }

    async fn take(&self) -> Result<Taken, Trouble> {
        let (fence, lasts, draft, product) = match self.fleet.lease(&self.entry, None).await {
            Ok(Leased::Granted {
                fence,
                lasts_ms,
                draft,
                product,
            }) => (fence, Duration::from_millis(lasts_ms), draft, product),
            Ok(Leased::Held { wait_ms }) => {
                metrics::lease("held");
                let wait = Duration::from_millis(wait_ms);
                return Ok(Taken::Elsewhere(wait.min(ASK_AGAIN)));
            }
            Err(failure) => {
                metrics::lease("failed");
                let error = &failure as &dyn std::error::Error;
                tracing::debug!(error, entry = %self.entry, "no lease");
                return Ok(Taken::Elsewhere(AWAY));
            }
        };
        metrics::lease("granted");
        metrics::holds(1.0);
        self.state().lease = Some(Lease {
            fence,
            renewed: Instant::now(),
            lasts,
        });
        match self.left(draft, product).await {
            Ok(left) => Ok(Taken::Ours(Box::new(left))),
            Err(trouble) => {
                // As it was left: who has the key goes on.
                let release = WriteEntry {
                    release: true,
                    ..self.nothing()
                };
                let _ = self.write(release).await;
                self.state().lease = None;
                metrics::holds(-1.0);
                Err(trouble)
            }
        }
    }

    async fn charge(&self, pace: Pace) -> Result<Option<Duration>, Trouble> {
        let _counting = self.fleet.counting.lock().await;
        let entry: EntryName = ORDERED.parse().map_err(Trouble::storage)?;
        let (fence, draft) = match self.fleet.lease(&entry, None).await {
            Ok(Leased::Granted { fence, draft, .. }) => (fence, draft),
            // For as long as the other one takes to write.
            Ok(Leased::Held { .. }) => return Ok(Some(super::PAUSE)),
            Err(failure) => return Err(trouble(&failure)),
        };
        let ordered: Ordered = match draft {
            Some(sealed) => {
                let text = self.fleet.open(&entry, "draft", &sealed)?;
                record::read(&text).map_err(Trouble::storage)?
            }
            None => Ordered::default(),
        };
        let charged = pace.charge(ordered, since_epoch());
        let draft = match &charged {
            Ok(ordered) => {
                let text = record::write(ordered).map_err(Trouble::storage)?;
                Some(self.fleet.seal(&entry, "draft", &text))
            }
            Err(_) => None,
        };
        let write = WriteEntry {
            entry,
            fence,
            draft,
            answers: None,
            product: None,
            release: true,
        };
        let written = self.fleet.write(&write).await;
        written.map_err(|failure| trouble(&failure))?;
        Ok(charged.err())
    }

    async fn keep(&self) {
        loop {
            let Some(lease) = self.state().lease else {
                return;
            };
            sleep(RENEW.saturating_sub(lease.renewed.elapsed())).await;
            match self.fleet.lease(&self.entry, Some(lease.fence)).await {
                Ok(Leased::Granted { fence, .. }) if fence == lease.fence => {
                    if let Some(lease) = &mut self.state().lease {
                        lease.renewed = Instant::now();
                    }
                }
                Ok(_) => return self.is_lost(),
                Err(_) if lease.renewed.elapsed() >= lease.lasts => return self.is_lost(),
                Err(_) => sleep(AWAY).await,
            }
        }
    }

    async fn give_back(&self, record: &Record) {
        {
            let mut state = self.state();
            state.record = record.clone();
            state.order = None;
        }
        let given = async {
            let write = WriteEntry {
                draft: Some(self.draft()?),
                answers: Some(String::new()),
                release: true,
                ..self.nothing()
            };
            self.write(write).await
        };
        if let Err(trouble) = given.await {
            let error = &trouble.said;
            tracing::warn!(error, entry = %self.entry, "a lease is not given back, and lapses");
        }
        self.fleet.answers.take_down(self.entry.as_str());
        if self.state().lease.take().is_some() {
            metrics::holds(-1.0);
        }
    }

    async fn write_record(&self, record: &Record) -> Result<(), Trouble> {
        {
            let mut state = self.state();
            state.record = record.clone();
            state.order = None;
        }
        let write = WriteEntry {
            draft: Some(self.draft()?),
            ..self.nothing()
        };
        self.write(write).await.map(|_| ())
    }

    async fn write_pending(&self, pending: &Pending) -> Result<(), Trouble> {
        let key = self
            .fleet
            .seal(&self.entry, "pending key", &pending.key.to_pem());
        self.state().order = Some(Order {
            authority: pending.authority.clone(),
            url: pending.url.clone(),
            key,
        });
        let write = WriteEntry {
            draft: Some(self.draft()?),
            ..self.nothing()
        };
        self.write(write).await.map(|_| ())
    }

    async fn put_up(&self, answers: Vec<Answered>) -> Result<(), Trouble> {
        if answers.is_empty() {
            return Ok(());
        }
        self.fleet.answers.put_up(self.entry.as_str(), &answers)?;
        let text = record::write(&answers).map_err(Trouble::storage)?;
        let write = WriteEntry {
            answers: Some(self.fleet.seal(&self.entry, "answers", &text)),
            ..self.nothing()
        };
        let revision = self.write(write).await?;
        self.fleet.acknowledged(revision).await;
        Ok(())
    }

    async fn write_pair(
        &self,
        chain: &str,
        key: Secret<Vec<u8>>,
        issued: &Issued,
    ) -> Result<(), Trouble> {
        let product = Product {
            chain: chain.to_owned(),
            authority: issued.authority.clone(),
            issued_at: u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX),
            key: self.fleet.seal(&self.entry, "key", &key),
        };
        let text = record::write(&product).map_err(Trouble::storage)?;
        let sealed = self.fleet.seal(&self.entry, "product", &text);
        let pair = Pair::from_pem("what was issued".as_ref(), chain, &key);
        let leaf = pair.map_err(Trouble::storage)?.leaf().clone();
        // Here first: what the others use, this one has.
        let (pairs, own, kept) = (self.pairs.clone(), chain.to_owned(), issued.clone());
        on_disk(move || pairs.write(&own, &key, &kept)).await?;
        let order = self.state().order.take();
        let write = WriteEntry {
            draft: Some(self.draft()?),
            answers: Some(String::new()),
            product: Some(sealed),
            ..self.nothing()
        };
        let written = self.write(write).await;
        let mut state = self.state();
        match written {
            Ok(_) => state.leaf = Some(leaf),
            // It is gone on with: the certificate is there to be fetched.
            Err(_) => state.order = order,
        }
        drop(state);
        written.map(|_| ())
    }

    async fn newer(&self) -> (Pair, Issued) {
        loop {
            let told = self.news.next().await;
            let read = self.read_product(&told.sealed).await;
            told.taken_in();
            match read {
                Ok(Some(found)) => return found,
                Ok(None) => {}
                Err(trouble) => {
                    metrics::refused("pair");
                    let (entry, error) = (&self.entry, &trouble.said);
                    tracing::error!(%entry, error, "another gateway's certificate cannot be used");
                }
            }
        }
    }

    async fn account(
        &self,
        name: &str,
        directory: &str,
    ) -> Result<Option<AccountCredentials>, Trouble> {
        let entry = account_entry(name)?;
        let until = Instant::now() + ACCOUNT_WITHIN;
        loop {
            let told = self.fleet.account(name);
            if let Some(sealed) = told
                && let Some(account) = self.fleet.read_account(&entry, &sealed, directory)?
            {
                return Ok(Some(account));
            }
            let leased = self.fleet.lease(&entry, None).await;
            match leased.map_err(|failure| trouble(&failure))? {
                Leased::Granted { fence, product, .. } => {
                    if let Some(sealed) = product
                        && let Some(account) =
                            self.fleet.read_account(&entry, &sealed, directory)?
                    {
                        self.fleet.know_account(name, sealed);
                        self.fleet.write_account(&entry, fence, None).await?;
                        return Ok(Some(account));
                    }
                    self.fleet.making(name, fence);
                    return Ok(None);
                }
                Leased::Held { .. } if Instant::now() < until => sleep(super::PAUSE).await,
                Leased::Held { .. } => {
                    let said = "another gateway makes the account, and does not come to an end";
                    return Err(Trouble::new(Reason::Storage, said));
                }
            }
        }
    }

    async fn write_account(&self, name: &str, account: &AccountCredentials) -> Result<(), Trouble> {
        let entry = account_entry(name)?;
        let text = keys::account_to_text(account);
        let sealed = self.fleet.seal(&entry, "account", &text);
        let fence = self.fleet.made(name).unwrap_or_default();
        self.fleet
            .write_account(&entry, fence, Some(sealed.clone()))
            .await?;
        self.fleet.know_account(name, sealed);
        Ok(())
    }

    async fn forget_account(&self, name: &str) {
        let forgotten = async {
            let entry = account_entry(name)?;
            match self.fleet.lease(&entry, None).await {
                Ok(Leased::Granted { fence, .. }) => {
                    let none = Some(String::new());
                    self.fleet.write_account(&entry, fence, none).await?;
                    self.fleet.know_account(name, String::new());
                    Ok(())
                }
                Ok(Leased::Held { .. }) => Ok(()),
                Err(failure) => Err(trouble(&failure)),
            }
        };
        if let Err(trouble) = forgotten.await {
            let error = &trouble.said;
            tracing::warn!(
                authority = name,
                error,
                "an account that is gone is not forgotten"
            );
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.state().lease.take().is_some() {
            metrics::holds(-1.0);
        }
    }
}

fn account_entry(authority: &str) -> Result<EntryName, Trouble> {
    format!("{ACCOUNT}{authority}")
        .parse()
        .map_err(Trouble::storage)
}

impl Fleet {
    fn account(&self, name: &str) -> Option<String> {
        let accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        accounts.get(name).cloned()
    }

    /// `None` for one at another directory.
    fn read_account(
        &self,
        entry: &EntryName,
        sealed: &str,
        directory: &str,
    ) -> Result<Option<AccountCredentials>, Trouble> {
        let text = self.open(entry, "account", sealed)?;
        if keys::account_directory(&text).as_deref() != Some(directory) {
            return Ok(None);
        }
        let account = keys::account_from_text(&text);
        let none = |_| Trouble::new(Reason::Storage, "an account that is none");
        account.map(Some).map_err(none)
    }

    /// Writes an account, or leaves it, and gives its lease back.
    async fn write_account(
        &self,
        entry: &EntryName,
        fence: u64,
        product: Option<String>,
    ) -> Result<(), Trouble> {
        let write = WriteEntry {
            entry: entry.clone(),
            fence,
            draft: None,
            answers: None,
            product,
            release: true,
        };
        let written = self.write(&write).await;
        written.map(|_| ()).map_err(|failure| trouble(&failure))
    }

    fn making(&self, name: &str, fence: u64) {
        let fences = self.account_fences.lock();
        let mut fences = fences.unwrap_or_else(PoisonError::into_inner);
        fences.insert(name.to_owned(), fence);
    }

    fn made(&self, name: &str) -> Option<u64> {
        let fences = self.account_fences.lock();
        fences.unwrap_or_else(PoisonError::into_inner).remove(name)
    }
}
