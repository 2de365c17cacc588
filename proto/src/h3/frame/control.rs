//! Frames of control streams (RFC 9114, sections 5.2, 6.2.1 and 7.2; RFC 9218, section 7.2).

use super::{Error, Frames, State, Step, kind};
use crate::{h3::settings, varint};

/// Longest payload of SETTINGS and PRIORITY_UPDATE, in bytes: 64 settings of 16 bytes.
pub const MAX_CONTROL_PAYLOAD: usize = 1024;

/// Longest payload that is one integer.
const MAX_ID_PAYLOAD: usize = 8;

/// A frame of a control stream that means something to Wavry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// The peer's settings; the first frame, and only that.
    Settings(settings::Settings),
    /// A server takes no requests with this stream id or a higher one; a client no pushes with this
    /// id or a higher one.
    GoAway(u64),
}

/// Reads the frames of the peer's control stream; by [`default`](Self::default) of a client's.
#[derive(Debug, Default)]
pub struct ControlDecoder {
    frames: Frames,
    of_server: bool,
    settings_seen: bool,
    goaway: Option<u64>,
    max_push: Option<u64>,
}

impl ControlDecoder {
    /// A decoder for the control stream of a server.
    pub fn of_server() -> Self {
        Self {
            of_server: true,
            ..Self::default()
        }
    }

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
                    if let Some(frame) = self.about(kind, &payload)? {
                        return Ok(Some(frame));
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
        let whole = |len| State::Whole { kind, len };
        self.frames.state = match kind {
            kind::SETTINGS if self.settings_seen => return Err(Error::Unexpected(kind)),
            // Those speak to servers.
            kind::MAX_PUSH_ID | kind::PRIORITY_UPDATE | kind::PRIORITY_UPDATE_PUSH
                if self.of_server =>
            {
                return Err(Error::Unexpected(kind));
            }
            kind::SETTINGS | kind::PRIORITY_UPDATE | kind::PRIORITY_UPDATE_PUSH => {
                self.settings_seen = true;
                whole(bounded(len, MAX_CONTROL_PAYLOAD).ok_or(Error::TooLong(kind))?)
            }
            kind::GOAWAY | kind::CANCEL_PUSH | kind::MAX_PUSH_ID => {
                whole(bounded(len, MAX_ID_PAYLOAD).ok_or(Error::Layout(kind))?)
            }
            kind::DATA | kind::HEADERS | kind::PUSH_PROMISE | kind::WEBTRANSPORT_STREAM => {
                return Err(Error::Unexpected(kind));
            }
            _ if kind::is_reserved(kind) => return Err(Error::Unexpected(kind)),
            _ => State::Skip { left: len },
        };
        Ok(())
    }

    /// Reads a frame whose payload begins with the id that it is about.
    fn about(&mut self, kind: u64, mut payload: &[u8]) -> Result<Option<Control>, Error> {
        let id = varint::get(&mut payload).ok_or(Error::Layout(kind))?;
        let priority = matches!(kind, kind::PRIORITY_UPDATE | kind::PRIORITY_UPDATE_PUSH);
        if !payload.is_empty() && !priority {
            return Err(Error::Layout(kind));
        }
        let is_request = id.is_multiple_of(4);
        match kind {
            // The id never grows, and a server's is that of a request.
            kind::GOAWAY if self.goaway.is_some_and(|last| id > last) => Err(Error::Id(kind, id)),
            kind::GOAWAY if self.of_server && !is_request => Err(Error::Id(kind, id)),
            kind::GOAWAY => {
                self.goaway = Some(id);
                Ok(Some(Control::GoAway(id)))
            }
            // The id never shrinks. What it grants is not used: nothing is ever pushed.
            kind::MAX_PUSH_ID if self.max_push.is_some_and(|last| id < last) => {
                Err(Error::Id(kind, id))
            }
            kind::MAX_PUSH_ID => {
                self.max_push = Some(id);
                Ok(None)
            }
            // No push was ever promised, and none was granted.
            kind::CANCEL_PUSH | kind::PRIORITY_UPDATE_PUSH => Err(Error::Push(kind)),
            kind::PRIORITY_UPDATE if !is_request => Err(Error::Id(kind, id)),
            // A hint that is not taken.
            _ => Ok(None),
        }
    }
}

fn bounded(len: u64, max: usize) -> Option<usize> {
    usize::try_from(len).ok().filter(|len| *len <= max)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::h3::{code, frame::put};

    fn frames(list: &[(u64, &[u8])]) -> Vec<u8> {
        let mut buf = Vec::new();
        for (kind, payload) in list {
            put(&mut buf, *kind, payload);
        }
        buf
    }

    fn read(mut decoder: ControlDecoder, bytes: &[u8]) -> Result<Vec<Control>, Error> {
        decoder.push(bytes);
        let mut list = Vec::new();
        while let Some(frame) = decoder.next()? {
            list.push(frame);
        }
        Ok(list)
    }

    fn control(bytes: &[u8]) -> Result<Vec<Control>, Error> {
        read(ControlDecoder::default(), bytes)
    }

    /// What comes of frames after empty settings, from a client and from a server.
    fn after_settings(list: &[(u64, &[u8])]) -> [Result<Vec<Control>, Error>; 2] {
        let bytes = [frames(&[(kind::SETTINGS, b"")]), frames(list)].concat();
        [ControlDecoder::default(), ControlDecoder::of_server()]
            .map(|decoder| read(decoder, &bytes).map(|list| list[1..].to_vec()))
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
        for kind in [
            kind::DATA,
            kind::HEADERS,
            kind::PUSH_PROMISE,
            0x02,
            0x06,
            0x41,
        ] {
            for got in after_settings(&[(kind, b"")]) {
                assert_eq!(got, Err(Error::Unexpected(kind)));
            }
        }
        let long = frames(&[(kind::SETTINGS, &[0; MAX_CONTROL_PAYLOAD + 1])]);
        let refused = control(&long).unwrap_err();
        assert_eq!(refused.code(), code::EXCESSIVE_LOAD);
    }

    #[test]
    fn goaway_ids_never_grow_and_are_those_of_requests() {
        let ids = |a: u8, b: u8| after_settings(&[(kind::GOAWAY, &[a]), (kind::GOAWAY, &[b])]);
        let shrinking = Ok(vec![Control::GoAway(8), Control::GoAway(4)]);
        assert_eq!(ids(8, 4), [shrinking.clone(), shrinking]);
        let grown = Err(Error::Id(kind::GOAWAY, 8));
        assert_eq!(ids(4, 8), [grown.clone(), grown]);
        // A client speaks of pushes, which may have any id.
        let [from_client, from_server] = after_settings(&[(kind::GOAWAY, &[3])]);
        assert_eq!(from_client, Ok(vec![Control::GoAway(3)]));
        assert_eq!(from_server, Err(Error::Id(kind::GOAWAY, 3)));
    }

    #[test]
    fn push_ids_never_shrink_and_nothing_was_pushed() {
        let [from_client, from_server] =
            after_settings(&[(kind::MAX_PUSH_ID, &[5]), (kind::MAX_PUSH_ID, &[4])]);
        assert_eq!(from_client, Err(Error::Id(kind::MAX_PUSH_ID, 4)));
        assert_eq!(from_server, Err(Error::Unexpected(kind::MAX_PUSH_ID)));
        for got in after_settings(&[(kind::CANCEL_PUSH, &[0])]) {
            assert_eq!(got.unwrap_err().code(), code::ID_ERROR);
        }
    }

    #[test]
    fn priorities_are_of_requests_and_come_from_clients() {
        let [from_client, from_server] = after_settings(&[(kind::PRIORITY_UPDATE, b"\x04u=3")]);
        assert_eq!(from_client, Ok(vec![]));
        assert_eq!(from_server, Err(Error::Unexpected(kind::PRIORITY_UPDATE)));
        for wrong in [
            (kind::PRIORITY_UPDATE, b"\x02u=3"),
            (kind::PRIORITY_UPDATE_PUSH, b"\x00u=3"),
        ] {
            let [from_client, _] = after_settings(&[(wrong.0, wrong.1)]);
            assert_eq!(from_client.unwrap_err().code(), code::ID_ERROR);
        }
    }

    #[test]
    fn a_payload_is_as_long_as_its_fields() {
        for kind in [kind::GOAWAY, kind::CANCEL_PUSH, kind::MAX_PUSH_ID] {
            for payload in [&b""[..], b"\x40", b"\x04\x00", &[0; 9]] {
                let [from_client, _] = after_settings(&[(kind, payload)]);
                assert_eq!(from_client, Err(Error::Layout(kind)), "{payload:x?}");
            }
        }
        let [from_client, _] = after_settings(&[(kind::PRIORITY_UPDATE, b"")]);
        assert_eq!(from_client, Err(Error::Layout(kind::PRIORITY_UPDATE)));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_make_the_decoder_hold_more_than_its_bound(
            of_server: bool,
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20)
        ) {
            let mut decoder = ControlDecoder { of_server, ..ControlDecoder::default() };
            for chunk in chunks {
                decoder.push(&chunk);
                loop {
                    match decoder.next() {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => return Ok(()),
                    }
                }
                prop_assert!(decoder.frames.buf.len() <= MAX_CONTROL_PAYLOAD + 16);
            }
        }
    }
}
