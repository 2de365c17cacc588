//! What gateways share: leases, entries, and who has taken in what.

use std::time::{Duration, Instant};

use tokio::{sync::watch, time::timeout};
use wavry_credentials::audit::Event;
use wavry_proto::{
    control::{
        Role,
        fleet::{Changes, Leased, TakeLease, WriteEntry, Written},
    },
    id::NodeId,
};

use super::{AUDIT_DEADLINE, Registry, Shared};
use crate::{
    presence::State,
    problem::Refusal,
    store::{self, FleetError},
};

/// A gateway that has not asked for changes for so long shares nothing any more: it asks anew as soon as it is
/// answered, and an answer is held for 25 s.
const MEMBER_FOR: Duration = Duration::from_secs(60);

impl Registry {
    /// Refuses whoever is no gateway.
    pub(crate) fn is_gateway(&self, node: &NodeId) -> Result<(), Refusal> {
        let published = self.shared.published.borrow();
        match published.roster.node(node).map(|node| node.role) {
            Some(Role::Gateway) => Ok(()),
            Some(Role::Relay | Role::KeyVault) => Err(Refusal::NoGateway),
            None => Err(Refusal::UnknownNode),
        }
    }

    /// Gives a gateway the lease of an entry, unless another one has it.
    pub(crate) async fn take_lease(
        &self,
        node: NodeId,
        ask: TakeLease,
        read: Event,
    ) -> Result<Leased, Refusal> {
        self.detached(move |shared| async move {
            let taken = timeout(AUDIT_DEADLINE, async {
                let _writing = shared.writing.lock().await;
                shared.store.take_lease(&node, &ask, &read).await
            });
            shared.audited(taken.await)
        })
        .await
    }

    /// Writes an entry, and has all gateways told.
    pub(crate) async fn write_entry(
        &self,
        node: NodeId,
        write: WriteEntry,
        issued: Event,
    ) -> Result<Written, Refusal> {
        self.detached(move |shared| async move {
            let written = timeout(AUDIT_DEADLINE, async {
                let _writing = shared.writing.lock().await;
                shared.store.write_entry(&node, &write, &issued).await
            });
            let written = shared.audited::<_, FleetError>(written.await)?;
            shared.fleet_has(written.revision);
            if write.product.is_some() {
                tracing::info!(%node, entry = %write.entry, "gateways share something new");
            }
            Ok(written)
        })
        .await
    }

    /// What has changed after a revision.
    pub(crate) async fn changes(&self, after: u64, read: Event) -> Result<Changes, Refusal> {
        self.detached(move |shared| async move {
            let changes = timeout(AUDIT_DEADLINE, async {
                let _writing = shared.writing.lock().await;
                shared.store.changes(after, &read).await
            });
            shared.audited(changes.await)
        })
        .await
    }

    /// Notes that a gateway has taken in what it was told up to a revision.
    pub(crate) async fn asked_for_changes(&self, node: &NodeId, after: u64) -> Result<(), Refusal> {
        let shared = &self.shared;
        let asked = timeout(AUDIT_DEADLINE, shared.store.asked_for_changes(node, after));
        asked
            .await
            .unwrap_or(Err(store::Error::TooSlow))
            .map_err(Refusal::Behind)?;
        shared.acknowledged.send_replace(());
        Ok(())
    }

    /// The revision, as it changes.
    pub(crate) fn fleet(&self) -> watch::Receiver<u64> {
        self.shared.fleet.subscribe()
    }

    /// Told when a gateway has taken something in, by way of this master.
    pub(crate) fn acknowledged(&self) -> watch::Receiver<()> {
        self.shared.acknowledged.subscribe()
    }

    /// How many gateways that are there have not taken a revision in.
    pub(crate) async fn behind_revision(&self, revision: u64) -> Result<u64, Refusal> {
        let shared = &self.shared;
        let members = timeout(AUDIT_DEADLINE, shared.store.members()).await;
        let members = members.unwrap_or(Err(store::Error::TooSlow));
        let members = members.map_err(Refusal::Behind)?;
        let (presence, now) = (shared.presence(), Instant::now());
        let behind = members.iter().filter(|member| {
            let whereabouts = presence.of(&member.node, shared.times.gone_after, now);
            let is_there =
                whereabouts.is_some_and(|w| matches!(w.state, State::Present | State::Draining));
            is_there && Duration::from_millis(member.ago) < MEMBER_FOR && member.revision < revision
        });
        Ok(behind.count() as u64)
    }
}

impl Shared {
    /// Has all who wait for changes look.
    pub(super) fn fleet_has(&self, revision: u64) {
        self.fleet.send_if_modified(|newest| {
            let is_newer = revision > *newest;
            *newest = revision.max(*newest);
            is_newer
        });
    }
}
