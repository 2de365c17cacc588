//! Certificates of nodes: how they get them, and what one that is shown is worth.

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::HeaderMap,
    routing::post,
};
use wavry_credentials::{
    audit::Action,
    cert::{NotVouchedFor, authority::Request},
};
use wavry_proto::{
    control::{CertificateRequest, IssuedCertificate},
    id::NodeId,
};

use super::{Api, identify, parse};
use crate::{
    audited::Asked,
    authority::{Demand, now},
    channel::Channel,
    metrics as names,
    problem::Refusal,
};

const CERTIFICATE: &str = "/v1/nodes/certificate";

pub(super) fn router() -> Router<Arc<Api>> {
    Router::new().route(CERTIFICATE, post(certify))
}

/// Issues a certificate to a node that proves by its identity who it is. It needs none for that.
async fn certify(
    State(api): State<Arc<Api>>,
    Extension(channel): Extension<Arc<Channel>>,
    Extension(asked): Extension<Arc<Asked>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<IssuedCertificate>, Refusal> {
    let issued = try_certify(&api, &channel, &asked, &headers, body).await;
    let outcome = issued.as_ref().map_or_else(Refusal::word, |_| "issued");
    metrics::counter!(names::NODE_CERTIFICATES, "outcome" => outcome).increment(1);
    issued.map(Json)
}

async fn try_certify(
    api: &Api,
    channel: &Channel,
    asked: &Asked,
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<IssuedCertificate, Refusal> {
    let (node, _) = identify(api, channel, asked, headers).await?;
    api.rates.of_certificate(&node)?;
    let CertificateRequest { request } = parse(&body)?;
    let request = Request::from_base64(&request);
    let request = request.map_err(|why| Refusal::Malformed(format!("request is {why}")))?;
    let event = asked.event(Action::Issue, CERTIFICATE, channel.peer);
    api.registry.certify(node, &request, event).await
}

/// Refuses `node` if it must show a certificate and shows none that holds, or if it shows another's.
pub(super) fn check(api: &Api, channel: &Channel, node: &NodeId) -> Result<(), Refusal> {
    let Some(demand) = api.registry.demand() else {
        return Ok(());
    };
    let shown = channel.member(api.registry.vouching(), now());
    let refusal = match &shown {
        Ok(member) if member.node == *node && api.registry.lists(member) => None,
        Ok(_) => Some(Refusal::CertificateForeign),
        Err(why) if demand == Demand::Required => Some(Refusal::Certificate(*why)),
        Err(_) => None,
    };
    let worth = match (&shown, &refusal) {
        (Ok(_), None) => "held",
        (Ok(_), Some(_)) => "foreign",
        (Err(NotVouchedFor::Missing), _) => "missing",
        (Err(NotVouchedFor::Time), _) => "time",
        (Err(NotVouchedFor::Authority), _) => "authority",
        (Err(NotVouchedFor::Name), _) => "name",
    };
    metrics::counter!(names::CERTIFICATES_SHOWN, "worth" => worth).increment(1);
    refusal.map_or(Ok(()), Err)
}
