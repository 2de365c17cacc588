//! The crate `web-transport-quinn`.

use std::{io, net::UdpSocket, sync::Arc};

use bytes::Bytes;
use quinn::crypto::rustls::QuicServerConfig;
use web_transport_quinn::{RecvStream, SendStream, Server, Session};

use super::application::{self, Reads, Served, Writes};

pub(super) async fn serve(socket: UdpSocket, mut tls: rustls::ServerConfig) -> io::Result<()> {
    tls.alpn_protocols = vec![web_transport_quinn::ALPN.as_bytes().to_vec()];
    let tls = QuicServerConfig::try_from(tls).map_err(io::Error::other)?;
    let endpoint = quinn::Endpoint::new(
        quinn::EndpointConfig::default(),
        Some(quinn::ServerConfig::with_crypto(Arc::new(tls))),
        socket,
        Arc::new(quinn::TokioRuntime),
    )?;
    let mut server = Server::new(endpoint);
    while let Some(request) = server.accept().await {
        tokio::spawn(async move {
            if let Ok(session) = request.ok().await {
                application::run(session).await;
            }
        });
    }
    Ok(())
}

impl Served for Session {
    type Send = SendStream;
    type Recv = RecvStream;

    async fn accept_bi(&self) -> Option<(SendStream, RecvStream)> {
        Session::accept_bi(self).await.ok()
    }

    async fn recv_datagram(&self) -> Option<Bytes> {
        self.read_datagram().await.ok()
    }

    fn send_datagram(&self, payload: Bytes) {
        let _ = Session::send_datagram(self, payload);
    }
}

impl Writes for SendStream {
    async fn write(&mut self, chunk: Bytes) -> bool {
        self.write_chunk(chunk).await.is_ok()
    }

    async fn finish(mut self) {
        let _ = SendStream::finish(&mut self);
    }
}

impl Reads for RecvStream {
    async fn read(&mut self) -> Option<Bytes> {
        let chunk = self.read_chunk(64 * 1024, true).await;
        chunk.ok().flatten().map(|chunk| chunk.bytes)
    }
}
