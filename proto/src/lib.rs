//! Wavry's wire formats and protocol state.
//!
//! Everything here is pure: bytes in, bytes out, and time is an argument. There is no socket, no
//! clock, no task and no key in this crate, so that every rule of the protocol can be tested,
//! fuzzed and simulated without a network.
//!
//! * [`id`]: the names things have, validated when parsed.
//! * [`session`]: what a WebTransport session asks, answers and ends with — the vocabulary that the
//!   WebTransport layer and the mesh share.
//! * [`varint`]: QUIC variable-length integers (RFC 9000, section 16).
//! * [`h3`], [`webtransport`]: HTTP/3 (RFC 9114) and WebTransport (draft-ietf-webtrans-http3).
//! * [`mesh`]: the frames that carry a session between two nodes.
//! * [`overlay`]: how packets between two nodes come over one of several paths.
//! * [`control`]: messages between nodes and the master, and the roster.
//! * [`view`]: what a node tells of its part of the mesh.
//! * [`placement`]: by what a gateway chooses among exits.
//! * [`token`]: the outside of a PASETO token: its grammar, its purpose, its claims.
//! * [`config`], [`duration`]: what is wrong with configuration, and durations as people write them.

pub mod config;
pub mod control;
pub mod duration;
pub mod h3;
pub mod id;
pub mod mesh;
pub mod overlay;
pub mod placement;
pub mod session;
pub mod token;
pub mod varint;
pub mod view;
pub mod webtransport;
