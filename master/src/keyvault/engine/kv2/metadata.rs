//! What is known of a secret and its versions, without the secret.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::keyvault::{call::Refusal, ttl::Ttl};

/// Versions kept where neither secret nor mount says how many.
const DEFAULT_MAX_VERSIONS: u32 = 10;
/// Most versions a secret can be told to keep: its record is read and written whole.
const MOST_VERSIONS: u32 = 1000;
/// Most members of `custom_metadata`, and the longest name and value of one in bytes, as Vault has it.
const MAX_CUSTOM: usize = 64;
const MAX_CUSTOM_NAME: usize = 128;
const MAX_CUSTOM_VALUE: usize = 512;

/// What a mount says of all its secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Config {
    pub(super) cas_required: bool,
    /// 0: as many as there are by default.
    pub(super) max_versions: u32,
    /// 0: never.
    pub(super) delete_version_after: Ttl,
}

/// One secret's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Metadata {
    #[serde(with = "time::serde::rfc3339")]
    created_time: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    updated_time: OffsetDateTime,
    /// 0 before the first is written.
    pub(super) current_version: u64,
    /// 0: as the mount says.
    max_versions: u32,
    pub(super) cas_required: bool,
    delete_version_after: Ttl,
    custom_metadata: Option<BTreeMap<String, String>>,
    pub(super) versions: BTreeMap<u64, Version>,
}

/// One version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Version {
    #[serde(with = "time::serde::rfc3339")]
    created_time: OffsetDateTime,
    /// From then on it is deleted.
    #[serde(with = "time::serde::rfc3339::option")]
    deletion_time: Option<OffsetDateTime>,
    /// Its object is no more.
    pub(super) destroyed: bool,
}

impl Version {
    /// Whether it cannot be read.
    pub(super) fn is_gone(&self, now: OffsetDateTime) -> bool {
        self.destroyed || self.deletion_time.is_some_and(|time| time <= now)
    }

    fn shown(&self) -> Value {
        json!({
            "created_time": rfc3339(self.created_time),
            "deletion_time": self.deletion_time.map(rfc3339).unwrap_or_default(),
            "destroyed": self.destroyed,
        })
    }
}

impl Metadata {
    pub(super) fn new(now: OffsetDateTime) -> Self {
        Self {
            created_time: now,
            updated_time: now,
            current_version: 0,
            max_versions: 0,
            cas_required: false,
            delete_version_after: Ttl(0),
            custom_metadata: None,
            versions: BTreeMap::new(),
        }
    }

    /// Adds the next version. Gives the versions whose objects go for it.
    pub(super) fn add_version(&mut self, config: &Config, now: OffsetDateTime) -> Vec<u64> {
        let after = [self.delete_version_after, config.delete_version_after];
        let after = after.into_iter().find_map(Ttl::said);
        self.current_version += 1;
        self.updated_time = now;
        let version = Version {
            created_time: now,
            deletion_time: after.map(|after| now + after),
            destroyed: false,
        };
        self.versions.insert(self.current_version, version);
        self.drop_oldest(config.max_versions)
    }

    /// Forgets versions beyond what is kept. Gives those that had objects.
    fn drop_oldest(&mut self, of_mount: u32) -> Vec<u64> {
        let limits = [self.max_versions, of_mount, DEFAULT_MAX_VERSIONS];
        let kept = limits.into_iter().find(|max| *max > 0).unwrap_or(1);
        let mut dropped = Vec::new();
        while self.versions.len() > kept as usize
            && let Some((number, version)) = self.versions.pop_first()
        {
            if !version.destroyed {
                dropped.push(number);
            }
        }
        dropped
    }

    /// Deletes a version softly, if it is there and not gone.
    pub(super) fn delete(&mut self, number: u64, now: OffsetDateTime) {
        if let Some(version) = self.versions.get_mut(&number)
            && !version.is_gone(now)
        {
            version.deletion_time = Some(now);
            self.updated_time = now;
        }
    }

    /// Brings a version back, unless it is destroyed.
    pub(super) fn undelete(&mut self, number: u64, now: OffsetDateTime) {
        if let Some(version) = self.versions.get_mut(&number)
            && !version.destroyed
        {
            version.deletion_time = None;
            self.updated_time = now;
        }
    }

    /// Destroys a version. Gives it when it had an object.
    pub(super) fn destroy(&mut self, number: u64) -> Option<u64> {
        let version = self.versions.get_mut(&number)?;
        let had_one = !version.destroyed;
        version.destroyed = true;
        had_one.then_some(number)
    }

    /// Takes settings over; what a patch does not say stays. Gives the versions whose objects go.
    pub(super) fn set(
        &mut self,
        settings: Settings,
        is_patch: bool,
        now: OffsetDateTime,
    ) -> Result<Vec<u64>, Refusal> {
        if let Some(max) = settings.max_versions {
            self.max_versions = checked_max(max)?;
        }
        if let Some(required) = settings.cas_required {
            self.cas_required = required;
        }
        if let Some(after) = settings.delete_version_after {
            self.delete_version_after = after;
        }
        match settings.custom_metadata {
            None => (),
            Some(None) => self.custom_metadata = None,
            Some(Some(custom)) => {
                let mut new = match is_patch {
                    true => self.custom_metadata.take().unwrap_or_default(),
                    false => BTreeMap::new(),
                };
                for (name, value) in custom {
                    match value {
                        Some(value) => drop(new.insert(name, value)),
                        None => drop(new.remove(&name)),
                    }
                }
                let is_long = |(name, value): (&String, &String)| {
                    name.is_empty()
                        || name.len() > MAX_CUSTOM_NAME
                        || value.len() > MAX_CUSTOM_VALUE
                };
                if new.len() > MAX_CUSTOM || new.iter().any(is_long) {
                    return Err(Refusal::invalid(
                        "custom_metadata: more than 64 members, or one too long",
                    ));
                }
                self.custom_metadata = Some(new);
            }
        }
        self.updated_time = now;
        Ok(match self.max_versions {
            0 => Vec::new(),
            max => self.drop_oldest(max),
        })
    }

    /// As `metadata/…` shows it.
    pub(super) fn shown(&self) -> Value {
        let versions = self.versions.iter();
        let versions = versions.map(|(number, version)| (number.to_string(), version.shown()));
        json!({
            "created_time": rfc3339(self.created_time),
            "updated_time": rfc3339(self.updated_time),
            "current_version": self.current_version,
            "oldest_version": self.versions.keys().next().copied().unwrap_or(0),
            "max_versions": self.max_versions,
            "cas_required": self.cas_required,
            "delete_version_after": self.delete_version_after.to_string(),
            "custom_metadata": self.custom_metadata,
            "versions": versions.collect::<serde_json::Map<_, _>>(),
        })
    }

    /// As it accompanies a version.
    pub(super) fn shown_version(&self, number: u64, version: &Version) -> Value {
        let mut shown = version.shown();
        shown["version"] = number.into();
        shown["custom_metadata"] = json!(self.custom_metadata);
        shown
    }
}

/// What a client says of a secret.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Settings {
    max_versions: Option<u32>,
    cas_required: Option<bool>,
    delete_version_after: Option<Ttl>,
    /// Outer: whether it was said. Inner: `null` takes it away, in a patch also of one member.
    #[serde(default, deserialize_with = "said")]
    custom_metadata: Option<Option<BTreeMap<String, Option<String>>>>,
}

fn said<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

pub(super) fn checked_max(max: u32) -> Result<u32, Refusal> {
    match max <= MOST_VERSIONS {
        true => Ok(max),
        false => Err(Refusal::invalid("max_versions: more than 1000")),
    }
}

fn rfc3339(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn now() -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn written(times: u64, config: &Config) -> (Metadata, Vec<u64>) {
        let mut metadata = Metadata::new(now());
        let mut dropped = Vec::new();
        for _ in 0..times {
            dropped.extend(metadata.add_version(config, now()));
        }
        (metadata, dropped)
    }

    #[test]
    fn the_oldest_versions_go_and_their_objects_with_them() {
        let (metadata, dropped) = written(12, &Config::default());
        assert_eq!(dropped, [1, 2]);
        assert_eq!(metadata.shown()["oldest_version"], 3);

        let two = Config {
            max_versions: 2,
            ..Config::default()
        };
        assert_eq!(written(3, &two).1, [1]);

        let (mut metadata, _) = written(3, &Config::default());
        assert_eq!(metadata.destroy(1), Some(1));
        assert_eq!(metadata.destroy(1), None);
        let settings = Settings {
            max_versions: Some(1),
            ..Settings::default()
        };
        assert_eq!(metadata.set(settings, false, now()).unwrap(), [2]);
    }

    #[test]
    fn a_deleted_version_comes_back_and_a_destroyed_one_does_not() {
        let (mut metadata, _) = written(2, &Config::default());
        metadata.delete(1, now());
        assert!(metadata.versions[&1].is_gone(now()));
        assert!(!metadata.versions[&2].is_gone(now()));
        metadata.undelete(1, now());
        assert!(!metadata.versions[&1].is_gone(now()));
        metadata.destroy(1);
        metadata.undelete(1, now());
        assert!(metadata.versions[&1].is_gone(now()));
        metadata.delete(7, now());
        assert_eq!(metadata.versions.len(), 2);
    }

    #[test]
    fn a_version_is_deleted_when_its_time_has_come() {
        let after = |secs| Config {
            delete_version_after: Ttl(secs),
            ..Config::default()
        };
        let (metadata, _) = written(1, &after(60));
        let version = &metadata.versions[&1];
        assert!(!version.is_gone(now() + Duration::from_secs(59)));
        assert!(version.is_gone(now() + Duration::from_secs(60)));
        // What the secret says stands before what the mount says.
        let mut metadata = Metadata::new(now());
        metadata.delete_version_after = Ttl(30);
        metadata.add_version(&after(60), now());
        assert!(metadata.versions[&1].is_gone(now() + Duration::from_secs(30)));
    }

    #[test]
    fn a_patch_changes_what_it_names_and_a_write_puts_in_its_place() {
        let read = |text| serde_json::from_str::<Settings>(text).unwrap();
        let mut metadata = Metadata::new(now());
        let mut set = |text, is_patch| {
            metadata.set(read(text), is_patch, now()).unwrap();
            metadata.custom_metadata.clone().map(|custom| json!(custom))
        };
        let all = set(r#"{"custom_metadata":{"a":"1","b":"2"}}"#, false);
        assert_eq!(all, Some(json!({"a": "1", "b": "2"})));
        let patched = set(r#"{"custom_metadata":{"a":null,"c":"3"}}"#, true);
        assert_eq!(patched, Some(json!({"b": "2", "c": "3"})));
        assert_eq!(set(r#"{"max_versions":3}"#, true), patched);
        let written = set(r#"{"custom_metadata":{"d":"4"}}"#, false);
        assert_eq!(written, Some(json!({"d": "4"})));
        assert_eq!(set(r#"{"custom_metadata":null}"#, true), None);
        assert!(
            metadata
                .set(read(r#"{"max_versions":1001}"#), false, now())
                .is_err()
        );
    }
}
