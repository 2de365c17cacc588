//! What is to be told of the paths to peers and of the flows that they take, and how these are measured when somebody
//! wants to know.

use std::time::{Duration, Instant};

use tokio::time::timeout;
use wavry_proto::{
    id::NodeId,
    overlay::{
        lease::Offer,
        passage::{MEASURES_APART, Passage},
        paths::{Cause, Paths, Route, Standing, Switch, View},
    },
    view::{self, Flow, Hop, Lease, Place, Timing, Traced, Way},
};

use super::{
    Overlay, Shared,
    table::{self, Peer},
};
use crate::metrics;

/// How long answers are waited for that were asked for out of turn. Three relays and the peer, one after the other, each
/// a second away at the worst, and one claim that is lost.
const PATIENCE: Duration = Duration::from_secs(4);

/// How often another path to a peer was taken, and how that was the last time.
#[derive(Debug, Default)]
pub(super) struct Switched {
    count: u64,
    last: Option<Last>,
}

/// The last time. Which way that was is known only then: a flow may be none any more when somebody asks.
#[derive(Debug)]
struct Last {
    cause: Cause,
    from: Option<Way>,
    to: Way,
    at: Instant,
}

impl Overlay {
    /// Peers that are looked after, by id: this one, or `limit` at most; and how many more there are.
    pub(crate) fn peers(&self, only: Option<&NodeId>, limit: usize) -> (Vec<view::Peer>, usize) {
        let mut peers: Vec<_> = {
            let table = table::read(&self.shared.table);
            let is_meant = |peer: &&std::sync::Arc<Peer>| only.is_none_or(|only| peer.id == *only);
            table.peers().filter(is_meant).cloned().collect()
        };
        peers.sort_by(|a, b| a.id.cmp(&b.id));
        let left_out = peers.len().saturating_sub(limit);
        let now = Instant::now();
        let told = peers.iter().take(limit);
        let told = told.map(|peer| self.shared.view(peer, now)).collect();
        (told, left_out)
    }

    /// Through which relays this node is reached, where it is behind NAT.
    pub(crate) fn held_places(&self) -> Vec<Place> {
        self.shared.places.view(Instant::now())
    }

    /// Measures the path to `peer` that is in use, or all that carry something, and the flows that they take, now, or
    /// has what was measured a moment ago. `None` where the peer is not looked after.
    pub(crate) async fn trace(&self, peer: &NodeId, all: bool) -> Option<Vec<Traced>> {
        let peer = table::read(&self.shared.table).peer(peer)?;
        // What was asked for out of turn by somebody else is new enough.
        let since = Instant::now()
            .checked_sub(MEASURES_APART)
            .unwrap_or_else(Instant::now);
        self.shared.measure(&peer, all);
        let measured = async {
            loop {
                let answered = peer.answered.notified();
                tokio::pin!(answered);
                answered.as_mut().enable();
                if self.shared.is_measured(&peer, all, since) {
                    return;
                }
                answered.await;
            }
        };
        // What does not answer is told as it was.
        let _ = timeout(PATIENCE, measured).await;
        Some(self.shared.traced(&peer, all))
    }
}

impl Shared {
    /// Another path was taken. Whoever says so holds the lock of the paths.
    pub(super) fn switched(&self, peer: &Peer, switch: Switch, now: Instant) {
        let to = self.way(&table::lock(&peer.passages), switch.to);
        let cause = switch.cause;
        let mut switched = table::lock(&peer.switched);
        switched.count += 1;
        let from = switched.last.take().map(|last| last.to);
        ::metrics::counter!(metrics::OVERLAY_SWITCHES, "cause" => cause.as_str()).increment(1);
        let before = from.as_ref().map(ToString::to_string);
        tracing::info!(peer = %peer.id, from = before, %to, cause = cause.as_str(), "path taken");
        let at = now;
        switched.last = Some(Last {
            cause,
            from,
            to,
            at,
        });
    }

    fn view(&self, peer: &Peer, now: Instant) -> view::Peer {
        let mut views: Vec<_> = table::lock(&peer.paths).views().collect();
        views.sort_by_key(|view| !view.active);
        let (paths, flows) = {
            let passages = table::lock(&peer.passages);
            let path = |view: &View| view::Path {
                way: self.way(&passages, view.route),
                standing: view.standing,
                in_use: view.active,
                in_doubt: view.doubt_at.is_some_and(|at| at <= now),
                round_trip: view.measured.map(|measured| Timing::of(measured, now)),
                loss: view.loss,
            };
            let paths = views.iter().map(path).collect();
            let flows = passages.iter().map(|passage| self.flow(passage, now));
            (paths, flows.collect())
        };
        let switched = table::lock(&peer.switched);
        view::Peer {
            node: peer.id.clone(),
            reached: *peer.reached.borrow(),
            wanted: peer.is_wanted(),
            paths,
            switches: switched.count,
            last_switch: switched.last.as_ref().map(|last| view::Switch {
                cause: last.cause,
                from: last.from.clone(),
                to: last.to.clone(),
                seconds_ago: view::seconds(now.saturating_duration_since(last.at)),
            }),
            flows,
            connections: Vec::new(),
        }
    }

    fn flow(&self, passage: &Passage, now: Instant) -> Flow {
        let open = passage.open_until(now);
        let flow = passage.flow();
        let source = &self.config.leases.source;
        Flow {
            hops: hops(passage, now),
            open_seconds: open.map(|ends| view::seconds(ends.saturating_duration_since(now))),
            lease: match (source.terms(flow), source.offer(flow)) {
                (Some(terms), _) => Lease::Held {
                    expires_in_seconds: terms.left.as_secs(),
                    bits_per_second: terms.bits_per_second,
                    packets_per_second: terms.packets_per_second,
                },
                (None, Offer::Nothing) => Lease::Unanswered,
                (None, _) => Lease::Missing,
            },
        }
    }

    /// How packets on this route go, as far as this node knows.
    fn way(&self, passages: &[Passage], route: Route) -> Way {
        let (via, id) = match route {
            Route::Direct(address) => return Way::Direct(address),
            Route::Flow { via, id } => (via, id),
        };
        let own = passages.iter().find(|passage| passage.flow() == id);
        match own {
            Some(passage) => {
                let hops = passage.way().hops.iter();
                Way::Relays(hops.map(|hop| hop.node.clone()).collect())
            }
            None => {
                let roster = self.config.roster.borrow();
                Way::PeersFlow(roster.relay_at(&via).map(|relay| relay.id.clone()))
            }
        }
    }

    /// Has what is traced probed, and claimed, out of turn.
    fn measure(&self, peer: &Peer, all: bool) {
        let now = Instant::now();
        let mut paths = table::lock(&peer.paths);
        for view in to_trace(&paths, all) {
            paths.ask(view.route, now);
            let mut passages = table::lock(&peer.passages);
            if let Some(passage) = passage_of(&mut passages, view.route) {
                passage.measure(now);
            }
        }
        peer.changed.notify_one();
    }

    /// Whether what is traced was measured since then.
    fn is_measured(&self, peer: &Peer, all: bool, since: Instant) -> bool {
        let views = to_trace(&table::lock(&peer.paths), all);
        let mut passages = table::lock(&peer.passages);
        views.iter().all(|view| {
            let hops = passage_of(&mut passages, view.route).into_iter();
            let mut hops = hops.flat_map(|passage| passage.hops());
            view.measured.is_some_and(|of| of.at >= since)
                && hops.all(|(_, told)| told.round_trip.is_some_and(|of| of.at >= since))
        })
    }

    fn traced(&self, peer: &Peer, all: bool) -> Vec<Traced> {
        let now = Instant::now();
        let mut views = to_trace(&table::lock(&peer.paths), all);
        views.sort_by_key(|view| (!view.active, view.round_trip));
        let mut passages = table::lock(&peer.passages);
        let traced = views.iter().map(|view| Traced {
            way: self.way(&passages, view.route),
            in_use: view.active,
            hops: passage_of(&mut passages, view.route)
                .map_or_else(Vec::new, |passage| hops(passage, now)),
            end: view.measured.map(|measured| Timing::of(measured, now)),
        });
        traced.collect()
    }
}

/// The path in use, or all, of those that carry something.
fn to_trace(paths: &Paths, all: bool) -> Vec<View> {
    let carries = |view: &View| view.standing == Standing::Proved && (all || view.active);
    paths.views().filter(carries).collect()
}

fn passage_of(passages: &mut [Passage], route: Route) -> Option<&mut Passage> {
    let Route::Flow { id, .. } = route else {
        return None;
    };
    passages.iter_mut().find(|passage| passage.flow() == id)
}

fn hops(passage: &Passage, now: Instant) -> Vec<Hop> {
    let hops = passage.hops().map(|(hop, told)| Hop {
        relay: hop.node.clone(),
        ruling: told.ruling.map(|ruling| ruling.as_str().to_owned()),
        round_trip: told.round_trip.map(|of| Timing::of(of, now)),
    });
    hops.collect()
}
