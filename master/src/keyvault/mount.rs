//! What is mounted where. A mount has a random id, and everything it keeps lies under that id, so
//! that what is mounted later at the same path never shows what was there before.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    barrier::{Barrier, Change, CommitError, Error, Revision},
    call::Refusal,
    path::Canonical,
    random_id,
    ttl::Ttl,
};

/// Where the table lies.
const TABLE: &str = "mount/table";
/// Most mounts of one kind: the table is one entry, and is read with each request.
const MAX_MOUNTS: usize = 512;
/// Lease times that a mount shows unless tuned: 32 days, as Vault has it.
const DEFAULT_LEASE_TTL: Ttl = Ttl(768 * 3600);

/// First segments that no secret engine can have: they are routes of the KeyVault and of the master.
pub(super) const RESERVED: [&str; 17] = [
    "audit",
    "auth",
    "certificates",
    "cubbyhole",
    "events",
    "identity",
    "leases",
    "nodes",
    "openapi.json",
    "relays",
    "roster",
    "secrets",
    "services",
    "sys",
    "token",
    "tokens",
    "units",
];

/// What answers below a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Secrets without versions.
    Kv1,
    /// Secrets with versions.
    Kv2,
    /// Keys that stay where they are.
    Transit,
    /// Tokens; always there, at `auth/token/`.
    Token,
    /// Logins with a role-id and a secret-id.
    AppRole,
    /// Logins with a service account's JWT.
    Kubernetes,
    /// Logins with a client certificate.
    Cert,
    /// Logins with a short-lived token that is good once.
    Bootstrap,
}

impl Kind {
    /// The engine that a client asks for by `name` and the option `version`.
    pub fn engine(name: &str, version: Option<&str>) -> Option<Self> {
        match (name, version) {
            ("kv", None | Some("1")) | ("generic", _) => Some(Self::Kv1),
            ("kv", Some("2")) | ("kv-v2", _) => Some(Self::Kv2),
            ("transit", _) => Some(Self::Transit),
            _ => None,
        }
    }

    /// The auth method that a client asks for by `name`.
    pub fn method(name: &str) -> Option<Self> {
        match name {
            "approle" => Some(Self::AppRole),
            "kubernetes" => Some(Self::Kubernetes),
            "cert" => Some(Self::Cert),
            "bootstrap" => Some(Self::Bootstrap),
            _ => None,
        }
    }

    /// What clients call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kv1 | Self::Kv2 => "kv",
            Self::Transit => "transit",
            Self::Token => "token",
            Self::AppRole => "approle",
            Self::Kubernetes => "kubernetes",
            Self::Cert => "cert",
            Self::Bootstrap => "bootstrap",
        }
    }

    /// Whether it lives below `auth/`.
    pub fn is_auth(self) -> bool {
        !matches!(self, Self::Kv1 | Self::Kv2 | Self::Transit)
    }
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Random; what it keeps lies under it.
    pub id: String,
    /// Where it is, with a `/` at its end; for an auth method below `auth/`.
    pub path: String,
    /// What answers there.
    pub kind: Kind,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Lease time of what says none.
    #[serde(default = "default_lease_ttl")]
    pub default_lease_ttl: Ttl,
    /// Longest lease time.
    #[serde(default = "default_lease_ttl")]
    pub max_lease_ttl: Ttl,
}

fn default_lease_ttl() -> Ttl {
    DEFAULT_LEASE_TTL
}

impl Mount {
    /// A new one.
    pub fn new(path: &str, kind: Kind) -> Self {
        Self {
            id: random_id(),
            path: format!("{}/", path.trim_matches('/')),
            kind,
            description: String::new(),
            default_lease_ttl: DEFAULT_LEASE_TTL,
            max_lease_ttl: DEFAULT_LEASE_TTL,
        }
    }

    /// Prefix of everything it keeps in the barrier.
    pub fn prefix(&self) -> String {
        let room = if self.kind.is_auth() {
            "auth"
        } else {
            "logical"
        };
        format!("{room}/{}/", self.id)
    }

    /// The name under which policies, audit lines and clients know it.
    pub fn public_path(&self) -> String {
        let room = if self.kind.is_auth() { "auth/" } else { "" };
        format!("{room}{}", self.path)
    }

    /// The name that policies have for the units that log in there.
    pub fn accessor(&self) -> String {
        let id = self.id.get(..8).unwrap_or(&self.id);
        let room = if self.kind.is_auth() { "auth_" } else { "" };
        format!("{room}{}_{id}", self.kind.name())
    }

    /// As `sys/mounts` and `sys/auth` show it.
    pub fn shown(&self) -> Value {
        let options = match self.kind {
            Kind::Kv1 => json!({"version": "1"}),
            Kind::Kv2 => json!({"version": "2"}),
            _ => Value::Null,
        };
        json!({
            "type": self.kind.name(),
            "description": self.description,
            "accessor": self.accessor(),
            "uuid": self.id,
            "options": options,
            "config": self.tuning(),
            "local": false,
            "seal_wrap": false,
            "external_entropy_access": false,
        })
    }

    /// As `…/tune` shows it.
    pub fn tuning(&self) -> Value {
        json!({
            "default_lease_ttl": self.default_lease_ttl,
            "max_lease_ttl": self.max_lease_ttl,
            "force_no_cache": false,
        })
    }
}

/// All mounts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    mounts: Vec<Mount>,
}

/// The table as it was read, and what it takes to write it back.
#[derive(Debug, Clone)]
pub struct Read {
    /// The table.
    pub table: Table,
    revision: Option<Revision>,
}

impl Read {
    /// Reads the table.
    pub async fn from(barrier: &Barrier) -> Result<Self, Error> {
        let read = barrier.read_record(TABLE).await?;
        Ok(match read {
            Some((revision, table)) => Self {
                table,
                revision: Some(revision),
            },
            None => Self {
                table: Table::default(),
                revision: None,
            },
        })
    }

    /// Plans that `table` takes the place of the one that was read.
    pub fn replace(&self, table: &Table, change: &mut Change) {
        change.expect(TABLE, self.revision);
        change.put_record(TABLE, table);
    }

    /// Plans nothing, but that the table is still the one that was read.
    pub fn expect(&self, change: &mut Change) {
        change.expect(TABLE, self.revision);
    }
}

/// What a fresh KeyVault has: tokens, the logins of the two-endpoint dialect, and its secrets.
pub fn initial() -> Table {
    let mounts = [("secret", Kind::Kv2), ("token", Kind::Token)];
    let mounts = mounts.map(|(path, kind)| Mount::new(path, kind));
    Table {
        mounts: mounts.into(),
    }
}

/// Plans the table of a fresh KeyVault.
pub fn initialize(change: &mut Change) {
    change.expect(TABLE, None);
    change.put_record(TABLE, &initial());
}

impl Table {
    /// The mount that answers `path`, and the rest of the path.
    pub fn find<'a, 'p>(&'a self, path: &'p str) -> Option<(&'a Mount, &'p str)> {
        let (is_auth, path) = match path.strip_prefix("auth/") {
            Some(path) => (true, path),
            None => (false, path),
        };
        let mounts = self.mounts.iter().filter(|m| m.kind.is_auth() == is_auth);
        // The longest, as one may lie below another's path.
        mounts
            .filter_map(|mount| Some((mount, below(path, &mount.path)?)))
            .max_by_key(|(mount, _)| mount.path.len())
    }

    /// The engines, or the auth methods.
    pub fn list(&self, auth: bool) -> impl Iterator<Item = &Mount> {
        self.mounts.iter().filter(move |m| m.kind.is_auth() == auth)
    }

    /// The mount that is just there. `path` has no `/` at its end.
    pub fn at(&self, auth: bool, path: &str) -> Option<&Mount> {
        self.list(auth)
            .find(|m| m.path.trim_end_matches('/') == path)
    }

    /// The same, to be changed.
    pub fn at_mut(&mut self, auth: bool, path: &str) -> Option<&mut Mount> {
        self.mounts
            .iter_mut()
            .find(|m| m.kind.is_auth() == auth && m.path.trim_end_matches('/') == path)
    }

    /// Adds one, unless something is there, above it or below it.
    pub fn add(&mut self, mount: Mount) -> Result<(), Refusal> {
        let auth = mount.kind.is_auth();
        self.vacant(auth, &mount.path)?;
        if self.list(auth).count() == MAX_MOUNTS {
            return Err(Refusal::invalid("there are too many mounts"));
        }
        self.mounts.push(mount);
        Ok(())
    }

    /// Takes one out.
    pub fn remove(&mut self, auth: bool, path: &str) -> Option<Mount> {
        let at = self
            .mounts
            .iter()
            .position(|m| m.kind.is_auth() == auth && m.path.trim_end_matches('/') == path)?;
        Some(self.mounts.remove(at))
    }

    /// Moves one to where nothing is.
    pub fn rename(&mut self, auth: bool, from: &str, to: &str) -> Result<(), Refusal> {
        let mut mount = self
            .remove(auth, from)
            .ok_or_else(|| Refusal::invalid("nothing is mounted at the path it is to move from"))?;
        mount.path = format!("{to}/");
        self.add(mount)
    }

    fn vacant(&self, auth: bool, path: &str) -> Result<(), Refusal> {
        let first = path.split('/').next().unwrap_or_default();
        if path == "/" || !auth && RESERVED.contains(&first) {
            return Err(Refusal::invalid("the path is reserved"));
        }
        let in_the_way = |m: &Mount| m.path.starts_with(path) || path.starts_with(&m.path);
        if self.list(auth).any(in_the_way) {
            return Err(Refusal::invalid(
                "path is already in use: something is mounted there, above or below",
            ));
        }
        Ok(())
    }
}

/// Entries destroyed in one change by [`sweep`].
const SWEPT_AT_ONCE: usize = 256;

/// Destroys what mounts kept that are no more.
pub(super) async fn sweep(barrier: &Barrier) -> Result<(), Error> {
    for room in ["logical/", "auth/"] {
        // Before the table: whatever is there and not in the table was unmounted.
        let kept = barrier.list(room, None, usize::MAX).await?;
        let table = barrier.read_record::<Table>(TABLE).await?;
        let Some((_, table)) = table else {
            return Ok(());
        };
        for id in kept {
            let is_mounted = table
                .mounts
                .iter()
                .any(|m| id.strip_suffix('/') == Some(&m.id));
            if !is_mounted {
                destroy_below(barrier, format!("{room}{id}")).await?;
            }
        }
    }
    Ok(())
}

/// Destroys all entries below a prefix.
async fn destroy_below(barrier: &Barrier, prefix: String) -> Result<(), Error> {
    let mut folders = vec![prefix];
    while let Some(folder) = folders.pop() {
        let names = barrier.list(&folder, None, SWEPT_AT_ONCE).await?;
        if names.is_empty() {
            continue;
        }
        let (below, entries): (Vec<_>, Vec<_>) =
            names.into_iter().partition(|name| name.ends_with('/'));
        let mut change = Change::default();
        for name in entries {
            change.delete(format!("{folder}{name}"));
        }
        match barrier.commit(change).await {
            Ok(()) | Err(CommitError::Conflict) => (),
            Err(CommitError::Failed(error)) => return Err(error),
        }
        let below = below.into_iter().map(|name| format!("{folder}{name}"));
        let below: Vec<_> = below.collect();
        // Again, for what did not fit; it is empty when all below it is.
        folders.push(folder);
        folders.extend(below);
    }
    Ok(())
}

/// What is left of `path` below `mount`, which ends in `/`.
fn below<'p>(path: &'p str, mount: &str) -> Option<&'p str> {
    match path.strip_prefix(mount) {
        Some(rest) => Some(rest),
        None => (path == mount.trim_end_matches('/')).then_some(""),
    }
}

/// The path of a mount as a client names it: canonical, and without a `/` at its end.
pub fn path(text: &str) -> Result<String, Refusal> {
    let text = text.trim_matches('/');
    Canonical::parse(text).map_err(|_| Refusal::invalid("the path of a mount is not canonical"))?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(paths: &[(&str, Kind)]) -> Table {
        let mut table = Table::default();
        for (path, kind) in paths {
            table.add(Mount::new(path, *kind)).unwrap();
        }
        table
    }

    #[test]
    fn a_path_is_answered_by_the_mount_it_lies_below() {
        let table = table(&[
            ("secret", Kind::Kv2),
            ("a/secret", Kind::Kv1),
            ("approle", Kind::AppRole),
        ]);
        let found = |path| table.find(path).map(|(mount, rest)| (mount.kind, rest));
        assert_eq!(found("secret/data/x"), Some((Kind::Kv2, "data/x")));
        assert_eq!(found("secret"), Some((Kind::Kv2, "")));
        assert_eq!(found("a/secret/x"), Some((Kind::Kv1, "x")));
        assert_eq!(found("auth/approle/login"), Some((Kind::AppRole, "login")));
        for nothing in [
            "approle/login",
            "secrets/x",
            "auth/secret/x",
            "auth",
            "",
            "a",
        ] {
            assert_eq!(found(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn nothing_is_mounted_on_above_or_below_another_or_at_a_route() {
        let mut table = table(&[("team/secret", Kind::Kv2), ("approle", Kind::AppRole)]);
        for path in [
            "team/secret",
            "team",
            "team/secret/x",
            "sys",
            "auth/x",
            "nodes",
            "",
        ] {
            assert!(table.add(Mount::new(path, Kind::Kv1)).is_err(), "{path}");
        }
        assert!(table.add(Mount::new("approle", Kind::Kv1)).is_ok());
        assert!(table.add(Mount::new("team/other", Kind::Kv1)).is_ok());
    }

    #[test]
    fn a_mount_that_moves_keeps_its_id_and_one_that_is_made_anew_does_not() {
        let mut table = table(&[("test", Kind::Kv1)]);
        let id = table.at(false, "test").unwrap().id.clone();
        table.rename(false, "test", "foobar").unwrap();
        assert!(table.at(false, "test").is_none());
        assert_eq!(table.at(false, "foobar").unwrap().id, id);
        assert!(table.rename(false, "test", "x").is_err());
        table.remove(false, "foobar").unwrap();
        table.add(Mount::new("foobar", Kind::Kv1)).unwrap();
        assert_ne!(table.at(false, "foobar").unwrap().id, id);
    }
}
