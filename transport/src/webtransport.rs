//! WebTransport over HTTP/3, server and client, over quinn.

use std::time::Duration;

mod backlog;
mod client;
mod connection;
mod credit;
mod milestone;
pub mod plain;
mod quic;
mod server;
mod session;
mod shared;
mod stream;

pub use client::{Client, ConnectError};
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
    /// Connections at once on a server; one more is refused.
    pub connections: usize,
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
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
        }
    }
}
