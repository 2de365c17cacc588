//! Sockets over an overlay: to QUIC, one stable address for each peer; to the network, whichever path to that
//! peer is the best one now.
//!
//! [`Overlay`] stands between the UDP sockets of one port and the mesh's QUIC endpoints, with one [`Socket`] for
//! each. What QUIC sends to a peer's address gets a header and goes over the path in use
//! ([`wavry_proto::overlay::paths`] chooses it); of what comes in, QUIC's packets are handed on under their peer's
//! address, and probes are answered here. A task for each peer that somebody wants to reach, or that wants to reach
//! this node, looks after its paths.
//!
//! Sending copies a batch once, to put headers between its packets; receiving moves packets together in
//! place. Neither allocates, and both keep segmentation offload (GSO, GRO).

mod congestion;
mod gauges;
mod places;
mod receive;
mod table;
mod view;

use std::{
    cell::RefCell,
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, RwLock, atomic::Ordering},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    congestion::ControllerFactory,
    udp::{RecvMeta, Transmit},
};
use rustls::crypto::SecureRandom;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use wavry_proto::{
    control::{Roster, lease::Way},
    id::NodeId,
    overlay::{
        Authenticator,
        lease::{Offer, Source, Terms},
        packet::{Claim, HEADER_LEN, Header, Kind, Label, Probe},
        passage::Passage,
        paths::{Paths, Ping, Route, Standing, Switch, View},
        ways,
    },
};

pub(crate) use self::congestion::Course;
pub use self::places::Attached;
use self::{
    places::Places,
    receive::Overflow,
    table::{Hop, Hops, Peer, Table},
};
use crate::metrics;

/// Largest QUIC packet that goes over a path, in bytes. Every path proves that it carries this and the
/// header.
pub(crate) const PAYLOAD: u16 = 1280;

/// Bytes of a probe of full size.
const FULL: usize = PAYLOAD as usize + HEADER_LEN;

/// A peer to which nothing was sent for so long, and that nobody wants to reach, is not probed any more. A
/// connection that is there sends more often than that.
const ASLEEP: Duration = Duration::from_secs(30);

/// What is sent to a peer that left the roster goes where it went for so long yet, so that QUIC tells it why its
/// connections are closed. It is heard no more.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// Probes whose tags are looked at, each second. A check takes about a microsecond, so a flood of forged
/// ones takes 2 % of a core; a thousand peers that are all busy send as many.
const CHECKS: u32 = 20_000;

/// How far away the next look at a peer is that has nothing to be done.
const NOTHING_DUE: Duration = Duration::from_secs(3600);

/// What the overlay needs to know.
pub(crate) struct Config {
    /// This node.
    pub(crate) node: NodeId,
    /// Who may be heard, and where nodes are.
    pub(crate) roster: watch::Receiver<Arc<Roster>>,
    /// Makes and checks the tags of probes.
    pub(crate) authenticator: Arc<dyn Authenticator>,
    /// Has leases of this node's flows.
    pub(crate) leases: Leases,
}

/// Where leases of this node's flows come from.
#[derive(Clone)]
pub struct Leases {
    /// Gets them.
    pub source: Arc<dyn Source>,
    /// Tells when what it offers has changed.
    pub changed: watch::Receiver<()>,
}

impl Leases {
    /// For a node that knows of no master: its claims carry no lease.
    pub fn none() -> Self {
        Self {
            source: Arc::new(NoLeases),
            changed: watch::channel(()).1,
        }
    }
}

struct NoLeases;

impl Source for NoLeases {
    fn want(&self, _: Way) {}

    fn forget(&self, _: Label) {}

    fn offer(&self, _: Label) -> Offer {
        Offer::Nothing
    }

    fn terms(&self, _: Label) -> Option<Terms> {
        None
    }
}

/// What a node knows of its peers and the paths to them. It ends with the last of its [`Socket`]s, and of its owners.
/// See the [module](self).
pub(crate) struct Overlay {
    shared: Arc<Shared>,
    _stop: Arc<DropGuard>,
}

/// A socket for a QUIC endpoint. What QUIC sends over it goes out of one of the sockets beneath, and what comes in
/// there is received here.
struct Socket {
    shared: Arc<Shared>,
    beneath: Arc<dyn AsyncUdpSocket>,
    number: usize,
    overflow: Mutex<Overflow>,
    _stop: Arc<DropGuard>,
}

struct Shared {
    config: Config,
    /// They have one address; at least one.
    sockets: Vec<Arc<dyn AsyncUdpSocket>>,
    address: SocketAddr,
    random: &'static dyn SecureRandom,
    table: RwLock<Table>,
    checks: Mutex<Checks>,
    places: Places,
    stopped: CancellationToken,
}

/// How many tags may still be looked at in this second.
struct Checks {
    since: Instant,
    left: u32,
}

impl Overlay {
    /// One over these sockets, which have one port, and what QUIC's endpoints are to use in their place.
    pub(crate) fn over(
        sockets: Vec<Arc<dyn AsyncUdpSocket>>,
        config: Config,
    ) -> io::Result<(Self, Vec<Arc<dyn AsyncUdpSocket>>)> {
        let first = sockets.first().ok_or(io::ErrorKind::InvalidInput)?;
        let stopped = CancellationToken::new();
        let shared = Arc::new(Shared {
            address: first.local_addr()?,
            sockets,
            config,
            random: rustls::crypto::aws_lc_rs::default_provider().secure_random,
            table: RwLock::default(),
            checks: Mutex::new(Checks {
                since: Instant::now(),
                left: CHECKS,
            }),
            places: Places::default(),
            stopped: stopped.clone(),
        });
        tokio::spawn(shared.clone().keep_gauges());
        let stop = Arc::new(stopped.drop_guard());
        let sockets = shared.sockets.iter().enumerate();
        let sockets = sockets.map(|(number, beneath)| {
            Arc::new(Socket {
                shared: shared.clone(),
                beneath: beneath.clone(),
                number,
                overflow: Mutex::default(),
                _stop: stop.clone(),
            }) as Arc<dyn AsyncUdpSocket>
        });
        let sockets = sockets.collect();
        let overlay = Self {
            shared,
            _stop: stop,
        };
        Ok((overlay, sockets))
    }

    /// The address of the sockets beneath.
    pub(crate) fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// Waits until there is a path to `peer`; gives the address under which QUIC reaches it. Never returns
    /// where there is none. `None` when the roster does not list it.
    pub(crate) async fn reach(&self, peer: &NodeId) -> Option<SocketAddr> {
        let peer = self.shared.peer(peer)?;
        let mut reached = peer.reached.subscribe();
        peer.want();
        // The sender lives as long as the peer does.
        let _ = reached.wait_for(|reached| *reached).await;
        Some(peer.address)
    }

    /// Keeps places at transit relays from now on: nobody reaches this node otherwise. They stay until this is
    /// dropped.
    pub(crate) fn attach(&self) -> watch::Receiver<Attached> {
        self.shared.attach()
    }

    /// Whether there is a path to `peer`.
    pub(crate) fn is_reached(&self, peer: &NodeId) -> bool {
        let peer = table::read(&self.shared.table).peer(peer);
        peer.is_some_and(|peer| *peer.reached.borrow())
    }

    /// The number of the socket to which packets of the peer under this address of QUIC's come: the kernel gives all
    /// that come over one path to one.
    pub(crate) fn comes_to(&self, address: SocketAddr) -> usize {
        let peer = table::read(&self.shared.table).at(address);
        peer.map_or(0, |peer| peer.comes_to())
    }

    /// Tells whenever packets to the peer under this address of QUIC's take other paths.
    pub(crate) fn courses(&self, address: SocketAddr) -> Option<watch::Receiver<Course>> {
        let peer = table::read(&self.shared.table).at(address)?;
        Some(table::lock(&peer.courses).subscribe())
    }

    /// Makes congestion controllers for connections to the peer under this address of QUIC's: they know of its
    /// paths.
    pub(crate) fn congestion(
        &self,
        address: SocketAddr,
    ) -> Option<Arc<dyn ControllerFactory + Send + Sync>> {
        Some(Arc::new(congestion::Factory::new(self.courses(address)?)))
    }

    /// The paths to `peer`, if it is being looked after.
    pub(crate) fn views(&self, peer: &NodeId) -> Vec<View> {
        let peer = table::read(&self.shared.table).peer(peer);
        peer.map_or_else(Vec::new, |peer| table::lock(&peer.paths).views().collect())
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket")
            .field("address", &self.shared.address)
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

thread_local! {
    /// Where headers and packets are put together. As large as the largest batch that this thread sent.
    static BATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.beneath.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Some(peer) = table::read(&self.shared.table).at(transmit.destination) else {
            // QUIC sends again what it does not hear of.
            dropped(metrics::overlay_drop::NO_PATH);
            return Ok(());
        };
        let Some(hops) = peer.hops_or_hold(transmit) else {
            return Ok(());
        };
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len());
        let count = transmit.contents.len().div_ceil(segment.max(1)) as u64;
        let (over, also) = hops;
        send(&*self.beneath, over, transmit, segment)?;
        peer.sent.fetch_add(count, Ordering::Relaxed);
        if let Some(also) = also {
            // If this one has no room, the other has it.
            let _ = send(&*self.beneath, also, transmit, segment);
            ::metrics::counter!(metrics::OVERLAY_DOUBLED).increment(count);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [io::IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.receive(cx, bufs, meta)
    }

    /// The address that this node has to itself: QUIC is not to know the others.
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(table::address(0))
    }

    fn max_transmit_segments(&self) -> usize {
        self.beneath.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.beneath.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.beneath.may_fragment()
    }
}

impl Shared {
    /// Sends a packet of the overlay's own, over any socket that has room. One for which there is none is as good as
    /// lost.
    fn send_own(&self, to: SocketAddr, packet: &[u8]) {
        let transmit = Transmit {
            destination: to,
            ecn: None,
            contents: packet,
            segment_size: None,
            src_ip: None,
        };
        let has_room = |socket: &Arc<dyn AsyncUdpSocket>| {
            socket.try_send(&transmit).map_err(|error| error.kind())
                != Err(io::ErrorKind::WouldBlock)
        };
        let _ = self.sockets.iter().any(has_room);
    }

    fn draw(&self) -> u64 {
        draw(self.random)
    }

    fn for_socket(&self, address: SocketAddr) -> SocketAddr {
        for_socket(self.address, address)
    }

    /// The peer's entry in the table, made if need be; `None` when the roster does not list it.
    fn peer(self: &Arc<Self>, id: &NodeId) -> Option<Arc<Peer>> {
        if let Some(peer) = table::read(&self.table).peer(id) {
            return Some(peer);
        }
        let roster = self.config.roster.borrow().clone();
        let routes = self.listed(&roster, id)?;
        let label = Label::from_random(self.draw());
        let (peer, is_new) = table::write(&self.table).add(id, label);
        if is_new {
            *table::lock(&peer.listed) = routes;
            tokio::spawn(self.clone().look_after(peer.clone()));
        }
        Some(peer)
    }

    /// The paths that the roster tells of; `None` when it does not list the peer, or this is it.
    fn listed(&self, roster: &Roster, id: &NodeId) -> Option<Vec<Route>> {
        let node = roster.node(id).filter(|node| node.id != self.config.node)?;
        let routes = node
            .addresses
            .iter()
            .filter(|address| self.reaches(address));
        Some(
            routes
                .map(|address| Route::Direct(canonical(*address)))
                .collect(),
        )
    }

    /// A socket for IPv4 reaches nothing else.
    fn reaches(&self, address: &SocketAddr) -> bool {
        self.address.is_ipv6() || address.is_ipv4()
    }

    /// The roster changed: whether it still lists the peer, whose paths follow it.
    fn follow(&self, roster: &Roster, peer: &Arc<Peer>) -> bool {
        let Some(listed) = self.listed(roster, &peer.id) else {
            return false;
        };
        *table::lock(&peer.listed) = listed;
        self.lay_passages(roster, peer);
        let mut paths = table::lock(&peer.paths);
        let table = table::read(&self.table);
        paths.keep_heard(|route| forwards(roster, route) && !has_left(&table, route));
        true
    }

    /// Keeps the passages to a peer that somebody here wants to reach as the roster has them.
    fn lay_passages(&self, roster: &Roster, peer: &Arc<Peer>) {
        if !peer.is_wanted() {
            return;
        }
        let reaches = |at: &SocketAddr| self.reaches(at);
        let ways = ways::ways(roster, &self.config.node, &peer.id, reaches);
        let now = Instant::now();
        let mut passages = table::lock(&peer.passages);
        let mut table = table::write(&self.table);
        passages.retain_mut(|passage| {
            let kept = ways.contains(passage.way());
            match kept {
                true => passage.roster_changed(now),
                false => {
                    self.config.leases.source.forget(passage.flow());
                    // The peer may not know of it yet, and still send over it.
                    table.leave_flow(peer, passage.flow(), now);
                }
            }
            kept
        });
        for way in ways {
            if passages.iter().any(|passage| *passage.way() == way) {
                continue;
            }
            let flow = Label::from_random(self.draw());
            let (from, peer_id) = (self.config.node.clone(), peer.id.clone());
            let passage = Passage::new(from, way, peer_id, flow, now);
            self.config.leases.source.want(passage.to_lease());
            passages.push(passage);
            table.heard_over(peer, flow);
        }
    }

    /// Claims what is due, and returns when to look again.
    fn claim(&self, peer: &Peer, paths: &Paths, now: Instant) -> (Vec<Route>, Instant) {
        let mut routes = table::lock(&peer.listed).clone();
        let mut next = now + NOTHING_DUE;
        for passage in table::lock(&peer.passages).iter_mut() {
            if let Some(route) = passage.route(now) {
                match paths.standing(route) {
                    Some(Standing::Silent) => passage.fell_silent(now),
                    Some(Standing::Asked) => passage.stays_unproved(),
                    Some(Standing::Proved) | None => {}
                }
            }
            let flow = passage.flow();
            let offer = || self.config.leases.source.offer(flow);
            if let Some((claim, via)) = passage.poll(now, offer, || self.draw()) {
                self.send_claim(&claim, via);
            }
            routes.extend(passage.route(now));
            next = next.min(passage.next());
        }
        (routes, next)
    }

    /// Leases came, or went.
    fn leased(&self, peer: &Peer) {
        let now = Instant::now();
        for passage in table::lock(&peer.passages).iter_mut() {
            let offer = self.config.leases.source.offer(passage.flow());
            passage.offered(&offer, now);
        }
    }

    fn send_claim(&self, claim: &Claim, via: SocketAddr) {
        let mut packet = Vec::with_capacity(512);
        let authenticator = &self.config.authenticator;
        claim.write(&mut packet, |message, tags| {
            authenticator.tags(&claim.to, message, tags);
        });
        self.send_own(self.for_socket(via), &packet);
    }

    /// Looks after the paths of a peer until it leaves the roster, or until nobody wants anything of it.
    async fn look_after(self: Arc<Self>, peer: Arc<Peer>) {
        let mut roster = self.config.roster.clone();
        let mut leases = self.config.leases.changed.clone();
        let (mut news, mut leased) = (true, true);
        let (mut wanted, mut unlisted) = (false, false);
        let mut used = (peer.uses(), Instant::now());
        loop {
            let now = Instant::now();
            let uses = peer.uses();
            if uses != used.0 {
                used = (uses, now);
            }
            if now.saturating_duration_since(used.1) >= ASLEEP {
                break;
            }
            if peer.is_wanted() && !std::mem::replace(&mut wanted, true) {
                self.lay_passages(&roster.borrow().clone(), &peer);
            }
            let next = self.turn(&peer, now).min(used.1 + ASLEEP);
            tokio::select! {
                () = self.stopped.cancelled() => break,
                () = tokio::time::sleep_until(next.into()) => {}
                () = peer.changed.notified() => {}
                changed = roster.changed(), if news => match changed {
                    Ok(()) => {
                        let roster = roster.borrow_and_update().clone();
                        if !self.follow(&roster, &peer) {
                            unlisted = true;
                            break;
                        }
                    }
                    // Whoever published it is gone: the last roster stays.
                    Err(_) => news = false,
                },
                changed = leases.changed(), if leased => match changed {
                    Ok(()) => self.leased(&peer),
                    Err(_) => leased = false,
                },
            }
        }
        {
            let mut passages = table::lock(&peer.passages);
            let mut table = table::write(&self.table);
            let now = Instant::now();
            for passage in passages.drain(..) {
                self.config.leases.source.forget(passage.flow());
                table.leave_flow(&peer, passage.flow(), now);
            }
            table.silence(&peer);
        }
        peer.reached.send_replace(false);
        if unlisted {
            let _ = tokio::time::timeout(LAST_WORDS, self.stopped.cancelled()).await;
        }
        table::write(&self.table).remove(&peer);
        *table::write(&peer.hops) = Hops::default();
    }

    /// Sends the claims and probes that are due, and takes over what became of the paths; returns when to look
    /// again.
    fn turn(&self, peer: &Peer, now: Instant) -> Instant {
        let mut pings = Vec::new();
        let next = {
            let mut paths = table::lock(&peer.paths);
            let (routes, next) = self.claim(peer, &paths, now);
            paths.list(&routes, now);
            let sent = peer.sent.load(Ordering::Relaxed);
            let switch = paths.poll(now, sent, || self.draw(), &mut pings);
            self.publish(peer, &paths, switch.as_ref(), now);
            if let Some(switch) = switch {
                self.switched(peer, switch, now);
            }
            for route in paths.doubted(now) {
                if let Route::Flow { via, .. } = route {
                    self.places.doubt(via, now);
                }
            }
            paths.next(now).map_or(next, |due| due.min(next))
        };
        for ping in pings {
            self.ping(peer, ping);
        }
        next
    }

    /// Where packets go from now on.
    fn publish(&self, peer: &Peer, paths: &Paths, switch: Option<&Switch>, now: Instant) {
        let sending = paths.sending(now);
        let hop = |route| self.hop(route, paths.label(route));
        let hops = Hops {
            over: sending.over.and_then(hop),
            also: sending.also.and_then(hop),
        };
        *table::write(&peer.hops) = hops;
        table::lock(&peer.courses).took(sending, switch, Instant::now());
        if let Some(over) = hops.over {
            for held in peer.release() {
                // If there is no room for it, it is lost, as anything may be.
                let segment = held.segment_size.unwrap_or(held.contents.len());
                let _ = send(&*self.sockets[0], over, &held.transmit(), segment);
            }
        }
        let reached = paths.is_reached() && hops.over.is_some();
        peer.reached
            .send_if_modified(|was| std::mem::replace(was, reached) != reached);
    }

    /// How packets go over `route`; a direct one needs the label that the peer gave.
    fn hop(&self, route: Route, label: Option<Label>) -> Option<Hop> {
        let (address, kind, label) = match route {
            Route::Direct(address) => (address, Kind::Direct, label?),
            Route::Flow { via, id } => (via, Kind::Flow, id),
        };
        Some(Hop {
            address: self.for_socket(address),
            header: Header { kind, label }.to_wire(),
        })
    }

    fn ping(&self, peer: &Peer, ping: Ping) {
        let len = if ping.full { FULL } else { 0 };
        self.probe(peer, Kind::Ping, ping.route, ping.nonce, len);
    }

    fn probe(&self, peer: &Peer, kind: Kind, route: Route, nonce: u64, len: usize) {
        let (to, flow) = match route {
            Route::Direct(address) => (address, Label::NONE),
            Route::Flow { via, id } => (via, id),
        };
        let probe = Probe {
            kind,
            flow,
            nonce,
            label: peer.label,
            from: self.config.node.clone(),
            to: peer.id.clone(),
        };
        let mut packet = Vec::with_capacity(len.max(256));
        let authenticator = &self.config.authenticator;
        probe.write(&mut packet, len, |message, tags| {
            authenticator.tags(&peer.id, message, tags);
        });
        self.send_own(self.for_socket(to), &packet);
        let kind = if kind == Kind::Ping { "ping" } else { "pong" };
        ::metrics::counter!(metrics::OVERLAY_PROBES, "kind" => kind).increment(1);
    }

    /// Whether one more tag may be looked at.
    fn may_check(&self, now: Instant) -> bool {
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(checks.since) >= Duration::from_secs(1) {
            *checks = Checks {
                since: now,
                left: CHECKS,
            };
        }
        checks.left = match checks.left.checked_sub(1) {
            Some(left) => left,
            None => return false,
        };
        true
    }
}

/// Sends a batch, each packet with the header of `hop`.
fn send(
    socket: &dyn AsyncUdpSocket,
    hop: Hop,
    transmit: &Transmit<'_>,
    segment: usize,
) -> io::Result<()> {
    BATCH.with_borrow_mut(|batch| {
        batch.clear();
        for packet in transmit.contents.chunks(segment.max(1)) {
            batch.extend_from_slice(&hop.header);
            batch.extend_from_slice(packet);
        }
        socket.try_send(&Transmit {
            destination: hop.address,
            ecn: transmit.ecn,
            contents: batch,
            segment_size: transmit.segment_size.map(|size| size + HEADER_LEN),
            src_ip: None,
        })
    })
}

/// Whether this node drew the flow that `route` is, and has left it: its peer may have been heard over it while it was
/// not open.
fn has_left(table: &Table, route: Route) -> bool {
    matches!(route, Route::Flow { id, .. } if table.has_left(id))
}

/// Whether whoever is reached first over `route` forwards packets: a peer itself does not have to.
fn forwards(roster: &Roster, route: Route) -> bool {
    match route {
        Route::Direct(_) => true,
        Route::Flow { via, .. } => roster.relay_at(&via).is_some(),
    }
}

pub(crate) fn draw(random: &dyn SecureRandom) -> u64 {
    let mut bytes = [0; 8];
    random
        .fill(&mut bytes)
        .expect("the operating system has random bytes");
    u64::from_ne_bytes(bytes)
}

fn dropped(reason: &'static str) {
    ::metrics::counter!(metrics::OVERLAY_DROPPED, "reason" => reason).increment(1);
}

/// An address as a socket that has the address `own` wants it.
pub(crate) fn for_socket(own: SocketAddr, address: SocketAddr) -> SocketAddr {
    match (own, address) {
        (SocketAddr::V6(_), SocketAddr::V4(v4)) => {
            SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port())
        }
        _ => address,
    }
}

/// The address without IPv6 around IPv4, so that it is equal to the one in the roster.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
