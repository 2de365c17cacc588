//! A node's place in a cluster: registration, heartbeats, and the roster it watches.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use tokio::sync::watch;
use wavry_proto::{
    control::Roster,
    id::{ClusterName, NodeId, ServiceName},
};

use crate::{identity::Identity, source};

/// What a node needs to join its cluster.
#[derive(Debug, Clone)]
pub struct Config {
    /// The master: `https://HOST:PORT`.
    pub master: String,
    /// PEM file of the authorities that the master's certificate is checked against.
    pub ca_file: PathBuf,
    /// Directory that keeps what registration gave: node id, cluster and roster keys. Not secret.
    pub state_dir: PathBuf,
    /// Services this node has upstreams for.
    pub services: Vec<ServiceName>,
    /// File of the secret `identity_key`; `None` for where [`source::locate`] finds it.
    pub identity_key: Option<PathBuf>,
    /// File of the secret `registration_token`; `None` for where [`source::locate`] finds it.
    pub registration_token: Option<PathBuf>,
}

/// A node that belongs to a cluster. Heartbeats and the roster's watch go on in the background
/// until it is dropped; when the master is away, the last roster stays.
pub struct Membership {}

/// Why a node cannot join.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A secret or state file.
    #[error(transparent)]
    Source(#[from] crate::source::Error),
    /// The identity.
    #[error(transparent)]
    Identity(#[from] crate::identity::Error),
    /// The master refused; waiting does not help.
    #[error("the master refused: {status} {detail}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The master's words.
        detail: String,
    },
    /// Configuration or state that cannot be used.
    #[error("{0}")]
    Invalid(String),
}

impl Membership {
    /// Reads the identity (secret `identity_key`), registers with the registration token (secret
    /// `registration_token`) unless this identity did so before, and waits for the first roster.
    /// A master that cannot be reached is waited for.
    pub async fn join(_config: Config) -> Result<Self, Error> {
        todo!()
    }

    /// The node's id.
    pub fn node_id(&self) -> &NodeId {
        todo!()
    }

    /// The cluster.
    pub fn cluster(&self) -> &ClusterName {
        todo!()
    }

    /// The node's identity.
    pub fn identity(&self) -> &Identity {
        todo!()
    }

    /// The current roster; the sender is gone when the membership is.
    pub fn roster(&self) -> watch::Receiver<Arc<Roster>> {
        todo!()
    }

    /// Tells the master where the mesh reaches this node, from the next heartbeat on (at once).
    pub fn announce(&self, _addresses: Vec<SocketAddr>) {
        todo!()
    }

    /// Reports the number of live sessions with each heartbeat.
    pub fn report_sessions(&self, _sessions: u64) {
        todo!()
    }

    /// Tells the master that the node leaves, and waits until it knows or a second has passed.
    pub async fn leave(&self) {
        todo!()
    }
}
