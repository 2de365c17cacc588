//! Gauges of peers, paths and flows, brought up to date every second.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::{MissedTickBehavior, interval};
use wavry_proto::{id::NodeId, overlay::paths::Standing};

use super::{Shared, table};
use crate::metrics;

/// How often.
const EVERY: Duration = Duration::from_secs(1);

/// Peers that have gauges of their own, in the life of a process. A gauge that was there once stays with whoever
/// collects it, so that those that come later have none; `/mesh` has all.
const PEERS: usize = 256;

/// Peers that have, or had, gauges of their own.
#[derive(Debug, Default)]
struct Named(BTreeSet<NodeId>);

impl Named {
    /// What the gauges are to be, by what was measured now: a number for those that have a path, and none for those
    /// that had one before.
    fn next(
        &mut self,
        measured: impl Iterator<Item = (NodeId, [f64; 2])>,
    ) -> BTreeMap<NodeId, [f64; 2]> {
        let before = self.0.iter().cloned();
        let mut next: BTreeMap<_, _> = before.map(|peer| (peer, [f64::NAN; 2])).collect();
        for (peer, values) in measured {
            if self.0.contains(&peer) || self.0.len() < PEERS {
                self.0.insert(peer.clone());
                next.insert(peer, values);
            }
        }
        next
    }
}

/// How many there are of each kind.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    reached: u32,
    unreached: u32,
    /// By standing, in the order of [`Standing::ALL`].
    paths: [u32; 3],
    open: u32,
    closed: u32,
}

impl Shared {
    /// Keeps them until the overlay is none any more.
    pub(super) async fn keep_gauges(self: Arc<Self>) {
        let mut tick = interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut named = Named::default();
        while self
            .stopped
            .run_until_cancelled(tick.tick())
            .await
            .is_some()
        {
            self.set_gauges(&mut named);
        }
    }

    fn set_gauges(&self, named: &mut Named) {
        let peers: Vec<_> = table::read(&self.table).peers().cloned().collect();
        let now = Instant::now();
        let mut counts = Counts::default();
        let mut measured = Vec::new();
        for peer in peers {
            // One that nobody here wants to reach is none that is missed.
            match *peer.reached.borrow() {
                true => counts.reached += 1,
                false => counts.unreached += u32::from(peer.is_wanted()),
            }
            let views: Vec<_> = table::lock(&peer.paths).views().collect();
            for (count, standing) in counts.paths.iter_mut().zip(Standing::ALL) {
                let of_it = views.iter().filter(|view| view.standing == standing);
                *count += of_it.count() as u32;
            }
            for passage in table::lock(&peer.passages).iter() {
                match passage.open_until(now) {
                    Some(_) => counts.open += 1,
                    None => counts.closed += 1,
                }
            }
            let active = views.iter().find(|view| view.active);
            measured.extend(active.and_then(|view| {
                let values = [view.round_trip?.as_secs_f64(), view.loss.into()];
                Some((peer.id.clone(), values))
            }));
        }
        for (peer, [round_trip, loss]) in named.next(measured.into_iter()) {
            let peer = peer.to_string();
            ::metrics::gauge!(metrics::OVERLAY_ROUND_TRIP, "peer" => peer.clone()).set(round_trip);
            ::metrics::gauge!(metrics::OVERLAY_LOSS, "peer" => peer).set(loss);
        }
        counts.set();
    }
}

impl Counts {
    fn set(&self) {
        let peers = [("reached", self.reached), ("unreached", self.unreached)];
        for (state, count) in peers {
            ::metrics::gauge!(metrics::OVERLAY_PEERS, "state" => state).set(count);
        }
        for (standing, count) in Standing::ALL.iter().zip(self.paths) {
            ::metrics::gauge!(metrics::OVERLAY_PATHS, "standing" => standing.as_str()).set(count);
        }
        for (state, count) in [("open", self.open), ("closed", self.closed)] {
            ::metrics::gauge!(metrics::OVERLAY_FLOWS, "state" => state).set(count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> NodeId {
        format!("n{number}").parse().unwrap()
    }

    fn peers(range: std::ops::Range<usize>) -> impl Iterator<Item = (NodeId, [f64; 2])> {
        range.map(|number| (id(number), [number as f64, 0.5]))
    }

    #[test]
    fn a_peer_without_a_path_any_more_has_no_number_and_those_that_come_too_late_have_no_gauge() {
        let mut named = Named::default();
        assert_eq!(named.next(peers(0..2)), peers(0..2).collect());
        let next = named.next(peers(1..PEERS + 5));
        assert_eq!(next.len(), PEERS);
        assert!(next[&id(0)][0].is_nan());
        assert_eq!(next[&id(1)], [1.0, 0.5]);
        assert!(!next.contains_key(&id(PEERS)));
        // Its gauge is still its own when it comes back.
        let next = named.next(peers(0..1));
        assert_eq!(next[&id(0)], [0.0, 0.5]);
        assert!(next[&id(1)][0].is_nan());
    }
}
