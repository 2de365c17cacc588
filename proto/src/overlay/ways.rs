//! Through which transit relays a node reaches a peer, and at which it can be reached itself: what follows from
//! the roster, in the same way for everybody.

use std::net::SocketAddr;

use crate::{
    control::{Node, Role, Roster},
    id::{NodeId, RegionName},
    overlay::packet::{MAX_HOPS, Next},
};

/// A relay, and where it takes what is to be forwarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hop {
    /// The relay.
    pub node: NodeId,
    /// Its address for transit.
    pub address: SocketAddr,
}

/// Through which relays, and how the last of them finds the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// The relays, in the order in which they are passed; at most [`MAX_HOPS`].
    pub hops: Vec<Hop>,
    /// Where the last one sends what is for the peer.
    pub last: Next,
}

/// Relays to which a node attaches itself that cannot be reached otherwise. One may go, and one be about to.
pub const PLACES: usize = 3;

/// Ways through one relay that are kept ready to a peer that has an address.
const SINGLE: usize = 2;

/// The ways from `from` to `peer` that are kept ready, best first: through each of two relays, through both, and
/// through these and a third. A peer that is attached to relays is reached through each of these, and through another
/// one, or two, and the first of them. Relays in the region of either end come before others; among equals each pair
/// of nodes has its own order, in which a relay of twice the weight is first twice as often, so that load is spread and a
/// relay that comes or goes changes the ways of few.
/// `from` sends only to addresses that it `reaches`: a socket for IPv4 reaches no other.
pub fn ways(
    roster: &Roster,
    from: &NodeId,
    peer: &NodeId,
    reaches: impl Fn(&SocketAddr) -> bool,
) -> Vec<Way> {
    let Some(listed) = roster.node(peer) else {
        return Vec::new();
    };
    let here = roster.node(from).and_then(region);
    let near = [here, region(listed)];
    let mut relays = relays(roster, [from, peer], reaches);
    relays.sort_by_key(|(node, _)| {
        let is_near = region(node).is_some() && near.contains(&region(node));
        (!is_near, turn(&[from, peer], node))
    });
    let way = |hops: &[&(&Node, SocketAddr)], last| Way {
        hops: hops.iter().map(|relay| hop(relay)).collect(),
        last,
    };
    if listed.attached.is_empty() {
        let Some(address) = listed.addresses.first() else {
            // Nobody knows where it is.
            return Vec::new();
        };
        let last = Next::At(*address);
        let chosen: Vec<_> = relays.iter().take(MAX_HOPS).collect();
        let single = chosen.iter().take(SINGLE).map(|relay| way(&[*relay], last));
        let longer = (SINGLE..=chosen.len()).map(|hops| way(&chosen[..hops], last));
        return single.chain(longer).collect();
    }
    let (places, others): (Vec<_>, Vec<_>) = relays
        .iter()
        .partition(|(node, _)| listed.attached.contains(&node.id));
    let places = &places[..places.len().min(PLACES)];
    let last = Next::Attached;
    let mut ways: Vec<_> = places.iter().map(|relay| way(&[*relay], last)).collect();
    let Some(place) = places.first() else {
        return ways;
    };
    // Through a place that is not the last where there is nothing else.
    let before = match others.is_empty() {
        true => places.get(1..2).unwrap_or_default(),
        false => &others[..others.len().min(MAX_HOPS - 1)],
    };
    ways.extend((1..=before.len()).map(|hops| way(&[&before[..hops], &[*place]].concat(), last)));
    ways
}

/// The relays to which `node` attaches itself, if it can be reached in no other way: one that is near, and others,
/// in other regions if there are any.
pub fn places(roster: &Roster, node: &NodeId, reaches: impl Fn(&SocketAddr) -> bool) -> Vec<Hop> {
    let here = roster.node(node).and_then(region);
    let mut left = relays(roster, [node, node], reaches);
    left.sort_by_key(|(relay, _)| {
        let is_near = here.is_some() && region(relay) == here;
        (!is_near, turn(&[node], relay))
    });
    let mut chosen: Vec<(&Node, SocketAddr)> = Vec::new();
    while chosen.len() < PLACES && !left.is_empty() {
        let is_elsewhere =
            |(relay, _): &(&Node, _)| chosen.iter().all(|(one, _)| region(one) != region(relay));
        let at = left.iter().position(is_elsewhere).unwrap_or(0);
        chosen.push(left.remove(at));
    }
    chosen.iter().map(hop).collect()
}

/// All that forward, but for these, and where `reaches` holds.
fn relays<'a>(
    roster: &'a Roster,
    but: [&NodeId; 2],
    reaches: impl Fn(&SocketAddr) -> bool,
) -> Vec<(&'a Node, SocketAddr)> {
    let relays = roster
        .nodes
        .iter()
        .filter(|node| node.role == Role::Relay && !but.contains(&&node.id));
    relays
        .filter_map(|node| Some((node, *node.transit.iter().find(|at| reaches(at))?)))
        .collect()
}

fn region(node: &Node) -> Option<&RegionName> {
    node.placement.region.as_ref()
}

fn hop((node, address): &(&Node, SocketAddr)) -> Hop {
    Hop {
        node: node.id.clone(),
        address: *address,
    }
}

/// When it is the relay's turn among those that are equally near, for who has these ids: rendezvous hashing with weights.
/// The hash, as a draw between 0 and 1, becomes one from an exponential distribution with the weight for rate: that the
/// least of several such draws is a relay's is as likely as its weight is a part of all weights.
fn turn(ids: &[&NodeId], relay: &Node) -> u64 {
    let drawn = spread(&[ids, &[&relay.id]].concat());
    // As many bits as a float has.
    let drawn = (drawn >> 11) as f64 / (1u64 << 53) as f64;
    let turn = -(-drawn).ln_1p() / f64::from(relay.placement.weight.get());
    // Floats that are not negative have the order of their bits.
    turn.abs().to_bits()
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
