//! A way through transit relays, as the node that wants it sees it: each relay is asked for the flow in its
//! turn, the later ones through those that have granted it, and asked again before it ends.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::{
    control::{Node, Role, Roster, lease::Way},
    id::NodeId,
    overlay::{
        lease::Offer,
        packet::{Claim, Label, MAX_HOPS, Refusal, Ruling, Verdict},
        paths::Route,
    },
};

/// From a claim to the same one again, when nothing is heard; doubled each time.
const AGAIN: Duration = Duration::from_millis(250);
/// Where it stops doubling.
const AGAIN_MOST: Duration = Duration::from_secs(10);
/// Claims to a later relay that came to nothing, until the first one is asked again: it may have been started anew,
/// and forward none of them.
const FROM_THE_FIRST: u32 = 4;
/// After a refusal, which the roster or other claimants have to change.
const AFTER_REFUSAL: Duration = Duration::from_secs(5);

/// When to look for a lease again that is not there, unless its coming is told.
const NO_LEASE_YET: Duration = Duration::from_secs(5);
/// From a claim that was granted to the next one at the least, however soon the flow ends.
const APART: Duration = Duration::from_secs(1);

/// A relay, and where it takes what is to be forwarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hop {
    /// The relay.
    pub node: NodeId,
    /// Its address for transit.
    pub address: SocketAddr,
}

/// A way to a peer through transit relays.
#[derive(Debug)]
pub struct Passage {
    from: NodeId,
    peer: NodeId,
    peer_address: SocketAddr,
    hops: Vec<Hop>,
    flow: Label,
    /// The lease that the last claim carried.
    lease: Vec<u8>,
    /// It waits for one.
    waits: bool,
    /// Claims that were made.
    count: u32,
    /// The relay that is asked, or is to be.
    step: usize,
    asked: Option<u64>,
    cookie: u64,
    tries: u32,
    claim_at: Instant,
    /// Whether all relays have granted it, and until when the first of them does.
    open: bool,
    ends: Option<Instant>,
}

impl Passage {
    /// From `from` through `hops` to `peer` at `peer_address`.
    pub fn new(
        from: NodeId,
        hops: Vec<Hop>,
        peer: NodeId,
        peer_address: SocketAddr,
        flow: Label,
        now: Instant,
    ) -> Self {
        Self {
            from,
            peer,
            peer_address,
            hops,
            flow,
            lease: Vec::new(),
            waits: false,
            count: 0,
            step: 0,
            asked: None,
            cookie: 0,
            tries: 0,
            claim_at: now,
            open: false,
            ends: None,
        }
    }

    /// The flow.
    pub fn flow(&self) -> Label {
        self.flow
    }

    /// What it is to have a lease for.
    pub fn way(&self) -> Way {
        Way {
            flow: self.flow,
            peer: self.peer.clone(),
            hops: self.hops.iter().map(|hop| hop.node.clone()).collect(),
        }
    }

    /// Whether it leads through these relays to that address.
    pub fn leads(&self, hops: &[Hop], to: SocketAddr) -> bool {
        self.hops == hops && self.peer_address == to
    }

    /// As a path, while all relays carry it.
    pub fn route(&self, now: Instant) -> Option<Route> {
        let is_open = self.open && self.ends.is_some_and(|ends| ends > now);
        is_open.then(|| Route::Flow {
            via: self.hops[0].address,
            id: self.flow,
        })
    }

    /// The claim that is due, and where it is to be sent. It carries what is offered. `draw` gives random numbers.
    pub fn poll(
        &mut self,
        now: Instant,
        offer: impl FnOnce() -> Offer,
        draw: impl FnOnce() -> u64,
    ) -> Option<(Claim, SocketAddr)> {
        if self.claim_at > now {
            return None;
        }
        let offer = offer();
        self.waits = offer == Offer::Wait;
        self.lease = match offer {
            Offer::Lease(lease) => lease.to_vec(),
            Offer::Nothing => Vec::new(),
            Offer::Wait => {
                self.claim_at = now + NO_LEASE_YET;
                return None;
            }
        };
        let is_over = self.ends.is_none_or(|ends| ends <= now);
        if self.step > 0 && (is_over || self.tries >= FROM_THE_FIRST) {
            self.step = 0;
        }
        self.count += 1;
        let nonce = u64::from(self.count) << 32 | draw() & 0xffff_ffff;
        self.asked = Some(nonce);
        self.claim_at = now + (AGAIN * (1 << self.tries.min(8))).min(AGAIN_MOST);
        self.tries = self.tries.saturating_add(1);
        let next = self.hops.get(self.step + 1);
        let claim = Claim {
            flow: self.flow,
            nonce,
            cookie: self.cookie,
            from: self.from.clone(),
            to: self.hops[self.step].node.clone(),
            peer: self.peer.clone(),
            hops: self.hops.iter().map(|hop| hop.node.clone()).collect(),
            next: next.map_or(self.peer_address, |next| next.address),
            lease: self.lease.clone(),
        };
        Some((claim, self.hops[0].address))
    }

    /// What is offered has changed: it is claimed at once if it waits for that, or has another lease.
    pub fn offered(&mut self, offer: &Offer, now: Instant) {
        let is_news = match offer {
            Offer::Lease(lease) => self.waits || (self.open && self.lease != **lease),
            Offer::Nothing => self.waits,
            Offer::Wait => false,
        };
        if is_news {
            self.claim_at = now;
        }
    }

    /// A relay's answer, whose tags were checked: a refusal, if it was one to what was asked.
    pub fn told(&mut self, verdict: &Verdict, now: Instant) -> Option<Refusal> {
        if self.asked != Some(verdict.nonce) || verdict.from != self.hops[self.step].node {
            return None;
        }
        self.asked = None;
        self.tries = 0;
        self.cookie = 0;
        match verdict.ruling {
            Ruling::Prove { cookie } => {
                self.cookie = cookie;
                self.claim_at = now;
                None
            }
            Ruling::Granted { lasts } => {
                let lasts = Duration::from_secs(lasts.into());
                if self.step == 0 {
                    self.ends = Some(now + lasts);
                }
                self.ends = self.ends.map(|ends| ends.min(now + lasts));
                self.step += 1;
                self.claim_at = now;
                if self.step == self.hops.len() {
                    self.open = true;
                    self.step = 0;
                    self.claim_at = now + (lasts / 2).max(APART);
                }
                None
            }
            Ruling::Refused(refusal) => {
                self.again(now + AFTER_REFUSAL);
                Some(refusal)
            }
        }
    }

    /// Nothing comes through: the first relay may have been started anew, and know nothing of it.
    pub fn fell_silent(&mut self, now: Instant) {
        if self.open {
            self.again(now);
        }
    }

    /// When to look again, unless something comes before.
    pub fn next(&self) -> Instant {
        self.claim_at
    }

    fn again(&mut self, at: Instant) {
        self.open = false;
        self.ends = None;
        self.step = 0;
        self.asked = None;
        self.cookie = 0;
        self.tries = 0;
        self.claim_at = at;
    }
}

/// The ways from `from` to `peer` that are kept ready, best first: through each of two relays, and through
/// both. Relays in the region of either end come before others; among equals each pair of nodes has its own
/// order, so that load is spread and a relay that comes or goes changes the ways of few.
/// `from` sends only to addresses that it `reaches`: a socket for IPv4 reaches no other.
pub fn ways(
    roster: &Roster,
    from: &NodeId,
    peer: &NodeId,
    reaches: impl Fn(&SocketAddr) -> bool,
) -> Vec<Vec<Hop>> {
    let region = |id: &NodeId| {
        roster
            .node(id)
            .and_then(|node| node.placement.region.clone())
    };
    let near = [region(from), region(peer)];
    let mut relays: Vec<_> = roster
        .nodes
        .iter()
        .filter(|node| node.role == Role::Relay && node.id != *from && node.id != *peer)
        .filter_map(|node| Some((node, *node.transit.iter().find(|at| reaches(at))?)))
        .collect();
    let rank = |node: &Node| {
        let is_near = node.placement.region.is_some() && near.contains(&node.placement.region);
        (!is_near, spread(&[from, peer, &node.id]))
    };
    relays.sort_by_key(|(node, _)| rank(node));
    relays.truncate(MAX_HOPS - 1);
    let hop = |(node, address): &(&Node, SocketAddr)| Hop {
        node: node.id.clone(),
        address: *address,
    };
    let mut ways: Vec<_> = relays.iter().map(|relay| vec![hop(relay)]).collect();
    if relays.len() > 1 {
        ways.push(relays.iter().map(hop).collect());
    }
    ways
}

/// A hash of the ids that is the same everywhere: FNV-1a, and what MurmurHash3 ends with, without which ids
/// that differ in their last letter keep their order.
fn spread(ids: &[&NodeId]) -> u64 {
    let bytes = ids.iter().flat_map(|id| id.as_str().bytes().chain([0]));
    let mut hash = bytes.fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
        hash = (hash ^ (hash >> 33)).wrapping_mul(factor);
    }
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests;
