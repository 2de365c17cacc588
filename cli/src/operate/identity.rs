//! Identities of nodes: `wavry relay identity`, `wavry gateway identity`.

use std::time::Duration;

use anyhow::bail;
use tokio::time::{Instant, sleep};
use wavry_credentials::master::Ask;
use wavry_master::operate::{IdentityStatus, NodeStatus};
use wavry_proto::{control::Role, id::NodeId};

use super::{KEY_HEADINGS, Master, Operator, say, say_json, say_table, shown_time};

/// `wavry relay identity`, `wavry gateway identity`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum IdentityCommand {
    /// Show the identities that the master knows of a node, and where in their lives they are
    #[command(after_long_help = HELP)]
    Show(ShowArgs),
    /// Have a node make another identity and show it, without dropping a session
    #[command(after_long_help = HELP)]
    Rotate(RotateArgs),
}

/// `identity show`.
#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    /// Id of the node
    name: NodeId,
    #[command(flatten)]
    master: Master,
}

/// `identity rotate`.
#[derive(Debug, clap::Args)]
pub(crate) struct RotateArgs {
    /// Id of the node
    name: NodeId,
    /// Wait until the new identity is shown, at most for so long: 30s, 5m
    #[arg(long, value_name = "DURATION", value_parser = wavry_proto::duration::parse)]
    wait: Option<Duration>,
    #[command(flatten)]
    master: Master,
}

const HELP: &str = "\
  export WAVRY_MASTER=https://master.example:8443 WAVRY_CA_FILE=ca.crt
  export WAVRY_OPERATOR_TOKEN_FILE=operator.token       # see `wavry token operator`
  wavry relay identity show edge-1
  wavry relay identity rotate edge-1 --wait 1m

A gateway or relay rotates its identity by itself (identity_lifetime, 30 days unless set). On request it
does so now: with its next heartbeat it makes a key, has the master list it beside the present one, and
shows it once every other node knows it; a node that is silent is waited for, at most a day (identity_wait).
The one before is accepted for an hour more (identity_overlap), and refused afterwards. Live sessions stay.

That is not for a key that somebody else may have: revoke the node (`wavry node revoke`).";

/// How often the master is asked whether it is done.
const LOOK: Duration = Duration::from_millis(500);

/// Runs a command about the identity of a node that is to be a `role`.
pub(crate) async fn identity(role: Role, command: &IdentityCommand) -> anyhow::Result<()> {
    match command {
        IdentityCommand::Show(ShowArgs { name, master }) => {
            let node = master.open().await?.node_as(role, name).await?;
            master.show_identities(&node)
        }
        IdentityCommand::Rotate(RotateArgs { name, wait, master }) => {
            let mut operator = master.open().await?;
            let before = operator.node_as(role, name).await?;
            let path = format!("/v1/nodes/{name}/rotate");
            let mut node: NodeStatus = operator.ask(Ask::post(&path, Vec::new())).await?;
            let Some(limit) = wait else {
                return master.show_ordered(&node);
            };
            let deadline = Instant::now() + *limit;
            while present(&node) == present(&before) {
                if Instant::now() >= deadline {
                    bail!(
                        "{name} did not show a new identity within the time of --wait; it still may"
                    );
                }
                sleep(LOOK).await;
                node = operator.node_as(role, name).await?;
            }
            master.show_identities(&node)
        }
    }
}

fn present(node: &NodeStatus) -> Option<&str> {
    let mut identities = node.identities.iter();
    let present = identities.find(|identity| identity.state == "present");
    present.map(|identity| identity.key.as_str())
}

impl Operator {
    /// A node, which must be of this role.
    async fn node_as(&mut self, role: Role, name: &NodeId) -> anyhow::Result<NodeStatus> {
        let path = format!("/v1/nodes/{name}");
        let node: NodeStatus = self.ask(Ask::get(&path)).await?;
        if node.role != role.as_str() {
            bail!(
                "{name} is a {}: use `wavry {} identity`",
                node.role,
                node.role
            );
        }
        Ok(node)
    }
}

impl Master {
    fn show_ordered(&self, node: &NodeStatus) -> anyhow::Result<()> {
        match self.json {
            true => say_json(node),
            false => say(&format!("{} is told with its next heartbeat", node.id)),
        }
    }

    fn show_identities(&self, node: &NodeStatus) -> anyhow::Result<()> {
        match self.json {
            true => say_json(node),
            false => {
                let rows: Vec<_> = node.identities.iter().map(row).collect();
                say_table(&KEY_HEADINGS, &rows)
            }
        }
    }
}

fn row(identity: &IdentityStatus) -> [String; 4] {
    [
        identity.key.clone(),
        identity.state.clone(),
        match identity.since {
            0 => String::new(),
            since => shown_time(since),
        },
        identity.until.map(shown_time).unwrap_or_default(),
    ]
}
