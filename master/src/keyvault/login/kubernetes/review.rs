//! Asking a cluster whose token it is (Kubernetes API, `authentication.k8s.io/v1` TokenReview).

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{
    RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use wavry_credentials::bearer::{Document, Token};

use super::{Account, Config};

/// From the first packet to the end of the answer; a login has two seconds in all.
const DEADLINE: Duration = Duration::from_millis(1500);
/// Longest answer, in bytes.
const MAX_ANSWER: usize = 256 * 1024;
const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
/// Where Kubernetes puts the authority of its API server into each pod.
const LOCAL_CA: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";

/// Why there is no review. Nothing of a token is in it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("kubernetes_host is not https://HOST:PORT")]
    Host,
    #[error("kubernetes_ca_cert is not X.509 in PEM, or there is none")]
    Authority,
    #[error("it cannot be reached")]
    Unreachable(#[source] std::io::Error),
    #[error("it did not answer in time")]
    Timeout,
    #[error("the connection broke")]
    Broken,
    #[error("it answered with status {0}")]
    Status(StatusCode),
    #[error("its answer is not a TokenReview")]
    Malformed,
}

/// Where the API server is.
pub(super) struct Server {
    host: String,
    port: u16,
    authority: String,
    name: ServerName<'static>,
}

impl Server {
    /// Reads `https://HOST:PORT`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let uri: Uri = text.parse().ok()?;
        let authority = uri.authority()?;
        let is_plain = uri.scheme_str() == Some("https")
            && uri.path().trim_matches('/').is_empty()
            && uri.query().is_none()
            && !authority.as_str().contains('@');
        if !is_plain {
            return None;
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        Some(Self {
            name: ServerName::try_from(host.clone()).ok()?,
            port: authority.port_u16().unwrap_or(443),
            authority: authority.as_str().to_owned(),
            host,
        })
    }
}

#[derive(Deserialize)]
struct Review {
    status: Status,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    authenticated: bool,
    #[serde(default)]
    user: User,
    #[serde(default)]
    audiences: Vec<String>,
}

#[derive(Default, Deserialize)]
struct User {
    #[serde(default)]
    username: String,
    #[serde(default)]
    uid: String,
}

/// Whose token it is, by the word of the cluster; nobody's that holds, where it says so.
pub(super) async fn ask(
    config: &Config,
    reviewer: Option<&Token>,
    jwt: &Token,
    audience: Option<&str>,
) -> Result<Option<Account>, Failure> {
    let asked = ask_in_time(config, reviewer, jwt, audience);
    let review = tokio::time::timeout(DEADLINE, asked).await;
    let Review { status } = review.map_err(|_| Failure::Timeout)??;
    Ok(status.account(audience))
}

impl Status {
    fn account(self, audience: Option<&str>) -> Option<Account> {
        let for_us =
            audience.is_none_or(|audience| self.audiences.iter().any(|one| one == audience));
        if !self.authenticated || !for_us {
            return None;
        }
        let (namespace, name) = self
            .user
            .username
            .strip_prefix("system:serviceaccount:")?
            .split_once(':')?;
        Some(Account {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: self.user.uid,
        })
    }
}

async fn ask_in_time(
    config: &Config,
    reviewer: Option<&Token>,
    jwt: &Token,
    audience: Option<&str>,
) -> Result<Review, Failure> {
    let server = Server::parse(&config.kubernetes_host).ok_or(Failure::Host)?;
    let tls = TlsConnector::from(Arc::new(tls(config)?));
    let stream = TcpStream::connect((server.host.as_str(), server.port)).await;
    let stream = stream.map_err(Failure::Unreachable)?;
    let stream = tls.connect(server.name.clone(), stream).await;
    let stream = TokioIo::new(stream.map_err(Failure::Unreachable)?);
    let (mut sender, connection) = http1::handshake(stream)
        .await
        .map_err(|_| Failure::Broken)?;
    let driver = tokio::spawn(connection);
    let request = request(&server, reviewer.unwrap_or(jwt), jwt, audience)?;
    let exchange = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|_| Failure::Broken)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await;
        let body = body.map_err(|_| Failure::Broken)?.to_bytes();
        match status.is_success() {
            true => serde_json::from_slice(&body).map_err(|_| Failure::Malformed),
            false => Err(Failure::Status(status)),
        }
    };
    let review = exchange.await;
    driver.abort();
    review
}

fn request(
    server: &Server,
    bearer: &Token,
    jwt: &Token,
    audience: Option<&str>,
) -> Result<Request<Full<Bytes>>, Failure> {
    let mut spec = vec![("token", Document::from(jwt))];
    if let Some(audience) = audience {
        spec.push(("audiences", Document::of(&[audience])));
    }
    let body = Document::object([
        ("apiVersion", Document::of(&"authentication.k8s.io/v1")),
        ("kind", Document::of(&"TokenReview")),
        ("spec", Document::object(spec)),
    ]);
    let mut authorization =
        HeaderValue::try_from(bearer.authorization()).map_err(|_| Failure::Malformed)?;
    authorization.set_sensitive(true);
    Request::post(PATH)
        .header(header::HOST, &server.authority)
        .header(header::AUTHORIZATION, authorization)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json")
        .body(Full::new(body.into_body()))
        .map_err(|_| Failure::Malformed)
}

/// Trusts the authority that the settings name, or that of the pod in which this runs.
fn tls(config: &Config) -> Result<rustls::ClientConfig, Failure> {
    let mut roots = RootCertStore::empty();
    let mut add = |pem: &[u8]| {
        let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
        roots.add_parsable_certificates(certificates.unwrap_or_default());
    };
    match config.kubernetes_ca_cert.is_empty() {
        false => add(config.kubernetes_ca_cert.as_bytes()),
        true if config.disable_local_ca_jwt => (),
        // It is no secret.
        true => add(&std::fs::read(LOCAL_CA).unwrap_or_default()),
    }
    if roots.is_empty() {
        return Err(Failure::Authority);
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| Failure::Authority)?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
