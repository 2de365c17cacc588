//! What a WebTransport session asks, answers and ends with.
//!
//! The vocabulary follows draft-ietf-webtrans-http3 and is shared by the WebTransport layer, which
//! speaks it to clients and upstreams, and by the mesh, which carries it between nodes.

/// A header field: lower-case name and value, both as they go on the wire (RFC 9114, section 4.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Lower-case field name, never a pseudo-header.
    pub name: String,
    /// Field value. Header fields are octets; Wavry carries those that are visible ASCII or UTF-8.
    pub value: String,
}

/// What a client asks for with its extended CONNECT (RFC 9220; draft-ietf-webtrans-http3, 3.2).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// `:authority`: host and optional port.
    pub authority: String,
    /// `:path`: absolute path with the query, as the client sent it.
    pub path: String,
    /// `origin`, which browsers always send.
    pub origin: Option<String>,
    /// The other header fields, in order, duplicates kept.
    pub headers: Vec<Header>,
    /// Subprotocols offered in `wt-available-protocols`, in the client's order of preference.
    pub subprotocols: Vec<String>,
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// HTTP status; a session exists if and only if it is 2xx.
    pub status: u16,
    /// Subprotocol chosen, in `wt-protocol`; one of those offered.
    pub subprotocol: Option<String>,
    /// The other header fields, in order.
    pub headers: Vec<Header>,
}

impl Response {
    /// The session is accepted, without a subprotocol.
    pub fn ok() -> Self {
        Self::status(200)
    }

    /// An answer that is only a status.
    pub fn status(status: u16) -> Self {
        Self {
            status,
            subprotocol: None,
            headers: Vec::new(),
        }
    }

    /// Whether this answer makes a session.
    pub fn is_ok(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Longest reason a session may be closed with, in bytes of UTF-8 (draft-ietf-webtrans-http3,
/// section 6).
pub const MAX_CLOSE_REASON: usize = 1024;

/// How a session ends: application error code and reason (draft-ietf-webtrans-http3, section 6).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Close {
    /// Application error code.
    pub code: u32,
    /// Reason, at most [`MAX_CLOSE_REASON`] bytes.
    pub reason: String,
}

impl Close {
    /// A close whose reason is cut to [`MAX_CLOSE_REASON`] bytes at a character boundary.
    pub fn new(code: u32, reason: &str) -> Self {
        let mut end = reason.len().min(MAX_CLOSE_REASON);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        Self {
            code,
            reason: reason[..end].to_owned(),
        }
    }
}

/// Close codes that Wavry itself gives a session, as against those of the application. They lie
/// where no application code is expected: the ASCII text `WV` in the upper half.
pub mod close_code {
    const BASE: u32 = 0x5756_0000;
    /// The exit relay carrying the session was lost.
    pub const RELAY_LOST: u32 = BASE | 0x01;
    /// The upstream went away without closing the session.
    pub const UPSTREAM_LOST: u32 = BASE | 0x02;
    /// The gateway drains and its deadline passed.
    pub const DRAINED: u32 = BASE | 0x03;
    /// Nothing moved for the idle timeout.
    pub const IDLE: u32 = BASE | 0x04;
    /// The token that opened the session expired.
    pub const TOKEN_EXPIRED: u32 = BASE | 0x05;
    /// The peer broke the mesh protocol.
    pub const PROTOCOL: u32 = BASE | 0x06;
    /// The client's connection was lost; this is what the upstream is told.
    pub const CLIENT_LOST: u32 = BASE | 0x07;
    /// Nobody read the session, and it held up others on its connection.
    pub const UNREAD: u32 = BASE | 0x08;
    /// The token that opened the session was revoked, or the key that signed it.
    pub const TOKEN_REVOKED: u32 = BASE | 0x09;
    /// The session was refused: this and the HTTP status that says why.
    pub const REFUSED: u32 = BASE | 0x1000;

    /// The code for a refusal with `status`, where a service has its refusals told by a close.
    pub fn refused(status: u16) -> u32 {
        REFUSED + u32::from(status)
    }
}

/// Header field by which an exit relay says that it refuses a session itself and has asked no
/// upstream, so that another exit may be tried. It never leaves the mesh.
pub const REFUSED_BY_RELAY: &str = "x-wavry-refused";

/// Its value where the relay has as many sessions as it takes.
pub const RELAY_LIMIT: &str = "relay_limit";
/// The value of [`REFUSED_BY_RELAY`] of a relay that has no upstream for the service; it may have others'.
pub const UNKNOWN_SERVICE: &str = "unknown_service";

/// Codes with which Wavry itself resets or stops a stream, where the upstream is not a
/// WebTransport server and so has no codes of its own.
pub mod stream_code {
    const BASE: u32 = 0x5756_0000;
    /// The upstream took no connection for this stream.
    pub const UPSTREAM_REFUSED: u32 = BASE | 0x11;
    /// The upstream reset its connection, or it was lost.
    pub const UPSTREAM_RESET: u32 = BASE | 0x12;
    /// This kind of upstream has no such streams.
    pub const UNSUPPORTED: u32 = BASE | 0x13;
}
