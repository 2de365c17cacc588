//! WebTransport sessions and the mesh, driven over QUIC.
//!
//! [`session::Session`] is the one interface a session has inside Wavry. [`webtransport`]
//! implements it for clients and upstreams, [`mesh`] for the way between two nodes, and
//! [`mirror`](mirror::mirror) joins any two of them.
//!
//! [`datagram`] and [`socket`] are what both stand on; under the mesh there is an overlay besides, which
//! finds the way to each peer.
//!
//! [`transit`] forwards packets of others, blindly.
//!
//! Identities and certificates reach this crate as rustls configurations; it never sees a key.

mod chunk;
pub mod datagram;
pub mod mesh;
pub mod metrics;
pub mod mirror;
mod overlay;
pub mod session;
pub mod socket;
pub mod transit;
pub mod webtransport;
