//! The relay as transit relay: a thread that does nothing but forward, so that neither sessions nor their
//! upstreams ever stand before a packet of others.

use std::{io, net::SocketAddr, sync::Arc, thread};

use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;
use wavry_credentials::membership::Membership;
use wavry_proto::overlay::Authenticator;
use wavry_transport::{
    mesh,
    transit::{self, Transit},
};

use crate::config;

/// The thread that forwards. When this is dropped, it stops.
pub(crate) struct Forwarding {
    address: SocketAddr,
    advertised: Vec<SocketAddr>,
    draining: CancellationToken,
    stopped: CancellationToken,
    /// Closed when the thread is over.
    over: oneshot::Receiver<()>,
    viewer: transit::Viewer,
}

impl Forwarding {
    /// Binds the socket and starts the thread.
    pub(crate) async fn start(
        config: &config::Transit,
        membership: &Membership,
        authenticator: Arc<dyn Authenticator>,
    ) -> io::Result<Self> {
        let (draining, stopped) = (CancellationToken::new(), CancellationToken::new());
        let (bound, binding) = oneshot::channel();
        let (alive, over) = oneshot::channel::<()>();
        let (drains, stops) = (draining.clone(), stopped.clone());
        let listen = config.listen;
        let config_of_thread = transit::Config {
            node: membership.node_id().clone(),
            roster: membership.roster(),
            authenticator,
            verifier: Arc::new(membership.lease_verifier()),
            master: membership.master(),
            limits: config.limits,
            link: config.link,
        };
        thread::Builder::new()
            .name("transit".to_owned())
            .spawn(move || {
                let _alive = alive;
                let runtime = match tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                {
                    Ok(runtime) => runtime,
                    Err(error) => {
                        let _ = bound.send(Err(error));
                        return;
                    }
                };
                runtime.block_on(async move {
                    let transit = mesh::bind(listen)
                        .and_then(|socket| Transit::new(socket, config_of_thread));
                    match transit {
                        Ok(transit) => {
                            // Whoever waits for it may have given up.
                            let _ = bound.send(Ok((transit.local_addr(), transit.viewer())));
                            transit.run(drains, stops).await;
                        }
                        Err(error) => {
                            let _ = bound.send(Err(error));
                        }
                    }
                });
            })?;
        let gone = |_| io::Error::other("the thread that forwards packets is gone");
        let (address, viewer) = binding.await.map_err(gone)??;
        let advertised = match config.advertise.is_empty() {
            true => vec![address],
            false => config.advertise.clone(),
        };
        Ok(Self {
            address,
            advertised,
            draining,
            stopped,
            over,
            viewer,
        })
    }

    /// The socket's address.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Looks at it.
    pub(crate) fn viewer(&self) -> transit::Viewer {
        self.viewer.clone()
    }

    /// Where other nodes find it.
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.advertised
    }

    /// Returns when a thread that was there is over, and never where none was.
    pub(crate) async fn lost(forwarding: &mut Option<Self>) {
        match forwarding {
            Some(forwarding) => {
                let _ = (&mut forwarding.over).await;
            }
            None => std::future::pending().await,
        }
    }

    /// Grants no flow any more.
    pub(crate) fn drain(&self) {
        self.draining.cancel();
    }

    /// Forwards until nobody needs it any more, but no longer than until `deadline`.
    pub(crate) async fn finish(mut self, deadline: Instant) {
        self.draining.cancel();
        let _ = timeout_at(deadline, &mut self.over).await;
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        self.stopped.cancel();
    }
}
