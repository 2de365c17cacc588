//! WebTransport over HTTP/3, server and client, over quinn.

use std::time::Duration;

mod admission;
mod backlog;
mod client;
mod connection;
mod credit;
mod listener;
mod milestone;
pub mod plain;
mod quic;
mod server;
mod session;
mod shared;
mod stream;

pub use admission::{Handshakes, Network};
pub use client::{Client, ConnectError};
pub use quic::{CONNECTION_WINDOW, STREAM_WINDOW};
pub use server::{Requested, Server};
pub use session::Session;
pub use stream::{RecvStream, SendStream};

/// Bounds on what a peer can make an endpoint hold, and on how long it may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Longest header block in bytes; a longer one is answered with 431.
    pub max_header_block: usize,
    /// Longest content of a request that asks for no session, in bytes; a longer one is answered
    /// with 413.
    pub max_content: usize,
    /// Sessions at once on one connection; one more is answered with 429.
    pub sessions_per_connection: usize,
    /// Streams of each kind a peer may have open on a connection.
    pub streams: u64,
    /// Connections at once on a server, handshakes included; one more is refused.
    pub connections: usize,
    /// Connections at once from one IPv4 address or IPv6 /64; one more is refused.
    pub connections_per_ip: usize,
    /// Handshakes at once on a server from which on a client must first prove its address by
    /// answering a Retry (RFC 9000, section 8.1.2). Forged addresses then cost a packet each and no
    /// state.
    pub unproven_handshakes: usize,
    /// Handshakes a second on a server, at least 1. Four seconds' worth may come at once. From half
    /// of that on clients must prove their addresses; who has and comes when it is spent is refused.
    pub handshake_rate: u32,
    /// The same for each IPv4 address or IPv6 /64.
    pub handshake_rate_per_ip: u32,
    /// From handshake to request, and from a stream's first byte to the end of its header.
    pub header_timeout: Duration,
    /// A connection on which nothing arrives for so long is lost.
    pub idle_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_header_block: 16 * 1024,
            max_content: 16 * 1024,
            sessions_per_connection: 16,
            streams: 256,
            connections: 10_000,
            connections_per_ip: 256,
            unproven_handshakes: 128,
            handshake_rate: 5_000,
            handshake_rate_per_ip: 50,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
        }
    }
}
