//! The ops listener of every role: `/metrics`, `/healthz`, `/readyz`, and of nodes `/mesh`. Plain HTTP, on loopback
//! unless remote access is allowed in so many words.

mod mesh;

use std::{
    future::IntoFuture as _,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use axum::{Router, extract::State, http::StatusCode, routing::get};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use wavry_proto::config::Invalid;

pub(crate) use self::mesh::Mesh;

/// What may stand in `[ops]`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Raw {
    listen: SocketAddr,
    #[serde(default)]
    allow_remote: bool,
}

impl Raw {
    /// The defaults of a role whose listener is at `listen`.
    pub(crate) fn at(listen: &str) -> Self {
        Self {
            listen: listen.parse().expect("defaults are addresses"),
            allow_remote: false,
        }
    }
}

/// Where ops listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// Its address.
    pub(crate) listen: SocketAddr,
}

impl TryFrom<Raw> for Config {
    type Error = Invalid;

    fn try_from(raw: Raw) -> Result<Self, Invalid> {
        if !raw.listen.ip().is_loopback() && !raw.allow_remote {
            return Err(Invalid::new(
                "listen",
                "must be a loopback address, unless allow_remote = true",
            ));
        }
        Ok(Self { listen: raw.listen })
    }
}

/// Seconds, from a loopback round trip to a stuck peer.
const SECONDS_BUCKETS: [f64; 17] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 60.0,
];
/// Bytes, from a datagram to a large transfer.
const BYTES_BUCKETS: [f64; 8] = [
    64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 1048576.0, 16777216.0,
];
/// How often histograms are folded; they grow without bound otherwise.
const UPKEEP: Duration = Duration::from_secs(5);

/// Makes this process's metrics recorder.
pub(crate) fn install_recorder() -> anyhow::Result<PrometheusHandle> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS_BUCKETS)?
        .set_buckets_for_metric(Matcher::Suffix("_bytes".to_owned()), &BYTES_BUCKETS)?
        .install_recorder()
        .context("metrics recorder")
}

/// Whether the role takes work; `/readyz` says so.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ready(Arc<AtomicBool>);

impl Ready {
    /// From now on, or from now on no more.
    pub(crate) fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Relaxed);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The ops listener.
pub(crate) struct Ops {
    listener: TcpListener,
    address: SocketAddr,
    metrics: PrometheusHandle,
    ready: Ready,
    mesh: Mesh,
}

impl Ops {
    /// Binds it.
    pub(crate) async fn bind(
        config: &Config,
        metrics: PrometheusHandle,
        ready: Ready,
        mesh: Mesh,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("ops listener cannot bind TCP {}", config.listen))?;
        let address = listener.local_addr()?;
        Ok(Self {
            listener,
            address,
            metrics,
            ready,
            mesh,
        })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let metrics = self.metrics.clone();
        let upkeep = async {
            let mut interval = tokio::time::interval(UPKEEP);
            loop {
                interval.tick().await;
                metrics.run_upkeep();
            }
        };
        let router = router(self.metrics, self.ready).merge(self.mesh.routes());
        tokio::select! {
            result = axum::serve(self.listener, router).into_future() => {
                if let Err(error) = result {
                    tracing::error!(%error, "ops listener failed");
                }
            }
            () = upkeep => {}
            () = shutdown.cancelled() => {}
        }
    }
}

fn router(metrics: PrometheusHandle, ready: Ready) -> Router {
    let render = move || async move {
        (
            [("content-type", "text/plain; version=0.0.4; charset=utf-8")],
            metrics.render(),
        )
    };
    Router::new()
        .route("/metrics", get(render))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .with_state(ready)
}

async fn readyz(State(ready): State<Ready>) -> (StatusCode, &'static str) {
    if ready.get() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    async fn status_of(address: SocketAddr, path: &str) -> (u16, String) {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream
            .write_all(
                format!("GET {path} HTTP/1.1\r\nhost: ops\r\nconnection: close\r\n\r\n").as_bytes(),
            )
            .await
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        (text[9..12].parse().unwrap(), text)
    }

    #[test]
    fn a_remote_listener_must_be_allowed() {
        let raw = |allow_remote| Raw {
            listen: ([0, 0, 0, 0], 0).into(),
            allow_remote,
        };
        assert_eq!(Config::try_from(raw(false)).unwrap_err().key, "listen");
        assert!(Config::try_from(raw(true)).is_ok());
        assert!(Config::try_from(Raw::at("[::1]:0")).is_ok());
    }

    #[tokio::test]
    async fn readiness_follows_the_role_and_metrics_are_shown() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let ready = Ready::default();
        let config = Config {
            listen: ([127, 0, 0, 1], 0).into(),
        };
        let ops = Ops::bind(&config, recorder.handle(), ready.clone(), Mesh::default())
            .await
            .unwrap();
        let address = ops.address();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(ops.run(shutdown.clone()));

        metrics::with_local_recorder(&recorder, || {
            metrics::counter!("wavry_test_total").increment(3)
        });
        assert_eq!(status_of(address, "/readyz").await.0, 503);
        ready.set(true);
        assert_eq!(status_of(address, "/readyz").await.0, 200);
        assert_eq!(status_of(address, "/healthz").await.0, 200);
        assert!(
            status_of(address, "/metrics")
                .await
                .1
                .contains("wavry_test_total 3")
        );
        assert_eq!(status_of(address, "/other").await.0, 404);

        shutdown.cancel();
        running.await.unwrap();
    }

    #[tokio::test]
    async fn a_role_without_a_part_in_the_mesh_says_so_and_one_that_starts_does_too() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let config = Config {
            listen: ([127, 0, 0, 1], 0).into(),
        };
        let mesh = Mesh::default();
        let (metrics, ready) = (recorder.handle(), Ready::default());
        let ops = Ops::bind(&config, metrics, ready, mesh.clone())
            .await
            .unwrap();
        let address = ops.address();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(ops.run(shutdown.clone()));
        for path in ["/mesh", "/mesh/trace?peer=exit"] {
            let (status, text) = status_of(address, path).await;
            assert_eq!(status, 503);
            assert!(text.ends_with("the node starts\n"), "{text}");
        }
        mesh.serves(None);
        assert_eq!(status_of(address, "/mesh").await.0, 404);
        shutdown.cancel();
        running.await.unwrap();
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listen = taken.local_addr().unwrap();
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        let error = Ops::bind(
            &Config { listen },
            metrics,
            Ready::default(),
            Mesh::default(),
        )
        .await;
        let text = format!("{:#}", error.err().unwrap());
        assert!(text.contains(&listen.to_string()), "{text}");
    }
}
