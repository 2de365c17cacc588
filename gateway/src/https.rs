//! HTTPS over TCP, beside HTTP/3: what a client finds that has not heard of HTTP/3 yet. The same requests that ask for
//! no session are answered by the same code, and each answer tells where HTTP/3 is (Alt-Svc, RFC 7838).
//!
//! The listener is there before the gateway has a certificate: it also answers an authority that validates names in
//! a TLS handshake (tls-alpn-01). It is open to the world: everything of it has a bound and a deadline.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics::counter;
use rustls::{ServerConfig, server::Acceptor};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_rustls::LazyConfigAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wavry_credentials::{acme, cert, clock::since_epoch};
use wavry_transport::{
    session::Header,
    webtransport::{Handshakes, Limits, Network, plain},
};

use crate::{
    core::Core,
    limits::{Counters, Held},
    metrics as names,
    plain::answer,
};

/// Connections at once. Each holds a task, TLS's buffers and a request's head: 64 KiB at most, 64 MiB together.
const CONNECTIONS: usize = 1024;
/// Handshakes at once: half of the connections, so that who dawdles in them leaves the other half to who does not.
/// How many begin in a second has a rate, as over QUIC.
const HANDSHAKES: usize = CONNECTIONS / 2;
/// Of one network: an eighth, so that none takes them all.
const HANDSHAKES_OF_NETWORK: u32 = 64;
/// Longest life of a connection: who wants more comes again.
const LIFETIME: Duration = Duration::from_secs(5 * 60);
/// After the system has refused to accept: it is out of descriptors, most likely.
const REST: Duration = Duration::from_millis(100);
/// How long clients may go on with HTTP/3 without asking here again, in seconds.
const ALT_SVC_AGE: u32 = 24 * 60 * 60;

/// The listener, bound.
pub(crate) struct Https {
    listener: TcpListener,
    service: Arc<Service>,
}

/// It, serving, until it is dropped.
pub(crate) struct Serving {
    service: Arc<Service>,
    leaving: CancellationToken,
    connections: TaskTracker,
}

struct Service {
    tls: Arc<ServerConfig>,
    /// What answers an authority.
    challenges: Option<Arc<ServerConfig>>,
    limits: Limits,
    room: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    handshaking: Arc<Counters<Network>>,
    rates: Mutex<Handshakes>,
    networks: Arc<Counters<Network>>,
    /// Who answers requests, and where HTTP/3 is; nobody before the gateway serves.
    answers: OnceLock<(Arc<Core>, HeaderValue)>,
}

impl Https {
    pub(crate) async fn bind(
        listen: SocketAddr,
        certificates: &cert::Store,
        challenges: Option<Arc<ServerConfig>>,
        limits: Limits,
    ) -> io::Result<Self> {
        let mut tls = certificates.server_config();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            listener: TcpListener::bind(listen).await?,
            service: Arc::new(Service {
                tls: Arc::new(tls),
                challenges,
                rates: Mutex::new(Handshakes::new(&limits, Instant::now())),
                limits,
                room: Arc::new(Semaphore::new(CONNECTIONS)),
                handshakes: Arc::new(Semaphore::new(HANDSHAKES)),
                handshaking: Arc::default(),
                networks: Arc::default(),
                answers: OnceLock::new(),
            }),
        })
    }

    #[cfg(test)]
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Takes connections from now on. Requests are answered with 503 until [`Serving::answer`].
    pub(crate) fn start(self) -> Serving {
        let serving = Serving {
            service: self.service.clone(),
            leaving: CancellationToken::new(),
            connections: TaskTracker::new(),
        };
        let (leaving, connections) = (serving.leaving.clone(), serving.connections.clone());
        tokio::spawn(async move {
            let accept = accept(&self.listener, &self.service, &leaving, &connections);
            leaving.run_until_cancelled(accept).await;
        });
        serving
    }
}

impl Serving {
    /// Has requests answered, and clients told that HTTP/3 is at UDP port `port`.
    pub(crate) fn answer(&self, core: Arc<Core>, port: u16) {
        let told = format!("h3=\":{port}\"; ma={ALT_SVC_AGE}");
        let told = HeaderValue::from_str(&told).expect("digits and plain text");
        // It is told once.
        let _ = self.service.answers.set((core, told));
    }

    /// Takes no more connections, lets answers under way end, and closes.
    pub(crate) async fn close(&self) {
        self.leaving.cancel();
        self.connections.close();
        self.connections.wait().await;
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.leaving.cancel();
    }
}

async fn accept(
    listener: &TcpListener,
    service: &Arc<Service>,
    leaving: &CancellationToken,
    connections: &TaskTracker,
) -> Infallible {
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "HTTPS connections cannot be accepted");
                sleep(REST).await;
                continue;
            }
        };
        let Ok(place) = service.room.clone().try_acquire_owned() else {
            count("too_many");
            continue;
        };
        let most = u32::try_from(service.limits.connections_per_ip).unwrap_or(u32::MAX);
        let network = Network::from(from.ip());
        let Some(guest) = Counters::hold(&service.networks, network, most) else {
            count("too_many_from_address");
            continue;
        };
        let turn = match service.turn(network) {
            Ok(turn) => turn,
            Err(refused) => {
                count(refused);
                continue;
            }
        };
        let (service, leaving) = (service.clone(), leaving.clone());
        connections.spawn(async move {
            let _held = (place, guest);
            let served = timeout(LIFETIME, connection(stream, from, turn, &service, &leaving));
            count(served.await.unwrap_or("lifetime"));
        });
    }
}

/// The right to one handshake.
type Turn = (OwnedSemaphorePermit, Held<Network>);

async fn connection(
    stream: TcpStream,
    from: SocketAddr,
    turn: Turn,
    service: &Arc<Service>,
    leaving: &CancellationToken,
) -> &'static str {
    // Answers are small and waited for.
    let _ = stream.set_nodelay(true);
    let handshake = timeout(service.limits.header_timeout, service.handshake(stream));
    let Some(handshake) = leaving.run_until_cancelled(handshake).await else {
        return "leaving";
    };
    drop(turn);
    let stream = match handshake {
        Ok(Ok(Some(stream))) => stream,
        Ok(Ok(None)) => return "challenge",
        Ok(Err(_)) => return "tls",
        Err(_) => return "timeout",
    };
    let answering = service_fn(|request| {
        let service = service.clone();
        async move { Ok::<_, Infallible>(service.answer(request, from).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(service.limits.header_timeout)
        // hyper's least is 8 KiB.
        .max_buf_size(service.limits.max_header_block.max(8 * 1024))
        .serve_connection(TokioIo::new(stream), answering);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = leaving.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    match ended {
        Ok(()) => "served",
        Err(error) if error.is_timeout() => "timeout",
        Err(_) => "broken",
    }
}

impl Service {
    /// The right to begin a handshake now, or why there is none.
    fn turn(&self, network: Network) -> Result<Turn, &'static str> {
        let one = self.handshakes.clone().try_acquire_owned();
        let one = one.map_err(|_| "too_many_handshakes")?;
        let of_network = Counters::hold(&self.handshaking, network, HANDSHAKES_OF_NETWORK);
        let of_network = of_network.ok_or("too_many_handshakes_from_address")?;
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        rates.admit(network, Instant::now())?;
        Ok((one, of_network))
    }

    /// `None` of one that validates a name.
    async fn handshake(
        &self,
        stream: TcpStream,
    ) -> io::Result<Option<tokio_rustls::server::TlsStream<TcpStream>>> {
        let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let hello = start.client_hello();
        let offers = |protocol| {
            hello
                .alpn()
                .is_some_and(|mut alpn| alpn.any(|p| p == protocol))
        };
        let validates = offers(acme::TLS_ALPN_PROTOCOL);
        match &self.challenges {
            Some(challenges) if validates => {
                start.into_stream(challenges.clone()).await?;
                Ok(None)
            }
            _ => start.into_stream(self.tls.clone()).await.map(Some),
        }
    }

    async fn answer(&self, request: Request<Incoming>, from: SocketAddr) -> Response<Full<Bytes>> {
        let Some((core, alt_svc)) = self.answers.get() else {
            return status(StatusCode::SERVICE_UNAVAILABLE);
        };
        let mut response = match timeout(self.limits.header_timeout, self.read(request, from)).await
        {
            Ok(Ok(request)) => into_http(answer(core, &request, since_epoch())),
            Ok(Err(code)) => status(code),
            Err(_) => status(StatusCode::REQUEST_TIMEOUT),
        };
        let headers = response.headers_mut();
        headers.insert(header::ALT_SVC, alt_svc.clone());
        if core.draining.is_cancelled() {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// The whole request, as one over HTTP/3 would be.
    async fn read(
        &self,
        request: Request<Incoming>,
        from: SocketAddr,
    ) -> Result<plain::Request, StatusCode> {
        let (head, body) = request.into_parts();
        let host = head
            .headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok());
        let authority = match head.uri.authority() {
            Some(authority) => authority.to_string(),
            None => host.ok_or(StatusCode::BAD_REQUEST)?.to_owned(),
        };
        let path = head.uri.path_and_query();
        let path = path.map_or_else(|| "/".to_owned(), ToString::to_string);
        let mut headers = Vec::new();
        for (name, value) in &head.headers {
            let value = value.to_str().map_err(|_| StatusCode::BAD_REQUEST)?;
            if name != header::HOST {
                headers.push(Header {
                    name: name.as_str().to_owned(),
                    value: value.to_owned(),
                });
            }
        }
        let content = Limited::new(body, self.limits.max_content).collect().await;
        Ok(plain::Request {
            method: head.method.to_string(),
            authority,
            path,
            headers,
            content: content.map_err(unreadable)?.to_bytes(),
            remote: from,
        })
    }
}

fn unreadable(error: Box<dyn std::error::Error + Send + Sync>) -> StatusCode {
    match error.is::<LengthLimitError>() {
        true => StatusCode::PAYLOAD_TOO_LARGE,
        false => StatusCode::BAD_REQUEST,
    }
}

fn into_http(answer: plain::Response) -> Response<Full<Bytes>> {
    let mut response =
        status(StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR));
    for Header { name, value } in answer.headers {
        if let (Ok(name), Ok(value)) = (
            header::HeaderName::try_from(name),
            HeaderValue::try_from(value),
        ) {
            response.headers_mut().append(name, value);
        }
    }
    *response.body_mut() = Full::from(answer.content);
    response
}

fn status(code: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = code;
    response
}

fn count(outcome: &'static str) {
    counter!(names::HTTPS_CONNECTIONS, "outcome" => outcome).increment(1);
}
