//! HTTP/3 (RFC 9114): frames, settings, field sections. QPACK (RFC 9204) is spoken without a
//! dynamic table: we grant none and use none, so no field section ever waits for another stream.

pub mod content;
pub mod frame;
pub mod huffman;
pub mod message;
pub mod qpack;
pub mod settings;
mod table;

/// ALPN protocol id (RFC 9114, section 3.1).
pub const ALPN: &[u8] = b"h3";

/// Types of unidirectional streams (RFC 9114, section 6.2; RFC 9204, section 4.2).
pub mod stream {
    /// Control stream.
    pub const CONTROL: u64 = 0x00;
    /// Push stream; only a server may open one, and only if it was granted push ids.
    pub const PUSH: u64 = 0x01;
    /// QPACK encoder stream.
    pub const QPACK_ENCODER: u64 = 0x02;
    /// QPACK decoder stream.
    pub const QPACK_DECODER: u64 = 0x03;
}

/// Error codes (RFC 9114, section 8.1; RFC 9204, section 6; RFC 9297, section 5.2).
pub mod code {
    /// Nothing is wrong.
    pub const NO_ERROR: u64 = 0x100;
    /// A violation that no other code describes.
    pub const GENERAL_PROTOCOL_ERROR: u64 = 0x101;
    /// An internal error.
    pub const INTERNAL_ERROR: u64 = 0x102;
    /// A stream that is not accepted.
    pub const STREAM_CREATION_ERROR: u64 = 0x103;
    /// A stream that the connection needs was closed.
    pub const CLOSED_CRITICAL_STREAM: u64 = 0x104;
    /// A frame that is not allowed here.
    pub const FRAME_UNEXPECTED: u64 = 0x105;
    /// A frame whose layout or size is wrong.
    pub const FRAME_ERROR: u64 = 0x106;
    /// The peer generates more load than is tolerated.
    pub const EXCESSIVE_LOAD: u64 = 0x107;
    /// A stream or push id is wrong.
    pub const ID_ERROR: u64 = 0x108;
    /// A wrong payload of SETTINGS.
    pub const SETTINGS_ERROR: u64 = 0x109;
    /// SETTINGS is not the first frame of the control stream.
    pub const MISSING_SETTINGS: u64 = 0x10a;
    /// The request was not processed at all and may be sent again.
    pub const REQUEST_REJECTED: u64 = 0x10b;
    /// The request or its answer is no longer wanted.
    pub const REQUEST_CANCELLED: u64 = 0x10c;
    /// The client's stream ended before the request did.
    pub const REQUEST_INCOMPLETE: u64 = 0x10d;
    /// A malformed message.
    pub const MESSAGE_ERROR: u64 = 0x10e;
    /// A field section could not be decompressed.
    pub const QPACK_DECOMPRESSION_FAILED: u64 = 0x200;
    /// The QPACK encoder stream is wrong.
    pub const QPACK_ENCODER_STREAM_ERROR: u64 = 0x201;
    /// The QPACK decoder stream is wrong.
    pub const QPACK_DECODER_STREAM_ERROR: u64 = 0x202;
    /// A datagram or capsule is wrong.
    pub const DATAGRAM_ERROR: u64 = 0x33;
}
