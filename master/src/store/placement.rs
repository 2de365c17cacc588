//! Where nodes are and how much they take, as an operator says; their registration tokens said it first.

use wavry_proto::{
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
    /// Has a node be elsewhere, or take another share, until it registers anew.
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
        let row = query("SELECT region, weight FROM node WHERE id = $1")
            .bind(node.as_str())
            .optional(&mut *transaction)
            .await?;
        let Placement { region, weight } = read(&row.ok_or(MoveError::UnknownNode)?, 0)?;
        let region = to.region.clone().unwrap_or(region);
        let weight = to.weight.unwrap_or(weight);
        query("UPDATE node SET region = $1, weight = $2 WHERE id = $3")
            .bind(region.as_ref().map_or("", RegionName::as_str))
            .bind(u64::from(weight.get()))
            .bind(node.as_str())
            .execute(&mut *transaction)
            .await?;
        Ok(change
            .conclude(&self.audit, order, (), &[Part::Nodes])
            .await?)
    }
}

/// From a row's columns `first` and the one after it.
pub(super) fn read(row: &Row, first: usize) -> Result<Placement, Error> {
    let region: String = row.get(first)?;
    let weight = u16::try_from(row.number(first + 1)?).ok();
    let weight = weight.and_then(|weight| weight.try_into().ok());
    Ok(Placement {
        region: match region.as_str() {
            "" => None,
            region => Some(region.parse().map_err(|_| Error::Row("node"))?),
        },
        weight: weight.ok_or(Error::Row("node"))?,
    })
}
