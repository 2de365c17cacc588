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
mod rule;
mod store;

pub use acl::{Acl, Request};
pub use pattern::Identity;
pub use read::Malformed;
pub use rule::{Capabilities, Capability, MAX_RULES, MAX_TEXT, Policy};
pub use store::{Fixed, Policies};

use rule::{CAPABILITIES, Grant, Rule};

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
