//! How much stream data a session may send, in the manner of WT_MAX_DATA
//! (draft-ietf-webtrans-http3, section 5): a total that only grows.
//!
//! Both halves are shared by all streams of a session and are hot, so they are atomics and take
//! `&self`; whoever must wait for credit does so outside.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::varint;

/// What this side may still send.
#[derive(Debug, Default)]
pub struct SendCredit {
    limit: AtomicU64,
    spent: AtomicU64,
}

impl SendCredit {
    /// Takes up to `want` bytes of credit; 0 when there is none.
    pub fn take(&self, want: u64) -> u64 {
        let mut spent = self.spent.load(Ordering::Acquire);
        loop {
            let left = self.limit.load(Ordering::Acquire).saturating_sub(spent);
            let taken = left.min(want);
            if taken == 0 {
                return 0;
            }
            match self.spent.compare_exchange_weak(
                spent,
                spent + taken,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return taken,
                Err(now) => spent = now,
            }
        }
    }

    /// Gives back credit that was taken and not used.
    pub fn give_back(&self, unused: u64) {
        self.spent.fetch_sub(unused, Ordering::AcqRel);
    }

    /// The peer's MAX_DATA. Returns whether there is more credit now; a smaller total than before
    /// changes nothing.
    pub fn raise(&self, limit: u64) -> bool {
        self.limit.fetch_max(limit, Ordering::AcqRel) < limit
    }

    /// Bytes spent so far.
    pub fn spent(&self) -> u64 {
        self.spent.load(Ordering::Acquire)
    }
}

/// What the peer may send.
#[derive(Debug)]
pub struct ReceiveCredit {
    window: u64,
    consumed: AtomicU64,
    granted: AtomicU64,
}

impl ReceiveCredit {
    /// Lets the peer have `window` bytes (at least 1) that were not consumed yet. The first grant,
    /// [`granted`](Self::granted), must be sent by the caller.
    pub fn new(window: u64) -> Self {
        let window = window.clamp(1, varint::MAX / 4);
        Self {
            window,
            consumed: AtomicU64::new(0),
            granted: AtomicU64::new(window),
        }
    }

    /// The total granted, as the last MAX_DATA said or is to say.
    pub fn granted(&self) -> u64 {
        self.granted.load(Ordering::Acquire)
    }

    /// Bytes consumed so far.
    pub fn consumed(&self) -> u64 {
        self.consumed.load(Ordering::Acquire)
    }

    /// `bytes` were consumed: the application read them, or they never will be. Returns the total
    /// for a new MAX_DATA once half of the window was consumed.
    pub fn consume(&self, bytes: u64) -> Result<Option<u64>, Exceeded> {
        let consumed = self
            .consumed
            .fetch_add(bytes, Ordering::AcqRel)
            .saturating_add(bytes);
        let granted = self.granted.load(Ordering::Acquire);
        if consumed > granted {
            return Err(Exceeded);
        }
        let Some(next) = due(consumed, granted, self.window) else {
            return Ok(None);
        };
        let before = self.granted.fetch_max(next, Ordering::AcqRel);
        Ok((before < next).then_some(next))
    }
}

/// The total to grant now, once half of the window was consumed. `granted` may be more than that,
/// when another reader was faster.
fn due(consumed: u64, granted: u64, window: u64) -> Option<u64> {
    let next = consumed + window;
    let enough = next.saturating_sub(granted) >= window.div_ceil(2);
    (enough && next <= varint::MAX).then_some(next)
}

/// The peer sent more than it was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more stream data than was granted")]
pub struct Exceeded;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_is_taken_until_it_is_spent_and_returns_with_a_raise() {
        let credit = SendCredit::default();
        assert_eq!(credit.take(5), 0);
        assert!(credit.raise(8));
        assert_eq!(credit.take(5), 5);
        assert_eq!(credit.take(5), 3);
        assert_eq!(credit.take(5), 0);
        assert!(!credit.raise(7), "a smaller total must not count");
        assert!(credit.raise(9));
        assert_eq!(credit.take(5), 1);
    }

    #[test]
    fn half_a_window_consumed_renews_the_grant() {
        let credit = ReceiveCredit::new(100);
        assert_eq!(credit.consume(49), Ok(None));
        assert_eq!(credit.consume(1), Ok(Some(150)));
        assert_eq!(credit.consume(49), Ok(None));
        assert_eq!(credit.consume(52), Err(Exceeded));
    }

    #[test]
    fn a_reader_that_was_overtaken_grants_nothing() {
        assert_eq!(due(10, 27, 16), None);
        assert_eq!(due(10, 26, 16), None);
        assert_eq!(due(10, 18, 16), Some(26));
    }

    #[test]
    fn readers_at_once_never_grant_less_than_was_granted() {
        let credit = ReceiveCredit::new(16);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50_000 {
                        assert!(credit.consume(1).is_ok());
                    }
                });
            }
        });
        assert_eq!(credit.consumed(), 200_000);
        assert!(credit.granted() >= 200_000 + 8);
    }

    #[test]
    fn a_window_of_one_byte_still_moves() {
        let credit = ReceiveCredit::new(1);
        assert_eq!(credit.consume(1), Ok(Some(2)));
        assert_eq!(credit.consume(1), Ok(Some(3)));
    }
}
