//! Nodes' identities as they rotate.

use std::collections::BTreeMap;

use wavry_credentials::audit::{Action, Event};
use wavry_proto::id::{Epoch, NodeId, PublicKey};

use super::{
    Error, Part, Snapshot, Store, audit,
    once::{Begun, Done, Order},
};
use crate::{
    database::sql::{Transaction, query},
    identity::{Life, Lives, State},
};

/// Why a node's identity does not rotate.
#[derive(Debug, thiserror::Error)]
pub enum RotateIdentityError {
    /// There is no such node.
    #[error("the node is not registered")]
    UnknownNode,
    /// The key that asks is not the one that the node shows.
    #[error("the key is not the node's present one")]
    NotPresent,
    /// Another identity was admitted and is not shown yet, or the one before is still accepted.
    #[error("the node's identity is being rotated")]
    UnderWay,
    /// The key is another node's, or the present one of this node.
    #[error("the key is in use")]
    KeyInUse,
    /// The key was rotated out.
    #[error("the key was rotated out")]
    KeyRetired,
    /// The key is one of a node that was revoked.
    #[error("the key was revoked")]
    KeyRevoked,
    /// The registry failed.
    #[error(transparent)]
    Store(#[from] Error),
}

impl From<sqlx::Error> for RotateIdentityError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Store {
    /// Admits `next` beside `present`, which the node shows, at `now`, in seconds since the Unix epoch. To
    /// admit it again changes nothing. One that was admitted before and not shown makes way only where an
    /// operator wants another: the node may have lost it. Gives the snapshot when the roster changed.
    pub async fn admit_identity(
        &self,
        node: &NodeId,
        present: &PublicKey,
        next: &PublicKey,
        now: u64,
        event: &Event,
    ) -> Result<Option<Snapshot>, RotateIdentityError> {
        let mut change = self.change().await?;
        let after_epoch = change.before.epoch;
        let transaction = &mut change.transaction;
        let lives = of_node(transaction, node).await?;
        let lives = lives.ok_or(RotateIdentityError::UnknownNode)?;
        let state_of = |key: &PublicKey| {
            let life = lives.lives.iter().find(|life| life.key == *key);
            life.map(|life| life.state)
        };
        if state_of(present) != Some(State::Present) {
            return Err(RotateIdentityError::NotPresent);
        }
        match state_of(next) {
            Some(State::Next) => return Ok(None),
            Some(State::Present | State::Before) => return Err(RotateIdentityError::KeyInUse),
            None if lives.in_state(State::Before).is_some() => {
                return Err(RotateIdentityError::UnderWay);
            }
            None => {}
        }
        if let Some(admitted) = lives.in_state(State::Next) {
            if lives.ordered.is_none() {
                return Err(RotateIdentityError::UnderWay);
            }
            query("DELETE FROM node_key WHERE public_key = $1")
                .bind(&admitted.key.0[..])
                .execute(&mut *transaction)
                .await?;
            retire(transaction, node, &admitted.key).await?;
        }
        let statements = [
            (
                "SELECT 1 FROM node_key WHERE public_key = $1",
                RotateIdentityError::KeyInUse,
            ),
            (
                "SELECT 1 FROM retired_key WHERE public_key = $1",
                RotateIdentityError::KeyRetired,
            ),
            (
                "SELECT 1 FROM revoked_key WHERE public_key = $1",
                RotateIdentityError::KeyRevoked,
            ),
        ];
        for (statement, refusal) in statements {
            let found = query(statement)
                .bind(&next.0[..])
                .optional(&mut *transaction)
                .await?;
            if found.is_some() {
                return Err(refusal);
            }
        }
        query(
            "INSERT INTO node_key (public_key, node, state, since, after_epoch)
             VALUES ($1, $2, 'next', $3, $4)",
        )
        .bind(&next.0[..])
        .bind(node.as_str())
        .bind(now)
        .bind(after_epoch.0)
        .execute(&mut *transaction)
        .await?;
        no_longer_ordered(transaction, node).await?;
        audit::append(transaction, &self.audit, event).await?;
        Ok(change.commit(&[Part::Nodes]).await?)
    }

    /// Notes that the node shows its next identity, `key`, from `now` on; the one before is accepted for
    /// `overlap` seconds more. Gives the snapshot when that was news.
    pub async fn show_identity(
        &self,
        node: &NodeId,
        key: &PublicKey,
        now: u64,
        overlap: u64,
    ) -> Result<Option<Snapshot>, Error> {
        let mut change = self.change().await?;
        let transaction = &mut change.transaction;
        let lives = of_node(transaction, node).await?;
        let next = lives.as_ref().and_then(|lives| lives.in_state(State::Next));
        if next.is_none_or(|next| next.key != *key) {
            return Ok(None);
        }
        query(
            "UPDATE node_key SET state = 'before', since = $1, until = $2
             WHERE node = $3 AND state = 'present'",
        )
        .bind(now)
        .bind(now.saturating_add(overlap))
        .bind(node.as_str())
        .execute(&mut *transaction)
        .await?;
        query("UPDATE node_key SET state = 'present', since = $1 WHERE public_key = $2")
            .bind(now)
            .bind(&key.0[..])
            .execute(&mut *transaction)
            .await?;
        no_longer_ordered(transaction, node).await?;
        let event = by_master(node, key, "identity shown");
        audit::append(transaction, &self.audit, &event).await?;
        change.commit(&[Part::Nodes]).await
    }

    /// Takes identities out of the roster whose time is over. Gives the snapshot when there were any.
    pub async fn retire_identities(
        &self,
        over: &[(NodeId, PublicKey)],
    ) -> Result<Option<Snapshot>, Error> {
        let mut change = self.change().await?;
        let transaction = &mut change.transaction;
        for (node, key) in over {
            let gone = query(
                "DELETE FROM node_key WHERE public_key = $1 AND node = $2 AND state = 'before'",
            )
            .bind(&key.0[..])
            .bind(node.as_str())
            .execute(&mut *transaction)
            .await?;
            if gone == 0 {
                continue;
            }
            retire(transaction, node, key).await?;
            let event = by_master(node, key, "identity retired");
            audit::append(transaction, &self.audit, &event).await?;
        }
        change.commit(&[Part::Nodes]).await
    }

    /// Has the node show another identity, since `now`: the one that was admitted, or else one that it
    /// makes.
    pub async fn order_rotation(
        &self,
        node: &NodeId,
        now: u64,
        order: &Order,
    ) -> Result<Done<()>, RotateIdentityError> {
        let mut change = match self.begin(order).await? {
            Begun::New(change) => change,
            Begun::Before(done) => return Ok(done),
        };
        let transaction = &mut change.transaction;
        let ordered = query("UPDATE node SET rotation_ordered = $1 WHERE id = $2")
            .bind(now)
            .bind(node.as_str())
            .execute(&mut *transaction)
            .await?;
        if ordered == 0 {
            return Err(RotateIdentityError::UnknownNode);
        }
        Ok(change
            .conclude(&self.audit, order, (), &[Part::Nodes])
            .await?)
    }
}

fn by_master(node: &NodeId, key: &PublicKey, path: &str) -> Event {
    let mut event = Event::now(Action::Rotate, node.as_str(), format!("{path}: {key}"));
    event.actor = "master".to_owned();
    event
}

async fn no_longer_ordered(transaction: &mut Transaction, node: &NodeId) -> Result<(), Error> {
    query("UPDATE node SET rotation_ordered = NULL WHERE id = $1")
        .bind(node.as_str())
        .execute(&mut *transaction)
        .await?;
    Ok(())
}

/// Remembers that a key was rotated out.
async fn retire(
    transaction: &mut Transaction,
    node: &NodeId,
    key: &PublicKey,
) -> Result<(), Error> {
    query(
        "INSERT INTO retired_key (public_key, node) VALUES ($1, $2)
         ON CONFLICT (public_key) DO NOTHING",
    )
    .bind(&key.0[..])
    .bind(node.as_str())
    .execute(&mut *transaction)
    .await?;
    Ok(())
}

/// Whether a key was rotated out.
pub(super) async fn is_retired(
    transaction: &mut Transaction,
    key: &PublicKey,
) -> Result<bool, Error> {
    let retired = query("SELECT 1 FROM retired_key WHERE public_key = $1")
        .bind(&key.0[..])
        .optional(&mut *transaction)
        .await?;
    Ok(retired.is_some())
}

async fn of_node(transaction: &mut Transaction, node: &NodeId) -> Result<Option<Lives>, Error> {
    let mut all = read(transaction).await?.into_iter();
    Ok(all.find(|lives| lives.node == *node))
}

/// The identities of every node, ordered by node and key.
pub(super) async fn read(transaction: &mut Transaction) -> Result<Vec<Lives>, Error> {
    let rows = query(
        "SELECT node.id, node.rotation_ordered, node_key.public_key, node_key.state, node_key.since,
                node_key.after_epoch, node_key.until
         FROM node JOIN node_key ON node_key.node = node.id ORDER BY node.id, node_key.public_key",
    )
    .all(&mut *transaction)
    .await?;
    let mut nodes = BTreeMap::new();
    for row in rows {
        let bad = || Error::Row("node_key");
        let key: Vec<u8> = row.get(2)?;
        let state: String = row.get(3)?;
        let state = State::ALL.into_iter().find(|known| known.as_str() == state);
        let life = Life {
            key: PublicKey(key.try_into().map_err(|_| bad())?),
            state: state.ok_or_else(bad)?,
            since: row.number(4)?,
            after_epoch: Epoch(row.number(5)?),
            until: row.get::<Option<i64>>(6)?.map(i64::cast_unsigned),
        };
        let id: String = row.get(0)?;
        let ordered: Option<i64> = row.get(1)?;
        let node: NodeId = id.parse().map_err(|_| Error::Row("node"))?;
        let lives = nodes.entry(node.clone()).or_insert_with(|| Lives {
            node,
            ordered: ordered.map(i64::cast_unsigned),
            lives: Vec::new(),
        });
        lives.lives.push(life);
    }
    Ok(nodes.into_values().collect())
}
