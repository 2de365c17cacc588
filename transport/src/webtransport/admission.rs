//! Who may connect. Only counts are kept here; time is an argument.
//!
//! A client's address may be forged until the client has answered from it (RFC 9000, section 8.1).
//! So that nobody can use up what belongs to another's address, clients whose address is unproven
//! share the first half of every allowance, and get a Retry where that is used up. The other half
//! is for those who came back with a Retry's token, and only they are refused.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use super::Limits;
use crate::metrics::connection_refusal as reason;

/// What a budget that was not used holds: so many seconds of its rate. Everyone behind an address
/// may have lost the network and come back at once.
const BURST: Duration = Duration::from_secs(4);

/// What one client is counted as: an IPv4 address, or the /64 that an IPv6 customer gets at least
/// (RFC 6177), so that a client cannot multiply itself with the addresses of its own network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Network {
    /// One IPv4 address; also one that is mapped into IPv6.
    V4(Ipv4Addr),
    /// The first half of an IPv6 address.
    V6(u64),
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => Self::V6((address.to_bits() >> 64) as u64),
        }
    }
}

/// What becomes of a client's first packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A handshake may begin; it was counted.
    Accept,
    /// The client has to prove its address first.
    Retry,
    /// The client is refused, for this reason.
    Refuse(&'static str),
}

/// Counts of one server.
pub(super) struct Admission {
    max_connections: usize,
    max_per_network: usize,
    unproven_handshakes: usize,
    connections: usize,
    handshakes: usize,
    /// Connections of each network, handshakes included. An entry goes with its last connection, so
    /// there are at most `max_connections`.
    networks: HashMap<Network, usize>,
    rates: Handshakes,
}

impl Admission {
    pub(super) fn new(limits: &Limits, now: Instant) -> Self {
        Self {
            max_connections: limits.connections,
            max_per_network: limits.connections_per_ip,
            unproven_handshakes: limits.unproven_handshakes,
            connections: 0,
            handshakes: 0,
            networks: HashMap::new(),
            rates: Handshakes::new(limits, now),
        }
    }

    /// Judges a client that wants to connect. `proven`: it is where it says it is.
    pub(super) fn admit(&mut self, client: Network, proven: bool, now: Instant) -> Verdict {
        let over = |reason| match proven {
            true => Verdict::Refuse(reason),
            false => Verdict::Retry,
        };
        if self.connections >= self.max_connections {
            return Verdict::Refuse(reason::TOO_MANY);
        }
        let present = self.networks.get(&client).copied().unwrap_or(0);
        if present >= share(self.max_per_network, proven) {
            return over(reason::TOO_MANY_FROM_ADDRESS);
        }
        if !proven && self.handshakes >= self.unproven_handshakes {
            return Verdict::Retry;
        }
        // Last, so that nobody who is refused for something else spends of it.
        if let Err(spent) = self.rates.charge(client, proven, now) {
            return over(spent);
        }
        self.connections += 1;
        self.handshakes += 1;
        *self.networks.entry(client).or_default() += 1;
        Verdict::Accept
    }

    /// A handshake that was accepted is over, well or not.
    pub(super) fn handshake_over(&mut self) {
        self.handshakes = self.handshakes.saturating_sub(1);
    }

    /// A connection that was accepted is gone.
    pub(super) fn gone(&mut self, client: Network) {
        self.connections = self.connections.saturating_sub(1);
        if let Entry::Occupied(mut entry) = self.networks.entry(client) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

/// How many handshakes there may be in a second: of all clients, and of each network.
pub struct Handshakes {
    rate: Rate,
    spent: Debt,
    network_rate: Rate,
    debts: Debts,
}

impl Handshakes {
    /// Nothing is spent yet of [`Limits::handshake_rate`] and [`Limits::handshake_rate_per_ip`].
    pub fn new(limits: &Limits, now: Instant) -> Self {
        Self {
            rate: Rate::per_second(limits.handshake_rate),
            spent: Debt(now),
            network_rate: Rate::per_second(limits.handshake_rate_per_ip),
            debts: Debts::new(now),
        }
    }

    /// One more, of a client that has proved its address, as whoever has a TCP connection has. `Err` is
    /// [which budget](crate::metrics::connection_refusal) is spent.
    pub fn admit(&mut self, client: Network, now: Instant) -> Result<(), &'static str> {
        self.charge(client, true, now)
    }

    fn charge(&mut self, client: Network, proven: bool, now: Instant) -> Result<(), &'static str> {
        let debt = self.debts.of(client, now);
        let debt = self.network_rate.charge(debt, proven, now);
        let debt = debt.ok_or(reason::ADDRESS_RATE)?;
        // Last, so that nobody who is refused for himself spends what belongs to all.
        let spent = self.rate.charge(self.spent, proven, now);
        self.spent = spent.ok_or(reason::RATE)?;
        self.debts.set(client, debt);
        Ok(())
    }
}

/// The part of an allowance that a client may have.
fn share(whole: usize, proven: bool) -> usize {
    if proven { whole } else { whole.div_ceil(2) }
}

/// How fast a budget fills.
#[derive(Debug, Clone, Copy)]
struct Rate {
    /// The time that one handshake costs.
    cost: Duration,
}

/// A token bucket: when it will be full again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Debt(Instant);

impl Rate {
    /// At least one.
    fn per_second(count: u32) -> Self {
        Self {
            cost: Duration::from_secs(1) / count.max(1),
        }
    }

    /// The bucket after one handshake more; `None` if there is not enough left in it.
    fn charge(self, debt: Debt, proven: bool, now: Instant) -> Option<Debt> {
        let owed = debt.0.saturating_duration_since(now) + self.cost;
        let most = if proven { BURST } else { BURST / 2 };
        (owed <= most).then(|| Debt(now + owed))
    }
}

/// The buckets of networks that are not full.
///
/// Every entry was charged to the budget of all, which holds `BURST` of its rate and gets as much in
/// each generation. So two generations have `4 × BURST × rate` entries at most, from however many
/// addresses clients come: 80,000 at 5,000 a second, which are 3 MiB.
struct Debts {
    recent: HashMap<Network, Debt>,
    older: HashMap<Network, Debt>,
    /// When the recent generation began.
    since: Instant,
}

impl Debts {
    fn new(now: Instant) -> Self {
        Self {
            recent: HashMap::new(),
            older: HashMap::new(),
            since: now,
        }
    }

    /// Forgets those which are full, and finds that of `client`.
    fn of(&mut self, client: Network, now: Instant) -> Debt {
        let age = now.saturating_duration_since(self.since);
        if age >= BURST {
            // A bucket that nobody took from for as long as it takes to fill is full.
            self.older = std::mem::take(&mut self.recent);
            self.since = now;
        }
        if age >= 2 * BURST {
            self.older.clear();
        }
        let found = self.recent.get(&client).or_else(|| self.older.get(&client));
        found.copied().unwrap_or(Debt(now))
    }

    fn set(&mut self, client: Network, debt: Debt) {
        self.recent.insert(client, debt);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PROVEN: bool = true;
    const UNPROVEN: bool = false;

    fn limits() -> Limits {
        Limits {
            connections: 1000,
            connections_per_ip: 100,
            unproven_handshakes: 100,
            handshake_rate: 100,
            handshake_rate_per_ip: 5,
            ..Limits::default()
        }
    }

    fn network(text: &str) -> Network {
        text.parse::<IpAddr>().unwrap().into()
    }

    /// How often `client` is accepted until it is not, and what it gets then.
    fn accepted(
        admission: &mut Admission,
        client: Network,
        proven: bool,
        now: Instant,
    ) -> (usize, Verdict) {
        let mut count = 0;
        loop {
            match admission.admit(client, proven, now) {
                Verdict::Accept => count += 1,
                other => return (count, other),
            }
        }
    }

    #[test]
    fn one_address_that_used_up_its_budget_refuses_no_other() {
        let now = Instant::now();
        let mut admission = Admission::new(&limits(), now);
        let (greedy, other) = (network("192.0.2.1"), network("192.0.2.2"));
        let refused = Verdict::Refuse(reason::ADDRESS_RATE);
        assert_eq!(accepted(&mut admission, greedy, PROVEN, now), (20, refused));
        assert_eq!(admission.admit(other, PROVEN, now), Verdict::Accept);
        // What it is refused costs nobody anything.
        for _ in 0..1000 {
            assert_eq!(admission.admit(greedy, PROVEN, now), refused);
        }
        assert_eq!(admission.admit(other, UNPROVEN, now), Verdict::Accept);
        // And a budget fills.
        let later = now + Duration::from_secs(1);
        assert_eq!(accepted(&mut admission, greedy, PROVEN, later).0, 5);
        let much_later = now + Duration::from_secs(3600);
        assert_eq!(accepted(&mut admission, greedy, PROVEN, much_later).0, 20);
    }

    #[test]
    fn a_forged_address_leaves_its_owner_half_of_everything() {
        let now = Instant::now();
        let mut admission = Admission::new(&limits(), now);
        let victim = network("192.0.2.1");
        // Forged packets come all the time, and each is answered with a Retry at worst.
        assert_eq!(
            accepted(&mut admission, victim, UNPROVEN, now),
            (10, Verdict::Retry)
        );
        assert_eq!(accepted(&mut admission, victim, PROVEN, now).0, 10);
        for second in 1..60 {
            let now = now + Duration::from_secs(second);
            assert_eq!(
                accepted(&mut admission, victim, UNPROVEN, now).1,
                Verdict::Retry
            );
            assert!(accepted(&mut admission, victim, PROVEN, now).0 >= 1);
            for _ in 0..admission.networks[&victim] {
                admission.handshake_over();
                admission.gone(victim);
            }
        }
    }

    #[test]
    fn connections_of_an_address_and_of_all_are_limited() {
        let now = Instant::now();
        let few = Limits {
            connections: 6,
            connections_per_ip: 4,
            ..limits()
        };
        let mut admission = Admission::new(&few, now);
        let (a, b) = (network("192.0.2.1"), network("192.0.2.2"));
        assert_eq!(
            accepted(&mut admission, a, UNPROVEN, now),
            (2, Verdict::Retry)
        );
        let refused = Verdict::Refuse(reason::TOO_MANY_FROM_ADDRESS);
        assert_eq!(accepted(&mut admission, a, PROVEN, now), (2, refused));
        let full = Verdict::Refuse(reason::TOO_MANY);
        assert_eq!(accepted(&mut admission, b, PROVEN, now), (2, full));
        assert_eq!(admission.admit(b, UNPROVEN, now), full);
        admission.gone(a);
        assert_eq!(accepted(&mut admission, a, PROVEN, now), (1, full));
    }

    #[test]
    fn addresses_must_be_proven_while_many_handshakes_are_under_way() {
        let now = Instant::now();
        let few = Limits {
            unproven_handshakes: 2,
            ..limits()
        };
        let mut admission = Admission::new(&few, now);
        let client = network("192.0.2.1");
        assert_eq!(
            accepted(&mut admission, client, UNPROVEN, now),
            (2, Verdict::Retry)
        );
        assert_eq!(admission.admit(client, PROVEN, now), Verdict::Accept);
        admission.handshake_over();
        assert_eq!(admission.admit(client, UNPROVEN, now), Verdict::Retry);
        admission.handshake_over();
        assert_eq!(admission.admit(client, UNPROVEN, now), Verdict::Accept);
    }

    #[test]
    fn addresses_without_end_are_stopped_by_the_budget_of_all() {
        let now = Instant::now();
        let mut admission = Admission::new(&limits(), now);
        let mut verdicts = (0..5000u32).map(|host| {
            let client = Network::V6(u64::from(host));
            let verdict = admission.admit(client, PROVEN, now);
            if verdict == Verdict::Accept {
                admission.handshake_over();
                admission.gone(client);
            }
            verdict
        });
        assert!(
            verdicts
                .by_ref()
                .take(400)
                .all(|verdict| verdict == Verdict::Accept)
        );
        assert!(verdicts.all(|verdict| verdict == Verdict::Refuse(reason::RATE)));
        assert_eq!(admission.rates.debts.recent.len(), 400);
    }

    #[test]
    fn handshakes_over_tcp_have_the_whole_rate_of_an_address_and_of_all() {
        let now = Instant::now();
        let mut handshakes = Handshakes::new(&limits(), now);
        let (greedy, other) = (network("192.0.2.1"), network("2001:db8::1"));
        let admitted = |handshakes: &mut Handshakes, client, now| {
            let mut count = 0;
            loop {
                match handshakes.admit(client, now) {
                    Ok(()) => count += 1,
                    Err(spent) => return (count, spent),
                }
            }
        };
        assert_eq!(
            admitted(&mut handshakes, greedy, now),
            (20, reason::ADDRESS_RATE)
        );
        assert_eq!(handshakes.admit(other, now), Ok(()));
        let later = now + Duration::from_secs(1);
        assert_eq!(admitted(&mut handshakes, greedy, later).0, 5);
        let spent = (0..1000u32).find_map(|host| {
            let client = Network::V6(u64::from(host));
            handshakes.admit(client, later).err()
        });
        assert_eq!(spent, Some(reason::RATE));
    }

    #[test]
    fn a_network_is_an_ipv4_address_or_an_ipv6_64() {
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
        assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
        assert_eq!(network("2001:db8:0:1::1"), network("2001:db8:0:1:ffff::2"));
        assert_ne!(network("2001:db8:0:1::1"), network("2001:db8:0:2::1"));
    }

    proptest! {
        #[test]
        fn tables_stay_bounded_and_counts_come_back(
            actions in prop::collection::vec(
                (any::<u16>(), any::<bool>(), 0..400u64, any::<bool>()), 0..2000),
            rate in 1..20u32,
        ) {
            let mut now = Instant::now();
            let few = Limits {
                connections: 50,
                connections_per_ip: 3,
                handshake_rate: rate,
                ..limits()
            };
            let mut admission = Admission::new(&few, now);
            let mut live = Vec::new();
            for (host, proven, millis, leaves) in actions {
                now += Duration::from_millis(millis);
                let client = Network::V6(u64::from(host));
                if admission.admit(client, proven, now) == Verdict::Accept {
                    live.push(client);
                }
                if leaves && let Some(client) = live.pop() {
                    admission.handshake_over();
                    admission.gone(client);
                }
                prop_assert!(admission.networks.len() <= 50);
                prop_assert_eq!(admission.connections, live.len());
                let debts = &admission.rates.debts;
                let entries = debts.recent.len() + debts.older.len();
                prop_assert!(entries <= 4 * 4 * rate as usize, "{} entries", entries);
            }
            for client in live {
                admission.handshake_over();
                admission.gone(client);
            }
            prop_assert_eq!((admission.connections, admission.handshakes), (0, 0));
            prop_assert!(admission.networks.is_empty());
        }
    }
}
