//! Authorities that sign the cluster's own certificates: sealed under the secret `master_key`. They live as keys
//! that sign do ([`crate::keys`]).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use wavry_credentials::audit::{Action, Event, Key};
use wavry_proto::{control::Authorities, id::NodeId};

use super::{
    Error, Part, Snapshot, Store, audit,
    keys::{RotateError, Rotation},
    lives::AUTHORITIES,
    once::{Begun, Done, Order, Outcome},
};
use crate::{
    authority::{self, Successor},
    database::sql::{Row, Source, Transaction, query},
    keys::{Due, Life, Pace, State, due},
    signing::Custody,
};

/// An authority as it is kept.
pub(crate) struct Kept {
    /// Its `kid` is the hash of its certificate, as hexadecimal.
    pub(crate) life: Life,
    /// X.509, DER.
    pub(crate) certificate: Vec<u8>,
    /// Its key, sealed; `None` for one that signs no more.
    pub(crate) sealed: Option<Vec<u8>>,
}

/// Hash of an authority that was made, as hexadecimal.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hash(pub(crate) String);

impl Outcome for Hash {
    fn name_in(&self, event: &mut Event, _audit: &Key) {
        event.subject.clone_from(&self.0);
    }
}

/// Why a node gets no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertifyError {
    /// There is no such node, or it has registered anew.
    #[error("the node is not registered")]
    UnknownNode,
    /// The registry failed.
    #[error(transparent)]
    Store(#[from] Error),
}

/// Authorities whose revocation nodes are told of: the newest. Each is the end of an accident.
const MAX_REVOKED: u64 = 64;

impl Store {
    /// Sees to it that there is an authority that signs, that `custody` can open, and that has not expired. Where
    /// there is none such, a new one signs from now on, and none before it is trusted any more.
    pub(crate) async fn adopt_authority(
        &self,
        custody: &Custody,
        make: impl FnOnce() -> Result<Successor, authority::Error>,
        now: u64,
    ) -> Result<(), authority::Error> {
        if is_at_hand(custody, &read(&self.pool).await?, now) {
            return Ok(());
        }
        let successor = make()?;
        let mut change = self.change().await?;
        let transaction = &mut change.transaction;
        // Another master may have been faster.
        let kept = read(&mut *transaction).await?;
        if is_at_hand(custody, &kept, now) {
            return Ok(());
        }
        if !kept.is_empty() {
            let mut event = Event::now(Action::Rotate, successor.hash.clone(), "authority");
            event.actor = "master".to_owned();
            audit::append(transaction, &self.audit, &event).await?;
        }
        AUTHORITIES.revoke_all(transaction, now).await?;
        insert(transaction, &successor, (State::Signing, now, None), 0).await?;
        change.commit(&[Part::Authorities]).await?;
        Ok(())
    }

    /// Has an authority take the place of the one that signs. Gives its hash.
    pub(crate) async fn rotate_authority(
        &self,
        successor: &Successor,
        rotation: Rotation,
        now: u64,
        order: &Order,
    ) -> Result<Done<Hash>, RotateError> {
        let mut change = match self.begin(order).await? {
            Begun::New(change) => change,
            Begun::Before(done) => return Ok(done),
        };
        follow(&mut change.transaction, successor, rotation, now).await?;
        let hash = Hash(successor.hash.clone());
        let parts = [Part::Authorities];
        Ok(change.conclude(&self.audit, order, hash, &parts).await?)
    }

    /// Does what is due of the authorities' lives, and gives what that was. It is decided by what is in the
    /// database: another master may have done it.
    pub(crate) async fn turn_authorities(
        &self,
        successor: Option<&Successor>,
        pace: Pace,
        now: u64,
    ) -> Result<(Vec<Due>, Option<Snapshot>), RotateError> {
        let mut change = self.change().await?;
        let transaction = &mut change.transaction;
        let kept = read(&mut *transaction).await?;
        let lives: Vec<_> = kept.into_iter().map(|kept| kept.life).collect();
        let mut done = Vec::new();
        for due in due(&lives, &pace, now) {
            let (hash, path) = match &due {
                Due::Sign { kid, overlap } => {
                    AUTHORITIES.sign(transaction, kid, *overlap, now).await?;
                    (kid.clone(), "authority signs")
                }
                Due::Retire { kid } => {
                    AUTHORITIES.retire(transaction, kid, now).await?;
                    (kid.clone(), "authority retired")
                }
                Due::Rotate => {
                    let Some(successor) = successor else { continue };
                    follow(transaction, successor, Rotation::InTurn(pace), now).await?;
                    (successor.hash.clone(), "authority scheduled")
                }
            };
            let mut event = Event::now(Action::Rotate, hash, path);
            event.actor = "master".to_owned();
            audit::append(transaction, &self.audit, &event).await?;
            done.push(due);
        }
        Ok((done, change.commit(&[Part::Authorities]).await?))
    }

    /// Puts on record that a node gets a certificate, if it is registered by this number.
    pub(crate) async fn certify(
        &self,
        node: &NodeId,
        registration: u64,
        event: &Event,
    ) -> Result<(), CertifyError> {
        let mut change = self.change().await?;
        let transaction = &mut change.transaction;
        let known = query("SELECT 1 FROM node WHERE id = $1 AND registration = $2")
            .bind(node.as_str())
            .bind(registration)
            .optional(&mut *transaction)
            .await
            .map_err(Error::from)?;
        if known.is_none() {
            return Err(CertifyError::UnknownNode);
        }
        audit::append(transaction, &self.audit, event).await?;
        change.commit(&[]).await?;
        Ok(())
    }
}

/// Whether there is an authority that signs, and that can.
fn is_at_hand(custody: &Custody, kept: &[Kept], now: u64) -> bool {
    let signing = kept.iter().find(|kept| kept.life.state == State::Signing);
    signing.is_some_and(|kept| {
        let opened = authority::open(custody, kept);
        opened.is_ok_and(|opened| authority::expiry(&opened) > now)
    })
}

pub(crate) async fn read(database: impl Into<Source<'_>>) -> Result<Vec<Kept>, Error> {
    let rows = query(
        "SELECT hash, certificate, sealed, state, since, until, overlap FROM authority ORDER BY number",
    );
    rows.all(database).await?.iter().map(kept).collect()
}

fn kept(row: &Row) -> Result<Kept, Error> {
    let state: String = row.get(3)?;
    let state = State::ALL.into_iter().find(|known| known.as_str() == state);
    let until: Option<i64> = row.get(5)?;
    Ok(Kept {
        life: Life {
            kid: row.get(0)?,
            state: state.ok_or(Error::Row("authority"))?,
            since: row.number(4)?,
            until: until.map(i64::cast_unsigned),
            overlap: row.number(6)?,
        },
        certificate: row.get(1)?,
        sealed: row.get(2)?,
    })
}

async fn insert(
    transaction: &mut Transaction,
    successor: &Successor,
    (state, since, until): (State, u64, Option<u64>),
    overlap: u64,
) -> Result<(), Error> {
    query(
        "INSERT INTO authority (number, hash, certificate, sealed, state, since, until, overlap)
         VALUES ((SELECT coalesce(max(number), 0) + 1 FROM authority), $1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(successor.hash.as_str())
    .bind(&successor.certificate[..])
    .bind(&successor.sealed[..])
    .bind(state.as_str())
    .bind(since)
    .bind(until)
    .bind(overlap)
    .execute(&mut *transaction)
    .await?;
    Ok(())
}

/// Puts the authority that follows the one that signs on record.
async fn follow(
    transaction: &mut Transaction,
    successor: &Successor,
    rotation: Rotation,
    now: u64,
) -> Result<(), RotateError> {
    let kept = read(&mut *transaction).await?;
    let (life, overlap) = match rotation {
        Rotation::InTurn(pace) => {
            if kept.iter().any(|kept| kept.life.state == State::Published) {
                return Err(RotateError::UnderWay);
            }
            let until = now.saturating_add(pace.wait.as_secs());
            ((State::Published, now, Some(until)), pace.overlap.as_secs())
        }
        Rotation::AtOnce => {
            AUTHORITIES.revoke_all(transaction, now).await?;
            ((State::Signing, now, None), 0)
        }
    };
    Ok(insert(transaction, successor, life, overlap).await?)
}

/// What the roster shows: those that are trusted, the one that signs first, and those that nobody is to trust.
pub(super) async fn shown(transaction: &mut Transaction) -> Result<Authorities, Error> {
    let trusted: Vec<Vec<u8>> = query(
        "SELECT certificate FROM authority WHERE state IN ('published', 'signing', 'accepted')
         ORDER BY CASE state WHEN 'signing' THEN 0 WHEN 'published' THEN 1 ELSE 2 END, number",
    )
    .column(&mut *transaction)
    .await?;
    let revoked =
        query("SELECT hash FROM authority WHERE state = 'revoked' ORDER BY number DESC LIMIT $1");
    Ok(Authorities {
        trusted: trusted.iter().map(|der| STANDARD.encode(der)).collect(),
        revoked: revoked.bind(MAX_REVOKED).column(&mut *transaction).await?,
    })
}

#[cfg(test)]
mod tests;
