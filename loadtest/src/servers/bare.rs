//! Bare quinn. A session is a connection on which the client asks for it on a bidirectional stream,
//! as CONNECT does, after both sides have sent a few bytes on unidirectional ones, as HTTP/3 does.

use std::{io, net::UdpSocket, sync::Arc};

use bytes::Bytes;
use quinn::{VarInt, crypto::rustls::QuicServerConfig};
use wavry_transport::webtransport::{CONNECTION_WINDOW, STREAM_WINDOW};

use super::application::{self, Reads, Served, Writes};

pub(super) const ALPN: &[u8] = b"wavry-baseline";
/// What either side says first, on a stream that stays open: as long as HTTP/3's type and SETTINGS.
pub(super) const HELLO: &[u8] = &[0; 32];
/// Asks for the session: as long as a CONNECT request.
pub(super) const REQUEST: &[u8] = &[0; 64];
/// Grants it: as long as an answer.
pub(super) const ANSWER: &[u8] = &[0; 8];

/// Windows of Wavry's own server; all else is quinn's default.
fn transport() -> quinn::TransportConfig {
    let mut transport = quinn::TransportConfig::default();
    transport
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW));
    transport
}

pub(super) async fn serve(socket: UdpSocket, mut tls: rustls::ServerConfig) -> io::Result<()> {
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let tls = QuicServerConfig::try_from(tls).map_err(io::Error::other)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    config.transport_config(Arc::new(transport()));
    let endpoint = quinn::Endpoint::new(
        quinn::EndpointConfig::default(),
        Some(config),
        socket,
        Arc::new(quinn::TokioRuntime),
    )?;
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            // A connection that fails is the client's to report.
            if let Ok(connection) = incoming.await {
                let _ = session(connection).await;
            }
        });
    }
    Ok(())
}

async fn session(
    connection: quinn::Connection,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut hello = connection.open_uni().await?;
    hello.write_all(HELLO).await?;
    let mut control = Vec::new();
    for _ in 0..3 {
        let mut recv = connection.accept_uni().await?;
        recv.read_chunk(4096, true).await?;
        control.push(recv);
    }
    let (mut send, mut recv) = connection.accept_bi().await?;
    recv.read_exact(&mut [0; REQUEST.len()]).await?;
    send.write_all(ANSWER).await?;
    application::run(Session(connection)).await;
    Ok(())
}

struct Session(quinn::Connection);

impl Served for Session {
    type Send = quinn::SendStream;
    type Recv = quinn::RecvStream;

    async fn accept_bi(&self) -> Option<(quinn::SendStream, quinn::RecvStream)> {
        self.0.accept_bi().await.ok()
    }

    async fn recv_datagram(&self) -> Option<Bytes> {
        self.0.read_datagram().await.ok()
    }

    fn send_datagram(&self, payload: Bytes) {
        let _ = self.0.send_datagram(payload);
    }
}

impl Writes for quinn::SendStream {
    async fn write(&mut self, chunk: Bytes) -> bool {
        self.write_chunk(chunk).await.is_ok()
    }

    async fn finish(mut self) {
        let _ = quinn::SendStream::finish(&mut self);
    }
}

impl Reads for quinn::RecvStream {
    async fn read(&mut self) -> Option<Bytes> {
        let chunk = self.read_chunk(64 * 1024, true).await;
        chunk.ok().flatten().map(|chunk| chunk.bytes)
    }
}
