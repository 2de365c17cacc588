//! WebTransport over HTTP/3 (draft-ietf-webtrans-http3): codes, capsules, connection state.
