//! A real master on loopback, with nodes that join it and clients that misbehave.

// Everything here is a test, also what stands outside a test function.
#![allow(clippy::unwrap_used)]

mod abuse;
mod audit;
mod authority;
mod backup;
mod fleet;
mod identity;
mod joining;
mod lease;
mod masters;
mod once;
mod operate;
#[path = "../support/postgres.rs"]
mod postgres;
mod receiver;
mod refusals;
mod registry;
mod rotation;
mod sinks;
mod stalling;
mod store;
mod tokens;
mod wire;
mod world;
