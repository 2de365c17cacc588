//! What comes first on every stream and in every datagram, and the codes streams are reset with.

use bytes::{Buf, BufMut};

use crate::varint;

/// A session's number on its connection: a counter and, in the lowest bit, which side of the
/// connection opened it. 30 bits, so that it fits beside an application code in a QUIC error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(u32);

/// Which end of a QUIC connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The one that dialled.
    Client,
    /// The one that was dialled.
    Server,
}

impl Side {
    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

impl SessionId {
    /// The largest id.
    pub const MAX: u32 = (1 << 30) - 1;

    /// The `count`-th session that `side` opens on a connection; `None` when ids are used up and
    /// the connection must be replaced.
    pub fn new(count: u32, side: Side) -> Option<Self> {
        let id = count.checked_mul(2)? | u32::from(side == Side::Server);
        (id <= Self::MAX).then_some(Self(id))
    }

    /// Reads an id off the wire.
    pub fn from_wire(value: u64) -> Option<Self> {
        u32::try_from(value)
            .ok()
            .filter(|id| *id <= Self::MAX)
            .map(Self)
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }

    /// Which side opened the session.
    pub fn opener(self) -> Side {
        if self.0 & 1 == 0 {
            Side::Client
        } else {
            Side::Server
        }
    }

    /// Length of a datagram's header in bytes: 1, 2 or 4.
    pub fn datagram_header_len(self) -> usize {
        varint::size(u64::from(self.0))
    }
}

/// Why a header cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHeader {
    /// Not a type of stream that this version knows.
    #[error("unknown stream type {0:#x}")]
    Type(u64),
    /// The session id is over 30 bits.
    #[error("session id out of range")]
    SessionId,
}

/// The first bytes of a stream: type, then session id, both varints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamHeader {
    /// The control stream that opens a session.
    Control(SessionId),
    /// A stream of a session.
    Data(SessionId),
}

const CONTROL: u64 = 0x00;
const DATA: u64 = 0x01;

impl StreamHeader {
    /// Longest header in bytes, were both integers in their longest form.
    pub const MAX_LEN: usize = 16;

    /// Appends the header.
    pub fn put(self, buf: &mut impl BufMut) {
        let (kind, id) = match self {
            Self::Control(id) => (CONTROL, id),
            Self::Data(id) => (DATA, id),
        };
        varint::put(buf, kind);
        varint::put(buf, u64::from(id.0));
    }

    /// Takes a header off the front of `buf`; `Ok(None)`, with nothing taken, when more bytes are
    /// needed.
    pub fn get(buf: &mut (impl Buf + Clone)) -> Result<Option<Self>, InvalidHeader> {
        let mut rest = buf.clone();
        let Some(kind) = varint::get(&mut rest) else {
            return Ok(None);
        };
        if kind != CONTROL && kind != DATA {
            return Err(InvalidHeader::Type(kind));
        }
        let Some(id) = varint::get(&mut rest) else {
            return Ok(None);
        };
        let id = SessionId::from_wire(id).ok_or(InvalidHeader::SessionId)?;
        *buf = rest;
        Ok(Some(if kind == CONTROL {
            Self::Control(id)
        } else {
            Self::Data(id)
        }))
    }
}

/// Appends a datagram's header: the session id as a varint.
pub fn put_datagram(buf: &mut impl BufMut, id: SessionId) {
    varint::put(buf, u64::from(id.0));
}

/// Takes a datagram's header off the front of `buf`; `None` when it is not a session id.
pub fn get_datagram(buf: &mut impl Buf) -> Option<SessionId> {
    SessionId::from_wire(varint::get(buf)?)
}

/// The QUIC error code for a reset stream: the session id above, the application's code below. A
/// stream reset before its header was delivered still tells whose it was.
pub fn reset_code(id: SessionId, application: u32) -> u64 {
    u64::from(id.0) << 32 | u64::from(application)
}

/// Session and application code of a reset stream.
pub fn split_reset_code(code: u64) -> Option<(SessionId, u32)> {
    Some((SessionId::from_wire(code >> 32)?, code as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id() -> impl Strategy<Value = SessionId> {
        (0..=SessionId::MAX).prop_map(SessionId)
    }

    #[test]
    fn sides_do_not_share_ids_and_ids_run_out_rather_than_wrap() {
        let client = SessionId::new(7, Side::Client).unwrap();
        let server = SessionId::new(7, Side::Server).unwrap();
        assert_ne!(client, server);
        assert_eq!(
            (client.opener(), server.opener()),
            (Side::Client, Side::Server)
        );
        assert!(SessionId::new(SessionId::MAX / 2, Side::Server).is_some());
        assert!(SessionId::new(SessionId::MAX / 2 + 1, Side::Client).is_none());
        assert!(SessionId::new(u32::MAX, Side::Client).is_none());
    }

    proptest! {
        #[test]
        fn headers_survive_their_encoding(id in id(), control: bool, tail: Vec<u8>) {
            let header = if control { StreamHeader::Control(id) } else { StreamHeader::Data(id) };
            let mut bytes = Vec::new();
            header.put(&mut bytes);
            for cut in 0..bytes.len() {
                prop_assert_eq!(StreamHeader::get(&mut &bytes[..cut]), Ok(None));
            }
            bytes.extend_from_slice(&tail);
            let mut rest = &bytes[..];
            prop_assert_eq!(StreamHeader::get(&mut rest), Ok(Some(header)));
            prop_assert_eq!(rest, &tail[..]);

            let mut datagram = Vec::new();
            put_datagram(&mut datagram, id);
            prop_assert_eq!(datagram.len(), id.datagram_header_len());
            datagram.extend_from_slice(&tail);
            let mut rest = &datagram[..];
            prop_assert_eq!(get_datagram(&mut rest), Some(id));
            prop_assert_eq!(rest, &tail[..]);
        }

        #[test]
        fn reset_codes_survive_and_fit_a_varint(id in id(), code: u32) {
            let wire = reset_code(id, code);
            prop_assert!(wire <= varint::MAX);
            prop_assert_eq!(split_reset_code(wire), Some((id, code)));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, code: u64) {
            let _ = StreamHeader::get(&mut &bytes[..]);
            let _ = get_datagram(&mut &bytes[..]);
            let _ = split_reset_code(code);
        }
    }
}
