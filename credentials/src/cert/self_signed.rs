//! Certificates that a gateway without a public name signs itself, and that clients trust by their hash. Which is
//! served when is the business of [`turns`](super::turns); they are kept on disk with their keys
//! ([`pairs`](super::pairs)), so that a restart changes nothing.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use metrics::{counter, gauge};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use time::OffsetDateTime;
use tokio::task::JoinHandle;

use super::{
    Error, Store,
    pairs::{Issued, Pairs},
    turns::{self, Step, Term},
};
use crate::{metrics as names, secret::Secret};

/// The clock is looked at so often, for it may be set, and a machine may sleep.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// In the place of an authority.
const OWN: &str = "self";
/// What is kept are two; with one that is damaged it takes that many steps to have them.
const STEPS: usize = 4;

/// The certificates of one gateway.
pub struct SelfSigned {
    directory: PathBuf,
    pairs: Pairs,
    /// Of those that are made from now on.
    names: Vec<String>,
    store: Store,
    /// When the next one takes its turn.
    turn: SystemTime,
}

/// Has each take its turn, until it is dropped.
pub struct Rotation(JoinHandle<()>);

impl SelfSigned {
    /// Opens `directory`, makes what is not there, and puts in use what is to be served now. Other
    /// `names` than before are those of certificates that are made from now on.
    pub fn open(directory: PathBuf, names: Vec<String>, store: &Store) -> Result<Self, Error> {
        let pairs = Pairs::open(directory.join("pairs"));
        let mut opened = Self {
            pairs: pairs.map_err(|error| Error::malformed(&directory, error.to_string()))?,
            directory,
            names,
            store: store.clone(),
            turn: SystemTime::UNIX_EPOCH,
        };
        opened.step(SystemTime::now())?;
        Ok(opened)
    }

    /// Goes on with it.
    pub fn start(mut self) -> Rotation {
        Rotation(tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                let now = SystemTime::now();
                if now < self.turn {
                    continue;
                }
                let step = move || {
                    let stepped = self.step(now);
                    (self, stepped)
                };
                // The runtime is shutting down.
                let Ok((own, stepped)) = tokio::task::spawn_blocking(step).await else {
                    return;
                };
                self = own;
                if let Err(error) = stepped {
                    tracing::error!(
                        %error,
                        "the next self-signed certificate cannot be put in use; it is tried again"
                    );
                }
            }
        }))
    }

    fn step(&mut self, now: SystemTime) -> Result<(), Error> {
        for _ in 0..STEPS {
            let mut kept = self.pairs.kept();
            let terms = kept.iter().map(|pair| Term {
                from: pair.not_before(),
                until: pair.not_after(),
            });
            match turns::step(&terms.collect::<Vec<_>>(), now) {
                Step::Make(term) => {
                    let made = self.make(term);
                    let outcome = if made.is_ok() { "made" } else { "failed" };
                    counter!(names::SELF_SIGNED, "outcome" => outcome).increment(1);
                    made?;
                }
                Step::Serve {
                    current,
                    next,
                    turn,
                } => {
                    // It comes after the current one.
                    let next = kept.swap_remove(next);
                    let current = kept.swap_remove(current);
                    self.store.install_own(&self.directory, current, &next)?;
                    self.turn = turn;
                    let since = turn.duration_since(SystemTime::UNIX_EPOCH);
                    gauge!(names::SELF_SIGNED_TURN).set(since.unwrap_or_default().as_secs_f64());
                    return Ok(());
                }
            }
        }
        let problem = "what is written there cannot be read again";
        Err(Error::malformed(&self.directory, problem))
    }

    fn make(&self, term: Term) -> Result<(), Error> {
        // rcgen's errors speak of what was asked for, never of keys.
        let failed = |error: rcgen::Error| Error::malformed(&self.directory, error.to_string());
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut params = CertificateParams::new(self.names.clone()).map_err(failed)?;
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "Wavry gateway");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        (params.not_before, params.not_after) = (whole(term.from), whole(term.until));
        let certificate = params.self_signed(&key).map_err(failed)?;
        let key = Secret::new(key.serialize_pem().into_bytes());
        let issued = Issued {
            authority: OWN.to_owned(),
        };
        let written = self.pairs.write(&certificate.pem(), &key, &issued);
        written.map_err(|error| Error::malformed(&self.directory, error.to_string()))
    }
}

impl Drop for Rotation {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// In whole seconds, as certificates have it.
fn whole(time: SystemTime) -> OffsetDateTime {
    let time = OffsetDateTime::from(time);
    time.replace_nanosecond(0).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cert::{Pinnable, Trust, client_config, handshake::shake_hands, hash, turns::TURN};

    const LATER: Duration = Duration::from_secs(1);

    fn names() -> Vec<String> {
        ["localhost", "192.0.2.1"].map(str::to_owned).into()
    }

    fn hashes(store: &Store) -> Vec<[u8; 32]> {
        let pinnable = store.pinnable().into_iter();
        pinnable.map(|pinnable: Pinnable| pinnable.hash).collect()
    }

    #[tokio::test]
    async fn a_client_that_was_told_of_two_connects_before_and_after_a_turn_and_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let at = || directory.path().join("self-signed");
        let store = Store::new();
        let mut own = SelfSigned::open(at(), names(), &store).unwrap();
        let told = hashes(&store);
        assert_eq!(told.len(), 2);
        let client = || client_config(&Trust::Hashes(told.clone())).unwrap();
        let seen = shake_hands(store.server_config(), client(), "localhost").await;
        assert_eq!(hash(&seen.unwrap()), told[0]);

        let restarted = Store::new();
        SelfSigned::open(at(), vec!["other.example".to_owned()], &restarted).unwrap();
        assert_eq!(hashes(&restarted), told);

        // Its turn; the one after it is told of at once.
        let turn = SystemTime::now() + TURN + LATER;
        own.step(turn).unwrap();
        let later = hashes(&store);
        assert_eq!(later[0], told[1]);
        assert!(!told.contains(&later[1]));
        assert_eq!(own.pairs.kept().len(), 2);
    }

    #[tokio::test]
    async fn what_is_served_may_be_pinned_and_has_the_names() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new();
        let own = SelfSigned::open(directory.path().join("own"), names(), &store).unwrap();
        for pair in own.pairs.kept() {
            assert!(pair.facts.may_be_pinned());
            assert!(pair.names("localhost") && pair.names("192.0.2.1"));
        }
        let client = client_config(&Trust::Hashes(vec![[7; 32]])).unwrap();
        assert!(
            shake_hands(store.server_config(), client, "localhost")
                .await
                .is_err()
        );
    }

    #[test]
    fn damaged_files_are_replaced_and_a_directory_that_cannot_be_written_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().join("own");
        let store = Store::new();
        let own = SelfSigned::open(at.clone(), names(), &store).unwrap();
        let told = hashes(&store);
        drop(own);
        for entry in std::fs::read_dir(at.join("pairs")).unwrap().flatten() {
            std::fs::write(entry.path().join("key.pem"), "half").unwrap();
        }
        let store = Store::new();
        SelfSigned::open(at, names(), &store).unwrap();
        assert!(hashes(&store).iter().all(|hash| !told.contains(hash)));

        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        let refused = SelfSigned::open(file, names(), &store).err().unwrap();
        assert!(refused.to_string().contains("file"), "{refused}");
    }
}
