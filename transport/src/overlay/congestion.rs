//! A congestion window for each path.
//!
//! QUIC sees one address for a peer, and so keeps one congestion controller however often the overlay changes
//! the path beneath it. RFC 9000, section 9.4 wants another: what one path carried says nothing about the
//! next, and what a dead one still owes must not keep the next from sending. [`Windows`] is quinn's controller
//! with one window (CUBIC, RFC 9438) for each path of late: only packets that went over a path count for its
//! window, and bytes that went over others do not fill it. While a path is in doubt packets go over two, and
//! count for both.

mod slow_start;

use std::{
    any::Any,
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;
use tokio::sync::watch;
use wavry_proto::overlay::paths::{Cause, MAX_PATHS, Route, Sending, Switch};

use self::slow_start::{Growth, SlowStart};
use super::PAYLOAD;

/// Windows that are kept of paths that are not in use. More than those between which a peer's packets alternate.
const KEPT: usize = 3;

/// For how long. What a path carried before that is no more than a guess, and RFC 9002, section 7.2 has a window to
/// begin with for guesses.
const KEPT_FOR: Duration = Duration::from_secs(10);

/// The window that a path begins with, in bytes: 32 full packets. RFC 9002, section 7.2 has ten, for a path of which nothing
/// is known. This one carries probes of full size, and when it takes the place of one that died, what a quarter of a
/// second left behind waits for it: with ten, for round trips. QUIC spreads a window over a round trip.
const FIRST_WINDOW: u64 = 32 * PAYLOAD as u64;

/// The paths that a peer's packets take: one, or two while that one is in doubt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Course {
    /// Since when they are these.
    at: Instant,
    over: Leg,
    also: Option<Leg>,
}

/// A path, and since when packets take it.
#[derive(Debug, Clone, Copy)]
struct Leg {
    path: PathNumber,
    since: Instant,
}

/// Says which path it is. One that fell silent gets another number when it is taken again: whether it is as it was
/// nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PathNumber(u64);

impl Course {
    fn legs(&self) -> impl Iterator<Item = Leg> {
        [Some(self.over), self.also].into_iter().flatten()
    }

    fn leg(&self, path: PathNumber) -> Option<Leg> {
        self.legs().find(|leg| leg.path == path)
    }

    /// Whether packets take a path now that they did not take before.
    pub(crate) fn adds_to(&self, before: &Self) -> bool {
        self.legs().any(|leg| before.leg(leg.path).is_none())
    }

    fn is(&self, other: &Self) -> bool {
        let paths = |course: &Self| (course.over.path, course.also.map(|leg| leg.path));
        paths(self) == paths(other)
    }
}

/// The courses of a peer's packets, and whoever wants to know of the next.
pub(super) struct Courses {
    numbers: VecDeque<(Route, PathNumber)>,
    next: u64,
    sending: Sending,
    now: watch::Sender<Course>,
}

impl Courses {
    pub(super) fn new(now: Instant) -> Self {
        let nowhere = Leg {
            path: PathNumber(0),
            since: now,
        };
        Self {
            numbers: VecDeque::new(),
            next: 1,
            sending: Sending::default(),
            now: watch::Sender::new(Course {
                at: now,
                over: nowhere,
                also: None,
            }),
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Course> {
        self.now.subscribe()
    }

    /// Packets go there from now on. To be called when they do, not before: one that is sent meanwhile counts for
    /// the path before, which does no harm; the other way round a dead path's would fill the window of the next.
    pub(super) fn took(&mut self, sending: Sending, switch: Option<&Switch>, now: Instant) {
        if let Some(silent) = switch.filter(|switch| switch.cause == Cause::Silent) {
            self.numbers
                .retain(|(route, _)| Some(*route) != silent.from);
        } else if sending == self.sending {
            return;
        }
        self.sending = sending;
        let Some(over) = sending.over else {
            // Nothing goes anywhere until there is another one.
            return;
        };
        let before = *self.now.borrow();
        let over = self.leg(over, &before, now);
        let also = sending.also.map(|route| self.leg(route, &before, now));
        let at = now;
        self.now.send_replace(Course { at, over, also });
    }

    /// Packets have taken it for as long as they did without a break.
    fn leg(&mut self, route: Route, before: &Course, now: Instant) -> Leg {
        let path = self.number(route);
        before.leg(path).unwrap_or(Leg { path, since: now })
    }

    fn number(&mut self, route: Route) -> PathNumber {
        if let Some((_, number)) = self.numbers.iter().find(|(known, _)| *known == route) {
            return *number;
        }
        let number = PathNumber(self.next);
        self.next += 1;
        if self.numbers.len() == MAX_PATHS {
            self.numbers.pop_front();
        }
        self.numbers.push_back((route, number));
        number
    }
}

/// Makes the controllers of connections to one peer.
pub(super) struct Factory {
    courses: watch::Receiver<Course>,
    each: Arc<CubicConfig>,
}

impl Factory {
    pub(super) fn new(courses: watch::Receiver<Course>) -> Self {
        let mut each = CubicConfig::default();
        each.initial_window(FIRST_WINDOW);
        Self {
            courses,
            each: Arc::new(each),
        }
    }
}

impl ControllerFactory for Factory {
    fn build(self: Arc<Self>, _: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Windows::new(
            self.courses.clone(),
            self.each.clone(),
            current_mtu,
        ))
    }
}

/// The congestion controller of a connection whose path may change.
struct Windows {
    courses: watch::Receiver<Course>,
    each: Arc<CubicConfig>,
    mtu: u16,
    course: Course,
    /// Of the paths that packets take, the one in use first.
    taken: Vec<Window>,
    /// Of others, the one that was left last at the end.
    left: VecDeque<Left>,
    /// Bytes in flight, as far as is known here.
    in_flight: u64,
}

/// The window of a path that packets take.
struct Window {
    leg: Leg,
    each: Box<dyn Controller>,
    /// While it only grew so far, and nothing was lost.
    slow_start: Option<SlowStart>,
    /// Bytes in flight that did not go over it.
    elsewhere: u64,
}

/// The window of a path that was left.
struct Left {
    path: PathNumber,
    at: Instant,
    each: Box<dyn Controller>,
    in_slow_start: bool,
}

impl Window {
    /// Whether a packet of that time went over this path.
    fn carried(&self, sent: Instant) -> bool {
        sent >= self.leg.since
    }

    /// A packet of that time arrived; whether that says something of this path.
    fn acknowledged(&mut self, sent: Instant, bytes: u64) -> bool {
        let carried = self.carried(sent);
        if !carried {
            self.elsewhere = self.elsewhere.saturating_sub(bytes);
        }
        carried
    }

    /// A packet that it carried arrived: what it does for that, in slow start.
    fn growth(&mut self, now: Instant, sent: Instant, app_limited: bool) -> Growth {
        // Whoever has little to send learns nothing of the path.
        let Some(slow_start) = self.slow_start.as_mut().filter(|_| !app_limited) else {
            return Growth::Doubles;
        };
        let growth = slow_start.acknowledged(now, sent);
        if growth == Growth::Over {
            self.slow_start = None;
            // What CUBIC does where something was lost is what it does here: goes on from a smaller window.
            self.each.on_congestion_event(now, sent, false, 0);
        }
        growth
    }

    /// Packets were lost, the last of which was sent then; or marked, if none were lost.
    fn congested(&mut self, now: Instant, sent: Instant, persistent: bool, lost: u64) {
        if !self.carried(sent) {
            self.elsewhere = self.elsewhere.saturating_sub(lost);
            return;
        }
        // Of packets marked, none is lost, and nothing is said about older ones. Else all older ones are lost too, and
        // that they were so for long says nothing about this path.
        let of_others = lost > 0 && std::mem::take(&mut self.elsewhere) > 0;
        let persistent = persistent && !of_others;
        self.slow_start = None;
        self.each.on_congestion_event(now, sent, persistent, lost);
    }

    /// Bytes that may be in flight, those that went elsewhere included.
    fn size(&self) -> u64 {
        self.elsewhere + self.each.window()
    }
}

impl Windows {
    fn new(mut courses: watch::Receiver<Course>, each: Arc<CubicConfig>, mtu: u16) -> Self {
        let course = *courses.borrow_and_update();
        let mut windows = Self {
            courses,
            each,
            mtu,
            course,
            taken: Vec::new(),
            left: VecDeque::new(),
            in_flight: 0,
        };
        windows.taken = course.legs().map(|leg| windows.window_of(leg)).collect();
        windows
    }

    /// The course that was not followed yet, if it is another one.
    fn next(&self) -> Option<Course> {
        // Who tells of courses lives as long as the peer; without it there are none.
        if !self.courses.has_changed().unwrap_or(false) {
            return None;
        }
        let course = *self.courses.borrow();
        (!course.is(&self.course)).then_some(course)
    }

    /// Takes the windows of the paths that packets take now.
    fn follow(&mut self) {
        if !self.courses.has_changed().unwrap_or(false) {
            return;
        }
        let course = *self.courses.borrow_and_update();
        if course.is(&self.course) {
            return;
        }
        self.course = course;
        let mut before = std::mem::take(&mut self.taken);
        for leg in course.legs() {
            let same = before.iter().position(|was| was.leg.path == leg.path);
            let window = match same {
                Some(at) => before.swap_remove(at),
                None => self.window_of(leg),
            };
            self.taken.push(window);
        }
        for window in before {
            if self.left.len() == KEPT {
                self.left.pop_front();
            }
            self.left.push_back(Left {
                path: window.leg.path,
                at: course.at,
                each: window.each,
                in_slow_start: window.slow_start.is_some(),
            });
        }
    }

    /// That of a path that packets did not take until now.
    fn window_of(&mut self, leg: Leg) -> Window {
        let known = self.known(&leg).and_then(|at| self.left.remove(at));
        let in_slow_start = known.as_ref().is_none_or(|left| left.in_slow_start);
        Window {
            leg,
            each: match known {
                Some(left) => left.each,
                None => self.each.clone().build(leg.since, self.mtu),
            },
            slow_start: in_slow_start.then(|| SlowStart::new(leg.since)),
            elsewhere: self.in_flight,
        }
    }

    fn known(&self, leg: &Leg) -> Option<usize> {
        let is = |left: &Left| {
            left.path == leg.path && leg.since.saturating_duration_since(left.at) <= KEPT_FOR
        };
        self.left.iter().position(is)
    }

    /// The controller of the path in use.
    fn over(&self) -> &dyn Controller {
        &*self.taken[0].each
    }

    /// A packet of that time arrived; the windows to which that says something.
    fn acknowledged(&mut self, sent: Instant, bytes: u64) -> impl Iterator<Item = &mut Window> {
        self.follow();
        self.in_flight = self.in_flight.saturating_sub(bytes);
        let windows = self.taken.iter_mut();
        windows.filter_map(move |window| window.acknowledged(sent, bytes).then_some(window))
    }
}

impl Controller for Windows {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.follow();
        self.in_flight += bytes;
        for window in &mut self.taken {
            window.each.on_sent(now, bytes, last_packet_number);
        }
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        for window in self.acknowledged(sent, bytes) {
            if window.growth(now, sent, app_limited) == Growth::Doubles {
                window.each.on_ack(now, sent, bytes, app_limited, rtt);
            }
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
        for window in &mut self.taken {
            window.elsewhere = window.elsewhere.min(in_flight);
            let here = in_flight - window.elsewhere;
            window
                .each
                .on_end_acks(now, here, app_limited, largest_packet_num_acked);
        }
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
        for window in &mut self.taken {
            window.congested(now, sent, is_persistent_congestion, lost_bytes);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu;
        let taken = self.taken.iter_mut().map(|window| &mut window.each);
        let left = self.left.iter_mut().map(|left| &mut left.each);
        for each in taken.chain(left) {
            each.on_mtu_update(new_mtu);
        }
    }

    /// QUIC compares it with all that is in flight, so what went elsewhere is added to it. While the path in use is in
    /// doubt the larger one counts: if it is dead, what QUIC has in flight over it fills its own.
    fn window(&self) -> u64 {
        let Some(course) = self.next() else {
            let sizes = self.taken.iter().map(Window::size);
            return sizes.max().unwrap_or_default();
        };
        let sizes = course.legs().map(|leg| {
            let taken = self.taken.iter().find(|window| window.leg.path == leg.path);
            let known = || self.known(&leg).map(|at| self.left[at].each.window());
            match taken {
                Some(window) => window.size(),
                None => self.in_flight + known().unwrap_or_else(|| self.initial_window()),
            }
        });
        sizes.max().unwrap_or_default()
    }

    fn metrics(&self) -> ControllerMetrics {
        self.over().metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        let taken = self.taken.iter().map(|window| Window {
            each: window.each.clone_box(),
            ..*window
        });
        let left = self.left.iter().map(|left| Left {
            each: left.each.clone_box(),
            ..*left
        });
        Box::new(Self {
            courses: self.courses.clone(),
            each: self.each.clone(),
            mtu: self.mtu,
            course: self.course,
            taken: taken.collect(),
            left: left.collect(),
            in_flight: self.in_flight,
        })
    }

    fn initial_window(&self) -> u64 {
        self.over().initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests;
