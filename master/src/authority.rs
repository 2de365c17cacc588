//! The cluster's own authority, which signs the certificate of the master's HTTPS and those of nodes. Its key is
//! in the database, sealed under the secret `master_key`; what it signs holds for days, and is renewed at half of
//! that. The next authority is trusted by all before it signs ([`crate::keys`]).

mod certificate;

use std::time::{Duration, SystemTime};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use wavry_credentials::{
    cert::{
        self,
        authority::{Authority, Validity, is_name},
    },
    clock::since_epoch,
};
use wavry_proto::{config::Invalid, id::ClusterName, token::CLOCK_SKEW};

use crate::{
    audit_reader::Reader,
    database::Location,
    keys::{Life, Pace, State},
    metrics as names,
    signing::Custody,
    store::{self, audit::ReadError, authority::Kept},
};

pub(crate) use certificate::{Serving, issue};

/// Table `master.authority`, as it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawAuthority {
    /// Names and addresses at which clients find this master: those of its certificate.
    pub names: Vec<String>,
    /// How long a certificate holds. It is renewed at half of that.
    #[serde(with = "wavry_proto::duration")]
    pub certificate_lifetime: Duration,
    /// An authority that has signed for so long is rotated.
    #[serde(with = "wavry_proto::duration")]
    pub lifetime: Duration,
    /// A new authority is trusted for so long before it signs; at least as long as nodes act on a roster.
    #[serde(with = "wavry_proto::duration")]
    pub wait: Duration,
    /// Whether nodes must show a certificate: `optional` or `required`.
    pub node_certificates: Demand,
}

/// Whether nodes must show a certificate with their requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Demand {
    /// They may; one that is another node's is refused.
    #[default]
    Optional,
    /// They must, but for the request by which they get one.
    Required,
}

impl Default for RawAuthority {
    fn default() -> Self {
        Self {
            names: Vec::new(),
            certificate_lifetime: Duration::from_secs(7 * 24 * 3600),
            lifetime: Pace::default().lifetime,
            wait: Pace::default().wait,
            node_certificates: Demand::default(),
        }
    }
}

/// What the master is told of its authority, as it was checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Of the certificate of the master's HTTPS.
    pub names: Vec<String>,
    /// How long a certificate holds.
    pub certificate_lifetime: Duration,
    /// How long authorities stay in each part of their life.
    pub pace: Pace,
    /// Whether nodes must show a certificate.
    pub node_certificates: Demand,
}

/// A certificate that holds for less is renewed more often than a busy machine may manage.
const MIN_CERTIFICATE_LIFETIME: Duration = Duration::from_secs(4);
/// What leaks serves for no longer.
const MAX_CERTIFICATE_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);
/// Times beyond this are mistakes, and dates that a certificate cannot have.
const MAX_LIFETIME: Duration = Duration::from_secs(36_500 * 24 * 3600);
/// An authority's certificate holds for so much longer than its turn, for masters that stand still.
const SLACK: Duration = Duration::from_secs(30 * 24 * 3600);

impl TryFrom<RawAuthority> for Config {
    type Error = Invalid;

    fn try_from(raw: RawAuthority) -> Result<Self, Invalid> {
        if let Some(at) = raw.names.iter().position(|name| !is_name(name)) {
            let expected = "must be a DNS name or an address, without port";
            return Err(Invalid::new(format!("names[{at}]"), expected));
        }
        let certificate_lifetime = raw.certificate_lifetime;
        if !(MIN_CERTIFICATE_LIFETIME..=MAX_CERTIFICATE_LIFETIME).contains(&certificate_lifetime) {
            let expected = "must be at least 4s and at most 90d";
            return Err(Invalid::new("certificate_lifetime", expected));
        }
        for (key, value) in [("lifetime", raw.lifetime), ("wait", raw.wait)] {
            if value > MAX_LIFETIME {
                return Err(Invalid::new(key, "must be at most 36500d"));
            }
        }
        if raw.lifetime <= raw.wait {
            return Err(Invalid::new("lifetime", "must be longer than wait"));
        }
        Ok(Self {
            names: raw.names,
            certificate_lifetime,
            pace: Pace {
                lifetime: raw.lifetime,
                wait: raw.wait,
                // All that it signed is over then.
                overlap: certificate_lifetime + Duration::from_secs(CLOCK_SKEW),
            },
            node_certificates: raw.node_certificates,
        })
    }
}

/// Why there is no authority that signs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What seals its key is missing.
    #[error("the authority's key is sealed under the secret master_key, and there is none")]
    NoMasterKey,
    /// Its key was sealed by another key, or is not what was sealed.
    #[error("the authority's key does not open under the secret master_key")]
    Sealed,
    /// It cannot be made or read.
    #[error(transparent)]
    Certificate(#[from] cert::Error),
    /// The database.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// An authority that was made and is not kept yet.
pub(crate) struct Successor {
    /// SHA-256 of its certificate, as hexadecimal.
    pub(crate) hash: String,
    pub(crate) certificate: Vec<u8>,
    pub(crate) sealed: Vec<u8>,
}

/// Makes one, whose certificate holds for as long as it may come to be trusted.
pub(crate) fn successor(
    custody: &Custody,
    cluster: &ClusterName,
    pace: &Pace,
) -> Result<Successor, Error> {
    let master = custody.master().ok_or(Error::NoMasterKey)?;
    let lifetime = pace.wait * 2 + pace.lifetime + pace.overlap + SLACK;
    let made = Authority::generate(cluster, Validity::from(now(), lifetime))?;
    let hash = hex::encode(Authority::open(&made.certificate, &made.key)?.hash());
    Ok(Successor {
        sealed: master.seal_secret(&place(&hash), &made.key),
        certificate: made.certificate,
        hash,
    })
}

/// Opens one that is kept.
pub(crate) fn open(custody: &Custody, kept: &Kept) -> Result<Authority, Error> {
    let master = custody.master().ok_or(Error::NoMasterKey)?;
    let sealed = kept.sealed.as_deref().ok_or(Error::Sealed)?;
    let key = master.open_secret(&place(&kept.life.kid), sealed);
    Ok(Authority::open(
        &kept.certificate,
        &key.map_err(|_| Error::Sealed)?,
    )?)
}

/// The certificates of the authorities that a master with this database trusts, in PEM, for those that are to
/// trust it. The master may be at work.
pub async fn trusted(database: &Location) -> Result<String, ReadError> {
    let reader = Reader::open(database).await?;
    let kept = reader.authorities().await?;
    let trusted = kept.iter().filter(|kept| is_trusted(kept));
    Ok(trusted
        .map(|kept| cert::to_pem(&kept.certificate))
        .collect())
}

/// What a key is sealed for.
fn place(hash: &str) -> String {
    format!("wavry authority {hash}")
}

/// When an authority's certificate expires, in seconds since the Unix epoch.
pub(crate) fn expiry(authority: &Authority) -> u64 {
    let expiry = authority.not_after().duration_since(SystemTime::UNIX_EPOCH);
    expiry.unwrap_or_default().as_secs()
}

/// The time that certificates are made and checked by, which never goes back.
pub(crate) fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + since_epoch()
}

/// The authorities as they are now.
pub(crate) struct Authorities {
    /// Signs; `None` where this master has none, or cannot open it.
    pub(crate) signing: Option<Authority>,
    /// Every one that ever was, oldest first.
    pub(crate) kept: Vec<Kept>,
}

impl Authorities {
    /// Of all that ever were, oldest first.
    pub(crate) fn of(kept: Vec<Kept>, custody: &Custody) -> Self {
        let signing = kept.iter().find(|kept| kept.life.state == State::Signing);
        let signing = signing.and_then(|kept| {
            let opened = open(custody, kept);
            opened
                .inspect_err(|error| {
                    let error = error as &dyn std::error::Error;
                    tracing::error!(error, "this master cannot sign certificates");
                })
                .ok()
        });
        let authorities = Self { signing, kept };
        authorities.report();
        authorities
    }

    /// Whether what this one signed is to be trusted.
    pub(crate) fn trust(&self, hash: &[u8; 32]) -> bool {
        let hash = hex::encode(hash);
        let mut trusted = self.kept.iter().filter(|kept| is_trusted(kept));
        trusted.any(|kept| kept.life.kid == hash)
    }

    /// Their lives.
    pub(crate) fn lives(&self) -> Vec<Life> {
        self.kept.iter().map(|kept| kept.life.clone()).collect()
    }

    fn report(&self) {
        for state in State::ALL {
            let of_state = self.kept.iter().filter(|kept| kept.life.state == state);
            let expiries = of_state.filter_map(|kept| cert::not_after(&kept.certificate));
            let expiries: Vec<_> = expiries
                .filter_map(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok())
                .collect();
            let state = state.as_str();
            metrics::gauge!(names::AUTHORITIES, "state" => state).set(expiries.len() as f64);
            // What is there no more is not a number, and on no side of any bound.
            let first = expiries
                .iter()
                .min()
                .map_or(f64::NAN, Duration::as_secs_f64);
            metrics::gauge!(names::AUTHORITY_EXPIRY, "state" => state).set(first);
        }
    }
}

fn is_trusted(kept: &Kept) -> bool {
    matches!(
        kept.life.state,
        State::Published | State::Signing | State::Accepted
    )
}

/// The certificates that a roster has in base64; what is none is passed over.
pub(crate) fn certificates(
    trusted: &[String],
) -> impl Iterator<Item = rustls_pki_types::CertificateDer<'static>> {
    let decoded = trusted.iter().filter_map(|text| STANDARD.decode(text).ok());
    decoded.map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_that_no_certificate_can_have_are_refused() {
        let day = Duration::from_secs(24 * 3600);
        let with = |lifetime, wait| {
            let raw = RawAuthority {
                lifetime,
                wait,
                ..RawAuthority::default()
            };
            Config::try_from(raw).map_err(|invalid| invalid.key)
        };
        assert!(with(36_500 * day, day).is_ok());
        assert_eq!(with(36_501 * day, day).unwrap_err(), "lifetime");
        assert_eq!(with(36_500 * day, 36_501 * day).unwrap_err(), "wait");
        assert_eq!(with(day, day).unwrap_err(), "lifetime");
    }
}
