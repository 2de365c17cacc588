//! What registration gave, kept in the state directory. Not secret.

use std::path::Path;

use serde::{Deserialize, Serialize};
use wavry_proto::id::{ClusterName, NodeId, PublicKey};

use super::Error;
use crate::{source, token::KeySet};

/// The content of `membership.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    /// The identity that registered.
    pub(super) public_key: PublicKey,
    /// The node's id.
    pub(super) node_id: NodeId,
    /// Its cluster.
    pub(super) cluster: ClusterName,
    /// Keys that sign the roster, as PASERK `k4.public`; no other is trusted.
    pub(super) roster_keys: Vec<String>,
}

impl Record {
    /// Reads the file; `None` when there is none.
    pub(super) fn read(file: &Path) -> Result<Option<Self>, Error> {
        if !file.exists() {
            return Ok(None);
        }
        let bytes = source::read_public(file)?;
        let record = serde_json::from_slice(&bytes).map_err(|error| {
            Error::Invalid(format!(
                "{}: not what a registration wrote (line {}, column {})",
                file.display(),
                error.line(),
                error.column()
            ))
        })?;
        Ok(Some(record))
    }

    /// Writes the file.
    pub(super) fn write(&self, file: &Path) -> Result<(), Error> {
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::Invalid(format!("{}: {error}", file.display())))?;
        Ok(source::write_public(file, &text)?)
    }

    /// The pinned keys.
    pub(super) fn keys(&self) -> Result<KeySet, Error> {
        if self.roster_keys.is_empty() {
            return Err(Error::Invalid("no key to check rosters with".to_owned()));
        }
        KeySet::from_paserk(&self.roster_keys)
            .map_err(|_| Error::Invalid("a key to check rosters with is malformed".to_owned()))
    }
}
