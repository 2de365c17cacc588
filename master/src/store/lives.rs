//! What becomes in the database of what lives as keys that sign do ([`crate::keys`]): those keys, and authorities.

use super::Error;
use crate::database::sql::{Transaction, query};

/// The statements of one table.
pub(super) struct Lives {
    accept: &'static str,
    sign: &'static str,
    retire: &'static str,
    revoke_all: &'static str,
}

macro_rules! lives {
    ($table:literal, $id:literal) => {
        Lives {
            accept: concat!(
                "UPDATE ",
                $table,
                " SET state = 'accepted', since = $1, until = $2, sealed = NULL
                 WHERE state = 'signing'"
            ),
            sign: concat!(
                "UPDATE ",
                $table,
                " SET state = 'signing', since = $1, until = NULL WHERE ",
                $id,
                " = $2"
            ),
            retire: concat!(
                "UPDATE ",
                $table,
                " SET state = 'retired', since = $1, until = NULL WHERE ",
                $id,
                " = $2"
            ),
            revoke_all: concat!(
                "UPDATE ",
                $table,
                " SET state = 'revoked', since = $1, until = NULL, sealed = NULL
                 WHERE state IN ('published', 'signing', 'accepted')"
            ),
        }
    };
}

/// Of the keys that sign tokens and rosters.
pub(super) const KEYS: Lives = lives!("signing_key", "kid");
/// Of the authorities that sign the cluster's own certificates.
pub(super) const AUTHORITIES: Lives = lives!("authority", "hash");

impl Lives {
    /// Has a published one sign, and the one that did be accepted for a while.
    pub(super) async fn sign(
        &self,
        transaction: &mut Transaction,
        id: &str,
        overlap: u64,
        now: u64,
    ) -> Result<(), Error> {
        query(self.accept)
            .bind(now)
            .bind(now.saturating_add(overlap))
            .execute(&mut *transaction)
            .await?;
        query(self.sign)
            .bind(now)
            .bind(id)
            .execute(&mut *transaction)
            .await?;
        Ok(())
    }

    /// It is accepted no more.
    pub(super) async fn retire(
        &self,
        transaction: &mut Transaction,
        id: &str,
        now: u64,
    ) -> Result<(), Error> {
        query(self.retire)
            .bind(now)
            .bind(id)
            .execute(&mut *transaction)
            .await?;
        Ok(())
    }

    /// None that is there is to be trusted any more.
    pub(super) async fn revoke_all(
        &self,
        transaction: &mut Transaction,
        now: u64,
    ) -> Result<(), Error> {
        query(self.revoke_all)
            .bind(now)
            .execute(&mut *transaction)
            .await?;
        Ok(())
    }
}
