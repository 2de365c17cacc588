//! Keys that sign tokens and rosters, sealed under the secret `master_key`.

use sqlx::{Row as _, Sqlite, SqliteExecutor, Transaction, sqlite::SqliteRow};
use wavry_credentials::{
    audit::{Action, Event},
    token::{Scope, SigningKey},
};
use wavry_proto::{id::ClusterName, token::Succession};

use super::{Error, Snapshot, Store, audit};
use crate::keys::{Due, Life, Pace, State};

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

impl From<sqlx::Error> for RotateError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Store {
    /// Every key that ever signed, oldest first.
    pub(crate) async fn keys(&self) -> Result<Vec<Kept>, Error> {
        read(&self.pool).await
    }

    /// Sees to it that there is a key that signs and that `master`, which comes from the secret
    /// `master_key`, opens it. The first is `master` itself. Where the secret was replaced by another,
    /// that is the key that signs from now on, and nothing that others signed holds any more: they
    /// cannot be opened.
    pub(crate) async fn adopt(&self, master: &SigningKey, now: u64) -> Result<(), Error> {
        let mut change = self.change().await?;
        let transaction = &mut change.transaction;
        let keys = read(&mut **transaction).await?;
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
        change.commit().await?;
        Ok(())
    }

    /// Makes a key that is to take the place of the one that signs, which signs of that. Gives its
    /// PASERK id and the snapshot.
    pub(crate) async fn rotate(
        &self,
        master: &SigningKey,
        cluster: &ClusterName,
        rotation: Rotation,
        now: u64,
        mut event: Event,
    ) -> Result<(String, Option<Snapshot>), RotateError> {
        let mut change = self.change().await?;
        let transaction = &mut change.transaction;
        let keys = read(&mut **transaction).await?;
        let signing = keys.iter().find(|key| key.life.state == State::Signing);
        let signing = signing.ok_or(Error::Row("signing_key"))?;
        let signing = open(master, signing)?;
        let next = SigningKey::generate();
        let life = match rotation {
            Rotation::InTurn(pace) => {
                if keys.iter().any(|key| key.life.state == State::Published) {
                    return Err(RotateError::UnderWay);
                }
                let until = now.saturating_add(pace.wait.as_secs());
                (State::Published, now, Some(until))
            }
            Rotation::AtOnce => {
                revoke_all(transaction, now).await?;
                (State::Signing, now, None)
            }
        };
        let overlap = match rotation {
            Rotation::InTurn(pace) => pace.overlap.as_secs(),
            Rotation::AtOnce => 0,
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
        sqlx::query("INSERT INTO succession (statement) VALUES (?)")
            .bind(signing.sign(&statement, scope))
            .execute(&mut **transaction)
            .await?;
        let kid = next.key_id().to_string();
        event.subject.clone_from(&kid);
        audit::append(transaction, &self.audit, &event).await?;
        Ok((kid, change.commit().await?))
    }

    /// Does what is due of the keys' lives, but for making new ones. Gives the snapshot.
    pub(crate) async fn turn_keys(&self, due: &[Due], now: u64) -> Result<Option<Snapshot>, Error> {
        let mut change = self.change().await?;
        let transaction = &mut change.transaction;
        for due in due {
            let (kid, path) = match due {
                Due::Sign { kid, overlap } => {
                    sqlx::query(
                        "UPDATE signing_key SET state = 'accepted', since = ?, until = ?, sealed = NULL
                         WHERE state = 'signing'",
                    )
                    .bind(now.cast_signed())
                    .bind(now.saturating_add(*overlap).cast_signed())
                    .execute(&mut **transaction)
                    .await?;
                    sqlx::query(
                        "UPDATE signing_key SET state = 'signing', since = ?, until = NULL
                         WHERE kid = ?",
                    )
                    .bind(now.cast_signed())
                    .bind(kid)
                    .execute(&mut **transaction)
                    .await?;
                    (kid, "key signs")
                }
                Due::Retire { kid } => {
                    sqlx::query(
                        "UPDATE signing_key SET state = 'retired', since = ?, until = NULL
                         WHERE kid = ?",
                    )
                    .bind(now.cast_signed())
                    .bind(kid)
                    .execute(&mut **transaction)
                    .await?;
                    (kid, "key retired")
                }
                Due::Rotate => continue,
            };
            let mut event = Event::now(Action::Rotate, kid, path);
            event.actor = "master".to_owned();
            audit::append(transaction, &self.audit, &event).await?;
        }
        change.commit().await
    }

    /// What keys signed of those that follow them, oldest first.
    pub(crate) async fn succession(&self) -> Result<Vec<String>, Error> {
        let statements = sqlx::query_scalar("SELECT statement FROM succession ORDER BY number");
        Ok(statements.fetch_all(&self.pool).await?)
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
    database: impl SqliteExecutor<'_>,
    master: &SigningKey,
) -> Result<SigningKey, Error> {
    let keys = read(database).await?;
    let signing = keys.iter().find(|key| key.life.state == State::Signing);
    open(master, signing.ok_or(Error::Row("signing_key"))?)
}

async fn read(database: impl SqliteExecutor<'_>) -> Result<Vec<Kept>, Error> {
    let rows = sqlx::query(
        "SELECT kid, paserk, sealed, state, since, until, overlap FROM signing_key ORDER BY rowid",
    )
    .fetch_all(database)
    .await?;
    rows.iter().map(kept).collect()
}

fn kept(row: &SqliteRow) -> Result<Kept, Error> {
    let state: String = row.try_get("state")?;
    let state = State::ALL.into_iter().find(|known| known.as_str() == state);
    let until: Option<i64> = row.try_get("until")?;
    Ok(Kept {
        life: Life {
            kid: row.try_get("kid")?,
            state: state.ok_or(Error::Row("signing_key"))?,
            since: row.try_get::<i64, _>("since")?.cast_unsigned(),
            until: until.map(i64::cast_unsigned),
            overlap: row.try_get::<i64, _>("overlap")?.cast_unsigned(),
        },
        paserk: row.try_get("paserk")?,
        sealed: row.try_get("sealed")?,
    })
}

async fn insert(
    transaction: &mut Transaction<'static, Sqlite>,
    master: &SigningKey,
    key: &SigningKey,
    (state, since, until): (State, u64, Option<u64>),
    overlap: u64,
) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO signing_key (kid, paserk, sealed, state, since, until, overlap)
         VALUES (?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (kid) DO UPDATE SET sealed = excluded.sealed, state = excluded.state,
             since = excluded.since, until = excluded.until, overlap = excluded.overlap",
    )
    .bind(key.key_id().to_string())
    .bind(key.public_paserk())
    .bind(master.seal(key))
    .bind(state.as_str())
    .bind(since.cast_signed())
    .bind(until.map(u64::cast_signed))
    .bind(overlap.cast_signed())
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

async fn revoke_all(transaction: &mut Transaction<'static, Sqlite>, now: u64) -> Result<(), Error> {
    sqlx::query(
        "UPDATE signing_key SET state = 'revoked', since = ?, until = NULL, sealed = NULL
         WHERE state IN ('published', 'signing', 'accepted')",
    )
    .bind(now.cast_signed())
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

/// What the roster shows: keys that sign session tokens, and keys that sign rosters from now on, each as
/// PASERK `k4.public`, ordered.
pub(super) async fn shown(
    transaction: &mut Transaction<'static, Sqlite>,
) -> Result<(Vec<String>, Vec<String>), Error> {
    let tokens = sqlx::query_scalar(
        "SELECT paserk FROM signing_key WHERE state IN ('published', 'signing', 'accepted')
         ORDER BY paserk",
    )
    .fetch_all(&mut **transaction)
    .await?;
    let rosters = sqlx::query_scalar(
        "SELECT paserk FROM signing_key WHERE state IN ('published', 'signing') ORDER BY paserk",
    )
    .fetch_all(&mut **transaction)
    .await?;
    Ok((tokens, rosters))
}
