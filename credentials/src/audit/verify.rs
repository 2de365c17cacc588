//! Reads a log from its beginning and finds the first line that is bad.

use std::collections::VecDeque;

use super::{Head, Line, MalformedLine};

/// A log that is being read.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    head: Head,
    /// Where seals say that the log was, oldest first.
    sealed: Vec<Head>,
    /// Hashes of the newest lines, where these may come again.
    recent: Option<VecDeque<[u8; 32]>>,
}

/// How far back a line may be that comes again. A sink sends again what it sent in the last seconds, and
/// this is more than a log grows in them: 2 MiB of hashes.
const MAX_RECENT: usize = 65_536;

/// What is wrong, and from which line on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Bad {
    /// A line that is none, or was changed.
    #[error("line {line} {why}")]
    Line {
        /// Counted from 1.
        line: u64,
        /// What is wrong with it.
        why: MalformedLine,
    },
    /// A line that has another's number: lines before it were removed, or it was moved.
    #[error("line {line} has number {found}: lines were removed, added or moved")]
    Number {
        /// Counted from 1; the number it should have.
        line: u64,
        /// The number it has.
        found: u64,
    },
    /// A line that names another hash than that of the line before.
    #[error("line {line} does not follow the line before it: one of the two was replaced")]
    Link {
        /// Counted from 1.
        line: u64,
    },
    /// A line that is right in itself, and is not the one that was sealed.
    #[error("line {line} is not the one that was sealed: it, or lines before it, were replaced")]
    Seal {
        /// Counted from 1.
        line: u64,
    },
    /// Fewer lines than were sealed.
    #[error(
        "line {line} is missing, and all up to line {sealed}, which was sealed: the end was cut off"
    )]
    Truncated {
        /// The first that is missing.
        line: u64,
        /// The last that was sealed.
        sealed: u64,
    },
}

impl Bad {
    /// The first bad line, counted from 1.
    pub fn line(&self) -> u64 {
        match self {
            Self::Line { line, .. }
            | Self::Number { line, .. }
            | Self::Link { line }
            | Self::Seal { line }
            | Self::Truncated { line, .. } => *line,
        }
    }
}

impl Reading {
    /// Expects the log to have been where the seals say.
    pub fn expecting(mut sealed: Vec<Head>) -> Self {
        sealed.sort_by_key(|head| head.seq);
        Self {
            head: Head::default(),
            sealed,
            recent: None,
        }
    }

    /// The same of a copy that a sink of at-least-once delivery made: lines may come again, but not others
    /// under their numbers.
    pub fn of_copy(sealed: Vec<Head>) -> Self {
        Self {
            recent: Some(VecDeque::new()),
            ..Self::expecting(sealed)
        }
    }

    /// Takes the next line, without its end.
    pub fn line(&mut self, text: &str) -> Result<Line, Bad> {
        let number = self.head.seq + 1;
        let read = Line::read(text).map_err(|why| Bad::Line { line: number, why })?;
        if self.came_before(&read.head) {
            return Ok(read);
        }
        if read.head.seq != number {
            return Err(Bad::Number {
                line: number,
                found: read.head.seq,
            });
        }
        if read.prev != self.head.hash {
            return Err(Bad::Link { line: number });
        }
        let mut sealed = self.sealed.iter().filter(|head| head.seq == number);
        if sealed.any(|head| head.hash != read.head.hash) {
            return Err(Bad::Seal { line: number });
        }
        self.head = read.head;
        if let Some(recent) = &mut self.recent {
            recent.push_back(read.head.hash);
            if recent.len() > MAX_RECENT {
                recent.pop_front();
            }
        }
        Ok(read)
    }

    fn came_before(&self, head: &Head) -> bool {
        let hash = || {
            let recent = self.recent.as_ref()?;
            let back = usize::try_from(self.head.seq.checked_sub(head.seq)?).ok()?;
            recent.get(recent.len().checked_sub(back + 1)?)
        };
        hash() == Some(&head.hash)
    }

    /// There are no more lines: how far the log goes.
    pub fn end(self) -> Result<Head, Bad> {
        match self.sealed.last() {
            Some(last) if last.seq > self.head.seq => Err(Bad::Truncated {
                line: self.head.seq + 1,
                sealed: last.seq,
            }),
            _ => Ok(self.head),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Action, Event};
    use proptest::prelude::*;

    /// A log of `length` lines, and its head.
    fn log(length: u64) -> (Vec<String>, Head) {
        let mut head = Head::default();
        let lines = (0..length).map(|i| {
            let event = Event::now(Action::Issue, format!("node-{i}"), "provision");
            let (next, text) = head.follow(&event);
            head = next;
            text
        });
        (lines.collect(), head)
    }

    fn verify(lines: &[String], sealed: &[Head]) -> Result<Head, Bad> {
        let mut reading = Reading::expecting(sealed.to_vec());
        for line in lines {
            reading.line(line)?;
        }
        reading.end()
    }

    #[test]
    fn a_log_that_nobody_touched_verifies() {
        for length in [0, 1, 10] {
            let (lines, head) = log(length);
            assert_eq!(verify(&lines, &[]), Ok(head));
            assert_eq!(verify(&lines, &[head]), Ok(head));
        }
    }

    #[test]
    fn a_line_that_was_edited_is_named() {
        let (mut lines, head) = log(5);
        lines[2] = lines[2].replace("node-2", "node-7");
        let why = MalformedLine::Hash;
        assert_eq!(verify(&lines, &[head]), Err(Bad::Line { line: 3, why }));
        lines[2] = "{}".to_owned();
        let why = MalformedLine::Shape;
        assert_eq!(verify(&lines, &[head]), Err(Bad::Line { line: 3, why }));
    }

    #[test]
    fn a_line_that_was_written_anew_breaks_the_next_one_and_the_last_one_its_seal() {
        let (mut lines, head) = log(5);
        let before = Line::read(&lines[1]).unwrap().head;
        let forged = Event::now(Action::Issue, "forged", "provision");
        lines[2] = before.follow(&forged).1;
        assert_eq!(verify(&lines, &[head]), Err(Bad::Link { line: 4 }));

        let (mut lines, head) = log(5);
        let before = Line::read(&lines[3]).unwrap().head;
        lines[4] = before.follow(&forged).1;
        assert_eq!(verify(&lines, &[head]), Err(Bad::Seal { line: 5 }));
    }

    #[test]
    fn a_line_that_was_removed_is_named() {
        for removed in 0..4 {
            let (mut lines, head) = log(5);
            lines.remove(removed);
            let line = removed as u64 + 1;
            let found = line + 1;
            assert_eq!(verify(&lines, &[head]), Err(Bad::Number { line, found }));
        }
    }

    #[test]
    fn two_lines_that_changed_places_are_named() {
        let (mut lines, head) = log(5);
        lines.swap(1, 2);
        assert_eq!(
            verify(&lines, &[head]),
            Err(Bad::Number { line: 2, found: 3 })
        );
        let (mut lines, head) = log(5);
        lines.swap(3, 4);
        assert_eq!(
            verify(&lines, &[head]),
            Err(Bad::Number { line: 4, found: 5 })
        );
    }

    #[test]
    fn a_tail_that_was_cut_off_is_missed_thanks_to_the_seal() {
        for kept in 0..5 {
            let (lines, head) = log(5);
            let kept_lines = &lines[..kept as usize];
            let truncated = Bad::Truncated {
                line: kept + 1,
                sealed: 5,
            };
            assert_eq!(verify(kept_lines, &[head]), Err(truncated));
            assert_eq!(truncated.line(), kept + 1);
            assert!(verify(kept_lines, &[]).is_ok());
        }
    }

    #[test]
    fn a_whole_log_that_was_written_anew_does_not_fit_an_old_seal() {
        let (_, head) = log(3);
        let mut other = Head::default();
        let lines: Vec<_> = (0..5)
            .map(|_| {
                let (next, text) = other.follow(&Event::now(Action::Deny, "x", "y"));
                other = next;
                text
            })
            .collect();
        assert_eq!(verify(&lines, &[head]), Err(Bad::Seal { line: 3 }));
    }

    fn verify_copy(lines: &[String], sealed: &[Head]) -> Result<Head, Bad> {
        let mut reading = Reading::of_copy(sealed.to_vec());
        for line in lines {
            reading.line(line)?;
        }
        reading.end()
    }

    #[test]
    fn in_a_copy_lines_may_come_again_and_no_others_in_their_place() {
        let (lines, head) = log(6);
        // Sent up to the fourth, then again from the second on.
        let mut copy = lines[..4].to_vec();
        copy.extend_from_slice(&lines[1..]);
        assert_eq!(verify_copy(&copy, &[head]), Ok(head));
        assert_eq!(
            verify(&copy, &[head]),
            Err(Bad::Number { line: 5, found: 2 })
        );

        let before = Line::read(&lines[0]).unwrap().head;
        let forged = Event::now(Action::Issue, "forged", "provision");
        copy[4] = before.follow(&forged).1;
        assert_eq!(
            verify_copy(&copy, &[head]),
            Err(Bad::Number { line: 5, found: 2 })
        );
        assert_eq!(
            verify_copy(&lines[1..], &[]),
            Err(Bad::Number { line: 1, found: 2 })
        );
    }

    proptest! {
        #[test]
        fn in_a_copy_no_edit_removal_or_cut_goes_unseen(
            kind in 0_u8..4, one in 0_usize..8, again in 0_usize..8,
        ) {
            let (original, head) = log(8);
            let mut lines = original.clone();
            match kind {
                0 => { lines.remove(one); }
                1 => lines[one] = lines[one].replace("node", "edon"),
                2 => lines.truncate(one),
                // The later of a pair comes first.
                _ => {
                    prop_assume!(one < 7);
                    lines.swap(one, one + 1);
                }
            }
            // Whatever comes again behind a change does not hide it.
            if let Some(line) = original.get(again).filter(|_| again < lines.len().min(one)) {
                lines.insert(again + 1, line.clone());
            }
            prop_assert!(verify_copy(&lines, &[head]).is_err_and(|bad| bad.line() == one as u64 + 1));
        }

        #[test]
        fn no_change_goes_unseen(
            changes in prop::collection::vec((0_u8..4, any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..4),
        ) {
            let (original, head) = log(8);
            let mut lines = original.clone();
            for (kind, one, other) in changes {
                if lines.is_empty() {
                    break;
                }
                let (one, other) = (one.index(lines.len()), other.index(lines.len()));
                match kind {
                    0 => { lines.remove(one); }
                    1 => lines.swap(one, other),
                    2 => lines.truncate(one),
                    _ => { let copy = lines[one].clone(); lines.insert(other, copy); }
                }
            }
            prop_assume!(lines != original);
            let first = original.iter().zip(&lines).position(|(a, b)| a != b).unwrap_or(original.len().min(lines.len()));
            let bad = verify(&lines, &[head]);
            prop_assert!(bad.is_err_and(|bad| bad.line() == first as u64 + 1));
        }
    }
}
