//! A cluster in one process, in simulated time: two masters on one real store, and nodes that decide by the state
//! machines that real nodes decide by. What happens is drawn from a seed – registrations, rotations of keys and
//! identities, revocations, crashes at any write, partitions, clocks that are wrong, masters of which one dies or all are
//! away – and
//! after each step the invariants of `docs/ARCHITECTURE.md` that speak of time are checked.
//!
//! Of the program this leaves out sockets and tasks: [`master`] and [`node`] do with what the state machines
//! decide what `registry` and `credentials::membership` do with it, each write on its own.

mod chance;
mod master;
mod node;
mod world;

use chance::Chance;
use world::{Broken, Event, World};

/// Steps of one run.
const STEPS: usize = 600;
/// Runs with seeds that are always the same, and more with others each time.
const RUNS: u64 = 6;
const MORE: u64 = 2;

/// What a run of one seed came to.
struct Outcome {
    steps: usize,
    broken: Option<Broken>,
    /// The last events, newest last.
    events: Vec<Event>,
}

/// Runs one seed, in a cluster of which a part is broken on purpose, or none.
async fn run(seed: u64, sabotage: Option<Sabotage>) -> Outcome {
    let mut chance = Chance::new(seed);
    let mut world = World::new(sabotage).await;
    let mut events = Vec::new();
    for step in 0..STEPS {
        let event = Event::draw(&mut chance);
        events.push(event.clone());
        world.step(event, &mut chance).await;
        if let Some(broken) = world.broken.take() {
            let last = events.len().saturating_sub(25);
            return Outcome {
                steps: step,
                broken: Some(broken),
                events: events.split_off(last),
            };
        }
    }
    Outcome {
        steps: STEPS,
        broken: None,
        events: Vec::new(),
    }
}

/// A part of the cluster that does its work badly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sabotage {
    /// A node takes rosters of whichever epoch.
    AnyEpoch,
    /// A node acts on its roster however old it is.
    NeverTooOld,
    /// Nodes keep connections of whoever left the roster.
    KeepsTheRevoked,
    /// A connection is closed as soon as its key is not listed.
    ClosesTheRotated,
    /// A node shows its next identity as soon as it was admitted.
    ShowsAtOnce,
    /// A node keeps the record that names a key before the key.
    RecordBeforeKey,
    /// A new key signs tokens at once, without being published first.
    SignsAtOnce,
    /// A key that signs no more is accepted no longer.
    RetiresAtOnce,
    /// A registration token serves as often as it is brought.
    TokenServesTwice,
    /// A node's clock is the system's, also when that is set back.
    ClockGoesBack,
    /// A node that is not heard of stays an exit.
    SilentStays,
    /// A gateway does not look at live sessions when the roster changes.
    SessionsStay,
    /// Identities stay listed after their overlap.
    OldIdentityStays,
    /// A master that is asked does not look at what another wrote.
    DoesNotLook,
}

const SABOTAGES: [(Sabotage, &str); 14] = {
    use Sabotage::*;
    [
        (AnyEpoch, "an epoch goes back"),
        (NeverTooOld, "acts on a roster that is too old"),
        (KeepsTheRevoked, "a connection with a revoked node"),
        (ClosesTheRotated, "a rotation drops sessions"),
        (
            ShowsAtOnce,
            "an identity that a peer does not know is shown",
        ),
        (RecordBeforeKey, "a key that is named is not kept"),
        (SignsAtOnce, "a token that holds is refused"),
        (RetiresAtOnce, "a token that holds is refused"),
        (TokenServesTwice, "a registration token serves twice"),
        (ClockGoesBack, "what expired holds again"),
        (SilentStays, "an exit that is silent"),
        (SessionsStay, "a session that was revoked"),
        (OldIdentityStays, "an identity outlives its overlap"),
        (DoesNotLook, "a master shows what is old"),
    ]
};

#[tokio::test]
async fn the_invariants_hold_through_thousands_of_steps_of_whatever_happens() {
    let varying = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let given = std::env::var("WAVRY_SIMULATION_SEED");
    let seeds: Vec<u64> = match given.ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => vec![seed],
        None => (1..=RUNS).chain(varying..varying + MORE).collect(),
    };
    let mut steps = 0;
    for seed in seeds {
        let outcome = run(seed, None).await;
        steps += outcome.steps;
        if let Some(broken) = outcome.broken {
            panic!(
                "WAVRY_SIMULATION_SEED={seed}, step {}: {broken}\nafter {:#?}",
                outcome.steps, outcome.events
            );
        }
    }
    println!("{steps} steps");
}

#[tokio::test]
async fn whatever_is_broken_on_purpose_is_found_and_by_the_invariant_that_it_breaks() {
    let mut wrong = Vec::new();
    for (sabotage, expected) in SABOTAGES {
        let mut found = None;
        for seed in 1..=20 {
            if let Some(broken) = run(seed, Some(sabotage)).await.broken {
                println!("{sabotage:?}: seed {seed}: {broken}");
                found = Some(broken.invariant);
                break;
            }
        }
        if found != Some(expected) {
            wrong.push((sabotage, found));
        }
    }
    assert!(wrong.is_empty(), "not found, or by another: {wrong:?}");
}

#[tokio::test]
async fn for_ten_minutes_without_a_master_all_goes_on_and_past_the_bound_nothing_does() {
    let mut world = World::new(None).await;
    let mut chance = Chance::new(0);
    for node in 0..node::NODES {
        world.step(Event::Provision(node), &mut chance).await;
        world.step(Event::Start(node), &mut chance).await;
    }
    world.step(Event::Pass(30), &mut chance).await;
    world.step(Event::Issue(600), &mut chance).await;
    for gateway in node::GATEWAYS {
        assert!(
            world.open(gateway),
            "a session opens while a master is there"
        );
    }
    let before = world.sessions();

    world.step(Event::MasterAway, &mut chance).await;
    for minute in 1..10 {
        world.step(Event::Pass(60), &mut chance).await;
        assert!(world.sessions() >= before, "minute {minute}");
        for gateway in node::GATEWAYS {
            assert!(world.open(gateway), "minute {minute}");
        }
    }
    // Nodes that are started anew do so from the roster that they kept, and find each other.
    for node in 0..node::NODES {
        world.step(Event::Crash(node), &mut chance).await;
        world.step(Event::Start(node), &mut chance).await;
    }
    assert_eq!(world.sessions(), 0);
    for gateway in node::GATEWAYS {
        assert!(world.open(gateway), "after a restart");
    }
    world.step(Event::Pass(node::MAX_AGE), &mut chance).await;
    assert_eq!(world.sessions(), 0);
    for gateway in node::GATEWAYS {
        assert!(!world.open(gateway), "past the bound");
    }
    assert_eq!(world.broken.map(|broken| broken.to_string()), None);
}
