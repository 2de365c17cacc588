//! Makes the tokens that the master's key signs.

use std::time::Duration;

use wavry_credentials::{
    random,
    token::{Scope, SigningKey},
};
use wavry_proto::{
    control::Role,
    id::{ClusterName, NodeId, ServiceName},
    token::{Registration, Session, Validity},
};

use crate::registry::unix_time;

/// A token with which node `sub` can register once, within `ttl` from now. A relay may announce
/// `services`.
pub fn registration_token(
    key: &SigningKey,
    cluster: &ClusterName,
    sub: NodeId,
    role: Role,
    services: Vec<ServiceName>,
    ttl: Duration,
) -> String {
    let claims = Registration {
        jti: token_id(),
        sub,
        role,
        services,
        validity: validity(ttl),
    };
    let scope = Scope {
        cluster,
        audience: "master",
        binding: &[],
    };
    key.sign(&claims, scope)
}

/// A token with which client `sub` can open sessions to `service`, within `ttl` from now. The exit
/// relay is handed `claims`.
pub fn session_token(
    key: &SigningKey,
    cluster: &ClusterName,
    service: &ServiceName,
    sub: String,
    claims: serde_json::Map<String, serde_json::Value>,
    ttl: Duration,
) -> String {
    let claims = Session {
        jti: token_id(),
        sub,
        claims,
        validity: validity(ttl),
    };
    let scope = Scope {
        cluster,
        audience: service.as_str(),
        binding: &[],
    };
    key.sign(&claims, scope)
}

/// 128 random bits.
fn token_id() -> String {
    hex::encode(random::bytes::<16>())
}

fn validity(ttl: Duration) -> Validity {
    let now = unix_time();
    Validity {
        iat: now,
        nbf: now,
        exp: now.saturating_add(ttl.as_secs()),
    }
}
