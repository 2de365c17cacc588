//! Identities of nodes: as they are shown, and to be rotated.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::StatusCode,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use wavry_credentials::audit::Action;
use wavry_proto::token::OperatorRole;

use super::{Asking, NodeStatus, OnceKey, ProblemDocument, node_id};
use crate::{api::Api, identity::Life, problem::Refusal};

/// An identity of a node.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct IdentityStatus {
    /// The public key, as hexadecimal.
    pub key: String,
    /// `next` (admitted, and not shown yet), `present`, or `before` (shown no more, and still accepted).
    #[schema(example = "present")]
    pub state: String,
    /// When it became that, in seconds since the Unix epoch; 0 where that is not known.
    pub since: u64,
    /// When it is to leave the roster, in seconds since the Unix epoch, if that is settled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
}

impl IdentityStatus {
    pub(super) fn of(life: &Life) -> Self {
        Self {
            key: life.key.to_string(),
            state: life.state.as_str().to_owned(),
            since: life.since,
            until: life.until,
        }
    }
}

/// Has a node rotate its identity
///
/// The node hears of it with its next heartbeat, makes another identity, and shows it once every node that
/// may meet it knows it; no session is dropped. One that was admitted before and not shown yet serves as
/// well; if the node has lost it, it makes way. For a node whose key somebody else may hold, revoke the
/// node. Role operator.
#[utoipa::path(
    post,
    path = "/v1/nodes/{node}/rotate",
    params(("node" = String, Path, description = "Its id"), OnceKey),
    responses(
        (status = 202, body = NodeStatus, description = "It is ordered."),
        (status = 400, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 401, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 429, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn rotate_identity(
    State(api): State<Arc<Api>>,
    id: Result<Path<String>, PathRejection>,
    asking: Asking,
) -> Result<(StatusCode, Json<NodeStatus>), Refusal> {
    let operator = asking.operator(OperatorRole::Operator).await?;
    let id = node_id(id)?;
    let path = "/v1/nodes/{node}/rotate";
    let order = asking.order(&operator, Action::Rotate, path, id.to_string())?;
    api.registry.order_rotation(id.clone(), order).await?;
    Ok((StatusCode::ACCEPTED, Json(api.status_of(&id)?)))
}
