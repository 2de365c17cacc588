//! What the master is told: [`Raw`] as it is written, [`Config`] as it was checked.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use http::Uri;
use serde::{Deserialize, Serialize};
use wavry_credentials::token::KeySet;
use wavry_proto::{
    config::{Invalid, at_least_one, required},
    control::{Access, RefuseWith, Service},
    id::ClusterName,
    token::MAX_LEASE_LIFETIME,
};

use crate::{
    audit_sink::{self, RawSink},
    authority::{self, RawAuthority},
    database::{Location, UnusableUrl},
    identity,
    keys::Pace,
    keyvault,
    signing::{self, RawSigning},
};

/// Configuration as it is written, in table `master`. Every key may be left out; those without a
/// default are missed by [`Config::try_from`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Raw {
    /// TCP address of the HTTPS listener.
    pub listen: SocketAddr,
    /// Name of the cluster; tokens are good in one cluster only.
    pub cluster: String,
    /// SQLite file, made when there is none, or `postgres://USER@HOST/DATABASE`, for several masters.
    pub database: Option<String>,
    /// Where else the audit log goes.
    pub audit_sinks: Vec<RawSink>,
    /// PEM file with the certificate chain; its key is secret `tls_key`. Without one, the cluster's own authority
    /// issues it.
    pub certificate: Option<PathBuf>,
    /// How often a node tells that it is there, and how often silence is looked for.
    #[serde(with = "wavry_proto::duration")]
    pub heartbeat_interval: Duration,
    /// A node not heard for so long loses its services until it is heard again.
    #[serde(with = "wavry_proto::duration")]
    pub suspect_after: Duration,
    /// A node not heard for so long counts as gone, not only as suspect.
    #[serde(with = "wavry_proto::duration")]
    pub gone_after: Duration,
    /// A roster is signed anew at the latest when it is so old, so that nodes know that it is current.
    #[serde(with = "wavry_proto::duration")]
    pub roster_refresh: Duration,
    /// A key that has signed tokens and rosters for so long is rotated.
    #[serde(with = "wavry_proto::duration")]
    pub key_lifetime: Duration,
    /// A new key is published for so long before it signs; at least as long as nodes act on a roster.
    #[serde(with = "wavry_proto::duration")]
    pub key_wait: Duration,
    /// A key that signs no more is accepted for so long; at least as long as the longest token holds.
    #[serde(with = "wavry_proto::duration")]
    pub key_overlap: Duration,
    /// A node that was not heard of for so long cannot hold up another's new identity; at least as long as
    /// nodes act on a roster.
    #[serde(with = "wavry_proto::duration")]
    pub identity_wait: Duration,
    /// A node's identity is accepted for so long once the next one is shown.
    #[serde(with = "wavry_proto::duration")]
    pub identity_overlap: Duration,
    /// How long requests may go on once the master was told to leave.
    #[serde(with = "wavry_proto::duration")]
    pub drain_timeout: Duration,
    /// Most connections at once.
    pub max_connections: usize,
    /// Requests a second that one operator may send on average; ten seconds' worth may come at once.
    pub operator_rate: u32,
    /// Registrations a second on average, and a fifth as many attempts of one address; ten seconds' worth may come at
    /// once.
    pub registration_rate: u32,
    /// Requests for leases a second that one node may send on average; ten seconds' worth may come at once.
    pub lease_rate: u32,
    /// How long a lease of a flow through transit relays holds; nodes ask for the next one at half of that.
    #[serde(with = "wavry_proto::duration")]
    pub lease_lifetime: Duration,
    /// Bits in a second that a flow may carry, both ways together, unless it is said otherwise of its node.
    pub flow_bits_per_second: u64,
    /// Packets in a second that a flow may carry, both ways together, unless it is said otherwise of its node.
    pub flow_packets_per_second: u64,
    /// The vault whose key signs; unless given, keys are in the database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signing: Option<RawSigning>,
    /// The cluster's own authority, for the certificates of masters and nodes; none unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<RawAuthority>,
    /// The KeyVault that the master has in it; none unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keyvault: Option<keyvault::config::RawVault>,
    /// The services clients can connect to.
    pub services: Vec<RawService>,
}

/// One entry of `master.services`, as it is written.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawService {
    /// Name; the first path segment that routes to it.
    pub name: String,
    /// Hosts bound to this service.
    pub hosts: Vec<String>,
    /// Who may connect: `public`, or `token` (the default).
    pub access: Access,
    /// Origins a browser may connect from: `scheme://host[:port]`, or `*`.
    pub allowed_origins: Vec<String>,
    /// Most sessions at once on one gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_sessions: Option<u32>,
    /// How clients are told that a session is refused: with its `status` (the default), or with a
    /// session that is closed at once (`close`).
    pub refuse_with: RefuseWith,
    /// Public keys of the service's owner (PASERK `k4.public`), who signs session tokens for it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8443)),
            cluster: "wavry".to_owned(),
            database: None,
            audit_sinks: Vec::new(),
            certificate: None,
            heartbeat_interval: Duration::from_secs(2),
            suspect_after: Duration::from_secs(10),
            gone_after: Duration::from_secs(3600),
            roster_refresh: Duration::from_secs(3600),
            key_lifetime: Pace::default().lifetime,
            key_wait: Pace::default().wait,
            key_overlap: Pace::default().overlap,
            identity_wait: identity::Pace::default().wait,
            identity_overlap: identity::Pace::default().overlap,
            drain_timeout: Duration::from_secs(5),
            max_connections: 4096,
            operator_rate: 50,
            registration_rate: 100,
            lease_rate: 2,
            lease_lifetime: Duration::from_secs(MAX_LEASE_LIFETIME),
            flow_bits_per_second: 1_000_000_000,
            flow_packets_per_second: 125_000,
            signing: None,
            authority: None,
            keyvault: None,
            services: Vec::new(),
        }
    }
}

/// Configuration that can be acted on.
#[derive(Debug, Clone)]
pub struct Config {
    /// TCP address of the HTTPS listener.
    pub listen: SocketAddr,
    /// The cluster.
    pub cluster: ClusterName,
    /// What the master remembers is there.
    pub database: Location,
    /// Where else the audit log goes.
    pub audit_sinks: Vec<audit_sink::Config>,
    /// PEM file with the certificate chain; its key is secret `tls_key`. `None` where the authority issues it.
    pub certificate: Option<PathBuf>,
    /// How often a node tells that it is there, and how often silence is looked for.
    pub heartbeat_interval: Duration,
    /// A node not heard for so long loses its services until it is heard again.
    pub suspect_after: Duration,
    /// A node not heard for so long counts as gone, not only as suspect.
    pub gone_after: Duration,
    /// A roster is signed anew at the latest when it is so old.
    pub roster_refresh: Duration,
    /// How long keys that sign stay in each part of their life.
    pub key_pace: Pace,
    /// How long the parts of a rotation of a node's identity take.
    pub identity_pace: identity::Pace,
    /// How long requests may go on once the master was told to leave.
    pub drain_timeout: Duration,
    /// What a client can make the master hold.
    pub limits: Limits,
    /// What leases of flows say.
    pub leases: Leases,
    /// The vault whose key signs.
    pub signing: Option<signing::Config>,
    /// The cluster's own authority.
    pub authority: Option<authority::Config>,
    /// The KeyVault that the master has in it.
    pub keyvault: Option<keyvault::config::Vault>,
    /// The services, in lower case and without duplicates.
    pub services: Vec<Service>,
    /// File of the secret `master_key`; `None` for where the credentials' source finds it.
    pub master_key: Option<PathBuf>,
    /// File of the secret `audit_key`; `None` for where the credentials' source finds it.
    pub audit_key: Option<PathBuf>,
    /// File of the secret `tls_key`; `None` for where the credentials' source finds it.
    pub tls_key: Option<PathBuf>,
}

/// Bounds on what a client can make the master hold.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Most connections at once; further ones wait in the listener's backlog.
    pub max_connections: usize,
    /// From the connection to the end of the TLS handshake.
    pub handshake_timeout: Duration,
    /// From the end of one request to the end of the next one's head.
    pub header_timeout: Duration,
    /// From the head of a request to its answer.
    pub request_timeout: Duration,
    /// How long a request for a newer roster is held.
    pub poll_timeout: Duration,
    /// Requests a second that one operator may send on average.
    pub operator_rate: u32,
    /// Registrations a second on average.
    pub registration_rate: u32,
    /// Requests for leases a second that one node may send on average.
    pub lease_rate: u32,
}

/// What leases of flows say, unless it is said otherwise of their node.
#[derive(Debug, Clone, Copy)]
pub struct Leases {
    /// How long they hold.
    pub lifetime: Duration,
    /// Bits in a second.
    pub bits_per_second: u64,
    /// Packets in a second.
    pub packets_per_second: u64,
}

impl Default for Leases {
    fn default() -> Self {
        let raw = Raw::default();
        Self {
            lifetime: raw.lease_lifetime,
            bits_per_second: raw.flow_bits_per_second,
            packets_per_second: raw.flow_packets_per_second,
        }
    }
}

/// Fewest bits in a second of a flow: with less, hardly a packet would come through at once.
pub const MIN_FLOW_BITS: u64 = 1_000_000;
/// Most bits or packets in a second of a flow: more than any link has.
pub const MAX_FLOW_RATE: u64 = 1 << 50;
/// With less, a lease would be over at a relay whose clock is ahead before the next one is asked for.
const MIN_LEASE_LIFETIME: Duration = Duration::from_secs(60);

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: Raw::default().max_connections,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            poll_timeout: Duration::from_secs(25),
            operator_rate: Raw::default().operator_rate,
            registration_rate: Raw::default().registration_rate,
            lease_rate: Raw::default().lease_rate,
        }
    }
}

impl TryFrom<Raw> for Config {
    type Error = Invalid;

    fn try_from(raw: Raw) -> Result<Self, Invalid> {
        let cluster = raw
            .cluster
            .parse()
            .map_err(|e: wavry_proto::id::InvalidId| Invalid::new("cluster", e.to_string()))?;
        if raw.heartbeat_interval < MIN_HEARTBEAT_INTERVAL {
            return Err(Invalid::new("heartbeat_interval", "must be at least 50ms"));
        }
        if raw.suspect_after < raw.heartbeat_interval * 2 {
            return Err(Invalid::new(
                "suspect_after",
                "must be at least twice heartbeat_interval, or one late heartbeat is a silence",
            ));
        }
        let database: Location = required("database", raw.database)?
            .parse()
            .map_err(|e: UnusableUrl| Invalid::new("database", e.to_string()))?;
        let is_shared = matches!(database, Location::Postgres(_));
        if is_shared && raw.suspect_after < raw.heartbeat_interval * 4 {
            return Err(Invalid::new(
                "suspect_after",
                "must be at least four times heartbeat_interval where masters tell each other whom they heard",
            ));
        }
        if raw.gone_after < raw.suspect_after {
            return Err(Invalid::new("gone_after", "must be at least suspect_after"));
        }
        if raw.roster_refresh < Duration::from_secs(1) {
            return Err(Invalid::new("roster_refresh", "must be at least 1s"));
        }
        if raw.key_lifetime <= raw.key_wait {
            return Err(Invalid::new("key_lifetime", "must be longer than key_wait"));
        }
        at_least_one("max_connections", raw.max_connections as u64)?;
        at_least_one("operator_rate", raw.operator_rate.into())?;
        at_least_one("registration_rate", raw.registration_rate.into())?;
        at_least_one("lease_rate", raw.lease_rate.into())?;
        let lifetimes = MIN_LEASE_LIFETIME..=Duration::from_secs(MAX_LEASE_LIFETIME);
        if !lifetimes.contains(&raw.lease_lifetime) {
            return Err(Invalid::new("lease_lifetime", "must be from 1m to 1h"));
        }
        if !(MIN_FLOW_BITS..=MAX_FLOW_RATE).contains(&raw.flow_bits_per_second) {
            let problem = "must be from 1000000 to 2^50";
            return Err(Invalid::new("flow_bits_per_second", problem));
        }
        if !(1..=MAX_FLOW_RATE).contains(&raw.flow_packets_per_second) {
            let problem = "must be from 1 to 2^50";
            return Err(Invalid::new("flow_packets_per_second", problem));
        }
        let keyvault = raw.keyvault.map(TryInto::try_into).transpose();
        let keyvault = keyvault.map_err(|invalid: Invalid| {
            Invalid::new(format!("keyvault.{}", invalid.key), invalid.problem)
        })?;
        let signing = raw.signing.map(TryInto::try_into).transpose();
        let signing = signing.map_err(|invalid: Invalid| {
            Invalid::new(format!("signing.{}", invalid.key), invalid.problem)
        })?;
        let authority = raw.authority.map(TryInto::try_into).transpose();
        let authority: Option<authority::Config> = authority.map_err(|invalid: Invalid| {
            Invalid::new(format!("authority.{}", invalid.key), invalid.problem)
        })?;
        let certificate = match &authority {
            None => Some(required("certificate", raw.certificate)?),
            Some(authority) if raw.certificate.is_none() && authority.names.is_empty() => {
                let expected =
                    "must have a name for the master's own certificate, unless it has another";
                return Err(Invalid::new("authority.names", expected));
            }
            Some(_) => raw.certificate,
        };
        Ok(Self {
            listen: raw.listen,
            cluster,
            database,
            audit_sinks: audit_sink::sinks(raw.audit_sinks)?,
            certificate,
            heartbeat_interval: raw.heartbeat_interval,
            suspect_after: raw.suspect_after,
            gone_after: raw.gone_after,
            roster_refresh: raw.roster_refresh,
            key_pace: Pace {
                lifetime: raw.key_lifetime,
                wait: raw.key_wait,
                overlap: raw.key_overlap,
            },
            identity_pace: identity::Pace {
                wait: raw.identity_wait,
                overlap: raw.identity_overlap,
            },
            drain_timeout: raw.drain_timeout,
            limits: Limits {
                max_connections: raw.max_connections,
                operator_rate: raw.operator_rate,
                registration_rate: raw.registration_rate,
                lease_rate: raw.lease_rate,
                ..Limits::default()
            },
            leases: Leases {
                lifetime: raw.lease_lifetime,
                bits_per_second: raw.flow_bits_per_second,
                packets_per_second: raw.flow_packets_per_second,
            },
            signing,
            authority,
            keyvault,
            services: services(raw.services)?,
            master_key: None,
            audit_key: None,
            tls_key: None,
        })
    }
}

/// Keys that the owner of a service may have: as many as rotate at once, for several issuers.
const MAX_OWNER_KEYS: usize = 16;
/// Below this, heartbeats are a load and not a sign of life.
const MIN_HEARTBEAT_INTERVAL: Duration = Duration::from_millis(50);

/// Checks services; they come in lower case, without duplicates, ordered by name.
pub(crate) fn services(raw: Vec<RawService>) -> Result<Vec<Service>, Invalid> {
    let mut names = HashSet::new();
    let mut bound_hosts = HashSet::new();
    let mut services = Vec::with_capacity(raw.len());
    for (index, raw) in raw.into_iter().enumerate() {
        let at = |rest: String| format!("services[{index}].{rest}");
        let name: wavry_proto::id::ServiceName =
            raw.name.parse().map_err(|e: wavry_proto::id::InvalidId| {
                Invalid::new(at("name".into()), e.to_string())
            })?;
        if !names.insert(name.clone()) {
            return Err(Invalid::new(
                at("name".into()),
                "is the name of two services",
            ));
        }
        let mut hosts = Vec::with_capacity(raw.hosts.len());
        for (i, text) in raw.hosts.iter().enumerate() {
            let key = || at(format!("hosts[{i}]"));
            let host = host(text).ok_or_else(|| {
                Invalid::new(key(), "must be a host name or address, without port")
            })?;
            if !bound_hosts.insert(host.clone()) {
                return Err(Invalid::new(key(), "is bound twice"));
            }
            hosts.push(host);
        }
        let mut allowed_origins = Vec::with_capacity(raw.allowed_origins.len());
        for (i, text) in raw.allowed_origins.iter().enumerate() {
            allowed_origins.push(origin(text).ok_or_else(|| {
                Invalid::new(
                    at(format!("allowed_origins[{i}]")),
                    "must be scheme://host or scheme://host:port, without a path, or *",
                )
            })?);
        }
        if raw.max_sessions == Some(0) {
            return Err(Invalid::new(
                at("max_sessions".into()),
                "must be at least 1; remove the service to close it",
            ));
        }
        if raw.keys.len() > MAX_OWNER_KEYS {
            return Err(Invalid::new(at("keys".into()), "has more than 16 keys"));
        }
        for (i, key) in raw.keys.iter().enumerate() {
            KeySet::from_paserk(&[key]).map_err(|_| {
                Invalid::new(at(format!("keys[{i}]")), "must be a PASERK k4.public key")
            })?;
        }
        services.push(Service {
            name,
            hosts,
            access: raw.access,
            allowed_origins,
            max_sessions: raw.max_sessions,
            refuse_with: raw.refuse_with,
            keys: raw.keys,
        });
    }
    services.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(services)
}

/// A host as it stands in an authority, in lower case: a DNS name, an IPv4 address, or an IPv6
/// address in brackets.
fn host(text: &str) -> Option<String> {
    let text = text.to_ascii_lowercase();
    if let Some(address) = text.strip_prefix('[') {
        let address: IpAddr = address.strip_suffix(']')?.parse().ok()?;
        return address.is_ipv6().then(|| format!("[{address}]"));
    }
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    (text.len() <= 253 && text.split('.').all(is_label)).then_some(text)
}

/// An origin as browsers write it (RFC 6454, section 6.2): lower case, the scheme's own port left
/// out. `*` stays.
fn origin(text: &str) -> Option<String> {
    if text == "*" {
        return Some(text.to_owned());
    }
    let (scheme, authority) = text.split_once("://")?;
    let uri: Uri = text.parse().ok()?;
    if uri.authority()?.as_str() != authority {
        return None;
    }
    let scheme = scheme.to_ascii_lowercase();
    let written = uri.host()?;
    let host = host(written)?;
    // What is left of the authority is a port, or nothing: user information would be in the way.
    let port = match authority.get(written.len()..)? {
        "" => None,
        rest => Some(rest.strip_prefix(':')?.parse::<u16>().ok()?),
    };
    let own = match scheme.as_str() {
        "https" => Some(443),
        "http" => Some(80),
        _ => None,
    };
    Some(match port {
        Some(port) if Some(port) != own => format!("{scheme}://{host}:{port}"),
        _ => format!("{scheme}://{host}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete() -> Raw {
        Raw {
            database: Some("master.sqlite".into()),
            certificate: Some("master.crt".into()),
            ..Raw::default()
        }
    }

    fn with_service(change: impl FnOnce(&mut RawService)) -> Result<Config, Invalid> {
        let mut service = RawService {
            name: "echo".into(),
            ..RawService::default()
        };
        change(&mut service);
        Config::try_from(Raw {
            services: vec![service],
            ..complete()
        })
    }

    #[test]
    fn what_is_needed_and_missing_is_named() {
        assert!(Config::try_from(complete()).is_ok());
        let mut raw = complete();
        raw.database = None;
        assert_eq!(Config::try_from(raw).unwrap_err().key, "database");
        let mut raw = complete();
        raw.certificate = None;
        assert_eq!(Config::try_from(raw).unwrap_err().key, "certificate");
    }

    #[test]
    fn times_that_would_make_every_node_silent_are_refused() {
        let mut raw = complete();
        raw.suspect_after = Duration::from_secs(3);
        assert_eq!(Config::try_from(raw).unwrap_err().key, "suspect_after");
        let mut raw = complete();
        raw.gone_after = Duration::from_secs(9);
        assert_eq!(Config::try_from(raw).unwrap_err().key, "gone_after");
        let mut raw = complete();
        raw.roster_refresh = Duration::from_millis(999);
        assert_eq!(Config::try_from(raw).unwrap_err().key, "roster_refresh");
        let mut raw = complete();
        raw.key_lifetime = raw.key_wait;
        assert_eq!(Config::try_from(raw).unwrap_err().key, "key_lifetime");
        let mut raw = complete();
        raw.heartbeat_interval = Duration::ZERO;
        assert_eq!(Config::try_from(raw).unwrap_err().key, "heartbeat_interval");
    }

    #[test]
    fn origins_are_kept_as_browsers_write_them() {
        for (written, kept) in [
            ("*", "*"),
            ("https://App.Example", "https://app.example"),
            ("https://app.example:443", "https://app.example"),
            ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
            ("https://[::1]:9", "https://[::1]:9"),
            ("https://[0:0:0:0:0:0:0:1]:9", "https://[::1]:9"),
        ] {
            let config = with_service(|s| s.allowed_origins = vec![written.into()]).unwrap();
            assert_eq!(config.services[0].allowed_origins, [kept]);
        }
    }

    #[test]
    fn what_is_no_origin_is_refused() {
        for text in [
            "",
            "app.example",
            "https://",
            "https://a/",
            "https://a/path",
            "https://a?q",
            "https://user@a",
            "https://a:80@b",
            "https://a:port",
            "https://a:99999",
            "https://*",
            "null",
        ] {
            let refused = with_service(|s| s.allowed_origins = vec!["*".into(), text.into()])
                .expect_err(text);
            assert_eq!(refused.key, "services[0].allowed_origins[1]");
        }
    }

    #[test]
    fn hosts_are_lower_case_and_bound_once() {
        let config = with_service(|s| s.hosts = vec!["App.Example".into()]).unwrap();
        assert_eq!(config.services[0].hosts, ["app.example"]);
        for text in ["", "a:1", "a b", "a..b", "-a", "https://a", "[127.0.0.1]"] {
            let refused = with_service(|s| s.hosts = vec![text.into()]).expect_err(text);
            assert_eq!(refused.key, "services[0].hosts[0]");
        }
        let twice = with_service(|s| s.hosts = vec!["a".into(), "A".into()]);
        assert_eq!(twice.unwrap_err().key, "services[0].hosts[1]");
    }

    #[test]
    fn an_owners_keys_are_keys_and_few() {
        let key = wavry_credentials::token::SigningKey::generate().public_paserk();
        let config = with_service(|s| s.keys = vec![key.clone()]).unwrap();
        assert_eq!(config.services[0].keys, std::slice::from_ref(&key));
        let refused = with_service(|s| s.keys = vec![key.clone(), "k4.public.x".into()]);
        assert_eq!(refused.unwrap_err().key, "services[0].keys[1]");
        let many = with_service(|s| s.keys = vec![key; 17]);
        assert_eq!(many.unwrap_err().key, "services[0].keys");
    }

    #[test]
    fn a_name_stands_for_one_service() {
        let named = |name: &str| RawService {
            name: name.into(),
            ..RawService::default()
        };
        let raw = Raw {
            services: vec![named("a"), named("a")],
            ..complete()
        };
        assert_eq!(Config::try_from(raw).unwrap_err().key, "services[1].name");
        let raw = Raw {
            services: vec![named("Not A Name")],
            ..complete()
        };
        assert_eq!(Config::try_from(raw).unwrap_err().key, "services[0].name");
    }
}
