use std::{collections::HashMap, ops::Range};

use proptest::prelude::*;
use wavry_proto::{
    control::{Node, Role},
    placement::{Load, Placement},
};

use super::*;

/// Draws that a share is measured by: its standard deviation is under 0.4 %.
const DRAWS: Range<u64> = 0..20_000;
const NEAR: f64 = 0.02;

fn id(exit: usize) -> NodeId {
    format!("exit-{exit}").parse().unwrap()
}

fn service() -> ServiceName {
    "echo".parse().unwrap()
}

/// Exits for service `echo`, each with its weight and region.
fn roster(exits: &[(u16, &str)]) -> Roster {
    let node = |(n, (weight, region)): (usize, &(u16, &str))| Node {
        id: id(n),
        role: Role::Relay,
        keys: Vec::new(),
        addresses: Vec::new(),
        transit: Vec::new(),
        attached: Vec::new(),
        services: vec![service()],
        registration: 1,
        leases: Default::default(),
        placement: Placement {
            region: region.parse().ok(),
            weight: (*weight).try_into().unwrap(),
            names: Vec::new(),
        },
    };
    let mut roster = Roster::empty("test".parse().unwrap());
    roster.nodes = exits.iter().enumerate().map(node).collect();
    roster
}

fn order(choice: &Choice, roster: &Roster, key: u64, now: Instant) -> Vec<NodeId> {
    let service = service();
    let order = choice.order(roster, &service, None, key, now);
    order.into_iter().cloned().collect()
}

fn first(choice: &Choice, roster: &Roster, key: u64, now: Instant) -> NodeId {
    order(choice, roster, key, now).remove(0)
}

/// Each exit's part of all sessions.
fn shares(choice: &Choice, roster: &Roster, now: Instant) -> Vec<f64> {
    let mut firsts: HashMap<NodeId, u32> = HashMap::new();
    for key in DRAWS {
        *firsts.entry(first(choice, roster, key, now)).or_default() += 1;
    }
    let share = |n| firsts.get(&id(n)).copied().unwrap_or_default();
    let all = (DRAWS.end - DRAWS.start) as f64;
    let exits = 0..roster.nodes.len();
    exits.map(|n| f64::from(share(n)) / all).collect()
}

fn weights() -> impl Strategy<Value = Vec<u16>> {
    prop::collection::vec(1u16..=1000, 2..6)
}

fn of_weights(weights: &[u16]) -> Roster {
    let exits: Vec<_> = weights.iter().map(|weight| (*weight, "")).collect();
    roster(&exits)
}

/// What can happen to an exit.
#[derive(Debug, Clone)]
enum Event {
    Failed(usize),
    Reached(usize),
    Took(usize),
    Left(usize),
    Told(usize, u16),
    /// Time passes, in milliseconds, and what is due is done.
    Turn(u64),
}

fn event(exits: usize) -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0..exits).prop_map(Event::Failed),
        1 => (0..exits).prop_map(Event::Reached),
        1 => (0..exits).prop_map(Event::Took),
        1 => (0..exits).prop_map(Event::Left),
        2 => (0..exits, 0u16..1200).prop_map(|(exit, load)| Event::Told(exit, load)),
        4 => (0u64..20_000).prop_map(Event::Turn),
    ]
}

proptest! {
    #[test]
    fn no_exit_that_failed_comes_before_one_that_did_not_and_none_is_left_out(
        weights in weights(),
        events in prop::collection::vec(event(6), 0..60),
        key: u64,
    ) {
        let roster = of_weights(&weights);
        let (mut choice, mut now) = (Choice::default(), Instant::now());
        // What was seen of each, without knowing how that is kept: `true` from a failure until it is reached.
        let mut failed = vec![false; weights.len()];
        let mut looked_at: Vec<NodeId> = Vec::new();
        for event in events {
            let exit = |exit: usize| exit % weights.len();
            match event {
                Event::Failed(n) => {
                    choice.failed(&id(exit(n)), now);
                    looked_at.retain(|at| *at != id(exit(n)));
                    failed[exit(n)] = true;
                }
                Event::Reached(n) => {
                    let was = failed[exit(n)];
                    prop_assert_eq!(choice.reached(&id(exit(n)), now), was);
                    looked_at.retain(|at| *at != id(exit(n)));
                    failed[exit(n)] = false;
                }
                Event::Took(n) => choice.took(&id(exit(n)), &service()),
                Event::Left(n) => choice.left(&id(exit(n))),
                Event::Told(n, load) => {
                    let load: Load = load.to_string().parse().unwrap();
                    choice.told(&id(exit(n)), load, now);
                }
                Event::Turn(millis) => {
                    now += Duration::from_millis(millis);
                    for due in choice.turn(&roster, |_| None, now) {
                        prop_assert!(!looked_at.contains(&due), "nobody answered for it yet");
                        let n = (0..weights.len()).find(|n| id(*n) == due).unwrap();
                        prop_assert!(failed[n], "it is well");
                        looked_at.push(due);
                    }
                }
            }
            let order = order(&choice, &roster, key, now);
            prop_assert_eq!(order.len(), weights.len());
            let has_failed = |exit: &NodeId| {
                failed[(0..weights.len()).find(|n| id(*n) == *exit).unwrap()]
            };
            prop_assert!(order.is_sorted_by_key(has_failed), "{order:?} {failed:?}");
        }
        // Whatever happened, each one that failed is looked at within the longest ejection.
        now += Duration::from_secs(61);
        looked_at.extend(choice.turn(&roster, |_| None, now));
        prop_assert_eq!(looked_at.len(), failed.iter().filter(|failed| **failed).count());
    }

    #[test]
    fn where_an_exit_goes_only_its_own_sessions_go_elsewhere(
        weights in weights(),
        key: u64,
        gone in 0usize..6,
    ) {
        let roster = of_weights(&weights);
        let now = Instant::now();
        let gone = id(gone % weights.len());
        let before = order(&Choice::default(), &roster, key, now);

        let mut choice = Choice::default();
        choice.failed(&gone, now);
        let mut without = roster.clone();
        without.nodes.retain(|node| node.id != gone);
        let rest: Vec<_> = before.iter().filter(|exit| **exit != gone).cloned().collect();
        prop_assert_eq!(&order(&Choice::default(), &without, key, now), &rest);
        let ejected = order(&choice, &roster, key, now);
        prop_assert_eq!(&ejected[..rest.len()], &rest[..]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn shares_follow_weights(weights in weights()) {
        let all: f64 = weights.iter().copied().map(f64::from).sum();
        let shares = shares(&Choice::default(), &of_weights(&weights), Instant::now());
        for (share, weight) in shares.iter().zip(&weights) {
            let due = f64::from(*weight) / all;
            prop_assert!((share - due).abs() < NEAR, "{shares:?} for {weights:?}");
        }
    }
}

#[test]
fn gateways_do_not_all_draw_the_same() {
    let roster = of_weights(&[100; 8]);
    let now = Instant::now();
    let firsts: std::collections::HashSet<_> = (0..32)
        .map(|gateway| first(&Choice::default(), &roster, gateway, now))
        .collect();
    assert!(firsts.len() >= 6, "{firsts:?}");
}

#[test]
fn an_exit_in_the_region_comes_first_until_it_fails_or_is_full() {
    let roster = roster(&[(1, "eu"), (1000, "us"), (1000, "")]);
    let (service, now) = (service(), Instant::now());
    let region: RegionName = "eu".parse().unwrap();
    let first = |choice: &Choice, region: Option<&RegionName>| {
        let firsts = (0..50).map(|key| {
            let order = choice.order(&roster, &service, region, key, now);
            order[0].clone()
        });
        firsts.collect::<std::collections::HashSet<_>>()
    };
    let mut choice = Choice::default();
    assert_eq!(first(&choice, Some(&region)), [id(0)].into());
    assert!(first(&choice, None).len() > 1);
    let nowhere: RegionName = "nowhere".parse().unwrap();
    assert!(first(&choice, Some(&nowhere)).len() > 1);

    choice.told(&id(0), Load::FULL, now);
    assert!(!first(&choice, Some(&region)).contains(&id(0)));
    choice.told(&id(0), Load::of(1, 2), now);
    assert_eq!(first(&choice, Some(&region)), [id(0)].into());
    choice.failed(&id(0), now);
    assert!(!first(&choice, Some(&region)).contains(&id(0)));
}

#[test]
fn shares_follow_load_while_it_is_fresh_and_round_trip_times() {
    let roster = of_weights(&[100, 100]);
    let now = Instant::now();
    let mut choice = Choice::default();
    choice.told(&id(0), Load::of(3, 4), now);
    let share = shares(&choice, &roster, now)[0];
    assert!((share - 0.2).abs() < NEAR, "a quarter is free: {share}");
    let share = shares(&choice, &roster, now + Duration::from_secs(30))[0];
    assert!(
        (share - 0.5).abs() < NEAR,
        "it is not known any more: {share}"
    );

    let mut choice = Choice::default();
    let far = |exit: &NodeId| {
        Some(Duration::from_millis(match *exit == id(0) {
            true => 0,
            false => 60,
        }))
    };
    choice.turn(&roster, far, now);
    let share = shares(&choice, &roster, now)[0];
    assert!((share - 0.8).abs() < NEAR, "{share}");
    // One that is not heard of keeps the last one that was known.
    choice.turn(&roster, |_| None, now);
    assert_eq!(shares(&choice, &roster, now)[0], share);
}

#[test]
fn an_exit_that_failed_is_looked_at_later_each_time_and_comes_back_slowly() {
    let roster = of_weights(&[100, 100]);
    let (mut choice, mut now) = (Choice::default(), Instant::now());
    let second = Duration::from_secs(1);
    for ejection in [5, 10, 20, 40, 60, 60] {
        assert!(choice.failed(&id(0), now));
        assert!(!choice.failed(&id(0), now), "another session saw the same");
        now += Duration::from_secs(ejection) - second;
        assert!(choice.turn(&roster, |_| None, now).is_empty());
        now += second;
        assert_eq!(choice.turn(&roster, |_| None, now), [id(0)]);
        assert!(choice.turn(&roster, |_| None, now).is_empty());
        assert_eq!(shares(&choice, &roster, now)[0], 0.0);
    }
    assert!(choice.reached(&id(0), now));
    let mut states = choice.states(&roster, now);
    assert_eq!(states.next(), Some(State::Returning));
    assert_eq!(states.next(), Some(State::Well));
    drop(states);
    for (seconds, share) in [(0, 0.1 / 1.1), (15, 0.5 / 1.5), (30, 0.5), (31, 0.5)] {
        let then = now + second * seconds;
        choice.turn(&roster, |_| None, then);
        let is = shares(&choice, &roster, then)[0];
        assert!((is - share).abs() < NEAR, "{is} after {seconds} s");
    }
    // What was is forgotten by then.
    let then = now + second * 31;
    assert_eq!(choice.states(&roster, then).next(), Some(State::Well));
    choice.failed(&id(0), then);
    assert_eq!(choice.turn(&roster, |_| None, then + second * 5), [id(0)]);
}

#[test]
fn what_is_not_in_the_roster_any_more_is_forgotten_with_its_last_session() {
    let (mut choice, now) = (Choice::default(), Instant::now());
    let empty = of_weights(&[]);
    choice.took(&id(0), &service());
    choice.failed(&id(1), now);
    choice.turn(&empty, |_| None, now);
    assert!(choice.is_known(&id(0)) && !choice.is_known(&id(1)));
    choice.left(&id(0));
    choice.turn(&empty, |_| None, now);
    assert!(!choice.is_known(&id(0)));
}

#[test]
fn an_exit_that_does_not_know_a_service_is_left_out_for_that_one_and_serves_the_others() {
    let mut roster = of_weights(&[100, 100]);
    let other: ServiceName = "other".parse().unwrap();
    for node in &mut roster.nodes {
        node.services.push(other.clone());
    }
    let (mut choice, mut now) = (Choice::default(), Instant::now());
    let of_other = |choice: &Choice, now| {
        let firsts = (0..200).filter(|key| {
            let order = choice.order(&roster, &other, None, *key, now);
            *order[0] == id(0)
        });
        firsts.count()
    };
    let before = of_other(&choice, now);
    for pause in [5, 10, 20, 40, 60, 60] {
        assert!(choice.without(&id(0), &service(), now));
        assert!(
            !choice.without(&id(0), &service(), now),
            "another session saw the same"
        );
        assert_eq!(shares(&choice, &roster, now)[0], 0.0);
        assert_eq!(
            order(&choice, &roster, 1, now).len(),
            2,
            "it is the last, and not left out"
        );
        // It is as well as before, and nobody looks at it.
        assert_eq!(choice.states(&roster, now).next(), Some(State::Well));
        assert_eq!(of_other(&choice, now), before);
        now += Duration::from_secs(pause);
        assert!(choice.turn(&roster, |_| None, now).is_empty());
        assert!(shares(&choice, &roster, now)[0] > 0.4);
    }
    // Once it knows it, what was is forgotten; and so it is when it is an exit for the service no more.
    choice.took(&id(0), &service());
    assert!(choice.without(&id(0), &service(), now));
    now += Duration::from_secs(5);
    assert!(shares(&choice, &roster, now)[0] > 0.4);
    assert!(choice.without(&id(0), &service(), now));
    let mut without = roster.clone();
    without.nodes[0].services.retain(|name| *name == other);
    choice.turn(&without, |_| None, now);
    assert!(shares(&choice, &roster, now)[0] > 0.4);
}
