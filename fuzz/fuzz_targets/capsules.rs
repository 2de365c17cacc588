//! However the content of a CONNECT stream is cut, its capsules are the same, and they survive our
//! encoder.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wavry_proto::{
    session::MAX_CLOSE_REASON,
    webtransport::capsule::{Capsule, Decoder},
};

fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Capsule>, bool) {
    let mut decoder = Decoder::default();
    let mut capsules = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.next() {
                Ok(Some(capsule)) => capsules.push(capsule),
                Ok(None) => break,
                Err(_) => return (capsules, false),
            }
        }
    }
    (capsules, true)
}

fuzz_target!(|data: &[u8]| {
    let Some((&cut, content)) = data.split_first() else {
        return;
    };
    let whole = read([content]);
    assert_eq!(whole, read(content.chunks(usize::from(cut) % 16 + 1)));

    let mut again = Vec::new();
    for capsule in &whole.0 {
        if let Capsule::Close(close) = capsule {
            assert!(close.reason.len() <= MAX_CLOSE_REASON);
        }
        capsule.encode(&mut again);
    }
    assert_eq!(read([&again[..]]), (whole.0, true));
});
