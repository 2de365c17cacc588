//! Records of our own as JSON that is secret, and back. A record's type decides what of it is in
//! [`Secret`] pages; its text is there, or zeroed.

use std::io;

use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use crate::secret::Secret;

/// What is no record of the type that was expected. It holds nothing of what was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a record of the kind expected")]
pub struct Malformed;

/// The text of `record`. The error is that of a type which JSON cannot say: a map with keys that are
/// no strings.
pub fn write(record: &impl Serialize) -> Result<Secret<Vec<u8>>, Malformed> {
    let mut text = Growing(Zeroizing::new(Vec::with_capacity(512)));
    serde_json::to_writer(&mut text, record).map_err(|_| Malformed)?;
    Ok(Secret::new(std::mem::take(&mut *text.0)))
}

/// The record that a text holds.
#[expect(clippy::disallowed_methods, reason = "a record is read here")]
pub fn read<T: DeserializeOwned>(text: &Secret<Vec<u8>>) -> Result<T, Malformed> {
    serde_json::from_slice(text.expose()).map_err(|_| Malformed)
}

/// Zeroes what it grows out of.
struct Growing(Zeroizing<Vec<u8>>);

impl io::Write for Growing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let needed = self.0.len() + bytes.len();
        if needed > self.0.capacity() {
            let mut larger = Zeroizing::new(Vec::with_capacity(needed.next_power_of_two()));
            larger.extend_from_slice(&self.0);
            self.0 = larger;
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_record_that_was_written_is_read(record: Vec<(String, u64)>) {
            let text = write(&record).unwrap_or(Secret::new(Vec::new()));
            prop_assert_eq!(read::<Vec<(String, u64)>>(&text), Ok(record));
        }

        #[test]
        fn arbitrary_texts_never_panic(text: Vec<u8>) {
            let _ = read::<Vec<(String, u64)>>(&Secret::new(text));
        }
    }
}
