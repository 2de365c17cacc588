//! However a stream is cut, its header is the same and what follows it is all there; a datagram
//! that was understood is written as it was read.
#![no_main]

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use wavry_proto::webtransport::{stream, subprotocol};

/// The first integer of a stream and what follows it.
fn first<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Option<(u64, Vec<u8>)> {
    let mut held = BytesMut::new();
    let mut found: Option<(u64, Vec<u8>)> = None;
    for piece in pieces {
        match &mut found {
            Some((_, rest)) => rest.extend_from_slice(piece),
            None => {
                found = stream::take_varint(&mut held, Bytes::copy_from_slice(piece))
                    .map(|(value, rest)| (value, rest.to_vec()));
                assert!(held.len() <= 8, "an integer has eight bytes at most");
            }
        }
    }
    found
}

fuzz_target!(|data: &[u8]| {
    assert_eq!(first([data]), first(data.chunks(1)));
    assert_eq!(first([data]), first(data.chunks(3)));

    if let Some((session, payload)) = stream::parse_datagram(Bytes::copy_from_slice(data)) {
        let again = stream::datagram(session, &payload);
        assert!(again.len() <= data.len());
        assert_eq!(stream::parse_datagram(again), Some((session, payload)));
    }

    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Some(names) = subprotocol::parse_list(text)
        && let Some(list) = subprotocol::format_list(&names)
    {
        assert_eq!(subprotocol::parse_list(&list), Some(names));
    }
    if let Some(name) = subprotocol::parse_item(text) {
        let item = subprotocol::format_item(&name).expect("what was read can be written");
        assert_eq!(subprotocol::parse_item(&item), Some(name));
    }
});
