//! WebTransport over HTTP/3 (draft-ietf-webtrans-http3): what two ends agree on, requests, sessions
//! and their flow control, streams, codes, capsules.

pub mod agreement;
pub mod capsule;
pub mod code;
pub mod flow;
pub mod request;
pub mod session;
pub mod stream;
pub mod subprotocol;
