//! A translator before a host, by the words of RFC 4787: which address of its own a packet gets on its way out,
//! and whether one from outside comes in.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::Dropped;

/// How far a translator tells remote addresses apart (RFC 4787, sections 4.1 and 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// It does not.
    EndpointIndependent,
    /// By address and port.
    AddressAndPortDependent,
}

/// What a translator does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nat {
    /// Whether what goes to another address comes from another port.
    pub mapping: Behaviour,
    /// Whether only who was sent something may send something.
    pub filtering: Behaviour,
    /// Without a packet from inside, a mapping is forgotten after this (RFC 4787, section 4.3: two minutes at
    /// least; many take 30 s).
    pub timeout: Duration,
}

impl Nat {
    /// What most routers at home do: one port for all, and whoever was sent something may answer.
    pub fn usual() -> Self {
        Self {
            mapping: Behaviour::EndpointIndependent,
            filtering: Behaviour::AddressAndPortDependent,
            timeout: Duration::from_secs(30),
        }
    }

    /// What is called symmetric: a port for each remote address. Nobody can be told beforehand where this host
    /// is.
    pub fn symmetric() -> Self {
        Self {
            mapping: Behaviour::AddressAndPortDependent,
            ..Self::usual()
        }
    }
}

/// Remote addresses that a mapping remembers having sent to; the one that was sent to least lately makes room.
const REMEMBERED: usize = 64;

/// A translator's state.
#[derive(Debug)]
pub(super) struct Translator {
    nat: Nat,
    /// Addresses that no mapping has; the one that was used least lately first.
    free: VecDeque<SocketAddr>,
    mappings: Vec<Mapping>,
}

#[derive(Debug)]
struct Mapping {
    outside: SocketAddr,
    /// What it is for, where mappings depend on that.
    remote: Option<SocketAddr>,
    used: Instant,
    /// Where something was sent, and when last.
    sent: Vec<(SocketAddr, Instant)>,
}

impl Translator {
    /// With these addresses of its own, on all of which it may be reached: there are no more mappings at once
    /// than that.
    pub(super) fn new(nat: Nat, outside: &[SocketAddr]) -> Self {
        Self {
            nat,
            free: outside.iter().copied().collect(),
            mappings: Vec::new(),
        }
    }

    /// The address that a packet to `remote` comes from.
    pub(super) fn out(&mut self, remote: SocketAddr, now: Instant) -> Result<SocketAddr, Dropped> {
        self.expire(now);
        let remote_of = match self.nat.mapping {
            Behaviour::EndpointIndependent => None,
            Behaviour::AddressAndPortDependent => Some(remote),
        };
        let at = match self.mappings.iter().position(|m| m.remote == remote_of) {
            Some(at) => at,
            None => {
                let outside = self.free.pop_front().ok_or(Dropped::NoPort)?;
                self.mappings.push(Mapping {
                    outside,
                    remote: remote_of,
                    used: now,
                    sent: Vec::new(),
                });
                self.mappings.len() - 1
            }
        };
        let mapping = &mut self.mappings[at];
        mapping.used = now;
        mapping.sent.retain(|(to, _)| *to != remote);
        if mapping.sent.len() == REMEMBERED {
            mapping.sent.remove(0);
        }
        mapping.sent.push((remote, now));
        Ok(mapping.outside)
    }

    /// Whether a packet from `remote` to `outside` comes in.
    pub(super) fn comes_in(
        &mut self,
        outside: SocketAddr,
        remote: SocketAddr,
        now: Instant,
    ) -> Result<(), Dropped> {
        self.expire(now);
        let mapping = self.mappings.iter().find(|m| m.outside == outside);
        let mapping = mapping.ok_or(Dropped::NoMapping)?;
        let timeout = self.nat.timeout;
        let known = mapping
            .sent
            .iter()
            .any(|(to, at)| *to == remote && now.saturating_duration_since(*at) < timeout);
        match self.nat.filtering {
            Behaviour::AddressAndPortDependent if !known => Err(Dropped::Filtered),
            _ => Ok(()),
        }
    }

    /// Forgets all mappings, as when the router was started anew: what comes next gets other addresses.
    pub(super) fn rebind(&mut self) {
        for mapping in self.mappings.drain(..) {
            self.free.push_back(mapping.outside);
        }
    }

    fn expire(&mut self, now: Instant) {
        let timeout = self.nat.timeout;
        let over = |mapping: &mut Mapping| now.saturating_duration_since(mapping.used) >= timeout;
        for mapping in self.mappings.extract_if(.., over) {
            self.free.push_back(mapping.outside);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(port: u16) -> SocketAddr {
        ([192, 0, 2, 1], port).into()
    }

    fn translator(nat: Nat) -> Translator {
        Translator::new(nat, &[at(1), at(2), at(3)])
    }

    #[test]
    fn one_port_serves_for_all_where_mappings_do_not_depend_on_the_remote_address() {
        let mut nat = translator(Nat::usual());
        let now = Instant::now();
        for remote in 100..200 {
            assert_eq!(nat.out(at(remote), now), Ok(at(1)));
        }
    }

    #[test]
    fn each_remote_address_has_a_port_of_its_own_where_they_do_until_there_is_none_left() {
        let mut nat = translator(Nat::symmetric());
        let now = Instant::now();
        let outs = [100, 101, 102, 103, 100].map(|remote| nat.out(at(remote), now));
        assert_eq!(outs[..3], [Ok(at(1)), Ok(at(2)), Ok(at(3))]);
        assert_eq!(outs[3], Err(Dropped::NoPort));
        assert_eq!(outs[4], Ok(at(1)));
        // What is meant for one of them does not come in by the port of another one.
        assert_eq!(nat.comes_in(at(2), at(101), now), Ok(()));
        assert_eq!(nat.comes_in(at(2), at(100), now), Err(Dropped::Filtered));
    }

    #[test]
    fn only_who_was_sent_something_may_answer_unless_filtering_is_independent() {
        let now = Instant::now();
        let mut usual = translator(Nat::usual());
        assert_eq!(usual.comes_in(at(1), at(100), now), Err(Dropped::NoMapping));
        usual.out(at(100), now).unwrap();
        assert_eq!(usual.comes_in(at(1), at(100), now), Ok(()));
        assert_eq!(usual.comes_in(at(1), at(101), now), Err(Dropped::Filtered));
        let mut open = translator(Nat {
            filtering: Behaviour::EndpointIndependent,
            ..Nat::usual()
        });
        open.out(at(100), now).unwrap();
        assert_eq!(open.comes_in(at(1), at(101), now), Ok(()));
    }

    #[test]
    fn a_mapping_that_is_not_used_is_forgotten_and_so_is_all_when_it_is_started_anew() {
        let mut nat = translator(Nat::usual());
        let now = Instant::now();
        assert_eq!(nat.out(at(100), now), Ok(at(1)));
        let later = now + Nat::usual().timeout;
        // What comes from outside does not keep it.
        assert_eq!(
            nat.comes_in(at(1), at(100), later - Duration::from_secs(1)),
            Ok(())
        );
        assert_eq!(nat.comes_in(at(1), at(100), later), Err(Dropped::NoMapping));
        assert_eq!(nat.out(at(100), later), Ok(at(2)));
        nat.rebind();
        assert_eq!(nat.comes_in(at(2), at(100), later), Err(Dropped::NoMapping));
        assert_eq!(nat.out(at(100), later), Ok(at(3)));
    }

    proptest! {
        #[test]
        fn an_address_has_one_mapping_at_most_and_none_is_ever_lost(
            symmetric in any::<bool>(),
            acts in prop::collection::vec((0u8..10, 100u16..106, 0u64..20), 1..200),
        ) {
            let mut nat = translator(if symmetric { Nat::symmetric() } else { Nat::usual() });
            let mut now = Instant::now();
            for (act, remote, seconds) in acts {
                now += Duration::from_secs(seconds);
                match act {
                    0 => nat.rebind(),
                    1..4 => {
                        let _ = nat.comes_in(at(1), at(remote), now);
                    }
                    _ => {
                        if let Ok(outside) = nat.out(at(remote), now) {
                            prop_assert_eq!(nat.comes_in(outside, at(remote), now), Ok(()));
                        }
                    }
                }
                let mut all: Vec<_> = nat.mappings.iter().map(|m| m.outside).collect();
                all.extend(&nat.free);
                all.sort();
                prop_assert_eq!(all, [at(1), at(2), at(3)]);
            }
        }
    }
}
