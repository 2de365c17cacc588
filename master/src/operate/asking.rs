//! A request of an operator who may want something changed.

use std::sync::Arc;

use axum::{
    Extension,
    body::Bytes,
    extract::{FromRequest, FromRequestParts as _, Request, rejection::BytesRejection},
    http::{HeaderMap, Method, Uri},
};
use serde::de::DeserializeOwned;
use utoipa::{
    IntoParams,
    openapi::schema::{Object, ObjectBuilder, Type},
};
use wavry_credentials::audit::Action;
use wavry_proto::token::{Operator, OperatorRole};

use crate::{
    api::{Api, parse},
    audited::Asked,
    channel::Channel,
    once::{self, MAX_KEY},
    problem::Refusal,
    store::{Once, Order},
};

/// What a route is given, but for the path's parameters.
pub(super) struct Asking {
    api: Arc<Api>,
    asked: Arc<Asked>,
    channel: Arc<Channel>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
}

/// A key with which a request is carried out once, however often it is sent.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "it describes a header")]
pub(super) struct OnceKey {
    /// A string in double quotes (RFC 8941), such as one with a UUID in it: who sends the same request with
    /// the same key again, within a day, has it carried out no second time, and gets what came of it.
    #[param(rename = "Idempotency-Key", schema_with = quoted)]
    key: Option<String>,
}

fn quoted() -> Object {
    let pattern = format!(r#"^"[ !#-\[\]-~]{{1,{MAX_KEY}}}"$"#);
    let text = ObjectBuilder::new().schema_type(Type::String);
    text.pattern(Some(pattern)).build()
}

impl FromRequest<Arc<Api>> for Asking {
    type Rejection = Refusal;

    async fn from_request(request: Request, api: &Arc<Api>) -> Result<Self, Refusal> {
        let (mut parts, body) = request.into_parts();
        // Whatever serves this route puts them there.
        let missing = || Refusal::NotFound;
        let asked = Extension::<Arc<Asked>>::from_request_parts(&mut parts, api).await;
        let channel = Extension::<Arc<Channel>>::from_request_parts(&mut parts, api).await;
        let (method, uri, headers) = (
            parts.method.clone(),
            parts.uri.clone(),
            parts.headers.clone(),
        );
        Ok(Self {
            api: api.clone(),
            asked: asked.map_err(|_| missing())?.0,
            channel: channel.map_err(|_| missing())?.0,
            method,
            uri,
            headers,
            body: Bytes::from_request(Request::from_parts(parts, body), api).await,
        })
    }
}

impl Asking {
    /// The operator who asks, if their role reaches as far as `needed`.
    pub(super) async fn operator(&self, needed: OperatorRole) -> Result<Operator, Refusal> {
        self.api.operator(&self.headers, &self.asked, needed).await
    }

    /// The body, which is a JSON object.
    pub(super) fn body<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        parse(&self.body)
    }

    /// That an operator wants `subject` changed. Until that is done, or dropped, no other request with the
    /// same key is served here.
    pub(super) fn order(
        &self,
        operator: &Operator,
        action: Action,
        path: &str,
        subject: String,
    ) -> Result<Order, Refusal> {
        let mut event = self.asked.event(action, path, self.channel.peer);
        event.subject = subject;
        let target = self
            .uri
            .path_and_query()
            .map_or("", |target| target.as_str());
        let body = self.body.as_deref().unwrap_or_default();
        let request = [self.method.as_str().as_bytes(), target.as_bytes(), body];
        let once = once::key(&self.headers)?.map(|key| Once::new(&operator.sub, &key, request));
        let under_way = &self.api.under_way;
        let once = once.map(|once| once.begin(under_way)).transpose()?;
        Ok(Order { event, once })
    }
}
