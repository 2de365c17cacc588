//! The certificate of this node, which the cluster's authority signs: got with the identity, renewed at half of its
//! time, and kept with its key as one ([`pairs`]).

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use wavry_proto::control::{Authorities, CertificateRequest, IssuedCertificate, Roster};

use super::{
    metrics as names,
    record::Record,
    work::{Link, json, over_connection, read},
};
use crate::{
    cert::{
        self, Member, Pair,
        pairs::{self, Issued, Pairs},
        renewal,
    },
    clock::unix_time,
    key::acme::CertificateKey,
    master::{Ask, Connection, Failure},
    random, source,
};

/// The certificate is looked at so often, as the system's clock may be set.
const LOOK: Duration = Duration::from_secs(60);
/// Pause after a first failure, and the longest one: the margin is half of the lifetime, which is days.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// Longest answer: some certificates in PEM.
const MAX_ANSWER: usize = 32 * 1024;
/// In the state directory: the certificates of those whom the roster trusts, as PEM.
const AUTHORITIES: &str = "authorities.pem";
/// What is kept of attempts, beside the pairs.
const ATTEMPTS: &str = "attempts.json";
/// In the place of an authority's name: it is the cluster's.
const OWN: &str = "cluster";

/// Where certificates are kept.
pub(super) struct Certificates {
    directory: PathBuf,
    /// `None` where nothing can be kept.
    pairs: Option<Pairs>,
    attempts: Attempts,
    serving: Option<Serving>,
    /// File of those whom the roster trusts, for what else is to trust them on this machine.
    authorities: PathBuf,
}

/// Who serves with the node's certificate, and what it is called there.
struct Serving {
    store: cert::Store,
    origin: PathBuf,
}

impl Serving {
    fn take(&self, pair: Pair) {
        match self.store.install_member(&self.origin, pair) {
            // There is another soon.
            Err(error) if !error.is_of_time() => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "the node's certificate cannot be served with");
            }
            _ => {}
        }
    }
}

/// Failures since the last success, and until when the master is left alone, in seconds since the Unix epoch. Kept
/// over restarts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Attempts {
    failures: u32,
    until: u64,
}

impl Attempts {
    /// As they are at `now`: the clock by which they were kept may have been wrong.
    fn by(self, now: u64) -> Self {
        let latest = now.saturating_add(LONGEST_PAUSE.as_secs());
        Self {
            until: self.until.min(latest),
            ..self
        }
    }

    /// One begins, which counts as failed until it is known to have succeeded. Half of the pause is `chance`,
    /// which is uniform over its type.
    fn begin(self, now: u64, chance: u16) -> Self {
        let doublings = self.failures.min(16);
        let full = FIRST_PAUSE
            .saturating_mul(1 << doublings)
            .min(LONGEST_PAUSE);
        let pause = full / 2 + full / 2 * u32::from(chance) / u32::from(u16::MAX);
        Self {
            failures: self.failures.saturating_add(1),
            until: now.saturating_add(pause.as_secs_f64().ceil() as u64),
        }
    }
}

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the master did not issue it")]
    Master(#[from] Failure),
    #[error("the key could not be made")]
    Key(#[from] rcgen::Error),
    #[error("what the master issued cannot be used")]
    Certificate(#[from] cert::Error),
    #[error("what the master issued is not for this node")]
    Foreign,
}

impl Error {
    fn reason(&self) -> &'static str {
        match self {
            Self::Master(failure) => failure.reason(),
            Self::Key(_) => "key",
            Self::Certificate(_) | Self::Foreign => "certificate",
        }
    }
}

impl Certificates {
    /// Those in the state directory.
    pub(super) fn in_directory(state_dir: &Path) -> Self {
        let directory = state_dir.join("certificate");
        let pairs = Pairs::open(directory.join("pairs"));
        let pairs = pairs.inspect_err(tell_unkept).ok();
        let attempts = fs::read(directory.join(ATTEMPTS)).ok();
        let attempts: Option<Attempts> =
            attempts.and_then(|text| serde_json::from_slice(&text).ok());
        Self {
            directory,
            pairs,
            attempts: attempts.unwrap_or_default().by(unix_time()),
            serving: None,
            authorities: state_dir.join(AUTHORITIES),
        }
    }

    /// Has `store` serve, in the place of what it has from `origin`, with the newest one that is kept, if the node
    /// has registered and it has not expired, and with each that comes after it.
    pub(super) fn serve(&mut self, store: cert::Store, origin: &Path, record: Option<&Record>) {
        let serving = Serving {
            store,
            origin: origin.to_owned(),
        };
        if let Some(pair) = record.and_then(|record| self.kept(record)) {
            serving.take(pair);
        }
        self.serving = Some(serving);
    }

    /// Shows the newest one that is kept.
    pub(super) fn show_kept(&self, link: &Link) {
        if let Some(pair) = self.kept(&link.record) {
            self.show(link, pair);
        }
    }

    fn kept(&self, record: &Record) -> Option<Pair> {
        let (pair, _) = self.pairs.as_ref().and_then(Pairs::newest)?;
        let is_ours = Member::of(pair.leaf()).is_some_and(|member| is_ours(&member, record));
        is_ours.then_some(pair)
    }

    fn show(&self, link: &Link, pair: Pair) {
        report(&pair);
        if let Some(serving) = &self.serving {
            serving.take(pair.clone());
        }
        link.show(pair);
    }

    /// Writes those whom the roster trusts to a file, unless it has them.
    fn write_authorities(&self, authorities: &Authorities) {
        let trusted = authorities.trusted.iter();
        let trusted = trusted.filter_map(|text| STANDARD.decode(text).ok());
        let trusted: String = trusted.map(|der| cert::to_pem(&der)).collect();
        if trusted.is_empty()
            || fs::read_to_string(&self.authorities).is_ok_and(|old| old == trusted)
        {
            return;
        }
        if let Err(error) = source::write_public(&self.authorities, trusted.as_bytes()) {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "the cluster's authorities are not kept");
        }
    }

    /// Gets a certificate over a connection, keeps it and shows it.
    pub(super) async fn renew(
        &mut self,
        link: &Link,
        connection: &mut Connection,
    ) -> Result<(), Error> {
        let (now, chance) = (unix_time(), u16::from_le_bytes(random::bytes()));
        self.write_attempts(self.attempts.begin(now, chance));
        let issued = self.try_renew(link, connection).await;
        let outcome = issued.as_ref().map_or_else(Error::reason, |()| "issued");
        metrics::counter!(names::CERTIFICATE_RENEWALS, "outcome" => outcome).increment(1);
        issued
    }

    async fn try_renew(&mut self, link: &Link, connection: &mut Connection) -> Result<(), Error> {
        let key = CertificateKey::generate()?;
        let request = CertificateRequest {
            request: STANDARD.encode(key.request(&[])?),
        };
        let authorization = link.authorization(connection);
        let mut ask = Ask::post("/v1/nodes/certificate", json(&request)?);
        ask.authorization = Some(&authorization);
        ask.max_answer = MAX_ANSWER;
        let IssuedCertificate { chain } = read(&connection.ask(ask).await?.body)?;
        let key = key.to_pem();
        let pair = Pair::from_pem(Path::new("the node's certificate"), &chain, &key)?;
        let member = Member::of(pair.leaf()).ok_or(Error::Foreign)?;
        if !is_ours(&member, &link.record) {
            return Err(Error::Foreign);
        }
        let issued = Issued {
            authority: OWN.to_owned(),
        };
        // It is shown all the same where it cannot be kept: after a restart there is another.
        if let Some(pairs) = &self.pairs
            && let Err(error) = pairs.write(&chain, &key, &issued)
        {
            tell_unkept(&error);
        }
        tracing::info!(
            registration = member.registration,
            "the node's certificate is issued"
        );
        self.show(link, pair);
        self.write_attempts(Attempts::default());
        Ok(())
    }

    fn write_attempts(&mut self, attempts: Attempts) {
        self.attempts = attempts;
        let text = serde_json::to_vec(&attempts).expect("plain data with text keys");
        // What cannot be kept is in memory.
        let _ = source::write_public(&self.directory.join(ATTEMPTS), &text);
    }
}

/// Keeps a certificate in use, for as long as it is polled.
pub(super) struct Renewal {
    pub(super) link: Arc<Link>,
    pub(super) certificates: Certificates,
    pub(super) roster: watch::Receiver<Arc<Roster>>,
}

impl Renewal {
    pub(super) async fn run(mut self) {
        let mut connection = None;
        let mut refused = self.link.certificate_refused();
        let mut authorities = Authorities::default();
        // The renewal is due at another part of its time on each node.
        let chance = u16::from_le_bytes(random::bytes());
        loop {
            let roster = self.roster.borrow_and_update().clone();
            refused.mark_unchanged();
            // One that is too old to act on says nothing.
            if !roster.is_empty() && roster.authorities != authorities {
                // What was waited for may be there now; at the first look nothing is known of that.
                if authorities != Authorities::default() {
                    self.certificates.attempts.until = 0;
                }
                authorities.clone_from(&roster.authorities);
                self.link.client.trust(&authorities);
                self.certificates.write_authorities(&authorities);
            }
            let pause = match self.due(&roster, &authorities, chance) {
                None => LOOK,
                Some(due) => due.duration_since(SystemTime::now()).unwrap_or_default(),
            };
            if pause.is_zero() {
                self.renew(&mut connection).await;
                continue;
            }
            tokio::select! {
                () = tokio::time::sleep(pause.min(LOOK)) => {}
                changed = self.roster.changed() => if changed.is_err() { return },
                // The sender is the link's own.
                _ = refused.changed() => {}
            }
        }
    }

    /// When a certificate is to be asked for; `None` while nobody signs any.
    fn due(&self, roster: &Roster, authorities: &Authorities, chance: u16) -> Option<SystemTime> {
        if authorities.trusted.is_empty() {
            return None;
        }
        let permitted =
            SystemTime::UNIX_EPOCH + Duration::from_secs(self.certificates.attempts.until);
        let shown = self.link.shown_certificate();
        let node = roster.node(&self.link.record.node_id);
        let due = shown
            .filter(|shown| {
                // Who is not listed, or acts on no roster, cannot tell.
                let is_as_listed =
                    |node: &wavry_proto::control::Node| node.registration == shown.registration;
                node.is_none_or(is_as_listed) && shown.is_signed_by(authorities)
            })
            .map(|shown| renewal(shown.from, shown.until, chance));
        Some(due.unwrap_or(SystemTime::UNIX_EPOCH).max(permitted))
    }

    async fn renew(&mut self, connection: &mut Option<Connection>) {
        let certificates = &mut self.certificates;
        let mut failed = None;
        let renewed = over_connection(&self.link, connection, async |link, connection| {
            certificates
                .renew(link, connection)
                .await
                .map_err(|error| match error {
                    Error::Master(failure) => failure,
                    other => {
                        failed = Some(other);
                        Failure::Malformed
                    }
                })
        });
        if let Err(failure) = renewed.await {
            let failure = failed.unwrap_or(Error::Master(failure));
            // No connection, no attempt: it counts all the same.
            if certificates.attempts.until <= unix_time() {
                let chance = u16::from_le_bytes(random::bytes());
                certificates.write_attempts(certificates.attempts.begin(unix_time(), chance));
            }
            let error = &failure as &dyn std::error::Error;
            let reason = failure.reason();
            tracing::warn!(
                reason,
                error,
                "the node's certificate is not renewed yet; trying on"
            );
        }
    }
}

fn is_ours(member: &Member, record: &Record) -> bool {
    (&member.node, &member.cluster) == (&record.node_id, &record.cluster)
}

fn report(pair: &Pair) {
    for (name, time) in [
        (names::CERTIFICATE_NOT_BEFORE, pair.not_before()),
        (names::CERTIFICATE_EXPIRY, pair.not_after()),
    ] {
        let time = time.duration_since(SystemTime::UNIX_EPOCH);
        metrics::gauge!(name).set(time.unwrap_or_default().as_secs_f64());
    }
}

fn tell_unkept(error: &pairs::Error) {
    let error = error as &dyn std::error::Error;
    tracing::error!(
        error,
        "the node's certificate is not kept: after a restart there is another"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pauses_double_from_a_second_to_ten_minutes_and_outlast_the_process() {
        let directory = tempfile::tempdir().unwrap();
        let mut certificates = Certificates::in_directory(directory.path());
        let mut pauses = Vec::new();
        for _ in 0..12 {
            let begun = certificates.attempts.begin(1000, u16::MAX);
            pauses.push(begun.until - 1000);
            certificates.write_attempts(begun);
        }
        assert_eq!(pauses[..10], [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]);
        assert_eq!(pauses[10..], [600, 600]);
        let again = Certificates::in_directory(directory.path());
        assert_eq!(again.attempts, certificates.attempts);
        // A clock that ran ahead keeps nobody from the master for longer than the longest pause.
        let ahead = Attempts {
            failures: 1,
            until: u64::MAX,
        };
        certificates.write_attempts(ahead);
        let again = Certificates::in_directory(directory.path());
        assert!(again.attempts.until <= unix_time() + LONGEST_PAUSE.as_secs());
        let file = directory.path().join("certificate").join(ATTEMPTS);
        for damaged in ["", "{}", "[1]", "\u{0}"] {
            fs::write(&file, damaged).unwrap();
            let again = Certificates::in_directory(directory.path());
            assert_eq!(again.attempts, Attempts::default(), "{damaged}");
        }
    }

    proptest! {
        #[test]
        fn half_of_each_pause_is_chance(failures: u32, chance: u16) {
            let begun = Attempts { failures, until: 0 }.begin(0, chance);
            let longest = Attempts { failures, until: 0 }.begin(0, u16::MAX).until;
            prop_assert!(begun.until <= longest && begun.until * 2 >= longest);
        }
    }
}
