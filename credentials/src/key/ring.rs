//! Keys that several processes have, to seal for each other what a third one keeps.

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{
    aead::{Forged, Key},
    format::{Fault, fault},
};
use crate::secret::Secret;

/// Most keys: the one in use, and those that it is to follow or has followed.
const MAX_KEYS: usize = 8;

/// Keys, of which the first seals and all open.
pub struct Ring(Vec<Key>);

impl Ring {
    /// Reads a key in each line, in the forms that [`Key::read`] knows.
    #[expect(clippy::disallowed_methods, reason = "keys are read here")]
    pub fn read(text: &Secret<Vec<u8>>) -> Result<Self, Fault> {
        let bytes = text.expose();
        let (mut keys, mut at) = (Vec::new(), 0);
        for line in bytes.trim_ascii_end().split(|byte| *byte == b'\n') {
            let key = Key::read(&Secret::new(line.to_vec()));
            let key = key.map_err(|_| {
                fault(
                    bytes,
                    at,
                    "a key of 32 bytes as PASERK k4.local, hexadecimal or base64",
                )
            })?;
            if keys.len() == MAX_KEYS {
                return Err(fault(bytes, at, "no more than eight keys"));
            }
            keys.push(key);
            at += line.len() + 1;
        }
        Ok(Self(keys))
    }

    /// Encrypts `value` for the place that `context` names; in base64.
    pub fn seal(&self, context: &[u8], value: &Secret<Vec<u8>>) -> String {
        STANDARD.encode(self.0[0].seal(context, value))
    }

    /// Decrypts what one of the keys sealed for the place that `context` names.
    pub fn open(&self, context: &[u8], sealed: &str) -> Result<Secret<Vec<u8>>, Forged> {
        let sealed = STANDARD.decode(sealed).map_err(|_| Forged)?;
        let opened = self.0.iter().map(|key| key.open(context, &sealed));
        opened.filter_map(Result::ok).next().ok_or(Forged)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line() -> String {
        STANDARD.encode(crate::random::bytes::<32>())
    }

    fn ring(lines: &[&str]) -> Result<Ring, Fault> {
        Ring::read(&Secret::new(lines.join("\n").into_bytes()))
    }

    #[test]
    fn keys_take_each_others_place_without_a_moment_in_which_somebody_cannot_read() {
        let (old, new) = (line(), line());
        let value = Secret::new(b"s3cret".to_vec());
        // Each step reaches one process after the other.
        let steps = [
            ring(&[&old]).unwrap(),
            ring(&[&old, &new, ""]).unwrap(),
            ring(&[&new, &old]).unwrap(),
            ring(&[&new]).unwrap(),
        ];
        for pair in steps.windows(2) {
            for (writer, reader) in [(&pair[0], &pair[1]), (&pair[1], &pair[0])] {
                let sealed = writer.seal(b"place", &value);
                assert!(reader.open(b"place", &sealed).unwrap().matches(b"s3cret"));
                assert!(reader.open(b"elsewhere", &sealed).is_err());
            }
        }
        let sealed = steps[0].seal(b"place", &value);
        assert!(steps[3].open(b"place", &sealed).is_err());
    }

    #[test]
    fn what_is_no_key_is_refused_in_each_line() {
        let good = line();
        for lines in [&["", ""][..], &[&good, "x"], &[&good, "", &good]] {
            assert!(ring(lines).is_err(), "{lines:?}");
        }
        assert!(ring(&[&good[..]; MAX_KEYS + 1]).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_texts_never_panic(text: String) {
            let ring = ring(&[&line()]).unwrap();
            prop_assert!(ring.open(b"", &text).is_err());
            let _ = Ring::read(&Secret::new(text.into_bytes()));
        }
    }
}
