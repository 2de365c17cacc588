//! Frames (RFC 9114, section 7), read from bytes that may be cut anywhere.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{code, settings};
use crate::varint;

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

    /// Types that HTTP/2 used and HTTP/3 must not see (RFC 9114, section 7.2.8).
    pub const fn is_reserved(kind: u64) -> bool {
        matches!(kind, 0x02 | 0x06 | 0x08 | 0x09)
    }
}

/// Longest payload of SETTINGS, GOAWAY and the push frames, in bytes: 64 settings of 16 bytes.
pub const MAX_CONTROL_PAYLOAD: usize = 1024;

/// A frame of a request stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A field section, compressed.
    Headers(Bytes),
    /// A field section longer than allowed. Its bytes are skipped.
    HeadersTooLong,
    /// Content: a whole DATA frame or part of one.
    Data(Bytes),
}

/// A frame of a control stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// The peer's settings; the first frame, and only that.
    Settings(settings::Settings),
    /// The peer takes no requests with this stream id or a higher one.
    GoAway(u64),
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
    /// A payload is longer than its type can be, or has another layout.
    #[error("frame type {0:#x} has a wrong payload")]
    Layout(u64),
    /// The settings are wrong.
    #[error("the settings are wrong")]
    Settings(#[from] settings::Invalid),
    /// A stream id in GOAWAY is wrong.
    #[error("GOAWAY with id {0}")]
    Id(u64),
}

impl Error {
    /// The error code to close the connection with.
    pub const fn code(&self) -> u64 {
        match self {
            Self::Unexpected(_) => code::FRAME_UNEXPECTED,
            Self::MissingSettings(_) => code::MISSING_SETTINGS,
            Self::Layout(_) => code::FRAME_ERROR,
            Self::Settings(invalid) => invalid.code(),
            Self::Id(_) => code::ID_ERROR,
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

/// Reads the frames of a request stream.
///
/// Holds at most one field section (`max_headers` bytes) and what was pushed last.
#[derive(Debug)]
pub struct MessageDecoder {
    frames: Frames,
    max_headers: usize,
    headers_seen: bool,
}

impl MessageDecoder {
    /// A decoder that takes field sections of up to `max_headers` bytes.
    pub fn new(max_headers: usize) -> Self {
        Self {
            frames: Frames::default(),
            max_headers,
            headers_seen: false,
        }
    }

    /// Adds bytes of the stream. Call [`next`](Self::next) until it has nothing before the next.
    pub fn push(&mut self, bytes: &[u8]) {
        self.frames.push(bytes);
    }

    /// The next frame or part of one; `None` when more bytes are needed.
    #[allow(
        clippy::should_implement_trait,
        reason = "an iterator would end, this goes on"
    )]
    pub fn next(&mut self) -> Result<Option<Message>, Error> {
        while let Some(step) = self.frames.step() {
            match step {
                Step::Begin(kind, len) => {
                    if let Some(message) = self.begin(kind, len)? {
                        return Ok(Some(message));
                    }
                }
                Step::Whole(_, payload) => return Ok(Some(Message::Headers(payload))),
                Step::Data(content) => return Ok(Some(Message::Data(content))),
            }
        }
        Ok(None)
    }

    /// Whether the stream may end here: not within a frame.
    pub fn at_boundary(&self) -> bool {
        self.frames.at_boundary()
    }

    fn begin(&mut self, kind: u64, len: u64) -> Result<Option<Message>, Error> {
        self.frames.state = match kind {
            kind::DATA if self.headers_seen => State::Data { left: len },
            kind::HEADERS => {
                self.headers_seen = true;
                if len > self.max_headers as u64 {
                    self.frames.state = State::Skip { left: len };
                    return Ok(Some(Message::HeadersTooLong));
                }
                State::Whole {
                    kind,
                    len: len as usize,
                }
            }
            // PUSH_PROMISE: we never grant push ids.
            kind::DATA
            | kind::CANCEL_PUSH
            | kind::SETTINGS
            | kind::PUSH_PROMISE
            | kind::GOAWAY
            | kind::MAX_PUSH_ID
            | kind::WEBTRANSPORT_STREAM => return Err(Error::Unexpected(kind)),
            _ if kind::is_reserved(kind) => return Err(Error::Unexpected(kind)),
            _ => State::Skip { left: len },
        };
        Ok(None)
    }
}

/// Reads the frames of the peer's control stream.
#[derive(Debug, Default)]
pub struct ControlDecoder {
    frames: Frames,
    settings_seen: bool,
    goaway: Option<u64>,
}

impl ControlDecoder {
    /// Adds bytes of the stream. Call [`next`](Self::next) until it has nothing before the next.
    pub fn push(&mut self, bytes: &[u8]) {
        self.frames.push(bytes);
    }

    /// The next frame that matters; `None` when more bytes are needed.
    #[allow(
        clippy::should_implement_trait,
        reason = "an iterator would end, this goes on"
    )]
    pub fn next(&mut self) -> Result<Option<Control>, Error> {
        while let Some(step) = self.frames.step() {
            match step {
                Step::Begin(kind, len) => self.begin(kind, len)?,
                Step::Whole(kind::SETTINGS, payload) => {
                    let settings = settings::Settings::decode(&payload)?;
                    return Ok(Some(Control::Settings(settings)));
                }
                Step::Whole(kind, payload) => {
                    let mut rest = &payload[..];
                    let id = varint::get(&mut rest).ok_or(Error::Layout(kind))?;
                    if !rest.is_empty() {
                        return Err(Error::Layout(kind));
                    }
                    if kind == kind::GOAWAY {
                        // RFC 9114, section 5.2: the id never grows.
                        if self.goaway.is_some_and(|last| id > last) {
                            return Err(Error::Id(id));
                        }
                        self.goaway = Some(id);
                        return Ok(Some(Control::GoAway(id)));
                    }
                }
                // No frame of this stream is read as content.
                Step::Data(_) => {}
            }
        }
        Ok(None)
    }

    fn begin(&mut self, kind: u64, len: u64) -> Result<(), Error> {
        if !self.settings_seen && kind != kind::SETTINGS {
            return Err(Error::MissingSettings(kind));
        }
        self.frames.state = match kind {
            kind::SETTINGS if self.settings_seen => return Err(Error::Unexpected(kind)),
            kind::SETTINGS | kind::GOAWAY | kind::CANCEL_PUSH | kind::MAX_PUSH_ID => {
                if len > MAX_CONTROL_PAYLOAD as u64 {
                    return Err(Error::Layout(kind));
                }
                self.settings_seen = true;
                State::Whole {
                    kind,
                    len: len as usize,
                }
            }
            kind::DATA | kind::HEADERS | kind::PUSH_PROMISE | kind::WEBTRANSPORT_STREAM => {
                return Err(Error::Unexpected(kind));
            }
            _ if kind::is_reserved(kind) => return Err(Error::Unexpected(kind)),
            _ => State::Skip { left: len },
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(decoder: &mut MessageDecoder, bytes: &[u8]) -> Result<Vec<Message>, Error> {
        decoder.push(bytes);
        let mut messages = Vec::new();
        while let Some(message) = decoder.next()? {
            messages.push(message);
        }
        Ok(messages)
    }

    fn frames(list: &[(u64, &[u8])]) -> Vec<u8> {
        let mut buf = Vec::new();
        for (kind, payload) in list {
            put(&mut buf, *kind, payload);
        }
        buf
    }

    #[test]
    fn unknown_frames_are_skipped() {
        let bytes = frames(&[
            (0x21, b"grease"),
            (kind::HEADERS, b"h"),
            (0x40, b""),
            (kind::DATA, b"d"),
        ]);
        let mut decoder = MessageDecoder::new(10);
        assert_eq!(
            read(&mut decoder, &bytes).unwrap(),
            [
                Message::Headers(Bytes::from_static(b"h")),
                Message::Data(Bytes::from_static(b"d"))
            ]
        );
        assert!(decoder.at_boundary());
    }

    #[test]
    fn a_header_block_over_the_limit_is_reported_before_it_is_read_and_then_skipped() {
        let mut bytes = frames(&[(kind::HEADERS, &[0; 11]), (kind::DATA, b"d")]);
        let rest = bytes.split_off(2);
        let mut decoder = MessageDecoder::new(10);
        assert_eq!(
            read(&mut decoder, &bytes).unwrap(),
            [Message::HeadersTooLong]
        );
        assert_eq!(
            read(&mut decoder, &rest).unwrap(),
            [Message::Data(Bytes::from_static(b"d"))]
        );
    }

    #[test]
    fn frames_of_other_streams_and_of_http_2_are_unexpected() {
        for kind in [0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0d, 0x41] {
            let bytes = frames(&[(kind::HEADERS, b""), (kind, b"")]);
            let got = read(&mut MessageDecoder::new(10), &bytes);
            assert_eq!(got, Err(Error::Unexpected(kind)), "{kind:#x}");
        }
        let data_first = read(&mut MessageDecoder::new(10), &frames(&[(kind::DATA, b"")]));
        assert_eq!(data_first, Err(Error::Unexpected(kind::DATA)));
    }

    fn control(bytes: &[u8]) -> Result<Vec<Control>, Error> {
        let mut decoder = ControlDecoder::default();
        decoder.push(bytes);
        let mut list = Vec::new();
        while let Some(frame) = decoder.next()? {
            list.push(frame);
        }
        Ok(list)
    }

    #[test]
    fn a_control_stream_begins_with_settings_and_has_them_once() {
        assert_eq!(
            control(&frames(&[(0x21, b"")])),
            Err(Error::MissingSettings(0x21))
        );
        assert_eq!(
            control(&frames(&[(kind::SETTINGS, b""), (kind::SETTINGS, b"")])),
            Err(Error::Unexpected(kind::SETTINGS))
        );
        for kind in [kind::DATA, kind::HEADERS, 0x02, 0x06] {
            let got = control(&frames(&[(kind::SETTINGS, b""), (kind, b"")]));
            assert_eq!(got, Err(Error::Unexpected(kind)));
        }
        let long = frames(&[(kind::SETTINGS, &[0; MAX_CONTROL_PAYLOAD + 1])]);
        assert_eq!(control(&long), Err(Error::Layout(kind::SETTINGS)));
    }

    #[test]
    fn goaway_ids_never_grow() {
        let ids = |a: u8, b: u8| {
            control(&frames(&[
                (kind::SETTINGS, b""),
                (kind::GOAWAY, &[a]),
                (kind::GOAWAY, &[b]),
            ]))
        };
        assert_eq!(
            ids(8, 4).unwrap()[1..],
            [Control::GoAway(8), Control::GoAway(4)]
        );
        assert_eq!(ids(4, 8), Err(Error::Id(8)));
        let trailing = control(&frames(&[(kind::SETTINGS, b""), (kind::GOAWAY, &[4, 0])]));
        assert_eq!(trailing, Err(Error::Layout(kind::GOAWAY)));
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(
            headers in prop::collection::vec(any::<u8>(), 0..64),
            content in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..6),
            grease in prop::collection::vec(any::<u8>(), 0..32),
            cuts in prop::collection::vec(1..40usize, 1..30),
        ) {
            let mut bytes = frames(&[(kind::HEADERS, &headers), (0x21, &grease)]);
            content.iter().for_each(|c| put(&mut bytes, kind::DATA, c));
            let mut decoder = MessageDecoder::new(64);
            let (mut got_headers, mut got) = (None, Vec::new());
            let (mut rest, mut cuts) = (&bytes[..], cuts.into_iter().cycle());
            while !rest.is_empty() {
                let (now, later) = rest.split_at(cuts.next().unwrap().min(rest.len()));
                rest = later;
                for message in read(&mut decoder, now).unwrap() {
                    match message {
                        Message::Headers(h) => got_headers = Some(h),
                        Message::Data(d) => got.extend_from_slice(&d),
                        Message::HeadersTooLong => prop_assert!(false),
                    }
                }
            }
            prop_assert_eq!(&got_headers.unwrap()[..], &headers[..]);
            prop_assert_eq!(got, content.concat());
            prop_assert!(decoder.at_boundary());
        }

        #[test]
        fn arbitrary_bytes_never_make_a_decoder_hold_more_than_its_bound(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20)
        ) {
            let mut message = MessageDecoder::new(100);
            let mut control = ControlDecoder::default();
            let (mut message_ok, mut control_ok) = (true, true);
            for chunk in chunks {
                if message_ok {
                    message_ok = read(&mut message, &chunk).is_ok();
                    prop_assert!(!message_ok || message.frames.buf.len() <= 100 + 16);
                }
                if control_ok {
                    control.push(&chunk);
                    while let Ok(Some(_)) = control.next().inspect_err(|_| control_ok = false) {}
                    prop_assert!(!control_ok || control.frames.buf.len() <= MAX_CONTROL_PAYLOAD + 16);
                }
            }
        }
    }
}
