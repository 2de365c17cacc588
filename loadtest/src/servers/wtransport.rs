//! The crate `wtransport`.

use std::{io, net::UdpSocket};

use bytes::{Bytes, BytesMut};
use wtransport::{Connection, Endpoint, RecvStream, SendStream, ServerConfig};

use super::application::{self, Reads, Served, Writes};

/// Its streams are read into a buffer of the reader's, which is renewed when little is left of it.
const BUFFER: usize = 64 * 1024;

pub(super) async fn serve(socket: UdpSocket, mut tls: rustls::ServerConfig) -> io::Result<()> {
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let config = ServerConfig::builder()
        .with_bind_socket(socket)
        .with_custom_tls(tls)
        .build();
    let endpoint = Endpoint::server(config)?;
    loop {
        let incoming = endpoint.accept().await;
        tokio::spawn(async move {
            if let Ok(request) = incoming.await
                && let Ok(connection) = request.accept().await
            {
                application::run(connection).await;
            }
        });
    }
}

impl Served for Connection {
    type Send = SendStream;
    type Recv = Buffered;

    async fn accept_bi(&self) -> Option<(SendStream, Buffered)> {
        let (send, recv) = Connection::accept_bi(self).await.ok()?;
        let buffer = BytesMut::new();
        Some((send, Buffered { recv, buffer }))
    }

    async fn recv_datagram(&self) -> Option<Bytes> {
        Some(self.receive_datagram().await.ok()?.payload())
    }

    fn send_datagram(&self, payload: Bytes) {
        let _ = Connection::send_datagram(self, payload);
    }
}

impl Writes for SendStream {
    async fn write(&mut self, chunk: Bytes) -> bool {
        self.write_all(&chunk).await.is_ok()
    }

    async fn finish(mut self) {
        let _ = SendStream::finish(&mut self).await;
    }
}

pub(super) struct Buffered {
    recv: RecvStream,
    buffer: BytesMut,
}

impl Reads for Buffered {
    async fn read(&mut self) -> Option<Bytes> {
        if self.buffer.len() < BUFFER / 16 {
            self.buffer = BytesMut::zeroed(BUFFER);
        }
        let len = self.recv.read(&mut self.buffer).await.ok()??;
        Some(self.buffer.split_to(len).freeze())
    }
}
