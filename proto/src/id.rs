//! The names things have. Each is its own type and is validated when it is parsed, so that a value
//! of the type is always well-formed.

use std::{borrow::Cow, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} must be {rule}")]
pub struct InvalidId {
    kind: &'static str,
    rule: &'static str,
}

/// Longest name of a service, a node or a cluster, in bytes. It fits a DNS label.
pub const MAX_NAME_LEN: usize = 63;

fn is_name(text: &str) -> bool {
    let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    bytes.len() <= MAX_NAME_LEN
        && edge(first)
        && edge(last)
        && bytes.iter().all(|&b| edge(b) || b == b'-')
}

const NAME: &str = "1 to 63 characters of a-z, 0-9 and '-', not starting or ending with '-'";

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal, $is:expr, $rule:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "Cow<'_, str>", into = "String")]
        pub struct $type(Box<str>);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let is: fn(&str) -> bool = $is;
                if is(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(InvalidId { kind: $kind, rule: $rule })
                }
            }
        }

        impl TryFrom<Cow<'_, str>> for $type {
            type Error = InvalidId;
            fn try_from(text: Cow<'_, str>) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0.into()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// The name of a service: a named thing that clients connect to.
    ServiceName, "a service name", is_name, NAME
}
name! {
    /// The stable id of a node (gateway or relay). It is not the node's key, which rotates.
    NodeId, "a node id",
    // It is the TLS server name on the mesh, where digits alone would be read as an address.
    |text| is_name(text) && !text.bytes().all(|b| b.is_ascii_digit()),
    "1 to 63 characters of a-z, 0-9 and '-', with a letter, not starting or ending with '-'"
}
name! {
    /// The name of a cluster: one master (or several on one database) and its nodes.
    ClusterName, "a cluster name", is_name, NAME
}
name! {
    /// The name of a region: nodes with the same one are near each other.
    RegionName, "a region", is_name, NAME
}

/// The version of a roster. Grows with every change; a node never goes back to a smaller one.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! bytes {
    ($(#[$doc:meta])* $type:ident, $length:literal, $kind:literal, $rule:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "Cow<'_, str>", into = "String")]
        pub struct $type(pub [u8; $length]);

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($type), "({})"), self)
            }
        }

        impl FromStr for $type {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let invalid = InvalidId { kind: $kind, rule: $rule };
                if text.len() != 2 * $length || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(invalid);
                }
                let mut bytes = [0; $length];
                for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
                    let pair = std::str::from_utf8(pair).map_err(|_| invalid.clone())?;
                    *byte = u8::from_str_radix(pair, 16).map_err(|_| invalid.clone())?;
                }
                Ok(Self(bytes))
            }
        }

        impl TryFrom<Cow<'_, str>> for $type {
            type Error = InvalidId;
            fn try_from(text: Cow<'_, str>) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(bytes: $type) -> String {
                bytes.to_string()
            }
        }
    };
}

bytes! {
    /// A node's Ed25519 public key (RFC 8032), 32 bytes. Written as lower-case hexadecimal.
    PublicKey, 32, "a public key", "64 hexadecimal digits"
}
bytes! {
    /// What stands for the subject of session tokens where it need not be known who it is: the
    /// first 16 bytes of the SHA-256 of its text. Written as lower-case hexadecimal.
    SubjectDigest, 16, "a subject's digest", "32 hexadecimal digits"
}

/// DER of an Ed25519 SubjectPublicKeyInfo up to the key itself (RFC 8410, section 4).
const SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

impl PublicKey {
    /// The key as DER SubjectPublicKeyInfo (44 bytes), as RFC 7250 puts it on the wire.
    pub fn to_spki(&self) -> [u8; 44] {
        let mut spki = [0; 44];
        spki[..12].copy_from_slice(&SPKI_PREFIX);
        spki[12..].copy_from_slice(&self.0);
        spki
    }

    /// Reads a DER SubjectPublicKeyInfo; `None` unless it is exactly an Ed25519 one.
    pub fn from_spki(spki: &[u8]) -> Option<Self> {
        let key = spki.strip_prefix(&SPKI_PREFIX)?;
        Some(Self(key.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_are_not_dns_labels_are_refused() {
        for text in [
            "",
            "-a",
            "a-",
            "A",
            "a.b",
            "a/b",
            "a\0",
            "é",
            &"a".repeat(64),
        ] {
            assert!(text.parse::<ServiceName>().is_err(), "{text:?} was taken");
        }
        for text in ["a", "0", "a-b", &"a".repeat(63)] {
            assert_eq!(text.parse::<ServiceName>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn a_node_id_is_never_a_number() {
        assert!("7".parse::<NodeId>().is_err());
        assert_eq!("7".parse::<ServiceName>().unwrap().as_str(), "7");
        assert_eq!("r7".parse::<NodeId>().unwrap().as_str(), "r7");
    }

    proptest! {
        #[test]
        fn a_digest_survives_its_text_and_arbitrary_text_is_none(bytes: [u8; 16], text: String) {
            let digest = SubjectDigest(bytes);
            prop_assert_eq!(digest.to_string().parse::<SubjectDigest>().unwrap(), digest);
            let read = text.parse::<SubjectDigest>();
            prop_assert!(read.is_err() || text.len() == 32);
        }

        #[test]
        fn a_public_key_survives_its_texts(bytes: [u8; 32]) {
            let key = PublicKey(bytes);
            prop_assert_eq!(key.to_string().parse::<PublicKey>().unwrap(), key);
            prop_assert_eq!(PublicKey::from_spki(&key.to_spki()), Some(key));
        }
    }
}
