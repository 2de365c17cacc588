//! A UDP upstream: the session's datagrams are a connected UDP socket of its own.
//!
//! UDP has no handshake: a session is always taken. When the upstream's host says that nobody is
//! there (ICMP), the session is closed with `close_code::UPSTREAM_LOST`. Streams are refused: UDP
//! has none.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use bytes::Bytes;
use tokio::net::UdpSocket;
use tracing::debug;
use wavry_proto::session::{Close, close_code};
use wavry_transport::session::{Closed, Session};

use super::{
    Counts, DialError, Ended, resolve,
    stream::{drop_reason, refuse_bi, refuse_uni},
};
use crate::config::HostPort;

/// Longest UDP payload, in bytes (RFC 768).
const MAX_PAYLOAD: usize = 65_507;

/// The socket of one session.
pub(crate) struct Dialled {
    socket: UdpSocket,
}

impl Dialled {
    pub(super) async fn connect(at: &HostPort) -> Result<Self, DialError> {
        let mut outcome = Err(io::ErrorKind::AddrNotAvailable.into());
        for address in resolve(at).await? {
            outcome = connect(address).await;
            if outcome.is_ok() {
                break;
            }
        }
        outcome
            .map(|socket| Self { socket })
            .map_err(|error| DialError::Refused(error.to_string()))
    }

    pub(super) async fn carry<S: Session>(&self, session: &S) -> Ended {
        let counts = Counts::new("udp");
        let over = tokio::select! {
            closed = session.closed() => Ok(closed),
            closed = refuse_bi(session, &counts) => Ok(closed),
            closed = refuse_uni(session, &counts) => Ok(closed),
            over = self.questions(session, &counts) => over,
            over = self.answers(session, &counts) => over,
        };
        let closed = match over {
            Ok(closed) => closed,
            Err(error) => {
                debug!(%error, "the upstream is gone");
                session.close(Close::new(close_code::UPSTREAM_LOST, "upstream lost"));
                session.closed().await
            }
        };
        Ended::here(closed)
    }

    /// Datagrams of the client, to the upstream.
    async fn questions<S: Session>(&self, session: &S, counts: &Counts) -> io::Result<Closed> {
        loop {
            let payload = match session.recv_datagram().await {
                Ok(payload) => payload,
                Err(closed) => return Ok(closed),
            };
            match self.socket.send(&payload).await {
                Ok(_) => counts.datagrams_from_client.increment(1),
                Err(error) => {
                    counts.datagram_dropped("from_client", drop_or_gone(error)?);
                }
            }
        }
    }

    /// Datagrams of the upstream, to the client.
    async fn answers<S: Session>(&self, session: &S, counts: &Counts) -> io::Result<Closed> {
        let mut buffer = vec![0; MAX_PAYLOAD];
        loop {
            let len = match self.socket.recv(&mut buffer).await {
                Ok(len) => len,
                Err(error) => {
                    drop_or_gone(error)?;
                    continue;
                }
            };
            let payload = Bytes::copy_from_slice(&buffer[..len]);
            match session.send_datagram(payload).map_err(drop_reason) {
                Ok(()) => counts.datagrams_to_client.increment(1),
                Err(Ok(reason)) => counts.datagram_dropped("to_client", reason),
                Err(Err(closed)) => return Ok(closed),
            }
        }
    }
}

async fn connect(address: SocketAddr) -> io::Result<UdpSocket> {
    let local: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(local).await?;
    socket.connect(address).await?;
    Ok(socket)
}

/// A label for what may pass, such as a datagram too long for the way; an error for an upstream
/// that is gone.
fn drop_or_gone(error: io::Error) -> io::Result<&'static str> {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Err(error),
        _ => Ok("socket_error"),
    }
}
