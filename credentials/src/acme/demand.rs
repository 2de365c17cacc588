//! Certificates for hosts that services of the roster are bound to, each with one of its own: ordered when the service is
//! there, or when the first client asks for its host.
//!
//! A handshake reads memory only, and waits for nothing: one for a host of the roster that has no certificate
//! yet sets a flag, and gets what it would get without. Any other name is looked up in the same table, and
//! nothing comes of it. How many hosts there are is bounded, and so is how many get their first certificate in an hour.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use metrics::{counter, gauge};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
};
use wavry_proto::control::Roster;

use super::{check_name, machine::Time, metrics as names};

/// Which hosts of services have a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// None but those that are named.
    #[default]
    Never,
    /// All of them.
    Registered,
    /// Those that a client has asked for.
    Asked,
}

/// How many hosts may get their first certificate: so many in an hour on average, and as many at once after an
/// hour without (GCRA). Pure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pace {
    pub(super) per_hour: u32,
}

/// What was ordered so far. Kept over restarts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ordered {
    /// Until when it would have taken at the average pace, in milliseconds since the Unix epoch.
    until: u64,
}

const HOUR: u64 = 60 * 60 * 1000;

impl Pace {
    /// Counts one at `now`, or says how long to wait.
    pub(super) fn charge(self, ordered: Ordered, now: Time) -> Result<Ordered, Duration> {
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let interval = HOUR / u64::from(self.per_hour.max(1));
        // A clock that was set back does not hold anybody up for longer than an hour.
        let until = ordered.until.clamp(now, now.saturating_add(HOUR)) + interval;
        match until <= now + HOUR {
            true => Ok(Ordered { until }),
            false => Err(Duration::from_millis(until - now - HOUR)),
        }
    }
}

/// What of a certificate depends on who asks for it.
#[derive(Clone)]
pub(super) struct Demand {
    /// Whether it is to be ordered.
    pub(super) wanted: watch::Receiver<bool>,
    pub(super) pace: Pace,
}

/// Hosts of services, and whether each is wanted. What handshakes read.
#[derive(Default)]
pub(super) struct Hosts(ArcSwap<HashMap<Box<str>, watch::Sender<bool>>>);

impl Hosts {
    /// A handshake asks for a name that there is no certificate for.
    pub(super) fn asked(&self, name: &str) {
        let hosts = self.0.load();
        let Some(wanted) = hosts.get(name) else {
            return;
        };
        if wanted.send_if_modified(|wanted| !std::mem::replace(wanted, true)) {
            counter!(names::DEMAND_ASKED).increment(1);
        }
    }
}

/// Has `work` look after a certificate for each host of the roster, for as long as it is polled: at most `room`.
pub(super) async fn follow<W, F>(
    hosts: Arc<Hosts>,
    mut rosters: watch::Receiver<Arc<Roster>>,
    (when, named, room): (When, BTreeSet<String>, usize),
    work: W,
) where
    W: Fn(String, watch::Receiver<bool>) -> Option<F>,
    F: Future<Output = ()> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    let mut running: HashMap<String, AbortHandle> = HashMap::new();
    loop {
        let roster = rosters.borrow_and_update().clone();
        // One that is too old to act on says nothing of hosts.
        if !roster.is_empty() {
            let all = hosts_of(&roster, &named);
            let left_out = all.len().saturating_sub(room);
            gauge!(names::DEMAND_LEFT_OUT).set(left_out as f64);
            let kept: BTreeSet<String> = all.into_iter().take(room).collect();
            running.retain(|host, task| {
                let stays = kept.contains(host);
                if !stays {
                    task.abort();
                }
                stays
            });
            let mut table = HashMap::clone(&hosts.0.load());
            table.retain(|host, _| kept.contains(&**host));
            for host in kept {
                if running.contains_key(&host) {
                    continue;
                }
                let wanted = watch::Sender::new(when == When::Registered);
                if let Some(work) = work(host.clone(), wanted.subscribe()) {
                    table.insert(host.as_str().into(), wanted);
                    running.insert(host, tasks.spawn(work));
                }
            }
            gauge!(names::DEMAND_HOSTS).set(running.len() as f64);
            hosts.0.store(Arc::new(table));
        }
        // What was aborted is gone.
        while tasks.try_join_next().is_some() {}
        if rosters.changed().await.is_err() {
            return;
        }
    }
}

/// Hosts that services are bound to and that an authority could certify, but for those that are named.
fn hosts_of(roster: &Roster, named: &BTreeSet<String>) -> BTreeSet<String> {
    let hosts = roster.services.iter().flat_map(|service| &service.hosts);
    let hosts = hosts.filter(|host| check_name(host).is_ok() && !named.contains(*host));
    hosts.cloned().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Time {
        Duration::from_millis(millis)
    }

    #[test]
    fn as_many_as_an_hour_allows_come_at_once_and_then_one_after_the_other() {
        let pace = Pace { per_hour: 4 };
        let (mut ordered, start) = (Ordered::default(), 1_000_000_000_000);
        for _ in 0..4 {
            ordered = pace.charge(ordered, at(start)).unwrap();
        }
        assert_eq!(pace.charge(ordered, at(start)), Err(at(HOUR / 4)));
        let next = pace.charge(ordered, at(start + HOUR / 4)).unwrap();
        assert_eq!(pace.charge(next, at(start + HOUR / 4)), Err(at(HOUR / 4)));
        assert!(pace.charge(next, at(start + HOUR / 2)).is_ok());
    }

    #[test]
    fn a_clock_that_was_set_back_holds_nobody_up_for_longer_than_an_hour() {
        let pace = Pace { per_hour: 1 };
        let ordered = pace
            .charge(Ordered::default(), at(1_000_000_000_000))
            .unwrap();
        let wait = pace.charge(ordered, at(1_000_000)).unwrap_err();
        assert!(wait <= at(HOUR), "{wait:?}");
    }

    proptest! {
        #[test]
        fn never_more_than_twice_an_hours_worth_in_an_hour(
            per_hour in 1_u32..100,
            pauses in prop::collection::vec(0_u64..HOUR / 10, 0..300),
        ) {
            let (pace, mut ordered, mut now) = (Pace { per_hour }, Ordered::default(), HOUR);
            let mut admitted = Vec::new();
            for pause in pauses {
                now += pause;
                if let Ok(next) = pace.charge(ordered, at(now)) {
                    ordered = next;
                    admitted.push(now);
                }
            }
            for (index, first) in admitted.iter().enumerate() {
                let within = admitted[index..].iter().filter(|time| **time < first + HOUR);
                prop_assert!(within.count() <= 2 * per_hour as usize + 1);
            }
        }
    }

    #[test]
    fn a_name_that_no_service_is_bound_to_changes_nothing() {
        let hosts = Hosts::default();
        let wanted = watch::Sender::new(false);
        let table = HashMap::from([("a.example".into(), wanted.clone())]);
        hosts.0.store(Arc::new(table));
        for name in ["b.example", "", "A.example", "a.example."] {
            hosts.asked(name);
        }
        assert!(!*wanted.borrow());
        hosts.asked("a.example");
        assert!(*wanted.borrow());
    }
}
