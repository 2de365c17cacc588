//! What a relay makes of leases, and of floods of them.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
};

use super::*;
use crate::{
    control::{Node, Role},
    id::Epoch,
    overlay::{
        packet::{Next, Ruling},
        transit::{Flows, LASTS, Limits, NotForwarded, REVOKED_LASTS},
    },
    token::Validity,
};

const KEYS: [&str; 2] = [
    "k4.pid.9ShR3xc8-qVJ_di0tc9nx0IDIqbatdeM2mqLFBJsKRHs",
    "k4.pid.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
];

/// A lease is its claims as JSON here, with how many seconds are left behind it, and the number of its key.
#[derive(Default)]
struct Told {
    checks: AtomicU64,
    distrusts: Option<usize>,
}

impl Verifier for Told {
    fn verify(&self, lease: &[u8]) -> Result<Verified, Unfit> {
        self.checks.fetch_add(1, Ordering::Relaxed);
        let (lease, left, key): (Lease, i64, usize) =
            serde_json::from_slice(lease).map_err(|_| Unfit::Forged)?;
        match left {
            0 => Err(Unfit::Expired),
            ..0 => Err(Unfit::NotYet),
            left => Ok(Verified {
                lease,
                key: KEYS[key].parse().unwrap(),
                left: SECOND * left as u32,
            }),
        }
    }

    fn trusts(&self, key: &KeyId) -> bool {
        self.distrusts != KEYS.iter().position(|known| key.to_string() == *known)
    }
}

fn id(name: &str) -> NodeId {
    name.parse().unwrap()
}

fn at(last: u8) -> SocketAddr {
    ([192, 0, 2, last], 4434).into()
}

fn roster() -> Roster {
    let node = |name: &str, role, last| Node {
        id: id(name),
        role,
        keys: Vec::new(),
        addresses: vec![at(last)],
        transit: match role {
            Role::Relay => vec![at(100 + last)],
            _ => Vec::new(),
        },
        services: Vec::new(),
        registration: 5,
        attached: Vec::new(),
        leases: Default::default(),
        placement: Default::default(),
    };
    Roster {
        epoch: Epoch(9),
        nodes: vec![
            node("a", Role::Gateway, 1),
            node("b", Role::Relay, 2),
            node("g", Role::Gateway, 3),
            node("t", Role::Relay, 4),
        ]
        .into(),
        ..Roster::empty("test".parse().unwrap())
    }
}

fn lease(flow: u64) -> Lease {
    Lease {
        sub: id("a"),
        peer: id("b"),
        hops: vec![id("t")],
        flow: Label::from_random(flow),
        bps: 8_000_000,
        pps: 1_000,
        epoch: Epoch(7),
        validity: Validity {
            iat: 0,
            nbf: 0,
            exp: 1,
        },
    }
}

fn written(lease: &Lease, left: i64) -> Vec<u8> {
    serde_json::to_vec(&(lease, left, 0)).unwrap()
}

struct Relay {
    flows: Flows,
    roster: Roster,
    told: Told,
    now: Instant,
    drawn: u64,
}

impl Relay {
    /// One that hears a master.
    fn new() -> Self {
        let now = beginning();
        let mut flows = Flows::new(id("t"), Limits::default(), now);
        flows.hears_master(true, now);
        Self {
            flows,
            roster: roster(),
            told: Told::default(),
            now,
            drawn: 0,
        }
    }

    fn claim(&mut self, from: &str, flow: u64, lease: Vec<u8>) -> Ruling {
        let source = at(if from == "a" { 1 } else { 3 });
        let mut cookie = 0;
        loop {
            self.drawn += 1;
            let claim = Claim {
                flow: Label::from_random(flow),
                nonce: self.drawn,
                cookie,
                from: id(from),
                to: id("t"),
                peer: id("b"),
                hops: vec![id("t")],
                next: Next::At(at(2)),
                lease: lease.clone(),
            };
            let (drawn, told) = (self.drawn, &self.told);
            let flows = &mut self.flows;
            match flows.claim(&claim, source, &self.roster, told, || drawn, self.now) {
                Ruling::Prove { cookie: given } => cookie = given,
                ruling => return ruling,
            }
        }
    }

    fn forwards(&mut self, flow: u64) -> Result<SocketAddr, NotForwarded> {
        let flow = Label::from_random(flow);
        self.flows.forward(flow, at(1), 1, 100, self.now)
    }

    fn retain(&mut self) {
        self.flows.retain(&self.roster, &self.told, self.now);
    }
}

fn granted(lasts: u32) -> Ruling {
    Ruling::Granted { lasts }
}

#[test]
fn a_claim_is_granted_with_a_lease_of_its_own_and_with_no_other() {
    let good = lease(1);
    let other = |change: fn(&mut Lease)| {
        let mut other = lease(1);
        change(&mut other);
        written(&other, 100)
    };
    for (lease, refusal) in [
        (Vec::new(), Refusal::NoLease),
        (b"nonsense".to_vec(), Refusal::Forged),
        (written(&good, 0), Refusal::Expired),
        (written(&good, -1), Refusal::NotYet),
        (other(|lease| lease.sub = id("g")), Refusal::OtherLease),
        (other(|lease| lease.peer = id("g")), Refusal::OtherLease),
        (
            other(|lease| lease.hops = vec![id("b")]),
            Refusal::OtherLease,
        ),
        (other(|lease| lease.hops.push(id("b"))), Refusal::OtherLease),
        (
            other(|lease| lease.flow = Label::from_random(2)),
            Refusal::OtherLease,
        ),
        (other(|lease| lease.epoch = Epoch(4)), Refusal::Revoked),
    ] {
        let mut relay = Relay::new();
        assert_eq!(relay.claim("a", 1, lease), Ruling::Refused(refusal));
        assert!(relay.flows.is_empty(), "{refusal:?}");
    }
    let mut relay = Relay::new();
    // Nobody else has it, though it was seen on the way.
    let stolen = relay.claim("g", 1, written(&good, 100));
    assert_eq!(stolen, Ruling::Refused(Refusal::OtherLease));
    assert_eq!(relay.claim("a", 1, written(&good, 100)), granted(60));
    assert_eq!(relay.forwards(1), Ok(at(2)));
}

#[test]
fn a_flow_ends_with_its_lease_and_its_signature_is_checked_once() {
    let mut relay = Relay::new();
    let good = written(&lease(1), 100);
    assert_eq!(relay.claim("a", 1, good.clone()), granted(60));
    relay.now += LASTS / 2;
    assert_eq!(relay.claim("a", 1, good.clone()), granted(60));
    relay.now += LASTS / 2;
    assert_eq!(relay.claim("a", 1, good.clone()), granted(40));
    assert_eq!(relay.told.checks.load(Ordering::Relaxed), 1);
    let tally = relay.flows.take_tally();
    assert_eq!((tally.checked, tally.known), (1, 2));
    relay.now += SECOND * 40;
    assert_eq!(relay.forwards(1), Err(NotForwarded::UnknownFlow));
    let again = relay.claim("a", 1, good);
    assert_eq!(again, Ruling::Refused(Refusal::Expired));
}

#[test]
fn a_claim_that_comes_again_or_late_is_refused() {
    let mut relay = Relay::new();
    let good = written(&lease(1), 100);
    assert_eq!(relay.claim("a", 1, good.clone()), granted(60));
    for back in [0, 1] {
        relay.drawn -= 1 + back;
        let again = relay.claim("a", 1, good.clone());
        assert_eq!(again, Ruling::Refused(Refusal::Replayed));
    }
}

#[test]
fn a_flow_carries_what_its_lease_says_and_another_lease_says_another_thing() {
    let mut relay = Relay::new();
    let sent = |relay: &mut Relay| {
        let mut sent = 0;
        for _ in 0..1000 {
            relay.now += Duration::from_millis(1);
            for _ in 0..5 {
                sent += u32::from(relay.forwards(1).is_ok());
            }
        }
        sent
    };
    assert_eq!(relay.claim("a", 1, written(&lease(1), 100)), granted(60));
    // As many packets as it may, and what may come at once.
    let first = sent(&mut relay);
    assert!((1000..=1070).contains(&first), "{first}");
    let more = Lease {
        pps: 3000,
        ..lease(1)
    };
    assert_eq!(relay.claim("a", 1, written(&more, 100)), granted(60));
    let second = sent(&mut relay);
    assert!((2990..=3160).contains(&second), "{second}");
}

#[test]
fn what_is_revoked_goes_on_for_a_moment_unless_it_has_another_lease_by_then() {
    let revoke = |relay: &mut Relay| {
        relay.roster.nodes[0].leases.since = 8;
        relay.retain();
    };
    let mut relay = Relay::new();
    assert_eq!(relay.claim("a", 1, written(&lease(1), 100)), granted(60));
    revoke(&mut relay);
    let old = relay.claim("a", 1, written(&lease(1), 100));
    assert_eq!(old, Ruling::Refused(Refusal::Revoked));
    relay.now += REVOKED_LASTS - Duration::from_millis(1);
    assert!(relay.forwards(1).is_ok());
    relay.now += Duration::from_millis(1);
    assert_eq!(relay.forwards(1), Err(NotForwarded::UnknownFlow));

    let mut relay = Relay::new();
    assert_eq!(relay.claim("a", 1, written(&lease(1), 100)), granted(60));
    revoke(&mut relay);
    let newer = Lease {
        epoch: Epoch(8),
        ..lease(1)
    };
    assert_eq!(relay.claim("a", 1, written(&newer, 100)), granted(60));
    relay.now += REVOKED_LASTS;
    relay.retain();
    assert!(relay.forwards(1).is_ok());

    // So ends what a key has signed that is not trusted any more.
    relay.told.distrusts = Some(0);
    relay.retain();
    relay.now += REVOKED_LASTS;
    assert_eq!(relay.forwards(1), Err(NotForwarded::UnknownFlow));
}

#[test]
fn in_silence_the_roster_permits_what_it_says_of_the_claimant() {
    let mut relay = Relay::new();
    relay.flows.hears_master(false, relay.now);
    let no_lease = Ruling::Refused(Refusal::NoLease);
    assert_eq!(relay.claim("a", 1, Vec::new()), no_lease);
    relay.now += Silence::BEGINS;
    relay.roster.nodes[0].leases.packets_per_second = Some(1);
    assert_eq!(relay.claim("a", 1, Vec::new()), granted(60));
    let expired = written(&lease(2), 0);
    assert_eq!(relay.claim("a", 2, expired.clone()), granted(60));
    // What holds is looked at as ever, and lasts for longer than it says.
    assert_eq!(relay.claim("a", 3, written(&lease(3), 5)), granted(60));
    let other = relay.claim("a", 4, written(&lease(3), 5));
    assert_eq!(other, Ruling::Refused(Refusal::OtherLease));
    // 64 at once, and one in a second.
    let through = (0..100).filter(|_| relay.forwards(1).is_ok()).count();
    assert_eq!(through, 64);

    relay.flows.hears_master(true, relay.now);
    relay.now += Silence::ENDS;
    assert_eq!(relay.claim("a", 5, Vec::new()), no_lease);
    let expired = relay.claim("a", 2, expired);
    assert_eq!(expired, Ruling::Refused(Refusal::Expired));
    relay.now += LASTS;
    relay.flows.expire(relay.now);
    assert!(relay.flows.is_empty());
}

#[test]
fn a_flood_of_forged_leases_is_checked_within_bounds_and_holds_up_nobody() {
    let mut relay = Relay::new();
    for flow in 0..100 {
        let good = written(&lease(flow), 3600);
        assert_eq!(relay.claim("a", flow, good), granted(60));
    }
    let mut refused = HashMap::new();
    for second in 0..10 {
        for forged in 0..5_000u64 {
            if forged % 500 == 0 {
                relay.now += CHECKS_IN;
            }
            let forgery = [b"forged".as_slice(), &forged.to_be_bytes()].concat();
            let Ruling::Refused(refusal) = relay.claim("g", 1_000 + forged, forgery) else {
                panic!("it is granted");
            };
            *refused.entry(refusal).or_insert(0u64) += 1;
            if forged % 50 == 0 {
                assert!(relay.forwards(forged / 50).is_ok());
            }
        }
        // Others are served meanwhile: what was checked before, and what comes anew.
        let good = written(&lease(1), 3600);
        assert_eq!(relay.claim("a", 1, good), granted(60));
        let anew = written(&lease(200 + second), 3600);
        assert_eq!(relay.claim("a", 200 + second, anew), granted(60));
        relay.flows.expire(relay.now);
    }
    // Each was counted: 200 in a second as forged, and the others as too many.
    let checks = u64::from(CHECKS_EACH) * 10;
    assert_eq!(refused[&Refusal::Forged], checks);
    assert_eq!(refused[&Refusal::Busy], 50_000 - checks);
    assert_eq!(relay.told.checks.load(Ordering::Relaxed), checks + 110);
    assert_eq!(relay.flows.len(), 110);
    let remembered = relay.flows.remembered_leases();
    assert_eq!(remembered, 110);
}

#[test]
fn however_many_forge_packets_wait_for_a_few_checks_at_a_time() {
    let mut leases = Leases::new(beginning());
    let (roster, told) = (roster(), Told::default());
    let mut now = beginning();
    for checked in 1..=20 {
        for forged in 0..5_000u64 {
            let claim = Claim {
                flow: Label::from_random(forged),
                nonce: 1,
                cookie: 0,
                from: id(&format!("g{}", forged % 12)),
                to: id("t"),
                peer: id("b"),
                hops: vec![id("t")],
                next: Next::At(at(2)),
                lease: b"forged".to_vec(),
            };
            assert!(leases.check(&claim, &roster, &told, now).is_err());
        }
        assert_eq!(leases.tally.checked, checked * u64::from(CHECKS));
        now += CHECKS_IN;
    }
}

#[test]
fn members_that_forge_together_leave_every_other_its_share_of_the_checks() {
    let mut leases = Leases::new(beginning());
    let (mut roster, told) = (roster(), Told::default());
    let forgers: Vec<NodeId> = (0..16).map(|number| id(&format!("g{number}"))).collect();
    for forger in &forgers {
        let mut node = roster.nodes[0].clone();
        node.id = forger.clone();
        roster.nodes.push(node);
    }
    let share = CHECKS / 2 / roster.nodes.len() as u32;
    let (mut now, mut flow) = (beginning(), 0);
    let mut check = |leases: &mut Leases, from: &NodeId, now| {
        flow += 1;
        let mut lease = lease(flow);
        lease.sub = from.clone();
        let claim = Claim {
            flow: lease.flow,
            nonce: 1,
            cookie: 0,
            from: from.clone(),
            to: id("t"),
            peer: id("b"),
            hops: vec![id("t")],
            next: Next::At(at(2)),
            // What a forger shows is looked at as well.
            lease: written(&lease, if *from == id("a") { 3600 } else { 0 }),
        };
        leases.check(&claim, &roster, &told, now).map(|_| ())
    };
    for _ in 0..10 {
        let mut looked_at = 0;
        for _ in 0..500 {
            for forger in &forgers {
                let refused = check(&mut leases, forger, now).unwrap_err();
                looked_at += u32::from(refused == Refusal::Expired);
            }
        }
        assert_eq!(looked_at, CHECKS / 2 + share * forgers.len() as u32);
        for _ in 0..share {
            assert_eq!(check(&mut leases, &id("a"), now), Ok(()));
        }
        assert_eq!(check(&mut leases, &id("a"), now), Err(Refusal::Busy));
        now += CHECKS_IN;
    }
}

#[test]
fn what_is_remembered_is_bounded_and_what_is_not_costs_another_check() {
    let mut leases = Leases::new(beginning());
    let (roster, told) = (roster(), Told::default());
    let mut now = beginning();
    let check = |leases: &mut Leases, flow: u64, now| {
        let claim = Claim {
            flow: Label::from_random(flow),
            nonce: 1,
            cookie: 0,
            from: id("a"),
            to: id("t"),
            peer: id("b"),
            hops: vec![id("t")],
            next: Next::At(at(2)),
            lease: written(&lease(flow), 360_000),
        };
        leases.check(&claim, &roster, &told, now).map(|_| ())
    };
    let count = KNOWN as u64 + 100;
    for flow in 0..count {
        // As many as are of no one's own.
        if flow % u64::from(CHECKS / 2) == 0 {
            now += SECOND;
        }
        assert_eq!(check(&mut leases, flow, now), Ok(()));
        assert!(leases.len() <= KNOWN);
    }
    now += SECOND;
    let before = leases.tally;
    assert_eq!(check(&mut leases, count - 1, now), Ok(()));
    assert_eq!(leases.tally.known, before.known + 1);
    assert_eq!(check(&mut leases, 0, now), Ok(()));
    assert_eq!(leases.tally.checked, before.checked + 1);
}
