//! A session's way through the gateway: [`Accepted`] → [`Authenticated`] → [`Routed`] → [`Live`].
//!
//! Each step consumes the last, so a session that was not authenticated cannot be routed and one
//! that was not routed cannot go live. A step that fails leaves a [`Refused`], which can only be
//! answered.

use std::{
    convert::Infallible,
    time::{Duration, Instant},
};

use metrics::{counter, gauge, histogram};
use tokio::time::{timeout, timeout_at};
use tracing::{debug, info, warn};
use wavry_credentials::clock::since_epoch;
use wavry_proto::{
    control::RefuseWith,
    id::ServiceName,
    mesh::Open,
    session::{Close, REFUSED_BY_RELAY, RELAY_LIMIT, Response, UNKNOWN_SERVICE, close_code},
};
use wavry_transport::{
    mesh::{self, OpenError},
    mirror::{self, Moved, mirror},
    session::{Closed, Session as _},
    webtransport,
};

use crate::{
    admission::{Admitted, Denied, admit},
    core::Core,
    error::Refusal,
    exits::{Failure, Load},
    expiry::Expiry,
    forward,
    limits::Permit,
    metrics as names, refresh, token,
};

/// Exits tried for one request. Each further one is for a relay that the roster still lists and
/// that is gone; two that are gone at once and a third are plenty.
const MAX_ATTEMPTS: usize = 3;

/// An exit that is not the last to be tried has to be heard of within this time: with three attempts, a
/// session reaches one that lives within a second or so of two that do not.
const SOON: Duration = Duration::from_millis(500);

/// Takes one request as far as it gets; `number` is its id in the log.
pub(crate) async fn serve(core: &Core, number: u64, requested: webtransport::Requested) {
    if refresh::is_meant(&requested.request().path) {
        return refresh::serve(core, requested, since_epoch().as_secs()).await;
    }
    let authenticated = match Accepted::new(core, number, requested).authenticate() {
        Ok(authenticated) => authenticated,
        Err(refused) => return refused.answer().await,
    };
    let routed = match authenticated.route().await {
        Ok(routed) => routed,
        Err(refused) => return refused.answer().await,
    };
    match routed.go_live().await {
        Ok(live) => live.carry().await,
        Err(closed) => gone(&closed),
    }
}

/// A session that a client asks for.
struct Accepted<'c> {
    core: &'c Core,
    number: u64,
    requested: Box<webtransport::Requested>,
    since: Instant,
}

/// A session whose client may have it.
struct Authenticated<'c> {
    accepted: Accepted<'c>,
    permit: Permit,
    open: Open,
    expiry: Option<Expiry>,
    refuse_with: RefuseWith,
}

/// A session that an exit relay and its upstream took, and that the client does not know of yet.
struct Routed<'c> {
    accepted: Accepted<'c>,
    permit: Permit,
    service: ServiceName,
    expiry: Option<Expiry>,
    exit: mesh::Session,
    load: Load<'c>,
    response: Response,
}

/// A session that carries.
struct Live<'c> {
    core: &'c Core,
    service: ServiceName,
    expiry: Option<Expiry>,
    client: webtransport::Session,
    exit: mesh::Session,
    load: Load<'c>,
    _permit: Permit,
    _noted: mesh::Noted,
}

/// A request that does not become a session.
struct Refused<'c> {
    core: &'c Core,
    requested: Box<webtransport::Requested>,
    refusal: Refusal,
    refuse_with: RefuseWith,
}

impl<'c> Accepted<'c> {
    fn new(core: &'c Core, number: u64, requested: webtransport::Requested) -> Self {
        let since = Instant::now();
        Self {
            core,
            number,
            requested: Box::new(requested),
            since,
        }
    }

    /// Checks what [`admit`] does; the token goes no further than this.
    fn authenticate(self) -> Result<Authenticated<'c>, Refused<'c>> {
        let mut request = self.requested.request().clone();
        let bearer = token::take(&mut request);
        let client = self.requested.remote_address();
        match admit(self.core, request, bearer, client, since_epoch().as_secs()) {
            Ok(Admitted {
                permit,
                open,
                expiry,
                refuse_with,
            }) => {
                tracing::Span::current().record("service", open.service.as_str());
                debug!(subject = open.subject, "authenticated");
                Ok(Authenticated {
                    accepted: self,
                    permit,
                    open,
                    expiry,
                    refuse_with,
                })
            }
            Err(Denied {
                refusal,
                refuse_with,
            }) => Err(self.refuse(refusal, refuse_with)),
        }
    }

    fn refuse(self, refusal: Refusal, refuse_with: RefuseWith) -> Refused<'c> {
        Refused {
            core: self.core,
            requested: self.requested,
            refusal,
            refuse_with,
        }
    }
}

impl<'c> Authenticated<'c> {
    /// Opens the session at the best exit that can be reached.
    async fn route(self) -> Result<Routed<'c>, Refused<'c>> {
        let Self {
            accepted,
            permit,
            open,
            expiry,
            refuse_with,
        } = self;
        let service = open.service.clone();
        match open_at_best_exit(accepted.core, open).await {
            Ok((load, exit, response)) => Ok(Routed {
                accepted,
                permit,
                service,
                expiry,
                exit,
                load,
                response,
            }),
            Err(refusal) => Err(accepted.refuse(refusal, refuse_with)),
        }
    }
}

async fn open_at_best_exit(
    core: &Core,
    open: Open,
) -> Result<(Load<'_>, mesh::Session, Response), Refusal> {
    let service = &open.service.clone();
    let mut exits = core.exits_for(service);
    exits.truncate(MAX_ATTEMPTS);
    let deadline = tokio::time::Instant::now() + core.open_timeout;
    let mut refusal = Refusal::NoExit;
    let mut exits = exits.into_iter().peekable();
    while let Some(exit) = exits.next() {
        let open = open.clone();
        let opened = if exits.peek().is_some() {
            timeout_at(deadline, Box::pin(core.mesh.open_soon(&exit, open, SOON))).await
        } else {
            timeout_at(deadline, Box::pin(core.mesh.open(&exit, open))).await
        };
        match opened {
            Ok(Ok((session, response))) => {
                let load = core.exits.took(exit, service, &response);
                return Ok((load, session, response));
            }
            Ok(Err(OpenError::Rejected(response))) if refused_by_relay(&response).is_some() => {
                match refused_by_relay(&response) {
                    Some(RELAY_LIMIT) => core.exits.full(&exit),
                    Some(UNKNOWN_SERVICE) => core.exits.without(&exit, service),
                    _ => core.exits.failed(&exit, Failure::Refused),
                }
                warn!(%exit, status = response.status, "exit refused");
                refusal = Refusal::upstream(response);
            }
            Ok(Err(OpenError::Rejected(response))) => return Err(Refusal::upstream(response)),
            Ok(Err(OpenError::Timeout(_))) | Err(_) => {
                core.exits.failed(&exit, Failure::Timeout);
                warn!(%exit, "exit did not answer in time");
                // Its upstream may have been asked already: asking another could do a thing twice.
                return Err(Refusal::Timeout);
            }
            Ok(Err(error @ (OpenError::Unknown(_) | OpenError::Unreachable { .. }))) => {
                core.exits.failed(&exit, Failure::Unreachable);
                warn!(%exit, %error, "exit cannot be reached");
                refusal = Refusal::Unreachable;
            }
        }
    }
    Err(refusal)
}

/// Why an exit refused by itself and asked no upstream, as one does that drains or is full; `None` where it
/// did not.
fn refused_by_relay(response: &Response) -> Option<&str> {
    let mut headers = response.headers.iter();
    let header = headers.find(|header| header.name == REFUSED_BY_RELAY)?;
    Some(&header.value)
}

impl<'c> Routed<'c> {
    /// Gives the client the answer that came from the upstream. An error says why there is no
    /// client any more.
    async fn go_live(self) -> Result<Live<'c>, Closed> {
        let Self {
            accepted,
            permit,
            service,
            expiry,
            exit,
            load,
            mut response,
        } = self;
        let core = accepted.core;
        response.headers = forward::of_response(response.headers);
        let offered = &accepted.requested.request().subprotocols;
        response.subprotocol = response
            .subprotocol
            .filter(|chosen| offered.contains(chosen));
        let accepting = accepted.requested.accept(response);
        let client = match timeout(core.open_timeout, accepting).await {
            Ok(Ok(client)) => client,
            Ok(Err(closed)) => {
                exit.close(Close::new(close_code::CLIENT_LOST, "client lost"));
                return Err(closed);
            }
            Err(_) => {
                exit.close(Close::new(close_code::CLIENT_LOST, "client lost"));
                return Err(Closed::Lost("the client took no answer".to_owned()));
            }
        };
        histogram!(names::SETUP).record(accepted.since.elapsed());
        counter!(names::OPENED, "service" => service.to_string()).increment(1);
        gauge!(names::SESSIONS).increment(1);
        info!(expires = expiry.as_ref().map(Expiry::at), "live");
        Ok(Live {
            core,
            service,
            expiry,
            client,
            _noted: core.sessions.note(accepted.number, &exit),
            exit,
            load,
            _permit: permit,
        })
    }
}

impl Live<'_> {
    /// Carries the session until it is over.
    async fn carry(self) {
        let options = mirror::Options {
            idle_timeout: self.core.idle_timeout,
            a_lost: Close::new(close_code::CLIENT_LOST, "client lost"),
            b_lost: Close::new(close_code::RELAY_LOST, "relay lost"),
        };
        let traffic = self.core.ledger.add();
        let ended = tokio::select! {
            ended = Box::pin(mirror(&self.client, &self.exit, &options, &traffic)) => ended,
            never = self.leave_with_the_gateway() => match never {},
            never = self.expire_with_the_token() => match never {},
            never = self.end_with_the_tokens_standing() => match never {},
        };
        if matches!(ended.b, Closed::Lost(_)) {
            self.load.lost();
        }
        let reason = reason(&ended);
        info!(reason, code = code(&ended), "over");
        counter!(names::ENDED, "service" => self.service.to_string(), "reason" => reason)
            .increment(1);
        count(traffic.take());
    }

    /// Asks both ends to finish when the gateway drains, and ends the session at the deadline.
    async fn leave_with_the_gateway(&self) -> Infallible {
        self.core.draining.cancelled().await;
        self.client.drain();
        self.exit.drain();
        self.core.closing.cancelled().await;
        self.close(Close::new(close_code::DRAINED, "gateway drained"));
        std::future::pending().await
    }

    /// Ends the session when its token does. Before that its client is asked to finish, who may
    /// also extend the session; so the upstream, which cannot, is not asked.
    async fn expire_with_the_token(&self) -> Infallible {
        if let Some(expiry) = &self.expiry {
            let notice = self.core.expiry_notice;
            if !notice.is_zero() {
                expiry.near(notice).await;
                self.client.drain();
            }
            expiry.over().await;
            self.close(Close::new(close_code::TOKEN_EXPIRED, "token expired"));
        }
        std::future::pending().await
    }

    /// Ends the session when its token is revoked, or the key that signed it. An old roster that is
    /// not acted on any more ends sessions by ending the mesh.
    async fn end_with_the_tokens_standing(&self) -> Infallible {
        if let Some(expiry) = &self.expiry {
            let mut roster = self.core.roster.clone();
            loop {
                let current = roster.borrow_and_update().clone();
                let standing = self.core.standing.of(&current);
                if !current.is_empty() && !standing.holds(&self.service, &expiry.grounds()) {
                    expiry.end();
                    self.close(Close::new(close_code::TOKEN_REVOKED, "token revoked"));
                    break;
                }
                if roster.changed().await.is_err() {
                    break;
                }
            }
        }
        std::future::pending().await
    }

    fn close(&self, close: Close) {
        self.client.close(close.clone());
        self.exit.close(close);
    }
}

impl Drop for Live<'_> {
    fn drop(&mut self) {
        gauge!(names::SESSIONS).decrement(1);
    }
}

impl Refused<'_> {
    /// Tells the client, in the service's way.
    async fn answer(self) {
        let reason = self.refusal.reason();
        counter!(names::REFUSED, "reason" => reason).increment(1);
        let told = self.refusal.told();
        let response = self.refusal.into_response();
        info!(reason, status = response.status, "refused");
        match self.refuse_with {
            RefuseWith::Status => self.requested.reject(response).await,
            RefuseWith::Close => {
                let close = Close::new(close_code::refused(response.status), told);
                tell(self.core, *self.requested, close, response).await;
            }
        }
    }
}

/// Accepts a session only to close it, or answers `otherwise` when too many are told something so.
pub(crate) async fn tell(
    core: &Core,
    requested: webtransport::Requested,
    close: Close,
    otherwise: Response,
) {
    let Ok(_place) = core.partings.try_acquire() else {
        return requested.reject(otherwise).await;
    };
    let accepting = requested.accept(Response::ok());
    if let Ok(Ok(session)) = timeout(core.open_timeout, accepting).await {
        session.close(close);
        // Resolves once the client has had the chance to learn the code.
        session.closed().await;
    }
}

/// A client that left before it had its answer.
fn gone(closed: &Closed) {
    counter!(names::REFUSED, "reason" => "client_gone").increment(1);
    info!(%closed, "client gone before its answer");
}

/// Why a session is over, as a label: the side that spoke first, or the gateway's own word.
fn reason(ended: &mirror::Ended) -> &'static str {
    match (&ended.a, &ended.b) {
        (Closed::Peer(_), _) => "client_closed",
        (_, Closed::Peer(close)) if close.code == close_code::UPSTREAM_LOST => "upstream_lost",
        (_, Closed::Peer(_)) => "upstream_closed",
        (Closed::Lost(_), _) => "client_lost",
        (_, Closed::Lost(_)) => "relay_lost",
        (Closed::Here(close), Closed::Here(_)) => match close.code {
            close_code::IDLE => "idle",
            close_code::DRAINED => "drained",
            close_code::TOKEN_EXPIRED => "token_expired",
            close_code::TOKEN_REVOKED => "token_revoked",
            close_code::UNREAD => "unread",
            _ => "gateway",
        },
    }
}

/// The code that a session ended with, if it ended with one. Its reason is the application's, and
/// stays out of logs.
fn code(ended: &mirror::Ended) -> Option<u32> {
    [&ended.a, &ended.b]
        .into_iter()
        .find_map(|closed| match closed {
            Closed::Peer(close) | Closed::Here(close) => Some(close.code),
            Closed::Lost(_) => None,
        })
}

/// Counts what went between clients and exits.
pub(crate) fn count(moved: Moved) {
    for (direction, carried) in [("from_client", moved.a_to_b), ("to_client", moved.b_to_a)] {
        counter!(names::STREAMS, "direction" => direction).increment(carried.streams);
        counter!(names::BYTES, "direction" => direction).increment(carried.bytes);
        counter!(names::DATAGRAMS, "direction" => direction).increment(carried.datagrams);
        counter!(names::DATAGRAMS_DROPPED, "direction" => direction)
            .increment(carried.datagrams_dropped);
    }
}
