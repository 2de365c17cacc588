//! What operators ask of a master: `wavry node`, `wavry token revoke`.

use std::{
    io::{self, Write as _},
    path::PathBuf,
};

use anyhow::Context as _;
use serde::{Serialize, de::DeserializeOwned};
use wavry_credentials::{
    bearer::Token,
    master::{Ask, Client, Connection},
    source,
};
use wavry_master::operate::{NodePage, NodeStatus, RevokeSubject, RevokedSubject};
use wavry_proto::id::{NodeId, ServiceName};

/// `wavry node`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum NodeCommand {
    /// List gateways and relays, and how they do
    List(Master),
    /// Show one node
    Show(NodeArgs),
    /// Take a node out of the cluster for good; its connections are closed everywhere
    Revoke(NodeArgs),
}

/// A command about one node.
#[derive(Debug, clap::Args)]
pub(crate) struct NodeArgs {
    /// Id of the node
    name: NodeId,
    #[command(flatten)]
    master: Master,
}

/// `wavry token revoke`.
#[derive(Debug, clap::Args)]
pub(crate) struct RevokeArgs {
    /// Whose session tokens shall hold no more, as the tokens name them (`sub`)
    #[arg(long)]
    subject: String,
    /// Only tokens for this service
    #[arg(long)]
    service: Option<ServiceName>,
    #[command(flatten)]
    master: Master,
}

/// Which master, and how its answer is shown.
#[derive(Debug, clap::Args)]
pub(crate) struct Master {
    /// The master: https://HOST:PORT
    #[arg(long, value_name = "URL", env = "WAVRY_MASTER")]
    master: String,
    /// PEM file of the authorities that vouch for the master
    #[arg(long, value_name = "FILE", env = "WAVRY_CA_FILE")]
    ca_file: PathBuf,
    /// Print JSON, as the master answers it
    #[arg(long)]
    json: bool,
}

/// Runs a command about nodes.
pub(crate) async fn node(command: &NodeCommand) -> anyhow::Result<()> {
    match command {
        NodeCommand::List(master) => {
            let nodes = master.open().await?.nodes().await?;
            match master.json {
                true => say_json(&nodes),
                false => say_table(&HEADINGS, &nodes.iter().map(row).collect::<Vec<_>>()),
            }
        }
        NodeCommand::Show(NodeArgs { name, master }) => {
            let path = format!("/v1/nodes/{name}");
            let node: NodeStatus = master.open().await?.ask(Ask::get(&path)).await?;
            match master.json {
                true => say_json(&node),
                false => say_table(&HEADINGS, &[row(&node)]),
            }
        }
        NodeCommand::Revoke(NodeArgs { name, master }) => {
            let path = format!("/v1/nodes/{name}/revoke");
            master
                .open()
                .await?
                .tell(Ask::post(&path, Vec::new()))
                .await?;
            match master.json {
                true => say_json(&serde_json::json!({ "revoked": name })),
                false => say(&format!("{name} is revoked")),
            }
        }
    }
}

/// Revokes the session tokens of a subject.
pub(crate) async fn revoke(args: &RevokeArgs) -> anyhow::Result<()> {
    let request = RevokeSubject {
        subject: args.subject.clone(),
        service: args.service.as_ref().map(ToString::to_string),
    };
    let body = serde_json::to_vec(&request)?;
    let mut operator = args.master.open().await?;
    let revoked: RevokedSubject = operator.ask(Ask::post("/v1/revocations", body)).await?;
    if args.master.json {
        return say_json(&revoked);
    }
    let of = revoked.service.map_or_else(
        || "for any service".to_owned(),
        |service| format!("for {service}"),
    );
    say(&format!(
        "session tokens {of} hold no more if they were issued up to {} (30 s from the revocation)",
        revoked.through
    ))
}

/// A connection to the master, and the token of who asks.
struct Operator {
    connection: Connection,
    authorization: String,
}

impl Master {
    /// Connects with the secret `operator_token`.
    async fn open(&self) -> anyhow::Result<Operator> {
        let token = Token::read(&source::read("operator_token")?);
        let token = token.context("secret operator_token")?;
        let client = Client::new(&self.master, &self.ca_file)?;
        Ok(Operator {
            connection: client.connect().await?,
            authorization: token.authorization(),
        })
    }
}

impl Operator {
    async fn tell(&mut self, mut ask: Ask<'_>) -> anyhow::Result<Vec<u8>> {
        ask.authorization = Some(&self.authorization);
        Ok(self.connection.ask(ask).await?.body.to_vec())
    }

    async fn ask<T: DeserializeOwned>(&mut self, ask: Ask<'_>) -> anyhow::Result<T> {
        let body = self.tell(ask).await?;
        // What does not parse may be long, and an error would show it.
        serde_json::from_slice(&body).map_err(|_| anyhow::anyhow!("the master's answer is not one"))
    }

    /// Every page of the nodes.
    async fn nodes(&mut self) -> anyhow::Result<Vec<NodeStatus>> {
        let mut nodes = Vec::new();
        let mut path = "/v1/nodes".to_owned();
        loop {
            let page: NodePage = self.ask(Ask::get(&path)).await?;
            nodes.extend(page.nodes);
            match page.next {
                Some(after) => path = format!("/v1/nodes?after={after}"),
                None => return Ok(nodes),
            }
        }
    }
}

const HEADINGS: [&str; 7] = [
    "ID", "ROLE", "STATE", "HEARD", "SESSIONS", "VERSION", "SERVICES",
];

fn row(node: &NodeStatus) -> [String; 7] {
    [
        node.id.clone(),
        node.role.clone(),
        node.state.clone(),
        format!("{}s ago", node.heard_seconds_ago),
        node.sessions.to_string(),
        node.version.clone(),
        node.services.join(","),
    ]
}

/// Prints columns as wide as what is in them.
fn say_table<const N: usize>(headings: &[&str; N], rows: &[[String; N]]) -> anyhow::Result<()> {
    let widths: [usize; N] = std::array::from_fn(|column| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.fold(headings[column].len(), usize::max)
    });
    let line = |cells: [&str; N]| {
        let padded = cells.iter().zip(widths);
        let padded: Vec<_> = padded
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        padded.join("  ").trim_end().to_owned()
    };
    say(&line(*headings))?;
    rows.iter()
        .try_for_each(|row| say(&line(row.each_ref().map(String::as_str))))
}

fn say_json(value: &impl Serialize) -> anyhow::Result<()> {
    say(&serde_json::to_string_pretty(value)?)
}

fn say(text: &str) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{text}").context("standard output")
}
