//! However a stream is cut, its frames are the same; and no more is held than the decoders say.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use wavry_proto::h3::frame::{Control, ControlDecoder, Error, Message, MessageDecoder};

const MAX_HEADERS: usize = 256;

/// Frames with the pieces of content joined, and how it ended.
#[derive(Debug, Default, PartialEq)]
struct Read {
    frames: Vec<Message>,
    controls: Vec<Control>,
    error: Option<Error>,
}

impl Read {
    fn message(&mut self, message: Message) {
        if let (Some(Message::Data(before)), Message::Data(more)) =
            (self.frames.last_mut(), &message)
        {
            *before = Bytes::from([&before[..], &more[..]].concat());
        } else {
            self.frames.push(message);
        }
    }
}

fn messages<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Read {
    let mut decoder = MessageDecoder::new(MAX_HEADERS);
    let mut read = Read::default();
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.next() {
                Ok(Some(message)) => {
                    if let Message::Headers(section) = &message {
                        assert!(section.len() <= MAX_HEADERS);
                    }
                    read.message(message);
                }
                Ok(None) => break,
                Err(error) => {
                    read.error = Some(error);
                    return read;
                }
            }
        }
    }
    read
}

fn controls<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Read {
    let mut decoder = ControlDecoder::default();
    let mut read = Read::default();
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.next() {
                Ok(Some(control)) => read.controls.push(control),
                Ok(None) => break,
                Err(error) => {
                    read.error = Some(error);
                    return read;
                }
            }
        }
    }
    read
}

fuzz_target!(|data: &[u8]| {
    let Some((&cut, stream)) = data.split_first() else {
        return;
    };
    let piece = usize::from(cut) % 16 + 1;
    assert_eq!(messages([stream]), messages(stream.chunks(piece)));
    assert_eq!(controls([stream]), controls(stream.chunks(piece)));
});
