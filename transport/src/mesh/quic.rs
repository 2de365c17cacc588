//! QUIC as the mesh uses it.

use std::{io, sync::Arc, time::Duration};

use quinn::{
    IdleTimeout, TransportConfig, VarInt,
    congestion::ControllerFactory,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use wavry_proto::mesh::ALPN;

use crate::{
    datagram,
    mesh::{Config, Limits},
    overlay,
};

/// QUIC packets, in bytes: fixed, and never searched for, because on a path with a smaller limit quinn's
/// search costs four bursts of loss and up to 1.2 s, and because the overlay changes paths under the
/// connection: each of them has proved that it carries this. It carries a browser's largest datagram
/// (Firefox: 1,224 B; 42 B of QUIC and session id) and leaves room, in 1,500 B, for IPv6 and UDP (48 B), the
/// overlay's header (8 B) and tunnels.
const MTU: u16 = overlay::PAYLOAD;

/// Silence after which a connection is lost. Together with [`KEEP_ALIVE`], after which the silence
/// is measured anew, a killed peer is noticed within 1.8 s. Five lost packets in a row look the
/// same: at 10 % of loss, one window of silence in 10⁵. quinn waits for three probe timeouts where
/// that is longer, so a slow path (over 300 ms) gets more.
const IDLE_TIMEOUT: Duration = Duration::from_millis(1500);

/// An otherwise silent connection sends a packet so often.
const KEEP_ALIVE: Duration = Duration::from_millis(300);

/// A stream's window is this part of its session's.
const STREAM_SHARE: u64 = 4;

/// Bytes that all sessions of a connection may have sent without an acknowledgement: 100 ms at
/// 1.3 Gbit/s. What sessions leave unread does not count: their own windows hold that.
pub(super) const SEND_WINDOW: u64 = 16 * 1024 * 1024;

/// QUIC on both sides. What it is told of congestion depends on the peer, so each connection has a copy with a
/// [`transport`] of its own.
pub(super) fn configs(config: &Config) -> io::Result<(quinn::ServerConfig, quinn::ClientConfig)> {
    let transport = Arc::new(transport(&config.limits, None));

    let mut tls = (*config.server_tls).clone();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let tls = QuicServerConfig::try_from(tls).map_err(io::Error::other)?;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(tls));
    server.transport_config(transport.clone());

    let mut tls = (*config.client_tls).clone();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let tls = QuicClientConfig::try_from(tls).map_err(io::Error::other)?;
    let mut client = quinn::ClientConfig::new(Arc::new(tls));
    client.transport_config(transport);
    Ok((server, client))
}

/// Limits of one connection. `congestion` makes its congestion controller; `None`: QUIC's own, for one path.
pub(super) fn transport(
    limits: &Limits,
    congestion: Option<Arc<dyn ControllerFactory + Send + Sync>>,
) -> TransportConfig {
    let mut transport = TransportConfig::default();
    if let Some(congestion) = congestion {
        transport.congestion_controller_factory(congestion);
    }
    let stream_window = VarInt::from_u64(limits.session_window / STREAM_SHARE)
        .unwrap_or(VarInt::from_u32(u32::MAX));
    transport
        .initial_mtu(MTU)
        .min_mtu(MTU)
        .mtu_discovery_config(None)
        .max_idle_timeout(Some(
            IdleTimeout::try_from(IDLE_TIMEOUT).expect("seconds fit a varint of milliseconds"),
        ))
        .keep_alive_interval(Some(KEEP_ALIVE))
        // One session must not hold up another: the connection's window never binds, the session's
        // does. Nor must one stream that is not read hold up its session: it gets a part of the
        // session's window.
        .receive_window(VarInt::MAX)
        .stream_receive_window(stream_window)
        .send_window(SEND_WINDOW)
        .datagram_send_buffer_size(datagram::SEND_BUFFER)
        .datagram_receive_buffer_size(Some(datagram::RECEIVE_BUFFER))
        // For the first sessions to be opened with the end of the handshake; raised in `link`.
        .max_concurrent_bidi_streams(VarInt::from_u32(8))
        .max_concurrent_uni_streams(VarInt::from_u32(0));
    transport
}
