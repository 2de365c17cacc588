//! How many sessions may be live at once: on the gateway, for a service, from one client network, of
//! one subject.
//!
//! A permit is taken before a request costs more than memory look-ups and is held for as long as
//! the session lives. A table has at most one entry per permit, and an entry goes with its last
//! permit, so tables are bounded by the gateway's own limit.

use std::{hash::Hash, net::IpAddr, sync::Arc};

use dashmap::{DashMap, Entry};
use wavry_proto::id::ServiceName;
use wavry_transport::webtransport::Network;

/// The limit that a session would have gone over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exceeded {
    /// Of the gateway.
    Gateway,
    /// Of one client network.
    Ip,
    /// Of the service.
    Service,
    /// Of one subject.
    Subject,
}

/// Whom a token names. It is a service's word, and means nothing to another.
type Subject = (ServiceName, Box<str>);

/// Counts live sessions.
pub(crate) struct Limits {
    max_sessions: u32,
    sessions_per_ip: u32,
    sessions_per_subject: Option<u32>,
    all: Arc<Counters<()>>,
    networks: Arc<Counters<Network>>,
    services: Arc<Counters<ServiceName>>,
    subjects: Arc<Counters<Subject>>,
}

/// The right to one live session; gone when dropped.
pub(crate) struct Permit {
    _all: Held<()>,
    _network: Held<Network>,
    service: Held<ServiceName>,
    _subject: Option<Held<Subject>>,
}

impl Limits {
    pub(crate) fn new(
        max_sessions: u32,
        sessions_per_ip: u32,
        sessions_per_subject: Option<u32>,
    ) -> Self {
        Self {
            max_sessions,
            sessions_per_ip,
            sessions_per_subject,
            all: Arc::default(),
            networks: Arc::default(),
            services: Arc::default(),
            subjects: Arc::default(),
        }
    }

    /// One session more, from `client` to `service`, which itself may allow fewer.
    pub(crate) fn acquire(
        &self,
        client: IpAddr,
        service: &ServiceName,
        service_max: Option<u32>,
    ) -> Result<Permit, Exceeded> {
        let all = Counters::hold(&self.all, (), self.max_sessions).ok_or(Exceeded::Gateway)?;
        let network = Counters::hold(&self.networks, client.into(), self.sessions_per_ip)
            .ok_or(Exceeded::Ip)?;
        let service_max = service_max.unwrap_or(u32::MAX);
        let service = Counters::hold(&self.services, service.clone(), service_max)
            .ok_or(Exceeded::Service)?;
        Ok(Permit {
            _all: all,
            _network: network,
            service,
            _subject: None,
        })
    }

    /// `permit`, if its service's `subject`, who is known by now, may have one session more.
    pub(crate) fn of_subject(&self, permit: Permit, subject: &str) -> Result<Permit, Exceeded> {
        let Some(max) = self.sessions_per_subject else {
            return Ok(permit);
        };
        let key = (permit.service.key.clone(), subject.into());
        let subject = Counters::hold(&self.subjects, key, max).ok_or(Exceeded::Subject)?;
        Ok(Permit {
            _subject: Some(subject),
            ..permit
        })
    }
}

pub(crate) struct Counters<K: Hash + Eq> {
    counts: DashMap<K, u32>,
}

impl<K: Hash + Eq> Default for Counters<K> {
    fn default() -> Self {
        Self {
            counts: DashMap::new(),
        }
    }
}

impl<K: Hash + Eq + Clone> Counters<K> {
    /// One more of `key`, of which there may be `max`.
    pub(crate) fn hold(this: &Arc<Self>, key: K, max: u32) -> Option<Held<K>> {
        match this.counts.entry(key.clone()) {
            Entry::Occupied(mut entry) if *entry.get() < max => *entry.get_mut() += 1,
            Entry::Vacant(entry) if max > 0 => drop(entry.insert(1)),
            Entry::Occupied(_) | Entry::Vacant(_) => return None,
        }
        Some(Held {
            counters: this.clone(),
            key,
        })
    }
}

/// One count in a table.
pub(crate) struct Held<K: Hash + Eq> {
    counters: Arc<Counters<K>>,
    key: K,
}

impl<K: Hash + Eq> Drop for Held<K> {
    fn drop(&mut self) {
        self.counters.counts.remove_if_mut(&self.key, |_, count| {
            *count -= 1;
            *count == 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn service(name: &str) -> ServiceName {
        name.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_address_over_its_limit_does_not_stop_another() {
        let limits = Limits::new(100, 2, None);
        let echo = service("echo");
        let _one = limits.acquire(ip("192.0.2.1"), &echo, None).ok().unwrap();
        let two = limits.acquire(ip("192.0.2.1"), &echo, None).ok().unwrap();
        let third = limits.acquire(ip("192.0.2.1"), &echo, None);
        assert_eq!(third.err(), Some(Exceeded::Ip));
        assert!(limits.acquire(ip("192.0.2.2"), &echo, None).is_ok());
        drop(two);
        assert!(limits.acquire(ip("192.0.2.1"), &echo, None).is_ok());
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_client() {
        let limits = Limits::new(100, 1, None);
        let echo = service("echo");
        let _held = limits.acquire(ip("2001:db8:0:1::1"), &echo, None).ok();
        let same = limits.acquire(ip("2001:db8:0:1:ffff::2"), &echo, None);
        assert_eq!(same.err(), Some(Exceeded::Ip));
        assert!(limits.acquire(ip("2001:db8:0:2::1"), &echo, None).is_ok());
    }

    #[test]
    fn a_mapped_address_is_counted_as_the_ipv4_address_it_is() {
        let limits = Limits::new(100, 1, None);
        let echo = service("echo");
        let _held = limits.acquire(ip("::ffff:192.0.2.1"), &echo, None).ok();
        let same = limits.acquire(ip("192.0.2.1"), &echo, None);
        assert_eq!(same.err(), Some(Exceeded::Ip));
        assert!(limits.acquire(ip("::ffff:192.0.2.2"), &echo, None).is_ok());
    }

    #[test]
    fn a_service_limit_holds_across_clients() {
        let limits = Limits::new(100, 10, None);
        let echo = service("echo");
        let _held = limits.acquire(ip("192.0.2.1"), &echo, Some(1)).ok();
        let more = limits.acquire(ip("192.0.2.2"), &echo, Some(1));
        assert_eq!(more.err(), Some(Exceeded::Service));
        let none = limits.acquire(ip("192.0.2.2"), &service("off"), Some(0));
        assert_eq!(none.err(), Some(Exceeded::Service));
    }

    #[test]
    fn a_subject_over_its_limit_stops_neither_another_nor_its_name_at_another_service() {
        let limits = Limits::new(100, 100, Some(1));
        let take = |name: &str, subject: &str| {
            let permit = limits.acquire(ip("192.0.2.1"), &service(name), None);
            limits.of_subject(permit.ok().unwrap(), subject)
        };
        let held = take("echo", "ana");
        assert!(held.is_ok());
        assert_eq!(take("echo", "ana").err(), Some(Exceeded::Subject));
        assert!(take("echo", "bob").is_ok());
        assert!(take("chat", "ana").is_ok());
        drop(held);
        assert!(take("echo", "ana").is_ok());
    }

    proptest! {
        #[test]
        fn nothing_is_left_of_permits_that_are_gone(
            clients in prop::collection::vec((any::<u8>(), 0..3u8), 0..64),
        ) {
            let limits = Limits::new(32, 4, Some(3));
            let permits: Vec<_> = clients
                .iter()
                .filter_map(|(host, name)| {
                    let client = IpAddr::from([192, 0, 2, host % 16]);
                    let permit = limits.acquire(client, &service(&format!("s{name}")), Some(8)).ok()?;
                    limits.of_subject(permit, &format!("{}", host % 4)).ok()
                })
                .collect();
            prop_assert!(permits.len() <= 24);
            drop(permits);
            prop_assert!(limits.all.counts.is_empty());
            prop_assert!(limits.networks.counts.is_empty());
            prop_assert!(limits.services.counts.is_empty());
            prop_assert!(limits.subjects.counts.is_empty());
        }
    }
}
