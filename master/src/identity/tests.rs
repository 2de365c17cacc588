//! A node and a master, step by step, with crashes, lost messages and peers that hear late. What they keep
//! is done as the store and the node's files do it.

use std::collections::BTreeSet;

use proptest::prelude::*;
use wavry_credentials::identity::rotation::{self, Act, Heard, Keys, Step};

use super::*;

const PACE: Pace = Pace {
    wait: Duration::from_secs(1000),
    overlap: Duration::from_secs(100),
};
const NODES: rotation::Pace = rotation::Pace {
    lifetime: Duration::from_secs(2000),
};
const PEERS: usize = 3;

fn key(number: u8) -> PublicKey {
    PublicKey([number; 32])
}

/// What the master has in its database.
struct Master {
    lives: Lives,
    epoch: u64,
    /// Keys that left the list.
    gone: BTreeSet<[u8; 32]>,
}

impl Master {
    fn listed(&self) -> Vec<PublicKey> {
        self.lives.lives.iter().map(|life| life.key).collect()
    }

    fn state_of(&self, key: PublicKey) -> Option<State> {
        let life = self.lives.lives.iter().find(|life| life.key == key);
        life.map(|life| life.state)
    }

    fn leave(&mut self, key: PublicKey) {
        self.lives.lives.retain(|life| life.key != key);
        self.gone.insert(key.0);
        self.epoch += 1;
    }

    fn admit(&mut self, present: PublicKey, next: PublicKey, now: u64) -> bool {
        if self.state_of(present) != Some(State::Present) {
            return false;
        }
        if self.state_of(next) == Some(State::Next) {
            return true;
        }
        let admitted = self.lives.in_state(State::Next).map(|life| life.key);
        if self.lives.in_state(State::Before).is_some()
            || (admitted.is_some() && self.lives.ordered.is_none())
            || self.gone.contains(&next.0)
        {
            return false;
        }
        if let Some(admitted) = admitted {
            self.leave(admitted);
        }
        self.lives.lives.push(Life {
            key: next,
            state: State::Next,
            since: now,
            after_epoch: Epoch(self.epoch),
            until: None,
        });
        self.lives.ordered = None;
        self.epoch += 1;
        true
    }

    fn show(&mut self, key: PublicKey, now: u64) {
        if self.state_of(key) != Some(State::Next) {
            return;
        }
        for life in &mut self.lives.lives {
            match life.state {
                State::Present => {
                    (life.state, life.since) = (State::Before, now);
                    life.until = Some(now + PACE.overlap.as_secs());
                }
                State::Next => (life.state, life.since) = (State::Present, now),
                State::Before => {}
            }
        }
        self.lives.ordered = None;
        self.epoch += 1;
    }
}

/// What the node keeps on its disk.
struct Disk {
    record: Keys,
    /// The provisioned key is always there.
    keys: BTreeSet<[u8; 32]>,
}

/// A node that runs.
struct Running {
    keys: Keys,
    shown: PublicKey,
    task: Option<IdentityTask>,
    listed: Option<Vec<PublicKey>>,
}

struct World {
    now: u64,
    master: Master,
    disk: Disk,
    node: Option<Running>,
    made: u8,
    /// What each peer's roster lists for the node, its epoch, and the epoch that the peer told.
    peers: Vec<(Vec<PublicKey>, u64, u64)>,
    rotations: u32,
}

#[derive(Debug, Clone)]
enum Action {
    Pass(u64),
    /// The node does what is next; it crashes after so many of the things that outlive it.
    Step {
        crash_after: Option<usize>,
        asks: Delivered,
    },
    Heartbeat(Delivered),
    Roster,
    PeerHears(usize),
    PeerTells(usize),
    Order,
    Crash,
    Start,
    Keep,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delivered {
    Both,
    RequestOnly,
    Nothing,
}

fn delivered() -> impl Strategy<Value = Delivered> {
    prop_oneof![
        4 => Just(Delivered::Both),
        1 => Just(Delivered::RequestOnly),
        1 => Just(Delivered::Nothing),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => (0u64..400).prop_map(Action::Pass),
        12 => (prop::option::weighted(0.3, 0usize..3), delivered())
            .prop_map(|(crash_after, asks)| Action::Step { crash_after, asks }),
        8 => delivered().prop_map(Action::Heartbeat),
        6 => Just(Action::Roster),
        6 => (0..PEERS).prop_map(Action::PeerHears),
        6 => (0..PEERS).prop_map(Action::PeerTells),
        1 => Just(Action::Order),
        1 => Just(Action::Crash),
        4 => Just(Action::Start),
        3 => Just(Action::Keep),
    ]
}

impl World {
    fn new() -> Self {
        let provisioned = key(0);
        let life = Life {
            key: provisioned,
            state: State::Present,
            since: 0,
            after_epoch: Epoch(0),
            until: None,
        };
        let lives = Lives {
            node: "exit".parse().unwrap(),
            ordered: None,
            lives: vec![life],
        };
        Self {
            now: 0,
            master: Master {
                lives,
                epoch: 1,
                gone: BTreeSet::new(),
            },
            disk: Disk {
                record: Keys::one(provisioned, 0),
                keys: BTreeSet::from([provisioned.0]),
            },
            node: None,
            made: 0,
            peers: vec![(vec![provisioned], 1, 1); PEERS],
            rotations: 0,
        }
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::Pass(seconds) => self.now += seconds,
            Action::Step { crash_after, asks } => self.step(crash_after, asks),
            Action::Heartbeat(delivered) => self.heartbeat(delivered),
            Action::Roster => {
                let listed = self.master.listed();
                if let Some(node) = &mut self.node {
                    node.listed = Some(listed);
                }
            }
            Action::PeerHears(peer) => {
                self.peers[peer].0 = self.master.listed();
                self.peers[peer].1 = self.master.epoch;
            }
            Action::PeerTells(peer) => self.peers[peer].2 = self.peers[peer].1,
            Action::Order => {
                self.master.lives.ordered = Some(self.now);
                self.master.epoch += 1;
            }
            Action::Crash => self.node = None,
            Action::Start => self.start(),
            Action::Keep => {
                if let Some(over) = self.master.lives.over(self.now) {
                    self.master.leave(over);
                }
            }
        }
    }

    fn start(&mut self) {
        if self.node.is_some() {
            return;
        }
        let keys = self.disk.record.clone();
        let named: BTreeSet<_> = keys.all().map(|key| key.0).collect();
        self.disk
            .keys
            .retain(|key| named.contains(key) || *key == [0; 32]);
        assert!(
            self.disk.keys.contains(&keys.present.0),
            "what is shown is there"
        );
        self.node = Some(Running {
            shown: keys.present,
            keys,
            task: None,
            listed: None,
        });
    }

    fn step(&mut self, crash_after: Option<usize>, asks: Delivered) {
        let Some(node) = &mut self.node else { return };
        let heard = Heard {
            task: node.task,
            listed: node.listed.as_deref(),
        };
        let acts = match node.keys.step(heard, &NODES, self.now) {
            None => return,
            Some(Step::Ask(next)) => {
                let present = node.shown;
                if asks != Delivered::Nothing {
                    self.master.admit(present, next, self.now);
                }
                return;
            }
            Some(Step::Make) => {
                self.made += 1;
                node.keys.made(key(self.made))
            }
            Some(Step::Do(acts)) => acts,
        };
        for (done, act) in acts.into_iter().enumerate() {
            if crash_after == Some(done) {
                self.node = None;
                return;
            }
            let Some(node) = &mut self.node else { return };
            match act {
                Act::WriteKey(key) => {
                    self.disk.keys.insert(key.0);
                }
                Act::WriteRecord(keys) => {
                    self.disk.record = keys.clone();
                    node.keys = keys;
                }
                Act::Show(key) => {
                    node.shown = key;
                    self.rotations += 1;
                }
                Act::RemoveKey(key) => {
                    // The provisioned one is not the node's to remove.
                    if key.0 != [0; 32] {
                        self.disk.keys.remove(&key.0);
                    }
                }
            }
        }
        if crash_after == Some(2) {
            self.node = None;
        }
    }

    fn heartbeat(&mut self, delivered: Delivered) {
        let Some(node) = &mut self.node else { return };
        if delivered == Delivered::Nothing {
            return;
        }
        let shown = node.shown;
        assert!(
            self.master.state_of(shown).is_some(),
            "the master knows who speaks"
        );
        self.master.show(shown, self.now);
        let told = self.peers.iter().map(|(_, _, told)| Epoch(*told));
        let task = self.master.lives.task(told, &PACE, self.now);
        if delivered == Delivered::Both {
            node.task = task;
        }
    }

    fn check(&self) {
        let listed = self.master.listed();
        let in_state = |state| {
            let lives = self.master.lives.lives.iter();
            lives.filter(|life| life.state == state).count()
        };
        assert_eq!(in_state(State::Present), 1);
        assert!(listed.len() <= 2);
        assert!(listed.iter().all(|key| !self.master.gone.contains(&key.0)));
        // Whenever it is started, it shows what it has and what is listed.
        assert!(self.disk.keys.contains(&self.disk.record.present.0));
        assert!(listed.contains(&self.disk.record.present));
        let Some(node) = &self.node else { return };
        assert!(listed.contains(&node.shown), "what it shows is listed");
        let admitted = self
            .master
            .lives
            .lives
            .iter()
            .find(|life| life.key == node.shown);
        let first = admitted.unwrap();
        let waited = first.state != State::Next || self.now >= first.since + PACE.wait.as_secs();
        for (known, _, _) in &self.peers {
            // Who acts on an older roster for longer than it may acts on none.
            assert!(
                known.contains(&node.shown) || waited,
                "a peer does not know what it shows"
            );
        }
    }

    /// Everything works from now on: the rotation under way comes to its end.
    fn settle(&mut self) {
        let all_works = [
            Action::Start,
            Action::Roster,
            Action::Step {
                crash_after: None,
                asks: Delivered::Both,
            },
            Action::Heartbeat(Delivered::Both),
            Action::Keep,
            Action::Pass(60),
        ];
        for _ in 0..40 {
            for peer in 0..PEERS {
                self.act(&Action::PeerHears(peer));
                self.act(&Action::PeerTells(peer));
            }
            for action in &all_works {
                self.act(action);
                self.check();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn a_node_works_whatever_is_lost_and_wherever_it_crashes_and_rotates_once_nothing_is(
        actions in prop::collection::vec(action(), 1..250),
    ) {
        let mut world = World::new();
        for action in &actions {
            world.act(action);
            world.check();
        }
        world.act(&Action::Order);
        let before = world.rotations;
        world.settle();
        prop_assert!(world.rotations > before, "it does not rotate");
        let node = world.node.as_ref().unwrap();
        prop_assert!(world.master.lives.ordered.is_none());
        let present = world.master.lives.in_state(State::Present).unwrap().key;
        prop_assert_eq!(node.shown, present);
    }
}

#[test]
fn an_identity_is_shown_when_all_others_know_it_or_were_waited_for_long_enough() {
    let life = |number, state, since| Life {
        key: key(number),
        state,
        since,
        after_epoch: Epoch(7),
        until: None,
    };
    let mut lives = Lives {
        node: "exit".parse().unwrap(),
        ordered: None,
        lives: vec![life(0, State::Present, 0), life(1, State::Next, 50)],
    };
    let show = Some(IdentityTask::Show(key(1)));
    assert_eq!(lives.task([Epoch(8), Epoch(9)], &PACE, 51), show);
    assert_eq!(lives.task([], &PACE, 51), show, "there is nobody else");
    assert_eq!(lives.task([Epoch(8), Epoch(7)], &PACE, 1049), None);
    assert_eq!(lives.task([Epoch(8), Epoch(0)], &PACE, 1050), show);
    lives.lives.pop();
    assert_eq!(lives.task([Epoch(8)], &PACE, 51), None);
    lives.ordered = Some(51);
    assert_eq!(
        lives.task([Epoch(0)], &PACE, 51),
        Some(IdentityTask::Rotate)
    );
}

#[test]
fn an_identity_is_over_exactly_when_its_overlap_is() {
    let before = Life {
        key: key(0),
        state: State::Before,
        since: 0,
        after_epoch: Epoch(0),
        until: Some(100),
    };
    let lives = Lives {
        node: "exit".parse().unwrap(),
        ordered: None,
        lives: vec![before],
    };
    assert_eq!(lives.over(99), None);
    assert_eq!(lives.over(100), Some(key(0)));
}
