//! Messages between nodes and the master, and the roster. JSON on the wire.
//!
//! A node registers in two steps over one TLS connection: it asks for a [`Challenge`], then sends
//! a [`Register`] whose signature covers context, token id, nonce and the connection's exporter
//! (RFC 9266), so that neither a token nor a signature is of use on another connection.

pub mod fleet;
pub mod lease;
mod nodes;

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

pub use self::nodes::Nodes;
use crate::{
    id::{ClusterName, Epoch, NodeId, PublicKey, ServiceName, SubjectDigest},
    placement::Placement,
};

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Terminates WebTransport and opens mesh sessions.
    Gateway,
    /// Takes mesh sessions and dials upstreams.
    Relay,
    /// Keeps secrets. It is listed for its certificate's sake, and has no part in the mesh.
    KeyVault,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Gateway, Self::Relay, Self::KeyVault];

    /// The role as it is written on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Relay => "relay",
            Self::KeyVault => "keyvault",
        }
    }

    /// The role that is written so.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == name)
    }

    /// Whether nodes of this role have connections with others, and packets under way.
    pub fn is_in_mesh(self) -> bool {
        self != Self::KeyVault
    }
}

/// Who may open a session to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Anyone.
    Public,
    /// Bearers of a session token for the service.
    #[default]
    Token,
}

/// How a client is told that a service's session is refused, once the service is known and the
/// page may connect to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RefuseWith {
    /// With the HTTP status. A page's script cannot see it.
    #[default]
    Status,
    /// With a session that is closed at once: code
    /// [`close_code::refused`](crate::session::close_code::refused), and a word for a reason.
    Close,
}

impl RefuseWith {
    /// Whether it is what a service has that says nothing about it.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A node as the roster lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Stable id.
    pub id: NodeId,
    /// What the node does.
    pub role: Role,
    /// Keys accepted for the node: one, or two while its identity rotates.
    pub keys: Vec<PublicKey>,
    /// Mesh UDP addresses, best first. A gateway that only dials has none.
    pub addresses: Vec<SocketAddr>,
    /// UDP addresses at which the node forwards packets of others, best first; none where it does not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub transit: Vec<SocketAddr>,
    /// Relays through which it is reached, where nobody reaches it at an address of its own; in no order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attached: Vec<NodeId>,
    /// Services the node is an exit for.
    pub services: Vec<ServiceName>,
    /// Which registration the keys come from. The number stays while the node's identity rotates, and is
    /// another once the node registers anew. 0 where it is not known.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub registration: u64,
    /// What leases of its flows are to say, and which of them hold.
    #[serde(default, skip_serializing_if = "lease::Terms::is_default")]
    pub leases: lease::Terms,
    /// Where it is, and how much it is to take.
    #[serde(default, skip_serializing_if = "Placement::is_default")]
    pub placement: Placement,
}

impl Node {
    /// Leases of its flows that were signed under a roster of an older epoch than this hold no more: they were
    /// revoked, or are those of who was registered under its name before.
    pub fn leases_since(&self) -> Epoch {
        Epoch(self.leases.since.max(self.registration))
    }

    /// Whether a connection whose peer proved to hold `key`, when the roster showed `registration` for the
    /// node, may go on. A key that the node rotated out opens no connection any more; those that it opened
    /// before end with their sessions.
    pub fn vouches_for(&self, key: &PublicKey, registration: u64) -> bool {
        self.keys.contains(key) || (registration != 0 && registration == self.registration)
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A service as the roster lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Name; the first path segment that routes to it.
    pub name: ServiceName,
    /// Hosts bound to this service: there the whole path belongs to it. Lower case, no port.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Who may connect.
    #[serde(default)]
    pub access: Access,
    /// Origins a browser may connect from (`https://app.example`), or `*` for any. A request
    /// without an origin does not come from a browser and is not held to this list.
    #[serde(default)]
    pub allowed_origins: Vec<String>,
    /// Most sessions at once on one gateway; `None` for no limit of its own.
    #[serde(default)]
    pub max_sessions: Option<u32>,
    /// How clients are told that a session is refused. Left out where it is the default, so that
    /// nodes that do not know it read the roster.
    #[serde(default, skip_serializing_if = "RefuseWith::is_default")]
    pub refuse_with: RefuseWith,
    /// Public keys of the service's owner, as PASERK `k4.public`, that sign session tokens for this
    /// service and for nothing else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
}

/// Session tokens of one subject that hold no more, although they have not expired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revocation {
    /// The service they are for; `None` for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    /// The subject, as a digest: the roster goes to every node, and who it is concerns few.
    pub subject: SubjectDigest,
    /// Those issued in this second since the Unix epoch, or before, hold no more. For a subject it
    /// only ever grows.
    pub through: u64,
}

/// The list of nodes, keys, addresses and services. Signed by the master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Roster {
    /// The cluster it is for.
    pub cluster: ClusterName,
    /// Grows with every change.
    pub epoch: Epoch,
    /// When it was signed, in seconds since the Unix epoch.
    pub issued_at: u64,
    /// Nodes, ordered by id.
    pub nodes: Nodes,
    /// Services, ordered by name.
    pub services: Vec<Service>,
    /// Public keys that sign session tokens, as PASERK `k4.public`.
    pub token_keys: Vec<String>,
    /// Public keys that sign rosters from this one on, as PASERK `k4.public`: who accepts this one
    /// trusts these and no others. Empty for those that were trusted before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roster_keys: Vec<String>,
    /// Session tokens that hold no more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revoked: Vec<Revocation>,
    /// Whose certificates masters and nodes show each other. Left out where there are none, so that nodes that
    /// do not know it read the roster.
    #[serde(default, skip_serializing_if = "Authorities::is_empty")]
    pub authorities: Authorities,
}

/// The authorities that sign the cluster's own certificates.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authorities {
    /// Those that are trusted, the one that signs first: X.509 (DER) in base64.
    pub trusted: Vec<String>,
    /// Those that are not, whoever said so before: SHA-256 of each certificate, as hexadecimal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revoked: Vec<String>,
}

impl Authorities {
    /// Whether there are none and never were.
    pub fn is_empty(&self) -> bool {
        self.trusted.is_empty() && self.revoked.is_empty()
    }
}

/// How far a roster vouches for the peer of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vouched {
    /// The key is the peer's.
    Wholly,
    /// The peer rotated the key out: the sessions that the connection has go on, and it takes no new ones.
    ForSessions,
    /// The peer is not listed, or registered anew: the connection is to be closed.
    Not,
}

impl Roster {
    /// A roster that lists nothing, which is what a node knows before it reached the master.
    pub fn empty(cluster: ClusterName) -> Self {
        Self {
            cluster,
            epoch: Epoch(0),
            issued_at: 0,
            nodes: Nodes::default(),
            services: Vec::new(),
            token_keys: Vec::new(),
            roster_keys: Vec::new(),
            revoked: Vec::new(),
            authorities: Authorities::default(),
        }
    }

    /// Whether it is [`Roster::empty`]: nothing is known, or what was known is too old to act on.
    pub fn is_empty(&self) -> bool {
        self.epoch == Epoch(0)
    }

    /// The node with this id.
    pub fn node(&self, id: &NodeId) -> Option<&Node> {
        self.nodes.by_id(id)
    }

    /// The relay that forwards packets of others at this address.
    pub fn relay_at(&self, address: &SocketAddr) -> Option<&Node> {
        self.nodes.by_transit(address)
    }

    /// What becomes of a connection whose peer proved to be `node` with `key`, when the roster showed
    /// `registration` for it.
    pub fn vouches(&self, node: &NodeId, key: &PublicKey, registration: u64) -> Vouched {
        match self.node(node) {
            Some(node) if node.keys.contains(key) => Vouched::Wholly,
            Some(node) if node.vouches_for(key, registration) => Vouched::ForSessions,
            _ => Vouched::Not,
        }
    }

    /// The node that holds this key.
    pub fn node_by_key(&self, key: &PublicKey) -> Option<&Node> {
        self.nodes.iter().find(|node| node.keys.contains(key))
    }

    /// The service with this name.
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services.iter().find(|s| s.name.as_str() == name)
    }

    /// The service that this host is bound to.
    pub fn service_by_host(&self, host: &str) -> Option<&Service> {
        self.services
            .iter()
            .find(|s| s.hosts.iter().any(|h| h.eq_ignore_ascii_case(host)))
    }

    /// Relays that are an exit for the service.
    pub fn exits<'a>(&'a self, service: &'a ServiceName) -> impl Iterator<Item = &'a Node> {
        self.nodes
            .iter()
            .filter(move |n| n.role == Role::Relay && n.services.contains(service))
    }
}

/// Answer to `POST /v1/nodes/challenge`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Challenge {
    /// 32 random bytes as hexadecimal, of use once, on this TLS connection only.
    pub nonce: String,
}

/// Body of `POST /v1/nodes/register`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Register {
    /// The registration token.
    pub token: String,
    /// Key the node will be known by.
    pub public_key: PublicKey,
    /// The challenge's nonce.
    pub nonce: String,
    /// Ed25519 signature over [`possession_message`], as hexadecimal.
    pub signature: String,
    /// Mesh UDP addresses at which the node can be reached.
    pub addresses: Vec<SocketAddr>,
    /// Services the node has upstreams for; each must be named by the token.
    pub services: Vec<ServiceName>,
}

/// Answer to `POST /v1/nodes/register`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registered {
    /// The node's id from now on.
    pub node_id: NodeId,
    /// The cluster it now belongs to.
    pub cluster: ClusterName,
    /// Keys that sign the roster, as PASERK `k4.public`: what the node trusts from now on.
    pub roster_keys: Vec<String>,
}

/// Body of `POST /v1/nodes/heartbeat`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heartbeat {
    /// Mesh UDP addresses at which the node can be reached now.
    pub addresses: Vec<SocketAddr>,
    /// UDP addresses at which it forwards packets of others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub transit: Vec<SocketAddr>,
    /// Relays at which it has a place, because nobody reaches it otherwise; at most [`MAX_ATTACHED`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attached: Vec<NodeId>,
    /// Services the node has upstreams for now.
    pub services: Vec<ServiceName>,
    /// Sessions live on the node.
    pub sessions: u64,
    /// Epoch of the roster the node acts on.
    pub epoch: Epoch,
    /// The node leaves: no new sessions should be sent to it.
    pub draining: bool,
    /// Version of the node's program; at most [`MAX_VERSION_LEN`] bytes.
    #[serde(default)]
    pub version: String,
}

/// Relays that a heartbeat may name.
pub const MAX_ATTACHED: usize = 8;

/// Longest version that a heartbeat may have, in bytes.
pub const MAX_VERSION_LEN: usize = 64;

/// Answer to `POST /v1/nodes/heartbeat`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heard {
    /// How long the node waits before its next heartbeat when nothing changes, in milliseconds.
    pub interval_ms: u64,
    /// What is to be done about the node's identity; only while its rotation is ordered or under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<IdentityTask>,
    /// Whether the master could sign what it lately had to, leases above all. Left out where it could.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub signs: bool,
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_true(value: &bool) -> bool {
    *value
}

/// What a node is to do about its identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IdentityTask {
    /// Make another and ask for it to be admitted: an operator wants it.
    Rotate,
    /// Show this one from now on: whoever may meet the node knows it.
    Show(PublicKey),
}

/// Body of `POST /v1/nodes/rotate`, whose bearer is the node's own token, by its present key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotate {
    /// Key that the node is to be known by, beside its present one.
    pub public_key: PublicKey,
    /// The challenge's nonce.
    pub nonce: String,
    /// Ed25519 signature over [`rotation_message`] by the present key, as hexadecimal.
    pub signature: String,
    /// The same by the new key.
    pub next_signature: String,
}

/// Answer to `POST /v1/nodes/rotate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotating {
    /// Rosters of this epoch, and later ones, list the new key.
    pub epoch: Epoch,
}

/// Body of `POST /v1/nodes/certificate`, whose bearer is the node's own token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateRequest {
    /// PKCS #10 (RFC 2986, DER) in base64, signed by the P-256 key that the certificate is for. What else it says
    /// is passed over: the master knows who the node is.
    pub request: String,
}

/// Answer to `POST /v1/nodes/certificate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuedCertificate {
    /// The certificate, and those between it and an authority of the roster's, in this order, as PEM.
    pub chain: String,
}

/// One key of `GET /.well-known/wavry/keys`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedKey {
    /// PASERK `k4.pid`, as it stands in the footer of what the key signs.
    pub kid: String,
    /// PASERK `k4.public`.
    pub paserk: String,
}

/// Every refusal of the master, as `application/problem+json` (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What kind of problem: [`Problem::URN`] and a word that programs can rely on.
    pub r#type: String,
    /// The kind in words.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// This case in words. Never holds what the request held.
    pub detail: String,
}

impl Problem {
    /// What every [`Problem::type`](Self#structfield.type) starts with.
    pub const URN: &'static str = "urn:wavry:problem:";
}

/// The bytes a node signs to prove that it holds its identity key: a context, then each part with
/// its length before it (eight bytes, little endian), so that no two inputs give the same bytes.
pub fn possession_message(token_id: &str, nonce: &str, exporter: &[u8]) -> Vec<u8> {
    let parts = [token_id.as_bytes(), nonce.as_bytes(), exporter];
    message("wavry registration v1", &parts)
}

/// The bytes that a node signs with its present key and with the next one to have that admitted; made in
/// the same way.
pub fn rotation_message(
    node: &NodeId,
    present: &PublicKey,
    next: &PublicKey,
    nonce: &str,
    exporter: &[u8],
) -> Vec<u8> {
    let parts = [
        node.as_str().as_bytes(),
        &present.0,
        &next.0,
        nonce.as_bytes(),
        exporter,
    ];
    message("wavry identity rotation v1", &parts)
}

fn message(context: &str, parts: &[&[u8]]) -> Vec<u8> {
    let mut message = context.as_bytes().to_vec();
    for part in parts {
        message.extend_from_slice(&(part.len() as u64).to_le_bytes());
        message.extend_from_slice(part);
    }
    message
}

/// Label of the TLS exporter that binds a request to its connection (RFC 9266, section 4.2).
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-Channel-Binding";
/// Length of the exporter in bytes (RFC 9266, section 4.2).
pub const EXPORTER_LEN: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name() -> impl Strategy<Value = String> {
        "[a-z]([a-z0-9-]{0,20}[a-z0-9])?"
    }

    prop_compose! {
        fn node()(
            id in name(),
            role in prop::sample::select(&Role::ALL[..]),
            keys in prop::collection::vec(any::<[u8; 32]>(), 0..3),
            addresses in prop::collection::vec(any::<SocketAddr>(), 0..3),
            transit in prop::collection::vec(any::<SocketAddr>(), 0..3),
            attached in prop::collection::vec(name(), 0..3),
            services in prop::collection::vec(name(), 0..3),
            registration: u64,
            leases in (any::<u64>(), any::<Option<u64>>(), any::<Option<u64>>()),
            region in prop::option::of(name()),
            weight in 1u16..=1000,
            names in prop::collection::vec(name(), 0..3),
        ) -> Node {
            Node {
                id: id.parse().unwrap(),
                role,
                keys: keys.into_iter().map(PublicKey).collect(),
                // Flow label and scope have no meaning between hosts and no place in the text.
                addresses: addresses
                    .into_iter()
                    .map(|a| SocketAddr::new(a.ip(), a.port()))
                    .collect(),
                transit: transit
                    .into_iter()
                    .map(|a| SocketAddr::new(a.ip(), a.port()))
                    .collect(),
                attached: attached.iter().map(|relay| relay.parse().unwrap()).collect(),
                services: services.iter().map(|s| s.parse().unwrap()).collect(),
                registration,
                leases: lease::Terms {
                    since: leases.0,
                    bits_per_second: leases.1,
                    packets_per_second: leases.2,
                },
                placement: Placement {
                    region: region.map(|region| region.parse().unwrap()),
                    weight: weight.try_into().unwrap(),
                    names,
                },
            }
        }
    }

    proptest! {
        #[test]
        fn a_roster_survives_its_text(
            cluster in name(),
            epoch: u64,
            issued_at: u64,
            nodes in prop::collection::vec(node(), 0..4),
            service in name(),
            max_sessions: Option<u32>,
            closes: bool,
            revoked in prop::collection::vec((any::<bool>(), any::<[u8; 16]>(), any::<u64>()), 0..3),
        ) {
            let roster = Roster {
                epoch: Epoch(epoch),
                issued_at,
                nodes: nodes.into(),
                services: vec![Service {
                    name: service.parse().unwrap(),
                    hosts: vec!["app.example".to_owned()],
                    access: Access::Public,
                    allowed_origins: vec!["*".to_owned()],
                    max_sessions,
                    refuse_with: if closes { RefuseWith::Close } else { RefuseWith::Status },
                    keys: if closes { vec!["k4.public.x".to_owned()] } else { Vec::new() },
                }],
                revoked: revoked
                    .into_iter()
                    .map(|(everywhere, subject, through)| Revocation {
                        service: (!everywhere).then(|| "echo".parse().unwrap()),
                        subject: SubjectDigest(subject),
                        through,
                    })
                    .collect(),
                ..Roster::empty(cluster.parse().unwrap())
            };
            let text = serde_json::to_vec(&roster).unwrap();
            prop_assert_eq!(serde_json::from_slice::<Roster>(&text).unwrap(), roster);
        }

        #[test]
        fn arbitrary_bytes_are_messages_or_errors(bytes: Vec<u8>) {
            let _ = serde_json::from_slice::<Roster>(&bytes);
            let _ = serde_json::from_slice::<Register>(&bytes);
            let _ = serde_json::from_slice::<Heartbeat>(&bytes);
            let _ = serde_json::from_slice::<Heard>(&bytes);
            let _ = serde_json::from_slice::<Rotate>(&bytes);
            let _ = serde_json::from_slice::<Problem>(&bytes);
        }

        #[test]
        fn no_two_inputs_give_the_same_possession_message(
            a: (String, String, Vec<u8>),
            b: (String, String, Vec<u8>),
        ) {
            let message = |x: &(String, String, Vec<u8>)| possession_message(&x.0, &x.1, &x.2);
            prop_assert_eq!(message(&a) == message(&b), a == b);
        }
    }

    #[test]
    fn a_possession_message_keeps_its_parts_apart() {
        assert_ne!(
            possession_message("ab", "c", b""),
            possession_message("a", "bc", b"")
        );
        assert_ne!(
            possession_message("a", "b", b""),
            possession_message("a", "", b"b")
        );
    }

    #[test]
    fn a_rotation_message_is_of_one_node_from_one_key_to_one_on_one_connection() {
        let [a, b]: [NodeId; 2] = ["a", "b"].map(|id| id.parse().unwrap());
        let [one, two] = [PublicKey([1; 32]), PublicKey([2; 32])];
        let signed = rotation_message(&a, &one, &two, "n", b"x");
        for other in [
            rotation_message(&b, &one, &two, "n", b"x"),
            rotation_message(&a, &two, &one, "n", b"x"),
            rotation_message(&a, &one, &two, "m", b"x"),
            rotation_message(&a, &one, &two, "n", b"y"),
            rotation_message(&a, &one, &two, "nx", b""),
        ] {
            assert_ne!(signed, other);
        }
    }

    #[test]
    fn a_node_vouches_for_listed_keys_and_for_what_they_opened_until_it_registers_anew() {
        let [listed, rotated] = [PublicKey([1; 32]), PublicKey([2; 32])];
        let mut node = Node {
            id: "a".parse().unwrap(),
            role: Role::Relay,
            keys: vec![listed],
            addresses: Vec::new(),
            transit: Vec::new(),
            attached: Vec::new(),
            services: Vec::new(),
            registration: 7,
            leases: Default::default(),
            placement: Placement::default(),
        };
        assert!(node.vouches_for(&listed, 7) && node.vouches_for(&listed, 6));
        assert!(node.vouches_for(&rotated, 7) && !node.vouches_for(&rotated, 6));
        node.registration = 0;
        assert!(node.vouches_for(&listed, 0) && !node.vouches_for(&rotated, 0));
    }

    #[test]
    fn what_is_to_be_done_about_an_identity_survives_its_text_and_is_silent_when_it_is_nothing() {
        let key = PublicKey([7; 32]);
        for identity in [
            None,
            Some(IdentityTask::Rotate),
            Some(IdentityTask::Show(key)),
        ] {
            let heard = Heard {
                interval_ms: 1,
                identity,
                signs: identity.is_none(),
            };
            let text = serde_json::to_string(&heard).unwrap();
            assert_eq!(text.contains("signs"), !heard.signs, "{text}");
            assert_eq!(text.contains("identity"), identity.is_some(), "{text}");
            assert_eq!(serde_json::from_str::<Heard>(&text).unwrap(), heard);
        }
    }

    #[test]
    fn a_service_that_says_nothing_of_its_refusals_reads_as_it_always_did() {
        let text = r#"{"name":"echo","hosts":[],"access":"token","allowed_origins":[],"max_sessions":null}"#;
        let mut service: Service = serde_json::from_str(text).unwrap();
        assert_eq!(service.refuse_with, RefuseWith::Status);
        assert_eq!(serde_json::to_string(&service).unwrap(), text);
        service.refuse_with = RefuseWith::Close;
        let text = serde_json::to_string(&service).unwrap();
        assert!(text.contains(r#""refuse_with":"close""#), "{text}");
    }

    #[test]
    fn a_message_with_a_field_nobody_knows_is_refused() {
        let text = r#"{"nonce":"00","extra":1}"#;
        assert!(serde_json::from_str::<Challenge>(text).is_err());
    }
}
