//! Gateways, exits and transit relays in simulated time: what they say to each other is what they say over
//! sockets, each acts on a roster of its own, and no packet is ever forwarded more often than a way is long.

mod weather;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use self::weather::{Office, Weather};
use super::{
    beginning,
    lease::{Offer, Verifier, tests::Nobody},
    left::Left,
    packet::{Claim, Label, MAX_HOPS, Verdict},
    passage::Passage,
    paths::{Paths, Route, Standing, View},
    transit::{Flows, Limits},
    ways,
};
use crate::{
    control::{Node, Role, Roster},
    id::{NodeId, PublicKey},
};

const MESH: u16 = 4434;
const TRANSIT: u16 = 4435;

/// A node, as a number.
type Number = usize;

fn id(node: Number) -> NodeId {
    format!("n{node}").parse().unwrap()
}

fn at(node: Number, port: u16) -> SocketAddr {
    ([10, 0, (node / 256) as u8, (node % 256) as u8], port).into()
}

fn owner(address: SocketAddr) -> Number {
    match address {
        SocketAddr::V4(v4) => {
            let [_, _, high, low] = v4.ip().octets();
            Number::from(high) * 256 + Number::from(low)
        }
        SocketAddr::V6(_) => panic!("no node has it"),
    }
}

#[derive(Debug, Clone)]
enum Said {
    Ping { flow: Label, nonce: u64, full: bool },
    Pong { flow: Label, nonce: u64 },
    Claim(Claim),
    Verdict(Verdict),
    Data { flow: Label },
}

#[derive(Debug, Clone)]
struct Packet {
    from: SocketAddr,
    to: SocketAddr,
    /// The two ends that it is between.
    ends: (Number, Number),
    said: Said,
    forwarded: usize,
}

/// What one node knows of the ways to a peer.
struct Side {
    node: Number,
    peer: Number,
    wants: bool,
    paths: Paths,
    passages: Vec<Passage>,
    left: Left,
    sent: u64,
    next: Instant,
}

struct World {
    now: Instant,
    random: u64,
    places: Vec<u64>,
    rosters: Vec<Arc<Roster>>,
    relays: BTreeMap<Number, Flows>,
    dead: BTreeSet<Number>,
    /// Nothing comes from one mesh address to the other.
    cut: BTreeSet<(Number, Number)>,
    sides: BTreeMap<(Number, Number), Side>,
    /// The relays of each flow.
    ways: BTreeMap<Label, Vec<Number>>,
    /// What happens to packets on their way.
    weather: Weather,
    /// The master, if leases are wanted: without it the roster is permission enough.
    office: Option<Office>,
    flying: BTreeMap<(Instant, u64), Packet>,
    number: u64,
    /// Packets each millisecond from each side.
    rate: u64,
    probes: u64,
    claims: u64,
    data: (u64, u64),
}

impl World {
    /// `ends` gateways and as many exits, all of which reach each other, and `relays` relays.
    fn new(seed: u64, ends: usize, relays: usize) -> Self {
        let now = beginning();
        let nodes = 2 * ends + relays;
        let mut world = Self {
            now,
            random: seed,
            places: Vec::new(),
            rosters: Vec::new(),
            relays: BTreeMap::new(),
            dead: BTreeSet::new(),
            cut: BTreeSet::new(),
            sides: BTreeMap::new(),
            ways: BTreeMap::new(),
            weather: Weather::default(),
            office: None,
            flying: BTreeMap::new(),
            number: 0,
            rate: 0,
            probes: 0,
            claims: 0,
            data: (0, 0),
        };
        world.places = (0..nodes).map(|_| world.draw() % 30_000).collect();
        let node = |number: Number| Node {
            id: id(number),
            role: match number < ends {
                true => Role::Gateway,
                false => Role::Relay,
            },
            keys: vec![PublicKey([7; 32])],
            addresses: vec![at(number, MESH)],
            transit: match number < 2 * ends {
                true => Vec::new(),
                false => vec![at(number, TRANSIT)],
            },
            attached: Vec::new(),
            services: Vec::new(),
            registration: 1,
            leases: Default::default(),
            placement: Default::default(),
        };
        let roster = Arc::new(Roster {
            nodes: (0..nodes).map(node).collect(),
            ..Roster::empty("test".parse().unwrap())
        });
        world.rosters = vec![roster; nodes];
        for relay in 2 * ends..nodes {
            let flows = Flows::new(id(relay), Limits::default(), now);
            world.relays.insert(relay, flows);
        }
        world
    }

    fn draw(&mut self) -> u64 {
        draw(&mut self.random)
    }

    /// `node` wants to reach `peer`.
    fn want(&mut self, node: Number, peer: Number) {
        let mut side = Side::new(node, peer, true, self.now);
        self.lay(&mut side);
        self.sides.insert((node, peer), side);
    }

    /// As the roster that the node has now says.
    fn lay(&mut self, side: &mut Side) {
        let roster = &self.rosters[side.node];
        let (from, to) = (id(side.node), id(side.peer));
        let ways = ways::ways(roster, &from, &to, |_| true);
        side.passages.retain(|passage| {
            let kept = ways.contains(passage.way());
            if !kept {
                side.left.leave(passage.flow(), self.now);
            }
            kept
        });
        for passage in &mut side.passages {
            passage.roster_changed(self.now);
        }
        for way in ways {
            if side.passages.iter().any(|passage| *passage.way() == way) {
                continue;
            }
            let flow = Label::from_random(draw(&mut self.random));
            let relays = way.hops.iter().map(|hop| owner(hop.address)).collect();
            self.ways.insert(flow, relays);
            let passage = Passage::new(from.clone(), way, to.clone(), flow, self.now);
            side.passages.push(passage);
        }
        side.next = self.now;
    }

    /// A node has this roster from now on.
    fn publish(&mut self, node: Number, roster: &Arc<Roster>) {
        let before = std::mem::replace(&mut self.rosters[node], roster.clone());
        if let Some(flows) = self.relays.get_mut(&node) {
            match &mut self.office {
                Some(office) => {
                    office.told(node, &before, roster, self.now);
                    flows.retain(roster, &office.seen_by(node, self.now), self.now);
                }
                None => flows.retain(roster, &Nobody, self.now),
            }
        }
        let mut sides = std::mem::take(&mut self.sides);
        for side in sides.values_mut().filter(|side| side.node == node) {
            if side.wants {
                self.lay(side);
            }
            side.paths.keep_heard(|route| match route {
                Route::Direct(_) => true,
                Route::Flow { via, id } => roster.relay_at(&via).is_some() && !side.left.has(id),
            });
        }
        self.sides = sides;
    }

    fn send(&mut self, packet: Packet) {
        let ends = (owner(packet.from), owner(packet.to));
        let distance = self.places[ends.0].abs_diff(self.places[ends.1]);
        let direct = packet.from.port() == MESH && packet.to.port() == MESH;
        if direct && self.cut.contains(&ends) {
            return;
        }
        let arrives = self.now + Duration::from_micros(1_000 + distance);
        for late in self.weather.copies(ends, &mut self.random) {
            self.number += 1;
            self.flying
                .insert((arrives + late, self.number), packet.clone());
        }
    }

    fn run(&mut self, millis: u64) {
        for _ in 0..millis {
            self.step();
        }
    }

    /// Lets time pass until `is`; how long that took.
    fn until(&mut self, what: &str, most: u64, is: impl Fn(&Self) -> bool) -> Duration {
        let begun = self.now;
        while !is(self) {
            self.step();
            let took = self.now - begun;
            assert!(
                took <= Duration::from_millis(most),
                "{what}: {}",
                self.told()
            );
        }
        self.now - begun
    }

    /// What each side that wants to reach another one knows.
    fn told(&self) -> String {
        let wanting = self.sides.values().filter(|side| side.wants);
        let told = wanting.map(|side| {
            let views: Vec<_> = side.paths.views().collect();
            format!("{:?}\n{views:?}", side.passages)
        });
        told.collect::<Vec<_>>().join("\n")
    }

    fn step(&mut self) {
        self.now += Duration::from_millis(1);
        while let Some(entry) = self.flying.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let packet = entry.remove();
            self.arrive(packet);
        }
        let mut sides = std::mem::take(&mut self.sides);
        for side in sides.values_mut() {
            if side.next <= self.now {
                self.turn(side);
            }
            self.send_data(side);
        }
        self.sides = sides;
    }

    fn send_data(&mut self, side: &mut Side) {
        let Some(route) = side.paths.sending(self.now).over else {
            return;
        };
        // Whoever wants to reach a peer that does not want to reach it claims all flows between them, but for those of
        // whoever was there before it was started anew.
        if let Route::Flow { id, .. } = route
            && side.wants
            && self.ways.contains_key(&id)
        {
            let is_claimed = side.passages.iter().any(|passage| passage.flow() == id);
            assert!(is_claimed, "{route:?} of n{} is not claimed", side.node);
        }
        side.sent += self.rate;
        // One stands for all of a hundredth of a second.
        if self.rate > 0 && self.number.is_multiple_of(10) {
            self.data.0 += 1;
            self.say(side.node, side.peer, route, |flow| Said::Data { flow });
        }
    }

    fn say(&mut self, node: Number, peer: Number, route: Route, said: impl FnOnce(Label) -> Said) {
        let (to, flow) = match route {
            Route::Direct(address) => (address, Label::NONE),
            Route::Flow { via, id } => (via, id),
        };
        self.send(Packet {
            from: at(node, MESH),
            to,
            ends: (node, peer),
            said: said(flow),
            forwarded: 0,
        });
    }

    /// What the overlay does when a peer's time has come.
    fn turn(&mut self, side: &mut Side) {
        let now = self.now;
        let mut routes = vec![Route::Direct(at(side.peer, MESH))];
        let mut next = now + Duration::from_secs(3600);
        for passage in &mut side.passages {
            if let Some(route) = passage.route(now) {
                match side.paths.standing(route) {
                    Some(Standing::Silent) => passage.fell_silent(now),
                    Some(Standing::Asked) => passage.stays_unproved(),
                    Some(Standing::Proved) | None => {}
                }
            }
            let offer = match &mut self.office {
                Some(office) => office.offer(side.node, passage, &self.rosters[side.node], now),
                None => Offer::Nothing,
            };
            passage.offered(&offer, now);
            if let Some((claim, via)) = passage.poll(now, || offer, || draw(&mut self.random)) {
                self.claims += 1;
                self.send(Packet {
                    from: at(side.node, MESH),
                    to: via,
                    ends: (side.node, side.peer),
                    said: Said::Claim(claim),
                    forwarded: 0,
                });
            }
            routes.extend(passage.route(now));
            next = next.min(passage.next());
        }
        side.paths.list(&routes, now);
        let mut pings = Vec::new();
        side.paths
            .poll(now, side.sent, || draw(&mut self.random), &mut pings);
        for ping in pings {
            self.probes += 1;
            self.say(side.node, side.peer, ping.route, |flow| Said::Ping {
                flow,
                nonce: ping.nonce,
                full: ping.full,
            });
        }
        side.next = side.paths.next(now).map_or(next, |due| due.min(next));
    }

    fn arrive(&mut self, packet: Packet) {
        let node = owner(packet.to);
        if self.dead.contains(&node) {
            return;
        }
        match packet.to.port() {
            TRANSIT => self.forward(node, packet),
            _ => self.hear(node, packet),
        }
    }

    fn forward(&mut self, relay: Number, mut packet: Packet) {
        let (now, roster) = (self.now, self.rosters[relay].clone());
        let Some(flows) = self.relays.get_mut(&relay) else {
            return;
        };
        if let Said::Claim(claim) = &packet.said
            && claim.to == id(relay)
        {
            let drawn = draw(&mut self.random);
            let seen = self
                .office
                .as_ref()
                .map(|office| office.seen_by(relay, now));
            let verifier: &dyn Verifier = match &seen {
                Some(seen) => seen,
                None => &Nobody,
            };
            let ruling = flows.claim(claim, packet.from, &roster, verifier, || drawn, now);
            if let Some(office) = &mut self.office {
                office.ruled(relay, claim, ruling);
            }
            let verdict = Verdict {
                flow: claim.flow,
                nonce: claim.nonce,
                ruling,
                seen: None,
                from: id(relay),
                to: claim.from.clone(),
            };
            self.send(Packet {
                from: packet.to,
                to: packet.from,
                said: Said::Verdict(verdict),
                forwarded: 0,
                ..packet
            });
            return;
        }
        let flow = match &packet.said {
            Said::Ping { flow, .. } | Said::Pong { flow, .. } | Said::Data { flow } => *flow,
            Said::Claim(claim) => claim.flow,
            Said::Verdict(verdict) => verdict.flow,
        };
        let Ok(next) = flows.forward(flow, packet.from, 1, 1_288, now) else {
            return;
        };
        if let Some(office) = &self.office {
            office.permits(relay, flow, &roster, next, now);
        }
        packet.from = packet.to;
        packet.to = next;
        packet.forwarded += 1;
        assert!(packet.forwarded <= MAX_HOPS, "{packet:?}");
        self.send(packet);
    }

    fn hear(&mut self, node: Number, packet: Packet) {
        let now = self.now;
        let peer = match packet.ends {
            (one, other) if one == node => other,
            (one, other) if other == node => one,
            // A stale roster led it here: its tags do not fit.
            _ => return,
        };
        let route = |flow| match flow {
            Label::NONE => Route::Direct(packet.from),
            id => Route::Flow {
                via: packet.from,
                id,
            },
        };
        let side = self.sides.entry((node, peer));
        let side = side.or_insert_with(|| Side::new(node, peer, false, now));
        match packet.said {
            Said::Ping { flow, nonce, full } => {
                if side.left.has(flow) {
                    return;
                }
                let route = route(flow);
                if full {
                    side.paths.heard(route, now);
                }
                side.next = now;
                self.probes += 1;
                self.say(node, peer, route, |flow| Said::Pong { flow, nonce });
            }
            Said::Pong { nonce, .. } => {
                side.paths.answered(nonce, Label::NONE, now);
                side.next = now;
            }
            Said::Verdict(verdict) => {
                let passages = side.passages.iter_mut();
                for passage in passages.filter(|passage| passage.flow() == verdict.flow) {
                    passage.told(&verdict, now);
                }
                side.next = now;
            }
            Said::Data { .. } => self.data.1 += 1,
            Said::Claim(_) => {}
        }
    }

    /// Whether each node that wants to reach another one has all its ways there.
    fn all_stand_by(&self) -> bool {
        self.sides.values().filter(|side| side.wants).all(|side| {
            let views: Vec<_> = side.paths.views().collect();
            side.passages.iter().all(|passage| {
                let is_proved = |route| {
                    let proved = |view: &View| view.route == route;
                    let mut views = views
                        .iter()
                        .filter(|view| view.standing == Standing::Proved);
                    views.any(proved)
                };
                passage.route(self.now).is_some_and(is_proved)
            })
        })
    }

    /// Whether what each side sends now gets there, where there is a way.
    fn all_get_there(&self) -> bool {
        self.sides.values().all(|side| {
            let sending = side.paths.sending(self.now);
            let works = |route| match route {
                Route::Direct(_) => !self.cut.contains(&(side.node, side.peer)),
                Route::Flow { id, .. } => self.is_alive(id),
            };
            sending.over.is_some_and(works) || !self.has_way(side)
        })
    }

    fn is_alive(&self, flow: Label) -> bool {
        let relays = self.ways.get(&flow);
        relays.is_some_and(|relays| relays.iter().all(|relay| !self.dead.contains(relay)))
    }

    /// Whether the direct path works, or one of the ways that whoever wants to reach the other keeps ready.
    fn has_way(&self, side: &Side) -> bool {
        let ends = [(side.node, side.peer), (side.peer, side.node)];
        let wanting = ends.iter().filter_map(|ends| self.sides.get(ends));
        let mut passages = wanting.flat_map(|side| &side.passages);
        !self.cut.contains(&ends[0]) || passages.any(|passage| self.is_alive(passage.flow()))
    }
}

impl Side {
    fn new(node: Number, peer: Number, wants: bool, now: Instant) -> Self {
        Self {
            node,
            peer,
            wants,
            paths: Paths::default(),
            passages: Vec::new(),
            left: Left::default(),
            sent: 0,
            next: now,
        }
    }
}

/// SplitMix64.
fn draw(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Figures of a mesh in which eight gateways reach eight exits.
struct Figures {
    converged: Duration,
    /// Probes of each pair in a second, both ways, while nothing is sent and while much is.
    idle: f64,
    busy: f64,
    claims: f64,
    recovered: Duration,
    converged_again: Duration,
}

fn figures(relays: usize) -> Figures {
    const ENDS: usize = 8;
    let mut world = World::new(7, ENDS, relays);
    let pairs = (0..ENDS).flat_map(|gateway| (ENDS..2 * ENDS).map(move |exit| (gateway, exit)));
    let pairs: Vec<_> = pairs.collect();
    for (gateway, exit) in &pairs {
        // Half of them need a relay.
        if (gateway + exit).is_multiple_of(2) {
            world.cut.insert((*gateway, *exit));
            world.cut.insert((*exit, *gateway));
        }
        world.want(*gateway, *exit);
    }
    let converged = world.until("all ways stand by", 5_000, World::all_stand_by);
    world.run(10_000);
    let per_pair = |world: &mut World, rate| {
        world.rate = rate;
        world.run(2_000);
        (world.probes, world.claims) = (0, 0);
        world.run(60_000);
        let each = |count: u64| count as f64 / 60.0 / pairs.len() as f64;
        (each(world.probes), each(world.claims))
    };
    let (idle, claims) = per_pair(&mut world, 0);
    let (busy, _) = per_pair(&mut world, 10);
    assert!(world.data.1 * 100 >= world.data.0 * 99, "{:?}", world.data);

    // A quarter of the relays dies, and a second later the roster says so.
    let first = 2 * ENDS;
    world.dead = (first..first + relays / 4).collect();
    let recovered = world.until("what is sent gets there", 1_000, World::all_get_there);
    world.run(1_000);
    let mut roster = (*world.rosters[0]).clone();
    let dead: Vec<_> = world.dead.iter().map(|relay| id(*relay)).collect();
    for node in &mut roster.nodes {
        if dead.contains(&node.id) {
            node.transit.clear();
        }
    }
    let roster = Arc::new(roster);
    for node in 0..world.rosters.len() {
        world.publish(node, &roster);
    }
    let converged_again = world.until("all ways stand by again", 5_000, World::all_stand_by);
    assert!(world.all_get_there());
    Figures {
        converged,
        idle,
        busy,
        claims,
        recovered,
        converged_again,
    }
}

#[test]
fn ways_through_64_relays_are_found_as_soon_and_cost_as_many_probes_as_through_four() {
    let mut before: Option<Figures> = None;
    for relays in [4, 16, 64] {
        let now = figures(relays);
        println!(
            "{relays} relays, 64 pairs: converged after {:?}, again {:?} after a quarter died and was \
             unlisted; sent to where it arrives {:?} after they died; for each pair {:.1} probes and \
             answers in a second idle, {:.1} busy, {:.2} claims",
            now.converged, now.converged_again, now.recovered, now.idle, now.busy, now.claims
        );
        assert!(
            now.converged <= Duration::from_secs(1),
            "{:?}",
            now.converged
        );
        let again = now.converged_again;
        assert!(again <= Duration::from_secs(1), "{again:?}");
        assert!(
            now.recovered <= Duration::from_millis(500),
            "{:?}",
            now.recovered
        );
        assert!(
            now.idle <= 40.0 && now.busy <= 120.0,
            "{} {}",
            now.idle,
            now.busy
        );
        if let Some(before) = &before {
            let grown = (now.idle / before.idle).max(now.busy / before.busy);
            assert!(grown <= 1.1, "{grown}");
        }
        before = Some(now);
    }
}

#[test]
fn a_flow_that_was_left_is_no_path_again_when_its_first_relay_is_listed_again() {
    for seed in 0..50 {
        println!("seed {seed}");
        let mut world = World::new(seed, 1, 2);
        world.cut.extend([(0, 1), (1, 0)]);
        world.want(0, 1);
        world.rate = 10;
        let both = world.rosters[0].clone();
        world.until("all ways stand by", 2_000, World::all_stand_by);
        for turn in 0..20 {
            let mut roster = (*both).clone();
            roster.nodes[2 + turn % 2].transit.clear();
            // The other one, at which a way through both begins from the other end, stays.
            for roster in [&Arc::new(roster), &both] {
                for node in 0..world.rosters.len() {
                    world.publish(node, roster);
                }
                // That each side sends over a flow that is claimed is looked at whenever it does.
                world.run(500);
            }
            world.run(1_000);
            assert!(world.all_stand_by() && world.all_get_there());
        }
        // And who is at its other end leaves it, too.
        world.run(10_000);
        let (gateway, exit) = (&world.sides[&(0, 1)], &world.sides[&(1, 0)]);
        let flows = |side: &Side| {
            let views = side.paths.views();
            let flow = |view: View| match view.route {
                Route::Flow { id, .. } => Some(id),
                Route::Direct(_) => None,
            };
            views.filter_map(flow).collect::<BTreeSet<_>>()
        };
        assert_eq!(flows(gateway), flows(exit));
    }
}

/// A roster of some time ago: relays that are not there yet, or whose addresses other ones have now.
fn stale(roster: &Roster, random: &mut u64) -> Roster {
    let mut roster = roster.clone();
    let relays = roster
        .nodes
        .iter_mut()
        .filter(|node| !node.transit.is_empty());
    let mut relays: Vec<_> = relays.collect();
    let shift = draw(random) as usize % relays.len();
    let mut addresses: Vec<_> = relays.iter().map(|node| node.transit.clone()).collect();
    addresses.rotate_left(shift);
    for (relay, address) in relays.iter_mut().zip(addresses) {
        relay.transit = match draw(random) % 4 {
            0 => Vec::new(),
            _ => address,
        };
    }
    roster
}

#[test]
fn in_a_ring_of_relays_with_stale_rosters_nothing_goes_round_and_all_is_well_soon_after_the_next() {
    let mut slowest = Duration::ZERO;
    for seed in 0..300 {
        println!("seed {seed}");
        let mut world = World::new(seed, 2, 4);
        let right = world.rosters[0].clone();
        for node in 0..world.rosters.len() {
            let old = stale(&right, &mut world.random);
            world.rosters[node] = Arc::new(old);
        }
        for (gateway, exit) in [(0, 2), (0, 3), (1, 2), (1, 3)] {
            world.cut.insert((gateway, exit));
            world.cut.insert((exit, gateway));
            world.want(gateway, exit);
        }
        world.rate = 10;
        let passes = draw(&mut world.random) % 8_000;
        world.run(passes);
        // One after the other, within a second.
        let mut order: Vec<_> = (0..world.rosters.len())
            .map(|node| (draw(&mut world.random) % 1_000, node))
            .collect();
        order.sort();
        let mut passed = 0;
        for (millis, node) in order {
            world.run(millis - passed);
            passed = millis;
            world.publish(node, &right);
        }
        let took = world.until("all ways stand by", 2_000, World::all_stand_by);
        slowest = slowest.max(took);
        world.until("what is sent gets there", 2_000, World::all_get_there);
    }
    println!("all ways stood by {slowest:?} after the roster that all had, at the most");
}
