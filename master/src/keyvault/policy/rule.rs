//! What a policy says, without where it was read or what is made of it.

use std::{collections::BTreeMap, fmt};

use serde::Deserialize;
use serde_json::Value;

use super::pattern::Template;

/// Longest text of a policy, in bytes.
pub const MAX_TEXT: usize = 64 * 1024;
/// Most rules of a policy. A token has [`MAX_POLICIES`](super::MAX_POLICIES) policies, so that an
/// [`Acl`](super::Acl) has 32,768 rules at most.
pub const MAX_RULES: usize = 512;

/// A policy as it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    pub(super) rules: Vec<Rule>,
}

/// What one pattern grants.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rule {
    pub(super) pattern: Template,
    pub(super) grant: Grant,
}

/// What is granted.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Grant {
    pub(super) capabilities: Capabilities,
    /// Parameters that may be there, with the values that they may have; empty: any value. `None`:
    /// any parameter.
    pub(super) allowed: Option<BTreeMap<String, Vec<Value>>>,
    /// Parameters that must not be there with one of these values; empty: with any.
    pub(super) denied: BTreeMap<String, Vec<Value>>,
    /// Parameters that must be there.
    pub(super) required: Vec<String>,
    /// Shortest and longest time for which the answer must be wrapped, in seconds.
    pub(super) min_wrapping: Option<u64>,
    pub(super) max_wrapping: Option<u64>,
}

/// One thing that a rule grants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Capability {
    /// Keep what was not there.
    Create = 1,
    /// Take away.
    Delete = 2,
    /// Nothing, whatever else is granted.
    Deny = 4,
    /// Give names out.
    List = 8,
    /// Change a part.
    Patch = 16,
    /// Give out.
    Read = 32,
    /// Do what is kept for administrators, beside the other capability that it needs.
    Sudo = 64,
    /// Keep what may have been there.
    Update = 128,
}

pub(super) const CAPABILITIES: [(Capability, &str); 8] = [
    (Capability::Create, "create"),
    (Capability::Delete, "delete"),
    (Capability::Deny, "deny"),
    (Capability::List, "list"),
    (Capability::Patch, "patch"),
    (Capability::Read, "read"),
    (Capability::Sudo, "sudo"),
    (Capability::Update, "update"),
];

/// A set of them.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities(u8);

impl Capabilities {
    /// Whether it holds this one.
    pub fn has(self, capability: Capability) -> bool {
        self.0 & capability as u8 != 0
    }

    /// Their names in alphabetical order; without any, `deny`.
    pub fn names(self) -> Vec<&'static str> {
        let held = CAPABILITIES.iter().filter(|(one, _)| self.has(*one));
        let names: Vec<_> = held.map(|(_, name)| *name).collect();
        match names.is_empty() {
            true => vec!["deny"],
            false => names,
        }
    }

    /// Those of either set; a deny in one of them leaves nothing else.
    pub(super) fn and(self, other: Self) -> Self {
        let both = Self(self.0 | other.0);
        match both.has(Capability::Deny) {
            true => Self(Capability::Deny as u8),
            false => both,
        }
    }
}

impl FromIterator<Capability> for Capabilities {
    fn from_iter<I: IntoIterator<Item = Capability>>(iter: I) -> Self {
        let one = |capability| Self(capability as u8);
        iter.into_iter().map(one).fold(Self(0), Self::and)
    }
}

impl fmt::Debug for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}
