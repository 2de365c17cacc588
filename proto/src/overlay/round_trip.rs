//! Round trips: the last one, and what they are like.

use std::time::{Duration, Instant};

/// Round trips to a peer or a relay, smoothed as RFC 9002, section 5.3 does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundTrip {
    /// The last one.
    pub latest: Duration,
    /// What they are on average, of late.
    pub smoothed: Duration,
    /// By how much they differ from that.
    pub variation: Duration,
    /// When the last one ended.
    pub at: Instant,
}

impl RoundTrip {
    /// After another one, which took `latest` and ended now.
    pub fn after(before: Option<Self>, latest: Duration, now: Instant) -> Self {
        let (smoothed, variation) = match before {
            None => (latest, latest / 2),
            Some(Self {
                smoothed,
                variation,
                ..
            }) => (
                (7 * smoothed + latest) / 8,
                (3 * variation + smoothed.abs_diff(latest)) / 4,
            ),
        };
        Self {
            latest,
            smoothed,
            variation,
            at: now,
        }
    }
}
