//! The choice of an exit. Pure: time, round-trip times and what came of attempts are arguments.
//!
//! Every exit of a service has a place in the order in which one session tries them. First count what rules
//! an exit out while others are left: it failed, it is full, it is in another region. Among those that are
//! equal in that, each has a weight: what it was given, less the fuller it is, the farther away, and the
//! shorter ago it came back. A session draws among them by weighted rendezvous hashing: its own key and each
//! exit's id make a number, and the greatest, as weights bend it, is first. So shares follow weights without
//! gateways' having to agree on anything, no two draw alike, and where an exit goes, only those sessions go
//! elsewhere that were its own.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher as _},
    time::{Duration, Instant},
};

use wavry_proto::{
    control::{Node, Role, Roster},
    id::{NodeId, RegionName, ServiceName},
    placement::Load,
};

/// An exit that failed is left out for so long, twice as long each time that it fails again.
const EJECTION: Duration = Duration::from_secs(5);
/// But no longer than this.
const LONGEST_EJECTION: Duration = Duration::from_secs(60);
/// One that came back has its whole weight after so long, and then its failures are forgotten.
const SLOW_START: Duration = Duration::from_secs(30);
/// The part of its weight that it begins with: enough for failures to show, and few of a service's sessions.
const FIRST_SHARE: f64 = 0.1;
/// What an exit told of its load is forgotten after so long.
const LOAD_MEMORY: Duration = Duration::from_secs(30);
/// From this load on an exit is full: others are asked first.
const FULL: f64 = 0.95;
/// At this round-trip time a weight counts half; one that is not known yet is taken for it.
const HALF_AT: Duration = Duration::from_millis(20);

/// What a gateway knows of the exits that it uses. Bounded by the nodes of the roster, and by sessions.
#[derive(Debug, Default)]
pub(super) struct Choice {
    known: HashMap<NodeId, Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// This gateway's sessions there.
    sessions: u32,
    health: Health,
    /// Ejections since it was well for [`SLOW_START`].
    ejections: u32,
    load: Option<(Load, Instant)>,
    /// Services that it said it does not know. Bounded by those that the roster says it is an exit for.
    without: HashMap<ServiceName, Without>,
    round_trip: Option<Duration>,
}

/// A service that an exit does not know, whatever the roster says.
#[derive(Debug, Clone, Copy)]
struct Without {
    /// For so long, others are asked first.
    until: Instant,
    /// Times in turn that it said so.
    times: u32,
}

#[derive(Debug, Default, Clone, Copy)]
enum Health {
    #[default]
    Well,
    /// It failed. At `until` it is looked at; while `is_looked_at`, somebody does.
    Ejected { until: Instant, is_looked_at: bool },
    /// It can be reached again since then.
    Returning { since: Instant },
}

/// How an exit does, as metrics tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum State {
    /// It takes its share.
    Well,
    /// It came back lately, and takes less than its share.
    Returning,
    /// It takes sessions only when all others are full or fail.
    Full,
    /// It failed, and takes sessions only when all others do.
    Ejected,
}

impl State {
    pub(super) const ALL: [(Self, &'static str); 4] = [
        (Self::Well, "well"),
        (Self::Returning, "returning"),
        (Self::Full, "full"),
        (Self::Ejected, "ejected"),
    ];
}

impl Choice {
    /// The exits for a session with `service` whose key is `key`, in the order in which they are to be tried.
    /// None is left out: where all have failed, one of them may be back.
    pub(super) fn order<'r>(
        &self,
        roster: &'r Roster,
        service: &'r ServiceName,
        region: Option<&RegionName>,
        key: u64,
        now: Instant,
    ) -> Vec<&'r NodeId> {
        let unknown = Known::default();
        let mut exits: Vec<_> = roster
            .exits(service)
            .map(|exit| {
                let known = self.known.get(&exit.id).unwrap_or(&unknown);
                let is_elsewhere = region.is_some() && exit.placement.region.as_ref() != region;
                let rank = match known.state(now) {
                    State::Well | State::Returning => u8::from(is_elsewhere),
                    State::Full => 2,
                    State::Ejected => 3,
                };
                let rank = match known.is_without(service, now) {
                    true => 3,
                    false => rank,
                };
                let drawn = draw(key, &exit.id) / known.weight(exit, now);
                (rank, drawn, &exit.id)
            })
            .collect();
        exits.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        exits.into_iter().map(|(_, _, id)| id).collect()
    }

    /// `exit` could not be reached, did not answer, or was lost. Whether it is ejected by that.
    pub(super) fn failed(&mut self, exit: &NodeId, now: Instant) -> bool {
        let known = self.known.entry(exit.clone()).or_default();
        if let Health::Ejected { is_looked_at, .. } = known.health
            && !is_looked_at
        {
            // Of sessions that were tried there at the same time, or because there is no other.
            return false;
        }
        known.health = Health::Ejected {
            until: now + ejection(known.ejections),
            is_looked_at: false,
        };
        known.ejections += 1;
        known.load = None;
        true
    }

    /// `exit` said that it does not know `service`: for that one it is left out as long as one that failed, and for
    /// no other. Whether that is new. Nobody looks whether it knows it now; a session does, when that time is over.
    pub(super) fn without(&mut self, exit: &NodeId, service: &ServiceName, now: Instant) -> bool {
        let known = self.known.entry(exit.clone()).or_default();
        if known.is_without(service, now) {
            return false;
        }
        let times = known
            .without
            .get(service)
            .map_or(0, |without| without.times);
        let without = Without {
            until: now + ejection(times),
            times: times + 1,
        };
        known.without.insert(service.clone(), without);
        true
    }

    /// `exit` can be reached. Whether it was ejected until now.
    pub(super) fn reached(&mut self, exit: &NodeId, now: Instant) -> bool {
        let Some(known) = self.known.get_mut(exit) else {
            return false;
        };
        let was_ejected = matches!(known.health, Health::Ejected { .. });
        if was_ejected {
            known.health = Health::Returning { since: now };
        }
        was_ejected
    }

    /// `exit` said how full it is.
    pub(super) fn told(&mut self, exit: &NodeId, load: Load, now: Instant) {
        self.known.entry(exit.clone()).or_default().load = Some((load, now));
    }

    /// A session with `service` was opened at `exit`.
    pub(super) fn took(&mut self, exit: &NodeId, service: &ServiceName) {
        let known = self.known.entry(exit.clone()).or_default();
        known.sessions += 1;
        known.without.remove(service);
    }

    /// A session at `exit` is over.
    pub(super) fn left(&mut self, exit: &NodeId) {
        if let Some(known) = self.known.get_mut(exit) {
            known.sessions = known.sessions.saturating_sub(1);
        }
    }

    /// What is due as time passes: takes over round-trip times, as far as `round_trip` knows them, ends slow
    /// starts, and forgets exits that the roster does not list. Gives the ejected exits that are to be looked
    /// at now; each is then [reached](Self::reached) or has [failed](Self::failed).
    pub(super) fn turn(
        &mut self,
        roster: &Roster,
        round_trip: impl Fn(&NodeId) -> Option<Duration>,
        now: Instant,
    ) -> Vec<NodeId> {
        self.known
            .retain(|id, known| known.sessions > 0 || roster.node(id).is_some());
        let mut due = Vec::new();
        for exit in roster.nodes.iter().filter(|node| is_exit(node)) {
            let known = self.known.entry(exit.id.clone()).or_default();
            known.round_trip = round_trip(&exit.id).or(known.round_trip);
            known
                .without
                .retain(|service, _| exit.services.contains(service));
            match &mut known.health {
                Health::Returning { since } if now >= *since + SLOW_START => {
                    known.health = Health::Well;
                    known.ejections = 0;
                }
                Health::Ejected {
                    until,
                    is_looked_at,
                } if now >= *until && !*is_looked_at => {
                    *is_looked_at = true;
                    due.push(exit.id.clone());
                }
                _ => {}
            }
        }
        due
    }

    /// How each exit of the roster does.
    pub(super) fn states(&self, roster: &Roster, now: Instant) -> impl Iterator<Item = State> {
        let exits = roster.nodes.iter().filter(|node| is_exit(node));
        exits.map(move |exit| {
            let known = self.known.get(&exit.id);
            known.map_or(State::Well, |known| known.state(now))
        })
    }
}

impl Known {
    fn state(&self, now: Instant) -> State {
        match self.health {
            Health::Ejected { .. } => State::Ejected,
            _ if self.load(now) >= FULL => State::Full,
            Health::Returning { .. } => State::Returning,
            Health::Well => State::Well,
        }
    }

    fn is_without(&self, service: &ServiceName, now: Instant) -> bool {
        let without = self.without.get(service);
        without.is_some_and(|without| now < without.until)
    }

    /// From 0 to 1; 0 while nothing is known of it.
    fn load(&self, now: Instant) -> f64 {
        let fresh = self.load.filter(|(_, at)| now < *at + LOAD_MEMORY);
        fresh.map_or(0.0, |(load, _)| load.fraction())
    }

    /// Always above zero.
    fn weight(&self, exit: &Node, now: Instant) -> f64 {
        let given = f64::from(exit.placement.weight.get());
        let free = (1.0 - self.load(now)).max(1.0 - FULL);
        let round_trip = self.round_trip.unwrap_or(HALF_AT);
        let near = HALF_AT.div_duration_f64(HALF_AT + round_trip);
        let back = match self.health {
            Health::Returning { since } => {
                let part = now
                    .saturating_duration_since(since)
                    .div_duration_f64(SLOW_START);
                part.clamp(FIRST_SHARE, 1.0)
            }
            Health::Well | Health::Ejected { .. } => 1.0,
        };
        given * free * near * back
    }
}

/// For how long an exit is left out that was so many times before.
fn ejection(times: u32) -> Duration {
    EJECTION
        .saturating_mul(1 << times.min(8))
        .min(LONGEST_EJECTION)
}

fn is_exit(node: &Node) -> bool {
    node.role == Role::Relay && !node.services.is_empty()
}

/// A draw from the exponential distribution with mean 1. Divided by weights, the smallest of several is each
/// one's as often as its weight says.
fn draw(key: u64, exit: &NodeId) -> f64 {
    let mut hasher = DefaultHasher::new();
    (key, exit.as_str()).hash(&mut hasher);
    // The 53 bits that an f64 holds, and never 0.
    let uniform = ((hasher.finish() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -uniform.ln()
}

#[cfg(test)]
impl Choice {
    pub(super) fn is_known(&self, exit: &NodeId) -> bool {
        self.known.contains_key(exit)
    }
}
