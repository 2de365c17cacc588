//! Secret engines: what answers below a mount. Each reads, and plans.

mod kv1;
pub(super) mod kv2;
mod transit;

use time::OffsetDateTime;
use wavry_credentials::bearer::Document;

pub(super) use transit::Budgets;

use super::{
    barrier::Barrier,
    call::{Answer, Call, Planned, Refusal},
    mount::{Kind, Mount},
};

/// Where and when an engine is asked.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    pub(super) barrier: &'a Barrier,
    pub(super) mount: &'a Mount,
    /// The path below the mount.
    pub(super) rest: &'a str,
    pub(super) transit: &'a Budgets,
    pub(super) now: OffsetDateTime,
    /// Asked in the two-endpoint dialect: a secret goes without its version.
    pub(super) is_plain: bool,
}

impl At<'_> {
    /// Path in the barrier of what this mount keeps as `name`.
    fn entry(&self, name: &str) -> String {
        format!("{}{name}", self.mount.prefix())
    }
}

/// Asks the engine that is mounted there.
pub(super) async fn handle(at: At<'_>, call: &Call) -> Result<Planned, Refusal> {
    match at.mount.kind {
        Kind::Kv1 => kv1::handle(at, call).await,
        Kind::Kv2 => kv2::handle(at, call).await,
        Kind::Transit => transit::handle(at, call).await,
        _ => Err(Refusal::Internal("an auth method is mounted as an engine")),
    }
}

/// Whether what a write names is there already: it decides whether `create` or `update` is asked of
/// the policy.
pub(super) async fn exists(at: At<'_>) -> Result<bool, Refusal> {
    match at.mount.kind {
        Kind::Kv1 => kv1::exists(at).await,
        Kind::Kv2 => kv2::exists(at).await,
        Kind::Transit => transit::exists(at).await,
        _ => Ok(true),
    }
}

/// Most names in one answer. A client asks for what follows with `after`.
const MAX_NAMES: usize = 10_000;

/// Lists names one level below `prefix`, which ends in `/`.
async fn list(at: At<'_>, prefix: &str, call: &Call) -> Result<Planned, Refusal> {
    let after = call.query.get("after").map(String::as_str);
    let limit = match call.query.get("limit").map(|limit| limit.parse()) {
        None => MAX_NAMES,
        Some(Ok(limit)) if (1..=MAX_NAMES).contains(&limit) => limit,
        Some(_) => return Err(Refusal::invalid("limit: not a number from 1 to 10000")),
    };
    let keys = at.barrier.list(&at.entry(prefix), after, limit).await?;
    if keys.is_empty() {
        return Err(Refusal::Absent);
    }
    let data = Document::of(&serde_json::json!({"keys": keys}));
    Ok(Planned::answer(Answer::Data(data)))
}

/// `name` as the name of a secret: something, and no folder.
fn name(name: &str) -> Result<&str, Refusal> {
    match name.is_empty() || name.ends_with('/') {
        true => Err(Refusal::invalid("the path names a folder and no secret")),
        false => Ok(name),
    }
}

/// `folder` as a prefix: empty, or with a `/` at its end.
fn folder(folder: &str) -> String {
    match folder.trim_end_matches('/') {
        "" => String::new(),
        folder => format!("{folder}/"),
    }
}
