//! Whose rosters the node takes, as that changes.

use std::{
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use wavry_proto::control::Roster;

use super::{Error, record::Record, roster::Pinned};

/// The keys that sign rosters, in memory and in the file that registration wrote.
pub(super) struct Trust {
    file: PathBuf,
    trusted: Mutex<Trusted>,
}

struct Trusted {
    pinned: Pinned,
    /// The same as PASERK `k4.public`.
    keys: Vec<String>,
}

impl Trust {
    /// As `record`, which is in `file`, has it.
    pub(super) fn of(record: &Record, file: PathBuf) -> Result<Self, Error> {
        let trusted = Trusted {
            pinned: record.pinned()?,
            keys: record.roster_keys.clone(),
        };
        Ok(Self {
            file,
            trusted: Mutex::new(trusted),
        })
    }

    /// Whose rosters to take now.
    pub(super) fn pinned(&self) -> Pinned {
        self.trusted().pinned.clone()
    }

    /// Trusts whom a roster that was taken says from now on.
    pub(super) async fn take_over(&self, record: &Record, roster: &Roster) {
        let keys = &roster.roster_keys;
        if self.trusted().keys == *keys {
            return;
        }
        let pinned = match self.pinned().after(roster) {
            Ok(Some(pinned)) => pinned,
            Ok(None) => return,
            Err(_) => {
                tracing::warn!("the roster names a key that is none; those before stay trusted");
                return;
            }
        };
        let record = Record {
            roster_keys: keys.clone(),
            ..record.clone()
        };
        let file = self.file.clone();
        let written = tokio::task::spawn_blocking(move || record.write(&file)).await;
        if let Ok(Err(error)) = written {
            // After a restart the node trusts those before, and finds its way from them.
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "the keys that sign rosters are not kept");
        }
        tracing::info!(?keys, "other keys sign rosters from now on");
        *self.trusted() = Trusted {
            pinned,
            keys: keys.to_vec(),
        };
    }

    fn trusted(&self) -> MutexGuard<'_, Trusted> {
        self.trusted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
