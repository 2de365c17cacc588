//! A client that sends what it likes.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, StatusCode,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use wavry_credentials::{
    cert::{self, Trust},
    identity::Identity,
    token::{Scope, SigningKey},
};
use wavry_proto::{
    control::{
        Challenge, EXPORTER_LABEL, EXPORTER_LEN, Heartbeat, Problem, Register, possession_message,
    },
    id::{Epoch, NodeId},
    token::{NodeRequest, Registration, Validity},
};

use crate::world::{World, service};

pub(crate) struct Wire {
    pub(crate) exporter: [u8; EXPORTER_LEN],
    sender: SendRequest<Full<Bytes>>,
}

/// Status, and the last word of the problem's type where there is one.
pub(crate) type Said = (u16, String);

pub(crate) async fn tls(world: &World, address: SocketAddr) -> TlsStream<TcpStream> {
    let trust = Trust::Authorities(world.path("ca.crt"));
    connect(cert::client_config(&trust).unwrap(), address).await
}

async fn connect(tls: rustls::ClientConfig, address: SocketAddr) -> TlsStream<TcpStream> {
    let tls = TlsConnector::from(Arc::new(tls));
    let name = address.ip().to_string().try_into().unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    tls.connect(name, stream).await.unwrap()
}

impl Wire {
    pub(crate) async fn open(world: &World, address: SocketAddr) -> Self {
        let trust = Trust::Authorities(world.path("ca.crt"));
        Self::over(cert::client_config(&trust).unwrap(), address).await
    }

    /// Over TLS of its own.
    pub(crate) async fn over(tls: rustls::ClientConfig, address: SocketAddr) -> Self {
        let stream = connect(tls, address).await;
        let exporter = stream
            .get_ref()
            .1
            .export_keying_material([0; EXPORTER_LEN], EXPORTER_LABEL, None)
            .unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self { exporter, sender }
    }

    pub(crate) async fn send(
        &mut self,
        method: Method,
        path: &str,
        bearer: Option<&str>,
        body: impl Into<Bytes>,
    ) -> (StatusCode, Option<String>, Bytes) {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "master");
        if let Some(token) = bearer {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(Full::new(body.into())).unwrap();
        self.sender.ready().await.unwrap();
        let (parts, body) = self
            .sender
            .send_request(request)
            .await
            .unwrap()
            .into_parts();
        let tag = parts
            .headers
            .get("etag")
            .map(|t| t.to_str().unwrap().to_owned());
        (parts.status, tag, body.collect().await.unwrap().to_bytes())
    }

    /// Sends a request as it is, and takes status and headers of the answer.
    pub(crate) async fn headers(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> (u16, hyper::HeaderMap) {
        self.sender.ready().await.unwrap();
        let answer = self.sender.send_request(request).await.unwrap();
        let (parts, body) = answer.into_parts();
        body.collect().await.unwrap();
        (parts.status.as_u16(), parts.headers)
    }

    /// Sends a request as it is.
    pub(crate) async fn answer(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> hyper::Response<Incoming> {
        self.sender.ready().await.unwrap();
        self.sender.send_request(request).await.unwrap()
    }

    /// Sends a request as it is, and takes the status of the answer.
    pub(crate) async fn raw(&mut self, request: Request<Full<Bytes>>) -> u16 {
        self.sender.ready().await.unwrap();
        let answer = self.sender.send_request(request).await.unwrap();
        answer.status().as_u16()
    }

    /// Sends, and takes the answer for a problem or for nothing but a status.
    pub(crate) async fn problem(
        &mut self,
        method: Method,
        path: &str,
        bearer: Option<&str>,
        body: impl Into<Bytes>,
    ) -> Said {
        let (status, _, body) = self.send(method, path, bearer, body).await;
        if status.is_success() {
            return (status.as_u16(), String::new());
        }
        let problem: Problem = serde_json::from_slice(&body).unwrap();
        assert_eq!(problem.status, status.as_u16());
        let word = problem.r#type.strip_prefix(Problem::URN).unwrap();
        (problem.status, word.to_owned())
    }

    /// The id of a request without a token.
    pub(crate) async fn request_id(&mut self, method: Method, path: &str) -> String {
        let request = Request::builder().method(method).uri(path);
        let request = request.header("host", "master");
        self.sender.ready().await.unwrap();
        let sent = self
            .sender
            .send_request(request.body(Full::default()).unwrap());
        let id = sent.await.unwrap().headers()["x-request-id"].clone();
        id.to_str().unwrap().to_owned()
    }

    pub(crate) async fn nonce(&mut self) -> String {
        let (status, _, body) = self
            .send(Method::POST, "/v1/nodes/challenge", None, "")
            .await;
        assert_eq!(status, 200);
        serde_json::from_slice::<Challenge>(&body).unwrap().nonce
    }

    /// Registers as a node does.
    pub(crate) async fn register(&mut self, identity: &Identity, token: &str, jti: &str) -> Said {
        let nonce = self.nonce().await;
        let request = self.registration(identity, token, jti, &nonce);
        self.post_registration(&request).await
    }

    /// A registration that is right in every way, for this connection.
    pub(crate) fn registration(
        &self,
        identity: &Identity,
        token: &str,
        jti: &str,
        nonce: &str,
    ) -> Register {
        let message = possession_message(jti, nonce, &self.exporter);
        Register {
            token: token.to_owned(),
            public_key: identity.public_key(),
            nonce: nonce.to_owned(),
            signature: hex::encode(identity.sign(&message)),
            addresses: vec!["127.0.0.1:4444".parse().unwrap()],
            services: vec![service("echo")],
        }
    }

    pub(crate) async fn post_registration(&mut self, request: &Register) -> Said {
        let body = serde_json::to_vec(request).unwrap();
        self.problem(Method::POST, "/v1/nodes/register", None, body)
            .await
    }

    /// A node's own token for this connection.
    pub(crate) fn bearer(&self, world: &World, identity: &Identity, node: &NodeId) -> String {
        let request = NodeRequest {
            sub: node.clone(),
            validity: valid_for(30),
        };
        let scope = Scope {
            cluster: &world.cluster,
            audience: "master",
            binding: &self.exporter,
        };
        SigningKey::from(identity).sign(&request, scope)
    }

    pub(crate) async fn heartbeat(&mut self, bearer: Option<&str>, heartbeat: &Heartbeat) -> Said {
        let body = serde_json::to_vec(heartbeat).unwrap();
        self.problem(Method::POST, "/v1/nodes/heartbeat", bearer, body)
            .await
    }
}

pub(crate) fn heartbeat() -> Heartbeat {
    Heartbeat {
        addresses: vec!["127.0.0.1:4444".parse().unwrap()],
        transit: Vec::new(),
        attached: Vec::new(),
        services: vec![service("echo")],
        sessions: 0,
        epoch: Epoch(0),
        draining: false,
        version: "1.2.3".to_owned(),
    }
}

pub(crate) fn unix_time() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

pub(crate) fn valid_for(seconds: u64) -> Validity {
    let now = unix_time();
    Validity {
        iat: now,
        nbf: now,
        exp: now + seconds,
    }
}

/// What a registration token for relay `exit` and service `echo` says.
pub(crate) fn claims(jti: &str) -> Registration {
    Registration {
        placement: Default::default(),
        jti: jti.to_owned(),
        sub: "exit".parse().unwrap(),
        role: wavry_proto::control::Role::Relay,
        services: vec![service("echo")],
        validity: valid_for(60),
    }
}

pub(crate) fn sign(world: &World, claims: &Registration) -> String {
    let scope = Scope {
        cluster: &world.cluster,
        audience: "master",
        binding: &[],
    };
    world.key.sign(claims, scope)
}

pub(crate) fn json(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap()
}
