//! The peer's QPACK streams (RFC 9204, sections 4.3 and 4.4), which have little to say where there
//! is no dynamic table.

use crate::h3::code;

/// Why a QPACK stream is refused. Both are connection errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The peer's encoder uses a dynamic table, which it was not granted.
    #[error("QPACK encoder stream uses a dynamic table")]
    Encoder,
    /// The peer's decoder speaks of a dynamic table, which was never used.
    #[error("QPACK decoder stream speaks of a dynamic table")]
    Decoder,
}

impl Error {
    /// The error code to close the connection with.
    pub const fn code(&self) -> u64 {
        match self {
            Self::Encoder => code::QPACK_ENCODER_STREAM_ERROR,
            Self::Decoder => code::QPACK_DECODER_STREAM_ERROR,
        }
    }
}

/// Reads the peer's encoder stream, from bytes that may be cut anywhere.
#[derive(Debug, Default)]
pub struct EncoderStream;

impl EncoderStream {
    /// Set Dynamic Table Capacity with 0, the one instruction that fits a table without room.
    const NO_TABLE: u8 = 0b0010_0000;

    /// Reads more of the stream.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Error> {
        match bytes.iter().all(|byte| *byte == Self::NO_TABLE) {
            true => Ok(()),
            false => Err(Error::Encoder),
        }
    }
}

/// Reads the peer's decoder stream, from bytes that may be cut anywhere.
#[derive(Debug, Default)]
pub struct DecoderStream {
    /// The shift of the next octet of a stream id; `None` between instructions.
    shift: Option<u32>,
}

impl DecoderStream {
    /// Stream Cancellation, the one instruction that a decoder may send without ever having seen the
    /// dynamic table used: `01` and the stream's id. The others acknowledge what was never sent.
    const CANCELLATION: u8 = 0b0100_0000;
    const KIND: u8 = 0b1100_0000;
    const PREFIX: u8 = 0b0011_1111;
    /// The last octet of an integer may be shifted by this much: integers have 62 bits.
    const MAX_SHIFT: u32 = 56;

    /// Reads more of the stream.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Error> {
        for byte in bytes {
            self.shift = match self.shift {
                None if byte & Self::KIND != Self::CANCELLATION => return Err(Error::Decoder),
                None => (byte & Self::PREFIX == Self::PREFIX).then_some(0),
                Some(shift) if byte & 0x80 == 0 => {
                    // 2⁶² − 1 = 63 + Σ: the last octet has six bits.
                    if shift == Self::MAX_SHIFT && *byte > 0x3f {
                        return Err(Error::Decoder);
                    }
                    None
                }
                Some(Self::MAX_SHIFT) => return Err(Error::Decoder),
                Some(shift) => Some(shift + 7),
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_encoder_may_only_say_that_it_uses_no_table() {
        let read = |bytes: &[u8]| EncoderStream.push(bytes);
        assert_eq!(read(&[0x20, 0x20]), Ok(()));
        for bytes in [
            &[0x21][..],            // capacity 1
            &[0x3f, 0x00],          // capacity 31
            &[0xc0, 0x01, b'x'],    // insert with a static name
            &[0x41, b'a', 1, b'b'], // insert with a literal name
            &[0x00],                // duplicate
        ] {
            assert_eq!(read(bytes), Err(Error::Encoder), "{bytes:x?}");
        }
    }

    #[test]
    fn a_decoder_may_only_cancel_streams() {
        let read = |bytes: &[u8]| DecoderStream::default().push(bytes);
        assert_eq!(read(&[0x40, 0x44, 0x7f, 0x80, 0x01, 0x48]), Ok(()));
        let largest = [&[0x7f][..], &[0xff; 8], &[0x3f]].concat();
        assert_eq!(read(&largest), Ok(()));
        for bytes in [
            &[0x80][..],                                  // section acknowledgement
            &[0x00],                                      // insert count increment of 0
            &[0x01],                                      // insert count increment of 1
            &[&[0x7f][..], &[0xff; 8], &[0x40]].concat(), // 63 bits
            &[&[0x7f][..], &[0x80; 9]].concat(),
        ] {
            assert_eq!(read(bytes), Err(Error::Decoder), "{bytes:x?}");
        }
    }

    proptest! {
        #[test]
        fn a_cut_changes_nothing(bytes: Vec<u8>, cancel in prop::collection::vec(0x40..0x80u8, 0..20)) {
            for bytes in [bytes, cancel] {
                let whole = DecoderStream::default().push(&bytes);
                let mut decoder = DecoderStream::default();
                let cut = bytes.iter().try_for_each(|byte| decoder.push(&[*byte]));
                prop_assert_eq!(whole, cut);
            }
        }
    }
}
