//! What operators ask of the master: to look at nodes, services and keys, to change services, to revoke
//! nodes and subjects, to rotate keys and identities. `GET /openapi.json` describes the routes.
//!
//! Every route takes an operator's token ([`Operator`]) as its bearer, and asks for a role. Whatever
//! changes something is on record before it is answered, with the token's subject as the actor.

#![expect(unused_qualifications, reason = "utoipa's macros write paths in full")]

mod asking;
mod authority;
mod identity;
mod placement;
mod service;
mod token;

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{
        Path, Query, State,
        rejection::{PathRejection, QueryRejection},
    },
    http::{HeaderMap, StatusCode},
    routing::get,
};
use serde::{Deserialize, Serialize};
use utoipa::{
    IntoParams, Modify, OpenApi, ToSchema,
    openapi::security::{Http, HttpAuthScheme, SecurityScheme},
};
use utoipa_axum::{router::OpenApiRouter, routes};
use wavry_credentials::{
    audit::Action,
    clock::unix_time,
    token::{Scope, digest},
};
use wavry_proto::{
    control::{Node, Revocation},
    id::{NodeId, ServiceName},
    token::{Operator, OperatorRole},
};

use crate::{
    api::{Api, bearer},
    audited::Asked,
    identity::Lives,
    keys::{Life, Pace, Reason},
    presence::{State as NodeState, Whereabouts},
    problem::Refusal,
};

use asking::{Asking, OnceKey};

pub use authority::{AuthorityPage, AuthorityStatus};
pub use identity::IdentityStatus;
pub use placement::PlaceNode;
pub use service::{ServicePage, ServiceSpec, ServiceStatus};
pub use token::{IssueOperator, IssueRegistration, IssueSession, IssuedToken};

/// Where the description of the routes is.
const DOCUMENT: &str = "/openapi.json";
/// Entries of a page unless fewer are asked for.
const PAGE: usize = 100;
/// Longest subject that can be revoked, in bytes: tokens are not longer.
const MAX_SUBJECT: usize = wavry_proto::token::MAX_TOKEN_LEN;

/// Some registered nodes, ordered by id.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct NodePage {
    /// The nodes.
    pub nodes: Vec<NodeStatus>,
    /// What to give as `after` for the next page; none after the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A registered node.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct NodeStatus {
    /// Its id.
    #[schema(example = "edge-1")]
    pub id: String,
    /// `gateway`, `relay` or `keyvault`.
    #[schema(example = "relay")]
    pub role: String,
    /// Names and addresses of its certificate, if it is a KeyVault.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// `present`, `draining`, `suspect` (not heard for `suspect_after`) or `gone` (not heard for
    /// `gone_after`).
    #[schema(example = "present")]
    pub state: String,
    /// Seconds since it was heard, or since this master started.
    pub heard_seconds_ago: u64,
    /// Mesh UDP addresses, best first.
    pub addresses: Vec<String>,
    /// UDP addresses at which it forwards packets of others now, best first; none where it does not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub transit: Vec<String>,
    /// Relays through which it is reached, where nobody reaches it at an address of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attached: Vec<String>,
    /// Services it is an exit for now.
    pub services: Vec<String>,
    /// Region that it is in, if any was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "eu-west")]
    pub region: Option<String>,
    /// The share of sessions that it takes, if it is a relay, beside others for the same service.
    #[serde(default)]
    pub weight: u16,
    /// Bits in a second that each of its flows may carry; what the master's configuration says, if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow_bits_per_second: Option<u64>,
    /// Packets in a second that each of its flows may carry; what the master's configuration says, if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow_packets_per_second: Option<u64>,
    /// Identities it is known by: one, or two while it rotates.
    pub identities: Vec<IdentityStatus>,
    /// Since when an operator wants another identity, in seconds since the Unix epoch, if it has made none
    /// yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation_ordered: Option<u64>,
    /// Sessions live on it, as it told.
    pub sessions: u64,
    /// Epoch of the roster it acts on, as it told.
    pub roster_epoch: u64,
    /// Version of its program, as it told.
    pub version: String,
    /// Address that its last heartbeat came from: its own, or that of what translates its addresses. None yet
    /// if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "198.51.100.7")]
    pub seen_from: Option<String>,
}

/// Whose session tokens are to hold no more.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RevokeSubject {
    /// The subject that the tokens name (`sub`).
    #[schema(example = "alice")]
    pub subject: String,
    /// The service they are for; all of them if it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
}

/// A subject whose session tokens hold no more.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RevokedSubject {
    /// The subject as the roster names it: the first 16 bytes of its SHA-256, as hexadecimal.
    pub subject_digest: String,
    /// The service the tokens are for; all of them if it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Tokens issued in this second since the Unix epoch, or before, hold no more. It is 30 s after
    /// the revocation, as clocks may differ so much.
    pub through: u64,
}

/// Some of the subjects whose session tokens hold no more, ordered by service and digest.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RevokedSubjectPage {
    /// Those whose revoked tokens have not all expired anyhow.
    pub revoked: Vec<RevokedSubject>,
    /// What to give as `after` for the next page; none after the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A key that signs tokens and rosters.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct KeyStatus {
    /// PASERK `k4.pid`, as it stands in the footer of what the key signs.
    pub kid: String,
    /// `published`, `signing`, `accepted`, `retired` or `revoked`.
    #[schema(example = "signing")]
    pub state: String,
    /// When it became that, in seconds since the Unix epoch.
    pub since: u64,
    /// When it becomes the next thing, if that is settled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
}

/// Some of the keys that ever signed.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct KeyPage {
    /// Oldest first.
    pub keys: Vec<KeyStatus>,
    /// What to give as `after` for the next page; none after the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// That a new key is to take the place of the one that signs.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateKey {
    /// `request`: the new key is published, signs after a while, and the old one is accepted for a while
    /// more. `compromise`: the new key signs at once, and nothing that others signed holds any more.
    #[schema(example = "request")]
    pub reason: String,
    /// For how many seconds the new key is published before it signs; as configured if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_seconds: Option<u64>,
    /// For how many seconds the old key is accepted afterwards; as configured if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlap_seconds: Option<u64>,
}

impl RotateKey {
    /// Why, and at which pace, where it is `configured`.
    fn read(&self, configured: Pace) -> Result<(Reason, Pace), Refusal> {
        let reason = match self.reason.as_str() {
            "request" => Reason::Request,
            "compromise" => Reason::Compromise,
            _ => {
                let expected = "reason is neither request nor compromise";
                return Err(Refusal::Malformed(expected.to_owned()));
            }
        };
        let seconds = |given: Option<u64>, as_is| given.map_or(as_is, Duration::from_secs);
        let pace = Pace {
            wait: seconds(self.wait_seconds, configured.wait),
            overlap: seconds(self.overlap_seconds, configured.overlap),
            ..configured
        };
        Ok((reason, pace))
    }
}

/// Which page.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct PageQuery {
    /// What the page before says is next.
    after: Option<String>,
    /// Most entries, up to 100.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<usize>,
}

/// What a client asks of a list, as it came.
type PageAsked = Result<Query<PageQuery>, QueryRejection>;

impl PageQuery {
    fn read(query: PageAsked) -> Result<Self, Refusal> {
        let malformed =
            |_| Refusal::Malformed("limit is not a number, or is given twice".to_owned());
        let Query(page) = query.map_err(malformed)?;
        match page.limit {
            None | Some(1..=PAGE) => Ok(page),
            Some(_) => Err(Refusal::Malformed(format!(
                "limit is not between 1 and {PAGE}"
            ))),
        }
    }

    /// A page of what is in the order of `name`, which is how the next one is asked for; and where that is.
    fn of<T>(
        &self,
        all: impl IntoIterator<Item = T>,
        name: impl Fn(&T) -> String,
    ) -> (Vec<T>, Option<String>) {
        let after = self.after.as_deref().unwrap_or_default();
        let limit = self.limit.unwrap_or(PAGE);
        let mut rest = all.into_iter().filter(|one| *name(one) > *after);
        let page: Vec<_> = rest.by_ref().take(limit).collect();
        let next = rest.next().and(page.last()).map(name);
        (page, next)
    }
}

/// A refusal (RFC 9457).
#[derive(ToSchema)]
#[expect(
    dead_code,
    reason = "it describes `wavry_proto::control::Problem`, which knows no schemas"
)]
struct ProblemDocument {
    /// `urn:wavry:problem:` and a word that programs can rely on.
    r#type: String,
    /// The kind in words.
    title: String,
    /// HTTP status.
    status: u16,
    /// This case in words.
    detail: String,
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Wavry master", description = "What operators ask of a Wavry master."),
    components(schemas(ProblemDocument)),
    modifiers(&BearerScheme),
    security(("operator_token" = []))
)]
struct Document;

struct BearerScheme;

impl Modify for BearerScheme {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let mut scheme = Http::new(HttpAuthScheme::Bearer);
        scheme.bearer_format = Some("PASETO v4.public".to_owned());
        let components = openapi.components.get_or_insert_default();
        components.add_security_scheme("operator_token", SecurityScheme::Http(scheme));
    }
}

/// The routes.
pub(crate) fn router() -> Router<Arc<Api>> {
    let (router, document) = documented();
    let document = Bytes::from(document.to_json().unwrap_or_default());
    let json = [("content-type", "application/json")];
    router.route(DOCUMENT, get(async move || (json, document)))
}

fn documented() -> (Router<Arc<Api>>, utoipa::openapi::OpenApi) {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(list_nodes))
        .routes(routes!(show_node, placement::place_node))
        .routes(routes!(revoke_node))
        .routes(routes!(placement::revoke_leases))
        .routes(routes!(identity::rotate_identity))
        .routes(routes!(list_revocations, revoke_subject))
        .routes(routes!(service::list_services))
        .routes(routes!(
            service::show_service,
            service::put_service,
            service::delete_service
        ))
        .routes(routes!(token::issue_operator))
        .routes(routes!(token::issue_session))
        .routes(routes!(token::issue_registration))
        .routes(routes!(list_keys))
        .routes(routes!(authority::list_authorities))
        .routes(routes!(authority::rotate_authority))
        .routes(routes!(rotate_key))
        .split_for_parts()
}

/// Lists nodes
///
/// Role viewer.
#[utoipa::path(
    get,
    path = "/v1/nodes",
    params(PageQuery),
    responses(
        (status = 200, body = NodePage),
        (status = 400, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 401, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 429, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn list_nodes(
    State(api): State<Arc<Api>>,
    Extension(asked): Extension<Arc<Asked>>,
    headers: HeaderMap,
    query: PageAsked,
) -> Result<Json<NodePage>, Refusal> {
    api.operator(&headers, &asked, OperatorRole::Viewer).await?;
    let nodes = api.registry.nodes();
    let (page, next) = PageQuery::read(query)?.of(&nodes, |(node, _)| node.id.to_string());
    let nodes = page.into_iter().map(|node| api.status(node)).collect();
    Ok(Json(NodePage { nodes, next }))
}

/// Shows a node
///
/// Role viewer.
#[utoipa::path(
    get,
    path = "/v1/nodes/{node}",
    params(("node" = String, Path, description = "Its id")),
    responses(
        (status = 200, body = NodeStatus),
        (status = 401, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 429, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn show_node(
    State(api): State<Arc<Api>>,
    Extension(asked): Extension<Arc<Asked>>,
    headers: HeaderMap,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<NodeStatus>, Refusal> {
    api.operator(&headers, &asked, OperatorRole::Viewer).await?;
    Ok(Json(api.status_of(&node_id(id)?)?))
}

/// Revokes a node
///
/// Takes it out of the roster for good: its connections are closed everywhere, its keys never register
/// again, and neither do registration tokens for it that were issued by now or within the next 30 s.
/// Role operator.
#[utoipa::path(
    post,
    path = "/v1/nodes/{node}/revoke",
    params(("node" = String, Path, description = "Its id"), OnceKey),
    responses(
        (status = 204, description = "It is revoked, and nodes are being told."),
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
async fn revoke_node(
    State(api): State<Arc<Api>>,
    id: Result<Path<String>, PathRejection>,
    asking: Asking,
) -> Result<StatusCode, Refusal> {
    let operator = asking.operator(OperatorRole::Operator).await?;
    let id = node_id(id)?;
    let path = "/v1/nodes/{node}/revoke";
    let order = asking.order(&operator, Action::Revoke, path, id.to_string())?;
    api.registry.revoke_node(id, order).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists the subjects whose session tokens were revoked
///
/// Role viewer.
#[utoipa::path(
    get,
    path = "/v1/revocations",
    params(PageQuery),
    responses(
        (status = 200, body = RevokedSubjectPage),
        (status = 400, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 401, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 429, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn list_revocations(
    State(api): State<Arc<Api>>,
    Extension(asked): Extension<Arc<Asked>>,
    headers: HeaderMap,
    query: PageAsked,
) -> Result<Json<RevokedSubjectPage>, Refusal> {
    api.operator(&headers, &asked, OperatorRole::Viewer).await?;
    let published = api.registry.published().borrow().clone();
    let name = |one: &&Revocation| {
        let service = one.service.as_ref().map_or("", ServiceName::as_str);
        format!("{service}.{}", one.subject)
    };
    let mut all: Vec<_> = published.roster.revoked.iter().collect();
    all.sort_by_cached_key(name);
    let (page, next) = PageQuery::read(query)?.of(all, name);
    let revoked = page.into_iter().cloned().map(revoked_subject).collect();
    Ok(Json(RevokedSubjectPage { revoked, next }))
}

/// Revokes the session tokens of a subject
///
/// Those issued by now or within the next 30 s hold no more, and live sessions that were opened with
/// them are closed. Role operator.
#[utoipa::path(
    post,
    path = "/v1/revocations",
    params(OnceKey),
    request_body = RevokeSubject,
    responses(
        (status = 201, body = RevokedSubject),
        (status = 400, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 401, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 413, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 429, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 507, body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn revoke_subject(
    State(api): State<Arc<Api>>,
    asking: Asking,
) -> Result<(StatusCode, Json<RevokedSubject>), Refusal> {
    let operator = asking.operator(OperatorRole::Operator).await?;
    let RevokeSubject { subject, service } = asking.body()?;
    if subject.is_empty() || subject.len() > MAX_SUBJECT {
        return Err(Refusal::Malformed(
            "subject is empty or too long".to_owned(),
        ));
    }
    let malformed = |_| Refusal::Malformed("service is not a service's name".to_owned());
    let service: Option<ServiceName> = service
        .map(|name| name.parse())
        .transpose()
        .map_err(malformed)?;
    let subject_digest = digest(&subject);
    let subject = match &service {
        Some(service) => format!("{subject} at {service}"),
        None => subject,
    };
    let order = asking.order(&operator, Action::Revoke, "/v1/revocations", subject)?;
    let revoked = api.registry.revoke_subject(service, subject_digest, order);
    let revocation = revoked.await?;
    Ok((StatusCode::CREATED, Json(revoked_subject(revocation))))
}

/// Lists the keys that sign tokens and rosters
///
/// Role viewer.
#[utoipa::path(
    get,
    path = "/v1/keys",
    params(PageQuery),
    responses(
        (status = 200, body = KeyPage),
        (status = 400, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 401, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 429, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn list_keys(
    State(api): State<Arc<Api>>,
    Extension(asked): Extension<Arc<Asked>>,
    headers: HeaderMap,
    query: PageAsked,
) -> Result<Json<KeyPage>, Refusal> {
    api.operator(&headers, &asked, OperatorRole::Viewer).await?;
    let ring = api.registry.ring();
    // By age, and not by name: their numbers are how the next page is asked for.
    let lives = ring.lives();
    let numbered = lives.iter().enumerate();
    let (page, next) = PageQuery::read(query)?.of(numbered, |(number, _)| format!("{number:06}"));
    let keys = page.into_iter().map(|(_, life)| key_status(life)).collect();
    Ok(Json(KeyPage { keys, next }))
}

/// Rotates the key that signs tokens and rosters
///
/// Role admin.
#[utoipa::path(
    post,
    path = "/v1/keys/rotate",
    params(OnceKey),
    request_body = RotateKey,
    responses(
        (status = 201, body = KeyStatus, description = "The new key."),
        (status = 400, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 401, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 413, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 429, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn rotate_key(
    State(api): State<Arc<Api>>,
    asking: Asking,
) -> Result<(StatusCode, Json<KeyStatus>), Refusal> {
    let operator = asking.operator(OperatorRole::Admin).await?;
    let request: RotateKey = asking.body()?;
    let (reason, pace) = request.read(api.registry.pace())?;
    let path = match reason {
        Reason::Compromise => "/v1/keys/rotate compromise",
        Reason::Schedule | Reason::Request => "/v1/keys/rotate request",
    };
    let order = asking.order(&operator, Action::Rotate, path, String::new())?;
    let kid = api.registry.rotate_key(reason, pace, order).await?;
    let ring = api.registry.ring();
    let lives = ring.lives();
    let made = lives.iter().find(|life| life.kid == kid);
    // It is there, unless another master has rotated again meanwhile.
    let made = made.or(lives.last()).map(key_status);
    Ok((StatusCode::CREATED, Json(made.ok_or(Refusal::NotFound)?)))
}

impl Api {
    /// The operator whose token a request has, if its role reaches as far as `needed`. What it is shown
    /// is no older than what other masters have answered.
    pub(crate) async fn operator(
        &self,
        headers: &HeaderMap,
        asked: &Asked,
        needed: OperatorRole,
    ) -> Result<Operator, Refusal> {
        let scope = Scope {
            cluster: self.registry.cluster(),
            audience: "master",
            binding: &[],
        };
        self.rates.of_address(asked.address)?;
        let token = bearer(headers)?;
        self.registry.catch_up().await?;
        let ring = self.registry.ring();
        let operator: Operator = ring.accepted.verify(token, scope, unix_time())?;
        let _ = asked.who.set(operator.sub.clone());
        let _ = asked.secret.set(self.audit_key.identifier(&operator.jti));
        self.rates.of_operator(&operator.sub)?;
        match operator.role >= needed {
            true => Ok(operator),
            false => Err(Refusal::Role(needed)),
        }
    }

    fn status_of(&self, id: &NodeId) -> Result<NodeStatus, Refusal> {
        let nodes = self.registry.nodes();
        let found = nodes.iter().find(|(node, _)| node.id == *id);
        Ok(self.status(found.ok_or(Refusal::NoSuchNode)?))
    }

    fn status(&self, node: &(Node, Option<Whereabouts>)) -> NodeStatus {
        status(node, self.registry.identities(&node.0.id))
    }
}

fn node_id(id: Result<Path<String>, PathRejection>) -> Result<NodeId, Refusal> {
    let Path(id) = id.map_err(|_| Refusal::NoSuchNode)?;
    id.parse().map_err(|_| Refusal::NoSuchNode)
}

fn status((node, whereabouts): &(Node, Option<Whereabouts>), lives: Option<Lives>) -> NodeStatus {
    let texts = |items: &[ServiceName]| items.iter().map(ToString::to_string).collect();
    let report = whereabouts.as_ref().map(|w| w.report.clone());
    let report = report.unwrap_or_default();
    let state = whereabouts.as_ref().map_or(NodeState::Suspect, |w| w.state);
    NodeStatus {
        id: node.id.to_string(),
        role: node.role.as_str().to_owned(),
        names: node.placement.names.clone(),
        state: state.as_str().to_owned(),
        heard_seconds_ago: whereabouts.as_ref().map_or(0, |w| w.heard.as_secs()),
        addresses: node.addresses.iter().map(ToString::to_string).collect(),
        transit: node.transit.iter().map(ToString::to_string).collect(),
        attached: node.attached.iter().map(ToString::to_string).collect(),
        services: texts(&node.services),
        region: node.placement.region.as_ref().map(ToString::to_string),
        weight: node.placement.weight.get(),
        flow_bits_per_second: node.leases.bits_per_second,
        flow_packets_per_second: node.leases.packets_per_second,
        rotation_ordered: lives.as_ref().and_then(|lives| lives.ordered),
        identities: lives
            .map(|lives| lives.lives.iter().map(IdentityStatus::of).collect())
            .unwrap_or_default(),
        sessions: report.sessions,
        roster_epoch: report.epoch.0,
        version: report.version,
        seen_from: report.seen_from.map(|ip| ip.to_string()),
    }
}

fn key_status(life: &Life) -> KeyStatus {
    KeyStatus {
        kid: life.kid.clone(),
        state: life.state.as_str().to_owned(),
        since: life.since,
        until: life.until,
    }
}

fn revoked_subject(revocation: Revocation) -> RevokedSubject {
    RevokedSubject {
        subject_digest: revocation.subject.to_string(),
        service: revocation.service.map(|service| service.to_string()),
        through: revocation.through,
    }
}
