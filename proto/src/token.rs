//! The outside of a PASETO token: its grammar, its purpose, its claims. No cryptography is here.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    control::{Role, Roster},
    id::{NodeId, ServiceName},
};

/// Longest token that somebody presents, in bytes.
pub const MAX_TOKEN_LEN: usize = 8 * 1024;
/// Longest signed roster, in bytes: some ten thousand nodes.
pub const MAX_ROSTER_LEN: usize = 4 * 1024 * 1024;

/// When a token holds, in seconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validity {
    /// Issued at.
    pub iat: u64,
    /// Not before.
    pub nbf: u64,
    /// Expires; the token is refused from this second on.
    pub exp: u64,
}

/// What a token says. Each purpose is its own type, so one cannot be taken for another.
pub trait Claims: Serialize + DeserializeOwned {
    /// Enters the implicit assertion: a token of one purpose does not verify as another.
    const PURPOSE: &'static str;
    /// Longest token of this purpose, in bytes; checked before anything is parsed.
    const MAX_LEN: usize = MAX_TOKEN_LEN;
    /// When the token holds; `None` for messages that have no expiry of their own.
    fn validity(&self) -> Option<&Validity>;
}

/// Lets a node register, once. Audience: `master`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Id of this token; accepted once.
    pub jti: String,
    /// Id the node will have.
    pub sub: NodeId,
    /// What the node may be.
    pub role: Role,
    /// Services a relay may announce.
    pub services: Vec<ServiceName>,
    /// When it holds.
    #[serde(flatten)]
    pub validity: Validity,
}

impl Claims for Registration {
    const PURPOSE: &'static str = "registration";
    fn validity(&self) -> Option<&Validity> {
        Some(&self.validity)
    }
}

/// Lets a client open sessions to one service. Audience: the service's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Id of this token.
    pub jti: String,
    /// Who the client is, in the service owner's words.
    pub sub: String,
    /// Further claims, handed to the exit relay as they are.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub claims: serde_json::Map<String, serde_json::Value>,
    /// When it holds.
    #[serde(flatten)]
    pub validity: Validity,
}

impl Claims for Session {
    const PURPOSE: &'static str = "session";
    fn validity(&self) -> Option<&Validity> {
        Some(&self.validity)
    }
}

/// A node's own word to the master, signed with its identity and bound to the TLS connection.
/// Audience: `master`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRequest {
    /// The node that speaks.
    pub sub: NodeId,
    /// When it holds: a minute at most.
    #[serde(flatten)]
    pub validity: Validity,
}

impl Claims for NodeRequest {
    const PURPOSE: &'static str = "node";
    fn validity(&self) -> Option<&Validity> {
        Some(&self.validity)
    }
}

/// The roster is signed like a token. Audience: `nodes`.
impl Claims for Roster {
    const PURPOSE: &'static str = "roster";
    const MAX_LEN: usize = MAX_ROSTER_LEN;
    fn validity(&self) -> Option<&Validity> {
        None
    }
}
