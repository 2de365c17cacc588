//! The keys that sign: what follows them, by request and in turn.

use super::{Registry, unix_time};
use crate::{
    keys::{Due, Pace, Reason, due},
    metrics as names,
    problem::Refusal,
    signing::{self, Successor},
    store::{self, Order, keys::Rotation},
};

impl Registry {
    /// How long keys stay in each part of their life.
    pub(crate) fn pace(&self) -> Pace {
        self.shared.times.pace
    }

    /// What keys signed of those that followed them, oldest first.
    pub(crate) async fn succession(&self) -> Result<Vec<String>, Refusal> {
        let statements = self.shared.store.succession().await;
        statements.map_err(Refusal::Internal)
    }

    /// Makes a key that is to take the place of the one that signs; gives its PASERK id.
    pub(crate) async fn rotate_key(
        &self,
        reason: Reason,
        pace: Pace,
        order: Order,
    ) -> Result<String, Refusal> {
        let rotation = match reason {
            Reason::Compromise => Rotation::AtOnce,
            Reason::Schedule | Reason::Request => Rotation::InTurn(pace),
        };
        let is_compromised = reason == Reason::Compromise;
        let successor = self.successor(is_compromised).await?;
        let rotated = self.carry_out(async move |shared| {
            let rotated = shared
                .store
                .rotate(&successor, rotation, unix_time(), &order);
            rotated.await
        });
        let rotated = rotated.await?;
        let (kid, reason) = (rotated.outcome.0, reason.as_str());
        if !rotated.is_repeated {
            metrics::counter!(names::KEY_ROTATIONS, "reason" => reason).increment(1);
            tracing::warn!(
                kid,
                reason,
                "a new key takes the place of the one that signs"
            );
        }
        Ok(kid)
    }

    /// A key that is to follow the one that signs. It may take as long as the vault has: nothing is held
    /// meanwhile, and if another master is faster, this one's is not taken.
    async fn successor(&self, is_compromised: bool) -> Result<Successor, Refusal> {
        let (shared, ring) = (&self.shared, self.ring());
        let successor = shared
            .custody
            .successor(&ring, &shared.cluster, is_compromised);
        successor.await.map_err(|error| match error {
            signing::Error::Sign(error) => Refusal::NotSigned(error),
            signing::Error::Store(error) => Refusal::Internal(error),
            // What is configured was checked before there was a registry.
            signing::Error::Secret(_) | signing::Error::Vault(_) | signing::Error::Read(_) => {
                Refusal::Internal(store::Error::Row("signing_key"))
            }
        })
    }

    /// Does what is due of the keys' lives.
    pub(super) async fn turn_keys(&self) {
        let due = due(&self.ring().lives(), &self.shared.times.pace, unix_time());
        if due.is_empty() {
            return;
        }
        let successor = match due.contains(&Due::Rotate) {
            false => None,
            true => match self.successor(false).await {
                Ok(successor) => Some(successor),
                Err(refusal) => {
                    let error = &refusal as &dyn std::error::Error;
                    tracing::error!(error, "the next key could not be made; trying on");
                    None
                }
            },
        };
        if successor.is_none() && due == [Due::Rotate] {
            return;
        }
        let turned = self.detached(move |shared| async move {
            let _writing = shared.writing.lock().await;
            let (store, pace) = (&shared.store, shared.times.pace);
            let turned = store.turn_keys(successor.as_ref(), pace, unix_time());
            let (due, changed) = turned.await?;
            shared.audited.send_replace(());
            shared.publish(changed).await?;
            Ok(due)
        });
        match turned.await {
            Ok(due) if due.contains(&Due::Rotate) => {
                let reason = Reason::Schedule.as_str();
                metrics::counter!(names::KEY_ROTATIONS, "reason" => reason).increment(1);
                tracing::warn!("a new key takes the place of the one that signs, as is its turn");
            }
            Ok(_) => {}
            Err(refusal) => {
                let error = &refusal as &dyn std::error::Error;
                tracing::error!(error, "keys could not be turned; trying on");
            }
        }
    }
}
