//! What the gateway is told: [`Raw`] as it is written, [`Config`] as it was checked.

mod certificate;
mod dns;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use wavry_credentials::identity::rotation::Pace;
use wavry_proto::config::{Invalid, at_least_one, required};
use wavry_transport::{socket, webtransport};

use crate::forward;

pub use self::{
    certificate::{Certificate, RawAcme, RawAuthority, RawChallenge, RawKeyVault, RawSelfSigned},
    dns::RawDns,
};

/// Configuration as it is written, in table `gateway`. Every key may be left out; those without a
/// default are missed by [`Config::try_from`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Raw {
    /// UDP address at which clients connect.
    pub listen: SocketAddr,
    /// Sockets on that address, each served by a task of its own.
    pub shards: usize,
    /// TCP address at which HTTPS is answered, beside HTTP/3; none unless set.
    pub https_listen: Option<SocketAddr>,
    /// PEM file with the certificate chain; its key is secret `tls_key`.
    pub certificate: Option<PathBuf>,
    /// The certificate and its key are kept in a KeyVault instead.
    pub keyvault: Option<RawKeyVault>,
    /// The certificate is obtained from a public authority instead.
    pub acme: Option<RawAcme>,
    /// The gateway signs its certificates itself, for clients that trust them by their hash.
    pub self_signed: Option<RawSelfSigned>,
    /// Directory for what registration gave.
    pub state_dir: Option<PathBuf>,
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
    /// UDP address from which the mesh is dialled.
    pub mesh_bind: SocketAddr,
    /// Most sessions at once.
    pub max_sessions: u32,
    /// Most sessions at once from one IPv4 address or IPv6 /64.
    pub sessions_per_ip: u32,
    /// Most sessions at once of one subject with one service; `None` for no such limit.
    pub sessions_per_subject: Option<u32>,
    /// A session on which nothing moves for so long is closed.
    #[serde(with = "wavry_proto::duration")]
    pub idle_timeout: Duration,
    /// How long sessions may go on once the gateway was told to leave.
    #[serde(with = "wavry_proto::duration")]
    pub drain_timeout: Duration,
    /// So long before a session's token expires, its client is asked to finish.
    #[serde(with = "wavry_proto::duration")]
    pub expiry_notice: Duration,
    /// How long the way to the upstream may take to answer.
    #[serde(with = "wavry_proto::duration")]
    pub open_timeout: Duration,
    /// Request headers handed to upstreams besides the usual ones.
    pub forward_headers: Vec<String>,
    /// Bounds on what a client can make the gateway hold.
    pub webtransport: RawWebTransport,
}

/// Table `gateway.webtransport`, as it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawWebTransport {
    /// Longest header block in bytes.
    pub max_header_block: usize,
    /// Longest content of a request that asks for no session, in bytes.
    pub max_content: usize,
    /// Sessions at once on one connection.
    pub sessions_per_connection: usize,
    /// Streams of each kind a client may have open on a connection.
    pub streams: u64,
    /// Connections at once.
    pub connections: usize,
    /// Connections at once from one IPv4 address or IPv6 /64.
    pub connections_per_ip: usize,
    /// Handshakes at once from which on clients must prove their address.
    pub unproven_handshakes: usize,
    /// Handshakes a second.
    pub handshake_rate: u32,
    /// Handshakes a second from one IPv4 address or IPv6 /64.
    pub handshake_rate_per_ip: u32,
    /// From handshake to request, and from a stream's first byte to the end of its header.
    #[serde(with = "wavry_proto::duration")]
    pub header_timeout: Duration,
    /// A connection on which nothing arrives for so long is lost.
    #[serde(with = "wavry_proto::duration")]
    pub idle_timeout: Duration,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 4433)),
            shards: std::thread::available_parallelism()
                .map_or(1, |cores| cores.get().min(socket::MAX_SHARDS)),
            https_listen: None,
            certificate: None,
            keyvault: None,
            acme: None,
            self_signed: None,
            state_dir: None,
            master: None,
            ca_file: None,
            max_roster_age: Duration::from_secs(24 * 3600),
            identity_lifetime: Pace::default().lifetime,
            mesh_bind: SocketAddr::from(([0, 0, 0, 0], 0)),
            max_sessions: 10_000,
            sessions_per_ip: 100,
            sessions_per_subject: None,
            idle_timeout: Duration::from_secs(300),
            drain_timeout: Duration::from_secs(30),
            expiry_notice: Duration::from_secs(60),
            open_timeout: Duration::from_secs(10),
            forward_headers: Vec::new(),
            webtransport: RawWebTransport::default(),
        }
    }
}

impl Default for RawWebTransport {
    fn default() -> Self {
        let limits = webtransport::Limits::default();
        Self {
            max_header_block: limits.max_header_block,
            max_content: limits.max_content,
            sessions_per_connection: limits.sessions_per_connection,
            streams: limits.streams,
            connections: limits.connections,
            connections_per_ip: limits.connections_per_ip,
            unproven_handshakes: limits.unproven_handshakes,
            handshake_rate: limits.handshake_rate,
            handshake_rate_per_ip: limits.handshake_rate_per_ip,
            header_timeout: limits.header_timeout,
            idle_timeout: limits.idle_timeout,
        }
    }
}

/// Configuration that can be acted on.
#[derive(Debug, Clone)]
pub struct Config {
    /// UDP address at which clients connect.
    pub listen: SocketAddr,
    /// Sockets on that address, each served by a task of its own.
    pub shards: usize,
    /// TCP address at which HTTPS is answered, beside HTTP/3.
    pub https_listen: Option<SocketAddr>,
    /// Where the certificate comes from.
    pub certificate: Certificate,
    /// Directory for what registration gave.
    pub state_dir: PathBuf,
    /// The master: `https://HOST:PORT`, or several with commas between them.
    pub master: String,
    /// PEM file of the authorities that vouch for the master.
    pub ca_file: PathBuf,
    /// What is known of the cluster is acted on for so long after a master signed it.
    pub max_roster_age: Duration,
    /// How long an identity serves before another takes its place.
    pub identity_lifetime: Duration,
    /// UDP address from which the mesh is dialled.
    pub mesh_bind: SocketAddr,
    /// Most sessions at once.
    pub max_sessions: u32,
    /// Most sessions at once from one IPv4 address or IPv6 /64.
    pub sessions_per_ip: u32,
    /// Most sessions at once of one subject with one service; `None` for no such limit.
    pub sessions_per_subject: Option<u32>,
    /// A session on which nothing moves for so long is closed.
    pub idle_timeout: Duration,
    /// How long sessions may go on once the gateway was told to leave.
    pub drain_timeout: Duration,
    /// So long before a session's token expires, its client is asked to finish.
    pub expiry_notice: Duration,
    /// How long the way to the upstream may take to answer.
    pub open_timeout: Duration,
    /// Request headers handed to upstreams, in lower case.
    pub forward_headers: forward::Headers,
    /// Bounds on what a client can make the gateway hold.
    pub webtransport: webtransport::Limits,
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
        let web = raw.webtransport;
        if !(1..=socket::MAX_SHARDS).contains(&raw.shards) {
            let problem = format!("must be from 1 to {}", socket::MAX_SHARDS);
            return Err(Invalid::new("shards", problem));
        }
        at_least_one("max_sessions", raw.max_sessions.into())?;
        at_least_one("sessions_per_ip", raw.sessions_per_ip.into())?;
        let per_subject = raw.sessions_per_subject.unwrap_or(u32::MAX);
        at_least_one("sessions_per_subject", per_subject.into())?;
        at_least_one(
            "webtransport.sessions_per_connection",
            web.sessions_per_connection as u64,
        )?;
        at_least_one("webtransport.streams", web.streams)?;
        at_least_one("webtransport.connections", web.connections as u64)?;
        at_least_one(
            "webtransport.connections_per_ip",
            web.connections_per_ip as u64,
        )?;
        at_least_one("webtransport.handshake_rate", web.handshake_rate.into())?;
        at_least_one(
            "webtransport.handshake_rate_per_ip",
            web.handshake_rate_per_ip.into(),
        )?;
        if web.max_header_block < 1024 {
            return Err(Invalid::new(
                "webtransport.max_header_block",
                "must be at least 1024 bytes",
            ));
        }
        for (key, duration) in [
            ("idle_timeout", raw.idle_timeout),
            ("open_timeout", raw.open_timeout),
            ("webtransport.header_timeout", web.header_timeout),
            ("webtransport.idle_timeout", web.idle_timeout),
        ] {
            if duration.is_zero() {
                return Err(Invalid::new(key, "must be longer than zero"));
            }
        }
        let state_dir = required("state_dir", raw.state_dir)?;
        let given = certificate::Given {
            file: raw.certificate,
            keyvault: raw.keyvault,
            acme: raw.acme,
            self_signed: raw.self_signed,
        };
        let certificate = given
            .choose(&state_dir)?
            .beside_https(raw.https_listen.is_some())?;
        let forward_headers = forward::Headers::new(&raw.forward_headers)
            .map_err(|problem| Invalid::new("forward_headers", problem))?;
        Ok(Self {
            listen: raw.listen,
            shards: raw.shards,
            https_listen: raw.https_listen,
            certificate,
            state_dir,
            master,
            ca_file: required("ca_file", raw.ca_file)?,
            max_roster_age: raw.max_roster_age,
            identity_lifetime: raw.identity_lifetime,
            mesh_bind: raw.mesh_bind,
            max_sessions: raw.max_sessions,
            sessions_per_ip: raw.sessions_per_ip,
            sessions_per_subject: raw.sessions_per_subject,
            idle_timeout: raw.idle_timeout,
            drain_timeout: raw.drain_timeout,
            expiry_notice: raw.expiry_notice,
            open_timeout: raw.open_timeout,
            forward_headers,
            webtransport: webtransport::Limits {
                max_header_block: web.max_header_block,
                max_content: web.max_content,
                sessions_per_connection: web.sessions_per_connection,
                streams: web.streams,
                connections: web.connections,
                connections_per_ip: web.connections_per_ip,
                unproven_handshakes: web.unproven_handshakes,
                handshake_rate: web.handshake_rate,
                handshake_rate_per_ip: web.handshake_rate_per_ip,
                header_timeout: web.header_timeout,
                idle_timeout: web.idle_timeout,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete() -> Raw {
        Raw {
            certificate: Some("gateway.crt".into()),
            state_dir: Some("state".into()),
            master: Some("https://127.0.0.1:8443".into()),
            ca_file: Some("ca.crt".into()),
            ..Raw::default()
        }
    }

    fn refused_key(raw: Raw) -> String {
        Config::try_from(raw).unwrap_err().key
    }

    #[test]
    fn what_is_needed_and_missing_is_named() {
        assert!(Config::try_from(complete()).is_ok());
        let mut raw = complete();
        raw.certificate = None;
        assert_eq!(refused_key(raw), "certificate");
        let mut raw = complete();
        raw.state_dir = None;
        assert_eq!(refused_key(raw), "state_dir");
        let mut raw = complete();
        raw.master = None;
        assert_eq!(refused_key(raw), "master");
        let mut raw = complete();
        raw.ca_file = None;
        assert_eq!(refused_key(raw), "ca_file");
    }

    #[test]
    fn values_that_would_stop_everything_are_refused() {
        let mut raw = complete();
        raw.sessions_per_ip = 0;
        assert_eq!(refused_key(raw), "sessions_per_ip");
        let mut raw = complete();
        raw.sessions_per_subject = Some(0);
        assert_eq!(refused_key(raw), "sessions_per_subject");
        let mut raw = complete();
        raw.shards = socket::MAX_SHARDS + 1;
        assert_eq!(refused_key(raw), "shards");
        let mut raw = complete();
        raw.webtransport.handshake_rate_per_ip = 0;
        assert_eq!(refused_key(raw), "webtransport.handshake_rate_per_ip");
        let mut raw = complete();
        raw.webtransport.idle_timeout = Duration::ZERO;
        assert_eq!(refused_key(raw), "webtransport.idle_timeout");
        let mut raw = complete();
        raw.master = Some("http://127.0.0.1".into());
        assert_eq!(refused_key(raw), "master");
    }

    #[test]
    fn a_credential_cannot_be_configured_to_be_forwarded() {
        for name in [
            "Authorization",
            "cookie",
            "Connection",
            "x-wavry-subject",
            "a b",
        ] {
            let mut raw = complete();
            raw.forward_headers = vec![name.to_owned()];
            assert_eq!(refused_key(raw), "forward_headers", "{name} was taken");
        }
    }
}
