//! `wavry cert import`: a certificate that was obtained elsewhere, for a gateway that reads it from files.

use std::path::PathBuf;

use anyhow::Context as _;
use wavry_credentials::{cert, source};

use crate::operate::say;

/// `wavry cert import`.
#[derive(Debug, clap::Args)]
pub(crate) struct Import {
    /// PEM file of the chain, the certificate first
    chain: PathBuf,
    /// PEM file of its key
    key: PathBuf,
    /// Where the gateway reads the chain: its key `certificate`
    #[arg(long, value_name = "FILE")]
    certificate: PathBuf,
    /// Where it reads the key; secret tls_key unless given
    #[arg(long, value_name = "FILE")]
    certificate_key: Option<PathBuf>,
    /// Also where the certificate in use has names that the new one has not
    #[arg(long)]
    fewer_names: bool,
}

pub(super) fn run(args: &Import) -> anyhow::Result<()> {
    let key = match &args.certificate_key {
        Some(key) => key.clone(),
        None => source::locate("tls_key")?,
    };
    let summaries = cert::summaries(&args.chain)?;
    let new = summaries.first().context("there is no certificate in it")?;
    // What cannot be read serves nobody who could miss a name.
    let in_use = cert::summaries(&args.certificate).ok();
    let in_use = in_use.and_then(|summaries| summaries.into_iter().next());
    let names = in_use.map(|summary| summary.names).unwrap_or_default();
    let missed: Vec<_> = names
        .iter()
        .filter(|name| !new.names.contains(name))
        .collect();
    if !missed.is_empty() && !args.fewer_names {
        anyhow::bail!(
            "{} is not for {missed:?}, which the certificate in use is for; --fewer-names takes it all the same",
            args.chain.display()
        );
    }
    cert::import((&args.chain, &args.key), (&args.certificate, &key))?;
    say(&format!(
        "{} and {} are for {}",
        args.certificate.display(),
        key.display(),
        new.names.join(", ")
    ))
}
