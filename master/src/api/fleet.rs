//! What gateways that share certificates ask of the master.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{Query, State, rejection::BytesRejection, rejection::QueryRejection},
    http::HeaderMap,
    routing::{get, post, put},
};
use serde::Deserialize;
use wavry_credentials::audit::Action;
use wavry_proto::{
    control::fleet::{
        ACKNOWLEDGED, Acknowledged, CHANGES, Changes, ENTRY, LEASE, Leased, MAX_SEALED, TakeLease,
        WriteEntry, Written,
    },
    id::NodeId,
};

use super::{After, Api, authenticate, parse};
use crate::{audited::Asked, channel::Channel, problem::Refusal, store};

/// How long a question for acknowledgements is held: the gateway that asks goes on after a few seconds.
const HELD: Duration = Duration::from_secs(1);
/// How often a master looks for those that came by way of another one.
const LOOK: Duration = Duration::from_millis(100);

pub(super) fn router() -> Router<Arc<Api>> {
    Router::new()
        .route(LEASE, post(lease))
        .route(ENTRY, put(entry))
        .route(CHANGES, get(changes))
        .route(ACKNOWLEDGED, get(acknowledged))
}

async fn gateway(
    api: &Api,
    channel: &Channel,
    asked: &Asked,
    headers: &HeaderMap,
) -> Result<NodeId, Refusal> {
    let (node, _) = authenticate(api, channel, asked, headers).await?;
    api.registry.is_gateway(&node)?;
    Ok(node)
}

async fn lease(
    State(api): State<Arc<Api>>,
    Extension(channel): Extension<Arc<Channel>>,
    Extension(asked): Extension<Arc<Asked>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Leased>, Refusal> {
    let node = gateway(&api, &channel, &asked, &headers).await?;
    let ask: TakeLease = parse(&body)?;
    let read = asked.event(Action::Read, LEASE, channel.peer);
    Ok(Json(api.registry.take_lease(node, ask, read).await?))
}

async fn entry(
    State(api): State<Arc<Api>>,
    Extension(channel): Extension<Arc<Channel>>,
    Extension(asked): Extension<Arc<Asked>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Written>, Refusal> {
    let node = gateway(&api, &channel, &asked, &headers).await?;
    let write: WriteEntry = parse(&body)?;
    for value in [&write.draft, &write.answers, &write.product] {
        if value.as_ref().is_some_and(|value| !is_sealed(value)) {
            let expected = format!("a value is not base64 of at most {MAX_SEALED} bytes");
            return Err(Refusal::Malformed(expected));
        }
    }
    let issued = asked.event(Action::Issue, ENTRY, channel.peer);
    Ok(Json(api.registry.write_entry(node, write, issued).await?))
}

/// What was sealed looks so. What it is, gateways alone can tell.
fn is_sealed(value: &str) -> bool {
    let is_one = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte);
    value.len() <= MAX_SEALED.div_ceil(3) * 4 && value.bytes().all(is_one)
}

async fn changes(
    State(api): State<Arc<Api>>,
    Extension(channel): Extension<Arc<Channel>>,
    Extension(asked): Extension<Arc<Asked>>,
    query: Result<Query<After>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Json<Changes>, Refusal> {
    let node = gateway(&api, &channel, &asked, &headers).await?;
    let Query(After { after }) =
        query.map_err(|_| Refusal::Malformed("after is not a revision".to_owned()))?;
    let after = after.unwrap_or_default();
    api.registry.asked_for_changes(&node, after).await?;
    let mut revisions = api.registry.fleet();
    let newer = revisions.wait_for(|revision| *revision != after);
    tokio::select! {
        _ = newer => {}
        () = tokio::time::sleep(api.poll_timeout) => {}
        () = api.leaving.cancelled() => return Err(Refusal::Leaving),
        () = api.registry.behind() => return Err(Refusal::Behind(store::Error::TooSlow)),
    }
    // Revoked while it waited.
    api.registry.is_gateway(&node)?;
    let read = asked.event(Action::Read, CHANGES, channel.peer);
    Ok(Json(api.registry.changes(after, read).await?))
}

#[derive(Deserialize)]
struct UpTo {
    revision: u64,
}

async fn acknowledged(
    State(api): State<Arc<Api>>,
    Extension(channel): Extension<Arc<Channel>>,
    Extension(asked): Extension<Arc<Asked>>,
    query: Result<Query<UpTo>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Json<Acknowledged>, Refusal> {
    gateway(&api, &channel, &asked, &headers).await?;
    let Query(UpTo { revision }) =
        query.map_err(|_| Refusal::Malformed("revision is not one".to_owned()))?;
    let until = tokio::time::Instant::now() + HELD;
    let mut news = api.registry.acknowledged();
    loop {
        news.mark_unchanged();
        let behind = api.registry.behind_revision(revision).await?;
        if behind == 0 || tokio::time::Instant::now() >= until {
            return Ok(Json(Acknowledged { behind }));
        }
        let _ = tokio::time::timeout(LOOK, news.changed()).await;
    }
}
