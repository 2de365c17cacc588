//! Why the master does not start.

use std::net::SocketAddr;

use wavry_credentials::{cert, source};

use crate::{authority, database::Location, keyvault, signing, store};

/// Why the master does not start. Nothing is bound when it is about a secret, a certificate or the
/// database.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A secret is missing or must not be used; the error names variable and path.
    #[error(transparent)]
    Secret(#[from] source::Error),
    /// There is no key to sign with.
    #[error("there is no key to sign with")]
    Signing(#[from] signing::Error),
    /// The audit log is not what was written. `wavry audit verify` names the first line that is bad.
    #[error("the audit log in {database} does not hold; see `wavry audit verify`")]
    Audit {
        /// The database.
        database: Location,
        /// What is wrong with it.
        source: store::audit::ReadError,
    },
    /// The cluster's own authority cannot sign.
    #[error("the cluster's own authority (master.authority)")]
    Authority(#[source] authority::Error),
    /// The certificate cannot be served.
    #[error(transparent)]
    Certificate(#[from] cert::Error),
    /// The database cannot be used.
    #[error("cannot use {database}")]
    Store {
        /// The database.
        database: Location,
        /// What is wrong with it.
        source: store::Error,
    },
    /// The KeyVault cannot be used.
    #[error("KeyVault (master.keyvault)")]
    KeyVault(#[source] Box<keyvault::StartError>),
    /// A service of the configuration cannot be there beside one that an operator made.
    #[error("a service of the configuration cannot be served (master.services)")]
    Service(#[source] store::ServiceError),
    /// The address is taken, or not of this host.
    #[error("cannot listen on {address} (master.listen)")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: std::io::Error,
    },
}
