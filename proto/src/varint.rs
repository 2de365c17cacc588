//! QUIC variable-length integers (RFC 9000, section 16).

use bytes::{Buf, BufMut};

/// The largest value: 2⁶² − 1.
pub const MAX: u64 = (1 << 62) - 1;

/// The number of bytes `value` takes: 1, 2, 4 or 8.
///
/// # Panics
/// When `value` is over [`MAX`].
pub const fn size(value: u64) -> usize {
    match value {
        0..=0x3f => 1,
        0x40..=0x3fff => 2,
        0x4000..=0x3fff_ffff => 4,
        0x4000_0000..=MAX => 8,
        _ => panic!("value does not fit a QUIC varint"),
    }
}

/// Appends `value` in its shortest form.
///
/// # Panics
/// When `value` is over [`MAX`].
pub fn put(buf: &mut impl BufMut, value: u64) {
    match size(value) {
        1 => buf.put_u8(value as u8),
        2 => buf.put_u16(0x4000 | value as u16),
        4 => buf.put_u32(0x8000_0000 | value as u32),
        _ => buf.put_u64(0xc000_0000_0000_0000 | value),
    }
}

/// Takes an integer off the front of `buf`. `None`, with nothing taken, when `buf` ends before the
/// integer does. Any of the four lengths is accepted for any value, as the RFC asks.
pub fn get(buf: &mut impl Buf) -> Option<u64> {
    let first = *buf.chunk().first()?;
    let len = 1usize << (first >> 6);
    if buf.remaining() < len {
        return None;
    }
    Some(match len {
        1 => u64::from(buf.get_u8()),
        2 => u64::from(buf.get_u16() & 0x3fff),
        4 => u64::from(buf.get_u32() & 0x3fff_ffff),
        _ => buf.get_u64() & MAX,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_examples_of_rfc_9000_appendix_a_1_decode() {
        for (bytes, value) in [
            (
                &[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c][..],
                151_288_809_941_952_652,
            ),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
            (&[0x40, 0x25], 37),
        ] {
            let mut rest = bytes;
            assert_eq!(get(&mut rest), Some(value));
            assert!(rest.is_empty());
        }
    }

    proptest! {
        #[test]
        fn every_value_survives_its_encoding(value in 0..=MAX) {
            let mut buf = Vec::new();
            put(&mut buf, value);
            prop_assert_eq!(buf.len(), size(value));
            for cut in 0..buf.len() {
                let mut rest = &buf[..cut];
                prop_assert_eq!(get(&mut rest), None);
                prop_assert_eq!(rest.len(), cut);
            }
            prop_assert_eq!(get(&mut &buf[..]), Some(value));
        }
    }
}
