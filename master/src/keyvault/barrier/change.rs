//! What a request does, planned and not yet done.

use std::collections::BTreeMap;

use serde::Serialize;
use wavry_credentials::{audit, key::record, secret::Secret};

/// Which write of its path an entry comes from. It grows with each write, of any path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub(super) u64);

/// Writes, what they depend on, and what the audit log tells of them: done together, or not at all.
#[derive(Default)]
pub struct Change {
    pub(super) expected: Vec<(String, Option<Revision>)>,
    /// `None` deletes.
    pub(super) writes: BTreeMap<String, Option<Secret<Vec<u8>>>>,
    pub(super) events: Vec<audit::Event>,
    /// The path of a record that JSON cannot say.
    pub(super) unwritable: Option<String>,
}

impl Change {
    /// Depends on the entry being this version, or absent: else the commit is a conflict.
    pub fn expect(&mut self, path: impl Into<String>, revision: Option<Revision>) {
        self.expected.push((path.into(), revision));
    }

    /// Writes an entry, over that of the same path.
    pub fn put(&mut self, path: impl Into<String>, value: Secret<Vec<u8>>) {
        self.writes.insert(path.into(), Some(value));
    }

    /// Writes a record of our own.
    pub fn put_record(&mut self, path: impl Into<String>, record: &impl Serialize) {
        let path = path.into();
        match record::write(record) {
            Ok(value) => self.put(path, value),
            Err(record::Malformed) => self.unwritable = Some(path),
        }
    }

    /// Deletes an entry, with the key it is encrypted under.
    pub fn delete(&mut self, path: impl Into<String>) {
        self.writes.insert(path.into(), None);
    }

    /// Tells the audit log.
    pub fn record(&mut self, event: audit::Event) {
        self.events.push(event);
    }

    /// Whether there is nothing to be looked at, written or put on record.
    pub fn is_empty(&self) -> bool {
        self.expected.is_empty()
            && self.writes.is_empty()
            && self.events.is_empty()
            && self.unwritable.is_none()
    }

    /// Does what `other` does too. Where both write, `other` does.
    pub fn merge(&mut self, other: Self) {
        self.expected.extend(other.expected);
        self.writes.extend(other.writes);
        self.events.extend(other.events);
        self.unwritable = self.unwritable.take().or(other.unwritable);
    }
}
