//! Services: looking at them, making, changing and taking them away.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderMap, StatusCode},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use wavry_credentials::audit::Action;
use wavry_proto::{
    control::{Access, RefuseWith, Service},
    id::ServiceName,
    token::OperatorRole,
};

use super::{Asking, OnceKey, PageAsked, PageQuery, ProblemDocument};
use crate::{
    api::Api,
    audited::Asked,
    config::{RawService, services},
    problem::Refusal,
};

/// What a service is, but for its name. Every field may be left out.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceSpec {
    /// Hosts bound to it, without port: there the whole path belongs to it.
    #[schema(example = json!(["chat.example"]))]
    pub hosts: Vec<String>,
    /// Who may connect: `public`, or `token` (the default).
    #[schema(example = "token")]
    pub access: Option<String>,
    /// Origins a browser may connect from: `scheme://host[:port]`, or `*`.
    #[schema(example = json!(["https://app.example"]))]
    pub allowed_origins: Vec<String>,
    /// Most sessions at once on one gateway; no limit of its own if left out.
    pub max_sessions: Option<u32>,
    /// How clients are told of a refusal: `status` (the default), or `close`.
    pub refuse_with: Option<String>,
    /// Public keys of the owner (PASERK `k4.public`), who signs session tokens for this service.
    pub keys: Vec<String>,
}

/// A service.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ServiceStatus {
    /// Its name; the first path segment that routes to it.
    #[schema(example = "chat")]
    pub name: String,
    /// Relays that are an exit for it now.
    pub exits: Vec<String>,
    /// What it is.
    pub spec: ServiceSpec,
}

/// Some services of the cluster, ordered by name.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ServicePage {
    /// The services.
    pub services: Vec<ServiceStatus>,
    /// What to give as `after` for the next page; none after the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Lists services
///
/// Role viewer.
#[utoipa::path(
    get,
    path = "/v1/services",
    params(PageQuery),
    responses(
        (status = 200, body = ServicePage),
        (status = 400, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 401, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 429, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(super) async fn list_services(
    State(api): State<Arc<Api>>,
    Extension(asked): Extension<Arc<Asked>>,
    headers: HeaderMap,
    query: PageAsked,
) -> Result<Json<ServicePage>, Refusal> {
    api.operator(&headers, &asked, OperatorRole::Viewer).await?;
    let published = api.registry.published().borrow().clone();
    let all = &published.roster.services;
    let (page, next) = PageQuery::read(query)?.of(all, |service| service.name.to_string());
    let services = page.into_iter().map(|service| status(&api, service));
    Ok(Json(ServicePage {
        services: services.collect(),
        next,
    }))
}

/// Shows a service
///
/// Role viewer.
#[utoipa::path(
    get,
    path = "/v1/services/{service}",
    params(("service" = String, Path, description = "Its name")),
    responses(
        (status = 200, body = ServiceStatus),
        (status = 401, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 429, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(super) async fn show_service(
    State(api): State<Arc<Api>>,
    Extension(asked): Extension<Arc<Asked>>,
    headers: HeaderMap,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<ServiceStatus>, Refusal> {
    api.operator(&headers, &asked, OperatorRole::Viewer).await?;
    let name = service_name(name)?;
    let published = api.registry.published().borrow().clone();
    let service = published.roster.service(name.as_str());
    Ok(Json(status(&api, service.ok_or(Refusal::NoSuchService)?)))
}

/// Makes a service, or changes it
///
/// What the body leaves out is as it is for a new one. A second request like the first changes nothing.
/// Services of the master's configuration are changed there. Role operator.
#[utoipa::path(
    put,
    path = "/v1/services/{service}",
    params(("service" = String, Path, description = "1 to 63 of a-z, 0-9 and '-'"), OnceKey),
    request_body = ServiceSpec,
    responses(
        (status = 200, body = ServiceStatus, description = "It was there, and is this now."),
        (status = 201, body = ServiceStatus, description = "It is new."),
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
pub(super) async fn put_service(
    State(api): State<Arc<Api>>,
    name: Result<Path<String>, PathRejection>,
    asking: Asking,
) -> Result<(StatusCode, Json<ServiceStatus>), Refusal> {
    let operator = asking.operator(OperatorRole::Operator).await?;
    let Path(name) = name.map_err(|_| Refusal::NoSuchService)?;
    let service = checked(name, asking.body()?)?;
    let (path, subject) = ("/v1/services/{service}", service.name.to_string());
    let order = asking.order(&operator, Action::Configure, path, subject)?;
    let made = status(&api, &service);
    match api.registry.put_service(service, order).await? {
        true => Ok((StatusCode::CREATED, Json(made))),
        false => Ok((StatusCode::OK, Json(made))),
    }
}

/// Takes a service away
///
/// Gateways answer 404 for it from then on. Live sessions that its owner's keys opened end, as these keys
/// are no more; others go on. Role operator.
#[utoipa::path(
    delete,
    path = "/v1/services/{service}",
    params(("service" = String, Path, description = "Its name"), OnceKey),
    responses(
        (status = 204, description = "It is gone."),
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
pub(super) async fn delete_service(
    State(api): State<Arc<Api>>,
    name: Result<Path<String>, PathRejection>,
    asking: Asking,
) -> Result<StatusCode, Refusal> {
    let operator = asking.operator(OperatorRole::Operator).await?;
    let name = service_name(name)?;
    let path = "/v1/services/{service} delete";
    let order = asking.order(&operator, Action::Configure, path, name.to_string())?;
    api.registry.delete_service(name, order).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn service_name(name: Result<Path<String>, PathRejection>) -> Result<ServiceName, Refusal> {
    let Path(name) = name.map_err(|_| Refusal::NoSuchService)?;
    name.parse().map_err(|_| Refusal::NoSuchService)
}

/// Checks a service as one of the configuration is checked.
fn checked(name: String, spec: ServiceSpec) -> Result<Service, Refusal> {
    let malformed = |what: &str| Refusal::Malformed(what.to_owned());
    let access = match spec.access.as_deref() {
        None | Some("token") => Access::Token,
        Some("public") => Access::Public,
        Some(_) => return Err(malformed("access is neither token nor public")),
    };
    let refuse_with = match spec.refuse_with.as_deref() {
        None | Some("status") => RefuseWith::Status,
        Some("close") => RefuseWith::Close,
        Some(_) => return Err(malformed("refuse_with is neither status nor close")),
    };
    let raw = RawService {
        name,
        hosts: spec.hosts,
        access,
        allowed_origins: spec.allowed_origins,
        max_sessions: spec.max_sessions,
        refuse_with,
        keys: spec.keys,
    };
    let checked = services(vec![raw]).map_err(|invalid| {
        let key = invalid.key.trim_start_matches("services[0].");
        Refusal::Malformed(format!("{key} {}", invalid.problem))
    })?;
    checked.into_iter().next().ok_or(Refusal::NoSuchService)
}

fn status(api: &Api, service: &Service) -> ServiceStatus {
    let published = api.registry.published().borrow().clone();
    let exits = published.roster.exits(&service.name);
    let access = match service.access {
        Access::Public => "public",
        Access::Token => "token",
    };
    let refuse_with = match service.refuse_with {
        RefuseWith::Status => "status",
        RefuseWith::Close => "close",
    };
    ServiceStatus {
        name: service.name.to_string(),
        exits: exits.map(|node| node.id.to_string()).collect(),
        spec: ServiceSpec {
            hosts: service.hosts.clone(),
            access: Some(access.to_owned()),
            allowed_origins: service.allowed_origins.clone(),
            max_sessions: service.max_sessions,
            refuse_with: Some(refuse_with.to_owned()),
            keys: service.keys.clone(),
        },
    }
}
