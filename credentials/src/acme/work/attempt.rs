//! One attempt to obtain a certificate, action by action, and the question when to renew it.

use std::time::Duration;

use instant_acme::{
    Account, AuthorizationStatus, CertificateIdentifier, Identifier, NewAccount, NewOrder, Order,
    OrderStatus,
};
use rustls_pki_types::CertificateDer;
use tokio::time::timeout;

use super::{
    Work, check,
    failure::{self, Trouble},
};
use crate::{
    acme::{
        challenge::Answered,
        http::Client,
        machine::{Action, Event, Reason, Standing},
        schedule::Window,
        storage::{Pending, Storage},
    },
    cert::{Pair, Store, pairs::Issued},
    clock::since_epoch,
    key::acme::{self as keys, CertificateKey},
};

/// How long one action may take: a hundred authorizations are read in it.
pub(super) const ACTION: Duration = Duration::from_secs(5 * 60);
/// How often an action is begun anew because a nonce was no good; instant-acme has asked three times by then.
/// What such a request asked for was not done (RFC 8555, section 6.5).
const NONCES: usize = 10;

impl<S: Storage> Work<S> {
    pub(super) async fn perform_in_time(
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
    pub(super) async fn account(&self, index: usize) -> Result<Account, Trouble> {
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

    pub(super) async fn forget_account(&self, index: usize) {
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
}

fn cannot_ask(error: rcgen::Error) -> Trouble {
    Trouble::new(Reason::Refused, error.to_string())
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
