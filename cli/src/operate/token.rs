//! `wavry token issue`: tokens that a master signs, for operators, clients and nodes.

use std::{path::PathBuf, time::Duration};

use serde::Serialize;
use wavry_credentials::{master::Ask, source};
use wavry_master::operate::{IssueOperator, IssueRegistration, IssueSession, IssuedToken};
use wavry_proto::{
    id::{NodeId, RegionName, ServiceName},
    placement::Weight,
};

use super::{Master, say, say_json, shown_time};
use crate::provision::{NodeRole, RoleOfOperator, parse_duration, refuse_to_overwrite};

/// `wavry token issue`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum IssueCommand {
    /// For an operator: nobody gets a role above one's own, nor for longer than one's own token holds
    Operator(OperatorArgs),
    /// For a client of a service
    Session(SessionArgs),
    /// For a node, to register with once
    Registration(RegistrationArgs),
}

/// A token for an operator.
#[derive(Debug, clap::Args)]
pub(crate) struct OperatorArgs {
    /// Who works with it; oneself if not given, and others by role admin alone
    #[arg(long)]
    subject: Option<String>,
    /// What they may do
    #[arg(long)]
    role: RoleOfOperator,
    #[command(flatten)]
    token: Token,
}

/// A token for a client.
#[derive(Debug, clap::Args)]
pub(crate) struct SessionArgs {
    /// Service the token opens sessions to
    service: ServiceName,
    /// Who the client is; the service is told
    #[arg(long)]
    subject: String,
    /// Which of the client's sessions it is for; a newer token with the same ID extends it
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    #[command(flatten)]
    token: Token,
}

/// A token for a node.
#[derive(Debug, clap::Args)]
pub(crate) struct RegistrationArgs {
    /// What the node is
    role: NodeRole,
    /// Id of the node: 1 to 63 of a-z, 0-9 and '-'
    name: NodeId,
    /// Services a relay may announce, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "A,B")]
    services: Vec<ServiceName>,
    /// Names and addresses at which clients find a KeyVault, separated by commas: those of its certificate
    #[arg(long, value_delimiter = ',', value_name = "A,B")]
    names: Vec<String>,
    /// Region that the node stands in
    #[arg(long, value_name = "REGION")]
    region: Option<RegionName>,
    /// Share of sessions that a relay is to take beside others for the same service, and of others' flows: 1 to 1000
    #[arg(long, default_value_t, value_name = "N")]
    weight: Weight,
    #[command(flatten)]
    token: Token,
}

/// Where a token goes, and how long it holds.
#[derive(Debug, clap::Args)]
pub(crate) struct Token {
    /// File for the token; it must not exist
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// How long the token holds: 30s, 15m, 1h
    #[arg(long, default_value = "1h", value_parser = parse_duration)]
    ttl: Duration,
    #[command(flatten)]
    master: Master,
}

/// What is said of a token that is in a file.
#[derive(Serialize)]
struct Issued {
    file: PathBuf,
    id: String,
    expires_at: u64,
}

/// Has the master sign a token.
pub(crate) async fn issue(command: &IssueCommand) -> anyhow::Result<()> {
    match command {
        IssueCommand::Operator(OperatorArgs {
            subject,
            role,
            token,
        }) => {
            let request = IssueOperator {
                subject: subject.clone(),
                role: role.role().as_str().to_owned(),
                ttl_seconds: token.seconds(),
            };
            token.ask("/v1/tokens/operator", &request).await
        }
        IssueCommand::Session(args) => {
            let request = IssueSession {
                service: args.service.to_string(),
                subject: args.subject.clone(),
                session: args.session.clone(),
                claims: serde_json::Map::new(),
                ttl_seconds: args.token.seconds(),
            };
            args.token.ask("/v1/tokens/session", &request).await
        }
        IssueCommand::Registration(args) => {
            let request = IssueRegistration {
                node: args.name.to_string(),
                role: args.role.role().as_str().to_owned(),
                names: args.names.clone(),
                services: args.services.iter().map(ToString::to_string).collect(),
                region: args.region.as_ref().map(ToString::to_string),
                weight: Some(args.weight.get()),
                ttl_seconds: args.token.seconds(),
            };
            args.token.ask("/v1/tokens/registration", &request).await
        }
    }
}

impl Token {
    fn seconds(&self) -> Option<u64> {
        Some(self.ttl.as_secs())
    }

    async fn ask(&self, path: &str, request: &impl Serialize) -> anyhow::Result<()> {
        refuse_to_overwrite(&self.out)?;
        let body = serde_json::to_vec(request)?;
        let mut operator = self.master.open().await?;
        let issued: IssuedToken = operator.ask(Ask::post(path, body)).await?;
        source::write_private(&self.out, issued.token.as_bytes())?;
        let (file, expires) = (self.out.display(), shown_time(issued.expires_at));
        match self.master.json {
            true => say_json(&Issued {
                file: self.out.clone(),
                id: issued.id,
                expires_at: issued.expires_at,
            }),
            false => say(&format!("{file} (holds until {expires})")),
        }
    }
}
