//! The one way from a [`Call`] to an [`Answer`].
//!
//! [`Authorizer::handle`] finds the token, holds it to its networks, counts its use, asks its
//! policies, lets the handler plan, and commits everything with the audit line of the call as one
//! change: only then is there an answer. A handler cannot be asked without a [`Granted`], which is
//! made here alone, and its plan is worth nothing until it is committed here.
//!
//! * A token that is used where it must not be is not counted: who finds a token elsewhere cannot use
//!   it up. A call that its policies deny is.
//! * What a call does, what it counts and what it puts on record is there together or not at all.
//! * When others changed something that a plan depends on, the call begins again, with its token.
//! * Refusals are on record before they are told, too. What strangers cause, who showed no token that
//!   is good, is written within bounds, and the next line tells how many were not.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use wavry_credentials::audit::{Action, Event};

use super::{
    barrier::{Barrier, Change, CommitError},
    call::{Answer, Call, Noted, Operation, Planned, Refusal},
    clock::Clock,
    login,
    policy::{Acl, Policies, Request},
    token::{self, Found, Tokens},
};
use crate::audited::Strangers;

/// How long a call may take, all attempts together.
pub(super) const DEADLINE: Duration = Duration::from_secs(2);

/// What is done on a call. Implemented by who knows what lies where.
pub(super) trait Handler: Sync {
    /// What the call needs to be allowed.
    fn route(&self, call: &Call) -> impl Future<Output = Result<Route, Refusal>> + Send;

    /// Plans what is done. It may be asked again when others changed what it read.
    fn plan(&self, call: &Call, granted: &Granted) -> impl Future<Output = Planned> + Send;

    /// Whether a mount is still there: tokens of its logins end with it.
    fn has_mount(&self, id: &str) -> impl Future<Output = Result<bool, Refusal>> + Send;
}

/// What a call needs to be allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route {
    /// The operation, with [`Operation::Update`] and [`Operation::Create`] told apart.
    pub operation: Operation,
    /// Who may call.
    pub access: Access,
}

/// Who may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Anyone: health, seal status, unsealing.
    Open,
    /// Anyone with what the path itself asks for: logins, and what a wrapping token opens. These are
    /// held to the rate of logins.
    Login,
    /// Holders of tokens whose policies allow it.
    Holder,
}

/// A call that is allowed. Nobody else makes one.
pub(super) struct Granted {
    holder: Option<Found>,
    acl: Arc<Acl>,
    route: Route,
    /// Counts the use.
    change: Change,
    is_last_use: bool,
    event: Event,
}

impl Granted {
    /// The token that was shown; none where none was asked for.
    pub(super) fn holder(&self) -> Option<&Found> {
        self.holder.as_ref()
    }

    /// What its policies allow.
    pub(super) fn acl(&self) -> &Arc<Acl> {
        &self.acl
    }

    /// What is done, with [`Operation::Update`] and [`Operation::Create`] told apart.
    pub(super) fn operation(&self) -> Operation {
        self.route.operation
    }

    /// Whether its holder is an administrator at a path: has `sudo` or is root there.
    pub(super) fn is_administrator(&self, path: &str) -> bool {
        let held = self.acl.capabilities(path);
        held.contains(&"sudo") || held.contains(&"root")
    }
}

/// A call that is not allowed.
struct Refused {
    refusal: Refusal,
    change: Change,
    event: Option<Event>,
}

/// What came of one attempt.
enum Attempt {
    Done(Result<Answer, Refusal>),
    /// Others were faster.
    Conflict,
}

/// Lets calls in.
pub(super) struct Authorizer {
    barrier: Barrier,
    tokens: Tokens,
    policies: Policies,
    logins: login::Gate,
    strangers: Strangers,
    failed_logins: Strangers,
}

impl Authorizer {
    /// For what is behind a barrier.
    pub(super) fn new(barrier: Barrier, limits: token::Limits, logins: login::Limits) -> Self {
        Self {
            tokens: Tokens::new(barrier.clone(), Arc::new(Clock::default()), limits),
            policies: Policies::new(barrier.clone()),
            barrier,
            logins: login::Gate::new(logins),
            strangers: Strangers::default(),
            failed_logins: Strangers::default(),
        }
    }

    /// Its tokens.
    pub(super) fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Its policies.
    pub(super) fn policies(&self) -> &Policies {
        &self.policies
    }

    pub(super) fn logins(&self) -> &login::Gate {
        &self.logins
    }

    /// Holds logins to other limits.
    #[cfg(test)]
    pub(super) fn limit_logins(&mut self, limits: login::Limits) {
        self.logins = login::Gate::new(limits);
    }

    pub(super) fn barrier(&self) -> &Barrier {
        &self.barrier
    }

    /// Forgets what was read, as of a KeyVault that is sealed.
    pub(super) fn forget(&self) {
        self.tokens.forget();
        self.policies.forget();
    }

    /// Does what is called for, if it is allowed. When it returns, everything is durable.
    pub(super) async fn handle<H: Handler>(
        &self,
        call: &Call,
        handler: &H,
    ) -> Result<Answer, Refusal> {
        let attempts = async {
            let mut route = handler.route(call).await?;
            self.too_many(route)?;
            loop {
                match self.attempt(call, route, handler).await {
                    Attempt::Done(result) => return result,
                    Attempt::Conflict => route = handler.route(call).await?,
                }
            }
        };
        let result = tokio::time::timeout(DEADLINE, attempts).await;
        result.unwrap_or(Err(Refusal::Unavailable))
    }

    /// Holds logins to their rate. A call counts once, however many attempts it takes.
    fn too_many(&self, route: Route) -> Result<(), Refusal> {
        match route.access {
            Access::Login => self.logins.admit(Instant::now()).map_err(Refusal::TooMany),
            Access::Open | Access::Holder => Ok(()),
        }
    }

    async fn attempt<H: Handler>(&self, call: &Call, route: Route, handler: &H) -> Attempt {
        match self.authorize(call, route, handler).await {
            Ok(granted) => {
                let planned = handler.plan(call, &granted).await;
                self.conclude(granted, planned).await
            }
            Err(refused) => self.refuse(*refused).await,
        }
    }

    /// Whether a call is allowed.
    async fn authorize<H: Handler>(
        &self,
        call: &Call,
        route: Route,
        handler: &H,
    ) -> Result<Granted, Box<Refused>> {
        let mut granted = Granted {
            holder: None,
            acl: Arc::default(),
            route,
            change: Change::default(),
            is_last_use: false,
            event: event(call, route),
        };
        if route.access != Access::Holder {
            return Ok(granted);
        }
        let fail = |refusal| Box::new(Refused::failed(refusal));
        let Some(mut found) = self.holder(call, handler).await.map_err(fail)? else {
            let event = self.stranger(granted.event);
            return Err(Box::new(Refused {
                refusal: Refusal::Denied,
                change: Change::default(),
                event,
            }));
        };
        granted.event.actor.clone_from(&found.record.display_name);
        let accessor = &found.record.accessor;
        granted.event.token = Some(self.barrier.audit_key().identifier(accessor));

        let is_last_use = self.tokens.count_use(&mut granted.change, &found);
        granted.is_last_use = is_last_use.await.map_err(|error| fail(error.into()))?;
        found.record.uses_left = found.record.uses_left.saturating_sub(1);

        found.expect(&mut granted.change);
        let acl = self.policies.acl(&mut granted.change, &found.record.scope);
        granted.acl = acl.await.map_err(|error| fail(error.into()))?;
        let path = match route.operation {
            Operation::List => call.path.folder(),
            _ => call.path.clone(),
        };
        let allowed = granted.acl.allows(&Request {
            operation: route.operation,
            path: &path,
            sudo: is_for_administrators(path.as_str()),
            parameters: call.body.as_ref(),
            wrap_ttl: call.wrap_ttl,
        });
        if !allowed {
            let refusal = Refusal::Denied;
            return Err(Box::new(Refused {
                event: Some(denied(granted.event, &refusal)),
                refusal,
                change: granted.change,
            }));
        }
        granted.holder = Some(found);
        Ok(granted)
    }

    /// The token that was shown, if it is good, here.
    async fn holder<H: Handler>(&self, call: &Call, handler: &H) -> Result<Option<Found>, Refusal> {
        let Some(token) = &call.token else {
            return Ok(None);
        };
        let Some(found) = self.tokens.find(token).await? else {
            return Ok(None);
        };
        if !found.record.is_for(call.client.ip()) {
            return Ok(None);
        }
        if let Some(mount) = &found.record.mount
            && !handler.has_mount(mount).await?
        {
            return Ok(None);
        }
        Ok(Some(found))
    }

    /// The line about a call of a stranger, if it may be written.
    fn stranger(&self, event: Event) -> Option<Event> {
        let unwritten = self.strangers.admit(Instant::now())?;
        let mut event = denied(event, &Refusal::Denied);
        event.actor = "stranger".to_owned();
        event.unwritten = unwritten;
        Some(event)
    }

    /// Commits a plan. Nothing of it was done before, and nothing of it may be told before.
    async fn conclude(&self, granted: Granted, planned: Planned) -> Attempt {
        let Granted {
            route,
            change: counted,
            is_last_use,
            event,
            ..
        } = granted;
        let refusal = planned.outcome.as_ref().err();
        let event = self.event_of(route, event, planned.noted, refusal);
        // Both may write the token: the last use ends it, whatever else is planned for it; before,
        // what is planned has counted the use.
        let mut change = match is_last_use {
            true => {
                let mut change = planned.change;
                change.merge(counted);
                change
            }
            false => {
                let mut change = counted;
                change.merge(planned.change);
                change
            }
        };
        if let Some(event) = event {
            change.record(event);
        } else if change.is_empty() {
            return Attempt::Done(planned.outcome);
        }
        match self.barrier.commit(change).await {
            Ok(()) => Attempt::Done(planned.outcome),
            Err(CommitError::Conflict) => Attempt::Conflict,
            Err(CommitError::Failed(error)) => Attempt::Done(Err(error.into())),
        }
    }

    /// The line of a call as it turned out. Reads that are open to anyone are not on record: they
    /// tell nothing of what is kept, and probes ask every second.
    fn event_of(
        &self,
        route: Route,
        mut event: Event,
        noted: Noted,
        refusal: Option<&Refusal>,
    ) -> Option<Event> {
        if route.access == Access::Open && noted.action.is_none() {
            return None;
        }
        event.action = noted.action.unwrap_or(event.action);
        event.subject = noted.subject.unwrap_or(event.subject);
        event.actor = noted.actor.unwrap_or(event.actor);
        event.version = noted.version;
        event.secret = noted
            .secret
            .map(|id| self.barrier.audit_key().identifier(&id));
        let Some(refusal) = refusal else {
            return Some(event);
        };
        let is_alarm = event.action == Action::Alarm;
        let mut event = match is_alarm {
            true => Event {
                outcome: refusal.word().to_owned(),
                ..event
            },
            false => denied(event, refusal),
        };
        if route.access == Access::Login && !is_alarm {
            event.unwritten = self.failed_logins.admit(Instant::now())?;
        }
        Some(event)
    }

    /// Puts a refusal on record, and what it counts.
    async fn refuse(&self, refused: Refused) -> Attempt {
        let Refused {
            refusal,
            mut change,
            event,
        } = refused;
        match event {
            Some(event) => change.record(event),
            None if change.is_empty() => return Attempt::Done(Err(refusal)),
            None => (),
        }
        match self.barrier.commit(change).await {
            Ok(()) => Attempt::Done(Err(refusal)),
            Err(CommitError::Conflict) => Attempt::Conflict,
            Err(CommitError::Failed(error)) => Attempt::Done(Err(error.into())),
        }
    }
}

impl Refused {
    /// By no fault of the call.
    fn failed(refusal: Refusal) -> Self {
        Self {
            refusal,
            change: Change::default(),
            event: None,
        }
    }
}

/// The line of a call as far as the call tells it.
fn event(call: &Call, route: Route) -> Event {
    let action = match (route.access, route.operation) {
        (Access::Login, _) => Action::Login,
        (_, Operation::Read) => Action::Read,
        (_, Operation::List) => Action::List,
        (_, Operation::Create | Operation::Update | Operation::Patch) => Action::Write,
        (_, Operation::Delete) => Action::Delete,
    };
    let path = call.path.as_str();
    let mut event = Event::now(action, path, path);
    event.actor = "stranger".to_owned();
    event.request = Some(call.request.clone());
    event.source = Some(call.client);
    event
}

fn denied(event: Event, refusal: &Refusal) -> Event {
    Event {
        action: match refusal {
            // What is not there, or not a request, was not denied.
            Refusal::Absent | Refusal::Gone(_) | Refusal::Invalid(_) | Refusal::Unsupported => {
                event.action
            }
            _ => Action::Deny,
        },
        outcome: refusal.word().to_owned(),
        ..event
    }
}

/// Paths that need `sudo` beside the capability of the operation, as Vault has them.
fn is_for_administrators(path: &str) -> bool {
    const EXACT: [&str; 9] = [
        "auth/token/accessors",
        "auth/token/revoke-orphan",
        "auth/token/tidy",
        "sys/audit",
        "sys/remount",
        "sys/rotate",
        "sys/seal",
        "sys/step-down",
        "sys/master-key/rotate",
    ];
    const BELOW: [&str; 6] = [
        "sys/audit/",
        "sys/auth/",
        "sys/config/",
        "sys/leases/lookup/",
        "sys/leases/revoke-",
        "sys/raw/",
    ];
    let name = path.strip_suffix('/').unwrap_or(path);
    EXACT.contains(&name)
        || BELOW
            .iter()
            .any(|prefix| path.starts_with(prefix) && name.len() >= prefix.len())
}

#[cfg(test)]
mod tests;
