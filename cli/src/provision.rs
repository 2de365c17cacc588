//! Makes keys and tokens: for the master, for nodes that are to register, for clients.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use wavry_credentials::{
    audit, identity::Identity, process, signer::Signer, source, token::SigningKey,
};
use wavry_master::{
    database::Location,
    provision::{self, Issue, Issuer},
    signing,
};
use wavry_proto::{
    control::Role,
    id::{ClusterName, NodeId, RegionName, ServiceName},
    placement::{Placement, Weight},
    token::{MAX_LIFETIME, MAX_OPERATOR_LIFETIME, OperatorRole},
};

use crate::{config, role, roles};

/// What a node may be.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum NodeRole {
    /// Takes mesh sessions and dials upstreams
    Relay,
    /// Terminates WebTransport
    Gateway,
    /// A KeyVault that runs alone, and has its certificate from the master
    #[value(name = "keyvault")]
    KeyVault,
}

/// `wavry provision`.
#[derive(Debug, clap::Args)]
pub(crate) struct NodeArgs {
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
    /// Region that the node is in; gateways prefer relays in their own
    #[arg(long, value_name = "REGION")]
    region: Option<RegionName>,
    /// Share of sessions that a relay is to take beside others for the same service, and of others' flows: 1 to 1000
    #[arg(long, default_value_t)]
    weight: Weight,
    /// Directory for identity.key and registration.token; neither may exist
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Cluster the node is to join
    #[arg(long, default_value = DEFAULT_CLUSTER)]
    cluster: ClusterName,
    /// How long the registration token can be used
    #[arg(long, default_value = "1h", value_parser = parse_duration)]
    ttl: Duration,
    #[command(flatten)]
    record: Record,
}

/// `wavry token session`.
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
    /// How long the token holds: 30s, 15m, 1h, 7d
    #[arg(long, default_value = "1h", value_parser = parse_duration)]
    ttl: Duration,
    /// Cluster the token is for
    #[arg(long, default_value = DEFAULT_CLUSTER)]
    cluster: ClusterName,
    #[command(flatten)]
    record: Record,
}

/// `wavry token operator`.
#[derive(Debug, clap::Args)]
pub(crate) struct OperatorArgs {
    /// Who works with it; the audit log names them
    #[arg(long)]
    subject: String,
    /// What they may do
    #[arg(long)]
    role: RoleOfOperator,
    /// File for the token; it must not exist
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// How long the token holds; 12h at most
    #[arg(long, default_value = "1h", value_parser = parse_duration)]
    ttl: Duration,
    /// Cluster the token is for
    #[arg(long, default_value = DEFAULT_CLUSTER)]
    cluster: ClusterName,
    #[command(flatten)]
    record: Record,
}

/// What an operator may do.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum RoleOfOperator {
    /// Look
    Viewer,
    /// Also change services, issue tokens, revoke
    Operator,
    /// Everything
    Admin,
}

/// Where what is issued is put on record.
#[derive(Debug, clap::Args)]
pub(crate) struct Record {
    /// Audit log for what is issued; provision.jsonl beside the master key, or the configuration, if not given
    #[arg(long, value_name = "FILE", env = "WAVRY_AUDIT_LOG")]
    audit_log: Option<PathBuf>,
    /// The master's database, where the key is kept that signs now; without it, the secret master_key
    /// signs, which the master accepts until that key has been rotated out
    #[arg(long, value_name = "DATABASE", env = "WAVRY_MASTER_DATABASE")]
    database: Option<Location>,
    /// The master's configuration: signs with the key that the master signs with, in its database or in its
    /// vault ([master.signing])
    #[arg(
        long,
        value_name = "FILE",
        env = "WAVRY_MASTER_CONFIG",
        conflicts_with = "database"
    )]
    config: Option<PathBuf>,
}

/// Who issues: what signs, and where that is put on record.
struct Authority {
    issuer: Issuer,
    signer: Arc<dyn Signer>,
    cluster: ClusterName,
}

impl Authority {
    async fn sign(&self, issue: &Issue) -> anyhow::Result<String> {
        let token = issue.sign(&*self.signer, &self.cluster).await;
        token.context("the token is on record, and was not signed")
    }
}

/// Name of the audit log beside the master key.
const DEFAULT_LOG: &str = "provision.jsonl";

/// `wavry key generate`.
#[derive(Debug, clap::Args)]
pub(crate) struct KeyArgs {
    /// File for the key; it must not exist
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Cluster name unless told otherwise.
pub(crate) const DEFAULT_CLUSTER: &str = "wavry";

/// Makes a node's identity and a registration token.
pub(crate) async fn node(args: &NodeArgs) -> anyhow::Result<()> {
    let identity_file = args.out.join("identity.key");
    let token_file = args.out.join("registration.token");
    for file in [&identity_file, &token_file] {
        refuse_to_overwrite(file)?;
    }
    at_most(args.ttl, MAX_LIFETIME)?;
    let role = args.role.role();
    if let Err(why) = provision::check_names(role, &args.names) {
        bail!("--names {why}");
    }
    let authority = args.record.authority(&args.cluster).await?;
    let (name, services) = (args.name.clone(), args.services.clone());
    let placement = Placement {
        region: args.region.clone(),
        weight: args.weight,
        names: args.names.clone(),
    };
    let issuer = &authority.issuer;
    let issue = issuer.registration(name, role, services, placement, args.ttl)?;
    let token = authority.sign(&issue).await?;
    fs::create_dir_all(&args.out).with_context(|| format!("{}", args.out.display()))?;
    let identity = Identity::generate();
    source::write_secret(&identity_file, &identity.to_pem())?;
    source::write_private(&token_file, token.as_bytes())?;
    say(&format!(
        "{}\n{}",
        identity_file.display(),
        token_file.display()
    ))
}

/// Prints a session token.
pub(crate) async fn session(args: &SessionArgs) -> anyhow::Result<()> {
    at_most(args.ttl, MAX_LIFETIME)?;
    let authority = args.record.authority(&args.cluster).await?;
    let issue = authority.issuer.session(
        &args.service,
        args.subject.clone(),
        args.session.clone(),
        serde_json::Map::new(),
        args.ttl,
    )?;
    say(&authority.sign(&issue).await?)
}

/// Writes an operator's token.
pub(crate) async fn operator(args: &OperatorArgs) -> anyhow::Result<()> {
    refuse_to_overwrite(&args.out)?;
    at_most(args.ttl, MAX_OPERATOR_LIFETIME)?;
    let role = args.role.role();
    let authority = args.record.authority(&args.cluster).await?;
    let issuer = &authority.issuer;
    let issue = issuer.operator(args.subject.clone(), role, args.ttl)?;
    let token = authority.sign(&issue).await?;
    source::write_private(&args.out, token.as_bytes())?;
    say(&args.out.display().to_string())
}

/// Makes a master key.
pub(crate) fn key(args: &KeyArgs) -> anyhow::Result<()> {
    refuse_to_overwrite(&args.out)?;
    source::write_secret(&args.out, &SigningKey::generate().to_paserk())?;
    say(&args.out.display().to_string())
}

impl NodeRole {
    pub(crate) fn role(self) -> Role {
        match self {
            Self::Relay => Role::Relay,
            Self::Gateway => Role::Gateway,
            Self::KeyVault => Role::KeyVault,
        }
    }
}

impl RoleOfOperator {
    pub(crate) fn role(self) -> OperatorRole {
        match self {
            Self::Viewer => OperatorRole::Viewer,
            Self::Operator => OperatorRole::Operator,
            Self::Admin => OperatorRole::Admin,
        }
    }
}

impl Record {
    /// Signs with the secret `master_key`, or as the master does, and puts tokens on record with the secret
    /// `audit_key`.
    async fn authority(&self, cluster: &ClusterName) -> anyhow::Result<Authority> {
        let mut cluster = cluster.clone();
        let (signer, beside): (Arc<dyn Signer>, _) = match (&self.config, &self.database) {
            (Some(file), _) => {
                let loaded = config::load::<roles::Master>(
                    Some(file),
                    role::environment(),
                    &config::Flags::default(),
                )?;
                let master = loaded.role;
                let signer = signing::signer(&master.database, None, master.signing.as_ref());
                let signer = signer.await.with_context(|| master.database.to_string())?;
                cluster = master.cluster;
                (signer, file.clone())
            }
            (None, Some(database)) => {
                let file = source::locate("master_key")?;
                let signer = signing::signer(database, Some(&file), None);
                let signer = signer.await.with_context(|| database.to_string())?;
                (signer, file)
            }
            (None, None) => {
                let file = source::locate("master_key")?;
                let key = source::read_as("master_key", Some(&file), SigningKey::read)?;
                (Arc::new(key), file)
            }
        };
        let audit_key = source::load("audit_key", None, |text| {
            audit::Key::read(text, cluster.clone())
        })
        .await?;
        let file = match &self.audit_log {
            Some(file) => file.clone(),
            None => beside.with_file_name(DEFAULT_LOG),
        };
        let log = audit::file::Log::new(file, provision::LOG, audit_key);
        Ok(Authority {
            issuer: Issuer::new(log, process::user()),
            signer,
            cluster,
        })
    }
}

/// Parses a duration flag.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    match wavry_proto::duration::parse(text) {
        Ok(Duration::ZERO) => Err("must be longer than zero".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(error.to_string()),
    }
}

/// A token that would hold for longer is refused wherever it is shown.
fn at_most(ttl: Duration, seconds: u64) -> anyhow::Result<()> {
    let most = Duration::from_secs(seconds);
    if ttl > most {
        bail!(
            "--ttl: such a token holds for {} at most",
            wavry_proto::duration::format(most)
        );
    }
    Ok(())
}

pub(crate) fn refuse_to_overwrite(file: &Path) -> anyhow::Result<()> {
    if file.symlink_metadata().is_ok() {
        bail!("{} exists and is not overwritten", file.display());
    }
    Ok(())
}

fn say(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{text}").context("standard output")
}
