//! Who is there, and what happens to them.

mod invariants;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;
use wavry_proto::{
    control::{Node, Role, Roster, lease::Way},
    id::{Epoch, NodeId},
    overlay::{
        TAG_LEN,
        lease::{Offer, Silence, Unfit, Verified},
        packet::{Claim, Label, Next, Ruling, Verdict},
        passage::Passage,
        transit::{Flows, Limits},
        ways::{self, Hop},
    },
    token::{KeyId, Lease, Validity, pack},
};

use super::{Book, Broken, Sabotage, Said};
use crate::token::{
    Scope, SigningKey,
    lease::{AUDIENCE, Verifier},
};

/// When it begins, since the Unix epoch.
const BEGINNING: u64 = 1_800_000_000;
const STEP: Duration = Duration::from_millis(250);
/// After a revocation that a relay could hear of, its flows are gone.
const REVOKED_WITHIN: Duration = Duration::from_secs(5);
/// Bytes of a verdict of a relay that answers too much.
const FULL: usize = 1288;

/// How often what is checked was there.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) leased: u64,
    pub(super) in_silence: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: Self) {
        self.leased += other.leased;
        self.in_silence += other.in_silence;
    }
}

/// Chance that a seed decides (SplitMix64).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn fraction(&mut self) -> f64 {
        self.below(1 << 20) as f64 / (1 << 20) as f64
    }
}

struct Master {
    is_up: bool,
    keys: Vec<SigningKey>,
    roster: Arc<Roster>,
    lifetime: u64,
}

/// What a node knows, and how it hears of more.
struct Place {
    is_cut: bool,
    skew: i64,
    roster: watch::Sender<Arc<Roster>>,
    /// The roster that is on its way, and when it comes.
    coming: Option<(Arc<Roster>, Instant)>,
}

struct Claimant {
    node: Place,
    id: NodeId,
    address: SocketAddr,
    book: Book,
    verifier: Verifier,
    passages: Vec<Passage>,
    /// What the master was asked for.
    asked: Option<Vec<Way>>,
    asks: bool,
}

struct Relay {
    node: Place,
    id: NodeId,
    flows: Flows,
    verifier: Verifier,
    /// When a master answered last, and when there was silence last, as whoever looks on reckons.
    heard: Option<Instant>,
    silent: Option<Instant>,
    /// Since when it has heard the master without a break, and had its rosters.
    follows: Option<Instant>,
    /// When its rosters changed, and what they were before.
    before: Vec<(Instant, Arc<Roster>)>,
    /// Who has proved to be at an address: by claims that were granted.
    proved: Vec<SocketAddr>,
}

pub(super) struct World {
    chance: Chance,
    sabotage: Option<Sabotage>,
    start: Instant,
    now: Instant,
    loss: u64,
    master: Master,
    claimants: Vec<Claimant>,
    relays: Vec<Relay>,
    signed: Vec<Lease>,
    /// When leases of a claimant, or the claimant, were revoked last.
    revoked: BTreeMap<NodeId, Instant>,
    /// Claims that were seen on the way, with where they came from and which relay they came to.
    seen: Vec<(Claim, SocketAddr, usize)>,
    /// What relays said last to claims of a flow.
    rulings: BTreeMap<Label, Ruling>,
    events: Vec<String>,
    pub(super) counts: Counts,
}

fn id(name: &str) -> NodeId {
    name.parse().unwrap()
}

fn at(last: u8, port: u16) -> SocketAddr {
    ([192, 0, 2, last], port).into()
}

/// Of the exit.
fn exit() -> SocketAddr {
    at(9, 4434)
}

fn transit(relay: usize) -> SocketAddr {
    at(1 + relay as u8, 4435)
}

fn listed(name: &str, role: Role, registration: u64) -> Node {
    let mut node = Node {
        id: id(name),
        role,
        keys: Vec::new(),
        addresses: Vec::new(),
        transit: Vec::new(),
        services: Vec::new(),
        registration,
        attached: Vec::new(),
        leases: Default::default(),
        placement: Default::default(),
    };
    match name {
        "b" => node.addresses = vec![exit()],
        "t0" => node.transit = vec![transit(0)],
        "t1" => node.transit = vec![transit(1)],
        _ => {}
    }
    node
}

/// Two relays know of these, and so does who looks on.
const CLAIMANTS: [&str; 2] = ["a", "g"];

impl World {
    pub(super) fn new(seed: u64, sabotage: Option<Sabotage>) -> Self {
        let mut chance = Chance(seed);
        let key = SigningKey::generate();
        let roster = Arc::new(Roster {
            epoch: Epoch(1),
            issued_at: BEGINNING,
            nodes: vec![
                listed("a", Role::Gateway, 1),
                listed("b", Role::Relay, 1),
                listed("g", Role::Gateway, 1),
                listed("t0", Role::Relay, 1),
                listed("t1", Role::Relay, 1),
            ]
            .into(),
            token_keys: vec![key.public_paserk()],
            ..Roster::empty("c1".parse().unwrap())
        });
        let start = Instant::now();
        let mut node = || Place {
            is_cut: false,
            skew: chance.below(41) as i64 - 20,
            roster: watch::Sender::new(roster.clone()),
            coming: None,
        };
        let verifier =
            |node: &Place| Verifier::new(roster.cluster.clone(), node.roster.subscribe());
        let relays = (0..2).map(|number| {
            let node = node();
            let id = id(&format!("t{number}"));
            Relay {
                flows: Flows::new(id.clone(), Limits::default(), start),
                verifier: verifier(&node),
                node,
                id,
                heard: None,
                silent: None,
                follows: None,
                before: Vec::new(),
                proved: Vec::new(),
            }
        });
        let relays = relays.collect();
        let claimants = CLAIMANTS.iter().zip(0..).map(|(name, number)| {
            let node = node();
            Claimant {
                verifier: verifier(&node),
                node,
                id: id(name),
                address: at(100 + number, 7),
                book: Book::default(),
                passages: Vec::new(),
                asked: None,
                asks: sabotage != Some(Sabotage::AsksOnce),
            }
        });
        let claimants = claimants.collect();
        let mut world = Self {
            master: Master {
                is_up: true,
                keys: vec![key],
                roster: roster.clone(),
                lifetime: 60 + chance.below(240),
            },
            chance,
            sabotage,
            start,
            now: start,
            loss: 0,
            claimants,
            relays,
            signed: Vec::new(),
            revoked: BTreeMap::new(),
            seen: Vec::new(),
            rulings: BTreeMap::new(),
            events: Vec::new(),
            counts: Counts::default(),
        };
        for claimant in 0..CLAIMANTS.len() {
            world.start_claimant(claimant);
        }
        world
    }

    /// It has drawn new flows, and forgotten all else.
    fn start_claimant(&mut self, number: usize) {
        let claimant = &mut self.claimants[number];
        claimant.book = Book::default();
        claimant.asked = None;
        claimant.passages.clear();
        let hop = |relay: usize| Hop {
            node: id(&format!("t{relay}")),
            address: transit(relay),
        };
        for hops in [vec![hop(0)], vec![hop(1)], vec![hop(0), hop(1)]] {
            let flow = Label::from_random(self.chance.next());
            let (from, peer) = (claimant.id.clone(), id("b"));
            let way = ways::Way {
                hops,
                last: Next::At(exit()),
            };
            let passage = Passage::new(from, way, peer, flow, self.now);
            let wall = wall(self.start, self.now, claimant.node.skew);
            claimant.book.want(passage.to_lease(), wall);
            claimant.passages.push(passage);
        }
    }

    pub(super) fn lease_lifetime(&self) -> u64 {
        self.master.lifetime
    }

    pub(super) fn kill_master(&mut self) {
        self.master.is_up = false;
    }

    pub(super) fn cut_off_claimants(&mut self) {
        for claimant in &mut self.claimants {
            claimant.node.is_cut = true;
        }
    }

    /// All is well from now on.
    pub(super) fn calm(&mut self) {
        self.loss = 0;
        self.master.is_up = true;
        for node in self.nodes() {
            node.is_cut = false;
        }
        for name in CLAIMANTS {
            if self.master.roster.node(&id(name)).is_none() {
                self.register(name);
            }
        }
        self.events.push("calm".to_owned());
    }

    fn nodes(&mut self) -> impl Iterator<Item = &mut Place> {
        let claimants = self.claimants.iter_mut().map(|claimant| &mut claimant.node);
        claimants.chain(self.relays.iter_mut().map(|relay| &mut relay.node))
    }

    fn change(&mut self, change: impl FnOnce(&mut Roster)) {
        let mut roster = self.master.roster.as_ref().clone();
        change(&mut roster);
        roster.epoch.0 += 1;
        self.master.roster = Arc::new(roster);
    }

    fn register(&mut self, name: &str) {
        self.change(|roster| {
            let registration = roster.epoch.0 + 1;
            roster.nodes.push(listed(name, Role::Gateway, registration));
        });
    }

    /// Something happens, or nothing.
    pub(super) fn event(&mut self) {
        let number = self.chance.below(2) as usize;
        let name = CLAIMANTS[number];
        let what = match self.chance.below(300) {
            0..4 => {
                self.master.is_up = !self.master.is_up;
                format!("the master is up: {}", self.master.is_up)
            }
            4..8 => {
                let claimant = &mut self.claimants[number];
                claimant.node.is_cut = !claimant.node.is_cut;
                format!("{name} is cut off: {}", claimant.node.is_cut)
            }
            8..12 => {
                let relay = &mut self.relays[number];
                relay.node.is_cut = !relay.node.is_cut;
                format!("t{number} is cut off: {}", relay.node.is_cut)
            }
            12..16 if self.master.is_up && self.master.roster.node(&id(name)).is_some() => {
                self.revoked.insert(id(name), self.now);
                self.change(|roster| {
                    let since = roster.epoch.0 + 1;
                    let mut nodes = roster.nodes.iter_mut();
                    let node = nodes.find(|node| node.id == id(name)).unwrap();
                    node.leases.since = since;
                });
                format!("leases of {name} are revoked")
            }
            16..18 if self.master.is_up && self.master.roster.node(&id(name)).is_some() => {
                self.revoked.insert(id(name), self.now);
                self.change(|roster| roster.nodes.retain(|node| node.id != id(name)));
                format!("{name} is revoked")
            }
            18..22 if self.master.is_up && self.master.roster.node(&id(name)).is_none() => {
                self.register(name);
                format!("{name} registers anew")
            }
            22..24 if self.master.is_up => self.rotate(),
            24..27 => {
                let relay = &mut self.relays[number];
                relay.flows = Flows::new(relay.id.clone(), Limits::default(), self.now);
                (relay.heard, relay.silent) = (None, None);
                format!("t{number} is started anew")
            }
            27..30 => {
                self.start_claimant(number);
                format!("{name} is started anew")
            }
            30..34 => {
                self.loss = self.chance.below(80);
                format!("{} % are lost", self.loss)
            }
            34..60 => self.replay(),
            60..70 => self.steal(),
            _ => return,
        };
        let second = (self.now - self.start).as_secs();
        self.events.push(format!("{second} s: {what}"));
        if self.events.len() > 25 {
            self.events.remove(0);
        }
    }

    /// Another key signs, and what the one before has signed holds no more (as where that was stolen).
    fn rotate(&mut self) -> String {
        let next = SigningKey::generate();
        let listed = vec![next.public_paserk()];
        self.master.keys.push(next);
        self.change(|roster| roster.token_keys = listed);
        for name in CLAIMANTS {
            self.revoked.insert(id(name), self.now);
        }
        "another key signs".to_owned()
    }

    /// Somebody sends an old claim again: from where it came, or from elsewhere.
    fn replay(&mut self) -> String {
        if self.seen.is_empty() {
            return "nothing is replayed".to_owned();
        }
        let which = self.chance.below(self.seen.len() as u64) as usize;
        let (claim, source, relay) = self.seen[which].clone();
        let from = match self.chance.below(2) {
            0 => source,
            _ => at(200, 1),
        };
        // What is sent to who was there is lost on whoever sent it.
        self.claims(relay, &claim, from, false);
        format!("a claim to t{relay} is replayed from {from}")
    }

    /// One claimant shows the lease of the other, or one of its own for another flow.
    fn steal(&mut self) -> String {
        let thief = self.chance.below(2) as usize;
        let victim = self.chance.below(2) as usize;
        let passage = &self.claimants[victim].passages[0];
        let wall = wall(self.start, self.now, 0);
        let Offer::Lease(lease) = self.claimants[victim].book.offer(passage.flow(), wall) else {
            return "nothing is stolen".to_owned();
        };
        let mut claim = Claim {
            flow: match self.chance.below(2) {
                0 => passage.flow(),
                _ => Label::from_random(self.chance.next()),
            },
            nonce: u64::MAX - self.chance.below(1 << 20),
            cookie: 0,
            from: self.claimants[thief].id.clone(),
            to: id("t0"),
            peer: id("b"),
            hops: vec![id("t0")],
            next: Next::At(exit()),
            lease: lease.to_vec(),
        };
        if thief == victim && claim.flow == passage.flow() {
            return "nothing is stolen".to_owned();
        }
        let source = self.claimants[thief].address;
        if let Some(Ruling::Prove { cookie }) = self.claims(0, &claim, source, true) {
            claim.cookie = cookie;
            claim.nonce += 1;
            self.claims(0, &claim, source, true);
        }
        format!("claimant {thief} shows a lease of claimant {victim}")
    }

    /// A second passes.
    pub(super) fn second(&mut self) -> Result<(), Broken> {
        for _ in 0..4 {
            self.now += STEP;
            self.spread_rosters();
            for number in 0..self.claimants.len() {
                self.claimant(number);
            }
            for relay in &mut self.relays {
                relay.flows.expire(self.now);
            }
            if let Some((invariant, what)) = self.check() {
                return Err(Broken {
                    invariant,
                    what,
                    events: std::mem::take(&mut self.events),
                });
            }
        }
        Ok(())
    }

    /// Heartbeats and rosters: each node that is not cut off has the newest one within a second.
    fn spread_rosters(&mut self) {
        let (is_up, newest, now) = (self.master.is_up, self.master.roster.clone(), self.now);
        let delay = Duration::from_millis(self.chance.below(1000));
        for node in self.nodes() {
            let is_known = node.roster.borrow().epoch == newest.epoch;
            if is_up && !node.is_cut && !is_known && node.coming.is_none() {
                node.coming = Some((newest.clone(), now + delay));
            }
        }
        for claimant in &mut self.claimants {
            if let Some(roster) = claimant.node.arrived(now) {
                claimant.node.roster.send_replace(roster);
            }
        }
        for relay in &mut self.relays {
            let answers = is_up && !relay.node.is_cut;
            relay.hear(answers, now, self.sabotage);
            if let Some(roster) = relay.node.arrived(now) {
                let before = relay.node.roster.send_replace(roster.clone());
                relay.before.push((now, before));
                if relay.before.len() > 8 {
                    relay.before.remove(0);
                }
                if self.sabotage != Some(Sabotage::KeepsRevoked) {
                    relay.flows.retain(&roster, &relay.verifier, now);
                }
            }
        }
    }

    /// Asks for leases, and claims.
    fn claimant(&mut self, number: usize) {
        let claimant = &mut self.claimants[number];
        let wall = wall(self.start, self.now, claimant.node.skew);
        let roster = claimant.node.roster.borrow().clone();
        if let Some(node) = roster.node(&claimant.id) {
            claimant.book.revoked(node.leases_since());
        }
        match claimant.asked.take() {
            // What was asked for a step ago.
            Some(ways) if self.master.is_up && !claimant.node.is_cut => {
                let said: Vec<_> = ways
                    .into_iter()
                    .map(|way| {
                        let said = self.master.sign(&claimant.id, &way, self.start, self.now);
                        let said = said.and_then(|(lease, token)| {
                            self.signed.push(lease);
                            let packed = pack(&token).unwrap();
                            let verified = claimant.verifier.verify_at(&packed, wall.as_secs());
                            Some(Said::Lease(verified.ok()?.lease, packed))
                        });
                        (way, said.unwrap_or(Said::Nothing))
                    })
                    .collect();
                let chance = &mut self.chance;
                claimant.book.answered(said, wall, || chance.fraction());
                claimant.asks = self.sabotage != Some(Sabotage::AsksOnce);
                claimant.offer(wall, self.now);
            }
            Some(_) => {
                let pause = Duration::from_millis(50 + self.chance.below(5000));
                claimant.book.failed(true, wall, pause);
                claimant.offer(wall, self.now);
            }
            None => {
                let ways = claimant.book.due(wall);
                let begins = self.now < self.start + Duration::from_secs(5);
                if !ways.is_empty() && (claimant.asks || begins) {
                    claimant.asked = Some(ways);
                }
            }
        }
        for which in 0..self.claimants[number].passages.len() {
            let claimant = &mut self.claimants[number];
            let (book, drawn) = (&claimant.book, self.chance.next());
            let passage = &mut claimant.passages[which];
            let flow = passage.flow();
            let polled = passage.poll(self.now, || book.offer(flow, wall), || drawn);
            let source = claimant.address;
            if let Some((claim, via)) = polled
                && self.chance.below(100) >= self.loss
                && let Some(verdict) = self.travel(&claim, source, via)
                && self.chance.below(100) >= self.loss
            {
                self.rulings.insert(flow, verdict.ruling);
                self.claimants[number].passages[which].told(&verdict, self.now);
            }
        }
    }

    /// A claim goes along relays, which forward it if they carry the flow, to the one that is asked.
    fn travel(&mut self, claim: &Claim, from: SocketAddr, via: SocketAddr) -> Option<Verdict> {
        let (mut source, mut at) = (from, via);
        loop {
            let number = (0..self.relays.len()).find(|relay| transit(*relay) == at)?;
            if self.relays[number].id == claim.to {
                self.seen.push((claim.clone(), source, number));
                if self.seen.len() > 200 {
                    self.seen.remove(0);
                }
                let ruling = self.claims(number, claim, source, true)?;
                return Some(Verdict {
                    flow: claim.flow,
                    nonce: claim.nonce,
                    ruling,
                    seen: None,
                    from: claim.to.clone(),
                    to: claim.from.clone(),
                });
            }
            let relay = &mut self.relays[number];
            let next = relay.flows.forward(claim.flow, source, 1, 600, self.now);
            (source, at) = (at, next.ok()?);
        }
    }

    /// A claim comes to a relay, whose answer reaches who sent it, or not.
    fn claims(
        &mut self,
        number: usize,
        claim: &Claim,
        source: SocketAddr,
        reaches: bool,
    ) -> Option<Ruling> {
        let wall = wall(self.start, self.now, self.relays[number].node.skew);
        let relay = &mut self.relays[number];
        let roster = relay.node.roster.borrow().clone();
        // Who is not in the roster has no key: its tags are not looked at.
        roster.node(&claim.from)?;
        let verifier = Clocked {
            verifier: &relay.verifier,
            now: wall.as_secs(),
            sabotage: self.sabotage,
        };
        let (drawn, now) = (self.chance.next(), self.now);
        let ruling = relay
            .flows
            .claim(claim, source, &roster, &verifier, || drawn, now);
        if reaches && matches!(ruling, Ruling::Granted { .. }) && !relay.proved.contains(&source) {
            relay.proved.push(source);
        }
        let verdict = Verdict {
            flow: claim.flow,
            nonce: claim.nonce,
            ruling,
            seen: None,
            from: relay.id.clone(),
            to: claim.from.clone(),
        };
        let (mut asked, mut answered) = (Vec::new(), Vec::new());
        claim.write(&mut asked, |_, tags| tags.push([0; TAG_LEN]));
        verdict.write(&mut answered, |_, tags| tags.extend([[0; TAG_LEN]; 2]));
        if self.sabotage == Some(Sabotage::LongVerdicts) {
            answered.resize(FULL, 0);
        }
        if answered.len() > asked.len() && !matches!(ruling, Ruling::Granted { .. }) {
            self.events
                .push(format!("amplified: {} for {}", answered.len(), asked.len()));
        }
        Some(ruling)
    }
}

/// A node's wall clock.
fn wall(start: Instant, now: Instant, skew: i64) -> Duration {
    let since = Duration::from_secs(BEGINNING.saturating_add_signed(skew));
    since + (now - start)
}

impl Place {
    /// The roster that has come.
    fn arrived(&mut self, now: Instant) -> Option<Arc<Roster>> {
        let (roster, _) = self.coming.take_if(|(_, when)| *when <= now)?;
        Some(roster)
    }
}

impl Relay {
    fn hear(&mut self, answers: bool, now: Instant, sabotage: Option<Sabotage>) {
        let told = answers && sabotage != Some(Sabotage::AlwaysSilence);
        self.flows.hears_master(told, now);
        match answers {
            true => {
                self.heard = Some(now);
                self.follows.get_or_insert(now);
            }
            false => self.follows = None,
        }
        let is_silent = self
            .heard
            .is_none_or(|heard| now - heard >= Silence::BEGINS);
        if is_silent {
            self.silent = Some(now);
        }
    }
}

impl Claimant {
    fn offer(&mut self, wall: Duration, now: Instant) {
        for passage in &mut self.passages {
            let offer = self.book.offer(passage.flow(), wall);
            passage.offered(&offer, now);
        }
    }
}

impl Master {
    fn sign(
        &self,
        claimant: &NodeId,
        way: &Way,
        start: Instant,
        now: Instant,
    ) -> Option<(Lease, String)> {
        self.roster.node(claimant)?;
        let iat = wall(start, now, 0).as_secs();
        let lease = Lease {
            sub: claimant.clone(),
            peer: way.peer.clone(),
            hops: way.hops.clone(),
            flow: way.flow,
            bps: 1_000_000_000,
            pps: 100_000,
            epoch: self.roster.epoch,
            validity: Validity {
                iat,
                nbf: iat,
                exp: iat + self.lifetime,
            },
        };
        let scope = Scope {
            cluster: &self.roster.cluster,
            audience: AUDIENCE,
            binding: &[],
        };
        let token = self.keys.last()?.sign(&lease, scope);
        Some((lease, token))
    }
}

/// A relay's verifier, by its clock.
struct Clocked<'a> {
    verifier: &'a Verifier,
    now: u64,
    sabotage: Option<Sabotage>,
}

impl wavry_proto::overlay::lease::Verifier for Clocked<'_> {
    fn verify(&self, lease: &[u8]) -> Result<Verified, Unfit> {
        let verified = self.verifier.verify_at(lease, self.now);
        match (verified, self.sabotage) {
            (Err(Unfit::Expired), Some(Sabotage::ExpiredHold)) => {
                let earlier = (self.now - 4000..self.now).rev().step_by(10);
                let mut verified = earlier.map(|now| self.verifier.verify_at(lease, now));
                let held = verified.find_map(Result::ok).ok_or(Unfit::Expired)?;
                Ok(Verified {
                    left: Duration::from_secs(3600),
                    ..held
                })
            }
            // It takes what it remembers for as long as this, too.
            (Ok(held), Some(Sabotage::ExpiredHold)) => Ok(Verified {
                left: held.left + Duration::from_secs(3600),
                ..held
            }),
            (verified, _) => verified,
        }
    }

    fn trusts(&self, key: &KeyId) -> bool {
        self.verifier.trusts(key)
    }
}
