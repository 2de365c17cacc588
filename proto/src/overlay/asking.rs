//! Questions to a relay that it has not answered yet, and when the next one is due: claims and attaches are repeated
//! by the time that the relay's answers take, as QUIC's probe timeout has it (RFC 9002, section 6.2.1).

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::overlay::round_trip::RoundTrip;

/// For how long a relay's first answer is waited for: longer than one takes from the other side of the Earth. RFC
/// 9002 would have a second; but a question that is put twice is answered for both.
const UNKNOWN: Duration = Duration::from_millis(500);
/// At the least: what a busy relay, and a busy host here, need besides the round trip.
const LEAST: Duration = Duration::from_millis(100);
/// Where it stops doubling.
const MOST: Duration = Duration::from_secs(10);
/// Questions that are remembered: by the time that there are more, the first one was waited for fifteen times as long
/// as it should have taken.
const REMEMBERED: usize = 4;

/// For how long an answer is waited for before the question is put again, by the round trips so far; of a relay that
/// has not answered yet, by those to the relay `before` it.
pub(super) fn patience(known: Option<RoundTrip>, before: Option<RoundTrip>) -> Duration {
    let patience = match known {
        Some(known) => known.smoothed + 4 * known.variation,
        None => UNKNOWN + before.map_or(Duration::ZERO, |before| before.smoothed),
    };
    patience.clamp(LEAST, MOST)
}

/// What was asked and not answered.
#[derive(Debug, Default)]
pub(super) struct Asking {
    /// Oldest first; at most [`REMEMBERED`].
    asked: VecDeque<Question>,
    /// Questions in a row that no answer came to.
    tries: u32,
}

#[derive(Debug, Clone, Copy)]
struct Question {
    nonce: u64,
    at: Instant,
}

/// To which question an answer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answered {
    /// From that very question to its answer.
    pub(super) took: Duration,
    /// Whether none was put after it.
    pub(super) is_newest: bool,
}

impl Asking {
    /// A question is put; when to put it again, unless an answer comes. Twice the [`patience`] each time.
    pub(super) fn ask(&mut self, nonce: u64, patience: Duration, now: Instant) -> Instant {
        if self.asked.len() == REMEMBERED {
            self.asked.pop_front();
        }
        self.asked.push_back(Question { nonce, at: now });
        // As many shifts as turn the least into the most.
        let again = now + (patience * (1 << self.tries.min(8))).min(MOST);
        self.tries = self.tries.saturating_add(1);
        again
    }

    /// An answer with this number came; `None` where it is to nothing that was asked. Questions before it are
    /// forgotten, those after it may be answered yet.
    pub(super) fn answered(&mut self, nonce: u64, now: Instant) -> Option<Answered> {
        let at = self.asked.iter().position(|asked| asked.nonce == nonce)?;
        let question = self.asked[at];
        self.asked.drain(..=at);
        self.tries = 0;
        Some(Answered {
            took: now.saturating_duration_since(question.at),
            is_newest: self.asked.is_empty(),
        })
    }

    /// No answer to what was asked counts any more.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Questions in a row that no answer came to.
    pub(super) fn tries(&self) -> u32 {
        self.tries
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::beginning;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn an_answer_is_waited_for_by_what_answers_took_and_how_much_that_varies() {
        let now = beginning();
        assert_eq!(patience(None, None), UNKNOWN);
        let near = RoundTrip::after(None, ms(10), now);
        // Half of the first one is its variation (RFC 9002, section 5.3).
        assert_eq!(patience(Some(near), None), LEAST);
        let far = RoundTrip::after(None, ms(400), now);
        assert_eq!(patience(Some(far), None), ms(1_200));
        assert_eq!(patience(None, Some(far)), UNKNOWN + ms(400));
        let steady = (0..40).fold(far, |before, _| {
            RoundTrip::after(Some(before), ms(400), now)
        });
        assert!(patience(Some(steady), None) < ms(401));
        let hours = RoundTrip::after(None, ms(7_200_000), now);
        assert_eq!(patience(Some(hours), None), MOST);
    }

    #[test]
    fn a_question_is_put_again_after_twice_as_long_each_time_up_to_ten_seconds() {
        let now = beginning();
        let mut asking = Asking::default();
        let waits: Vec<_> = (0..9)
            .map(|nonce| asking.ask(nonce, LEAST, now) - now)
            .collect();
        let expected = [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000].map(ms);
        assert_eq!(waits, expected);
        assert_eq!(asking.tries(), 9);
        assert!(asking.answered(8, now).is_some());
        assert_eq!(asking.ask(9, LEAST, now), now + LEAST);
    }

    #[test]
    fn an_answer_is_timed_by_its_own_question_and_makes_those_before_it_void() {
        let start = beginning();
        let mut asking = Asking::default();
        for nonce in 0..3 {
            asking.ask(nonce, LEAST, start + ms(100 * nonce));
        }
        let now = start + ms(250);
        let second = Answered {
            took: ms(150),
            is_newest: false,
        };
        assert_eq!(asking.answered(1, now), Some(second));
        assert_eq!(asking.answered(0, now), None);
        assert_eq!(asking.answered(1, now), None, "once");
        let third = Answered {
            took: ms(50),
            is_newest: true,
        };
        assert_eq!(asking.answered(2, now), Some(third));
    }

    #[test]
    fn few_questions_are_remembered_and_none_that_was_forgotten() {
        let now = beginning();
        let mut asking = Asking::default();
        for nonce in 0..=REMEMBERED as u64 {
            asking.ask(nonce, LEAST, now);
        }
        assert_eq!(asking.answered(0, now), None);
        asking.forget();
        assert_eq!(asking.tries(), 0);
        assert_eq!(asking.answered(REMEMBERED as u64, now), None);
    }
}
