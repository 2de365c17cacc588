//! What the relay is told: [`Raw`] as it is written, [`Config`] as it was checked.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use url::Url;
use wavry_credentials::{cert::Trust, identity::rotation::Pace};
use wavry_proto::{
    config::{Invalid, at_least_one, required},
    id::ServiceName,
    overlay::transit::Limits,
};

/// Configuration as it is written, in table `relay`. Every key may be left out; those without a
/// default are missed by [`Config::try_from`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Raw {
    /// UDP address at which gateways connect.
    pub mesh_listen: SocketAddr,
    /// UDP addresses at which gateways find this relay; `mesh_listen` when empty.
    pub advertise: Vec<SocketAddr>,
    /// Nobody reaches `mesh_listen` from outside: gateways come through transit relays, with which this relay
    /// keeps in touch.
    pub behind_nat: bool,
    /// The master: `https://HOST:PORT`, or several with commas between them.
    pub master: Option<String>,
    /// PEM file of the authorities that vouch for the master.
    pub ca_file: Option<PathBuf>,
    /// What is known of the cluster is acted on for so long after a master signed it.
    #[serde(with = "wavry_proto::duration")]
    pub max_roster_age: Duration,
    /// How long an identity serves before another takes its place.
    #[serde(with = "wavry_proto::duration")]
    pub identity_lifetime: Duration,
    /// Directory for what registration gave.
    pub state_dir: Option<PathBuf>,
    /// Most sessions at once.
    pub max_sessions: usize,
    /// A session on which nothing moves for so long is closed.
    #[serde(with = "wavry_proto::duration")]
    pub idle_timeout: Duration,
    /// How long sessions may go on once the relay was told to leave.
    #[serde(with = "wavry_proto::duration")]
    pub drain_timeout: Duration,
    /// Packets of other nodes are forwarded, where this is there.
    pub transit: Option<RawTransit>,
    /// Where each service is found.
    pub upstreams: BTreeMap<String, RawUpstream>,
}

/// Table `relay.transit`, as it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawTransit {
    /// UDP address at which other nodes' packets are taken.
    pub listen: SocketAddr,
    /// UDP addresses at which other nodes find it; `listen` when empty.
    pub advertise: Vec<SocketAddr>,
    /// Most flows at once.
    pub max_flows: usize,
    /// Most flows at once of one node.
    pub max_flows_per_node: usize,
    /// Bits of one flow in a second, both ways together.
    pub flow_bits_per_second: u64,
    /// Packets of one flow in a second, both ways together.
    pub flow_packets_per_second: u64,
    /// Bits that the link carries in a second, both ways together, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_bits_per_second: Option<u64>,
}

impl Default for RawTransit {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 4435)),
            advertise: Vec::new(),
            max_flows: limits.flows,
            max_flows_per_node: limits.flows_each,
            flow_bits_per_second: limits.bytes_per_second * 8,
            flow_packets_per_second: limits.packets_per_second,
            link_bits_per_second: None,
        }
    }
}

/// Table `relay.upstreams.SERVICE`, as it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawUpstream {
    /// `https://HOST:PORT/BASE`, `tcp://HOST:PORT`, `udp://HOST:PORT` or `echo:`.
    pub url: String,
    /// For `https`: PEM file of the authorities that vouch for the upstream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// For `https`: SHA-256 hashes of the upstream's certificate, as hexadecimal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificate_hashes: Vec<String>,
    /// How long the upstream may take to take a session.
    #[serde(default = "connect_timeout", with = "wavry_proto::duration")]
    pub connect_timeout: Duration,
}

fn connect_timeout() -> Duration {
    Duration::from_secs(5)
}

impl RawUpstream {
    /// An upstream with defaults for all but its address.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            ca_file: None,
            certificate_hashes: Vec::new(),
            connect_timeout: connect_timeout(),
        }
    }
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            mesh_listen: SocketAddr::from(([0, 0, 0, 0], 4434)),
            advertise: Vec::new(),
            behind_nat: false,
            master: None,
            ca_file: None,
            max_roster_age: Duration::from_secs(24 * 3600),
            identity_lifetime: Pace::default().lifetime,
            state_dir: None,
            max_sessions: 10_000,
            idle_timeout: Duration::from_secs(300),
            drain_timeout: Duration::from_secs(30),
            transit: None,
            upstreams: BTreeMap::new(),
        }
    }
}

/// Configuration that can be acted on.
#[derive(Debug, Clone)]
pub struct Config {
    /// UDP address at which gateways connect.
    pub mesh_listen: SocketAddr,
    /// UDP addresses at which gateways find this relay; when empty, the one that was bound.
    pub advertise: Vec<SocketAddr>,
    /// Whether gateways come through transit relays, because nobody reaches `mesh_listen` from outside.
    pub behind_nat: bool,
    /// The master: `https://HOST:PORT`, or several with commas between them.
    pub master: String,
    /// PEM file of the authorities that vouch for the master.
    pub ca_file: PathBuf,
    /// What is known of the cluster is acted on for so long after a master signed it.
    pub max_roster_age: Duration,
    /// How long an identity serves before another takes its place.
    pub identity_lifetime: Duration,
    /// Directory for what registration gave.
    pub state_dir: PathBuf,
    /// Most sessions at once.
    pub max_sessions: usize,
    /// A session on which nothing moves for so long is closed.
    pub idle_timeout: Duration,
    /// How long sessions may go on once the relay was told to leave.
    pub drain_timeout: Duration,
    /// Packets of other nodes are forwarded, where this is there.
    pub transit: Option<Transit>,
    /// Where each service is found.
    pub upstreams: BTreeMap<ServiceName, Upstream>,
}

/// How packets of other nodes are forwarded.
#[derive(Debug, Clone)]
pub struct Transit {
    /// UDP address at which they are taken.
    pub listen: SocketAddr,
    /// UDP addresses at which other nodes find it; when empty, the one that was bound.
    pub advertise: Vec<SocketAddr>,
    /// What is carried at most.
    pub limits: Limits,
    /// Bytes that the link carries in a second, where that is known; flows share them.
    pub link: Option<u64>,
}

/// Where a service is found, and for how long it may keep a new session waiting.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// Where.
    pub kind: Kind,
    /// How long it may take to take a session.
    pub connect_timeout: Duration,
}

/// The kinds of upstreams.
#[derive(Debug, Clone)]
pub enum Kind {
    /// A WebTransport server.
    WebTransport {
        /// Where it is.
        at: HostPort,
        /// Path that forwarded paths are appended to; without a slash at its end.
        base: String,
        /// Who vouches for it.
        trust: Trust,
    },
    /// Each bidirectional stream is a TCP connection.
    Tcp(HostPort),
    /// The session's datagrams are a UDP socket.
    Udp(HostPort),
    /// What comes goes back.
    Echo,
}

/// A DNS name or an address, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// DNS name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl TryFrom<Raw> for Config {
    type Error = Invalid;

    fn try_from(raw: Raw) -> Result<Self, Invalid> {
        if raw.max_roster_age < Duration::from_secs(1) {
            return Err(Invalid::new("max_roster_age", "must be at least 1s"));
        }
        if raw.identity_lifetime < Duration::from_secs(1) {
            return Err(Invalid::new("identity_lifetime", "must be at least 1s"));
        }
        let master = required("master", raw.master)?;
        let mut masters = master.split(',');
        if !masters.all(|url| url.trim().starts_with("https://")) {
            let expected = "must be https://HOST:PORT, or several with commas between them";
            return Err(Invalid::new("master", expected));
        }
        if !raw.behind_nat {
            advertised("", "mesh_listen", &raw.advertise, raw.mesh_listen)?;
        } else if !raw.advertise.is_empty() {
            let problem =
                "is for a relay that is reached from outside; behind_nat says that this one is not";
            return Err(Invalid::new("advertise", problem));
        } else if raw.transit.is_some() {
            let problem = "other nodes do not reach a relay that is behind_nat";
            return Err(Invalid::new("transit", problem));
        }
        at_least_one("max_sessions", raw.max_sessions as u64)?;
        if raw.idle_timeout.is_zero() {
            return Err(Invalid::new("idle_timeout", "must be longer than zero"));
        }
        let upstreams = raw
            .upstreams
            .into_iter()
            .map(|(name, upstream)| {
                let key = format!("upstreams.{name}");
                let service = name
                    .parse::<ServiceName>()
                    .map_err(|error| Invalid::new(&key, error.to_string()))?;
                Ok((service, Upstream::check(&key, upstream)?))
            })
            .collect::<Result<_, Invalid>>()?;
        Ok(Self {
            mesh_listen: raw.mesh_listen,
            advertise: raw.advertise,
            behind_nat: raw.behind_nat,
            master,
            ca_file: required("ca_file", raw.ca_file)?,
            max_roster_age: raw.max_roster_age,
            identity_lifetime: raw.identity_lifetime,
            state_dir: required("state_dir", raw.state_dir)?,
            max_sessions: raw.max_sessions,
            idle_timeout: raw.idle_timeout,
            drain_timeout: raw.drain_timeout,
            transit: raw.transit.map(Transit::try_from).transpose()?,
            upstreams,
        })
    }
}

impl TryFrom<RawTransit> for Transit {
    type Error = Invalid;

    fn try_from(raw: RawTransit) -> Result<Self, Invalid> {
        advertised("transit.", "listen", &raw.advertise, raw.listen)?;
        for (key, value) in [
            ("transit.max_flows", raw.max_flows as u64),
            ("transit.max_flows_per_node", raw.max_flows_per_node as u64),
            (
                "transit.flow_packets_per_second",
                raw.flow_packets_per_second,
            ),
        ] {
            at_least_one(key, value)?;
        }
        // Less than a packet in what may come at once would let nothing through.
        if raw.flow_bits_per_second < 1_000_000 {
            let problem = "must be at least 1000000";
            return Err(Invalid::new("transit.flow_bits_per_second", problem));
        }
        if raw
            .link_bits_per_second
            .is_some_and(|bits| bits < 1_000_000)
        {
            let problem = "must be at least 1000000";
            return Err(Invalid::new("transit.link_bits_per_second", problem));
        }
        Ok(Self {
            listen: raw.listen,
            advertise: raw.advertise,
            link: raw.link_bits_per_second.map(|bits| bits / 8),
            limits: Limits {
                flows: raw.max_flows,
                flows_each: raw.max_flows_per_node,
                bytes_per_second: raw.flow_bits_per_second / 8,
                packets_per_second: raw.flow_packets_per_second,
            },
        })
    }
}

/// Whether others can find what listens at `listen`. Keys are named with `table` before them.
fn advertised(
    table: &str,
    listens: &str,
    advertise: &[SocketAddr],
    listen: SocketAddr,
) -> Result<(), Invalid> {
    let key = format!("{table}advertise");
    let unreachable = |a: &SocketAddr| a.ip().is_unspecified() || a.port() == 0;
    if advertise.iter().any(unreachable) {
        return Err(Invalid::new(key, "must be addresses that can be dialled"));
    }
    if advertise.is_empty() && listen.ip().is_unspecified() {
        let problem = format!("is needed where {listens} is not one address");
        return Err(Invalid::new(key, problem));
    }
    Ok(())
}

impl Upstream {
    fn check(key: &str, raw: RawUpstream) -> Result<Self, Invalid> {
        let invalid_url = |problem: &str| Invalid::new(format!("{key}.url"), problem);
        if raw.connect_timeout.is_zero() {
            let problem = "must be longer than zero";
            return Err(Invalid::new(format!("{key}.connect_timeout"), problem));
        }
        let url = Url::parse(&raw.url).map_err(|_| invalid_url("is not a URL"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(invalid_url("must not hold credentials"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(invalid_url("must not have a query or a fragment"));
        }
        if url.scheme() != "https" && !(raw.ca_file.is_none() && raw.certificate_hashes.is_empty())
        {
            return Err(invalid_url("has no certificate to check: it is not https"));
        }
        let needs_port = || invalid_url("must be SCHEME://HOST:PORT");
        let kind = match url.scheme() {
            "https" => Kind::WebTransport {
                at: HostPort::of(&url).ok_or_else(needs_port)?,
                base: url.path().trim_end_matches('/').to_owned(),
                trust: trust(key, raw.ca_file, &raw.certificate_hashes)?,
            },
            "tcp" | "udp" if !matches!(url.path(), "" | "/") => {
                return Err(invalid_url("must not have a path"));
            }
            "tcp" => Kind::Tcp(HostPort::of(&url).ok_or_else(needs_port)?),
            "udp" => Kind::Udp(HostPort::of(&url).ok_or_else(needs_port)?),
            "echo" if url.path().is_empty() && url.host().is_none() => Kind::Echo,
            "echo" => return Err(invalid_url("must be echo: and no more")),
            _ => return Err(invalid_url("must begin with https, tcp, udp or echo")),
        };
        Ok(Self {
            kind,
            connect_timeout: raw.connect_timeout,
        })
    }
}

impl HostPort {
    fn of(url: &Url) -> Option<Self> {
        let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
        let port = url.port_or_known_default().filter(|port| *port != 0)?;
        (!host.is_empty()).then_some(Self { host, port })
    }
}

fn trust(key: &str, ca_file: Option<PathBuf>, hashes: &[String]) -> Result<Trust, Invalid> {
    match (ca_file, hashes) {
        (None, []) => Ok(Trust::System),
        (Some(file), []) => Ok(Trust::Authorities(file)),
        (Some(_), _) => Err(Invalid::new(
            format!("{key}.certificate_hashes"),
            "cannot be there beside ca_file",
        )),
        (None, hashes) => {
            let hashes = hashes
                .iter()
                .map(|text| <[u8; 32]>::try_from(hex::decode(text).ok()?).ok())
                .collect::<Option<_>>();
            hashes.map(Trust::Hashes).ok_or_else(|| {
                Invalid::new(
                    format!("{key}.certificate_hashes"),
                    "must be SHA-256 hashes of 64 hexadecimal digits each",
                )
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(upstream: RawUpstream) -> Result<Config, Invalid> {
        Config::try_from(Raw {
            mesh_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            master: Some("https://127.0.0.1:8443".into()),
            ca_file: Some("ca.crt".into()),
            state_dir: Some("state".into()),
            upstreams: BTreeMap::from([("web".to_owned(), upstream)]),
            ..Raw::default()
        })
    }

    fn kind(url: &str) -> Kind {
        let config = with(RawUpstream::new(url)).unwrap();
        config.upstreams.into_values().next().unwrap().kind
    }

    #[test]
    fn each_kind_of_upstream_is_read() {
        let Kind::WebTransport { at, base, .. } = kind("https://up.example/base/") else {
            panic!("not WebTransport");
        };
        assert_eq!(
            (at.to_string(), base),
            ("up.example:443".into(), "/base".into())
        );
        let Kind::Tcp(at) = kind("tcp://[::1]:7") else {
            panic!("not TCP");
        };
        assert_eq!(at.to_string(), "[::1]:7");
        assert!(matches!(kind("udp://127.0.0.1:7"), Kind::Udp(_)));
        assert!(matches!(kind("echo:"), Kind::Echo));
    }

    #[test]
    fn an_upstream_that_cannot_be_is_refused() {
        for url in [
            "",
            "web",
            "tcp://host",
            "tcp://host:0",
            "tcp://host:7/path",
            "udp://:7",
            "ftp://host:7",
            "echo:x",
            "echo://x",
            "https://user@host/",
            "https://host/?a",
        ] {
            let invalid = with(RawUpstream::new(url)).unwrap_err();
            assert_eq!(invalid.key, "upstreams.web.url", "{url:?}");
        }
    }

    #[test]
    fn whom_to_trust_must_be_said_in_one_way() {
        let mut both = RawUpstream::new("https://host/");
        both.ca_file = Some("ca.crt".into());
        both.certificate_hashes = vec!["00".repeat(32)];
        assert!(with(both.clone()).is_err());
        both.ca_file = None;
        assert!(with(both.clone()).is_ok());
        both.certificate_hashes = vec!["00".to_owned()];
        assert!(with(both).is_err());
    }

    #[test]
    fn a_relay_behind_nat_has_no_address_and_forwards_nothing() {
        let behind = || Raw {
            behind_nat: true,
            master: Some("https://127.0.0.1:8443".into()),
            ca_file: Some("ca.crt".into()),
            state_dir: Some("state".into()),
            ..Raw::default()
        };
        assert!(Config::try_from(behind()).unwrap().behind_nat);
        let advertises = Raw {
            advertise: vec![([192, 0, 2, 1], 4434).into()],
            ..behind()
        };
        assert_eq!(Config::try_from(advertises).unwrap_err().key, "advertise");
        let forwards = Raw {
            transit: Some(RawTransit::default()),
            ..behind()
        };
        assert_eq!(Config::try_from(forwards).unwrap_err().key, "transit");
    }

    #[test]
    fn a_relay_that_nobody_could_find_is_refused() {
        let raw = Raw {
            master: Some("https://127.0.0.1:8443".into()),
            ca_file: Some("ca.crt".into()),
            state_dir: Some("state".into()),
            ..Raw::default()
        };
        assert_eq!(Config::try_from(raw).unwrap_err().key, "advertise");
    }
}
