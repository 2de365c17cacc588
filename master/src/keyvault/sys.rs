//! `sys/*`: what the KeyVault says of itself, and what is mounted, sealed and granted.

mod mounts;
mod seal;

use serde_json::{Value, json};

use super::{
    KeyVault,
    authorize::{Access, Granted},
    call::{Answer, Call, Operation, Planned, Refusal},
    policy, wrapping,
};
use crate::audit_sink::Target;

/// Who may call what below `sys/`.
pub(super) fn access(rest: &str, operation: Operation) -> Access {
    let reads = operation == Operation::Read;
    match rest {
        "init" | "unseal" => Access::Open,
        "health" | "seal-status" | "leader" if reads => Access::Open,
        // Whoever has shares of the master key shows them.
        "generate-root/attempt"
        | "generate-root/update"
        | "rekey/init"
        | "rekey/update"
        | "rekey/verify" => Access::Open,
        // Whoever has the wrapping token shows it.
        "wrapping/unwrap" | "wrapping/lookup" | "wrapping/rewrap" => Access::Login,
        _ => Access::Holder,
    }
}

/// Whether a call may change what is mounted where.
pub(super) fn changes_mounts(call: &Call) -> bool {
    let path = call.path.as_str();
    let is_about = ["sys/mounts/", "sys/auth/", "sys/remount", "sys/init"]
        .iter()
        .any(|place| path.starts_with(place));
    is_about && call.operation != Operation::Read
}

/// Whether a call is to seal the KeyVault.
pub(super) fn seals(call: &Call) -> bool {
    call.path.as_str() == "sys/seal" && call.operation == Operation::Update
}

/// Plans an answer below `sys/`.
pub(super) async fn handle(
    vault: &KeyVault,
    call: &Call,
    granted: &Granted,
    rest: &str,
) -> Result<Planned, Refusal> {
    use Operation::{Read, Update};
    let authorizer = &vault.authorizer;
    let tokens = authorizer.tokens();
    let (room, below) = rest.split_once('/').unwrap_or((rest, ""));
    match (room, below, call.operation) {
        ("init" | "unseal" | "seal" | "seal-status" | "health" | "leader", "", _)
        | ("generate-root" | "rekey" | "rotate" | "key-status", _, _) => {
            seal::handle(vault, call, rest).await
        }
        ("mounts", _, _) => mounts::handle(vault, call, false, below).await,
        ("auth", _, _) => mounts::handle(vault, call, true, below).await,
        ("remount", "", Update) => mounts::remount(vault, call).await,
        ("internal", _, Read) => mounts::preflight(vault, below).await,
        ("policy", _, _) => policy::routes::policy(authorizer, call, below).await,
        ("policies", _, _) => match below.strip_prefix("acl") {
            Some(name) => {
                let name = name.strip_prefix('/').unwrap_or(name);
                policy::routes::acl(authorizer, call, name).await
            }
            None => Err(Refusal::Absent),
        },
        ("capabilities" | "capabilities-self" | "capabilities-accessor", "", Update) => {
            policy::routes::capabilities(authorizer, call, granted, room).await
        }
        ("wrapping", "wrap", Update) => wrapping::wrap_body(tokens, call).await,
        ("wrapping", "unwrap", Update) => wrapping::unwrap(tokens, call).await,
        ("wrapping", "rewrap", Update) => wrapping::rewrap(tokens, call).await,
        ("wrapping", "lookup", Update | Read) => wrapping::lookup(tokens, call).await,
        ("audit", "", Read) => Ok(audit_devices(vault)),
        ("audit-hash", device, Update) => audit_hash(vault, call, device),
        ("leases", _, _) => leases(below, call.operation),
        ("audit" | "wrapping" | "remount", _, _) => Err(Refusal::Unsupported),
        _ => Err(Refusal::Absent),
    }
}

/// The name of the audit log that is always there.
const LOG: &str = "database";

/// The audit log, and where the configuration has it copied to. A caller cannot point it elsewhere: that would
/// be a way to write files of one's choosing.
fn audit_devices(vault: &KeyVault) -> Planned {
    let mut data = serde_json::Map::new();
    let mut add = |name: &str, kind: &str, description: &str, options: Value| {
        let path = format!("{name}/");
        let device = json!({
            "type": kind,
            "description": description,
            "options": options,
            "local": false,
            "path": path,
        });
        data.insert(path, device);
    };
    for sink in vault.audit_sinks.iter() {
        let copy = "copy of the log in the database, kept up with it";
        match &sink.target {
            Target::File(path) => add(&sink.name, "file", copy, json!({"file_path": path})),
            Target::Syslog(_) => add(&sink.name, "syslog", copy, json!({})),
        }
    }
    let log = "hash-chained log beside the entries; written before each answer";
    add(LOG, LOG, log, json!({}));
    Planned::answer(Answer::data(&data))
}

#[derive(serde::Deserialize)]
struct Hashed {
    input: Option<wavry_credentials::bearer::Token>,
}

/// What stands in the audit log for an identifier.
fn audit_hash(vault: &KeyVault, call: &Call, device: &str) -> Result<Planned, Refusal> {
    // The lines of all of them are the same.
    let device = device.trim_end_matches('/');
    let is_known = device == LOG || vault.audit_sinks.iter().any(|sink| sink.name == device);
    if !is_known {
        return Err(Refusal::invalid("unknown audit backend"));
    }
    let Hashed { input } = call.body()?;
    let input = input.ok_or_else(|| Refusal::invalid("input: missing"))?;
    let hash = input.identifier(vault.barrier.audit_key());
    let data = json!({"hash": format!("hmac-sha256:{hash}")});
    Ok(Planned::answer(Answer::data(&data)))
}

/// No engine here gives leases.
fn leases(below: &str, operation: Operation) -> Result<Planned, Refusal> {
    match (below, operation) {
        (_, Operation::List) => Err(Refusal::Absent),
        (_, Operation::Update) => Err(Refusal::invalid("invalid lease")),
        _ => Err(Refusal::Unsupported),
    }
}
