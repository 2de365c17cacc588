use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
    control::{Node, Role, Roster},
    overlay::{
        beginning,
        lease::tests::Nobody,
        transit::{Flows, Limits},
        ways::Hop,
    },
};

fn id(id: &str) -> NodeId {
    id.parse().unwrap()
}

fn address(last: u8) -> SocketAddr {
    ([192, 0, 2, last], 4435).into()
}

fn node(name: &str, role: Role, last: u8) -> Node {
    Node {
        id: id(name),
        role,
        keys: Vec::new(),
        addresses: vec![address(100 + last)],
        transit: match role {
            Role::Relay => vec![address(last)],
            _ => Vec::new(),
        },
        attached: Vec::new(),
        services: Vec::new(),
        registration: 1,
        leases: Default::default(),
        placement: Default::default(),
    }
}

/// The gateway `a`, the exit `b`, and `count` relays.
fn roster(count: u8) -> Roster {
    let mut nodes = vec![node("a", Role::Gateway, 50), node("b", Role::Relay, 51)];
    nodes.extend((1..=count).map(|last| node(&format!("t{last}"), Role::Relay, last)));
    Roster {
        nodes: nodes.into(),
        ..Roster::empty("test".parse().unwrap())
    }
}

/// A passage and its relays, in simulated time.
struct World {
    passage: Passage,
    relays: BTreeMap<SocketAddr, Flows>,
    roster: Roster,
    start: Instant,
    now: Instant,
    drawn: u64,
    claims: u32,
    offer: Offer,
    /// How long a packet takes to each relay, from the one before it; no time where none is given.
    delays: Vec<Duration>,
    /// Verdicts on their way, and when they come.
    coming: Vec<(Instant, Verdict)>,
    /// The claims, by their number, whose verdicts are lost.
    unanswered: Vec<u32>,
    /// When each claim was made, and of which relay.
    made: Vec<(Duration, NodeId)>,
}

impl World {
    fn new(hops: u8) -> Self {
        let roster = roster(3);
        let now = beginning();
        let hops: Vec<_> = (1..=hops)
            .map(|last| Hop {
                node: id(&format!("t{last}")),
                address: address(last),
            })
            .collect();
        let relays = hops
            .iter()
            .map(|hop| {
                (
                    hop.address,
                    Flows::new(hop.node.clone(), Limits::default(), now),
                )
            })
            .collect();
        let flow = Label::from_random(7);
        let last = Next::At(address(151));
        let way = Way { hops, last };
        Self {
            passage: Passage::new(id("a"), way, id("b"), flow, now),
            relays,
            roster,
            start: now,
            now,
            drawn: 0,
            claims: 0,
            offer: Offer::Nothing,
            delays: Vec::new(),
            coming: Vec::new(),
            unanswered: Vec::new(),
            made: Vec::new(),
        }
    }

    fn draw(&mut self) -> u64 {
        self.drawn += 1;
        self.drawn
    }

    /// Lets so many steps of 10 ms pass; `lost` says which claims come to nothing.
    fn run(&mut self, steps: u32, mut lost: impl FnMut(u32) -> bool) {
        for _ in 0..steps {
            self.now += Duration::from_millis(10);
            self.deliver();
            let drawn = self.draw();
            let Some((claim, via)) = self.passage.poll(self.now, || self.offer.clone(), || drawn)
            else {
                continue;
            };
            self.claims += 1;
            self.made.push((self.now - self.start, claim.to.clone()));
            if lost(self.claims) {
                continue;
            }
            let cookie = self.draw();
            // Along the relays before it, which forward it only if they carry the flow.
            let mut source = address(200);
            let mut at = via;
            let mut passed = 0;
            let verdict = loop {
                let Some(relay) = self.relays.get_mut(&at) else {
                    break None;
                };
                let hops = &self.passage.way().hops;
                if hops
                    .iter()
                    .any(|hop| hop.node == claim.to && hop.address == at)
                {
                    let roster = &self.roster;
                    break Some(relay.claim(&claim, source, roster, &Nobody, || cookie, self.now));
                }
                let Ok(next) = relay.forward(claim.flow, source, 1, 300, self.now) else {
                    break None;
                };
                (source, at) = (at, next);
                passed += 1;
            };
            let verdict = verdict.filter(|_| !self.unanswered.contains(&self.claims));
            if let Some(ruling) = verdict {
                let verdict = Verdict {
                    flow: claim.flow,
                    nonce: claim.nonce,
                    ruling,
                    from: claim.to,
                    to: claim.from,
                    seen: None,
                };
                let travelled: Duration = self.delays.iter().take(passed + 1).sum();
                self.coming.push((self.now + 2 * travelled, verdict));
            }
            self.deliver();
        }
    }

    /// Gives the passage the verdicts that have come.
    fn deliver(&mut self) {
        let now = self.now;
        for (_, verdict) in self.coming.extract_if(.., |(at, _)| *at <= now) {
            self.passage.told(&verdict, now);
        }
    }

    /// The last round trip to each relay in milliseconds, and how many milliseconds ago that was.
    fn timing(&self) -> Vec<(u128, u128)> {
        let timings = self.passage.hops().map(|(_, told)| {
            let measured = told.round_trip.unwrap();
            let ago = self.now.saturating_duration_since(measured.at);
            (measured.latest.as_millis(), ago.as_millis())
        });
        timings.collect()
    }

    /// Whether a packet comes through, both ways.
    fn carries(&mut self) -> bool {
        let hops: Vec<_> = self
            .passage
            .way()
            .hops
            .iter()
            .map(|hop| hop.address)
            .collect();
        let ends = [&[address(200)], &hops[..], &[address(151)]].concat();
        let mut through = |way: &[SocketAddr]| {
            way.windows(3).all(|at| {
                let relay = self.relays.get_mut(&at[1]).unwrap();
                relay.forward(Label::from_random(7), at[0], 1, 100, self.now) == Ok(at[2])
            })
        };
        let back: Vec<_> = ends.iter().rev().copied().collect();
        through(&ends) && through(&back)
    }
}

#[test]
fn each_relay_grants_in_its_turn_and_then_packets_come_through() {
    for hops in 1..=3 {
        let mut world = World::new(hops);
        assert_eq!(world.passage.route(world.now), None);
        world.run(20, |_| false);
        let route = Route::Flow {
            via: address(1),
            id: Label::from_random(7),
        };
        assert_eq!(world.passage.route(world.now), Some(route));
        assert!(world.carries());
        // One claim each, and the first relay's once more.
        assert_eq!(world.claims, u32::from(hops) + 1);
    }
}

#[test]
fn it_stays_open_for_as_long_as_it_is_wanted_and_few_claims_are_made() {
    let mut world = World::new(2);
    world.run(20, |_| false);
    let before = world.claims;
    for _ in 0..60 {
        world.run(1000, |_| false);
        for relay in world.relays.values_mut() {
            relay.expire(world.now);
        }
        assert!(world.passage.route(world.now).is_some());
        assert!(world.carries());
    }
    assert_eq!(world.claims - before, 2 * 20 - 2);
}

#[test]
fn it_is_none_once_a_relay_was_not_heard_of_for_as_long_as_the_flow_lasts() {
    let mut world = World::new(1);
    world.run(20, |_| false);
    world.run(6_100, |_| true);
    assert_eq!(world.passage.route(world.now), None);
    world.run(1_100, |_| false);
    assert!(world.passage.route(world.now).is_some());
}

#[test]
fn a_relay_that_was_started_anew_grants_it_again() {
    let mut world = World::new(2);
    world.run(20, |_| false);
    let anew = Flows::new(id("t1"), Limits::default(), world.now);
    world.relays.insert(address(1), anew);
    assert!(!world.carries());
    world.passage.fell_silent(world.now);
    assert_eq!(world.passage.route(world.now), None);
    world.run(20, |_| false);
    assert!(world.carries());
}

#[test]
fn a_relay_that_was_started_anew_before_anything_came_through_is_asked_again_after_five_seconds() {
    let mut world = World::new(2);
    world.run(20, |_| false);
    let anew = Flows::new(id("t1"), Limits::default(), world.now);
    world.relays.insert(address(1), anew);
    let granted = world.now;
    while !world.carries() {
        world.passage.stays_unproved();
        world.run(1, |_| false);
        assert!(world.passage.route(world.now).is_some(), "it is asked on");
    }
    let took = world.now - granted;
    assert!((4_700..=5_100).contains(&took.as_millis()), "{took:?}");
    world.run(20, |_| false);
    let before = world.claims;
    world.run(1_000, |_| false);
    assert_eq!(world.claims, before, "something came through");
}

#[test]
fn a_relay_that_was_started_anew_while_the_next_one_was_asked_is_asked_again() {
    let mut world = World::new(2);
    // The first one has granted; then it forgets, and what goes to the second is lost with it.
    while world.claims < 2 {
        world.run(1, |_| false);
    }
    assert_eq!(world.passage.step, 1);
    let anew = Flows::new(id("t1"), Limits::default(), world.now);
    world.relays.insert(address(1), anew);
    world.run(1_000, |_| false);
    assert!(world.passage.route(world.now).is_some());
    assert!(world.carries());
}

#[test]
fn a_refusal_is_taken_for_what_it_is_and_asked_again_later() {
    let mut world = World::new(1);
    world.relays.get_mut(&address(1)).unwrap().drain();
    world.run(6_000, |_| false);
    assert_eq!(world.passage.route(world.now), None);
    // After half a second, one, two, four, and then each five.
    assert!((14..=16).contains(&world.claims), "{}", world.claims);
}

#[test]
fn what_was_refused_is_asked_again_at_once_when_the_roster_changed_and_then_less_often() {
    let mut world = World::new(1);
    world.relays.get_mut(&address(1)).unwrap().drain();
    world.run(1_000, |_| false);
    let asked = world.claims;
    world.passage.roster_changed(world.now);
    world.run(1, |_| false);
    assert_eq!(world.claims, asked + 1);
    // One that is due in a moment is asked then, and what was refused before does not make the next one wait.
    let mut due = World::new(1);
    due.relays.get_mut(&address(1)).unwrap().drain();
    due.run(745, |_| false);
    let soon = due.now + due.passage.patience();
    assert!(due.passage.claim_at > due.now && due.passage.claim_at < soon);
    let asked = due.claims;
    due.passage.roster_changed(due.now);
    due.run(1, |_| false);
    assert_eq!(due.claims, asked);
    due.run(200, |_| false);
    assert_eq!(due.claims, asked + 3);
    // One that is being asked is left alone, however often it changes.
    let mut asking = World::new(1);
    assert!(
        asking
            .passage
            .poll(asking.now, || Offer::Nothing, || 9)
            .is_some()
    );
    asking.passage.roster_changed(asking.now);
    assert_eq!(
        asking.passage.poll(asking.now, || Offer::Nothing, || 10),
        None
    );
}

#[test]
fn what_was_not_asked_changes_nothing() {
    let mut world = World::new(1);
    let (claim, _) = world
        .passage
        .poll(world.now, || Offer::Nothing, || 9)
        .unwrap();
    let grant = Ruling::Granted { lasts: 60 };
    let verdict = |nonce, from: &str| Verdict {
        flow: claim.flow,
        nonce,
        ruling: grant,
        from: id(from),
        to: id("a"),
        seen: None,
    };
    assert_eq!(claim.nonce, 1 << 32 | 9);
    world
        .passage
        .told(&verdict(claim.nonce - 1, "t1"), world.now);
    world.passage.told(&verdict(claim.nonce, "t2"), world.now);
    assert_eq!(world.passage.route(world.now), None);
    world.passage.told(&verdict(claim.nonce, "t1"), world.now);
    assert!(world.passage.route(world.now).is_some());
}

#[test]
fn it_waits_for_a_lease_and_claims_at_once_when_there_is_one_or_another() {
    let mut world = World::new(1);
    world.offer = Offer::Wait;
    world.run(100, |_| false);
    assert_eq!(world.claims, 0);
    world.passage.offered(&Offer::Wait, world.now);
    world.run(100, |_| false);
    assert_eq!(world.claims, 0);
    world.offer = Offer::Nothing;
    world.passage.offered(&world.offer.clone(), world.now);
    world.run(10, |_| false);
    assert!(world.passage.route(world.now).is_some());
    let before = world.claims;
    world.run(100, |_| false);
    assert_eq!(world.claims, before);
    let lease = Offer::Lease(vec![1, 2].into());
    world.passage.offered(&lease, world.now);
    let (claim, _) = world
        .passage
        .poll(world.now, || lease.clone(), || 9)
        .unwrap();
    assert_eq!(claim.lease, [1, 2]);
    // The flow is there meanwhile.
    assert!(world.passage.route(world.now).is_some());
    world.passage.offered(&lease, world.now);
    assert_eq!(world.passage.poll(world.now, || lease.clone(), || 9), None);
}

#[test]
fn a_flow_that_ends_soon_is_claimed_once_a_second_and_no_more() {
    let mut world = World::new(1);
    let grant = Ruling::Granted { lasts: 0 };
    let mut claims = 0;
    for _ in 0..1000 {
        world.now += Duration::from_millis(10);
        let asked = world.passage.poll(world.now, || Offer::Nothing, || 9);
        let Some((claim, _)) = asked else {
            continue;
        };
        claims += 1;
        let verdict = Verdict {
            flow: claim.flow,
            nonce: claim.nonce,
            ruling: grant,
            from: claim.to,
            to: claim.from,
            seen: None,
        };
        world.passage.told(&verdict, world.now);
    }
    assert!((9..=11).contains(&claims), "{claims}");
}

proptest! {
    #[test]
    fn it_opens_in_the_end_whatever_is_lost(hops in 1u8..=3, lost in prop::collection::vec(any::<bool>(), 0..12)) {
        let mut world = World::new(hops);
        world.run(20_000, |claim| lost.get(claim as usize).copied().unwrap_or(false));
        prop_assert!(world.passage.route(world.now).is_some());
        prop_assert!(world.carries());
        prop_assert!(world.now > world.start);
    }
}

/// Links of 10, 30 and 20 ms.
fn delayed() -> World {
    let mut world = World::new(3);
    world.delays = [10, 30, 20].map(Duration::from_millis).to_vec();
    world.run(60, |_| false);
    world
}

#[test]
fn the_way_to_each_relay_and_back_is_timed_by_its_verdict() {
    let world = delayed();
    let times: Vec<_> = world.timing().iter().map(|(time, _)| *time).collect();
    assert_eq!(times, [20, 80, 120]);
    let granted = Some(Ruling::Granted { lasts: 60 });
    assert!(world.passage.hops().all(|(_, told)| told.ruling == granted));
}

#[test]
fn claims_that_are_lost_are_not_timed_and_the_next_one_is_timed_by_itself() {
    let mut world = World::new(1);
    world.delays = vec![Duration::from_millis(40)];
    world.run(400, |claim| claim <= 3);
    assert_eq!(world.timing()[0].0, 80);
    // One that comes when the claim was made again is timed by the claim that it answers, and ends the waiting.
    world.delays = vec![Duration::from_millis(200)];
    world.passage.measure(world.now);
    let before = world.claims;
    world.run(42, |_| false);
    assert_eq!(world.claims - before, 2);
    assert_eq!(world.timing()[0].0, 400);
    world.run(1_000, |_| false);
    assert_eq!(world.claims - before, 2);
}

/// Milliseconds from each claim to the next one, and the relay that it was made of.
fn gaps(world: &World) -> Vec<(u128, String)> {
    let pairs = world.made.windows(2);
    let gap = |pair: &[(Duration, NodeId)]| {
        let (before, after) = (&pair[0], &pair[1]);
        ((after.0 - before.0).as_millis(), after.1.to_string())
    };
    pairs.map(gap).collect()
}

#[test]
fn over_a_hop_of_400_ms_nothing_is_sent_twice_and_the_flow_is_there_after_one_round_trip_for_each_claim()
 {
    for hops in 1..=3 {
        let mut world = World::new(hops);
        world.delays = [200, 10, 10].map(Duration::from_millis).to_vec();
        while world.passage.route(world.now).is_none() {
            world.run(1, |_| false);
        }
        // The first relay's cookie, and then each relay's grant.
        let trips = [400, 400, 420, 440];
        let expected: u128 = trips.iter().take(1 + usize::from(hops)).sum();
        assert_eq!(world.claims, u32::from(hops) + 1);
        let took = (world.now - world.start).as_millis();
        // Looked at each 10 ms, a claim later.
        assert!((expected..=expected + 10).contains(&took), "{took}");
        // Nor when it is claimed again.
        world.run(4_000, |_| false);
        assert_eq!(world.claims, 2 * u32::from(hops) + 1);
        assert!(world.carries());
    }
}

#[test]
fn a_claim_whose_answer_is_lost_is_made_again_by_the_time_that_answers_take() {
    let near = Duration::from_millis(10);
    let far = Duration::from_millis(200);
    for (delay, unknown, known) in [(near, 500, 100), (far, 500, 1_200)] {
        // Nothing was heard of the relay yet; then its cookie was, of which the first variation is half.
        let mut world = World::new(1);
        world.delays = vec![delay];
        world.unanswered = vec![1, 3];
        world.run(400, |_| false);
        assert!(world.carries());
        let to_cookie = 2 * delay.as_millis();
        let waits: Vec<_> = gaps(&world).iter().map(|(gap, _)| *gap).collect();
        assert_eq!(waits, [unknown, to_cookie, known]);
    }
}

#[test]
fn a_relay_behind_a_far_one_has_the_time_that_the_far_one_takes_besides() {
    let mut world = World::new(2);
    world.delays = [200, 250].map(Duration::from_millis).to_vec();
    world.unanswered = vec![3];
    world.run(400, |_| false);
    assert!(world.carries());
    let t = |relay: u8| format!("t{relay}");
    let expected = [(400, t(1)), (400, t(2)), (900, t(2))];
    assert_eq!(gaps(&world), expected);
}

#[test]
fn a_refusal_of_a_claim_that_was_made_again_waits_for_the_newest_ones_verdict() {
    let mut world = World::new(1);
    let ask = |world: &mut World, after: u64| {
        world.now += Duration::from_millis(after);
        let claim = world.passage.poll(world.now, || Offer::Nothing, || 9);
        claim.unwrap().0
    };
    let first = ask(&mut world, 0);
    let second = ask(&mut world, 500);
    let verdict = |nonce, ruling| Verdict {
        flow: first.flow,
        nonce,
        ruling,
        from: id("t1"),
        to: id("a"),
        seen: None,
    };
    // The second one came there first and was granted, so that the first one was there too late.
    let replayed = verdict(first.nonce, Ruling::Refused(Refusal::Replayed));
    assert_eq!(world.passage.told(&replayed, world.now), None);
    let granted = verdict(second.nonce, Ruling::Granted { lasts: 60 });
    assert_eq!(world.passage.told(&granted, world.now), None);
    assert!(world.passage.route(world.now).is_some());
}

#[test]
fn whoever_wants_to_know_has_every_relay_timed_anew_and_nobody_has_it_done_more_than_once_a_second()
{
    let mut world = delayed();
    world.run(500, |_| false);
    assert!(world.timing().iter().all(|(_, ago)| *ago >= 5_000));
    // The second relay is farther away now.
    world.delays[1] = Duration::from_millis(80);
    let before = world.claims;
    for _ in 0..50 {
        world.passage.measure(world.now);
        world.run(1, |_| false);
    }
    let (times, ages): (Vec<_>, Vec<_>) = world.timing().into_iter().unzip();
    assert_eq!(times, [20, 180, 220]);
    assert!(ages.iter().all(|ago| *ago < 500), "{ages:?}");
    assert_eq!(world.claims - before, 3);
    // Packets came through all the time.
    assert!(world.carries());
    world.run(60, |_| false);
    world.passage.measure(world.now);
    world.run(60, |_| false);
    assert_eq!(world.claims - before, 6);
}

#[test]
fn a_passage_that_is_not_open_is_not_claimed_out_of_turn() {
    let mut world = World::new(1);
    world.relays.get_mut(&address(1)).unwrap().drain();
    world.run(6_000, |_| false);
    let before = world.claims;
    world.passage.measure(world.now);
    world.run(10, |_| false);
    assert!(world.claims - before <= 1);
    let told = world.passage.hops().next().unwrap().1;
    assert_eq!(told.ruling, Some(Ruling::Refused(Refusal::Draining)));
    assert_eq!(world.passage.open_until(world.now), None);
}
