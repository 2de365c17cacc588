//! wtransport, as client and as server.

use std::net::SocketAddr;

use bytes::Bytes;
use serde_json::{Value, json};
use wavry_proto::webtransport::{code, subprotocol};
use wavry_transport::session::{self, Close, Closed, DatagramError, ReadError, WriteError};
use wtransport::{
    ClientConfig, Connection, Endpoint, RecvStream, SendStream, ServerConfig, VarInt,
    endpoint::{ConnectOptions, SessionRequest, endpoint_side},
    error::{ConnectionError, StreamReadError, StreamWriteError},
};

use super::{Certificate, Target, loopback};
use crate::{
    answer,
    script::{Dial, Refused},
    seen::{Asked, Seen},
};

/// Starts the interop service; where it is.
pub(crate) fn start(certificate: &Certificate, seen: Seen) -> SocketAddr {
    let config = ServerConfig::builder()
        .with_bind_address(loopback())
        .with_custom_tls(certificate.tls())
        .build();
    let endpoint = Endpoint::server(config).unwrap();
    let address = endpoint.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let incoming = endpoint.accept().await;
            let seen = seen.clone();
            tokio::spawn(async move {
                if let Ok(request) = incoming.await {
                    serve(request, seen).await;
                }
            });
        }
    });
    address
}

async fn serve(request: SessionRequest, seen: Seen) {
    let asked = Asked::new(request.path());
    if let Some(status) = asked.status() {
        // It has no other answers, and drops the connection with the request.
        match status {
            403 => request.forbidden().await,
            404 => request.not_found().await,
            429 => request.too_many_requests().await,
            _ => return,
        }
        return seen.note(&asked, json!(status));
    }
    // Subprotocols are headers to it.
    let offered = request.headers().get("wt-available-protocols");
    let offered = offered.and_then(|list| subprotocol::parse_list(list));
    let mut answer = Vec::new();
    if let Some(offered) = offered {
        let chosen = offered
            .last()
            .and_then(|last| subprotocol::format_item(last));
        answer.extend(chosen.map(|chosen| ("wt-protocol", chosen)));
        seen.note(&asked, json!(offered));
    }
    if let Ok(connection) = request.accept_with_headers(answer).await {
        answer::serve(Session(connection), asked, seen).await;
    }
}

/// Its client.
pub(crate) struct Dialler {
    endpoint: Endpoint<endpoint_side::Client>,
    target: Target,
}

impl Dialler {
    pub(crate) fn new(target: Target) -> Self {
        let config = ClientConfig::builder()
            .with_bind_address(loopback())
            .with_custom_tls(target.tls())
            .build();
        let endpoint = Endpoint::client(config).unwrap();
        Self { endpoint, target }
    }
}

impl Dial for Dialler {
    type Session = Session;
    const DRAINS: bool = false;

    async fn dial(&self, path: &str, offered: &[&str]) -> Result<(Session, Value), Refused> {
        let mut options = ConnectOptions::builder(self.target.url(path));
        let offered: Vec<String> = offered.iter().map(|&name| name.to_owned()).collect();
        if let Some(list) = subprotocol::format_list(&offered) {
            options = options.add_header("wt-available-protocols", list);
        }
        match self.endpoint.connect(options.build()).await {
            Ok(connection) => Ok((Session(connection), json!("no such call"))),
            Err(error) => Err(Refused(json!(error.to_string()))),
        }
    }

    async fn get(&self, session: &Session) -> Value {
        super::get(session.0.quic_connection(), &self.target).await
    }
}

/// A session.
pub(crate) struct Session(Connection);
/// A sending half.
pub(crate) struct Send(SendStream);
/// A receiving half.
pub(crate) struct Recv(RecvStream);

fn closed(error: ConnectionError) -> Closed {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            match u32::try_from(close.code().into_inner()) {
                Ok(code) => {
                    let reason = String::from_utf8_lossy(close.reason());
                    Closed::Peer(Close::new(code, &reason))
                }
                Err(_) => Closed::Lost(close.to_string()),
            }
        }
        ConnectionError::LocallyClosed => Closed::Here(Close::default()),
        error => Closed::Lost(error.to_string()),
    }
}

fn lost() -> Closed {
    Closed::Lost("not connected".into())
}

/// An application code on its way out.
fn to_wire(code: u32) -> VarInt {
    VarInt::try_from(code::to_h3(code)).expect("codes are below 2^62")
}

/// An application code on its way in.
fn from_wire(code: VarInt) -> u32 {
    code::from_h3(code.into_inner()).unwrap_or_default()
}

impl session::Session for Session {
    type Send = Send;
    type Recv = Recv;

    async fn open_bi(&self) -> Result<(Send, Recv), Closed> {
        let opening = self.0.open_bi().await.map_err(closed)?;
        let (send, recv) = opening.await.map_err(|_| lost())?;
        Ok((Send(send), Recv(recv)))
    }

    async fn open_uni(&self) -> Result<Send, Closed> {
        let opening = self.0.open_uni().await.map_err(closed)?;
        Ok(Send(opening.await.map_err(|_| lost())?))
    }

    async fn accept_bi(&self) -> Result<(Send, Recv), Closed> {
        let (send, recv) = self.0.accept_bi().await.map_err(closed)?;
        Ok((Send(send), Recv(recv)))
    }

    async fn accept_uni(&self) -> Result<Recv, Closed> {
        Ok(Recv(self.0.accept_uni().await.map_err(closed)?))
    }

    fn send_datagram(&self, payload: Bytes) -> Result<(), DatagramError> {
        self.0.send_datagram(payload).map_err(|_| lost().into())
    }

    async fn recv_datagram(&self) -> Result<Bytes, Closed> {
        Ok(self.0.receive_datagram().await.map_err(closed)?.payload())
    }

    fn max_datagram_size(&self) -> usize {
        self.0.max_datagram_size().unwrap_or(0)
    }

    fn drain(&self) {}

    async fn draining(&self) {
        std::future::pending().await
    }

    fn close(&self, close: Close) {
        self.0
            .close(VarInt::from_u32(close.code), close.reason.as_bytes());
    }

    async fn closed(&self) -> Closed {
        closed(self.0.closed().await)
    }
}

impl session::SendStream for Send {
    async fn write(&mut self, chunk: Bytes) -> Result<(), WriteError> {
        self.0.write_all(&chunk).await.map_err(|error| match error {
            StreamWriteError::Stopped(code) => WriteError::Stopped(from_wire(code)),
            StreamWriteError::Closed => WriteError::Finished,
            _ => lost().into(),
        })
    }

    fn finish(&mut self) -> Result<(), WriteError> {
        // Its own call waits for the acknowledgement.
        let quic = self.0.quic_stream_mut();
        quic.finish().map_err(|_| WriteError::Finished)
    }

    fn reset(&mut self, code: u32) {
        let _ = self.0.reset(to_wire(code));
    }

    async fn stopped(&mut self) -> Option<u32> {
        match self.0.stopped().await {
            StreamWriteError::Stopped(code) => Some(from_wire(code)),
            _ => None,
        }
    }
}

impl session::RecvStream for Recv {
    async fn read(&mut self) -> Result<Option<Bytes>, ReadError> {
        let mut buf = vec![0; 64 * 1024];
        match self.0.read(&mut buf).await {
            Ok(Some(len)) => {
                buf.truncate(len);
                Ok(Some(buf.into()))
            }
            Ok(None) => Ok(None),
            Err(StreamReadError::Reset(code)) => Err(ReadError::Reset(from_wire(code))),
            Err(_) => Err(lost().into()),
        }
    }

    fn stop(&mut self, code: u32) {
        // Its own call consumes the stream.
        let quic = self.0.quic_stream_mut();
        let code = quinn::VarInt::from_u64(code::to_h3(code)).expect("codes are below 2^62");
        let _ = quic.stop(code);
    }
}
