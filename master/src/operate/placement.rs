//! Where a node is, how much it takes beside others, and what its flows may carry.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::StatusCode,
};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;
use wavry_credentials::audit::Action;
use wavry_proto::{placement::Weight, token::OperatorRole};

use super::{Asking, NodeStatus, OnceKey, ProblemDocument, node_id};
use crate::{
    api::Api,
    config::{MAX_FLOW_RATE, MIN_FLOW_BITS},
    problem::Refusal,
    store::Move,
};

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
    /// Bits in a second that each of the node's flows through transit relays may carry, at least 1,000,000. `null`
    /// for what the master's configuration says.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, example = 100_000_000, minimum = 1_000_000)]
    pub flow_bits_per_second: Option<Option<u64>>,
    /// Packets in a second that each of them may carry. `null` for what the master's configuration says.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, example = 20_000, minimum = 1)]
    pub flow_packets_per_second: Option<Option<u64>>,
}

/// Tells `null` from what is left out.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    value: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(value).map(Some)
}

/// Changes a node's region or weight, or what its flows may carry
///
/// What is left out stays as it is (RFC 7396). Nodes hear of it at once. Gateways choose by region and weight for
/// sessions from then on; they hold until the node registers anew, with a token that says them. Where flows are to
/// carry more or less, the node's leases are replaced within 5 s. Role operator.
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
    let PlaceNode {
        region,
        weight,
        flow_bits_per_second: flow_bits,
        flow_packets_per_second: flow_packets,
    } = asking.body()?;
    let malformed = |what: &str| Refusal::Malformed(what.to_owned());
    let region = region.map(|region| region.map(|name| name.parse()).transpose());
    let weight = weight.map(Weight::try_from).transpose();
    let to = Move {
        region: region
            .transpose()
            .map_err(|_| malformed("region is no region's name"))?,
        weight: weight.map_err(|_| malformed("weight is not from 1 to 1000"))?,
        flow_bits,
        flow_packets,
    };
    if to == Move::default() {
        return Err(malformed("nothing is given that is to be another"));
    }
    let rates = [
        (flow_bits, MIN_FLOW_BITS, "flow_bits_per_second"),
        (flow_packets, 1, "flow_packets_per_second"),
    ];
    for (rate, least, name) in rates {
        if let Some(Some(rate)) = rate
            && !(least..=MAX_FLOW_RATE).contains(&rate)
        {
            let expected = format!("{name} is not from {least} to {MAX_FLOW_RATE}");
            return Err(Refusal::Malformed(expected));
        }
    }
    let path = "/v1/nodes/{node}";
    let order = asking.order(&operator, Action::Configure, path, id.to_string())?;
    api.registry.place_node(id.clone(), to, order).await?;
    Ok(Json(api.status_of(&id)?))
}

/// Revokes the leases of a node's flows
///
/// Those that were signed until now hold no more: its flows through transit relays end within 5 s, unless the node
/// has asked for new ones by then, which it does if it runs. Role operator.
#[utoipa::path(
    post,
    path = "/v1/nodes/{node}/leases/revoke",
    params(("node" = String, Path, description = "Its id"), OnceKey),
    responses(
        (status = 204, description = "They are revoked, and nodes are being told."),
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
pub(crate) async fn revoke_leases(
    State(api): State<Arc<Api>>,
    id: Result<Path<String>, PathRejection>,
    asking: Asking,
) -> Result<StatusCode, Refusal> {
    let operator = asking.operator(OperatorRole::Operator).await?;
    let id = node_id(id)?;
    let path = "/v1/nodes/{node}/leases/revoke";
    let order = asking.order(&operator, Action::Revoke, path, id.to_string())?;
    api.registry.revoke_leases(id, order).await?;
    Ok(StatusCode::NO_CONTENT)
}
