//! What the mesh promises, over real sockets.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod claims;
mod datagrams;
mod fairness;
mod faults;
mod greeting;
mod mirror;
mod nat;
mod nodes;
mod pool;
mod rotation;
mod sessions;
mod shares;
mod transit;
mod view;
mod violation;
mod wire;

/// Sockets that each node has; `mesh_sharded` has the same tests with several.
const SOCKETS: usize = 1;
