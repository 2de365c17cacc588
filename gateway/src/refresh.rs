//! Lets live sessions go on with a newer token:
//! `POST /.well-known/wavry/session/refresh?service=NAME`, with the token as for a session. At a
//! host that is bound to a service, the service need not be named.
//!
//! It is answered with 204, or with a problem (RFC 9457); pages of the service's origins may ask
//! (Fetch, "CORS protocol"). Whatever the answer is, no session is worse off than before.
//!
//! A page cannot make a browser speak HTTP/3 to a host that has no TCP listener, nor fetch from one
//! that it trusts by a hash. What it can do is to open a session: one for this path is accepted and
//! closed at once, with code 0 when sessions were extended.

use metrics::counter;
use wavry_proto::{
    control::{Problem, Roster, Service},
    session::{self, Close, close_code},
};
use wavry_transport::webtransport::{
    Requested,
    plain::{Request, Response},
};

use crate::{
    admission::{origin_allowed, verify},
    core::Core,
    error::Refusal,
    expiry::Unchanged,
    metrics as names, plain, route,
    session::tell,
    token,
};

/// Where it is asked for.
pub(crate) const PATH: &str = "/.well-known/wavry/session/refresh";
/// The query parameter that names the service.
const SERVICE: &str = "service";
/// How long a browser may remember that its page may ask, in seconds.
const PREFLIGHT_AGE: &str = "600";

/// Why no session was extended.
#[derive(Debug)]
struct Failure {
    status: u16,
    /// The label in metrics and logs.
    outcome: &'static str,
    /// The word that the client is told.
    told: &'static str,
    detail: &'static str,
    /// How to authenticate, where that would help.
    headers: Vec<session::Header>,
}

impl From<Refusal> for Failure {
    /// For what a session would be refused for.
    fn from(refusal: Refusal) -> Self {
        let detail = match &refusal {
            Refusal::Path => "the authority is not HOST or HOST:PORT",
            Refusal::UnknownService => "there is no such service, or none is named",
            Refusal::Origin => "pages of this origin may not connect to the service",
            Refusal::TokenMissing => "a session token for the service is needed",
            Refusal::TokenMalformed => "one session token is needed",
            _ => "the token does not hold for this service now",
        };
        let (outcome, told) = (refusal.reason(), refusal.told());
        let session::Response {
            status, headers, ..
        } = refusal.into_response();
        Self {
            status,
            outcome,
            told,
            detail,
            headers,
        }
    }
}

impl From<Unchanged> for Failure {
    fn from(unchanged: Unchanged) -> Self {
        let (status, word, detail) = match unchanged {
            Unchanged::NoSession => (400, "no_session", "the token names no session (sid)"),
            Unchanged::UnknownSession => (404, "unknown_session", "no such session is live here"),
            Unchanged::OtherSubject => (403, "other_subject", "the session is another subject's"),
            Unchanged::NotNewer => {
                let detail = "the session has a token that is newer or holds longer";
                (409, "not_newer", detail)
            }
        };
        Self {
            status,
            outcome: word,
            told: word,
            detail,
            headers: Vec::new(),
        }
    }
}

impl Failure {
    /// What is answered (RFC 9457).
    fn answer(self) -> Response {
        let problem = Problem {
            r#type: format!("{}{}", Problem::URN, self.told.replace('_', "-")),
            title: self.told.replace('_', " "),
            status: self.status,
            detail: self.detail.to_owned(),
        };
        let mut response = plain::json(self.status, "application/problem+json", &problem);
        response.headers.extend(self.headers);
        response
    }
}

/// Extends the sessions that the request's token names; `now` in seconds since the Unix epoch.
pub(crate) fn refresh(core: &Core, request: &Request, now: u64) -> Response {
    let request = as_for_a_session(request);
    let origin = request.origin.clone();
    let response = match extend(core, request, now) {
        Err(refusal) => Failure::from(refusal).answer(),
        Ok(extended) => {
            let response = match extended {
                Ok(()) => Response::status(204),
                Err(failure) => failure.answer(),
            };
            allow_origin(response, origin)
        }
    };
    response.with("cache-control", "no-store")
}

/// The same for a session that is asked for at [`PATH`].
pub(crate) async fn serve(core: &Core, requested: Requested, now: u64) {
    let (close, status) = match extend(core, requested.request().clone(), now) {
        Err(refusal) => return requested.reject(refusal.into_response()).await,
        Ok(Ok(())) => (Close::new(0, "extended"), 503),
        Ok(Err(failure)) => {
            let Failure { status, told, .. } = failure;
            (Close::new(close_code::refused(status), told), status)
        }
    };
    let otherwise = session::Response::status(status);
    tell(core, requested, close, otherwise).await;
}

/// Whether a session that is asked for there is for this module.
pub(crate) fn is_meant(path: &str) -> bool {
    path.split('?').next() == Some(PATH)
}

/// Extends the sessions that the request's token names. An error in the first place is of who asks
/// and for what, and in the second of the token.
fn extend(
    core: &Core,
    mut request: session::Request,
    now: u64,
) -> Result<Result<(), Failure>, Refusal> {
    let bearer = token::take(&mut request);
    let roster = core.roster.borrow().clone();
    let extended = service(&roster, &request).map(|service| {
        let (token, grounds) = verify(core, &roster, service, bearer, now)?;
        let extended = core.expiries.extend(&service.name, &token, grounds);
        Ok::<_, Failure>(extended.map(drop)?)
    });
    let outcome = match &extended {
        Ok(Ok(())) => "extended",
        Ok(Err(failure)) => failure.outcome,
        Err(refusal) => refusal.reason(),
    };
    counter!(names::REFRESHES, "outcome" => outcome).increment(1);
    tracing::info!(outcome, "refresh");
    extended
}

/// Tells a browser whether its page may ask (Fetch, "CORS-preflight request").
pub(crate) fn preflight(core: &Core, request: &Request) -> Response {
    let request = as_for_a_session(request);
    let roster = core.roster.borrow().clone();
    if let Err(refusal) = service(&roster, &request) {
        return Failure::from(refusal).answer();
    }
    let response = Response::status(204)
        .with("access-control-allow-methods", "POST")
        .with("access-control-allow-headers", "authorization")
        .with("access-control-max-age", PREFLIGHT_AGE);
    allow_origin(response, request.origin)
}

/// The request as far as it is like one for a session.
fn as_for_a_session(request: &Request) -> session::Request {
    session::Request {
        authority: request.authority.clone(),
        path: request.path.clone(),
        origin: request.header("origin").map(str::to_owned),
        headers: request.headers.clone(),
        subprotocols: Vec::new(),
    }
}

/// The service whose sessions are meant, if the page that asks may connect to it.
fn service<'r>(roster: &'r Roster, request: &session::Request) -> Result<&'r Service, Refusal> {
    let named = request.path.split_once('?').and_then(|(_, query)| {
        let mut parameters = query.split('&').filter_map(|p| p.split_once('='));
        parameters.find_map(|(name, value)| (name == SERVICE).then_some(value))
    });
    let service = match named {
        Some(name) => roster.service(name),
        None => {
            let host = route::host(&request.authority).map_err(|_| Refusal::Path)?;
            roster.service_by_host(&host)
        }
    };
    let service = service.ok_or(Refusal::UnknownService)?;
    match origin_allowed(service, request.origin.as_deref()) {
        true => Ok(service),
        false => Err(Refusal::Origin),
    }
}

/// Lets the page that asked, and may, read the answer.
fn allow_origin(response: Response, origin: Option<String>) -> Response {
    match origin {
        Some(origin) => response
            .with("access-control-allow-origin", origin)
            .with("vary", "origin"),
        None => response,
    }
}
