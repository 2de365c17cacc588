//! Where a node is, and how much it takes beside others.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;
use wavry_credentials::audit::Action;
use wavry_proto::{placement::Weight, token::OperatorRole};

use super::{Asking, NodeStatus, OnceKey, ProblemDocument, node_id};
use crate::{api::Api, problem::Refusal, store::Move};

/// What of a node is to be another. What is left out stays.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PlaceNode {
    /// The region; gateways prefer relays in their own. `null` for none.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "eu-west")]
    pub region: Option<Option<String>>,
    /// The share of sessions that a relay is to take beside others for the same service: 1 to 1,000.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1000, example = 100)]
    pub weight: Option<u16>,
}

/// Tells `null` from what is left out.
fn given<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(value).map(Some)
}

/// Changes a node's region or weight
///
/// What is left out stays as it is (RFC 7396). Nodes hear of it at once, and gateways choose by it for sessions from
/// then on; it holds until the node registers anew, with a token that says it. Role operator.
#[utoipa::path(
    patch,
    path = "/v1/nodes/{node}",
    params(("node" = String, Path, description = "Its id"), OnceKey),
    request_body = PlaceNode,
    responses(
        (status = 200, body = NodeStatus),
        (status = 400, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 401, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 413, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 429, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn place_node(
    State(api): State<Arc<Api>>,
    id: Result<Path<String>, PathRejection>,
    asking: Asking,
) -> Result<Json<NodeStatus>, Refusal> {
    let operator = asking.operator(OperatorRole::Operator).await?;
    let id = node_id(id)?;
    let PlaceNode { region, weight } = asking.body()?;
    let malformed = |what: &str| Refusal::Malformed(what.to_owned());
    let region = region.map(|region| region.map(|name| name.parse()).transpose());
    let weight = weight.map(Weight::try_from).transpose();
    let to = Move {
        region: region
            .transpose()
            .map_err(|_| malformed("region is no region's name"))?,
        weight: weight.map_err(|_| malformed("weight is not from 1 to 1000"))?,
    };
    if to == Move::default() {
        return Err(malformed("neither region nor weight is given"));
    }
    let path = "/v1/nodes/{node}";
    let order = asking.order(&operator, Action::Configure, path, id.to_string())?;
    api.registry.place_node(id.clone(), to, order).await?;
    Ok(Json(api.status_of(&id)?))
}
