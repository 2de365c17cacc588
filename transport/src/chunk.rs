//! What streams are read in.

use std::{
    future::{Future, poll_fn},
    pin::pin,
};

use bytes::{Bytes, BytesMut};

/// Packets whose payload is taken at once: 45 KB of full ones.
const MOST: usize = 32;

/// Reads what has arrived of `stream`, in order; waits for something. `None` at its end. Cancel-safe.
///
/// What came in several packets is copied into one chunk. Whoever reads it writes it somewhere, and a
/// lock and a wake-up of a connection for each packet cost more than the copy.
pub(crate) async fn read(
    stream: &mut quinn::RecvStream,
) -> Result<Option<Bytes>, quinn::ReadError> {
    poll_fn(|cx| {
        let mut parts: [Bytes; MOST] = Default::default();
        // It keeps nothing from one poll to the next, and `parts` need not be kept either.
        let polled = pin!(stream.read_chunks(&mut parts)).poll(cx);
        polled.map_ok(|read| read.map(|count| joined(&mut parts[..count])))
    })
    .await
}

fn joined(parts: &mut [Bytes]) -> Bytes {
    if let [one] = parts {
        return std::mem::take(one);
    }
    let mut chunk = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    for part in parts {
        chunk.extend_from_slice(part);
    }
    chunk.freeze()
}
