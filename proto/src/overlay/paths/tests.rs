use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::overlay::beginning;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn direct(port: u16) -> Route {
    Route::Direct(([192, 0, 2, 1], port).into())
}

/// What a link does to probes, and to their answers.
#[derive(Debug, Clone, Copy)]
struct Link {
    round_trip: Duration,
    /// Nothing comes there, or nothing comes back.
    dead: bool,
    /// Only small packets come through.
    narrow: bool,
    /// Of a thousand round trips, so many are lost.
    lost: u32,
}

fn link(round_trip: u64) -> Link {
    Link {
        round_trip: ms(round_trip),
        dead: false,
        narrow: false,
        lost: 0,
    }
}

/// One side's paths over links, in simulated time.
struct World {
    paths: Paths,
    start: Instant,
    now: Instant,
    links: BTreeMap<Route, Link>,
    answers: Vec<(Instant, u64)>,
    /// Packets each millisecond.
    rate: u64,
    sent: u64,
    nonce: u64,
    switches: Vec<(Duration, Switch)>,
    pings: Vec<(Duration, Ping)>,
}

impl World {
    fn new(links: &[(Route, Link)], rate: u64) -> Self {
        let now = beginning();
        let mut paths = Paths::default();
        let routes: Vec<_> = links.iter().map(|(route, _)| *route).collect();
        paths.list(&routes, now);
        Self {
            paths,
            start: now,
            now,
            links: links.iter().copied().collect(),
            answers: Vec::new(),
            rate,
            sent: 0,
            nonce: 0,
            switches: Vec::new(),
            pings: Vec::new(),
        }
    }

    fn link(&mut self, route: Route) -> &mut Link {
        self.links.get_mut(&route).unwrap()
    }

    fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    /// Lets so many milliseconds pass.
    fn run(&mut self, millis: u64) {
        for _ in 0..millis {
            self.step();
        }
    }

    fn step(&mut self) {
        self.now += ms(1);
        self.sent += self.rate;
        let now = self.now;
        let due: Vec<_> = self.answers.extract_if(.., |(at, _)| *at <= now).collect();
        for (_, nonce) in due {
            self.paths.answered(nonce, Label::NONE, now);
        }
        let mut pings = Vec::new();
        let mut nonce = self.nonce;
        let switch = self.paths.poll(
            now,
            self.sent,
            || {
                nonce += 1;
                nonce
            },
            &mut pings,
        );
        self.nonce = nonce;
        let elapsed = self.elapsed();
        self.switches.extend(switch.map(|switch| (elapsed, switch)));
        for ping in pings {
            self.pings.push((elapsed, ping));
            let Some(link) = self.links.get(&ping.route) else {
                continue;
            };
            // The same numbers in each run, and nothing to do with the links'.
            let drawn = ping.nonce.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            let lost = (drawn % 1000) < u64::from(link.lost);
            let too_large = link.narrow && ping.full;
            if !(link.dead || lost || too_large) {
                self.answers.push((now + link.round_trip, ping.nonce));
            }
        }
        let sending = self.paths.sending(now);
        if let Some(over) = sending.over {
            let standing = self
                .paths
                .views()
                .find(|view| view.route == over)
                .unwrap()
                .standing;
            assert_ne!(
                standing,
                Standing::Asked,
                "nothing goes over what was not proved"
            );
        }
        assert!(sending.also.is_none() || sending.also != sending.over);
        let next = self.paths.next(now);
        assert!(next.is_none_or(|next| next > now), "nothing is due twice");
    }

    fn active(&self) -> Option<Route> {
        self.paths.sending(self.now).over
    }
}

#[test]
fn nothing_is_sent_before_a_probe_of_full_size_was_answered() {
    let mut world = World::new(&[(direct(1), link(20))], 1);
    world.run(20);
    assert_eq!(world.active(), None);
    world.run(1);
    assert_eq!(world.active(), Some(direct(1)));
    let (_, first) = world.switches[0];
    assert_eq!((first.from, first.cause), (None, Cause::First));
    assert!(world.pings[0].1.full);
}

#[test]
fn a_path_that_is_too_narrow_is_never_proved() {
    let mut narrow = link(5);
    narrow.narrow = true;
    let mut world = World::new(&[(direct(1), narrow), (direct(2), link(90))], 1);
    world.run(30_000);
    assert_eq!(world.active(), Some(direct(2)));
    assert_eq!(world.switches.len(), 1);
}

#[test]
fn a_busy_path_that_dies_is_noticed_within_350_ms_whenever_it_dies() {
    for (round_trip, at) in [1, 10, 40]
        .into_iter()
        .flat_map(|r| (0..10).map(move |i| (r, i * 13)))
    {
        let mut world = World::new(&[(direct(1), link(round_trip)), (direct(2), link(45))], 10);
        world.run(3_000 + at);
        assert_eq!(world.active(), Some(direct(1)));
        world.link(direct(1)).dead = true;
        let died = world.elapsed();
        // What is sent goes both ways long before that.
        let mut doubted = None;
        while world.active() == Some(direct(1)) {
            world.step();
            if world.paths.sending(world.now).also == Some(direct(2)) {
                doubted.get_or_insert(world.elapsed() - died);
            }
        }
        let (took, switch) = world.switches[1];
        assert!(
            took - died <= ms(350),
            "{round_trip} ms, {at}: {:?}",
            took - died
        );
        assert_eq!(switch.cause, Cause::Silent);
        assert!(
            doubted.unwrap() <= ms(170),
            "{round_trip} ms, {at}: {doubted:?}"
        );
    }
}

#[test]
fn what_broke_two_paths_at_once_is_sent_around_as_soon_as_the_third_has_answered() {
    let links = [
        (direct(1), link(20)),
        (direct(2), link(30)),
        (direct(3), link(60)),
    ];
    // Whenever it happens between two probes of either.
    for phase in (0..500).step_by(17) {
        let mut world = World::new(&links, 5);
        world.run(3_000 + phase);
        assert_eq!(world.active(), Some(direct(1)));
        world.link(direct(1)).dead = true;
        world.link(direct(2)).dead = true;
        let broken = world.now;
        let third = Some(direct(3));
        loop {
            world.step();
            let sending = world.paths.sending(world.now);
            if sending.over == third || sending.also == third {
                break;
            }
        }
        // A probe each 100 ms, which is late after 50, and an answer.
        let after = world.now - broken;
        assert!(after <= ms(100 + 50 + 60 + 5), "{phase}: {after:?}");
    }
}

#[test]
fn a_path_that_becomes_narrow_is_left_within_a_second_while_it_is_busy() {
    let mut world = World::new(&[(direct(1), link(10)), (direct(2), link(40))], 10);
    world.run(3_000);
    world.link(direct(1)).narrow = true;
    let narrowed = world.elapsed();
    world.run(1_000);
    assert_eq!(world.active(), Some(direct(2)));
    assert!(world.switches[1].0 - narrowed < ms(400));
    world.run(60_000);
    assert_eq!(world.active(), Some(direct(2)));
}

#[test]
fn a_path_that_becomes_narrow_is_found_while_little_is_sent_too() {
    let mut world = World::new(&[(direct(1), link(10)), (direct(2), link(40))], 0);
    world.run(3_000);
    world.link(direct(1)).narrow = true;
    world.run(8_000);
    assert_eq!(world.active(), Some(direct(2)));
}

#[test]
fn a_link_that_flaps_makes_few_changes() {
    let mut world = World::new(&[(direct(1), link(5)), (direct(2), link(20))], 10);
    world.run(2_000);
    let before = world.switches.len();
    for turn in 0..120 {
        world.link(direct(1)).dead = turn % 2 == 0;
        world.run(500);
    }
    let changes = world.switches.len() - before;
    assert!((1..=12).contains(&changes), "{changes}");
}

#[test]
fn a_better_path_is_taken_when_it_has_been_for_a_while_and_not_again_soon() {
    let mut world = World::new(&[(direct(1), link(40)), (direct(2), link(90))], 10);
    world.run(10_000);
    assert_eq!(world.active(), Some(direct(1)));
    world.link(direct(2)).round_trip = ms(2);
    let improved = world.elapsed();
    world.run(20_000);
    assert_eq!(world.active(), Some(direct(2)));
    let (at, switch) = *world.switches.last().unwrap();
    assert_eq!(switch.cause, Cause::Better);
    assert!(
        at - improved >= STEADY && at - improved <= ms(15_000),
        "{:?}",
        at - improved
    );
    // As good is not better.
    world.link(direct(1)).round_trip = ms(2);
    let count = world.switches.len();
    world.run(60_000);
    assert_eq!(world.switches.len(), count);
}

#[test]
fn a_path_that_only_its_peer_tells_of_is_not_better_than_one_that_is_listed_but_better_than_none() {
    let mut world = World::new(&[(direct(1), link(90))], 10);
    world.run(1_000);
    world.links.insert(direct(7), link(1));
    world.paths.heard(direct(7), world.now);
    world.run(20_000);
    assert_eq!(world.active(), Some(direct(1)));
    world.link(direct(1)).dead = true;
    world.run(1_000);
    assert_eq!(world.active(), Some(direct(7)));
}

#[test]
fn each_path_has_the_label_that_was_told_over_it() {
    let mut world = World::new(&[(direct(1), link(5)), (direct(2), link(5))], 10);
    world.run(4);
    let labels = [1, 2].map(Label::from_random);
    for (port, label) in [1, 2].into_iter().zip(labels) {
        assert_eq!(world.paths.label(direct(port)), None);
        let asked = |(_, ping): &&(Duration, Ping)| ping.route == direct(port);
        let nonce = world.pings.iter().find(asked).unwrap().1.nonce;
        assert!(world.paths.answered(nonce, label, world.now));
    }
    let told = [1, 2].map(|port| world.paths.label(direct(port)));
    assert_eq!(told, labels.map(Some));
}

#[test]
fn a_path_that_fell_silent_is_taken_again_only_when_it_was_trusted_for_longer_each_time() {
    let mut world = World::new(&[(direct(1), link(5)), (direct(2), link(50))], 10);
    world.run(2_000);
    let mut away = Vec::new();
    for _ in 0..5 {
        world.link(direct(1)).dead = true;
        world.run(1_000);
        assert_eq!(world.active(), Some(direct(2)));
        world.link(direct(1)).dead = false;
        let back = world.elapsed();
        while world.active() == Some(direct(2)) {
            world.step();
        }
        away.push(world.elapsed() - back);
        world.run(10_000);
    }
    assert!(away[1..].is_sorted(), "{away:?}");
    assert!(away[4] >= ms(25_000), "{away:?}");
}

#[test]
fn the_only_path_stays_in_use_and_is_found_again_soon() {
    let mut world = World::new(&[(direct(1), link(5))], 10);
    world.run(1_000);
    world.link(direct(1)).dead = true;
    world.run(20_000);
    assert_eq!(world.active(), Some(direct(1)));
    assert!(!world.paths.is_reached());
    world.link(direct(1)).dead = false;
    world.run(510);
    assert!(world.paths.is_reached());
}

#[test]
fn a_path_that_is_not_listed_any_more_is_left_at_once() {
    let mut world = World::new(&[(direct(1), link(5)), (direct(2), link(50))], 10);
    world.run(1_000);
    world.paths.list(&[direct(2)], world.now);
    world.step();
    assert_eq!(world.active(), Some(direct(2)));
    assert_eq!(world.switches.last().unwrap().1.cause, Cause::Gone);
    world.paths.list(&[], world.now);
    world.step();
    assert_eq!(world.active(), None);
}

#[test]
fn a_peer_that_is_heard_from_elsewhere_is_asked_there_and_forgotten_where_it_does_not_answer() {
    let mut world = World::new(&[], 10);
    world.links.insert(direct(7), link(5));
    world.paths.heard(direct(7), world.now);
    world.run(10);
    assert_eq!(world.active(), Some(direct(7)));
    // Whoever replays its probes from elsewhere gets a few, and nothing more.
    for port in 100..200 {
        world.paths.heard(direct(port), world.now);
        world.run(1);
    }
    assert!(world.paths.views().count() <= MAX_PATHS);
    world.run(20_000);
    let routes: Vec<_> = world.paths.views().map(|view| view.route).collect();
    assert_eq!(routes, [direct(7)]);
    for port in 100..200 {
        let count = world
            .pings
            .iter()
            .filter(|(_, ping)| ping.route == direct(port))
            .count();
        assert!(count <= HEARD_TRIES as usize, "{count}");
    }
    assert_eq!(world.switches.len(), 1);
}

#[test]
fn heavy_loss_alone_silences_few_paths_and_none_for_long() {
    for lost in [40, 190, 440] {
        let mut one = link(20);
        one.lost = lost;
        let mut world = World::new(&[(direct(1), one)], 10);
        world.run(1_000);
        let mut reached = 0;
        for _ in 0..60_000 {
            world.step();
            reached += u32::from(world.paths.is_reached());
        }
        assert!(reached > 57_000, "{lost}: {reached}");
    }
}

#[test]
fn probes_are_few_while_nothing_is_sent() {
    let mut world = World::new(&[(direct(1), link(5)), (direct(2), link(5))], 0);
    world.run(10_000);
    world.pings.clear();
    world.run(10_000);
    let count = world.pings.len();
    assert!(count <= 26, "{count}");
    let full = world.pings.iter().filter(|(_, ping)| ping.full).count();
    assert!(full * 3 <= count, "{full} of {count}");
}

#[derive(Debug, Clone)]
enum Act {
    Kill(u16, bool),
    Narrow(u16, bool),
    Lose(u16, u32),
    Slow(u16, u64),
    List(Vec<u16>),
    Hear(u16),
    Wake,
    Rate(u64),
    Run(u64),
}

fn act() -> impl Strategy<Value = Act> {
    let port = 1u16..5;
    prop_oneof![
        (port.clone(), any::<bool>()).prop_map(|(port, dead)| Act::Kill(port, dead)),
        (port.clone(), any::<bool>()).prop_map(|(port, narrow)| Act::Narrow(port, narrow)),
        (port.clone(), 0u32..600).prop_map(|(port, lost)| Act::Lose(port, lost)),
        (port.clone(), 0u64..400).prop_map(|(port, millis)| Act::Slow(port, millis)),
        prop::collection::vec(port.clone(), 0..5).prop_map(Act::List),
        (1u16..40).prop_map(Act::Hear),
        Just(Act::Wake),
        (0u64..20).prop_map(Act::Rate),
        (1u64..3_000).prop_map(Act::Run),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// `World::step` checks that nothing unproved is used and that no time is due twice.
    #[test]
    fn whatever_links_do_a_path_that_works_is_found_and_probes_stay_few(
        acts in prop::collection::vec(act(), 1..30),
    ) {
        let links: Vec<_> = (1..5).map(|port| (direct(port), link(20))).collect();
        let mut world = World::new(&links, 5);
        for act in acts {
            let before = world.pings.len();
            let mut ran = 0;
            match act {
                Act::Kill(port, dead) => world.link(direct(port)).dead = dead,
                Act::Narrow(port, narrow) => world.link(direct(port)).narrow = narrow,
                Act::Lose(port, lost) => world.link(direct(port)).lost = lost,
                Act::Slow(port, millis) => world.link(direct(port)).round_trip = ms(millis),
                Act::List(ports) => {
                    let routes: Vec<_> = ports.into_iter().map(direct).collect();
                    world.paths.list(&routes, world.now);
                }
                Act::Hear(port) => world.paths.heard(direct(port), world.now),
                Act::Wake => world.paths.wake(world.now),
                Act::Rate(rate) => world.rate = rate,
                Act::Run(millis) => {
                    world.run(millis);
                    ran = millis;
                }
            }
            prop_assert!(world.paths.views().count() <= MAX_PATHS);
            let pings = world.pings.len() - before;
            prop_assert!(pings as u64 <= MAX_PATHS as u64 * (ran / 30 + 3), "{pings} in {ran} ms");
        }
        // Once one link works, it is found.
        for port in 1..5 {
            world.link(direct(port)).dead = port != 3;
        }
        *world.link(direct(3)) = link(20);
        world.paths.list(&[direct(1), direct(2), direct(3), direct(4)], world.now);
        world.run(6_500);
        prop_assert_eq!(world.active(), Some(direct(3)));
        prop_assert!(world.paths.is_reached());
    }
}

#[test]
fn a_path_is_probed_for_whoever_asks_but_not_within_a_second_of_a_probe_or_an_answer() {
    let standby = direct(2);
    let mut world = World::new(&[(direct(1), link(10)), (standby, link(40))], 0);
    world.run(10_000);
    let probes = |world: &World| {
        let pings = world.pings.iter();
        let pings = pings.filter(|(_, ping)| ping.route == standby);
        pings.map(|(at, _)| *at).collect::<Vec<_>>()
    };
    // While nothing is sent it is probed each two seconds.
    let rested = |world: &World| world.elapsed() - *probes(world).last().unwrap();
    while rested(&world) < ms(1_200) {
        world.step();
    }
    let before = probes(&world).len();
    world.paths.ask(standby, world.now);
    world.step();
    assert_eq!(probes(&world).len(), before + 1);
    for _ in 0..900 {
        world.paths.ask(standby, world.now);
        world.step();
    }
    assert_eq!(probes(&world).len(), before + 1);
    let mut views = world.paths.views();
    let view = views.find(|view| view.route == standby).unwrap();
    let measured = view.measured.unwrap();
    assert_eq!(measured.latest, ms(40));
    assert!(world.now - measured.at < ms(900));
    assert_eq!(view.doubt_at, None);
}
