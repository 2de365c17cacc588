//! Keys that sign tokens and rosters, sealed under the secret `master_key`.

use serde::{Deserialize, Serialize};
use wavry_credentials::{
    audit::{Action, Event, Key},
    token::{Scope, SigningKey},
};
use wavry_proto::{id::ClusterName, token::Succession};

use super::{
    Error, Part, Snapshot, Store, audit,
    once::{Begun, Done, Order, Outcome},
};
use crate::{
    database::sql::{Row, Source, Transaction, query},
    keys::{Due, Life, Pace, State, due},
};

/// A key as it is kept.
pub(crate) struct Kept {
    pub(crate) life: Life,
    /// PASERK `k4.public`.
    pub(crate) paserk: String,
    /// The secret half, sealed; `None` for a key that signs no more.
    pub(crate) sealed: Option<Vec<u8>>,
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
    /// Sees to it that there is a key that signs and that `master`, which comes from the secret
    /// `master_key`, opens it. The first is `master` itself. Where the secret was replaced by another,
    /// that is the key that signs from now on, and nothing that others signed holds any more: they
    /// cannot be opened.
    pub(crate) async fn adopt(&self, master: &SigningKey, now: u64) -> Result<(), Error> {
        let mut change = self.change().await?;
        let transaction = &mut change.transaction;
        let keys = read(&mut *transaction).await?;
        let signing = keys.iter().find(|key| key.life.state == State::Signing);
        if signing.is_some_and(|key| open(master, key).is_ok()) {
            return Ok(());
        }
        let kid = master.key_id().to_string();
        let known = keys.iter().find(|key| key.life.kid == kid);
        if known.is_some_and(|key| key.life.state == State::Revoked) {
            return Err(Error::RevokedKey);
        }
        if signing.is_some() {
            let mut event = Event::now(Action::Rotate, master.public_paserk(), "master_key");
            event.actor = "master".to_owned();
            audit::append(transaction, &self.audit, &event).await?;
        }
        revoke_all(transaction, now).await?;
        insert(transaction, master, master, (State::Signing, now, None), 0).await?;
        change.commit(&[Part::Keys]).await?;
        Ok(())
    }

    /// Makes a key that is to take the place of the one that signs, which signs of that. Gives its
    /// PASERK id.
    pub(crate) async fn rotate(
        &self,
        master: &SigningKey,
        cluster: &ClusterName,
        rotation: Rotation,
        now: u64,
        order: &Order,
    ) -> Result<Done<Kid>, RotateError> {
        let mut change = match self.begin(order).await? {
            Begun::New(change) => change,
            Begun::Before(done) => return Ok(done),
        };
        let transaction = &mut change.transaction;
        let kid = follow(transaction, master, cluster, rotation, now).await?;
        Ok(change
            .conclude(&self.audit, order, Kid(kid), &[Part::Keys])
            .await?)
    }

    /// Does what is due of the keys' lives, and gives what that was. It is decided by the keys as they are
    /// in the database: another master may have done it.
    pub(crate) async fn turn_keys(
        &self,
        master: &SigningKey,
        cluster: &ClusterName,
        pace: Pace,
        now: u64,
    ) -> Result<(Vec<Due>, Option<Snapshot>), RotateError> {
        let mut change = self.change().await?;
        let transaction = &mut change.transaction;
        let keys = read(&mut *transaction).await?;
        let lives: Vec<_> = keys.into_iter().map(|key| key.life).collect();
        let due = due(&lives, &pace, now);
        for due in &due {
            let (kid, path) = match due {
                Due::Sign { kid, overlap } => {
                    sign(transaction, kid, *overlap, now).await?;
                    (kid.clone(), "key signs")
                }
                Due::Retire { kid } => {
                    retire(transaction, kid, now).await?;
                    (kid.clone(), "key retired")
                }
                Due::Rotate => {
                    let rotation = Rotation::InTurn(pace);
                    let kid = follow(transaction, master, cluster, rotation, now).await?;
                    (kid, "schedule")
                }
            };
            let mut event = Event::now(Action::Rotate, kid, path);
            event.actor = "master".to_owned();
            audit::append(transaction, &self.audit, &event).await?;
        }
        Ok((due, change.commit(&[Part::Keys]).await?))
    }

    /// What keys signed of those that follow them, oldest first.
    pub(crate) async fn succession(&self) -> Result<Vec<String>, Error> {
        let statements = query("SELECT statement FROM succession ORDER BY number");
        Ok(statements.column(&self.pool).await?)
    }
}

/// Opens a key that signs or is to sign.
pub(crate) fn open(master: &SigningKey, key: &Kept) -> Result<SigningKey, Error> {
    let sealed = key.sealed.as_deref().ok_or(Error::Row("signing_key"))?;
    master
        .open(sealed, &key.paserk)
        .map_err(|_| Error::Row("signing_key"))
}

/// The key that signs now, from a database that a master may be using.
pub(crate) async fn signing(
    database: impl Into<Source<'_>>,
    master: &SigningKey,
) -> Result<SigningKey, Error> {
    let keys = read(database).await?;
    let signing = keys.iter().find(|key| key.life.state == State::Signing);
    open(master, signing.ok_or(Error::Row("signing_key"))?)
}

pub(super) async fn read(database: impl Into<Source<'_>>) -> Result<Vec<Kept>, Error> {
    let rows = query(
        "SELECT kid, paserk, sealed, state, since, until, overlap FROM signing_key ORDER BY number",
    )
    .all(database)
    .await?;
    rows.iter().map(kept).collect()
}

fn kept(row: &Row) -> Result<Kept, Error> {
    let state: String = row.get(3)?;
    let state = State::ALL.into_iter().find(|known| known.as_str() == state);
    let until: Option<i64> = row.get(5)?;
    Ok(Kept {
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
    master: &SigningKey,
    key: &SigningKey,
    (state, since, until): (State, u64, Option<u64>),
    overlap: u64,
) -> Result<(), Error> {
    query(
        "INSERT INTO signing_key (number, kid, paserk, sealed, state, since, until, overlap)
         VALUES ((SELECT coalesce(max(number), 0) + 1 FROM signing_key), $1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (kid) DO UPDATE SET sealed = excluded.sealed, state = excluded.state,
             since = excluded.since, until = excluded.until, overlap = excluded.overlap",
    )
    .bind(key.key_id().to_string())
    .bind(key.public_paserk())
    .bind(Some(master.seal(key)))
    .bind(state.as_str())
    .bind(since)
    .bind(until)
    .bind(overlap)
    .execute(&mut *transaction)
    .await?;
    Ok(())
}

/// Makes the key that follows the one that signs, which signs of that. Gives its PASERK id.
async fn follow(
    transaction: &mut Transaction,
    master: &SigningKey,
    cluster: &ClusterName,
    rotation: Rotation,
    now: u64,
) -> Result<String, RotateError> {
    let keys = read(&mut *transaction).await?;
    let signing = keys.iter().find(|key| key.life.state == State::Signing);
    let signing = open(master, signing.ok_or(Error::Row("signing_key"))?)?;
    let next = SigningKey::generate();
    let (life, overlap) = match rotation {
        Rotation::InTurn(pace) => {
            if keys.iter().any(|key| key.life.state == State::Published) {
                return Err(RotateError::UnderWay);
            }
            let until = now.saturating_add(pace.wait.as_secs());
            ((State::Published, now, Some(until)), pace.overlap.as_secs())
        }
        Rotation::AtOnce => {
            revoke_all(transaction, now).await?;
            ((State::Signing, now, None), 0)
        }
    };
    insert(transaction, master, &next, life, overlap).await?;
    let statement = Succession {
        next: next.public_paserk(),
    };
    let scope = Scope {
        cluster,
        audience: "nodes",
        binding: &[],
    };
    query(
        "INSERT INTO succession (number, statement)
         VALUES ((SELECT coalesce(max(number), 0) + 1 FROM succession), $1)",
    )
    .bind(signing.sign(&statement, scope))
    .execute(&mut *transaction)
    .await?;
    Ok(next.key_id().to_string())
}

/// Has a published key sign, and the one that did be accepted.
async fn sign(
    transaction: &mut Transaction,
    kid: &str,
    overlap: u64,
    now: u64,
) -> Result<(), Error> {
    query(
        "UPDATE signing_key SET state = 'accepted', since = $1, until = $2, sealed = NULL
         WHERE state = 'signing'",
    )
    .bind(now)
    .bind(now.saturating_add(overlap))
    .execute(&mut *transaction)
    .await?;
    query("UPDATE signing_key SET state = 'signing', since = $1, until = NULL WHERE kid = $2")
        .bind(now)
        .bind(kid)
        .execute(&mut *transaction)
        .await?;
    Ok(())
}

async fn retire(transaction: &mut Transaction, kid: &str, now: u64) -> Result<(), Error> {
    query("UPDATE signing_key SET state = 'retired', since = $1, until = NULL WHERE kid = $2")
        .bind(now)
        .bind(kid)
        .execute(&mut *transaction)
        .await?;
    Ok(())
}

async fn revoke_all(transaction: &mut Transaction, now: u64) -> Result<(), Error> {
    query(
        "UPDATE signing_key SET state = 'revoked', since = $1, until = NULL, sealed = NULL
         WHERE state IN ('published', 'signing', 'accepted')",
    )
    .bind(now)
    .execute(&mut *transaction)
    .await?;
    Ok(())
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
