//! The way to an authority: HTTP/1.1 over TLS, a connection for each request. An authority is asked a dozen
//! times in two months; what matters is that each request ends.

use std::{
    future::Future,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Body, client::conn::http1};
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::machine::Time;
use crate::{
    cert::{self, Trust},
    clock::since_epoch,
};

/// From the first packet to the end of the answer.
const DEADLINE: Duration = Duration::from_secs(30);
/// Longest answer, in bytes. A chain of certificates has some thousand.
const MAX_ANSWER: usize = 256 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Transport {
    /// The authority, or what it names, is somewhere else.
    #[error("{0:?} is not https://HOST[:PORT]/PATH")]
    Address(String),
    #[error("{0} cannot be reached: {1}")]
    Unreachable(String, io::Error),
    #[error("TLS with {0} failed: {1}")]
    Tls(String, io::Error),
    #[error("the connection to {0} broke, or its answer is no HTTP")]
    Broken(String),
    #[error("the answer of {0} is longer than {MAX_ANSWER} bytes, or broke off")]
    TooLong(String),
    #[error("{0} did not answer within {DEADLINE:?}")]
    Timeout(String),
}

/// What the last answer said beside its content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Noted {
    /// The status.
    pub(super) status: u16,
    /// The authority does not want to be asked again before.
    pub(super) retry_at: Option<Time>,
}

/// A client of one authority. Clones share what was noted.
#[derive(Clone)]
pub(super) struct Client {
    tls: TlsConnector,
    /// Whether `http://` will do on this machine.
    plain_loopback: bool,
    noted: Arc<Mutex<Noted>>,
}

impl Client {
    pub(super) fn new(trust: &Trust) -> Result<Self, cert::Error> {
        let mut tls = cert::client_config(trust)?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            tls: TlsConnector::from(Arc::new(tls)),
            plain_loopback: false,
            noted: Arc::default(),
        })
    }

    /// One that asks `http://` URLs of loopback addresses, too.
    pub(super) fn with_plain_loopback(self) -> Self {
        Self {
            plain_loopback: true,
            ..self
        }
    }

    /// What the last answer said; nothing more until the next one.
    pub(super) fn take_noted(&self) -> Noted {
        std::mem::take(&mut *self.noted())
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request, and gives the whole answer.
    pub(super) async fn ask<B>(
        self,
        request: Request<B>,
    ) -> Result<Response<Full<Bytes>>, Transport>
    where
        B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
            + Send
            + Unpin
            + 'static,
    {
        let place = request.uri().authority().map(ToString::to_string);
        let place = place.unwrap_or_default();
        let asked = timeout(DEADLINE, self.ask_in_time(request, &place));
        let response = asked.await.map_err(|_| Transport::Timeout(place))??;
        *self.noted() = Noted {
            status: response.status().as_u16(),
            retry_at: response
                .headers()
                .get(header::RETRY_AFTER)
                .and_then(|value| retry_at(value, since_epoch())),
        };
        Ok(response)
    }

    async fn ask_in_time<B>(
        &self,
        mut request: Request<B>,
        place: &str,
    ) -> Result<Response<Full<Bytes>>, Transport>
    where
        B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
            + Send
            + Unpin
            + 'static,
    {
        let uri = request.uri();
        let address = || Transport::Address(uri.to_string());
        let authority = uri.authority().ok_or_else(address)?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let is_here = || {
            host.parse()
                .is_ok_and(|address: IpAddr| address.is_loopback())
        };
        let (is_tls, port) = match uri.scheme_str() {
            Some("https") => (true, 443),
            Some("http") if self.plain_loopback && is_here() => (false, 80),
            _ => return Err(address()),
        };
        let port = authority.port_u16().unwrap_or(port);
        let name = ServerName::try_from(host.clone()).map_err(|_| address())?;
        let header = HeaderValue::from_str(authority.as_str()).map_err(|_| address())?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let path: Uri = path.parse().map_err(|_| address())?;
        request.headers_mut().insert(header::HOST, header);
        *request.uri_mut() = path;

        let of = || place.to_owned();
        let stream = TcpStream::connect((host.as_str(), port)).await;
        let stream = stream.map_err(|error| Transport::Unreachable(of(), error))?;
        if !is_tls {
            return exchange(stream, request, place).await;
        }
        let stream = self.tls.connect(name, stream).await;
        let stream = stream.map_err(|error| Transport::Tls(of(), error))?;
        exchange(stream, request, place).await
    }
}

/// One request and its answer over `stream`.
async fn exchange<S, B>(
    stream: S,
    request: Request<B>,
    place: &str,
) -> Result<Response<Full<Bytes>>, Transport>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
        + Send
        + Unpin
        + 'static,
{
    let of = || place.to_owned();
    let broken = |_| Transport::Broken(of());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await;
        let body = body.map_err(|_| Transport::TooLong(of()))?;
        Ok(Response::from_parts(parts, Full::new(body.to_bytes())))
    };
    tokio::pin!(exchange, connection);
    tokio::select! {
        answer = &mut exchange => answer,
        // The connection may end with the answer; that is read to its end all the same.
        _ = &mut connection => exchange.await,
    }
}

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let client = self.clone();
        Box::pin(async move {
            match client.ask(request).await {
                Ok(response) => Ok(BytesResponse::from(response)),
                Err(error) => Err(Error::Other(Box::new(error))),
            }
        })
    }
}

/// What `Retry-After` says (RFC 9110, section 10.2.3): seconds or a date.
fn retry_at(value: &HeaderValue, now: Time) -> Option<Time> {
    let text = value.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return now.checked_add(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    date.duration_since(SystemTime::UNIX_EPOCH).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Option<u64> {
        let value = HeaderValue::from_str(text).ok()?;
        retry_at(&value, Duration::from_secs(1000)).map(|time| time.as_secs())
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(read("120"), Some(1120));
        assert_eq!(read(" 0 "), Some(1000));
        assert_eq!(read("Thu, 01 Jan 1970 01:00:00 GMT"), Some(3600));
        for text in ["", "soon", "-1", "1.5", "99999999999999999999"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_is_read_or_passed_over(bytes: Vec<u8>) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                retry_at(&value, Duration::from_secs(1000));
            }
        }
    }
}
