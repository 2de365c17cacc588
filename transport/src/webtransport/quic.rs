//! How QUIC is set up under WebTransport.

use std::{sync::Arc, time::Duration};

use quinn::{TransportConfig, VarInt};

use super::Limits;
use crate::datagram::{RECEIVE_BUFFER, SEND_BUFFER};

/// Unread bytes that one stream may hold: 80 ms of 100 Mbit/s.
pub(super) const STREAM_WINDOW: u32 = 1024 * 1024;
/// Unread bytes that all streams of a connection may hold while there is one session (see
/// `connection::sharing`), and unacknowledged ones that may be sent.
pub(super) const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
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
        // A timeout too long for QUIC means none.
        .max_idle_timeout(limits.idle_timeout.try_into().ok());
    if side == Side::Client {
        // Twice more often than needed, so that one lost packet does not lose the connection.
        let interval = limits.idle_timeout / 3;
        config.keep_alive_interval((interval > Duration::ZERO).then_some(interval));
    }
    Arc::new(config)
}
