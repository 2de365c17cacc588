//! The identities of a node, as files in its state directory: `identity.json` names them, and each that the
//! node made itself is in a file of its own, `identity-….key`. The first one is the secret `identity_key`,
//! which is often where nothing can be written.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use wavry_proto::id::PublicKey;

use super::Error;
use crate::{
    identity::{Identity, rotation::Keys},
    redact::Place,
    source,
};

/// Where they are, and which there are.
#[derive(Clone)]
pub(super) struct Identities {
    directory: PathBuf,
    /// The secret `identity_key`, which all others follow.
    provisioned: PublicKey,
    keys: Keys,
}

/// The content of `identity.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    provisioned: PublicKey,
    keys: Keys,
}

const RECORD: &str = "identity.json";
/// Bytes of a key in the name of its file: enough that no two of a node's share a name.
const NAME_BYTES: usize = 8;

impl Identities {
    /// Finds which identity the node shows at `now`, in seconds since the Unix epoch: `provisioned`, unless
    /// it made others since. What an earlier one left is of no use, and goes; so does a key that was being
    /// made. One that is named and not there is an error.
    pub(super) fn open(
        directory: &Path,
        provisioned: Identity,
        now: u64,
    ) -> Result<(Self, Identity), Error> {
        let registered = provisioned.public_key();
        let known = read(&directory.join(RECORD))?.filter(|r| r.provisioned == registered);
        let is_new = known.is_none();
        let mut identities = Self {
            directory: directory.to_owned(),
            provisioned: registered,
            keys: known.map_or_else(|| Keys::one(registered, now), |record| record.keys),
        };
        // A disk that lost the next key before anybody saw it takes nothing but time.
        if let Some(next) = identities.keys.next
            && !identities.file_of(next).exists()
        {
            identities.keys.next = None;
        }
        let present = match identities.keys.present {
            key if key == registered => provisioned,
            key => identities.read_key(key)?,
        };
        if is_new {
            let keys = identities.keys.clone();
            identities.write_record(keys)?;
        }
        identities.sweep();
        Ok((identities, present))
    }

    /// Which there are.
    pub(super) fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Keeps a key that was made.
    pub(super) fn write_key(&self, identity: &Identity) -> Result<(), Error> {
        self.sweep();
        let file = self.file_of(identity.public_key());
        Ok(source::write_secret(&file, &identity.to_pem())?)
    }

    /// Reads a key that was made.
    pub(super) fn read_key(&self, key: PublicKey) -> Result<Identity, Error> {
        let file = self.file_of(key);
        let shown = file.display();
        let read = source::read_file(&file).map_err(|error| {
            Error::Invalid(format!(
                "the node's identity, which followed the one in secret identity_key: {error}; put the \
                 file back, or provision the node anew"
            ))
        })?;
        match Identity::read(&read) {
            Ok(identity) if identity.public_key() == key => Ok(identity),
            Ok(_) => Err(Error::Invalid(format!("{shown}: not the key {key}"))),
            Err(fault) => Err(Error::Invalid(format!("{shown}: {fault}"))),
        }
    }

    /// Keeps the record of which there are.
    pub(super) fn write_record(&mut self, keys: Keys) -> Result<(), Error> {
        let record = Record {
            provisioned: self.provisioned,
            keys,
        };
        let file = self.directory.join(RECORD);
        let text = serde_json::to_vec_pretty(&record)
            .map_err(|_| Error::Invalid(format!("{}: not writable as JSON", file.display())))?;
        source::write_public(&file, &text)?;
        self.keys = record.keys;
        Ok(())
    }

    /// Forgets a key.
    pub(super) fn remove_key(&self, key: PublicKey) -> Result<(), Error> {
        let file = self.file_of(key);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::Invalid(format!("{}: {error}", file.display())))
            }
            // The provisioned key is not ours to remove.
            _ => Ok(()),
        }
    }

    /// Removes keys that the record does not name: the process ended while one was made or forgotten.
    fn sweep(&self) {
        let named: Vec<_> = self.keys.all().map(file_name).collect();
        let Ok(files) = fs::read_dir(&self.directory) else {
            return;
        };
        for file in files.flatten() {
            let name = file.file_name();
            let is_stray = is_name_of_key(&name) && !named.iter().any(|n| OsStr::new(n) == name);
            if is_stray && let Err(error) = fs::remove_file(file.path()) {
                let file = file.path();
                tracing::warn!(file = %file.display(), %error, "a key of no use cannot be removed");
            }
        }
    }

    fn file_of(&self, key: PublicKey) -> PathBuf {
        self.directory.join(file_name(key))
    }
}

fn file_name(key: PublicKey) -> String {
    format!("identity-{}.key", hex::encode(&key.0[..NAME_BYTES]))
}

/// Whether it is the name of a key's file, or of one that was being written.
fn is_name_of_key(name: &OsStr) -> bool {
    let text = name.to_str().unwrap_or_default();
    if text.starts_with(".identity") {
        return true;
    }
    let key = text.strip_prefix("identity-");
    let key = key.and_then(|rest| rest.strip_suffix(".key"));
    key.is_some_and(|key| {
        key.len() == 2 * NAME_BYTES && key.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// The file of the identity that a node shows by now, when it is not `provisioned` itself. Checks that it can
/// be read and writes nothing.
pub(super) fn file_in_use(
    directory: &Path,
    provisioned: PublicKey,
) -> Result<Option<PathBuf>, Error> {
    let record = read(&directory.join(RECORD))?.filter(|r| r.provisioned == provisioned);
    let Some(Record { keys, .. }) = record.filter(|r| r.keys.present != provisioned) else {
        return Ok(None);
    };
    let present = keys.present;
    let identities = Identities {
        directory: directory.to_owned(),
        provisioned,
        keys,
    };
    identities.read_key(present)?;
    Ok(Some(identities.file_of(present)))
}

/// Reads the record; `None` when there is none.
fn read(file: &Path) -> Result<Option<Record>, Error> {
    if !file.exists() {
        return Ok(None);
    }
    let bytes = source::read_public(file)?;
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        let (shown, place) = (file.display(), Place::from(&error));
        Error::Invalid(format!("{shown}: not a record of identities ({place})"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    use crate::identity::rotation::Act;

    const NOW: u64 = 1_700_000_000;

    fn same(identity: &Identity) -> Identity {
        Identity::from_pem(&identity.to_pem()).unwrap()
    }

    fn open(directory: &Path, provisioned: &Identity) -> Result<(Identities, Identity), Error> {
        Identities::open(directory, same(provisioned), NOW)
    }

    fn files(directory: &Path) -> usize {
        fs::read_dir(directory).unwrap().count()
    }

    /// Rotates to a new key; that.
    fn rotate(identities: &mut Identities) -> Identity {
        let next = Identity::generate();
        let [_, Act::WriteRecord(made)] = identities.keys().made(next.public_key()) else {
            panic!("a record is written");
        };
        identities.write_key(&next).unwrap();
        identities.write_record(made).unwrap();
        let shown = Keys {
            present: next.public_key(),
            next: None,
            before: Some(identities.keys().present),
            since: NOW + 1,
        };
        identities.write_record(shown).unwrap();
        next
    }

    #[test]
    fn the_provisioned_identity_is_shown_until_another_is_and_then_that_over_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let provisioned = Identity::generate();
        let (mut identities, present) = open(directory.path(), &provisioned).unwrap();
        assert_eq!(present.public_key(), provisioned.public_key());
        assert_eq!(identities.keys().since, NOW);

        let next = rotate(&mut identities);
        let file = identities.file_of(next.public_key());
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o7777,
            0o600
        );
        let (again, present) = open(directory.path(), &provisioned).unwrap();
        assert_eq!(present.public_key(), next.public_key());
        assert_eq!(again.keys(), identities.keys());
        again.remove_key(provisioned.public_key()).unwrap();
    }

    #[test]
    fn an_identity_that_is_missing_or_another_stops_the_start_and_names_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let provisioned = Identity::generate();
        let (mut identities, _) = open(directory.path(), &provisioned).unwrap();
        let next = rotate(&mut identities);
        let file = identities.file_of(next.public_key());
        let refusal = || {
            let error = open(directory.path(), &provisioned).err().unwrap();
            let text = error.to_string();
            assert!(text.contains(file.to_str().unwrap()), "{text}");
            text
        };
        source::write_secret(&file, &Identity::generate().to_pem()).unwrap();
        assert!(refusal().contains("not the key"));
        source::write_private(&file, b"s3cret").unwrap();
        assert!(!refusal().contains("s3cret"));
        fs::remove_file(&file).unwrap();
        assert!(refusal().contains("provision the node anew"));
    }

    #[test]
    fn what_belongs_to_another_provisioned_identity_and_what_nothing_names_goes() {
        let directory = tempfile::tempdir().unwrap();
        let provisioned = Identity::generate();
        let (mut identities, _) = open(directory.path(), &provisioned).unwrap();
        rotate(&mut identities);
        identities.write_key(&Identity::generate()).unwrap();
        fs::write(directory.path().join(".identity-0.key.1"), b"half").unwrap();
        assert_eq!(files(directory.path()), 4);
        let (again, _) = open(directory.path(), &provisioned).unwrap();
        assert_eq!(
            files(directory.path()),
            2,
            "the one that was made is not named"
        );
        assert!(again.keys().before.is_some());

        let other = Identity::generate();
        let (identities, present) = open(directory.path(), &other).unwrap();
        assert_eq!(present.public_key(), other.public_key());
        assert_eq!(identities.keys(), &Keys::one(other.public_key(), NOW));
        assert_eq!(files(directory.path()), 1);
    }

    #[test]
    fn a_next_key_that_was_lost_is_made_again_and_a_record_that_is_none_stops_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let provisioned = Identity::generate();
        let (mut identities, _) = open(directory.path(), &provisioned).unwrap();
        let next = Some(PublicKey([9; 32]));
        let keys = Keys {
            next,
            ..identities.keys().clone()
        };
        identities.write_record(keys).unwrap();
        assert_eq!(
            open(directory.path(), &provisioned).unwrap().0.keys().next,
            None
        );

        for content in ["", "{}", "[1]", "\u{0}"] {
            fs::write(directory.path().join(RECORD), content).unwrap();
            let error = open(directory.path(), &provisioned).err().unwrap();
            assert!(error.to_string().contains("identity.json"), "{error}");
        }
    }
}
