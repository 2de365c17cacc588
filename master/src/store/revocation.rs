//! Nodes and subjects that were revoked.

use wavry_proto::{
    control::Revocation,
    id::{NodeId, ServiceName, SubjectDigest},
    token::{CLOCK_SKEW, MAX_LIFETIME},
};

use super::{
    Admission, Error, Part, RegisterError, Store,
    once::{Begun, Done, Order},
};
use crate::database::sql::{Transaction, query};

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
    /// clocks after it.
    pub async fn revoke_node(
        &self,
        node: &NodeId,
        now: u64,
        order: &Order,
    ) -> Result<Done<()>, RevokeError> {
        let mut change = match self.begin(order).await? {
            Begun::New(change) => change,
            Begun::Before(done) => return Ok(done),
        };
        let transaction = &mut change.transaction;
        let id = node.as_str();
        query(
            "INSERT INTO revoked_key (public_key, node)
             SELECT public_key, node FROM node_key WHERE node = $1 ON CONFLICT DO NOTHING",
        )
        .bind(id)
        .execute(&mut *transaction)
        .await
        .map_err(Error::from)?;
        let gone = query("DELETE FROM node WHERE id = $1")
            .bind(id)
            .execute(&mut *transaction)
            .await
            .map_err(Error::from)?;
        if gone == 0 {
            return Err(RevokeError::UnknownNode);
        }
        query(
            "INSERT INTO revoked_node (node, through) VALUES ($1, $2)
             ON CONFLICT (node) DO UPDATE SET through = excluded.through
             WHERE revoked_node.through < excluded.through",
        )
        .bind(id)
        .bind(now.saturating_add(CLOCK_SKEW))
        .execute(&mut *transaction)
        .await
        .map_err(Error::from)?;
        Ok(change
            .conclude(&self.audit, order, (), &[Part::Nodes])
            .await?)
    }

    /// Makes the session tokens of a subject worthless that were issued by `now`, or within the skew
    /// of clocks after it. Those that have expired anyhow are forgotten.
    pub async fn revoke_subject(
        &self,
        service: Option<&ServiceName>,
        subject: SubjectDigest,
        now: u64,
        order: &Order,
    ) -> Result<Done<Revocation>, RevokeError> {
        let mut change = match self.begin(order).await? {
            Begun::New(change) => change,
            Begun::Before(done) => return Ok(done),
        };
        let transaction = &mut change.transaction;
        forget_subjects(transaction, now).await?;
        let through = now.saturating_add(CLOCK_SKEW);
        let service_name = service.map_or("", ServiceName::as_str);
        query(
            "INSERT INTO revoked_subject (service, subject, through) VALUES ($1, $2, $3)
             ON CONFLICT (service, subject) DO UPDATE SET through = excluded.through
             WHERE revoked_subject.through < excluded.through",
        )
        .bind(service_name)
        .bind(subject.to_string())
        .bind(through)
        .execute(&mut *transaction)
        .await
        .map_err(Error::from)?;
        let row = query(
            "SELECT (SELECT count(*) FROM revoked_subject), through FROM revoked_subject
             WHERE service = $1 AND subject = $2",
        )
        .bind(service_name)
        .bind(subject.to_string())
        .one(&mut *transaction)
        .await
        .map_err(Error::from)?;
        let (count, through) = (row.number(0), row.number(1));
        let (count, through) = (count.map_err(Error::from)?, through.map_err(Error::from)?);
        if usize::try_from(count).is_ok_and(|count| count > MAX_REVOCATIONS) {
            return Err(RevokeError::TooMany);
        }
        let revocation = Revocation {
            service: service.cloned(),
            subject,
            through,
        };
        Ok(change
            .conclude(&self.audit, order, revocation, &[Part::Revoked])
            .await?)
    }
}

/// Refuses what was revoked to register.
pub(super) async fn check(
    transaction: &mut Transaction,
    admission: &Admission,
) -> Result<(), RegisterError> {
    let through: Option<i64> = query("SELECT through FROM revoked_node WHERE node = $1")
        .bind(admission.node.as_str())
        .value(&mut *transaction)
        .await
        .map_err(Error::from)?;
    if through.is_some_and(|through| admission.issued_at <= through.cast_unsigned()) {
        return Err(RegisterError::NodeRevoked);
    }
    let revoked = query("SELECT 1 FROM revoked_key WHERE public_key = $1")
        .bind(&admission.key.0[..])
        .optional(&mut *transaction)
        .await
        .map_err(Error::from)?;
    match revoked {
        Some(_) => Err(RegisterError::KeyRevoked),
        None => Ok(()),
    }
}

/// Forgets the revocations of subjects all of whose revoked tokens have expired.
async fn forget_subjects(transaction: &mut Transaction, now: u64) -> Result<(), Error> {
    let over = now.saturating_sub(MAX_LIFETIME);
    query("DELETE FROM revoked_subject WHERE through < $1")
        .bind(over)
        .execute(&mut *transaction)
        .await?;
    Ok(())
}

/// What the roster shows of it.
pub(super) async fn read(transaction: &mut Transaction) -> Result<Vec<Revocation>, Error> {
    let rows =
        query("SELECT service, subject, through FROM revoked_subject ORDER BY service, subject")
            .all(&mut *transaction)
            .await?;
    let bad = || Error::Row("revoked_subject");
    let mut revoked = Vec::with_capacity(rows.len());
    for row in rows {
        let service: String = row.get(0)?;
        let subject: String = row.get(1)?;
        revoked.push(Revocation {
            service: match service.as_str() {
                "" => None,
                name => Some(name.parse().map_err(|_| bad())?),
            },
            subject: subject.parse().map_err(|_| bad())?,
            through: row.number(2)?,
        });
    }
    Ok(revoked)
}
