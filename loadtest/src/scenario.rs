//! What can be run: `wavry loadtest NAME`.

mod datagrams;
mod echo;
mod stall;
mod transfer;

use crate::{Error, Report, target};

/// A scenario and its arguments.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Scenario {
    /// Round trips and throughput through gateway and relay, beside bare QUIC
    Echo(echo::Args),
    /// Throughput of one session beside others that never read
    Stall(stall::Args),
    /// Bytes in many streams at once, each byte checked when it comes back
    Transfer(transfer::Args),
    /// Datagrams at a steady rate, every loss accounted for
    Datagrams(datagrams::Args),
}

/// What every scenario takes.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Common {
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: target::Args,
}

impl Scenario {
    pub(crate) fn json(&self) -> bool {
        match self {
            Self::Echo(args) => args.common.json,
            Self::Stall(args) => args.common.json,
            Self::Transfer(args) => args.common.json,
            Self::Datagrams(args) => args.common.json,
        }
    }

    pub(crate) async fn run(&self) -> Result<Report, Error> {
        match self {
            Self::Echo(args) => echo::run(args).await,
            Self::Stall(args) => stall::run(args).await,
            Self::Transfer(args) => transfer::run(args).await,
            Self::Datagrams(args) => datagrams::run(args).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Subcommand as _;

    use super::*;

    #[test]
    fn the_arguments_of_every_scenario_fit_together() {
        Scenario::augment_subcommands(clap::Command::new("loadtest")).debug_assert();
    }
}
