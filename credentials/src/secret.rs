//! The type every secret lives in.

use zeroize::Zeroize;

/// A secret. It has no `Debug`, `Display`, `Serialize`, `Clone`, `PartialEq` or `Deref`; its bytes
/// stay in one heap allocation and are zeroed when it is dropped.
pub struct Secret<T: Zeroize> {
    value: Box<T>,
}

impl<T: Zeroize> Secret<T> {
    /// Takes a value in. The caller zeroes whatever copies it made on the way.
    pub fn new(value: T) -> Self {
        Self {
            value: Box::new(value),
        }
    }

    /// The one way out.
    pub fn expose(&self) -> &T {
        &self.value
    }
}

impl<T: Zeroize> Drop for Secret<T> {
    fn drop(&mut self) {
        self.value.zeroize();
    }
}
