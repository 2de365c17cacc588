//! Rosters, signed for all nodes that watch.
//!
//! To sign a roster of ten thousand services takes some ten milliseconds, and to send it to a hundred nodes takes
//! longer. So a change is written and answered without, and a task signs what is so then: the first change at
//! once, and of those that come in a burst, what they come to. Every node is sent the same bytes.

use std::time::Duration;

use bytes::Bytes;
use tokio::{sync::watch, time::Instant};
use wavry_credentials::token::Scope;
use wavry_proto::id::Epoch;

use super::{Published, Registry};
use crate::metrics as names;

/// From one roster to the next, at most: far less than the 5 s in which a revocation is to reach every node,
/// and long enough that a burst of changes in a large cluster costs five rosters a second.
const SIGNED_APART: Duration = Duration::from_millis(200);
/// How many times as long as a roster took to sign it is until the next: to send it to everybody takes a multiple
/// of that, too. A node that joins waits for a roster with itself in it, and in a small cluster not for long.
const SIGNING_SHARE: u32 = 20;

/// From the begin of one signing, which took so long, to the next.
fn apart(signing: Duration) -> Duration {
    (signing * SIGNING_SHARE).min(SIGNED_APART)
}

/// A roster as it is sent.
#[derive(Clone)]
pub(crate) struct Signed {
    /// Its version.
    pub(crate) epoch: Epoch,
    /// The token.
    pub(crate) token: Bytes,
}

impl Registry {
    /// The newest signed roster, and its successors.
    pub(crate) fn signed(&self) -> watch::Receiver<Signed> {
        self.shared.signed.subscribe()
    }

    /// Signs what is so, as it changes. It never ends.
    pub(crate) async fn sign_rosters(&self) {
        let shared = &self.shared;
        let mut published = shared.published.subscribe();
        loop {
            // The sender is `self`'s.
            let epoch = shared.signed.borrow().epoch;
            let newer = published.wait_for(|published| published.roster.epoch > epoch);
            let Ok(newest) = newer.await.map(|newest| newest.clone()) else {
                return std::future::pending().await;
            };
            let began = Instant::now();
            // It is a while's work for a processor.
            let signing = tokio::task::spawn_blocking(move || newest.sign());
            match signing.await {
                Ok(signed) => {
                    metrics::counter!(names::ROSTERS_SIGNED).increment(1);
                    shared.signed.send_replace(signed);
                }
                Err(error) => tracing::error!(%error, "a roster was not signed; trying on"),
            }
            tokio::time::sleep_until(began + apart(began.elapsed())).await;
        }
    }
}

impl Published {
    pub(super) fn sign(&self) -> Signed {
        let scope = Scope {
            cluster: &self.roster.cluster,
            audience: "nodes",
            binding: &[],
        };
        Signed {
            epoch: self.roster.epoch,
            token: self.ring.signing.sign(&self.roster, scope).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_rosters_follow_each_other_at_once_and_large_ones_five_times_a_second() {
        assert_eq!(apart(Duration::from_micros(50)), Duration::from_millis(1));
        assert_eq!(apart(Duration::from_millis(4)), Duration::from_millis(80));
        assert_eq!(apart(Duration::from_millis(33)), SIGNED_APART);
        assert_eq!(apart(Duration::from_secs(3)), SIGNED_APART);
    }
}
