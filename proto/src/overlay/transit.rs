//! What a transit relay knows: the flows that it carries, who claimed them, and where their packets go.
//!
//! A flow has two sides, each an address. What comes from one goes to the other, and nothing else is looked
//! at. A node of the roster claims a flow for itself and a peer; a claim is granted when all of them are
//! listed, each next address is one that the roster has for the next node, the claimant has shown that
//! it receives where it sends from, and the master has signed a lease for it – or no master answers, and the roster
//! is its permission ([`lease`](super::lease)). So nothing is ever forwarded to an address that is neither in the
//! roster nor a member's own.
//!
//! A peer that nobody can reach attaches itself: it shows that it receives where it sends from, and that is
//! where flows to it lead from then on, also when it is somewhere else the next time.

mod cookies;

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use self::cookies::Cookies;
use crate::{
    control::{Node, Role, Roster},
    id::{Epoch, NodeId},
    overlay::{
        lease::{Known, Leases, Silence, Tally, Verifier},
        packet::{Attach, Claim, Label, MAX_HOPS, Next, Refusal, Ruling},
        shares::Shares,
    },
    token::KeyId,
};

/// What a transit relay carries at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Flows.
    pub flows: usize,
    /// Flows of one claimant.
    pub flows_each: usize,
    /// Bytes of each flow, both ways, in a second, if its lease says no less.
    pub bytes_per_second: u64,
    /// Packets of each flow, both ways, in a second, if its lease says no less.
    pub packets_per_second: u64,
}

impl Default for Limits {
    /// 1 Gbit/s and as many packets of 100 bytes as that makes at 100 Mbit/s, for each flow.
    fn default() -> Self {
        Self {
            flows: 65_536,
            flows_each: 4_096,
            bytes_per_second: 125_000_000,
            packets_per_second: 125_000,
        }
    }
}

/// For how long a flow is there after a claim. Its claimant claims it again when half of that is over.
pub const LASTS: Duration = Duration::from_secs(60);

/// Claims and attaches whose tags are looked at in [`CLAIMS_IN`], of those that come from where what they name is held,
/// and as many of others. A look takes a microsecond, so that packets of flows wait no longer than 20 ms. Each
/// member has its share of them.
const CLAIMS: u32 = 10_000;
/// See [`CLAIMS`].
const CLAIMS_IN: Duration = Duration::from_secs(1);

/// How long a flow goes on whose lease was revoked, or whose key was: its claimant hears of that at the same time,
/// and may have another lease by then.
pub const REVOKED_LASTS: Duration = Duration::from_secs(2);

/// For how long a node is attached. It attaches itself again much sooner: what translates its addresses forgets
/// them (RFC 4787, section 4.3: after two minutes at the earliest; many do after 30 s).
pub const ATTACHED: Duration = Duration::from_secs(60);

/// A flow may send what it may in this time at once: how unevenly a sender's batches come.
const BURST: Duration = Duration::from_millis(50);

/// And at least one batch of the largest that the kernel puts together: a batch goes on whole or not at all, so
/// that a slow flow would never send one.
const BATCH: (u64, u64) = (64 * 1_500, 64);

/// Why a packet was not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NotForwarded {
    /// There is no such flow, or it is over.
    UnknownFlow,
    /// It came from neither side of its flow.
    WrongSource,
    /// Its peer is not attached any more.
    NotAttached,
    /// Its flow has sent what it may for now.
    Rate,
}

impl NotForwarded {
    /// The reason as a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnknownFlow => "unknown_flow",
            Self::WrongSource => "wrong_source",
            Self::NotAttached => "not_attached",
            Self::Rate => "rate",
        }
    }
}

/// The flows that a transit relay carries.
#[derive(Debug)]
pub struct Flows {
    node: NodeId,
    limits: Limits,
    flows: HashMap<Label, Flow>,
    each: HashMap<NodeId, usize>,
    places: Places,
    cookies: Cookies,
    leases: Leases,
    /// Of claims and attaches that come from where what they name is held, among who holds something.
    known: Shares,
    /// Of others, by the names that they bear, among all members.
    others: Shares,
    silence: Silence,
    draining: bool,
}

/// Why a flow may be carried, how much of it, and until when.
#[derive(Debug, Clone, Copy)]
struct Permit {
    /// The key that signed its lease; `None` where the roster is the permission.
    key: Option<KeyId>,
    /// Of the roster under which the lease was signed, or the claim was granted.
    epoch: Epoch,
    bytes_per_second: u64,
    packets_per_second: u64,
    /// When the lease ends.
    ends: Option<Instant>,
}

/// Where nodes are that attached themselves. A place has a number that a flow can keep: no node of the roster
/// has more than one, and one that left the roster has no flow any more that could lead to whoever is there next.
#[derive(Debug, Default)]
struct Places {
    numbers: HashMap<NodeId, usize>,
    places: Vec<Option<Place>>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    at: SocketAddr,
    ends: Instant,
}

#[derive(Debug)]
struct Flow {
    permit: Permit,
    /// Of the newest claim that was granted.
    nonce: u64,
    claimant: NodeId,
    peer: NodeId,
    hops: Vec<NodeId>,
    /// Towards the claimant.
    near: SocketAddr,
    /// Towards the peer.
    far: Far,
    ends: Instant,
    bytes: Bucket,
    packets: Bucket,
}

#[derive(Debug, Clone, Copy)]
enum Far {
    At(SocketAddr),
    /// Wherever the node is that has this place.
    Place(usize),
}

/// So much in a second, and what that is in [`BURST`] at once, or a [`BATCH`].
#[derive(Debug)]
struct Bucket {
    per_second: u64,
    batch: u64,
    /// In billionths.
    left: u128,
    at: Instant,
}

impl Flows {
    /// Of the transit relay `node`, which has heard of no master yet.
    pub fn new(node: NodeId, limits: Limits, now: Instant) -> Self {
        Self {
            node,
            limits,
            flows: HashMap::new(),
            each: HashMap::new(),
            places: Places::default(),
            cookies: Cookies::default(),
            leases: Leases::new(now),
            known: Shares::new(CLAIMS, CLAIMS_IN, now),
            others: Shares::new(CLAIMS, CLAIMS_IN, now),
            silence: Silence::new(now),
            draining: false,
        }
    }

    /// Flows that are there.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Nodes that are attached.
    pub fn attached(&self, now: Instant) -> usize {
        let numbers = 0..self.places.places.len();
        numbers
            .filter(|number| self.places.at(*number, now).is_some())
            .count()
    }

    /// Who has flows, and how many.
    pub fn claimants(&self) -> impl Iterator<Item = (&NodeId, usize)> {
        self.each.iter().map(|(node, count)| (node, *count))
    }

    /// The nodes that are attached.
    pub fn attached_nodes(&self, now: Instant) -> impl Iterator<Item = &NodeId> {
        let numbers = self.places.numbers.iter();
        numbers
            .filter(move |(_, number)| self.places.at(**number, now).is_some())
            .map(|(node, _)| node)
    }

    /// Whether new flows are refused, and none is prolonged.
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// Whether the tags of a claim or an attach that bears the name of `from`, a member, are worth a look now. A
    /// member that floods has its share and what no other wants. Strangers who flood with the names of members, from
    /// wherever they are, do not end what is there, and of what is not there yet they hold up who bears these names.
    pub fn may_check(
        &mut self,
        named: Label,
        from: &NodeId,
        source: SocketAddr,
        roster: &Roster,
        now: Instant,
    ) -> bool {
        match self.knows(named, from, source, now) {
            true => {
                let holders = self.each.len() + self.places.numbers.len();
                self.known.take(from, holders, now)
            }
            false => self.others.take(from, roster.nodes.len(), now),
        }
    }

    /// Whether this claim, or this attach, comes from where what it names is held already.
    fn knows(&self, named: Label, from: &NodeId, source: SocketAddr, now: Instant) -> bool {
        let is_flows = self
            .flows
            .get(&named)
            .is_some_and(|flow| flow.near == source && flow.claimant == *from);
        is_flows || self.places.find(from, now) == Some(source)
    }

    /// New flows are refused from now on, and those that are there not prolonged.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// A master answers this relay, or none does.
    pub fn hears_master(&mut self, answers: bool, now: Instant) {
        self.silence.hears(answers, now);
    }

    /// Whether the roster is permission enough, as no master answers.
    pub fn is_in_silence(&self, now: Instant) -> bool {
        self.silence.is_at(now)
    }

    /// How leases came to be believed since this was asked last.
    pub fn take_tally(&mut self) -> Tally {
        std::mem::take(&mut self.leases.tally)
    }

    #[cfg(test)]
    pub(super) fn remembered_leases(&self) -> usize {
        self.leases.len()
    }

    /// Where `packets` packets of `bytes` bytes that came from `source` go.
    pub fn forward(
        &mut self,
        id: Label,
        source: SocketAddr,
        packets: usize,
        bytes: usize,
        now: Instant,
    ) -> Result<SocketAddr, NotForwarded> {
        let flow = self.flows.get_mut(&id).ok_or(NotForwarded::UnknownFlow)?;
        if flow.ends <= now {
            return Err(NotForwarded::UnknownFlow);
        }
        let far = match flow.far {
            Far::At(address) => address,
            Far::Place(number) => {
                let place = self.places.at(number, now);
                place.ok_or(NotForwarded::NotAttached)?
            }
        };
        let to = match () {
            // Who attached itself may have moved to where the claimant is.
            () if flow.near == far => return Err(NotForwarded::WrongSource),
            () if source == flow.near => far,
            () if source == far => flow.near,
            () => return Err(NotForwarded::WrongSource),
        };
        let allowed = flow.bytes.has(bytes, now) && flow.packets.has(packets, now);
        if !allowed {
            return Err(NotForwarded::Rate);
        }
        flow.bytes.take(bytes);
        flow.packets.take(packets);
        Ok(to)
    }

    /// Rules on a claim that came from `source`, and whose tags were checked. `draw` gives random numbers.
    pub fn claim(
        &mut self,
        claim: &Claim,
        source: SocketAddr,
        roster: &Roster,
        verifier: &dyn Verifier,
        draw: impl FnOnce() -> u64,
        now: Instant,
    ) -> Ruling {
        let ruling = self
            .judge(claim, source, roster, now)
            .and_then(|(proved, far)| {
                // A signature is looked at for who receives where it sends from, and for nobody else.
                if !proved && !self.cookies.take(claim.cookie, &claim.from, source, now) {
                    let cookie = self.cookies.give(&claim.from, source, draw(), now);
                    return Ok(Ruling::Prove { cookie });
                }
                let permit = self.permit(claim, roster, verifier, now)?;
                Ok(self.grant(claim, source, far, permit, now))
            });
        ruling.unwrap_or_else(Ruling::Refused)
    }

    /// Rules on an attach that came from `source`, and whose tags were checked. `draw` gives random numbers.
    pub fn attach(
        &mut self,
        attach: &Attach,
        source: SocketAddr,
        roster: &Roster,
        draw: impl FnOnce() -> u64,
        now: Instant,
    ) -> Ruling {
        if attach.to != self.node {
            return Ruling::Refused(Refusal::NotOnTheWay);
        }
        if roster.node(&attach.from).is_none() {
            return Ruling::Refused(Refusal::NotListed);
        }
        if self.draining {
            return Ruling::Refused(Refusal::Draining);
        }
        let same = self.places.find(&attach.from, now) == Some(source);
        if !same && !self.cookies.take(attach.cookie, &attach.from, source, now) {
            let cookie = self.cookies.give(&attach.from, source, draw(), now);
            return Ruling::Prove { cookie };
        }
        let ends = now + ATTACHED;
        self.places.put(&attach.from, Place { at: source, ends });
        Ruling::Granted {
            lasts: ATTACHED.as_secs() as u32,
        }
    }

    /// Ends the flows of nodes that the roster does not list any more, and soon those whose leases hold no more
    /// under it.
    pub fn retain(&mut self, roster: &Roster, verifier: &dyn Verifier, now: Instant) {
        // Packets wait meanwhile: keys are looked for in no list for each of many flows.
        let mut keys: HashMap<KeyId, bool> = HashMap::new();
        let listed = |id: &NodeId| roster.node(id).is_some();
        self.remove(|flow| {
            listed(&flow.claimant) && listed(&flow.peer) && flow.hops.iter().all(listed)
        });
        self.places.retain(listed);
        for flow in self.flows.values_mut() {
            let since = roster.node(&flow.claimant).map(Node::leases_since);
            let Permit { key, epoch, .. } = flow.permit;
            let is_revoked = since.is_none_or(|since| epoch < since);
            let mut trusts = |key| *keys.entry(key).or_insert_with(|| verifier.trusts(&key));
            if is_revoked || key.is_some_and(|key| !trusts(key)) {
                flow.ends = flow.ends.min(now + REVOKED_LASTS);
            }
        }
    }

    /// Forgets flows that are over, and leases.
    pub fn expire(&mut self, now: Instant) {
        self.remove(|flow| flow.ends > now);
        self.leases.retain(now);
        self.known.retain(now);
        self.others.retain(now);
    }

    fn remove(&mut self, keep: impl Fn(&Flow) -> bool) {
        let each = &mut self.each;
        self.flows.retain(|_, flow| {
            let kept = keep(flow);
            if !kept && let Some(count) = each.get_mut(&flow.claimant) {
                *count -= 1;
            }
            kept
        });
        each.retain(|_, count| *count > 0);
    }

    /// Whether the claim can be granted: then whether its source needs no proof, and where the flow leads.
    fn judge(
        &self,
        claim: &Claim,
        source: SocketAddr,
        roster: &Roster,
        now: Instant,
    ) -> Result<(bool, Far), Refusal> {
        let hops = &claim.hops;
        let at = hops.iter().position(|hop| *hop == self.node);
        let at = at.filter(|_| claim.to == self.node);
        let at = at.ok_or(Refusal::NotOnTheWay)?;
        let ends = [&claim.from, &claim.peer];
        let twice = |id: &NodeId| hops.iter().filter(|hop| *hop == id).count() > 1;
        if hops.len() > MAX_HOPS
            || ends[0] == ends[1]
            || hops.iter().any(|hop| ends.contains(&hop) || twice(hop))
        {
            return Err(Refusal::NotOnTheWay);
        }
        let node = |id: &NodeId| roster.node(id).ok_or(Refusal::NotListed);
        node(&claim.from)?;
        let peer = node(&claim.peer)?;
        let relays = hops.iter().map(node).collect::<Result<Vec<_>, _>>()?;
        if relays.iter().any(|relay| relay.role != Role::Relay) {
            return Err(Refusal::NotListed);
        }
        let (far, next) = match (claim.next, relays.get(at + 1)) {
            (Next::At(next), Some(relay)) if relay.transit.contains(&next) => (Far::At(next), next),
            (Next::At(next), None) if peer.addresses.contains(&next) => (Far::At(next), next),
            (Next::At(_), _) => return Err(Refusal::NotListed),
            // A relay that forwards can be reached, or is none.
            (Next::Attached, Some(_)) => return Err(Refusal::NotOnTheWay),
            (Next::Attached, None) => {
                let place = self.places.numbers.get(&claim.peer);
                let at = self.places.find(&claim.peer, now);
                let (place, at) = place.zip(at).ok_or(Refusal::NotAttached)?;
                (Far::Place(*place), at)
            }
        };
        // The first relay hears the claimant itself: were that another relay, a flow might go round.
        let from_before = match at.checked_sub(1) {
            Some(before) => relays[before].transit.contains(&source),
            None => roster.relay_at(&source).is_none(),
        };
        if !from_before || source == next {
            return Err(Refusal::NotOnTheWay);
        }
        if self.draining {
            return Err(Refusal::Draining);
        }
        let held = self.flows.get(&claim.flow);
        if held.is_some_and(|flow| !flow.is_of(claim)) {
            return Err(Refusal::InUse);
        }
        if held.is_none() && self.is_full(&claim.from) {
            return Err(Refusal::Full);
        }
        if held.is_some_and(|flow| flow.nonce >= claim.nonce) {
            return Err(Refusal::Replayed);
        }
        let same = held.is_some_and(|flow| flow.near == source && flow.ends > now);
        Ok((at > 0 || same, far))
    }

    /// What permits the flow.
    fn permit(
        &mut self,
        claim: &Claim,
        roster: &Roster,
        verifier: &dyn Verifier,
        now: Instant,
    ) -> Result<Permit, Refusal> {
        let leased = match claim.lease.is_empty() {
            true => Err(Refusal::NoLease),
            false => self.leases.check(claim, roster, verifier, now),
        };
        let limits = self.limits;
        let is_in_silence = self.silence.is_at(now);
        let of = |key, epoch, bits: u64, packets: u64, ends| Permit {
            key,
            epoch,
            bytes_per_second: limits.bytes_per_second.min(bits / 8),
            packets_per_second: limits.packets_per_second.min(packets),
            ends,
        };
        match leased {
            Ok(Known { lease, key, ends }) => {
                // In silence the roster permits what comes after it.
                let ends = Some(ends).filter(|_| !is_in_silence);
                Ok(of(Some(key), lease.epoch, lease.bps, lease.pps, ends))
            }
            Err(Refusal::NoLease | Refusal::Expired) if is_in_silence => {
                let terms = roster.node(&claim.from).map(|node| node.leases);
                let terms = terms.unwrap_or_default();
                let bits = terms.bits_per_second.unwrap_or(u64::MAX);
                let packets = terms.packets_per_second.unwrap_or(u64::MAX);
                Ok(of(None, roster.epoch, bits, packets, None))
            }
            Err(refusal) => Err(refusal),
        }
    }

    fn is_full(&self, claimant: &NodeId) -> bool {
        let each = self.each.get(claimant).copied().unwrap_or(0);
        self.flows.len() >= self.limits.flows || each >= self.limits.flows_each
    }

    fn grant(
        &mut self,
        claim: &Claim,
        source: SocketAddr,
        far: Far,
        permit: Permit,
        now: Instant,
    ) -> Ruling {
        let ends = permit
            .ends
            .map_or(now + LASTS, |ends| ends.min(now + LASTS));
        let each = &mut self.each;
        let flow = self.flows.entry(claim.flow).or_insert_with(|| {
            *each.entry(claim.from.clone()).or_default() += 1;
            Flow {
                permit,
                nonce: claim.nonce,
                claimant: claim.from.clone(),
                peer: claim.peer.clone(),
                hops: claim.hops.clone(),
                near: source,
                far,
                ends,
                bytes: Bucket::new(permit.bytes_per_second, BATCH.0, now),
                packets: Bucket::new(permit.packets_per_second, BATCH.1, now),
            }
        });
        (flow.near, flow.far) = (source, far);
        flow.ends = ends;
        flow.nonce = claim.nonce;
        flow.permit = permit;
        flow.bytes.per_second = permit.bytes_per_second;
        flow.packets.per_second = permit.packets_per_second;
        Ruling::Granted {
            lasts: ends.saturating_duration_since(now).as_secs() as u32,
        }
    }
}

impl Places {
    /// Where the node is that has this place.
    fn at(&self, number: usize, now: Instant) -> Option<SocketAddr> {
        let place = self.places.get(number)?.as_ref()?;
        (place.ends > now).then_some(place.at)
    }

    /// Where this node is.
    fn find(&self, node: &NodeId, now: Instant) -> Option<SocketAddr> {
        self.at(*self.numbers.get(node)?, now)
    }

    fn put(&mut self, node: &NodeId, place: Place) {
        if let Some(number) = self.numbers.get(node) {
            self.places[*number] = Some(place);
            return;
        }
        let free = self.places.iter().position(Option::is_none);
        let number = free.unwrap_or(self.places.len());
        if number == self.places.len() {
            self.places.push(None);
        }
        self.places[number] = Some(place);
        self.numbers.insert(node.clone(), number);
    }

    /// A place that is over keeps its number: flows that lead to it may go on.
    fn retain(&mut self, listed: impl Fn(&NodeId) -> bool) {
        self.numbers.retain(|node, number| {
            let kept = listed(node);
            if !kept {
                self.places[*number] = None;
            }
            kept
        });
    }
}

impl Flow {
    fn is_of(&self, claim: &Claim) -> bool {
        self.claimant == claim.from && self.peer == claim.peer && self.hops == claim.hops
    }
}

impl Bucket {
    fn new(per_second: u64, batch: u64, now: Instant) -> Self {
        let mut bucket = Self {
            per_second,
            batch,
            left: 0,
            at: now,
        };
        bucket.left = bucket.most();
        bucket
    }

    /// What it holds at most, in billionths.
    fn most(&self) -> u128 {
        let burst = u128::from(self.per_second) * BURST.as_nanos();
        burst.max(u128::from(self.batch) * 1_000_000_000)
    }

    fn has(&mut self, count: usize, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_nanos();
        self.at = self.at.max(now);
        self.left = (self.left + passed * u128::from(self.per_second)).min(self.most());
        self.left >= count as u128 * 1_000_000_000
    }

    fn take(&mut self, count: usize) {
        self.left = self.left.saturating_sub(count as u128 * 1_000_000_000);
    }
}

#[cfg(test)]
mod tests;
