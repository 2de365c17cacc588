//! The roles of this binary: for each its table, its flags, and how it is started and run.

use std::{
    convert::Infallible,
    future::{Future, pending},
    net::SocketAddr,
    path::PathBuf,
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wavry_credentials::source::Finding;
use wavry_master::keyvault;
use wavry_proto::config::Invalid;
use wavry_transport::mesh::Viewer;

use crate::{
    backup,
    config::{Flags, Table},
    operate,
    ops::Ready,
    role::{Args, Role},
};

macro_rules! role {
    ($role:ident, $crate_name:ident, $name:literal, ops $ops:literal) => {
        #[doc = concat!("Role `", $name, "`.")]
        pub(crate) struct $role;

        impl Table for $role {
            const NAME: &'static str = $name;
            const OPS: &'static str = $ops;
            type Raw = $crate_name::config::Raw;
            type Config = $crate_name::Config;

            fn validate(raw: Self::Raw) -> Result<Self::Config, Invalid> {
                raw.try_into()
            }
        }
    };
}

role!(Master, wavry_master, "master", ops "127.0.0.1:9640");
role!(Gateway, wavry_gateway, "gateway", ops "127.0.0.1:9641");
role!(Relay, wavry_relay, "relay", ops "127.0.0.1:9642");

/// Role `keyvault`.
pub(crate) struct KeyVault;

impl Table for KeyVault {
    const NAME: &'static str = "keyvault";
    const OPS: &'static str = "127.0.0.1:9643";
    type Raw = keyvault::config::Raw;
    type Config = keyvault::config::Standalone;

    fn validate(raw: Self::Raw) -> Result<Self::Config, Invalid> {
        raw.try_into()
    }
}

impl Role for KeyVault {
    type Running = keyvault::Standalone;

    fn describe_metrics() {
        wavry_master::describe_keyvault_metrics();
    }

    async fn check(config: &Self::Config) -> Vec<Finding> {
        wavry_master::check_keyvault(config).await
    }

    async fn start(config: Self::Config) -> anyhow::Result<Self::Running> {
        Ok(keyvault::Standalone::start(config).await?)
    }

    fn address(running: &Self::Running) -> SocketAddr {
        running.local_addr()
    }

    async fn run(running: Self::Running, shutdown: CancellationToken) -> anyhow::Result<()> {
        running.run(shutdown).await;
        Ok(())
    }
}

impl Role for Master {
    type Running = wavry_master::Master;

    fn describe_metrics() {
        wavry_master::describe_metrics();
    }

    async fn check(config: &Self::Config) -> Vec<Finding> {
        wavry_master::check(config).await
    }

    async fn start(config: Self::Config) -> anyhow::Result<Self::Running> {
        Ok(wavry_master::Master::start(config).await?)
    }

    fn address(running: &Self::Running) -> SocketAddr {
        running.local_addr()
    }

    fn keep_ready(
        running: &Self::Running,
        ready: Ready,
    ) -> impl Future<Output = Infallible> + Send + use<> {
        ready_while(ready, running.is_current(), |is_current| *is_current)
    }

    async fn run(running: Self::Running, shutdown: CancellationToken) -> anyhow::Result<()> {
        running.run(shutdown).await;
        Ok(())
    }
}

impl Role for Gateway {
    type Running = wavry_gateway::Gateway;

    fn describe_metrics() {
        wavry_gateway::describe_metrics();
    }

    async fn check(config: &Self::Config) -> Vec<Finding> {
        wavry_gateway::check(config).await
    }

    async fn start(config: Self::Config) -> anyhow::Result<Self::Running> {
        Ok(wavry_gateway::Gateway::start(config).await?)
    }

    fn address(running: &Self::Running) -> SocketAddr {
        running.local_addr()
    }

    fn keep_ready(
        running: &Self::Running,
        ready: Ready,
    ) -> impl Future<Output = Infallible> + Send + use<> {
        ready_while(ready, running.roster(), |roster| !roster.is_empty())
    }

    fn viewer(running: &Self::Running) -> Option<Viewer> {
        Some(running.viewer())
    }

    async fn run(running: Self::Running, shutdown: CancellationToken) -> anyhow::Result<()> {
        Ok(running.run(shutdown).await?)
    }
}

impl Role for Relay {
    type Running = wavry_relay::Relay;

    fn describe_metrics() {
        wavry_relay::describe_metrics();
    }

    async fn check(config: &Self::Config) -> Vec<Finding> {
        wavry_relay::check(config).await
    }

    async fn start(config: Self::Config) -> anyhow::Result<Self::Running> {
        Ok(wavry_relay::Relay::start(config).await?)
    }

    fn address(running: &Self::Running) -> SocketAddr {
        running.local_addr()
    }

    fn keep_ready(
        running: &Self::Running,
        ready: Ready,
    ) -> impl Future<Output = Infallible> + Send + use<> {
        ready_while(ready, running.roster(), |roster| !roster.is_empty())
    }

    fn viewer(running: &Self::Running) -> Option<Viewer> {
        Some(running.viewer())
    }

    async fn run(running: Self::Running, shutdown: CancellationToken) -> anyhow::Result<()> {
        Ok(running.run(shutdown).await?)
    }
}

/// Keeps `ready` what `takes_work` says of each state that a role tells of.
async fn ready_while<T>(
    ready: Ready,
    mut state: watch::Receiver<T>,
    takes_work: impl Fn(&T) -> bool,
) -> Infallible {
    loop {
        ready.set(takes_work(&state.borrow_and_update()));
        if state.changed().await.is_err() {
            // The role has ended.
            pending::<()>().await;
        }
    }
}

/// `wavry master`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct MasterArgs {
    #[command(subcommand)]
    pub(crate) command: Option<MasterCommand>,
    #[command(flatten)]
    pub(crate) role: Args,
    /// TCP address of the HTTPS listener; overrides master.listen
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// SQLite file, or postgres://USER@HOST/DATABASE; overrides master.database
    #[arg(long, value_name = "DATABASE")]
    database: Option<String>,
    /// PEM file with the certificate chain; overrides master.certificate
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
}

/// What is asked of a master that runs, or of its database.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum MasterCommand {
    /// The key that signs tokens and rosters, as `wavry key` has it
    #[command(subcommand)]
    Key(MasterKey),
    /// Who signs the certificates of masters and nodes
    #[command(subcommand)]
    Authority(operate::AuthorityCommand),
    /// Write all that a master remembers to a new file; masters may be at work
    #[command(after_long_help = backup::HELP)]
    Backup(backup::Args),
    /// Make an empty database from a backup, before a master starts on it
    #[command(after_long_help = backup::HELP)]
    Restore(backup::Args),
}

/// `wavry master key`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum MasterKey {
    /// Have a new key take the place of the one that signs
    Rotate(operate::RotateArgs),
}

impl MasterArgs {
    pub(crate) fn flags(&self) -> Flags {
        let mut flags = self.role.flags();
        flags.set("master.listen", "--listen", self.listen.clone());
        flags.set("master.database", "--database", self.database.clone());
        flags.set(
            "master.certificate",
            "--certificate",
            text(&self.certificate),
        );
        flags
    }
}

/// `wavry keyvault`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct KeyVaultArgs {
    #[command(subcommand)]
    pub(crate) command: Option<NodeCommand>,
    #[command(flatten)]
    pub(crate) role: Args,
    /// TCP address of the HTTPS listener; overrides keyvault.listen
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// SQLite file, or postgres://USER@HOST/DATABASE; overrides keyvault.database
    #[arg(long, value_name = "DATABASE")]
    database: Option<String>,
    /// PEM file with the certificate chain; overrides keyvault.certificate
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
    /// Take a store for current that is older than one seen before: a restored backup. Audited
    #[arg(long)]
    accept_rollback: bool,
    #[command(flatten)]
    node: NodeArgs,
}

impl KeyVaultArgs {
    pub(crate) fn flags(&self) -> Flags {
        let mut flags = self.role.flags();
        flags.set("keyvault.listen", "--listen", self.listen.clone());
        flags.set("keyvault.database", "--database", self.database.clone());
        flags.set(
            "keyvault.certificate",
            "--certificate",
            text(&self.certificate),
        );
        flags.set(
            "keyvault.accept_rollback",
            "--accept-rollback",
            self.accept_rollback.then_some(true),
        );
        self.node.add(KeyVault::NAME, &mut flags);
        flags
    }
}

/// What is asked of a master about a node that runs.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum NodeCommand {
    /// The key by which a node is known
    #[command(subcommand)]
    Identity(operate::IdentityCommand),
}

/// Flags of what registers with a master.
#[derive(Debug, clap::Args)]
pub(crate) struct NodeArgs {
    /// The master, https://HOST:PORT; overrides the key `master`
    #[arg(long, value_name = "URL")]
    master: Option<String>,
    /// PEM file of the authorities that vouch for the master; overrides ca_file
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Directory for what registration gave; overrides state_dir
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

impl NodeArgs {
    fn add(&self, table: &str, flags: &mut Flags) {
        flags.set(format!("{table}.master"), "--master", self.master.clone());
        flags.set(format!("{table}.ca_file"), "--ca-file", text(&self.ca_file));
        flags.set(
            format!("{table}.state_dir"),
            "--state-dir",
            text(&self.state_dir),
        );
    }
}

/// `wavry gateway`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct GatewayArgs {
    #[command(subcommand)]
    pub(crate) command: Option<NodeCommand>,
    #[command(flatten)]
    pub(crate) role: Args,
    /// UDP address at which clients connect; overrides gateway.listen
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// PEM file with the certificate chain; overrides gateway.certificate
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
    #[command(flatten)]
    node: NodeArgs,
}

impl GatewayArgs {
    pub(crate) fn flags(&self) -> Flags {
        let mut flags = self.role.flags();
        flags.set("gateway.listen", "--listen", self.listen.clone());
        flags.set(
            "gateway.certificate",
            "--certificate",
            text(&self.certificate),
        );
        self.node.add(Gateway::NAME, &mut flags);
        flags
    }
}

/// `wavry relay`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct RelayArgs {
    #[command(subcommand)]
    pub(crate) command: Option<NodeCommand>,
    #[command(flatten)]
    pub(crate) role: Args,
    /// UDP address at which gateways connect; overrides relay.mesh_listen
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    #[command(flatten)]
    node: NodeArgs,
}

impl RelayArgs {
    pub(crate) fn flags(&self) -> Flags {
        let mut flags = self.role.flags();
        flags.set("relay.mesh_listen", "--listen", self.listen.clone());
        self.node.add(Relay::NAME, &mut flags);
        flags
    }
}

fn text(path: &Option<PathBuf>) -> Option<String> {
    path.as_ref()
        .map(|path| path.to_string_lossy().into_owned())
}
