//! The baseline: bare QUIC, one connection, an echo at its other end. It has the same interface as
//! a session, so that both sides are measured by the same code.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use wavry_credentials::cert::{self, DevelopmentAuthority, Store, Trust};
use wavry_transport::session::{
    self, Close, Closed, DatagramError, ReadError, RecvStream as _, SendStream as _, Session as _,
    WriteError,
};

use crate::{
    Error, progress,
    shaper::{Host, Shaper},
};

const ALPN: &[u8] = b"wavry-baseline";

/// An echo server, on threads of its own as a server would be, and a way to it.
pub(crate) struct Baseline {
    address: SocketAddr,
    client: quinn::Endpoint,
    client_config: quinn::ClientConfig,
    server: Option<tokio::runtime::Runtime>,
    _certificates: tempfile::TempDir,
}

impl Baseline {
    /// Starts it on a port of the system's choosing, with a certificate of the kind Wavry uses.
    pub(crate) fn start() -> Result<Self, Error> {
        let (server_config, client_config, certificates) = configs(transport())?;
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let endpoint = {
            let _server = server.enter();
            quinn::Endpoint::server(server_config, loopback).map_err(failed)?
        };
        let address = endpoint.local_addr().map_err(failed)?;
        server.spawn(serve(endpoint));
        Ok(Self {
            address,
            client: quinn::Endpoint::client(loopback).map_err(failed)?,
            client_config,
            server: Some(server),
            _certificates: certificates,
        })
    }

    pub(crate) async fn connect(&self) -> Result<Session, Error> {
        let connecting = self
            .client
            .connect_with(self.client_config.clone(), self.address, "localhost")
            .map_err(|error| Error::Baseline(error.to_string()))?;
        let connection = connecting
            .await
            .map_err(|error| Error::Baseline(error.to_string()))?;
        Ok(Session(connection))
    }
}

impl Drop for Baseline {
    fn drop(&mut self) {
        // A runtime must not be waited for inside another.
        if let Some(server) = self.server.take() {
            server.shutdown_background();
        }
    }
}

/// Two ends of one bare connection on a shaped network.
pub(crate) struct Pair {
    /// Client and server.
    pub(crate) ends: [Arc<Session>; 2],
    /// Theirs.
    pub(crate) hosts: [Host; 2],
    _endpoints: [quinn::Endpoint; 2],
    _certificates: tempfile::TempDir,
}

impl Pair {
    /// Connects them as two nodes would be: packets of one size that is never searched for, the same windows,
    /// the same congestion control.
    pub(crate) async fn connect(network: &Shaper) -> Result<Self, Error> {
        let mut transport = quinn::TransportConfig::default();
        transport
            .initial_mtu(1_280)
            .min_mtu(1_280)
            .mtu_discovery_config(None)
            .stream_receive_window(quinn::VarInt::from_u32(1024 * 1024))
            .receive_window(quinn::VarInt::MAX)
            .send_window(16 * 1024 * 1024);
        let (server_config, client_config, certificates) = configs(Arc::new(transport))?;
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = quinn::Endpoint::server(server_config, loopback).map_err(failed)?;
        let client = quinn::Endpoint::client(loopback).map_err(failed)?;
        let hosts = [
            network.host().map_err(failed)?,
            network.host().map_err(failed)?,
        ];
        for (host, endpoint) in hosts.iter().zip([&client, &server]) {
            network.attach(*host, endpoint.local_addr().map_err(failed)?);
        }
        let connecting = client
            .connect_with(client_config, hosts[1].address(), "localhost")
            .map_err(failed)?;
        let accepting = async {
            let incoming = server.accept().await;
            let incoming = incoming.ok_or_else(|| failed("the endpoint is closed"))?;
            incoming.await.map_err(failed)
        };
        let (near, far) = tokio::join!(connecting, accepting);
        Ok(Self {
            ends: [Session(near.map_err(failed)?), Session(far?)].map(Arc::new),
            hosts,
            _endpoints: [client, server],
            _certificates: certificates,
        })
    }
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Baseline(error.to_string())
}

/// For both sides, with a certificate of the kind Wavry uses, whose file lives as long as its directory.
fn configs(
    transport: Arc<quinn::TransportConfig>,
) -> Result<(quinn::ServerConfig, quinn::ClientConfig, tempfile::TempDir), Error> {
    let certificates = tempfile::tempdir().map_err(failed)?;
    let directory = certificates.path();
    let authority = DevelopmentAuthority::open(directory).map_err(failed)?;
    authority
        .issue("baseline", &["localhost", "127.0.0.1"])
        .map_err(failed)?;
    let store = Store::new();
    store
        .load(
            &directory.join("baseline.crt"),
            &directory.join("baseline.key"),
        )
        .map_err(failed)?;

    let mut server_tls = store.server_config();
    server_tls.alpn_protocols = vec![ALPN.to_vec()];
    let server_tls = QuicServerConfig::try_from(server_tls).map_err(failed)?;
    let trust = Trust::Authorities(directory.join("ca.crt"));
    let mut client_tls = cert::client_config(&trust).map_err(failed)?;
    client_tls.alpn_protocols = vec![ALPN.to_vec()];
    let client_tls = QuicClientConfig::try_from(client_tls).map_err(failed)?;

    let mut server_config = quinn::ServerConfig::with_crypto(Arc::new(server_tls));
    server_config.transport = transport.clone();
    let mut client_config = quinn::ClientConfig::new(Arc::new(client_tls));
    client_config.transport_config(transport);
    Ok((server_config, client_config, certificates))
}

/// As Wavry's own connections: the windows that quinn's figures are best with, nothing else.
fn transport() -> Arc<quinn::TransportConfig> {
    let mut transport = quinn::TransportConfig::default();
    transport.stream_receive_window(quinn::VarInt::from_u32(2 * 1024 * 1024));
    transport.max_concurrent_bidi_streams(quinn::VarInt::from_u32(256));
    Arc::new(transport)
}

async fn serve(endpoint: quinn::Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            let connection = match incoming.await {
                Ok(connection) => connection,
                Err(error) => return progress(&format!("baseline: {error}")),
            };
            let datagrams = Session(connection.clone());
            tokio::spawn(async move {
                while let Ok(payload) = datagrams.recv_datagram().await {
                    // A full buffer loses the datagram, as it would anywhere.
                    let _ = datagrams.send_datagram(payload);
                }
            });
            let session = Session(connection);
            while let Ok((mut send, mut recv)) = session.accept_bi().await {
                tokio::spawn(async move {
                    while let Ok(Some(chunk)) = recv.read().await {
                        if send.write(chunk).await.is_err() {
                            return;
                        }
                    }
                    let _ = send.finish();
                });
            }
        });
    }
}

/// A bare connection as a session.
pub(crate) struct Session(quinn::Connection);

/// A bare stream.
pub(crate) struct SendStream(quinn::SendStream);

/// A bare stream.
pub(crate) struct RecvStream(quinn::RecvStream);

fn lost(error: impl std::fmt::Display) -> Closed {
    Closed::Lost(error.to_string())
}

/// An application error code; those of the baseline are all small.
fn code(code: quinn::VarInt) -> u32 {
    u32::try_from(code.into_inner()).unwrap_or(u32::MAX)
}

impl session::Session for Session {
    type Send = SendStream;
    type Recv = RecvStream;

    async fn open_bi(&self) -> Result<(SendStream, RecvStream), Closed> {
        let (send, recv) = self.0.open_bi().await.map_err(lost)?;
        Ok((SendStream(send), RecvStream(recv)))
    }

    async fn open_uni(&self) -> Result<SendStream, Closed> {
        self.0.open_uni().await.map(SendStream).map_err(lost)
    }

    async fn accept_bi(&self) -> Result<(SendStream, RecvStream), Closed> {
        let (send, recv) = self.0.accept_bi().await.map_err(lost)?;
        Ok((SendStream(send), RecvStream(recv)))
    }

    async fn accept_uni(&self) -> Result<RecvStream, Closed> {
        self.0.accept_uni().await.map(RecvStream).map_err(lost)
    }

    fn send_datagram(&self, payload: Bytes) -> Result<(), DatagramError> {
        let len = payload.len();
        // Otherwise the oldest waiting one would be dropped without a word.
        if self.0.datagram_send_buffer_space() < len {
            return Err(DatagramError::Full);
        }
        self.0.send_datagram(payload).map_err(|error| match error {
            quinn::SendDatagramError::TooLarge => DatagramError::TooLarge {
                len,
                max: self.max_datagram_size(),
            },
            other => DatagramError::Session(lost(other)),
        })
    }

    async fn recv_datagram(&self) -> Result<Bytes, Closed> {
        self.0.read_datagram().await.map_err(lost)
    }

    fn max_datagram_size(&self) -> usize {
        self.0.max_datagram_size().unwrap_or(0)
    }

    fn drain(&self) {}

    async fn draining(&self) {
        std::future::pending().await
    }

    fn close(&self, close: Close) {
        self.0.close(close.code.into(), close.reason.as_bytes());
    }

    async fn closed(&self) -> Closed {
        lost(self.0.closed().await)
    }
}

impl session::SendStream for SendStream {
    async fn write(&mut self, chunk: Bytes) -> Result<(), WriteError> {
        self.0
            .write_chunk(chunk)
            .await
            .map_err(|error| match error {
                quinn::WriteError::Stopped(by) => WriteError::Stopped(code(by)),
                quinn::WriteError::ClosedStream => WriteError::Finished,
                other => WriteError::Session(lost(other)),
            })
    }

    fn finish(&mut self) -> Result<(), WriteError> {
        self.0.finish().map_err(|_| WriteError::Finished)
    }

    fn reset(&mut self, code: u32) {
        // A stream that is over needs no reset.
        let _ = self.0.reset(code.into());
    }

    async fn stopped(&mut self) -> Option<u32> {
        self.0.stopped().await.ok().flatten().map(code)
    }
}

impl session::RecvStream for RecvStream {
    async fn read(&mut self) -> Result<Option<Bytes>, ReadError> {
        match self.0.read_chunk(64 * 1024, true).await {
            Ok(chunk) => Ok(chunk.map(|chunk| chunk.bytes)),
            Err(quinn::ReadError::Reset(by)) => Err(ReadError::Reset(code(by))),
            Err(other) => Err(ReadError::Session(lost(other))),
        }
    }

    fn stop(&mut self, code: u32) {
        // A stream that is over needs no stop.
        let _ = self.0.stop(code.into());
    }
}
