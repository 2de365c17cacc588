//! The certificate of the master's HTTPS: issued by the authority at the start, and again at half of its time. Its
//! key is in memory alone.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use tokio::time::sleep;
use wavry_credentials::{
    cert::{self, authority::Validity, renewal},
    random,
};

use super::{Authorities, Config, Error, now};
use crate::{metrics as names, registry::Registry};

/// The clock is looked at so often, for it may be set, and a machine may sleep.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Pause after it could not be issued; the margin is half of its lifetime.
const PAUSE: Duration = Duration::from_secs(10);
/// What errors call it.
const ORIGIN: &str = "the master's certificate";

/// The certificate that is served.
pub(crate) struct Serving {
    /// SHA-256 of the certificate of who issued it.
    issuer: [u8; 32],
    /// When it is to be renewed.
    due: SystemTime,
}

/// Puts a certificate in use that the authority issues now.
pub(crate) fn issue(
    authorities: &Authorities,
    config: &Config,
    store: &cert::Store,
) -> Result<Serving, Error> {
    let issued = try_issue(authorities, config, store);
    let outcome = if issued.is_ok() { "issued" } else { "failed" };
    metrics::counter!(names::OWN_CERTIFICATES, "outcome" => outcome).increment(1);
    issued
}

fn try_issue(
    authorities: &Authorities,
    config: &Config,
    store: &cert::Store,
) -> Result<Serving, Error> {
    let signing = authorities.signing.as_ref().ok_or(Error::Sealed)?;
    let validity = Validity::from(now(), config.certificate_lifetime);
    let pair = signing.serve(&config.names, validity)?;
    let chance = u16::from_le_bytes(random::bytes());
    let (from, until) = (pair.not_before(), pair.not_after());
    store.install_member(Path::new(ORIGIN), pair)?;
    let until_time = until.duration_since(SystemTime::UNIX_EPOCH);
    tracing::info!(
        expires = until_time.unwrap_or_default().as_secs(),
        "the master's certificate is issued"
    );
    Ok(Serving {
        issuer: signing.hash(),
        due: renewal(from, until, chance),
    })
}

impl Serving {
    /// Renews it when it is time, and at once when nobody is to trust its issuer any more. It never ends.
    pub(crate) async fn keep(mut self, registry: Registry, config: Config, store: cert::Store) {
        let mut published = registry.published();
        loop {
            let authorities = published.borrow_and_update().authorities.clone();
            let left = self.due.duration_since(now()).unwrap_or_default();
            if left.is_zero() || !authorities.trust(&self.issuer) {
                match issue(&authorities, &config, &store) {
                    // Of an authority that is nearly over, none is good for long.
                    Ok(issued) if issued.due <= now() => {
                        self = issued;
                        sleep(PAUSE).await;
                    }
                    Ok(issued) => self = issued,
                    Err(error) => {
                        tell(&error);
                        sleep(PAUSE).await;
                    }
                }
                continue;
            }
            tokio::select! {
                () = sleep(left.min(LOOK_EVERY)) => {}
                // The sender is the registry's, which is here.
                _ = published.changed() => {}
            }
        }
    }
}

fn tell(error: &Error) {
    let error = error as &dyn std::error::Error;
    tracing::error!(error, "the master's certificate is not renewed; trying on");
}
