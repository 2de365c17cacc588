//! The authorities of the cluster's own certificates: `wavry master authority`.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use wavry_credentials::{master::Ask, source};
use wavry_master::{
    authority,
    database::Location,
    operate::{AuthorityPage, AuthorityStatus},
};

use super::{Master, RotateArgs, say, say_json, say_table, shown_time};
use crate::{config, role, roles};

/// `wavry master authority`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum AuthorityCommand {
    /// Print the certificates that vouch for the master, as PEM: the ca_file of nodes and operators
    #[command(after_long_help = HELP)]
    Show(ShowArgs),
    /// List every authority there ever was, and until when each holds
    #[command(after_long_help = HELP)]
    List(Master),
    /// Have a new authority take the place of the one that signs
    #[command(after_long_help = HELP)]
    Rotate(RotateArgs),
}

const HELP: &str = "\
  wavry master authority show --config /etc/wavry/master.toml --out ca.pem    # beside the master

  export WAVRY_MASTER=https://master.example:8443 WAVRY_CA_FILE=ca.pem
  export WAVRY_OPERATOR_TOKEN_FILE=admin.token          # see `wavry token operator`
  wavry master authority list
  wavry master authority rotate --reason request
  wavry master authority rotate --reason compromise

A master with [master.authority] rotates it every year by itself. On request it does so now: nodes hear of
the new authority with the next roster, it signs after --wait, and the old one is trusted for --overlap
more, until all that it signed is over. Nothing is dropped, and nobody needs to do anything; replace the
ca_file of operators, and of nodes that are yet to come, within the year.

After a compromise the new authority signs at once, and no other is trusted: nodes that hear of it get new
certificates, and those that were away need the new ca_file.";

/// `wavry master authority show`.
#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    /// The master's configuration, which names its database
    #[arg(
        long,
        value_name = "FILE",
        env = "WAVRY_MASTER_CONFIG",
        conflicts_with = "database"
    )]
    config: Option<PathBuf>,
    /// The master's database; the master may be at work
    #[arg(long, value_name = "DATABASE", env = "WAVRY_MASTER_DATABASE")]
    database: Option<Location>,
    /// Write them to FILE, in the place of what is there
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Runs a command about authorities.
pub(crate) async fn authority(command: &AuthorityCommand) -> anyhow::Result<()> {
    match command {
        AuthorityCommand::Show(args) => show(args).await,
        AuthorityCommand::List(master) => {
            let page = |page: AuthorityPage| (page.authorities, page.next);
            let all = master.open().await?.all("/v1/authorities", page).await?;
            match master.json {
                true => say_json(&all),
                false => say_table(&HEADINGS, &all.iter().map(row).collect::<Vec<_>>()),
            }
        }
        AuthorityCommand::Rotate(args) => {
            let body = serde_json::to_vec(&args.request())?;
            let mut operator = args.master.open().await?;
            let ask = Ask::post("/v1/authorities/rotate", body);
            let made: AuthorityStatus = operator.ask(ask).await?;
            match args.master.json {
                true => say_json(&made),
                false => say_table(&HEADINGS, &[row(&made)]),
            }
        }
    }
}

async fn show(args: &ShowArgs) -> anyhow::Result<()> {
    let database = match (&args.config, &args.database) {
        (_, Some(database)) => database.clone(),
        (Some(file), None) => {
            let flags = config::Flags::default();
            let loaded = config::load::<roles::Master>(Some(file), role::environment(), &flags)?;
            loaded.role.database
        }
        (None, None) => bail!("give --config or --database"),
    };
    let trusted = authority::trusted(&database).await;
    let trusted = trusted.with_context(|| database.to_string())?;
    if trusted.is_empty() {
        bail!("{database} has no authority: its master has not run with [master.authority]");
    }
    match &args.out {
        Some(file) => Ok(source::write_public(file, trusted.as_bytes())?),
        None => say(trusted.trim_end()),
    }
}

const HEADINGS: [&str; 5] = ["AUTHORITY", "STATE", "SINCE", "UNTIL", "EXPIRES"];

fn row(authority: &AuthorityStatus) -> [String; 5] {
    [
        authority.hash.clone(),
        authority.state.clone(),
        shown_time(authority.since),
        authority.until.map(shown_time).unwrap_or_default(),
        shown_time(authority.not_after),
    ]
}
