//! Nodes and subjects that were revoked.

use sqlx::{Row as _, Sqlite, Transaction};
use wavry_credentials::audit::Event;
use wavry_proto::{
    control::Revocation,
    id::{NodeId, ServiceName, SubjectDigest},
    token::{CLOCK_SKEW, MAX_LIFETIME},
};

use super::{Admission, Error, RegisterError, Snapshot, Store, audit};

/// Most revoked subjects at once. Each is some 120 bytes of the roster, which every node is sent.
pub const MAX_REVOCATIONS: usize = 10_000;

/// Why nothing was revoked.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    /// There is no such node.
    #[error("the node is not registered")]
    UnknownNode,
    /// There are [`MAX_REVOCATIONS`] already.
    #[error("{MAX_REVOCATIONS} subjects are revoked already")]
    TooMany,
    /// The registry failed.
    #[error(transparent)]
    Store(#[from] Error),
}

impl Store {
    /// Takes a node out of the registry for good: its keys never register again, nor do registration
    /// tokens for it that were issued by `now`, in seconds since the Unix epoch, or within the skew of
    /// clocks after it. Gives the snapshot.
    pub async fn revoke_node(
        &self,
        node: &NodeId,
        now: u64,
        event: &Event,
    ) -> Result<Option<Snapshot>, RevokeError> {
        let mut change = self.change().await?;
        let transaction = &mut change.transaction;
        let id = node.as_str();
        sqlx::query("INSERT OR IGNORE INTO revoked_key SELECT public_key, node FROM node_key WHERE node = ?")
            .bind(id)
            .execute(&mut **transaction)
            .await
            .map_err(Error::from)?;
        let gone = sqlx::query("DELETE FROM node WHERE id = ?")
            .bind(id)
            .execute(&mut **transaction)
            .await
            .map_err(Error::from)?;
        if gone.rows_affected() == 0 {
            return Err(RevokeError::UnknownNode);
        }
        sqlx::query(
            "INSERT INTO revoked_node (node, through) VALUES (?, ?)
             ON CONFLICT (node) DO UPDATE SET through = max(through, excluded.through)",
        )
        .bind(id)
        .bind(now.saturating_add(CLOCK_SKEW).cast_signed())
        .execute(&mut **transaction)
        .await
        .map_err(Error::from)?;
        audit::append(transaction, &self.audit, event).await?;
        Ok(change.commit().await?)
    }

    /// Makes the session tokens of a subject worthless that were issued by `now`, or within the skew
    /// of clocks after it. Those that have expired anyhow are forgotten. Gives the revocation, and the
    /// snapshot when the roster changed.
    pub async fn revoke_subject(
        &self,
        service: Option<&ServiceName>,
        subject: SubjectDigest,
        now: u64,
        event: &Event,
    ) -> Result<(Revocation, Option<Snapshot>), RevokeError> {
        let mut change = self.change().await?;
        let transaction = &mut change.transaction;
        forget_subjects(transaction, now).await?;
        let through = now.saturating_add(CLOCK_SKEW);
        let through: i64 = sqlx::query_scalar(
            "INSERT INTO revoked_subject (service, subject, through) VALUES (?, ?, ?)
             ON CONFLICT (service, subject) DO UPDATE SET through = max(through, excluded.through)
             RETURNING through",
        )
        .bind(service.map_or("", ServiceName::as_str))
        .bind(subject.to_string())
        .bind(through.cast_signed())
        .fetch_one(&mut **transaction)
        .await
        .map_err(Error::from)?;
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM revoked_subject")
            .fetch_one(&mut **transaction)
            .await
            .map_err(Error::from)?;
        if usize::try_from(count).is_ok_and(|count| count > MAX_REVOCATIONS) {
            return Err(RevokeError::TooMany);
        }
        audit::append(transaction, &self.audit, event).await?;
        let revocation = Revocation {
            service: service.cloned(),
            subject,
            through: through.cast_unsigned(),
        };
        Ok((revocation, change.commit().await?))
    }
}

/// Refuses what was revoked to register.
pub(super) async fn check(
    transaction: &mut Transaction<'static, Sqlite>,
    admission: &Admission,
) -> Result<(), RegisterError> {
    let through: Option<i64> =
        sqlx::query_scalar("SELECT through FROM revoked_node WHERE node = ?")
            .bind(admission.node.as_str())
            .fetch_optional(&mut **transaction)
            .await
            .map_err(Error::from)?;
    if through.is_some_and(|through| admission.issued_at <= through.cast_unsigned()) {
        return Err(RegisterError::NodeRevoked);
    }
    let revoked = sqlx::query("SELECT 1 FROM revoked_key WHERE public_key = ?")
        .bind(&admission.key.0[..])
        .fetch_optional(&mut **transaction)
        .await
        .map_err(Error::from)?;
    match revoked {
        Some(_) => Err(RegisterError::KeyRevoked),
        None => Ok(()),
    }
}

/// Forgets the revocations of subjects all of whose revoked tokens have expired.
async fn forget_subjects(
    transaction: &mut Transaction<'static, Sqlite>,
    now: u64,
) -> Result<(), Error> {
    let over = now.saturating_sub(MAX_LIFETIME);
    sqlx::query("DELETE FROM revoked_subject WHERE through < ?")
        .bind(over.cast_signed())
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

/// What the roster shows of it.
pub(super) async fn read(
    transaction: &mut Transaction<'static, Sqlite>,
) -> Result<Vec<Revocation>, Error> {
    let rows = sqlx::query(
        "SELECT service, subject, through FROM revoked_subject ORDER BY service, subject",
    )
    .fetch_all(&mut **transaction)
    .await?;
    let bad = || Error::Row("revoked_subject");
    let mut revoked = Vec::with_capacity(rows.len());
    for row in rows {
        let service: String = row.try_get("service")?;
        let subject: String = row.try_get("subject")?;
        revoked.push(Revocation {
            service: match service.as_str() {
                "" => None,
                name => Some(name.parse().map_err(|_| bad())?),
            },
            subject: subject.parse().map_err(|_| bad())?,
            through: row.try_get::<i64, _>("through")?.cast_unsigned(),
        });
    }
    Ok(revoked)
}
