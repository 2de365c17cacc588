//! web-transport-quinn, as client and as server.

use std::net::SocketAddr;

use bytes::Bytes;
use serde_json::{Value, json};
use wavry_transport::session::{self, Close, Closed, DatagramError, ReadError, WriteError};
use web_transport_quinn::{
    Client, ClientError, RecvStream, SendStream, Server, SessionError, WebTransportError,
    proto::{self, ConnectRequest, ConnectResponse},
};

use super::{Certificate, Target, loopback, quic_client, quic_server};
use crate::{
    answer,
    script::{Dial, Refused},
    seen::{Asked, Seen},
};

/// Starts the interop service; where it is.
pub(crate) fn start(certificate: &Certificate, seen: Seen) -> SocketAddr {
    let endpoint = quinn::Endpoint::server(quic_server(certificate), loopback()).unwrap();
    let address = endpoint.local_addr().unwrap();
    let mut server = Server::new(endpoint);
    tokio::spawn(async move {
        while let Some(request) = server.accept().await {
            let seen = seen.clone();
            tokio::spawn(async move {
                let asked = Asked::new(request.connect().url.path());
                if let Some(status) = asked.status() {
                    seen.note(&asked, json!(status));
                    let quic = request.conn().clone();
                    let _ = request.reject(status.try_into().unwrap()).await;
                    quic.closed().await;
                    return;
                }
                let offered = &request.connect().protocols;
                let mut response = ConnectResponse::OK;
                if let Some(last) = offered.last() {
                    seen.note(&asked, json!(offered));
                    response = response.with_protocol(last);
                }
                if let Ok(session) = request.respond(response).await {
                    answer::serve(Session(session), asked, seen).await;
                }
            });
        }
    });
    address
}

/// Its client.
pub(crate) struct Dialler {
    client: Client,
    target: Target,
}

impl Dialler {
    pub(crate) fn new(target: Target) -> Self {
        let endpoint = quinn::Endpoint::client(loopback()).unwrap();
        let client = Client::new(endpoint, quic_client(&target));
        Self { client, target }
    }
}

fn refused(error: &ClientError) -> Refused {
    use web_transport_quinn::ConnectError::ProtoError;
    Refused(match error {
        ClientError::HttpError(ProtoError(proto::ConnectError::WrongStatus(Some(status)))) => {
            json!(status.as_u16())
        }
        error => json!(error.to_string()),
    })
}

impl Dial for Dialler {
    type Session = Session;
    const DRAINS: bool = false;

    async fn dial(&self, path: &str, offered: &[&str]) -> Result<(Session, Value), Refused> {
        let url: url::Url = self.target.url(path).parse().unwrap();
        let offered = offered.iter().map(|&name| name.to_owned());
        let request = ConnectRequest::new(url).with_protocols(offered);
        let opened = self.client.connect(request).await;
        let session = opened.map_err(|error| refused(&error))?;
        let chosen = json!(session.protocol());
        Ok((Session(session), chosen))
    }

    async fn get(&self, session: &Session) -> Value {
        super::get(&session.0, &self.target).await
    }
}

/// A session.
pub(crate) struct Session(web_transport_quinn::Session);
/// A sending half.
pub(crate) struct Send(SendStream);
/// A receiving half.
pub(crate) struct Recv(RecvStream);

fn closed(error: SessionError) -> Closed {
    match error {
        SessionError::WebTransportError(WebTransportError::Closed(code, reason)) => {
            Closed::Peer(Close::new(code, &reason))
        }
        SessionError::ConnectionError(quinn::ConnectionError::LocallyClosed) => {
            Closed::Here(Close::default())
        }
        error => Closed::Lost(error.to_string()),
    }
}

impl session::Session for Session {
    type Send = Send;
    type Recv = Recv;

    async fn open_bi(&self) -> Result<(Send, Recv), Closed> {
        let (send, recv) = self.0.open_bi().await.map_err(closed)?;
        Ok((Send(send), Recv(recv)))
    }

    async fn open_uni(&self) -> Result<Send, Closed> {
        Ok(Send(self.0.open_uni().await.map_err(closed)?))
    }

    async fn accept_bi(&self) -> Result<(Send, Recv), Closed> {
        let (send, recv) = self.0.accept_bi().await.map_err(closed)?;
        Ok((Send(send), Recv(recv)))
    }

    async fn accept_uni(&self) -> Result<Recv, Closed> {
        Ok(Recv(self.0.accept_uni().await.map_err(closed)?))
    }

    fn send_datagram(&self, payload: Bytes) -> Result<(), DatagramError> {
        self.0
            .send_datagram(payload)
            .map_err(|error| closed(error).into())
    }

    async fn recv_datagram(&self) -> Result<Bytes, Closed> {
        self.0.read_datagram().await.map_err(closed)
    }

    fn max_datagram_size(&self) -> usize {
        self.0.max_datagram_size()
    }

    fn drain(&self) {}

    async fn draining(&self) {
        std::future::pending().await
    }

    fn close(&self, close: Close) {
        self.0.close(close.code, close.reason.as_bytes());
    }

    async fn closed(&self) -> Closed {
        closed(self.0.closed().await)
    }
}

impl session::SendStream for Send {
    async fn write(&mut self, chunk: Bytes) -> Result<(), WriteError> {
        use web_transport_quinn::WriteError::{SessionError, Stopped};
        self.0
            .write_chunk(chunk)
            .await
            .map_err(|error| match error {
                Stopped(code) => WriteError::Stopped(code),
                SessionError(error) => closed(error).into(),
                _ => WriteError::Finished,
            })
    }

    fn finish(&mut self) -> Result<(), WriteError> {
        self.0.finish().map_err(|_| WriteError::Finished)
    }

    fn reset(&mut self, code: u32) {
        let _ = self.0.reset(code);
    }

    async fn stopped(&mut self) -> Option<u32> {
        self.0.stopped().await.ok().flatten()
    }
}

impl session::RecvStream for Recv {
    async fn read(&mut self) -> Result<Option<Bytes>, ReadError> {
        use web_transport_quinn::ReadError::{Reset, SessionError};
        match self.0.read_chunk(64 * 1024, true).await {
            Ok(chunk) => Ok(chunk.map(|chunk| chunk.bytes)),
            Err(Reset(code)) => Err(ReadError::Reset(code)),
            Err(SessionError(error)) => Err(closed(error).into()),
            Err(error) => Err(Closed::Lost(error.to_string()).into()),
        }
    }

    fn stop(&mut self, code: u32) {
        let _ = self.0.stop(code);
    }
}
