use proptest::prelude::*;

use super::*;
use crate::{
    control::{Node, Role, Roster},
    overlay::{
        beginning,
        lease::tests::Nobody,
        packet::{Claim, Next},
        transit::{ATTACHED, Flows, Limits, NotForwarded},
    },
};

fn id(id: &str) -> NodeId {
    id.parse().unwrap()
}

fn address(last: u8, port: u16) -> SocketAddr {
    ([192, 0, 2, last], port).into()
}

fn node(name: &str, role: Role, transit: Vec<SocketAddr>) -> Node {
    Node {
        id: id(name),
        role,
        keys: Vec::new(),
        addresses: Vec::new(),
        transit,
        attached: Vec::new(),
        services: Vec::new(),
        registration: 1,
        leases: Default::default(),
        placement: Default::default(),
    }
}

/// The exit `b` behind a translator, which shows it as `outside`; the relay `t`, which carries a flow of `a` to it.
struct World {
    attachment: Attachment,
    relay: Flows,
    roster: Roster,
    outside: SocketAddr,
    now: Instant,
    drawn: u64,
    asked: u32,
}

const GATEWAY: u8 = 1;
const FLOW: u64 = 7;

impl World {
    fn new() -> Self {
        let now = beginning();
        let hop = Hop {
            node: id("t"),
            address: address(3, 4435),
        };
        let nodes = vec![
            node("a", Role::Gateway, Vec::new()),
            node("b", Role::Relay, Vec::new()),
            node("t", Role::Relay, vec![hop.address]),
        ];
        Self {
            attachment: Attachment::new(id("b"), hop, Label::from_random(9), now),
            relay: Flows::new(id("t"), Limits::default(), now),
            roster: Roster {
                nodes: nodes.into(),
                ..Roster::empty("test".parse().unwrap())
            },
            outside: address(200, 40_000),
            now,
            drawn: 0,
            asked: 0,
        }
    }

    /// Lets so many steps of 10 ms pass; `lost` says which attaches come to nothing.
    fn run(&mut self, steps: u32, mut lost: impl FnMut(u32) -> bool) {
        for _ in 0..steps {
            self.now += Duration::from_millis(10);
            self.drawn += 2;
            let drawn = self.drawn;
            let Some(attach) = self.attachment.poll(self.now, || drawn) else {
                continue;
            };
            self.asked += 1;
            if lost(self.asked) {
                continue;
            }
            let ruling =
                self.relay
                    .attach(&attach, self.outside, &self.roster, || drawn + 1, self.now);
            let verdict = Verdict {
                flow: attach.place,
                nonce: attach.nonce,
                ruling,
                from: id("t"),
                to: id("b"),
                seen: Some(self.outside),
            };
            self.attachment.told(&verdict, self.now);
        }
    }

    fn draw(&mut self) -> u64 {
        self.drawn += 1;
        self.drawn
    }

    fn claim(&mut self) -> Ruling {
        self.drawn += 2;
        let mut claim = Claim {
            flow: Label::from_random(FLOW),
            nonce: self.drawn,
            cookie: 0,
            from: id("a"),
            to: id("t"),
            peer: id("b"),
            hops: vec![id("t")],
            next: Next::Attached,
            lease: Vec::new(),
        };
        let source = address(GATEWAY, 4434);
        let mut ask = |claim: &Claim| {
            self.relay
                .claim(claim, source, &self.roster, &Nobody, || 5, self.now)
        };
        match ask(&claim) {
            Ruling::Prove { cookie } => {
                claim.cookie = cookie;
                claim.nonce += 1;
                ask(&claim)
            }
            other => other,
        }
    }

    fn forward(&mut self, source: SocketAddr) -> Result<SocketAddr, NotForwarded> {
        let flow = Label::from_random(FLOW);
        self.relay.forward(flow, source, 1, 100, self.now)
    }
}

#[test]
fn what_comes_for_a_node_goes_to_where_it_attached_itself() {
    let mut world = World::new();
    let not_attached = Ruling::Refused(Refusal::NotAttached);
    assert_eq!(world.claim(), not_attached);
    world.run(25, |_| false);
    assert!(world.attachment.is_held(world.now));
    assert_eq!(world.attachment.seen(world.now), Some(world.outside));
    // Once to be asked for proof, and once with it.
    assert_eq!(world.asked, 2);
    assert!(matches!(world.claim(), Ruling::Granted { .. }));
    let gateway = address(GATEWAY, 4434);
    assert_eq!(world.forward(gateway), Ok(world.outside));
    assert_eq!(world.forward(world.outside), Ok(gateway));
    let stranger = world.forward(address(201, 1));
    assert_eq!(stranger, Err(NotForwarded::WrongSource));
}

#[test]
fn flows_follow_a_node_to_its_new_address_as_soon_as_it_doubts() {
    let mut world = World::new();
    world.run(25, |_| false);
    world.claim();
    let (before, after) = (world.outside, address(200, 50_000));
    world.outside = after;
    world.now += FRESH;
    assert_eq!(world.forward(after), Err(NotForwarded::WrongSource));
    world.attachment.doubt(world.now);
    world.run(3, |_| false);
    let gateway = address(GATEWAY, 4434);
    assert_eq!(world.forward(gateway), Ok(after));
    assert_eq!(world.forward(after), Ok(gateway));
    assert_eq!(world.forward(before), Err(NotForwarded::WrongSource));
    assert_eq!(world.attachment.seen(world.now), Some(after));
}

#[test]
fn a_place_is_kept_and_ends_with_the_node_that_has_it() {
    let mut world = World::new();
    world.run(30_000, |_| false);
    assert!(world.attachment.is_held(world.now));
    world.claim();
    // Every 15 s in five minutes, and twice at first.
    assert!((20..=22).contains(&world.asked), "{}", world.asked);

    // Not heard of for a minute, while the flow is claimed again.
    let gateway = address(GATEWAY, 4434);
    world.now += ATTACHED / 2;
    assert!(matches!(world.claim(), Ruling::Granted { .. }));
    world.now += ATTACHED / 2;
    assert_eq!(world.forward(gateway), Err(NotForwarded::NotAttached));
    assert_eq!(world.claim(), Ruling::Refused(Refusal::NotAttached));
    assert!(!world.attachment.is_held(world.now));

    world.roster.nodes.remove(1);
    world.relay.retain(&world.roster, &Nobody, world.now);
    assert_eq!(world.relay.attached(world.now), 0);
    world.run(2_000, |_| false);
    assert!(!world.attachment.is_held(world.now));
}

#[test]
fn a_relay_that_does_not_answer_is_no_place_after_some_seconds_and_one_again_when_it_does() {
    let mut world = World::new();
    world.run(25, |_| false);
    world.attachment.doubt(world.now);
    world.run(300, |_| true);
    assert!(world.attachment.is_held(world.now));
    world.run(500, |_| true);
    assert!(!world.attachment.is_held(world.now));
    assert_eq!(world.attachment.seen(world.now), None);
    world.run(1_100, |_| false);
    assert!(world.attachment.is_held(world.now));
}

#[test]
fn an_attach_that_was_seen_on_the_way_moves_nobody() {
    let mut world = World::new();
    world.run(25, |_| false);
    world.claim();
    world.attachment.doubt(world.now);
    world.drawn += 2;
    let drawn = world.drawn;
    world.now += Duration::from_millis(1);
    let seen = world.attachment.poll(world.now, || drawn).unwrap();
    let thief = address(66, 6);
    let ruling = world
        .relay
        .attach(&seen, thief, &world.roster, || 99, world.now);
    assert!(matches!(ruling, Ruling::Prove { .. }));
    assert_eq!(world.forward(address(GATEWAY, 4434)), Ok(world.outside));
    // Neither from elsewhere with the cookie, which the relay gave to another address.
    let proving = Attach { cookie: 99, ..seen };
    let other = address(67, 6);
    let ruling = world
        .relay
        .attach(&proving, other, &world.roster, || 98, world.now);
    assert!(matches!(ruling, Ruling::Prove { .. }));
}

proptest! {
    #[test]
    fn it_is_held_in_the_end_whatever_is_lost(lost in prop::collection::vec(any::<bool>(), 0..12)) {
        let mut world = World::new();
        world.run(20_000, |asked| lost.get(asked as usize).copied().unwrap_or(false));
        prop_assert!(world.attachment.is_held(world.now));
    }
}

#[test]
fn a_relay_that_is_never_content_or_grants_for_no_time_is_not_asked_in_a_circle() {
    for ruling in [Ruling::Prove { cookie: 7 }, Ruling::Granted { lasts: 0 }] {
        let mut world = World::new();
        let mut asked = 0;
        for _ in 0..1_000 {
            world.now += Duration::from_millis(1);
            let Some(attach) = world.attachment.poll(world.now, || 1) else {
                continue;
            };
            asked += 1;
            let verdict = Verdict {
                flow: attach.place,
                nonce: attach.nonce,
                ruling,
                from: id("t"),
                to: id("b"),
                seen: None,
            };
            world.attachment.told(&verdict, world.now);
        }
        assert!((1..=6).contains(&asked), "{ruling:?}: {asked}");
    }
}

#[test]
fn an_attach_whose_answer_is_lost_is_sent_again_by_the_time_that_answers_take() {
    let mut world = World::new();
    let sent_and_answered = |world: &mut World, after: u64, ruling: Option<(Ruling, u64)>| {
        world.now += Duration::from_millis(after);
        let drawn = world.draw();
        let attach = world.attachment.poll(world.now, || drawn).unwrap();
        let sent = world.now;
        if let Some((ruling, took)) = ruling {
            world.now += Duration::from_millis(took);
            let verdict = Verdict {
                flow: attach.place,
                nonce: attach.nonce,
                ruling,
                from: id("t"),
                to: id("b"),
                seen: Some(world.outside),
            };
            world.attachment.told(&verdict, world.now);
        }
        (world.attachment.next() - sent).as_millis()
    };
    let prove = Ruling::Prove { cookie: 5 };
    let granted = Ruling::Granted { lasts: 60 };
    // Nothing is known; then a round trip of 400 ms is, and twice the time after each that is not answered.
    assert_eq!(sent_and_answered(&mut world, 0, None), 500);
    assert_eq!(sent_and_answered(&mut world, 500, Some((prove, 400))), 400);
    assert_eq!(sent_and_answered(&mut world, 0, None), 1_200);
    assert_eq!(sent_and_answered(&mut world, 1_200, None), 2_400);
    let kept = 400 + KEEP.as_millis();
    let granted = sent_and_answered(&mut world, 2_400, Some((granted, 400)));
    assert_eq!(granted, kept);
    assert!(world.attachment.is_held(world.now));
}
