//! Identities of nodes: the next one is admitted, shown, and the one before it retired.

use tokio::time::timeout;
use wavry_credentials::audit::Event;
use wavry_proto::{
    control::IdentityTask,
    id::{NodeId, PublicKey},
};

use super::{AUDIT_DEADLINE, Registry, unix_time};
use crate::{
    identity::{self, Lives},
    metrics as names,
    problem::Refusal,
    store::{self, Order, RotateIdentityError},
};

impl Registry {
    /// The identities of a node.
    pub(crate) fn identities(&self, node: &NodeId) -> Option<Lives> {
        let published = self.shared.published.borrow();
        let at = published.identities.binary_search_by(|l| l.node.cmp(node));
        Some(published.identities[at.ok()?].clone())
    }

    /// Admits another identity of a node, beside its present one.
    pub(crate) async fn admit_identity(
        &self,
        node: NodeId,
        (present, next): (PublicKey, PublicKey),
        event: Event,
    ) -> Result<(), Refusal> {
        self.detached(move |shared| async move {
            let written = timeout(AUDIT_DEADLINE, async {
                let writing = shared.writing.lock().await;
                let (store, now) = (&shared.store, unix_time());
                let admitted = store.admit_identity(&node, &present, &next, now, &event);
                let changed = admitted.await?;
                Ok::<_, RotateIdentityError>((writing, changed))
            });
            let (_writing, changed) = shared.audited(written.await)?;
            if changed.is_some() {
                count_identity("admitted");
                tracing::info!(%node, key = %next, "another identity of a node is admitted");
            }
            shared.publish(changed).await?;
            Ok(())
        })
        .await
    }

    /// Has a node make another identity; it hears of that with its next heartbeat.
    pub(crate) async fn order_rotation(&self, node: NodeId, order: Order) -> Result<(), Refusal> {
        let ordered = self.carry_out(async move |shared| {
            let ordered = shared.store.order_rotation(&node, unix_time(), &order);
            ordered.await
        });
        if !ordered.await?.is_repeated {
            count_identity("ordered");
        }
        Ok(())
    }

    /// What a node that spoke by `key` is to do about its identity. Where it is the next one, it is the
    /// present one from now on.
    pub(crate) async fn identity_task(
        &self,
        node: &NodeId,
        key: PublicKey,
    ) -> Result<Option<IdentityTask>, Refusal> {
        let Some(lives) = self.identities(node) else {
            return Ok(None);
        };
        let next = lives.in_state(identity::State::Next);
        if next.is_some_and(|next| next.key == key) {
            self.show_identity(node.clone(), key).await?;
            return Ok(None);
        }
        let presence = self.shared.presence();
        let pace = &self.shared.times.identity_pace;
        Ok(lives.task(presence.others_act_on(node), pace, unix_time()))
    }

    async fn show_identity(&self, node: NodeId, key: PublicKey) -> Result<(), Refusal> {
        self.detached(move |shared| async move {
            let overlap = shared.times.identity_pace.overlap.as_secs();
            let written = timeout(AUDIT_DEADLINE, async {
                let writing = shared.writing.lock().await;
                let shown = shared
                    .store
                    .show_identity(&node, &key, unix_time(), overlap);
                let changed = shown.await?;
                Ok::<_, store::Error>((writing, changed))
            });
            let (_writing, changed) = shared.audited(written.await)?;
            if changed.is_some() {
                count_identity("shown");
                tracing::info!(%node, %key, "a node shows its new identity");
            }
            shared.publish(changed).await?;
            Ok(())
        })
        .await
    }

    /// Takes identities out of the roster whose time is over.
    pub(super) async fn retire_identities(&self) {
        let now = unix_time();
        let over: Vec<_> = {
            let published = self.shared.published.borrow();
            let lives = published.identities.iter();
            lives
                .filter_map(|lives| Some((lives.node.clone(), lives.over(now)?)))
                .collect()
        };
        if over.is_empty() {
            return;
        }
        let retired = self.detached(move |shared| async move {
            let _writing = shared.writing.lock().await;
            let changed = shared.store.retire_identities(&over).await?;
            shared.audited.send_replace(());
            for (node, key) in &over {
                count_identity("retired");
                tracing::info!(%node, %key, "an identity left the roster");
            }
            shared.publish(changed).await?;
            Ok(())
        });
        if let Err(refusal) = retired.await {
            let error = &refusal as &dyn std::error::Error;
            tracing::error!(
                error,
                "identities whose time is over could not be retired; trying on"
            );
        }
    }
}

fn count_identity(step: &'static str) {
    metrics::counter!(names::IDENTITY_ROTATIONS, "step" => step).increment(1);
}
