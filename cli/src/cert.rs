//! `wavry cert`: certificates in files and in a gateway's state directory.

mod import;
mod request;

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::Serialize;
use wavry_credentials::{
    acme::request::next_attempt,
    cert::{self, Summary},
};

use crate::operate::{say, say_json, say_table, shown_time};

/// What to do with certificates.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List what a gateway obtained or signed itself and keeps
    List(List),
    /// Show what certificates in PEM files say
    Show(Show),
    /// Print the hashes that clients may trust certificates by (serverCertificateHashes)
    Hashes(Hashes),
    /// Have a gateway that obtains its certificate by itself do so before its time
    Renew(request::Renew),
    /// Have it tell the authority that a certificate holds no more, and obtain another one
    Revoke(request::Revoke),
    /// Put a certificate that was obtained elsewhere where a gateway reads it
    Import(import::Import),
}

/// `wavry cert list`.
#[derive(Debug, clap::Args)]
pub(crate) struct List {
    /// The gateway's state directory
    #[arg(long, value_name = "DIRECTORY")]
    state_dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `wavry cert show`.
#[derive(Debug, clap::Args)]
pub(crate) struct Show {
    /// PEM files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `wavry cert hashes`.
#[derive(Debug, clap::Args)]
pub(crate) struct Hashes {
    /// PEM files; the first certificate of each counts
    #[arg(value_name = "FILE", required_unless_present = "state_dir")]
    files: Vec<PathBuf>,
    /// The state directory of a gateway that signs its certificates itself
    #[arg(long, value_name = "DIRECTORY")]
    state_dir: Option<PathBuf>,
}

pub(crate) async fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::List(args) => {
            let mut rows = Vec::new();
            for place in places(&args.state_dir) {
                let chains = chains(&place.pairs)?;
                for chain in &chains {
                    let summary = cert::summaries(chain)?.into_iter().next();
                    let row = summary.map(|summary| Row::new(place.source, chain, &summary));
                    // It takes the place of the newest one.
                    let newest = place
                        .requests
                        .as_deref()
                        .filter(|_| Some(chain) == chains.last());
                    rows.extend(row.map(|row| Row {
                        next_attempt: newest.and_then(next_attempt),
                        ..row
                    }));
                }
            }
            show(&rows, args.json)
        }
        Command::Show(args) => {
            let mut rows = Vec::new();
            for file in &args.files {
                let summaries = cert::summaries(file)?;
                rows.extend(
                    summaries
                        .iter()
                        .map(|summary| Row::new("file", file, summary)),
                );
            }
            show(&rows, args.json)
        }
        Command::Hashes(args) => {
            let mut files = args.files.clone();
            if let Some(state_dir) = &args.state_dir {
                files.extend(chains(&state_dir.join(SELF_SIGNED).join("pairs"))?);
            }
            for file in files {
                let leaf = cert::summaries(&file)?.into_iter().next();
                let Some(leaf) = leaf.filter(|leaf| leaf.may_be_pinned) else {
                    anyhow::bail!(
                        "{}: clients trust a P-256 certificate of at most 14 days by its hash, and no other",
                        file.display()
                    );
                };
                say(&hex(&leaf.hash))?;
            }
            Ok(())
        }
        Command::Renew(args) => request::renew(args).await,
        Command::Revoke(args) => request::revoke(args).await,
        Command::Import(args) => import::run(args),
    }
}

const ACME: &str = "acme";
const SELF_SIGNED: &str = "self-signed";
/// Where a gateway may keep what belongs to one certificate.
struct Place {
    source: &'static str,
    pairs: PathBuf,
    /// Where it looks for requests.
    requests: Option<PathBuf>,
}

fn places(state_dir: &Path) -> Vec<Place> {
    let acme = state_dir.join(ACME);
    let place = |pairs: PathBuf, requests: PathBuf| Place {
        source: ACME,
        pairs,
        requests: Some(requests),
    };
    let mut places = vec![place(acme.join("pairs"), acme.join("requests"))];
    // Those that are for one name each, and those that are shared with other gateways.
    for own in entries(&acme.join("names")) {
        places.push(place(own.join("pairs"), own.join("requests")));
    }
    for own in entries(&acme.join("fleet")) {
        let name = own.file_name().unwrap_or_default();
        places.push(place(own.clone(), acme.join("requests").join(name)));
    }
    places.push(Place {
        source: SELF_SIGNED,
        pairs: state_dir.join(SELF_SIGNED).join("pairs"),
        requests: None,
    });
    places
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// The chains that are kept, the oldest first; none where there is no such directory.
fn chains(pairs: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    match fs::read_dir(pairs) {
        Ok(pairs) => {
            for pair in pairs {
                let pair = pair?;
                // Others are being written.
                if !pair.file_name().as_encoded_bytes().starts_with(b".") {
                    found.push(pair.path().join("chain.pem"));
                }
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    found.sort();
    Ok(found)
}

#[derive(Serialize)]
struct Row {
    source: &'static str,
    file: String,
    names: Vec<String>,
    /// Seconds since the Unix epoch, like the next.
    not_before: u64,
    not_after: u64,
    /// Below zero once it has expired.
    days_left: i64,
    /// When its gateway means to obtain another one in its place.
    next_attempt: Option<u64>,
    /// SHA-256, in hexadecimal.
    hash: String,
    may_be_pinned: bool,
}

impl Row {
    fn new(source: &'static str, file: &Path, summary: &Summary) -> Self {
        let seconds = |time: SystemTime| {
            let since = time.duration_since(SystemTime::UNIX_EPOCH);
            since.unwrap_or_default().as_secs()
        };
        let (until, now) = (seconds(summary.not_after), seconds(SystemTime::now()));
        Self {
            source,
            file: file.display().to_string(),
            names: summary.names.clone(),
            not_before: seconds(summary.not_before),
            not_after: until,
            days_left: (until.cast_signed() - now.cast_signed()).div_euclid(24 * 60 * 60),
            next_attempt: None,
            hash: hex(&summary.hash),
            may_be_pinned: summary.may_be_pinned,
        }
    }
}

fn show(rows: &[Row], json: bool) -> anyhow::Result<()> {
    if json {
        return say_json(&rows);
    }
    let headings = [
        "SOURCE",
        "NAMES",
        "FROM",
        "UNTIL",
        "DAYS LEFT",
        "NEXT ATTEMPT",
        "HASH",
        "FILE",
    ];
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            [
                row.source.to_owned(),
                row.names.join(","),
                shown_time(row.not_before),
                shown_time(row.not_after),
                row.days_left.to_string(),
                row.next_attempt.map(shown_time).unwrap_or_default(),
                row.hash.clone(),
                row.file.clone(),
            ]
        })
        .collect();
    say_table(&headings, &rows)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
