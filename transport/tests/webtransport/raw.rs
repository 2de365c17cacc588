//! A client that says whatever it is told to, over QUIC: good and bad HTTP/3.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use wavry_proto::{
    h3::{
        frame::{self, Message, MessageDecoder, kind},
        message, qpack,
        settings::{Settings, id},
        stream,
    },
    session::Request,
    varint,
    webtransport::{flow::Initial, request::head},
};

use crate::support::{Identity, Service, loopback, request, soon};

/// What a raw client lets each session send, without which it may have only one.
const GRANTED: Initial = Initial {
    data: 1 << 30,
    bidi: 1000,
    uni: 1000,
};

pub(crate) struct Raw {
    pub(crate) quic: quinn::Connection,
    /// The control stream, once it was opened.
    control: Option<quinn::SendStream>,
    pub(crate) endpoint: quinn::Endpoint,
}

pub(crate) fn endpoint() -> quinn::Endpoint {
    quinn::Endpoint::client(loopback()).unwrap()
}

pub(crate) fn client_config(identity: &Identity, alpn: &[&[u8]]) -> quinn::ClientConfig {
    let mut tls = identity.client_tls();
    tls.alpn_protocols = alpn.iter().map(|id| id.to_vec()).collect();
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
}

/// A server that serves nothing by itself.
pub(crate) fn server(identity: &Identity) -> quinn::Endpoint {
    let mut tls = identity.server_tls();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let crypto = QuicServerConfig::try_from(tls).unwrap();
    let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    quinn::Endpoint::server(config, loopback()).unwrap()
}

impl Raw {
    /// A connection on which nothing was said yet.
    pub(crate) async fn silent(service: &Service) -> Self {
        Self::silent_with(service, quinn::TransportConfig::default()).await
    }

    /// The same with other limits of QUIC.
    pub(crate) async fn silent_with(service: &Service, transport: quinn::TransportConfig) -> Self {
        let endpoint = endpoint();
        let mut config = client_config(&service.identity, &[b"h3"]);
        config.transport_config(Arc::new(transport));
        let connecting = endpoint.connect_with(config, service.address(), "localhost");
        Self {
            quic: soon(connecting.unwrap()).await.unwrap(),
            control: None,
            endpoint,
        }
    }

    /// A connection whose settings were sent.
    pub(crate) async fn connect(service: &Service) -> Self {
        Self::connect_with(service, quinn::TransportConfig::default()).await
    }

    /// The same with other limits of QUIC.
    pub(crate) async fn connect_with(service: &Service, transport: quinn::TransportConfig) -> Self {
        let mut raw = Self::silent_with(service, transport).await;
        raw.say_settings().await;
        raw
    }

    /// Sends settings of every draft, the newest included, that allow several sessions.
    pub(crate) async fn say_settings(&mut self) {
        let mut payload = Vec::new();
        Settings::webtransport(1, 16384)
            .with_initial_flow(GRANTED)
            .encode(&mut payload);
        let frames = frames(&[(kind::SETTINGS, &payload)]);
        self.say(&frames).await;
    }

    /// Opens the control stream with these bytes.
    pub(crate) async fn say(&mut self, bytes: &[u8]) {
        self.control = Some(self.uni(stream::CONTROL, bytes).await);
    }

    /// Opens a unidirectional stream of a type.
    pub(crate) async fn uni(&self, kind: u64, bytes: &[u8]) -> quinn::SendStream {
        let mut send = soon(self.quic.open_uni()).await.unwrap();
        let mut header = BytesMut::new();
        varint::put(&mut header, kind);
        send.write_all(&header).await.unwrap();
        send.write_all(bytes).await.unwrap();
        send
    }

    /// Opens a bidirectional stream that begins with these bytes.
    pub(crate) async fn bi(&self, bytes: &[u8]) -> (quinn::SendStream, quinn::RecvStream) {
        let (mut send, recv) = soon(self.quic.open_bi()).await.unwrap();
        send.write_all(bytes).await.unwrap();
        (send, recv)
    }

    /// Asks for a session.
    pub(crate) async fn ask(&self, path: &str) -> (quinn::SendStream, quinn::RecvStream) {
        self.bi(&headers(&connect(&request(path)))).await
    }

    /// The status that a request with these fields is answered with.
    pub(crate) async fn status(&self, fields: &[(&str, &str)]) -> u16 {
        let (mut send, mut recv) = self.bi(&headers(&lines(fields))).await;
        send.finish().unwrap();
        answer(&mut recv).await.status
    }

    /// The code the server closes the connection with.
    pub(crate) async fn closed(&self) -> u64 {
        match soon(self.quic.closed()).await {
            quinn::ConnectionError::ApplicationClosed(close) => close.error_code.into_inner(),
            other => panic!("not closed by the application: {other}"),
        }
    }

    /// Sends on the control stream.
    pub(crate) async fn control(&mut self, bytes: &[u8]) {
        self.control
            .as_mut()
            .unwrap()
            .write_all(bytes)
            .await
            .unwrap();
    }

    /// The server's unidirectional stream of a type.
    pub(crate) async fn server_stream(&self, kind: u64) -> quinn::RecvStream {
        loop {
            let mut recv = soon(self.quic.accept_uni()).await.unwrap();
            let mut first = [0];
            soon(recv.read_exact(&mut first)).await.unwrap();
            if u64::from(first[0]) == kind {
                return recv;
            }
        }
    }

    /// Resets the control stream.
    pub(crate) fn reset_control(&mut self) {
        self.control.take().unwrap().reset(0u32.into()).unwrap();
    }

    /// Ends the control stream.
    pub(crate) fn end_control(&mut self) {
        self.control.take().unwrap().finish().unwrap();
    }
}

/// Settings of a client that speaks draft-07.
pub(crate) const SETTINGS: [(u64, u64); 2] = [
    (id::H3_DATAGRAM, 1),
    (id::WEBTRANSPORT_MAX_SESSIONS_DRAFT07, 16),
];

/// A SETTINGS frame.
pub(crate) fn settings(list: &[(u64, u64)]) -> Bytes {
    let mut payload = Vec::new();
    for (id, value) in list {
        varint::put(&mut payload, *id);
        varint::put(&mut payload, *value);
    }
    frames(&[(kind::SETTINGS, &payload)])
}

/// The response at the head of a stream.
pub(crate) async fn answer(recv: &mut quinn::RecvStream) -> message::Response {
    let mut decoder = MessageDecoder::new(1 << 16);
    loop {
        if let Some(message) = decoder.next().unwrap() {
            let Message::Headers(section) = message else {
                panic!("not a response: {message:?}");
            };
            let fields = qpack::decode(&section, 1 << 16).unwrap();
            return message::Response::from_fields(fields).unwrap();
        }
        let mut byte = [0];
        soon(recv.read_exact(&mut byte)).await.unwrap();
        decoder.push(&byte);
    }
}

pub(crate) fn connect(request: &Request) -> Vec<qpack::Field> {
    head(request).to_fields()
}

pub(crate) fn lines(fields: &[(&str, &str)]) -> Vec<qpack::Field> {
    fields
        .iter()
        .map(|(n, v)| qpack::Field::new(n, v))
        .collect()
}

/// A HEADERS frame.
pub(crate) fn headers(fields: &[qpack::Field]) -> Bytes {
    let mut section = Vec::new();
    qpack::encode(
        fields.iter().map(|f| (&f.name[..], &f.value[..])),
        &mut section,
    );
    frames(&[(kind::HEADERS, &section)])
}

pub(crate) fn frames(list: &[(u64, &[u8])]) -> Bytes {
    let mut buf = BytesMut::new();
    for (kind, payload) in list {
        frame::put(&mut buf, *kind, payload);
    }
    buf.freeze()
}
