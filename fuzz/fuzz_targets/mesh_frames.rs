//! However a mesh control stream is cut, its frames are the same, and they survive our encoder.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use wavry_proto::mesh::frame::{Decoder, Frame};

fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Frame>, bool) {
    let mut decoder = Decoder::default();
    let mut frames = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, false),
            }
        }
    }
    (frames, true)
}

fuzz_target!(|data: &[u8]| {
    let Some((&cut, content)) = data.split_first() else {
        return;
    };
    let whole = read([content]);
    assert_eq!(whole, read(content.chunks(usize::from(cut) % 16 + 1)));

    let mut again = BytesMut::new();
    for frame in &whole.0 {
        frame
            .put(&mut again)
            .expect("what was read is not too long to write");
    }
    assert_eq!(read([&again[..]]), (whole.0, true));
});
