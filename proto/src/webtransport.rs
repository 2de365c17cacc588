//! WebTransport over HTTP/3 (draft-ietf-webtrans-http3): requests, streams, codes, capsules.

pub mod capsule;
pub mod code;
pub mod request;
pub mod stream;
pub mod subprotocol;
