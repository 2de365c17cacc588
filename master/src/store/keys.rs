//! Keys that sign tokens and rosters: sealed under the secret `master_key`, or a vault's.

use serde::{Deserialize, Serialize};
use wavry_credentials::audit::{Action, Event, Key};

use super::{
    Error, Part, Snapshot, Store, audit,
    lives::KEYS,
    once::{Begun, Done, Order, Outcome},
};
use crate::{
    database::sql::{Row, Source, Transaction, query},
    keys::{Due, Life, Pace, State, due},
    signing::{self, Custody, NewKey, Successor},
};

/// A key as it is kept.
pub(crate) struct Kept {
    pub(crate) life: Life,
    /// PASERK `k4.public`.
    pub(crate) paserk: String,
    /// The secret half, sealed; `None` for a key that signs no more, and for one that a vault has.
    pub(crate) sealed: Option<Vec<u8>>,
    /// Where a vault has it.
    pub(crate) vault: Option<VaultKey>,
}

/// A version of a key in a vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VaultKey {
    /// MOUNT/KEY there.
    pub(crate) place: String,
    /// From 1.
    pub(crate) version: u32,
}

/// How a new key takes the place of the one that signs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rotation {
    /// It is published first, and the one before it is accepted afterwards.
    InTurn(Pace),
    /// At once; nothing that any other key signed holds any more.
    AtOnce,
}

/// Why no new key was made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RotateError {
    /// One is published already and is yet to sign.
    #[error("a key is published already, and signs in its turn")]
    UnderWay,
    /// Another key began to sign meanwhile, or the new one is on record already.
    #[error("another rotation was faster")]
    Overtaken,
    /// The registry failed.
    #[error(transparent)]
    Store(#[from] Error),
}

/// PASERK id of a key that was made.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Kid(pub(crate) String);

impl Outcome for Kid {
    fn name_in(&self, event: &mut Event, _audit: &Key) {
        event.subject.clone_from(&self.0);
    }
}

impl From<sqlx::Error> for RotateError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Store {
    /// Sees to it that there is a key that signs and that `custody` has it. Where what is kept cannot be opened,
    /// as the secret `master_key` was replaced by another, a new one signs from now on, and nothing that
    /// others signed holds any more.
    pub(crate) async fn adopt(&self, custody: &Custody, now: u64) -> Result<(), signing::Error> {
        let keys = read(&self.pool).await?;
        if is_in(custody, &keys)? {
            return Ok(());
        }
        let first = custody.first(&keys).await?;
        let mut change = self.change().await?;
        let transaction = &mut change.transaction;
        // Another master may have been faster.
        let keys = read(&mut *transaction).await?;
        if is_in(custody, &keys)? {
            return Ok(());
        }
        let kid = first.kid();
        let known = keys.iter().find(|key| key.life.kid == kid);
        if known.is_some_and(|key| key.life.state == State::Revoked) {
            return Err(Error::RevokedKey.into());
        }
        if signing_of(&keys).is_some() {
            let mut event = Event::now(Action::Rotate, first.paserk(), "master_key");
            event.actor = "master".to_owned();
            audit::append(transaction, &self.audit, &event).await?;
        }
        KEYS.revoke_all(transaction, now).await?;
        insert(transaction, &first, (State::Signing, now, None), 0).await?;
        change.commit(&[Part::Keys]).await?;
        Ok(())
    }

    /// Has a key take the place of the one that signs. Gives its PASERK id.
    pub(crate) async fn rotate(
        &self,
        successor: &Successor,
        rotation: Rotation,
        now: u64,
        order: &Order,
    ) -> Result<Done<Kid>, RotateError> {
        let mut change = match self.begin(order).await? {
            Begun::New(change) => change,
            Begun::Before(done) => return Ok(done),
        };
        let transaction = &mut change.transaction;
        let kid = follow(transaction, successor, rotation, now).await?;
        Ok(change
            .conclude(&self.audit, order, Kid(kid), &[Part::Keys])
            .await?)
    }

    /// Does what is due of the keys' lives, and gives what that was. It is decided by the keys as they are
    /// in the database: another master may have done it. A rotation that is due waits for a successor.
    pub(crate) async fn turn_keys(
        &self,
        successor: Option<&Successor>,
        pace: Pace,
        now: u64,
    ) -> Result<(Vec<Due>, Option<Snapshot>), RotateError> {
        let mut change = self.change().await?;
        let transaction = &mut change.transaction;
        let keys = read(&mut *transaction).await?;
        let lives: Vec<_> = keys.into_iter().map(|key| key.life).collect();
        let mut done = Vec::new();
        for due in due(&lives, &pace, now) {
            let (kid, path) = match &due {
                Due::Sign { kid, overlap } => {
                    KEYS.sign(transaction, kid, *overlap, now).await?;
                    (kid.clone(), "key signs")
                }
                Due::Retire { kid } => {
                    KEYS.retire(transaction, kid, now).await?;
                    (kid.clone(), "key retired")
                }
                Due::Rotate => {
                    let Some(successor) = successor else { continue };
                    let rotation = Rotation::InTurn(pace);
                    let kid = follow(transaction, successor, rotation, now).await?;
                    (kid, "schedule")
                }
            };
            let mut event = Event::now(Action::Rotate, kid, path);
            event.actor = "master".to_owned();
            audit::append(transaction, &self.audit, &event).await?;
            done.push(due);
        }
        Ok((done, change.commit(&[Part::Keys]).await?))
    }

    /// What keys signed of those that follow them, oldest first.
    pub(crate) async fn succession(&self) -> Result<Vec<String>, Error> {
        let statements = query("SELECT statement FROM succession ORDER BY number");
        Ok(statements.column(&self.pool).await?)
    }
}

/// Whether the key that signs, and the one that is to, are such that `custody` has.
fn is_in(custody: &Custody, keys: &[Kept]) -> Result<bool, Error> {
    let Some(signing) = signing_of(keys) else {
        return Ok(false);
    };
    let next = keys.iter().find(|key| key.life.state == State::Published);
    for key in [Some(signing), next].into_iter().flatten() {
        match custody.signer(key) {
            Ok(_) => {}
            Err(Error::Row(_)) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// The key that signs.
pub(crate) fn signing_of(keys: &[Kept]) -> Option<&Kept> {
    keys.iter().find(|key| key.life.state == State::Signing)
}

pub(crate) async fn read(database: impl Into<Source<'_>>) -> Result<Vec<Kept>, Error> {
    let rows = query(
        "SELECT kid, paserk, sealed, state, since, until, overlap, vault_key, vault_version
         FROM signing_key ORDER BY number",
    )
    .all(database)
    .await?;
    rows.iter().map(kept).collect()
}

fn kept(row: &Row) -> Result<Kept, Error> {
    let state: String = row.get(3)?;
    let state = State::ALL.into_iter().find(|known| known.as_str() == state);
    let until: Option<i64> = row.get(5)?;
    let place: String = row.get(7)?;
    let vault = match place.is_empty() {
        true => None,
        false => Some(VaultKey {
            place,
            version: u32::try_from(row.number(8)?).map_err(|_| Error::Row("signing_key"))?,
        }),
    };
    Ok(Kept {
        vault,
        life: Life {
            kid: row.get(0)?,
            state: state.ok_or(Error::Row("signing_key"))?,
            since: row.number(4)?,
            until: until.map(i64::cast_unsigned),
            overlap: row.number(6)?,
        },
        paserk: row.get(1)?,
        sealed: row.get(2)?,
    })
}

async fn insert(
    transaction: &mut Transaction,
    key: &NewKey,
    (state, since, until): (State, u64, Option<u64>),
    overlap: u64,
) -> Result<(), Error> {
    let vault = key.vault.as_ref();
    query(
        "INSERT INTO signing_key (number, kid, paserk, sealed, state, since, until, overlap, vault_key,
             vault_version)
         VALUES ((SELECT coalesce(max(number), 0) + 1 FROM signing_key), $1, $2, $3, $4, $5, $6, $7, $8, $9)
         ON CONFLICT (kid) DO UPDATE SET sealed = excluded.sealed, state = excluded.state,
             since = excluded.since, until = excluded.until, overlap = excluded.overlap,
             vault_key = excluded.vault_key, vault_version = excluded.vault_version",
    )
    .bind(key.kid())
    .bind(key.paserk())
    .bind(key.sealed.clone())
    .bind(state.as_str())
    .bind(since)
    .bind(until)
    .bind(overlap)
    .bind(vault.map_or("", |key| &key.place))
    .bind(vault.map(|key| u64::from(key.version)))
    .execute(&mut *transaction)
    .await?;
    Ok(())
}

/// Puts the key that follows the one that signs on record. Gives its PASERK id.
async fn follow(
    transaction: &mut Transaction,
    successor: &Successor,
    rotation: Rotation,
    now: u64,
) -> Result<String, RotateError> {
    let keys = read(&mut *transaction).await?;
    let signing = signing_of(&keys).ok_or(Error::Row("signing_key"))?;
    let key = &successor.key;
    let kid = key.kid();
    let (life, overlap) = match rotation {
        Rotation::InTurn(pace) => {
            if keys.iter().any(|key| key.life.state == State::Published) {
                return Err(RotateError::UnderWay);
            }
            let until = now.saturating_add(pace.wait.as_secs());
            ((State::Published, now, Some(until)), pace.overlap.as_secs())
        }
        Rotation::AtOnce => ((State::Signing, now, None), 0),
    };
    let is_known = keys.iter().any(|key| key.life.kid == kid);
    if signing.life.kid != successor.predecessor || is_known {
        return Err(RotateError::Overtaken);
    }
    if matches!(rotation, Rotation::AtOnce) {
        KEYS.revoke_all(transaction, now).await?;
    }
    insert(transaction, key, life, overlap).await?;
    query(
        "INSERT INTO succession (number, statement)
         VALUES ((SELECT coalesce(max(number), 0) + 1 FROM succession), $1)",
    )
    .bind(successor.statement.clone())
    .execute(&mut *transaction)
    .await?;
    Ok(kid)
}

/// What the roster shows: keys that sign session tokens, and keys that sign rosters from now on, each as
/// PASERK `k4.public`, ordered.
pub(super) async fn shown(
    transaction: &mut Transaction,
) -> Result<(Vec<String>, Vec<String>), Error> {
    let tokens = query(
        "SELECT paserk FROM signing_key WHERE state IN ('published', 'signing', 'accepted')
         ORDER BY paserk",
    )
    .column(&mut *transaction)
    .await?;
    let rosters = query(
        "SELECT paserk FROM signing_key WHERE state IN ('published', 'signing') ORDER BY paserk",
    )
    .column(&mut *transaction)
    .await?;
    Ok((tokens, rosters))
}
