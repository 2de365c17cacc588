//! What the mesh promises, where each node has several sockets on its port.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../mesh/claims.rs"]
mod claims;
#[path = "../mesh/datagrams.rs"]
mod datagrams;
#[path = "../mesh/fairness.rs"]
mod fairness;
#[path = "../mesh/faults.rs"]
mod faults;
#[path = "../mesh/greeting.rs"]
mod greeting;
#[path = "../mesh/mirror.rs"]
mod mirror;
#[path = "../mesh/nat.rs"]
mod nat;
#[path = "../mesh/nodes.rs"]
mod nodes;
#[path = "../mesh/pool.rs"]
mod pool;
#[path = "../mesh/rotation.rs"]
mod rotation;
#[path = "../mesh/sessions.rs"]
mod sessions;
mod shards;
#[path = "../mesh/shares.rs"]
mod shares;
#[path = "../mesh/transit.rs"]
mod transit;
#[path = "../mesh/view.rs"]
mod view;
#[path = "../mesh/violation.rs"]
mod violation;
#[path = "../mesh/wire.rs"]
mod wire;

/// Sockets that each node has.
const SOCKETS: usize = 4;
