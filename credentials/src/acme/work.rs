//! Does what the machine says.

mod failure;
mod operator;

use std::{
    collections::HashSet,
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
    sync::watch,
    time::{sleep, timeout},
};

use self::failure::Trouble;
use super::{
    Authority, Challenge, Config, Error,
    challenge::Answers,
    dns::Publisher,
    http::Client,
    kept::Kept,
    machine::{Action, Certificate, Event, Machine, Reason, Standing, Time},
    metrics as names,
    request::{Inbox, Ticket},
    schedule::{Record, Validity, Window},
    trust,
};
use crate::{
    cert::{
        self, Pair, Store,
        pairs::{Issued, Pairs},
    },
    clock::since_epoch,
    key::acme::{self as keys, CertificateKey},
    random,
    secret::Secret,
    source,
};

/// How long one action may take: a hundred authorizations are read in it.
const ACTION: Duration = Duration::from_secs(5 * 60);
/// How often an action is begun anew because a nonce was no good; instant-acme has asked three times by then.
/// What such a request asked for was not done (RFC 8555, section 6.5).
const NONCES: usize = 10;
/// Longest sleep, so that a clock that was set, or a machine that slept, is noticed.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// What the work is done with.
pub(super) struct Work {
    config: Config,
    clients: Vec<Client>,
    external: Vec<Option<Secret<Vec<u8>>>>,
    kept: Arc<Kept>,
    pairs: Arc<Pairs>,
    answering: Answering,
    inbox: Arc<Inbox>,
    /// Operators who wait for a certificate.
    wishes: Vec<Ticket>,
    /// The certificate in use or kept, for the question when to renew it.
    leaf: Option<CertificateDer<'static>>,
    /// The attempt under way, as far as it has come.
    account: Option<Account>,
    order: Option<Order>,
    /// URLs of challenges that the authority knows to be answered.
    announced: HashSet<String>,
    key: Option<CertificateKey>,
    chain: Option<String>,
}

/// What challenges are answered with.
enum Answering {
    /// Who comes to the listener is told.
    Listener(Answers),
    /// It is in the DNS.
    Dns(Box<Publisher>),
}

impl Work {
    pub(super) fn new(config: Config) -> Result<Self, Error> {
        let unusable = |source| Error::Directory {
            directory: config.directory.clone(),
            source,
        };
        let kept = Kept::open(&config.directory).map_err(unusable)?;
        let pairs = Pairs::open(config.directory.join("pairs"))
            .map_err(|error| unusable(std::io::Error::other(error)))?;
        let inbox = Inbox::open(&config.directory).map_err(unusable)?;
        let client = |authority: &Authority| {
            Client::new(&trust(authority)).map_err(|source| Error::Trust {
                name: authority.name.clone(),
                source,
            })
        };
        let clients = config.authorities.iter().map(client);
        let clients = clients.collect::<Result<_, _>>()?;
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
        let answering = match &config.challenge {
            Challenge::Listener { kind, .. } => Answering::Listener(Answers::new(*kind)),
            Challenge::Dns(dns) => {
                Answering::Dns(Box::new(Publisher::open(dns.clone(), &config.directory)))
            }
        };
        Ok(Self {
            answering,
            config,
            clients,
            external,
            kept: Arc::new(kept),
            pairs: Arc::new(pairs),
            inbox: Arc::new(inbox),
            wishes: Vec::new(),
            leaf: None,
            account: None,
            order: None,
            announced: HashSet::new(),
            key: None,
            chain: None,
        })
    }

    /// What the listener for challenges is to say, where there is one.
    pub(super) fn answers(&self) -> Option<Answers> {
        match &self.answering {
            Answering::Listener(answers) => Some(answers.clone()),
            Answering::Dns(_) => None,
        }
    }

    /// Installs what was kept, and keeps a certificate in `store` for as long as it is polled.
    pub(super) async fn run(mut self, store: Store, installed: watch::Sender<bool>) {
        let certificate = self.install_kept(&store, &installed);
        let authorities = self.config.authorities.iter().map(|a| a.name.as_str());
        let backoffs = self.kept.record().of(authorities, since_epoch());
        let mut machine = Machine::new(backoffs, certificate);
        let mut written = self.record(&machine);
        loop {
            let action = machine.next(since_epoch(), chance());
            self.show(&machine, action);
            // Before anything is asked: an attempt that ends with the process is one that failed.
            let record = self.record(&machine);
            let recorded = match record == written {
                true => Ok(()),
                false => {
                    let (kept, record) = (self.kept.clone(), record.clone());
                    on_disk(move || kept.write_record(&record)).await
                }
            };
            if recorded.is_ok() {
                written = record;
            }
            if let Action::Wait(until) = action {
                let mut longest = LONGEST_SLEEP;
                if machine.authority().is_none() {
                    self.tidy().await;
                    self.attend(&mut machine).await;
                    longest = operator::PACE;
                }
                let pause = until.saturating_sub(since_epoch());
                sleep(pause.min(longest)).await;
                continue;
            }
            let (authority, began) = (machine.authority(), machine.began());
            let event = match recorded {
                Ok(()) => self.perform_in_time(action, authority, &store).await,
                Err(trouble) => Err(trouble),
            };
            let said = event.as_ref().err().map(|trouble| trouble.said.clone());
            let event = event.unwrap_or_else(|trouble| self.failed(action, authority, trouble));
            let is_installed = matches!(event, Event::Installed(_));
            if is_installed {
                self.succeeded(authority, began);
                installed.send_replace(true);
            }
            machine.happened(event, since_epoch(), chance());
            if machine.authority().is_none() {
                self.end_attempt().await;
                // Where another authority is asked at once, it may do better.
                if is_installed || machine.next_attempt() > since_epoch() {
                    self.answer_wishes(said.as_deref());
                }
            }
        }
    }

    /// Puts the newest pair that was kept in use, and says what the machine should know of it.
    fn install_kept(
        &mut self,
        store: &Store,
        installed: &watch::Sender<bool>,
    ) -> Option<Certificate> {
        let (pair, issued) = self.pairs.newest()?;
        let known = self.known(&pair, &issued);
        // One that lacks a name that was added serves the others until it is replaced.
        let serves = self.config.names.iter().any(|name| pair.names(name));
        self.leaf = Some(pair.leaf().clone());
        match store.install(&self.config.directory, pair) {
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
        let mut authorities = self.config.authorities.iter();
        let hash = cert::hash(pair.leaf());
        Certificate {
            validity: Validity {
                start: since_epoch(pair.not_before()).unwrap_or_default(),
                end: since_epoch(pair.not_after()).unwrap_or_default(),
            },
            authority: authorities.position(|authority| authority.name == issued.authority),
            fits: self.config.names.iter().all(|name| pair.names(name)),
            chance: u16::from_le_bytes([hash[0], hash[1]]),
        }
    }

    fn record(&self, machine: &Machine) -> Record {
        let names = self.config.authorities.iter().map(|a| a.name.as_str());
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
        let client = &self.clients[authority];
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
        let (authority, client) = (&self.config.authorities[index], &self.clients[index]);
        client.take_noted();
        let failed = |error| Trouble::of(error, client);
        let builder = || Account::builder_with_http(Box::new(client.clone()));
        if let Some(kept) = self.kept.account(&authority.name, &authority.directory) {
            return builder().from_credentials(kept).await.map_err(failed);
        }
        let contacts: Vec<&str> = self.config.contacts.iter().map(String::as_str).collect();
        let new = NewAccount {
            contact: &contacts,
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let external = match (&authority.external_account, &self.external[index]) {
            (Some(account), Some(key)) => {
                let key = keys::external_account(&account.key_id, key);
                Some(key.map_err(|fault| {
                    let file = account.key_file.display();
                    Trouble::new(Reason::Storage, format!("{file}: {fault}"))
                })?)
            }
            _ => None,
        };
        let created = builder().create(&new, authority.directory.clone(), external.as_ref());
        let (account, credentials) = created.await.map_err(failed)?;
        let (kept, name) = (self.kept.clone(), authority.name.clone());
        on_disk(move || kept.write_account(&name, &credentials)).await?;
        tracing::info!(
            authority = authority.name,
            account = account.id(),
            "account made"
        );
        Ok(account)
    }

    async fn place_order(&mut self, authority: usize, replacing: bool) -> Result<Event, Trouble> {
        let account = self.account.as_ref().ok_or_else(Trouble::lost)?;
        let identifier_of = |name: &String| match name.parse() {
            Ok(address) => Identifier::Ip(address),
            Err(_) => Identifier::Dns(name.clone()),
        };
        let identifiers: Vec<_> = self.config.names.iter().map(identifier_of).collect();
        let mut order = NewOrder::new(&identifiers);
        if let Some(profile) = &self.config.authorities[authority].profile {
            order = order.profile(profile);
        }
        let replaced = self.leaf.as_ref().filter(|_| replacing);
        if let Some(Ok(id)) = replaced.map(identifier) {
            order = order.replaces(id);
        }
        let client = &self.clients[authority];
        client.take_noted();
        match account.new_order(&order).await {
            Ok(mut order) => {
                let stands = stands(order.state().status, client);
                self.order = Some(order);
                Ok(stands)
            }
            Err(error) if replacing && failure::is_about_replacing(&error) => {
                Ok(Event::ReplacesNothing)
            }
            Err(error) => Err(Trouble::of(error, client)),
        }
    }

    async fn answer(&mut self, authority: usize) -> Result<Event, Trouble> {
        let client = &self.clients[authority];
        let kind = &self.config.challenge;
        let mut texts = Vec::new();
        let order = self.order.as_mut().ok_or_else(Trouble::lost)?;
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
            let key_authorization = challenge.key_authorization();
            match &self.answering {
                Answering::Listener(answers) => answers
                    .put_up(&name, &challenge.token, &key_authorization)
                    .map_err(|error| Trouble::new(Reason::Refused, error.to_string()))?,
                // That of a wildcard is beside that of the name itself.
                Answering::Dns(_) => {
                    let name = name.strip_prefix("*.").unwrap_or(&name);
                    texts.push((name.to_owned(), key_authorization.dns_value()));
                }
            }
        }
        if let Answering::Dns(publisher) = &mut self.answering {
            let published = publisher.publish(&texts).await;
            published.map_err(|error| Trouble::new(Reason::Dns, error.to_string()))?;
        }
        Ok(Event::Answering)
    }

    async fn announce(&mut self, authority: usize) -> Result<Event, Trouble> {
        let client = &self.clients[authority];
        let order = self.order.as_mut().ok_or_else(Trouble::lost)?;
        let mut authorizations = order.authorizations();
        while let Some(next) = authorizations.next().await {
            let failed = |error| Trouble::of(error, client);
            let mut authorization = next.map_err(failed)?;
            if authorization.status != AuthorizationStatus::Pending {
                continue;
            }
            let challenge = authorization.challenge(self.config.challenge.of());
            let mut challenge = challenge.ok_or_else(Trouble::lost)?;
            if !self.announced.contains(&challenge.url) {
                challenge.set_ready().await.map_err(failed)?;
                self.announced.insert(challenge.url.clone());
            }
        }
        Ok(Event::Announced)
    }

    async fn look(&mut self, authority: usize) -> Result<Event, Trouble> {
        let client = &self.clients[authority];
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
        let client = &self.clients[authority];
        let cannot = |error: rcgen::Error| Trouble::new(Reason::Refused, error.to_string());
        let key = CertificateKey::generate().map_err(cannot)?;
        let request = key.request(&self.config.names).map_err(cannot)?;
        self.key = Some(key);
        client.take_noted();
        let order = self.order.as_mut().ok_or_else(Trouble::lost)?;
        let finalised = order.finalize_csr(&request).await;
        finalised.map_err(|error| Trouble::of(error, client))?;
        Ok(stands(order.state().status, client))
    }

    async fn download(&mut self, authority: usize) -> Result<Event, Trouble> {
        let client = &self.clients[authority];
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
            authority: self.config.authorities[authority].name.clone(),
        };
        let key = key.to_pem();
        let cannot = |problem: String| Trouble::new(Reason::Certificate, problem);
        let pair = Pair::from_pem("what was issued".as_ref(), &chain, &key)
            .map_err(|error| cannot(error.to_string()))?;
        let known = self.known(&pair, &issued);
        check(&known, since_epoch()).map_err(|problem| cannot(problem.to_owned()))?;
        let pairs = self.pairs.clone();
        on_disk(move || pairs.write(&chain, &key, &issued)).await?;
        let leaf = pair.leaf().clone();
        store
            .install(&self.config.directory, pair)
            .map_err(|error| cannot(error.to_string()))?;
        self.leaf = Some(leaf);
        Ok(Event::Installed(known))
    }

    /// Tells of what failed, and makes an event of it.
    fn failed(&self, action: Action, authority: Option<usize>, trouble: Trouble) -> Event {
        let index = match (action, authority) {
            (Action::AskWindow { authority }, _) | (_, Some(authority)) => authority,
            _ => 0,
        };
        let name = &self.config.authorities[index].name;
        if trouble.failure.reason == Reason::AccountGone {
            self.kept.forget_account(name);
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
        let name = &self.config.authorities[authority].name;
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

    /// Removes from the DNS what an earlier process, or an earlier attempt, could not.
    async fn tidy(&mut self) {
        if let Answering::Dns(publisher) = &mut self.answering
            && publisher.is_due(since_epoch())
        {
            publisher.remove(since_epoch()).await;
        }
    }

    async fn end_attempt(&mut self) {
        match &mut self.answering {
            Answering::Listener(answers) => answers.take_down(),
            Answering::Dns(publisher) => publisher.remove(since_epoch()).await,
        }
        self.announced.clear();
        (self.account, self.order, self.key, self.chain) = (None, None, None, None);
    }
}

/// Writes where it does not hold up sessions.
async fn on_disk<E: std::error::Error + Send + 'static>(
    write: impl FnOnce() -> Result<(), E> + Send + 'static,
) -> Result<(), Trouble> {
    match tokio::task::spawn_blocking(write).await {
        Ok(written) => written.map_err(Trouble::storage),
        Err(ended) => Err(Trouble::storage(ended)),
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
