//! Every way the master says no, as `application/problem+json` (RFC 9457).

use std::time::Duration;

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use wavry_credentials::{cert::NotVouchedFor, redact, signer::SignError, token::Rejected};
use wavry_proto::{control::Problem, id::ServiceName, token::OperatorRole};

use crate::{
    audited::Word,
    authority,
    once::InFlight,
    store::{
        self, CertifyError, FleetError, HeartbeatError, MoveError, OnceError, RegisterError,
        RevokeError, RotateIdentityError, ServiceError, keys::RotateError,
    },
};

/// The word for a request whose idempotency key is another's, which is under way.
pub(crate) const KEY_UNDER_WAY: &str = "idempotency-key-under-way";

/// Why a request was refused. No variant holds what the request held, but for names that were
/// checked.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// There is nothing at this path.
    #[error("there is nothing at this path")]
    NotFound,
    /// The path does not take this method.
    #[error("this path does not take this method")]
    MethodNotAllowed,
    /// The body is not what the path takes.
    #[error("{0}")]
    Malformed(String),
    /// The body is too long.
    #[error("the body is longer than {} bytes", crate::api::MAX_BODY)]
    BodyTooLarge,
    /// The request took too long.
    #[error("the request took too long")]
    Timeout,
    /// No token.
    #[error("the request needs a bearer token")]
    TokenMissing,
    /// A token that does not hold.
    #[error("{0}")]
    Token(#[from] Rejected),
    /// The registration token served before.
    #[error("the registration token was used before; ask for a new one")]
    TokenUsed,
    /// The registration token may have been used before the database was made from a backup.
    #[error(
        "the registration token was issued before the registry was restored; ask for a new one"
    )]
    BeforeRestore,
    /// The nonce is not one of this connection's, or was used, or is too old.
    #[error("the nonce is not of this connection, was used, or is too old")]
    Nonce,
    /// The signature is not by the key over token, nonce and connection.
    #[error("possession of the key is not proved")]
    Possession,
    /// A service that the registration token does not name.
    #[error("the registration token does not name service {0}")]
    ServiceNotAllowed(ServiceName),
    /// An address no node can be reached at, or too many.
    #[error("{0}")]
    Address(String),
    /// Another node is known by the key.
    #[error("the key belongs to another node")]
    KeyInUse,
    /// The node was revoked after its registration token was issued.
    #[error("the node was revoked after the registration token was issued; ask for a new one")]
    NodeRevoked,
    /// The key is of a node that was revoked.
    #[error("the key was revoked; make a new one")]
    KeyRevoked,
    /// The key was rotated out.
    #[error("the key was rotated out; make a new one")]
    KeyRetired,
    /// The signature is not by the node's present key over the rotation and the connection.
    #[error("possession of the present key is not proved")]
    PresentKey,
    /// The key that asks is not the one that the node shows.
    #[error("only the node's present key can have another admitted")]
    KeyNotPresent,
    /// The node's identity is being rotated.
    #[error(
        "another identity was admitted and is not shown yet, or the one before is still accepted"
    )]
    IdentityUnderWay,
    /// The node that is spoken of is not registered.
    #[error("there is no such node")]
    NoSuchNode,
    /// The service that is spoken of is not there.
    #[error("there is no such service")]
    NoSuchService,
    /// The service is one of the configuration.
    #[error("the service is in the master's configuration, and is changed there")]
    ServiceConfigured,
    /// A host is bound to another service.
    #[error("{host} is bound to service {service}")]
    HostBound {
        /// The host.
        host: String,
        /// The other service.
        service: ServiceName,
    },
    /// No further service can be made.
    #[error("there are {} services already", store::MAX_SERVICES)]
    TooManyServices,
    /// A key is on its way already.
    #[error("a new key is published already, and signs in its turn")]
    RotationUnderWay,
    /// Another key began to sign meanwhile.
    #[error("another rotation was faster; look at the keys, and ask again if that was not yours")]
    RotationOvertaken,
    /// No further subject can be revoked.
    #[error("{} subjects are revoked already", store::MAX_REVOCATIONS)]
    TooManyRevocations,
    /// A request with the same idempotency key is being carried out.
    #[error("a request with this idempotency key is under way; ask again for its answer")]
    KeyUnderWay,
    /// Another request had the idempotency key.
    #[error("the idempotency key was used for another request; take a new one")]
    KeyReused,
    /// What came of too many requests is kept already; how long to wait.
    #[error(
        "the outcomes of {} requests with idempotency keys are kept for this operator already",
        store::MAX_KEPT
    )]
    TooManyKeys(Duration),
    /// This master signs no certificates.
    #[error("this master has no authority that signs certificates (master.authority)")]
    NoAuthority,
    /// The authority did not sign.
    #[error("the certificate could not be signed; the master's log says why")]
    NotCertified(#[source] authority::Error),
    /// The certificate of the connection is none that the node may show.
    #[error("nodes must show a certificate of this cluster: {0}")]
    Certificate(NotVouchedFor),
    /// The certificate of the connection is another node's, or of a registration that is over.
    #[error("the certificate is not of the node that asks, as it is registered now")]
    CertificateForeign,
    /// The node is no gateway.
    #[error("gateways alone share certificates")]
    NoGateway,
    /// Another gateway has taken the lease over.
    #[error("another gateway has taken the lease over")]
    FencePassed,
    /// The fleet keeps as much as it may.
    #[error("there are {} entries of the fleet already", store::MAX_ENTRIES)]
    TooManyEntries,
    /// The operator's role does not reach so far.
    #[error("this needs role {}", .0.as_str())]
    Role(OperatorRole),
    /// The node that speaks is not registered.
    #[error("the node is not registered here")]
    UnknownNode,
    /// It asks too often; how long to wait.
    #[error("there are too many requests of this operator, node or address")]
    TooManyRequests(Duration),
    /// There are too many registrations; how long to wait.
    #[error("there are too many registrations, of this address or at all")]
    TooManyRegistrations(Duration),
    /// The master is leaving.
    #[error("the master is shutting down")]
    Leaving,
    /// The request cannot be put on record, so it is not served.
    #[error("the audit log cannot be written; try again")]
    NotAudited(#[source] store::Error),
    /// What was decided could not be signed.
    #[error("the key that signs is in a vault that does not sign now; try again")]
    NotSigned(#[source] SignError),
    /// The newest roster could not be signed.
    #[error("the newest roster cannot be signed now; ask another master")]
    RosterNotSigned,
    /// What is asked for might be older than what another master has answered.
    #[error("this master cannot reach its database; ask another")]
    Behind(#[source] store::Error),
    /// It is not the request's fault.
    #[error("the master failed; its log says why")]
    Internal(#[source] store::Error),
}

impl Refusal {
    /// Status, the word at the end of the problem's type, and its title.
    fn kind(&self) -> (StatusCode, &'static str, &'static str) {
        use StatusCode as S;
        match self {
            Self::NotFound => (S::NOT_FOUND, "not-found", "Nothing here"),
            Self::MethodNotAllowed => (
                S::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "Method not allowed",
            ),
            Self::Malformed(_) => (S::BAD_REQUEST, "malformed-request", "Malformed request"),
            Self::BodyTooLarge => (S::PAYLOAD_TOO_LARGE, "body-too-large", "Body too large"),
            Self::Timeout => (S::REQUEST_TIMEOUT, "timeout", "Timed out"),
            Self::TokenMissing => (S::UNAUTHORIZED, "token-missing", "Token missing"),
            Self::Token(rejected) => {
                let (word, title) = match rejected {
                    Rejected::TooLong | Rejected::Malformed | Rejected::Claims => {
                        ("token-malformed", "Token malformed")
                    }
                    Rejected::UnknownKey => ("token-unknown-key", "Token signed by an unknown key"),
                    Rejected::Signature => ("token-not-verified", "Token does not verify"),
                    Rejected::NotYetValid => ("token-not-yet-valid", "Token not valid yet"),
                    Rejected::Expired => ("token-expired", "Token expired"),
                    Rejected::TooLasting => ("token-too-lasting", "Token lasts too long"),
                    Rejected::Revoked => ("token-revoked", "Token revoked"),
                };
                (S::UNAUTHORIZED, word, title)
            }
            Self::TokenUsed => (S::CONFLICT, "token-used", "Token used before"),
            Self::BeforeRestore => (
                S::FORBIDDEN,
                "token-before-restore",
                "Token issued before a restore",
            ),
            Self::Nonce => (S::FORBIDDEN, "nonce-not-accepted", "Nonce not accepted"),
            Self::Possession => (
                S::FORBIDDEN,
                "possession-not-proved",
                "Possession not proved",
            ),
            Self::ServiceNotAllowed(_) => {
                (S::FORBIDDEN, "service-not-allowed", "Service not allowed")
            }
            Self::Address(_) => (S::BAD_REQUEST, "address-not-usable", "Address not usable"),
            Self::KeyInUse => (S::CONFLICT, "key-in-use", "Key in use"),
            Self::NodeRevoked => (S::FORBIDDEN, "node-revoked", "Node revoked"),
            Self::KeyRevoked => (S::FORBIDDEN, "key-revoked", "Key revoked"),
            Self::KeyRetired => (S::FORBIDDEN, "key-retired", "Key rotated out"),
            Self::PresentKey => (
                S::FORBIDDEN,
                "present-key-not-proved",
                "Possession of the present key not proved",
            ),
            Self::KeyNotPresent => (S::FORBIDDEN, "key-not-present", "Key not the present one"),
            Self::IdentityUnderWay => (
                S::CONFLICT,
                "identity-rotation-under-way",
                "Identity being rotated",
            ),
            Self::NoSuchNode => (S::NOT_FOUND, "no-such-node", "No such node"),
            Self::NoSuchService => (S::NOT_FOUND, "no-such-service", "No such service"),
            Self::ServiceConfigured => (S::CONFLICT, "service-configured", "Service configured"),
            Self::HostBound { .. } => (S::CONFLICT, "host-bound", "Host bound"),
            Self::TooManyServices => (
                S::INSUFFICIENT_STORAGE,
                "too-many-services",
                "Too many services",
            ),
            Self::RotationUnderWay => (S::CONFLICT, "rotation-under-way", "Rotation under way"),
            Self::RotationOvertaken => (S::CONFLICT, "rotation-overtaken", "Rotation overtaken"),
            Self::TooManyRevocations => (
                S::INSUFFICIENT_STORAGE,
                "too-many-revocations",
                "Too many revocations",
            ),
            Self::KeyUnderWay => (S::CONFLICT, KEY_UNDER_WAY, "Request under way"),
            Self::KeyReused => (
                S::UNPROCESSABLE_ENTITY,
                "idempotency-key-reused",
                "Idempotency key used before",
            ),
            Self::TooManyKeys(_) => (
                S::TOO_MANY_REQUESTS,
                "too-many-idempotency-keys",
                "Too many idempotency keys",
            ),
            Self::NoAuthority => (S::NOT_FOUND, "no-authority", "No authority"),
            Self::NotCertified(_) => (
                S::INTERNAL_SERVER_ERROR,
                "not-certified",
                "Certificate not signed",
            ),
            Self::Certificate(_) => (
                S::FORBIDDEN,
                "certificate-required",
                "Client certificate required",
            ),
            Self::CertificateForeign => (
                S::FORBIDDEN,
                "certificate-foreign",
                "Client certificate of another",
            ),
            Self::NoGateway => (S::FORBIDDEN, "no-gateway", "Not a gateway"),
            Self::FencePassed => (S::CONFLICT, "fence-passed", "Lease taken over"),
            Self::TooManyEntries => (
                S::INSUFFICIENT_STORAGE,
                "too-many-entries",
                "Too many entries",
            ),
            Self::Role(_) => (S::FORBIDDEN, "role-not-sufficient", "Role not sufficient"),
            Self::UnknownNode => (S::UNAUTHORIZED, "node-unknown", "Node unknown"),
            Self::NotAudited(_) => (S::SERVICE_UNAVAILABLE, "not-audited", "Not on record"),
            Self::TooManyRegistrations(_) => (
                S::TOO_MANY_REQUESTS,
                "too-many-registrations",
                "Too many registrations",
            ),
            Self::TooManyRequests(_) => (
                S::TOO_MANY_REQUESTS,
                "too-many-requests",
                "Too many requests",
            ),
            Self::Leaving => (S::SERVICE_UNAVAILABLE, "leaving", "Shutting down"),
            Self::Behind(_) => (S::SERVICE_UNAVAILABLE, "behind", "Not current"),
            Self::NotSigned(_) | Self::RosterNotSigned => {
                (S::SERVICE_UNAVAILABLE, "not-signed", "Not signed")
            }
            Self::Internal(_) => (S::INTERNAL_SERVER_ERROR, "internal", "Internal error"),
        }
    }

    /// The word at the end of the problem's type; a label for metrics too.
    pub fn word(&self) -> &'static str {
        self.kind().1
    }
}

impl From<InFlight> for Refusal {
    fn from(_: InFlight) -> Self {
        Self::KeyUnderWay
    }
}

impl From<RegisterError> for Refusal {
    fn from(error: RegisterError) -> Self {
        match error {
            RegisterError::TokenUsed => Self::TokenUsed,
            RegisterError::KeyInUse => Self::KeyInUse,
            RegisterError::TokenExpired => Self::Token(Rejected::Expired),
            RegisterError::BeforeRestore => Self::BeforeRestore,
            RegisterError::NodeRevoked => Self::NodeRevoked,
            RegisterError::KeyRevoked => Self::KeyRevoked,
            RegisterError::KeyRetired => Self::KeyRetired,
            RegisterError::Store(error) => error.into(),
        }
    }
}

/// Of a write that is audited.
impl From<store::Error> for Refusal {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Once(OnceError::Reused) => Self::KeyReused,
            store::Error::Once(OnceError::TooMany { wait }) => {
                Self::TooManyKeys(Duration::from_secs(wait))
            }
            error if error.is_of_the_moment() => Self::NotAudited(error),
            error => Self::Internal(error),
        }
    }
}

impl From<RotateError> for Refusal {
    fn from(error: RotateError) -> Self {
        match error {
            RotateError::UnderWay => Self::RotationUnderWay,
            RotateError::Overtaken => Self::RotationOvertaken,
            RotateError::Store(error) => error.into(),
        }
    }
}

impl From<CertifyError> for Refusal {
    fn from(error: CertifyError) -> Self {
        match error {
            CertifyError::UnknownNode => Self::UnknownNode,
            CertifyError::Store(error) => error.into(),
        }
    }
}

impl From<MoveError> for Refusal {
    fn from(error: MoveError) -> Self {
        match error {
            MoveError::UnknownNode => Self::NoSuchNode,
            MoveError::Store(error) => error.into(),
        }
    }
}

impl From<RotateIdentityError> for Refusal {
    fn from(error: RotateIdentityError) -> Self {
        match error {
            RotateIdentityError::UnknownNode => Self::NoSuchNode,
            RotateIdentityError::NotPresent => Self::KeyNotPresent,
            RotateIdentityError::UnderWay => Self::IdentityUnderWay,
            RotateIdentityError::KeyInUse => Self::KeyInUse,
            RotateIdentityError::KeyRetired => Self::KeyRetired,
            RotateIdentityError::KeyRevoked => Self::KeyRevoked,
            RotateIdentityError::Store(error) => error.into(),
        }
    }
}

impl From<ServiceError> for Refusal {
    fn from(error: ServiceError) -> Self {
        match error {
            ServiceError::Unknown => Self::NoSuchService,
            ServiceError::Configured => Self::ServiceConfigured,
            ServiceError::HostBound { host, service } => Self::HostBound { host, service },
            ServiceError::TooMany => Self::TooManyServices,
            ServiceError::Store(error) => error.into(),
        }
    }
}

impl From<RevokeError> for Refusal {
    fn from(error: RevokeError) -> Self {
        match error {
            RevokeError::UnknownNode => Self::NoSuchNode,
            RevokeError::TooMany => Self::TooManyRevocations,
            RevokeError::Store(error) => error.into(),
        }
    }
}

impl From<FleetError> for Refusal {
    fn from(error: FleetError) -> Self {
        match error {
            FleetError::Passed(_) => Self::FencePassed,
            FleetError::TooMany => Self::TooManyEntries,
            FleetError::Store(error) => error.into(),
        }
    }
}

impl From<HeartbeatError> for Refusal {
    fn from(error: HeartbeatError) -> Self {
        match error {
            HeartbeatError::UnknownNode => Self::UnknownNode,
            HeartbeatError::ServiceNotGranted(service) => Self::ServiceNotAllowed(service),
            HeartbeatError::Store(error) => Self::Internal(error),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, word, title) = self.kind();
        match &self {
            Self::Internal(error) | Self::NotAudited(error) | Self::Behind(error) => {
                tracing::error!(error = error as &dyn std::error::Error, "request failed")
            }
            Self::NotSigned(error) => {
                tracing::error!(
                    error = error as &dyn std::error::Error,
                    "nothing was signed"
                );
            }
            Self::NotCertified(error) => {
                tracing::error!(
                    error = error as &dyn std::error::Error,
                    "no certificate was signed"
                );
            }
            _ => tracing::debug!(problem = word, "request refused"),
        }
        let problem = Problem {
            r#type: format!("{}{word}", Problem::URN),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: redact::text(&self.to_string()).into_owned(),
        };
        let mut response = (status, axum::Json(problem)).into_response();
        response.extensions_mut().insert(Word(word));
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        let wait = match &self {
            Self::NotAudited(_) | Self::Behind(_) | Self::NotSigned(_) | Self::RosterNotSigned => {
                Some(1)
            }
            Self::KeyUnderWay => Some(1),
            Self::TooManyRequests(wait)
            | Self::TooManyRegistrations(wait)
            | Self::TooManyKeys(wait) => Some(wait.as_secs().saturating_add(1)),
            _ => None,
        };
        if let Some(wait) = wait {
            headers.insert(header::RETRY_AFTER, wait.into());
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer realm=\"wavry\""),
            );
        }
        response
    }
}
