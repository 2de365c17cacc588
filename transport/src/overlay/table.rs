//! The peers that are looked after, and by what their packets are known.

use std::{
    collections::{HashMap, VecDeque},
    net::{Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use quinn::udp::{EcnCodepoint, Transmit};
use tokio::sync::{Notify, watch};
use wavry_proto::{
    id::NodeId,
    overlay::{
        left::Left,
        packet::{HEADER_LEN, Label},
        passage::Passage,
        paths::{MAX_PATHS, Paths, Route},
    },
};

use super::{congestion::Courses, dropped, view::Switched};
use crate::metrics::overlay_drop;

/// A unique local address (RFC 4193): the first 64 bits of the addresses that QUIC knows peers by.
const PREFIX: [u16; 4] = [0xfd57, 0x6176, 0x7279, 0];

/// A peer that is looked after.
pub(super) struct Peer {
    pub(super) id: NodeId,
    /// The address under which QUIC knows it.
    pub(super) address: SocketAddr,
    /// The label under which this node takes its data.
    pub(super) label: Label,
    pub(super) paths: Mutex<Paths>,
    /// The direct paths that the roster tells of.
    pub(super) listed: Mutex<Vec<Route>>,
    /// Paths through transit relays, where this node is who wants to reach the peer.
    pub(super) passages: Mutex<Vec<Passage>>,
    pub(super) hops: RwLock<Hops>,
    /// Which paths they were.
    pub(super) courses: Mutex<Courses>,
    held: Mutex<Vec<Held>>,
    /// Whether there is a path that carries something.
    pub(super) reached: watch::Sender<bool>,
    /// There is something to do for whoever looks after it.
    pub(super) changed: Notify,
    /// A probe or a claim was answered.
    pub(super) answered: Notify,
    pub(super) switched: Mutex<Switched>,
    /// Packets sent to it.
    pub(super) sent: AtomicU64,
    wanted: AtomicU64,
    /// The socket that its packets came to last.
    comes_to: AtomicUsize,
    /// Flows that it was heard over, oldest first; at most [`MAX_PATHS`].
    flows: Mutex<VecDeque<Label>>,
}

/// Batches to a peer that wait for its first path. Whoever dials has proved a path and sends over it a moment
/// before its peer has: without the peer's answer, QUIC would wait for a second. An answer to a handshake is
/// one or two batches, and that of several connections at once is not more than this.
const HELD: usize = 16;

/// A batch that waits.
pub(super) struct Held {
    pub(super) contents: Vec<u8>,
    pub(super) segment_size: Option<usize>,
    ecn: Option<EcnCodepoint>,
}

impl Held {
    /// To be sent, to where it is to go now.
    pub(super) fn transmit(&self) -> Transmit<'_> {
        Transmit {
            destination: address(0),
            ecn: self.ecn,
            contents: &self.contents,
            segment_size: self.segment_size,
            src_ip: None,
        }
    }
}

/// Where what is sent to a peer goes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Hops {
    pub(super) over: Option<Hop>,
    pub(super) also: Option<Hop>,
}

/// An address, and what comes before each packet to it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hop {
    pub(super) address: SocketAddr,
    pub(super) header: [u8; HEADER_LEN],
}

impl Peer {
    /// Somebody wants to reach it.
    pub(super) fn want(&self) {
        self.wanted.fetch_add(1, Ordering::Relaxed);
        lock(&self.paths).wake(Instant::now());
        self.changed.notify_one();
    }

    /// Where a batch goes, and where it goes as well; while there is no path it is held, or dropped if too much
    /// is.
    pub(super) fn hops_or_hold(&self, transmit: &Transmit<'_>) -> Option<(Hop, Option<Hop>)> {
        let present = || {
            let hops = *read(&self.hops);
            Some((hops.over?, hops.also))
        };
        present().or_else(|| {
            let mut held = lock(&self.held);
            // A path may have come meanwhile, and what was held be gone.
            let late = present();
            if late.is_some() {
                return late;
            }
            if held.len() < HELD {
                held.push(Held {
                    contents: transmit.contents.to_vec(),
                    segment_size: transmit.segment_size,
                    ecn: transmit.ecn,
                });
            } else {
                dropped(overlay_drop::NO_PATH);
            }
            None
        })
    }

    /// Its packets come to this socket.
    pub(super) fn came_to(&self, socket: usize) {
        // Mostly the same one: what is not written does not take the line from other cores.
        if self.comes_to() != socket {
            self.comes_to.store(socket, Ordering::Relaxed);
        }
    }

    /// To which socket its packets came last.
    pub(super) fn comes_to(&self) -> usize {
        self.comes_to.load(Ordering::Relaxed)
    }

    /// What was held; there is a path.
    pub(super) fn release(&self) -> Vec<Held> {
        std::mem::take(&mut *lock(&self.held))
    }

    /// Whether somebody here ever wanted to reach it.
    pub(super) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) > 0
    }

    /// Grows whenever it is of use to anybody.
    pub(super) fn uses(&self) -> u64 {
        let sent = self.sent.load(Ordering::Relaxed);
        sent.wrapping_add(self.wanted.load(Ordering::Relaxed))
    }
}

/// All of them.
#[derive(Default)]
pub(super) struct Table {
    by_id: HashMap<NodeId, Arc<Peer>>,
    by_number: HashMap<u64, Arc<Peer>>,
    by_label: HashMap<Label, Arc<Peer>>,
    by_flow: HashMap<Label, Arc<Peer>>,
    left: Left,
    numbers: u64,
}

impl Table {
    pub(super) fn peer(&self, id: &NodeId) -> Option<Arc<Peer>> {
        self.by_id.get(id).cloned()
    }

    /// All of them, in no order.
    pub(super) fn peers(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.by_id.values()
    }

    /// The peer under this address of QUIC's.
    pub(super) fn at(&self, address: SocketAddr) -> Option<Arc<Peer>> {
        self.by_number.get(&number(address)?).cloned()
    }

    /// The peer whose data comes under this label.
    pub(super) fn labelled(&self, label: Label) -> Option<&Arc<Peer>> {
        self.by_label.get(&label)
    }

    /// The peer at the other end of this flow.
    pub(super) fn flow(&self, id: Label) -> Option<&Arc<Peer>> {
        self.by_flow.get(&id)
    }

    /// The peer with this id, and whether it was not there before; its data comes under `label` if so.
    pub(super) fn add(&mut self, id: &NodeId, label: Label) -> (Arc<Peer>, bool) {
        if let Some(peer) = self.by_id.get(id) {
            return (peer.clone(), false);
        }
        self.numbers += 1;
        let peer = Arc::new(Peer {
            id: id.clone(),
            address: address(self.numbers),
            label,
            paths: Mutex::default(),
            listed: Mutex::default(),
            passages: Mutex::default(),
            hops: RwLock::default(),
            courses: Mutex::new(Courses::new(Instant::now())),
            held: Mutex::default(),
            reached: watch::Sender::new(false),
            changed: Notify::new(),
            answered: Notify::new(),
            switched: Mutex::default(),
            sent: AtomicU64::new(0),
            wanted: AtomicU64::new(0),
            comes_to: AtomicUsize::new(0),
            flows: Mutex::default(),
        });
        self.by_id.insert(id.clone(), peer.clone());
        self.by_number.insert(self.numbers, peer.clone());
        self.by_label.insert(label, peer.clone());
        (peer, true)
    }

    /// `peer` was heard over the flow `id`; whether its packets are known by that now. A flow stays with whom
    /// it came from first.
    pub(super) fn heard_over(&mut self, peer: &Arc<Peer>, id: Label) -> bool {
        if let Some(known) = self.by_flow.get(&id) {
            return Arc::ptr_eq(known, peer);
        }
        let mut flows = lock(&peer.flows);
        if flows.len() == MAX_PATHS
            && let Some(oldest) = flows.pop_front()
        {
            self.by_flow.remove(&oldest);
        }
        flows.push_back(id);
        self.by_flow.insert(id, peer.clone());
        true
    }

    /// This node sends nothing more over a flow to `peer` that it drew, and never will: it is no path again. What comes
    /// over it is taken until newer flows need its place.
    pub(super) fn leave_flow(&mut self, peer: &Peer, id: Label, now: Instant) {
        self.left.leave(id, now);
        let mut flows = lock(&peer.flows);
        if let Some(at) = flows.iter().position(|flow| *flow == id) {
            flows.remove(at);
            flows.push_front(id);
        }
    }

    /// Whether this node drew the flow, and has left it.
    pub(super) fn has_left(&self, id: Label) -> bool {
        self.left.has(id)
    }

    /// The peer is heard no more, and found under its address alone.
    pub(super) fn silence(&mut self, peer: &Arc<Peer>) {
        self.by_id.remove(&peer.id);
        self.by_label.remove(&peer.label);
        for id in lock(&peer.flows).drain(..) {
            self.by_flow.remove(&id);
        }
    }

    /// Nothing is sent any more to a peer that was [silenced](Self::silence).
    pub(super) fn remove(&mut self, peer: &Arc<Peer>) {
        if let Some(number) = number(peer.address) {
            self.by_number.remove(&number);
        }
    }
}

/// The address with this number: 0 is this node, others are peers.
pub(super) fn address(number: u64) -> SocketAddr {
    let [a, b, c, d] = PREFIX;
    let network = Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).to_bits();
    // No packet ever has it: any port will do.
    SocketAddr::new(Ipv6Addr::from_bits(network | u128::from(number)).into(), 1)
}

fn number(address: SocketAddr) -> Option<u64> {
    match address {
        SocketAddr::V6(address) => Some(address.ip().to_bits() as u64),
        SocketAddr::V4(_) => None,
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(number: usize) -> Label {
        Label::from_random(number as u64)
    }

    #[test]
    fn a_flow_that_was_left_is_heard_until_newer_ones_need_its_place_and_goes_first() {
        let mut table = Table::default();
        let (peer, _) = table.add(&"b".parse().unwrap(), Label::from_random(1 << 40));
        for number in 1..=MAX_PATHS {
            assert!(table.heard_over(&peer, flow(number)));
        }
        table.leave_flow(&peer, flow(5), Instant::now());
        assert!(table.flow(flow(5)).is_some(), "the peer may still send");
        assert!(table.heard_over(&peer, flow(MAX_PATHS + 1)));
        assert!(table.flow(flow(5)).is_none());
        assert!(table.flow(flow(1)).is_some());
    }
}
