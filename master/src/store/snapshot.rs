//! What the roster shows, as the database has it.

use std::{collections::HashMap, sync::Arc};

use wavry_proto::{
    control::{Authorities, Node, Revocation, Role, Roster, Service},
    id::{ClusterName, Epoch, NodeId},
};

use super::{
    Error, Store, authority, identity,
    keys::{self, Kept},
    locked, placement, read_epoch, revocation, service,
};
use crate::{
    database::sql::{Transaction, query},
    identity::Lives,
};

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
            nodes: self.nodes.into(),
            services: self.services.to_vec(),
            token_keys: self.token_keys,
            roster_keys: self.roster_keys,
            revoked: self.revoked,
            authorities: self.authorities,
        }
    }
}

/// What of the roster a change may have changed, and is read again. The rest is large, and is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
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

impl Store {
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
}

pub(super) async fn read_snapshot(transaction: &mut Transaction) -> Result<Snapshot, Error> {
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
    pub(super) async fn read_again(
        &mut self,
        part: Part,
        from: &mut Transaction,
    ) -> Result<(), Error> {
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
