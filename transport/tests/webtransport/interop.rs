//! Other implementations, as client of our server and as server of our client.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use wavry_transport::{
    session::{Closed, Header, Request, Response, Session as _},
    webtransport::{Client, ConnectError, Limits, Session},
};

use crate::{
    raw,
    support::{Identity, Service, close, echo, loopback, read_all, request, soon, write_all},
};

/// Our client against an echo server of another implementation.
async fn exercise(session: &Session) {
    let (mut send, mut recv) = soon(session.open_bi()).await.unwrap();
    let sent = vec![3; 200_000];
    let (_, got) = tokio::join!(write_all(&mut send, &sent), read_all(&mut recv));
    assert!(got == sent);
    let mut send = soon(session.open_uni()).await.unwrap();
    write_all(&mut send, b"uni").await;
    assert_eq!(
        read_all(&mut soon(session.accept_uni()).await.unwrap()).await,
        b"uni"
    );
    session
        .send_datagram(Bytes::from_static(b"datagram"))
        .unwrap();
    assert_eq!(soon(session.recv_datagram()).await.unwrap(), "datagram");
}

fn client(identity: &Identity) -> Client {
    Client::new(loopback(), identity.client_tls(), Limits::default()).unwrap()
}

fn h3(mut tls: rustls::ServerConfig) -> rustls::ServerConfig {
    tls.alpn_protocols = vec![b"h3".to_vec()];
    tls
}

mod wtransport_peer {
    use super::*;

    #[tokio::test]
    async fn its_client_speaks_to_our_server() {
        let service = Service::start(Limits::default());
        let mut tls = service.identity.client_tls();
        tls.alpn_protocols = vec![b"h3".to_vec()];
        let config = wtransport::ClientConfig::builder()
            .with_bind_address(loopback())
            .with_custom_tls(tls)
            .build();
        let endpoint = wtransport::Endpoint::client(config).unwrap();
        let url = format!("https://localhost:{}/w", service.address().port());
        let (connection, server) = tokio::join!(soon(endpoint.connect(url)), async {
            let requested = soon(service.requested()).await;
            assert_eq!(requested.request().path, "/w");
            requested.accept(Response::ok()).await.unwrap()
        });
        let server = tokio::spawn(echo(server));
        let connection = connection.unwrap();
        let (mut send, mut recv) = connection.open_bi().await.unwrap().await.unwrap();
        send.write_all(b"bi").await.unwrap();
        send.finish().await.unwrap();
        assert_eq!(to_end(&mut recv).await, b"bi");
        let mut send = connection.open_uni().await.unwrap().await.unwrap();
        send.write_all(b"uni").await.unwrap();
        send.finish().await.unwrap();
        let mut recv = soon(connection.accept_uni()).await.unwrap();
        assert_eq!(to_end(&mut recv).await, b"uni");
        connection.send_datagram(b"datagram").unwrap();
        let datagram = soon(connection.receive_datagram()).await.unwrap();
        assert_eq!(&*datagram.payload(), b"datagram");
        connection.close(wtransport::VarInt::from_u32(7), b"bye");
        // It closes the connection and sends no capsule.
        assert!(matches!(soon(server).await.unwrap(), Closed::Lost(_)));
    }

    #[tokio::test]
    async fn its_client_sees_a_refusal() {
        let service = Service::start(Limits::default());
        let mut tls = service.identity.client_tls();
        tls.alpn_protocols = vec![b"h3".to_vec()];
        let config = wtransport::ClientConfig::builder()
            .with_bind_address(loopback())
            .with_custom_tls(tls)
            .build();
        let endpoint = wtransport::Endpoint::client(config).unwrap();
        let url = format!("https://localhost:{}/w", service.address().port());
        let (connection, ()) = tokio::join!(soon(endpoint.connect(url)), async {
            let requested = soon(service.requested()).await;
            requested.reject(Response::status(403)).await;
        });
        let error = connection.expect_err("refused");
        assert!(
            matches!(error, wtransport::error::ConnectingError::SessionRejected),
            "{error:?}"
        );
    }

    #[tokio::test]
    async fn our_client_speaks_to_its_server() {
        let identity = Identity::new();
        let config = wtransport::ServerConfig::builder()
            .with_bind_address(loopback())
            .with_custom_tls(h3(identity.server_tls()))
            .build();
        let endpoint = wtransport::Endpoint::server(config).unwrap();
        let address = endpoint.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let asked = endpoint.accept().await.await.unwrap();
            let origin = asked.origin().map(str::to_owned);
            let connection = asked.accept().await.unwrap();
            let (mut send, mut recv) = connection.accept_bi().await.unwrap();
            send.write_all(&to_end(&mut recv).await).await.unwrap();
            send.finish().await.unwrap();
            let mut recv = connection.accept_uni().await.unwrap();
            let mut send = connection.open_uni().await.unwrap().await.unwrap();
            send.write_all(&to_end(&mut recv).await).await.unwrap();
            send.finish().await.unwrap();
            let datagram = connection.receive_datagram().await.unwrap();
            connection.send_datagram(datagram.payload()).unwrap();
            connection.closed().await;
            (origin, endpoint)
        });
        let asked = Request {
            origin: Some("https://a.example".into()),
            ..request("/")
        };
        let (session, _) = soon(client(&identity).connect(address, "localhost", asked))
            .await
            .unwrap();
        exercise(&session).await;
        session.close(close(7, "bye"));
        assert_eq!(soon(session.closed()).await, Closed::Here(close(7, "bye")));
        assert_eq!(
            soon(server).await.unwrap().0.as_deref(),
            Some("https://a.example")
        );
    }

    async fn to_end(recv: &mut wtransport::RecvStream) -> Vec<u8> {
        let (mut all, mut buf) = (Vec::new(), [0; 4096]);
        while let Some(n) = soon(recv.read(&mut buf)).await.unwrap() {
            all.extend_from_slice(&buf[..n]);
        }
        all
    }
}

mod web_transport_quinn_peer {
    use super::*;
    use web_transport_quinn::{
        SessionError, WebTransportError,
        proto::{ConnectRequest, ConnectResponse},
    };

    async fn connect(
        service: &Service,
        ask: impl Fn(ConnectRequest) -> ConnectRequest,
    ) -> Result<web_transport_quinn::Session, web_transport_quinn::ClientError> {
        let config = raw::client_config(&service.identity, &[b"h3"]);
        let client = web_transport_quinn::Client::new(raw::endpoint(), config);
        let url = format!("https://localhost:{}/q?a=b", service.address().port());
        let url: url::Url = url.parse().unwrap();
        soon(client.connect(ask(ConnectRequest::new(url)))).await
    }

    #[tokio::test]
    async fn its_client_speaks_to_our_server() {
        let service = Service::start(Limits::default());
        let mut answer = Response::ok();
        answer.subprotocol = Some("b".into());
        let (session, server) = tokio::join!(
            connect(&service, |ask| ask.with_protocol("a").with_protocol("b")),
            async {
                let requested = soon(service.requested()).await;
                assert_eq!(requested.request().path, "/q?a=b");
                assert_eq!(requested.request().subprotocols, ["a", "b"]);
                requested.accept(answer).await.unwrap()
            }
        );
        let server = tokio::spawn(echo(server));
        let session = session.unwrap();
        assert_eq!(session.response().unwrap().protocol.as_deref(), Some("b"));
        let (mut send, mut recv) = soon(session.open_bi()).await.unwrap();
        send.write_all(b"bi").await.unwrap();
        send.finish().unwrap();
        assert_eq!(soon(recv.read_to_end(100)).await.unwrap(), b"bi");
        let mut send = soon(session.open_uni()).await.unwrap();
        send.write_all(b"uni").await.unwrap();
        send.finish().unwrap();
        let mut recv = soon(session.accept_uni()).await.unwrap();
        assert_eq!(soon(recv.read_to_end(100)).await.unwrap(), b"uni");
        session
            .send_datagram(Bytes::from_static(b"datagram"))
            .unwrap();
        assert_eq!(soon(session.read_datagram()).await.unwrap(), "datagram");
        session.close(77, b"bye");
        assert_eq!(soon(server).await.unwrap(), Closed::Peer(close(77, "bye")));
    }

    #[tokio::test]
    async fn its_client_sees_our_close_our_codes_and_our_refusal() {
        let service = Service::start(Limits::default());
        let (session, ours) = tokio::join!(connect(&service, |ask| ask), async {
            soon(service.requested())
                .await
                .accept(Response::ok())
                .await
                .unwrap()
        });
        let session = session.unwrap();
        let (mut send, mut recv) = soon(session.open_bi()).await.unwrap();
        send.write_all(b"x").await.unwrap();
        let (mut our_send, mut our_recv) = soon(ours.accept_bi()).await.unwrap();
        wavry_transport::session::SendStream::reset(&mut our_send, 30);
        assert_eq!(soon(recv.received_reset()).await.unwrap(), Some(30));
        wavry_transport::session::RecvStream::stop(&mut our_recv, u32::MAX);
        assert_eq!(soon(send.stopped()).await.unwrap(), Some(u32::MAX));
        ours.close(close(4711, "enough"));
        let error = soon(session.closed()).await;
        assert!(
            matches!(&error, SessionError::WebTransportError(WebTransportError::Closed(4711, reason)) if reason == "enough"),
            "{error:?}"
        );
        let (refused, ()) = tokio::join!(connect(&service, |ask| ask), async {
            let requested = soon(service.requested()).await;
            requested.reject(Response::status(418)).await;
        });
        let error = refused.expect_err("refused");
        assert!(format!("{error:?}").contains("418"), "{error:?}");
    }

    /// Its server: answers the first request with `respond` and echoes, or refuses.
    async fn serve(
        identity: &Identity,
        respond: Result<ConnectResponse, u16>,
    ) -> (SocketAddr, tokio::task::JoinHandle<Option<SessionError>>) {
        let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(h3(identity.server_tls()));
        let config = quinn::ServerConfig::with_crypto(Arc::new(crypto.unwrap()));
        let endpoint = quinn::Endpoint::server(config, loopback()).unwrap();
        let address = endpoint.local_addr().unwrap();
        let mut server = web_transport_quinn::Server::new(endpoint);
        let task = tokio::spawn(async move {
            let asked = server.accept().await.unwrap();
            let response = match respond {
                Ok(response) => response,
                Err(status) => {
                    let quic = asked.conn().clone();
                    asked.reject(status.try_into().unwrap()).await.unwrap();
                    quic.closed().await;
                    return None;
                }
            };
            let session = asked.respond(response).await.unwrap();
            let (mut send, mut recv) = session.accept_bi().await.unwrap();
            send.write_all(&recv.read_to_end(1 << 20).await.unwrap())
                .await
                .unwrap();
            send.finish().unwrap();
            let mut recv = session.accept_uni().await.unwrap();
            let mut send = session.open_uni().await.unwrap();
            send.write_all(&recv.read_to_end(1 << 20).await.unwrap())
                .await
                .unwrap();
            send.finish().unwrap();
            let datagram = session.read_datagram().await.unwrap();
            session.send_datagram(datagram).unwrap();
            let word = session.accept_uni().await;
            if word.is_ok() {
                session.close(99, b"asked to");
            }
            Some(session.closed().await)
        });
        (address, task)
    }

    #[tokio::test]
    async fn our_client_speaks_to_its_server() {
        let identity = Identity::new();
        let selected = ConnectResponse::OK.with_protocol("b");
        for from_here in [true, false] {
            let (address, server) = serve(&identity, Ok(selected.clone())).await;
            let asked = Request {
                subprotocols: vec!["a".into(), "b".into()],
                headers: vec![Header {
                    name: "authorization".into(),
                    value: "Bearer x".into(),
                }],
                ..request("/")
            };
            let (session, response) = soon(client(&identity).connect(address, "localhost", asked))
                .await
                .unwrap();
            assert_eq!(response.subprotocol.as_deref(), Some("b"));
            exercise(&session).await;
            if from_here {
                session.close(close(77, "bye"));
                soon(session.closed()).await;
                let error = soon(server).await.unwrap().unwrap();
                assert!(
                    matches!(&error, SessionError::WebTransportError(WebTransportError::Closed(77, reason)) if reason == "bye"),
                    "{error:?}"
                );
            } else {
                let mut send = soon(session.open_uni()).await.unwrap();
                write_all(&mut send, b"").await;
                let closed = soon(session.closed()).await;
                assert_eq!(closed, Closed::Peer(close(99, "asked to")));
            }
        }
    }

    #[tokio::test]
    async fn our_client_sees_its_refusal() {
        let identity = Identity::new();
        let (address, _server) = serve(&identity, Err(403)).await;
        let refused = soon(client(&identity).connect(address, "localhost", request("/"))).await;
        assert!(matches!(refused, Err(ConnectError::Rejected(r)) if r.status == 403));
    }
}
