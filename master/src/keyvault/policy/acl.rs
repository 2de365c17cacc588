//! What a token's policies together allow.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;
use wavry_credentials::bearer::Json;

use super::{
    Capability, Grant, Policy,
    pattern::{Identity, Pattern},
};
use crate::keyvault::{call::Operation, path::Canonical};

/// What a token's policies allow. Made once for a set of policies; looking up allocates nothing.
#[derive(Debug, Default)]
pub struct Acl {
    root: bool,
    exact: HashMap<Box<str>, Grant>,
    /// The closest first, so that the first one that fits decides.
    patterns: Vec<(Pattern, Grant)>,
}

/// What is asked of an [`Acl`].
pub struct Request<'a> {
    /// What is to be done.
    pub operation: Operation,
    /// To what.
    pub path: &'a Canonical,
    /// Whether it is kept for administrators.
    pub sudo: bool,
    /// With which parameters.
    pub parameters: Option<&'a Json>,
    /// For how long the answer is to be wrapped.
    pub wrap_ttl: Option<Duration>,
}

impl Acl {
    /// Of the root policy.
    pub fn root() -> Self {
        Self {
            root: true,
            ..Self::default()
        }
    }

    /// Of these policies, for this unit.
    pub fn new(policies: &[Arc<Policy>], identity: &Identity) -> Self {
        let mut grants: HashMap<Pattern, Grant> = HashMap::new();
        for rule in policies.iter().flat_map(|policy| &policy.rules) {
            // A rule that cannot be filled in grants nothing, and must not take away what a wider
            // one grants to all.
            let Some(pattern) = rule.pattern.fill(identity) else {
                continue;
            };
            match grants.get_mut(&pattern) {
                Some(grant) => grant.add(&rule.grant),
                None => {
                    grants.insert(pattern, rule.grant.clone());
                }
            }
        }
        let mut acl = Self::default();
        for (pattern, grant) in grants {
            match pattern.is_exact() {
                true => {
                    acl.exact.insert(pattern.text().into(), grant);
                }
                false => acl.patterns.push((pattern, grant)),
            }
        }
        acl.patterns.sort_by(|(a, _), (b, _)| a.by_closeness(b));
        acl
    }

    /// Whether it is the root policy's.
    pub fn is_root(&self) -> bool {
        self.root
    }

    /// Whether a request is allowed.
    pub fn allows(&self, request: &Request<'_>) -> bool {
        if self.root {
            return true;
        }
        let path = request.path.as_str();
        let grant = match request.operation {
            Operation::List => self.grant_for_list(path),
            _ => self.grant(path),
        };
        grant.is_some_and(|grant| grant.allows(request))
    }

    /// What may be done at a path, in Vault's words and in alphabetical order.
    pub fn capabilities(&self, path: &str) -> Vec<&'static str> {
        if self.root {
            return vec!["root"];
        }
        let held = self.grant(path).map(|grant| grant.capabilities);
        held.unwrap_or_default().names()
    }

    fn grant(&self, path: &str) -> Option<&Grant> {
        self.exact.get(path).or_else(|| {
            let mut patterns = self.patterns.iter();
            let found = patterns.find(|(pattern, _)| pattern.fits(path));
            found.map(|(_, grant)| grant)
        })
    }

    /// A list is asked for with a slash at its end; a rule may be written without one.
    fn grant_for_list(&self, path: &str) -> Option<&Grant> {
        let name = path.strip_suffix('/').unwrap_or(path);
        self.exact
            .get(path)
            .or_else(|| self.exact.get(name))
            .or_else(|| self.grant(path))
            .or_else(|| self.grant(name))
    }
}

impl Grant {
    /// Adds what another policy grants for the same pattern. Bounds get tighter.
    fn add(&mut self, other: &Self) {
        fn add_values(all: &mut BTreeMap<String, Vec<Value>>, more: &BTreeMap<String, Vec<Value>>) {
            for (name, values) in more {
                match all.get_mut(name) {
                    // No values stand for any.
                    Some(held) if held.is_empty() || values.is_empty() => held.clear(),
                    Some(held) => held.extend(values.iter().cloned()),
                    None => {
                        all.insert(name.clone(), values.clone());
                    }
                }
            }
        }
        self.capabilities = self.capabilities.and(other.capabilities);
        match (&mut self.allowed, &other.allowed) {
            (Some(held), Some(more)) => add_values(held, more),
            (None, more) => self.allowed.clone_from(more),
            (Some(_), None) => (),
        }
        add_values(&mut self.denied, &other.denied);
        self.required.extend(other.required.iter().cloned());
        self.min_wrapping = self.min_wrapping.max(other.min_wrapping);
        self.max_wrapping = match (self.max_wrapping, other.max_wrapping) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
    }

    fn allows(&self, request: &Request<'_>) -> bool {
        use Operation::{Create, Delete, List, Patch, Read, Update};
        let needed = match request.operation {
            Read => Capability::Read,
            List => Capability::List,
            Create => Capability::Create,
            Update => Capability::Update,
            Patch => Capability::Patch,
            Delete => Capability::Delete,
        };
        let held = self.capabilities;
        if held.has(Capability::Deny) || !held.has(needed) {
            return false;
        }
        if request.sudo && !held.has(Capability::Sudo) {
            return false;
        }
        if !self.allows_wrapping(request.wrap_ttl) {
            return false;
        }
        match request.operation {
            Create | Update | Patch => self.allows_parameters(request.parameters),
            Read | List | Delete => true,
        }
    }

    fn allows_wrapping(&self, ttl: Option<Duration>) -> bool {
        let seconds = ttl.map(|ttl| ttl.as_secs());
        let long_enough = |min| seconds.is_some_and(|seconds| seconds >= min);
        let short_enough = |max| seconds.is_some_and(|seconds| seconds <= max);
        self.min_wrapping.is_none_or(long_enough) && self.max_wrapping.is_none_or(short_enough)
    }

    fn allows_parameters(&self, parameters: Option<&Json>) -> bool {
        if self.allowed.is_none() && self.denied.is_empty() && self.required.is_empty() {
            return true;
        }
        match parameters {
            None => self.allows_members(&serde_json::Map::new()),
            // What is not an object has no parameters that could be looked at.
            Some(json) => json
                .inspect(|members| self.allows_members(members))
                .unwrap_or(false),
        }
    }

    fn allows_members(&self, members: &serde_json::Map<String, Value>) -> bool {
        // Names of parameters are told apart without regard to capitals.
        let named = |name: &String| {
            members
                .keys()
                .any(|member| member.eq_ignore_ascii_case(name))
        };
        self.required.iter().all(named)
            && members
                .iter()
                .all(|(name, value)| self.allows_member(&name.to_ascii_lowercase(), value))
    }

    fn allows_member(&self, name: &str, value: &Value) -> bool {
        let denied =
            |values: &Vec<Value>| values.is_empty() || values.iter().any(|v| fits(v, value));
        if self.denied.contains_key("*") || self.denied.get(name).is_some_and(denied) {
            return false;
        }
        let Some(allowed) = &self.allowed else {
            return true;
        };
        match allowed.get(name).or_else(|| allowed.get("*")) {
            Some(values) => values.is_empty() || values.iter().any(|v| fits(v, value)),
            None => false,
        }
    }
}

/// Whether a value is the one that a rule has; of a text, `*` at its start or end stands for any rest.
fn fits(pattern: &Value, value: &Value) -> bool {
    let (Value::String(pattern), Value::String(value)) = (pattern, value) else {
        return pattern == value;
    };
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(""), _) => true,
        (Some(inner), Some(_)) => {
            let inner = inner.strip_suffix('*').unwrap_or(inner);
            value.contains(inner)
        }
        (Some(end), None) => value.ends_with(end),
        (None, Some(start)) => value.starts_with(start),
        (None, None) => pattern == value,
    }
}

#[cfg(test)]
mod tests;
