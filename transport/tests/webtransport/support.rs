//! Certificates, servers and clients for the tests here.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use wavry_transport::{
    session::{Close, Closed, RecvStream as _, Request, Response, SendStream as _, Session as _},
    socket,
    webtransport::{
        Client, ConnectError, Limits, RecvStream, Requested, SendStream, Server, Session,
    },
};

/// A certificate for `localhost` and its key.
pub(crate) struct Identity {
    pub(crate) cert: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Identity {
    pub(crate) fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        Self {
            cert: made.cert.der().clone(),
            key: made.signing_key.serialize_der(),
        }
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.key.clone()).unwrap()
    }

    pub(crate) fn server_tls(&self) -> rustls::ServerConfig {
        rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![self.cert.clone()], self.key())
            .unwrap()
    }

    pub(crate) fn client_tls(&self) -> rustls::ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.cert.clone()).unwrap();
        rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth()
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

pub(crate) fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// A server and its identity.
pub(crate) struct Service {
    pub(crate) server: Server,
    pub(crate) identity: Identity,
}

impl Service {
    pub(crate) fn start(limits: Limits) -> Self {
        Self::sharded(limits, 1)
    }

    pub(crate) fn sharded(limits: Limits, shards: usize) -> Self {
        let identity = Identity::new();
        let sockets = socket::bind_shards(loopback(), shards).unwrap();
        let server = Server::sharded(sockets, identity.server_tls(), limits).unwrap();
        Self { server, identity }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.local_addr().unwrap()
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(loopback(), self.identity.client_tls(), Limits::default()).unwrap()
    }

    pub(crate) async fn connect(
        &self,
        client: &Client,
        request: Request,
    ) -> Result<(Session, Response), ConnectError> {
        client.connect(self.address(), "localhost", request).await
    }

    /// The next request.
    pub(crate) async fn requested(&self) -> Requested {
        self.server.accept().await.expect("the server is open")
    }

    /// A session, seen from both ends: client's, server's.
    pub(crate) async fn pair(&self) -> (Session, Session) {
        let client = self.client();
        let (ours, theirs) = tokio::join!(self.connect(&client, request("/pair")), async {
            self.requested().await.accept(Response::ok()).await
        });
        (ours.unwrap().0, theirs.unwrap())
    }
}

pub(crate) fn request(path: &str) -> Request {
    Request {
        authority: "localhost".into(),
        path: path.into(),
        ..Request::default()
    }
}

/// Fails the test instead of hanging it.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .expect("it should have happened by now")
}

/// Everything to the end of the stream.
pub(crate) async fn read_all(recv: &mut RecvStream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(chunk) = soon(recv.read()).await.unwrap() {
        all.extend_from_slice(&chunk);
    }
    all
}

pub(crate) async fn write_all(send: &mut SendStream, bytes: &[u8]) {
    send.write(Bytes::copy_from_slice(bytes)).await.unwrap();
    send.finish().unwrap();
}

/// Echoes whatever comes until the session is over: bidirectional streams on themselves,
/// unidirectional ones on a new one, datagrams as they are.
pub(crate) async fn echo(session: Session) -> Closed {
    let session = Arc::new(session);
    let bi = async {
        while let Ok((mut send, mut recv)) = session.accept_bi().await {
            tokio::spawn(async move { pump(&mut recv, &mut send).await });
        }
    };
    let uni = async {
        while let Ok(mut recv) = session.accept_uni().await {
            let session = session.clone();
            tokio::spawn(async move {
                if let Ok(mut send) = session.open_uni().await {
                    pump(&mut recv, &mut send).await;
                }
            });
        }
    };
    let datagrams = async {
        while let Ok(payload) = session.recv_datagram().await {
            let _ = session.send_datagram(payload);
        }
    };
    tokio::join!(bi, uni, datagrams, session.closed()).3
}

async fn pump(recv: &mut RecvStream, send: &mut SendStream) {
    while let Ok(Some(chunk)) = recv.read().await {
        if send.write(chunk).await.is_err() {
            return;
        }
    }
    let _ = send.finish();
}

pub(crate) fn close(code: u32, reason: &str) -> Close {
    Close::new(code, reason)
}
