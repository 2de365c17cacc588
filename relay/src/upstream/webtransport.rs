//! A WebTransport upstream: the session is mirrored as it is.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use metrics::counter;
use tokio::{task::JoinSet, time::sleep};
use wavry_credentials::cert::{self, Trust};
use wavry_proto::{
    mesh::Open,
    session::{Close, Header, Request, Response, close_code},
};
use wavry_transport::{
    mirror::{self, Ledger, Moved, mirror},
    session::{self, Closed},
    webtransport::{Client, ConnectError, Limits, Session},
};

use super::{DialError, Ended, reason_of, resolve};
use crate::{config::HostPort, error::StartError, metrics as names};

/// Each further address of an upstream is tried so long after the one before (RFC 8305, section 5).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);

/// A WebTransport server that can be dialled.
pub(crate) struct Upstream {
    at: HostPort,
    authority: String,
    base: String,
    v4: Option<Client>,
    v6: Option<Client>,
    idle_timeout: Duration,
}

/// A session that the server took.
pub(crate) struct Dialled {
    pub(super) session: Session,
    pub(super) response: Response,
    idle_timeout: Duration,
}

impl Upstream {
    pub(super) fn new(
        service: &str,
        at: HostPort,
        base: String,
        trust: &Trust,
        connect_timeout: Duration,
        idle_timeout: Duration,
    ) -> Result<Self, StartError> {
        let tls = cert::client_config(trust).map_err(|source| StartError::Trust {
            service: service.to_owned(),
            source,
        })?;
        let limits = Limits {
            header_timeout: connect_timeout,
            ..Limits::default()
        };
        let client = |local: SocketAddr| Client::new(local, tls.clone(), limits.clone());
        // A host may have only one of the two families.
        let v4 = client((Ipv4Addr::UNSPECIFIED, 0).into());
        let v6 = client((Ipv6Addr::UNSPECIFIED, 0).into()).ok();
        if let (Err(source), None) = (&v4, &v6) {
            return Err(StartError::Socket(source.kind().into()));
        }
        Ok(Self {
            authority: match at.port {
                443 => at.to_string().trim_end_matches(":443").to_owned(),
                _ => at.to_string(),
            },
            at,
            base,
            v4: v4.ok(),
            v6,
            idle_timeout,
        })
    }

    pub(super) async fn dial(&self, open: &Open) -> Result<Dialled, DialError> {
        let request = Arc::new(self.request(open));
        let mut attempts = JoinSet::new();
        for (turn, address) in resolve(&self.at).await?.into_iter().enumerate() {
            let client = match address {
                SocketAddr::V4(_) => &self.v4,
                SocketAddr::V6(_) => &self.v6,
            };
            let Some(client) = client.clone() else {
                continue;
            };
            let (name, request) = (self.at.host.clone(), request.clone());
            let wait = NEXT_ADDRESS * u32::try_from(turn).unwrap_or(u32::MAX).min(100);
            attempts.spawn(async move {
                sleep(wait).await;
                Box::pin(client.connect(address, &name, (*request).clone())).await
            });
        }
        let mut refused = DialError::Refused("no address of a family that this host has".into());
        while let Some(attempt) = attempts.join_next().await {
            match attempt {
                Ok(Ok((session, mut response))) => {
                    response.headers.retain(|header| !is_ours(&header.name));
                    return Ok(Dialled {
                        session,
                        response,
                        idle_timeout: self.idle_timeout,
                    });
                }
                Ok(Err(ConnectError::Rejected(mut response))) => {
                    response.headers.retain(|header| !is_ours(&header.name));
                    return Err(DialError::Rejected(response));
                }
                Ok(Err(ConnectError::Timeout(after))) => refused = DialError::Timeout(after),
                Ok(Err(error @ (ConnectError::NotSupported | ConnectError::Connection(_)))) => {
                    refused = DialError::Refused(error.to_string())
                }
                Err(error) => refused = DialError::Refused(error.to_string()),
            }
        }
        Err(refused)
    }

    /// What the upstream is asked: its own authority, its base before the path, and what the
    /// gateway knows of the client, which no client can say itself.
    fn request(&self, open: &Open) -> Request {
        let mut headers: Vec<_> = open
            .request
            .headers
            .iter()
            .filter(|header| !is_ours(&header.name))
            .cloned()
            .collect();
        let mut add = |name: &str, value: String| {
            headers.push(Header {
                name: name.to_owned(),
                value,
            });
        };
        add(
            "x-forwarded-for",
            open.client.ip().to_canonical().to_string(),
        );
        if let Some(subject) = &open.subject {
            add("x-wavry-subject", header_text(subject));
        }
        if let Some(claims) = &open.claims {
            add("x-wavry-claims", BASE64_URL_SAFE_NO_PAD.encode(claims));
        }
        Request {
            authority: self.authority.clone(),
            path: format!("{}{}", self.base, open.request.path),
            origin: open.request.origin.clone(),
            headers,
            subprotocols: open.request.subprotocols.clone(),
        }
    }
}

/// Header fields that only a node may set.
fn is_ours(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.starts_with("x-wavry-") || name.starts_with("x-forwarded-") || name == "forwarded"
}

/// A text as a field value: what is not visible ASCII is percent-encoded, and `%` itself.
fn header_text(text: &str) -> String {
    let mut value = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' => value.push_str("%25"),
            _ if byte.is_ascii_graphic() => value.push(char::from(byte)),
            _ => value.push_str(&format!("%{byte:02X}")),
        }
    }
    value
}

impl Dialled {
    pub(super) async fn carry<S: session::Session>(&self, from: &S, ledger: &Ledger) -> Ended {
        let options = mirror::Options {
            idle_timeout: self.idle_timeout,
            a_lost: Close::new(close_code::CLIENT_LOST, "client lost"),
            b_lost: Close::new(close_code::UPSTREAM_LOST, "upstream lost"),
        };
        let traffic = ledger.add();
        let ended = Box::pin(mirror(from, &self.session, &options, &traffic)).await;
        count(traffic.take());
        let reason = match (&ended.a, &ended.b) {
            (Closed::Peer(_), _) => "client_closed",
            (_, Closed::Peer(_)) => "upstream_closed",
            (Closed::Lost(_), _) => "gateway_lost",
            (_, Closed::Lost(_)) => "upstream_lost",
            (Closed::Here(close), Closed::Here(_)) => reason_of(close),
        };
        Ended {
            session: ended.a,
            reason,
        }
    }
}

/// Counts what went between gateways and WebTransport upstreams.
pub(crate) fn count(moved: Moved) {
    for (direction, carried) in [("from_client", moved.a_to_b), ("to_client", moved.b_to_a)] {
        for (name, count) in [
            (names::STREAMS, carried.streams),
            (names::BYTES, carried.bytes),
            (names::DATAGRAMS, carried.datagrams),
        ] {
            counter!(name, "upstream" => "webtransport", "direction" => direction).increment(count);
        }
        counter!(
            names::DATAGRAMS_DROPPED,
            "upstream" => "webtransport", "direction" => direction, "reason" => "mirror",
        )
        .increment(carried.datagrams_dropped);
    }
}
