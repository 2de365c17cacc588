//! Requests that ask for no session: a server answers them beside its sessions, on the same
//! connections. Their content and their answers are small; nothing is streamed.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, OnceLock},
};

use bytes::{Bytes, BytesMut};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};
use wavry_proto::h3::{
    code,
    content::{self, Content},
    frame::{self, MessageDecoder},
    message,
};

use super::{
    connection::{Connection, within},
    server::{Intake, Unreadable, count, encode_headers},
    stream::{refuse, varint},
};
use crate::{metrics::outcome, session::Header};

/// Requests that are answered at once by a server's handler; more wait within their deadline. A
/// handler that looks into memory takes microseconds, and one that asks another machine 50 ms:
/// 5,000 requests a second.
const ANSWERED_AT_ONCE: usize = 256;
/// Requests of one connection whose content is held at once; more wait within their deadline. A
/// browser asks for a few.
pub(super) const PER_CONNECTION: usize = 8;

/// A request that asks for no session, with its whole content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `:method`, as in `GET`.
    pub method: String,
    /// `:authority`: host and optional port.
    pub authority: String,
    /// `:path`: absolute path with the query, as the client sent it; `*` with OPTIONS.
    pub path: String,
    /// The other header fields, in order, duplicates kept.
    pub headers: Vec<Header>,
    /// Content, at most [`Limits::max_content`](super::Limits::max_content) bytes.
    pub content: Bytes,
    /// Where the client is.
    pub remote: SocketAddr,
}

impl Request {
    /// The first value of a header field; `name` is in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let header = self.headers.iter().find(|header| header.name == name)?;
        Some(&header.value)
    }
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// HTTP status, 200 to 599.
    pub status: u16,
    /// Header fields, in order. `content-length` is added by the server.
    pub headers: Vec<Header>,
    /// Content. A HEAD request is told its length only; with 204 and 304 there is none.
    pub content: Bytes,
}

impl Response {
    /// An answer that is only a status.
    pub fn status(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            content: Bytes::new(),
        }
    }

    /// An answer with content of this media type.
    pub fn content(status: u16, media_type: &str, content: impl Into<Bytes>) -> Self {
        let mut response = Self::status(status).with("content-type", media_type);
        response.content = content.into();
        response
    }

    /// 405: what is there takes these methods only, as in `GET, HEAD` (RFC 9110, section 15.5.6).
    pub fn method_not_allowed(allow: &str) -> Self {
        Self::status(405).with("allow", allow)
    }

    /// The answer with one header field more; `name` is in lower case.
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push(Header {
            name: name.to_owned(),
            value: value.into(),
        });
        self
    }

    /// What goes on the wire to whoever asked with `method`.
    fn encode(self, method: &str) -> Bytes {
        let bodiless = matches!(self.status, 204 | 304);
        let length = self.content.len().to_string();
        let mut head = message::Response {
            status: self.status,
            headers: self.headers,
        };
        head.headers
            .retain(|header| header.name != "content-length");
        if !bodiless {
            head.headers.push(Header {
                name: "content-length".to_owned(),
                value: length,
            });
        }
        let mut wire = BytesMut::from(encode_headers(&head.to_fields()));
        if !bodiless && method != "HEAD" && !self.content.is_empty() {
            frame::put(&mut wire, frame::kind::DATA, &self.content);
        }
        wire.freeze()
    }
}

type Answering = Pin<Box<dyn Future<Output = Response> + Send>>;
type Handle = Box<dyn Fn(Request) -> Answering + Send + Sync>;

/// Who answers a server's plain requests.
pub(super) struct Handler {
    handle: OnceLock<Handle>,
    places: Semaphore,
}

impl Default for Handler {
    fn default() -> Self {
        Self {
            handle: OnceLock::new(),
            places: Semaphore::new(ANSWERED_AT_ONCE),
        }
    }
}

impl Handler {
    /// Sets who answers; the first call decides.
    pub(super) fn set<F, Fut>(&self, handle: F)
    where
        F: Fn(Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Response> + Send + 'static,
    {
        let handle: Handle = Box::new(move |request| Box::pin(handle(request)));
        if self.handle.set(handle).is_err() {
            tracing::warn!("plain requests are answered by whoever was set first");
        }
    }

    /// The answer, and what it counts as.
    async fn answer(&self, request: Request, deadline: Instant) -> (Response, &'static str) {
        let Some(handle) = self.handle.get() else {
            return match request.method.as_str() {
                "GET" | "HEAD" => (Response::status(404), outcome::PLAIN),
                _ => (Response::method_not_allowed("GET, HEAD"), outcome::PLAIN),
            };
        };
        let answered = timeout_at(deadline, async {
            // Never closed.
            let _place = self.places.acquire().await;
            handle(request).await
        });
        match answered.await {
            Ok(response) if (200..600).contains(&response.status) => (response, outcome::PLAIN),
            Ok(response) => {
                tracing::error!(status = response.status, "no status for a whole answer");
                (Response::status(500), outcome::PLAIN)
            }
            Err(_) => (Response::status(503), outcome::OVERLOADED),
        }
    }
}

/// Reads the rest of a request whose head was read before, and answers it.
pub(super) async fn serve(
    connection: Arc<Connection>,
    send: quinn::SendStream,
    mut recv: quinn::RecvStream,
    mut decoder: MessageDecoder,
    head: message::Request,
    deadline: Instant,
    intake: Arc<Intake>,
) {
    let id = quinn::VarInt::from(send.id()).into_inner();
    let Some(_answering) = connection.answer(id) else {
        count(outcome::DRAINING);
        return refuse(Some(send), Some(recv), code::REQUEST_REJECTED);
    };
    let limit = connection.limits.header_timeout;
    let method = head.method.clone();
    // RFC 9110, section 7.4: this is no origin of anything but https.
    if head.scheme.as_deref() != Some("https") {
        count(outcome::OTHER);
        let response = Response::status(421).encode(&method);
        return answer(send, Some(recv), response, &connection).await;
    }
    let Ok(slot) = timeout_at(deadline, intake.plain_slots.acquire()).await else {
        count(outcome::OVERLOADED);
        let response = Response::status(503).encode(&method);
        return answer(send, Some(recv), response, &connection).await;
    };
    let read = timeout_at(deadline, read(&mut recv, &mut decoder, &head, &connection)).await;
    let content = match read.unwrap_or(Err(Unreadable::TOO_LATE)) {
        Ok(content) => content,
        Err(Unreadable::TooLong) => {
            count(outcome::CONTENT_TOO_LONG);
            let response = Response::status(413).encode(&method);
            return answer(send, Some(recv), response, &connection).await;
        }
        Err(unreadable) => return unreadable.refuse(send, recv, &connection),
    };
    let request = Request {
        method: head.method,
        authority: head.authority,
        path: head.path.unwrap_or_default(),
        headers: head.headers,
        content,
        remote: connection.quic.remote_address(),
    };
    let handled = intake.plain.answer(request, Instant::now() + limit);
    let (response, outcome) = handled.await;
    drop(slot);
    count(outcome);
    answer(send, None, response.encode(&method), &connection).await;
}

impl From<content::Error> for Unreadable {
    fn from(error: content::Error) -> Self {
        match error.connection_code() {
            Some(h3_code) => Self::Connection(h3_code, error.to_string()),
            None if error == content::Error::TooLong => Self::TooLong,
            None => {
                tracing::debug!(%error, "request refused");
                Self::Stream(code::MESSAGE_ERROR)
            }
        }
    }
}

async fn read(
    recv: &mut quinn::RecvStream,
    decoder: &mut MessageDecoder,
    head: &message::Request,
    connection: &Connection,
) -> Result<Bytes, Unreadable> {
    let limits = &connection.limits;
    let mut content = Content::new(&head.headers, limits.max_content, limits.max_header_block)?;
    loop {
        if let Some(message) = decoder.next()? {
            content.push(message)?;
            continue;
        }
        match recv.read_chunk(4096, true).await {
            Ok(Some(chunk)) => decoder.push(&chunk.bytes),
            Ok(None) => {
                decoder.finish()?;
                break;
            }
            Err(_) => return Err(Unreadable::Stream(code::REQUEST_CANCELLED)),
        }
    }
    Ok(content.finish().map_err(content::Error::from)?)
}

/// Sends an answer that is all there will be on the stream. `unread` is what the request still has
/// to say, which is not needed for the answer (RFC 9114, section 4.1.1).
pub(super) async fn answer(
    mut send: quinn::SendStream,
    unread: Option<quinn::RecvStream>,
    wire: Bytes,
    connection: &Connection,
) {
    if let Some(mut recv) = unread {
        let _ = recv.stop(varint(code::NO_ERROR));
    }
    let written = within(connection.limits.header_timeout, send.write_all(&wire));
    if let Some(Ok(())) = written.await {
        let _ = send.finish();
    } else {
        refuse(Some(send), None, code::REQUEST_CANCELLED);
    }
}
