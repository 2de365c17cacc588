//! Wavry's own session layer.

use std::{io, net::UdpSocket};

use bytes::Bytes;
use wavry_transport::{
    session::{self, Response},
    webtransport::{Limits, RecvStream, SendStream, Server, Session},
};

use super::application::{self, Reads, Served, Writes};

pub(super) async fn serve(socket: UdpSocket, tls: rustls::ServerConfig) -> io::Result<()> {
    // All clients are one machine here.
    let limits = Limits {
        connections_per_ip: usize::MAX,
        unproven_handshakes: usize::MAX,
        handshake_rate: u32::MAX,
        handshake_rate_per_ip: u32::MAX,
        ..Limits::default()
    };
    let server = Server::new(socket, tls, limits)?;
    while let Some(requested) = server.accept().await {
        tokio::spawn(async move {
            // A session that fails is the client's to report.
            if let Ok(session) = requested.accept(Response::ok()).await {
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
        session::Session::accept_bi(self).await.ok()
    }

    async fn recv_datagram(&self) -> Option<Bytes> {
        session::Session::recv_datagram(self).await.ok()
    }

    fn send_datagram(&self, payload: Bytes) {
        let _ = session::Session::send_datagram(self, payload);
    }
}

impl Writes for SendStream {
    async fn write(&mut self, chunk: Bytes) -> bool {
        session::SendStream::write(self, chunk).await.is_ok()
    }

    async fn finish(mut self) {
        let _ = session::SendStream::finish(&mut self);
    }
}

impl Reads for RecvStream {
    async fn read(&mut self) -> Option<Bytes> {
        session::RecvStream::read(self).await.ok().flatten()
    }
}
