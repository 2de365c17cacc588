//! A congestion window for each path.
//!
//! QUIC sees one address for a peer, and so keeps one congestion controller however often the overlay changes
//! the path beneath it. RFC 9000, section 9.4 wants another: what one path carried says nothing about the
//! next, and what a dead one still owes must not keep the next from sending. [`Windows`] is quinn's controller
//! with one window (CUBIC, RFC 9438) for each path of late: only packets that went over a path count for its
//! window, and bytes that went over others do not fill it.

use std::{
    any::Any,
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;
use tokio::sync::watch;
use wavry_proto::overlay::paths::{Cause, MAX_PATHS, Route, Switch};

/// Windows that are kept of paths that are not in use. More than those between which a peer's packets alternate.
const KEPT: usize = 3;

/// For how long. What a path carried before that is no more than a guess, and RFC 9002, section 7.2 has a window to
/// begin with for guesses.
const KEPT_FOR: Duration = Duration::from_secs(10);

/// Since when a peer's packets take a path.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn {
    path: PathNumber,
    since: Instant,
}

/// Says which path it is. One that fell silent gets another number when it is taken again: whether it is as it was
/// nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PathNumber(u64);

/// The paths that a peer's packets took, and whoever wants to know of the next.
pub(super) struct Turns {
    numbers: VecDeque<(Route, PathNumber)>,
    next: u64,
    now: watch::Sender<Turn>,
}

impl Turns {
    pub(super) fn new(now: Instant) -> Self {
        let turn = Turn {
            path: PathNumber(0),
            since: now,
        };
        Self {
            numbers: VecDeque::new(),
            next: 1,
            now: watch::Sender::new(turn),
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Turn> {
        self.now.subscribe()
    }

    /// Packets take another path from now on. To be called when they do, not before: one that is sent meanwhile
    /// counts for the path before, which does no harm; the other way round a dead path's would fill the window of the
    /// next.
    pub(super) fn took(&mut self, switch: &Switch, now: Instant) {
        if switch.cause == Cause::Silent {
            self.numbers
                .retain(|(route, _)| Some(*route) != switch.from);
        }
        let known = self.numbers.iter().find(|(route, _)| *route == switch.to);
        let path = match known {
            Some((_, number)) => *number,
            None => {
                let number = PathNumber(self.next);
                self.next += 1;
                if self.numbers.len() == MAX_PATHS {
                    self.numbers.pop_front();
                }
                self.numbers.push_back((switch.to, number));
                number
            }
        };
        self.now.send_replace(Turn { path, since: now });
    }
}

/// Makes the controllers of connections to one peer.
pub(super) struct Factory {
    turns: watch::Receiver<Turn>,
    each: Arc<CubicConfig>,
}

impl Factory {
    pub(super) fn new(turns: watch::Receiver<Turn>) -> Self {
        Self {
            turns,
            each: Arc::default(),
        }
    }
}

impl ControllerFactory for Factory {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Windows::new(
            self.turns.clone(),
            self.each.clone(),
            now,
            current_mtu,
        ))
    }
}

/// The congestion controller of a connection whose path may change.
struct Windows {
    turns: watch::Receiver<Turn>,
    each: Arc<CubicConfig>,
    mtu: u16,
    turn: Turn,
    /// That of the path in use.
    window: Box<dyn Controller>,
    /// Those of others, the one that was left last at the end.
    others: VecDeque<Left>,
    /// Bytes in flight, as far as is known here.
    in_flight: u64,
    /// Those of them that went over other paths.
    elsewhere: u64,
}

/// The window of a path that was left.
struct Left {
    path: PathNumber,
    at: Instant,
    window: Box<dyn Controller>,
}

impl Clone for Left {
    fn clone(&self) -> Self {
        Self {
            path: self.path,
            at: self.at,
            window: self.window.clone_box(),
        }
    }
}

impl Windows {
    fn new(
        mut turns: watch::Receiver<Turn>,
        each: Arc<CubicConfig>,
        now: Instant,
        mtu: u16,
    ) -> Self {
        let turn = *turns.borrow_and_update();
        Self {
            turns,
            window: each.clone().build(now, mtu),
            each,
            mtu,
            turn,
            others: VecDeque::new(),
            in_flight: 0,
            elsewhere: 0,
        }
    }

    /// The turn that was not followed yet, if it is another path's.
    fn next(&self) -> Option<Turn> {
        // Who tells of turns lives as long as the peer; without it there are none.
        if !self.turns.has_changed().unwrap_or(false) {
            return None;
        }
        let turn = *self.turns.borrow();
        (turn.path != self.turn.path).then_some(turn)
    }

    fn known(&self, turn: &Turn) -> Option<usize> {
        let is = |left: &Left| {
            left.path == turn.path && turn.since.saturating_duration_since(left.at) <= KEPT_FOR
        };
        self.others.iter().position(is)
    }

    /// Takes the window of the path that packets take now.
    fn follow(&mut self) {
        if !self.turns.has_changed().unwrap_or(false) {
            return;
        }
        let turn = *self.turns.borrow_and_update();
        if turn.path == self.turn.path {
            return;
        }
        let known = self.known(&turn).and_then(|at| self.others.remove(at));
        let window = match known {
            Some(left) => left.window,
            None => self.each.clone().build(turn.since, self.mtu),
        };
        if self.others.len() == KEPT {
            self.others.pop_front();
        }
        self.others.push_back(Left {
            path: self.turn.path,
            at: turn.since,
            window: std::mem::replace(&mut self.window, window),
        });
        self.turn = turn;
        self.elsewhere = self.in_flight;
    }

    /// A packet of that time arrived; whether it went over the path in use.
    fn acknowledged(&mut self, sent: Instant, bytes: u64) -> bool {
        self.follow();
        self.in_flight = self.in_flight.saturating_sub(bytes);
        let elsewhere = self.went_elsewhere(sent);
        if elsewhere {
            self.elsewhere = self.elsewhere.saturating_sub(bytes);
        }
        !elsewhere
    }

    /// Whether a packet of that time went over another path than the one in use.
    fn went_elsewhere(&self, sent: Instant) -> bool {
        sent < self.turn.since
    }
}

impl Controller for Windows {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.follow();
        self.in_flight += bytes;
        self.window.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        if self.acknowledged(sent, bytes) {
            self.window.on_ack(now, sent, bytes, app_limited, rtt);
        }
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.follow();
        // What was counted here has packets of acknowledgements alone in it, which QUIC does not count.
        self.in_flight = in_flight;
        self.elsewhere = self.elsewhere.min(in_flight);
        let here = in_flight - self.elsewhere;
        self.window
            .on_end_acks(now, here, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.follow();
        self.in_flight = self.in_flight.saturating_sub(lost_bytes);
        if self.went_elsewhere(sent) {
            self.elsewhere = self.elsewhere.saturating_sub(lost_bytes);
            return;
        }
        // Of packets marked, none is lost, and nothing is said about older ones. Else all older ones are lost too, and
        // that they were so for long says nothing about this path.
        let of_others = lost_bytes > 0 && std::mem::take(&mut self.elsewhere) > 0;
        let is_persistent = is_persistent_congestion && !of_others;
        self.window
            .on_congestion_event(now, sent, is_persistent, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu;
        self.window.on_mtu_update(new_mtu);
        for left in &mut self.others {
            left.window.on_mtu_update(new_mtu);
        }
    }

    /// QUIC compares it with all that is in flight, so what went elsewhere is added to it.
    fn window(&self) -> u64 {
        let Some(turn) = self.next() else {
            return self.elsewhere + self.window.window();
        };
        let window = match self.known(&turn) {
            Some(at) => self.others[at].window.window(),
            None => self.window.initial_window(),
        };
        self.in_flight + window
    }

    fn metrics(&self) -> ControllerMetrics {
        self.window.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            turns: self.turns.clone(),
            each: self.each.clone(),
            mtu: self.mtu,
            turn: self.turn,
            window: self.window.clone_box(),
            others: self.others.clone(),
            in_flight: self.in_flight,
            elsewhere: self.elsewhere,
        })
    }

    fn initial_window(&self) -> u64 {
        self.window.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests;
