//! However a stream is cut, its frames are the same and it may end at the same places; a message has
//! its parts in order; and no more is held than the decoders say.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use wavry_proto::h3::frame::{Control, ControlDecoder, Error, Message, MessageDecoder};

const MAX_HEADERS: usize = 256;

/// What the reader of a message knows of it.
#[derive(Clone, Copy)]
enum As {
    Request,
    /// With this many interim answers before the final one.
    Answer(u8),
    /// Of a CONNECT that was accepted.
    Tunnel,
}

/// Frames with the pieces of content joined, and how it ended.
#[derive(Debug, Default, PartialEq)]
struct Read {
    frames: Vec<Message>,
    controls: Vec<Control>,
    error: Option<Error>,
    end: Option<Result<(), Error>>,
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

fn messages<'a>(what: As, pieces: impl IntoIterator<Item = &'a [u8]>) -> Read {
    let mut decoder = match what {
        As::Answer(_) => MessageDecoder::responses(MAX_HEADERS),
        As::Request | As::Tunnel => MessageDecoder::new(MAX_HEADERS),
    };
    let (mut read, mut heads) = (Read::default(), 0);
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.next() {
                Ok(Some(Message::Data(content))) => {
                    assert!(!read.frames.is_empty(), "content before a head");
                    read.message(Message::Data(content));
                }
                Ok(Some(message)) => {
                    if let Message::Headers(section) = &message {
                        assert!(section.len() <= MAX_HEADERS);
                    }
                    heads += 1;
                    match what {
                        As::Answer(interim) if heads <= u32::from(interim) => decoder.interim(),
                        As::Answer(interim) => assert!(heads <= u32::from(interim) + 2),
                        As::Tunnel if heads == 1 => decoder.tunnel(),
                        As::Tunnel => panic!("trailers in a tunnel"),
                        As::Request => assert!(heads <= 2, "more than a head and trailers"),
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
    read.end = Some(decoder.finish());
    read
}

fn controls<'a>(of_server: bool, pieces: impl IntoIterator<Item = &'a [u8]>) -> Read {
    let mut decoder = match of_server {
        true => ControlDecoder::of_server(),
        false => ControlDecoder::default(),
    };
    let mut read = Read::default();
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.next() {
                Ok(Some(control)) => {
                    let is_settings = matches!(control, Control::Settings(_));
                    assert_eq!(is_settings, read.controls.is_empty(), "settings come first");
                    if let (Some(Control::GoAway(last)), Control::GoAway(id)) =
                        (read.controls.last(), &control)
                    {
                        assert!(id <= last, "GOAWAY grew");
                    }
                    read.controls.push(control);
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

fuzz_target!(|data: &[u8]| {
    let Some((&how, stream)) = data.split_first() else {
        return;
    };
    let piece = usize::from(how) % 16 + 1;
    let what = match how >> 4 {
        0..6 => As::Request,
        6..10 => As::Tunnel,
        interim => As::Answer(interim - 10),
    };
    let whole = messages(what, [stream]);
    assert_eq!(whole, messages(what, stream.chunks(piece)));
    for of_server in [false, true] {
        let whole = controls(of_server, [stream]);
        assert_eq!(whole, controls(of_server, stream.chunks(piece)));
    }
});
