//! The paths to one peer: which there are, how they do, and which one packets take.
//!
//! A path is *proved* once a probe of full size was answered over it, and only then carries anything: so
//! QUIC's packets, whose size is fixed, fit every path that they are ever put on. Probes go on from then,
//! often while much is sent and seldom while nothing is. One that is late puts its path *in doubt*: probes
//! follow each other quickly, and what is sent goes over the best other path too, so that nobody waits for
//! the verdict. The others are asked then as well, and one that has answered since is better than one that has
//! not: a relay that died may be on several. Four late ones in a row, over a quarter of a second, and the path is
//! *silent*: another one takes its place, and it has to be answered again, and for a while longer each time,
//! before it is chosen over one that works.
//!
//! Each side chooses for what it sends, by round trips that it measured itself: nothing that anybody says
//! makes it change, but answers to numbers that it drew.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::overlay::{packet::Label, round_trip::RoundTrip};

/// A way to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Route {
    /// Straight to this address.
    Direct(SocketAddr),
    /// Through a transit relay.
    Flow {
        /// The first relay on the way.
        via: SocketAddr,
        /// The flow's id.
        id: Label,
    },
}

/// Paths of one peer at most. A roster's addresses, two or three flows and, for a peer that moves, where it
/// was heard last.
pub const MAX_PATHS: usize = 12;

/// Probes that were not answered and are remembered, for each path: more than are sent while one is in
/// doubt for a second.
const MAX_ASKED: usize = 48;

/// From one probe to the next on the path in use while much is sent. With [`DOUBTS`] and [`SILENCE`] a path
/// that dies is noticed within 350 ms.
const BUSY: Duration = Duration::from_millis(100);
/// The same while little is sent. Less than half of the silence after which QUIC gives a connection up.
const IDLE: Duration = Duration::from_millis(500);
/// On paths that stand by while much is sent.
const STANDBY: Duration = Duration::from_millis(500);
/// On paths that stand by while little is.
const STANDBY_IDLE: Duration = Duration::from_secs(2);
/// On a path in doubt.
const DOUBT: Duration = Duration::from_millis(30);
/// From the first probe to the second on a path that is not proved; it doubles from there.
const ASK: Duration = Duration::from_millis(100);
/// Where it stops doubling.
const ASK_MOST: Duration = Duration::from_secs(5);

/// A probe is late after its path's round trip and four times what that varies by, but not before this: what
/// a busy host needs to come to it.
const LATE_LEAST: Duration = Duration::from_millis(50);
/// The same where no round trip was measured yet.
const LATE_UNKNOWN: Duration = Duration::from_millis(300);
/// And not after this.
const LATE_MOST: Duration = Duration::from_secs(1);

/// Late probes in a row that make a path silent. Where a quarter of all packets is lost each way, all four
/// are in 4 of 100 cases.
const DOUBTS: usize = 4;
/// And the oldest is to be as old as this.
const SILENCE: Duration = Duration::from_millis(250);

/// Packets since the last probe that make a peer busy: more than a connection sends that has nothing to say.
const BUSY_PACKETS: u64 = 4;
/// While little is sent, one probe of so many is of full size, so that a path that became narrower is found.
const FULL_EACH: u32 = 4;

/// From a probe to one that somebody asks for, at the least.
const ASKED_APART: Duration = Duration::from_secs(1);

/// A path that is better has to be so for this long.
const STEADY: Duration = Duration::from_secs(1);
/// Between two changes that nothing forces.
const BETWEEN_CHANGES: Duration = Duration::from_secs(5);
/// For how long a path that fell silent is not chosen over one that works; doubled each time.
const DISTRUST: Duration = Duration::from_secs(2);
/// Where it stops doubling.
const DISTRUST_MOST: Duration = Duration::from_secs(60);
/// A path that lost every probe would cost as much as this.
const LOSS_COST: Duration = Duration::from_millis(200);
/// A path that was only heard of by its peer's probes is forgotten after so many of ours unanswered.
const HEARD_TRIES: u32 = 5;

/// A probe to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ping {
    /// Over which path.
    pub route: Route,
    /// Its number.
    pub nonce: u64,
    /// Whether it is to be as long as the largest packet.
    pub full: bool,
}

/// Where what is sent goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sending {
    /// Over this path; nowhere while none was proved.
    pub over: Option<Route>,
    /// And over this one, while the first is in doubt.
    pub also: Option<Route>,
}

/// Why another path was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// It is the first.
    First,
    /// The one before fell silent.
    Silent,
    /// The one before is no path any more: it left the roster, or its lease ended.
    Gone,
    /// It is better, and was for a while.
    Better,
}

impl Cause {
    /// The cause as a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Silent => "silent",
            Self::Gone => "gone",
            Self::Better => "better",
        }
    }
}

/// Another path was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch {
    /// The one before.
    pub from: Option<Route>,
    /// The one that is taken now.
    pub to: Route,
    /// Why.
    pub cause: Cause,
}

/// How a path does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// No probe of full size was answered yet.
    Asked,
    /// It carries packets, or could.
    Proved,
    /// It did, and is not heard of any more.
    Silent,
}

impl Standing {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Asked, Self::Proved, Self::Silent];

    /// The standing as a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Proved => "proved",
            Self::Silent => "silent",
        }
    }
}

/// What is to be told of a path.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct View {
    /// Which one.
    pub route: Route,
    /// How it does.
    pub standing: Standing,
    /// Whether it is the one in use.
    pub active: bool,
    /// Its round trip, smoothed (RFC 9002, section 5.3).
    pub round_trip: Option<Duration>,
    /// Its round trips, if a probe was ever answered over it; the last one ended with the last answer.
    pub measured: Option<RoundTrip>,
    /// Since when it is in doubt, or from when on it will be unless an answer comes.
    pub doubt_at: Option<Instant>,
    /// Of the last probes, the part that was lost, from 0 to 1.
    pub loss: f32,
}

/// The paths to one peer.
#[derive(Debug, Default)]
pub struct Paths {
    paths: Vec<Path>,
    active: Option<Route>,
    /// The one in use before it was no path any more.
    gone: Option<Route>,
    switched_at: Option<Instant>,
    better_since: Option<(Route, Instant)>,
    /// Packets sent when the path in use was probed last.
    sent_at_probe: u64,
    busy: bool,
    /// Whether the path in use is in doubt, and the others were asked how they do.
    asked_others: bool,
    probes: u32,
}

#[derive(Debug)]
struct Path {
    route: Route,
    /// Whether this side knows of it by itself, not by its peer's probes alone.
    listed: bool,
    standing: Standing,
    label: Option<Label>,
    round_trip: Option<RoundTrip>,
    loss: f32,
    /// Probes that were not answered, oldest first.
    asked: VecDeque<Asked>,
    ping_at: Instant,
    /// Probes in a row without an answer, while it is not proved.
    tries: u32,
    failures: u32,
    failed_at: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Asked {
    nonce: u64,
    at: Instant,
    full: bool,
}

impl Paths {
    /// These are the paths that this side knows of. Those that it knew of before and that are not among
    /// them are none any more; those that the peer was heard over stay.
    pub fn list(&mut self, routes: &[Route], now: Instant) {
        self.paths
            .retain(|path| !path.listed || routes.contains(&path.route));
        for route in routes {
            if let Some(path) = self.path(*route) {
                path.listed = true;
            } else if self.paths.len() < MAX_PATHS {
                self.paths.push(Path::new(*route, true, now));
            }
        }
        self.leave_gone();
    }

    /// Of the paths that only the peer's probes told of, those that `keep` does not hold for are none any more.
    pub fn keep_heard(&mut self, keep: impl Fn(Route) -> bool) {
        self.paths.retain(|path| path.listed || keep(path.route));
        self.leave_gone();
    }

    /// Whether it is one of them.
    pub fn knows(&self, route: Route) -> bool {
        self.find(Some(route)).is_some()
    }

    /// How it does; `None` where it is none of them.
    pub fn standing(&self, route: Route) -> Option<Standing> {
        Some(self.find(Some(route))?.standing)
    }

    fn leave_gone(&mut self) {
        if self.find(self.active).is_none() {
            // When it is a path again, it is to be proved again.
            self.gone = self.active.take().or(self.gone);
        }
    }

    /// The peer's probe of full size came over this path.
    pub fn heard(&mut self, route: Route, now: Instant) {
        if let Some(path) = self.path(route) {
            if path.standing != Standing::Proved {
                // Whoever sends over it may well receive over it.
                path.tries = 0;
                path.ping_at = now;
            }
            return;
        }
        if self.paths.len() == MAX_PATHS {
            let active = self.active;
            // A peer that moves leaves paths behind; where all are listed there is no room.
            let left = self
                .paths
                .iter()
                .position(|path| !path.listed && Some(path.route) != active);
            let Some(left) = left else { return };
            self.paths.remove(left);
        }
        self.paths.push(Path::new(route, false, now));
    }

    /// All that do not carry anything are tried at once: somebody wants to reach the peer.
    pub fn wake(&mut self, now: Instant) {
        let waiting = |path: &&mut Path| path.standing != Standing::Proved;
        for path in self.paths.iter_mut().filter(waiting) {
            path.tries = 0;
            path.ping_at = path.ping_at.min(now);
        }
    }

    /// A probe was answered, by whoever takes data under `label`; whether it was one of these.
    pub fn answered(&mut self, nonce: u64, label: Label, now: Instant) -> bool {
        self.paths
            .iter_mut()
            .any(|path| path.answered(nonce, label, now))
    }

    /// The label under which data is taken that comes over `route`. It is the path's, not the peer's: two
    /// processes with one identity are told apart by it, and a peer that was started anew is one.
    pub fn label(&self, route: Route) -> Option<Label> {
        self.find(Some(route))?.label
    }

    /// Looks at the time: appends the probes that are due, and says whether another path was taken. `sent`
    /// is the number of packets ever sent to the peer.
    pub fn poll(
        &mut self,
        now: Instant,
        sent: u64,
        mut nonce: impl FnMut() -> u64,
        pings: &mut Vec<Ping>,
    ) -> Option<Switch> {
        for path in &mut self.paths {
            path.judge(now);
        }
        let active = self.active;
        self.paths
            .retain(|path| path.listed || path.tries < HEARD_TRIES || Some(path.route) == active);
        let switch = self.choose(now);
        self.ask_others(now);
        for path in &mut self.paths {
            if path.ping_at > now {
                continue;
            }
            if path.asked.len() == MAX_ASKED {
                path.asked.pop_front();
            }
            let is_active = self.active == Some(path.route);
            if is_active {
                self.busy = sent.saturating_sub(self.sent_at_probe) >= BUSY_PACKETS;
                self.sent_at_probe = sent;
            }
            self.probes = self.probes.wrapping_add(1);
            let full = path.standing != Standing::Proved
                || (is_active && self.busy)
                || path.asked.iter().any(|asked| asked.full)
                || self.probes.is_multiple_of(FULL_EACH);
            let nonce = nonce();
            pings.push(Ping {
                route: path.route,
                nonce,
                full,
            });
            let at = now;
            path.asked.push_back(Asked { nonce, at, full });
            if path.standing != Standing::Proved {
                path.tries = path.tries.saturating_add(1);
            }
            path.ping_at = now + path.pause(is_active, self.busy, now);
        }
        switch
    }

    /// When to look again, unless something comes before.
    pub fn next(&self, now: Instant) -> Option<Instant> {
        self.paths.iter().map(|path| path.next(now)).min()
    }

    /// Where what is sent goes now.
    pub fn sending(&self, now: Instant) -> Sending {
        let Some(active) = self.find(self.active) else {
            return Sending::default();
        };
        let other = || {
            let usable = self.paths.iter().filter(|path| {
                path.route != active.route && path.is_usable() && !path.is_in_doubt(now)
            });
            // What broke the one in use may have broken this one, which is asked less often.
            let since = active.doubted_at();
            let best = usable.min_by_key(|path| (path.answered_at() < since, path.cost()))?;
            Some(best.route)
        };
        Sending {
            over: Some(active.route),
            also: active.is_in_doubt(now).then(other).flatten(),
        }
    }

    /// Those over which something should have come and did not.
    pub fn doubted(&self, now: Instant) -> impl Iterator<Item = Route> {
        let is = move |path: &&Path| path.standing == Standing::Silent || path.is_in_doubt(now);
        self.paths.iter().filter(is).map(|path| path.route)
    }

    /// Whether there is a path that carries something now.
    pub fn is_reached(&self) -> bool {
        self.find(self.active).is_some_and(Path::is_usable)
    }

    /// All of them.
    pub fn views(&self) -> impl Iterator<Item = View> {
        self.paths.iter().map(|path| View {
            route: path.route,
            standing: path.standing,
            active: self.active == Some(path.route),
            round_trip: path.round_trip.map(|round_trip| round_trip.smoothed),
            measured: path.round_trip,
            doubt_at: path.doubted_at(),
            loss: path.loss,
        })
    }

    /// Somebody wants to know how long an answer takes: this one is probed now, unless it was within a second.
    pub fn ask(&mut self, route: Route, now: Instant) {
        if let Some(path) = self.path(route) {
            let answered = path.round_trip.map(|of| of.at);
            let last = path.last_asked().max(answered);
            if last.is_none_or(|at| now.saturating_duration_since(at) >= ASKED_APART) {
                path.ping_at = path.ping_at.min(now);
            }
        }
    }

    fn choose(&mut self, now: Instant) -> Option<Switch> {
        let present = self.find(self.active);
        let best = self
            .paths
            .iter()
            .filter(|path| path.is_usable())
            .min_by_key(|path| (path.is_in_doubt(now), path.cost()))?;
        let to = best.route;
        let cause = match present {
            None if self.gone.is_none() => Cause::First,
            None => Cause::Gone,
            Some(present) if !present.is_usable() => Cause::Silent,
            Some(present) => {
                let better = best.is_trusted(now)
                    && !best.is_in_doubt(now)
                    && self.may_replace(best, present)
                    && best.beats(present);
                return self.weigh(to, better, now);
            }
        };
        Some(self.take(to, cause, now))
    }

    /// One that is known from the peer's probes alone, and may be somebody's who has its identity, does not replace
    /// one that is listed; but of a peer that is behind a translator nothing else is known.
    fn may_replace(&self, path: &Path, other: &Path) -> bool {
        let is_direct = |path: &Path| matches!(path.route, Route::Direct(_));
        let has_address = || self.paths.iter().any(|path| path.listed && is_direct(path));
        path.listed || !other.listed || (is_direct(path) && !has_address())
    }

    /// Changes to a better path, if it has been for long enough.
    fn weigh(&mut self, to: Route, better: bool, now: Instant) -> Option<Switch> {
        if !better {
            self.better_since = None;
            return None;
        }
        let since = match self.better_since {
            Some((route, since)) if route == to => since,
            _ => {
                self.better_since = Some((to, now));
                now
            }
        };
        let rested = self
            .switched_at
            .is_none_or(|at| now.saturating_duration_since(at) >= BETWEEN_CHANGES);
        let steady = now.saturating_duration_since(since) >= STEADY;
        (rested && steady).then(|| self.take(to, Cause::Better, now))
    }

    fn take(&mut self, to: Route, cause: Cause, now: Instant) -> Switch {
        let from = self.active.replace(to).or(self.gone.take());
        self.switched_at = Some(now);
        self.better_since = None;
        if let Some(path) = self.path(to) {
            // It carries everything from now on: it is to be watched as closely as that deserves.
            path.ping_at = path.ping_at.min(now);
        }
        Switch { from, to, cause }
    }

    /// The path in use came into doubt: those that stand by are probed at once, as one of them is to take its place.
    fn ask_others(&mut self, now: Instant) {
        let active = self.active;
        let doubted = self.find(active).is_some_and(|path| path.is_in_doubt(now));
        if !std::mem::replace(&mut self.asked_others, doubted) && doubted {
            let others = self.paths.iter_mut().filter(|path| {
                let rested = |at| now.saturating_duration_since(at) >= BUSY;
                Some(path.route) != active
                    && path.is_usable()
                    && path.last_asked().is_none_or(rested)
            });
            others.for_each(|path| path.ping_at = path.ping_at.min(now));
        }
    }

    fn path(&mut self, route: Route) -> Option<&mut Path> {
        self.paths.iter_mut().find(|path| path.route == route)
    }

    fn find(&self, route: Option<Route>) -> Option<&Path> {
        self.paths.iter().find(|path| Some(path.route) == route)
    }
}

impl Path {
    fn new(route: Route, listed: bool, now: Instant) -> Self {
        Self {
            route,
            listed,
            standing: Standing::Asked,
            label: None,
            round_trip: None,
            loss: 0.0,
            asked: VecDeque::new(),
            ping_at: now,
            tries: 0,
            failures: 0,
            failed_at: None,
        }
    }

    fn answered(&mut self, nonce: u64, label: Label, now: Instant) -> bool {
        let Some(at) = self.asked.iter().position(|asked| asked.nonce == nonce) else {
            return false;
        };
        let answered = self.asked[at];
        let mut lost = 0;
        let mut index = 0;
        self.asked.retain(|asked| {
            let before = index < at;
            let this = index == at;
            index += 1;
            // That a small one comes through says nothing of the large ones before it.
            let is_settled = before && (answered.full || !asked.full);
            lost += u32::from(is_settled);
            !is_settled && !this
        });
        for _ in 0..lost {
            self.loss = self.loss * 0.9 + 0.1;
        }
        self.loss *= 0.9;
        self.label = Some(label);
        let latest = now.saturating_duration_since(answered.at);
        self.round_trip = Some(RoundTrip::after(self.round_trip, latest, now));
        if answered.full {
            self.tries = 0;
            self.standing = Standing::Proved;
        }
        true
    }

    /// After how long a probe is late.
    fn late(&self) -> Duration {
        match self.round_trip {
            None => LATE_UNKNOWN,
            Some(of) => (of.smoothed + 4 * of.variation).clamp(LATE_LEAST, LATE_MOST),
        }
    }

    fn is_usable(&self) -> bool {
        self.standing == Standing::Proved
    }

    fn is_in_doubt(&self, now: Instant) -> bool {
        self.doubted_at().is_some_and(|at| at <= now)
    }

    /// When its oldest unanswered probe is, or was, late.
    fn doubted_at(&self) -> Option<Instant> {
        let oldest = self.asked.front().filter(|_| self.is_usable())?;
        Some(oldest.at + self.late())
    }

    fn judge(&mut self, now: Instant) {
        let late = self.late();
        match self.standing {
            Standing::Proved => {
                let overdue = self.asked.iter().filter(|asked| asked.at + late <= now);
                let old = |asked: &Asked| now.saturating_duration_since(asked.at) >= SILENCE;
                if overdue.count() >= DOUBTS && self.asked.front().is_some_and(old) {
                    self.standing = Standing::Silent;
                    if self.is_forgiven(now) {
                        self.failures = 0;
                    }
                    self.failures = self.failures.saturating_add(1);
                    self.failed_at = Some(now);
                    for _ in self.asked.drain(..) {
                        self.loss = self.loss * 0.9 + 0.1;
                    }
                    self.tries = 0;
                    self.ping_at = now;
                } else if self.is_in_doubt(now) {
                    self.ping_at = self.ping_at.min(self.last_asked().unwrap_or(now) + DOUBT);
                }
            }
            // Answers that come as late as this are of no use.
            Standing::Asked | Standing::Silent => {
                self.asked.retain(|asked| asked.at + LATE_MOST > now);
            }
        }
    }

    /// When its last answer came.
    fn answered_at(&self) -> Option<Instant> {
        Some(self.round_trip?.at)
    }

    fn last_asked(&self) -> Option<Instant> {
        Some(self.asked.back()?.at)
    }

    fn pause(&self, is_active: bool, busy: bool, now: Instant) -> Duration {
        match (self.standing, is_active) {
            (Standing::Proved, _) if self.is_in_doubt(now) => DOUBT,
            (Standing::Proved, true) if busy => BUSY,
            (Standing::Proved, true) => IDLE,
            (Standing::Proved, false) if busy => STANDBY,
            (Standing::Proved, false) => STANDBY_IDLE,
            (Standing::Asked | Standing::Silent, _) => {
                let doubled = ASK.saturating_mul(1 << self.tries.saturating_sub(1).min(16));
                // There was nothing better: it is to be found again soon.
                doubled.min(if is_active { IDLE } else { ASK_MOST })
            }
        }
    }

    fn next(&self, now: Instant) -> Instant {
        match self.doubted_at() {
            Some(at) if at > now => self.ping_at.min(at),
            // In doubt already: probes follow each other.
            _ => self.ping_at,
        }
    }

    /// What it costs to send over it, as a time.
    fn cost(&self) -> Duration {
        let round_trip = self.round_trip.map_or(LATE_MOST, |of| of.smoothed);
        let through_others = match self.route {
            Route::Direct(_) => Duration::ZERO,
            // Somebody else's capacity.
            Route::Flow { .. } => round_trip / 10,
        };
        round_trip + through_others + LOSS_COST.mul_f32(self.loss.clamp(0.0, 1.0))
    }

    /// Whether it is better than `other` by so much that a change is worth it.
    fn beats(&self, other: &Self) -> bool {
        self.cost() * 5 / 4 + Duration::from_millis(1) < other.cost()
    }

    fn distrust(&self) -> Duration {
        let doubled = DISTRUST.saturating_mul(1 << self.failures.saturating_sub(1).min(16));
        doubled.min(DISTRUST_MOST)
    }

    fn is_trusted(&self, now: Instant) -> bool {
        self.failed_at
            .is_none_or(|at| now.saturating_duration_since(at) >= self.distrust())
    }

    /// Whether its last failure is so long ago that it does not count any more.
    fn is_forgiven(&self, now: Instant) -> bool {
        self.failed_at
            .is_none_or(|at| now.saturating_duration_since(at) >= 2 * DISTRUST_MOST)
    }
}

#[cfg(test)]
mod tests;
