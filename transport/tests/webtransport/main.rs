//! The WebTransport layer, between its own client and server, against raw HTTP/3, and against other
//! implementations.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod abuse;
mod agreement;
mod edge;
mod flow;
mod interop;
mod limits;
mod plain;
mod raw;
mod session;
mod support;
