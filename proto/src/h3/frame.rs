//! Frames (RFC 9114, section 7), read from bytes that may be cut anywhere.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{code, settings};
use crate::varint;

mod control;
mod message;

pub use control::{Control, ControlDecoder, MAX_CONTROL_PAYLOAD};
pub use message::{Message, MessageDecoder};

/// Frame types (RFC 9114, section 7.2).
pub mod kind {
    /// Content; on a CONNECT stream, capsules.
    pub const DATA: u64 = 0x00;
    /// A field section.
    pub const HEADERS: u64 = 0x01;
    /// Cancels a push.
    pub const CANCEL_PUSH: u64 = 0x03;
    /// The sender's settings.
    pub const SETTINGS: u64 = 0x04;
    /// Announces a push.
    pub const PUSH_PROMISE: u64 = 0x05;
    /// The sender will take no more requests.
    pub const GOAWAY: u64 = 0x07;
    /// Grants push ids.
    pub const MAX_PUSH_ID: u64 = 0x0d;
    /// Not a frame: begins a WebTransport stream (draft-ietf-webtrans-http3, section 4.3).
    pub const WEBTRANSPORT_STREAM: u64 = 0x41;
    /// Priority of a request (RFC 9218, section 7.2).
    pub const PRIORITY_UPDATE: u64 = 0x0f_0700;
    /// Priority of a push (RFC 9218, section 7.2).
    pub const PRIORITY_UPDATE_PUSH: u64 = 0x0f_0701;

    /// Types that HTTP/2 used and HTTP/3 must not see (RFC 9114, section 7.2.8).
    pub const fn is_reserved(kind: u64) -> bool {
        matches!(kind, 0x02 | 0x06 | 0x08 | 0x09)
    }
}

/// Why a stream's frames are refused. All of these are connection errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A frame type that is not allowed here.
    #[error("frame type {0:#x} is not allowed here")]
    Unexpected(u64),
    /// The control stream does not begin with SETTINGS.
    #[error("the control stream begins with frame type {0:#x}")]
    MissingSettings(u64),
    /// A payload is longer or shorter than its fields.
    #[error("frame type {0:#x} has a wrong payload")]
    Layout(u64),
    /// The stream ends within a frame.
    #[error("the stream ends within a frame")]
    Truncated,
    /// A payload is longer than is tolerated.
    #[error("frame type {0:#x} is too long")]
    TooLong(u64),
    /// The settings are wrong.
    #[error("the settings are wrong")]
    Settings(#[from] settings::Invalid),
    /// A frame's stream or push id is wrong.
    #[error("frame type {0:#x} with id {1}")]
    Id(u64, u64),
    /// A push, of which none was granted.
    #[error("frame type {0:#x} about a push")]
    Push(u64),
}

impl Error {
    /// The error code to close the connection with.
    pub const fn code(&self) -> u64 {
        match self {
            // Draft-ietf-webtrans-http3, section 4.3: it has no length, so it is no frame.
            Self::Unexpected(kind::WEBTRANSPORT_STREAM) => code::FRAME_ERROR,
            Self::Unexpected(_) => code::FRAME_UNEXPECTED,
            Self::MissingSettings(_) => code::MISSING_SETTINGS,
            Self::Layout(_) | Self::Truncated => code::FRAME_ERROR,
            Self::TooLong(_) => code::EXCESSIVE_LOAD,
            Self::Settings(invalid) => invalid.code(),
            Self::Id(..) | Self::Push(_) => code::ID_ERROR,
        }
    }
}

/// Appends a frame.
pub fn put(buf: &mut impl BufMut, kind: u64, payload: &[u8]) {
    varint::put(buf, kind);
    varint::put(buf, payload.len() as u64);
    buf.put_slice(payload);
}

/// Takes a frame's type and length off the front; `None`, with nothing taken, when `buf` ends first.
pub fn header(buf: &mut BytesMut) -> Option<(u64, u64)> {
    let mut peek = &buf[..];
    let kind = varint::get(&mut peek)?;
    let len = varint::get(&mut peek)?;
    let taken = buf.len() - peek.len();
    buf.advance(taken);
    Some((kind, len))
}

/// What is being read.
#[derive(Debug, Clone, Copy, Default)]
enum State {
    #[default]
    Header,
    /// A payload that is wanted whole.
    Whole {
        kind: u64,
        len: usize,
    },
    /// Content, handed on as it comes.
    Data {
        left: u64,
    },
    Skip {
        left: u64,
    },
}

/// Frames of one stream: what both kinds of stream share.
#[derive(Debug, Default)]
struct Frames {
    buf: BytesMut,
    state: State,
}

enum Step {
    /// A frame begins.
    Begin(u64, u64),
    Whole(u64, Bytes),
    Data(Bytes),
}

impl Frames {
    fn push(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
    }

    /// The next thing that happens; after `Begin` the caller says what becomes of the payload.
    fn step(&mut self) -> Option<Step> {
        loop {
            match self.state {
                State::Header => {
                    let (kind, len) = header(&mut self.buf)?;
                    return Some(Step::Begin(kind, len));
                }
                State::Whole { kind, len } => {
                    if self.buf.len() < len {
                        return None;
                    }
                    self.state = State::Header;
                    return Some(Step::Whole(kind, self.buf.split_to(len).freeze()));
                }
                State::Data { left } | State::Skip { left } if left == 0 => {
                    self.state = State::Header;
                }
                State::Data { left } => {
                    let taken = self.available(left)?;
                    self.state = State::Data {
                        left: left - taken as u64,
                    };
                    return Some(Step::Data(self.buf.split_to(taken).freeze()));
                }
                State::Skip { left } => {
                    let taken = self.available(left)?;
                    self.buf.advance(taken);
                    self.state = State::Skip {
                        left: left - taken as u64,
                    };
                }
            }
        }
    }

    fn available(&self, left: u64) -> Option<usize> {
        let taken = left.min(self.buf.len() as u64) as usize;
        (taken > 0).then_some(taken)
    }

    /// Whether the stream may end here: not within a frame.
    fn at_boundary(&self) -> bool {
        self.buf.is_empty()
            && matches!(
                self.state,
                State::Header | State::Data { left: 0 } | State::Skip { left: 0 }
            )
    }
}
