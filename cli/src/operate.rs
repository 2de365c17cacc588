//! What operators ask of a master: `wavry node`, `wavry token revoke`, `wavry key list` and `rotate`,
//! `wavry relay identity`.

mod authority;
mod identity;
mod token;

use std::{
    io::{self, Write as _},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde::{Serialize, de::DeserializeOwned};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use wavry_credentials::{
    bearer::Token,
    master::{Ask, Client, Connection, Failure},
    random, source,
};
use wavry_master::operate::{
    KeyPage, KeyStatus, NodePage, NodeStatus, PlaceNode, RevokeSubject, RevokedSubject, RotateKey,
    ServicePage, ServiceSpec, ServiceStatus,
};
use wavry_proto::{
    id::{NodeId, RegionName, ServiceName},
    placement::Weight,
};

use crate::log::complain;

pub(crate) use authority::{AuthorityCommand, authority};
pub(crate) use identity::{IdentityCommand, identity};
pub(crate) use token::{IssueCommand, issue};

/// `wavry node`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum NodeCommand {
    /// List gateways and relays, and how they do
    List(Master),
    /// Show one node
    Show(NodeArgs),
    /// Change a node's region or weight, or what its flows may carry
    Set(PlaceArgs),
    /// Have no lease of a node's flows hold that was signed until now
    RevokeLeases(NodeArgs),
    /// Take a node out of the cluster for good; its connections are closed everywhere
    Revoke(NodeArgs),
}

/// `wavry node set`.
#[derive(Debug, clap::Args)]
#[group(id = "place", required = true, multiple = true, args = [
    "region", "no_region", "weight", "flow_bits", "flow_packets", "default_flow_rates",
])]
pub(crate) struct PlaceArgs {
    /// Id of the node
    name: NodeId,
    /// Region that the node is in; gateways prefer relays in their own
    #[arg(long, value_name = "REGION", conflicts_with = "no_region")]
    region: Option<RegionName>,
    /// The node is in no region
    #[arg(long)]
    no_region: bool,
    /// Share of sessions that a relay is to take beside others for the same service, and of others' flows: 1 to 1000
    #[arg(long, value_name = "N")]
    weight: Option<Weight>,
    /// Bits a second that each of its flows through transit relays may carry
    #[arg(long, value_name = "N")]
    flow_bits: Option<u64>,
    /// Packets a second that each of them may carry
    #[arg(long, value_name = "N")]
    flow_packets: Option<u64>,
    /// They may carry what the master's configuration says
    #[arg(long, conflicts_with_all = ["flow_bits", "flow_packets"])]
    default_flow_rates: bool,
    #[command(flatten)]
    master: Master,
}

impl PlaceArgs {
    /// What a rate is to be, if it is to be another.
    fn flow_rate(&self, given: Option<u64>) -> Option<Option<u64>> {
        (self.default_flow_rates || given.is_some()).then_some(given)
    }
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

/// `wavry service`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum ServiceCommand {
    /// List services, and the relays that are an exit for each
    List(Master),
    /// Show one service, as JSON
    Show(ServiceArgs),
    /// Make a service, or make it what is given; what is not given is as for a new one
    Set(SetArgs),
    /// Take a service away; sessions that its owner's keys opened end, other live ones go on
    Delete(ServiceArgs),
}

/// A command about one service.
#[derive(Debug, clap::Args)]
pub(crate) struct ServiceArgs {
    /// Name of the service
    name: ServiceName,
    #[command(flatten)]
    master: Master,
}

/// `wavry service set`.
#[derive(Debug, clap::Args)]
pub(crate) struct SetArgs {
    /// Name of the service; the first path segment that routes to it
    name: ServiceName,
    /// Host that belongs to it with its whole path; may be given several times
    #[arg(long = "host", value_name = "HOST")]
    hosts: Vec<String>,
    /// Who may connect: token or public
    #[arg(long, default_value = "token")]
    access: String,
    /// Origin a browser may connect from, or *; may be given several times
    #[arg(long = "origin", value_name = "ORIGIN")]
    origins: Vec<String>,
    /// Most sessions at once on one gateway
    #[arg(long, value_name = "N")]
    max_sessions: Option<u32>,
    /// How clients are told of a refusal: status or close
    #[arg(long, default_value = "status", value_name = "HOW")]
    refuse_with: String,
    /// Public key (PASERK k4.public) of the owner, who signs session tokens for this service; may be
    /// given several times
    #[arg(long = "key", value_name = "PASERK")]
    keys: Vec<String>,
    #[command(flatten)]
    master: Master,
}

/// `wavry key rotate` and `wavry master authority rotate`.
#[derive(Debug, clap::Args)]
pub(crate) struct RotateArgs {
    /// Why: in turn (request), or because somebody else may hold its key (compromise)
    #[arg(long)]
    reason: Reason,
    /// How long the new one is published before it signs; as the master has it if not given
    #[arg(long, value_parser = wavry_proto::duration::parse)]
    wait: Option<Duration>,
    /// How long the old one is accepted afterwards; as the master has it if not given
    #[arg(long, value_parser = wavry_proto::duration::parse)]
    overlap: Option<Duration>,
    #[command(flatten)]
    master: Master,
}

/// Why a key is rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Reason {
    /// Publish, wait, sign, accept the old one for a while
    Request,
    /// The new one signs at once; nothing that others signed holds any more
    Compromise,
}

impl RotateArgs {
    fn request(&self) -> RotateKey {
        let seconds = |given: Option<Duration>| given.map(|duration| duration.as_secs());
        RotateKey {
            reason: match self.reason {
                Reason::Request => "request".to_owned(),
                Reason::Compromise => "compromise".to_owned(),
            },
            wait_seconds: seconds(self.wait),
            overlap_seconds: seconds(self.overlap),
        }
    }
}

/// Which master, and how its answer is shown.
#[derive(Debug, clap::Args)]
pub(crate) struct Master {
    /// The master: https://HOST:PORT, or several with commas between them
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
            let nodes = nodes(master).await?;
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
        NodeCommand::Set(args) => {
            let path = format!("/v1/nodes/{}", args.name);
            let region = args.region.as_ref().map(ToString::to_string);
            let place = PlaceNode {
                region: (args.no_region || region.is_some()).then_some(region),
                weight: args.weight.map(Weight::get),
                flow_bits_per_second: args.flow_rate(args.flow_bits),
                flow_packets_per_second: args.flow_rate(args.flow_packets),
            };
            let patch = Ask::patch(&path, serde_json::to_vec(&place)?);
            let node: NodeStatus = args.master.open().await?.ask(patch).await?;
            match args.master.json {
                true => say_json(&node),
                false => say_table(&HEADINGS, &[row(&node)]),
            }
        }
        NodeCommand::RevokeLeases(NodeArgs { name, master }) => {
            let path = format!("/v1/nodes/{name}/leases/revoke");
            let mut operator = master.open().await?;
            operator.tell(Ask::post(&path, Vec::new())).await?;
            match master.json {
                true => say_json(&serde_json::json!({ "leases_revoked": name })),
                false => say(&format!(
                    "no lease of {name} holds that was signed until now"
                )),
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

/// All nodes that the master has.
pub(crate) async fn nodes(master: &Master) -> anyhow::Result<Vec<NodeStatus>> {
    let page = |page: NodePage| (page.nodes, page.next);
    master.open().await?.all("/v1/nodes", page).await
}

/// Runs a command about services.
pub(crate) async fn service(command: &ServiceCommand) -> anyhow::Result<()> {
    match command {
        ServiceCommand::List(master) => {
            let page = |page: ServicePage| (page.services, page.next);
            let services = master.open().await?.all("/v1/services", page).await?;
            match master.json {
                true => say_json(&services),
                false => {
                    let rows: Vec<_> = services.iter().map(service_row).collect();
                    say_table(&SERVICE_HEADINGS, &rows)
                }
            }
        }
        ServiceCommand::Show(ServiceArgs { name, master }) => {
            let path = format!("/v1/services/{name}");
            let service: ServiceStatus = master.open().await?.ask(Ask::get(&path)).await?;
            say_json(&service)
        }
        ServiceCommand::Set(args) => {
            let path = format!("/v1/services/{}", args.name);
            let spec = ServiceSpec {
                hosts: args.hosts.clone(),
                access: Some(args.access.clone()),
                allowed_origins: args.origins.clone(),
                max_sessions: args.max_sessions,
                refuse_with: Some(args.refuse_with.clone()),
                keys: args.keys.clone(),
            };
            let put = Ask::put(&path, serde_json::to_vec(&spec)?);
            let service: ServiceStatus = args.master.open().await?.ask(put).await?;
            match args.master.json {
                true => say_json(&service),
                false => say_table(&SERVICE_HEADINGS, &[service_row(&service)]),
            }
        }
        ServiceCommand::Delete(ServiceArgs { name, master }) => {
            let path = format!("/v1/services/{name}");
            master.open().await?.tell(Ask::delete(&path)).await?;
            match master.json {
                true => say_json(&serde_json::json!({ "deleted": name })),
                false => say(&format!("{name} is gone")),
            }
        }
    }
}

const SERVICE_HEADINGS: [&str; 5] = ["NAME", "ACCESS", "HOSTS", "ORIGINS", "EXITS"];

fn service_row(service: &ServiceStatus) -> [String; 5] {
    [
        service.name.clone(),
        service.spec.access.clone().unwrap_or_default(),
        service.spec.hosts.join(","),
        service.spec.allowed_origins.join(","),
        service.exits.join(","),
    ]
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

/// Lists the keys that sign.
pub(crate) async fn keys(master: &Master) -> anyhow::Result<()> {
    let page = |page: KeyPage| (page.keys, page.next);
    let keys = master.open().await?.all("/v1/keys", page).await?;
    match master.json {
        true => say_json(&keys),
        false => {
            let rows: Vec<_> = keys.iter().map(key_row).collect();
            say_table(&KEY_HEADINGS, &rows)
        }
    }
}

/// Has a new key take the place of the one that signs.
pub(crate) async fn rotate(args: &RotateArgs) -> anyhow::Result<()> {
    let body = serde_json::to_vec(&args.request())?;
    let mut operator = args.master.open().await?;
    let key: KeyStatus = operator.ask(Ask::post("/v1/keys/rotate", body)).await?;
    match args.master.json {
        true => say_json(&key),
        false => say_table(&KEY_HEADINGS, &[key_row(&key)]),
    }
}

const KEY_HEADINGS: [&str; 4] = ["KEY", "STATE", "SINCE", "UNTIL"];

fn key_row(key: &KeyStatus) -> [String; 4] {
    [
        key.kid.clone(),
        key.state.clone(),
        shown_time(key.since),
        key.until.map(shown_time).unwrap_or_default(),
    ]
}

/// Seconds since the Unix epoch, as people read them; nothing where that is no time.
pub(crate) fn shown_time(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok();
    let time = time.and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
    time.and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_default()
}

/// A way to the master, and the token of who asks.
struct Operator {
    client: Client,
    /// None after it broke.
    connection: Option<Connection>,
    authorization: String,
}

/// How long a request is sent again whose answer was lost, or that the master could not serve for the moment:
/// about as long as a master takes to start.
const PATIENCE: Duration = Duration::from_secs(15);
/// Pause before it is sent again, at first; then twice as long each time.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

impl Master {
    /// Whether JSON is to be printed.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Connects with the secret `operator_token`.
    async fn open(&self) -> anyhow::Result<Operator> {
        let token = Token::read(&source::read("operator_token")?);
        let token = token.context("secret operator_token")?;
        let client = Client::new(&self.master, &self.ca_file)?;
        Ok(Operator {
            connection: Some(client.connect().await?),
            client,
            authorization: token.authorization(),
        })
    }
}

impl Operator {
    /// Sends a request, and sends it again while it is in doubt whether it was carried out. It bears one key,
    /// so that it is carried out once.
    async fn tell(&mut self, mut ask: Ask<'_>) -> anyhow::Result<Vec<u8>> {
        let authorization = self.authorization.clone();
        let key = format!("{:032x}", u128::from_be_bytes(random::bytes()));
        ask.authorization = Some(&authorization);
        ask.idempotency_key = (!ask.method.is_safe()).then_some(&*key);
        let until = Instant::now() + PATIENCE;
        let mut pause = PAUSE;
        loop {
            match self.attempt(ask.clone()).await {
                Ok(body) => return Ok(body),
                Err(failure) if failure.is_in_doubt() && Instant::now() + pause < until => {
                    complain(&format!("wavry: {failure}; trying again"));
                }
                Err(failure) => return Err(failure.into()),
            }
            tokio::time::sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    async fn attempt(&mut self, ask: Ask<'_>) -> Result<Vec<u8>, Failure> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.client.connect().await?,
        };
        let answer = connection.ask(ask).await;
        match &answer {
            Err(failure) if failure.is_in_doubt() => self.client.go_on_from(&connection),
            _ => self.connection = Some(connection),
        }
        Ok(answer?.body.to_vec())
    }

    async fn ask<T: DeserializeOwned>(&mut self, ask: Ask<'_>) -> anyhow::Result<T> {
        let body = self.tell(ask).await?;
        // What does not parse may be long, and an error would show it.
        serde_json::from_slice(&body).map_err(|_| anyhow::anyhow!("the master's answer is not one"))
    }

    /// What all pages of a list have; `open` gives what one has, and what is next.
    async fn all<Page: DeserializeOwned, T>(
        &mut self,
        list: &str,
        open: impl Fn(Page) -> (Vec<T>, Option<String>),
    ) -> anyhow::Result<Vec<T>> {
        let mut all = Vec::new();
        let mut path = list.to_owned();
        loop {
            let (page, next) = open(self.ask(Ask::get(&path)).await?);
            all.extend(page);
            match next {
                Some(after) => path = format!("{list}?after={after}"),
                None => return Ok(all),
            }
        }
    }
}

const HEADINGS: [&str; 9] = [
    "ID", "ROLE", "STATE", "HEARD", "REGION", "WEIGHT", "SESSIONS", "VERSION", "SERVICES",
];

fn row(node: &NodeStatus) -> [String; 9] {
    [
        node.id.clone(),
        node.role.clone(),
        node.state.clone(),
        format!("{}s ago", node.heard_seconds_ago),
        node.region.clone().unwrap_or_default(),
        node.weight.to_string(),
        node.sessions.to_string(),
        node.version.clone(),
        node.services.join(","),
    ]
}

/// Prints columns as wide as what is in them.
pub(crate) fn say_table<const N: usize>(
    headings: &[&str; N],
    rows: &[[String; N]],
) -> anyhow::Result<()> {
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

pub(crate) fn say_json(value: &impl Serialize) -> anyhow::Result<()> {
    say(&serde_json::to_string_pretty(value)?)
}

pub(crate) fn say(text: &str) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{text}").context("standard output")
}
