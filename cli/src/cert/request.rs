//! `wavry cert renew` and `revoke`: what is asked of a gateway that obtains its certificate by itself.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use wavry_credentials::{
    acme::request::{self, Reason, Request},
    cert,
};

use super::{chains, hex, places};
use crate::{operate::say, provision::parse_duration};

/// How often the answer is looked for.
const PACE: Duration = Duration::from_millis(100);

/// `wavry cert renew`.
#[derive(Debug, clap::Args)]
pub(crate) struct Renew {
    #[command(flatten)]
    gateway: Gateway,
    /// Also ask authorities that are left alone because they failed
    #[arg(long)]
    now: bool,
}

/// `wavry cert revoke`.
#[derive(Debug, clap::Args)]
pub(crate) struct Revoke {
    #[command(flatten)]
    gateway: Gateway,
    /// Why
    #[arg(long, value_enum, default_value = "unspecified")]
    reason: Why,
    /// Of the two certificates that are kept, the one before the newest
    #[arg(long)]
    previous: bool,
}

/// A certificate of a gateway.
#[derive(Debug, clap::Args)]
struct Gateway {
    /// One of its names
    name: String,
    /// The gateway's state directory
    #[arg(long, value_name = "DIRECTORY")]
    state_dir: PathBuf,
    /// How long to wait for what comes of it; what was asked for is done later all the same
    #[arg(long, default_value = "5m", value_parser = parse_duration)]
    wait: Duration,
}

/// What its holder may say (RFC 5280, section 5.3.1).
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Why {
    Unspecified,
    KeyCompromise,
    AffiliationChanged,
    Superseded,
    CessationOfOperation,
}

impl From<Why> for Reason {
    fn from(why: Why) -> Self {
        match why {
            Why::Unspecified => Self::Unspecified,
            Why::KeyCompromise => Self::KeyCompromise,
            Why::AffiliationChanged => Self::AffiliationChanged,
            Why::Superseded => Self::Superseded,
            Why::CessationOfOperation => Self::CessationOfOperation,
        }
    }
}

pub(super) async fn renew(args: &Renew) -> anyhow::Result<()> {
    let (_, requests) = args.gateway.place()?;
    let request = Request::Renew { now: args.now };
    args.gateway.ask(&requests, &request).await
}

pub(super) async fn revoke(args: &Revoke) -> anyhow::Result<()> {
    let (kept, requests) = args.gateway.place()?;
    let chain = kept.iter().rev().nth(args.previous.into());
    let chain = chain.context("there is no such certificate in the state directory")?;
    let leaf = cert::summaries(chain)?.into_iter().next();
    let leaf = leaf.context("there is no certificate in it")?;
    let request = Request::Revoke {
        certificate: hex(&leaf.hash),
        reason: args.reason.into(),
    };
    args.gateway.ask(&requests, &request).await
}

impl Gateway {
    /// The chains that are kept of the certificate for the name, the oldest first, and where its gateway looks for
    /// requests.
    fn place(&self) -> anyhow::Result<(Vec<PathBuf>, PathBuf)> {
        let (mut others, mut empty) = (Vec::new(), None);
        for place in places(&self.state_dir) {
            let (chains, Some(requests)) = (chains(&place.pairs)?, place.requests) else {
                continue;
            };
            let Some(newest) = chains.last() else {
                // There is none yet where the first one cannot be obtained.
                empty = empty.or(Some(requests).filter(|requests| requests.is_dir()));
                continue;
            };
            let names = cert::summaries(newest)?.into_iter().next();
            let names = names.map(|summary| summary.names).unwrap_or_default();
            if names.contains(&self.name) {
                return Ok((chains, requests));
            }
            others.extend(names);
        }
        match (others.is_empty(), empty) {
            (true, Some(requests)) => Ok((Vec::new(), requests)),
            _ => anyhow::bail!(
                "no certificate in {} is for {}, but some for {}",
                self.state_dir.display(),
                self.name,
                others.join(", ")
            ),
        }
    }

    async fn ask(&self, place: &Path, request: &Request) -> anyhow::Result<()> {
        let asked = request::ask(place, request)?;
        let deadline = Instant::now() + self.wait;
        loop {
            if let Some(outcome) = asked.outcome() {
                return match outcome.done {
                    true => say(&format!("{}: {}", self.name, outcome.said)),
                    false => anyhow::bail!("{}: {}", self.name, outcome.said),
                };
            }
            if Instant::now() > deadline {
                anyhow::bail!(
                    "{}: the gateway has not answered; it does what it was asked for when it runs",
                    self.name
                );
            }
            tokio::time::sleep(PACE).await;
        }
    }
}
