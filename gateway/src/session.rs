//! A session's way through the gateway: [`Accepted`] → [`Authenticated`] → [`Routed`] → [`Live`].
//!
//! Each step consumes the last, so a session that was not authenticated cannot be routed and one
//! that was not routed cannot go live. A step that fails leaves a [`Refused`], which can only be
//! answered.

use std::{
    convert::Infallible,
    net::SocketAddr,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use metrics::{counter, gauge, histogram};
use tokio::time::{sleep, timeout, timeout_at};
use tracing::{debug, info, warn};
use wavry_credentials::token::Scope;
use wavry_proto::{
    control::{Access, Service},
    id::ServiceName,
    mesh::Open,
    session::{Close, REFUSED_BY_RELAY, Request, Response, close_code},
    token,
};
use wavry_transport::{
    mesh::{self, OpenError},
    mirror::{self, mirror},
    session::{Closed, Session as _},
    webtransport,
};

use crate::{
    core::Core,
    error::Refusal,
    exits::Load,
    forward,
    limits::Permit,
    metrics as names, route,
    token::{self as bearer, Bearer},
};

/// Exits tried for one request. Each further one is for a relay that the roster still lists and
/// that is gone; two that are gone at once and a third are plenty.
const MAX_ATTEMPTS: usize = 3;

/// Takes one request as far as it gets.
pub(crate) async fn serve(core: &Core, requested: webtransport::Requested) {
    let authenticated = match Accepted::new(core, requested).authenticate() {
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
    requested: Box<webtransport::Requested>,
    since: Instant,
}

/// A session whose client may have it.
struct Authenticated<'c> {
    accepted: Accepted<'c>,
    permit: Permit,
    open: Open,
    /// When its token stops to hold, in seconds since the Unix epoch.
    expires: Option<u64>,
}

/// A session that an exit relay and its upstream took, and that the client does not know of yet.
struct Routed<'c> {
    accepted: Accepted<'c>,
    permit: Permit,
    service: ServiceName,
    expires: Option<u64>,
    exit: mesh::Session,
    load: Load<'c>,
    response: Response,
}

/// A session that carries.
struct Live<'c> {
    core: &'c Core,
    service: ServiceName,
    expires: Option<u64>,
    client: webtransport::Session,
    exit: mesh::Session,
    _load: Load<'c>,
    _permit: Permit,
}

/// A request that does not become a session.
struct Refused {
    requested: Box<webtransport::Requested>,
    refusal: Refusal,
}

impl<'c> Accepted<'c> {
    fn new(core: &'c Core, requested: webtransport::Requested) -> Self {
        let since = Instant::now();
        Self {
            core,
            requested: Box::new(requested),
            since,
        }
    }

    /// Checks path, service, origin, limits and token, in this order: what costs least is first,
    /// and a browser page that may not connect costs nothing else.
    fn authenticate(self) -> Result<Authenticated<'c>, Refused> {
        let mut request = self.requested.request().clone();
        let bearer = bearer::take(&mut request);
        match admit(
            self.core,
            request,
            bearer,
            self.requested.remote_address(),
            seconds_since_epoch(),
        ) {
            Ok(Admitted {
                permit,
                open,
                expires,
            }) => {
                tracing::Span::current().record("service", open.service.as_str());
                debug!(subject = open.subject, "authenticated");
                Ok(Authenticated {
                    accepted: self,
                    permit,
                    open,
                    expires,
                })
            }
            Err(refusal) => Err(self.refuse(refusal)),
        }
    }

    fn refuse(self, refusal: Refusal) -> Refused {
        Refused {
            requested: self.requested,
            refusal,
        }
    }
}

struct Admitted {
    permit: Permit,
    open: Open,
    expires: Option<u64>,
}

/// Whether a request, its token taken out, may become a session; `now` in seconds since the Unix
/// epoch.
fn admit(
    core: &Core,
    mut request: Request,
    bearer: Bearer,
    client: SocketAddr,
    now: u64,
) -> Result<Admitted, Refusal> {
    if core.draining.is_cancelled() {
        return Err(Refusal::Draining);
    }
    let roster = core.roster.borrow().clone();
    let route::Route { service, path } = route::find(&roster, &request.authority, &request.path)
        .map_err(|_| Refusal::Path)?
        .ok_or(Refusal::UnknownService)?;
    if !origin_allowed(service, request.origin.as_deref()) {
        return Err(Refusal::Origin);
    }
    let permit = core
        .limits
        .acquire(client.ip(), &service.name, service.max_sessions)
        .map_err(Refusal::Limit)?;
    let session = match service.access {
        Access::Public => None,
        Access::Token => Some(verify(core, service, bearer, now)?),
    };
    request.path = path;
    request.headers = core.forward_headers.of_request(&request.headers);
    let expires = session.as_ref().map(|s| s.validity.exp);
    let (subject, claims) = match session {
        Some(session) => {
            let claims = serde_json::Value::Object(session.claims).to_string();
            (Some(session.sub), Some(claims))
        }
        None => (None, None),
    };
    Ok(Admitted {
        permit,
        open: Open {
            service: service.name.clone(),
            request,
            client,
            subject,
            claims,
        },
        expires,
    })
}

/// Whether a page of this origin may connect. Who sends no origin is no browser, and could send
/// whichever it likes.
fn origin_allowed(service: &Service, origin: Option<&str>) -> bool {
    origin.is_none_or(|origin| {
        service
            .allowed_origins
            .iter()
            .any(|allowed| allowed == "*" || allowed == origin)
    })
}

fn verify(
    core: &Core,
    service: &Service,
    bearer: Bearer,
    now: u64,
) -> Result<token::Session, Refusal> {
    let token = match bearer {
        Bearer::Token(token) => token,
        Bearer::None => return Err(Refusal::TokenMissing),
        Bearer::Malformed => return Err(Refusal::TokenMalformed),
    };
    let scope = Scope {
        cluster: &core.cluster,
        audience: service.name.as_str(),
        binding: &[],
    };
    let keys = core.keys.of(&core.roster.borrow().clone());
    token.verify(&keys, scope, now).map_err(Refusal::Token)
}

impl<'c> Authenticated<'c> {
    /// Opens the session at the best exit that can be reached.
    async fn route(self) -> Result<Routed<'c>, Refused> {
        let Self {
            accepted,
            permit,
            open,
            expires,
        } = self;
        let service = open.service.clone();
        match open_at_best_exit(accepted.core, open).await {
            Ok((load, exit, response)) => Ok(Routed {
                accepted,
                permit,
                service,
                expires,
                exit,
                load,
                response,
            }),
            Err(refusal) => Err(accepted.refuse(refusal)),
        }
    }
}

async fn open_at_best_exit(
    core: &Core,
    open: Open,
) -> Result<(Load<'_>, mesh::Session, Response), Refusal> {
    let roster = core.roster.borrow().clone();
    let exits = core.exits.choose(&roster, &open.service, Instant::now());
    let deadline = tokio::time::Instant::now() + core.open_timeout;
    let mut refusal = Refusal::NoExit;
    for exit in exits.into_iter().take(MAX_ATTEMPTS) {
        let opening = Box::pin(core.mesh.open(&exit, open.clone()));
        match timeout_at(deadline, opening).await {
            Ok(Ok((session, response))) => return Ok((core.exits.took(exit), session, response)),
            Ok(Err(OpenError::Rejected(response))) if refused_by_relay(&response) => {
                counter!(names::EXIT_FAILURES, "reason" => "refused").increment(1);
                core.exits.failed(&exit, Instant::now());
                warn!(%exit, status = response.status, "exit refused");
                refusal = Refusal::Upstream(response);
            }
            Ok(Err(OpenError::Rejected(response))) => return Err(Refusal::Upstream(response)),
            Ok(Err(OpenError::Timeout(_))) | Err(_) => {
                counter!(names::EXIT_FAILURES, "reason" => "timeout").increment(1);
                core.exits.failed(&exit, Instant::now());
                warn!(%exit, "exit did not answer in time");
                // Its upstream may have been asked already: asking another could do a thing twice.
                return Err(Refusal::Timeout);
            }
            Ok(Err(error @ (OpenError::Unknown(_) | OpenError::Unreachable { .. }))) => {
                counter!(names::EXIT_FAILURES, "reason" => "unreachable").increment(1);
                core.exits.failed(&exit, Instant::now());
                warn!(%exit, %error, "exit cannot be reached");
                refusal = Refusal::Unreachable;
            }
        }
    }
    Err(refusal)
}

/// Whether an exit refused by itself, as one does that drains or is full, and asked no upstream.
fn refused_by_relay(response: &Response) -> bool {
    let mut headers = response.headers.iter();
    headers.any(|header| header.name == REFUSED_BY_RELAY)
}

impl<'c> Routed<'c> {
    /// Gives the client the answer that came from the upstream. An error says why there is no
    /// client any more.
    async fn go_live(self) -> Result<Live<'c>, Closed> {
        let Self {
            accepted,
            permit,
            service,
            expires,
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
        info!(expires, "live");
        Ok(Live {
            core,
            service,
            expires,
            client,
            exit,
            _load: load,
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
        let ended = tokio::select! {
            ended = Box::pin(mirror(&self.client, &self.exit, &options)) => ended,
            never = self.leave_with_the_gateway() => match never {},
            never = self.expire_with_the_token() => match never {},
        };
        let reason = reason(&ended);
        info!(reason, code = code(&ended), "over");
        counter!(names::ENDED, "service" => self.service.to_string(), "reason" => reason)
            .increment(1);
        count("from_client", &ended.a_to_b);
        count("to_client", &ended.b_to_a);
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

    /// Ends the session when its token does.
    async fn expire_with_the_token(&self) -> Infallible {
        if let Some(expires) = self.expires {
            // The wall clock may be set while this waits, so the wait is cut in pieces.
            while let Some(left) = remaining(expires) {
                sleep(left.min(Duration::from_secs(60))).await;
            }
            self.close(Close::new(close_code::TOKEN_EXPIRED, "token expired"));
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

impl Refused {
    /// Tells the client.
    async fn answer(self) {
        let reason = self.refusal.reason();
        counter!(names::REFUSED, "reason" => reason).increment(1);
        let response = self.refusal.into_response();
        info!(reason, status = response.status, "refused");
        self.requested.reject(response).await;
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

fn count(direction: &'static str, carried: &mirror::Carried) {
    counter!(names::STREAMS, "direction" => direction).increment(carried.streams);
    counter!(names::BYTES, "direction" => direction).increment(carried.bytes);
    counter!(names::DATAGRAMS, "direction" => direction).increment(carried.datagrams);
    counter!(names::DATAGRAMS_DROPPED, "direction" => direction)
        .increment(carried.datagrams_dropped);
}

fn seconds_since_epoch() -> u64 {
    since_epoch().as_secs()
}

/// Time until a second since the Unix epoch; `None` once it has come.
fn remaining(expires: u64) -> Option<Duration> {
    Duration::from_secs(expires)
        .checked_sub(since_epoch())
        .filter(|left| !left.is_zero())
}

fn since_epoch() -> Duration {
    // A clock before 1970 makes every token not valid yet.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}
