//! What an operator wants of a gateway that looks after its certificate: a file in its directory for each request, and
//! one with the answer beside it.
//!
//! The gateway alone talks to authorities and changes what is kept, so that nobody has to lock anything. Who may write
//! into the directory may ask. A gateway that does not run takes the request when it starts.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use instant_acme::RevocationReason;
use serde::{Deserialize, Serialize};

use crate::{random, source};

/// What the directory is called.
pub(super) const DIRECTORY: &str = "requests";
const ASKED: &str = "ask";
const ANSWERED: &str = "answer";
/// What the gateway tells of its plans.
const NEXT: &str = "next.json";
/// Answers that nobody fetched are taken away after so long.
const ANSWER_KEPT: Duration = Duration::from_secs(24 * 60 * 60);
/// For so long after a change there may have been another.
const FRESH: Duration = Duration::from_secs(5);
/// Requests that are taken at once: operators ask by hand.
const MAX_TAKEN: usize = 16;

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// A new certificate, before its time.
    Renew {
        /// Also of authorities that are left alone because they failed.
        now: bool,
    },
    /// That a certificate holds no more (RFC 8555, section 7.6), and another one, if it is the newest.
    Revoke {
        /// SHA-256 of the certificate, in hexadecimal.
        certificate: String,
        /// Why.
        reason: Reason,
    },
}

/// Why a certificate is revoked: what its holder may say (RFC 5280, section 5.3.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Not told.
    #[default]
    Unspecified,
    /// Others may have its key.
    KeyCompromise,
    /// What it says of its holder is true no more.
    AffiliationChanged,
    /// Another one took its place.
    Superseded,
    /// Its names are not used any more.
    CessationOfOperation,
}

impl Reason {
    pub(super) fn code(self) -> RevocationReason {
        match self {
            Self::Unspecified => RevocationReason::Unspecified,
            Self::KeyCompromise => RevocationReason::KeyCompromise,
            Self::AffiliationChanged => RevocationReason::AffiliationChanged,
            Self::Superseded => RevocationReason::Superseded,
            Self::CessationOfOperation => RevocationReason::CessationOfOperation,
        }
    }
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Whether it was done.
    pub done: bool,
    /// What the gateway says of it.
    pub said: String,
}

/// Why a request cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody looks after certificates there.
    #[error("{directory} is not where a gateway with [gateway.acme] looks for requests", directory = .0.display())]
    Nobody(PathBuf),
    /// It cannot be written.
    #[error(transparent)]
    File(#[from] source::Error),
}

/// A request that was made.
#[derive(Debug)]
pub struct Asked {
    file: PathBuf,
}

/// Asks the gateway that looks for requests in this directory.
pub fn ask(directory: &Path, request: &Request) -> Result<Asked, Error> {
    if !directory.is_dir() {
        return Err(Error::Nobody(directory.to_owned()));
    }
    let name = hex::encode(random::bytes::<8>());
    let file = directory.join(name).with_extension(ASKED);
    let text = serde_json::to_vec(request).expect("plain data with text keys");
    // The gateway may be another user than the one who asks.
    source::write_public(&file, &text)?;
    Ok(Asked { file })
}

/// When the gateway that looks for requests in this directory makes its next attempt, back-off included, in seconds since
/// the Unix epoch; `None` where it has not said.
pub fn next_attempt(directory: &Path) -> Option<u64> {
    let text = source::read_public(&directory.join(NEXT)).ok()?;
    serde_json::from_slice(&text).ok()
}

impl Asked {
    /// What came of it; `None` while nothing has. Taken away when it was read.
    pub fn outcome(&self) -> Option<Outcome> {
        let file = self.file.with_extension(ANSWERED);
        let text = source::read_public(&file).ok()?;
        let _ = fs::remove_file(&file);
        serde_json::from_slice(&text).ok()
    }
}

/// The requests that wait in the directory of one gateway.
pub(super) struct Inbox(PathBuf);

impl Inbox {
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        Ok(Self(directory.to_owned()))
    }

    /// Whether something changed there since `seen`, which is when it had changed last; for who looks often.
    pub(super) fn has_news(&self, seen: &mut Option<SystemTime>) -> bool {
        let changed = fs::metadata(&self.0)
            .and_then(|directory| directory.modified())
            .ok();
        // Two changes may have one time, if they follow each other at once.
        let is_fresh = changed.is_none_or(|at| at.elapsed().unwrap_or_default() < FRESH);
        std::mem::replace(seen, changed) != changed || is_fresh
    }

    /// Tells when the next attempt is made, since the Unix epoch.
    pub(super) fn tell_next(&self, at: Duration) {
        let text = at.as_secs().to_string();
        if let Err(error) = source::write_public(&self.0.join(NEXT), text.as_bytes()) {
            tracing::warn!(%error, "operators are not told of the next attempt");
        }
    }

    /// Takes those that wait. What is none is answered and taken away.
    pub(super) fn take(&self) -> Vec<(Ticket, Request)> {
        let mut taken = Vec::new();
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let file = entry.path();
            match file.extension().and_then(|extension| extension.to_str()) {
                Some(ASKED) if taken.len() < MAX_TAKEN => {}
                Some(ANSWERED) if is_old(&file) => {
                    let _ = fs::remove_file(&file);
                    continue;
                }
                _ => continue,
            }
            let ticket = Ticket(file);
            let text = source::read_public(&ticket.0).ok();
            match text.and_then(|text| serde_json::from_slice(&text).ok()) {
                Some(request) => taken.push((ticket, request)),
                None => ticket.answer(
                    false,
                    "this is no request that the gateway knows".to_owned(),
                ),
            }
        }
        taken
    }
}

fn is_old(file: &Path) -> bool {
    let modified = fs::metadata(file).and_then(|file| file.modified());
    let age = modified.map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
    age.is_ok_and(|age| age > ANSWER_KEPT)
}

/// A request that is to be answered. Until then it is taken again by a process that comes after this one.
pub(super) struct Ticket(PathBuf);

impl Ticket {
    /// Whether both are of the same request.
    pub(super) fn is_of(&self, other: &Self) -> bool {
        self.0 == other.0
    }

    /// Answers it, and takes it away.
    pub(super) fn answer(self, done: bool, said: String) {
        let outcome = Outcome { done, said };
        let text = serde_json::to_vec(&outcome).expect("plain data with text keys");
        if let Err(error) = source::write_public(&self.0.with_extension(ANSWERED), &text) {
            tracing::warn!(%error, "an operator's request was not answered");
        }
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_waits_until_it_is_answered_and_the_answer_until_it_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let nowhere = ask(&directory.path().join("x"), &Request::Renew { now: true });
        assert!(matches!(nowhere, Err(Error::Nobody(_))));
        let request = Request::Revoke {
            certificate: "00".to_owned(),
            reason: Reason::KeyCompromise,
        };
        let inbox = Inbox::open(directory.path()).unwrap();
        let asked = ask(directory.path(), &request).unwrap();
        assert_eq!(inbox.take()[0].1, request);
        // Whoever took it ended before it answered.
        let (ticket, again) = inbox.take().remove(0);
        assert_eq!(again, request);
        assert_eq!(asked.outcome(), None);
        ticket.answer(true, "it holds no more".to_owned());
        assert!(inbox.take().is_empty());
        let outcome = asked.outcome().unwrap();
        assert!(outcome.done);
        assert_eq!(outcome.said, "it holds no more");
        assert_eq!(fs::read_dir(inbox.0).unwrap().count(), 0);
    }

    #[test]
    fn operators_are_told_of_the_next_attempt() {
        let directory = tempfile::tempdir().unwrap();
        let inbox = Inbox::open(directory.path()).unwrap();
        assert_eq!(next_attempt(directory.path()), None);
        for seconds in [1_000, 2_000] {
            inbox.tell_next(Duration::from_millis(seconds * 1000 + 1));
            assert_eq!(next_attempt(directory.path()), Some(seconds));
        }
        assert!(inbox.take().is_empty(), "it is no request");
    }

    #[test]
    fn what_is_no_request_is_answered_and_not_taken() {
        let directory = tempfile::tempdir().unwrap();
        let inbox = Inbox::open(directory.path()).unwrap();
        for text in [
            "",
            "{}",
            r#"{"renew":{"now":1}}"#,
            r#"{"renew":{"now":true,"x":1}}"#,
        ] {
            let asked = ask(directory.path(), &Request::Renew { now: false }).unwrap();
            fs::write(&asked.file, text).unwrap();
            assert!(inbox.take().is_empty(), "{text}");
            assert!(!asked.outcome().unwrap().done, "{text}");
        }
    }

    #[test]
    fn requests_are_taken_some_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let inbox = Inbox::open(directory.path()).unwrap();
        for _ in 0..MAX_TAKEN + 3 {
            ask(directory.path(), &Request::Renew { now: false }).unwrap();
        }
        let taken = inbox.take();
        assert_eq!(taken.len(), MAX_TAKEN);
        for (ticket, _) in taken {
            ticket.answer(true, String::new());
        }
        assert_eq!(inbox.take().len(), 3);
    }
}
