//! Connections are accepted here: those that [`Admission`] lets in.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    Limits,
    admission::{Admission, Network, Verdict},
    connection::Connection,
    plain,
    quic::Side,
    server::{Intake, Requested},
};
use crate::{
    datagram::Meter,
    metrics::{
        CONNECTIONS_REFUSED, HANDSHAKES, HANDSHAKES_FAILED, RETRIES, connection_refusal,
        handshake_failure, link,
    },
};

/// What the shards of a server share.
pub(super) struct Listener {
    pub(super) limits: Limits,
    pub(super) requests: mpsc::Sender<Requested>,
    pub(super) plain: Arc<plain::Handler>,
    pub(super) drain: watch::Receiver<bool>,
    pub(super) closed: CancellationToken,
    admission: Arc<Mutex<Admission>>,
    meter: Meter,
}

impl Listener {
    pub(super) fn new(
        limits: Limits,
        requests: mpsc::Sender<Requested>,
        plain: Arc<plain::Handler>,
        drain: watch::Receiver<bool>,
        closed: CancellationToken,
    ) -> Self {
        let admission = Admission::new(&limits, std::time::Instant::now());
        Self {
            limits,
            requests,
            plain,
            drain,
            closed,
            admission: Arc::new(Mutex::new(admission)),
            meter: Meter::new(link::WEBTRANSPORT),
        }
    }

    /// Accepts what comes to one endpoint. Nothing here waits for a peer: each connection has a task
    /// of its own from its first packet on. An endpoint that is lost closes the server: the kernel
    /// would go on giving its socket a share of the clients.
    pub(super) async fn run(self: Arc<Self>, endpoint: quinn::Endpoint) {
        loop {
            let incoming = tokio::select! {
                biased;
                () = self.closed.cancelled() => return,
                incoming = endpoint.accept() => incoming,
            };
            match incoming {
                Some(incoming) => self.take(incoming),
                None => return self.closed.cancel(),
            }
        }
    }

    fn take(&self, incoming: quinn::Incoming) {
        let remote = incoming.remote_address();
        if *self.drain.borrow() {
            return refuse(incoming, connection_refusal::DRAINING);
        }
        let client = Network::from(remote.ip());
        let proven = incoming.remote_address_validated();
        let now = std::time::Instant::now();
        let verdict = lock(&self.admission).admit(client, proven, now);
        match verdict {
            Verdict::Accept => {}
            Verdict::Retry => {
                metrics::counter!(RETRIES).increment(1);
                // A client that has come back with a token is proven, any other can be sent one.
                let _ = incoming.retry();
                return;
            }
            Verdict::Refuse(reason) => return refuse(incoming, reason),
        }
        let permit = Permit::new(self.admission.clone(), client);
        let span = tracing::debug_span!("connection", %remote);
        tokio::spawn(self.serve(incoming, permit).instrument(span));
    }

    /// Takes a connection through its handshake and serves it.
    fn serve(
        &self,
        incoming: quinn::Incoming,
        mut permit: Permit,
    ) -> impl Future<Output = ()> + use<> {
        let (limits, drain) = (self.limits.clone(), self.drain.clone());
        let (requests, plain) = (self.requests.clone(), self.plain.clone());
        let meter = self.meter.clone();
        async move {
            let deadline = Instant::now() + limits.header_timeout;
            let connected = match incoming.accept() {
                Ok(connecting) => timeout_at(deadline, connecting).await,
                Err(error) => Ok(Err(error)),
            };
            permit.handshake_over();
            let failure = match connected {
                Ok(Ok(quic)) => {
                    let intake = Intake {
                        requests,
                        plain,
                        plain_slots: Semaphore::new(plain::PER_CONNECTION),
                        _permit: permit,
                    };
                    let connection = Connection::new(quic, Side::Server, limits, meter);
                    return connection.serve(Some(Arc::new(intake)), drain).await;
                }
                Ok(Err(error)) => {
                    tracing::debug!(%error, "handshake failed");
                    handshake_failure::FAILED
                }
                Err(_) => {
                    tracing::debug!("handshake took too long");
                    handshake_failure::TIMEOUT
                }
            };
            metrics::counter!(HANDSHAKES_FAILED, "reason" => failure).increment(1);
        }
    }
}

fn refuse(incoming: quinn::Incoming, reason: &'static str) {
    let remote = incoming.remote_address();
    tracing::debug!(%remote, reason, "connection refused");
    metrics::counter!(CONNECTIONS_REFUSED, "reason" => reason).increment(1);
    incoming.refuse();
}

fn lock(admission: &Mutex<Admission>) -> MutexGuard<'_, Admission> {
    admission.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The right to one connection; given back when dropped.
pub(super) struct Permit {
    admission: Arc<Mutex<Admission>>,
    client: Network,
    handshake: bool,
}

impl Permit {
    /// For a connection that was admitted.
    fn new(admission: Arc<Mutex<Admission>>, client: Network) -> Self {
        metrics::gauge!(HANDSHAKES).increment(1);
        Self {
            admission,
            client,
            handshake: true,
        }
    }

    fn handshake_over(&mut self) {
        if std::mem::take(&mut self.handshake) {
            metrics::gauge!(HANDSHAKES).decrement(1);
            lock(&self.admission).handshake_over();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.handshake_over();
        lock(&self.admission).gone(self.client);
    }
}
