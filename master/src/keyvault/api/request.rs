//! From bytes to a [`Call`], within limits.

use std::collections::BTreeMap;

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, Method, header},
};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use tokio::sync::OwnedSemaphorePermit;
use wavry_credentials::{
    bearer::{Json, Token},
    secret::Secret,
};

use super::{BODY_TIMEOUT, MAX_BODY, MAX_MESSAGE_BODY, MAX_TARGET, rest};
use crate::{
    channel::Channel,
    keyvault::{
        KeyVault,
        call::{Call, Operation, Refusal},
        namespace,
        path::Canonical,
        wrapping,
    },
};

/// Members of a query that are looked at; more are refused.
const MAX_QUERY: usize = 16;

/// Reads a request. The permit is there while the body is a long one.
pub(super) async fn read(
    vault: &KeyVault,
    request: Request,
    channel: &Channel,
    id: &str,
) -> Result<(Call, Option<OwnedSemaphorePermit>), Refusal> {
    let (head, body) = request.into_parts();
    let target = head
        .uri
        .path_and_query()
        .map_or("", |target| target.as_str());
    if target.len() > MAX_TARGET {
        return Err(Refusal::invalid("the path is too long"));
    }
    let path = head
        .uri
        .path()
        .strip_prefix("/v1/")
        .ok_or(Refusal::Absent)?;
    let path = Canonical::parse(path).map_err(|error| Refusal::invalid(error.to_string()))?;
    let mut query = query(head.uri.query().unwrap_or_default())?;
    let lists = query.remove("list").is_some_and(|value| is_true(&value));
    let operation = match (head.method.as_str(), lists) {
        ("GET" | "HEAD", false) => Operation::Read,
        ("GET", true) | ("LIST", _) => Operation::List,
        ("POST" | "PUT", _) => Operation::Update,
        ("PATCH", _) => Operation::Patch,
        ("DELETE", _) => Operation::Delete,
        _ => return Err(Refusal::Unsupported),
    };
    let path = match text(&head.headers, "x-vault-namespace")? {
        Some(name) => namespace::apply(name, &path)?,
        None => path,
    };
    let wrap_ttl = match text(&head.headers, "x-vault-wrap-ttl")? {
        Some(ttl) => wrapping::wished(ttl)?,
        None => None,
    };
    let token = token(&head.headers)?;
    let length = text(&head.headers, header::CONTENT_LENGTH.as_str())?;
    let is_long = length.is_some_and(|length| length.parse().is_ok_and(|length| MAX_BODY < length));
    let read = async {
        let permit = match is_long && may_be_long(vault, &path, token.as_ref()).await? {
            true => vault.long_bodies.clone().acquire_owned().await.ok(),
            false => None,
        };
        let body = self::body(&head.method, body, permit.is_some()).await?;
        Ok::<_, Refusal>((body, permit))
    };
    let read = tokio::time::timeout(BODY_TIMEOUT, read).await;
    let (body, permit) = read.unwrap_or(Err(Refusal::TooSlow))?;
    let call = rest::translated(Call {
        operation,
        path,
        query,
        token,
        body,
        client: channel.peer,
        peer_certificates: channel.peer_certificates.clone(),
        wrap_ttl,
        request: id.to_owned(),
    })?;
    Ok((call, permit))
}

/// Whether the body may be longer than most: somebody who is known here wants a message signed. Whether they may,
/// their policies say when it is read.
async fn may_be_long(
    vault: &KeyVault,
    path: &Canonical,
    token: Option<&Token>,
) -> Result<bool, Refusal> {
    let mut segments = path.as_str().rsplit('/').skip(1).take(2);
    let Some(token) = token.filter(|_| segments.any(|segment| segment == "sign")) else {
        return Ok(false);
    };
    Ok(vault.authorizer.tokens().find(token).await?.is_some())
}

/// Whether a text is true in the forms that Go takes, and Vault's clients send.
fn is_true(text: &str) -> bool {
    matches!(text, "1" | "t" | "T" | "true" | "True" | "TRUE")
}

/// Who asks: `X-Vault-Token`, or a bearer token.
fn token(headers: &HeaderMap) -> Result<Option<Token>, Refusal> {
    if let Some(token) = text(headers, "x-vault-token")? {
        return Ok((!token.is_empty()).then(|| Token::new(token.to_owned())));
    }
    let Some(value) = text(headers, header::AUTHORIZATION.as_str())? else {
        return Ok(None);
    };
    let token = match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Some(token.trim()),
        _ => None,
    };
    Ok(token
        .filter(|token| !token.is_empty())
        .map(|token| Token::new(token.to_owned())))
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<&'h str>, Refusal> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().map(|value| value.to_str());
    match (value, values.next()) {
        (None, _) => Ok(None),
        (Some(Ok(value)), None) => Ok(Some(value.trim())),
        _ => Err(Refusal::invalid(format!("invalid header value: {name}"))),
    }
}

async fn body(method: &Method, body: Body, may_be_long: bool) -> Result<Option<Json>, Refusal> {
    if matches!(method.as_str(), "GET" | "HEAD" | "LIST") {
        return Ok(None);
    }
    let limit = match may_be_long {
        true => MAX_MESSAGE_BODY,
        false => MAX_BODY,
    };
    let bytes = match Limited::new(body, limit).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => return Err(Refusal::TooLarge),
        Err(_) => return Err(Refusal::invalid("the body ended early")),
    };
    if bytes.trim_ascii().is_empty() {
        return Ok(None);
    }
    let body = Json::new(Secret::new(Vec::from(bytes)))?;
    match body.is_object() {
        true => Ok(Some(body)),
        false => Err(Refusal::invalid("the body is not an object")),
    }
}

/// The members of a query, each once.
fn query(text: &str) -> Result<BTreeMap<String, String>, Refusal> {
    let mut members = BTreeMap::new();
    for (name, value) in url::form_urlencoded::parse(text.as_bytes()) {
        if members.len() == MAX_QUERY {
            return Err(Refusal::invalid("the query has too many members"));
        }
        if members
            .insert(name.into_owned(), value.into_owned())
            .is_some()
        {
            return Err(Refusal::invalid("the query has a member twice"));
        }
    }
    Ok(members)
}
