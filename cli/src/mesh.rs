//! `wavry mesh`: nodes, the paths between them, flows and leases, what transit relays carry, and how long packets take to
//! each hop on a way.
//!
//! Which nodes there are, the master says; the rest each node tells by itself, at its ops listener ([`ask`]).

mod ask;
mod tables;

use std::{
    io::{IsTerminal as _, stdout},
    time::Duration,
};

use anyhow::Context as _;
use axum::http::StatusCode;
use wavry_proto::{id::NodeId, view};

use self::{ask::Nodes, tables::Tables};
use crate::operate::{self, Master};

/// `wavry mesh`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum MeshCommand {
    /// List the cluster's nodes as the master has them: where they are reached, where they forward
    Nodes {
        #[command(flatten)]
        master: Master,
        #[command(flatten)]
        shown: Watch,
    },
    /// Show the paths to peers: which one is in use, how each does, and when and why another one was taken
    Paths(Looked),
    /// Show the flows through transit relays that nodes keep ready, their leases, and what each relay said
    Flows(Looked),
    /// Show what transit relays carry and for whom, and what they drop
    Transit(Looked),
    /// Show at which transit relays nodes behind NAT have places, and where these see them
    Places(Looked),
    /// Measure how long packets take to each hop on the way to a peer, now
    Trace(TraceArgs),
}

/// A look at nodes.
#[derive(Debug, clap::Args)]
pub(crate) struct Looked {
    /// Only what is about this peer
    peer: Option<NodeId>,
    /// Peers, and claimants, of each node at most
    #[arg(long, value_name = "N", default_value_t = view::LIMIT)]
    limit: usize,
    #[command(flatten)]
    nodes: Nodes,
    /// Print JSON: an array of what each node answers
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    shown: Watch,
}

/// `wavry mesh trace`.
#[derive(Debug, clap::Args)]
#[group(id = "of", required = true, args = ["peer", "session"])]
pub(crate) struct TraceArgs {
    /// The node at the other end
    peer: Option<NodeId>,
    /// A session's number in the log of the node that is asked, in place of the peer
    #[arg(long, value_name = "ID")]
    session: Option<u64>,
    /// Trace the paths that stand by as well
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    nodes: Nodes,
    /// Print JSON: an array of what each node answers
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    shown: Watch,
}

/// Whether it is shown again and again.
#[derive(Debug, clap::Args)]
pub(crate) struct Watch {
    /// Show it again every so often, until Ctrl-C
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = wavry_proto::duration::parse,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "2s"
    )]
    watch: Option<Duration>,
}

/// Runs it.
pub(crate) async fn run(command: &MeshCommand) -> anyhow::Result<()> {
    match command {
        MeshCommand::Nodes { master, shown } => {
            shown
                .show(async || {
                    let nodes = operate::nodes(master).await?;
                    match master.is_json() {
                        true => operate::say_json(&nodes),
                        false => tables::nodes(&nodes),
                    }
                })
                .await
        }
        MeshCommand::Paths(looked) => looked.show(tables::paths).await,
        MeshCommand::Flows(looked) => looked.show(tables::flows).await,
        MeshCommand::Transit(looked) => looked.show(tables::transit).await,
        MeshCommand::Places(looked) => looked.show(tables::places).await,
        MeshCommand::Trace(args) => args.show().await,
    }
}

impl Looked {
    async fn show(&self, table: Tables) -> anyhow::Result<()> {
        let chosen = self.nodes.choose()?;
        let mut path = format!("{}?limit={}", view::MESH, self.limit);
        if let Some(peer) = &self.peer {
            path += &format!("&peer={peer}");
        }
        self.shown
            .show(async || {
                let nodes = chosen.ask::<view::Mesh>(&path, |_| false).await?;
                match self.json {
                    true => operate::say_json(&nodes),
                    false => table(&nodes),
                }
            })
            .await
    }
}

impl TraceArgs {
    async fn show(&self) -> anyhow::Result<()> {
        let chosen = self.nodes.choose()?;
        let of = match (&self.peer, self.session) {
            (Some(peer), _) => format!("peer={peer}"),
            (None, session) => {
                let session = session.context("a peer or a session is to be given")?;
                format!("session={session}")
            }
        };
        let path = format!("{}?{of}&all={}", view::TRACE, self.all);
        // Of several nodes, some may have nothing to do with the peer.
        let excuses = |status| status == StatusCode::NOT_FOUND;
        self.shown
            .show(async || {
                let traces = chosen.ask::<view::Trace>(&path, excuses).await?;
                match self.json {
                    true => operate::say_json(&traces),
                    false => tables::traces(&traces),
                }
            })
            .await
    }
}

impl Watch {
    /// Shows it once, or again and again. A failure ends that: whoever watches is to see it.
    async fn show(&self, show: impl AsyncFn() -> anyhow::Result<()>) -> anyhow::Result<()> {
        loop {
            if self.watch.is_some() && stdout().is_terminal() {
                // To the upper left corner, and all below is erased (ECMA-48: CUP, ED).
                operate::say("\x1b[H\x1b[J")?;
            }
            show().await?;
            match self.watch {
                None => return Ok(()),
                Some(pause) => tokio::time::sleep(pause).await,
            }
        }
    }
}
