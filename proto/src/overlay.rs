//! The overlay: how packets of one QUIC connection between two nodes come over one of several paths.
//!
//! Every UDP packet between nodes begins with a [`Header`](packet::Header) of 8 bytes. Behind it is a QUIC
//! packet, which whoever forwards it cannot read, or a message of the overlay itself. Such messages are
//! authenticated between the two ends of a path ([`Authenticator`]), so that neither a stranger nor a
//! relay on the way can make a node believe in a path.
//!
//! * [`lease`]: who may have a flow carried.
//! * [`packet`]: what the packets look like.
//! * [`paths`]: which paths to a peer there are, how they do, and which one is taken.
//! * [`round_trip`]: how long a peer's or a relay's answer takes.
//! * [`ways`]: through which transit relays a peer is reached.
//! * [`passage`]: a path through them, as the node at its end makes it.
//! * [`left`]: flows that are no paths any more.
//! * [`attachment`]: a place at a transit relay, of a node that cannot be reached otherwise.
//! * [`transit`]: what a transit relay knows.
//! * [`egress`]: what waits where its link is full.
//!
//! `docs/MESH.md` has the formats, the rules and their reasons.

mod asking;
pub mod attachment;
pub mod egress;
pub mod lease;
pub mod left;
pub mod packet;
pub mod passage;
pub mod paths;
pub mod round_trip;
mod shares;
#[cfg(test)]
mod simulation;
pub mod transit;
pub mod ways;

use crate::id::NodeId;

/// Bytes of one authentication tag: HMAC-SHA-256, cut to half (RFC 2104, section 5).
pub const TAG_LEN: usize = 16;

/// An authentication tag.
pub type Tag = [u8; TAG_LEN];

/// Most tags of a message: one for each key that the roster lists for its recipient, who holds one of
/// them and is about to hold the other.
pub const MAX_TAGS: usize = 2;

/// Makes and checks the tags of messages between this node and others, by keys that only the two of them
/// have and that follow from their identities.
pub trait Authenticator: Send + Sync {
    /// Appends the tags of `message` to `peer`: one for each of its keys, at most [`MAX_TAGS`]; none where
    /// the roster has no key for it.
    fn tags(&self, peer: &NodeId, message: &[u8], tags: &mut Vec<Tag>);

    /// Whether one of `tags` shows that `message` is by `peer` and for this node.
    fn verify(&self, peer: &NodeId, message: &[u8], tags: &[Tag]) -> bool;
}

/// When simulated time begins.
#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any time will do")]
fn beginning() -> std::time::Instant {
    std::time::Instant::now()
}
