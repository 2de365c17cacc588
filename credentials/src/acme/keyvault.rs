//! A gateway alone whose accounts, certificates and keys are in a KeyVault, and on no disk. What is no secret is in a
//! directory: how authorities have fared, how many orders there were for hosts, and the newest chain, which commands of an
//! operator find a certificate by.
//!
//! Below one path there, `certificates/NAME` has a pair, in the fields that [`cert::InKeyVault`](crate::cert::InKeyVault)
//! reads elsewhere; `orders/NAME` an order under way with the new key; `accounts/AUTHORITY` an account.

use std::{
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use instant_acme::AccountCredentials;
use rustls_pki_types::CertificateDer;
use serde::Deserialize;
use tokio::{sync::Semaphore, time::sleep};

use super::{
    challenge::{Answered, Answers},
    demand::Pace,
    directory::on_disk,
    kept::Kept,
    machine::Reason,
    schedule::Record,
    storage::{Left, Pending, Storage, Taken},
    work::failure::Trouble,
};
use crate::{
    bearer::Document,
    cert::{Pair, pairs::Issued},
    clock::since_epoch,
    key::{acme as keys, format::beside},
    secret::Secret,
    source::{
        self,
        keyvault::{self, Client, SecretPath},
    },
};

const CHAIN: &str = "certificate";
const KEY: &str = "private_key";
const AUTHORITY: &str = "authority";
const URL: &str = "order";
const ACCOUNT: &str = "account";
/// Between two questions to a KeyVault that does not answer.
const PAUSE: Duration = Duration::from_secs(2);
/// Certificates that are read at once when a gateway starts.
const AT_ONCE: usize = 8;

/// A place in a KeyVault, and who writes there.
#[derive(Clone)]
pub struct InKeyVault {
    client: Arc<Client>,
    /// MOUNT/PATH.
    path: Arc<str>,
    reading: Arc<Semaphore>,
}

impl InKeyVault {
    /// Below `path`, which is MOUNT/PATH. Nothing is sent yet.
    pub fn new(keyvault: keyvault::Config, path: &str) -> Result<Self, source::Error> {
        let client = Client::new(keyvault).map_err(|failure| source::Error::KeyVault {
            place: "the KeyVault".to_owned(),
            failure: Box::new(failure),
        })?;
        let kept = Self {
            client: Arc::new(client),
            path: path.into(),
            reading: Arc::new(Semaphore::new(AT_ONCE)),
        };
        kept.at("accounts", "any").map(|_| kept)
    }

    fn at(&self, kind: &str, name: &str) -> Result<SecretPath, source::Error> {
        // Those of wildcards, of addresses, and before a hash. No name has the sign that takes their place.
        let name = name.replace(['*', ':', '+'], "_");
        SecretPath::new(self.client.clone(), &format!("{}/{kind}/{name}", self.path))
    }

    fn account(&self, authority: &str) -> Result<SecretPath, Trouble> {
        self.at("accounts", authority).map_err(Trouble::storage)
    }
}

/// One certificate's affairs.
pub(super) struct Vaulted {
    name: String,
    vault: InKeyVault,
    pair: SecretPath,
    order: SecretPath,
    /// What all certificates have on disk, and what this one has.
    counts: Arc<Kept>,
    kept: Arc<Kept>,
    shown: PathBuf,
    answers: Answers,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// The newest certificate.
    leaf: Option<CertificateDer<'static>>,
    /// The URL of an order that is written down there; empty if there is none.
    order: String,
}

/// What of a secret there is none.
#[derive(Deserialize)]
struct Beside {
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    data: Fields,
}

#[derive(Deserialize)]
struct Fields {
    #[serde(default)]
    authority: String,
    #[serde(default)]
    order: String,
}

impl Vaulted {
    /// Of the certificate `entry`. `counts` is what all certificates have on disk, `own` where this one has more.
    pub(super) fn open(
        vault: InKeyVault,
        entry: &str,
        counts: Arc<Kept>,
        own: &Path,
        answers: Answers,
    ) -> std::io::Result<Self> {
        Ok(Self {
            pair: vault
                .at("certificates", entry)
                .map_err(std::io::Error::other)?,
            order: vault.at("orders", entry).map_err(std::io::Error::other)?,
            name: entry.to_owned(),
            vault,
            counts,
            kept: Arc::new(Kept::open(own)?),
            // Not among the numbers that pairs on disk have.
            shown: own.join("pairs/in-keyvault"),
            answers,
            known: Mutex::default(),
        })
    }

    /// The pair that is there, if there is one that can be read, and the URL of its order.
    async fn read(&self) -> Result<Option<(Pair, Issued, String)>, source::Error> {
        let Some(answer) = self.pair.find().await? else {
            return Ok(None);
        };
        let read = || -> Result<_, Box<dyn std::error::Error + Send + Sync>> {
            let chain = self.pair.field(&answer, CHAIN)?;
            let key = self.pair.field(&answer, KEY)?;
            let Beside { data } = beside(&answer)?;
            let issued = Issued {
                authority: data.data.authority,
            };
            let origin = self.pair.place();
            let pair = Pair::from_secrets(origin.as_ref(), &chain, &key)?;
            Ok(((pair, issued, data.data.order), chain))
        };
        match read() {
            Ok((found, chain)) => {
                let leaf = found.0.leaf().clone();
                if self.known().leaf.replace(leaf.clone()) != Some(leaf) {
                    self.show(chain).await;
                }
                Ok(Some(found))
            }
            Err(error) => {
                let place = self.pair.place();
                tracing::error!(place, %error, "a certificate that was kept cannot be used");
                Ok(None)
            }
        }
    }

    /// Puts the newest chain where commands look for it.
    async fn show(&self, chain: Secret<Vec<u8>>) {
        let directory = self.shown.clone();
        let shown = on_disk(move || {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&directory)
                .map_err(|error| source::Error::File {
                    path: directory.clone(),
                    problem: format!("cannot be made: {error}"),
                })?;
            source::write_secret(&directory.join("chain.pem"), &chain)
        });
        if let Err(trouble) = shown.await {
            let error = &trouble.said;
            tracing::warn!(error, "commands do not find the newest certificate");
        }
    }

    /// An order that was not brought to its end.
    async fn left_order(&self) -> Result<Option<Pending>, Trouble> {
        let Some(answer) = self.order.find().await.map_err(Trouble::storage)? else {
            return Ok(None);
        };
        let Beside { data } = beside(&answer).map_err(Trouble::storage)?;
        if data.data.order.is_empty() {
            return Ok(None);
        }
        let key = self.order.field(&answer, KEY).ok();
        let Some(key) = key.and_then(|key| keys::CertificateKey::from_pem(&key).ok()) else {
            // It would be none at every attempt: another order takes its place.
            tracing::warn!(
                order = data.data.order,
                "an order is left whose key is none"
            );
            return Ok(None);
        };
        Ok(Some(Pending {
            authority: data.data.authority,
            url: data.data.order,
            key,
        }))
    }

    async fn forget_order(&self) -> Result<(), Trouble> {
        if std::mem::take(&mut self.known().order).is_empty() {
            return Ok(());
        }
        let nothing = [(URL, Document::of(&""))];
        let written = self.order.write(nothing).await;
        written.map_err(Trouble::storage)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Storage for Vaulted {
    /// Waits for a KeyVault that does not answer: without what is there another certificate would be ordered.
    async fn newest(&self) -> Option<(Pair, Issued)> {
        let mut told = None;
        loop {
            let read = {
                // Nobody closes it.
                let _turn = self.vault.reading.acquire().await;
                self.read().await
            };
            match read {
                Ok(found) => return found.map(|(pair, issued, _)| (pair, issued)),
                Err(error) => {
                    let error = error.to_string();
                    if told.as_ref() != Some(&error) {
                        tracing::warn!(error, "a certificate that may be there is waited for");
                        told = Some(error);
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    }

    fn record(&self) -> Record {
        self.kept.record()
    }

    /// Nothing is ordered that could not be kept: the KeyVault has to answer.
    async fn take(&self) -> Result<Taken, Trouble> {
        let leaf = self.known().leaf.clone();
        let found = self.read().await.map_err(Trouble::storage)?;
        let pending = self.left_order().await?;
        let done = found.as_ref().map(|(_, _, order)| order);
        let pending = pending.filter(|pending| done != Some(&pending.url));
        let order = pending.as_ref().map(|pending| pending.url.clone());
        self.known().order = order.unwrap_or_default();
        let pair = found.map(|(pair, issued, _)| (pair, issued));
        Ok(Taken::Ours(Box::new(Left {
            record: None,
            pending,
            pair: pair.filter(|(pair, _)| Some(pair.leaf()) != leaf.as_ref()),
        })))
    }

    async fn charge(&self, pace: Pace) -> Result<Option<Duration>, Trouble> {
        let counts = self.counts.clone();
        let charged = tokio::task::spawn_blocking(move || counts.charge(pace, since_epoch()));
        let charged = charged.await.map_err(Trouble::storage)?;
        charged.map_err(Trouble::storage)
    }

    async fn keep(&self) {
        std::future::pending().await
    }

    async fn give_back(&self, record: &Record) {
        self.answers.take_down(&self.name);
        let written = async {
            self.write_record(record).await?;
            self.forget_order().await
        };
        if let Err(trouble) = written.await {
            let error = &trouble.said;
            tracing::warn!(error, "how an attempt ended is not written down");
        }
    }

    async fn write_record(&self, record: &Record) -> Result<(), Trouble> {
        let (kept, record) = (self.kept.clone(), record.clone());
        on_disk(move || kept.write_record(&record)).await
    }

    async fn write_pending(&self, pending: &Pending) -> Result<(), Trouble> {
        let key = Document::text(&pending.key.to_pem()).map_err(Trouble::storage)?;
        self.known().order = pending.url.clone();
        let written = self.order.write([
            (AUTHORITY, Document::of(&pending.authority)),
            (URL, Document::of(&pending.url)),
            (KEY, key),
        ]);
        written.await.map_err(Trouble::storage)
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
        let pair = Pair::from_pem("what was issued".as_ref(), chain, &key);
        let leaf = pair.map_err(Trouble::storage)?.leaf().clone();
        let order = self.known().order.clone();
        let written = self.pair.write([
            (URL, Document::of(&order)),
            (CHAIN, Document::of(&chain)),
            (KEY, Document::text(&key).map_err(Trouble::storage)?),
            (AUTHORITY, Document::of(&issued.authority)),
        ]);
        written.await.map_err(Trouble::storage)?;
        self.known().leaf = Some(leaf);
        self.show(Secret::new(chain.as_bytes().to_vec())).await;
        Ok(())
    }

    async fn newer(&self) -> (Pair, Issued) {
        std::future::pending().await
    }

    async fn account(
        &self,
        name: &str,
        directory: &str,
    ) -> Result<Option<AccountCredentials>, Trouble> {
        let secret = self.vault.account(name)?;
        let Some(answer) = secret.find().await.map_err(Trouble::storage)? else {
            return Ok(None);
        };
        let text = secret.field(&answer, ACCOUNT).map_err(Trouble::storage)?;
        if keys::account_directory(&text).as_deref() != Some(directory) {
            return Ok(None);
        }
        let none = |_| Trouble::new(Reason::Storage, "an account that is none");
        keys::account_from_text(&text).map(Some).map_err(none)
    }

    async fn write_account(&self, name: &str, account: &AccountCredentials) -> Result<(), Trouble> {
        let text = Document::text(&keys::account_to_text(account)).map_err(Trouble::storage)?;
        let written = self.vault.account(name)?.write([(ACCOUNT, text)]).await;
        written.map_err(Trouble::storage)
    }

    async fn forget_account(&self, name: &str) {
        let forgotten = async {
            let nothing = [(ACCOUNT, Document::of(&""))];
            let written = self.vault.account(name)?.write(nothing).await;
            written.map_err(Trouble::storage)
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
