//! What registration gave, kept in the state directory. Not secret.

use std::path::Path;

use serde::{Deserialize, Serialize};
use wavry_proto::id::{ClusterName, NodeId, PublicKey};

use super::{Error, roster::Pinned};
use crate::{redact::Place, source};

/// The content of `membership.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    /// The secret `identity_key` that registered, or whose successor did.
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
                "{}: not what a registration wrote ({})",
                file.display(),
                Place::from(&error)
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

    /// Whose rosters to take.
    pub(super) fn pinned(&self) -> Result<Pinned, Error> {
        if self.roster_keys.is_empty() {
            return Err(Error::Invalid("no key to check rosters with".to_owned()));
        }
        Pinned::new(self.cluster.clone(), &self.roster_keys)
            .map_err(|_| Error::Invalid("a key to check rosters with is malformed".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    use crate::token::SigningKey;

    #[test]
    fn a_record_survives_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("membership.json");
        assert_eq!(Record::read(&file).unwrap(), None);
        let record = Record {
            public_key: PublicKey([7; 32]),
            node_id: "exit".parse().unwrap(),
            cluster: "ours".parse().unwrap(),
            roster_keys: vec![SigningKey::generate().public_paserk()],
        };
        record.write(&file).unwrap();
        assert_eq!(Record::read(&file).unwrap(), Some(record));
    }

    #[test]
    fn a_record_that_cannot_be_used_names_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("membership.json");
        for content in ["", "{}", "[]", "{\"node_id\":\"exit\"}", "\u{0}"] {
            fs::write(&file, content).unwrap();
            let error = Record::read(&file).unwrap_err().to_string();
            assert!(error.contains("membership.json"), "{error}");
        }
    }

    #[test]
    fn a_record_without_good_keys_trusts_nobody() {
        for roster_keys in [vec![], vec!["k4.public.x".to_owned()]] {
            let record = Record {
                public_key: PublicKey([7; 32]),
                node_id: "exit".parse().unwrap(),
                cluster: "ours".parse().unwrap(),
                roster_keys,
            };
            assert!(record.pinned().is_err());
        }
    }
}
