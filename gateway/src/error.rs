//! Why the gateway cannot start or go on, and why a request does not become a session.

use std::{io, net::SocketAddr};

use wavry_credentials::{acme, cert, identity, membership, source, token::Rejected};
use wavry_proto::session::{Header, Response};

use crate::{forward, limits::Exceeded};

/// Why a gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The secret `tls_key` is not there.
    #[error("the certificate's key")]
    Key(#[from] source::Error),
    /// The certificate or its key cannot be used.
    #[error("the certificate")]
    Certificate(#[from] cert::Error),
    /// The certificate cannot be looked after.
    #[error("obtaining the certificate")]
    Acme(#[from] acme::Error),
    /// A UDP address cannot be used.
    #[error("cannot listen on UDP {address} ({key})")]
    Bind {
        /// The configuration key.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A TCP address cannot be used.
    #[error("cannot listen on TCP {address} ({key})")]
    BindTcp {
        /// The configuration key.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The cluster does not take the node.
    #[error("cannot join the cluster")]
    Membership(#[from] membership::Error),
    /// The identity cannot be used in TLS.
    #[error("the node's identity")]
    Identity(#[from] identity::Error),
}

impl StartError {
    /// Makes an error of what the operating system says about `address`.
    pub(crate) fn bind(key: &'static str, address: SocketAddr) -> impl Fn(io::Error) -> Self {
        move |source| Self::Bind {
            key,
            address,
            source,
        }
    }
}

/// Why a gateway that served does not any more.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The UDP socket was lost.
    #[error("the listening socket was lost")]
    ListenerLost,
}

/// Why a request does not become a session. Says nothing of what the request held.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Draining,
    /// No master was heard for so long that what is known of the cluster is not acted on.
    RosterTooOld,
    Path,
    UnknownService,
    Origin,
    Limit(Exceeded),
    TokenMissing,
    TokenMalformed,
    Token(Rejected),
    NoExit,
    Unreachable,
    Timeout,
    /// What the exit relay or its upstream answered: 4xx or 5xx.
    Upstream(Response),
    /// It answered something else. A redirect above all, which a WebTransport client does not
    /// follow (draft-ietf-webtrans-http3, section 3.2) and which would name a place behind the
    /// mesh.
    UpstreamStatus,
}

impl Refusal {
    /// For an answer of the exit relay or its upstream that is not 2xx.
    pub(crate) fn upstream(response: Response) -> Self {
        match response.status {
            400..600 => Self::Upstream(response),
            _ => Self::UpstreamStatus,
        }
    }

    /// The label in metrics and logs.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::RosterTooOld => "roster_too_old",
            Self::Path => "bad_path",
            Self::UnknownService => "unknown_service",
            Self::Origin => "origin",
            Self::Limit(Exceeded::Gateway) => "gateway_limit",
            Self::Limit(Exceeded::Ip) => "ip_limit",
            Self::Limit(Exceeded::Service) => "service_limit",
            Self::Limit(Exceeded::Subject) => "subject_limit",
            Self::TokenMissing => "token_missing",
            Self::TokenMalformed => "token_unreadable",
            Self::Token(Rejected::TooLong) => "token_too_long",
            Self::Token(Rejected::Malformed) => "token_malformed",
            Self::Token(Rejected::UnknownKey) => "token_unknown_key",
            Self::Token(Rejected::Signature) => "token_signature",
            Self::Token(Rejected::Claims) => "token_claims",
            Self::Token(Rejected::NotYetValid) => "token_not_yet_valid",
            Self::Token(Rejected::Expired) => "token_expired",
            Self::Token(Rejected::TooLasting) => "token_too_lasting",
            Self::Token(Rejected::Revoked) => "token_revoked",
            Self::NoExit => "no_exit",
            Self::Unreachable => "exit_unreachable",
            Self::Timeout => "exit_timeout",
            Self::Upstream(_) => "upstream",
            Self::UpstreamStatus => "upstream_status",
        }
    }

    /// The word for it that a client is told: [`reason`](Self::reason), but for what is wrong with
    /// a token, of which no more is said than that it does not hold, or has expired.
    pub(crate) fn told(&self) -> &'static str {
        match self {
            Self::Token(Rejected::Expired) => "token_expired",
            Self::Token(_) => "token_invalid",
            _ => self.reason(),
        }
    }

    /// What the client is told.
    pub(crate) fn into_response(self) -> Response {
        match self {
            Self::Path => Response::status(400),
            Self::TokenMalformed => challenge(400, "Bearer error=\"invalid_request\""),
            Self::TokenMissing => challenge(401, "Bearer"),
            // The audience is part of what is signed and is not sent, so a good token for another
            // service cannot be told from a forged one.
            Self::Token(_) => challenge(401, "Bearer error=\"invalid_token\""),
            Self::Origin => Response::status(403),
            Self::UnknownService => Response::status(404),
            Self::Limit(Exceeded::Ip | Exceeded::Service | Exceeded::Subject) => {
                Response::status(429)
            }
            Self::Draining
            | Self::RosterTooOld
            | Self::Limit(Exceeded::Gateway)
            | Self::NoExit
            | Self::Unreachable => Response::status(503),
            Self::Timeout => Response::status(504),
            Self::UpstreamStatus => Response::status(502),
            Self::Upstream(mut response) => {
                response.headers = forward::of_response(response.headers);
                response.subprotocol = None;
                response
            }
        }
    }
}

/// An answer that says how to authenticate (RFC 6750, section 3).
fn challenge(status: u16, scheme: &str) -> Response {
    let mut response = Response::status(status);
    response.headers.push(Header {
        name: "www-authenticate".to_owned(),
        value: scheme.to_owned(),
    });
    response
}
