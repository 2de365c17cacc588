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
    webtransport::request,
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
        let endpoint = quinn::Endpoint::new(
            quinn::EndpointConfig::default(),
            None,
            socket::bind(local)?,
            Arc::new(quinn::TokioRuntime),
        )?;
        Ok(Self {
            endpoint,
            config,
            limits,
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
            let limits = self.limits.clone();
            let connection = Connection::start(quic, Side::Client, limits, None, drain);
            let opened = open(&connection, request).await;
            if opened.is_err() {
                connection.quic.close(varint(code::NO_ERROR), b"");
            }
            opened
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
        self.by(deadline, open(&session.shared().connection, request))
            .await
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

async fn open(
    connection: &Arc<Connection>,
    asked: Request,
) -> Result<(Session, Response), ConnectError> {
    let lost = || match connection.quic.close_reason() {
        Some(error) => error.into(),
        None => ConnectError::Connection("connection lost".to_owned()),
    };
    // The draft (section 3.1) wants the server's settings before a session is asked for.
    let settings = connection.settings().await.ok_or_else(lost)?;
    if !settings.supports_webtransport() {
        return Err(ConnectError::NotSupported);
    }
    let (send, recv) = connection.quic.open_bi().await?;
    let id = quinn::VarInt::from(send.id()).into_inner();
    let shared = connection.add(id).map_err(|refused| match refused {
        Refused::TooMany => ConnectError::Connection("too many sessions".to_owned()),
        Refused::Draining => ConnectError::Connection("the server is draining".to_owned()),
        Refused::Lost(closed) => ConnectError::Connection(closed.to_string()),
    })?;
    let connect = ConnectStream {
        send,
        recv,
        decoder: MessageDecoder::new(connection.limits.max_header_block),
    };
    let mut opening = Opening::new(shared.clone(), connect);
    let connect = opening.connect().ok_or_else(lost)?;
    let _ = connect.send.set_priority(1);
    let head = encode_headers(&request::head(&asked).to_fields());
    connect
        .send
        .write_all(&head)
        .await
        .map_err(|error| ConnectError::Connection(error.to_string()))?;
    let head = loop {
        let head = read_head(connect, connection).await?;
        // RFC 9114, section 4.1: interim answers come before the final one.
        if head.status >= 200 {
            break head;
        }
    };
    let response = request::response(head, &asked.subprotocols);
    if !response.is_ok() {
        return Err(ConnectError::Rejected(response));
    }
    let connect = opening.take().ok_or_else(lost)?;
    Ok((Session::new(shared, connect), response))
}

async fn read_head(
    ConnectStream { recv, decoder, .. }: &mut ConnectStream,
    connection: &Connection,
) -> Result<message::Response, ConnectError> {
    let section = loop {
        match decoder.next() {
            Ok(Some(Message::Headers(section))) => break section,
            Ok(Some(Message::HeadersTooLong)) => {
                return Err(ConnectError::Connection(
                    "the answer is too long".to_owned(),
                ));
            }
            // Content of an interim answer, which has none.
            Ok(Some(Message::Data(_))) => continue,
            Ok(None) => {}
            Err(error) => {
                connection.violation(error.code(), &error);
                return Err(ConnectError::Connection(error.to_string()));
            }
        }
        match recv.read_chunk(4096, true).await {
            Ok(Some(chunk)) => decoder.push(&chunk.bytes),
            Ok(None) => {
                return Err(ConnectError::Connection("no answer came".to_owned()));
            }
            Err(error) => return Err(ConnectError::Connection(error.to_string())),
        }
    };
    let fields = qpack::decode(&section, connection.limits.max_header_block).map_err(|error| {
        if error == qpack::Error::Decompression {
            connection.violation(code::QPACK_DECOMPRESSION_FAILED, &error);
        }
        ConnectError::Connection(error.to_string())
    })?;
    message::Response::from_fields(fields)
        .map_err(|error| ConnectError::Connection(error.to_string()))
}
