//! `sys/mounts`, `sys/auth`, `sys/remount`: what answers where.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use wavry_credentials::audit::Action;

use crate::keyvault::{
    KeyVault,
    barrier::Change,
    call::{Answer, Call, Noted, Operation, Planned, Refusal},
    mount::{self, Kind, Mount},
    ttl::Ttl,
};

/// Longest description, in bytes.
const MAX_DESCRIPTION: usize = 256;

/// Plans an answer below `sys/mounts` or, for auth methods, `sys/auth`.
pub(super) async fn handle(
    vault: &KeyVault,
    call: &Call,
    auth: bool,
    below: &str,
) -> Result<Planned, Refusal> {
    use Operation::{Delete, Read, Update};
    let read = mount::Read::from(&vault.barrier).await?;
    let below = below.trim_end_matches('/');
    match (below, below.strip_suffix("/tune"), call.operation) {
        ("", _, Read) => {
            let mounts = read.table.list(auth);
            let shown = mounts.map(|mount| (mount.path.clone(), mount.shown()));
            let shown: Map<String, Value> = shown.collect();
            Ok(Planned::answer(Answer::data(&shown)))
        }
        ("", ..) => Err(Refusal::Unsupported),
        (_, Some(path), Read) => {
            let mount = found(&read, auth, path)?;
            Ok(Planned::answer(Answer::data(&mount.tuning())))
        }
        (_, Some(path), Update) => tune(&read, call, auth, path),
        (path, None, Read) => {
            let mount = found(&read, auth, path)?;
            Ok(Planned::answer(Answer::data(&mount.shown())))
        }
        (path, None, Update) => enable(&read, call, auth, path),
        (path, None, Delete) => disable(vault, &read, auth, path),
        _ => Err(Refusal::Unsupported),
    }
}

fn found<'t>(read: &'t mount::Read, auth: bool, path: &str) -> Result<&'t Mount, Refusal> {
    let mount = read.table.at(auth, path);
    mount.ok_or_else(|| Refusal::invalid("nothing is mounted there"))
}

#[derive(Deserialize)]
struct NewMount {
    r#type: String,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    config: Option<Tuning>,
    #[serde(default)]
    options: Option<BTreeMap<String, Value>>,
}

#[derive(Default, Deserialize)]
struct Tuning {
    default_lease_ttl: Option<Ttl>,
    max_lease_ttl: Option<Ttl>,
    description: Option<String>,
}

fn enable(read: &mount::Read, call: &Call, auth: bool, path: &str) -> Result<Planned, Refusal> {
    let new: NewMount = call.body()?;
    let path = mount::path(path)?;
    let kind = match auth {
        true => Kind::method(&new.r#type),
        false => {
            let options = new.options.unwrap_or_default();
            let version = options.get("version").map(|version| match version {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            });
            Kind::engine(&new.r#type, version.as_deref())
        }
    };
    let kind = kind.ok_or_else(|| {
        Refusal::invalid("plugin not found in the catalog: there is no such type")
    })?;
    let mut mount = Mount::new(&path, kind);
    let tuning = Tuning {
        description: new.description,
        ..new.config.unwrap_or_default()
    };
    apply(tuning, &mut mount)?;
    let mut table = read.table.clone();
    table.add(mount)?;
    Ok(replaced(read, &table, Action::Mount))
}

fn disable(
    vault: &KeyVault,
    read: &mount::Read,
    auth: bool,
    path: &str,
) -> Result<Planned, Refusal> {
    let mut table = read.table.clone();
    let Some(mount) = table.remove(auth, path) else {
        return Ok(Planned::answer(Answer::Done));
    };
    if mount.kind == Kind::Token {
        return Err(Refusal::invalid("tokens cannot be disabled"));
    }
    // What it kept is out of reach at once, and swept away after.
    vault.upkeep.notify_one();
    Ok(replaced(read, &table, Action::Unmount))
}

fn tune(read: &mount::Read, call: &Call, auth: bool, path: &str) -> Result<Planned, Refusal> {
    let tuning: Tuning = call.body()?;
    let mut table = read.table.clone();
    let mount = table.at_mut(auth, path);
    let mount = mount.ok_or_else(|| Refusal::invalid("nothing is mounted there"))?;
    apply(tuning, mount)?;
    Ok(replaced(read, &table, Action::Configure))
}

fn apply(tuning: Tuning, mount: &mut Mount) -> Result<(), Refusal> {
    if let Some(text) = tuning.description {
        if text.len() > MAX_DESCRIPTION {
            return Err(Refusal::invalid("description: longer than 256 bytes"));
        }
        mount.description = text;
    }
    for (said, kept) in [
        (tuning.default_lease_ttl, &mut mount.default_lease_ttl),
        (tuning.max_lease_ttl, &mut mount.max_lease_ttl),
    ] {
        if let Some(ttl) = said.filter(|ttl| ttl.said().is_some()) {
            *kept = ttl;
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct Remount {
    from: String,
    to: String,
}

/// Plans that a mount, with all that it keeps, answers at another path.
pub(super) async fn remount(vault: &KeyVault, call: &Call) -> Result<Planned, Refusal> {
    let body: Remount = call.body()?;
    let read = mount::Read::from(&vault.barrier).await?;
    let (from, to) = (mount::path(&body.from)?, mount::path(&body.to)?);
    let (auth, from, to) = match (from.strip_prefix("auth/"), to.strip_prefix("auth/")) {
        (Some(from), Some(to)) => (true, from, to),
        (None, None) => (false, &*from, &*to),
        _ => return Err(Refusal::invalid("an auth method cannot become an engine")),
    };
    let mut table = read.table.clone();
    table.rename(auth, from, to)?;
    Ok(replaced(&read, &table, Action::Configure))
}

fn replaced(read: &mount::Read, table: &mount::Table, action: Action) -> Planned {
    let mut change = Change::default();
    read.replace(table, &mut change);
    Planned::done(change).noting(Noted {
        action: Some(action),
        ..Noted::default()
    })
}

/// `sys/internal/ui/mounts/…`: what Vault's own command asks before it reads a secret.
pub(super) async fn preflight(vault: &KeyVault, below: &str) -> Result<Planned, Refusal> {
    let path = below.strip_prefix("ui/mounts/").ok_or(Refusal::Absent)?;
    let read = mount::Read::from(&vault.barrier).await?;
    let (mount, _) = read.table.find(path).ok_or(Refusal::Denied)?;
    let mut data = mount.shown();
    data["path"] = json!(mount.public_path());
    Ok(Planned::answer(Answer::data(&data)))
}
