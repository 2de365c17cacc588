//! Where nodes are and how much they take, as an operator says; their registration tokens said it first. And how
//! much of a relay's link their flows may take, and that leases hold no more.

use wavry_proto::{
    control::lease::Terms,
    id::{NodeId, RegionName},
    placement::{Placement, Weight},
};

use super::{
    Error, Part, Store,
    once::{Begun, Done, Order},
};
use crate::database::sql::{Row, query};

/// What of a node's placement is to be another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Move {
    /// Another region, or none.
    pub region: Option<Option<RegionName>>,
    /// Another weight.
    pub weight: Option<Weight>,
    /// Other bits of each of its flows in a second, or as the configuration has it.
    pub flow_bits: Option<Option<u64>>,
    /// Other packets of each of its flows in a second, or as the configuration has it.
    pub flow_packets: Option<Option<u64>>,
}

/// Why a node was not moved.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// There is no such node.
    #[error("the node is not registered")]
    UnknownNode,
    /// The registry failed.
    #[error(transparent)]
    Store(#[from] Error),
}

impl From<sqlx::Error> for MoveError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Store {
    /// Has a node be elsewhere, or take another share, until it registers anew; or its flows carry more or less.
    /// Leases that say anything else hold no more.
    pub async fn place_node(
        &self,
        node: &NodeId,
        to: &Move,
        order: &Order,
    ) -> Result<Done<()>, MoveError> {
        let mut change = match self.begin(order).await? {
            Begun::New(change) => change,
            Begun::Before(done) => return Ok(done),
        };
        let transaction = &mut change.transaction;
        let row = query(
            "SELECT region, weight, names, leases_since, flow_bits, flow_packets FROM node
             WHERE id = $1",
        );
        let row = row.bind(node.as_str()).optional(&mut *transaction).await?;
        let row = row.ok_or(MoveError::UnknownNode)?;
        let Placement { region, weight, .. } = read(&row, 0)?;
        let before = terms(&row, 3)?;
        let mut after = Terms {
            bits_per_second: to.flow_bits.unwrap_or(before.bits_per_second),
            packets_per_second: to.flow_packets.unwrap_or(before.packets_per_second),
            ..before
        };
        if after != before {
            after.since = change.before.epoch.0 + 1;
        }
        let region = to.region.clone().unwrap_or(region);
        let weight = to.weight.unwrap_or(weight);
        query(
            "UPDATE node SET region = $1, weight = $2, leases_since = $3, flow_bits = $4,
                 flow_packets = $5
             WHERE id = $6",
        )
        .bind(region.as_ref().map_or("", RegionName::as_str))
        .bind(u64::from(weight.get()))
        .bind(after.since)
        .bind(after.bits_per_second.unwrap_or_default())
        .bind(after.packets_per_second.unwrap_or_default())
        .bind(node.as_str())
        .execute(&mut *transaction)
        .await?;
        Ok(change
            .conclude(&self.audit, order, (), &[Part::Nodes])
            .await?)
    }

    /// Has no lease of a node's flows hold that was signed until now.
    pub async fn revoke_leases(&self, node: &NodeId, order: &Order) -> Result<Done<()>, MoveError> {
        let mut change = match self.begin(order).await? {
            Begun::New(change) => change,
            Begun::Before(done) => return Ok(done),
        };
        let since = change.before.epoch.0 + 1;
        let changed = query("UPDATE node SET leases_since = $1 WHERE id = $2")
            .bind(since)
            .bind(node.as_str())
            .execute(&mut change.transaction)
            .await?;
        if changed == 0 {
            return Err(MoveError::UnknownNode);
        }
        Ok(change
            .conclude(&self.audit, order, (), &[Part::Nodes])
            .await?)
    }
}

/// From a row's columns `first` and the two after it.
pub(super) fn terms(row: &Row, first: usize) -> Result<Terms, Error> {
    let given = |number: u64| Some(number).filter(|number| *number > 0);
    Ok(Terms {
        since: row.number(first)?,
        bits_per_second: given(row.number(first + 1)?),
        packets_per_second: given(row.number(first + 2)?),
    })
}

/// Names as a column has them.
pub(super) fn written(names: &[String]) -> String {
    names.join(" ")
}

/// From a row's columns `first` and the two after it.
pub(super) fn read(row: &Row, first: usize) -> Result<Placement, Error> {
    let region: String = row.get(first)?;
    let weight = u16::try_from(row.number(first + 1)?).ok();
    let weight = weight.and_then(|weight| weight.try_into().ok());
    let names: String = row.get(first + 2)?;
    Ok(Placement {
        region: match region.as_str() {
            "" => None,
            region => Some(region.parse().map_err(|_| Error::Row("node"))?),
        },
        weight: weight.ok_or(Error::Row("node"))?,
        names: names.split_whitespace().map(str::to_owned).collect(),
    })
}
