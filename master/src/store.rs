//! What the master remembers, in SQLite or PostgreSQL. Every change of what the roster shows grows the
//! epoch in the same transaction; a change that the roster does not show leaves it.
//!
//! Who changes anything holds the roster's row, so that there is one at a time among all masters that
//! use the database. Reads see what was committed and wait for nobody.

pub mod audit;
pub(crate) mod authority;
mod feed;
mod fleet;
mod identity;
mod issue;
pub(crate) mod keys;
mod lives;
mod once;
mod open;
mod placement;
mod presence;
mod revocation;
mod service;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fs::File,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sqlx::postgres::PgDatabaseError;
use wavry_credentials::audit::{Event, Key};
use wavry_proto::{
    control::{Authorities, Node, Revocation, Role, Roster, Service},
    id::{ClusterName, Epoch, NodeId, PublicKey, ServiceName},
    placement::Placement,
};

use crate::{
    database::{
        InUse, Unreachable,
        sql::{Pool, Source, Transaction, query},
    },
    identity::Lives,
};

use keys::Kept;

pub use authority::CertifyError;
pub use fleet::{FleetError, MAX_ENTRIES};
pub use identity::RotateIdentityError;
pub use once::{Done, KEPT, MAX_KEPT, Once, OnceError, Order};
pub(crate) use open::schema;
pub use placement::{Move, MoveError};
pub use revocation::{MAX_REVOCATIONS, RevokeError};
pub use service::{MAX_SERVICES, ServiceError};

/// The registry: nodes, services, used tokens, the epoch.
#[derive(Clone)]
pub struct Store {
    pool: Pool,
    audit: Arc<Key>,
    /// Of the file, until it is closed.
    lock: Arc<Mutex<Option<File>>>,
    /// What this process wrote or read last. It is what the database holds while that has its epoch.
    newest: Arc<Mutex<Option<Arc<Snapshot>>>>,
    /// Seconds since the Unix epoch, which the roster's epoch is no less than.
    time: Arc<dyn Fn() -> u64 + Send + Sync>,
}

/// Why the registry could not be read or written. Holds no request's content.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database said no.
    #[error("database")]
    Database(#[from] sqlx::Error),
    /// The database cannot be connected to.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// The schema could not be brought up to date.
    #[error("database schema")]
    Schema(#[from] sqlx::migrate::MigrateError),
    /// The file cannot be taken.
    #[error(transparent)]
    InUse(#[from] InUse),
    /// A row that no version of Wavry wrote.
    #[error("database row in {0} cannot be read")]
    Row(&'static str),
    /// The secret `master_key` is a key that was revoked.
    #[error("the master key is one that was revoked; make a new one")]
    RevokedKey,
    /// A key that signs is in a vault that the configuration does not have.
    #[error("a key that signs is {0} in a vault, and master.signing names no such key")]
    NoVault(String),
    /// A key that signs cannot be opened.
    #[error("a key that signs is sealed under the secret master_key, and there is none")]
    NoMasterKey,
    /// An order that was not carried out, and about whose key that is.
    #[error(transparent)]
    Once(#[from] OnceError),
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
                let code = error.code().unwrap_or_default();
                match error.try_downcast_ref::<PgDatabaseError>() {
                    Some(_) => UNAVAILABLE.iter().any(|class| code.starts_with(class)),
                    // Extended codes have the primary one in their last byte.
                    None => code
                        .parse::<u32>()
                        .is_ok_and(|code| UNWRITABLE.contains(&(code & 0xff))),
                }
            }
            Self::Database(_)
            | Self::Schema(_)
            | Self::Unreachable(_)
            | Self::InUse(_)
            | Self::Row(_)
            | Self::Once(_)
            | Self::NoVault(_)
            | Self::NoMasterKey
            | Self::RevokedKey => false,
        }
    }
}

/// SQLITE_BUSY, _LOCKED, _READONLY, _IOERR, _FULL, _CANTOPEN.
const UNWRITABLE: [u32; 6] = [5, 6, 8, 10, 13, 14];
/// Of PostgreSQL: connection failed, transaction rolled back (read-only, ended for idleness, deadlock), out
/// of resources, locked, cancelled or shutting down, system error.
const UNAVAILABLE: [&str; 8] = ["08", "25006", "25P03", "40", "53", "55P03", "57", "58"];

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
    /// The token was issued before the database was made from a backup, and may have been used since that
    /// was taken.
    #[error("the registration token was issued before the registry was restored")]
    BeforeRestore,
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
    pub services: Arc<[Service]>,
    /// Public keys that sign session tokens, as PASERK `k4.public`.
    pub token_keys: Vec<String>,
    /// Public keys that sign rosters from this one on.
    pub roster_keys: Vec<String>,
    /// Session tokens that hold no more.
    pub revoked: Vec<Revocation>,
    /// The authorities of the cluster's own certificates.
    pub authorities: Authorities,
    /// The identities of every node, ordered by id.
    pub identities: Vec<Lives>,
}

/// All that the master works with, of one moment.
pub(crate) struct State {
    pub(crate) snapshot: Snapshot,
    pub(crate) keys: Vec<Kept>,
    pub(crate) authorities: Vec<authority::Kept>,
}

impl Snapshot {
    /// The roster that shows it, as of `issued_at`, in seconds since the Unix epoch.
    pub(crate) fn into_roster(self, cluster: ClusterName, issued_at: u64) -> Roster {
        Roster {
            cluster,
            epoch: self.epoch,
            issued_at,
            nodes: self.nodes,
            services: self.services.to_vec(),
            token_keys: self.token_keys,
            roster_keys: self.roster_keys,
            revoked: self.revoked,
            authorities: self.authorities,
        }
    }
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
    /// Where it is, and how much it is to take.
    pub placement: Placement,
    /// The key it proved to hold.
    pub key: PublicKey,
    /// What it announces.
    pub announcement: Announcement,
    /// What the audit log tells of it.
    pub event: Event,
}

/// What came of writing what a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Grows with each such write, by whichever master.
    pub revision: u64,
    /// The snapshot, when the roster changed.
    pub changed: Option<Snapshot>,
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Announcement {
    /// Where the mesh reaches it, best first.
    pub addresses: Vec<SocketAddr>,
    /// Where it forwards packets of others, best first.
    pub transit: Vec<SocketAddr>,
    /// Relays at which it has a place, ordered by id.
    pub attached: Vec<NodeId>,
    /// Services it has upstreams for.
    pub services: Vec<ServiceName>,
    /// Whether it leaves.
    pub draining: bool,
}

/// How long a used token is remembered beyond its expiry, in seconds: far over the deadline of any
/// request that verified it in time.
const USED_TOKEN_MARGIN: u64 = 3600;

impl Store {
    /// Gives what the roster shows an epoch of its own, although nothing changed. Where its epoch is not
    /// `held` any more, somebody else did.
    pub async fn renew(&self, held: Option<Epoch>) -> Result<Snapshot, Error> {
        let mut change = self.change().await?;
        let mut renewed = change.before.as_ref().clone();
        if held.is_some_and(|held| held != renewed.epoch) {
            return Ok(renewed);
        }
        renewed.epoch = write_epoch(&mut change.transaction, renewed.epoch, change.time).await?;
        feed::tell(&mut change.transaction).await?;
        change.end(&renewed).await?;
        Ok(renewed)
    }

    /// What the roster shows now, and every key and every authority that ever signed, oldest first: of one
    /// moment.
    pub(crate) async fn state(&self) -> Result<State, Error> {
        let mut transaction = self.read().await?;
        let snapshot = read_snapshot(&mut transaction).await?;
        let keys = keys::read(&mut transaction).await?;
        let authorities = authority::read(&mut transaction).await?;
        let mut newest = locked(&self.newest);
        // What another master wrote is read before each change otherwise.
        if newest
            .as_ref()
            .is_none_or(|newest| newest.epoch < snapshot.epoch)
        {
            *newest = Some(Arc::new(snapshot.clone()));
        }
        Ok(State {
            snapshot,
            keys,
            authorities,
        })
    }

    /// What the roster shows now.
    pub async fn snapshot(&self) -> Result<Snapshot, Error> {
        let mut transaction = self.read().await?;
        read_snapshot(&mut transaction).await
    }

    /// Every registered node.
    pub async fn nodes(&self) -> Result<Vec<NodeId>, Error> {
        let ids: Vec<String> = query("SELECT id FROM node").column(&self.pool).await?;
        ids.iter()
            .map(|id| id.parse().map_err(|_| Error::Row("node")))
            .collect()
    }

    /// Registers a node, or registers it anew, and marks the token as used: both or neither.
    /// So is the line in the audit log. `now` is in seconds since the Unix epoch.
    ///
    /// A token that is used already is good for one thing more: the node that it registered last, and
    /// that still has the key it came with, may ask again, since the answer may have been lost. Nothing
    /// changes then.
    pub async fn register(
        &self,
        admission: &Admission,
        now: u64,
    ) -> Result<Written, RegisterError> {
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

        let forgotten = forget_used_tokens(transaction, now).await?;
        if admission.expires_at < forgotten.expires_at {
            return Err(RegisterError::TokenExpired);
        }
        if admission.issued_at <= forgotten.issued_through {
            return Err(RegisterError::BeforeRestore);
        }
        let first_use = query(
            "INSERT INTO used_token (jti, expires_at) VALUES ($1, $2) ON CONFLICT (jti) DO NOTHING",
        )
        .bind(admission.jti.as_str())
        .bind(admission.expires_at)
        .execute(&mut *transaction)
        .await
        .map_err(Error::from)?;
        let is_repeated = first_use == 0;
        if is_repeated && !is_registered(transaction, admission).await? {
            return Err(RegisterError::TokenUsed);
        }

        revocation::check(transaction, admission).await?;
        let other_holder = query("SELECT 1 FROM node_key WHERE public_key = $1 AND node <> $2")
            .bind(&admission.key.0[..])
            .bind(id)
            .optional(&mut *transaction)
            .await
            .map_err(Error::from)?;
        if other_holder.is_some() {
            return Err(RegisterError::KeyInUse);
        }
        if identity::is_retired(transaction, &admission.key).await? {
            return Err(RegisterError::KeyRetired);
        }

        let revision = match is_repeated {
            true => revision(transaction, &admission.node).await?,
            false => {
                write_node(transaction, admission, registration, now).await?;
                let announcement = &admission.announcement;
                write_announcement(transaction, &admission.node, announcement).await?
            }
        };
        audit::append(transaction, &self.audit, &admission.event).await?;
        let changed = change.commit(&[Part::Nodes]).await?;
        Ok(Written { revision, changed })
    }

    /// Takes a node's heartbeat.
    pub async fn heartbeat(
        &self,
        node: &NodeId,
        announcement: &Announcement,
    ) -> Result<Written, HeartbeatError> {
        let mut change = self.change().await?;
        let transaction = &mut change.transaction;
        let known = query("SELECT 1 FROM node WHERE id = $1")
            .bind(node.as_str())
            .optional(&mut *transaction)
            .await
            .map_err(Error::from)?;
        if known.is_none() {
            return Err(HeartbeatError::UnknownNode);
        }
        for service in &announcement.services {
            let granted = query("SELECT 1 FROM node_grant WHERE node = $1 AND service = $2")
                .bind(node.as_str())
                .bind(service.as_str())
                .optional(&mut *transaction)
                .await
                .map_err(Error::from)?;
            if granted.is_none() {
                return Err(HeartbeatError::ServiceNotGranted(service.clone()));
            }
        }
        let revision = write_announcement(transaction, node, announcement).await?;
        let changed = change.commit(&[Part::Nodes]).await?;
        Ok(Written { revision, changed })
    }

    /// Marks nodes as not heard of, until their next heartbeat. Gives the snapshot when the roster
    /// changed.
    pub async fn silence(&self, nodes: &[NodeId]) -> Result<Option<Snapshot>, Error> {
        let mut change = self.change().await?;
        for node in nodes {
            query("UPDATE node SET silent = TRUE, revision = revision + 1 WHERE id = $1")
                .bind(node.as_str())
                .execute(&mut change.transaction)
                .await?;
        }
        change.commit(&[Part::Nodes]).await
    }

    /// Closes the database, and lets go of its file.
    pub async fn close(&self) {
        self.pool.close().await;
        drop(locked(&self.lock).take());
    }

    async fn change(&self) -> Result<Change, Error> {
        let mut transaction = self.write().await?;
        let epoch = read_epoch(&mut transaction).await?;
        let newest = locked(&self.newest).clone();
        let before = match newest.filter(|newest| newest.epoch == epoch) {
            Some(newest) => newest,
            None => Arc::new(read_snapshot(&mut transaction).await?),
        };
        Ok(Change {
            transaction,
            before,
            newest: self.newest.clone(),
            time: (self.time)(),
        })
    }

    /// A transaction that may change things. What is read in it is as whoever wrote before left it.
    pub(crate) async fn write(&self) -> Result<Transaction, Error> {
        Ok(self.pool.begin("BEGIN IMMEDIATE", LOCK).await?)
    }

    /// A transaction whose reads are all of one moment.
    pub(crate) async fn read(&self) -> Result<Transaction, Error> {
        let postgres = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        Ok(self.pool.begin("BEGIN", postgres).await?)
    }
}

/// In a statement of its own: what is read after it is not older than the wait.
const LOCK: &str = "BEGIN; SELECT 1 FROM roster FOR UPDATE";

/// A write under way. Dropped without a commit, it is undone.
struct Change {
    transaction: Transaction,
    /// What the roster showed before: of its epoch, and so of any master that has it.
    before: Arc<Snapshot>,
    newest: Arc<Mutex<Option<Arc<Snapshot>>>>,
    /// When it began, in seconds since the Unix epoch.
    time: u64,
}

/// What of the roster a change may have changed, and is read again. The rest is large, and is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Nodes and their identities.
    Nodes,
    /// Services.
    Services,
    /// Keys that sign.
    Keys,
    /// Subjects that were revoked.
    Revoked,
    /// Authorities of certificates.
    Authorities,
}

impl Change {
    /// Commits; gives the snapshot if what the roster shows has changed, which it has in no other part than
    /// these.
    async fn commit(mut self, parts: &[Part]) -> Result<Option<Snapshot>, Error> {
        let mut after = self.before.as_ref().clone();
        for part in parts {
            after.read_again(*part, &mut self.transaction).await?;
        }
        #[cfg(debug_assertions)]
        assert_eq!(
            after,
            read_snapshot(&mut self.transaction).await?,
            "{parts:?}"
        );
        let changed = after != *self.before;
        if changed {
            after.epoch = write_epoch(&mut self.transaction, after.epoch, self.time).await?;
            feed::tell(&mut self.transaction).await?;
        }
        self.end(&after).await?;
        Ok(changed.then_some(after))
    }

    /// Commits what the database shows as `after` then.
    async fn end(self, after: &Snapshot) -> Result<(), Error> {
        self.transaction.commit().await?;
        *locked(&self.newest) = Some(Arc::new(after.clone()));
        Ok(())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn read_epoch(database: impl Into<Source<'_>>) -> Result<Epoch, Error> {
    let epoch = query("SELECT epoch FROM roster").one(database).await?;
    Ok(Epoch(epoch.number(0)?))
}

/// Gives the roster its next epoch. That is at least `time`, in seconds since the Unix epoch, so that
/// a database that was restored from an old copy soon has one that no node has seen.
async fn write_epoch(
    transaction: &mut Transaction,
    epoch: Epoch,
    time: u64,
) -> Result<Epoch, Error> {
    let next = Epoch((epoch.0 + 1).max(time));
    query("UPDATE roster SET epoch = $1")
        .bind(next.0)
        .execute(&mut *transaction)
        .await?;
    Ok(next)
}

/// Up to when it is not remembered whether tokens were used, in seconds since the Unix epoch.
struct Forgotten {
    /// Tokens that expired before.
    expires_at: u64,
    /// Tokens that were issued by then.
    issued_through: u64,
}

/// Forgets used tokens that expired long ago. Up to when is kept: a clock that is set back makes none of
/// them good again.
async fn forget_used_tokens(transaction: &mut Transaction, now: u64) -> Result<Forgotten, Error> {
    let long_past = now.saturating_sub(USED_TOKEN_MARGIN);
    query("UPDATE forgotten SET expires_at = $1 WHERE expires_at < $1")
        .bind(long_past)
        .execute(&mut *transaction)
        .await?;
    let row = query("SELECT expires_at, issued_through FROM forgotten");
    let row = row.one(&mut *transaction).await?;
    let forgotten = Forgotten {
        expires_at: row.number(0)?,
        issued_through: row.number(1)?,
    };
    query("DELETE FROM used_token WHERE expires_at < $1")
        .bind(forgotten.expires_at)
        .execute(&mut *transaction)
        .await?;
    Ok(forgotten)
}

/// Whether this very token was the last to register this node, which has the key it came with.
async fn is_registered(
    transaction: &mut Transaction,
    admission: &Admission,
) -> Result<bool, Error> {
    let found = query(
        "SELECT 1 FROM node JOIN node_key ON node_key.node = node.id
         WHERE node.id = $1 AND node.registered_by = $2 AND node_key.public_key = $3",
    )
    .bind(admission.node.as_str())
    .bind(admission.jti.as_str())
    .bind(&admission.key.0[..])
    .optional(&mut *transaction)
    .await?;
    Ok(found.is_some())
}

async fn revision(transaction: &mut Transaction, node: &NodeId) -> Result<u64, Error> {
    let revision = query("SELECT revision FROM node WHERE id = $1")
        .bind(node.as_str())
        .one(&mut *transaction)
        .await?;
    Ok(revision.number(0)?)
}

async fn write_node(
    transaction: &mut Transaction,
    admission: &Admission,
    registration: u64,
    now: u64,
) -> Result<(), Error> {
    let id = admission.node.as_str();
    let placement = &admission.placement;
    query(
        "INSERT INTO node (id, role, registered_by, registration, region, weight, names)
         VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (id) DO UPDATE
         SET role = excluded.role, registered_by = excluded.registered_by,
             registration = excluded.registration, rotation_ordered = NULL,
             region = excluded.region, weight = excluded.weight, names = excluded.names",
    )
    .bind(id)
    .bind(admission.role.as_str())
    .bind(admission.jti.as_str())
    .bind(registration)
    .bind(
        placement
            .region
            .as_ref()
            .map_or("", |region| region.as_str()),
    )
    .bind(u64::from(placement.weight.get()))
    .bind(placement::written(&placement.names))
    .execute(&mut *transaction)
    .await?;
    for table in [
        "DELETE FROM node_key WHERE node = $1",
        "DELETE FROM node_grant WHERE node = $1",
    ] {
        query(table).bind(id).execute(&mut *transaction).await?;
    }
    query("INSERT INTO node_key (public_key, node, since) VALUES ($1, $2, $3)")
        .bind(&admission.key.0[..])
        .bind(id)
        .bind(now)
        .execute(&mut *transaction)
        .await?;
    for service in &admission.granted {
        query("INSERT INTO node_grant (node, service) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(id)
            .bind(service.as_str())
            .execute(&mut *transaction)
            .await?;
    }
    Ok(())
}

async fn write_announcement(
    transaction: &mut Transaction,
    node: &NodeId,
    announcement: &Announcement,
) -> Result<u64, Error> {
    let id = node.as_str();
    let revision = query(
        "UPDATE node SET draining = $1, silent = FALSE, revision = revision + 1 WHERE id = $2
         RETURNING revision",
    )
    .bind(announcement.draining)
    .bind(id)
    .one(&mut *transaction)
    .await?;
    for table in [
        "DELETE FROM node_address WHERE node = $1",
        "DELETE FROM node_attached WHERE node = $1",
        "DELETE FROM node_service WHERE node = $1",
    ] {
        query(table).bind(id).execute(&mut *transaction).await?;
    }
    let addresses = announcement
        .addresses
        .iter()
        .map(|address| (address, false));
    let transit = announcement.transit.iter().map(|address| (address, true));
    for (position, (address, transit)) in (0_i64..).zip(addresses.chain(transit)) {
        query(
            "INSERT INTO node_address (node, position, address, transit) VALUES ($1, $2, $3, $4)",
        )
        .bind(id)
        .bind(position)
        .bind(address.to_string())
        .bind(transit)
        .execute(&mut *transaction)
        .await?;
    }
    for relay in &announcement.attached {
        query("INSERT INTO node_attached (node, relay) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(id)
            .bind(relay.as_str())
            .execute(&mut *transaction)
            .await?;
    }
    for service in &announcement.services {
        query("INSERT INTO node_service (node, service) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(id)
            .bind(service.as_str())
            .execute(&mut *transaction)
            .await?;
    }
    Ok(revision.number(0)?)
}

async fn read_snapshot(transaction: &mut Transaction) -> Result<Snapshot, Error> {
    let mut snapshot = Snapshot {
        epoch: read_epoch(&mut *transaction).await?,
        nodes: Vec::new(),
        services: Arc::default(),
        token_keys: Vec::new(),
        roster_keys: Vec::new(),
        revoked: Vec::new(),
        authorities: Authorities::default(),
        identities: Vec::new(),
    };
    let parts = [
        Part::Nodes,
        Part::Services,
        Part::Keys,
        Part::Revoked,
        Part::Authorities,
    ];
    for part in parts {
        snapshot.read_again(part, transaction).await?;
    }
    Ok(snapshot)
}

impl Snapshot {
    async fn read_again(&mut self, part: Part, from: &mut Transaction) -> Result<(), Error> {
        match part {
            Part::Nodes => (self.nodes, self.identities) = read_nodes(from).await?,
            Part::Services => self.services = service::read(from).await?,
            Part::Keys => (self.token_keys, self.roster_keys) = keys::shown(from).await?,
            Part::Revoked => self.revoked = revocation::read(from).await?,
            Part::Authorities => self.authorities = authority::shown(from).await?,
        }
        Ok(())
    }
}

/// Nodes as the roster shows them, and their identities, each ordered by id.
async fn read_nodes(transaction: &mut Transaction) -> Result<(Vec<Node>, Vec<Lives>), Error> {
    let mut nodes = Vec::new();
    let mut offers = Vec::new();
    let mut position = HashMap::new();
    let listed = query(
        "SELECT id, role, draining OR silent, registration, region, weight, names, leases_since,
             flow_bits, flow_packets
         FROM node ORDER BY id",
    );
    for row in listed.all(&mut *transaction).await? {
        let id: String = row.get(0)?;
        let role = Role::named(&row.get::<String>(1)?).ok_or(Error::Row("node"))?;
        offers.push(!row.get::<bool>(2)?);
        position.insert(id.clone(), nodes.len());
        nodes.push(Node {
            id: id.parse().map_err(|_| Error::Row("node"))?,
            role,
            keys: Vec::new(),
            addresses: Vec::new(),
            transit: Vec::new(),
            attached: Vec::new(),
            services: Vec::new(),
            registration: row.number(3)?,
            leases: placement::terms(&row, 7)?,
            placement: placement::read(&row, 4)?,
        });
    }
    let of = |id: String| position.get(&id).copied().ok_or(Error::Row("node"));

    let identities = identity::read(transaction).await?;
    for lives in &identities {
        let keys = lives.lives.iter().map(|life| life.key);
        nodes[of(lives.node.to_string())?].keys.extend(keys);
    }
    for row in query("SELECT node, address, transit FROM node_address ORDER BY node, position")
        .all(&mut *transaction)
        .await?
    {
        let address: String = row.get(1)?;
        let address = address.parse().map_err(|_| Error::Row("node_address"))?;
        let at = of(row.get(0)?)?;
        let node = &mut nodes[at];
        match row.get::<bool>(2)? {
            // Nobody in the mesh is to send anything there.
            _ if !node.role.is_in_mesh() => {}
            false => node.addresses.push(address),
            // A relay that leaves or is not heard of forwards nothing for others.
            true if offers[at] && node.role == Role::Relay => node.transit.push(address),
            true => {}
        }
    }
    for row in query("SELECT node, relay FROM node_attached ORDER BY node, relay")
        .all(&mut *transaction)
        .await?
    {
        let relay: String = row.get(1)?;
        // A relay that forwards nothing now, or is none any more, is no way to anybody.
        let forwards = of(relay.clone()).is_ok_and(|at| !nodes[at].transit.is_empty());
        if forwards {
            let relay = relay.parse().map_err(|_| Error::Row("node_attached"))?;
            nodes[of(row.get(0)?)?].attached.push(relay);
        }
    }
    for row in query("SELECT node, service FROM node_service ORDER BY node, service")
        .all(&mut *transaction)
        .await?
    {
        let node = of(row.get(0)?)?;
        // An exit that cannot be reached is none.
        let is_reached = !nodes[node].addresses.is_empty() || !nodes[node].attached.is_empty();
        if offers[node] && is_reached {
            let service: String = row.get(1)?;
            let service = service.parse().map_err(|_| Error::Row("node_service"))?;
            nodes[node].services.push(service);
        }
    }

    Ok((nodes, identities))
}
