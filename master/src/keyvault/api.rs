//! HTTP: a request becomes a [`Call`](super::call::Call), an [`Answer`] becomes what clients read. Which dialect a
//! request is in, its path tells ([`rest`]); both are answered by [`KeyVault::handle`].

mod openapi;
mod request;
mod rest;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Extension, Router,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;
use wavry_credentials::bearer::Document;
use wavry_proto::token::MAX_ROSTER_LEN;

use super::{
    KeyVault,
    call::{Answer, Auth, Refusal, Wrapped},
    random_id,
};
use crate::{channel::Channel, metrics as names};

pub use openapi::document as openapi;

/// Longest body, in bytes, but for messages that are to be signed.
pub const MAX_BODY: usize = 1024 * 1024;
/// Longest body of a request for a signature, by who has a token that is good: the longest roster of a cluster in
/// base64, and what is around it.
pub const MAX_MESSAGE_BODY: usize = MAX_ROSTER_LEN + 4096;
/// Bodies longer than [`MAX_BODY`] that are read at once; more wait within [`BODY_TIMEOUT`]. Each is there four times
/// while its signature is made: as it came, as a secret, as text and decoded. That is 128 MiB.
pub(super) const LONG_BODIES: usize = 4;
/// Longest target of a request, in bytes: the longest path with each byte percent-encoded, and a
/// query.
const MAX_TARGET: usize = 4 * 1024;
/// From the head of a request to the end of its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// The header of an answer that has the request's id, as the audit log does.
const REQUEST_ID: &str = "x-request-id";

/// All routes of both dialects. A request must carry its connection's [`Channel`] as an extension.
pub(crate) fn router(vault: KeyVault) -> Router {
    Router::new().fallback(answer).with_state(vault)
}

async fn answer(
    State(vault): State<KeyVault>,
    Extension(channel): Extension<Arc<Channel>>,
    request: Request,
) -> Response {
    let id = random_id();
    let started = Instant::now();
    let is_head = request.method() == http::Method::HEAD;
    let outcome = match request.uri().path() {
        "/v1/openapi.json" | "/openapi.json" if !is_head => Ok(openapi_answer()),
        _ => try_answer(&vault, &channel, request, &id).await,
    };
    let (word, mut response) = match outcome {
        Ok(response) => ("done", response),
        Err(refusal) => (refusal.word(), refused(refusal, &id)),
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(id) = HeaderValue::try_from(&id) {
        headers.insert(REQUEST_ID, id);
    }
    if is_head {
        *response.body_mut() = axum::body::Body::empty();
    }
    metrics::counter!(names::KEYVAULT_REQUESTS, "outcome" => word).increment(1);
    metrics::histogram!(names::KEYVAULT_REQUEST_SECONDS).record(started.elapsed().as_secs_f64());
    response
}

async fn try_answer(
    vault: &KeyVault,
    channel: &Channel,
    request: Request,
    id: &str,
) -> Result<Response, Refusal> {
    // The permit is held until there is an answer.
    let (call, _permit) = request::read(vault, request, channel, id).await?;
    let is_sys = call.path.as_str().starts_with("sys/");
    let answer = vault.handle(call).await?;
    Ok(match answer {
        Answer::Done => StatusCode::NO_CONTENT.into_response(),
        Answer::Bare(status, document) => body(status, document),
        answer => body(StatusCode::OK, envelope(answer, id, is_sys)),
    })
}

/// An answer in the envelope of Vault's clients. Below `sys/`, members of `data` stand beside it too:
/// clients read them there.
pub(super) fn envelope(answer: Answer, request: &str, is_sys: bool) -> Document {
    let null = || Document::of(&());
    let (mut data, mut auth, mut wrap_info, mut warnings) = (null(), null(), null(), null());
    let mut beside = None;
    match answer {
        Answer::Data(document) | Answer::Bare(_, document) => {
            if is_sys {
                beside = document.public_members();
            }
            data = document;
        }
        Answer::Warned(document, texts) => {
            data = document;
            warnings = Document::of(&texts);
        }
        Answer::Auth(token) => auth = auth_document(token),
        Answer::Wrapped(token) => wrap_info = wrap_document(token),
        Answer::Done => (),
    }
    let members = [
        ("request_id", Document::of(&request)),
        ("lease_id", Document::of(&"")),
        ("renewable", Document::of(&false)),
        ("lease_duration", Document::of(&0)),
        ("data", data),
        ("wrap_info", wrap_info),
        ("warnings", warnings),
        ("auth", auth),
    ];
    match beside {
        None => Document::object(members),
        Some(beside) => beside.with(members),
    }
}

fn auth_document(auth: Auth) -> Document {
    let rest = json!({
        "accessor": auth.accessor,
        "policies": auth.policies,
        "token_policies": auth.policies,
        "metadata": auth.metadata,
        "lease_duration": auth.lease_duration.as_secs(),
        "renewable": auth.renewable,
        "entity_id": "",
        "token_type": "service",
        "orphan": auth.orphan,
        "mfa_requirement": null,
        "num_uses": auth.num_uses,
    });
    let token = [("client_token", Document::from(&auth.client_token))];
    match Document::of(&rest).public_members() {
        Some(rest) => rest.with(token),
        None => Document::object(token),
    }
}

fn wrap_document(wrapped: Wrapped) -> Document {
    let rest = json!({
        "accessor": wrapped.accessor,
        "ttl": wrapped.ttl.as_secs(),
        "creation_time": wrapped.creation_time,
        "creation_path": wrapped.creation_path,
        "wrapped_accessor": wrapped.wrapped_accessor.unwrap_or_default(),
    });
    let token = [("token", Document::from(&wrapped.token))];
    match Document::of(&rest).public_members() {
        Some(rest) => rest.with(token),
        None => Document::object(token),
    }
}

fn refused(refusal: Refusal, id: &str) -> Response {
    let status = refusal.status();
    match refusal {
        Refusal::Gone(data) => body(status, envelope(Answer::Data(data), id, false)),
        // Vault's clients tell a path at which nothing is by an empty list.
        Refusal::Absent => errors(status, &[]),
        Refusal::TooMany(wait) => {
            let mut response = errors(status, &[&refusal.to_string()]);
            let wait = HeaderValue::from(wait.as_secs().max(1));
            response.headers_mut().insert(header::RETRY_AFTER, wait);
            response
        }
        refusal => errors(status, &[&refusal.to_string()]),
    }
}

fn errors(status: StatusCode, texts: &[&str]) -> Response {
    body(status, Document::of(&json!({"errors": texts})))
}

fn body(status: StatusCode, document: Document) -> Response {
    let json = [(header::CONTENT_TYPE, "application/json")];
    (status, json, document.into_body()).into_response()
}

fn openapi_answer() -> Response {
    body(StatusCode::OK, Document::of(&openapi()))
}

#[cfg(test)]
mod tests;
