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
    turns: Turns,
    windows: Windows,
    now: Instant,
    path: u8,
    /// When each packet was sent, and its bytes.
    sent: VecDeque<(Instant, u64)>,
}

impl Connection {
    fn new() -> Self {
        let now = Instant::now();
        let mut turns = Turns::new(now);
        turns.took(&first(1), now);
        Self {
            windows: Windows::new(turns.subscribe(), Arc::default(), now, MTU),
            turns,
            now,
            path: 1,
            sent: VecDeque::new(),
        }
    }

    fn in_flight(&self) -> u64 {
        self.sent.iter().map(|(_, bytes)| bytes).sum()
    }

    fn room(&self) -> u64 {
        self.windows.window().saturating_sub(self.in_flight())
    }

    fn take(&mut self, path: u8, cause: Cause) {
        self.now += ms(1);
        let switch = Switch {
            from: Some(route(self.path)),
            to: route(path),
            cause,
        };
        self.turns.took(&switch, self.now);
        self.path = path;
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
            self.windows.acknowledged(at, bytes);
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

fn first(path: u8) -> Switch {
    Switch {
        from: None,
        to: route(path),
        cause: Cause::First,
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
    assert!(!connection.copy().acknowledged(first, bytes));
    assert!(connection.copy().acknowledged(own, bytes));
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
    let before = connection.windows.window.window();
    connection.lose(2, true);
    let after = connection.windows.window.window();
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
    let before = connection.windows.window.window();
    connection
        .windows
        .on_congestion_event(connection.now, at, false, 0);
    assert_eq!(connection.windows.window.window(), before);
    let (at, _) = connection.sent[1];
    connection
        .windows
        .on_congestion_event(connection.now, at, false, 0);
    assert!(connection.windows.window.window() < before);
    assert_eq!(connection.windows.elsewhere, u64::from(MTU));
}

proptest! {
    #[test]
    fn there_is_always_room_on_a_path_that_was_just_taken(
        steps in prop::collection::vec((0u8..6, 1u8..6, 0usize..20), 1..200),
    ) {
        let mut connection = Connection::new();
        for (step, path, count) in steps {
            match step {
                0 => connection.take(path, Cause::Better),
                1 => connection.take(path, Cause::Silent),
                2 => connection.fill(),
                3 => connection.acknowledge(count),
                4 => connection.lose(count, count % 2 == 0),
                _ => connection.send(),
            }
            let windows = &connection.windows;
            prop_assert!(windows.others.len() <= KEPT);
            prop_assert_eq!(windows.in_flight, connection.in_flight());
            let elsewhere = connection.sent.iter().filter(|(at, _)| windows.went_elsewhere(*at));
            let elsewhere: u64 = elsewhere.map(|(_, bytes)| bytes).sum();
            prop_assert_eq!(windows.elsewhere, elsewhere);
            // Two full packets (RFC 9002, section 7.2) are what a window never falls below.
            prop_assert!(windows.window() >= windows.elsewhere + 2 * u64::from(MTU));
        }
    }
}
