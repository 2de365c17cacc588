//! The listener: TCP, TLS, HTTP/1.1, each with its deadline.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;
use tracing::Instrument as _;
use wavry_proto::control::{EXPORTER_LABEL, EXPORTER_LEN};

use crate::{channel::Channel, config::Limits};

/// Longest head of a request, in bytes: twice the longest token.
const MAX_HEAD: usize = 16 * 1024;

/// How a role serves.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) tls: TlsAcceptor,
    pub(crate) router: Router,
    pub(crate) limits: Limits,
    /// Whether requests are bound to their connection, which TLS 1.2 cannot do.
    pub(crate) needs_exporter: bool,
    pub(crate) metrics: Names,
}

/// What its connections are counted as.
#[derive(Clone, Copy)]
pub(crate) struct Names {
    pub(crate) connections: &'static str,
    pub(crate) handshakes_failed: &'static str,
}

/// Serves connections until `leaving`, then waits for the requests under way.
pub(crate) async fn serve(
    listener: TcpListener,
    service: Service,
    leaving: CancellationToken,
    drain_timeout: Duration,
) {
    let connections = TaskTracker::new();
    // Bounds connections, and with them nonces and bodies: limits.max_connections × the longest body.
    let places = Arc::new(Semaphore::new(service.limits.max_connections));
    // Cancelled at the end of this function, whichever way it ends.
    let cut = CancellationToken::new();
    let _cut = cut.clone().drop_guard();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &places) => accepted,
            () = leaving.cancelled() => break,
        };
        let (stream, peer, place) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // No file descriptor is free, or the connection is gone already.
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let span = tracing::info_span!("connection", %peer);
        let (service, names) = (service.clone(), service.metrics);
        let (leaving, cut) = (leaving.clone(), cut.clone());
        connections.spawn(
            async move {
                let _place = place;
                metrics::gauge!(names.connections).increment(1.0);
                let served = connection(stream, peer, service, leaving);
                if let Some(Err(reason)) = cut.run_until_cancelled(served).await {
                    metrics::counter!(names.handshakes_failed, "reason" => reason).increment(1);
                    tracing::debug!(reason, "handshake failed");
                }
                metrics::gauge!(names.connections).decrement(1.0);
            }
            .instrument(span),
        );
    }
    drop(listener);
    connections.close();
    if timeout(drain_timeout, connections.wait()).await.is_err() {
        tracing::warn!(
            connections = connections.len(),
            "requests outlived the drain timeout and are cut"
        );
    }
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let place = places
        .clone()
        .acquire_owned()
        .await
        .map_err(std::io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, place))
}

/// Serves one connection to its end. The error is why it never came to a request.
async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    service: Service,
    leaving: CancellationToken,
) -> Result<(), &'static str> {
    let Service {
        tls,
        router,
        limits,
        needs_exporter,
        ..
    } = service;
    // Answers are small and waited for.
    let _ = stream.set_nodelay(true);
    let handshake = timeout(limits.handshake_timeout, tls.accept(stream));
    let Some(handshake) = leaving.run_until_cancelled(handshake).await else {
        return Ok(());
    };
    let stream = handshake.map_err(|_| "timeout")?.map_err(|_| "tls")?;
    let session = stream.get_ref().1;
    // Below 1.3 an exporter is not unique to its connection (RFC 9266, section 1).
    if needs_exporter && session.protocol_version() != Some(rustls::ProtocolVersion::TLSv1_3) {
        return Err("version");
    }
    let exporter = session
        .export_keying_material([0; EXPORTER_LEN], EXPORTER_LABEL, None)
        .map_err(|_| "tls")?;
    let certificates = session.peer_certificates().unwrap_or_default();
    let certificates = certificates.iter().map(|der| der.clone().into_owned());
    let channel = Channel::new(exporter, peer).with_peer_certificates(certificates.collect());
    let channel = Arc::new(channel);

    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(channel.clone());
        let router = router.clone();
        async move {
            let answer: Result<_, Infallible> = router.oneshot(request).await;
            answer
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = leaving.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
    Ok(())
}
