//! The Huffman code of HPACK and QPACK (RFC 7541, appendix B).
//!
//! The code is canonical: codes of one length are consecutive and ordered by symbol, so the lengths
//! say everything.

/// Length in bits of each octet's code.
#[rustfmt::skip]
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

/// Longest code in bits. The end-of-string symbol is the last code of this length.
const MAX_BITS: usize = 30;

/// Codes of one length.
#[derive(Clone, Copy)]
struct Level {
    /// The first code.
    first: u32,
    /// How many there are.
    count: u32,
    /// Index in `SYMBOLS` of the first one's octet.
    offset: u16,
}

const LEVELS: [Level; MAX_BITS + 1] = levels();
const SYMBOLS: [u8; 256] = symbols();

const fn levels() -> [Level; MAX_BITS + 1] {
    let mut levels = [Level {
        first: 0,
        count: 0,
        offset: 0,
    }; MAX_BITS + 1];
    let (mut code, mut offset, mut bits) = (0, 0, 1);
    while bits <= MAX_BITS {
        code <<= 1;
        let (mut count, mut octet) = (0, 0);
        while octet < 256 {
            count += (LENGTHS[octet] as usize == bits) as u16;
            octet += 1;
        }
        levels[bits] = Level {
            first: code,
            count: count as u32,
            offset,
        };
        code += count as u32;
        offset += count;
        bits += 1;
    }
    levels
}

const fn symbols() -> [u8; 256] {
    let mut symbols = [0; 256];
    let (mut at, mut bits) = (0, 1);
    while bits <= MAX_BITS {
        let mut octet = 0;
        while octet < 256 {
            if LENGTHS[octet] as usize == bits {
                symbols[at] = octet as u8;
                at += 1;
            }
            octet += 1;
        }
        bits += 1;
    }
    symbols
}

/// Why bytes are not Huffman-coded text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a Huffman code")]
pub struct Invalid;

/// Decodes `bytes`. The text is at most 1.6 times as long, as the shortest code has five bits.
///
/// # Errors
/// When the end-of-string symbol is coded, or when the padding is over seven bits or not all ones
/// (RFC 7541, section 5.2).
pub fn decode(bytes: &[u8]) -> Result<Vec<u8>, Invalid> {
    let mut text = Vec::with_capacity(bytes.len() * 8 / 5);
    let (mut code, mut bits) = (0u32, 0usize);
    for byte in bytes {
        for shift in (0..8).rev() {
            code = code << 1 | u32::from(byte >> shift & 1);
            bits += 1;
            let level = LEVELS[bits];
            // Codes of a length follow on those of the shorter ones, so none lies below `first`.
            let index = code.wrapping_sub(level.first);
            if index < level.count {
                text.push(SYMBOLS[level.offset as usize + index as usize]);
                (code, bits) = (0, 0);
            } else if bits == MAX_BITS {
                return Err(Invalid);
            }
        }
    }
    if bits > 7 || code != (1 << bits) - 1 {
        return Err(Invalid);
    }
    Ok(text)
}

/// Encodes `text`, padded with ones.
pub fn encode(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let (mut pending, mut bits) = (0u64, 0usize);
    for octet in text {
        let len = LENGTHS[*octet as usize] as usize;
        pending = pending << len | u64::from(code_of(*octet));
        bits += len;
        while bits >= 8 {
            bits -= 8;
            bytes.push((pending >> bits) as u8);
        }
        pending &= (1 << bits) - 1;
    }
    if bits > 0 {
        let pad = 8 - bits;
        bytes.push((pending << pad) as u8 | ((1u16 << pad) - 1) as u8);
    }
    bytes
}

fn code_of(octet: u8) -> u32 {
    let len = LENGTHS[octet as usize];
    let rank = LENGTHS[..octet as usize]
        .iter()
        .filter(|&&other| other == len)
        .count();
    LEVELS[len as usize].first + rank as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_examples_of_rfc_7541_appendix_c_decode() {
        for (code, text) in [
            ("f1e3c2e5f23a6ba0ab90f4ff", "www.example.com"),
            ("a8eb10649cbf", "no-cache"),
            ("25a849e95ba97d7f", "custom-key"),
            ("25a849e95bb8e8b4bf", "custom-value"),
            (
                "d07abe941054d444a8200595040b8166e082a62d1bff",
                "Mon, 21 Oct 2013 20:13:21 GMT",
            ),
            (
                "9d29ad171863c78f0b97c8e9ae82ae43d3",
                "https://www.example.com",
            ),
        ] {
            let bytes = hex::decode(code).unwrap();
            assert_eq!(decode(&bytes).unwrap(), text.as_bytes());
            assert_eq!(encode(text.as_bytes()), bytes);
        }
    }

    #[test]
    fn wrong_padding_and_the_end_of_string_symbol_are_refused() {
        // '0' is 00000: padded with zeroes, then with a whole octet of ones.
        assert_eq!(decode(&[0b0000_0000]), Err(Invalid));
        assert_eq!(decode(&[0b0000_0111, 0xff]), Err(Invalid));
        assert_eq!(decode(&[0xff, 0xff, 0xff, 0xff]), Err(Invalid));
        assert_eq!(decode(&[0b0000_0111]).unwrap(), b"0");
    }

    proptest! {
        #[test]
        fn every_text_survives_its_encoding(text: Vec<u8>) {
            prop_assert_eq!(decode(&encode(&text)).unwrap(), text);
        }

        #[test]
        fn arbitrary_bytes_decode_to_bounded_text_or_not_at_all(bytes: Vec<u8>) {
            if let Ok(text) = decode(&bytes) {
                prop_assert!(text.len() <= bytes.len() * 8 / 5);
            }
        }
    }
}
