//! The server's side: connections are accepted, requests answered.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use quinn::crypto::rustls::QuicServerConfig;
use tokio::{
    sync::{Mutex, Semaphore, mpsc, watch},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use wavry_proto::{
    h3::{
        self, code,
        frame::{self, Message, MessageDecoder},
        message, qpack,
    },
    varint as quic_varint,
    webtransport::request::{self, Asked},
};

use super::{
    Limits,
    connection::{AGAIN, Connection, Refused, within},
    listener::{Listener, Permit},
    milestone::Milestone,
    plain::{self, answer},
    quic::{self, Side},
    session::{ConnectStream, Opening, Session},
    stream::{refuse, varint},
};
use crate::{
    metrics::{REQUESTS, link, outcome},
    session::{Close, Closed, Request, Response},
    socket::{self, shards},
};

/// Requests that wait for [`Server::accept`]. Whoever calls it only starts a task for each, so this
/// is what arrives while that one is not scheduled: 5 ms at 50,000 requests a second.
const REQUEST_QUEUE: usize = 256;

/// First packets that wait on each shard for [`Listener::run`], which does nothing but look into
/// memory for each: 20 ms at 50,000 a second. One more is refused.
const INCOMING: usize = 1024;
/// Bytes that may wait with them: a first flight is two packets, with early data a few more.
const INCOMING_BYTES: u64 = 4 * 1024 * INCOMING as u64;

/// Bytes that may wait to be taken over by a shard: a quarter of what its socket holds, as clients
/// whose address changes are few.
const INBOX: usize = socket::BUFFER / 4;

/// Accepts WebTransport sessions on a UDP port.
#[derive(Clone)]
pub struct Server {
    inner: Arc<Inner>,
}

struct Inner {
    /// One for each shard; at least one.
    endpoints: Vec<quinn::Endpoint>,
    requests: Mutex<mpsc::Receiver<Requested>>,
    plain: Arc<plain::Handler>,
    drain: watch::Sender<bool>,
    closed: CancellationToken,
}

impl Inner {
    fn close(&self) {
        self.closed.cancel();
        for endpoint in &self.endpoints {
            endpoint.close(varint(code::NO_ERROR), b"");
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

impl Server {
    /// Serves `socket`. `tls` says which certificates; ALPN `h3` is added here.
    pub fn new(socket: UdpSocket, tls: rustls::ServerConfig, limits: Limits) -> io::Result<Self> {
        Self::sharded(vec![socket], tls, limits)
    }

    /// Serves sockets that share a port ([`socket::bind_shards`](crate::socket::bind_shards)), each
    /// with an endpoint of its own. Limits hold for all together.
    pub fn sharded(
        sockets: Vec<UdpSocket>,
        mut tls: rustls::ServerConfig,
        limits: Limits,
    ) -> io::Result<Self> {
        tls.alpn_protocols = vec![h3::ALPN.to_vec()];
        let random = tls.crypto_provider().secure_random;
        let crypto = QuicServerConfig::try_from(tls).map_err(io::Error::other)?;
        // Shared, and with it the key of Retry tokens: the answer to a Retry may reach any shard.
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        config
            .transport_config(quic::transport(&limits, Side::Server))
            .max_incoming(INCOMING)
            .incoming_buffer_size_total(INCOMING_BYTES);
        let sockets = sockets.into_iter().map(socket::for_quinn);
        let group = shards::Group {
            link: link::WEBTRANSPORT,
            random,
            inbox: INBOX,
        };
        let endpoints: Vec<_> = group
            .endpoints(sockets.collect::<io::Result<_>>()?)?
            .into_iter()
            .map(|(socket, endpoint)| {
                quinn::Endpoint::new_with_abstract_socket(
                    endpoint,
                    Some(config.clone()),
                    socket,
                    Arc::new(quinn::TokioRuntime),
                )
            })
            .collect::<io::Result<_>>()?;
        let (sender, receiver) = mpsc::channel(REQUEST_QUEUE);
        let plain = Arc::new(plain::Handler::default());
        let (drain, draining) = watch::channel(false);
        let closed = CancellationToken::new();
        let listener = Listener::new(limits, sender, plain.clone(), draining, closed.clone());
        let listener = Arc::new(listener);
        for endpoint in &endpoints {
            tokio::spawn(listener.clone().run(endpoint.clone()));
        }
        Ok(Self {
            inner: Arc::new(Inner {
                endpoints,
                requests: Mutex::new(receiver),
                plain,
                drain,
                closed,
            }),
        })
    }

    /// The sockets' address.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.endpoints[0].local_addr()
    }

    /// The next session that a client asks for; `None` once the server is closed. Cancel-safe.
    pub async fn accept(&self) -> Option<Requested> {
        let receive = async { self.inner.requests.lock().await.recv().await };
        tokio::select! {
            biased;
            () = self.inner.closed.cancelled() => None,
            requested = receive => requested,
        }
    }

    /// Answers with `handle` the requests that ask for no session; the first call decides. Before
    /// it GET and HEAD get 404, the others 405. An answer that takes longer than
    /// [`Limits::header_timeout`] is given up and is 503.
    pub fn answer<F, Fut>(&self, handle: F)
    where
        F: Fn(plain::Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = plain::Response> + Send + 'static,
    {
        self.inner.plain.set(handle);
    }

    /// Takes no new connections and no new sessions: clients are sent GOAWAY (RFC 9114, 5.2).
    pub fn drain(&self) {
        self.inner.drain.send_replace(true);
    }

    /// Closes every connection at once and frees the sockets once they are gone.
    pub async fn close(&self) {
        self.inner.close();
        futures_util::future::join_all(self.inner.endpoints.iter().map(|e| e.wait_idle())).await;
    }
}

/// What becomes of the requests of one connection.
pub(super) struct Intake {
    pub(super) requests: mpsc::Sender<Requested>,
    pub(super) plain: Arc<plain::Handler>,
    /// Places for plain requests.
    pub(super) plain_slots: Semaphore,
    /// Held for as long as the connection is served.
    pub(super) _permit: Permit,
}

/// A session that a client asks for and that was not answered yet. Dropped unanswered, it is 503.
pub struct Requested {
    request: Request,
    remote: SocketAddr,
    /// `None` once answered.
    unanswered: Option<Unanswered>,
}

struct Unanswered {
    opening: Opening,
    draft02: bool,
}

impl Requested {
    /// What is asked for.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Where the client is now.
    pub fn remote_address(&self) -> SocketAddr {
        match &self.unanswered {
            Some(unanswered) => unanswered.opening.shared.connection.quic.remote_address(),
            None => self.remote,
        }
    }

    /// Accepts with a 2xx response. One that is not 2xx refuses, and there is no session.
    pub async fn accept(mut self, response: Response) -> Result<Session, Closed> {
        if !response.is_ok() {
            self.reject(response).await;
            return Err(Closed::Here(Close::default()));
        }
        let Some(mut unanswered) = self.unanswered.take() else {
            return Err(Closed::Here(Close::default()));
        };
        let shared = unanswered.opening.shared.clone();
        let head = encode_response(&response, unanswered.draft02);
        if let Some(connect) = unanswered.opening.connect() {
            // The capsules that may follow decide about everything else on the session.
            let _ = connect.send.set_priority(1);
            let limit = shared.connection.limits.header_timeout;
            let written = tokio::select! {
                biased;
                closed = shared.over() => return Err(closed),
                written = within(limit, connect.send.write_all(&head)) => written,
            };
            let problem = match written {
                Some(Ok(())) => None,
                Some(Err(error)) => Some(error.to_string()),
                None => Some("the client does not read it".to_owned()),
            };
            if let Some(problem) = problem {
                shared.end(Closed::Lost(format!("no answer could be sent: {problem}")));
                return Err(shared.over().await);
            }
        }
        count(outcome::ACCEPTED);
        match unanswered.opening.take() {
            Some(connect) => Ok(Session::new(shared, connect)),
            None => Err(Closed::Here(Close::default())),
        }
    }

    /// Refuses with a status that is not 2xx.
    pub async fn reject(mut self, response: Response) {
        if let Some(unanswered) = self.unanswered.take() {
            count(outcome::REJECTED);
            unanswered.refuse(&response);
        }
    }
}

impl Drop for Requested {
    fn drop(&mut self) {
        if let Some(unanswered) = self.unanswered.take() {
            count(outcome::UNANSWERED);
            unanswered.refuse(&Response::status(503));
        }
    }
}

impl Unanswered {
    fn refuse(mut self, response: &Response) {
        let shared = self.opening.shared.clone();
        let Some(connect) = self.opening.take() else {
            return;
        };
        shared.end(Closed::Here(Close::default()));
        let head = encode_response(response, self.draft02);
        let answer = async move {
            answer(connect.send, Some(connect.recv), head, &shared.connection).await;
            shared.milestones.reach(Milestone::Farewell);
            shared.connection.forget(&shared, AGAIN);
        };
        tokio::spawn(answer.in_current_span());
    }
}

/// Reads a request, of whose bytes `(kind, rest)` were read before, and answers it or hands it on.
pub(super) async fn serve_request(
    connection: Arc<Connection>,
    send: quinn::SendStream,
    mut recv: quinn::RecvStream,
    (kind, rest): (u64, Bytes),
    deadline: Instant,
    intake: Arc<Intake>,
) {
    let mut decoder = MessageDecoder::new(connection.limits.max_header_block);
    let mut first = BytesMut::new();
    quic_varint::put(&mut first, kind);
    decoder.push(&first);
    decoder.push(&rest);
    let read = timeout_at(deadline, read_request(&mut recv, &mut decoder, &connection)).await;
    let head = match read.unwrap_or(Err(Unreadable::TOO_LATE)) {
        Ok(head) => head,
        Err(Unreadable::TooLong) => {
            count(outcome::OTHER);
            let head = encode_response(&Response::status(431), false);
            return answer(send, Some(recv), head, &connection).await;
        }
        Err(unreadable) => return unreadable.refuse(send, recv, &connection),
    };
    if head.method != "CONNECT" {
        return plain::serve(connection, send, recv, decoder, head, deadline, intake).await;
    }
    let (request, draft02) = match Asked::new(head) {
        Ok(Asked::Session { request, draft02 }) => (request, draft02),
        Ok(Asked::Other(status)) => {
            count(outcome::OTHER);
            let head = encode_response(&Response::status(status), false);
            return answer(send, Some(recv), head, &connection).await;
        }
        Err(error) => {
            tracing::debug!(%error, "request refused");
            count(outcome::MALFORMED);
            return refuse(Some(send), Some(recv), code::MESSAGE_ERROR);
        }
    };
    // The draft (section 3.1) wants the client's settings before its requests are processed, and
    // those of a client that lacks what the draft demands taken for malformed.
    let agreement = match connection.agreement_by(deadline).await {
        Some(Ok(agreement)) => agreement,
        Some(Err(unmet)) => {
            tracing::debug!(%unmet, "request refused");
            count(outcome::MALFORMED);
            return refuse(Some(send), Some(recv), code::MESSAGE_ERROR);
        }
        None => {
            count(outcome::MALFORMED);
            return refuse(Some(send), Some(recv), code::REQUEST_REJECTED);
        }
    };
    let id = quinn::VarInt::from(send.id()).into_inner();
    let shared = match connection.add(id, &agreement) {
        Ok(shared) => shared,
        Err(Refused::TooMany) => {
            count(outcome::TOO_MANY);
            let head = encode_response(&Response::status(429), draft02);
            return answer(send, Some(recv), head, &connection).await;
        }
        Err(Refused::OnlyOne) => {
            count(outcome::TOO_MANY);
            return refuse(Some(send), Some(recv), code::REQUEST_REJECTED);
        }
        Err(Refused::Draining) => {
            count(outcome::DRAINING);
            return refuse(Some(send), Some(recv), code::REQUEST_REJECTED);
        }
        Err(Refused::Lost(_)) => return,
    };
    let requested = Requested {
        request,
        remote: connection.quic.remote_address(),
        unanswered: Some(Unanswered {
            opening: Opening::new(
                shared,
                ConnectStream {
                    send,
                    recv,
                    decoder,
                },
            ),
            draft02,
        }),
    };
    // A request that is not taken in time is dropped here, and so answered with 503.
    let _ = timeout_at(deadline, intake.requests.send(requested)).await;
}

/// Why there is no request, or no content of one.
pub(super) enum Unreadable {
    /// It is longer than allowed.
    TooLong,
    /// The stream is refused with this code.
    Stream(u64),
    /// The connection is closed with this code.
    Connection(u64, String),
}

impl Unreadable {
    /// It did not come within its deadline.
    pub(super) const TOO_LATE: Self = Self::Stream(code::REQUEST_INCOMPLETE);

    /// Refuses what is not to be answered.
    pub(super) fn refuse(
        self,
        send: quinn::SendStream,
        recv: quinn::RecvStream,
        connection: &Connection,
    ) {
        count(outcome::MALFORMED);
        match self {
            Self::TooLong => refuse(Some(send), Some(recv), code::EXCESSIVE_LOAD),
            Self::Stream(h3_code) => refuse(Some(send), Some(recv), h3_code),
            Self::Connection(h3_code, what) => connection.violation(h3_code, &what),
        }
    }
}

impl From<frame::Error> for Unreadable {
    fn from(error: frame::Error) -> Self {
        Self::Connection(error.code(), error.to_string())
    }
}

async fn read_request(
    recv: &mut quinn::RecvStream,
    decoder: &mut MessageDecoder,
    connection: &Connection,
) -> Result<message::Request, Unreadable> {
    let section = loop {
        match decoder.next() {
            Ok(Some(Message::Headers(section))) => break section,
            Ok(Some(Message::HeadersTooLong)) => return Err(Unreadable::TooLong),
            // Content never comes before a field section.
            Ok(Some(Message::Data(_))) => continue,
            Ok(None) => {}
            Err(error) => return Err(error.into()),
        }
        match recv.read_chunk(4096, true).await {
            Ok(Some(chunk)) => decoder.push(&chunk.bytes),
            Ok(None) => {
                decoder.finish()?;
                return Err(Unreadable::Stream(code::REQUEST_INCOMPLETE));
            }
            Err(_) => return Err(Unreadable::Stream(code::REQUEST_CANCELLED)),
        }
    };
    let fields = match qpack::decode(&section, connection.limits.max_header_block) {
        Ok(fields) => fields,
        Err(qpack::Error::TooLong) => return Err(Unreadable::TooLong),
        Err(error @ qpack::Error::Decompression) => {
            let what = error.to_string();
            return Err(Unreadable::Connection(
                code::QPACK_DECOMPRESSION_FAILED,
                what,
            ));
        }
    };
    message::Request::from_fields(fields).map_err(|error| {
        tracing::debug!(%error, "request refused");
        Unreadable::Stream(code::MESSAGE_ERROR)
    })
}

fn encode_response(response: &Response, draft02: bool) -> Bytes {
    let fields = request::response_head(response, draft02).to_fields();
    encode_headers(&fields)
}

/// A HEADERS frame with these fields.
pub(super) fn encode_headers(fields: &[qpack::Field]) -> Bytes {
    let mut section = Vec::new();
    let lines = fields
        .iter()
        .map(|field| (&field.name[..], &field.value[..]));
    qpack::encode(lines, &mut section);
    let mut head = BytesMut::with_capacity(section.len() + 9);
    frame::put(&mut head, frame::kind::HEADERS, &section);
    head.freeze()
}

pub(super) fn count(outcome: &'static str) {
    metrics::counter!(REQUESTS, "outcome" => outcome).increment(1);
}
