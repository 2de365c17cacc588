//! What the mesh promises, over real sockets.

mod fairness;
mod faults;
mod mirror;
mod nodes;
mod sessions;
