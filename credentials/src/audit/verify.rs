//! Reads a log from its beginning and finds the first line that is bad.

use super::{Head, Line, MalformedLine};

/// A log that is being read.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    head: Head,
    /// Where seals say that the log was, oldest first.
    sealed: Vec<Head>,
}

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
        }
    }

    /// Takes the next line, without its end.
    pub fn line(&mut self, text: &str) -> Result<Line, Bad> {
        let number = self.head.seq + 1;
        let read = Line::read(text).map_err(|why| Bad::Line { line: number, why })?;
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
        Ok(read)
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

    proptest! {
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
