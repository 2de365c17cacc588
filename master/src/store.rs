//! What the master remembers, in SQLite. Every change of what the roster shows grows the epoch in
//! the same transaction; a change that the roster does not show leaves it.

pub mod audit;
mod identity;
pub(crate) mod keys;
mod revocation;
mod service;

use std::{collections::HashMap, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use sqlx::{
    Connection as _, Row, Sqlite, SqlitePool, Transaction,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use wavry_credentials::{
    audit::{Event, Key},
    clock::unix_time,
};
use wavry_proto::{
    control::{Node, Revocation, Role, Service},
    id::{Epoch, NodeId, PublicKey, ServiceName},
};

use crate::identity::Lives;

pub use identity::RotateIdentityError;
pub use revocation::{MAX_REVOCATIONS, RevokeError};
pub use service::{MAX_SERVICES, ServiceError};

/// The registry: nodes, services, used tokens, the epoch.
#[derive(Clone)]
pub struct Store {
    pool: SqlitePool,
    audit: Arc<Key>,
}

/// Why the registry could not be read or written. Holds no request's content.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// SQLite said no.
    #[error("database")]
    Database(#[from] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("database schema")]
    Schema(#[from] sqlx::migrate::MigrateError),
    /// A row that no version of Wavry wrote.
    #[error("database row in {0} cannot be read")]
    Row(&'static str),
    /// The secret `master_key` is a key that was revoked.
    #[error("the master key is one that was revoked; make a new one")]
    RevokedKey,
    /// It took longer than an answer may wait for its audit line.
    #[error("database did not write in time")]
    TooSlow,
}

impl Error {
    /// Whether the database cannot be written now and may be later: it is locked, full, read-only or
    /// out of reach.
    pub fn is_of_the_moment(&self) -> bool {
        match self {
            Self::TooSlow => true,
            Self::Database(sqlx::Error::PoolTimedOut | sqlx::Error::Io(_)) => true,
            Self::Database(sqlx::Error::Database(error)) => {
                // Extended codes have the primary one in their last byte.
                let code = error.code().and_then(|code| code.parse::<u32>().ok());
                code.is_some_and(|code| UNWRITABLE.contains(&(code & 0xff)))
            }
            Self::Database(_) | Self::Schema(_) | Self::Row(_) | Self::RevokedKey => false,
        }
    }
}

/// SQLITE_BUSY, _LOCKED, _READONLY, _IOERR, _FULL, _CANTOPEN.
const UNWRITABLE: [u32; 6] = [5, 6, 8, 10, 13, 14];
/// How long a write waits for another process to let go of the database: less than the deadline of an
/// audited answer, so that the next one finds the connection free.
const BUSY_TIMEOUT: Duration = Duration::from_millis(1500);

/// Why a node was not registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The registration token served before.
    #[error("the registration token was used before")]
    TokenUsed,
    /// Another node is known by this key.
    #[error("the key belongs to another node")]
    KeyInUse,
    /// The token expired so long ago that it is not remembered whether it was used.
    #[error("the registration token has expired")]
    TokenExpired,
    /// The node was revoked after the token was issued.
    #[error("the node was revoked after the registration token was issued")]
    NodeRevoked,
    /// The key is one of a node that was revoked.
    #[error("the key was revoked")]
    KeyRevoked,
    /// The key was rotated out.
    #[error("the key was rotated out")]
    KeyRetired,
    /// The registry failed.
    #[error(transparent)]
    Store(#[from] Error),
}

/// Why a heartbeat changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum HeartbeatError {
    /// There is no such node.
    #[error("the node is not registered")]
    UnknownNode,
    /// A service that the node's registration token did not name.
    #[error("the node may not announce service {0}")]
    ServiceNotGranted(ServiceName),
    /// The registry failed.
    #[error(transparent)]
    Store(#[from] Error),
}

/// What the roster shows, but for cluster and time; and what is known of nodes' identities beside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its version.
    pub epoch: Epoch,
    /// Nodes, ordered by id. Those that drain, fell silent or have no address offer no service.
    pub nodes: Vec<Node>,
    /// Services, ordered by name.
    pub services: Vec<Service>,
    /// Public keys that sign session tokens, as PASERK `k4.public`.
    pub token_keys: Vec<String>,
    /// Public keys that sign rosters from this one on.
    pub roster_keys: Vec<String>,
    /// Session tokens that hold no more.
    pub revoked: Vec<Revocation>,
    /// The identities of every node, ordered by id.
    pub identities: Vec<Lives>,
}

/// A registration that has been checked in every way but for the token's being used.
#[derive(Debug, Clone)]
pub struct Admission {
    /// Id of the registration token.
    pub jti: String,
    /// When the token was issued, in seconds since the Unix epoch.
    pub issued_at: u64,
    /// When the token expires, in seconds since the Unix epoch.
    pub expires_at: u64,
    /// The node.
    pub node: NodeId,
    /// What it is.
    pub role: Role,
    /// Services it may announce.
    pub granted: Vec<ServiceName>,
    /// The key it proved to hold.
    pub key: PublicKey,
    /// What it announces.
    pub announcement: Announcement,
    /// What the audit log tells of it.
    pub event: Event,
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Announcement {
    /// Where the mesh reaches it, best first.
    pub addresses: Vec<SocketAddr>,
    /// Services it has upstreams for.
    pub services: Vec<ServiceName>,
    /// Whether it leaves.
    pub draining: bool,
}

/// How long a used token is remembered beyond its expiry, in seconds: far over the deadline of any
/// request that verified it in time.
const USED_TOKEN_MARGIN: u64 = 3600;

impl Store {
    /// Opens the database file, making it when there is none, and brings its schema up to date.
    /// `audit` seals its audit log.
    pub async fn open(file: &Path, audit: Arc<Key>) -> Result<Self, Error> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // A used token must stay used through a power cut.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT)
            .foreign_keys(true);
        let pool = sound(SqlitePoolOptions::new())
            // SQLite writes one transaction at a time; a queue in order beats polling its lock.
            .max_connections(1)
            .acquire_timeout(Duration::from_secs(10))
            .connect_with(options)
            .await?;
        sqlx::migrate!().run(&pool).await?;
        Ok(Self { pool, audit })
    }

    /// Gives what the roster shows an epoch of its own, although nothing changed.
    pub async fn renew(&self) -> Result<Snapshot, Error> {
        let Change {
            mut transaction,
            before,
        } = self.change().await?;
        let renewed = Snapshot {
            epoch: write_epoch(&mut transaction, before.epoch).await?,
            ..before
        };
        transaction.commit().await?;
        Ok(renewed)
    }

    /// What the roster shows now.
    pub async fn snapshot(&self) -> Result<Snapshot, Error> {
        let mut transaction = self.pool.begin().await?;
        read_snapshot(&mut transaction).await
    }

    /// Every registered node.
    pub async fn nodes(&self) -> Result<Vec<NodeId>, Error> {
        sqlx::query_scalar::<_, String>("SELECT id FROM node")
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(|id| id.parse().map_err(|_| Error::Row("node")))
            .collect()
    }

    /// Registers a node, or registers it anew, and marks the token as used: both or neither.
    /// So is the line in the audit log. `now` is in seconds since the Unix epoch. Gives the snapshot
    /// when the roster changed.
    pub async fn register(
        &self,
        admission: &Admission,
        now: u64,
    ) -> Result<Option<Snapshot>, RegisterError> {
        let mut change = self.change().await?;
        let before = &change.before;
        let is_known =
            |node: &&Node| node.id == admission.node && node.keys.contains(&admission.key);
        // A node that registers with the key that it has stays who it is.
        let registration = match before.nodes.iter().find(is_known) {
            Some(node) => node.registration,
            None => before.epoch.0 + 1,
        };
        let transaction = &mut change.transaction;
        let id = admission.node.as_str();

        if admission.expires_at < forget_used_tokens(transaction, now).await? {
            return Err(RegisterError::TokenExpired);
        }
        let first_use = sqlx::query(
            "INSERT INTO used_token (jti, expires_at) VALUES (?, ?) ON CONFLICT (jti) DO NOTHING",
        )
        .bind(&admission.jti)
        .bind(admission.expires_at.cast_signed())
        .execute(&mut **transaction)
        .await
        .map_err(Error::from)?;
        if first_use.rows_affected() == 0 {
            return Err(RegisterError::TokenUsed);
        }

        revocation::check(transaction, admission).await?;
        let other_holder = sqlx::query("SELECT 1 FROM node_key WHERE public_key = ? AND node <> ?")
            .bind(&admission.key.0[..])
            .bind(id)
            .fetch_optional(&mut **transaction)
            .await
            .map_err(Error::from)?;
        if other_holder.is_some() {
            return Err(RegisterError::KeyInUse);
        }
        if identity::is_retired(transaction, &admission.key).await? {
            return Err(RegisterError::KeyRetired);
        }

        write_node(transaction, admission, registration, now).await?;
        write_announcement(transaction, &admission.node, &admission.announcement).await?;
        audit::append(transaction, &self.audit, &admission.event).await?;
        Ok(change.commit().await?)
    }

    /// Takes a node's heartbeat. Gives the snapshot when the roster changed.
    pub async fn heartbeat(
        &self,
        node: &NodeId,
        announcement: &Announcement,
    ) -> Result<Option<Snapshot>, HeartbeatError> {
        let mut change = self.change().await?;
        let transaction = &mut change.transaction;
        let known = sqlx::query("SELECT 1 FROM node WHERE id = ?")
            .bind(node.as_str())
            .fetch_optional(&mut **transaction)
            .await
            .map_err(Error::from)?;
        if known.is_none() {
            return Err(HeartbeatError::UnknownNode);
        }
        for service in &announcement.services {
            let granted = sqlx::query("SELECT 1 FROM node_grant WHERE node = ? AND service = ?")
                .bind(node.as_str())
                .bind(service.as_str())
                .fetch_optional(&mut **transaction)
                .await
                .map_err(Error::from)?;
            if granted.is_none() {
                return Err(HeartbeatError::ServiceNotGranted(service.clone()));
            }
        }
        write_announcement(transaction, node, announcement).await?;
        Ok(change.commit().await?)
    }

    /// Marks nodes as not heard of, until their next heartbeat. Gives the snapshot when the roster
    /// changed.
    pub async fn silence(&self, nodes: &[NodeId]) -> Result<Option<Snapshot>, Error> {
        let mut change = self.change().await?;
        for node in nodes {
            sqlx::query("UPDATE node SET silent = 1 WHERE id = ?")
                .bind(node.as_str())
                .execute(&mut *change.transaction)
                .await?;
        }
        change.commit().await
    }

    /// Closes the database.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    async fn change(&self) -> Result<Change, Error> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let before = read_snapshot(&mut transaction).await?;
        Ok(Change {
            transaction,
            before,
        })
    }
}

/// A pool that closes a connection whose transaction could be neither committed nor undone, as on a
/// full disk: SQLite has undone it by itself then, which the driver does not notice, and no other
/// transaction could begin.
fn sound(options: SqlitePoolOptions) -> SqlitePoolOptions {
    options.after_release(|connection, _| {
        Box::pin(async move {
            // Whatever is still to be done on it, is done before this.
            connection.ping().await?;
            Ok(!connection.is_in_transaction())
        })
    })
}

/// A write under way. Dropped without a commit, it is undone.
struct Change {
    transaction: Transaction<'static, Sqlite>,
    before: Snapshot,
}

impl Change {
    async fn commit(mut self) -> Result<Option<Snapshot>, Error> {
        let mut after = read_snapshot(&mut self.transaction).await?;
        let changed = after != self.before;
        if changed {
            after.epoch = write_epoch(&mut self.transaction, after.epoch).await?;
        }
        self.transaction.commit().await?;
        Ok(changed.then_some(after))
    }
}

/// Gives the roster its next epoch. That is at least the time in seconds since the Unix epoch, so that
/// a database that was restored from an old copy soon has one that no node has seen.
async fn write_epoch(
    transaction: &mut Transaction<'static, Sqlite>,
    epoch: Epoch,
) -> Result<Epoch, Error> {
    let next = Epoch((epoch.0 + 1).max(unix_time()));
    sqlx::query("UPDATE roster SET epoch = ?")
        .bind(next.0.cast_signed())
        .execute(&mut **transaction)
        .await?;
    Ok(next)
}

/// Forgets used tokens that expired long ago, and gives the time before which tokens that expired may
/// be forgotten. It is kept: a clock that is set back makes none of them good again.
async fn forget_used_tokens(
    transaction: &mut Transaction<'static, Sqlite>,
    now: u64,
) -> Result<u64, Error> {
    let long_past = now.saturating_sub(USED_TOKEN_MARGIN);
    let forgotten: i64 = sqlx::query_scalar(
        "UPDATE forgotten SET expires_at = max(expires_at, ?) RETURNING expires_at",
    )
    .bind(long_past.cast_signed())
    .fetch_one(&mut **transaction)
    .await?;
    sqlx::query("DELETE FROM used_token WHERE expires_at < ?")
        .bind(forgotten)
        .execute(&mut **transaction)
        .await?;
    Ok(forgotten.cast_unsigned())
}

async fn write_node(
    transaction: &mut Transaction<'static, Sqlite>,
    admission: &Admission,
    registration: u64,
    now: u64,
) -> Result<(), Error> {
    let id = admission.node.as_str();
    sqlx::query(
        "INSERT INTO node (id, role, registration) VALUES (?, ?, ?)
         ON CONFLICT (id) DO UPDATE SET role = excluded.role, registration = excluded.registration,
             rotation_ordered = NULL",
    )
    .bind(id)
    .bind(admission.role.as_str())
    .bind(registration.cast_signed())
    .execute(&mut **transaction)
    .await?;
    for table in [
        "DELETE FROM node_key WHERE node = ?",
        "DELETE FROM node_grant WHERE node = ?",
    ] {
        sqlx::query(table)
            .bind(id)
            .execute(&mut **transaction)
            .await?;
    }
    sqlx::query("INSERT INTO node_key (public_key, node, since) VALUES (?, ?, ?)")
        .bind(&admission.key.0[..])
        .bind(id)
        .bind(now.cast_signed())
        .execute(&mut **transaction)
        .await?;
    for service in &admission.granted {
        sqlx::query("INSERT OR IGNORE INTO node_grant (node, service) VALUES (?, ?)")
            .bind(id)
            .bind(service.as_str())
            .execute(&mut **transaction)
            .await?;
    }
    Ok(())
}

async fn write_announcement(
    transaction: &mut Transaction<'static, Sqlite>,
    node: &NodeId,
    announcement: &Announcement,
) -> Result<(), Error> {
    let id = node.as_str();
    sqlx::query("UPDATE node SET draining = ?, silent = 0 WHERE id = ?")
        .bind(announcement.draining)
        .bind(id)
        .execute(&mut **transaction)
        .await?;
    for table in [
        "DELETE FROM node_address WHERE node = ?",
        "DELETE FROM node_service WHERE node = ?",
    ] {
        sqlx::query(table)
            .bind(id)
            .execute(&mut **transaction)
            .await?;
    }
    for (position, address) in (0_i64..).zip(&announcement.addresses) {
        sqlx::query("INSERT INTO node_address (node, position, address) VALUES (?, ?, ?)")
            .bind(id)
            .bind(position)
            .bind(address.to_string())
            .execute(&mut **transaction)
            .await?;
    }
    for service in &announcement.services {
        sqlx::query("INSERT OR IGNORE INTO node_service (node, service) VALUES (?, ?)")
            .bind(id)
            .bind(service.as_str())
            .execute(&mut **transaction)
            .await?;
    }
    Ok(())
}

async fn read_snapshot(transaction: &mut Transaction<'static, Sqlite>) -> Result<Snapshot, Error> {
    let epoch: i64 = sqlx::query_scalar("SELECT epoch FROM roster")
        .fetch_one(&mut **transaction)
        .await?;

    let mut nodes = Vec::new();
    let mut offers = Vec::new();
    let mut position = HashMap::new();
    let listed = sqlx::query(
        "SELECT id, role, registration, draining OR silent AS away FROM node ORDER BY id",
    );
    for row in listed.fetch_all(&mut **transaction).await? {
        let id: String = row.try_get("id")?;
        let role = match row.try_get::<String, _>("role")?.as_str() {
            "gateway" => Role::Gateway,
            "relay" => Role::Relay,
            _ => return Err(Error::Row("node")),
        };
        offers.push(!row.try_get::<bool, _>("away")?);
        position.insert(id.clone(), nodes.len());
        nodes.push(Node {
            id: id.parse().map_err(|_| Error::Row("node"))?,
            role,
            keys: Vec::new(),
            addresses: Vec::new(),
            services: Vec::new(),
            registration: row.try_get::<i64, _>("registration")?.cast_unsigned(),
        });
    }
    let of = |id: String| position.get(&id).copied().ok_or(Error::Row("node"));

    let identities = identity::read(transaction).await?;
    for lives in &identities {
        let keys = lives.lives.iter().map(|life| life.key);
        nodes[of(lives.node.to_string())?].keys.extend(keys);
    }
    for row in sqlx::query("SELECT node, address FROM node_address ORDER BY node, position")
        .fetch_all(&mut **transaction)
        .await?
    {
        let address: String = row.try_get("address")?;
        let address = address.parse().map_err(|_| Error::Row("node_address"))?;
        nodes[of(row.try_get("node")?)?].addresses.push(address);
    }
    for row in sqlx::query("SELECT node, service FROM node_service ORDER BY node, service")
        .fetch_all(&mut **transaction)
        .await?
    {
        let node = of(row.try_get("node")?)?;
        // An exit that cannot be reached is none.
        if offers[node] && !nodes[node].addresses.is_empty() {
            let service: String = row.try_get("service")?;
            let service = service.parse().map_err(|_| Error::Row("node_service"))?;
            nodes[node].services.push(service);
        }
    }

    let services = sqlx::query_scalar::<_, String>("SELECT definition FROM service ORDER BY name")
        .fetch_all(&mut **transaction)
        .await?
        .iter()
        .map(|definition| serde_json::from_str(definition).map_err(|_| Error::Row("service")))
        .collect::<Result<_, _>>()?;
    let (token_keys, roster_keys) = keys::shown(transaction).await?;
    Ok(Snapshot {
        epoch: Epoch(epoch.cast_unsigned()),
        nodes,
        services,
        token_keys,
        roster_keys,
        revoked: revocation::read(transaction).await?,
        identities,
    })
}
