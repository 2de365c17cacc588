//! WebTransport over HTTP/3, server and client, over quinn.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;

use crate::session::{
    self, Close, Closed, DatagramError, ReadError, Request, Response, WriteError,
};

/// Bounds on what a peer can make an endpoint hold, and on how long it may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Longest header block in bytes; a longer one is answered with 431.
    pub max_header_block: usize,
    /// Sessions at once on one connection; one more is answered with 429.
    pub sessions_per_connection: usize,
    /// Streams of each kind a peer may have open on a connection.
    pub streams: u64,
    /// From handshake to request, and from a stream's first byte to the end of its header.
    pub header_timeout: Duration,
    /// A connection on which nothing arrives for so long is lost.
    pub idle_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_header_block: 16 * 1024,
            sessions_per_connection: 16,
            streams: 256,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
        }
    }
}

/// Accepts WebTransport sessions on a UDP socket.
#[derive(Clone)]
pub struct Server {}

impl Server {
    /// Serves `socket`. `tls` says which certificates; ALPN `h3` is added here.
    pub fn new(
        _socket: UdpSocket,
        _tls: rustls::ServerConfig,
        _limits: Limits,
    ) -> io::Result<Self> {
        todo!()
    }

    /// The socket's address.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        todo!()
    }

    /// The next session that a client asks for; `None` once the server is closed.
    pub async fn accept(&self) -> Option<Requested> {
        todo!()
    }

    /// Takes no new connections and no new sessions: clients are sent GOAWAY (RFC 9114, 5.2).
    pub fn drain(&self) {
        todo!()
    }

    /// Closes every connection at once and frees the socket once they are gone.
    pub async fn close(&self) {
        todo!()
    }
}

/// A session that a client asks for and that was not answered yet. Dropped unanswered, it is 503.
pub struct Requested {}

impl Requested {
    /// What is asked for.
    pub fn request(&self) -> &Request {
        todo!()
    }

    /// Where the client is now.
    pub fn remote_address(&self) -> SocketAddr {
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

/// Opens WebTransport sessions, each on a connection of its own.
#[derive(Clone)]
pub struct Client {}

/// Why a client has no session.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The server answered with a status that is not 2xx.
    #[error("refused by the server with status {}", .0.status)]
    Rejected(Response),
    /// The peer speaks HTTP/3 but not WebTransport.
    #[error("the server does not offer WebTransport")]
    NotSupported,
    /// The connection failed or was lost; the text says how.
    #[error("cannot connect: {0}")]
    Connection(String),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

impl Client {
    /// A client that sends from `local` (port 0 for any). `tls` says whom to trust; ALPN `h3` is
    /// added here.
    pub fn new(
        _local: SocketAddr,
        _tls: rustls::ClientConfig,
        _limits: Limits,
    ) -> io::Result<Self> {
        todo!()
    }

    /// Connects to `remote`, which must prove to be `server_name`, and opens one session.
    pub async fn connect(
        &self,
        _remote: SocketAddr,
        _server_name: &str,
        _request: Request,
    ) -> Result<(Session, Response), ConnectError> {
        todo!()
    }
}

/// A WebTransport session over HTTP/3.
pub struct Session {}

/// Sending half of a WebTransport stream.
pub struct SendStream {}

/// Receiving half of a WebTransport stream.
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
