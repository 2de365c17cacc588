//! What gateways that share certificates keep at the master. It is sealed by them for each other: the master
//! sees names, and who wrote when.

use wavry_credentials::audit::Event;
use wavry_proto::{
    control::fleet::{
        Changed, Changes, EntryName, Leased, MAX_CHANGES, TakeLease, WriteEntry, Written,
    },
    id::{Epoch, NodeId},
};

use super::{Error, Store, audit, feed};
use crate::{
    database::sql::{Query, Row, Source, Transaction, query},
    lease::{self, Lease},
};

/// Most entries: a certificate for each host of as many services as there may be.
pub const MAX_ENTRIES: u64 = 10_000;

/// Why an entry was not written.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// Another gateway has taken the lease over.
    #[error(transparent)]
    Passed(#[from] lease::Passed),
    /// There are [`MAX_ENTRIES`].
    #[error("there are {MAX_ENTRIES} entries already")]
    TooMany,
    /// The registry failed.
    #[error(transparent)]
    Store(#[from] Error),
}

/// A gateway that asks for changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) node: NodeId,
    /// What it has taken in.
    pub(crate) revision: u64,
    /// How long ago it asked last, in milliseconds.
    pub(crate) ago: u64,
}

impl Store {
    /// Gives a node the lease of an entry, or more of it, unless another one has it. `read` is put on record
    /// where the node is given what the holder before left.
    pub async fn take_lease(
        &self,
        node: &NodeId,
        ask: &TakeLease,
        read: &Event,
    ) -> Result<Leased, FleetError> {
        let mut transaction = self.write().await?;
        let now = self.clock(&mut transaction).await?;
        let row =
            query("SELECT fence, holder, until, draft, product FROM fleet_entry WHERE name = $1")
                .bind(ask.entry.as_str())
                .optional(&mut transaction)
                .await
                .map_err(Error::from)?;
        let is_there = row.is_some();
        let (mut lease, draft, product) = match row {
            None => (Lease::default(), String::new(), String::new()),
            Some(row) => (
                read_lease(&row)?,
                row.get(3).map_err(Error::from)?,
                row.get(4).map_err(Error::from)?,
            ),
        };
        let is_new = match lease.take(node, ask.fence, now) {
            Ok(is_new) => is_new,
            Err(lease::Held { wait }) => return Ok(Leased::Held { wait_ms: wait }),
        };
        if is_there {
            write_lease(&mut transaction, &ask.entry, &lease).await?;
        } else {
            make(&mut transaction, &ask.entry, &lease).await?;
        }
        let of_the_one_before = |text: String| Some(text).filter(|t| is_new && !t.is_empty());
        let (draft, product) = (of_the_one_before(draft), of_the_one_before(product));
        if draft.is_some() || product.is_some() {
            let mut event = read.clone();
            event.subject = ask.entry.to_string();
            audit::append(&mut transaction, &self.audit, &event).await?;
        }
        transaction.commit().await.map_err(Error::from)?;
        Ok(Leased::Granted {
            fence: lease.fence,
            lasts_ms: lease::LASTS,
            draft,
            product,
        })
    }

    /// Writes an entry for the holder of its lease. `issued` is put on record with a product.
    pub async fn write_entry(
        &self,
        node: &NodeId,
        write: &WriteEntry,
        issued: &Event,
    ) -> Result<Written, FleetError> {
        let mut transaction = self.write().await?;
        let now = self.clock(&mut transaction).await?;
        let row = query("SELECT fence, holder, until FROM fleet_entry WHERE name = $1")
            .bind(write.entry.as_str())
            .optional(&mut transaction)
            .await
            .map_err(Error::from)?;
        let mut lease = row
            .map(|row| read_lease(&row))
            .transpose()?
            .unwrap_or_default();
        lease.write(node, write.fence, write.release, now)?;
        let shows = write.answers.is_some() || write.product.is_some();
        let revision = read_revision(&mut transaction).await? + u64::from(shows);
        if shows {
            let next = query("UPDATE fleet SET revision = $1").bind(revision);
            next.execute(&mut transaction).await.map_err(Error::from)?;
            feed::tell(&mut transaction).await?;
        }
        write_lease(&mut transaction, &write.entry, &lease).await?;
        for (column, value) in [
            (
                "UPDATE fleet_entry SET draft = $2 WHERE name = $1",
                &write.draft,
            ),
            (
                "UPDATE fleet_entry SET answers = $2, answers_revision = $3, revision = $3 WHERE name = $1",
                &write.answers,
            ),
            (
                "UPDATE fleet_entry SET product = $2, product_revision = $3, revision = $3 WHERE name = $1",
                &write.product,
            ),
        ] {
            let Some(value) = value else { continue };
            let mut update = query(column)
                .bind(write.entry.as_str())
                .bind(value.as_str());
            if column.contains("$3") {
                update = update.bind(revision);
            }
            update
                .execute(&mut transaction)
                .await
                .map_err(Error::from)?;
        }
        if write.product.is_some() {
            let mut event = issued.clone();
            event.subject = write.entry.to_string();
            audit::append(&mut transaction, &self.audit, &event).await?;
        }
        transaction.commit().await.map_err(Error::from)?;
        Ok(Written { revision })
    }

    /// What has changed after a revision; all there is, after one that no change has yet, as after a restore.
    /// `read` is put on record for each product.
    pub async fn changes(&self, after: u64, read: &Event) -> Result<Changes, Error> {
        let mut transaction = self.read().await?;
        let newest = read_revision(&mut transaction).await?;
        let after = if after > newest { 0 } else { after };
        let changes = read_changes(&mut transaction, after, newest).await?;
        drop(transaction);
        let given = changes
            .entries
            .iter()
            .filter(|entry| entry.product.is_some());
        let given: Vec<_> = given.map(|entry| entry.entry.to_string()).collect();
        if given.is_empty() {
            return Ok(changes);
        }
        let mut transaction = self.write().await?;
        for entry in given {
            let mut event = read.clone();
            event.subject = entry;
            audit::append(&mut transaction, &self.audit, &event).await?;
        }
        transaction.commit().await?;
        Ok(changes)
    }

    /// Notes that a node has taken in what it was told up to a revision, and asks for more.
    pub(crate) async fn asked_for_changes(&self, node: &NodeId, after: u64) -> Result<(), Error> {
        let statement = match self.is_shared() {
            false => ASKED_SQLITE,
            true => ASKED_POSTGRES,
        };
        let asked = query(statement).bind(node.as_str()).bind(after);
        asked.execute(&self.pool).await?;
        Ok(())
    }

    /// Every gateway that ever asked for changes.
    pub(crate) async fn members(&self) -> Result<Vec<Member>, Error> {
        let statement = match self.is_shared() {
            false => MEMBERS_SQLITE,
            true => MEMBERS_POSTGRES,
        };
        let rows = query(statement).all(&self.pool).await?;
        let member = |row: &Row| {
            Ok(Member {
                node: row
                    .get::<String>(0)?
                    .parse()
                    .map_err(|_| Error::Row("fleet_member"))?,
                revision: row.number(1)?,
                ago: u64::try_from(row.get::<i64>(2)?).unwrap_or_default(),
            })
        };
        rows.iter().map(member).collect()
    }

    /// The roster's epoch and the fleet's revision now.
    pub(crate) async fn versions(&self) -> Result<(Epoch, u64), Error> {
        let row = query("SELECT epoch, revision FROM roster, fleet")
            .one(&self.pool)
            .await?;
        Ok((Epoch(row.number(0)?), row.number(1)?))
    }

    /// Milliseconds since the Unix epoch, by the one clock that all masters share.
    async fn clock(&self, transaction: &mut Transaction) -> Result<u64, Error> {
        let statement = match self.is_shared() {
            false => "SELECT CAST(unixepoch('subsec') * 1000 AS INTEGER)",
            true => "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint",
        };
        Ok(query(statement).one(transaction).await?.number(0)?)
    }
}

const ASKED_SQLITE: &str = "INSERT INTO fleet_member (node, revision, asked_at)
     SELECT id, $2, CAST(unixepoch('subsec') * 1000 AS INTEGER) FROM node WHERE id = $1
     ON CONFLICT (node) DO UPDATE SET revision = excluded.revision, asked_at = excluded.asked_at";
const ASKED_POSTGRES: &str = "INSERT INTO fleet_member (node, revision, asked_at)
     SELECT id, $2, (extract(epoch FROM clock_timestamp()) * 1000)::bigint FROM node WHERE id = $1
     ON CONFLICT (node) DO UPDATE SET revision = excluded.revision, asked_at = excluded.asked_at";
const MEMBERS_SQLITE: &str = "SELECT node, revision,
     CAST(unixepoch('subsec') * 1000 AS INTEGER) - asked_at FROM fleet_member ORDER BY node";
const MEMBERS_POSTGRES: &str = "SELECT node, revision,
     (extract(epoch FROM clock_timestamp()) * 1000)::bigint - asked_at FROM fleet_member ORDER BY node";

async fn read_revision(source: impl Into<Source<'_>>) -> Result<u64, Error> {
    let row = query("SELECT revision FROM fleet").one(source).await?;
    Ok(row.number(0)?)
}

async fn read_changes(
    transaction: &mut Transaction,
    after: u64,
    newest: u64,
) -> Result<Changes, Error> {
    let rows = query(
        "SELECT name, answers, product, answers_revision, product_revision, revision
         FROM fleet_entry WHERE revision > $1 ORDER BY revision, name LIMIT $2",
    )
    .bind(after)
    .bind(MAX_CHANGES as u64)
    .all(transaction)
    .await?;
    let is_all = rows.len() < MAX_CHANGES;
    let mut changes = Changes {
        revision: newest,
        entries: Vec::with_capacity(rows.len()),
    };
    for row in &rows {
        let (answers, product): (String, String) = (row.get(1)?, row.get(2)?);
        let is_news = |revision| row.number(revision).map(|revision| revision > after);
        changes.entries.push(Changed {
            entry: row
                .get::<String>(0)?
                .parse()
                .map_err(|_| Error::Row("fleet_entry"))?,
            answers: is_news(3)?.then_some(answers),
            product: is_news(4)?.then_some(product),
        });
        if !is_all {
            changes.revision = row.number(5)?;
        }
    }
    Ok(changes)
}

fn read_lease(row: &Row) -> Result<Lease, Error> {
    let holder: String = row.get(1)?;
    Ok(Lease {
        fence: row.number(0)?,
        holder: match holder.as_str() {
            "" => None,
            holder => Some(holder.parse().map_err(|_| Error::Row("fleet_entry"))?),
        },
        until: row.number(2)?,
    })
}

fn bind_lease(query: Query, entry: &EntryName, lease: &Lease) -> Query {
    query
        .bind(entry.as_str())
        .bind(lease.fence)
        .bind(lease.holder.as_ref().map_or("", |holder| holder.as_str()))
        .bind(lease.until)
}

async fn write_lease(
    transaction: &mut Transaction,
    entry: &EntryName,
    lease: &Lease,
) -> Result<(), Error> {
    let update = "UPDATE fleet_entry SET fence = $2, holder = $3, until = $4 WHERE name = $1";
    bind_lease(query(update), entry, lease)
        .execute(transaction)
        .await?;
    Ok(())
}

async fn make(
    transaction: &mut Transaction,
    entry: &EntryName,
    lease: &Lease,
) -> Result<(), FleetError> {
    let count = query("SELECT count(*) FROM fleet_entry")
        .one(&mut *transaction)
        .await;
    let count = count.and_then(|row| row.number(0)).map_err(Error::from)?;
    if count >= MAX_ENTRIES {
        return Err(FleetError::TooMany);
    }
    let insert = "INSERT INTO fleet_entry (name, fence, holder, until, draft, answers, product,
         answers_revision, product_revision, revision) VALUES ($1, $2, $3, $4, '', '', '', 0, 0, 0)";
    let made = bind_lease(query(insert), entry, lease).execute(transaction);
    made.await.map_err(Error::from)?;
    Ok(())
}
