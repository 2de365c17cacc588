//! Why the relay cannot start or go on.

use std::{io, net::SocketAddr};

use wavry_credentials::{cert, identity, membership};

/// Why a relay does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Whom a WebTransport upstream is trusted by cannot be read.
    #[error("the certificates for upstreams.{service}")]
    Trust {
        /// The service.
        service: String,
        /// Why.
        source: cert::Error,
    },
    /// No UDP socket for upstreams can be had.
    #[error("no UDP socket for upstreams")]
    Socket(#[source] io::Error),
    /// The mesh address cannot be used.
    #[error("cannot listen on UDP {address} (mesh_listen)")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The address for transit cannot be used.
    #[error("cannot listen on UDP {address} (transit.listen)")]
    BindTransit {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The cluster does not take the node.
    #[error("cannot join the cluster")]
    Membership(#[from] membership::Error),
    /// The identity cannot be used in TLS.
    #[error("the node's identity")]
    Identity(#[from] identity::Error),
}

/// Why a relay that served does not any more.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The mesh socket was lost.
    #[error("the mesh socket was lost")]
    MeshLost,
    /// Nothing is forwarded any more.
    #[error("the thread that forwards packets is gone")]
    TransitLost,
}
