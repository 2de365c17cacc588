//! When a certificate that clients trust by its hash takes its turn: pure, time is an argument.
//!
//! A page that pins certificates knows those it was told of, and they hold for two weeks at most (W3C
//! WebTransport, "custom certificate requirements"). So it is told of two: the one that is served, and the one that
//! is served after it. Whoever asked at any time while one was served can connect until the turn of the
//! next one is over, [`TURN`] later at least.

use std::time::{Duration, SystemTime};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// For how long one holds: just under two weeks, both ends count.
const VALIDITY: Duration = Duration::from_secs(14 * 24 * 60 * 60 - 1);
/// One holds for so long before its turn and after it, for clients whose clock is wrong, and for a process that
/// comes late to make the next one.
const MARGIN: Duration = DAY;
/// For how long one is served.
#[cfg(test)]
pub(super) const TURN: Duration = Duration::from_secs(12 * 24 * 60 * 60 - 1);

/// From when until when a certificate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Term {
    pub(super) from: SystemTime,
    pub(super) until: SystemTime,
}

/// What is to be done with the certificates that are kept.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Make one that holds so long, and look again.
    Make(Term),
    /// Serve one of them, tell of another, and look again at a time.
    Serve {
        current: usize,
        next: usize,
        turn: SystemTime,
    },
}

impl Term {
    fn since(from: SystemTime) -> Self {
        Self {
            from,
            until: from + VALIDITY,
        }
    }

    /// When its turn begins.
    pub(super) fn turn(self) -> SystemTime {
        self.from + MARGIN
    }

    fn holds(self, now: SystemTime) -> bool {
        (self.from..self.until).contains(&now)
    }
}

/// What is to be done at `now` with those that are kept, the oldest first.
pub(super) fn step(kept: &[Term], now: SystemTime) -> Step {
    let holds = |term: &Term| term.holds(now);
    let has_turn = |term: &Term| term.holds(now) && term.turn() <= now;
    let current = kept.iter().rposition(has_turn);
    // One whose turn has not come is better than one that nobody was told of.
    let Some(current) = current.or_else(|| kept.iter().position(holds)) else {
        return Step::Make(Term::since(now - MARGIN));
    };
    let is_later = |index: &usize| kept[*index].turn() > now;
    match (current + 1..kept.len()).find(is_later) {
        Some(next) => Step::Serve {
            current,
            next,
            turn: kept[next].turn(),
        },
        None => {
            let current = kept[current];
            let end = current.until - MARGIN;
            // Who comes late leaves half of the time to those who were told of the current one alone.
            let left = current.until.duration_since(now).unwrap_or_default();
            Step::Make(Term::since(end.max(now + left / 2) - MARGIN))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A process that keeps the newest two, as the one on disk does.
    #[derive(Default)]
    struct Kept(Vec<(u32, Term)>, u32);

    impl Kept {
        /// What is served, and told of, at a time.
        fn at(&mut self, now: SystemTime) -> ([u32; 2], SystemTime) {
            for _ in 0..3 {
                let terms: Vec<_> = self.0.iter().map(|(_, term)| *term).collect();
                match step(&terms, now) {
                    Step::Make(term) => {
                        self.1 += 1;
                        self.0.push((self.1, term));
                        let old = self.0.len().saturating_sub(2);
                        self.0.drain(..old);
                    }
                    Step::Serve {
                        current,
                        next,
                        turn,
                    } => {
                        assert!(self.0[current].1.holds(now), "what is served holds");
                        return ([self.0[current].0, self.0[next].0], turn);
                    }
                }
            }
            panic!("two that are made are enough");
        }
    }

    fn start() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    #[test]
    fn each_takes_its_turn_and_the_next_one_is_told_of_twelve_days_ahead() {
        let mut kept = Kept::default();
        let mut now = start();
        for turn in 1..60 {
            let (told, next) = kept.at(now);
            assert_eq!(told, [turn, turn + 1]);
            let ahead = next.duration_since(now).unwrap();
            assert_eq!(ahead, TURN, "turn {turn}");
            let just_before = next - Duration::from_secs(1);
            assert_eq!(kept.at(just_before).0, told);
            now = next;
        }
        for (_, term) in kept.0 {
            assert!(term.until.duration_since(term.from).unwrap() < 14 * DAY);
        }
    }

    #[test]
    fn after_an_outage_there_is_one_that_holds() {
        let mut kept = Kept::default();
        kept.at(start());
        // The next one holds still.
        assert_eq!(kept.at(start() + 24 * DAY).0[0], 2);
        // None does.
        let (told, _) = kept.at(start() + 365 * DAY);
        assert_eq!(told, [4, 5]);
        // A clock that was set back finds none that it could serve.
        assert_eq!(kept.at(start()).0, [6, 7]);
    }

    proptest! {
        #[test]
        fn whoever_was_told_can_connect_for_a_turn_whenever_it_was(
            gaps in prop::collection::vec(1_u64..20 * 60 * 60, 1..400),
        ) {
            let mut kept = Kept::default();
            let mut now = start();
            let mut told: Vec<(SystemTime, [u32; 2])> = Vec::new();
            for gap in gaps {
                now += Duration::from_secs(gap);
                let (current, _) = kept.at(now);
                for (when, known) in &told {
                    if now.duration_since(*when).unwrap() <= TURN {
                        prop_assert!(known.contains(&current[0]));
                    }
                }
                told.push((now, current));
            }
        }
    }
}
