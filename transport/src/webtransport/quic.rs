//! How QUIC is set up under WebTransport.

use std::{sync::Arc, time::Duration};

use quinn::{MtuDiscoveryConfig, TransportConfig, VarInt};

use super::Limits;
use crate::datagram::{RECEIVE_BUFFER, SEND_BUFFER};

/// Unread bytes that one stream may hold: 80 ms of 100 Mbit/s.
pub const STREAM_WINDOW: u32 = 1024 * 1024;
/// Unread bytes that all streams of a connection may hold while there is one session (see
/// `connection::sharing`), and unacknowledged ones that may be sent.
pub const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
/// Streams of each kind that a peer may have open at first. QUIC keeps a slot for each that it
/// grants, and most sessions never need more; whoever does is granted twice as many, up to
/// [`Limits::streams`] for each session. With 16 requests and our own control stream that is under
/// the 28 sending halves at which QUIC's table of them doubles.
pub(super) const FIRST_STREAMS: u64 = 10;
/// Streams that HTTP/3 itself opens: control, QPACK encoder and decoder (RFC 9114, section 6.2).
pub(super) const CONTROL_STREAMS: u64 = 3;

/// Which end of a connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

impl Side {
    /// Streams on which the peer may make requests, besides those of its sessions.
    pub(super) fn requests(self, limits: &Limits) -> u64 {
        match self {
            Self::Client => 0,
            Self::Server => limits.sessions_per_connection as u64,
        }
    }
}

pub(super) fn transport(limits: &Limits, side: Side) -> Arc<TransportConfig> {
    let count = |n: u64| VarInt::from_u64(n).unwrap_or(VarInt::MAX);
    // Raised on demand, see `Connection`.
    let first = FIRST_STREAMS.min(limits.streams);
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(count(first.saturating_add(side.requests(limits))))
        .max_concurrent_uni_streams(count(first + CONTROL_STREAMS))
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(CONNECTION_WINDOW.into())
        .send_window(CONNECTION_WINDOW.into())
        .datagram_receive_buffer_size(Some(RECEIVE_BUFFER))
        .datagram_send_buffer_size(SEND_BUFFER)
        .mtu_discovery_config(Some(mtu_discovery()))
        // A timeout too long for QUIC means none.
        .max_idle_timeout(limits.idle_timeout.try_into().ok());
    if side == Side::Client {
        // Twice more often than needed, so that one lost packet does not lose the connection.
        let interval = limits.idle_timeout / 3;
        config.keep_alive_interval((interval > Duration::ZERO).then_some(interval));
    }
    Arc::new(config)
}

/// How far the sizes of packets must lie apart that QUIC tries. More than half of what lies between
/// its first (1,200 bytes) and its largest (1,452), so that the largest is tried first: on an
/// ordinary path it is right, and one packet finds it where a binary search takes four, in the moment
/// when every other packet counts. A path that takes 1,325 and not the largest is used with 1,325.
const MTU_STEP: u16 = 127;

fn mtu_discovery() -> MtuDiscoveryConfig {
    let mut config = MtuDiscoveryConfig::default();
    config.minimum_change(MTU_STEP);
    config
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};

    use super::*;

    #[tokio::test]
    async fn one_packet_finds_the_size_that_an_ordinary_path_takes() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = made.signing_key.serialize_der().try_into().unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let server_tls = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let client_tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let crypto = QuicServerConfig::try_from(server_tls).unwrap();
        let mut server_config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        server_config.transport_config(transport(&Limits::default(), Side::Server));
        let loopback = (Ipv4Addr::LOCALHOST, 0).into();
        let server = quinn::Endpoint::server(server_config, loopback).unwrap();
        let client = quinn::Endpoint::client(loopback).unwrap();
        let crypto = QuicClientConfig::try_from(client_tls).unwrap();
        let connecting = client
            .connect_with(
                quinn::ClientConfig::new(Arc::new(crypto)),
                server.local_addr().unwrap(),
                "localhost",
            )
            .unwrap();
        let (ours, theirs) = tokio::join!(
            async { server.accept().await.unwrap().await.unwrap() },
            async { connecting.await.unwrap() },
        );
        // Datagrams there and back, until both sides have had the time to try.
        while ours.stats().path.current_mtu < 1452 {
            ours.send_datagram(b"datagram"[..].into()).unwrap();
            theirs.read_datagram().await.unwrap();
        }
        assert_eq!(ours.stats().path.sent_plpmtud_probes, 1);
    }
}
