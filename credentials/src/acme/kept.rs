//! What is kept on disk beside the certificates: accounts, and how authorities have fared.

use std::{
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use instant_acme::AccountCredentials;

use super::{demand::Pace, machine::Time, schedule::Record};
use crate::{key::acme, secret::Secret, source};

const RECORD: &str = "record.json";

const ORDERED: &str = "ordered.json";

/// The directory.
pub(super) struct Kept {
    directory: PathBuf,
    /// Held while what was ordered for hosts is counted.
    ordered: Mutex<()>,
}

impl Kept {
    /// Opens it, and makes it where it is not there.
    pub(super) fn open(directory: &Path) -> std::io::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        Ok(Self {
            directory: directory.to_owned(),
            ordered: Mutex::default(),
        })
    }

    /// Counts one more host that gets its first certificate; how long to wait where there were too many. A count that
    /// cannot be read is begun anew.
    pub(super) fn charge(&self, pace: Pace, now: Time) -> Result<Option<Duration>, source::Error> {
        let _counting = self.ordered.lock().unwrap_or_else(PoisonError::into_inner);
        let file = self.directory.join(ORDERED);
        let text = source::read_public(&file).ok();
        let ordered = text.and_then(|text| serde_json::from_slice(&text).ok());
        match pace.charge(ordered.unwrap_or_default(), now) {
            Ok(ordered) => {
                let text = serde_json::to_vec(&ordered).expect("plain data with text keys");
                source::write_public(&file, &text).map(|()| None)
            }
            Err(wait) => Ok(Some(wait)),
        }
    }

    /// How authorities have fared. A record that cannot be read is told of and begun anew.
    pub(super) fn record(&self) -> Record {
        let file = self.directory.join(RECORD);
        if !file.exists() {
            return Record::default();
        }
        let text = source::read_public(&file);
        let record = text
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok());
        record.unwrap_or_else(|| {
            tracing::warn!(file = %file.display(), "cannot be read; authorities are asked as if for the first time");
            Record::default()
        })
    }

    pub(super) fn write_record(&self, record: &Record) -> Result<(), source::Error> {
        let text = serde_json::to_vec(record).expect("plain data with text keys");
        source::write_private(&self.directory.join(RECORD), &text)
    }

    /// The account at `directory`, which belongs to authority `name`; `None` if there is none. One that
    /// cannot be read is told of and replaced.
    pub(super) fn account(&self, name: &str, directory: &str) -> Option<AccountCredentials> {
        let file = self.account_file(name);
        if !file.exists() {
            return None;
        }
        let account = source::read_file(&file)
            .map_err(|error| error.to_string())
            .and_then(|text| {
                let is_of = |text: &Secret<Vec<u8>>| acme::account_directory(text);
                let account = acme::account_from_text(&text).ok().zip(is_of(&text));
                account.ok_or_else(|| format!("{} is not an account", file.display()))
            });
        match account {
            Ok((account, of)) => (of == directory).then_some(account),
            Err(error) => {
                tracing::warn!(authority = name, error, "a new account is made");
                None
            }
        }
    }

    pub(super) fn write_account(
        &self,
        name: &str,
        account: &AccountCredentials,
    ) -> Result<(), source::Error> {
        source::write_secret(&self.account_file(name), &acme::account_to_text(account))
    }

    /// Forgets an account that its authority does not know.
    pub(super) fn forget_account(&self, name: &str) {
        // What stays is asked for once more, and forgotten again.
        let _ = fs::remove_file(self.account_file(name));
    }

    fn account_file(&self, name: &str) -> PathBuf {
        self.directory.join(format!("account-{name}.json"))
    }
}
