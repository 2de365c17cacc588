//! When slow start is to end: once packets begin to wait in a queue, and not when that is full.
//!
//! A window that doubles until something is lost is up to twice what the path and its queue hold by then. What is lost
//! is sent anew into the same queue, and is lost again in part: a stream stands still meanwhile. [`SlowStart`] is
//! HyStart++ (RFC 9406) in what it measures and when it acts, and differs in two things. It looks at samples in a row
//! and not at a round's least, so that it notices what a round itself has brought about, a round trip sooner. And
//! while it is in doubt the window stays as it is, where HyStart++ has it grow by a quarter each round.

use std::time::{Duration, Instant};

/// Samples in a row that have to be longer for the round trip to have risen (RFC 9406: `N_RTT_SAMPLE`).
const IN_A_ROW: u32 = 8;

/// Longer is what takes an eighth longer than the shortest, and this at the least (`MIN_RTT_THRESH`).
const RISEN_LEAST: Duration = Duration::from_millis(4);
/// What takes this much longer is so in any case (`MAX_RTT_THRESH`).
const RISEN_MOST: Duration = Duration::from_millis(16);
/// `MIN_RTT_DIVISOR`.
const RISEN_PART: u32 = 8;

/// Rounds after which a round trip that has risen and not fallen again ends it (`CSS_ROUNDS`).
const ROUNDS: u32 = 5;

/// What the window does for a packet that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Growth {
    /// It grows by what arrived.
    Doubles,
    /// It stays as it is.
    Waits,
    /// Slow start is over.
    Over,
}

/// The slow start of one path.
#[derive(Debug, Clone, Copy)]
pub(super) struct SlowStart {
    /// When this round began: it ends when a packet arrives that was sent later.
    began: Instant,
    rounds: u32,
    shortest: Duration,
    /// The round in which the round trip rose, since when no sample was short.
    risen_in: Option<u32>,
    /// Samples in a row that are longer than the shortest by that much.
    late: u32,
}

impl SlowStart {
    /// Of a path that packets take from then on.
    pub(super) fn new(since: Instant) -> Self {
        Self {
            began: since,
            rounds: 0,
            shortest: Duration::MAX,
            risen_in: None,
            late: 0,
        }
    }

    /// A packet of that time arrived, and the window is what kept more from being sent.
    pub(super) fn acknowledged(&mut self, now: Instant, sent: Instant) -> Growth {
        let took = now.saturating_duration_since(sent);
        self.shortest = self.shortest.min(took);
        if sent >= self.began {
            self.began = now;
            self.rounds += 1;
        }
        // The first window may be sent at once, and wait in a queue that is gone a round later.
        if self.rounds < 2 {
            return Growth::Doubles;
        }
        let risen = (self.shortest / RISEN_PART).clamp(RISEN_LEAST, RISEN_MOST);
        if took < self.shortest + risen {
            // Where packets waited, it was not for what this path has in flight.
            (self.late, self.risen_in) = (0, None);
        } else {
            self.late += 1;
            if self.late == IN_A_ROW {
                self.risen_in = Some(self.rounds);
            }
        }
        match self.risen_in {
            None => Growth::Doubles,
            Some(round) if self.rounds - round < ROUNDS => Growth::Waits,
            Some(_) => Growth::Over,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Bytes of a packet, the overlay's and UDP's headers included.
    const PACKET: u64 = 1_316;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// A link with a queue, and a sender that fills its window at once.
    struct Link {
        rate: u64,
        round_trip: Duration,
        queue: Duration,
        /// What the answer to a packet takes longer, by the packet's number.
        late: fn(u64) -> Duration,
    }

    #[derive(Debug, PartialEq)]
    struct Seen {
        /// Packets of the window when slow start was over; `None` if it was not.
        over_at: Option<u64>,
        largest: u64,
        lost: u64,
    }

    impl Link {
        fn packets(&self, time: Duration) -> u64 {
            (time.as_secs_f64() * self.rate as f64 / 8.0 / PACKET as f64) as u64
        }

        /// Until slow start is over, something is lost, or so many have arrived.
        fn run(&self, arrivals: u64) -> Seen {
            let takes = Duration::from_secs_f64(PACKET as f64 * 8.0 / self.rate as f64);
            let mut now = Instant::now();
            let (mut free, mut window, mut lost) = (now, 32, 0);
            // By when it is answered, and its number: when it was sent.
            let mut sent: BTreeMap<(Instant, u64), Instant> = BTreeMap::new();
            let mut number = 0;
            let mut slow_start = SlowStart::new(now);
            let mut largest = window;
            for _ in 0..arrivals {
                while (sent.len() as u64) < window {
                    free = free.max(now);
                    lost += u64::from(free - now > self.queue);
                    free += takes;
                    let answered = free + self.round_trip + (self.late)(number);
                    sent.insert((answered, number), now);
                    number += 1;
                }
                let ((answered, _), at) = sent.pop_first().unwrap();
                now = answered;
                match slow_start.acknowledged(now, at) {
                    Growth::Doubles => window += 1,
                    Growth::Waits => {}
                    Growth::Over => {
                        return Seen {
                            over_at: Some(window),
                            largest,
                            lost,
                        };
                    }
                }
                largest = largest.max(window);
            }
            Seen {
                over_at: None,
                largest,
                lost,
            }
        }
    }

    #[test]
    fn it_ends_before_anything_is_lost_and_not_before_the_link_is_full() {
        for (mbits, round_trip, queue) in [
            (100, ms(1), ms(50)),
            (100, ms(40), ms(60)),
            (100, ms(10), ms(25)),
            (1_000, ms(20), ms(50)),
            (10, ms(80), ms(160)),
            (5, ms(10), ms(250)),
        ] {
            let link = Link {
                rate: mbits * 1_000_000,
                round_trip,
                queue,
                late: |_| Duration::ZERO,
            };
            let seen = link.run(1_000_000);
            let (holds, full) = (link.packets(round_trip), link.packets(round_trip + queue));
            println!("{mbits} Mbit/s, {round_trip:?}: {holds} to {full}, {seen:?}");
            assert_eq!(seen.lost, 0);
            // CUBIC goes on with 0.7 of it.
            let window = seen.over_at.unwrap() * 7 / 10;
            assert!(window >= holds * 9 / 10, "{window}");
        }
    }

    #[test]
    fn it_goes_on_where_packets_never_wait() {
        let link = Link {
            rate: 1_000_000_000_000,
            round_trip: ms(30),
            queue: ms(1),
            late: |_| Duration::ZERO,
        };
        assert_eq!(link.run(10_000).over_at, None);
        assert!(link.run(10_000).largest > 10_000);
    }

    #[test]
    fn packets_that_are_late_for_once_hold_it_up_and_no_more() {
        let link = |late| Link {
            rate: 1_000_000_000_000,
            round_trip: ms(30),
            queue: ms(1),
            late,
        };
        // Seven of eight are late, always.
        let seen = link(|number| ms(if number % 8 == 0 { 0 } else { 12 })).run(10_000);
        assert_eq!(seen.over_at, None);
        // A hundred in a row are.
        let once = link(|number| ms(if (200..300).contains(&number) { 12 } else { 0 }));
        let seen = once.run(10_000);
        assert_eq!(seen.over_at, None);
        assert!((9_000..10_000).contains(&seen.largest), "{seen:?}");
    }
}
