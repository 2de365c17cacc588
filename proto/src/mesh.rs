//! The frames that carry a session between two nodes.

use std::net::SocketAddr;

use crate::{id::ServiceName, session::Request};

/// What a gateway asks of an exit relay when it opens a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// The service wanted.
    pub service: ServiceName,
    /// What the client asked for, its token removed.
    pub request: Request,
    /// Address of the client, as the gateway saw it.
    pub client: SocketAddr,
    /// `sub` of the session token, when there was one.
    pub subject: Option<String>,
    /// The session token's further claims as JSON text, when there was one.
    pub claims: Option<String>,
}
