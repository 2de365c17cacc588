//! Tokens that operators have the master sign: for operators, clients and nodes.

use std::sync::Arc;

use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use wavry_credentials::{audit::Action, clock::unix_time, random};
use wavry_proto::{
    control::Role,
    id::{NodeId, ServiceName},
    placement::{Placement, Weight},
    token::{
        MAX_LIFETIME, MAX_OPERATOR_LIFETIME, Operator, OperatorRole, Registration, Session,
        Validity,
    },
};

use super::{Asking, OnceKey, ProblemDocument};
use crate::{
    api::Api,
    problem::Refusal,
    provision::{self, Issue},
};

/// A token for an operator.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct IssueOperator {
    /// Who works with it; whoever asks if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 4096)]
    pub subject: Option<String>,
    /// `viewer`, `operator` or `admin`.
    #[schema(example = "viewer")]
    pub role: String,
    /// For how many seconds it holds: up to 43,200, and 3,600 if not given; never beyond the token that asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 43_200)]
    pub ttl_seconds: Option<u64>,
}

/// A token for a client.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct IssueSession {
    /// The service it opens sessions to.
    #[schema(example = "chat")]
    pub service: String,
    /// Who the client is; the service is told.
    #[schema(example = "alice", min_length = 1, max_length = 4096)]
    pub subject: String,
    /// Which of the client's sessions it is for; a newer token with the same extends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// What the service is told beside.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    #[schema(value_type = Object)]
    pub claims: serde_json::Map<String, serde_json::Value>,
    /// For how many seconds it holds: up to 604,800, and 3,600 if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 604_800)]
    pub ttl_seconds: Option<u64>,
}

/// A token with which a node registers, once.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct IssueRegistration {
    /// Id of the node.
    #[schema(example = "edge-1")]
    pub node: String,
    /// `gateway`, `relay` or `keyvault`.
    #[schema(example = "relay")]
    pub role: String,
    /// Names and addresses at which clients find a KeyVault: those of its certificate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// Services a relay may announce.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(example = json!(["chat"]))]
    pub services: Vec<String>,
    /// The region that it stands in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The share of sessions that a relay is to take: 1 to 1,000, and 100 if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1000)]
    pub weight: Option<u16>,
    /// For how many seconds it can be used: up to 604,800, and 3,600 if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 604_800)]
    pub ttl_seconds: Option<u64>,
}

/// A token.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct IssuedToken {
    /// PASETO v4.public.
    pub token: String,
    /// Its id (`jti`).
    pub id: String,
    /// It holds until this second since the Unix epoch.
    pub expires_at: u64,
}

/// Each has the rights of those before.
const ROLES: [OperatorRole; 3] = [
    OperatorRole::Viewer,
    OperatorRole::Operator,
    OperatorRole::Admin,
];
/// How long a token holds of which nothing is said, in seconds.
const DEFAULT_LIFETIME: u64 = 3600;
/// Most bytes of what a token says, so that it is no longer than tokens may be.
const MAX_CLAIMS: usize = 5 * 1024;

/// Issues a token for an operator
///
/// Nobody gets a role above their own, nor a token that holds for longer than the one that asks. Others than
/// whoever asks get one from an admin alone. Role viewer.
#[utoipa::path(
    post,
    path = "/v1/tokens/operator",
    params(OnceKey),
    request_body = IssueOperator,
    responses(
        (status = 201, body = IssuedToken),
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
pub(super) async fn issue_operator(
    State(api): State<Arc<Api>>,
    asking: Asking,
) -> Result<(StatusCode, Json<IssuedToken>), Refusal> {
    let operator = asking.operator(OperatorRole::Viewer).await?;
    let request: IssueOperator = asking.body()?;
    let malformed = || Refusal::Malformed("role is none of viewer, operator, admin".to_owned());
    let role = ROLES.into_iter().find(|role| role.as_str() == request.role);
    let role = role.ok_or_else(malformed)?;
    let sub = request.subject.unwrap_or_else(|| operator.sub.clone());
    let needed = match sub == operator.sub {
        true => role,
        false => OperatorRole::Admin,
    };
    if operator.role < needed {
        return Err(Refusal::Role(needed));
    }
    let mut validity = validity(request.ttl_seconds, MAX_OPERATOR_LIFETIME)?;
    validity.exp = validity.exp.min(operator.validity.exp);
    let path = format!("/v1/tokens/operator {}", role.as_str());
    let issue = Issue::Operator(Operator {
        jti: new_id(),
        sub,
        role,
        validity,
    });
    issued(&api, &asking, &operator, &path, issue).await
}

/// Issues a token with which a client opens sessions to a service
///
/// Role operator.
#[utoipa::path(
    post,
    path = "/v1/tokens/session",
    params(OnceKey),
    request_body = IssueSession,
    responses(
        (status = 201, body = IssuedToken),
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
pub(super) async fn issue_session(
    State(api): State<Arc<Api>>,
    asking: Asking,
) -> Result<(StatusCode, Json<IssuedToken>), Refusal> {
    let operator = asking.operator(OperatorRole::Operator).await?;
    let request: IssueSession = asking.body()?;
    let service: ServiceName = request
        .service
        .parse()
        .map_err(|_| Refusal::NoSuchService)?;
    let is_there = {
        let published = api.registry.published();
        let published = published.borrow();
        published.roster.service(service.as_str()).is_some()
    };
    if !is_there {
        return Err(Refusal::NoSuchService);
    }
    let path = format!("/v1/tokens/session {service}");
    let issue = Issue::Session {
        service,
        claims: Session {
            jti: new_id(),
            sub: request.subject,
            sid: request.session,
            claims: request.claims,
            validity: validity(request.ttl_seconds, MAX_LIFETIME)?,
        },
    };
    issued(&api, &asking, &operator, &path, issue).await
}

/// Issues a token with which a node registers, once
///
/// Role admin.
#[utoipa::path(
    post,
    path = "/v1/tokens/registration",
    params(OnceKey),
    request_body = IssueRegistration,
    responses(
        (status = 201, body = IssuedToken),
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
pub(super) async fn issue_registration(
    State(api): State<Arc<Api>>,
    asking: Asking,
) -> Result<(StatusCode, Json<IssuedToken>), Refusal> {
    let operator = asking.operator(OperatorRole::Admin).await?;
    let request: IssueRegistration = asking.body()?;
    let malformed = |what: &str| Refusal::Malformed(what.to_owned());
    let node: NodeId = request
        .node
        .parse()
        .map_err(|_| malformed("node is no node's id"))?;
    let role = Role::named(&request.role);
    let role = role.ok_or_else(|| malformed("role is none of gateway, relay and keyvault"))?;
    provision::check_names(role, &request.names)
        .map_err(|why| Refusal::Malformed(format!("names {why}")))?;
    let region = request.region.map(|name| name.parse()).transpose();
    let weight = request.weight.map(Weight::try_from).transpose();
    let weight = weight.map_err(|_| malformed("weight is not from 1 to 1000"))?;
    let placement = Placement {
        region: region.map_err(|_| malformed("region is no region's name"))?,
        weight: weight.unwrap_or_default(),
        names: request.names,
    };
    let services = request.services.iter().map(|name| name.parse());
    let services: Result<_, _> = services.collect();
    let path = format!("/v1/tokens/registration {}", role.as_str());
    let issue = Issue::Registration(Registration {
        jti: new_id(),
        sub: node,
        role,
        services: services.map_err(|_| malformed("services has what is no service's name"))?,
        placement,
        validity: validity(request.ttl_seconds, MAX_LIFETIME)?,
    });
    issued(&api, &asking, &operator, &path, issue).await
}

/// Puts a token on record, and signs it then. Asked again, it signs the one of before.
async fn issued(
    api: &Api,
    asking: &Asking,
    operator: &Operator,
    path: &str,
    issue: Issue,
) -> Result<(StatusCode, Json<IssuedToken>), Refusal> {
    let subject = issue.subject();
    let length = serde_json::to_vec(&issue).map_or(usize::MAX, |claims| claims.len());
    if subject.is_empty() || length > MAX_CLAIMS {
        return Err(Refusal::Malformed(format!(
            "the subject is empty, or the token would say more than {MAX_CLAIMS} bytes"
        )));
    }
    let order = asking.order(operator, Action::Issue, path, subject.to_owned())?;
    let issue = api.registry.issue(issue, order).await?;
    let ring = api.registry.ring();
    let token = issue.sign(&*ring.signing, api.registry.cluster()).await;
    let issued = IssuedToken {
        token: token.map_err(Refusal::NotSigned)?,
        id: issue.id().to_owned(),
        expires_at: issue.validity().exp,
    };
    Ok((StatusCode::CREATED, Json(issued)))
}

/// 128 random bits.
fn new_id() -> String {
    hex::encode(random::bytes::<16>())
}

fn validity(seconds: Option<u64>, most: u64) -> Result<Validity, Refusal> {
    let seconds = seconds.unwrap_or(DEFAULT_LIFETIME);
    if !(1..=most).contains(&seconds) {
        let expected = format!("ttl_seconds is not between 1 and {most}");
        return Err(Refusal::Malformed(expected));
    }
    let now = unix_time();
    Ok(Validity {
        iat: now,
        nbf: now,
        exp: now.saturating_add(seconds),
    })
}
