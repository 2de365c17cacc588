//! Where services are found, and how sessions are carried there.
//!
//! An upstream is dialled before the session is answered, so that what it says is what the client
//! is told: a WebTransport upstream's status, subprotocol and headers as they are, 502 for one
//! that refuses, 504 for one that says nothing.

mod echo;
mod stream;
mod tcp;
mod udp;
pub(crate) mod webtransport;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use metrics::{counter, histogram};
use tokio::time::timeout;
use wavry_proto::{
    mesh::Open,
    session::{Close, Response, close_code},
};
use wavry_transport::{
    mirror::Ledger,
    session::{Closed, Session},
};

use crate::{
    config::{self, HostPort},
    error::StartError,
    metrics::{self as names},
};

/// An upstream that can be dialled.
pub(crate) struct Upstream {
    kind: Kind,
    connect_timeout: Duration,
}

enum Kind {
    WebTransport(Box<webtransport::Upstream>),
    Tcp(HostPort),
    Udp(HostPort),
    Echo,
}

/// An upstream that took a session.
pub(crate) enum Dialled {
    WebTransport(Box<webtransport::Dialled>),
    Tcp(tcp::Dialled),
    Udp(udp::Dialled),
    Echo(echo::Dialled),
}

/// Why an upstream did not take a session.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// It answered, and not with 2xx.
    #[error("the upstream answered with status {}", .0.status)]
    Rejected(Response),
    /// There is nothing at its address, or something that is no upstream of its kind.
    #[error("the upstream refused: {0}")]
    Refused(String),
    /// It said nothing in time.
    #[error("the upstream did not answer within {0:?}")]
    Timeout(Duration),
}

impl DialError {
    /// The label in metrics and logs.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Rejected(_) => "upstream_rejected",
            Self::Refused(_) => "upstream_refused",
            Self::Timeout(_) => "upstream_timeout",
        }
    }

    /// What the client is told.
    pub(crate) fn into_response(self) -> Response {
        match self {
            Self::Rejected(response) => response,
            Self::Refused(_) => Response::status(502),
            Self::Timeout(_) => Response::status(504),
        }
    }
}

/// How a session that was carried to an upstream ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    /// What the gateway's side said last.
    pub(crate) session: Closed,
    /// The label in metrics and logs.
    pub(crate) reason: &'static str,
}

impl Upstream {
    /// Makes ready what dialling needs.
    pub(crate) fn new(
        service: &str,
        config: &config::Upstream,
        idle_timeout: Duration,
    ) -> Result<Self, StartError> {
        let kind = match &config.kind {
            config::Kind::WebTransport { at, base, trust } => {
                Kind::WebTransport(Box::new(webtransport::Upstream::new(
                    service,
                    at.clone(),
                    base.clone(),
                    trust,
                    config.connect_timeout,
                    idle_timeout,
                )?))
            }
            config::Kind::Tcp(at) => Kind::Tcp(at.clone()),
            config::Kind::Udp(at) => Kind::Udp(at.clone()),
            config::Kind::Echo => Kind::Echo,
        };
        Ok(Self {
            kind,
            connect_timeout: config.connect_timeout,
        })
    }

    /// The kind, as a label.
    pub(crate) fn kind(&self) -> &'static str {
        match self.kind {
            Kind::WebTransport(_) => "webtransport",
            Kind::Tcp(_) => "tcp",
            Kind::Udp(_) => "udp",
            Kind::Echo => "echo",
        }
    }

    /// Asks the upstream to take the session that `open` describes.
    pub(crate) async fn dial(&self, open: &Open) -> Result<Dialled, DialError> {
        let since = Instant::now();
        let dial = async {
            match &self.kind {
                Kind::WebTransport(upstream) => upstream
                    .dial(open)
                    .await
                    .map(|dialled| Dialled::WebTransport(Box::new(dialled))),
                Kind::Tcp(at) => tcp::Dialled::connect(at, self.connect_timeout)
                    .await
                    .map(Dialled::Tcp),
                Kind::Udp(at) => udp::Dialled::connect(at).await.map(Dialled::Udp),
                Kind::Echo => Ok(Dialled::Echo(echo::Dialled::new(&open.request))),
            }
        };
        let dialled = timeout(self.connect_timeout, Box::pin(dial))
            .await
            .unwrap_or(Err(DialError::Timeout(self.connect_timeout)));
        histogram!(names::DIAL, "upstream" => self.kind()).record(since.elapsed());
        dialled
    }
}

impl Dialled {
    /// The upstream's answer, 2xx.
    pub(crate) fn response(&self) -> Response {
        match self {
            Self::WebTransport(upstream) => upstream.response.clone(),
            Self::Tcp(_) | Self::Udp(_) => Response::ok(),
            Self::Echo(echo) => echo.response(),
        }
    }

    /// Carries the session until it is over. What is mirrored is in `ledger` meanwhile.
    pub(crate) async fn carry<S: Session>(&self, session: &Arc<S>, ledger: &Ledger) -> Ended {
        match self {
            Self::WebTransport(upstream) => upstream.carry(&**session, ledger).await,
            Self::Tcp(upstream) => upstream.carry(&**session).await,
            Self::Udp(upstream) => upstream.carry(&**session).await,
            Self::Echo(echo) => echo.carry(session).await,
        }
    }

    /// Asks the upstream to finish, if its kind can be asked.
    pub(crate) fn drain(&self) {
        if let Self::WebTransport(upstream) = self {
            upstream.session.drain();
        }
    }
}

impl Ended {
    /// Of a session that the relay itself serves, without a session behind it.
    fn here(session: Closed) -> Self {
        let reason = match &session {
            Closed::Peer(_) => "client_closed",
            Closed::Lost(_) => "gateway_lost",
            Closed::Here(close) => reason_of(close),
        };
        Self { session, reason }
    }
}

/// Why this side closed a session, as a label.
fn reason_of(close: &Close) -> &'static str {
    match close.code {
        close_code::UPSTREAM_LOST => "upstream_lost",
        close_code::IDLE => "idle",
        close_code::DRAINED => "drained",
        _ => "relay",
    }
}

/// The addresses of an upstream.
async fn resolve(at: &HostPort) -> Result<Vec<SocketAddr>, DialError> {
    let addresses: Vec<_> = tokio::net::lookup_host((at.host.as_str(), at.port))
        .await
        .map_err(|error| DialError::Refused(error.to_string()))?
        .collect();
    match addresses.is_empty() {
        true => Err(DialError::Refused("the name has no address".to_owned())),
        false => Ok(addresses),
    }
}

/// What is counted of sessions that the relay itself serves; one set per session.
#[derive(Clone)]
struct Counts {
    upstream: &'static str,
    streams: metrics::Counter,
    bytes_from_client: metrics::Counter,
    bytes_to_client: metrics::Counter,
    datagrams_from_client: metrics::Counter,
    datagrams_to_client: metrics::Counter,
}

impl Counts {
    fn new(upstream: &'static str) -> Self {
        let of = |name: &'static str, direction: &'static str| counter!(name, "upstream" => upstream, "direction" => direction);
        Self {
            upstream,
            streams: of(names::STREAMS, "from_client"),
            bytes_from_client: of(names::BYTES, "from_client"),
            bytes_to_client: of(names::BYTES, "to_client"),
            datagrams_from_client: of(names::DATAGRAMS, "from_client"),
            datagrams_to_client: of(names::DATAGRAMS, "to_client"),
        }
    }

    fn stream_refused(&self, reason: &'static str) {
        counter!(names::STREAMS_REFUSED, "upstream" => self.upstream, "reason" => reason)
            .increment(1);
    }

    fn datagram_dropped(&self, direction: &'static str, reason: &'static str) {
        counter!(
            names::DATAGRAMS_DROPPED,
            "upstream" => self.upstream, "direction" => direction, "reason" => reason,
        )
        .increment(1);
    }
}
