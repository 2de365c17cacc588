//! The way between two nodes: a few QUIC connections, end to end, that carry many sessions.
//!
//! `docs/WIRE.md`, "Mesh sessions", describes what goes over it and why its numbers are what they
//! are.

mod control;
mod core;
mod link;
mod pool;
mod quic;
mod session;
mod stream;
mod viewer;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::join_all;
use quinn::VarInt;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use wavry_proto::{
    control::{Node, Roster, Vouched},
    id::{NodeId, PublicKey},
    mesh::{Open, header::Side},
    overlay::{Authenticator, paths::View},
};

use self::{
    control::{Control, NoAnswer},
    link::{Link, Links, code},
    pool::Pool,
};
use crate::{
    metrics,
    overlay::{self, Overlay},
    session::{Closed, Response},
    socket::{self, shards},
};

pub use crate::overlay::Leases;

pub use self::{
    session::Session,
    stream::{RecvStream, SendStream},
    viewer::{NoTrace, Noted, Of, Sessions, Viewer},
};

/// What a mesh endpoint needs to know.
#[derive(Clone)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// TLS for connections that peers open: raw Ed25519 keys, mutual (RFC 7250).
    pub server_tls: Arc<rustls::ServerConfig>,
    /// TLS for connections to peers. The server name it is given is the peer's node id.
    pub client_tls: Arc<rustls::ClientConfig>,
    /// The key that both show. Connections made with the one before it carry the sessions that they have,
    /// and no new ones.
    pub key: watch::Receiver<PublicKey>,
    /// Makes and checks the tags of the probes that find paths to peers.
    pub authenticator: Arc<dyn Authenticator>,
    /// Who may connect, and where nodes are. Connections of a node that leaves it are closed; those by a
    /// key that the node rotated out carry the sessions that they have, and no new ones.
    pub roster: watch::Receiver<Arc<Roster>>,
    /// Has leases of flows through transit relays to peers.
    pub leases: Leases,
    /// Limits.
    pub limits: Limits,
}

pub use crate::overlay::Attached;

/// Bounds on what a peer can make this endpoint hold.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections per peer that sessions are spread over.
    pub shards: usize,
    /// Bytes of stream data that a session may have unread on this side.
    pub session_window: u64,
    /// Streams of each kind that a session's peer may have open.
    pub session_streams: u64,
    /// Sessions on one connection.
    pub sessions_per_connection: usize,
    /// From asking for a session to the peer's answer. Longer than an exit takes to give up on its
    /// upstream, so that the exit's own answer comes first.
    pub open_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            shards: shards(),
            session_window: 4 * 1024 * 1024,
            session_streams: 256,
            sessions_per_connection: 4096,
            open_timeout: Duration::from_secs(15),
        }
    }
}

/// A connection is one task, which keeps one core busy at most: one for each core. Two at least, so that sessions
/// outlive one that dies, and eight at most, as each is kept alive and takes a handshake at a peer that was started
/// anew.
fn shards() -> usize {
    let cores = std::thread::available_parallelism();
    cores.map_or(2, std::num::NonZero::get).clamp(2, 8)
}

/// How many sockets a node has for its end of the mesh: one for each core, so that each can receive. Eight at most, as
/// each may hold [`INBOX`] bytes more.
pub fn sockets() -> usize {
    let cores = std::thread::available_parallelism();
    cores.map_or(1, std::num::NonZero::get).min(8)
}

/// Sessions asked for that nobody accepted yet. Whoever accepts only hands them on, so 256 are more
/// than 10 ms of a storm of sessions; one more is answered with 503.
const REQUESTS: usize = 256;

/// Handshakes of peers at once. An address that sent a first packet without proving that it
/// receives is asked to prove it (QUIC Retry) once a quarter is in use, and refused when all are.
const HANDSHAKES: usize = 256;

/// Bytes that may wait to be taken over by a shard: as much as its socket holds, as it is in place of it once a path
/// has changed.
const INBOX: usize = socket::BUFFER;

/// From a peer's first packet to the end of its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// From the first probe to a peer to the end of the handshake.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

/// How long [`Endpoint::close`] waits until peers have the closes of sessions that just ended.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// This node's place in the mesh: opens sessions to peers and accepts theirs. When the last clone
/// is dropped, its connections are closed.
#[derive(Clone)]
pub struct Endpoint {
    inner: Arc<Inner>,
    requests: Arc<tokio::sync::Mutex<mpsc::Receiver<Requested>>>,
    _stop: Arc<DropGuard>,
}

struct Inner {
    /// One for each socket; at least one.
    quic: Vec<quinn::Endpoint>,
    overlay: Overlay,
    server: quinn::ServerConfig,
    client: quinn::ClientConfig,
    config: Config,
    pool: Pool,
    links: Links,
    requests: mpsc::Sender<Requested>,
    flushes: TaskTracker,
    stopped: CancellationToken,
}

/// Why a session could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The peer answered with a status that is not 2xx.
    #[error("refused by the peer with status {}", .0.status)]
    Rejected(Response),
    /// The roster has no such node, or no address for it and no relay that it is attached to.
    #[error("node {0} is not in the roster or has neither address nor relay")]
    Unknown(NodeId),
    /// No connection to the peer could be made, or it was lost.
    #[error("node {node} cannot be reached: {reason}")]
    Unreachable {
        /// The peer.
        node: NodeId,
        /// Why.
        reason: String,
    },
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

/// Binds a UDP socket with the buffers the mesh needs, as quinn wants it.
pub fn bind(address: SocketAddr) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
    socket::for_quinn(socket::bind(address)?)
}

/// Binds `count` such sockets to one port, for [`Endpoint::sharded`]; see [`socket::bind_shards`].
pub fn bind_shards(
    address: SocketAddr,
    count: usize,
) -> io::Result<Vec<Arc<dyn quinn::AsyncUdpSocket>>> {
    let sockets = socket::bind_shards(address, count)?.into_iter();
    sockets.map(socket::for_quinn).collect()
}

impl Endpoint {
    /// An endpoint over `socket`: one from [`bind`], or what behaves like it.
    pub fn new(socket: Arc<dyn quinn::AsyncUdpSocket>, config: Config) -> io::Result<Self> {
        Self::sharded(vec![socket], config)
    }

    /// An endpoint over several sockets that share a port, each of which is received from by a task of its own: those
    /// from [`bind_shards`], or what behaves like them.
    pub fn sharded(
        sockets: Vec<Arc<dyn quinn::AsyncUdpSocket>>,
        config: Config,
    ) -> io::Result<Self> {
        let (server, client) = quic::configs(&config)?;
        let overlay = overlay::Config {
            node: config.node.clone(),
            roster: config.roster.clone(),
            authenticator: config.authenticator.clone(),
            leases: config.leases.clone(),
        };
        let (overlay, sockets) = Overlay::over(sockets, overlay)?;
        let group = shards::Group {
            link: metrics::link::MESH,
            random: config.server_tls.crypto_provider().secure_random,
            inbox: INBOX,
        };
        // The key of Retry tokens is the configuration's: the answer to a Retry may reach any shard.
        let quic = group.endpoints(sockets)?.into_iter();
        let quic = quic.map(|(socket, endpoint)| {
            quinn::Endpoint::new_with_abstract_socket(
                endpoint,
                Some(server.clone()),
                socket,
                Arc::new(quinn::TokioRuntime),
            )
        });
        let quic = quic.collect::<io::Result<Vec<_>>>()?;
        let (requests, receiver) = mpsc::channel(REQUESTS);
        let stopped = CancellationToken::new();
        let inner = Arc::new(Inner {
            quic,
            overlay,
            server,
            client,
            config,
            pool: Pool::default(),
            links: Mutex::default(),
            requests,
            flushes: TaskTracker::new(),
            stopped: stopped.clone(),
        });
        tokio::spawn(inner.clone().follow());
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
        for quic in inner.quic.clone() {
            tokio::spawn(inner.clone().serve(quic, handshakes.clone()));
        }
        Ok(Self {
            inner,
            requests: Arc::new(tokio::sync::Mutex::new(receiver)),
            _stop: Arc::new(stopped.drop_guard()),
        })
    }

    /// The sockets' address.
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.overlay.address()
    }

    /// Opens a session to `peer`; the answer is the peer's, 2xx.
    pub async fn open(&self, peer: &NodeId, open: Open) -> Result<(Session, Response), OpenError> {
        self.open_in_time(peer, open, None).await
    }

    /// The same, for whoever can do with another peer: one that is not heard of soon cannot be reached. There
    /// has to be a connection within `soon`, and something has to come over it. One that is still being
    /// made then is made nevertheless, for whoever comes later.
    pub async fn open_soon(
        &self,
        peer: &NodeId,
        open: Open,
        soon: Duration,
    ) -> Result<(Session, Response), OpenError> {
        self.open_in_time(peer, open, Some(soon)).await
    }

    async fn open_in_time(
        &self,
        peer: &NodeId,
        open: Open,
        soon: Option<Duration>,
    ) -> Result<(Session, Response), OpenError> {
        let limit = self.inner.config.limits.open_timeout;
        tokio::time::timeout(limit, self.inner.open(peer, open, soon))
            .await
            .unwrap_or(Err(OpenError::Timeout(limit)))
    }

    /// Says to transit relays from now on where this node is, because nobody reaches it otherwise: at which ones.
    pub fn attach(&self) -> watch::Receiver<Attached> {
        self.inner.overlay.attach()
    }

    /// Looks at it, and does not keep it.
    pub fn viewer(&self) -> Viewer {
        Viewer::new(&self.inner)
    }

    /// The paths to `peer`: none when nobody wants anything of it.
    pub fn paths(&self, peer: &NodeId) -> Vec<View> {
        self.inner.overlay.views(peer)
    }

    /// Whether `peer` can be reached: there is a connection to it, or one can be made.
    pub async fn reach(&self, peer: &NodeId) -> Result<(), OpenError> {
        self.inner.link(peer, None).await.map(drop)
    }

    /// The round-trip time to `peer`, as the fastest live connection to it has it; `None` where there is none.
    pub fn round_trip_time(&self, peer: &NodeId) -> Option<Duration> {
        let links = core::lock(&self.inner.links);
        let live = links.iter().filter_map(std::sync::Weak::upgrade);
        live.filter(|link| link.peer == *peer && link.is_alive())
            .map(|link| link.connection.rtt())
            .min()
    }

    /// The next session a peer asks for; `None` once the endpoint is closed.
    pub async fn accept(&self) -> Option<Requested> {
        tokio::select! {
            biased;
            () = self.inner.stopped.cancelled() => None,
            requested = async { self.requests.lock().await.recv().await } => requested,
        }
    }

    /// Takes no more sessions, gives peers a moment to learn of closes, then closes every
    /// connection and frees the sockets.
    pub async fn close(&self) {
        for quic in &self.inner.quic {
            quic.set_server_config(None);
        }
        self.inner.flushes.close();
        let _ = tokio::time::timeout(FLUSH_TIMEOUT, self.inner.flushes.wait()).await;
        self.inner.stopped.cancel();
        self.inner.stop();
        let idle = self.inner.quic.iter().map(quinn::Endpoint::wait_idle);
        let _ = tokio::time::timeout(FLUSH_TIMEOUT, join_all(idle)).await;
    }
}

impl Inner {
    /// Takes over what changes.
    async fn follow(self: Arc<Self>) {
        let mut roster = self.config.roster.clone();
        let mut key = self.config.key.clone();
        let (mut news, mut rotates) = (true, true);
        loop {
            tokio::select! {
                () = self.stopped.cancelled() => return,
                changed = roster.changed(), if news => match changed {
                    Ok(()) => {
                        let roster = roster.borrow_and_update().clone();
                        self.check(&roster);
                    }
                    // Whoever published it is gone: the last roster stays.
                    Err(_) => news = false,
                },
                changed = key.changed(), if rotates => match changed {
                    Ok(()) => self.replace_dialled(),
                    // The identity does not change any more.
                    Err(_) => rotates = false,
                },
            }
        }
    }

    /// Accepts what comes to one of the sockets. One that is lost takes the others with it: the kernel would go on
    /// giving it its share.
    async fn serve(self: Arc<Self>, quic: quinn::Endpoint, handshakes: Arc<Semaphore>) {
        while let Some(Some(incoming)) = self.stopped.run_until_cancelled(quic.accept()).await {
            self.incoming(incoming, &handshakes);
        }
        self.stopped.cancel();
        self.stop();
    }

    fn stop(&self) {
        for quic in &self.quic {
            quic.close(VarInt::from_u32(code::SHUTDOWN), b"the node stops");
        }
    }

    // Who may connect.

    fn incoming(self: &Arc<Self>, incoming: quinn::Incoming, handshakes: &Arc<Semaphore>) {
        let Ok(permit) = handshakes.clone().try_acquire_owned() else {
            incoming.refuse();
            return;
        };
        if handshakes.available_permits() < HANDSHAKES * 3 / 4
            && !incoming.remote_address_validated()
        {
            // May only be retried once; then it is validated and does not come here.
            let _ = incoming.retry();
            return;
        }
        let inner = self.clone();
        tokio::spawn(async move {
            let handshake = async {
                let mut server = inner.server.clone();
                server.transport_config(inner.transport_to(incoming.remote_address()));
                incoming
                    .accept_with(Arc::new(server))
                    .map_err(|error| error.to_string())?
                    .await
                    .map_err(|error| error.to_string())
            };
            let connection = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake)
                .await
                .unwrap_or_else(|_| Err("no handshake in time".into()));
            drop(permit);
            match connection {
                Ok(connection) => {
                    inner.admit(connection, Side::Server, None);
                }
                Err(reason) => {
                    tracing::debug!(%reason, "mesh handshake failed");
                    ::metrics::counter!(metrics::MESH_HANDSHAKES, "side" => "server", "outcome" => "failed")
                        .increment(1);
                }
            }
        });
    }

    /// QUIC's limits for a connection with the peer under this address.
    fn transport_to(&self, address: SocketAddr) -> Arc<quinn::TransportConfig> {
        let congestion = self.overlay.congestion(address);
        Arc::new(quic::transport(&self.config.limits, congestion))
    }

    /// Makes a link of a connection whose handshake is done, if the roster knows the peer's key —
    /// for node `dialled`, where this side dialled.
    fn admit(
        self: &Arc<Self>,
        connection: quinn::Connection,
        side: Side,
        dialled: Option<&NodeId>,
    ) -> Option<Arc<Link>> {
        let label = match side {
            Side::Client => "client",
            Side::Server => "server",
        };
        let count = |outcome: &'static str| {
            ::metrics::counter!(metrics::MESH_HANDSHAKES, "side" => label, "outcome" => outcome)
                .increment(1);
        };
        let roster = self.config.roster.borrow().clone();
        let key = peer_key(&connection);
        let node = key
            .as_ref()
            .and_then(|key| roster.node_by_key(key))
            .filter(|node| dialled.is_none_or(|dialled| node.id == *dialled));
        let (Some(key), Some(node)) = (key, node) else {
            tracing::warn!(remote = %connection.remote_address(), "peer's key is not in the roster");
            count("unknown_key");
            connection.close(VarInt::from_u32(code::UNKNOWN_PEER), b"unknown key");
            return None;
        };
        let link = Link::new(
            connection,
            node.id.clone(),
            (key, node.registration),
            side,
            self.config.limits.clone(),
            self.flushes.clone(),
            self.requests.clone(),
        );
        count("done");
        tracing::info!(peer = %link.peer, number = link.number, side = label, remote = %link.connection.remote_address(), "mesh connection made");
        {
            let mut links = core::lock(&self.links);
            links.retain(|link| link.strong_count() > 0);
            links.push(Arc::downgrade(&link));
        }
        let connections = ::metrics::gauge!(metrics::MESH_CONNECTIONS, "side" => label);
        connections.increment(1.0);
        let serving = link.clone();
        let courses = self.overlay.courses(link.connection.remote_address());
        tokio::spawn(async move {
            serving.clone().serve(courses).await;
            connections.decrement(1.0);
            let reason = serving.connection.close_reason();
            tracing::info!(peer = %serving.peer, number = serving.number, reason = reason.map(|r| r.to_string()), "mesh connection over");
        });
        // The roster may have changed since it was looked at and before the link was listed.
        self.check(&self.config.roster.borrow().clone());
        Some(link)
    }

    /// Closes the connections of nodes that are gone, or that have registered anew. One by a key that the
    /// node rotated out is kept for the sessions it carries.
    fn check(&self, roster: &Roster) {
        self.pool.retain(roster);
        let links: Vec<_> = core::lock(&self.links)
            .iter()
            .filter_map(std::sync::Weak::upgrade)
            .collect();
        for link in links.iter().filter(|link| link.is_alive()) {
            let (key, registration) = &link.proved;
            match roster.vouches(&link.peer, key, *registration) {
                Vouched::Wholly => {}
                Vouched::ForSessions => link.retire("the peer's identity was rotated"),
                Vouched::Not => {
                    tracing::warn!(peer = %link.peer, epoch = %roster.epoch, "peer left the roster");
                    ::metrics::counter!(metrics::MESH_REVOKED).increment(1);
                    link.close(code::UNKNOWN_PEER, "key is not in the roster any more");
                }
            }
        }
    }

    /// This node shows another key: what it dialled with the one before is to be dialled anew.
    fn replace_dialled(&self) {
        let links: Vec<_> = core::lock(&self.links)
            .iter()
            .filter_map(std::sync::Weak::upgrade)
            .filter(|link| matches!(link.side, Side::Client))
            .collect();
        for link in links {
            link.retire("this node's identity was rotated");
        }
    }

    // To peers.

    async fn open(
        self: &Arc<Self>,
        peer: &NodeId,
        open: Open,
        soon: Option<Duration>,
    ) -> Result<(Session, Response), OpenError> {
        let unreachable = |reason: String| OpenError::Unreachable {
            node: peer.clone(),
            reason,
        };
        let mut retried = false;
        loop {
            let link = self.link(peer, soon).await?;
            let answer = tokio::select! {
                answer = link.open(open.clone()) => answer,
                () = link.falls_silent() => {
                    link.retire("nothing is heard from the peer");
                    Err(NoAnswer::Silent)
                }
            };
            match answer {
                Ok((control, response)) if response.is_ok() => {
                    let session = Session::new(control.core().clone());
                    tokio::spawn(control.run());
                    return Ok((session, response));
                }
                Ok((control, response)) => {
                    control.end_refused();
                    return Err(OpenError::Rejected(response));
                }
                Err(NoAnswer::TooLong) => {
                    return Err(OpenError::Rejected(Response::status(431)));
                }
                // A pooled connection may turn out to be dead only when it is used: the peer was
                // started anew. No session came of it, so asking again is safe.
                Err(NoAnswer::Closed(_)) if !link.is_alive() && !retried => retried = true,
                Err(NoAnswer::Closed(closed)) => return Err(unreachable(closed.to_string())),
                Err(NoAnswer::Silent) if soon.is_none() && !retried => retried = true,
                Err(NoAnswer::Silent) => {
                    return Err(unreachable("nothing is heard from it".to_owned()));
                }
            }
        }
    }

    /// A connection to `peer`, within `soon` if that is given.
    async fn link(
        self: &Arc<Self>,
        peer: &NodeId,
        soon: Option<Duration>,
    ) -> Result<Arc<Link>, OpenError> {
        let roster = self.config.roster.borrow().clone();
        let node = roster.node(peer);
        // One without an address may have found its way here by itself.
        let has_way = |node: &Node| !node.addresses.is_empty() || !node.attached.is_empty();
        if !node.is_some_and(has_way) && !self.overlay.is_reached(peer) {
            return Err(OpenError::Unknown(peer.clone()));
        }
        let connections = self.pool.peer(peer, self.config.limits.shards);
        let (inner, dialled) = (self.clone(), peer.clone());
        let dial = async move { inner.dial(&dialled).await };
        let linked = match soon {
            None => connections.link(dial).await,
            // In a task of its own, which goes on for as long as dialling does.
            Some(soon) => {
                let linking = tokio::spawn(async move { connections.link(dial).await });
                match tokio::time::timeout(soon, linking).await {
                    Ok(Ok(linked)) => linked,
                    Ok(Err(ended)) => Err(ended.to_string()),
                    Err(_) => Err(format!("no connection within {soon:?}")),
                }
            }
        };
        linked.map_err(|reason| OpenError::Unreachable {
            node: peer.clone(),
            reason,
        })
    }

    /// Finds a path to the peer and shakes hands over it, within [`DIAL_TIMEOUT`].
    async fn dial(self: &Arc<Self>, peer: &NodeId) -> Result<Arc<Link>, String> {
        let shown = *self.config.key.borrow();
        let dialling = async {
            let no_path = || "it is not in the roster".to_owned();
            let address = self.overlay.reach(peer).await.ok_or_else(no_path)?;
            let mut client = self.client.clone();
            client.transport_config(self.transport_to(address));
            let quic = &self.quic[self.overlay.comes_to(address)];
            let connecting = quic.connect_with(client, address, peer.as_str());
            let connection = connecting.map_err(|error| error.to_string())?.await;
            connection.map_err(|error| error.to_string())
        };
        let reason = match tokio::time::timeout(DIAL_TIMEOUT, dialling).await {
            Ok(Ok(connection)) => match self.admit(connection, Side::Client, Some(peer)) {
                Some(link) => {
                    // Changed during the handshake, before the link was listed.
                    if *self.config.key.borrow() != shown {
                        link.retire("this node's identity was rotated");
                    }
                    return Ok(link);
                }
                None => "the key is not the node's".to_owned(),
            },
            Ok(Err(reason)) => reason,
            Err(_) if self.overlay.is_reached(peer) => {
                format!("no handshake within {DIAL_TIMEOUT:?}")
            }
            Err(_) => format!("no path to it within {DIAL_TIMEOUT:?}"),
        };
        ::metrics::counter!(metrics::MESH_HANDSHAKES, "side" => "client", "outcome" => "failed")
            .increment(1);
        tracing::debug!(%peer, %reason, "cannot dial");
        Err(reason)
    }
}

/// The Ed25519 key that the peer proved to hold.
fn peer_key(connection: &quinn::Connection) -> Option<PublicKey> {
    let certificates = connection
        .peer_identity()?
        .downcast::<Vec<rustls_pki_types::CertificateDer<'static>>>()
        .ok()?;
    PublicKey::from_spki(certificates.first()?)
}

/// A session that a peer asks for and that was not answered yet. Dropped unanswered, it is 503.
pub struct Requested {
    control: Option<Control>,
    open: Open,
    peer: NodeId,
}

impl Requested {
    fn new(control: Control, open: Open, peer: NodeId) -> Self {
        Self {
            control: Some(control),
            open,
            peer,
        }
    }

    /// What is asked for.
    pub fn open(&self) -> &Open {
        &self.open
    }

    /// The node that asks.
    pub fn peer(&self) -> &NodeId {
        &self.peer
    }

    /// Accepts with a 2xx response.
    pub async fn accept(mut self, response: Response) -> Result<Session, Closed> {
        let Some(mut control) = self.control.take() else {
            return Err(Closed::Lost("answered before".into()));
        };
        let core = control.core().clone();
        if let Some(closed) = core.over() {
            return Err(closed);
        }
        if !response.is_ok() || control.accept(response).is_err() {
            control.refuse(Response::status(500)).await;
            return Err(Closed::Lost("the answer does not make a session".into()));
        }
        tokio::spawn(control.run());
        Ok(Session::new(core))
    }

    /// Refuses with a status that is not 2xx.
    pub async fn reject(mut self, response: Response) {
        if let Some(control) = self.control.take() {
            control.refuse(response).await;
        }
    }
}

impl Drop for Requested {
    fn drop(&mut self) {
        if let Some(control) = self.control.take() {
            let runtime = control.core().link.runtime.clone();
            runtime.spawn(control.refuse(Response::status(503)));
        }
    }
}
