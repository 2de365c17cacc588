//! What can happen to a mesh, all at once: packets that are lost, late, twice and out of order, links that carry one
//! way, relays and nodes that end and are started anew, rosters that come to each at another time, leases that end and
//! are revoked, clocks that differ, a master that is away. After each step it is looked at what must not be.

use super::*;
use crate::{
    id::Epoch,
    overlay::{
        lease::{Unfit, Verified},
        packet::Ruling,
        paths::MAX_PATHS,
        transit::REVOKED_LASTS,
    },
    token::{KeyId, Lease, Validity},
};

/// What happens to packets on their way.
#[derive(Debug, Default)]
pub(super) struct Weather {
    /// Of a thousand, how many are lost.
    lost: u64,
    /// And how many come twice.
    twice: u64,
    /// By how many microseconds at most one is later than another.
    late: u64,
    /// Nothing comes from the one to the other.
    broken: BTreeSet<(Number, Number)>,
}

impl Weather {
    /// How much later than it should each copy of a packet comes.
    pub(super) fn copies(&self, ends: (Number, Number), random: &mut u64) -> Vec<Duration> {
        let mut happens = |of: u64| of > 0 && draw(random) % 1_000 < of;
        if self.broken.contains(&ends) || happens(self.lost) {
            return Vec::new();
        }
        let copies = 1 + usize::from(happens(self.twice));
        let late = |_| match self.late {
            0 => Duration::ZERO,
            most => Duration::from_micros(draw(random) % most),
        };
        (0..copies).map(late).collect()
    }
}

/// For how long leases hold, in seconds: so that each is renewed several times in a run, or that none is.
const LEASED: [u64; 2] = [6, 60];
/// By how much a relay's clock may be off.
const SKEW: u64 = 500;

/// The master that signs leases, what relays granted for them, and what of that holds.
#[derive(Debug)]
pub(super) struct Office {
    answers: bool,
    leased: Duration,
    /// By number, which is what a claim carries, and until when.
    signed: Vec<(Lease, Instant)>,
    offered: BTreeMap<Label, usize>,
    /// The lease for which a relay carries a flow.
    granted: BTreeMap<(Number, Label), usize>,
    /// When a relay heard that leases of a node were revoked.
    revoked: BTreeMap<(Number, NodeId), Instant>,
    /// By how many milliseconds a relay's clock is ahead of one that is [`SKEW`] behind.
    clocks: BTreeMap<Number, u64>,
}

/// The master's signatures, as a relay sees them by its own clock.
pub(super) struct Seen<'a> {
    signed: &'a [(Lease, Instant)],
    /// [`SKEW`] later than its clock says.
    clock: Instant,
}

fn key() -> KeyId {
    "k4.pid.9ShR3xc8-qVJ_di0tc9nx0IDIqbatdeM2mqLFBJsKRHs"
        .parse()
        .unwrap()
}

fn number(lease: &[u8]) -> Option<usize> {
    Some(usize::from_be_bytes(lease.try_into().ok()?))
}

impl Verifier for Seen<'_> {
    fn verify(&self, lease: &[u8]) -> Result<Verified, Unfit> {
        let signed = number(lease).and_then(|number| self.signed.get(number));
        let (lease, ends) = signed.ok_or(Unfit::Forged)?;
        let left = (*ends + Duration::from_millis(SKEW)).saturating_duration_since(self.clock);
        match left {
            Duration::ZERO => Err(Unfit::Expired),
            left => Ok(Verified {
                lease: lease.clone(),
                key: key(),
                left,
            }),
        }
    }

    fn trusts(&self, _: &KeyId) -> bool {
        true
    }
}

impl Office {
    fn new(relays: impl Iterator<Item = Number>, random: &mut u64) -> Self {
        Self {
            answers: true,
            leased: Duration::from_secs(LEASED[draw(random) as usize % 2]),
            signed: Vec::new(),
            offered: BTreeMap::new(),
            granted: BTreeMap::new(),
            revoked: BTreeMap::new(),
            clocks: relays
                .map(|relay| (relay, draw(random) % (2 * SKEW)))
                .collect(),
        }
    }

    pub(super) fn seen_by(&self, relay: Number, now: Instant) -> Seen<'_> {
        Seen {
            signed: &self.signed,
            clock: now + Duration::from_millis(self.clocks[&relay]),
        }
    }

    /// What a claimant's claim carries, which renews a lease when half of it is over.
    pub(super) fn offer(
        &mut self,
        node: Number,
        passage: &Passage,
        roster: &Roster,
        now: Instant,
    ) -> Offer {
        let flow = passage.flow();
        let listed = roster.node(&id(node));
        let since = listed.map(Node::leases_since).unwrap_or_default();
        let held = self.offered.get(&flow).copied();
        let held = held.filter(|held| self.signed[*held].0.epoch >= since);
        let is_new = |held: &usize| self.signed[*held].1 > now + self.leased / 2;
        if self.answers && !held.as_ref().is_some_and(is_new) {
            let way = passage.to_lease();
            let lease = Lease {
                sub: id(node),
                peer: way.peer,
                hops: way.hops,
                flow,
                bps: 1_000_000_000,
                pps: 1_000_000,
                epoch: roster.epoch,
                validity: Validity {
                    nbf: 0,
                    iat: 0,
                    exp: 0,
                },
            };
            self.offered.insert(flow, self.signed.len());
            self.signed.push((lease, now + self.leased));
        }
        let held = self.offered.get(&flow).copied();
        let held = held.filter(|held| self.signed[*held].0.epoch >= since);
        match held.filter(|held| self.signed[*held].1 > now) {
            Some(held) => Offer::Lease(held.to_be_bytes().into()),
            None => Offer::Wait,
        }
    }

    /// A relay ruled on a claim.
    pub(super) fn ruled(&mut self, relay: Number, claim: &Claim, ruling: Ruling) {
        if matches!(ruling, Ruling::Granted { .. }) {
            let lease = number(&claim.lease).expect("nothing is granted without a lease");
            self.granted.insert((relay, claim.flow), lease);
        }
    }

    /// A relay has another roster.
    pub(super) fn told(&mut self, relay: Number, before: &Roster, roster: &Roster, now: Instant) {
        for node in &*roster.nodes {
            let known = before.node(&node.id).map(Node::leases_since);
            if known.is_some_and(|known| known < node.leases_since()) {
                self.revoked.insert((relay, node.id.clone()), now);
            }
        }
    }

    /// A relay forwards a packet of a flow to `next`: there has to be a lease for that.
    pub(super) fn permits(
        &self,
        relay: Number,
        flow: Label,
        roster: &Roster,
        next: SocketAddr,
        now: Instant,
    ) {
        let granted = self.granted.get(&(relay, flow));
        let (lease, ends) = &self.signed[*granted.expect("it granted no such flow")];
        let named = [&lease.sub, &lease.peer]
            .into_iter()
            .chain(&lease.hops)
            .any(|named| *named == id(owner(next)));
        assert!(named, "n{relay} forwards {flow} to {next}: {lease:?}");
        let ends = *ends + Duration::from_millis(2 * SKEW);
        assert!(now <= ends, "n{relay} forwards {flow} after its lease");
        let listed = roster.node(&lease.sub);
        if listed.is_some_and(|node| lease.epoch < node.leases_since()) {
            let heard = self.revoked[&(relay, lease.sub.clone())];
            assert!(now <= heard + REVOKED_LASTS, "{flow} outlives revocation");
        }
    }
}

/// What happens in a run, from time to time.
struct Mess {
    world: World,
    /// What every node will have in the end.
    roster: Roster,
    /// When a node has which roster.
    coming: BTreeMap<(Instant, u64), (Number, Arc<Roster>)>,
    /// What ends when.
    ending: BTreeMap<(Instant, u64), Ending>,
    count: u64,
    /// For how long each side has sent to nowhere although it had a path that worked.
    astray: BTreeMap<(Number, Number), Instant>,
    longest: Duration,
}

#[derive(Debug, Clone, Copy)]
enum Ending {
    /// A relay is there again, and knows nothing.
    Dead(Number),
    Broken(Number, Number),
    Away,
}

const ENDS: usize = 2;
const RELAYS: usize = 4;

impl Mess {
    fn new(seed: u64) -> Self {
        let mut world = World::new(seed, ENDS, RELAYS);
        let relays = world.relays.keys().copied().collect::<Vec<_>>();
        world.office = Some(Office::new(relays.into_iter(), &mut world.random));
        for flows in world.relays.values_mut() {
            flows.hears_master(true, world.now);
        }
        world.rate = 10;
        let mut mess = Self {
            roster: (*world.rosters[0]).clone(),
            world,
            coming: BTreeMap::new(),
            ending: BTreeMap::new(),
            count: 0,
            astray: BTreeMap::new(),
            longest: Duration::ZERO,
        };
        mess.roster.epoch = Epoch(1);
        mess.tell();
        for gateway in 0..ENDS {
            for exit in ENDS..2 * ENDS {
                if mess.draw(2) == 0 {
                    mess.world.cut.extend([(gateway, exit), (exit, gateway)]);
                }
                mess.world.want(gateway, exit);
            }
        }
        mess
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.world.draw() % below
    }

    fn relay(&mut self) -> Number {
        2 * ENDS + self.draw(RELAYS as u64) as usize
    }

    fn after(&mut self, millis: u64) -> (Instant, u64) {
        self.count += 1;
        let millis = self.draw(millis);
        (self.world.now + Duration::from_millis(millis), self.count)
    }

    /// Each node has the roster within a second.
    fn tell(&mut self) {
        self.roster.epoch.0 += 1;
        let roster = Arc::new(self.roster.clone());
        for node in 0..self.world.rosters.len() {
            let at = self.after(1_000);
            self.coming.insert(at, (node, roster.clone()));
        }
    }

    fn happen(&mut self) {
        match self.draw(10) {
            0 => {
                let relay = self.relay();
                self.world.dead.insert(relay);
                let at = self.after(3_000);
                self.ending.insert(at, Ending::Dead(relay));
            }
            1 | 2 => {
                let nodes = self.world.rosters.len() as u64;
                let (from, to) = (self.draw(nodes) as usize, self.draw(nodes) as usize);
                self.world.weather.broken.insert((from, to));
                let at = self.after(3_000);
                self.ending.insert(at, Ending::Broken(from, to));
            }
            3 => self.world.weather.lost = self.draw(150),
            4 => {
                self.world.weather.lost = 0;
                self.world.weather.twice = self.draw(100);
                self.world.weather.late = self.draw(15_000);
            }
            5 | 6 => {
                let relay = self.relay();
                let node = &mut self.roster.nodes[relay];
                node.transit = match node.transit.is_empty() {
                    true => vec![at(relay, TRANSIT)],
                    false => Vec::new(),
                };
                self.tell();
            }
            7 => {
                let gateway = self.draw(ENDS as u64) as usize;
                self.roster.nodes[gateway].leases.since = self.roster.epoch.0 + 1;
                self.tell();
            }
            8 => {
                let node = self.draw(2 * ENDS as u64) as usize;
                self.start_anew(node);
            }
            _ => {
                self.world.office.as_mut().unwrap().answers = false;
                let at = self.after(3_000);
                self.ending.insert(at, Ending::Away);
            }
        }
    }

    /// A gateway or an exit knows nothing any more, not even which flows it has left.
    fn start_anew(&mut self, node: Number) {
        let ends: Vec<_> = self.world.sides.keys().copied().collect();
        for (of, peer) in ends.into_iter().filter(|(of, _)| *of == node) {
            let side = self.world.sides.remove(&(of, peer));
            if side.is_some_and(|side| side.wants) {
                // Those of whoever was there before.
                self.world.ways.retain(|flow, _| {
                    let office = self.world.office.as_ref().unwrap();
                    let drawn = office.offered.get(flow);
                    drawn.is_none_or(|lease| office.signed[*lease].0.sub != id(of))
                });
                self.world.want(of, peer);
            }
        }
    }

    fn end(&mut self, ending: Ending) {
        let world = &mut self.world;
        match ending {
            Ending::Dead(relay) => {
                if world.dead.remove(&relay) {
                    let mut flows = Flows::new(id(relay), Limits::default(), world.now);
                    flows.hears_master(true, world.now);
                    world.relays.insert(relay, flows);
                    let office = world.office.as_mut().unwrap();
                    office.granted.retain(|(at, _), _| *at != relay);
                }
            }
            Ending::Broken(from, to) => {
                world.weather.broken.remove(&(from, to));
            }
            Ending::Away => world.office.as_mut().unwrap().answers = true,
        }
    }

    fn step(&mut self) {
        let now = self.world.now;
        while let Some(entry) = self.coming.first_entry()
            && entry.key().0 <= now
        {
            let (node, roster) = entry.remove();
            if self.world.rosters[node].epoch < roster.epoch {
                self.world.publish(node, &roster);
            }
        }
        while let Some(entry) = self.ending.first_entry()
            && entry.key().0 <= now
        {
            let ending = entry.remove();
            self.end(ending);
        }
        self.world.step();
        self.look();
    }

    /// What must not be, and for how long packets went astray.
    fn look(&mut self) {
        let world = &self.world;
        for (ends, side) in &world.sides {
            assert!(side.paths.views().count() <= MAX_PATHS);
            let works = |route| self.works(*ends, route);
            let sending = side.paths.sending(world.now);
            let goes = [sending.over, sending.also].into_iter().flatten();
            let mut proved = side
                .paths
                .views()
                .filter(|view| view.standing == Standing::Proved);
            if goes.into_iter().any(works) || !proved.any(|view| works(view.route)) {
                self.astray.remove(ends);
            } else {
                let since = *self.astray.entry(*ends).or_insert(world.now);
                self.longest = self.longest.max(world.now - since);
            }
        }
    }

    /// Whether what is sent over a path arrives, and answers do.
    fn works(&self, ends: (Number, Number), route: Route) -> bool {
        match route {
            Route::Direct(_) => self.passes(ends.0, ends.1),
            Route::Flow { id, .. } => self.carries(ends, id),
        }
    }

    /// Whether each node has all its ways, and sends where it arrives.
    fn is_well(&self) -> bool {
        let gets_there = |(ends, side): (&(Number, Number), &Side)| {
            let sending = side.paths.sending(self.world.now);
            sending.over.is_some_and(|route| self.works(*ends, route))
        };
        self.coming.is_empty()
            && self.world.all_stand_by()
            && self.world.sides.iter().all(gets_there)
    }

    /// Who is not well.
    fn told(&self) -> String {
        let sides = self.world.sides.iter().map(|(ends, side)| {
            let over = side.paths.sending(self.world.now).over;
            let works = over.map(|route| self.works(*ends, route));
            let paths = side.paths.views().map(|path| (path.route, path.standing));
            let paths: Vec<_> = paths.collect();
            let flows = side.passages.iter();
            let open = flows.filter_map(|passage| passage.route(self.world.now));
            let open: Vec<_> = open.collect();
            format!(
                "{ends:?} sends over {over:?} (works: {works:?}) of {paths:?}, has open {open:?}"
            )
        });
        sides.collect::<Vec<_>>().join("\n")
    }

    /// Whether packets between two nodes arrive, both ways.
    fn passes(&self, one: Number, other: Number) -> bool {
        let broken = &self.world.weather.broken;
        let ways = [(one, other), (other, one)];
        !ways
            .iter()
            .any(|way| broken.contains(way) || self.world.cut.contains(way))
    }

    /// Whether packets of a flow arrive, both ways.
    fn carries(&self, ends: (Number, Number), flow: Label) -> bool {
        let world = &self.world;
        let office = world.office.as_ref().unwrap();
        let Some(lease) = office.offered.get(&flow) else {
            return false;
        };
        let (lease, _) = &office.signed[*lease];
        let (from, to) = match lease.sub == id(ends.0) {
            true => ends,
            false => (ends.1, ends.0),
        };
        let relays = lease.hops.iter().map(|hop| {
            let number = hop.as_str().trim_start_matches('n');
            number.parse::<Number>().unwrap()
        });
        let relays: Vec<_> = relays.collect();
        let carried = relays.iter().all(|relay| {
            let granted = office.granted.get(&(*relay, flow));
            let holds = granted.is_some_and(|lease| office.signed[*lease].1 > world.now);
            !world.dead.contains(relay) && holds
        });
        let nodes = [&[from][..], &relays, &[to]].concat();
        let whole = nodes.windows(2).all(|two| {
            let broken = &world.weather.broken;
            !broken.contains(&(two[0], two[1])) && !broken.contains(&(two[1], two[0]))
        });
        carried && whole
    }

    /// All is well from now on.
    fn clear(&mut self) {
        while let Some((_, ending)) = self.ending.pop_first() {
            self.end(ending);
        }
        self.world.weather = Weather::default();
        for relay in 2 * ENDS..2 * ENDS + RELAYS {
            self.roster.nodes[relay].transit = vec![at(relay, TRANSIT)];
        }
        self.tell();
    }
}

#[test]
fn whatever_happens_at_once_nothing_is_carried_without_a_lease_and_all_is_well_soon_after() {
    let (mut longest, mut slowest) = (Duration::ZERO, Duration::ZERO);
    for seed in 0..2_000 {
        println!("seed {seed}");
        let mut mess = Mess::new(seed);
        for _ in 0..20 {
            mess.happen();
            for _ in 0..200 {
                mess.step();
            }
        }
        longest = longest.max(mess.longest);
        assert!(
            mess.longest <= Duration::from_millis(700),
            "{:?}",
            mess.longest
        );
        mess.clear();
        let begun = mess.world.now;
        while !mess.is_well() {
            mess.step();
            let took = mess.world.now - begun;
            assert!(took <= Duration::from_secs(12), "{}", mess.told());
        }
        slowest = slowest.max(mess.world.now - begun);
    }
    println!("packets went astray for {longest:?} at the most; all was well after {slowest:?}");
}
