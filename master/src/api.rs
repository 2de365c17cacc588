//! The routes: what each takes, checks and answers.

mod certificate;
mod fleet;
mod lease;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{
        DefaultBodyLimit, MatchedPath, Query, Request, State,
        rejection::{BytesRejection, FailedToBufferBody, QueryRejection},
    },
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, de::DeserializeOwned};
use tokio_util::sync::CancellationToken;
use wavry_credentials::{
    audit::{self, Action, Event},
    clock::unix_time,
    identity,
    redact::Place,
    token::{Rejected, Scope},
};
use wavry_proto::{
    control::{
        Challenge, Heard, Heartbeat, MAX_ATTACHED, MAX_VERSION_LEN, Register, Registered, Rotate,
        Rotating, possession_message, rotation_message,
    },
    id::{Epoch, NodeId, PublicKey},
    token::Registration,
};

use crate::{
    audited::{Asked, Strangers, Word, is_denial},
    channel::Channel,
    config::{Leases, Limits},
    metrics as names,
    once::UnderWay,
    operate,
    presence::Report,
    problem::Refusal,
    provision,
    rate::{Rate, network},
    registry::Registry,
    store::{self, Admission, Announcement},
};

/// Longest body accepted, in bytes: a registration token and some hundred names and addresses.
pub(crate) const MAX_BODY: usize = 64 * 1024;
/// The header of an answer that has the request's id, as the audit log does.
const REQUEST_ID: &str = "x-request-id";
/// Mesh addresses a node may have.
const MAX_ADDRESSES: usize = 16;

const CHALLENGE: &str = "/v1/nodes/challenge";
const REGISTER: &str = "/v1/nodes/register";
const ROTATE: &str = "/v1/nodes/rotate";
const HEARTBEAT: &str = "/v1/nodes/heartbeat";
const ROSTER: &str = "/v1/roster";
const KEYS: &str = "/.well-known/wavry/keys";
const SUCCESSION: &str = "/.well-known/wavry/succession";

/// What the routes work with.
pub(crate) struct Api {
    pub(crate) registry: Registry,
    pub(crate) under_way: UnderWay,
    pub(crate) audit_key: Arc<audit::Key>,
    pub(crate) strangers: Strangers,
    pub(crate) rates: Rates,
    pub(crate) leases: Leases,
    pub(crate) heartbeat_interval: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) poll_timeout: Duration,
    pub(crate) leaving: CancellationToken,
}

/// How often operators may ask, of whom several may have one address, nodes register, and ask for leases.
pub(crate) struct Rates {
    operators: Rate<String>,
    addresses: Rate<IpAddr>,
    registrations: Rate<()>,
    registrations_at_address: Rate<IpAddr>,
    leases: Rate<NodeId>,
    certificates: Rate<NodeId>,
}

/// Operators that one address has at least.
const OPERATORS_AT_ADDRESS: u32 = 4;
/// Certificates a second that one node may have: it needs one in days, and some more if it is started often.
const CERTIFICATES_OF_NODE: u32 = 1;
/// The part of all registrations that one address may have.
const REGISTRATIONS_AT_ADDRESS: u32 = 5;

impl Rates {
    pub(crate) fn new(limits: &Limits) -> Self {
        let (operators, registrations) = (limits.operator_rate, limits.registration_rate);
        Self {
            operators: Rate::new(operators),
            addresses: Rate::new(operators.saturating_mul(OPERATORS_AT_ADDRESS)),
            registrations: Rate::new(registrations),
            registrations_at_address: Rate::new(registrations / REGISTRATIONS_AT_ADDRESS),
            leases: Rate::new(limits.lease_rate),
            certificates: Rate::new(CERTIFICATES_OF_NODE),
        }
    }

    /// Counts a request of an address, whoever it turns out to be of.
    pub(crate) fn of_address(&self, address: IpAddr) -> Result<(), Refusal> {
        let admitted = self.addresses.admit(network(address), Instant::now());
        admitted.map_err(Refusal::TooManyRequests)
    }

    /// Counts an attempt of an address to register.
    fn of_attempt(&self, address: IpAddr) -> Result<(), Refusal> {
        let attempts = &self.registrations_at_address;
        let admitted = attempts.admit(network(address), Instant::now());
        admitted.map_err(Refusal::TooManyRegistrations)
    }

    /// Counts a registration whose token holds: who has none, from however many addresses, holds up nobody.
    fn of_registration(&self) -> Result<(), Refusal> {
        let admitted = self.registrations.admit((), Instant::now());
        admitted.map_err(Refusal::TooManyRegistrations)
    }

    /// Counts a request of a node for leases.
    fn of_leases(&self, node: &NodeId, now: Instant) -> Result<(), Refusal> {
        let admitted = self.leases.admit(node.clone(), now);
        admitted.map_err(Refusal::TooManyRequests)
    }

    /// Counts a certificate that a node asks for.
    fn of_certificate(&self, node: &NodeId) -> Result<(), Refusal> {
        let admitted = self.certificates.admit(node.clone(), Instant::now());
        admitted.map_err(Refusal::TooManyRequests)
    }

    /// Counts a request of an operator.
    pub(crate) fn of_operator(&self, subject: &str) -> Result<(), Refusal> {
        let admitted = self.operators.admit(subject.to_owned(), Instant::now());
        admitted.map_err(Refusal::TooManyRequests)
    }
}

/// All routes. A request must carry its connection's [`Channel`] as an extension.
pub(crate) fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route(CHALLENGE, post(challenge))
        .route(REGISTER, post(register))
        .route(HEARTBEAT, post(heartbeat))
        .route(ROTATE, post(rotate))
        .route(ROSTER, get(roster))
        .route(KEYS, get(keys))
        .route(SUCCESSION, get(succession))
        .merge(certificate::router())
        .merge(fleet::router())
        .merge(lease::router())
        .merge(operate::router())
        .fallback(async || Refusal::NotFound)
        .method_not_allowed_fallback(async || Refusal::MethodNotAllowed)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(api.clone(), observe))
        .with_state(api)
}

/// Gives every request an id and a deadline, counts it, and puts it on record if it is denied.
async fn observe(
    State(api): State<Arc<Api>>,
    Extension(channel): Extension<Arc<Channel>>,
    mut request: Request,
    next: Next,
) -> Response {
    let asked = Arc::new(Asked::new(channel.peer.ip()));
    request.extensions_mut().insert(asked.clone());
    // The route and not the path, so that the label's values are few.
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "other".to_owned(), |path| path.as_str().to_owned());
    let mut response = match tokio::time::timeout(api.request_timeout, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Refusal::Timeout.into_response(),
    };
    let word = response.extensions().get::<Word>();
    let outcome = word.map_or("", |word| word.0);
    if is_denial(response.status(), outcome) {
        let event = asked.event(Action::Deny, &route, channel.peer);
        if let Err(refusal) = record_denial(&api, event, outcome).await {
            response = refusal.into_response();
        }
    }
    let id = HeaderValue::try_from(&asked.id).expect("hexadecimal is a header value");
    response.headers_mut().insert(REQUEST_ID, id);
    let status = response.status().as_str().to_owned();
    metrics::counter!(names::REQUESTS, "route" => route, "status" => status).increment(1);
    response
}

/// Writes a denial, unless strangers had too many written of late.
async fn record_denial(api: &Api, mut event: Event, outcome: &str) -> Result<(), Refusal> {
    event.outcome = outcome.to_owned();
    if event.subject.is_empty() {
        let Some(unwritten) = api.strangers.admit(Instant::now()) else {
            metrics::counter!(names::AUDIT_UNWRITTEN, "reason" => "strangers").increment(1);
            return Ok(());
        };
        event.unwritten = unwritten;
    }
    api.registry.audit(event).await
}

async fn challenge(Extension(channel): Extension<Arc<Channel>>) -> Json<Challenge> {
    Json(Challenge {
        nonce: channel.challenge(Instant::now()),
    })
}

async fn register(
    State(api): State<Arc<Api>>,
    Extension(channel): Extension<Arc<Channel>>,
    Extension(asked): Extension<Arc<Asked>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    let outcome = try_register(&api, &channel, &asked, body).await;
    let label = outcome
        .as_ref()
        .map_or_else(Refusal::word, |_| "registered");
    metrics::counter!(names::REGISTRATIONS, "outcome" => label).increment(1);
    match &outcome {
        Ok(registered) => {
            tracing::info!(node = %registered.node_id, peer = %channel.peer, "node registered");
        }
        Err(_) => {
            tracing::warn!(outcome = label, peer = %channel.peer, "registration refused");
        }
    }
    Ok((StatusCode::CREATED, Json(outcome?)).into_response())
}

async fn try_register(
    api: &Api,
    channel: &Channel,
    asked: &Asked,
    body: Result<Bytes, BytesRejection>,
) -> Result<Registered, Refusal> {
    api.rates.of_attempt(asked.address)?;
    let request: Register = parse(&body)?;
    let now = unix_time();
    // Taken first: whatever else is wrong, a nonce serves one attempt.
    let nonce_is_good = channel.take(&request.nonce, Instant::now());
    let scope = Scope {
        cluster: api.registry.cluster(),
        audience: "master",
        binding: &[],
    };
    let verify = |token: &str| api.registry.ring().accepted.verify(token, scope, now);
    let token: Registration = match verify(&request.token) {
        // The key may be one that another master made a moment ago.
        Err(Rejected::UnknownKey) => {
            api.registry.catch_up().await?;
            verify(&request.token)?
        }
        verified => verified?,
    };
    let _ = asked.who.set(token.sub.to_string());
    let _ = asked.secret.set(api.audit_key.identifier(&token.jti));
    api.rates.of_registration()?;
    if !nonce_is_good {
        return Err(Refusal::Nonce);
    }
    let signature = hex::decode(&request.signature)
        .map_err(|_| Refusal::Malformed("signature is not hexadecimal".to_owned()))?;
    let message = possession_message(&token.jti, &request.nonce, &channel.exporter);
    if !identity::verify(&request.public_key, &message, &signature) {
        return Err(Refusal::Possession);
    }
    if let Some(service) = request
        .services
        .iter()
        .find(|service| !token.services.contains(service))
    {
        return Err(Refusal::ServiceNotAllowed(service.clone()));
    }
    provision::check_names(token.role, &token.placement.names)
        .map_err(|why| Refusal::Malformed(format!("the token's names {why}")))?;
    let admission = Admission {
        jti: token.jti,
        issued_at: token.validity.iat,
        expires_at: token.validity.exp,
        node: token.sub.clone(),
        role: token.role,
        granted: token.services,
        placement: token.placement,
        key: request.public_key,
        announcement: Announcement {
            addresses: usable(request.addresses, asked.address)?,
            transit: Vec::new(),
            attached: Vec::new(),
            services: request.services,
            draining: false,
        },
        event: asked.event(Action::Register, REGISTER, channel.peer),
    };
    api.registry.register(admission, now).await?;
    Ok(Registered {
        node_id: token.sub,
        cluster: api.registry.cluster().clone(),
        roster_keys: api.registry.ring().roster.clone(),
    })
}

async fn heartbeat(
    State(api): State<Arc<Api>>,
    Extension(channel): Extension<Arc<Channel>>,
    Extension(asked): Extension<Arc<Asked>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Heard>, Refusal> {
    let (node, key) = authenticate(&api, &channel, &asked, &headers).await?;
    let request: Heartbeat = parse(&body)?;
    let epoch = api.registry.published().borrow().roster.epoch;
    if request.epoch > epoch {
        tracing::warn!(
            %node, theirs = %request.epoch, ours = %epoch,
            "a node acts on a newer roster than the registry has; was an old database restored?"
        );
    }
    let said = Announcement {
        addresses: usable(request.addresses, asked.address)?,
        transit: usable(request.transit, asked.address)?,
        attached: attached(request.attached)?,
        services: request.services,
        draining: request.draining,
    };
    if request.version.len() > MAX_VERSION_LEN {
        return Err(Refusal::Malformed("the version is too long".to_owned()));
    }
    let report = Report {
        sessions: request.sessions,
        epoch: request.epoch,
        version: request.version,
        seen_from: Some(channel.peer.ip().to_canonical()),
    };
    api.registry.heartbeat(node.clone(), said, report).await?;
    Ok(Json(Heard {
        interval_ms: u64::try_from(api.heartbeat_interval.as_millis()).unwrap_or(u64::MAX),
        identity: api.registry.identity_task(&node, key).await?,
        signs: api.registry.signs(),
    }))
}

/// Admits the next identity of a node that proves to hold it and the present one.
async fn rotate(
    State(api): State<Arc<Api>>,
    Extension(channel): Extension<Arc<Channel>>,
    Extension(asked): Extension<Arc<Asked>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Rotating>, Refusal> {
    let (node, present) = authenticate(&api, &channel, &asked, &headers).await?;
    let request: Rotate = parse(&body)?;
    if !channel.take(&request.nonce, Instant::now()) {
        return Err(Refusal::Nonce);
    }
    let next = request.public_key;
    let message = rotation_message(&node, &present, &next, &request.nonce, &channel.exporter);
    let signature = |text: &str| {
        let expected = || Refusal::Malformed("a signature is not hexadecimal".to_owned());
        hex::decode(text).map_err(|_| expected())
    };
    if !identity::verify(&present, &message, &signature(&request.signature)?) {
        return Err(Refusal::PresentKey);
    }
    if !identity::verify(&next, &message, &signature(&request.next_signature)?) {
        return Err(Refusal::Possession);
    }
    let event = asked.event(Action::Rotate, ROTATE, channel.peer);
    let keys = (present, next);
    api.registry.admit_identity(node, keys, event).await?;
    Ok(Json(Rotating {
        epoch: api.registry.published().borrow().roster.epoch,
    }))
}

#[derive(Deserialize)]
struct After {
    after: Option<u64>,
}

/// Answers once there is a roster newer than `after`, or with 204 when there was none in time (304
/// where the client showed the entity tag it holds).
async fn roster(
    State(api): State<Arc<Api>>,
    Extension(channel): Extension<Arc<Channel>>,
    Extension(asked): Extension<Arc<Asked>>,
    query: Result<Query<After>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let (node, _) = authenticate(&api, &channel, &asked, &headers).await?;
    let Query(After { after }) =
        query.map_err(|_| Refusal::Malformed("after is not an epoch".to_owned()))?;
    api.registry.catch_up().await?;
    // What was answered to anybody before is in it.
    let least = api.registry.published().borrow().roster.epoch;
    let mut signed = api.registry.signed();
    let newer = signed.wait_for(|signed| {
        signed.epoch >= least && after.is_none_or(|after| signed.epoch > Epoch(after))
    });
    let answer = tokio::select! {
        biased;
        newer = newer => newer.ok().map(|current| current.clone()),
        () = tokio::time::sleep(api.poll_timeout) => None,
        () = api.leaving.cancelled() => return Err(Refusal::Leaving),
        () = api.registry.behind() => return Err(Refusal::Behind(store::Error::TooSlow)),
        () = api.registry.mute() => return Err(Refusal::RosterNotSigned),
    };
    let Some(current) = answer else {
        let current = entity_tag(api.registry.signed().borrow().epoch);
        let status = match headers.get(header::IF_NONE_MATCH) {
            Some(held) if *held == current => StatusCode::NOT_MODIFIED,
            _ => StatusCode::NO_CONTENT,
        };
        return Ok((status, [(header::ETAG, current)]).into_response());
    };
    // Revoked while it waited.
    let published = api.registry.published();
    if published.borrow().roster.node(&node).is_none() {
        return Err(Refusal::UnknownNode);
    }
    let headers = [
        (header::ETAG, entity_tag(current.epoch)),
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        ),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    Ok((headers, current.token).into_response())
}

async fn keys(State(api): State<Arc<Api>>) -> Response {
    let cache = [(
        header::CACHE_CONTROL,
        HeaderValue::from_static("max-age=60"),
    )];
    (cache, Json(&api.registry.ring().published)).into_response()
}

async fn succession(State(api): State<Arc<Api>>) -> Result<Json<Vec<String>>, Refusal> {
    Ok(Json(api.registry.succession().await?))
}

fn entity_tag(epoch: Epoch) -> HeaderValue {
    HeaderValue::try_from(format!("\"{epoch}\"")).expect("digits in quotes are a header value")
}

async fn authenticate(
    api: &Api,
    channel: &Channel,
    asked: &Asked,
    headers: &HeaderMap,
) -> Result<(NodeId, PublicKey), Refusal> {
    let (node, key) = identify(api, channel, asked, headers).await?;
    certificate::check(api, channel, &node)?;
    Ok((node, key))
}

/// The node that a request is of, by its identity alone.
async fn identify(
    api: &Api,
    channel: &Channel,
    asked: &Asked,
    headers: &HeaderMap,
) -> Result<(NodeId, PublicKey), Refusal> {
    let token = bearer(headers)?;
    let (node, key) = api
        .registry
        .authenticate(token, &channel.exporter, unix_time())
        .await?;
    let _ = asked.who.set(node.to_string());
    Ok((node, key))
}

/// The token of an `authorization: Bearer TOKEN` header.
pub(crate) fn bearer(headers: &HeaderMap) -> Result<&str, Refusal> {
    headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .ok_or(Refusal::TokenMissing)
}

/// Reads a JSON object.
pub(crate) fn parse<T: DeserializeOwned>(
    body: &Result<Bytes, BytesRejection>,
) -> Result<T, Refusal> {
    let body = body.as_ref().map_err(|rejection| match rejection {
        BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) => {
            Refusal::BodyTooLarge
        }
        _ => Refusal::Malformed("the body ended early".to_owned()),
    })?;
    // A list would be read as an object's fields in order, and an empty one as an object of defaults.
    if body.trim_ascii_start().first() != Some(&b'{') {
        let expected = "the body is not a JSON object";
        return Err(Refusal::Malformed(expected.to_owned()));
    }
    serde_json::from_slice(body).map_err(|error| {
        let place = Place::from(&error);
        Refusal::Malformed(format!("the body is not what this path takes: {place}"))
    })
}

/// Addresses that a node can be reached at, in order, each once. Those that mean something else on each host
/// (loopback) or link (link-local) are for nodes that come from such an address themselves.
fn usable(addresses: Vec<SocketAddr>, from: IpAddr) -> Result<Vec<SocketAddr>, Refusal> {
    if addresses.len() > MAX_ADDRESSES {
        return Err(Refusal::Address(format!(
            "a node has at most {MAX_ADDRESSES} addresses"
        )));
    }
    let from = from.to_canonical();
    let mut usable = Vec::with_capacity(addresses.len());
    for address in addresses {
        let ip = address.ip().to_canonical();
        let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
        let is_elsewhere = match () {
            () if ip.is_loopback() => !from.is_loopback(),
            () if is_link_local(ip) => !from.is_loopback() && !is_link_local(from),
            () => false,
        };
        let is_none = ip.is_unspecified() || ip.is_multicast() || is_broadcast;
        if is_none || is_elsewhere || address.port() == 0 {
            return Err(Refusal::Address(format!(
                "{address} is not an address a node can be reached at"
            )));
        }
        let address = SocketAddr::new(ip, address.port());
        if !usable.contains(&address) {
            usable.push(address);
        }
    }
    Ok(usable)
}

/// Relays at which a node says that it has a place. Which of them are relays, the roster shows.
fn attached(mut relays: Vec<NodeId>) -> Result<Vec<NodeId>, Refusal> {
    if relays.len() > MAX_ATTACHED {
        let problem = format!("a node is attached to at most {MAX_ATTACHED} relays");
        return Err(Refusal::Malformed(problem));
    }
    relays.sort();
    relays.dedup();
    Ok(relays)
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn addresses_that_nobody_can_be_reached_at_are_refused() {
        for text in [
            "0.0.0.0:1",
            "[::]:1",
            "224.0.0.1:1",
            "[ff02::1]:1",
            "255.255.255.255:1",
            "[::ffff:0.0.0.0]:1",
            "127.0.0.1:0",
        ] {
            for from in ["127.0.0.1", "192.0.2.1", "fe80::1"] {
                let taken = usable(vec![text.parse().unwrap()], from.parse().unwrap());
                assert!(taken.is_err(), "{text} was taken from {from}");
            }
        }
        let many = (1..=17).map(|port| SocketAddr::from(([10, 0, 0, 1], port)));
        assert!(usable(many.collect(), HERE).is_err());
    }

    #[test]
    fn an_address_of_a_host_or_link_is_taken_from_there_alone() {
        let takes = |text: &str, from: &str| {
            usable(vec![text.parse().unwrap()], from.parse().unwrap()).is_ok()
        };
        for text in [
            "127.0.0.1:1",
            "127.9.9.9:1",
            "[::1]:1",
            "[::ffff:127.0.0.1]:1",
        ] {
            for here in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
                assert!(takes(text, here), "{text} from {here}");
            }
            for elsewhere in ["192.0.2.1", "2001:db8::1", "169.254.0.1", "fe80::1"] {
                assert!(!takes(text, elsewhere), "{text} from {elsewhere}");
            }
        }
        for text in ["169.254.0.2:1", "[fe80::2]:1"] {
            assert!(takes(text, "169.254.0.1") && takes(text, "fe80::1") && takes(text, "::1"));
            assert!(
                !takes(text, "192.0.2.1") && !takes(text, "2001:db8::1"),
                "{text}"
            );
        }
        // Networks of one's own are networks.
        assert!(takes("10.0.0.1:1", "192.0.2.1") && takes("[fd00::1]:1", "192.0.2.1"));
    }

    #[test]
    fn an_address_has_a_fifth_of_the_registrations_and_all_have_ten_seconds_worth_at_once() {
        let rates = Rates::new(&Limits {
            registration_rate: 5,
            ..Limits::default()
        });
        let admitted = |address: &str| {
            let address = address.parse().unwrap();
            (0..100)
                .filter(|_| rates.of_attempt(address).is_ok())
                .count()
        };
        // A second may pass meanwhile.
        for address in ["192.0.2.1", "192.0.2.2", "2001:db8::1"] {
            assert!((10..=12).contains(&admitted(address)), "{address}");
        }
        assert!(admitted("2001:db8::2") <= 2, "it is the same network");
        let all = (0..100).filter(|_| rates.of_registration().is_ok()).count();
        assert!((50..=60).contains(&all), "{all}");
        let refused = rates.of_registration();
        assert!(matches!(refused, Err(Refusal::TooManyRegistrations(wait)) if !wait.is_zero()));
    }

    #[test]
    fn addresses_keep_their_order_and_come_once() {
        let [a, b]: [SocketAddr; 2] = ["10.0.0.2:1", "10.0.0.1:1"].map(|t| t.parse().unwrap());
        let mapped = "[::ffff:10.0.0.2]:1".parse().unwrap();
        assert_eq!(usable(vec![a, b, mapped], HERE).unwrap(), [a, b]);
    }
}
