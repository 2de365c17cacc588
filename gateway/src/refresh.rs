//! Lets live sessions go on with a newer token:
//! `POST /.well-known/wavry/session/refresh?service=NAME`, with the token as for a session. At a
//! host that is bound to a service, the service need not be named.
//!
//! It is answered with 204, or with a problem (RFC 9457); pages of the service's origins may ask
//! (Fetch, "CORS protocol"). Whatever the answer is, no session is worse off than before.

use metrics::counter;
use wavry_proto::{
    control::{Problem, Roster, Service},
    session,
};
use wavry_transport::webtransport::plain::{Request, Response};

use crate::{
    admission::{origin_allowed, verify},
    core::Core,
    error::Refusal,
    expiry::Unchanged,
    metrics as names, plain, route, token,
};

/// Where it is asked for.
pub(crate) const PATH: &str = "/.well-known/wavry/session/refresh";
/// The query parameter that names the service.
const SERVICE: &str = "service";
/// How long a browser may remember that its page may ask, in seconds.
const PREFLIGHT_AGE: &str = "600";

/// Why no session was extended.
#[derive(Debug)]
enum Failure {
    /// For what a session would be refused for.
    Refused(Refusal),
    Unchanged(Unchanged),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Unchanged> for Failure {
    fn from(unchanged: Unchanged) -> Self {
        Self::Unchanged(unchanged)
    }
}

/// Extends the sessions that the request's token names; `now` in seconds since the Unix epoch.
pub(crate) fn refresh(core: &Core, request: &Request, now: u64) -> Response {
    let mut request = as_for_a_session(request);
    let bearer = token::take(&mut request);
    let roster = core.roster.borrow().clone();
    let (outcome, response) = match service(&roster, &request) {
        Err(refusal) => Failure::from(refusal).answer(),
        Ok(service) => {
            let extended = verify(core, &roster, service, bearer, now)
                .map_err(Failure::from)
                .and_then(|token| Ok(core.expiries.extend(&service.name, &token)?));
            let (outcome, response) = match extended {
                Ok(_) => ("extended", Response::status(204)),
                Err(failure) => failure.answer(),
            };
            (outcome, allow_origin(response, &request))
        }
    };
    counter!(names::REFRESHES, "outcome" => outcome).increment(1);
    tracing::info!(outcome, status = response.status, "refresh");
    response.with("cache-control", "no-store")
}

/// Tells a browser whether its page may ask (Fetch, "CORS-preflight request").
pub(crate) fn preflight(core: &Core, request: &Request) -> Response {
    let request = as_for_a_session(request);
    let roster = core.roster.borrow().clone();
    if let Err(refusal) = service(&roster, &request) {
        return Failure::from(refusal).answer().1;
    }
    let response = Response::status(204)
        .with("access-control-allow-methods", "POST")
        .with("access-control-allow-headers", "authorization")
        .with("access-control-max-age", PREFLIGHT_AGE);
    allow_origin(response, &request)
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
fn allow_origin(response: Response, request: &session::Request) -> Response {
    match &request.origin {
        Some(origin) => response
            .with("access-control-allow-origin", origin)
            .with("vary", "origin"),
        None => response,
    }
}

impl Failure {
    /// The label in metrics and logs, and what is answered.
    fn answer(self) -> (&'static str, Response) {
        let (outcome, told, detail, answer) = match self {
            Self::Refused(refusal) => {
                let detail = match &refusal {
                    Refusal::Path => "the authority is not HOST or HOST:PORT",
                    Refusal::UnknownService => "there is no such service, or none is named",
                    Refusal::Origin => "pages of this origin may not connect to the service",
                    Refusal::TokenMissing => "a session token for the service is needed",
                    Refusal::TokenMalformed => "one session token is needed",
                    _ => "the token does not hold for this service now",
                };
                let (outcome, told) = (refusal.reason(), refusal.told());
                (outcome, told, detail, refusal.into_response())
            }
            Self::Unchanged(unchanged) => {
                let (status, word, detail) = match unchanged {
                    Unchanged::NoSession => (400, "no_session", "the token names no session (sid)"),
                    Unchanged::UnknownSession => {
                        (404, "unknown_session", "no such session is live here")
                    }
                    Unchanged::OtherSubject => {
                        (403, "other_subject", "the session is another subject's")
                    }
                    Unchanged::NotNewer => {
                        let detail = "the session has a token that is newer or holds longer";
                        (409, "not_newer", detail)
                    }
                };
                (word, word, detail, session::Response::status(status))
            }
        };
        let problem = Problem {
            r#type: format!("{}{}", Problem::URN, told.replace('_', "-")),
            title: told.replace('_', " "),
            status: answer.status,
            detail: detail.to_owned(),
        };
        let mut response = plain::json(answer.status, "application/problem+json", &problem);
        // How to authenticate.
        response.headers.extend(answer.headers);
        (outcome, response)
    }
}
