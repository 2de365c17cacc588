//! Makes keys and tokens: for the master, for nodes that are to register, for clients.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};
use wavry_credentials::{
    identity::Identity,
    source,
    token::{Scope, SigningKey},
};
use wavry_proto::{
    control::Role,
    id::{ClusterName, NodeId, ServiceName},
    token::{Claims, Registration, Session, Validity},
};

/// What a node may be.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum NodeRole {
    /// Takes mesh sessions and dials upstreams
    Relay,
    /// Terminates WebTransport
    Gateway,
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
    /// Directory for identity.key and registration.token; neither may exist
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Cluster the node is to join
    #[arg(long, default_value = DEFAULT_CLUSTER)]
    cluster: ClusterName,
    /// How long the registration token can be used
    #[arg(long, default_value = "1h", value_parser = parse_duration)]
    ttl: Duration,
}

/// `wavry token session`.
#[derive(Debug, clap::Args)]
pub(crate) struct SessionArgs {
    /// Service the token opens sessions to
    service: ServiceName,
    /// Who the client is; the service is told
    #[arg(long)]
    subject: String,
    /// How long the token holds: 30s, 15m, 1h, 7d
    #[arg(long, default_value = "1h", value_parser = parse_duration)]
    ttl: Duration,
    /// Cluster the token is for
    #[arg(long, default_value = DEFAULT_CLUSTER)]
    cluster: ClusterName,
}

/// `wavry key generate`.
#[derive(Debug, clap::Args)]
pub(crate) struct KeyArgs {
    /// File for the key; it must not exist
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Cluster name unless told otherwise.
pub(crate) const DEFAULT_CLUSTER: &str = "wavry";

/// Makes a node's identity and a registration token, signed with the secret `master_key`.
pub(crate) fn node(args: &NodeArgs) -> anyhow::Result<()> {
    let identity_file = args.out.join("identity.key");
    let token_file = args.out.join("registration.token");
    for file in [&identity_file, &token_file] {
        refuse_to_overwrite(file)?;
    }
    let role = match args.role {
        NodeRole::Relay => Role::Relay,
        NodeRole::Gateway => Role::Gateway,
    };
    let key = master_key()?;
    let token = registration_token(
        &key,
        &args.cluster,
        role,
        &args.name,
        &args.services,
        args.ttl,
    )?;
    fs::create_dir_all(&args.out).with_context(|| format!("{}", args.out.display()))?;
    let identity = Identity::generate();
    source::write_private(&identity_file, identity.to_pem().expose())?;
    source::write_private(&token_file, token.as_bytes())?;
    say(&format!(
        "{}\n{}",
        identity_file.display(),
        token_file.display()
    ))
}

/// Prints a session token, signed with the secret `master_key`.
pub(crate) fn session(args: &SessionArgs) -> anyhow::Result<()> {
    let key = master_key()?;
    say(&session_token(
        &key,
        &args.cluster,
        &args.service,
        &args.subject,
        args.ttl,
    )?)
}

/// Makes a master key.
pub(crate) fn key(args: &KeyArgs) -> anyhow::Result<()> {
    refuse_to_overwrite(&args.out)?;
    source::write_private(&args.out, SigningKey::generate().to_paserk().expose())?;
    say(&args.out.display().to_string())
}

/// A token with which the node can register once.
pub(crate) fn registration_token(
    key: &SigningKey,
    cluster: &ClusterName,
    role: Role,
    node: &NodeId,
    services: &[ServiceName],
    ttl: Duration,
) -> anyhow::Result<String> {
    let claims = Registration {
        jti: random_id()?,
        sub: node.clone(),
        role,
        services: services.to_vec(),
        validity: validity(ttl)?,
    };
    Ok(sign(key, &claims, cluster, "master"))
}

/// A token that opens sessions to `service`.
pub(crate) fn session_token(
    key: &SigningKey,
    cluster: &ClusterName,
    service: &ServiceName,
    subject: &str,
    ttl: Duration,
) -> anyhow::Result<String> {
    let claims = Session {
        jti: random_id()?,
        sub: subject.to_owned(),
        claims: serde_json::Map::new(),
        validity: validity(ttl)?,
    };
    Ok(sign(key, &claims, cluster, service.as_str()))
}

/// Reads the secret `master_key`.
pub(crate) fn master_key() -> anyhow::Result<SigningKey> {
    let text = source::read("master_key")?;
    SigningKey::from_paserk(&text).context("secret master_key")
}

/// Parses `30s`, `15m`, `1h`, `7d`, `250ms`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let scale = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err("expected a whole number and ms, s, m, h or d".to_owned()),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(scale))
        .filter(|&millis| millis > 0)
        .map(Duration::from_millis)
        .ok_or_else(|| "expected a duration above zero, such as 30s".to_owned())
}

fn sign<C: Claims>(key: &SigningKey, claims: &C, cluster: &ClusterName, audience: &str) -> String {
    let scope = Scope {
        cluster,
        audience,
        binding: &[],
    };
    key.sign(claims, scope)
}

fn validity(ttl: Duration) -> anyhow::Result<Validity> {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .context("the clock is before 1970")?
        .as_secs();
    Ok(Validity {
        iat: now,
        nbf: now,
        exp: now.saturating_add(ttl.as_secs()),
    })
}

fn random_id() -> anyhow::Result<String> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let mut bytes = [0; 16];
    provider
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| anyhow::anyhow!("no random bytes from the operating system"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn refuse_to_overwrite(file: &Path) -> anyhow::Result<()> {
    if file.symlink_metadata().is_ok() {
        bail!("{} exists and is not overwritten", file.display());
    }
    Ok(())
}

fn say(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{text}").context("standard output")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit_and_are_not_zero() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(604_800)));
        for text in [
            "",
            "5",
            "s",
            "0s",
            "1.5h",
            "-1s",
            "99999999999999999999s",
            "18446744073709551615d",
        ] {
            assert!(parse_duration(text).is_err(), "{text:?} was taken");
        }
    }
}
