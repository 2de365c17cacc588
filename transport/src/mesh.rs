//! The way between two nodes: one QUIC connection, end to end, that carries many sessions.

use std::{io, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use tokio::sync::watch;
use wavry_proto::{control::Roster, id::NodeId, mesh::Open};

use crate::session::{self, Close, Closed, DatagramError, ReadError, Response, WriteError};

/// What a mesh endpoint needs to know.
#[derive(Clone)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// TLS for connections that peers open: raw Ed25519 keys, mutual (RFC 7250).
    pub server_tls: Arc<rustls::ServerConfig>,
    /// TLS for connections to peers. The server name it is given is the peer's node id.
    pub client_tls: Arc<rustls::ClientConfig>,
    /// Who may connect, and where nodes are. Connections of a node whose key leaves it are closed.
    pub roster: watch::Receiver<Arc<Roster>>,
    /// Limits.
    pub limits: Limits,
}

/// Bounds on what a peer can make this endpoint hold.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections per peer that sessions are spread over.
    pub shards: usize,
    /// Bytes of stream data that a session may have unread on this side.
    pub session_window: u64,
    /// Streams of each kind that a session's peer may have open.
    pub session_streams: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            shards: 2,
            session_window: 2 * 1024 * 1024,
            session_streams: 256,
        }
    }
}

/// This node's place in the mesh: opens sessions to peers and accepts theirs.
#[derive(Clone)]
pub struct Endpoint {}

/// Why a session could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The peer answered with a status that is not 2xx.
    #[error("refused by the peer with status {}", .0.status)]
    Rejected(Response),
    /// The roster has no such node, or no address for it.
    #[error("node {0} is not in the roster or has no address")]
    Unknown(NodeId),
    /// No connection to the peer could be made, or it was lost.
    #[error("node {node} cannot be reached: {reason}")]
    Unreachable {
        /// The peer.
        node: NodeId,
        /// Why.
        reason: String,
    },
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(std::time::Duration),
}

/// Binds a UDP socket with the buffers the mesh needs, as quinn wants it.
pub fn bind(_address: SocketAddr) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
    todo!()
}

impl Endpoint {
    /// An endpoint over `socket`, whatever that is: a plain UDP socket from [`bind`] or an overlay.
    pub fn new(_socket: Arc<dyn quinn::AsyncUdpSocket>, _config: Config) -> io::Result<Self> {
        todo!()
    }

    /// The socket's address.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        todo!()
    }

    /// Opens a session to `peer`; the answer is the peer's, 2xx.
    pub async fn open(
        &self,
        _peer: &NodeId,
        _open: Open,
    ) -> Result<(Session, Response), OpenError> {
        todo!()
    }

    /// The next session a peer asks for; `None` once the endpoint is closed.
    pub async fn accept(&self) -> Option<Requested> {
        todo!()
    }

    /// Closes every connection at once and frees the socket.
    pub async fn close(&self) {
        todo!()
    }
}

/// A session that a peer asks for and that was not answered yet. Dropped unanswered, it is 503.
pub struct Requested {}

impl Requested {
    /// What is asked for.
    pub fn open(&self) -> &Open {
        todo!()
    }

    /// The node that asks.
    pub fn peer(&self) -> &NodeId {
        todo!()
    }

    /// Accepts with a 2xx response.
    pub async fn accept(self, _response: Response) -> Result<Session, Closed> {
        todo!()
    }

    /// Refuses with a status that is not 2xx.
    pub async fn reject(self, _response: Response) {
        todo!()
    }
}

/// A session between two nodes.
pub struct Session {}

/// Sending half of a mesh stream.
pub struct SendStream {}

/// Receiving half of a mesh stream.
pub struct RecvStream {}

impl session::Session for Session {
    type Send = SendStream;
    type Recv = RecvStream;
    async fn open_bi(&self) -> Result<(SendStream, RecvStream), Closed> {
        todo!()
    }
    async fn open_uni(&self) -> Result<SendStream, Closed> {
        todo!()
    }
    async fn accept_bi(&self) -> Result<(SendStream, RecvStream), Closed> {
        todo!()
    }
    async fn accept_uni(&self) -> Result<RecvStream, Closed> {
        todo!()
    }
    fn send_datagram(&self, _payload: Bytes) -> Result<(), DatagramError> {
        todo!()
    }
    async fn recv_datagram(&self) -> Result<Bytes, Closed> {
        todo!()
    }
    fn max_datagram_size(&self) -> usize {
        todo!()
    }
    fn drain(&self) {
        todo!()
    }
    async fn draining(&self) {
        todo!()
    }
    fn close(&self, _close: Close) {
        todo!()
    }
    async fn closed(&self) -> Closed {
        todo!()
    }
}

impl session::SendStream for SendStream {
    async fn write(&mut self, _chunk: Bytes) -> Result<(), WriteError> {
        todo!()
    }
    fn finish(&mut self) -> Result<(), WriteError> {
        todo!()
    }
    fn reset(&mut self, _code: u32) {
        todo!()
    }
    async fn stopped(&mut self) -> Option<u32> {
        todo!()
    }
}

impl session::RecvStream for RecvStream {
    async fn read(&mut self) -> Result<Option<Bytes>, ReadError> {
        todo!()
    }
    fn stop(&mut self, _code: u32) {
        todo!()
    }
}
