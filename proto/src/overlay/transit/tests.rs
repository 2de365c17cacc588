use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
    control::Node,
    id::PublicKey,
    overlay::{beginning, lease::tests::Nobody},
};

fn id(id: &str) -> NodeId {
    id.parse().unwrap()
}

/// The address of a node, for each purpose.
fn at(node: &str, port: u16) -> SocketAddr {
    let last = node.bytes().fold(0u8, |sum, byte| sum.wrapping_add(byte));
    ([192, 0, 2, last], port).into()
}

const MESH: u16 = 4434;
const TRANSIT: u16 = 4435;

fn node(name: &str, role: Role) -> Node {
    let transit = match role {
        Role::Relay => vec![at(name, TRANSIT)],
        _ => Vec::new(),
    };
    Node {
        id: id(name),
        role,
        keys: vec![PublicKey([7; 32])],
        addresses: vec![at(name, MESH)],
        transit,
        attached: Vec::new(),
        services: Vec::new(),
        registration: 1,
        leases: Default::default(),
        placement: Default::default(),
    }
}

fn roster(gateways: &[&str], relays: &[&str]) -> Roster {
    let gateways = gateways.iter().map(|name| node(name, Role::Gateway));
    let relays = relays.iter().map(|name| node(name, Role::Relay));
    Roster {
        nodes: gateways.chain(relays).collect(),
        ..Roster::empty("test".parse().unwrap())
    }
}

fn usual() -> Roster {
    roster(&["a", "g"], &["b", "t1", "t2"])
}

/// By `a`, for itself and `b`, over these relays, to the one named.
fn claim(to: &str, hops: &[&str]) -> Claim {
    let after = hops.iter().position(|hop| *hop == to).map(|at| at + 1);
    let next = match after.and_then(|after| hops.get(after)) {
        Some(next) => Next::At(at(next, TRANSIT)),
        None => Next::At(at("b", MESH)),
    };
    Claim {
        flow: Label::from_random(1),
        nonce: 1,
        cookie: 0,
        from: id("a"),
        to: id(to),
        peer: id("b"),
        hops: hops.iter().map(|hop| id(hop)).collect(),
        next,
        lease: Vec::new(),
    }
}

struct Relay {
    flows: Flows,
    roster: Roster,
    now: Instant,
    drawn: u64,
}

impl Relay {
    fn new(name: &str) -> Self {
        Self::with(name, Limits::default())
    }

    fn with(name: &str, limits: Limits) -> Self {
        Self {
            flows: Flows::new(id(name), limits, beginning()),
            roster: usual(),
            now: beginning(),
            drawn: 100,
        }
    }

    fn claim(&mut self, claim: &Claim, source: SocketAddr) -> Ruling {
        self.drawn += 1;
        let drawn = self.drawn;
        // No claim is the same as one before.
        let claim = Claim {
            nonce: drawn,
            ..claim.clone()
        };
        self.flows
            .claim(&claim, source, &self.roster, &Nobody, || drawn, self.now)
    }

    /// Claims, and shows that it receives there.
    fn prove(&mut self, claim: &Claim, source: SocketAddr) -> Ruling {
        match self.claim(claim, source) {
            Ruling::Prove { cookie } => {
                let proving = Claim {
                    cookie,
                    ..claim.clone()
                };
                self.claim(&proving, source)
            }
            other => other,
        }
    }

    fn attach(&mut self, attach: &Attach, source: SocketAddr) -> Ruling {
        self.drawn += 1;
        let drawn = self.drawn;
        self.flows
            .attach(attach, source, &self.roster, || drawn, self.now)
    }

    /// Attaches itself, and shows that it receives there.
    fn prove_attach(&mut self, attach: Attach, source: SocketAddr) -> Ruling {
        match self.attach(&attach, source) {
            Ruling::Prove { cookie } => self.attach(&Attach { cookie, ..attach }, source),
            other => other,
        }
    }

    fn forward(&mut self, source: SocketAddr) -> Result<SocketAddr, NotForwarded> {
        self.flows
            .forward(Label::from_random(1), source, 1, 100, self.now)
    }
}

const GRANTED: Ruling = Ruling::Granted { lasts: 60 };

fn elsewhere() -> SocketAddr {
    ([198, 51, 100, 9], 9).into()
}

#[test]
fn a_flow_carries_packets_both_ways_between_its_two_sides_and_for_nobody_else() {
    let mut relay = Relay::new("t1");
    // The claimant is behind a translator: its address is in no roster.
    assert_eq!(relay.prove(&claim("t1", &["t1"]), elsewhere()), GRANTED);
    assert_eq!(relay.forward(elsewhere()), Ok(at("b", MESH)));
    assert_eq!(relay.forward(at("b", MESH)), Ok(elsewhere()));
    assert_eq!(relay.forward(at("g", MESH)), Err(NotForwarded::WrongSource));
    let other = Label::from_random(2);
    let unknown = relay.flows.forward(other, elsewhere(), 1, 1, relay.now);
    assert_eq!(unknown, Err(NotForwarded::UnknownFlow));
}

/// Takes a claim from relay to relay, from where it enters to the one that rules on it; what that says.
fn pass_on(
    relays: &mut BTreeMap<&'static str, Relay>,
    mut source: SocketAddr,
    mut to: SocketAddr,
    claim: &Claim,
) -> Option<Ruling> {
    // As often as it takes to go round twice.
    for _ in 0..8 {
        let (name, relay) = relays
            .iter_mut()
            .find(|(name, _)| at(name, TRANSIT) == to)?;
        if claim.to == id(name) {
            return Some(relay.claim(claim, source));
        }
        let next = relay.forward(source).ok()?;
        (source, to) = (to, next);
    }
    panic!("it goes round");
}

#[test]
fn a_member_that_forges_addresses_cannot_lead_its_own_flow_round_in_a_ring() {
    const RING: [&str; 4] = ["t1", "t2", "t3", "t4"];
    let mut relays: BTreeMap<_, _> = RING
        .into_iter()
        .map(|name| {
            let mut relay = Relay::new(name);
            relay.roster = roster(&["a"], &["b", "t1", "t2", "t3", "t4"]);
            (name, relay)
        })
        .collect();
    let first = claim("t4", &["t4", "t1", "t2"]);
    let granted = relays.get_mut("t4").unwrap().prove(&first, elsewhere());
    assert_eq!(granted, GRANTED);
    // Each of them hears of the relays before and after it, and of no others.
    let enter = at("t4", TRANSIT);
    for (relay, hops) in [
        ("t1", ["t4", "t1", "t2"]),
        ("t2", ["t1", "t2", "t3"]),
        ("t3", ["t2", "t3", "t4"]),
    ] {
        let ruling = pass_on(&mut relays, elsewhere(), enter, &claim(relay, &hops));
        assert_eq!(ruling, Some(GRANTED), "{relay}");
    }
    // With a forged source the first one is asked by way of all others whether its claimant has moved there.
    let forged = at("t4", TRANSIT);
    let ruling = pass_on(&mut relays, forged, at("t1", TRANSIT), &first);
    assert_eq!(ruling, Some(Ruling::Refused(Refusal::NotOnTheWay)));
}

#[test]
fn who_claims_shows_first_that_it_receives_where_it_sends_from() {
    let mut relay = Relay::new("t1");
    let asked = claim("t1", &["t1"]);
    let Ruling::Prove { cookie } = relay.claim(&asked, elsewhere()) else {
        panic!("no proof is asked for");
    };
    let proving = Claim { cookie, ..asked };
    // A cookie that was seen on the way is of no use from another address, nor to another node.
    assert_ne!(relay.claim(&proving, at("g", MESH)), GRANTED);
    let thief = Claim {
        from: id("g"),
        ..proving.clone()
    };
    assert_ne!(relay.claim(&thief, elsewhere()), GRANTED);
    relay.now += cookies::LASTS;
    assert_ne!(relay.claim(&proving, elsewhere()), GRANTED);
    assert!(relay.flows.is_empty());
}

#[test]
fn a_cookie_is_good_once() {
    let mut relay = Relay::new("t1");
    let asked = claim("t1", &["t1"]);
    let Ruling::Prove { cookie } = relay.claim(&asked, elsewhere()) else {
        panic!("no proof is asked for");
    };
    let proving = Claim { cookie, ..asked };
    assert_eq!(relay.claim(&proving, elsewhere()), GRANTED);
    // The claimant moved; its old claim, replayed from where it was, does not move the flow back.
    assert_eq!(relay.prove(&claim("t1", &["t1"]), at("a", 7)), GRANTED);
    assert!(matches!(
        relay.claim(&proving, elsewhere()),
        Ruling::Prove { .. }
    ));
    assert_eq!(relay.forward(at("b", MESH)), Ok(at("a", 7)));
}

#[test]
fn what_is_not_in_the_roster_is_forwarded_to_by_nobody() {
    let hops = ["t1", "t2"];
    let refused = |claim: &Claim, source, roster| {
        let mut relay = Relay::new("t1");
        relay.roster = roster;
        let ruling = relay.prove(claim, source);
        assert!(relay.flows.is_empty());
        ruling
    };
    let not_listed = Ruling::Refused(Refusal::NotListed);
    let not_on_the_way = Ruling::Refused(Refusal::NotOnTheWay);
    let from = at("a", MESH);
    for (gateways, relays) in [
        (&["g"][..], &["b", "t1", "t2"][..]),
        (&["a"], &["t1", "t2"]),
        (&["a"], &["b", "t1"]),
        (&["a", "t2"], &["b", "t1"]),
    ] {
        let roster = roster(gateways, relays);
        assert_eq!(refused(&claim("t1", &hops), from, roster), not_listed);
    }
    for next in [
        elsewhere(),
        at("t2", MESH),
        at("b", MESH),
        at("t1", TRANSIT),
    ] {
        let elsewhere = Claim {
            next: Next::At(next),
            ..claim("t1", &hops)
        };
        assert_eq!(refused(&elsewhere, from, usual()), not_listed, "{next}");
    }
    for hops in [
        &["t2"][..],
        &["t1", "t1"],
        &["t1", "a"],
        &["b", "t1"],
        &["t1", "t2", "t1"],
    ] {
        assert_eq!(
            refused(&claim("t1", hops), from, usual()),
            not_on_the_way,
            "{hops:?}"
        );
    }
    let itself = Claim {
        peer: id("a"),
        next: Next::At(at("a", MESH)),
        ..claim("t1", &["t1"])
    };
    assert_eq!(refused(&itself, from, usual()), not_on_the_way);
    // A relay does not attach itself to another, and who did not is not found.
    let attached = |hops: &[&str]| Claim {
        next: Next::Attached,
        ..claim("t1", hops)
    };
    assert_eq!(refused(&attached(&hops), from, usual()), not_on_the_way);
    let not_attached = Ruling::Refused(Refusal::NotAttached);
    assert_eq!(refused(&attached(&["t1"]), from, usual()), not_attached);
    // For another relay, whoever sent it here.
    assert_eq!(refused(&claim("t2", &hops), from, usual()), not_on_the_way);
}

#[test]
fn a_later_relay_is_asked_through_the_one_before_it_and_by_nobody_else() {
    let mut relay = Relay::new("t2");
    let asked = claim("t2", &["t1", "t2"]);
    for source in [at("a", MESH), elsewhere(), at("t1", MESH)] {
        let refused = Ruling::Refused(Refusal::NotOnTheWay);
        assert_eq!(relay.claim(&asked, source), refused, "{source}");
    }
    assert_eq!(relay.claim(&asked, at("t1", TRANSIT)), GRANTED);
    assert_eq!(relay.forward(at("t1", TRANSIT)), Ok(at("b", MESH)));
}

#[test]
fn a_flows_id_is_whose_it_was_first() {
    let mut relay = Relay::new("t1");
    assert_eq!(relay.prove(&claim("t1", &["t1"]), at("a", MESH)), GRANTED);
    let in_use = Ruling::Refused(Refusal::InUse);
    let others = [
        Claim {
            from: id("g"),
            ..claim("t1", &["t1"])
        },
        Claim {
            peer: id("g"),
            next: Next::At(at("g", MESH)),
            ..claim("t1", &["t1"])
        },
        claim("t1", &["t1", "t2"]),
    ];
    for other in others {
        assert_eq!(relay.claim(&other, at("g", 9)), in_use);
    }
    assert_eq!(relay.forward(at("b", MESH)), Ok(at("a", MESH)));
}

#[test]
fn what_comes_from_where_a_flow_or_a_place_is_held_is_known_and_nothing_else() {
    let mut relay = Relay::new("t1");
    let (asked, from) = (claim("t1", &["t1"]), at("a", MESH));
    let known = |relay: &Relay, node: &str, source| {
        relay.flows.knows(asked.flow, &id(node), source, relay.now)
    };
    assert!(!known(&relay, "a", from));
    assert_eq!(relay.prove(&asked, from), GRANTED);
    assert!(known(&relay, "a", from));
    assert!(!known(&relay, "a", elsewhere()));
    assert!(!known(&relay, "g", from));
    let attach = Attach {
        place: Label::from_random(9),
        nonce: 1,
        cookie: 0,
        from: id("b"),
        to: id("t1"),
    };
    assert!(!known(&relay, "b", elsewhere()));
    assert_eq!(relay.prove_attach(attach, elsewhere()), GRANTED);
    assert!(known(&relay, "b", elsewhere()));
    relay.now += ATTACHED;
    assert!(!known(&relay, "b", elsewhere()));
    assert_eq!(relay.flows.attached(relay.now), 0);
}

/// How many of so many claims of the flow that a node bears the name of are looked at.
fn looked_at(relay: &mut Relay, flow: u64, node: &str, source: SocketAddr, asked: u32) -> u32 {
    let (flow, node) = (Label::from_random(flow), id(node));
    let Relay {
        flows, roster, now, ..
    } = relay;
    let is = |_: &u32| flows.may_check(flow, &node, source, roster, *now);
    (0..asked).filter(is).count() as u32
}

#[test]
fn a_member_that_floods_takes_what_is_left_and_nobody_elses_share() {
    let mut relay = Relay::new("t1");
    let by = |node: &str, flow| Claim {
        from: id(node),
        flow: Label::from_random(flow),
        ..claim("t1", &["t1"])
    };
    assert_eq!(relay.prove(&by("a", 1), at("a", MESH)), GRANTED);
    assert_eq!(relay.prove(&by("g", 2), at("g", MESH)), GRANTED);
    let attach = Attach {
        place: Label::from_random(9),
        nonce: 1,
        cookie: 0,
        from: id("b"),
        to: id("t1"),
    };
    assert_eq!(relay.prove_attach(attach, elsewhere()), GRANTED);
    let half = CLAIMS / 2;
    for _ in 0..3 {
        relay.now += CLAIMS_IN;
        // Its own flow, from where it is, and others, from anywhere.
        let known = looked_at(&mut relay, 1, "a", at("a", MESH), 100_000);
        assert_eq!(known, half + half / 3, "of three who hold something");
        let new = looked_at(&mut relay, 5, "a", at("a", 9), 100_000);
        assert_eq!(new, half + half / 5, "of five members");
        // The others' are looked at as ever, and come to something.
        assert_eq!(looked_at(&mut relay, 2, "g", at("g", MESH), 1_000), 1_000);
        assert_eq!(relay.claim(&by("g", 2), at("g", MESH)), GRANTED);
        assert_eq!(looked_at(&mut relay, 9, "b", elsewhere(), 1_000), 1_000);
        assert_eq!(looked_at(&mut relay, 6, "g", at("g", 9), 1_000), 1_000);
        // So are those of who has not been here yet.
        assert_eq!(looked_at(&mut relay, 7, "t2", at("t2", 9), 1_000), 1_000);
    }
    // Of each member's share little is remembered, and nothing of who was quiet since.
    assert!(relay.flows.known.len() <= 3 && relay.flows.others.len() <= 5);
    relay.now += CLAIMS_IN;
    relay.flows.expire(relay.now);
    assert_eq!((relay.flows.known.len(), relay.flows.others.len()), (0, 0));
}

#[test]
fn strangers_who_flood_with_one_members_name_hold_up_no_other() {
    let mut relay = Relay::new("t1");
    let flooded = looked_at(&mut relay, 5, "a", elsewhere(), 100_000);
    assert_eq!(flooded, CLAIMS / 2 + CLAIMS / 2 / 5);
    assert_eq!(looked_at(&mut relay, 6, "g", at("g", 9), 1_000), 1_000);
    assert_eq!(looked_at(&mut relay, 5, "a", at("a", 9), 1), 0);
}

#[test]
fn a_flow_ends_unless_it_is_claimed_again() {
    let mut relay = Relay::new("t1");
    let claim = claim("t1", &["t1"]);
    assert_eq!(relay.prove(&claim, at("a", MESH)), GRANTED);
    relay.now += LASTS / 2;
    // From where it was proved, it needs no proof.
    assert_eq!(relay.claim(&claim, at("a", MESH)), GRANTED);
    relay.now += LASTS - Duration::from_millis(1);
    assert!(relay.forward(at("a", MESH)).is_ok());
    relay.now += Duration::from_millis(1);
    assert_eq!(relay.forward(at("a", MESH)), Err(NotForwarded::UnknownFlow));
    // What is over is nobody's proof.
    assert!(matches!(
        relay.claim(&claim, at("a", MESH)),
        Ruling::Prove { .. }
    ));
    relay.flows.expire(relay.now);
    assert!(relay.flows.is_empty());
}

#[test]
fn flows_end_when_one_of_their_nodes_is_not_listed_any_more() {
    for (gateways, relays) in [
        (&["g"][..], &["b", "t1", "t2"][..]),
        (&["a", "g"], &["t1", "t2"]),
        (&["a", "g"], &["b", "t1"]),
    ] {
        let mut relay = Relay::new("t1");
        let asked = claim("t1", &["t1", "t2"]);
        assert_eq!(relay.prove(&asked, at("a", MESH)), GRANTED);
        relay.flows.retain(&usual(), &Nobody, relay.now);
        assert_eq!(relay.flows.len(), 1);
        let after = roster(gateways, relays);
        relay.flows.retain(&after, &Nobody, relay.now);
        assert!(relay.flows.is_empty());
    }
}

#[test]
fn what_one_claims_is_bounded_and_so_is_what_all_claim() {
    let limits = Limits {
        flows: 5,
        flows_each: 3,
        ..Limits::default()
    };
    let mut relay = Relay::with("t1", limits);
    let by = |from: &str, flow| Claim {
        flow: Label::from_random(flow),
        from: id(from),
        ..claim("t1", &["t1"])
    };
    for flow in 0..3 {
        assert_eq!(relay.prove(&by("a", flow), at("a", MESH)), GRANTED);
    }
    let full = Ruling::Refused(Refusal::Full);
    assert_eq!(relay.prove(&by("a", 3), at("a", MESH)), full);
    assert_eq!(relay.prove(&by("g", 4), at("g", MESH)), GRANTED);
    assert_eq!(relay.prove(&by("g", 5), at("g", MESH)), GRANTED);
    assert_eq!(relay.prove(&by("g", 6), at("g", MESH)), full);
    // Those that are there are prolonged, and make room once they are over.
    assert_eq!(relay.prove(&by("a", 0), at("a", MESH)), GRANTED);
    relay.now += LASTS;
    relay.flows.expire(relay.now);
    assert_eq!(relay.prove(&by("a", 3), at("a", MESH)), GRANTED);
}

#[test]
fn a_flow_sends_what_it_may_and_others_what_they_may() {
    let limits = Limits {
        bytes_per_second: 1_000_000,
        packets_per_second: 2_000,
        ..Limits::default()
    };
    let mut relay = Relay::with("t1", limits);
    let mut two = claim("t1", &["t1"]);
    two.flow = Label::from_random(2);
    assert_eq!(relay.prove(&claim("t1", &["t1"]), at("a", MESH)), GRANTED);
    assert_eq!(relay.prove(&two, at("a", MESH)), GRANTED);
    let mut sent = [0u64; 2];
    let mut small = 0u64;
    for _ in 0..1000 {
        relay.now += Duration::from_millis(1);
        let now = relay.now;
        for _ in 0..5 {
            let one = relay.flows.forward(two.flow, at("a", MESH), 1, 1000, now);
            sent[1] += u64::from(one.is_ok());
        }
        for _ in 0..10 {
            small += u64::from(
                relay
                    .flows
                    .forward(claim("t1", &["t1"]).flow, at("b", MESH), 1, 10, now)
                    .is_ok(),
            );
        }
    }
    // A second's worth, and what may come at once.
    assert!((1000..=1097).contains(&sent[1]), "{}", sent[1]);
    assert!((2000..=2101).contains(&small), "{small}");
}

#[test]
fn the_slowest_flow_sends_the_largest_batch_in_its_time() {
    let limits = Limits {
        bytes_per_second: 10_000,
        packets_per_second: 1,
        ..Limits::default()
    };
    let mut relay = Relay::with("t1", limits);
    assert_eq!(relay.prove(&claim("t1", &["t1"]), at("a", MESH)), GRANTED);
    let (id, source, start) = (Label::from_random(1), at("a", MESH), relay.now);
    let mut batch = |now| relay.flows.forward(id, source, 64, 64 * 1_288, now);
    assert!(batch(start).is_ok());
    assert_eq!(batch(start), Err(NotForwarded::Rate));
}

#[test]
fn a_relay_that_leaves_grants_nothing_and_carries_what_it_has() {
    let mut relay = Relay::new("t1");
    let asked = claim("t1", &["t1"]);
    assert_eq!(relay.prove(&asked, at("a", MESH)), GRANTED);
    relay.flows.drain();
    let draining = Ruling::Refused(Refusal::Draining);
    assert_eq!(relay.prove(&asked, at("a", MESH)), draining);
    assert!(relay.forward(at("a", MESH)).is_ok());
}

proptest! {
    /// Whatever is claimed by whom from where, nothing is forwarded to an address that is neither in the
    /// roster nor one that was proved, and what is remembered is bounded.
    #[test]
    fn nothing_is_forwarded_to_strangers(
        claims in prop::collection::vec(
            (0usize..5, prop::collection::vec(0usize..6, 0..5), 0usize..5, 0u64..3, 0usize..9, 0usize..8, any::<bool>(), 0u64..40),
            1..60,
        ),
    ) {
        let names = ["a", "b", "g", "t1", "t2", "stranger"];
        let addresses = [
            at("a", MESH), at("b", MESH), at("g", MESH), at("t1", TRANSIT), at("t2", TRANSIT),
            at("t2", MESH), elsewhere(), at("stranger", TRANSIT),
        ];
        let limits = Limits { flows: 4, flows_each: 2, ..Limits::default() };
        let mut relay = Relay::with("t1", limits);
        let mut proved = Vec::new();
        for (from, hops, peer, flow, next, source, proves, passes) in claims {
            relay.now += Duration::from_secs(passes);
            let asked = Claim {
                flow: Label::from_random(flow),
                nonce: 1,
                cookie: 0,
                from: id(names[from]),
                to: id("t1"),
                peer: id(names[peer]),
                hops: hops.iter().map(|hop| id(names[*hop])).collect(),
                next: addresses.get(next).map_or(Next::Attached, |next| Next::At(*next)),
                lease: Vec::new(),
            };
            let source = addresses[source];
            let attach = Attach {
                place: asked.flow,
                nonce: 1,
                cookie: 0,
                from: asked.peer.clone(),
                to: asked.to.clone(),
            };
            if proves {
                proved.push(source);
                let _ = (relay.prove(&asked, source), relay.prove_attach(attach, source));
            } else {
                let _ = (relay.claim(&asked, source), relay.attach(&attach, source));
            }
            prop_assert!(relay.flows.places.places.len() <= relay.roster.nodes.len());
            prop_assert!(relay.flows.len() <= 4);
            prop_assert!(relay.flows.each.values().all(|count| *count <= 2));
            for flow in 0..3 {
                for source in addresses {
                    let id = Label::from_random(flow);
                    if let Ok(to) = relay.flows.forward(id, source, 1, 1, relay.now) {
                        let listed = relay.roster.nodes.iter().any(|node| {
                            node.addresses.contains(&to) || node.transit.contains(&to)
                        });
                        prop_assert!(listed || proved.contains(&to), "{to}");
                        prop_assert_ne!(to, source);
                    }
                }
            }
        }
    }
}
