//! Field sections (RFC 9204, section 4.5) without a dynamic table.

use bytes::{Buf, BufMut};

use super::{huffman, table::STATIC};

pub mod stream;

/// A field line: name and value as octets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Name; a pseudo-header's begins with a colon.
    pub name: Vec<u8>,
    /// Value.
    pub value: Vec<u8>,
}

impl Field {
    /// A field line of these octets.
    pub fn new(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        Self {
            name: name.as_ref().to_vec(),
            value: value.as_ref().to_vec(),
        }
    }
}

/// Why a field section was not decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is not QPACK, or it refers to a dynamic table that we do not have. This is a connection
    /// error QPACK_DECOMPRESSION_FAILED.
    #[error("field section cannot be decompressed")]
    Decompression,
    /// It is longer than allowed once decompressed (RFC 9114, section 4.2.2).
    #[error("field section is too long")]
    TooLong,
}

/// What each field line costs besides its octets (RFC 9114, section 4.2.2).
const LINE_COST: usize = 32;

/// Decodes a field section of at most `max_size` bytes, counted as in RFC 9114, section 4.2.2.
pub fn decode(mut section: &[u8], max_size: usize) -> Result<Vec<Field>, Error> {
    let buf = &mut section;
    // Required Insert Count must be 0, as nothing was ever inserted. The base then means nothing, but
    // may not be negative (section 4.5.1.2).
    let (_, required) = integer(buf, 8)?;
    let (negative, _) = integer(buf, 7)?;
    if required != 0 || negative != 0 {
        return Err(Error::Decompression);
    }

    let mut fields = Vec::new();
    let mut size = 0;
    while let Some(&first) = buf.first() {
        let field = if first & 0x80 != 0 {
            // Indexed field line: 1 T index(6).
            let (flags, index) = integer(buf, 6)?;
            let (name, value) = static_line(flags, 0b01, index)?;
            Field::new(name, value)
        } else if first & 0x40 != 0 {
            // Literal field line with name reference: 0 1 N T index(4).
            let (flags, index) = integer(buf, 4)?;
            let (name, _) = static_line(flags, 0b0001, index)?;
            Field {
                name: name.into(),
                value: string(buf, 7)?,
            }
        } else if first & 0x20 != 0 {
            // Literal field line with literal name: 0 0 1 N H length(3).
            Field {
                name: string(buf, 3)?,
                value: string(buf, 7)?,
            }
        } else {
            // Post-base lines refer to the dynamic table.
            return Err(Error::Decompression);
        };
        size += field.name.len() + field.value.len() + LINE_COST;
        if size > max_size {
            return Err(Error::TooLong);
        }
        fields.push(field);
    }
    Ok(fields)
}

/// Appends a field section.
pub fn encode<'a>(
    fields: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    section: &mut impl BufMut,
) {
    section.put_slice(&[0, 0]);
    for (name, value) in fields {
        let named = |line: &&(&str, &str)| line.0.as_bytes() == name;
        if let Some(index) = STATIC
            .iter()
            .position(|line| named(&line) && line.1.as_bytes() == value)
        {
            put_integer(section, 0b1100_0000, 6, index as u64);
            continue;
        }
        match STATIC.iter().position(|line| named(&line)) {
            Some(index) => put_integer(section, 0b0101_0000, 4, index as u64),
            None => {
                put_integer(section, 0b0010_0000, 3, name.len() as u64);
                section.put_slice(name);
            }
        }
        put_integer(section, 0, 7, value.len() as u64);
        section.put_slice(value);
    }
}

fn static_line(
    flags: u8,
    is_static: u8,
    index: u64,
) -> Result<(&'static str, &'static str), Error> {
    if flags & is_static == 0 {
        return Err(Error::Decompression);
    }
    let index = usize::try_from(index).map_err(|_| Error::Decompression)?;
    STATIC.get(index).copied().ok_or(Error::Decompression)
}

/// A prefixed integer (RFC 7541, section 5.1): the bits before the prefix, and the value.
fn integer(buf: &mut &[u8], prefix: u32) -> Result<(u8, u64), Error> {
    let first = take(buf)?;
    let mask = (1u16 << prefix) - 1;
    let flags = (u16::from(first) >> prefix) as u8;
    let mut value = u64::from(u16::from(first) & mask);
    if value < u64::from(mask) {
        return Ok((flags, value));
    }
    // RFC 9204, section 4.1.1: values up to 62 bits.
    for shift in (0..63).step_by(7) {
        let byte = take(buf)?;
        value = u64::from(byte & 0x7f)
            .checked_mul(1 << shift)
            .and_then(|more| value.checked_add(more))
            .ok_or(Error::Decompression)?;
        if byte & 0x80 == 0 {
            return Ok((flags, value));
        }
    }
    Err(Error::Decompression)
}

fn put_integer(buf: &mut impl BufMut, flags: u8, prefix: u32, value: u64) {
    let mask = (1u64 << prefix) - 1;
    if value < mask {
        buf.put_u8(flags | value as u8);
        return;
    }
    buf.put_u8(flags | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        buf.put_u8(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    buf.put_u8(rest as u8);
}

/// A string literal (RFC 7541, section 5.2), whose Huffman flag is the bit before the prefix.
fn string(buf: &mut &[u8], prefix: u32) -> Result<Vec<u8>, Error> {
    let (flags, len) = integer(buf, prefix)?;
    let len = usize::try_from(len).map_err(|_| Error::Decompression)?;
    if len > buf.len() {
        return Err(Error::Decompression);
    }
    let (text, rest) = buf.split_at(len);
    *buf = rest;
    if flags & 1 != 0 {
        huffman::decode(text).map_err(|_| Error::Decompression)
    } else {
        Ok(text.to_vec())
    }
}

fn take(buf: &mut &[u8]) -> Result<u8, Error> {
    if buf.is_empty() {
        return Err(Error::Decompression);
    }
    Ok(buf.get_u8())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(fields: &[Field]) -> Vec<u8> {
        let mut section = Vec::new();
        let lines = fields.iter().map(|f| (&f.name[..], &f.value[..]));
        encode(lines, &mut section);
        section
    }

    #[test]
    fn the_example_of_rfc_9204_appendix_b_1_decodes() {
        let section = hex::decode("0000510b2f696e6465782e68746d6c").unwrap();
        let fields = [Field::new(":path", "/index.html")];
        assert_eq!(decode(&section, 1000).unwrap(), fields);
        assert_eq!(encoded(&fields), section);
    }

    #[test]
    fn huffman_coded_names_and_values_decode() {
        let mut section = vec![0, 0, 0b0010_1000 | 7, 1];
        section.extend(hex::decode("25a849e95ba97d7f").unwrap());
        section.push(0x80 | 9);
        section.extend(hex::decode("25a849e95bb8e8b4bf").unwrap());
        assert_eq!(
            decode(&section, 1000).unwrap(),
            [Field::new("custom-key", "custom-value")]
        );
    }

    #[test]
    fn references_to_a_dynamic_table_are_refused() {
        for section in [
            &[0x02, 0x80, 0x10][..], // Required Insert Count 1
            &[0, 0, 0b1000_0000],    // indexed, dynamic
            &[0, 0, 0b0100_0000, 0], // name reference, dynamic
            &[0, 0, 0b0001_0000],    // indexed, post-base
            &[0, 0, 0b0000_0000, 0], // name reference, post-base
            &[0, 0, 0xff, 36],       // static index 99
            &[0, 0x80],              // negative base
            &[0],
            &[],
        ] {
            assert_eq!(
                decode(section, 1000),
                Err(Error::Decompression),
                "{section:x?}"
            );
        }
    }

    #[test]
    fn a_section_that_grows_over_the_limit_is_too_long() {
        // Each octet is the longest line of the static table.
        let section = [&[0, 0][..], &[0xff, 85 - 63].repeat(100)].concat();
        assert_eq!(decode(&section, 4096), Err(Error::TooLong));
    }

    prop_compose! {
        fn field()(
            line in prop::option::of(0..STATIC.len()),
            name: Vec<u8>,
            value in prop::option::of(any::<Vec<u8>>()),
        ) -> Field {
            let (n, v) = line.map_or(("", ""), |line| STATIC[line]);
            Field {
                name: if line.is_some() { n.into() } else { name },
                value: value.unwrap_or(v.into()),
            }
        }
    }

    proptest! {
        #[test]
        fn fields_survive_their_encoding(fields in prop::collection::vec(field(), 0..20)) {
            prop_assert_eq!(decode(&encoded(&fields), usize::MAX).unwrap(), fields);
        }

        #[test]
        fn arbitrary_bytes_decode_within_the_limit_or_not_at_all(bytes: Vec<u8>) {
            if let Ok(fields) = decode(&bytes, 500) {
                let size: usize = fields.iter().map(|f| f.name.len() + f.value.len() + 32).sum();
                prop_assert!(size <= 500);
            }
        }
    }
}
