//! One HTTP request and its whole answer: HTTP/1.1 over TLS, a connection for each request, for those who are asked
//! so seldom that what matters is that each request ends.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::{body::Body, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::cert::{self, Trust};

/// From the first packet to the end of the answer.
const DEADLINE: Duration = Duration::from_secs(30);
/// Longest answer, in bytes. A chain of certificates has some thousand, a secret as many.
const MAX_ANSWER: usize = 256 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Transport {
    /// Who is asked, or what is named, is somewhere else.
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

/// Asks by `https://`.
#[derive(Clone)]
pub(crate) struct Client {
    tls: TlsConnector,
    /// Whether `http://` will do on this machine.
    plain_loopback: bool,
}

impl Client {
    pub(crate) fn new(trust: &Trust) -> Result<Self, cert::Error> {
        let mut tls = cert::client_config(trust)?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            tls: TlsConnector::from(Arc::new(tls)),
            plain_loopback: false,
        })
    }

    /// One that asks `http://` URLs of loopback addresses, too.
    pub(crate) fn with_plain_loopback(self) -> Self {
        Self {
            plain_loopback: true,
            ..self
        }
    }

    /// Sends a request, and gives the whole answer.
    pub(crate) async fn ask<B>(&self, request: Request<B>) -> Result<Response<Bytes>, Transport>
    where
        B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
            + Send
            + Unpin
            + 'static,
    {
        let place = request.uri().authority().map(ToString::to_string);
        let place = place.unwrap_or_default();
        let asked = timeout(DEADLINE, self.ask_in_time(request, &place));
        asked.await.map_err(|_| Transport::Timeout(place))?
    }

    async fn ask_in_time<B>(
        &self,
        mut request: Request<B>,
        place: &str,
    ) -> Result<Response<Bytes>, Transport>
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
) -> Result<Response<Bytes>, Transport>
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
        Ok(Response::from_parts(parts, body.to_bytes()))
    };
    tokio::pin!(exchange, connection);
    tokio::select! {
        answer = &mut exchange => answer,
        // The connection may end with the answer; that is read to its end all the same.
        _ = &mut connection => exchange.await,
    }
}
