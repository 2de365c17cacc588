//! Bytes that tell where they belong: any byte lost, doubled, moved or changed shows.

use bytes::Bytes;

/// The bytes of one stream, the same for the same seed and stream wherever they are made.
#[derive(Debug, Clone)]
pub(crate) struct Pattern {
    key: u64,
    position: u64,
}

impl Pattern {
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        Self {
            key: mix(seed ^ mix(stream)),
            position: 0,
        }
    }

    /// The next `len` bytes.
    pub(crate) fn take(&mut self, len: usize) -> Bytes {
        let mut bytes = Vec::with_capacity(len + 16);
        let skip = (self.position % 8) as usize;
        let mut word = self.position / 8;
        while bytes.len() < skip + len {
            bytes.extend_from_slice(&mix(self.key.wrapping_add(word)).to_le_bytes());
            word += 1;
        }
        self.position += len as u64;
        Bytes::from(bytes).slice(skip..skip + len)
    }

    /// Whether `bytes` are the next ones. The error is the position of the first that is not.
    pub(crate) fn check(&mut self, bytes: &[u8]) -> Result<(), u64> {
        let start = self.position;
        let expected = self.take(bytes.len());
        if expected == bytes {
            return Ok(());
        }
        let wrong = expected.iter().zip(bytes).position(|(a, b)| a != b);
        Err(start + wrong.unwrap_or(0) as u64)
    }
}

/// The finaliser of SplitMix64: every bit of the input reaches every bit of the output.
fn mix(mut value: u64) -> u64 {
    value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn however_it_is_cut_it_is_the_same(cuts in prop::collection::vec(0usize..100, 1..20)) {
            let whole = Pattern::new(7, 3).take(cuts.iter().sum());
            let mut cut = Pattern::new(7, 3);
            let pieces: Vec<u8> = cuts.iter().flat_map(|&len| cut.take(len)).collect();
            prop_assert_eq!(&whole[..], &pieces[..]);
        }

        #[test]
        fn a_changed_byte_is_found(len in 1usize..300, at: prop::sample::Index, flip in 1u8..) {
            let mut bytes = Pattern::new(1, 2).take(len).to_vec();
            let at = at.index(len);
            bytes[at] ^= flip;
            prop_assert_eq!(Pattern::new(1, 2).check(&bytes), Err(at as u64));
        }

        #[test]
        fn a_lost_byte_and_another_stream_are_found(at in 0usize..100) {
            let bytes = Pattern::new(1, 2).take(200);
            prop_assert!(Pattern::new(1, 3).check(&bytes).is_err());
            let shorter = [&bytes[..at], &bytes[at + 1..]].concat();
            prop_assert!(Pattern::new(1, 2).check(&shorter).is_err());
        }
    }
}
