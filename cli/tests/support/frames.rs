//! A client that reads HTTP/3 and capsules as they come off the wire, and knows nothing of sessions beyond them.

use std::{net::SocketAddr, path::Path, sync::Arc};

use bytes::BytesMut;
use quinn::crypto::rustls::QuicClientConfig;
use wavry_credentials::cert::{Trust, client_config};
use wavry_proto::{
    h3::{
        ALPN,
        frame::{self, Control, ControlDecoder, Message, MessageDecoder, kind},
        message, qpack,
        settings::Settings,
        stream,
    },
    session::Request,
    varint,
    webtransport::{
        capsule::{self, Capsule},
        flow::Initial,
        request::head,
    },
};

use super::{DEADLINE, client::within};

/// Longest head of an answer, in bytes.
const MAX_HEAD: usize = 64 * 1024;

/// What the server may send in each session; without that a connection has one session only.
const GRANTED: Initial = Initial {
    data: 1 << 20,
    bidi: 100,
    uni: 100,
};

/// A connection to a gateway.
pub(crate) struct Frames {
    quic: quinn::Connection,
    gateway: SocketAddr,
    from_server: quinn::RecvStream,
    controls: ControlDecoder,
    _to_server: quinn::SendStream,
    _endpoint: quinn::Endpoint,
}

/// A request for a session, and what comes after it.
pub(crate) struct Connect {
    /// Its stream's id.
    pub(crate) id: u64,
    send: quinn::SendStream,
    recv: quinn::RecvStream,
    messages: MessageDecoder,
    capsules: capsule::Decoder,
}

impl Frames {
    pub(crate) async fn connect(ca_file: &Path, gateway: SocketAddr) -> Self {
        let mut tls = client_config(&Trust::Authorities(ca_file.into())).unwrap();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let tls = QuicClientConfig::try_from(tls).unwrap();
        let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
        let config = quinn::ClientConfig::new(Arc::new(tls));
        let connecting = endpoint.connect_with(config, gateway, "127.0.0.1").unwrap();
        let connected = async {
            let quic = connecting.await.unwrap();
            let mut to_server = quic.open_uni().await.unwrap();
            to_server.write_all(&hello()).await.unwrap();
            let from_server = loop {
                let mut recv = quic.accept_uni().await.unwrap();
                let mut kind = [0];
                recv.read_exact(&mut kind).await.unwrap();
                if u64::from(kind[0]) == stream::CONTROL {
                    break recv;
                }
            };
            let mut frames = Self {
                quic,
                gateway,
                from_server,
                controls: ControlDecoder::of_server(),
                _to_server: to_server,
                _endpoint: endpoint,
            };
            let first = frames.control().await;
            assert!(matches!(first, Control::Settings(_)), "{first:?}");
            frames
        };
        within(DEADLINE, "a connection", connected).await
    }

    /// The next frame of the server's control stream that means something.
    pub(crate) async fn control(&mut self) -> Control {
        loop {
            if let Some(control) = self.controls.next().unwrap() {
                return control;
            }
            let chunk = self.from_server.read_chunk(MAX_HEAD, true).await.unwrap();
            self.controls.push(&chunk.expect("it never ends").bytes);
        }
    }

    /// Asks for a session.
    pub(crate) async fn ask(&self, path: &str) -> Connect {
        let request = Request {
            authority: self.gateway.to_string(),
            path: path.to_owned(),
            origin: None,
            headers: Vec::new(),
            subprotocols: Vec::new(),
        };
        let fields = head(&request).to_fields();
        let lines = fields
            .iter()
            .map(|field| (&field.name[..], &field.value[..]));
        let mut section = Vec::new();
        qpack::encode(lines, &mut section);
        let mut asked = BytesMut::new();
        frame::put(&mut asked, kind::HEADERS, &section);
        let (mut send, recv) = self.quic.open_bi().await.unwrap();
        send.write_all(&asked).await.unwrap();
        Connect {
            id: send.id().into(),
            send,
            recv,
            messages: MessageDecoder::responses(MAX_HEAD),
            capsules: capsule::Decoder::new(capsule::Flow::Ignored),
        }
    }

    /// Asks for a session, and has one.
    pub(crate) async fn open(&self, path: &str) -> Connect {
        let mut connect = self.ask(path).await;
        let opened = connect.answered();
        assert_eq!(within(DEADLINE, "an answer", opened).await, 200);
        connect
    }

    /// The code that the server closes the connection with.
    pub(crate) async fn closed(&self) -> u64 {
        match within(DEADLINE, "the close", self.quic.closed()).await {
            quinn::ConnectionError::ApplicationClosed(close) => close.error_code.into_inner(),
            other => panic!("not closed by HTTP/3: {other}"),
        }
    }
}

impl Connect {
    /// The status of the answer.
    async fn answered(&mut self) -> u16 {
        loop {
            match self.messages.next().unwrap() {
                Some(Message::Headers(section)) => {
                    let fields = qpack::decode(&section, MAX_HEAD).unwrap();
                    self.messages.tunnel();
                    return message::Response::from_fields(fields).unwrap().status;
                }
                Some(other) => panic!("before the head: {other:?}"),
                None => self.read().await.unwrap(),
            }
        }
    }

    /// The next capsule that is not about flow control; `None` at the end of the stream.
    pub(crate) async fn capsule(&mut self) -> Option<Capsule> {
        loop {
            if let Some(capsule) = self.capsules.next().unwrap() {
                return Some(capsule);
            }
            match self.messages.next().unwrap() {
                Some(Message::Data(content)) => self.capsules.push(&content),
                Some(other) => panic!("within a session: {other:?}"),
                None => self.read().await.ok()?,
            }
        }
    }

    /// The code that the server resets the stream with, in place of an answer.
    pub(crate) async fn refused(&mut self) -> u64 {
        match self.recv.read_chunk(MAX_HEAD, true).await {
            Err(quinn::ReadError::Reset(code)) => code.into_inner(),
            other => panic!("not refused: {other:?}"),
        }
    }

    /// Ends the session, as a client does that was asked to.
    pub(crate) fn finish(&mut self) {
        self.send.finish().unwrap();
    }

    /// Reads on; an error where the stream is at its end.
    async fn read(&mut self) -> Result<(), End> {
        let chunk = self.recv.read_chunk(MAX_HEAD, true).await.unwrap();
        self.messages.push(&chunk.ok_or(End)?.bytes);
        Ok(())
    }
}

/// A stream was ended with FIN.
#[derive(Debug)]
struct End;

/// The beginning of the control stream.
fn hello() -> BytesMut {
    let mut hello = BytesMut::new();
    varint::put(&mut hello, stream::CONTROL);
    let mut settings = Vec::new();
    Settings::webtransport(1, 16 * 1024)
        .with_initial_flow(GRANTED)
        .encode(&mut settings);
    frame::put(&mut hello, kind::SETTINGS, &settings);
    hello
}
