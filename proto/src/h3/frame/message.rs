//! Frames of request streams (RFC 9114, sections 4.1 and 4.4).

use bytes::Bytes;

use super::{Error, Frames, State, Step, kind};

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

/// How far the message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Before its head.
    Head,
    /// After the head: content, then perhaps trailers.
    Content,
    /// After the head of a CONNECT that was accepted: content only.
    Tunnel,
    /// After the trailers.
    Over,
}

/// Reads the frames of a request stream.
///
/// Holds at most one field section (`max_headers` bytes) and what was pushed last.
#[derive(Debug)]
pub struct MessageDecoder {
    frames: Frames,
    max_headers: usize,
    phase: Phase,
    responses: bool,
}

impl MessageDecoder {
    /// A decoder of a request, which takes field sections of up to `max_headers` bytes.
    pub fn new(max_headers: usize) -> Self {
        Self {
            frames: Frames::default(),
            max_headers,
            phase: Phase::Head,
            responses: false,
        }
    }

    /// The same for the answer to a request.
    pub fn responses(max_headers: usize) -> Self {
        Self {
            responses: true,
            ..Self::new(max_headers)
        }
    }

    /// The head that was read last is that of an interim answer: another one follows.
    pub fn interim(&mut self) {
        self.phase = Phase::Head;
    }

    /// The head that was read last completed a CONNECT: nothing but content follows (RFC 9114,
    /// section 4.4).
    pub fn tunnel(&mut self) {
        self.phase = Phase::Tunnel;
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

    /// The stream ended with FIN. An error when that is within a frame (RFC 9114, section 7.1).
    pub fn finish(&self) -> Result<(), Error> {
        if self.at_boundary() {
            Ok(())
        } else {
            Err(Error::Truncated)
        }
    }

    fn begin(&mut self, kind: u64, len: u64) -> Result<Option<Message>, Error> {
        self.frames.state = match (kind, self.phase) {
            (kind::DATA, Phase::Content | Phase::Tunnel) => State::Data { left: len },
            (kind::HEADERS, Phase::Head | Phase::Content) => {
                self.phase = match self.phase {
                    Phase::Head => Phase::Content,
                    _ => Phase::Over,
                };
                if len > self.max_headers as u64 {
                    self.frames.state = State::Skip { left: len };
                    return Ok(Some(Message::HeadersTooLong));
                }
                State::Whole {
                    kind,
                    len: len as usize,
                }
            }
            // RFC 9114, section 7.2.5: its id is over what was granted, as nothing was.
            (kind::PUSH_PROMISE, _) if self.responses => return Err(Error::Push(kind)),
            (
                kind::DATA
                | kind::HEADERS
                | kind::CANCEL_PUSH
                | kind::SETTINGS
                | kind::PUSH_PROMISE
                | kind::GOAWAY
                | kind::MAX_PUSH_ID
                | kind::WEBTRANSPORT_STREAM
                | kind::PRIORITY_UPDATE
                | kind::PRIORITY_UPDATE_PUSH,
                _,
            ) => return Err(Error::Unexpected(kind)),
            _ if kind::is_reserved(kind) => return Err(Error::Unexpected(kind)),
            _ => State::Skip { left: len },
        };
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::h3::{code, frame::put};

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
        assert_eq!(decoder.finish(), Ok(()));
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
        for kind in [
            0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0d, 0x41, 0xf0700, 0xf0701,
        ] {
            let bytes = frames(&[(kind::HEADERS, b""), (kind, b"")]);
            let got = read(&mut MessageDecoder::new(10), &bytes);
            assert_eq!(got, Err(Error::Unexpected(kind)), "{kind:#x}");
        }
        let promise = frames(&[(kind::PUSH_PROMISE, b"\0\0\0")]);
        let got = read(&mut MessageDecoder::responses(10), &promise).unwrap_err();
        assert_eq!(got.code(), code::ID_ERROR);
        let signal = Error::Unexpected(kind::WEBTRANSPORT_STREAM);
        assert_eq!(signal.code(), code::FRAME_ERROR);
    }

    #[test]
    fn a_message_is_a_head_then_content_then_trailers() {
        let order = |kinds: &[u64]| {
            let list: Vec<_> = kinds.iter().map(|kind| (*kind, &b"x"[..])).collect();
            read(&mut MessageDecoder::new(10), &frames(&list)).map(|list| list.len())
        };
        let (data, headers) = (kind::DATA, kind::HEADERS);
        assert_eq!(order(&[headers, data, data, headers, 0x21]), Ok(4));
        assert_eq!(order(&[data]), Err(Error::Unexpected(data)));
        for after in [data, headers] {
            let got = order(&[headers, headers, after]);
            assert_eq!(got, Err(Error::Unexpected(after)));
        }
    }

    #[test]
    fn interim_answers_have_no_content_and_tunnels_no_trailers() {
        let (head, content) = (
            frames(&[(kind::HEADERS, b"h")]),
            frames(&[(kind::DATA, b"d")]),
        );
        let mut decoder = MessageDecoder::responses(10);
        for _ in 0..3 {
            read(&mut decoder, &head).unwrap();
            decoder.interim();
        }
        let early = read(&mut decoder, &content);
        assert_eq!(early, Err(Error::Unexpected(kind::DATA)));

        let mut decoder = MessageDecoder::new(10);
        read(&mut decoder, &head).unwrap();
        decoder.tunnel();
        read(&mut decoder, &content).unwrap();
        let trailers = read(&mut decoder, &head);
        assert_eq!(trailers, Err(Error::Unexpected(kind::HEADERS)));
    }

    #[test]
    fn a_stream_ends_between_its_frames() {
        let bytes = frames(&[(kind::HEADERS, b"h"), (kind::DATA, b"d"), (0x21, b"g")]);
        let ends = [0, 3, 6, 9];
        for cut in 0..=bytes.len() {
            let mut decoder = MessageDecoder::new(10);
            read(&mut decoder, &bytes[..cut]).unwrap();
            assert_eq!(decoder.finish().is_ok(), ends.contains(&cut), "{cut}");
        }
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
        fn arbitrary_bytes_never_make_the_decoder_hold_more_than_its_bound(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20)
        ) {
            let mut decoder = MessageDecoder::new(100);
            for chunk in chunks {
                if read(&mut decoder, &chunk).is_err() {
                    break;
                }
                prop_assert!(decoder.frames.buf.len() <= 100 + 16);
            }
        }
    }
}
