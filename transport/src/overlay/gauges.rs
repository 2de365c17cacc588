//! Gauges of peers, paths and flows, brought up to date every second.

use std::{
    collections::BTreeSet,
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
pub(crate) const PEERS: usize = 256;

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
        let mut named = BTreeSet::new();
        while self
            .stopped
            .run_until_cancelled(tick.tick())
            .await
            .is_some()
        {
            self.set_gauges(&mut named);
        }
    }

    fn set_gauges(&self, named: &mut BTreeSet<NodeId>) {
        let peers: Vec<_> = table::read(&self.table).peers().cloned().collect();
        let now = Instant::now();
        let mut counts = Counts::default();
        let mut without: BTreeSet<_> = named.clone();
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
            let measured = active.and_then(|view| Some((view.round_trip?, view.loss)));
            let may_be_named = named.contains(&peer.id) || named.len() < PEERS;
            if let Some((round_trip, loss)) = measured
                && may_be_named
            {
                set_path(&peer.id, round_trip.as_secs_f64(), loss.into());
                without.remove(&peer.id);
                named.insert(peer.id.clone());
            }
        }
        for peer in without {
            set_path(&peer, f64::NAN, f64::NAN);
        }
        counts.set();
    }
}

fn set_path(peer: &NodeId, round_trip: f64, loss: f64) {
    let peer = peer.to_string();
    ::metrics::gauge!(metrics::OVERLAY_ROUND_TRIP, "peer" => peer.clone()).set(round_trip);
    ::metrics::gauge!(metrics::OVERLAY_LOSS, "peer" => peer).set(loss);
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
