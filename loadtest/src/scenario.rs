//! What can be run: `wavry loadtest NAME`.

mod datagrams;
mod echo;
mod idle;
mod keyvault;
mod mesh;
pub(crate) mod servers;
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
    /// Memory that idle sessions keep on every node
    Idle(idle::Args),
    /// A herd of units at a KeyVault, and audited reads without pause
    Keyvault(keyvault::Args),
    /// Sessions of a mesh whose paths die, change and lose, on a shaped network
    Mesh(mesh::Args),
    /// One of the relays of `mesh`
    #[command(hide = true)]
    TransitRelay(crate::mesh::RelayArgs),
    /// The session layer beside bare quinn and other libraries, as servers
    Servers(servers::Args),
    /// One of the servers that `servers` compares
    #[command(hide = true)]
    Server(servers::ServerArgs),
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
            Self::Idle(args) => args.common.json,
            Self::Keyvault(args) => args.json,
            Self::Mesh(args) => args.json,
            Self::Servers(args) => args.json,
            Self::Server(_) | Self::TransitRelay(_) => false,
        }
    }

    /// `None` for what ends in no report.
    pub(crate) async fn run(&self) -> Result<Option<Report>, Error> {
        let report = match self {
            Self::Echo(args) => echo::run(args).await,
            Self::Stall(args) => stall::run(args).await,
            Self::Transfer(args) => transfer::run(args).await,
            Self::Datagrams(args) => datagrams::run(args).await,
            Self::Idle(args) => idle::run(args).await,
            Self::Keyvault(args) => keyvault::run(args).await,
            Self::Mesh(args) => mesh::run(args).await,
            Self::TransitRelay(args) => return crate::mesh::serve(args).await.map(|()| None),
            Self::Servers(args) => servers::run(args).await,
            Self::Server(args) => return servers::serve(args).await.map(|()| None),
        };
        report.map(Some)
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
