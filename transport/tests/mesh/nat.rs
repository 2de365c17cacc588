//! A node that nobody reaches: behind something that translates its addresses.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tokio_util::sync::CancellationToken;
use wavry_proto::overlay::{
    paths::{Route, Standing, View},
    transit::Limits,
};
use wavry_transport::{
    mesh::{self, Attached, Endpoint},
    session::Session as _,
};

use crate::{
    SOCKETS,
    nodes::{Cluster, Key, id, session},
    transit::{DEADLINE, Relay, numbers, question_and_answer, via},
};

/// Whether what is sent to different addresses comes from the same one (RFC 4787, section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mapping {
    EndpointIndependent,
    AddressAndPortDependent,
}

/// Sockets behind a translator that lets in only what comes from where something was sent to.
#[derive(Debug)]
struct Nat {
    mapping: Mapping,
    inside: SocketAddr,
    outside: Mutex<Outside>,
}

#[derive(Debug, Default)]
struct Outside {
    mapped: HashMap<Option<SocketAddr>, Arc<dyn AsyncUdpSocket>>,
    sent_to: HashSet<SocketAddr>,
    blocked: HashSet<SocketAddr>,
    wakers: HashMap<usize, Waker>,
}

impl Outside {
    fn wake(&mut self) {
        self.wakers.drain().for_each(|(_, waker)| waker.wake());
    }
}

/// One of them. What comes in is received by any.
#[derive(Debug)]
struct Inside {
    nat: Arc<Nat>,
    number: usize,
    socket: Arc<dyn AsyncUdpSocket>,
}

fn socket() -> Arc<dyn AsyncUdpSocket> {
    mesh::bind("127.0.0.1:0".parse().unwrap()).unwrap()
}

impl Nat {
    fn new(mapping: Mapping) -> (Arc<Self>, Vec<Arc<dyn AsyncUdpSocket>>) {
        let sockets = mesh::bind_shards("127.0.0.1:0".parse().unwrap(), SOCKETS).unwrap();
        let nat = Arc::new(Self {
            mapping,
            inside: sockets[0].local_addr().unwrap(),
            outside: Mutex::default(),
        });
        let inside = sockets.into_iter().enumerate().map(|(number, socket)| {
            Arc::new(Inside {
                nat: nat.clone(),
                number,
                socket,
            }) as Arc<dyn AsyncUdpSocket>
        });
        let inside = inside.collect();
        (nat, inside)
    }

    /// Everything has another address from now on, and nobody gets in by the old ones.
    fn rebind(&self) {
        let mut outside = self.outside.lock().unwrap();
        outside.mapped.clear();
        outside.sent_to.clear();
        outside.wake();
    }

    /// Nothing goes to this address or comes from it.
    fn block(&self, address: SocketAddr) {
        self.outside.lock().unwrap().blocked.insert(address);
    }

    fn addresses(&self) -> HashSet<SocketAddr> {
        let outside = self.outside.lock().unwrap();
        let sockets = outside.mapped.values();
        sockets.map(|socket| socket.local_addr().unwrap()).collect()
    }
}

impl AsyncUdpSocket for Inside {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.socket.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let to = transmit.destination;
        let mut outside = self.nat.outside.lock().unwrap();
        if outside.blocked.contains(&to) {
            return Ok(());
        }
        outside.sent_to.insert(to);
        let key = (self.nat.mapping == Mapping::AddressAndPortDependent).then_some(to);
        let before = outside.mapped.len();
        let mapped = outside.mapped.entry(key).or_insert_with(socket).clone();
        if outside.mapped.len() > before {
            outside.wake();
        }
        mapped.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [io::IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut outside = self.nat.outside.lock().unwrap();
        outside.wakers.insert(self.number, cx.waker().clone());
        let sockets: Vec<_> = outside.mapped.values().cloned().collect();
        for socket in sockets {
            while let Poll::Ready(count) = socket.poll_recv(cx, bufs, meta) {
                let mut kept = 0;
                for index in 0..count? {
                    let from = meta[index].addr;
                    if outside.sent_to.contains(&from) && !outside.blocked.contains(&from) {
                        bufs.swap(kept, index);
                        meta[kept] = meta[index];
                        kept += 1;
                    }
                }
                if kept > 0 {
                    return Poll::Ready(Ok(kept));
                }
            }
        }
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.nat.inside)
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }
}

/// `a`, which everybody reaches, and `b`, which nobody does; two transit relays.
struct World {
    cluster: Cluster,
    a: Endpoint,
    b: Endpoint,
    nat: Arc<Nat>,
    relays: Vec<Relay>,
    /// What `b` says of itself is in the roster, as the master would put it there.
    _telling: tokio::task::JoinHandle<()>,
}

impl World {
    async fn new(mapping: Mapping) -> Self {
        let cluster = Cluster::new();
        let a = cluster.node("a");
        let relays = ["t1", "t2"]
            .map(|name| Relay::start(&cluster, name, Limits::default()))
            .into();
        let (nat, inside) = Nat::new(mapping);
        let key = Arc::new(Key::generate());
        let config = cluster.config("b", &key, mesh::Limits::default());
        let b = Endpoint::sharded(inside, config).unwrap();
        cluster.list("b", key.public, b.local_addr());
        let tell = |cluster: &Cluster, attached: &Attached| {
            cluster.change(|roster| {
                let mut nodes = roster.nodes.iter_mut();
                let node = nodes.find(|node| node.id.as_str() == "b").unwrap();
                node.attached = attached.relays.clone();
                node.addresses = attached.seen.into_iter().collect();
            });
        };
        tell(&cluster, &Attached::default());
        let mut attached = b.attach();
        let both = attached.wait_for(|attached| attached.relays.len() == 2);
        let both = tokio::time::timeout(DEADLINE, both).await;
        tell(&cluster, &both.unwrap().unwrap().clone());
        let told = cluster.clone();
        let telling = tokio::spawn(async move {
            while attached.changed().await.is_ok() {
                tell(&told, &attached.borrow_and_update());
            }
        });
        Self {
            cluster,
            a,
            b,
            nat,
            relays,
            _telling: telling,
        }
    }

    /// The only ways are through relays.
    fn block_direct(&self) {
        self.nat.block(self.a.local_addr());
    }

    fn paths(&self) -> Vec<View> {
        self.a.paths(&id("b"))
    }

    async fn until(&self, what: &str, is: impl Fn(&[View]) -> bool) {
        let waiting = async {
            while !is(&self.paths()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(DEADLINE, waiting).await;
        assert!(waited.is_ok(), "{what}: {:?}", self.paths());
    }
}

fn is_direct(view: &View) -> bool {
    matches!(view.route, Route::Direct(_))
}

#[tokio::test]
async fn a_node_that_nobody_reaches_is_reached_through_relays_and_then_directly() {
    for mapping in [
        Mapping::EndpointIndependent,
        Mapping::AddressAndPortDependent,
    ] {
        let mut world = World::new(mapping).await;
        let listed = world.cluster.roster().node(&id("b")).unwrap().clone();
        assert_eq!(listed.attached, ["t1", "t2"].map(id));
        // Where relays see different addresses, none is worth telling.
        assert_eq!(
            listed.addresses.len(),
            usize::from(mapping == Mapping::EndpointIndependent)
        );
        let (here, there) = session(&world.a, "b", &world.b).await;
        question_and_answer(&here, &there).await;
        question_and_answer(&there, &here).await;
        // It was reached at no address of its own, and let the other in by its own probes.
        let outside = world.nat.addresses();
        let is = |view: &View| {
            is_direct(view)
                && view.standing == Standing::Proved
                && outside.contains(&via(view.route))
        };
        world
            .until("a direct path is proved", |views| views.iter().any(is))
            .await;
        for relay in world.relays.drain(..) {
            relay.kill().await;
        }
        world
            .until("the direct path is taken", |views| {
                views.iter().any(|view| view.active && is_direct(view))
            })
            .await;
        question_and_answer(&here, &there).await;
    }
}

#[tokio::test]
async fn a_node_that_nobody_reaches_directly_is_reached_through_relays_all_the_same() {
    let world = World::new(Mapping::AddressAndPortDependent).await;
    world.block_direct();
    let (here, there) = session(&world.a, "b", &world.b).await;
    question_and_answer(&here, &there).await;
    assert!(
        !world
            .paths()
            .iter()
            .any(|view| view.active && is_direct(view))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_goes_on_byte_for_byte_when_all_addresses_of_a_node_change() {
    for direct in [false, true] {
        let world = World::new(Mapping::EndpointIndependent).await;
        if !direct {
            world.block_direct();
        }
        let (here, there) = session(&world.a, "b", &world.b).await;
        let stop = CancellationToken::new();
        let rebinding = async {
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_millis(700)).await;
                world.nat.rebind();
            }
            tokio::time::sleep(Duration::from_millis(700)).await;
            stop.cancel();
        };
        // From the node behind it, and to it.
        let (up, down) = (
            numbers(&there, &here, stop.clone()),
            numbers(&here, &there, stop.clone()),
        );
        let all = async { tokio::join!(rebinding, up, down) };
        let ((), up, down) = tokio::time::timeout(DEADLINE, all).await.unwrap();
        println!("direct: {direct}; numbers and longest pauses {up:?}, {down:?}");
        assert!(up.0 > 500 && down.0 > 500);
        question_and_answer(&here, &there).await;
    }
}

#[tokio::test]
async fn a_node_that_leaves_the_roster_loses_its_places() {
    let world = World::new(Mapping::EndpointIndependent).await;
    world.block_direct();
    let (here, there) = session(&world.a, "b", &world.b).await;
    question_and_answer(&here, &there).await;
    world.cluster.unlist("b");
    tokio::time::timeout(DEADLINE, here.closed()).await.unwrap();
    assert!(world.a.reach(&id("b")).await.is_err());
}
