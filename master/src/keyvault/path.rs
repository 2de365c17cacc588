//! Request paths in the one form in which policies are written and entries are kept.
//!
//! A path that could be read in two ways is refused before any policy sees it: what one reader takes
//! for another place, a policy would have allowed or denied for the wrong one.

use std::fmt;

/// Longest path in bytes, decoded. An audit line holds it whole.
pub const MAX_PATH: usize = 512;

/// A path below `/v1/`, decoded, without a slash before it. A slash after it says that the names
/// below are meant.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Canonical(Box<str>);

/// Why a path is none. What was in it is not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Nothing.
    #[error("the path is empty")]
    Empty,
    /// More than [`MAX_PATH`] bytes.
    #[error("the path is longer than {MAX_PATH} bytes")]
    TooLong,
    /// `//`, or a slash before the first segment.
    #[error("the path has an empty segment")]
    EmptySegment,
    /// `.`, `..`, or a name that ends in a dot, which some readers leave out.
    #[error("the path has a segment that ends in a dot")]
    Dots,
    /// `%` without two hexadecimal digits.
    #[error("the path has a broken percent-encoding")]
    Encoding,
    /// An encoded `.`, `/`, `\` or `%`: who decodes twice, or not at all, reads another path.
    #[error("the path has a dot, slash, backslash or percent sign in percent-encoding")]
    Hidden,
    /// A backslash, which some readers take for a slash.
    #[error("the path has a backslash")]
    Backslash,
    /// NUL or another control character.
    #[error("the path has a control character")]
    Control,
    /// Not UTF-8.
    #[error("the path is not UTF-8")]
    NotText,
}

impl Canonical {
    /// Reads what stands after `/v1/` in a request's target, percent-encoded (RFC 3986, section 2.1)
    /// and without the query.
    pub fn parse(target: &str) -> Result<Self, Malformed> {
        if target.is_empty() {
            return Err(Malformed::Empty);
        }
        if target.len() > 3 * MAX_PATH {
            return Err(Malformed::TooLong);
        }
        let text = String::from_utf8(decode(target)?).map_err(|_| Malformed::NotText)?;
        if text.len() > MAX_PATH {
            return Err(Malformed::TooLong);
        }
        if text.chars().any(char::is_control) {
            return Err(Malformed::Control);
        }
        if text.contains('\\') {
            return Err(Malformed::Backslash);
        }
        for segment in text.strip_suffix('/').unwrap_or(&text).split('/') {
            match segment {
                "" => return Err(Malformed::EmptySegment),
                _ if segment.ends_with('.') => return Err(Malformed::Dots),
                _ => (),
            }
        }
        Ok(Self(text.into()))
    }

    /// The path as a text, as it was asked for.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path without a slash after it.
    pub fn name(&self) -> &str {
        self.0.strip_suffix('/').unwrap_or(&self.0)
    }

    /// Whether a slash is after it.
    pub fn is_folder(&self) -> bool {
        self.0.ends_with('/')
    }

    /// The path with a slash after it, as policies see lists.
    pub fn folder(&self) -> Self {
        match self.is_folder() {
            true => self.clone(),
            false => Self(format!("{}/", self.0).into()),
        }
    }

    /// Its segments.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.name().split('/')
    }

    /// What is left below `mount`, which ends in a slash; empty at the mount itself.
    pub fn below(&self, mount: &str) -> Option<&str> {
        match self.0.strip_prefix(mount) {
            Some(rest) => Some(rest),
            None => (Some(&*self.0) == mount.strip_suffix('/')).then_some(""),
        }
    }
}

/// Each byte once.
fn decode(target: &str) -> Result<Vec<u8>, Malformed> {
    let mut bytes = target.bytes();
    let mut decoded = Vec::with_capacity(target.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || (bytes.next()? as char).to_digit(16);
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return Err(Malformed::Encoding);
        };
        let byte = (high * 16 + low) as u8;
        if matches!(byte, b'.' | b'/' | b'\\' | b'%') {
            return Err(Malformed::Hidden);
        }
        decoded.push(byte);
    }
    Ok(decoded)
}

impl fmt::Display for Canonical {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Canonical {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn plain_paths_stay_as_they_are() {
        for path in [
            "sys/health",
            "secret/data/app/db.password",
            "secret/metadata/",
            "secret/http:/test.com",
            "sys/policy/['odd']",
            "secret/...a",
            "secret/ünï",
        ] {
            assert_eq!(Canonical::parse(path).unwrap().as_str(), path);
        }
        let decoded = Canonical::parse("a%20b/%C3%BC").unwrap();
        assert_eq!(decoded.as_str(), "a b/ü");
    }

    #[test]
    fn paths_that_can_be_read_in_two_ways_are_refused() {
        for (path, why) in [
            ("", Malformed::Empty),
            ("/", Malformed::EmptySegment),
            ("/sys", Malformed::EmptySegment),
            ("a//b", Malformed::EmptySegment),
            ("a//", Malformed::EmptySegment),
            (".", Malformed::Dots),
            ("a/./b", Malformed::Dots),
            ("a/../b", Malformed::Dots),
            ("a/..", Malformed::Dots),
            ("a./b", Malformed::Dots),
            ("a/b...", Malformed::Dots),
            ("a/%2e%2e/b", Malformed::Hidden),
            ("a/.%2E/b", Malformed::Hidden),
            ("a%2fb", Malformed::Hidden),
            ("a%5cb", Malformed::Hidden),
            ("a/%252e%252e/b", Malformed::Hidden),
            ("a\\b", Malformed::Backslash),
            ("a%00", Malformed::Control),
            ("a%0ab", Malformed::Control),
            ("a%C2%85b", Malformed::Control),
            ("a%7f", Malformed::Control),
            ("a%", Malformed::Encoding),
            ("a%2", Malformed::Encoding),
            ("a%zz", Malformed::Encoding),
            ("a%ff", Malformed::NotText),
        ] {
            assert_eq!(Canonical::parse(path), Err(why), "{path}");
        }
        let long = "a".repeat(MAX_PATH + 1);
        assert_eq!(Canonical::parse(&long), Err(Malformed::TooLong));
        assert!(Canonical::parse(&long[1..]).is_ok());
    }

    #[test]
    fn what_is_below_a_mount_is_told_from_its_neighbours() {
        let path = |text| Canonical::parse(text).unwrap();
        assert_eq!(path("secret/data/a").below("secret/"), Some("data/a"));
        assert_eq!(path("secret/").below("secret/"), Some(""));
        assert_eq!(path("secret").below("secret/"), Some(""));
        assert_eq!(path("secrets/a").below("secret/"), None);
    }

    proptest! {
        #[test]
        fn what_is_taken_is_canonical_and_reads_the_same_again(target in ".{0,64}|[a-c./%25ef\\\\]{0,24}") {
            if let Ok(path) = Canonical::parse(&target) {
                prop_assert!(!path.segments().any(|s| s.is_empty() || s == "." || s == ".."));
                prop_assert!(!path.as_str().contains('%') && !path.as_str().contains("//"));
                prop_assert_eq!(Canonical::parse(path.as_str()), Ok(path));
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(target: String) {
            let _ = Canonical::parse(&target);
        }
    }
}
