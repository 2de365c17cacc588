//! Whether a request may become a session.

use std::{net::SocketAddr, sync::Arc};

use wavry_credentials::token::Grounds;
use wavry_proto::{
    control::{Access, RefuseWith, Roster, Service},
    mesh::Open,
    session::Request,
    token,
};

use crate::{core::Core, error::Refusal, expiry::Expiry, limits::Permit, route, token::Bearer};

/// A request that may become a session.
pub(crate) struct Admitted {
    pub(crate) permit: Permit,
    /// What an exit is asked.
    pub(crate) open: Open,
    /// When its token stops to hold, if it needs one.
    pub(crate) expiry: Option<Expiry>,
    pub(crate) refuse_with: RefuseWith,
}

/// A request that may not, and how its client is told.
pub(crate) struct Denied {
    pub(crate) refusal: Refusal,
    pub(crate) refuse_with: RefuseWith,
}

impl From<Refusal> for Denied {
    fn from(refusal: Refusal) -> Self {
        Self {
            refusal,
            refuse_with: RefuseWith::Status,
        }
    }
}

/// Checks path, service, origin, limits and token of a request from which its token was taken; `now`
/// in seconds since the Unix epoch. What costs least comes first, and a browser page that may not
/// connect costs nothing else.
pub(crate) fn admit(
    core: &Core,
    mut request: Request,
    bearer: Bearer,
    client: SocketAddr,
    now: u64,
) -> Result<Admitted, Denied> {
    let roster = core.roster.borrow().clone();
    if roster.is_empty() {
        return Err(Refusal::RosterTooOld.into());
    }
    let route::Route { service, path } = route::find(&roster, &request.authority, &request.path)
        .map_err(|_| Refusal::Path)?
        .ok_or(Refusal::UnknownService)?;
    if !origin_allowed(service, request.origin.as_deref()) {
        return Err(Refusal::Origin.into());
    }
    // From here on the client may be told in the service's way.
    let refuse_with = service.refuse_with;
    let denied = |refusal| Denied {
        refusal,
        refuse_with,
    };
    if core.draining.is_cancelled() {
        return Err(denied(Refusal::Draining));
    }
    let exceeded = |limit| denied(Refusal::Limit(limit));
    let mut permit = core
        .limits
        .acquire(client.ip(), &service.name, service.max_sessions)
        .map_err(exceeded)?;
    let token = match service.access {
        Access::Public => None,
        Access::Token => Some(verify(core, &roster, service, bearer, now).map_err(denied)?),
    };
    let mut expiry = None;
    if let Some((token, grounds)) = &token {
        permit = core
            .limits
            .of_subject(permit, &token.sub)
            .map_err(exceeded)?;
        expiry = Some(core.expiries.open(&service.name, token, *grounds));
    }
    request.path = path;
    request.headers = core.forward_headers.of_request(&request.headers);
    let (subject, claims) = match token {
        Some((token, _)) => {
            let claims = serde_json::Value::Object(token.claims).to_string();
            (Some(token.sub), Some(claims))
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
        expiry,
        refuse_with,
    })
}

/// Whether a page of this origin may connect. Who sends no origin is no browser, and could send
/// whichever it likes.
pub(crate) fn origin_allowed(service: &Service, origin: Option<&str>) -> bool {
    origin.is_none_or(|origin| {
        service
            .allowed_origins
            .iter()
            .any(|allowed| allowed == "*" || allowed == origin)
    })
}

/// Verifies a session token for `service`; `now` in seconds since the Unix epoch.
pub(crate) fn verify(
    core: &Core,
    roster: &Arc<Roster>,
    service: &Service,
    bearer: Bearer,
    now: u64,
) -> Result<(token::Session, Grounds), Refusal> {
    let token = match bearer {
        Bearer::Token(token) => token,
        Bearer::None => return Err(Refusal::TokenMissing),
        Bearer::Malformed => return Err(Refusal::TokenMalformed),
    };
    let standing = core.standing.of(roster);
    token
        .verify_session(&standing, &core.cluster, &service.name, now)
        .map_err(Refusal::Token)
}
