//! Claimants, transit relays and a master in simulated time, by the state machines that real ones have: the book of
//! leases, passages, the flows of a relay, and tokens with real signatures. What happens is drawn from a seed –
//! masters and nodes that are cut off, packets lost, leases and nodes and keys revoked, relays and claimants started
//! anew, clocks that are wrong, claims replayed and leases stolen – and after each step is checked:
//!
//! 1. a relay forwards for a lease that holds, or in silence, and for nobody else;
//! 2. who has shown nothing gets no more bytes than it sent;
//! 3. no flow outlives a revocation that its relay could hear of by more than 5 s;
//! 4. packets go to members, and to addresses that a claimant has proved;
//! 5. once all is well again, every claimant's flows carry packets.

mod world;

use super::book::{Book, Said};
use world::World;

/// Seconds of one run, before all is well again.
const SECONDS: u32 = 900;
/// Runs with seeds that are always the same, and more with others each time.
const RUNS: u64 = 24;
const MORE: u64 = 8;

/// A part that does its work badly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sabotage {
    /// A relay takes leases that have expired.
    ExpiredHold,
    /// A relay takes it that no master answers.
    AlwaysSilence,
    /// A relay does not look at rosters once a flow is there.
    KeepsRevoked,
    /// A relay answers claims with packets of full size.
    LongVerdicts,
    /// A relay forwards for whoever names a flow, to where that says.
    OpenRelay,
    /// A claimant asks for each lease once.
    AsksOnce,
}

/// Which invariant was broken, when, and what had happened.
#[derive(Debug)]
struct Broken {
    invariant: u32,
    what: String,
    events: Vec<String>,
}

fn run(seed: u64, sabotage: Option<Sabotage>) -> Result<world::Counts, Broken> {
    let mut world = World::new(seed, sabotage);
    for _ in 0..SECONDS {
        world.event();
        world.second()?;
    }
    world.calm();
    // Silence is over 60 s after a master has answered, and what began in it 60 s later.
    for _ in 0..200 {
        world.second()?;
    }
    world.is_well()?;
    Ok(world.counts)
}

#[test]
fn whatever_happens_flows_have_leases_or_there_is_silence_and_none_outlives_a_revocation() {
    let given = std::env::var("WAVRY_SIMULATION_SEED");
    let seeds: Vec<u64> = match given {
        Ok(seed) => vec![seed.parse().expect("a seed is a number")],
        Err(_) => {
            let more = (0..MORE).map(|_| u64::from_ne_bytes(crate::random::bytes()));
            (0..RUNS).chain(more).collect()
        }
    };
    let mut all = world::Counts::default();
    for seed in seeds {
        match run(seed, None) {
            Ok(counts) => all.add(counts),
            Err(Broken {
                invariant,
                what,
                events,
            }) => panic!(
                "WAVRY_SIMULATION_SEED={seed}: invariant {invariant}: {what}\nafter {events:#?}"
            ),
        }
    }
    // What is never there is not checked.
    assert!(all.leased > 0 && all.in_silence > 0, "{all:?}");
}

#[test]
fn each_invariant_is_broken_by_who_does_its_work_badly() {
    for (sabotage, invariants) in [
        (Sabotage::ExpiredHold, &[1][..]),
        (Sabotage::AlwaysSilence, &[1]),
        (Sabotage::KeepsRevoked, &[1, 3]),
        (Sabotage::LongVerdicts, &[2]),
        (Sabotage::OpenRelay, &[4]),
        (Sabotage::AsksOnce, &[5]),
    ] {
        let broken = (0..50).find_map(|seed| run(seed, Some(sabotage)).err());
        let broken = broken.unwrap_or_else(|| panic!("{sabotage:?} breaks nothing"));
        assert!(
            invariants.contains(&broken.invariant),
            "{sabotage:?}: {broken:#?}"
        );
    }
}

/// Whether a flow carries packets at each second of so many hours, in which no master answers.
#[test]
fn all_masters_dead_for_hours_end_no_flow_and_one_that_is_there_is_not_passed_by() {
    let mut world = World::new(1, None);
    world.calm();
    for _ in 0..30 {
        world.second().unwrap();
    }
    world.is_well().unwrap();
    world.kill_master();
    for hour in 0..3 * 3600 {
        world.second().unwrap();
        if let Err(broken) = world.is_well() {
            panic!("after {hour} s without a master: {broken:#?}");
        }
    }
    assert!(world.counts.in_silence > 0);

    // A claimant alone does not hear it: its flows end with their leases, though the roster lists it.
    let mut world = World::new(1, None);
    world.calm();
    for _ in 0..30 {
        world.second().unwrap();
    }
    world.cut_off_claimants();
    for _ in 0..world.lease_lifetime() + 2 {
        world.second().unwrap();
    }
    assert!(world.is_well().is_err());
    assert_eq!(world.carried(), 0);
}
