//! Policies: what the holders of tokens may do, as Vault has it.
//!
//! A [`Policy`] is read from HCL or JSON: rules, each a path pattern and what it grants. A token's
//! policies together make an [`Acl`], which answers for one path. The pattern that fits most closely
//! decides alone; where several policies have the same pattern, what they grant adds up, and a deny
//! among them wins. What no pattern fits is denied.
//!
//! Patterns may name the unit that asks (`secret/data/{{identity.entity.name}}/*`). What cannot be
//! filled in with one plain segment grants nothing.

mod acl;
mod pattern;
mod read;
pub(super) mod routes;
mod store;

use std::{collections::BTreeMap, fmt};

use serde::Deserialize;
use serde_json::Value;

pub use acl::{Acl, Request};
pub use pattern::Identity;
pub use read::Malformed;
pub use store::{Fixed, Policies};

use pattern::Template;

/// Longest text of a policy, in bytes.
pub const MAX_TEXT: usize = 64 * 1024;
/// Most rules of a policy. A token has [`MAX_POLICIES`] policies, so that an [`Acl`] has 32,768 rules
/// at most.
pub const MAX_RULES: usize = 512;
/// Most policies of a token.
pub const MAX_POLICIES: usize = 64;
/// Longest name of a policy, in bytes.
pub const MAX_NAME: usize = 128;

/// The policy that may do all.
pub const ROOT: &str = "root";
/// The policy that tokens have unless they were made without it.
pub const DEFAULT: &str = "default";

/// What [`DEFAULT`] says until somebody changes it: a token may look at itself, make itself last
/// longer and end itself, and its holder may wrap and unwrap.
pub const DEFAULT_TEXT: &str = r#"# What every token may do, unless it was made without this policy.

path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/renew-self" {
  capabilities = ["update"]
}

path "auth/token/revoke-self" {
  capabilities = ["update"]
}

path "sys/capabilities-self" {
  capabilities = ["update"]
}

path "sys/wrapping/wrap" {
  capabilities = ["update"]
}

path "sys/wrapping/lookup" {
  capabilities = ["update"]
}

path "sys/wrapping/unwrap" {
  capabilities = ["update"]
}
"#;

/// A policy as it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    rules: Vec<Rule>,
}

/// What one pattern grants.
#[derive(Debug, Clone, PartialEq)]
struct Rule {
    pattern: Template,
    grant: Grant,
}

/// What is granted.
#[derive(Debug, Clone, Default, PartialEq)]
struct Grant {
    capabilities: Capabilities,
    /// Parameters that may be there, with the values that they may have; empty: any value. `None`:
    /// any parameter.
    allowed: Option<BTreeMap<String, Vec<Value>>>,
    /// Parameters that must not be there with one of these values; empty: with any.
    denied: BTreeMap<String, Vec<Value>>,
    /// Parameters that must be there.
    required: Vec<String>,
    /// Shortest and longest time for which the answer must be wrapped, in seconds.
    min_wrapping: Option<u64>,
    max_wrapping: Option<u64>,
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

const CAPABILITIES: [(Capability, &str); 8] = [
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
    fn and(self, other: Self) -> Self {
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

impl Policy {
    /// Reads HCL, or JSON where the text begins with a brace. The error says where the text is wrong
    /// and shows nothing of it.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        read::read(text)
    }
}

/// A policy's name as it is kept: in small letters.
pub fn canonical_name(name: &str) -> Option<String> {
    let fits = !name.is_empty()
        && name.len() <= MAX_NAME
        && !name.contains(|c: char| c == '/' || c == ',' || c.is_control() || c.is_whitespace());
    fits.then(|| name.to_lowercase())
}
