//! The demo page, on loopback over plain HTTP: a secure context, so that browsers offer
//! WebTransport there. Nothing is loaded from anywhere else.

use std::{future::IntoFuture as _, net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use axum::{
    Json, Router,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::get,
};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What the page is told.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Config {
    /// Origin of the gateway: `https://HOST:PORT`.
    pub(crate) gateway: String,
    /// SHA-256 hashes of the gateway's certificate, as hexadecimal.
    pub(crate) certificate_hashes: Vec<String>,
    /// Services in the order they are shown.
    pub(crate) services: Vec<Service>,
}

/// A service that the page can connect to.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Service {
    /// Its name.
    pub(crate) name: String,
    /// Its URL, with a token where one is needed.
    pub(crate) url: String,
    /// Subprotocols to offer.
    pub(crate) subprotocols: Vec<String>,
    /// What it does.
    pub(crate) about: String,
}

/// Makes what the page is told, each time it asks.
pub(crate) type Source = Arc<dyn Fn() -> anyhow::Result<Config> + Send + Sync>;

/// The page's listener.
pub(crate) struct Demo {
    listener: TcpListener,
    address: SocketAddr,
}

impl Demo {
    /// Binds it on loopback.
    pub(crate) async fn bind(port: u16) -> anyhow::Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("demo page cannot bind TCP {address}; choose another port with --demo-port")
        })?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Origins a browser gives it.
    pub(crate) fn origins(&self) -> Vec<String> {
        let port = self.address.port();
        ["127.0.0.1", "localhost"]
            .map(|host| format!("http://{host}:{port}"))
            .into()
    }

    /// Serves until `shutdown`.
    pub(crate) async fn run(self, source: Source, shutdown: CancellationToken) {
        let page = Page {
            source,
            hosts: self
                .origins()
                .iter()
                .filter_map(|origin| Some(origin.strip_prefix("http://")?.to_owned()))
                .collect(),
        };
        let serve = axum::serve(self.listener, router(page)).into_future();
        if let Some(Err(error)) = shutdown.run_until_cancelled(serve).await {
            tracing::error!(%error, "demo page failed");
        }
    }
}

#[derive(Clone)]
struct Page {
    source: Source,
    hosts: Arc<[String]>,
}

fn router(page: Page) -> Router {
    let file = |content_type: &'static str, text: &'static str| {
        get(move || async move { ([(header::CONTENT_TYPE, content_type)], text) })
    };
    Router::new()
        .route(
            "/",
            file(
                "text/html; charset=utf-8",
                include_str!("../demo/index.html"),
            ),
        )
        .route(
            "/style.css",
            file("text/css; charset=utf-8", include_str!("../demo/style.css")),
        )
        .route(
            "/app.js",
            file(
                "text/javascript; charset=utf-8",
                include_str!("../demo/app.js"),
            ),
        )
        .route(
            "/plot.js",
            file(
                "text/javascript; charset=utf-8",
                include_str!("../demo/plot.js"),
            ),
        )
        .route("/config.json", get(config))
        .layer(middleware::from_fn_with_state(page.clone(), guard))
        .with_state(page)
}

async fn config(State(page): State<Page>) -> Response {
    match (page.source)() {
        Ok(config) => Json(config).into_response(),
        Err(error) => {
            tracing::error!(%error, "demo page cannot be configured");
            StatusCode::SERVICE_UNAVAILABLE.into_response()
        }
    }
}

/// Answers only those who know it by its own name — a name that was rebound to loopback is somebody
/// else's page, and the answers hold tokens — and sets the security headers.
async fn guard(
    State(page): State<Page>,
    headers: HeaderMap,
    request: Request,
    next: Next,
) -> Response {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    if !host.is_some_and(|host| page.hosts.iter().any(|known| known == host)) {
        return StatusCode::MISDIRECTED_REQUEST.into_response();
    }
    let mut response = next.run(request).await;
    let gateway = (page.source)()
        .map(|config| config.gateway)
        .unwrap_or_default();
    let policy = format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
         connect-src 'self' {gateway}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers = response.headers_mut();
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    async fn answer(address: SocketAddr, path: &str, host: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn the_page_is_served_to_its_own_name_alone_and_loads_nothing_from_elsewhere() {
        let demo = Demo::bind(0).await.unwrap();
        let address = demo.address;
        let source: Source = Arc::new(|| {
            Ok(Config {
                gateway: "https://127.0.0.1:4433".to_owned(),
                certificate_hashes: vec!["00".repeat(32)],
                services: Vec::new(),
            })
        });
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(demo.run(source, shutdown.clone()));

        let own = address.to_string();
        for path in ["/", "/app.js", "/plot.js", "/style.css", "/config.json"] {
            let text = answer(address, path, &own).await;
            assert!(text.starts_with("HTTP/1.1 200"), "{path}: {text}");
            assert!(text.contains("default-src 'none'"), "{path} has no policy");
            assert!(text.contains("connect-src 'self' https://127.0.0.1:4433;"));
            let rebound = answer(address, path, "evil.example").await;
            assert!(rebound.starts_with("HTTP/1.1 421"), "{path}: {rebound}");
        }
        for text in [
            include_str!("../demo/index.html"),
            include_str!("../demo/style.css"),
        ] {
            assert!(!text.contains("://"), "an asset from elsewhere");
        }
        shutdown.cancel();
        running.await.unwrap();
    }

    #[tokio::test]
    async fn a_taken_port_is_named_with_the_flag_that_chooses_another() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let error = format!("{:#}", Demo::bind(address.port()).await.err().unwrap());
        assert!(error.contains(&address.to_string()), "{error}");
        assert!(error.contains("--demo-port"), "{error}");
    }
}
