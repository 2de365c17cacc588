//! The content of a request, which must be what its head declared (RFC 9114, section 4.1).

use bytes::{Bytes, BytesMut};

use super::{
    code,
    frame::Message,
    message::{self, Malformed},
    qpack,
};
use crate::session::Header;

/// Content as it is read: at most `max` bytes are held.
#[derive(Debug)]
pub struct Content {
    declared: Option<u64>,
    body: BytesMut,
    max: usize,
    /// Longest trailer section in bytes.
    max_trailers: usize,
    /// The trailer section came, and nothing comes after it.
    ended: bool,
}

/// Why there is no content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is longer than allowed, or its trailer section is; the request can be answered with 413.
    #[error("content is too long")]
    TooLong,
    /// A stream error H3_MESSAGE_ERROR.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Something after the trailer section: a connection error H3_FRAME_UNEXPECTED.
    #[error("frame after the trailer section")]
    Unexpected,
    /// A connection error QPACK_DECOMPRESSION_FAILED.
    #[error("trailer section cannot be decompressed")]
    Decompression,
}

impl Error {
    /// The error code to close the connection with; `None` for what concerns the stream only.
    pub const fn connection_code(&self) -> Option<u64> {
        match self {
            Self::TooLong | Self::Malformed(_) => None,
            Self::Unexpected => Some(code::FRAME_UNEXPECTED),
            Self::Decompression => Some(code::QPACK_DECOMPRESSION_FAILED),
        }
    }
}

impl Content {
    /// The content that comes after a head with these `headers`: `max` bytes at most, and a trailer
    /// section of `max_trailers`.
    pub fn new(headers: &[Header], max: usize, max_trailers: usize) -> Result<Self, Error> {
        let declared = declared(headers)?;
        if declared.is_some_and(|len| len > max as u64) {
            return Err(Error::TooLong);
        }
        Ok(Self {
            declared,
            body: BytesMut::new(),
            max,
            max_trailers,
            ended: false,
        })
    }

    /// Takes what came next on the stream.
    pub fn push(&mut self, message: Message) -> Result<(), Error> {
        if self.ended {
            return Err(Error::Unexpected);
        }
        match message {
            Message::Data(data) => {
                let len = self.body.len() + data.len();
                // RFC 9114, section 4.1.2.
                if self.declared.is_some_and(|declared| len as u64 > declared) {
                    return Err(Malformed("more content than declared").into());
                }
                if len > self.max {
                    return Err(Error::TooLong);
                }
                self.body.extend_from_slice(&data);
                Ok(())
            }
            Message::Headers(section) => {
                self.ended = true;
                check_trailers(&section, self.max_trailers)
            }
            Message::HeadersTooLong => Err(Error::TooLong),
        }
    }

    /// The whole content, once the stream has ended.
    pub fn finish(self) -> Result<Bytes, Malformed> {
        let len = self.body.len() as u64;
        if self.declared.is_some_and(|declared| declared != len) {
            return Err(Malformed("less content than declared"));
        }
        Ok(self.body.freeze())
    }
}

/// What `content-length` says. That of a well-formed head is a number, and says so once.
fn declared(headers: &[Header]) -> Result<Option<u64>, Malformed> {
    let header = headers
        .iter()
        .find(|header| header.name == "content-length");
    let number = header.map(|header| header.value.parse());
    number
        .transpose()
        .map_err(|_| Malformed("content-length is not a number"))
}

/// A trailer section says nothing here, but it must be well-formed: without pseudo-headers.
fn check_trailers(section: &[u8], max: usize) -> Result<(), Error> {
    let fields = qpack::decode(section, max).map_err(|error| match error {
        qpack::Error::TooLong => Error::TooLong,
        qpack::Error::Decompression => Error::Decompression,
    })?;
    let well_formed = |field: &qpack::Field| message::is_header(&field.name, &field.value);
    match fields.iter().all(well_formed) {
        true => Ok(()),
        false => Err(Malformed("trailer section with a field that none may have").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn content(lengths: &[&str]) -> Result<Content, Error> {
        let header = |value: &&str| Header {
            name: "content-length".into(),
            value: (*value).into(),
        };
        let headers: Vec<_> = lengths.iter().map(header).collect();
        Content::new(&headers, 10, 100)
    }

    fn data(bytes: &'static [u8]) -> Message {
        Message::Data(Bytes::from_static(bytes))
    }

    fn trailers(name: &str) -> Message {
        let mut section = Vec::new();
        qpack::encode([(name.as_bytes(), &b"x"[..])], &mut section);
        Message::Headers(section.into())
    }

    #[test]
    fn content_is_what_was_declared_or_the_message_is_malformed() {
        for (lengths, whole) in [
            (&[][..], true),
            (&["5"], true),
            (&["4"], false),
            (&["6"], false),
        ] {
            let mut content = content(lengths).unwrap();
            let read = content
                .push(data(b"he"))
                .and_then(|()| content.push(data(b"llo")))
                .and_then(|()| Ok(content.finish()?));
            match whole {
                true => assert_eq!(read.unwrap(), "hello", "{lengths:?}"),
                false => assert!(matches!(read, Err(Error::Malformed(_))), "{lengths:?}"),
            }
        }
    }

    #[test]
    fn a_length_that_is_none_is_malformed() {
        for lengths in [&["x"][..], &[""], &["-1"]] {
            let refused = content(lengths).err();
            assert!(matches!(refused, Some(Error::Malformed(_))), "{lengths:?}");
        }
    }

    #[test]
    fn what_is_too_long_is_known_before_it_is_held() {
        assert_eq!(content(&["11"]).err(), Some(Error::TooLong));
        let mut content = content(&[]).unwrap();
        content.push(data(b"0123456789")).unwrap();
        assert_eq!(content.push(data(b"x")), Err(Error::TooLong));
        assert_eq!(content.push(Message::HeadersTooLong), Err(Error::TooLong));
    }

    #[test]
    fn trailers_end_the_content_and_hold_no_pseudo_header() {
        let mut ended = content(&["2"]).unwrap();
        ended.push(data(b"he")).unwrap();
        ended.push(trailers("a")).unwrap();
        let after = ended.push(data(b"llo")).unwrap_err();
        assert_eq!(after.connection_code(), Some(code::FRAME_UNEXPECTED));
        assert_eq!(ended.finish().unwrap(), "he");

        let pseudo = content(&[]).unwrap().push(trailers(":path"));
        assert!(matches!(pseudo, Err(Error::Malformed(_))));
        let garbage = Message::Headers(Bytes::from_static(&[2, 0x80]));
        let garbage = content(&[]).unwrap().push(garbage).unwrap_err();
        let expected = Some(code::QPACK_DECOMPRESSION_FAILED);
        assert_eq!(garbage.connection_code(), expected);
    }

    proptest! {
        #[test]
        fn arbitrary_messages_never_make_it_hold_more_than_its_bound(
            length in prop::option::of("[0-9, ]{0,3}"),
            list in prop::collection::vec((0..3u8, prop::collection::vec(any::<u8>(), 0..9)), 0..9),
        ) {
            let lengths: Vec<_> = length.iter().map(String::as_str).collect();
            let Ok(mut content) = content(&lengths) else { return Ok(()) };
            let mut sent = Vec::new();
            let mut taken = true;
            for (kind, bytes) in list {
                let message = match kind {
                    0 => Message::Headers(bytes.into()),
                    1 => Message::HeadersTooLong,
                    _ => {
                        sent.extend_from_slice(&bytes);
                        Message::Data(bytes.into())
                    }
                };
                taken &= content.push(message).is_ok();
                prop_assert!(content.body.len() <= 10);
                if !taken {
                    return Ok(());
                }
            }
            if let Ok(body) = content.finish() {
                prop_assert_eq!(body, sent);
            }
        }
    }
}
