//! Does what the machine says.

mod attempt;
pub(super) mod failure;
mod operator;
mod sharing;

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use ::metrics::{counter, histogram};
use instant_acme::{Account, Order};
use rustls_pki_types::CertificateDer;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch};

use self::failure::Trouble;
use super::{
    Authority, Challenge, Config, Error,
    demand::Demand,
    dns::Publisher,
    entry,
    http::Client,
    machine::{Action, Certificate, Event, Machine, Reason, Time},
    metrics::{self as names, Labels, Told},
    request::{Inbox, Ticket},
    schedule::{Backoff, Record, Validity},
    storage::Storage,
    trust,
};
use crate::{
    cert::{self, Pair, Store, pairs::Issued},
    clock::since_epoch,
    key::acme::CertificateKey,
    random,
    secret::Secret,
    source,
};

/// Orders under way at once. Each has a few requests under way, and authorities limit those of an address; an hour
/// is enough for the thousand certificates that a gateway may have.
const AT_ONCE: usize = 8;
/// Longest sleep, so that a clock that was set, or a machine that slept, is noticed.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// The authorities, and what they are asked with.
pub(super) struct Authorities {
    pub(super) config: Config,
    clients: Vec<Client>,
    external: Vec<Option<Secret<Vec<u8>>>>,
    /// For as many orders at once.
    room: Arc<Semaphore>,
    /// Accounts that are open.
    accounts: Vec<Mutex<Option<Account>>>,
    /// Where challenges are answered in the DNS.
    publisher: Option<Publisher>,
    labels: Labels,
}

impl Authorities {
    pub(super) fn new(config: Config) -> Result<Self, Error> {
        let client = |authority: &Authority| {
            Client::new(&trust(authority)).map_err(|source| Error::Trust {
                name: authority.name.clone(),
                source,
            })
        };
        let clients = config.authorities.iter().map(client);
        let clients = clients.collect::<Result<Vec<_>, _>>()?;
        let external = |authority: &Authority| {
            let account = authority.external_account.as_ref();
            let failed = |source| Error::ExternalAccount {
                name: authority.name.clone(),
                source,
            };
            let key = account.map(|account| source::read_file(&account.key_file));
            key.transpose().map_err(failed)
        };
        let external = config.authorities.iter().map(external);
        let external = external.collect::<Result<_, _>>()?;
        Ok(Self {
            room: Arc::new(Semaphore::new(AT_ONCE)),
            accounts: clients.iter().map(|_| Mutex::default()).collect(),
            publisher: match &config.challenge {
                Challenge::Dns(dns) => Some(Publisher::open(dns.clone(), &config.directory)),
                Challenge::Listener { .. } | Challenge::Tls => None,
            },
            config,
            clients,
            external,
            labels: Labels::default(),
        })
    }
}

/// What the work for one certificate is done with.
pub(super) struct Work<S> {
    authorities: Arc<Authorities>,
    /// What the certificate is for.
    names: Vec<String>,
    /// What the store of certificates knows it by.
    origin: PathBuf,
    storage: Arc<S>,
    /// Whether the right to order is ours.
    is_ours: bool,
    /// One of the orders at once.
    place: Option<OwnedSemaphorePermit>,
    /// Whether it is wanted, where that depends on who asks for it.
    demand: Option<Demand>,
    /// The certificate in use or kept, for the question when to renew it.
    leaf: Option<CertificateDer<'static>>,
    /// The attempt under way, as far as it has come.
    account: Option<Account>,
    order: Option<Order>,
    /// URLs of challenges that the authority knows to be answered.
    announced: HashSet<String>,
    /// The order that is gone on with, and the key of the certificate that is asked for.
    resumed: Option<String>,
    key: Option<CertificateKey>,
    chain: Option<String>,
    /// Texts that are in the DNS for it.
    texts: Vec<String>,
    inbox: Option<Arc<Inbox>>,
    /// When something had changed there last.
    inbox_seen: Option<SystemTime>,
    /// What operators were told of the next attempt.
    told_next: Option<Time>,
    /// Operators who wait for a certificate.
    wishes: Vec<Ticket>,
    /// Attempts that failed since there was a certificate last.
    failures: u32,
    told: Told,
}

impl<S: Storage> Work<S> {
    pub(super) fn new(
        authorities: Arc<Authorities>,
        names: Vec<String>,
        origin: PathBuf,
        storage: S,
    ) -> Self {
        let told = authorities.labels.told(entry(&names).as_str());
        Self {
            authorities,
            told,
            failures: 0,
            names,
            origin,
            storage: Arc::new(storage),
            is_ours: false,
            place: None,
            demand: None,
            leaf: None,
            account: None,
            order: None,
            announced: HashSet::new(),
            resumed: None,
            key: None,
            chain: None,
            texts: Vec::new(),
            inbox: None,
            inbox_seen: None,
            told_next: None,
            wishes: Vec::new(),
        }
    }

    /// Does what operators ask for there, too.
    pub(super) fn attending(mut self, inbox: Inbox) -> Self {
        self.inbox = Some(Arc::new(inbox));
        self
    }

    /// The same for a host that may be asked for.
    pub(super) fn on(self, demand: Demand) -> Self {
        Self {
            demand: Some(demand),
            ..self
        }
    }

    /// Whether the first certificate is wanted, or one that is there is to be renewed.
    fn is_wanted(&self, machine: &Machine) -> bool {
        let asked = |demand: &Demand| *demand.wanted.borrow();
        machine.certificate().is_some() || self.demand.as_ref().is_none_or(asked)
    }

    /// Installs what was kept, and keeps a certificate in `store` for as long as it is polled.
    pub(super) async fn run(mut self, store: Store, installed: watch::Sender<bool>) {
        let certificate = self.install_kept(&store, &installed).await;
        let backoffs = self.backoffs(&self.storage.record());
        // An authority that is never asked has not failed.
        let failures = backoffs.iter().map(Backoff::failures);
        self.failures = failures.min().unwrap_or_default();
        let mut machine = Machine::new(backoffs, certificate);
        let mut written = self.record(&machine);
        loop {
            if !self.is_ours && machine.begins(since_epoch()) {
                if !self.is_wanted(&machine) {
                    let pause = LONGEST_SLEEP;
                    self.wait(pause, &mut machine, &store, &installed).await;
                    continue;
                }
                match self.take(&mut machine, &store, &installed).await {
                    Some(pause) => {
                        self.wait(pause, &mut machine, &store, &installed).await;
                        continue;
                    }
                    None => written = self.record(&machine),
                }
            }
            let action = machine.next(since_epoch(), chance());
            self.show(&machine, action);
            if self.is_ours && machine.authority().is_none() {
                self.end_attempt(&machine).await;
                written = self.record(&machine);
            }
            // Before anything is asked: an attempt that ends with the process is one that failed.
            let record = self.record(&machine);
            let recorded = match record == written {
                true => Ok(()),
                false => self.storage.write_record(&record).await,
            };
            if recorded.is_ok() {
                written = record;
            }
            if let Action::Wait(until) = action {
                let mut pause = until.saturating_sub(since_epoch());
                if machine.authority().is_none() {
                    self.tidy().await;
                    pause = pause.min(self.attend(&mut machine).await);
                }
                self.wait(pause, &mut machine, &store, &installed).await;
                continue;
            }
            let (authority, began) = (machine.authority(), machine.began());
            let event = match recorded {
                Ok(()) => {
                    let (storage, is_ours) = (self.storage.clone(), self.is_ours);
                    tokio::select! {
                        event = self.perform_in_time(action, authority, &store) => event,
                        () = storage.keep(), if is_ours => {
                            tracing::warn!("the right to order a certificate is lost; another gateway goes on");
                            machine.abandon();
                            (self.is_ours, self.place) = (false, None);
                            self.forget_attempt();
                            continue;
                        }
                    }
                }
                Err(trouble) => Err(trouble),
            };
            let said = event.as_ref().err().map(|trouble| trouble.said.clone());
            let event = match event {
                Ok(event) => event,
                Err(trouble) => self.failed(action, authority, trouble).await,
            };
            let is_installed = matches!(event, Event::Installed(_));
            if is_installed {
                self.succeeded(authority, began);
                installed.send_replace(true);
            }
            machine.happened(event, since_epoch(), chance());
            if machine.authority().is_none() {
                self.forget_attempt();
                // Where another authority is asked at once, it may do better.
                if is_installed || machine.next_attempt() > since_epoch() {
                    self.answer_wishes(said.as_deref());
                }
            }
        }
    }

    fn backoffs(&self, record: &Record) -> Vec<Backoff> {
        let authorities = &self.authorities.config.authorities;
        record.of(authorities.iter().map(|a| a.name.as_str()), since_epoch())
    }

    fn authority_named(&self, name: &str) -> Option<usize> {
        let mut authorities = self.authorities.config.authorities.iter();
        authorities.position(|authority| authority.name == name)
    }

    /// Puts the newest pair that was kept in use, and says what the machine should know of it.
    async fn install_kept(
        &mut self,
        store: &Store,
        installed: &watch::Sender<bool>,
    ) -> Option<Certificate> {
        let (pair, issued) = self.storage.newest().await?;
        let known = self.known(&pair, &issued);
        // One that lacks a name that was added serves the others until it is replaced.
        let serves = self.names.iter().any(|name| pair.names(name));
        self.leaf = Some(pair.leaf().clone());
        match store.install(&self.origin, pair) {
            Ok(()) => {
                tracing::info!(
                    authority = issued.authority,
                    "the certificate that was kept is in use"
                );
                installed.send_replace(serves);
                Some(known)
            }
            Err(error) => {
                tracing::error!(%error, "the certificate that was kept is not in use");
                None
            }
        }
    }

    fn known(&self, pair: &Pair, issued: &Issued) -> Certificate {
        let since_epoch = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH);
        let hash = cert::hash(pair.leaf());
        Certificate {
            validity: Validity {
                start: since_epoch(pair.not_before()).unwrap_or_default(),
                end: since_epoch(pair.not_after()).unwrap_or_default(),
            },
            authority: self.authority_named(&issued.authority),
            fits: self.names.iter().all(|name| pair.names(name)),
            chance: u16::from_le_bytes([hash[0], hash[1]]),
        }
    }

    fn record(&self, machine: &Machine) -> Record {
        let authorities = self.authorities.config.authorities.iter();
        let names = authorities.map(|a| a.name.as_str());
        Record::new(names.zip(machine.backoffs().iter().copied()))
    }

    /// Tells of what failed, and makes an event of it.
    async fn failed(
        &mut self,
        action: Action,
        authority: Option<usize>,
        trouble: Trouble,
    ) -> Event {
        let index = match (action, authority) {
            (Action::AskWindow { authority }, _) | (_, Some(authority)) => authority,
            _ => 0,
        };
        let authorities = self.authorities.clone();
        let name = &authorities.config.authorities[index].name;
        if trouble.failure.reason == Reason::AccountGone {
            self.forget_account(index).await;
        }
        let (reason, error) = (trouble.failure.reason.label(), &trouble.said);
        if let Action::AskWindow { .. } = action {
            tracing::warn!(
                authority = name,
                reason,
                error,
                "does not say when to renew"
            );
            return Event::Window {
                window: None,
                again: None,
            };
        }
        counter!(names::ATTEMPTS, "authority" => name.clone(), "outcome" => reason).increment(1);
        self.failures = self.failures.saturating_add(1);
        tracing::error!(
            authority = name,
            reason,
            error,
            "no certificate; what is in use stays"
        );
        Event::Failed(trouble.failure)
    }

    fn succeeded(&mut self, authority: Option<usize>, began: Option<Time>) {
        let (Some(authority), Some(began)) = (authority, began) else {
            return;
        };
        let name = &self.authorities.config.authorities[authority].name;
        let now = since_epoch();
        counter!(names::ATTEMPTS, "authority" => name.clone(), "outcome" => "issued").increment(1);
        histogram!(names::ATTEMPT, "authority" => name.clone())
            .record(now.saturating_sub(began).as_secs_f64());
        self.failures = 0;
        self.told.obtained(now);
        tracing::info!(authority = name, "a new certificate is in use");
    }

    fn show(&self, machine: &Machine, action: Action) {
        if let (Action::Wait(_), None) = (action, machine.authority()) {
            self.told.next_attempt(machine.next_attempt());
        }
        if let Some(window) = machine.window() {
            self.told.window(window);
        }
        self.told.began(machine.began());
        self.told.failures(self.failures);
    }

    /// Gives the right to order back.
    async fn end_attempt(&mut self, machine: &Machine) {
        self.storage.give_back(&self.record(machine)).await;
        (self.is_ours, self.place) = (false, None);
        self.forget_attempt();
    }

    /// Removes from the DNS what is of no use any more.
    async fn tidy(&self) {
        if let Some(publisher) = &self.authorities.publisher {
            publisher.tidy(since_epoch()).await;
        }
    }

    fn forget_attempt(&mut self) {
        let texts = std::mem::take(&mut self.texts);
        if let Some(publisher) = &self.authorities.publisher {
            publisher.leave(&texts);
        }
        self.announced.clear();
        self.resumed = None;
        (self.account, self.order, self.key, self.chain) = (None, None, None, None);
    }
}

/// Whether what was issued can be put in use. A clock may be a little behind the authority's.
fn check(known: &Certificate, now: Time) -> Result<(), &'static str> {
    const SKEW: Duration = Duration::from_secs(5 * 60);
    if !known.fits {
        return Err("is not for all of the names that it was asked for");
    }
    if known.validity.start > now + SKEW {
        return Err("does not hold yet");
    }
    if known.validity.end <= now {
        return Err("has expired");
    }
    Ok(())
}

fn chance() -> u16 {
    u16::from_le_bytes(random::bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_for_the_names_or_not_for_now_is_not_put_in_use() {
        let at = Duration::from_secs;
        let good = Certificate {
            validity: Validity {
                start: at(1000),
                end: at(9000),
            },
            authority: Some(0),
            fits: true,
            chance: 0,
        };
        assert_eq!(check(&good, at(2000)), Ok(()));
        assert_eq!(check(&good, at(800)), Ok(()), "clocks differ");
        assert!(check(&good, at(600)).is_err());
        assert!(check(&good, at(9000)).is_err());
        let other = Certificate {
            fits: false,
            ..good
        };
        assert!(check(&other, at(2000)).is_err());
    }
}
