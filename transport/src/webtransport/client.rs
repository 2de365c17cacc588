//! The client's side: connections are opened, sessions asked for.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use quinn::crypto::rustls::QuicClientConfig;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use wavry_proto::{
    h3::{
        self, code,
        frame::{Message, MessageDecoder},
        message, qpack,
    },
    webtransport::{code as wt_code, request},
};

use super::{
    Limits,
    connection::{Connection, Refused},
    quic::{self, Side},
    server::encode_headers,
    session::{ConnectStream, Opening, Session},
    stream::varint,
};
use crate::{
    datagram::Meter,
    metrics::link,
    session::{Request, Response},
    socket,
};

/// How long [`Client::close`] waits for what was said last to be acknowledged.
const CLOSE_WAIT: Duration = Duration::from_secs(3);

/// Opens WebTransport sessions, each on a connection of its own.
#[derive(Clone)]
pub struct Client {
    endpoint: quinn::Endpoint,
    config: quinn::ClientConfig,
    limits: Limits,
    meter: Meter,
}

/// Why a client has no session.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The server answered with a status that is not 2xx.
    #[error("refused by the server with status {}", .0.status)]
    Rejected(Response),
    /// The peer speaks HTTP/3 but not WebTransport.
    #[error("the server does not offer WebTransport")]
    NotSupported,
    /// The connection failed or was lost; the text says how.
    #[error("cannot connect: {0}")]
    Connection(String),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

impl From<quinn::ConnectionError> for ConnectError {
    fn from(error: quinn::ConnectionError) -> Self {
        Self::Connection(error.to_string())
    }
}

impl Client {
    /// A client that sends from `local` (port 0 for any). `tls` says whom to trust; ALPN `h3` is
    /// added here.
    pub fn new(
        local: SocketAddr,
        mut tls: rustls::ClientConfig,
        limits: Limits,
    ) -> io::Result<Self> {
        tls.alpn_protocols = vec![h3::ALPN.to_vec()];
        let crypto = QuicClientConfig::try_from(tls).map_err(io::Error::other)?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(quic::transport(&limits, Side::Client));
        let endpoint = quinn::Endpoint::new_with_abstract_socket(
            quinn::EndpointConfig::default(),
            None,
            socket::for_quinn(socket::bind(local)?)?,
            Arc::new(quinn::TokioRuntime),
        )?;
        Ok(Self {
            endpoint,
            config,
            limits,
            meter: Meter::new(link::WEBTRANSPORT),
        })
    }

    /// Connects to `remote`, which must prove to be `server_name`, and opens one session, all
    /// within [`Limits::header_timeout`].
    pub async fn connect(
        &self,
        remote: SocketAddr,
        server_name: &str,
        request: Request,
    ) -> Result<(Session, Response), ConnectError> {
        let connecting = self
            .endpoint
            .connect_with(self.config.clone(), remote, server_name)
            .map_err(|error| ConnectError::Connection(error.to_string()))?;
        let deadline = Instant::now() + self.limits.header_timeout;
        let open = async {
            let quic = connecting.await?;
            // Only servers are told to drain.
            let (_, drain) = watch::channel(false);
            let (limits, meter) = (self.limits.clone(), self.meter.clone());
            let connection = Connection::new(quic, Side::Client, limits, meter);
            tokio::spawn(connection.clone().serve(None, drain));
            open(&connection, request).await.map_err(|failed| {
                connection.quic.close(varint(failed.h3_code), b"");
                failed.error
            })
        };
        self.by(deadline, open).await
    }

    /// Opens another session on the connection of one that lives.
    pub async fn open_beside(
        &self,
        session: &Session,
        request: Request,
    ) -> Result<(Session, Response), ConnectError> {
        let deadline = Instant::now() + self.limits.header_timeout;
        let open = async {
            let opened = open(&session.shared().connection, request).await;
            opened.map_err(|failed| failed.error)
        };
        self.by(deadline, open).await
    }

    /// Closes every connection at once, and waits within a bound until the peers know. A session's
    /// code is lost unless [`closed`](crate::session::Session::closed) was awaited before.
    pub async fn close(&self) {
        self.endpoint.close(varint(code::NO_ERROR), b"");
        let _ = tokio::time::timeout(CLOSE_WAIT, self.endpoint.wait_idle()).await;
    }

    async fn by<T>(
        &self,
        deadline: Instant,
        open: impl Future<Output = Result<T, ConnectError>>,
    ) -> Result<T, ConnectError> {
        timeout_at(deadline, open)
            .await
            .unwrap_or(Err(ConnectError::Timeout(self.limits.header_timeout)))
    }
}

/// Why there is no session, and the code that tells the server.
struct Failed {
    error: ConnectError,
    h3_code: u64,
}

impl From<ConnectError> for Failed {
    fn from(error: ConnectError) -> Self {
        let h3_code = match error {
            ConnectError::NotSupported => wt_code::REQUIREMENTS_NOT_MET,
            _ => code::NO_ERROR,
        };
        Self { error, h3_code }
    }
}

impl Failed {
    fn new(h3_code: u64, why: impl ToString) -> Self {
        let error = ConnectError::Connection(why.to_string());
        Self { error, h3_code }
    }
}

async fn open(connection: &Arc<Connection>, asked: Request) -> Result<(Session, Response), Failed> {
    let lost = || match connection.quic.close_reason() {
        Some(error) => error.into(),
        None => ConnectError::Connection("connection lost".to_owned()),
    };
    let refused = |refused| {
        ConnectError::Connection(match refused {
            Refused::TooMany | Refused::OnlyOne => {
                "the server takes no more sessions on this connection".to_owned()
            }
            Refused::Draining => "the server is draining".to_owned(),
            Refused::Lost(closed) => closed.to_string(),
        })
    };
    // The draft (section 3.1) wants the server's settings before a session is asked for.
    let agreement = connection.agreement().await.ok_or_else(lost)?;
    let agreement = agreement.map_err(|_| ConnectError::NotSupported)?;
    connection.has_room(&agreement).map_err(refused)?;
    let (send, recv) = connection
        .quic
        .open_bi()
        .await
        .map_err(ConnectError::from)?;
    let id = quinn::VarInt::from(send.id()).into_inner();
    let shared = connection.add(id, &agreement).map_err(refused)?;
    let connect = ConnectStream {
        send,
        recv,
        decoder: MessageDecoder::responses(connection.limits.max_header_block),
    };
    let mut opening = Opening::new(shared.clone(), connect);
    let connect = opening.connect().ok_or_else(lost)?;
    let _ = connect.send.set_priority(1);
    let head = encode_headers(&request::head_in(agreement.draft(), &asked).to_fields());
    let written = connect.send.write_all(&head).await;
    written.map_err(|error| Failed::new(code::NO_ERROR, error))?;
    let answered = read_answer(connect, connection).await.and_then(|head| {
        request::response_in(agreement.draft(), head, &asked.subprotocols)
            .map_err(|error| Failed::new(wt_code::ALPN_ERROR, error))
    });
    let response = match answered {
        Ok(response) => response,
        Err(failed) => {
            opening.give_up(failed.h3_code);
            return Err(failed);
        }
    };
    if !response.is_ok() {
        return Err(ConnectError::Rejected(response).into());
    }
    let connect = opening.take().ok_or_else(lost)?;
    Ok((Session::new(shared, connect), response))
}

/// The final answer.
async fn read_answer(
    connect: &mut ConnectStream,
    connection: &Connection,
) -> Result<message::Response, Failed> {
    loop {
        let head = read_head(connect, connection).await?;
        // RFC 9114, section 4.1: interim answers come before the final one.
        if head.status >= 200 {
            return Ok(head);
        }
        connect.decoder.interim();
    }
}

async fn read_head(
    ConnectStream { recv, decoder, .. }: &mut ConnectStream,
    connection: &Connection,
) -> Result<message::Response, Failed> {
    let violation = |h3_code, error: &dyn std::fmt::Display| {
        connection.violation(h3_code, error);
        Failed::new(h3_code, error)
    };
    let section = loop {
        match decoder.next() {
            Ok(Some(Message::Headers(section))) => break section,
            Ok(Some(Message::HeadersTooLong)) => {
                return Err(Failed::new(
                    code::REQUEST_CANCELLED,
                    "the answer is too long",
                ));
            }
            // Content never comes before a head.
            Ok(Some(Message::Data(_))) => continue,
            Ok(None) => {}
            Err(error) => return Err(violation(error.code(), &error)),
        }
        match recv.read_chunk(4096, true).await {
            Ok(Some(chunk)) => decoder.push(&chunk.bytes),
            Ok(None) => {
                if let Err(error) = decoder.finish() {
                    return Err(violation(error.code(), &error));
                }
                return Err(Failed::new(code::MESSAGE_ERROR, "no answer came"));
            }
            Err(error) => return Err(Failed::new(code::NO_ERROR, error)),
        }
    };
    let fields = match qpack::decode(&section, connection.limits.max_header_block) {
        Ok(fields) => fields,
        Err(error @ qpack::Error::Decompression) => {
            return Err(violation(code::QPACK_DECOMPRESSION_FAILED, &error));
        }
        Err(error) => return Err(Failed::new(code::REQUEST_CANCELLED, error)),
    };
    message::Response::from_fields(fields).map_err(|error| Failed::new(code::MESSAGE_ERROR, error))
}
