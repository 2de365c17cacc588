//! `sys/*`: what the KeyVault says of itself, and what is mounted, sealed and granted.

mod mounts;
mod seal;

use serde_json::json;

use super::{
    KeyVault,
    authorize::{Access, Granted},
    call::{Answer, Call, Operation, Planned, Refusal},
    policy, wrapping,
};

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

/// The audit log, and nothing that a caller could point elsewhere: where lines are copied to is the
/// configuration's to say.
fn audit_devices(_vault: &KeyVault) -> Planned {
    let data = json!({
        "database/": {
            "type": LOG,
            "description": "hash-chained log beside the entries; written before each answer",
            "options": {},
            "local": false,
            "path": "database/",
        },
    });
    Planned::answer(Answer::data(&data))
}

#[derive(serde::Deserialize)]
struct Hashed {
    input: Option<wavry_credentials::bearer::Token>,
}

/// What stands in the audit log for an identifier.
fn audit_hash(vault: &KeyVault, call: &Call, device: &str) -> Result<Planned, Refusal> {
    if device.trim_end_matches('/') != LOG {
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
