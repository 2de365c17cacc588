//! KV version 2: a path has versions, each deleted softly, brought back, or destroyed.
//!
//! Of a secret at path `p` there is a record of its versions ([`Metadata`]) at `metadata/p`, and each
//! version's object at `version/p/N`, as it was written. Every change of a version expects the record
//! that it read, so that of two writers with the same check-and-set number one is refused.

mod metadata;

use serde::Deserialize;
use serde_json::json;
use wavry_credentials::bearer::{Document, Json};

use super::{At, folder, list, name};
use crate::keyvault::{
    barrier::{Change, Revision},
    call::{Answer, Call, Noted, Operation, Planned, Refusal},
    ttl::Ttl,
};
use metadata::{Config, Metadata, Settings, Version};

const CONFIG: &str = "config";

pub(super) async fn handle(at: At<'_>, call: &Call) -> Result<Planned, Refusal> {
    use Operation::{Create, Delete, List, Patch, Read, Update};
    let (room, path) = at.rest.split_once('/').unwrap_or((at.rest, ""));
    match (room, call.operation) {
        ("config", Read) if path.is_empty() => read_config(at).await,
        ("config", Create | Update) if path.is_empty() => write_config(at, call).await,
        ("data", Read) => read(at, name(path)?, call).await,
        ("data", Create | Update) => write(at, name(path)?, call).await,
        ("data", Patch) => patch(at, name(path)?, call).await,
        ("data", Delete) => delete_latest(at, name(path)?).await,
        ("subkeys", Read) => subkeys(at, name(path)?, call).await,
        ("metadata", List) => list(at, &format!("metadata/{}", folder(path)), call).await,
        ("metadata", Read) => read_metadata(at, name(path)?).await,
        ("metadata", Create | Update) => write_metadata(at, name(path)?, call, false).await,
        ("metadata", Patch) => write_metadata(at, name(path)?, call, true).await,
        ("metadata", Delete) => delete_metadata(at, name(path)?).await,
        ("delete" | "undelete" | "destroy", Create | Update) => {
            change_versions(at, name(path)?, call, room).await
        }
        (room, _) if has_room(room) => Err(Refusal::Unsupported),
        _ => Err(Refusal::Absent),
    }
}

/// Whether a path that begins with this is one of the engine's.
pub(in crate::keyvault) fn has_room(name: &str) -> bool {
    ROOMS.contains(&name)
}

const ROOMS: [&str; 7] = [
    "config", "data", "delete", "destroy", "metadata", "subkeys", "undelete",
];

pub(super) async fn exists(at: At<'_>) -> Result<bool, Refusal> {
    match at.rest.split_once('/') {
        Some(("data" | "metadata", path)) => Ok(At::secret(&at, path).await?.is_some()),
        _ => Ok(true),
    }
}

/// A secret's record, and the revision of it that was read.
struct Found {
    metadata: Metadata,
    revision: Revision,
}

impl At<'_> {
    async fn secret(&self, path: &str) -> Result<Option<Found>, Refusal> {
        let found = self.barrier.read_record(&self.metadata_entry(path)).await?;
        Ok(found.map(|(revision, metadata)| Found { metadata, revision }))
    }

    async fn config(&self) -> Result<Config, Refusal> {
        let found = self.barrier.read_record(&self.entry(CONFIG)).await?;
        Ok(found.map(|(_, config)| config).unwrap_or_default())
    }

    async fn version(&self, path: &str, number: u64) -> Result<Json, Refusal> {
        let entry = self.barrier.read(&self.version_entry(path, number)).await?;
        let entry = entry.ok_or(Refusal::Internal("a version of a secret is missing"))?;
        Ok(Json::stored(entry.value))
    }

    fn metadata_entry(&self, path: &str) -> String {
        self.entry(&format!("metadata/{path}"))
    }

    fn version_entry(&self, path: &str, number: u64) -> String {
        self.entry(&format!("version/{path}/{number}"))
    }

    /// Plans the record, which is still as it was read.
    fn keep(&self, path: &str, metadata: &Metadata, read: Option<Revision>) -> Change {
        let mut change = Change::default();
        let entry = self.metadata_entry(path);
        change.expect(entry.clone(), read);
        change.put_record(entry, metadata);
        change
    }
}

async fn read(at: At<'_>, path: &str, call: &Call) -> Result<Planned, Refusal> {
    let found = at.secret(path).await?.ok_or(Refusal::Absent)?;
    let (number, version) = asked_for(&found.metadata, call)?;
    let metadata = Document::of(&found.metadata.shown_version(number, version));
    if version.is_gone(at.now) && at.is_plain {
        return Err(Refusal::Absent);
    }
    if version.is_gone(at.now) {
        let data = Document::object([("data", Document::of(&())), ("metadata", metadata)]);
        return Err(Refusal::Gone(data));
    }
    let data = at.version(path, number).await?.into();
    let data = match at.is_plain {
        true => data,
        false => Document::object([("data", data), ("metadata", metadata)]),
    };
    Ok(Planned::answer(Answer::Data(data)).noting(of_version(number)))
}

async fn subkeys(at: At<'_>, path: &str, call: &Call) -> Result<Planned, Refusal> {
    let depth = match call.query.get("depth").map(|depth| depth.parse()) {
        None => 0,
        Some(Ok(depth)) => depth,
        Some(Err(_)) => return Err(Refusal::invalid("depth: not a number")),
    };
    let found = at.secret(path).await?.ok_or(Refusal::Absent)?;
    let (number, version) = asked_for(&found.metadata, call)?;
    let metadata = found.metadata.shown_version(number, version);
    if version.is_gone(at.now) {
        let data = json!({"subkeys": null, "metadata": metadata});
        return Err(Refusal::Gone(Document::of(&data)));
    }
    let subkeys = at.version(path, number).await?.subkeys(depth)?;
    let data = json!({"subkeys": subkeys, "metadata": metadata});
    Ok(Planned::answer(Answer::Data(Document::of(&data))).noting(of_version(number)))
}

/// The version that `?version=` names; 0 and nothing are the newest.
fn asked_for<'m>(metadata: &'m Metadata, call: &Call) -> Result<(u64, &'m Version), Refusal> {
    let number = match call.query.get("version").map(|number| number.parse()) {
        None | Some(Ok(0)) => metadata.current_version,
        Some(Ok(number)) => number,
        Some(Err(_)) => return Err(Refusal::invalid("version: not a number")),
    };
    let version = metadata.versions.get(&number).ok_or(Refusal::Absent)?;
    Ok((number, version))
}

fn of_version(number: u64) -> Noted {
    Noted {
        version: Some(number),
        ..Noted::default()
    }
}

#[derive(Deserialize)]
struct Write {
    data: Option<Json>,
    options: Option<WriteOptions>,
}

#[derive(Default, Deserialize)]
struct WriteOptions {
    cas: Option<i64>,
}

async fn write(at: At<'_>, path: &str, call: &Call) -> Result<Planned, Refusal> {
    let body = match at.is_plain {
        true => Write {
            data: call.body()?,
            options: None,
        },
        false => call.body()?,
    };
    let data = body
        .data
        .ok_or_else(|| Refusal::invalid("no data provided"))?;
    if !(data.is_object() || data.is_null()) {
        return Err(Refusal::invalid("data: a secret is an object"));
    }
    let found = at.secret(path).await?;
    let config = at.config().await?;
    let cas = body.options.unwrap_or_default().cas;
    add_version(at, path, found, &config, cas, data)
}

async fn patch(at: At<'_>, path: &str, call: &Call) -> Result<Planned, Refusal> {
    let body: Write = call.body()?;
    let patch = body
        .data
        .ok_or_else(|| Refusal::invalid("no data provided"))?;
    if !patch.is_object() {
        return Err(Refusal::invalid("data: a secret is an object"));
    }
    let found = at.secret(path).await?.ok_or(Refusal::Absent)?;
    let number = found.metadata.current_version;
    let current = found.metadata.versions.get(&number);
    let current = current.ok_or(Refusal::Absent)?;
    if current.is_gone(at.now) {
        let metadata = found.metadata.shown_version(number, current);
        let data = json!({"data": null, "metadata": metadata});
        return Err(Refusal::Gone(Document::of(&data)));
    }
    let data = at.version(path, number).await?.merged(&patch)?;
    let config = at.config().await?;
    let cas = body.options.unwrap_or_default().cas;
    add_version(at, path, Some(found), &config, cas, data)
}

/// Plans a further version of a secret.
fn add_version(
    at: At<'_>,
    path: &str,
    found: Option<Found>,
    config: &Config,
    cas: Option<i64>,
    data: Json,
) -> Result<Planned, Refusal> {
    let revision = found.as_ref().map(|found| found.revision);
    let mut metadata = match found {
        Some(found) => found.metadata,
        None => Metadata::new(at.now),
    };
    match cas {
        Some(cas) if u64::try_from(cas) != Ok(metadata.current_version) => {
            return Err(Refusal::invalid(
                "check-and-set parameter did not match the current version",
            ));
        }
        None if metadata.cas_required || config.cas_required => {
            return Err(Refusal::invalid(
                "check-and-set parameter required for this call",
            ));
        }
        _ => (),
    }
    let dropped = metadata.add_version(config, at.now);
    let number = metadata.current_version;
    let mut change = at.keep(path, &metadata, revision);
    change.put(at.version_entry(path, number), data.into());
    for number in dropped {
        change.delete(at.version_entry(path, number));
    }
    let version = &metadata.versions[&number];
    let data = Document::of(&metadata.shown_version(number, version));
    Ok(Planned::of(change, Ok(Answer::Data(data))).noting(of_version(number)))
}

async fn delete_latest(at: At<'_>, path: &str) -> Result<Planned, Refusal> {
    let Some(mut found) = at.secret(path).await? else {
        return Ok(Planned::answer(Answer::Done));
    };
    let number = found.metadata.current_version;
    found.metadata.delete(number, at.now);
    let change = at.keep(path, &found.metadata, Some(found.revision));
    Ok(Planned::done(change).noting(of_version(number)))
}

#[derive(Deserialize)]
struct Versions {
    #[serde(default)]
    versions: Vec<Number>,
}

/// A version's number: vault's own command sends it as a text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Number(u64),
    Text(String),
}

async fn change_versions(
    at: At<'_>,
    path: &str,
    call: &Call,
    what: &str,
) -> Result<Planned, Refusal> {
    let body: Versions = call.body()?;
    let numbers: Option<Vec<u64>> = body
        .versions
        .into_iter()
        .map(|number| match number {
            Number::Number(number) => Some(number),
            Number::Text(text) => text.parse().ok(),
        })
        .collect();
    let numbers = numbers.ok_or_else(|| Refusal::invalid("versions: not numbers"))?;
    if numbers.is_empty() {
        return Err(Refusal::invalid("No version number provided"));
    }
    let Some(mut found) = at.secret(path).await? else {
        return match what {
            "undelete" | "destroy" => Err(Refusal::Absent),
            _ => Ok(Planned::answer(Answer::Done)),
        };
    };
    let mut destroyed = Vec::new();
    for number in numbers {
        match what {
            "delete" => found.metadata.delete(number, at.now),
            "undelete" => found.metadata.undelete(number, at.now),
            _ => destroyed.extend(found.metadata.destroy(number)),
        }
    }
    let mut change = at.keep(path, &found.metadata, Some(found.revision));
    for number in destroyed {
        change.delete(at.version_entry(path, number));
    }
    Ok(Planned::done(change))
}

async fn read_metadata(at: At<'_>, path: &str) -> Result<Planned, Refusal> {
    let found = at.secret(path).await?.ok_or(Refusal::Absent)?;
    let data = Document::of(&found.metadata.shown());
    Ok(Planned::answer(Answer::Data(data)))
}

async fn write_metadata(
    at: At<'_>,
    path: &str,
    call: &Call,
    is_patch: bool,
) -> Result<Planned, Refusal> {
    let settings: Settings = call.body()?;
    let found = at.secret(path).await?;
    let revision = found.as_ref().map(|found| found.revision);
    let mut metadata = match found {
        Some(found) => found.metadata,
        None if is_patch => return Err(Refusal::Absent),
        None => Metadata::new(at.now),
    };
    let dropped = metadata.set(settings, is_patch, at.now)?;
    let mut change = at.keep(path, &metadata, revision);
    for number in dropped {
        change.delete(at.version_entry(path, number));
    }
    Ok(Planned::done(change))
}

async fn delete_metadata(at: At<'_>, path: &str) -> Result<Planned, Refusal> {
    let Some(found) = at.secret(path).await? else {
        return Ok(Planned::answer(Answer::Done));
    };
    let mut change = Change::default();
    let entry = at.metadata_entry(path);
    change.expect(entry.clone(), Some(found.revision));
    change.delete(entry);
    for (number, version) in &found.metadata.versions {
        if !version.destroyed {
            change.delete(at.version_entry(path, *number));
        }
    }
    Ok(Planned::done(change))
}

async fn read_config(at: At<'_>) -> Result<Planned, Refusal> {
    let config = at.config().await?;
    let data = json!({
        "cas_required": config.cas_required,
        "max_versions": config.max_versions,
        "delete_version_after": config.delete_version_after.to_string(),
    });
    Ok(Planned::answer(Answer::Data(Document::of(&data))))
}

#[derive(Deserialize)]
struct NewConfig {
    cas_required: Option<bool>,
    max_versions: Option<u32>,
    delete_version_after: Option<Ttl>,
}

async fn write_config(at: At<'_>, call: &Call) -> Result<Planned, Refusal> {
    let new: NewConfig = call.body()?;
    let old = at.config().await?;
    let config = Config {
        cas_required: new.cas_required.unwrap_or(old.cas_required),
        max_versions: metadata::checked_max(new.max_versions.unwrap_or(old.max_versions))?,
        delete_version_after: new.delete_version_after.unwrap_or(old.delete_version_after),
    };
    let mut change = Change::default();
    change.put_record(at.entry(CONFIG), &config);
    Ok(Planned::done(change))
}
