//! A mesh on a shaped network: gateways and exits in this process, transit relays each in one of its own, and
//! every packet between them through a [`Shaper`].

mod forger;
mod relay;
mod traffic;

use std::{
    future::Future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use quinn::AsyncUdpSocket;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use wavry_credentials::identity::Identity;
use wavry_proto::{
    control::{Node as Listed, Role, Roster},
    id::{NodeId, PublicKey},
    mesh::Open,
    overlay::{
        paths::{Route, Standing, View},
        transit::Limits,
        ways,
    },
    session::{Request, Response},
};
use wavry_transport::mesh::{self, Endpoint, Session};

pub(crate) use self::{
    forger::Forger,
    relay::{Relay, RelayArgs, serve},
    traffic::{Bulk, Numbered, Outcome, stalls},
};
use crate::{
    Error,
    shaper::{Host, Nat, Shaper},
};

/// Longer than any path takes to be found: claims and probes are repeated after 10 s at most, and a better path
/// is taken 5 s after the last change.
const PATIENCE: Duration = Duration::from_secs(40);

/// Nodes, the roster that lists them, and the network between them.
pub(crate) struct Bed {
    pub(crate) network: Shaper,
    roster: watch::Sender<Arc<Roster>>,
}

/// A gateway or an exit.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) host: Host,
    pub(crate) endpoint: Endpoint,
    /// One of its sockets: what is sent over it comes from the node's own address.
    pub(crate) socket: Arc<dyn AsyncUdpSocket>,
}

impl Bed {
    pub(crate) fn new(seed: u64) -> Result<Self, Error> {
        let roster = Roster::empty("loadtest".parse().map_err(failed)?);
        Ok(Self {
            network: Shaper::start(seed).map_err(failed)?,
            roster: watch::Sender::new(Arc::new(roster)),
        })
    }

    /// A node on the open network that the roster lists there.
    pub(crate) fn node(&self, name: &str) -> Result<Node, Error> {
        let host = self.network.host().map_err(failed)?;
        self.node_at(name, host)
    }

    /// A node on this host, where the roster lists it.
    pub(crate) fn node_at(&self, name: &str, host: Host) -> Result<Node, Error> {
        let identity = Identity::generate();
        let tls = identity.mesh_tls(self.roster.subscribe()).map_err(failed)?;
        let config = mesh::Config {
            node: name.parse().map_err(failed)?,
            server_tls: tls.server,
            client_tls: tls.client,
            key: tls.key,
            authenticator: tls.authenticator,
            roster: self.roster.subscribe(),
            // The relays' roster permits all: there is no master.
            leases: mesh::Leases::none(),
            limits: mesh::Limits::default(),
        };
        let id = config.node.clone();
        let sockets = mesh::bind_shards(([127, 0, 0, 1], 0).into(), mesh::sockets());
        let sockets = sockets.map_err(failed)?;
        let socket = sockets[0].clone();
        let endpoint = Endpoint::sharded(sockets, config).map_err(failed)?;
        self.network.attach(host, endpoint.local_addr());
        self.list(&id, identity.public_key(), vec![host.address()], Vec::new());
        Ok(Node {
            id,
            host,
            endpoint,
            socket,
        })
    }

    /// A node behind a translator of its own: it attaches itself to relays, and the roster says where.
    pub(crate) fn node_behind(&self, name: &str, nat: Nat) -> Result<Node, Error> {
        let host = self.network.host_behind(nat).map_err(failed)?;
        let node = self.node_at(name, host)?;
        self.change(&node.id, |listed| listed.addresses.clear());
        let (roster, id) = (self.roster.clone(), node.id.clone());
        let mut attached = node.endpoint.attach();
        tokio::spawn(async move {
            while attached.changed().await.is_ok() {
                let now = attached.borrow_and_update().clone();
                publish(&roster, |roster| {
                    let mut nodes = roster.nodes.iter_mut();
                    if let Some(listed) = nodes.find(|listed| listed.id == id) {
                        listed.attached = now.relays;
                        listed.addresses = now.seen.into_iter().collect();
                    }
                });
            }
        });
        Ok(node)
    }

    /// Waits until the roster has relays that the node is attached to.
    pub(crate) async fn until_attached(&self, node: &Node, relays: usize) -> Result<(), Error> {
        let mut roster = self.roster.subscribe();
        let is_attached = |roster: &Arc<Roster>| {
            let listed = roster.node(&node.id);
            listed.is_some_and(|listed| listed.attached.len() >= relays)
        };
        let waiting = roster.wait_for(is_attached);
        in_time("a node is attached to relays", waiting)
            .await?
            .map_err(failed)?;
        Ok(())
    }

    /// A transit relay in a process of its own, that the roster lists.
    pub(crate) async fn relay(&self, name: &str, limits: Limits) -> Result<Relay, Error> {
        let host = self.network.host().map_err(failed)?;
        let relay = Relay::start(name, host, limits, self.roster.subscribe()).await?;
        self.network.attach(host, relay.address);
        // It is no exit: nobody is there at the address for that.
        let nowhere = ([127, 0, 0, 1], 9).into();
        self.list(&relay.id, relay.key, vec![nowhere], vec![host.address()]);
        Ok(relay)
    }

    pub(crate) fn roster(&self) -> Arc<Roster> {
        self.roster.borrow().clone()
    }

    /// Changes what the roster says of a node.
    pub(crate) fn change(&self, node: &NodeId, change: impl FnOnce(&mut Listed)) {
        self.publish(|roster| {
            if let Some(node) = roster.nodes.iter_mut().find(|listed| listed.id == *node) {
                change(node);
            }
        });
    }

    fn list(
        &self,
        id: &NodeId,
        key: PublicKey,
        addresses: Vec<std::net::SocketAddr>,
        transit: Vec<std::net::SocketAddr>,
    ) {
        self.publish(|roster| {
            roster.nodes.push(Listed {
                id: id.clone(),
                role: Role::Relay,
                keys: vec![key],
                addresses,
                transit,
                attached: Vec::new(),
                services: Vec::new(),
                registration: 1,
                leases: Default::default(),
                placement: Default::default(),
            });
        });
    }

    fn publish(&self, change: impl FnOnce(&mut Roster)) {
        publish(&self.roster, change);
    }

    /// The relays, in the order in which a way from one node to the other through both of them has them.
    pub(crate) fn in_order(&self, from: &Node, to: &Node, relays: [Relay; 2]) -> [Relay; 2] {
        let ways = ways::ways(&self.roster(), &from.id, &to.id, |_| true);
        let [one, other] = relays;
        match ways.first().is_some_and(|way| way.hops[0].node == one.id) {
            true => [one, other],
            false => [other, one],
        }
    }

    /// Sessions from one node to the other: both ends of each.
    pub(crate) async fn sessions(
        &self,
        from: &Node,
        to: &Node,
        count: usize,
    ) -> Result<Vec<[Arc<Session>; 2]>, Error> {
        let mut sessions = Vec::new();
        for _ in 0..count {
            let accepted = async {
                let requested = to.endpoint.accept().await.ok_or("the endpoint is closed")?;
                let accepted = requested.accept(Response::ok()).await;
                accepted.map_err(|error| error.to_string())
            };
            let both = async {
                let opening = from.endpoint.open(&to.id, open());
                tokio::join!(opening, accepted)
            };
            let (opened, accepted) = in_time("a session", both).await?;
            let accepted = accepted.map_err(|error: String| Error::Mesh(error))?;
            sessions.push([Arc::new(opened.map_err(failed)?.0), Arc::new(accepted)]);
        }
        Ok(sessions)
    }
}

impl Node {
    /// The path to `peer` that this node sends over.
    pub(crate) fn active(&self, peer: &Node) -> Option<View> {
        let views = self.endpoint.paths(&peer.id);
        views.into_iter().find(|view| view.active)
    }

    /// Waits until the paths to `peer` are so.
    pub(crate) async fn until(
        &self,
        peer: &Node,
        what: &'static str,
        is: impl Fn(&[View]) -> bool,
    ) -> Result<(), Error> {
        let waiting = async {
            while !is(&self.endpoint.paths(&peer.id)) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        in_time(what, waiting).await.map_err(|_| {
            let paths = self.endpoint.paths(&peer.id);
            Error::Mesh(format!("{what}: not within {PATIENCE:?}: {paths:?}"))
        })
    }

    /// Waits until what is sent to `peer` goes first to `address`, on a way with at most this round trip, and
    /// `others` more paths stand by.
    pub(crate) async fn until_sent_to(
        &self,
        peer: &Node,
        address: std::net::SocketAddr,
        round_trip: Duration,
        others: usize,
    ) -> Result<(), Error> {
        self.until(peer, "the best path is in use", |views| {
            let is_best = |view: &View| {
                view.active
                    && first(view.route) == address
                    && view
                        .round_trip
                        .is_some_and(|measured| measured <= round_trip)
            };
            let proved = views
                .iter()
                .filter(|view| view.standing == Standing::Proved);
            views.iter().any(is_best) && proved.count() > others
        })
        .await
    }

    /// Notes from now on when this node sends over another path to `peer`.
    pub(crate) fn watch(&self, peer: &Node) -> Changes {
        let stopped = CancellationToken::new();
        let list: Arc<Mutex<Vec<(Instant, Route)>>> = Arc::default();
        let (until, noted) = (stopped.clone(), list.clone());
        let (endpoint, peer) = (self.endpoint.clone(), peer.id.clone());
        tokio::spawn(async move {
            let mut last = None;
            while !until.is_cancelled() {
                let active = endpoint.paths(&peer).into_iter().find(|view| view.active);
                if let Some(route) = active.map(|view| view.route)
                    && last.replace(route).is_some_and(|before| before != route)
                {
                    let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
                    noted.push((Instant::now(), route));
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        Changes {
            list,
            _stop: stopped.drop_guard(),
        }
    }
}

/// Changes of the path in use.
pub(crate) struct Changes {
    list: Arc<Mutex<Vec<(Instant, Route)>>>,
    _stop: DropGuard,
}

impl Changes {
    /// When there were some, after `since`.
    pub(crate) fn since(&self, since: Instant) -> Vec<Instant> {
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let times = list.iter().map(|(at, _)| *at);
        times.filter(|at| *at >= since).collect()
    }
}

/// Changes the roster, as the master does.
fn publish(roster: &watch::Sender<Arc<Roster>>, change: impl FnOnce(&mut Roster)) {
    roster.send_modify(|roster| {
        let mut next = (**roster).clone();
        next.epoch.0 += 1;
        change(&mut next);
        *roster = Arc::new(next);
    });
}

/// Where packets on this route go first.
pub(crate) fn first(route: Route) -> std::net::SocketAddr {
    match route {
        Route::Direct(address) => address,
        Route::Flow { via, .. } => via,
    }
}

pub(crate) async fn in_time<T>(
    what: &'static str,
    work: impl Future<Output = T>,
) -> Result<T, Error> {
    tokio::time::timeout(PATIENCE, work)
        .await
        .map_err(|_| Error::Silent {
            what,
            waited: PATIENCE,
        })
}

pub(crate) fn failed(error: impl std::fmt::Display) -> Error {
    Error::Mesh(error.to_string())
}

fn open() -> Open {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    Open {
        service: "loadtest".parse().expect("it is a service's name"),
        request: Request {
            authority: "example.test".to_owned(),
            path: format!("/{}", NUMBER.fetch_add(1, Ordering::Relaxed)),
            origin: None,
            headers: Vec::new(),
            subprotocols: Vec::new(),
        },
        client: ([192, 0, 2, 1], 1).into(),
        subject: None,
        claims: None,
    }
}
