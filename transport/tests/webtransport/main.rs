//! The WebTransport layer, between its own client and server, against raw HTTP/3, and against other
//! implementations.

mod interop;
mod limits;
mod raw;
mod session;
mod support;
