//! The authorities of the cluster's own certificates, for operators.

use std::{sync::Arc, time::SystemTime};

use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderMap, StatusCode},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use wavry_credentials::{audit::Action, cert};
use wavry_proto::token::OperatorRole;

use super::{OnceKey, PageAsked, PageQuery, ProblemDocument, RotateKey};
use crate::{
    api::Api, audited::Asked, keys::Reason, operate::asking::Asking, problem::Refusal,
    store::authority::Kept,
};

/// Longest time that a rotation can be spread over: what is longer is no request of anybody's.
const MAX_SECONDS: u64 = 366 * 24 * 3600;

/// An authority that signs certificates of masters and nodes.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AuthorityStatus {
    /// SHA-256 of its certificate, as hexadecimal.
    pub hash: String,
    /// `published`, `signing`, `accepted`, `retired` or `revoked`.
    #[schema(example = "signing")]
    pub state: String,
    /// When it became that, in seconds since the Unix epoch.
    pub since: u64,
    /// When it becomes the next thing, if that is settled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
    /// When its certificate expires, in seconds since the Unix epoch.
    pub not_after: u64,
    /// Its certificate, in PEM.
    pub certificate: String,
}

/// Some of the authorities that ever were.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AuthorityPage {
    /// Oldest first.
    pub authorities: Vec<AuthorityStatus>,
    /// What to give as `after` for the next page; none after the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Lists the authorities of the cluster's own certificates
///
/// Role viewer.
#[utoipa::path(
    get,
    path = "/v1/authorities",
    params(PageQuery),
    responses(
        (status = 200, body = AuthorityPage),
        (status = 400, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 401, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 429, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(super) async fn list_authorities(
    State(api): State<Arc<Api>>,
    Extension(asked): Extension<Arc<Asked>>,
    headers: HeaderMap,
    query: PageAsked,
) -> Result<Json<AuthorityPage>, Refusal> {
    api.operator(&headers, &asked, OperatorRole::Viewer).await?;
    let published = api.registry.published().borrow().clone();
    // By age, and not by name: their numbers are how the next page is asked for.
    let numbered = published.authorities.kept.iter().enumerate();
    let (page, next) = PageQuery::read(query)?.of(numbered, |(number, _)| format!("{number:06}"));
    let authorities = page.into_iter().map(|(_, kept)| status(kept)).collect();
    Ok(Json(AuthorityPage { authorities, next }))
}

/// Rotates the authority of the cluster's own certificates
///
/// Role admin.
#[utoipa::path(
    post,
    path = "/v1/authorities/rotate",
    params(OnceKey),
    request_body = RotateKey,
    responses(
        (status = 201, body = AuthorityStatus, description = "The new authority."),
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
pub(super) async fn rotate_authority(
    State(api): State<Arc<Api>>,
    asking: Asking,
) -> Result<(StatusCode, Json<AuthorityStatus>), Refusal> {
    let operator = asking.operator(OperatorRole::Admin).await?;
    let request: RotateKey = asking.body()?;
    let pace = api.registry.authority_pace().ok_or(Refusal::NoAuthority)?;
    let seconds = [request.wait_seconds, request.overlap_seconds];
    if seconds
        .into_iter()
        .flatten()
        .any(|seconds| seconds > MAX_SECONDS)
    {
        let expected = "wait_seconds or overlap_seconds is more than a year";
        return Err(Refusal::Malformed(expected.to_owned()));
    }
    let (reason, pace) = request.read(pace)?;
    let path = match reason {
        Reason::Compromise => "/v1/authorities/rotate compromise",
        Reason::Schedule | Reason::Request => "/v1/authorities/rotate request",
    };
    let order = asking.order(&operator, Action::Rotate, path, String::new())?;
    let hash = api.registry.rotate_authority(reason, pace, order).await?;
    let published = api.registry.published().borrow().clone();
    let kept = &published.authorities.kept;
    let made = kept.iter().find(|kept| kept.life.kid == hash);
    // It is there, unless another master has rotated again meanwhile.
    let made = made.or(kept.last()).map(status);
    Ok((StatusCode::CREATED, Json(made.ok_or(Refusal::NotFound)?)))
}

fn status(kept: &Kept) -> AuthorityStatus {
    let not_after = cert::not_after(&kept.certificate)
        .and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    AuthorityStatus {
        hash: kept.life.kid.clone(),
        state: kept.life.state.as_str().to_owned(),
        since: kept.life.since,
        until: kept.life.until,
        not_after: not_after.unwrap_or_default().as_secs(),
        certificate: cert::to_pem(&kept.certificate),
    }
}
