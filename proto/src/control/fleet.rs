//! What gateways that share certificates keep at the master: entries, each with a lease. The master knows
//! their names and who writes them; what is in them is sealed by the gateways for each other.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// `POST`: asks for the lease of an entry, or for more of it.
pub const LEASE: &str = "/v1/fleet/lease";
/// `PUT`: writes an entry that is leased.
pub const ENTRY: &str = "/v1/fleet/entry";
/// `GET`, with `?after=REVISION`: what has changed since; held until something has.
pub const CHANGES: &str = "/v1/fleet/changes";
/// `GET`, with `?revision=REVISION`: how many gateways have yet to take it in; held until none has.
pub const ACKNOWLEDGED: &str = "/v1/fleet/acknowledged";

/// Longest sealed value, in bytes before it is base64: a chain for a hundred names has some 20,000, and a
/// request of the master's limit holds one such.
pub const MAX_SEALED: usize = 32 * 1024;
/// Most entries in one answer to [`CHANGES`].
pub const MAX_CHANGES: usize = 32;
/// Longest answer to [`CHANGES`], in bytes: each entry has two values, in base64, and some text.
pub const MAX_CHANGES_LEN: usize = MAX_CHANGES * (2 * (MAX_SEALED / 3 + 1) * 4 + 1024);

/// The name of an entry: from 1 to 300 of `a-z`, `0-9` and `. - _ : * + /`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EntryName(String);

/// Not the name of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an entry's name is from 1 to 300 of a-z, 0-9 and . - _ : * + /")]
pub struct MalformedEntryName;

impl EntryName {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for EntryName {
    type Err = MalformedEntryName;
    fn from_str(text: &str) -> Result<Self, MalformedEntryName> {
        let is_one = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_:*+/".contains(&byte)
        };
        match (1..=300).contains(&text.len()) && text.bytes().all(is_one) {
            true => Ok(Self(text.to_owned())),
            false => Err(MalformedEntryName),
        }
    }
}

impl TryFrom<String> for EntryName {
    type Error = MalformedEntryName;
    fn try_from(text: String) -> Result<Self, MalformedEntryName> {
        text.parse()
    }
}

impl From<EntryName> for String {
    fn from(name: EntryName) -> Self {
        name.0
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Asks for a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TakeLease {
    /// Of which entry.
    pub entry: EntryName,
    /// The fence of the lease that the gateway has, and wants more of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<u64>,
}

/// What came of asking.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Leased {
    /// The gateway has the lease.
    Granted {
        /// Grows with each holder: what was written with a lower one is refused.
        fence: u64,
        /// How long the lease lasts.
        lasts_ms: u64,
        /// What the holder before left; nothing where more of a lease was asked for.
        draft: Option<String>,
        /// What came of the last order; nothing where more of a lease was asked for.
        product: Option<String>,
    },
    /// Another one has it.
    Held {
        /// It lapses after that, unless it is renewed.
        wait_ms: u64,
    },
}

/// Writes an entry. What is not there stays. Values are base64 of what was sealed; an empty one clears.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WriteEntry {
    /// Which.
    pub entry: EntryName,
    /// The fence of the lease.
    pub fence: u64,
    /// For the next holder alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draft: Option<String>,
    /// Answers to challenges, for every gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<String>,
    /// A pair, or an account: for every gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    /// Whether the lease ends with it.
    #[serde(default)]
    pub release: bool,
}

/// It is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// The revision that shows it.
    pub revision: u64,
}

/// What has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Of the last change that is in it, or of the last one that there was.
    pub revision: u64,
    /// In the order in which they changed last.
    pub entries: Vec<Changed>,
}

/// An entry that has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// Which.
    pub entry: EntryName,
    /// Answers to challenges where those have changed; empty if there are none any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<String>,
    /// A pair, or an account, where that has changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
}

/// Who has taken a revision in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledged {
    /// How many gateways that are there have not.
    pub behind: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_of_entries_are_short_and_plain() {
        for name in ["gateway.example", "account/ca", "2001:db8::1", "*.a+0f"] {
            assert_eq!(name.parse::<EntryName>().unwrap().as_str(), name);
        }
        for name in ["", "A.example", "a b", "a\n", "é", &"a".repeat(301)] {
            assert!(name.parse::<EntryName>().is_err(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_texts_never_panic(text: String) {
            let _ = serde_json::from_str::<WriteEntry>(&text);
            let _ = serde_json::from_str::<Leased>(&text);
            if let Ok(name) = text.parse::<EntryName>() {
                let again: EntryName = serde_json::from_str(&serde_json::to_string(&name).unwrap()).unwrap();
                prop_assert_eq!(again, name);
            }
        }
    }
}
