//! The type every secret lives in.

mod pages;

use std::{fs::File, io, io::Write as _, marker::PhantomData};

use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use crate::random;
use pages::Pages;

/// A secret. It has no `Debug`, `Display`, `Serialize`, `Clone`, `PartialEq` or `Deref`.
///
/// Its bytes lie in pages of their own: never moved, left out of core dumps, locked in memory
/// where the system permits it (the log says once when it does not), and zeroed when it is dropped.
/// `T` is the form in which it was taken in: `Vec<u8>`, `String` or `[u8; N]`.
pub struct Secret<T: Form> {
    pages: Pages,
    form: PhantomData<fn() -> T>,
}

/// What can be taken in as a secret.
pub trait Form: Zeroize + sealed::Sealed {
    /// What [`Secret::expose`] shows.
    type View: ?Sized;
    #[doc(hidden)]
    fn bytes(&self) -> &[u8];
    #[doc(hidden)]
    fn view(bytes: &[u8]) -> &Self::View;
}

impl<T: Form> Secret<T> {
    /// Takes a value in, and zeroes where it was. Copies that the caller made on the way, as by
    /// letting it grow, are the caller's to zero.
    pub fn new(mut value: T) -> Self {
        let secret = Self::of(Pages::holding(value.bytes()));
        value.zeroize();
        secret
    }

    /// The one way out. Only [`crate::key`] and [`crate::bearer`] may take it: `clippy.toml` bans
    /// it, and `tests/secret.rs` knows who lifts the ban.
    pub fn expose(&self) -> &T::View {
        T::view(self.pages.bytes())
    }

    /// Whether the bytes are these. Takes as long wherever they differ; only their length shows.
    pub fn matches(&self, bytes: &[u8]) -> bool {
        self.pages.bytes().ct_eq(bytes).into()
    }

    /// Writes the bytes to a file.
    pub(crate) fn write_to(&self, file: &mut File) -> io::Result<()> {
        file.write_all(self.pages.bytes())
    }

    fn of(pages: Pages) -> Self {
        Self {
            pages,
            form: PhantomData,
        }
    }
}

impl Secret<Vec<u8>> {
    /// Takes in what `fill` writes into the room it is given; it says how many bytes these are.
    /// Nothing of it is ever anywhere else.
    pub(crate) fn filled<E>(
        room: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<Self, E> {
        let mut pages = Pages::zeroed(room);
        let length = fill(pages.bytes_mut())?;
        pages.truncate(length);
        Ok(Self::of(pages))
    }

    /// The same bytes, which stay where they are, in the form of an array; `None` if they are more or
    /// fewer.
    pub(crate) fn into_array<const N: usize>(self) -> Option<Secret<[u8; N]>> {
        (self.pages.bytes().len() == N).then(|| Secret::of(self.pages))
    }
}

impl<const N: usize> Secret<[u8; N]> {
    /// Random bytes from the cryptographic generator that TLS uses.
    pub fn random() -> Self {
        let mut pages = Pages::zeroed(N);
        random::fill(pages.bytes_mut());
        Self::of(pages)
    }
}

impl Form for Vec<u8> {
    type View = [u8];
    fn bytes(&self) -> &[u8] {
        self
    }
    fn view(bytes: &[u8]) -> &[u8] {
        bytes
    }
}

impl Form for String {
    type View = str;
    fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }
    fn view(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).expect("the bytes were a String's")
    }
}

impl<const N: usize> Form for [u8; N] {
    type View = [u8; N];
    fn bytes(&self) -> &[u8] {
        self
    }
    fn view(bytes: &[u8]) -> &[u8; N] {
        bytes.try_into().expect("the bytes were an array's")
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for Vec<u8> {}
    impl Sealed for String {}
    impl<const N: usize> Sealed for [u8; N] {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_matches_its_own_bytes_only() {
        let secret = Secret::new(b"correct horse".to_vec());
        assert!(secret.matches(b"correct horse"));
        for other in [
            &b"correct horsf"[..],
            b"correct hors",
            b"correct horse ",
            b"",
        ] {
            assert!(!secret.matches(other));
        }
    }

    #[test]
    fn a_secret_of_any_form_and_length_is_kept() {
        assert!(Secret::new("text".to_owned()).matches(b"text"));
        assert!(Secret::new([7; 32]).matches(&[7; 32]));
        for length in [0, 1, 4095, 4096, 4097, 100_000] {
            let bytes: Vec<u8> = (0..length).map(|i| i as u8).collect();
            assert!(Secret::new(bytes.clone()).matches(&bytes), "{length}");
        }
    }

    #[test]
    fn what_is_filled_in_is_cut_to_what_was_filled() {
        let secret = Secret::filled(100, |room| {
            room[..6].copy_from_slice(b"s3cret");
            Ok::<_, ()>(6)
        });
        assert!(secret.is_ok_and(|secret| secret.matches(b"s3cret")));
        assert!(Secret::filled(1, |_| Err(())).is_err());
    }

    #[test]
    fn random_secrets_differ() {
        let (one, other) = (Secret::<[u8; 32]>::random(), Secret::<[u8; 32]>::random());
        assert!(!one.matches(other.pages.bytes()));
        assert!(!one.matches(&[0; 32]));
    }
}
