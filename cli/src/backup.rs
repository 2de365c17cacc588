//! `wavry master backup` and `wavry master restore`.

use std::{io::Write as _, path::PathBuf, sync::Arc};

use anyhow::Context as _;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use wavry_credentials::{audit::Key, process, source};
use wavry_master::{backup, database::Location};
use wavry_proto::id::ClusterName;

use crate::provision::DEFAULT_CLUSTER;

/// Ends the help of both.
pub(crate) const HELP: &str = "\
  export WAVRY_AUDIT_KEY_FILE=audit.key WAVRY_MASTER_DATABASE=/var/lib/wavry/master.sqlite
  wavry master backup master-2026-11-26.backup
  wavry master restore master-2026-11-26.backup --database postgres://wavry@db.example/wavry?sslrootcert=FILE

A backup is sealed with the audit key, and checked once it is written and before it is restored. The keys
that sign are in it as they are in the database, under the secret master_key, which is not in it. A
database that is not empty is never overwritten. docs/runbooks/backup.md says what is to be done after.";

/// A backup and a database.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The backup
    file: PathBuf,
    /// The master's database: a SQLite file, or postgres://USER@HOST/DATABASE
    #[arg(long, value_name = "DATABASE", env = "WAVRY_MASTER_DATABASE")]
    database: Location,
    /// Cluster that the master is of
    #[arg(long, default_value = DEFAULT_CLUSTER)]
    cluster: ClusterName,
}

impl Args {
    async fn audit_key(&self) -> anyhow::Result<Arc<Key>> {
        let cluster = self.cluster.clone();
        let key = source::load("audit_key", None, |text| Key::read(text, cluster)).await?;
        Ok(Arc::new(key))
    }

    fn say(&self, summary: &backup::Summary) -> anyhow::Result<()> {
        let taken = i64::try_from(summary.taken).unwrap_or(i64::MAX);
        let taken = OffsetDateTime::from_unix_timestamp(taken)?.format(&Rfc3339)?;
        let (file, rows, epoch) = (self.file.display(), summary.rows, summary.epoch);
        let text = format!("{file}: {rows} rows, epoch {epoch}, taken {taken}");
        writeln!(std::io::stdout(), "{text}").context("standard output")
    }
}

/// Writes a backup.
pub(crate) async fn backup(args: &Args) -> anyhow::Result<()> {
    let (key, actor) = (args.audit_key().await?, process::user());
    let written = backup::backup(&args.database, key, &actor, &args.file).await;
    args.say(&written.with_context(|| format!("no backup of {}", args.database))?)
}

/// Makes a database from one.
pub(crate) async fn restore(args: &Args) -> anyhow::Result<()> {
    let (key, actor) = (args.audit_key().await?, process::user());
    let restored = backup::restore(&args.database, key, &actor, &args.file).await;
    args.say(&restored.with_context(|| format!("{} was not restored", args.database))?)
}
