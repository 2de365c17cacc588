//! Rosters, signed for all nodes that watch.
//!
//! To sign a roster of ten thousand services takes some ten milliseconds, and to send it to a hundred nodes takes
//! longer. So a change is written and answered without, and a task signs what is so then: the first change at
//! once, and of those that come in a burst, what they come to. Every node is sent the same bytes.

use std::time::Duration;

use bytes::Bytes;
use tokio::{sync::watch, time::Instant};
use wavry_credentials::{
    signer::{self, SignError},
    token::Scope,
};
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

/// From a roster that could not be signed to the next attempt, after so many in turn: nodes act on what they have
/// for a day unless told otherwise, and a vault that is back is to be noticed soon.
fn back_off(failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        failures => Duration::from_secs(1 << (failures - 1).min(3)),
    }
}

/// Why a roster was not signed.
type Failed = Box<dyn std::error::Error + Send + Sync>;

/// A roster as it is sent.
#[derive(Clone)]
pub(crate) struct Signed {
    /// Its version.
    pub(crate) epoch: Epoch,
    /// The token.
    pub(crate) token: Bytes,
}

impl Signed {
    /// None was signed yet: older than any.
    pub(super) fn none() -> Self {
        Self {
            epoch: Epoch(0),
            token: Bytes::new(),
        }
    }
}

impl Registry {
    /// The newest signed roster, and its successors.
    pub(crate) fn signed(&self) -> watch::Receiver<Signed> {
        self.shared.signed.subscribe()
    }

    /// Returns while what is so cannot be signed: whoever waits for it is to go elsewhere.
    pub(crate) async fn mute(&self) {
        let mut signs = self.shared.signs.subscribe();
        // The sender is `self`'s.
        let _ = signs.wait_for(|signs| !signs).await;
    }

    /// Signs what is so, as it changes. It never ends.
    pub(crate) async fn sign_rosters(&self) {
        let shared = &self.shared;
        let mut published = shared.published.subscribe();
        let mut failures = 0;
        loop {
            // The sender is `self`'s.
            let epoch = shared.signed.borrow().epoch;
            let newer = published.wait_for(|published| published.roster.epoch > epoch);
            let Ok(newest) = newer.await.map(|newest| newest.clone()) else {
                return std::future::pending().await;
            };
            let began = Instant::now();
            // It is a while's work for a processor.
            let runtime = tokio::runtime::Handle::current();
            let signing = tokio::task::spawn_blocking(move || runtime.block_on(newest.sign()));
            let failure = match signing.await {
                Ok(Ok(signed)) => {
                    metrics::counter!(names::ROSTERS_SIGNED).increment(1);
                    shared.signed.send_replace(signed);
                    None
                }
                Ok(Err(error)) => Some(Failed::from(error)),
                Err(error) => Some(Failed::from(error)),
            };
            failures = match failure {
                None => 0,
                Some(error) => {
                    metrics::counter!(names::ROSTERS_UNSIGNED).increment(1);
                    let error = &*error as &dyn std::error::Error;
                    tracing::error!(error, "a roster was not signed; trying on");
                    failures + 1
                }
            };
            shared.signs.send_replace(failures == 0);
            metrics::gauge!(names::SIGNS).set(f64::from(u8::from(failures == 0)));
            let pause = apart(began.elapsed()).max(back_off(failures));
            tokio::time::sleep_until(began + pause).await;
        }
    }
}

impl Published {
    async fn sign(&self) -> Result<Signed, SignError> {
        let scope = Scope {
            cluster: &self.roster.cluster,
            audience: "nodes",
            binding: &[],
        };
        let token = signer::sign(&*self.ring.signing, &self.roster, scope).await?;
        Ok(Signed {
            epoch: self.roster.epoch,
            token: token.into(),
        })
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

    #[test]
    fn what_cannot_be_signed_is_tried_again_every_eight_seconds_at_the_latest() {
        let pauses: Vec<_> = (0..6)
            .map(|failures| back_off(failures).as_secs())
            .collect();
        assert_eq!(pauses, [0, 1, 2, 4, 8, 8]);
        assert_eq!(back_off(u32::MAX).as_secs(), 8);
    }
}
