//! Makes the tokens that the master's key signs, and puts each on record before anyone has it.

use std::time::Duration;

use wavry_credentials::{
    audit::{
        Action, Event,
        file::{Error, Log},
    },
    clock::unix_time,
    random,
    token::{Scope, SigningKey},
};
use wavry_proto::{
    control::Role,
    id::{ClusterName, NodeId, ServiceName},
    placement::Placement,
    token::{Operator, OperatorRole, Registration, Session, Validity},
};

/// Name of the audit log of those who issue with the key at hand, in its seals.
pub const LOG: &str = "provision";

/// Issues tokens. What cannot be put on record is not issued.
pub struct Issuer {
    key: SigningKey,
    cluster: ClusterName,
    log: Log,
    actor: String,
}

impl Issuer {
    /// Signs with `key` for `cluster`, and writes what `actor` issued to `log`.
    pub fn new(key: SigningKey, cluster: ClusterName, log: Log, actor: String) -> Self {
        Self {
            key,
            cluster,
            log,
            actor,
        }
    }

    /// A token with which node `sub` can register once, within `ttl` from now. A relay may announce
    /// `services`, and stands where `placement` says.
    pub fn registration_token(
        &self,
        sub: NodeId,
        role: Role,
        services: Vec<ServiceName>,
        placement: Placement,
        ttl: Duration,
    ) -> Result<String, Error> {
        let path = format!("provision {}", role.as_str());
        let jti = self.on_record(sub.as_str(), path)?;
        let claims = Registration {
            jti,
            sub,
            role,
            services,
            placement,
            validity: validity(ttl),
        };
        let scope = Scope {
            cluster: &self.cluster,
            audience: "master",
            binding: &[],
        };
        Ok(self.key.sign(&claims, scope))
    }

    /// A token with which client `sub` can open sessions to `service`, within `ttl` from now. The exit
    /// relay is handed `claims`. A newer token with the same `sid` extends sessions opened with it.
    pub fn session_token(
        &self,
        service: &ServiceName,
        sub: String,
        sid: Option<String>,
        claims: serde_json::Map<String, serde_json::Value>,
        ttl: Duration,
    ) -> Result<String, Error> {
        let jti = self.on_record(&sub, format!("token session {service}"))?;
        let claims = Session {
            jti,
            sub,
            sid,
            claims,
            validity: validity(ttl),
        };
        let scope = Scope {
            cluster: &self.cluster,
            audience: service.as_str(),
            binding: &[],
        };
        Ok(self.key.sign(&claims, scope))
    }

    /// A token with which `sub` can work on the cluster as far as `role` reaches, within `ttl` from now.
    pub fn operator_token(
        &self,
        sub: String,
        role: OperatorRole,
        ttl: Duration,
    ) -> Result<String, Error> {
        let jti = self.on_record(&sub, format!("token operator {}", role.as_str()))?;
        let claims = Operator {
            jti,
            sub,
            role,
            validity: validity(ttl),
        };
        let scope = Scope {
            cluster: &self.cluster,
            audience: "master",
            binding: &[],
        };
        Ok(self.key.sign(&claims, scope))
    }

    /// An id for a new token, 128 random bits, once it is on record.
    fn on_record(&self, subject: &str, path: String) -> Result<String, Error> {
        let jti = hex::encode(random::bytes::<16>());
        let mut event = Event::now(Action::Issue, subject, path);
        event.actor.clone_from(&self.actor);
        event.secret = Some(self.log.key().identifier(&jti));
        self.log.append(&event)?;
        Ok(jti)
    }
}

fn validity(ttl: Duration) -> Validity {
    let now = unix_time();
    Validity {
        iat: now,
        nbf: now,
        exp: now.saturating_add(ttl.as_secs()),
    }
}
