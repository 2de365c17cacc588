//! `X-Vault-Namespace`: the mounts of a namespace are those whose path begins with it.
//!
//! In namespace `a/b`, `secret/data/x` is `a/b/secret/data/x`, `auth/approle/login` is
//! `auth/a/b/approle/login`, and a mount made as `kv` is `a/b/kv`. Tokens and policies are the
//! cluster's: a policy names the full path, and is written outside of namespaces.

use super::{call::Refusal, path::Canonical};

/// What is the same in each namespace.
const EVERYWHERE: [&str; 12] = [
    "auth/token",
    "sys/capabilities",
    "sys/capabilities-accessor",
    "sys/capabilities-self",
    "sys/health",
    "sys/init",
    "sys/leader",
    "sys/leases",
    "sys/seal-status",
    "sys/tools",
    "sys/wrapping",
    "sys/unseal",
];

/// The path that `path` is in namespace `name`.
pub(super) fn apply(name: &str, path: &Canonical) -> Result<Canonical, Refusal> {
    let name = name.trim_matches('/');
    if name.is_empty() || name == "root" {
        return Ok(path.clone());
    }
    Canonical::parse(name).map_err(|_| Refusal::invalid("X-Vault-Namespace: not canonical"))?;
    let text = path.as_str();
    let is_below = |place: &str| {
        text.strip_prefix(place)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if EVERYWHERE.into_iter().any(is_below) {
        return Ok(path.clone());
    }
    let moved = match text.strip_prefix("auth/") {
        Some(rest) => format!("auth/{name}/{rest}"),
        None => match ["sys/mounts/", "sys/auth/", "sys/internal/ui/mounts/"]
            .iter()
            .find_map(|place| Some((place, text.strip_prefix(place)?)))
        {
            Some((place, rest)) => format!("{place}{name}/{rest}"),
            None if text == "auth" || text == "sys" || text.starts_with("sys/") => {
                return Err(Refusal::invalid(
                    "this path is not of a namespace: leave X-Vault-Namespace out",
                ));
            }
            None => format!("{name}/{text}"),
        },
    };
    Canonical::parse(&moved).map_err(|error| Refusal::invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_a_namespace_are_those_below_its_name() {
        for (path, moved) in [
            ("secret/data/x", "a/b/secret/data/x"),
            ("auth/approle/login", "auth/a/b/approle/login"),
            ("auth/token/lookup-self", "auth/token/lookup-self"),
            ("sys/mounts/kv", "sys/mounts/a/b/kv"),
            ("sys/auth/kv/tune", "sys/auth/a/b/kv/tune"),
            ("sys/health", "sys/health"),
            ("sys/wrapping/unwrap", "sys/wrapping/unwrap"),
            ("system/x", "a/b/system/x"),
            ("sys/healthy", ""),
            ("sys/policies/acl/x", ""),
            ("auth", ""),
        ] {
            let path = Canonical::parse(path).unwrap();
            let applied = apply("/a/b/", &path);
            assert_eq!(
                applied.map(|path| path.to_string()).unwrap_or_default(),
                moved
            );
            assert_eq!(apply("root", &path).unwrap(), path);
            assert_eq!(apply("", &path).unwrap(), path);
        }
        let path = Canonical::parse("secret/x").unwrap();
        assert!(apply("a/../b", &path).is_err());
    }
}
