//! What precedes the application's bytes on a stream, and its payload in a datagram
//! (draft-ietf-webtrans-http3, sections 4.2 to 4.5).

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{h3::frame, varint};

/// Type of a unidirectional WebTransport stream.
pub const UNI: u64 = 0x54;
/// Signal value that begins a bidirectional WebTransport stream.
pub const BI: u64 = frame::kind::WEBTRANSPORT_STREAM;

/// Longest header of a stream, in bytes: two varints.
pub const MAX_HEADER: usize = 16;

/// The header of a stream of session `session`; `signal` is [`UNI`] or [`BI`].
pub fn header(signal: u64, session: u64) -> Bytes {
    let mut buf = BytesMut::with_capacity(MAX_HEADER);
    varint::put(&mut buf, signal);
    varint::put(&mut buf, session);
    buf.freeze()
}

/// Whether `id` can be a session's: the id of a bidirectional stream that the client opened
/// (RFC 9000, section 2.1).
pub const fn is_session_id(id: u64) -> bool {
    id.is_multiple_of(4)
}

/// Takes an integer off the front of a stream that comes in chunks: bytes are gathered in `held`
/// until they suffice. Gives the integer and what follows it of `chunk`, without a copy.
///
/// `None` when more chunks are needed; then all of `chunk` was taken.
pub fn take_varint(held: &mut BytesMut, mut chunk: Bytes) -> Option<(u64, Bytes)> {
    if held.is_empty()
        && let Some(value) = varint::get(&mut chunk)
    {
        return Some((value, chunk));
    }
    while chunk.has_remaining() {
        held.put_u8(chunk.get_u8());
        if let Some(value) = varint::get(held) {
            return Some((value, chunk));
        }
    }
    None
}

/// A datagram of session `session`, as it goes into a QUIC datagram: one copy of the payload.
pub fn datagram(session: u64, payload: &[u8]) -> Bytes {
    let quarter = session / 4;
    let mut buf = BytesMut::with_capacity(varint::size(quarter) + payload.len());
    varint::put(&mut buf, quarter);
    buf.put_slice(payload);
    buf.freeze()
}

/// The session that a QUIC datagram belongs to, and its payload; `None` when it is malformed
/// (RFC 9297, section 2.1).
pub fn parse_datagram(mut datagram: Bytes) -> Option<(u64, Bytes)> {
    let quarter = varint::get(&mut datagram)?;
    // A stream id has at most 62 bits.
    (quarter <= varint::MAX / 4).then_some((quarter * 4, datagram))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_datagram_for_an_impossible_stream_is_malformed() {
        let mut buf = BytesMut::new();
        varint::put(&mut buf, varint::MAX / 4 + 1);
        assert_eq!(parse_datagram(buf.freeze()), None);
        assert_eq!(parse_datagram(Bytes::new()), None);
    }

    proptest! {
        #[test]
        fn a_header_survives_any_cut(
            quarter in 0..=varint::MAX / 4,
            payload: Vec<u8>,
            cut in 1..20usize,
        ) {
            let bytes = [&header(UNI, quarter * 4)[..], &payload].concat();
            let mut chunks = bytes.chunks(cut).map(Bytes::copy_from_slice);
            let mut values = Vec::new();
            let (mut held, mut rest) = (BytesMut::new(), Bytes::new());
            while values.len() < 2 {
                let chunk = if rest.is_empty() { chunks.next().unwrap() } else { rest };
                rest = match take_varint(&mut held, chunk) {
                    Some((value, rest)) => {
                        values.push(value);
                        rest
                    }
                    None => Bytes::new(),
                };
            }
            prop_assert_eq!(values, [UNI, quarter * 4]);
            let rest = [rest].into_iter().chain(chunks).collect::<Vec<_>>().concat();
            prop_assert_eq!(rest, payload);
        }

        #[test]
        fn a_datagram_survives_its_encoding(quarter in 0..=varint::MAX / 4, payload: Vec<u8>) {
            let (session, got) = parse_datagram(datagram(quarter * 4, &payload)).unwrap();
            prop_assert_eq!((session, &got[..]), (quarter * 4, &payload[..]));
        }

        #[test]
        fn arbitrary_datagrams_parse_or_not(bytes: Vec<u8>) {
            if let Some((session, _)) = parse_datagram(bytes.into()) {
                prop_assert!(is_session_id(session) && session <= varint::MAX);
            }
        }
    }
}
