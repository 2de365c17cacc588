//! What nodes ask to have flows of theirs carried by transit relays.

use std::{sync::Arc, time::Instant};

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::HeaderMap,
    routing::post,
};
use wavry_credentials::audit::Action;
use wavry_proto::control::lease::{Answer, AskLeases, LEASES, Leases, MAX_LEASES};

use super::{Api, authenticate, parse};
use crate::{audited::Asked, channel::Channel, metrics as names, problem::Refusal};

pub(super) fn router() -> Router<Arc<Api>> {
    Router::new().route(LEASES, post(leases))
}

/// Answers a request with a lease for each way that is one. All of them share a line of the audit log; what each
/// may be follows from what was put on record before. Nothing is kept: who asks again is given other leases of the
/// same flows.
async fn leases(
    State(api): State<Arc<Api>>,
    Extension(channel): Extension<Arc<Channel>>,
    Extension(asked): Extension<Arc<Asked>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Leases>, Refusal> {
    let (node, _) = authenticate(&api, &channel, &asked, &headers).await?;
    api.rates.of_leases(&node, Instant::now())?;
    let AskLeases { ways } = parse(&body)?;
    if ways.is_empty() || ways.len() > MAX_LEASES {
        let expected = format!("there are not from 1 to {MAX_LEASES} ways");
        return Err(Refusal::Malformed(expected));
    }
    // Another master may have revoked the node, or its leases, a moment ago.
    api.registry.catch_up().await?;
    api.registry.is_registered(&node)?;
    let leases = api.registry.lease(&node, ways, &api.leases).await;
    let leases = leases.map_err(Refusal::NotSigned)?;
    let event = asked.event(Action::Issue, LEASES, channel.peer);
    api.registry.audit(event).await?;
    for answer in &leases {
        let outcome = match answer {
            Answer::Lease(_) => "signed",
            Answer::Refused(why) => why.as_str(),
        };
        metrics::counter!(names::LEASES, "outcome" => outcome).increment(1);
    }
    Ok(Json(Leases { leases }))
}
