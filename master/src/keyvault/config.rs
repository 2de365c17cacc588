//! What a KeyVault is told: [`Raw`] as it is written, [`Standalone`] and [`Vault`] as it was checked.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use wavry_credentials::{identity::rotation::Pace, membership};
use wavry_proto::{
    config::{Invalid, at_least_one, required},
    id::ClusterName,
};

use super::{barrier::Guard, login, token};
use crate::{
    audit_sink::{self, RawSink},
    authority::Demand,
    database::{Location, UnusableUrl},
};

/// Configuration as it is written, in table `keyvault`. Every key may be left out; those without a
/// default are missed by [`Standalone::try_from`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Raw {
    /// TCP address of the HTTPS listener.
    pub listen: SocketAddr,
    /// Name of the cluster, which the audit log's seals name.
    pub cluster: String,
    /// PEM file with the certificate chain; its key is secret `tls_key`. With `master` it is served until there is
    /// one that the master issued, and may be left out.
    pub certificate: Option<PathBuf>,
    /// The master that issues the certificate: `https://HOST:PORT`, or several with commas between them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub master: Option<String>,
    /// PEM file of the authorities that vouch for the master. Only with `master`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Directory for what registration gave. Only with `master`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<PathBuf>,
    /// A roster is acted on for so long after it was signed.
    #[serde(with = "wavry_proto::duration")]
    pub max_roster_age: Duration,
    /// How long an identity serves before another takes its place.
    #[serde(with = "wavry_proto::duration")]
    pub identity_lifetime: Duration,
    /// Whether clients must show a node's certificate: `optional` or `required`. Only with `master`.
    pub node_certificates: Demand,
    /// PEM file of the authorities that vouch for clients; without it clients show no certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<PathBuf>,
    /// Whether a client without a certificate is refused. Only with `client_ca`.
    pub require_client_certificate: bool,
    /// How long requests may go on once the KeyVault was told to leave.
    #[serde(with = "wavry_proto::duration")]
    pub drain_timeout: Duration,
    /// Most connections at once.
    pub max_connections: usize,
    /// As in [`RawVault`].
    pub database: Option<String>,
    /// As in [`RawVault`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counter: Option<PathBuf>,
    /// As in [`RawVault`].
    pub seal: Seal,
    /// As in [`RawVault`].
    #[serde(with = "wavry_proto::duration")]
    pub default_ttl: Duration,
    /// As in [`RawVault`].
    #[serde(with = "wavry_proto::duration")]
    pub max_ttl: Duration,
    /// As in [`RawVault`].
    pub logins_per_second: u32,
    /// As in [`RawVault`].
    pub login_burst: u32,
    /// As in [`RawVault`].
    pub accept_rollback: bool,
    /// As in [`RawVault`].
    pub audit_sinks: Vec<RawSink>,
}

/// The part that a KeyVault has wherever it runs: also table `master.keyvault`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawVault {
    /// SQLite file, made when there is none, or `postgres://USER@HOST/DATABASE`.
    pub database: Option<String>,
    /// File that tells how far the store has come, best on another disk. Unless given, it is beside an
    /// SQLite file; a PostgreSQL server has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counter: Option<PathBuf>,
    /// Where the master key comes from: `shares` that people bring (Shamir), or secret
    /// `keyvault_key`.
    pub seal: Seal,
    /// How long tokens last where nobody says otherwise.
    #[serde(with = "wavry_proto::duration")]
    pub default_ttl: Duration,
    /// How long they last at most, however often they are renewed.
    #[serde(with = "wavry_proto::duration")]
    pub max_ttl: Duration,
    /// Logins a second in the long run; more are told to come again.
    pub logins_per_second: u32,
    /// Logins at once, as of a herd of units that restart.
    pub login_burst: u32,
    /// Takes a store for current that is older than one seen before: for one start, as a flag.
    pub accept_rollback: bool,
    /// Where else the audit log goes.
    pub audit_sinks: Vec<RawSink>,
}

/// Where the master key comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Seal {
    /// From shares that people bring after each start.
    #[default]
    Shares,
    /// From secret `keyvault_key`.
    Key,
}

impl Default for Raw {
    fn default() -> Self {
        let vault = RawVault::default();
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8200)),
            cluster: "wavry".to_owned(),
            certificate: None,
            master: None,
            ca_file: None,
            state_dir: None,
            max_roster_age: Duration::from_secs(24 * 3600),
            identity_lifetime: Pace::default().lifetime,
            node_certificates: Demand::default(),
            client_ca: None,
            require_client_certificate: true,
            drain_timeout: Duration::from_secs(5),
            max_connections: 4096,
            database: vault.database,
            counter: vault.counter,
            seal: vault.seal,
            default_ttl: vault.default_ttl,
            max_ttl: vault.max_ttl,
            logins_per_second: vault.logins_per_second,
            login_burst: vault.login_burst,
            accept_rollback: vault.accept_rollback,
            audit_sinks: vault.audit_sinks,
        }
    }
}

impl Default for RawVault {
    fn default() -> Self {
        let limits = token::Limits::default();
        let logins = login::Limits::default();
        Self {
            database: None,
            counter: None,
            seal: Seal::default(),
            default_ttl: Duration::from_secs(limits.default_ttl),
            max_ttl: Duration::from_secs(limits.max_ttl),
            logins_per_second: logins.rate,
            login_burst: logins.burst,
            accept_rollback: false,
            audit_sinks: Vec::new(),
        }
    }
}

/// Configuration of a KeyVault that runs alone.
#[derive(Debug, Clone)]
pub struct Standalone {
    /// TCP address of the HTTPS listener.
    pub listen: SocketAddr,
    /// The cluster.
    pub cluster: ClusterName,
    /// PEM file with the certificate chain. `None` where the master issues it.
    pub certificate: Option<PathBuf>,
    /// The cluster's node that it is.
    pub node: Option<Node>,
    /// Who vouches for clients, and whether one must.
    pub clients: Option<Clients>,
    /// How long requests may go on once the KeyVault was told to leave.
    pub drain_timeout: Duration,
    /// What a client can make it hold.
    pub limits: crate::config::Limits,
    /// What it keeps, and how.
    pub vault: Vault,
}

/// A KeyVault that is a node of a cluster.
#[derive(Debug, Clone)]
pub struct Node {
    /// What it needs to be one.
    pub membership: membership::Config,
    /// Whether clients must show a node's certificate.
    pub node_certificates: Demand,
}

/// Who vouches for clients.
#[derive(Debug, Clone)]
pub struct Clients {
    /// PEM file of the authorities.
    pub authorities: PathBuf,
    /// Whether a client without a certificate is refused.
    pub required: bool,
}

/// What a KeyVault keeps, and how.
#[derive(Debug, Clone)]
pub struct Vault {
    /// Where.
    pub store: Location,
    /// Where the master key comes from.
    pub seal: Seal,
    /// How long tokens last.
    pub tokens: token::Limits,
    /// How many units log in.
    pub logins: login::Limits,
    /// How a rollback of the store is noticed.
    pub guard: Guard,
    /// Where else the audit log goes.
    pub audit_sinks: Vec<audit_sink::Config>,
}

impl Vault {
    /// In this store, with everything else as it is by default.
    pub fn at(store: Location) -> Self {
        Self {
            store,
            seal: Seal::default(),
            tokens: token::Limits::default(),
            logins: login::Limits::default(),
            guard: Guard::default(),
            audit_sinks: Vec::new(),
        }
    }
}

impl TryFrom<Raw> for Standalone {
    type Error = Invalid;

    fn try_from(raw: Raw) -> Result<Self, Invalid> {
        let cluster = raw
            .cluster
            .parse()
            .map_err(|e: wavry_proto::id::InvalidId| Invalid::new("cluster", e.to_string()))?;
        at_least_one("max_connections", raw.max_connections as u64)?;
        let node = Node::of(&raw)?;
        let clients = raw.client_ca.map(|authorities| Clients {
            authorities,
            required: raw.require_client_certificate,
        });
        Ok(Self {
            listen: raw.listen,
            cluster,
            certificate: match &node {
                None => Some(required("certificate", raw.certificate)?),
                Some(_) => raw.certificate,
            },
            node,
            clients,
            drain_timeout: raw.drain_timeout,
            limits: crate::config::Limits {
                max_connections: raw.max_connections,
                ..crate::config::Limits::default()
            },
            vault: Vault::try_from(RawVault {
                database: raw.database,
                counter: raw.counter,
                seal: raw.seal,
                default_ttl: raw.default_ttl,
                max_ttl: raw.max_ttl,
                logins_per_second: raw.logins_per_second,
                login_burst: raw.login_burst,
                accept_rollback: raw.accept_rollback,
                audit_sinks: raw.audit_sinks,
            })?,
        })
    }
}

impl Node {
    fn of(raw: &Raw) -> Result<Option<Self>, Invalid> {
        let Some(master) = raw.master.clone() else {
            let alone = "is for a KeyVault with a master";
            return match raw {
                Raw {
                    ca_file: Some(_), ..
                } => Err(Invalid::new("ca_file", alone)),
                Raw {
                    state_dir: Some(_), ..
                } => Err(Invalid::new("state_dir", alone)),
                Raw {
                    node_certificates: Demand::Required,
                    ..
                } => Err(Invalid::new("node_certificates", alone)),
                _ => Ok(None),
            };
        };
        if raw.client_ca.is_some() {
            let expected = "and master are two answers to whose certificates count: leave one";
            return Err(Invalid::new("client_ca", expected));
        }
        for (key, value) in [
            ("max_roster_age", raw.max_roster_age),
            ("identity_lifetime", raw.identity_lifetime),
        ] {
            if value < Duration::from_secs(1) {
                return Err(Invalid::new(key, "must be at least 1s"));
            }
        }
        Ok(Some(Self {
            membership: membership::Config {
                master,
                ca_file: required("ca_file", raw.ca_file.clone())?,
                state_dir: required("state_dir", raw.state_dir.clone())?,
                services: Vec::new(),
                max_roster_age: raw.max_roster_age,
                identity_lifetime: raw.identity_lifetime,
                identity_key: None,
                registration_token: None,
            },
            node_certificates: raw.node_certificates,
        }))
    }
}

/// Tokens end so soon at the earliest: renewing them is a load otherwise.
const MIN_TTL: Duration = Duration::from_secs(10);

impl TryFrom<RawVault> for Vault {
    type Error = Invalid;

    fn try_from(raw: RawVault) -> Result<Self, Invalid> {
        let database = required("database", raw.database)?;
        let store = database
            .parse()
            .map_err(|e: UnusableUrl| Invalid::new("database", e.to_string()))?;
        let counter = raw.counter.or_else(|| match &store {
            Location::Sqlite(file) => {
                let mut name = file.clone().into_os_string();
                name.push(".counter");
                Some(name.into())
            }
            Location::Postgres(_) => None,
        });
        if raw.default_ttl < MIN_TTL {
            return Err(Invalid::new("default_ttl", "must be at least 10s"));
        }
        if raw.max_ttl < raw.default_ttl {
            return Err(Invalid::new("max_ttl", "must not be less than default_ttl"));
        }
        at_least_one("logins_per_second", raw.logins_per_second.into())?;
        at_least_one("login_burst", raw.login_burst.into())?;
        Ok(Self {
            store,
            seal: raw.seal,
            tokens: token::Limits {
                default_ttl: raw.default_ttl.as_secs(),
                max_ttl: raw.max_ttl.as_secs(),
            },
            logins: login::Limits {
                rate: raw.logins_per_second,
                burst: raw.login_burst,
                ..login::Limits::default()
            },
            guard: Guard {
                counter,
                accept_rollback: raw.accept_rollback,
            },
            audit_sinks: audit_sink::sinks(raw.audit_sinks)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete() -> Raw {
        Raw {
            certificate: Some("keyvault.crt".into()),
            database: Some("keyvault.sqlite".into()),
            ..Raw::default()
        }
    }

    fn refused(change: impl FnOnce(&mut Raw)) -> String {
        let mut raw = complete();
        change(&mut raw);
        Standalone::try_from(raw).unwrap_err().key
    }

    #[test]
    fn what_is_needed_and_missing_or_senseless_is_named() {
        assert!(Standalone::try_from(complete()).is_ok());
        assert_eq!(refused(|raw| raw.certificate = None), "certificate");
        assert_eq!(refused(|raw| raw.database = None), "database");
        let ttl = Duration::from_secs(5);
        assert_eq!(refused(|raw| raw.default_ttl = ttl), "default_ttl");
        assert_eq!(refused(|raw| raw.max_ttl = ttl), "max_ttl");
        let rate = refused(|raw| raw.logins_per_second = 0);
        assert_eq!(rate, "logins_per_second");
        assert_eq!(refused(|raw| raw.login_burst = 0), "login_burst");
        let nameless = RawSink::default();
        let sink = refused(|raw| raw.audit_sinks = vec![nameless]);
        assert_eq!(sink, "audit_sinks[0].name");
    }

    #[test]
    fn a_database_is_a_file_or_a_server_and_its_url_holds_no_password() {
        let with = |database: &str| {
            let mut raw = complete();
            raw.database = Some(database.to_owned());
            Standalone::try_from(raw).map(|config| config.vault.store)
        };
        assert!(matches!(with("kv.sqlite"), Ok(Location::Sqlite(_))));
        let server = with("postgres://wavry@localhost/keyvault");
        assert!(matches!(server, Ok(Location::Postgres(_))));
        for url in [
            "postgres://wavry:s3cret@localhost/keyvault",
            "mysql://localhost/keyvault",
        ] {
            let refused = with(url).unwrap_err();
            assert_eq!(refused.key, "database");
            assert!(!refused.problem.contains("s3cret"));
        }
    }
}
