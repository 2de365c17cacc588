//! A key in shares, of which some make it (Shamir, "How to share a secret", 1979), over GF(2⁸) with
//! the polynomial of AES, as Vault has them: each byte of the key is the constant of a polynomial of
//! its own; a share is the values at one point, and the point.
//!
//! Arithmetic is without tables and branches, so that no cache and no clock tells of the key.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

use super::aead::{KEY_LEN, Key};
use crate::{bearer::Token, random, secret::Secret};

/// Bytes of a share.
pub const SHARE_LEN: usize = KEY_LEN + 1;

/// One share of a key.
pub struct Share(Secret<[u8; SHARE_LEN]>);

/// Not the text of a share, or shares that make no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not shares of a key")]
pub struct Malformed;

/// Splits a key into `count` shares of which any `threshold` make it, and fewer tell nothing of it.
/// Both are at least 1, and `threshold` is not above `count`.
pub fn split(key: &Key, count: u8, threshold: u8) -> Vec<Share> {
    assert!((1..=count).contains(&threshold));
    let mut shares: Vec<_> = (1..=count)
        .map(|x| {
            let mut share = Zeroizing::new([0; SHARE_LEN]);
            share[KEY_LEN] = x;
            share
        })
        .collect();
    let mut coefficients = Zeroizing::new(vec![0; usize::from(threshold)]);
    for (at, byte) in key.bytes().iter().enumerate() {
        random::fill(&mut coefficients);
        coefficients[0] = *byte;
        for share in &mut shares {
            let x = share[KEY_LEN];
            // Horner's rule.
            let value = coefficients
                .iter()
                .rev()
                .fold(0, |sum, c| multiply(sum, x) ^ c);
            share[at] = value;
        }
    }
    shares
        .into_iter()
        .map(|share| Share(Secret::new(*share)))
        .collect()
}

/// The key that `shares` make. With too few, or with one of another key, it is some other key: only
/// what the key opens tells.
#[expect(clippy::disallowed_methods, reason = "a key is put together here")]
pub fn combine(shares: &[Share]) -> Result<Key, Malformed> {
    let shares: Vec<&[u8; SHARE_LEN]> = shares.iter().map(|share| share.0.expose()).collect();
    let point = |share: &[u8; SHARE_LEN]| share[KEY_LEN];
    for (at, share) in shares.iter().enumerate() {
        if shares[..at]
            .iter()
            .any(|other| point(other) == point(share))
        {
            return Err(Malformed);
        }
    }
    let mut key = Zeroizing::new([0; KEY_LEN]);
    for share in &shares {
        // Lagrange's polynomial of this point, at 0.
        let mut weight = 1;
        for other in shares.iter().filter(|other| point(other) != point(share)) {
            weight = multiply(weight, divide(point(other), point(other) ^ point(share)));
        }
        for (byte, value) in key.iter_mut().zip(&share[..KEY_LEN]) {
            *byte ^= multiply(*value, weight);
        }
    }
    Ok(Key::of(Secret::new(*key)))
}

impl Share {
    /// Reads 66 hexadecimal digits or 44 characters of base64.
    #[expect(clippy::disallowed_methods, reason = "a share is read here")]
    pub fn read(text: &Token) -> Result<Self, Malformed> {
        let text = text.0.expose().trim();
        let mut bytes = Zeroizing::new([0; SHARE_LEN]);
        match text.len() {
            66 => hex::decode_to_slice(text, &mut bytes[..]).map_err(|_| Malformed)?,
            44 => {
                let length = STANDARD.decode_slice(text, &mut bytes[..]);
                if length.map_err(|_| Malformed)? != SHARE_LEN {
                    return Err(Malformed);
                }
            }
            _ => return Err(Malformed),
        }
        match bytes[KEY_LEN] {
            0 => Err(Malformed),
            _ => Ok(Self(Secret::new(*bytes))),
        }
    }

    /// As hexadecimal, for who is to keep it.
    #[expect(clippy::disallowed_methods, reason = "a share is handed out here")]
    pub fn to_hex(&self) -> Token {
        Token::new(hex::encode(self.0.expose()))
    }

    /// As base64, for who is to keep it.
    #[expect(clippy::disallowed_methods, reason = "a share is handed out here")]
    pub fn to_base64(&self) -> Token {
        Token::new(STANDARD.encode(self.0.expose()))
    }

    /// Whether it is this one.
    #[expect(clippy::disallowed_methods, reason = "a share is compared here")]
    pub fn matches(&self, other: &Self) -> bool {
        self.0.matches(other.0.expose())
    }
}

/// In GF(2⁸) modulo x⁸ + x⁴ + x³ + x + 1.
fn multiply(a: u8, b: u8) -> u8 {
    let mut product = 0;
    for bit in (0..8).rev() {
        let carry = (product >> 7 & 1_u8).wrapping_neg() & 0x1b;
        product = (product << 1) ^ carry ^ ((b >> bit & 1).wrapping_neg() & a);
    }
    product
}

/// `a / b`; `b` is not 0. The inverse is b²⁵⁴.
fn divide(a: u8, b: u8) -> u8 {
    let mut power = b;
    let mut inverse = 1;
    for _ in 0..7 {
        power = multiply(power, power);
        inverse = multiply(inverse, power);
    }
    multiply(a, inverse)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_field_is_that_of_aes() {
        // FIPS 197, section 4.2.
        assert_eq!(multiply(0x57, 0x83), 0xc1);
        assert_eq!(multiply(0x57, 0x13), 0xfe);
        for b in 1..=255 {
            assert_eq!(multiply(divide(1, b), b), 1);
            assert_eq!(divide(0, b), 0);
        }
    }

    #[test]
    fn a_share_is_read_from_both_its_texts() {
        let share = &split(&Key::generate(), 1, 1)[0];
        assert!(Share::read(&share.to_hex()).unwrap().matches(share));
        assert!(Share::read(&share.to_base64()).unwrap().matches(share));
        let zero = "0".repeat(66);
        for text in [
            "",
            "x",
            &zero,
            &"g".repeat(66),
            &"A".repeat(43),
            &"é".repeat(33),
        ] {
            assert!(Share::read(&Token::new(text.to_owned())).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn as_many_as_the_threshold_make_the_key_and_fewer_do_not(
            (count, threshold, order) in (1_u8..12).prop_flat_map(|count| {
                let all: Vec<usize> = (0..usize::from(count)).collect();
                (Just(count), 1..=count, Just(all).prop_shuffle())
            })
        ) {
            let key = Key::generate();
            let shares = split(&key, count, threshold);
            prop_assert_eq!(shares.len(), usize::from(count));
            let some = |number: usize| {
                let taken = order[..number].iter().map(|at| Share::read(&shares[*at].to_hex()));
                combine(&taken.collect::<Result<Vec<_>, _>>().unwrap()).unwrap().id()
            };
            prop_assert_eq!(some(threshold.into()), key.id());
            prop_assert_eq!(some(count.into()), key.id());
            if threshold > 1 {
                prop_assert_ne!(some(usize::from(threshold) - 1), key.id());
            }
        }

        #[test]
        fn a_share_does_not_count_twice(at in 0_usize..5) {
            let shares = split(&Key::generate(), 5, 2);
            let twice = [at, at].map(|at| Share::read(&shares[at].to_hex()).unwrap());
            prop_assert!(combine(&twice).is_err());
        }

        #[test]
        fn arbitrary_texts_never_panic(text: String) {
            let _ = Share::read(&Token::new(text));
        }
    }
}
