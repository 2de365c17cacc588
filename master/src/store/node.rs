//! Nodes: how they are registered, and what they say of themselves.

use std::net::SocketAddr;

use wavry_credentials::audit::Event;
use wavry_proto::{
    control::{Node, Role},
    id::{NodeId, PublicKey, ServiceName},
    placement::Placement,
};

use super::{Error, Part, Snapshot, Store, audit, identity, placement, revocation};
use crate::database::sql::{Transaction, query};

/// A registration that has been checked in every way but for the token's being used.
#[derive(Debug, Clone)]
pub struct Admission {
    /// Id of the registration token.
    pub jti: String,
    /// When the token was issued, in seconds since the Unix epoch.
    pub issued_at: u64,
    /// When the token expires, in seconds since the Unix epoch.
    pub expires_at: u64,
    /// The node.
    pub node: NodeId,
    /// What it is.
    pub role: Role,
    /// Services it may announce.
    pub granted: Vec<ServiceName>,
    /// Where it is, and how much it is to take.
    pub placement: Placement,
    /// The key it proved to hold.
    pub key: PublicKey,
    /// What it announces.
    pub announcement: Announcement,
    /// What the audit log tells of it.
    pub event: Event,
}

/// What came of writing what a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Grows with each such write, by whichever master.
    pub revision: u64,
    /// The snapshot, when the roster changed.
    pub changed: Option<Snapshot>,
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Announcement {
    /// Where the mesh reaches it, best first.
    pub addresses: Vec<SocketAddr>,
    /// Where it forwards packets of others, best first.
    pub transit: Vec<SocketAddr>,
    /// Relays at which it has a place, ordered by id.
    pub attached: Vec<NodeId>,
    /// Services it has upstreams for.
    pub services: Vec<ServiceName>,
    /// Whether it leaves.
    pub draining: bool,
}

/// Why a node was not registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The registration token served before.
    #[error("the registration token was used before")]
    TokenUsed,
    /// Another node is known by this key.
    #[error("the key belongs to another node")]
    KeyInUse,
    /// The token expired so long ago that it is not remembered whether it was used.
    #[error("the registration token has expired")]
    TokenExpired,
    /// The token was issued before the database was made from a backup, and may have been used since that
    /// was taken.
    #[error("the registration token was issued before the registry was restored")]
    BeforeRestore,
    /// The node was revoked after the token was issued.
    #[error("the node was revoked after the registration token was issued")]
    NodeRevoked,
    /// The key is one of a node that was revoked.
    #[error("the key was revoked")]
    KeyRevoked,
    /// The key was rotated out.
    #[error("the key was rotated out")]
    KeyRetired,
    /// The registry failed.
    #[error(transparent)]
    Store(#[from] Error),
}

/// Why a heartbeat changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum HeartbeatError {
    /// There is no such node.
    #[error("the node is not registered")]
    UnknownNode,
    /// A service that the node's registration token did not name.
    #[error("the node may not announce service {0}")]
    ServiceNotGranted(ServiceName),
    /// The registry failed.
    #[error(transparent)]
    Store(#[from] Error),
}

/// How long a used token is remembered beyond its expiry, in seconds: far over the deadline of any
/// request that verified it in time.
const USED_TOKEN_MARGIN: u64 = 3600;

impl Store {
    /// Registers a node, or registers it anew, and marks the token as used: both or neither.
    /// So is the line in the audit log. `now` is in seconds since the Unix epoch.
    ///
    /// A token that is used already is good for one thing more: the node that it registered last, and
    /// that still has the key it came with, may ask again, since the answer may have been lost. Nothing
    /// changes then.
    pub async fn register(
        &self,
        admission: &Admission,
        now: u64,
    ) -> Result<Written, RegisterError> {
        let mut change = self.change().await?;
        let before = &change.before;
        let is_known =
            |node: &&Node| node.id == admission.node && node.keys.contains(&admission.key);
        // A node that registers with the key that it has stays who it is.
        let registration = match before.nodes.iter().find(is_known) {
            Some(node) => node.registration,
            None => before.epoch.0 + 1,
        };
        let transaction = &mut change.transaction;
        let id = admission.node.as_str();

        let forgotten = forget_used_tokens(transaction, now).await?;
        if admission.expires_at < forgotten.expires_at {
            return Err(RegisterError::TokenExpired);
        }
        if admission.issued_at <= forgotten.issued_through {
            return Err(RegisterError::BeforeRestore);
        }
        let first_use = query(
            "INSERT INTO used_token (jti, expires_at) VALUES ($1, $2) ON CONFLICT (jti) DO NOTHING",
        )
        .bind(admission.jti.as_str())
        .bind(admission.expires_at)
        .execute(&mut *transaction)
        .await
        .map_err(Error::from)?;
        let is_repeated = first_use == 0;
        if is_repeated && !is_registered(transaction, admission).await? {
            return Err(RegisterError::TokenUsed);
        }

        revocation::check(transaction, admission).await?;
        let other_holder = query("SELECT 1 FROM node_key WHERE public_key = $1 AND node <> $2")
            .bind(&admission.key.0[..])
            .bind(id)
            .optional(&mut *transaction)
            .await
            .map_err(Error::from)?;
        if other_holder.is_some() {
            return Err(RegisterError::KeyInUse);
        }
        if identity::is_retired(transaction, &admission.key).await? {
            return Err(RegisterError::KeyRetired);
        }

        let revision = match is_repeated {
            true => revision(transaction, &admission.node).await?,
            false => {
                write_node(transaction, admission, registration, now).await?;
                let announcement = &admission.announcement;
                write_announcement(transaction, &admission.node, announcement).await?
            }
        };
        audit::append(transaction, &self.audit, &admission.event).await?;
        let changed = change.commit(&[Part::Nodes]).await?;
        Ok(Written { revision, changed })
    }

    /// Takes a node's heartbeat.
    pub async fn heartbeat(
        &self,
        node: &NodeId,
        announcement: &Announcement,
    ) -> Result<Written, HeartbeatError> {
        let mut change = self.change().await?;
        let transaction = &mut change.transaction;
        let known = query("SELECT 1 FROM node WHERE id = $1")
            .bind(node.as_str())
            .optional(&mut *transaction)
            .await
            .map_err(Error::from)?;
        if known.is_none() {
            return Err(HeartbeatError::UnknownNode);
        }
        for service in &announcement.services {
            let granted = query("SELECT 1 FROM node_grant WHERE node = $1 AND service = $2")
                .bind(node.as_str())
                .bind(service.as_str())
                .optional(&mut *transaction)
                .await
                .map_err(Error::from)?;
            if granted.is_none() {
                return Err(HeartbeatError::ServiceNotGranted(service.clone()));
            }
        }
        let revision = write_announcement(transaction, node, announcement).await?;
        let changed = change.commit(&[Part::Nodes]).await?;
        Ok(Written { revision, changed })
    }

    /// Marks nodes as not heard of, until their next heartbeat. Gives the snapshot when the roster
    /// changed.
    pub async fn silence(&self, nodes: &[NodeId]) -> Result<Option<Snapshot>, Error> {
        let mut change = self.change().await?;
        for node in nodes {
            query("UPDATE node SET silent = TRUE, revision = revision + 1 WHERE id = $1")
                .bind(node.as_str())
                .execute(&mut change.transaction)
                .await?;
        }
        change.commit(&[Part::Nodes]).await
    }
}

/// Up to when it is not remembered whether tokens were used, in seconds since the Unix epoch.
struct Forgotten {
    /// Tokens that expired before.
    expires_at: u64,
    /// Tokens that were issued by then.
    issued_through: u64,
}

/// Forgets used tokens that expired long ago. Up to when is kept: a clock that is set back makes none of
/// them good again.
async fn forget_used_tokens(transaction: &mut Transaction, now: u64) -> Result<Forgotten, Error> {
    let long_past = now.saturating_sub(USED_TOKEN_MARGIN);
    query("UPDATE forgotten SET expires_at = $1 WHERE expires_at < $1")
        .bind(long_past)
        .execute(&mut *transaction)
        .await?;
    let row = query("SELECT expires_at, issued_through FROM forgotten");
    let row = row.one(&mut *transaction).await?;
    let forgotten = Forgotten {
        expires_at: row.number(0)?,
        issued_through: row.number(1)?,
    };
    query("DELETE FROM used_token WHERE expires_at < $1")
        .bind(forgotten.expires_at)
        .execute(&mut *transaction)
        .await?;
    Ok(forgotten)
}

/// Whether this very token was the last to register this node, which has the key it came with.
async fn is_registered(
    transaction: &mut Transaction,
    admission: &Admission,
) -> Result<bool, Error> {
    let found = query(
        "SELECT 1 FROM node JOIN node_key ON node_key.node = node.id
         WHERE node.id = $1 AND node.registered_by = $2 AND node_key.public_key = $3",
    )
    .bind(admission.node.as_str())
    .bind(admission.jti.as_str())
    .bind(&admission.key.0[..])
    .optional(&mut *transaction)
    .await?;
    Ok(found.is_some())
}

async fn revision(transaction: &mut Transaction, node: &NodeId) -> Result<u64, Error> {
    let revision = query("SELECT revision FROM node WHERE id = $1")
        .bind(node.as_str())
        .one(&mut *transaction)
        .await?;
    Ok(revision.number(0)?)
}

async fn write_node(
    transaction: &mut Transaction,
    admission: &Admission,
    registration: u64,
    now: u64,
) -> Result<(), Error> {
    let id = admission.node.as_str();
    let placement = &admission.placement;
    query(
        "INSERT INTO node (id, role, registered_by, registration, region, weight, names)
         VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (id) DO UPDATE
         SET role = excluded.role, registered_by = excluded.registered_by,
             registration = excluded.registration, rotation_ordered = NULL,
             region = excluded.region, weight = excluded.weight, names = excluded.names",
    )
    .bind(id)
    .bind(admission.role.as_str())
    .bind(admission.jti.as_str())
    .bind(registration)
    .bind(
        placement
            .region
            .as_ref()
            .map_or("", |region| region.as_str()),
    )
    .bind(u64::from(placement.weight.get()))
    .bind(placement::written(&placement.names))
    .execute(&mut *transaction)
    .await?;
    for table in [
        "DELETE FROM node_key WHERE node = $1",
        "DELETE FROM node_grant WHERE node = $1",
    ] {
        query(table).bind(id).execute(&mut *transaction).await?;
    }
    query("INSERT INTO node_key (public_key, node, since) VALUES ($1, $2, $3)")
        .bind(&admission.key.0[..])
        .bind(id)
        .bind(now)
        .execute(&mut *transaction)
        .await?;
    for service in &admission.granted {
        query("INSERT INTO node_grant (node, service) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(id)
            .bind(service.as_str())
            .execute(&mut *transaction)
            .await?;
    }
    Ok(())
}

async fn write_announcement(
    transaction: &mut Transaction,
    node: &NodeId,
    announcement: &Announcement,
) -> Result<u64, Error> {
    let id = node.as_str();
    let revision = query(
        "UPDATE node SET draining = $1, silent = FALSE, revision = revision + 1 WHERE id = $2
         RETURNING revision",
    )
    .bind(announcement.draining)
    .bind(id)
    .one(&mut *transaction)
    .await?;
    for table in [
        "DELETE FROM node_address WHERE node = $1",
        "DELETE FROM node_attached WHERE node = $1",
        "DELETE FROM node_service WHERE node = $1",
    ] {
        query(table).bind(id).execute(&mut *transaction).await?;
    }
    let addresses = announcement
        .addresses
        .iter()
        .map(|address| (address, false));
    let transit = announcement.transit.iter().map(|address| (address, true));
    for (position, (address, transit)) in (0_i64..).zip(addresses.chain(transit)) {
        query(
            "INSERT INTO node_address (node, position, address, transit) VALUES ($1, $2, $3, $4)",
        )
        .bind(id)
        .bind(position)
        .bind(address.to_string())
        .bind(transit)
        .execute(&mut *transaction)
        .await?;
    }
    for relay in &announcement.attached {
        query("INSERT INTO node_attached (node, relay) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(id)
            .bind(relay.as_str())
            .execute(&mut *transaction)
            .await?;
    }
    for service in &announcement.services {
        query("INSERT INTO node_service (node, service) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(id)
            .bind(service.as_str())
            .execute(&mut *transaction)
            .await?;
    }
    Ok(revision.number(0)?)
}
