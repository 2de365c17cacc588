//! What the master's key is to sign, put on record before anyone has it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use wavry_credentials::{
    audit::{
        Action, Event,
        file::{Error, Log},
    },
    cert::authority::is_name,
    clock::unix_time,
    random,
    signer::{self, SignError, Signer},
    token::{Scope, SigningKey},
};
use wavry_proto::{
    control::Role,
    id::{ClusterName, NodeId, ServiceName},
    placement::{MAX_NAMES, Placement},
    token::{Operator, OperatorRole, Registration, Session, Validity},
};

/// Name of the audit log of those who issue with the key at hand, in its seals.
pub const LOG: &str = "provision";

/// Puts on record what somebody with the key at hand, or at a vault, is about to sign. What cannot be put on
/// record is not issued.
pub struct Issuer {
    log: Log,
    actor: String,
}

impl Issuer {
    /// Writes what `actor` issues to `log`.
    pub fn new(log: Log, actor: String) -> Self {
        Self { log, actor }
    }

    /// A token with which node `sub` can register once, within `ttl` from now. A relay may announce
    /// `services`, and stands where `placement` says.
    pub fn registration(
        &self,
        sub: NodeId,
        role: Role,
        services: Vec<ServiceName>,
        placement: Placement,
        ttl: Duration,
    ) -> Result<Issue, Error> {
        let path = format!("provision {}", role.as_str());
        let jti = self.on_record(sub.as_str(), path)?;
        Ok(Issue::Registration(Registration {
            jti,
            sub,
            role,
            services,
            placement,
            validity: validity(ttl),
        }))
    }

    /// A token with which client `sub` can open sessions to `service`, within `ttl` from now. The exit
    /// relay is handed `claims`. A newer token with the same `sid` extends sessions opened with it.
    pub fn session(
        &self,
        service: &ServiceName,
        sub: String,
        sid: Option<String>,
        claims: serde_json::Map<String, serde_json::Value>,
        ttl: Duration,
    ) -> Result<Issue, Error> {
        let jti = self.on_record(&sub, format!("token session {service}"))?;
        Ok(Issue::Session {
            service: service.clone(),
            claims: Session {
                jti,
                sub,
                sid,
                claims,
                validity: validity(ttl),
            },
        })
    }

    /// A token with which `sub` can work on the cluster as far as `role` reaches, within `ttl` from now.
    pub fn operator(&self, sub: String, role: OperatorRole, ttl: Duration) -> Result<Issue, Error> {
        let jti = self.on_record(&sub, format!("token operator {}", role.as_str()))?;
        Ok(Issue::Operator(Operator {
            jti,
            sub,
            role,
            validity: validity(ttl),
        }))
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

/// Whether a node of this role may have a certificate with these names; else what is wrong with them.
pub fn check_names(role: Role, names: &[String]) -> Result<(), &'static str> {
    match role {
        Role::Gateway | Role::Relay if names.is_empty() => Ok(()),
        Role::Gateway | Role::Relay => Err("are for a keyvault alone"),
        Role::KeyVault if !(1..=MAX_NAMES).contains(&names.len()) => {
            Err("of a keyvault must be 1 to 16")
        }
        Role::KeyVault if !names.iter().all(|name| is_name(name)) => {
            Err("must be DNS names or addresses, without port")
        }
        Role::KeyVault => Ok(()),
    }
}

/// What a token says that is to be signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Issue {
    /// For an operator.
    Operator(Operator),
    /// For a client.
    Session {
        /// The service it opens sessions to.
        service: ServiceName,
        /// The rest.
        claims: Session,
    },
    /// For a node, once.
    Registration(Registration),
}

impl Issue {
    /// Id of the token (`jti`).
    pub fn id(&self) -> &str {
        match self {
            Self::Operator(claims) => &claims.jti,
            Self::Session { claims, .. } => &claims.jti,
            Self::Registration(claims) => &claims.jti,
        }
    }

    /// Whom it is for (`sub`).
    pub fn subject(&self) -> &str {
        match self {
            Self::Operator(claims) => &claims.sub,
            Self::Session { claims, .. } => &claims.sub,
            Self::Registration(claims) => claims.sub.as_str(),
        }
    }

    /// When it holds.
    pub fn validity(&self) -> &Validity {
        match self {
            Self::Operator(claims) => &claims.validity,
            Self::Session { claims, .. } => &claims.validity,
            Self::Registration(claims) => &claims.validity,
        }
    }

    /// The token. One key makes one token of it, however often it signs (RFC 8032).
    pub async fn sign(
        &self,
        signer: &dyn Signer,
        cluster: &ClusterName,
    ) -> Result<String, SignError> {
        let scope = self.scope(cluster);
        match self {
            Self::Operator(claims) => signer::sign(signer, claims, scope).await,
            Self::Session { claims, .. } => signer::sign(signer, claims, scope).await,
            Self::Registration(claims) => signer::sign(signer, claims, scope).await,
        }
    }

    /// The same by a key at hand.
    pub fn sign_with(&self, key: &SigningKey, cluster: &ClusterName) -> String {
        let scope = self.scope(cluster);
        match self {
            Self::Operator(claims) => key.sign(claims, scope),
            Self::Session { claims, .. } => key.sign(claims, scope),
            Self::Registration(claims) => key.sign(claims, scope),
        }
    }

    fn scope<'a>(&'a self, cluster: &'a ClusterName) -> Scope<'a> {
        let audience = match self {
            Self::Session { service, .. } => service.as_str(),
            Self::Operator(_) | Self::Registration(_) => "master",
        };
        Scope {
            cluster,
            audience,
            binding: &[],
        }
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
