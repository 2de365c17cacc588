//! The frames that carry a session between two nodes, and the state both ends keep for it.
//!
//! * [`frame`]: the frames on a session's control stream.
//! * [`header`]: what comes first on every stream and in every datagram.
//! * [`credit`]: how much stream data a session may send, in either direction.
//! * [`streams`]: how many streams a session may open, and when one is over.
//!
//! `docs/WIRE.md` describes the whole.

pub mod credit;
pub mod frame;
pub mod header;
pub mod streams;

use std::net::SocketAddr;

use crate::{id::ServiceName, session::Request};

/// The ALPN of the mesh (RFC 7301). Its number changes when an older node could not follow.
pub const ALPN: &[u8] = b"wavry-mesh/1";

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
