//! What the mesh promises, over real sockets.

mod nodes;
mod sessions;
