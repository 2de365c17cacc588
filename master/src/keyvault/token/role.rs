//! Token roles: rules for making tokens that stand in place of who makes them.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{networks, policies};
use crate::keyvault::{
    barrier::{Barrier, Change},
    call::{Answer, Call, Planned, Refusal},
    login::configured,
    parameter::Texts,
    ttl::Ttl,
};

const MAX_NAMES: usize = 10_000;

/// What a role says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Role {
    pub(super) allowed_policies: Vec<String>,
    pub(super) allowed_policies_glob: Vec<String>,
    pub(super) disallowed_policies: Vec<String>,
    pub(super) disallowed_policies_glob: Vec<String>,
    pub(super) orphan: bool,
    pub(super) renewable: bool,
    pub(super) path_suffix: String,
    pub(super) period: u64,
    pub(super) explicit_max_ttl: u64,
    pub(super) bound_cidrs: Vec<IpNet>,
    pub(super) no_default_policy: bool,
    pub(super) num_uses: u64,
}

impl Role {
    /// Whether it names policies that may be given.
    pub(super) fn restricts(&self) -> bool {
        !self.allowed_policies.is_empty() || !self.allowed_policies_glob.is_empty()
    }

    /// Whether these policies may be asked for.
    pub(super) fn allows(&self, names: &[String]) -> Result<(), Refusal> {
        let allowed = |name: &String| {
            name == super::policy::DEFAULT
                || self.allowed_policies.contains(name)
                || self
                    .allowed_policies_glob
                    .iter()
                    .any(|glob| fits(glob, name))
        };
        match names.iter().all(allowed) {
            true => Ok(()),
            false => Err(Refusal::invalid(
                "token policies must be subset of the role's allowed policies",
            )),
        }
    }

    /// Refuses if one of these policies must not be given.
    pub(super) fn forbids(&self, names: &[String]) -> Result<(), Refusal> {
        let forbidden = |name: &String| {
            self.disallowed_policies.contains(name)
                || self
                    .disallowed_policies_glob
                    .iter()
                    .any(|glob| fits(glob, name))
        };
        match names.iter().any(forbidden) {
            true => Err(Refusal::invalid("a policy is disallowed by the role")),
            false => Ok(()),
        }
    }
}

/// Whether a name fits a pattern with any number of `*` in it.
fn fits(glob: &str, name: &str) -> bool {
    let Some((start, rest)) = glob.split_once('*') else {
        return glob == name;
    };
    let Some(mut left) = name.strip_prefix(start) else {
        return false;
    };
    let mut parts = rest.split('*').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return left.ends_with(part);
        }
        match left.find(part) {
            Some(at) => left = &left[at + part.len()..],
            None => return false,
        }
    }
    true
}

#[derive(Deserialize)]
struct Parameters {
    allowed_policies: Option<Texts>,
    allowed_policies_glob: Option<Texts>,
    disallowed_policies: Option<Texts>,
    disallowed_policies_glob: Option<Texts>,
    orphan: Option<bool>,
    renewable: Option<bool>,
    path_suffix: Option<String>,
    #[serde(alias = "period")]
    token_period: Option<Ttl>,
    #[serde(alias = "explicit_max_ttl")]
    token_explicit_max_ttl: Option<Ttl>,
    #[serde(alias = "bound_cidrs")]
    token_bound_cidrs: Option<Texts>,
    token_no_default_policy: Option<bool>,
    token_num_uses: Option<u64>,
    token_type: Option<String>,
    #[serde(default)]
    allowed_entity_aliases: Texts,
}

fn path(name: &str) -> Result<String, Refusal> {
    match name.is_empty() || name.len() > 128 || name.contains('/') {
        true => Err(Refusal::invalid("not the name of a role")),
        false => Ok(format!("token-role/{}", name.to_lowercase())),
    }
}

pub(super) async fn read(barrier: &Barrier, name: &str) -> Result<Option<Role>, Refusal> {
    let role = barrier.read_record(&path(name)?).await?;
    Ok(role.map(|(_, role)| role))
}

/// The same, for a change that depends on what it says.
pub(super) async fn read_for(
    change: &mut Change,
    barrier: &Barrier,
    name: &str,
) -> Result<Option<Role>, Refusal> {
    let path = path(name)?;
    let role = barrier.read_record(&path).await?;
    change.expect(path, role.as_ref().map(|(revision, _)| *revision));
    Ok(role.map(|(_, role)| role))
}

pub(super) async fn names(barrier: &Barrier) -> Result<Vec<String>, Refusal> {
    Ok(barrier.list("token-role/", None, MAX_NAMES).await?)
}

pub(super) async fn show(barrier: &Barrier, name: &str) -> Result<Planned, Refusal> {
    let role = read(barrier, name).await?.ok_or(Refusal::Absent)?;
    Ok(Planned::answer(Answer::data(&json!({
        "allowed_entity_aliases": null,
        "allowed_policies": role.allowed_policies,
        "allowed_policies_glob": role.allowed_policies_glob,
        "disallowed_policies": role.disallowed_policies,
        "disallowed_policies_glob": role.disallowed_policies_glob,
        "explicit_max_ttl": role.explicit_max_ttl,
        "name": name.to_lowercase(),
        "orphan": role.orphan,
        "path_suffix": role.path_suffix,
        "period": role.period,
        "renewable": role.renewable,
        "token_bound_cidrs": role.bound_cidrs,
        "token_explicit_max_ttl": role.explicit_max_ttl,
        "token_no_default_policy": role.no_default_policy,
        "token_num_uses": role.num_uses,
        "token_period": role.period,
        "token_type": "default-service",
    }))))
}

pub(super) async fn put(barrier: &Barrier, name: &str, call: &Call) -> Result<Planned, Refusal> {
    let path = path(name)?;
    let held = barrier.read_record::<Role>(&path).await?;
    let mut change = Change::default();
    change.expect(&*path, held.as_ref().map(|(revision, _)| *revision));
    let mut role = held.map_or_else(Role::new, |(_, role)| role);
    role.update(call.body()?)?;
    change.put_record(path, &role);
    Ok(configured(change))
}

pub(super) fn delete(name: &str) -> Result<Planned, Refusal> {
    let mut change = Change::default();
    change.delete(path(name)?);
    Ok(configured(change))
}

impl Role {
    fn new() -> Self {
        Self {
            allowed_policies: Vec::new(),
            allowed_policies_glob: Vec::new(),
            disallowed_policies: Vec::new(),
            disallowed_policies_glob: Vec::new(),
            orphan: false,
            renewable: true,
            path_suffix: String::new(),
            period: 0,
            explicit_max_ttl: 0,
            bound_cidrs: Vec::new(),
            no_default_policy: false,
            num_uses: 0,
        }
    }

    fn update(&mut self, p: Parameters) -> Result<(), Refusal> {
        for (held, new) in [
            (&mut self.allowed_policies, p.allowed_policies),
            (&mut self.allowed_policies_glob, p.allowed_policies_glob),
            (&mut self.disallowed_policies, p.disallowed_policies),
            (
                &mut self.disallowed_policies_glob,
                p.disallowed_policies_glob,
            ),
        ] {
            if let Some(texts) = new {
                *held = policies(&texts)?;
            }
        }
        if !p.allowed_entity_aliases.0.is_empty() {
            return Err(Refusal::invalid(
                "'allowed_entity_aliases' is not supported here",
            ));
        }
        if let Some(suffix) = p.path_suffix {
            let fits = suffix.len() <= 64
                && suffix
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
            if !fits {
                return Err(Refusal::invalid(
                    "'path_suffix' has letters, digits, dashes and underscores",
                ));
            }
            self.path_suffix = suffix;
        }
        match p.token_type.as_deref() {
            None | Some("" | "service" | "default-service" | "default") => (),
            Some("batch" | "default-batch") => {
                return Err(Refusal::invalid("batch tokens are not given out here"));
            }
            Some(_) => return Err(Refusal::invalid("invalid 'token_type' value")),
        }
        self.orphan = p.orphan.unwrap_or(self.orphan);
        self.renewable = p.renewable.unwrap_or(self.renewable);
        self.period = p.token_period.map_or(self.period, |ttl| ttl.0);
        self.explicit_max_ttl = p
            .token_explicit_max_ttl
            .map_or(self.explicit_max_ttl, |ttl| ttl.0);
        if let Some(texts) = p.token_bound_cidrs {
            self.bound_cidrs = networks(&texts)?;
        }
        self.no_default_policy = p.token_no_default_policy.unwrap_or(self.no_default_policy);
        self.num_uses = p.token_num_uses.unwrap_or(self.num_uses);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_fit_as_one_reads_them() {
        for (glob, name, result) in [
            ("web", "web", true),
            ("web", "webs", false),
            ("web-*", "web-prod", true),
            ("*-prod", "web-prod", true),
            ("a*b*c", "a1b2c", true),
            ("a*b*c", "acb", false),
            ("*", "", true),
            ("a*a", "a", false),
        ] {
            assert_eq!(fits(glob, name), result, "{glob} {name}");
        }
    }
}
