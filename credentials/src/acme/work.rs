//! Does what the machine says.

pub(super) mod failure;
mod operator;

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use ::metrics::{counter, gauge, histogram};
use instant_acme::{
    Account, AuthorizationStatus, CertificateIdentifier, Identifier, NewAccount, NewOrder, Order,
    OrderStatus,
};
use rustls_pki_types::CertificateDer;
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch},
    time::{sleep, timeout},
};

use self::failure::Trouble;
use super::{
    Authority, Challenge, Config, Error,
    challenge::Answered,
    demand::Demand,
    dns::Publisher,
    http::Client,
    machine::{Action, Certificate, Event, Machine, Reason, Standing, Time},
    metrics as names,
    request::{Inbox, Ticket},
    schedule::{Backoff, Record, Validity, Window},
    storage::{Left, Pending, Storage, Taken},
    trust,
};
use crate::{
    cert::{self, Pair, Store, pairs::Issued},
    clock::since_epoch,
    key::acme::{self as keys, CertificateKey},
    random,
    secret::Secret,
    source,
};

/// How long one action may take: a hundred authorizations are read in it.
const ACTION: Duration = Duration::from_secs(5 * 60);
/// Orders under way at once. Each has a few requests under way, and authorities limit those of an address; an hour
/// is enough for the thousand certificates that a gateway may have.
const AT_ONCE: usize = 8;
/// How often an action is begun anew because a nonce was no good; instant-acme has asked three times by then.
/// What such a request asked for was not done (RFC 8555, section 6.5).
const NONCES: usize = 10;
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
    /// Operators who wait for a certificate.
    wishes: Vec<Ticket>,
}

impl<S: Storage> Work<S> {
    pub(super) fn new(
        authorities: Arc<Authorities>,
        names: Vec<String>,
        origin: PathBuf,
        storage: S,
    ) -> Self {
        Self {
            authorities,
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
        let certificate = self.install_kept(&store, &installed);
        let backoffs = self.backoffs(&self.storage.record());
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

    /// Asks for the right to order, and takes in what comes with it. How long to wait before another question
    /// where somebody else has it.
    async fn take(
        &mut self,
        machine: &mut Machine,
        store: &Store,
        installed: &watch::Sender<bool>,
    ) -> Option<Duration> {
        let (room, storage) = (self.authorities.room.clone(), self.storage.clone());
        let place = tokio::select! {
            // Nobody closes it.
            place = room.acquire_owned() => place.ok(),
            pair = storage.newer() => {
                self.adopt(pair, machine, store, installed).await;
                return Some(Duration::ZERO);
            }
        };
        let left = match self.storage.take().await {
            Ok(Taken::Ours(left)) => *left,
            Ok(Taken::Elsewhere(pause)) => return Some(pause),
            Err(trouble) => {
                let error = &trouble.said;
                tracing::warn!(error, "no certificate can be ordered now");
                return Some(LONGEST_SLEEP);
            }
        };
        self.is_ours = true;
        self.place = place;
        let Left {
            record,
            pending,
            pair,
        } = left;
        if let Some(record) = record {
            machine.fared(self.backoffs(&record));
        }
        if let Some(pair) = pair {
            self.adopt(pair, machine, store, installed).await;
        }
        if let Some(pending) = pending
            && let Some(authority) = self.authority_named(&pending.authority)
            && machine.due() <= since_epoch()
        {
            let authority_name = &pending.authority;
            tracing::info!(authority = authority_name, "an order is gone on with");
            self.resumed = Some(pending.url);
            self.key = Some(pending.key);
            machine.resume(authority, since_epoch());
            return None;
        }
        self.put_off(machine).await
    }

    /// How long the first certificate of a host is put off, where many hosts got one of late; the right to order
    /// is given back then.
    async fn put_off(&mut self, machine: &Machine) -> Option<Duration> {
        let demand = self.demand.as_ref()?;
        if machine.certificate().is_some() || !machine.begins(since_epoch()) {
            return None;
        }
        let wait = match self.storage.charge(demand.pace).await {
            Ok(wait) => wait?,
            Err(trouble) => {
                let error = &trouble.said;
                tracing::warn!(error, "what is ordered for hosts cannot be counted");
                LONGEST_SLEEP
            }
        };
        counter!(names::DEMAND_PUT_OFF).increment(1);
        self.end_attempt(machine).await;
        Some(wait)
    }

    /// Waits, and takes in what others obtain meanwhile.
    async fn wait(
        &mut self,
        pause: Duration,
        machine: &mut Machine,
        store: &Store,
        installed: &watch::Sender<bool>,
    ) {
        let storage = self.storage.clone();
        let unwanted = self.demand.as_ref().map(|demand| demand.wanted.clone());
        let asked = async {
            match unwanted {
                Some(mut wanted) if !*wanted.borrow() => {
                    // Where nobody is left to ask, this is about to end.
                    let _ = wanted.wait_for(|wanted| *wanted).await;
                }
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            () = asked => {}
            () = sleep(pause.min(LONGEST_SLEEP)) => {}
            () = storage.keep(), if self.is_ours => {
                machine.abandon();
                (self.is_ours, self.place) = (false, None);
                self.forget_attempt();
            }
            pair = storage.newer(), if !self.is_ours => {
                self.adopt(pair, machine, store, installed).await;
            }
        }
    }

    /// Puts a pair in use that another gateway obtained, if it is good and newer.
    async fn adopt(
        &mut self,
        (pair, issued): (Pair, Issued),
        machine: &mut Machine,
        store: &Store,
        installed: &watch::Sender<bool>,
    ) {
        if self.leaf.as_ref() == Some(pair.leaf()) {
            return;
        }
        let known = self.known(&pair, &issued);
        let newer = |in_use: Certificate| known.validity.end > in_use.validity.end || !in_use.fits;
        let refused = match check(&known, since_epoch()) {
            Ok(()) if !machine.certificate().is_none_or(newer) => {
                Some("is older than the one in use")
            }
            Ok(()) => None,
            Err(problem) => Some(problem),
        };
        if let Some(problem) = refused {
            tracing::warn!(
                problem,
                "a certificate of another gateway is not put in use"
            );
            return;
        }
        let leaf = pair.leaf().clone();
        match store.install(&self.origin, pair) {
            Ok(()) => {
                let authority = issued.authority;
                tracing::info!(
                    authority,
                    "a certificate that another gateway obtained is in use"
                );
                self.leaf = Some(leaf);
                machine.replaced(known, since_epoch());
                self.answer_wishes(None);
                installed.send_replace(true);
            }
            Err(error) => tracing::error!(%error, "a certificate of another gateway is not in use"),
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
    fn install_kept(
        &mut self,
        store: &Store,
        installed: &watch::Sender<bool>,
    ) -> Option<Certificate> {
        let (pair, issued) = self.storage.newest()?;
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

    async fn perform_in_time(
        &mut self,
        action: Action,
        authority: Option<usize>,
        store: &Store,
    ) -> Result<Event, Trouble> {
        let performed = timeout(ACTION, async {
            for _ in 1..NONCES {
                let performed = self.perform(action, authority, store).await;
                if !performed.as_ref().is_err_and(Trouble::is_of_a_nonce) {
                    return performed;
                }
            }
            self.perform(action, authority, store).await
        });
        performed
            .await
            .unwrap_or_else(|_| Err(Trouble::new(Reason::Timeout, "took too long")))
    }

    async fn perform(
        &mut self,
        action: Action,
        authority: Option<usize>,
        store: &Store,
    ) -> Result<Event, Trouble> {
        match (action, authority) {
            (Action::AskWindow { authority }, _) => self.ask_window(authority).await,
            (Action::Open { authority }, _) => self.open(authority).await,
            (Action::Resume, Some(authority)) => self.resume(authority).await,
            (Action::Order { replacing }, Some(authority)) => {
                self.place_order(authority, replacing).await
            }
            (Action::Answer, Some(authority)) => self.answer(authority).await,
            (Action::Announce, Some(authority)) => self.announce(authority).await,
            (Action::Look, Some(authority)) => self.look(authority).await,
            (Action::Finalise, Some(authority)) => self.finalise(authority).await,
            (Action::Download, Some(authority)) => self.download(authority).await,
            (Action::Install, Some(authority)) => self.install(authority, store).await,
            (Action::Wait(_), _) | (_, None) => Err(Trouble::lost()),
        }
    }

    async fn ask_window(&mut self, authority: usize) -> Result<Event, Trouble> {
        let leaf = self.leaf.clone().ok_or_else(Trouble::lost)?;
        let id = identifier(&leaf)?;
        let account = self.account(authority).await?;
        let client = &self.authorities.clients[authority];
        client.take_noted();
        let (info, again) = match account.renewal_info(&id).await {
            Ok(answer) => answer,
            // What an authority does not offer today it may tomorrow.
            Err(instant_acme::Error::Unsupported(_)) => {
                return Ok(Event::Window {
                    window: None,
                    again: None,
                });
            }
            Err(error) => return Err(Trouble::of(error, client)),
        };
        let since_epoch = |time: time::OffsetDateTime| {
            Duration::from_secs(time.unix_timestamp().try_into().unwrap_or_default())
        };
        let window = Window {
            start: since_epoch(info.suggested_window.start),
            end: since_epoch(info.suggested_window.end),
        };
        if let Some(page) = info.explanation_url {
            tracing::info!(
                page,
                "the authority explains when the certificate should be renewed"
            );
        }
        Ok(Event::Window {
            window: Some(window),
            again: Some(again),
        })
    }

    async fn open(&mut self, authority: usize) -> Result<Event, Trouble> {
        self.account = Some(self.account(authority).await?);
        Ok(Event::Opened)
    }

    /// The account that is kept, or a new one.
    async fn account(&self, index: usize) -> Result<Account, Trouble> {
        let shared = &self.authorities;
        // One is made at a time, for all certificates.
        let mut open = shared.accounts[index].lock().await;
        if let Some(account) = &*open {
            return Ok(account.clone());
        }
        let (authority, client) = (&shared.config.authorities[index], &shared.clients[index]);
        client.take_noted();
        let failed = |error| Trouble::of(error, client);
        let builder = || Account::builder_with_http(Box::new(client.clone()));
        let (name, directory) = (&authority.name, &authority.directory);
        if let Some(kept) = self.storage.account(name, directory).await? {
            let account = builder().from_credentials(kept).await.map_err(failed)?;
            return Ok(open.insert(account).clone());
        }
        let contacts: Vec<&str> = shared.config.contacts.iter().map(String::as_str).collect();
        let new = NewAccount {
            contact: &contacts,
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let external = match (&authority.external_account, &shared.external[index]) {
            (Some(account), Some(key)) => {
                let key = keys::external_account(&account.key_id, key);
                Some(key.map_err(|fault| {
                    let file = account.key_file.display();
                    Trouble::new(Reason::Storage, format!("{file}: {fault}"))
                })?)
            }
            _ => None,
        };
        let created = builder().create(&new, directory.clone(), external.as_ref());
        let (account, credentials) = created.await.map_err(failed)?;
        self.storage.write_account(name, &credentials).await?;
        tracing::info!(authority = name, account = account.id(), "account made");
        Ok(open.insert(account).clone())
    }

    async fn forget_account(&self, index: usize) {
        let shared = &self.authorities;
        *shared.accounts[index].lock().await = None;
        let name = &shared.config.authorities[index].name;
        self.storage.forget_account(name).await;
    }

    async fn place_order(&mut self, authority: usize, replacing: bool) -> Result<Event, Trouble> {
        let account = self.account.as_ref().ok_or_else(Trouble::lost)?;
        let identifier_of = |name: &String| match name.parse() {
            Ok(address) => Identifier::Ip(address),
            Err(_) => Identifier::Dns(name.clone()),
        };
        let identifiers: Vec<_> = self.names.iter().map(identifier_of).collect();
        let mut order = NewOrder::new(&identifiers);
        if let Some(profile) = &self.authorities.config.authorities[authority].profile {
            order = order.profile(profile);
        }
        let replaced = self.leaf.as_ref().filter(|_| replacing);
        if let Some(Ok(id)) = replaced.map(identifier) {
            order = order.replaces(id);
        }
        let client = &self.authorities.clients[authority];
        client.take_noted();
        match account.new_order(&order).await {
            Ok(mut order) => {
                let stands = stands(order.state().status, client);
                let pending = Pending {
                    authority: self.authorities.config.authorities[authority].name.clone(),
                    url: order.url().to_owned(),
                    key: CertificateKey::generate().map_err(cannot_ask)?,
                };
                self.order = Some(order);
                self.storage.write_pending(&pending).await?;
                self.key = Some(pending.key);
                Ok(stands)
            }
            Err(error) if replacing && failure::is_about_replacing(&error) => {
                Ok(Event::ReplacesNothing)
            }
            Err(error) => Err(Trouble::of(error, client)),
        }
    }

    /// Looks at an order that was placed before.
    async fn resume(&mut self, authority: usize) -> Result<Event, Trouble> {
        let url = self.resumed.take().ok_or_else(Trouble::lost)?;
        let account = self.account.as_ref().ok_or_else(Trouble::lost)?;
        let client = &self.authorities.clients[authority];
        client.take_noted();
        let order = account.order(url).await;
        let mut order = order.map_err(|error| Trouble::of(error, client))?;
        let stands = stands(order.state().status, client);
        self.order = Some(order);
        Ok(stands)
    }

    async fn answer(&mut self, authority: usize) -> Result<Event, Trouble> {
        let client = &self.authorities.clients[authority];
        let kind = &self.authorities.config.challenge;
        let order = self.order.as_mut().ok_or_else(Trouble::lost)?;
        let mut answers = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(next) = authorizations.next().await {
            let mut authorization = next.map_err(|error| Trouble::of(error, client))?;
            if authorization.status != AuthorizationStatus::Pending {
                continue;
            }
            let name = authorization.identifier().to_string();
            let challenge = authorization.challenge(kind.of());
            let challenge = challenge.ok_or_else(|| {
                let said = format!("{name} cannot be validated by {kind} there");
                Trouble::new(Reason::Refused, said)
            })?;
            answers.push(Answered {
                name,
                token: challenge.token.clone(),
                key_authorization: challenge.key_authorization().as_str().to_owned(),
            });
        }
        match &self.authorities.publisher {
            None => self.storage.put_up(answers).await?,
            Some(publisher) => {
                let texts: Vec<_> = answers.iter().map(Answered::text).collect();
                self.texts
                    .extend(texts.iter().map(|(_, text)| text.clone()));
                let published = publisher.publish(&texts).await;
                published.map_err(|error| Trouble::new(Reason::Dns, error.to_string()))?;
            }
        }
        Ok(Event::Answering)
    }

    async fn announce(&mut self, authority: usize) -> Result<Event, Trouble> {
        let client = &self.authorities.clients[authority];
        let order = self.order.as_mut().ok_or_else(Trouble::lost)?;
        let mut authorizations = order.authorizations();
        while let Some(next) = authorizations.next().await {
            let failed = |error| Trouble::of(error, client);
            let mut authorization = next.map_err(failed)?;
            if authorization.status != AuthorizationStatus::Pending {
                continue;
            }
            let challenge = authorization.challenge(self.authorities.config.challenge.of());
            let mut challenge = challenge.ok_or_else(Trouble::lost)?;
            if !self.announced.contains(&challenge.url) {
                challenge.set_ready().await.map_err(failed)?;
                self.announced.insert(challenge.url.clone());
            }
        }
        Ok(Event::Announced)
    }

    async fn look(&mut self, authority: usize) -> Result<Event, Trouble> {
        let client = &self.authorities.clients[authority];
        client.take_noted();
        let order = self.order.as_mut().ok_or_else(Trouble::lost)?;
        let failed = |error| Trouble::of(error, client);
        let status = order.refresh().await.map_err(failed)?.status;
        let event = stands(status, client);
        if status == OrderStatus::Invalid {
            return Err(why_invalid(order, client).await);
        }
        Ok(event)
    }

    async fn finalise(&mut self, authority: usize) -> Result<Event, Trouble> {
        let client = &self.authorities.clients[authority];
        let key = self.key.as_ref().ok_or_else(Trouble::lost)?;
        let request = key.request(&self.names).map_err(cannot_ask)?;
        client.take_noted();
        let order = self.order.as_mut().ok_or_else(Trouble::lost)?;
        let finalised = order.finalize_csr(&request).await;
        finalised.map_err(|error| Trouble::of(error, client))?;
        Ok(stands(order.state().status, client))
    }

    async fn download(&mut self, authority: usize) -> Result<Event, Trouble> {
        let client = &self.authorities.clients[authority];
        client.take_noted();
        let order = self.order.as_mut().ok_or_else(Trouble::lost)?;
        let chain = order.certificate().await;
        self.chain = chain.map_err(|error| Trouble::of(error, client))?;
        Ok(Event::Downloaded)
    }

    /// Nothing is written that was not checked, and nothing is in use that was not written.
    async fn install(&mut self, authority: usize, store: &Store) -> Result<Event, Trouble> {
        let (Some(key), Some(chain)) = (self.key.take(), self.chain.take()) else {
            return Err(Trouble::lost());
        };
        let issued = Issued {
            authority: self.authorities.config.authorities[authority].name.clone(),
        };
        let key = key.to_pem();
        let cannot = |problem: String| Trouble::new(Reason::Certificate, problem);
        let pair = Pair::from_pem("what was issued".as_ref(), &chain, &key)
            .map_err(|error| cannot(error.to_string()))?;
        let known = self.known(&pair, &issued);
        check(&known, since_epoch()).map_err(|problem| cannot(problem.to_owned()))?;
        self.storage.write_pair(&chain, key, &issued).await?;
        let leaf = pair.leaf().clone();
        store
            .install(&self.origin, pair)
            .map_err(|error| cannot(error.to_string()))?;
        self.leaf = Some(leaf);
        Ok(Event::Installed(known))
    }

    /// Tells of what failed, and makes an event of it.
    async fn failed(&self, action: Action, authority: Option<usize>, trouble: Trouble) -> Event {
        let index = match (action, authority) {
            (Action::AskWindow { authority }, _) | (_, Some(authority)) => authority,
            _ => 0,
        };
        let name = &self.authorities.config.authorities[index].name;
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
        tracing::error!(
            authority = name,
            reason,
            error,
            "no certificate; what is in use stays"
        );
        Event::Failed(trouble.failure)
    }

    fn succeeded(&self, authority: Option<usize>, began: Option<Time>) {
        let (Some(authority), Some(began)) = (authority, began) else {
            return;
        };
        let name = &self.authorities.config.authorities[authority].name;
        let now = since_epoch();
        counter!(names::ATTEMPTS, "authority" => name.clone(), "outcome" => "issued").increment(1);
        histogram!(names::ATTEMPT, "authority" => name.clone())
            .record(now.saturating_sub(began).as_secs_f64());
        gauge!(names::LAST_SUCCESS).set(now.as_secs_f64());
        tracing::info!(authority = name, "a new certificate is in use");
    }

    fn show(&self, machine: &Machine, action: Action) {
        if let (Action::Wait(_), None) = (action, machine.authority()) {
            gauge!(names::NEXT_ATTEMPT).set(machine.next_attempt().as_secs_f64());
        }
        if let Some(window) = machine.window() {
            gauge!(names::WINDOW, "edge" => "start").set(window.start.as_secs_f64());
            gauge!(names::WINDOW, "edge" => "end").set(window.end.as_secs_f64());
        }
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

fn cannot_ask(error: rcgen::Error) -> Trouble {
    Trouble::new(Reason::Refused, error.to_string())
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

fn identifier<'a>(leaf: &'a CertificateDer<'static>) -> Result<CertificateIdentifier<'a>, Trouble> {
    CertificateIdentifier::try_from(leaf)
        .map_err(|problem| Trouble::new(Reason::Certificate, problem))
}

fn stands(status: OrderStatus, client: &Client) -> Event {
    let standing = match status {
        OrderStatus::Pending => Standing::Pending,
        OrderStatus::Ready => Standing::Ready,
        OrderStatus::Processing => Standing::Processing,
        OrderStatus::Valid => Standing::Valid,
        OrderStatus::Invalid => Standing::Invalid,
    };
    let look = client.take_noted().retry_at;
    Event::Stands {
        standing,
        look: look.map(|at| at.saturating_sub(since_epoch())),
    }
}

/// What an authority says of the challenge that failed.
async fn why_invalid(order: &mut Order, client: &Client) -> Trouble {
    let order_says = order.state().error.as_ref().map(ToString::to_string);
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let name = authorization.identifier().to_string();
        let Ok(state) = authorization.refresh().await else {
            break;
        };
        let mut problems = state.challenges.iter().filter_map(|c| c.error.as_ref());
        if let Some(problem) = problems.next() {
            let mut trouble = Trouble::of(problem.clone().into(), client);
            trouble.failure.reason = match trouble.failure.reason {
                Reason::RateLimited => Reason::RateLimited,
                _ => Reason::Validation,
            };
            trouble.said = format!("{name}: {}", trouble.said);
            return trouble;
        }
    }
    let said = order_says.unwrap_or_else(|| "the order is invalid".to_owned());
    Trouble::new(Reason::Validation, said)
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
