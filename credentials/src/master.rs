//! The way to the masters, for nodes and for operators: HTTP/1.1 over TLS 1.3, by connections whose
//! exporter is known. Of several masters one is as good as another.

mod tls;

use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::{net::TcpStream, task::JoinHandle, time::timeout};
use wavry_proto::control::{Authorities, EXPORTER_LABEL, EXPORTER_LEN, Problem};

use crate::{
    cert::{self, Pair},
    random,
};

use tls::Tls;

/// From the first packet to the end of the TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer but for the roster's, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// draft-ietf-httpapi-idempotency-key-header.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The address or the authorities given for the master are of no use.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// The address.
    #[error("the master's address is not https://HOST:PORT, or several with commas between them")]
    Address,
    /// The authorities that vouch for the master.
    #[error(transparent)]
    Authorities(#[from] cert::Error),
}

/// Where the masters are and how they prove themselves.
pub struct Client {
    // One or more.
    masters: Vec<Place>,
    /// Which of them is connected to.
    chosen: AtomicUsize,
    tls: Tls,
}

/// Where a master is.
struct Place {
    host: String,
    port: u16,
    authority: String,
    name: ServerName<'static>,
}

/// One connection to a master; closed when dropped.
pub struct Connection {
    /// TLS exporter (RFC 9266).
    pub exporter: [u8; EXPORTER_LEN],
    /// Which master.
    master: usize,
    /// Of whom was trusted, and what was shown.
    generation: u64,
    authority: String,
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
}

/// A request, and how long and how much its answer may be.
#[derive(Clone)]
pub struct Ask<'a> {
    /// The method.
    pub method: Method,
    /// Path and query.
    pub path: &'a str,
    /// The `authorization` header.
    pub authorization: Option<&'a str>,
    /// JSON, or nothing.
    pub body: Vec<u8>,
    /// With it, what is asked for is done once, however often it is sent; without quotes.
    pub idempotency_key: Option<&'a str>,
    /// From sending it to the end of the answer.
    pub deadline: Duration,
    /// Longest answer, in bytes.
    pub max_answer: usize,
}

impl<'a> Ask<'a> {
    /// Asks for what is at `path`.
    pub fn get(path: &'a str) -> Self {
        Self {
            method: Method::GET,
            ..Self::post(path, Vec::new())
        }
    }

    /// Puts `body`, which is JSON, at `path`.
    pub fn put(path: &'a str, body: Vec<u8>) -> Self {
        Self {
            method: Method::PUT,
            ..Self::post(path, body)
        }
    }

    /// Changes what is at `path` by what `body`, which is JSON, has.
    pub fn patch(path: &'a str, body: Vec<u8>) -> Self {
        Self {
            method: Method::PATCH,
            ..Self::post(path, body)
        }
    }

    /// Deletes what is at `path`.
    pub fn delete(path: &'a str) -> Self {
        Self {
            method: Method::DELETE,
            ..Self::post(path, Vec::new())
        }
    }

    /// Sends `body` as JSON.
    pub fn post(path: &'a str, body: Vec<u8>) -> Self {
        Self {
            method: Method::POST,
            path,
            authorization: None,
            body,
            idempotency_key: None,
            deadline: Duration::from_secs(10),
            max_answer: MAX_ANSWER,
        }
    }
}

/// What the master said.
pub struct Answer {
    /// 2xx or 304.
    pub status: StatusCode,
    /// What came with it.
    pub body: Bytes,
}

/// Why there is no answer that helps. Another attempt may succeed, but for [`Failure::Refused`]
/// with a status that is about the request.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No TCP connection.
    #[error("the master cannot be reached")]
    Unreachable(#[source] std::io::Error),
    /// No TLS, or the master's certificate does not hold.
    #[error("TLS with the master failed")]
    Tls(#[source] std::io::Error),
    /// Out of time.
    #[error("the master did not answer in time")]
    Timeout,
    /// The connection ended.
    #[error("the connection to the master broke")]
    Broken,
    /// Not what the protocol has there.
    #[error("the master's answer is not one")]
    Malformed,
    /// A roster that this node does not take; a label says why.
    #[error("the master's roster was not accepted: {0}")]
    Roster(&'static str),
    /// The master said no.
    #[error("the master refused: {status} {detail}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// What the problem's type ends with; empty where there is none.
        word: String,
        /// The master's words.
        detail: String,
    },
}

impl Failure {
    /// A label for metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Tls(_) => "tls",
            Self::Timeout => "timeout",
            Self::Broken => "broken",
            Self::Malformed => "malformed",
            Self::Roster(_) => "roster",
            Self::Refused { status, .. } if *status >= 500 => "master",
            Self::Refused { .. } => "refused",
        }
    }

    /// Whether the master refuses the certificate that was shown, or wants one.
    pub(crate) fn is_about_certificate(&self) -> bool {
        matches!(self, Self::Refused { word, .. } if word.starts_with("certificate-"))
    }

    /// Whether it says that the connection is of no use, to whomever it leads.
    pub(crate) fn is_of_the_connection(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Tls(_) | Self::Timeout | Self::Broken => true,
            Self::Malformed | Self::Roster(_) | Self::Refused { .. } => false,
        }
    }

    /// Whether it is not known, or may change in a moment, whether the request was carried out: who can tell
    /// the master that it is the same again, by an idempotency key, may send it again.
    pub fn is_in_doubt(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Timeout | Self::Broken => true,
            Self::Refused { status, word, .. } => {
                [408, 503].contains(status) || word == "idempotency-key-under-way"
            }
            Self::Tls(_) | Self::Malformed | Self::Roster(_) => false,
        }
    }

    /// Whether waiting does not help.
    pub fn is_final(&self) -> bool {
        // 408 and 429 are about the moment, not about the request; and where one master signs no certificates, another
        // does, or this one in a while.
        matches!(self, Self::Refused { status, word, .. }
            if (400..500).contains(status) && ![408, 429].contains(status) && word != "no-authority")
    }
}

impl Client {
    /// For the masters at `https://HOST:PORT`, with commas between several, trusted by the authorities in
    /// `ca_file`. Which of them comes first is chance, so that clients spread over them.
    pub fn new(masters: &str, ca_file: &Path) -> Result<Self, Unusable> {
        let masters = masters
            .split(',')
            .map(|url| Place::read(url.trim()))
            .collect::<Result<Vec<_>, _>>()?;
        let tls = Tls::new(ca_file)?;
        let chosen = usize::from(random::bytes::<1>()[0]) % masters.len();
        Ok(Self {
            masters,
            chosen: chosen.into(),
            tls,
        })
    }

    /// Trusts those that the roster trusts beside those in the file, and none that it says are revoked, on
    /// connections from now on.
    pub(crate) fn trust(&self, authorities: &Authorities) {
        self.tls.trust(authorities);
    }

    /// Shows this certificate to masters that ask for one, on connections from now on, as long as it holds.
    pub(crate) fn show(&self, pair: Pair) {
        self.tls.show(pair);
    }

    /// Shows none from now on.
    pub(crate) fn hide_certificate(&self) {
        self.tls.hide();
    }

    /// Whether a connection is open, as far as is known, and as one would be that is made now.
    pub(crate) fn is_of_use(&self, connection: &Connection) -> bool {
        connection.is_open() && connection.generation == self.tls.generation()
    }

    /// A new connection to the master that served last, or to the next one that can be reached.
    pub async fn connect(&self) -> Result<Connection, Failure> {
        let first = self.chosen();
        let mut failure = Failure::Timeout;
        for master in (first..first + self.masters.len()).map(|n| n % self.masters.len()) {
            let connected = timeout(CONNECT_TIMEOUT, self.connect_in_time(master)).await;
            match connected.unwrap_or(Err(Failure::Timeout)) {
                Ok(connection) => {
                    self.chosen.store(master, Ordering::Relaxed);
                    return Ok(connection);
                }
                Err(why) => failure = why,
            }
        }
        Err(failure)
    }

    /// Which of the masters is gone to next.
    pub(crate) fn chosen(&self) -> usize {
        self.chosen.load(Ordering::Relaxed)
    }

    /// Goes on with the next master, as the one on this connection did not help, unless it already does.
    pub fn go_on_from(&self, connection: &Connection) {
        let next = (connection.master + 1) % self.masters.len();
        let (of, order) = (connection.master, Ordering::Relaxed);
        let _ = self.chosen.compare_exchange(of, next, order, order);
    }

    async fn connect_in_time(&self, master: usize) -> Result<Connection, Failure> {
        let place = &self.masters[master];
        // Before what it counts, so that a change in between makes another connection.
        let generation = self.tls.generation();
        let stream = TcpStream::connect((place.host.as_str(), place.port))
            .await
            .map_err(Failure::Unreachable)?;
        // Requests are small and waited for.
        let _ = stream.set_nodelay(true);
        let stream = self
            .tls
            .connector()
            .connect(place.name.clone(), stream)
            .await
            .map_err(Failure::Tls)?;
        let session = stream.get_ref().1;
        let old = || Failure::Tls(std::io::Error::other("the master does not speak TLS 1.3"));
        // Below 1.3 an exporter is not unique to its connection (RFC 9266, section 1).
        if session.protocol_version() != Some(rustls::ProtocolVersion::TLSv1_3) {
            return Err(old());
        }
        let exporter = session
            .export_keying_material([0; EXPORTER_LEN], EXPORTER_LABEL, None)
            .map_err(|_| old())?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|_| Failure::Broken)?;
        let driver = tokio::spawn(async move {
            // How it ended shows in the request that waits.
            let _ = connection.await;
        });
        Ok(Connection {
            exporter,
            master,
            generation,
            authority: place.authority.clone(),
            sender,
            driver,
        })
    }
}

impl Place {
    fn read(url: &str) -> Result<Self, Unusable> {
        let invalid = || Unusable::Address;
        let uri: Uri = url.parse().map_err(|_| invalid())?;
        let authority = uri.authority().ok_or_else(invalid)?;
        if uri.scheme_str() != Some("https") || uri.path() != "/" || uri.query().is_some() {
            return Err(invalid());
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host.clone()).map_err(|_| invalid())?;
        Ok(Self {
            port: authority.port_u16().unwrap_or(443),
            authority: authority.as_str().to_owned(),
            host,
            name,
        })
    }
}

impl Connection {
    /// Whether the master has not closed it, as far as is known.
    pub fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Sends a request and reads the whole answer. A status that is not of success is a
    /// [`Failure::Refused`].
    pub async fn ask(&mut self, ask: Ask<'_>) -> Result<Answer, Failure> {
        let deadline = ask.deadline;
        timeout(deadline, self.ask_in_time(ask))
            .await
            .map_err(|_| Failure::Timeout)?
    }

    async fn ask_in_time(&mut self, ask: Ask<'_>) -> Result<Answer, Failure> {
        let mut request = Request::builder()
            .method(ask.method)
            .uri(ask.path)
            .header(header::HOST, &self.authority)
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(authorization) = ask.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        if let Some(key) = ask.idempotency_key {
            request = request.header(IDEMPOTENCY_KEY, format!("\"{key}\""));
        }
        let request = request
            .body(Full::new(Bytes::from(ask.body)))
            .map_err(|_| Failure::Malformed)?;
        self.sender.ready().await.map_err(|_| Failure::Broken)?;
        let response = self
            .sender
            .send_request(request)
            .await
            .map_err(|_| Failure::Broken)?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, ask.max_answer)
            .collect()
            .await
            .map_err(|error| match error.downcast::<hyper::Error>() {
                Ok(_) => Failure::Broken,
                Err(_) => Failure::Malformed,
            })?
            .to_bytes();
        if parts.status.is_success() || parts.status == StatusCode::NOT_MODIFIED {
            return Ok(Answer {
                status: parts.status,
                body,
            });
        }
        let (word, detail) = problem(&parts.headers, &body);
        Err(Failure::Refused {
            status: parts.status.as_u16(),
            word,
            detail,
        })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// The word and the detail of a problem, cut to what a log line bears; nothing for any other body.
fn problem(headers: &HeaderMap, body: &[u8]) -> (String, String) {
    let is_problem = headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/problem+json"));
    let problem = is_problem.then(|| serde_json::from_slice::<Problem>(body).ok());
    let Some(problem) = problem.flatten() else {
        return (String::new(), String::new());
    };
    let printable = |text: &str| {
        let printable = text.chars().filter(|c| !c.is_control());
        printable.take(256).collect()
    };
    let word = problem.r#type.strip_prefix(Problem::URN);
    (
        printable(word.unwrap_or_default()),
        printable(&problem.detail),
    )
}
