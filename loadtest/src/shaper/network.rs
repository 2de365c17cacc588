//! Hosts and what is between them, without sockets and clocks: which way a packet goes, when it comes out and
//! what happened to those that do not.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    time::Instant,
};

use super::{
    Dropped, Random,
    link::{Direction, Link},
    nat::{Nat, Translator},
};

/// A host, as a number.
pub(super) type Number = usize;

/// What became of the packets of one direction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Packets that came out.
    pub packets: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
    /// Packets that did not, by reason.
    pub dropped: BTreeMap<Dropped, u64>,
}

impl Tally {
    /// All that did not come out.
    pub fn lost(&self) -> u64 {
        self.dropped.values().sum()
    }

    fn count(&mut self, reason: Dropped) {
        *self.dropped.entry(reason).or_default() += 1;
    }
}

/// A packet that is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OnItsWay {
    /// When it comes out.
    pub(super) out: Instant,
    /// Where it seems to come from.
    pub(super) from: SocketAddr,
    /// Where it was sent.
    pub(super) to: SocketAddr,
    hosts: (Number, Number),
}

/// Hosts, and what is between them.
#[derive(Debug)]
pub(super) struct Network {
    random: Random,
    hosts: Vec<Host>,
    by_inside: HashMap<SocketAddr, Number>,
    by_outside: HashMap<SocketAddr, Number>,
    ways: HashMap<(Number, Number), Way>,
    strangers: Tally,
}

#[derive(Debug)]
struct Host {
    /// Where it really is, once that is known.
    inside: Option<SocketAddr>,
    outside: Vec<SocketAddr>,
    translator: Option<Translator>,
}

#[derive(Debug)]
struct Way {
    direction: Direction,
    tally: Tally,
}

impl Network {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            hosts: Vec::new(),
            by_inside: HashMap::new(),
            by_outside: HashMap::new(),
            ways: HashMap::new(),
            strangers: Tally::default(),
        }
    }

    /// One more host, that others see at the first of `outside`; behind a translator, at whichever of them that
    /// chooses.
    pub(super) fn add(&mut self, outside: Vec<SocketAddr>, nat: Option<Nat>) -> Number {
        let number = self.hosts.len();
        for address in &outside {
            self.by_outside.insert(*address, number);
        }
        self.hosts.push(Host {
            inside: None,
            translator: nat.map(|nat| Translator::new(nat, &outside)),
            outside,
        });
        number
    }

    /// The host is really at `inside` from now on.
    pub(super) fn attach(&mut self, host: Number, inside: SocketAddr) {
        if let Some(before) = self.hosts[host].inside.replace(inside) {
            self.by_inside.remove(&before);
        }
        self.by_inside.insert(inside, host);
    }

    /// What goes from one host to another is treated so from now on.
    pub(super) fn set(&mut self, hosts: (Number, Number), link: Link) {
        self.way(hosts).direction.change(link);
    }

    /// A host's translator forgets all mappings.
    pub(super) fn rebind(&mut self, host: Number) {
        if let Some(translator) = &mut self.hosts[host].translator {
            translator.rebind();
        }
    }

    /// What became of packets from one host to another.
    pub(super) fn tally(&self, hosts: (Number, Number)) -> Tally {
        self.ways
            .get(&hosts)
            .map_or_else(Tally::default, |way| way.tally.clone())
    }

    /// What became of packets that no host sent.
    pub(super) fn strangers(&self) -> &Tally {
        &self.strangers
    }

    /// A packet came from `inside` to the outside address `to`.
    pub(super) fn enter(
        &mut self,
        inside: SocketAddr,
        to: SocketAddr,
        len: usize,
        now: Instant,
    ) -> Option<OnItsWay> {
        let recipient = self.by_outside.get(&to).copied();
        let (Some(&sender), Some(recipient)) = (self.by_inside.get(&inside), recipient) else {
            self.strangers.count(Dropped::Stranger);
            return None;
        };
        let hosts = (sender, recipient);
        let host = &mut self.hosts[sender];
        let from = match &mut host.translator {
            Some(translator) => translator.out(to, now),
            None => Ok(host.outside[0]),
        };
        let way = self.way(hosts);
        let entered = from.and_then(|from| Ok((from, way.direction.enter(len, now)?)));
        match entered {
            Ok((from, out)) => Some(OnItsWay {
                out,
                from,
                to,
                hosts,
            }),
            Err(reason) => {
                way.tally.count(reason);
                None
            }
        }
    }

    /// A packet comes out: where its recipient really is, if it is let in.
    pub(super) fn come_out(
        &mut self,
        packet: &OnItsWay,
        len: usize,
        now: Instant,
    ) -> Option<SocketAddr> {
        let host = &mut self.hosts[packet.hosts.1];
        let let_in = match &mut host.translator {
            Some(translator) => translator.comes_in(packet.to, packet.from, now),
            None => Ok(()),
        };
        let inside = let_in.and_then(|()| host.inside.ok_or(Dropped::NobodyThere));
        let tally = &mut self.way(packet.hosts).tally;
        match inside {
            Ok(inside) => {
                tally.packets += 1;
                tally.bytes += len as u64;
                Some(inside)
            }
            Err(reason) => {
                tally.count(reason);
                None
            }
        }
    }

    /// A packet that entered was dropped by whoever carries it.
    pub(super) fn lose(&mut self, packet: &OnItsWay, reason: Dropped) {
        self.way(packet.hosts).tally.count(reason);
    }

    fn way(&mut self, hosts: (Number, Number)) -> &mut Way {
        // Each way has numbers of its own, that no traffic on another one changes.
        let random = &self.random;
        self.ways.entry(hosts).or_insert_with(|| Way {
            direction: Direction::new(
                Link::default(),
                random.branch(((hosts.0 as u64) << 32) | hosts.1 as u64),
            ),
            tally: Tally::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(port: u16) -> SocketAddr {
        ([192, 0, 2, 1], port).into()
    }

    /// Hosts that are really at 11 and 12, and seen at 1 and 2; the second one behind a translator, at 2 and 3.
    fn two() -> (Network, Instant) {
        let mut network = Network::new(1);
        let here = network.add(vec![at(1)], None);
        let there = network.add(vec![at(2), at(3)], Some(Nat::usual()));
        network.attach(here, at(11));
        network.attach(there, at(12));
        (network, Instant::now())
    }

    #[test]
    fn who_is_behind_a_translator_is_reached_by_whom_it_sent_to_and_seen_elsewhere_once_it_rebinds()
    {
        let (mut network, now) = two();
        let early = network.enter(at(11), at(2), 100, now).unwrap();
        assert_eq!(network.come_out(&early, 100, now), None);
        let out = network.enter(at(12), at(1), 100, now).unwrap();
        assert_eq!((out.from, out.to), (at(2), at(1)));
        assert_eq!(network.come_out(&out, 100, now), Some(at(11)));
        let answer = network.enter(at(11), at(2), 100, now).unwrap();
        assert_eq!(answer.from, at(1));
        assert_eq!(network.come_out(&answer, 100, now), Some(at(12)));
        network.rebind(1);
        assert_eq!(network.come_out(&answer, 100, now), None);
        let again = network.enter(at(12), at(1), 100, now).unwrap();
        assert_eq!(again.from, at(3));
        let tally = network.tally((0, 1));
        assert_eq!((tally.packets, tally.bytes), (1, 100));
        assert_eq!(tally.dropped, BTreeMap::from([(Dropped::NoMapping, 2)]));
    }

    #[test]
    fn nothing_is_carried_for_whom_it_does_not_know() {
        let (mut network, now) = two();
        assert_eq!(network.enter(at(99), at(1), 100, now), None);
        assert_eq!(network.strangers().dropped[&Dropped::Stranger], 1);
    }

    #[test]
    fn a_host_that_moved_is_found_where_it_is_and_not_where_it_was() {
        let (mut network, now) = two();
        network.attach(0, at(21));
        let packet = network.enter(at(12), at(1), 100, now).unwrap();
        assert_eq!(network.come_out(&packet, 100, now), Some(at(21)));
        assert_eq!(network.enter(at(11), at(2), 100, now), None);
    }

    #[test]
    fn links_are_set_for_each_direction_by_itself() {
        let (mut network, now) = two();
        network.set((0, 1), Link::blackhole());
        assert_eq!(network.enter(at(11), at(2), 100, now), None);
        assert!(network.enter(at(12), at(1), 100, now).is_some());
        network.set((0, 1), Link::delayed(Duration::from_millis(5)));
        let packet = network.enter(at(11), at(2), 100, now).unwrap();
        assert_eq!(packet.out, now + Duration::from_millis(5));
    }
}
