use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;

const MTU: u16 = 1_280;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn route(number: u8) -> Route {
    Route::Direct(SocketAddr::from(([192, 0, 2, number], 1)))
}

/// A connection's controller, and what QUIC knows of its packets.
struct Connection {
    courses: Courses,
    windows: Windows,
    now: Instant,
    sending: Sending,
    /// When each packet was sent, and its bytes.
    sent: VecDeque<(Instant, u64)>,
}

impl Connection {
    fn new() -> Self {
        let now = Instant::now();
        let mut courses = Courses::new(now);
        let sending = over(1, None);
        courses.took(sending, None, now);
        let each = Factory::new(courses.subscribe()).each;
        Self {
            windows: Windows::new(courses.subscribe(), each, MTU),
            courses,
            now,
            sending,
            sent: VecDeque::new(),
        }
    }

    fn in_flight(&self) -> u64 {
        self.sent.iter().map(|(_, bytes)| bytes).sum()
    }

    fn room(&self) -> u64 {
        self.windows.window().saturating_sub(self.in_flight())
    }

    /// Packets take this path.
    fn take(&mut self, path: u8, cause: Cause) {
        self.now += ms(1);
        let sending = over(path, None);
        let switch = Switch {
            from: self.sending.over,
            to: route(path),
            cause,
        };
        let changed = self.sending.over != sending.over;
        let switch = Some(&switch).filter(|_| changed);
        self.courses.took(sending, switch, self.now);
        self.sending = sending;
        self.now += ms(1);
    }

    /// The path in use is in doubt, or is no more.
    fn doubt(&mut self, also: Option<u8>) {
        self.now += ms(1);
        self.sending.also = also
            .map(route)
            .filter(|also| Some(*also) != self.sending.over);
        self.courses.took(self.sending, None, self.now);
        self.now += ms(1);
    }

    fn send(&mut self) {
        self.now += Duration::from_micros(10);
        self.sent.push_back((self.now, u64::from(MTU)));
        self.windows.on_sent(self.now, u64::from(MTU), 0);
    }

    fn copy(&self) -> Windows {
        let copy = self.windows.clone_box().into_any();
        *copy.downcast().unwrap()
    }

    /// As much as QUIC would.
    fn fill(&mut self) {
        while self.room() > u64::from(MTU) {
            self.send();
        }
    }

    /// The oldest ones arrived.
    fn acknowledge(&mut self, count: usize) {
        self.now += ms(1);
        for (at, bytes) in self.sent.drain(..count.min(self.sent.len())) {
            let _ = self.windows.acknowledged(at, bytes).count();
        }
        let in_flight = self.in_flight();
        self.windows.on_end_acks(self.now, in_flight, false, None);
    }

    /// The oldest ones are lost.
    fn lose(&mut self, count: usize, persistent: bool) {
        self.now += ms(1);
        let lost: Vec<_> = self.sent.drain(..count.min(self.sent.len())).collect();
        if let Some((at, _)) = lost.last() {
            let bytes = lost.iter().map(|(_, bytes)| bytes).sum();
            self.windows
                .on_congestion_event(self.now, *at, persistent, bytes);
        }
    }
}

fn over(path: u8, also: Option<u8>) -> Sending {
    Sending {
        over: Some(route(path)),
        also: also.map(route),
    }
}

#[test]
fn what_a_dead_path_owes_does_not_keep_the_next_from_sending() {
    let mut connection = Connection::new();
    connection.fill();
    assert!(connection.room() <= u64::from(MTU));
    connection.take(2, Cause::Silent);
    // Before QUIC has sent anything: it asks for the window alone.
    let initial = connection.windows.initial_window();
    assert_eq!(initial, FIRST_WINDOW);
    assert_eq!(connection.room(), initial);
    let owed = connection.in_flight();
    connection.fill();
    let sent = connection.in_flight() - owed;
    assert!((initial - 2 * u64::from(MTU)..=initial).contains(&sent));
}

#[test]
fn packets_of_a_path_that_was_left_do_not_count_for_the_next_ones_window() {
    let mut connection = Connection::new();
    connection.fill();
    let owed = connection.sent.len();
    let (first, bytes) = connection.sent[0];
    connection.take(2, Cause::Better);
    connection.send();
    let (own, _) = connection.sent[owed];
    let window = connection.room();
    let told = |at| connection.copy().acknowledged(at, bytes).count();
    assert_eq!((told(first), told(own)), (0, 1));
    connection.acknowledge(owed / 2);
    assert_eq!(connection.room(), window, "what arrived frees nothing here");
    connection.lose(owed - owed / 2, true);
    assert_eq!(connection.room(), window, "and what is lost costs nothing");
    let whole = connection.windows.window();
    connection.lose(1, false);
    assert!(connection.windows.window() < whole, "its own loss does");
}

#[test]
fn losses_of_both_are_not_persistent_for_the_next() {
    let mut connection = Connection::new();
    connection.send();
    connection.take(2, Cause::Better);
    connection.send();
    let before = connection.windows.over().window();
    connection.lose(2, true);
    let after = connection.windows.over().window();
    assert!(after < before && after > before / 2, "{before} {after}");
}

/// A connection whose first path has lost a packet: the window that it has left.
fn narrowed() -> (Connection, u64) {
    let mut connection = Connection::new();
    connection.send();
    connection.lose(1, false);
    let window = connection.room();
    assert!(window < connection.windows.initial_window());
    (connection, window)
}

#[test]
fn a_path_that_was_left_for_a_better_one_has_its_window_when_it_is_taken_again() {
    let (mut connection, narrow) = narrowed();
    let initial = connection.windows.initial_window();
    connection.take(2, Cause::Better);
    assert_eq!(connection.room(), initial);
    connection.send();
    connection.take(1, Cause::Better);
    assert_eq!(connection.room(), narrow, "before anything is sent");
    connection.send();
    assert_eq!(connection.room(), narrow - u64::from(MTU), "and then");
    connection.take(2, Cause::Better);
    connection.send();
    connection.now += KEPT_FOR;
    connection.take(1, Cause::Better);
    assert_eq!(connection.room(), initial, "it was too long ago");
}

#[test]
fn a_path_that_fell_silent_begins_anew() {
    let (mut connection, _) = narrowed();
    connection.take(2, Cause::Silent);
    connection.send();
    connection.take(1, Cause::Better);
    assert_eq!(connection.room(), connection.windows.initial_window());
}

#[test]
fn windows_of_three_other_paths_are_kept() {
    let (mut connection, narrow) = narrowed();
    for path in 2..5 {
        connection.take(path, Cause::Better);
        connection.send();
    }
    connection.take(1, Cause::Better);
    assert_eq!(connection.room(), narrow);
    for path in 2..6 {
        connection.take(path, Cause::Better);
        connection.send();
    }
    connection.take(1, Cause::Better);
    assert_eq!(connection.room(), connection.windows.initial_window());
}

#[test]
fn marks_of_congestion_count_where_the_packets_went() {
    let mut connection = Connection::new();
    connection.send();
    let (at, _) = connection.sent[0];
    connection.take(2, Cause::Better);
    connection.send();
    let before = connection.windows.over().window();
    connection
        .windows
        .on_congestion_event(connection.now, at, false, 0);
    assert_eq!(connection.windows.over().window(), before);
    let (at, _) = connection.sent[1];
    connection
        .windows
        .on_congestion_event(connection.now, at, false, 0);
    assert!(connection.windows.over().window() < before);
    assert_eq!(connection.windows.taken[0].elsewhere, u64::from(MTU));
}

#[test]
fn a_path_in_doubt_keeps_nothing_from_going_over_the_other_one_as_well() {
    let mut connection = Connection::new();
    connection.fill();
    let owed = connection.in_flight();
    let initial = connection.windows.initial_window();
    connection.doubt(Some(2));
    assert_eq!(connection.room(), initial, "before anything is sent");
    connection.send();
    assert_eq!(connection.room(), initial - u64::from(MTU), "and then");
    // It was late and no more: what is in flight counts again.
    connection.doubt(None);
    assert_eq!(connection.room(), 0);
    connection.acknowledge(0);
    connection.doubt(Some(2));
    connection.send();
    // It was dead: what went over the other one counts there from the first packet on.
    connection.take(2, Cause::Silent);
    assert_eq!(connection.windows.window() - owed - u64::from(MTU), initial);
    connection.acknowledge(2);
    connection.lose(usize::MAX, false);
    assert_eq!(connection.windows.taken.len(), 1);
    assert_eq!(connection.windows.taken[0].elsewhere, 0);
}

#[test]
fn a_doubt_narrows_no_window_that_is_wide() {
    let mut connection = Connection::new();
    let wide = connection.windows.window();
    connection.doubt(Some(2));
    connection.send();
    connection.lose(1, false);
    assert!(
        connection
            .windows
            .taken
            .iter()
            .all(|window| window.size() < wide)
    );
    let (mut other, narrow) = narrowed();
    other.doubt(Some(2));
    assert!(other.room() > narrow);
    other.send();
    other.doubt(None);
    other.send();
    assert_eq!(other.windows.window(), narrow);
}

impl Connection {
    /// Sixteen packets, which arrive after so many milliseconds; what the window did for the last.
    fn round(&mut self, took: u64, app_limited: bool) -> Growth {
        for _ in 0..16 {
            self.send();
        }
        self.now += ms(took);
        let (now, sent) = (self.now, std::mem::take(&mut self.sent));
        let mut last = Growth::Doubles;
        for (at, bytes) in sent {
            for window in self.windows.acknowledged(at, bytes) {
                last = window.growth(now, at, app_limited);
            }
        }
        self.windows.on_end_acks(now, 0, app_limited, None);
        last
    }

    fn rounds(&mut self, took: &[u64], app_limited: bool) -> Vec<Growth> {
        let rounds = took.iter().map(|took| self.round(*took, app_limited));
        rounds.collect()
    }
}

/// Three rounds before packets wait in a queue, and those until slow start is over.
const QUEUED: [u64; 9] = [10, 10, 10, 20, 20, 20, 20, 20, 20];

#[test]
fn slow_start_is_over_when_packets_wait_in_a_queue_and_the_window_is_smaller_from_then_on() {
    let mut connection = Connection::new();
    let before = connection.windows.window();
    let growth = connection.rounds(&QUEUED, false);
    assert_eq!(growth[..3], [Growth::Doubles; 3]);
    assert_eq!(growth[3..8], [Growth::Waits; 5]);
    let after = connection.windows.window();
    assert!(after < before && after > before / 2, "{before} {after}");
    // As at any other time, what arrives is CUBIC's business.
    assert_eq!(connection.rounds(&[90; 20], false), [Growth::Doubles; 20]);
    assert_eq!(connection.windows.window(), after);
    // And of another path nothing is known.
    connection.take(2, Cause::Better);
    assert_eq!(connection.rounds(&QUEUED[..4], false)[3], Growth::Waits);
    connection.take(1, Cause::Better);
    assert_eq!(connection.rounds(&QUEUED, false), [Growth::Doubles; 9]);
    connection.take(2, Cause::Better);
    let kept = connection.rounds(&QUEUED[..4], false);
    assert_eq!(kept[3], Growth::Waits, "it is in slow start yet");
}

#[test]
fn whoever_has_little_to_send_or_lost_something_does_not_end_it_so() {
    let mut connection = Connection::new();
    assert_eq!(connection.rounds(&QUEUED, true), [Growth::Doubles; 9]);
    connection.send();
    connection.lose(1, false);
    let window = connection.windows.window();
    assert_eq!(connection.rounds(&QUEUED, false), [Growth::Doubles; 9]);
    assert_eq!(connection.windows.window(), window);
}

proptest! {
    #[test]
    fn there_is_always_room_on_a_path_that_was_just_taken(
        steps in prop::collection::vec((0u8..6, 1u8..6, 0usize..20), 1..200),
    ) {
        let mut connection = Connection::new();
        for (step, path, count) in steps {
            match step {
                0 if count == 0 => connection.doubt(None),
                0 if count < 10 => connection.doubt(Some(path)),
                0 => connection.take(path, Cause::Better),
                1 => connection.take(path, Cause::Silent),
                2 => connection.fill(),
                3 => connection.acknowledge(count),
                4 => connection.lose(count, count % 2 == 0),
                _ => connection.send(),
            }
            let foreseen = connection.windows.window();
            connection.windows.follow();
            let windows = &connection.windows;
            prop_assert_eq!(windows.window(), foreseen);
            prop_assert!(windows.left.len() <= KEPT);
            prop_assert_eq!(windows.in_flight, connection.in_flight());
            prop_assert_eq!(windows.taken.len(), windows.course.legs().count());
            for window in &windows.taken {
                let elsewhere = connection.sent.iter().filter(|(at, _)| !window.carried(*at));
                let elsewhere: u64 = elsewhere.map(|(_, bytes)| bytes).sum();
                prop_assert_eq!(window.elsewhere, elsewhere);
                // Two full packets (RFC 9002, section 7.2) are what a window never falls below.
                prop_assert!(windows.window() >= elsewhere + 2 * u64::from(MTU));
            }
        }
    }
}
