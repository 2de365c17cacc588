//! `/mesh` and `/mesh/trace` of the ops listener: a node's part of the mesh ([`wavry_proto::view`]).

use std::sync::{Arc, OnceLock};

use axum::{
    Json, Router,
    extract::{Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::get,
};
use serde::Deserialize;
use tokio::sync::Semaphore;
use wavry_proto::{
    id::NodeId,
    view::{self, LIMIT, MAX_LIMIT},
};
use wavry_transport::mesh::{NoTrace, Of, Viewer};

/// Traces at once. Each is over within some seconds, and has the node send some packets.
const TRACES: usize = 8;

/// What is looked at: there once the role serves; nothing in a role that has no part in the mesh.
#[derive(Clone)]
pub(crate) struct Mesh {
    viewer: Arc<OnceLock<Option<Viewer>>>,
    traces: Arc<Semaphore>,
}

impl Default for Mesh {
    fn default() -> Self {
        Self {
            viewer: Arc::default(),
            traces: Arc::new(Semaphore::new(TRACES)),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WhichPeers {
    peer: Option<NodeId>,
    limit: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WhichWay {
    peer: Option<NodeId>,
    session: Option<u64>,
    #[serde(default)]
    all: bool,
}

/// Why there is no answer: a status, and a line for people.
type Refusal = (StatusCode, String);

impl Mesh {
    /// The role serves.
    pub(crate) fn serves(&self, viewer: Option<Viewer>) {
        // It starts once.
        let _ = self.viewer.set(viewer);
    }

    pub(super) fn routes(self) -> Router {
        Router::new()
            .route(view::MESH, get(mesh))
            .route(view::TRACE, get(trace))
            .with_state(self)
    }

    fn viewer(&self) -> Result<&Viewer, Refusal> {
        match self.viewer.get() {
            Some(Some(viewer)) => Ok(viewer),
            Some(None) => refused(StatusCode::NOT_FOUND, "this role has no part in the mesh"),
            None => refused(StatusCode::SERVICE_UNAVAILABLE, "the node starts"),
        }
    }
}

fn refused<T>(status: StatusCode, why: &str) -> Result<T, Refusal> {
    Err((status, format!("{why}\n")))
}

async fn mesh(
    State(mesh): State<Mesh>,
    which: Result<Query<WhichPeers>, QueryRejection>,
) -> Result<Response, Refusal> {
    let viewer = mesh.viewer()?;
    let limits = 1..=MAX_LIMIT;
    let which = which.ok().map(|Query(which)| which);
    let which = which.filter(|which| which.limit.is_none_or(|limit| limits.contains(&limit)));
    let Some(WhichPeers { peer, limit }) = which else {
        let known = format!("peer is a node's id, limit from 1 to {MAX_LIMIT}");
        return refused(StatusCode::BAD_REQUEST, &known);
    };
    match viewer.mesh(peer.as_ref(), limit.unwrap_or(LIMIT)).await {
        Some(mesh) => Ok(Json(mesh).into_response()),
        None => refused(StatusCode::SERVICE_UNAVAILABLE, "the node stops"),
    }
}

async fn trace(
    State(mesh): State<Mesh>,
    which: Result<Query<WhichWay>, QueryRejection>,
) -> Result<Response, Refusal> {
    let viewer = mesh.viewer()?;
    let which = which.map(|Query(which)| (which.peer, which.session, which.all));
    let (of, all) = match which {
        Ok((Some(peer), None, all)) => (Of::Peer(peer), all),
        Ok((None, Some(session), all)) => (Of::Session(session), all),
        _ => {
            let known = "either peer is a node's id, or session the number of a session in the node's log; \
                         all is true or false";
            return refused(StatusCode::BAD_REQUEST, known);
        }
    };
    let Ok(_permit) = mesh.traces.try_acquire() else {
        let many = "too many traces at once";
        return refused(StatusCode::SERVICE_UNAVAILABLE, many);
    };
    match viewer.trace(of, all).await {
        Ok(trace) => Ok(Json(trace).into_response()),
        Err(error) => {
            let status = match error {
                NoTrace::Gone => StatusCode::SERVICE_UNAVAILABLE,
                NoTrace::NoSession(_) | NoTrace::NoPeer(_) => StatusCode::NOT_FOUND,
            };
            refused(status, &error.to_string())
        }
    }
}
