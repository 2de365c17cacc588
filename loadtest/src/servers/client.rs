//! The client of every server under test: bare quinn, and as much HTTP/3 and WebTransport on top as
//! the server wants to see.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use quinn::crypto::rustls::QuicClientConfig;
use wavry_proto::{
    h3::{
        self, code,
        frame::{self, Message, MessageDecoder},
        message, qpack,
        settings::Settings,
    },
    session::Request,
    varint,
    webtransport::{request, stream as wt_stream},
};

use super::{
    Certificates, IDLE_TIMEOUT, Kind,
    application::{datagram, stream},
    bare,
};
use crate::Error;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest header block that is taken for an answer.
const MAX_HEADERS: usize = 16 * 1024;
/// Unread bytes of one stream: more than what servers send at once.
const WINDOW: quinn::VarInt = quinn::VarInt::from_u32(2 * 1024 * 1024);
/// Bytes of one write.
const CHUNK: usize = 64 * 1024;

/// Opens sessions to one server, each on a connection of its own, all from one socket.
pub(crate) struct Client {
    endpoint: quinn::Endpoint,
    config: quinn::ClientConfig,
    server: SocketAddr,
    kind: Kind,
}

/// A session, of which the client takes no more notice than it must.
pub(crate) struct Session {
    quic: quinn::Connection,
    /// What begins each bidirectional stream, and each datagram.
    stream_header: Bytes,
    datagram_header: Bytes,
    /// Streams that last as long as the session.
    _held: Held,
}

/// What went through a session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moved {
    /// Bytes or datagrams that arrived.
    pub(crate) count: u64,
    /// Datagrams that did not.
    pub(crate) lost: u64,
    /// In this time.
    pub(crate) elapsed: Duration,
}

struct Held {
    _control: Vec<quinn::SendStream>,
    _peer_control: quinn::RecvStream,
    _connect: (quinn::SendStream, quinn::RecvStream),
}

impl Client {
    /// A client of `server`, which is of `kind`.
    pub(crate) fn new(
        kind: Kind,
        server: SocketAddr,
        certificates: &Certificates,
    ) -> Result<Self, Error> {
        let failed = |error: &dyn std::fmt::Display| Error::Baseline(error.to_string());
        let mut tls = certificates.client_tls()?;
        tls.alpn_protocols = vec![match kind {
            Kind::Quinn => bare::ALPN.to_vec(),
            _ => h3::ALPN.to_vec(),
        }];
        let tls = QuicClientConfig::try_from(tls).map_err(|e| failed(&e))?;
        let mut config = quinn::ClientConfig::new(Arc::new(tls));
        let mut transport = quinn::TransportConfig::default();
        transport
            .stream_receive_window(WINDOW)
            .keep_alive_interval(Some(IDLE_TIMEOUT / 3));
        config.transport_config(Arc::new(transport));
        let socket = wavry_transport::socket::bind(SocketAddr::from(([127, 0, 0, 1], 0)))
            .map_err(|e| failed(&e))?;
        let endpoint = quinn::Endpoint::new(
            quinn::EndpointConfig::default(),
            None,
            socket,
            Arc::new(quinn::TokioRuntime),
        )
        .map_err(|e| failed(&e))?;
        Ok(Self {
            endpoint,
            config,
            server,
            kind,
        })
    }

    /// Makes a connection and opens a session on it.
    pub(crate) async fn connect(&self) -> Result<Session, Error> {
        let opened = async {
            let quic = self
                .endpoint
                .connect_with(self.config.clone(), self.server, "localhost")
                .map_err(lost)?
                .await
                .map_err(lost)?;
            match self.kind {
                Kind::Quinn => bare_session(quic).await,
                _ => session(quic).await,
            }
        };
        within("the answer to a request", opened).await
    }

    /// Closes every connection and waits within a bound until their servers know.
    pub(crate) async fn close(self) {
        self.endpoint.close(closing(), b"");
        let _ = tokio::time::timeout(PATIENCE, self.endpoint.wait_idle()).await;
    }
}

async fn bare_session(quic: quinn::Connection) -> Result<Session, Error> {
    let control = say(&quic, [bare::HELLO, &[0], &[0]]).await?;
    let peer_control = hear(&quic).await?;
    let (mut send, mut recv) = quic.open_bi().await.map_err(lost)?;
    send.write_all(bare::REQUEST).await.map_err(lost)?;
    recv.read_exact(&mut [0; bare::ANSWER.len()])
        .await
        .map_err(lost)?;
    Ok(Session {
        quic,
        stream_header: Bytes::new(),
        datagram_header: Bytes::new(),
        _held: Held {
            _control: control,
            _peer_control: peer_control,
            _connect: (send, recv),
        },
    })
}

async fn session(quic: quinn::Connection) -> Result<Session, Error> {
    let mut settings = Vec::new();
    Settings::webtransport(1, MAX_HEADERS as u64).encode(&mut settings);
    let mut hello = BytesMut::new();
    varint::put(&mut hello, h3::stream::CONTROL);
    frame::put(&mut hello, frame::kind::SETTINGS, &settings);
    // As browsers do.
    let control = say(
        &quic,
        [
            &hello,
            &[h3::stream::QPACK_ENCODER as u8],
            &[h3::stream::QPACK_DECODER as u8],
        ],
    )
    .await?;
    let peer_control = hear(&quic).await?;
    let (mut send, mut recv) = quic.open_bi().await.map_err(lost)?;
    let asked = Request {
        authority: "localhost".to_owned(),
        path: "/".to_owned(),
        ..Request::default()
    };
    send.write_all(&headers(&request::head(&asked).to_fields()))
        .await
        .map_err(lost)?;
    let status = status(&mut recv).await?;
    if !(200..300).contains(&status) {
        return Err(Error::Baseline(format!(
            "a session was refused with {status}"
        )));
    }
    let id = quinn::VarInt::from(send.id()).into_inner();
    Ok(Session {
        quic,
        stream_header: wt_stream::header(wt_stream::BI, id),
        datagram_header: wt_stream::datagram(id, b""),
        _held: Held {
            _control: control,
            _peer_control: peer_control,
            _connect: (send, recv),
        },
    })
}

/// Opens the streams that a client opens first.
async fn say(quic: &quinn::Connection, first: [&[u8]; 3]) -> Result<Vec<quinn::SendStream>, Error> {
    let mut opened = Vec::with_capacity(first.len());
    for bytes in first {
        let mut stream = quic.open_uni().await.map_err(lost)?;
        stream.write_all(bytes).await.map_err(lost)?;
        opened.push(stream);
    }
    Ok(opened)
}

/// Waits for what the server says first: its settings, without which there is no session
/// (draft-ietf-webtrans-http3, section 3.1).
async fn hear(quic: &quinn::Connection) -> Result<quinn::RecvStream, Error> {
    let mut stream = quic.accept_uni().await.map_err(lost)?;
    stream.read_chunk(4096, true).await.map_err(lost)?;
    Ok(stream)
}

fn headers(fields: &[qpack::Field]) -> Bytes {
    let mut section = Vec::new();
    let lines = fields
        .iter()
        .map(|field| (&field.name[..], &field.value[..]));
    qpack::encode(lines, &mut section);
    let mut head = BytesMut::new();
    frame::put(&mut head, frame::kind::HEADERS, &section);
    head.freeze()
}

async fn status(recv: &mut quinn::RecvStream) -> Result<u16, Error> {
    let mut decoder = MessageDecoder::new(MAX_HEADERS);
    loop {
        if let Some(Message::Headers(section)) = decoder.next().map_err(lost)? {
            let fields = qpack::decode(&section, MAX_HEADERS).map_err(lost)?;
            let head = message::Response::from_fields(fields).map_err(lost)?;
            return Ok(head.status);
        }
        match recv.read_chunk(4096, true).await.map_err(lost)? {
            Some(chunk) => decoder.push(&chunk.bytes),
            None => return Err(Error::Baseline("a request had no answer".to_owned())),
        }
    }
}

impl Session {
    /// Ends the session with its connection, as a client that goes away does.
    pub(crate) fn close(self) {
        self.quic.close(closing(), b"");
    }

    /// Bytes that the server takes from one stream.
    pub(crate) async fn upload(&self, duration: Duration) -> Result<Moved, Error> {
        let (mut send, mut recv) = self.open(stream::SINK).await?;
        let start = tokio::time::Instant::now();
        let sent = write_for(&mut send, duration).await?;
        let received = within("the end of a stream", count(&mut recv)).await?;
        if received != sent {
            return Err(Error::Short {
                missing: sent.saturating_sub(received),
            });
        }
        Ok(Moved {
            count: received,
            lost: 0,
            elapsed: start.elapsed(),
        })
    }

    /// Bytes that go there and come back on one stream.
    pub(crate) async fn echo(&self, duration: Duration) -> Result<Moved, Error> {
        let (mut send, mut recv) = self.open(stream::ECHO).await?;
        let start = tokio::time::Instant::now();
        let write = tokio::spawn(async move { write_for(&mut send, duration).await });
        let mut received = 0;
        let read = async {
            while let Some(chunk) = recv.read_chunk(CHUNK, true).await.map_err(lost)? {
                received += chunk.bytes.len() as u64;
            }
            Ok::<_, Error>(())
        };
        tokio::time::timeout(duration + PATIENCE, read)
            .await
            .map_err(|_| silent("the end of a stream"))??;
        let elapsed = start.elapsed();
        let sent = match write.await {
            Ok(sent) => sent?,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        };
        if received != sent {
            return Err(Error::Short {
                missing: sent.saturating_sub(received),
            });
        }
        Ok(Moved {
            count: received,
            lost: 0,
            elapsed,
        })
    }

    /// Datagrams that the server's application takes when as many are sent as the connection lets
    /// through.
    pub(crate) async fn datagrams(&self, duration: Duration) -> Result<Moved, Error> {
        let before = self.datagrams_received().await?;
        let payload = self.datagram(datagram::SINK);
        let start = tokio::time::Instant::now();
        let mut sent = 0u64;
        let sending = async {
            while start.elapsed() < duration {
                self.quic
                    .send_datagram_wait(payload.clone())
                    .await
                    .map_err(lost)?;
                sent += 1;
            }
            Ok::<_, Error>(())
        };
        tokio::time::timeout(duration + PATIENCE, sending)
            .await
            .map_err(|_| silent("room for a datagram"))??;
        let mut received = self.datagrams_received().await? - before;
        let mut elapsed = start.elapsed();
        // What is under way.
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let now = self.datagrams_received().await? - before;
            if now == received {
                break;
            }
            (received, elapsed) = (now, start.elapsed());
        }
        Ok(Moved {
            count: received,
            lost: sent.saturating_sub(received),
            elapsed,
        })
    }

    /// Datagrams that come back while a fixed number is under way.
    pub(crate) async fn datagram_echo(&self, duration: Duration) -> Result<Moved, Error> {
        // Under 64 KiB, so that no buffer is the measure.
        const UNDER_WAY: u64 = 60;
        const LOST_AFTER: Duration = Duration::from_millis(50);
        let payload = self.datagram(datagram::ECHO);
        let (mut under_way, mut sent, mut echoed) = (0, 0, 0);
        let start = tokio::time::Instant::now();
        while start.elapsed() < duration {
            while under_way < UNDER_WAY {
                self.quic.send_datagram(payload.clone()).map_err(lost)?;
                under_way += 1;
                sent += 1;
            }
            match tokio::time::timeout(LOST_AFTER, self.quic.read_datagram()).await {
                Ok(echo) => {
                    echo.map_err(lost)?;
                    echoed += 1;
                    under_way = u64::saturating_sub(under_way, 1);
                }
                Err(_) => under_way = 0,
            }
        }
        Ok(Moved {
            count: echoed,
            lost: u64::saturating_sub(sent, echoed + under_way),
            elapsed: start.elapsed(),
        })
    }

    async fn open(&self, what: u8) -> Result<(quinn::SendStream, quinn::RecvStream), Error> {
        let (mut send, recv) = self.quic.open_bi().await.map_err(lost)?;
        let mut first = BytesMut::from(&self.stream_header[..]);
        first.put_u8(what);
        send.write_all(&first).await.map_err(lost)?;
        Ok((send, recv))
    }

    async fn datagrams_received(&self) -> Result<u64, Error> {
        let (mut send, mut recv) = self.open(stream::DATAGRAMS).await?;
        send.finish().map_err(lost)?;
        within("a count", count(&mut recv)).await
    }

    /// A datagram of the size that `echo` sends as well.
    fn datagram(&self, what: u8) -> Bytes {
        const SIZE: usize = 1000;
        let mut payload = BytesMut::from(&self.datagram_header[..]);
        payload.put_u8(what);
        payload.put_bytes(0x57, SIZE - 1);
        payload.freeze()
    }
}

async fn write_for(send: &mut quinn::SendStream, duration: Duration) -> Result<u64, Error> {
    let chunk = Bytes::from(vec![0x57; CHUNK]);
    let start = tokio::time::Instant::now();
    let mut sent = 0;
    let writing = async {
        while start.elapsed() < duration {
            send.write_chunk(chunk.clone()).await.map_err(lost)?;
            sent += CHUNK as u64;
        }
        send.finish().map_err(lost)
    };
    tokio::time::timeout(duration + PATIENCE, writing)
        .await
        .map_err(|_| silent("a stream's credit"))??;
    Ok(sent)
}

async fn count(recv: &mut quinn::RecvStream) -> Result<u64, Error> {
    let mut count = [0; 8];
    recv.read_exact(&mut count).await.map_err(lost)?;
    Ok(u64::from_be_bytes(count))
}

async fn within<T>(
    what: &'static str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| Err(silent(what)))
}

fn silent(what: &'static str) -> Error {
    Error::Silent {
        what,
        waited: PATIENCE,
    }
}

fn lost(error: impl std::fmt::Display) -> Error {
    Error::Baseline(error.to_string())
}

fn closing() -> quinn::VarInt {
    quinn::VarInt::from_u64(code::NO_ERROR).unwrap_or_default()
}
