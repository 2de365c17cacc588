//! Where copies of an audit log go: [`RawSink`] as it is written, [`Config`] as it was checked.

use std::{collections::HashSet, path::PathBuf};

use http::uri::Authority;
use serde::{Deserialize, Serialize};
use wavry_credentials::audit::syslog::Facility;
use wavry_proto::config::Invalid;

/// One entry of `audit_sinks`, as it is written.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawSink {
    /// Its name in logs and metrics, and in the database, where it stands how far it is.
    pub name: String,
    /// `file:///PATH`, `syslog+tls://HOST[:PORT]`, `syslog+tcp://HOST:PORT`, `syslog+udp://HOST[:PORT]` or
    /// `syslog+unix:///PATH`.
    pub url: String,
    /// Facility of syslog messages.
    pub facility: Facility,
    /// PEM file of the authorities that vouch for the receiver (TLS); those of the system if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// PEM file with the certificate chain to show to the receiver (TLS); its key is secret `syslog_key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
}

/// A sink that can be written to.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its name in logs and metrics, and in the database.
    pub name: String,
    /// Where it is.
    pub target: Target,
}

/// Where a copy goes.
#[derive(Debug, Clone)]
pub enum Target {
    /// A file of JSON lines.
    File(PathBuf),
    /// A syslog receiver (RFC 5424).
    Syslog(Syslog),
}

/// A syslog receiver, and how to talk to it.
#[derive(Debug, Clone)]
pub struct Syslog {
    /// What messages say they are from.
    pub facility: Facility,
    /// How they get there.
    pub transport: Transport,
}

/// How messages get to a receiver.
#[derive(Debug, Clone)]
pub enum Transport {
    /// TLS over TCP (RFC 5425).
    Tls(Host, Tls),
    /// TCP, framed by length (RFC 6587, section 3.4.1).
    Tcp(Host),
    /// UDP (RFC 5426).
    Udp(Host),
    /// Datagrams to a socket of this machine, as `/dev/log`.
    Unix(PathBuf),
}

/// Name or address, and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// A DNS name or an address, without brackets.
    pub name: String,
    /// The port.
    pub port: u16,
}

/// Whom a sink trusts, and how it shows who it is.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// PEM file of authorities; those of the system if `None`.
    pub ca_file: Option<PathBuf>,
    /// PEM file with a certificate chain.
    pub certificate: Option<PathBuf>,
    /// File of the secret `syslog_key`; `None` for where the credentials' source finds it.
    pub key: Option<PathBuf>,
}

/// Registered for syslog over TLS (RFC 5425, section 4.1).
const TLS_PORT: u16 = 6514;
/// RFC 5426, section 3.3.
const UDP_PORT: u16 = 514;
/// Sinks that a log may have: each reads every line.
const MAX_SINKS: usize = 16;

/// Checks the sinks of one log, in table `audit_sinks`.
pub fn sinks(raw: Vec<RawSink>) -> Result<Vec<Config>, Invalid> {
    if raw.len() > MAX_SINKS {
        let problem = format!("must be {MAX_SINKS} at most");
        return Err(Invalid::new("audit_sinks", problem));
    }
    let mut names = HashSet::new();
    let sinks = raw.into_iter().enumerate().map(|(index, raw)| {
        let at = |key: &str| format!("audit_sinks[{index}].{key}");
        if !is_name(&raw.name) {
            let problem = "must be 1 to 64 lower-case letters, digits and hyphens";
            return Err(Invalid::new(at("name"), problem));
        }
        if !names.insert(raw.name.clone()) {
            return Err(Invalid::new(at("name"), "is the name of two sinks"));
        }
        let target =
            target(&raw).map_err(|invalid| Invalid::new(at(&invalid.key), invalid.problem))?;
        Ok(Config {
            name: raw.name,
            target,
        })
    });
    sinks.collect()
}

fn target(raw: &RawSink) -> Result<Target, Invalid> {
    let invalid = |problem: &str| Invalid::new("url", problem);
    let (scheme, rest) = raw.url.split_once("://").ok_or_else(|| invalid(EXPECTED))?;
    let file = || match rest.starts_with('/') && rest.len() > 1 {
        true => Ok(PathBuf::from(rest)),
        false => Err(invalid("must name an absolute path after ://")),
    };
    let host = |port: Option<u16>| host(rest, port).ok_or_else(|| invalid(EXPECTED_HOST));
    let transport = match scheme {
        "syslog+tls" => Transport::Tls(
            host(Some(TLS_PORT))?,
            Tls {
                ca_file: raw.ca_file.clone(),
                certificate: raw.certificate.clone(),
                key: None,
            },
        ),
        "syslog+tcp" => Transport::Tcp(host(None)?),
        "syslog+udp" => Transport::Udp(host(Some(UDP_PORT))?),
        "syslog+unix" => Transport::Unix(file()?),
        "file" => {
            return Ok(Target::File(file()?));
        }
        _ => return Err(invalid(EXPECTED)),
    };
    if !matches!(transport, Transport::Tls(..)) {
        for (key, value) in [("ca_file", &raw.ca_file), ("certificate", &raw.certificate)] {
            if value.is_some() {
                return Err(Invalid::new(key, "is for syslog+tls alone"));
            }
        }
    }
    Ok(Target::Syslog(Syslog {
        facility: raw.facility,
        transport,
    }))
}

const EXPECTED: &str =
    "must begin with file://, syslog+tls://, syslog+tcp://, syslog+udp:// or syslog+unix://";
const EXPECTED_HOST: &str =
    "must name a host, and a port where there is none registered (syslog+tcp), without a path";

fn host(text: &str, port: Option<u16>) -> Option<Host> {
    let authority: Authority = text.parse().ok()?;
    let name = authority.host();
    // What is left of the authority is a port, or nothing: user information would be in the way.
    let port = match authority.as_str().strip_prefix(name)? {
        "" => port?,
        rest => rest.strip_prefix(':')?.parse().ok()?,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let name = name.to_owned();
    (!name.is_empty() && port > 0).then_some(Host { name, port })
}

fn is_name(text: &str) -> bool {
    let is_one = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=64).contains(&text.len()) && text.bytes().all(is_one)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sink(url: &str) -> RawSink {
        RawSink {
            name: "siem".into(),
            url: url.into(),
            ..RawSink::default()
        }
    }

    fn transport(url: &str) -> Transport {
        match sinks(vec![sink(url)]).unwrap().remove(0).target {
            Target::Syslog(syslog) => syslog.transport,
            Target::File(_) => panic!("{url} is a file"),
        }
    }

    #[test]
    fn a_url_says_how_and_where() {
        let at = |name: &str, port| Host {
            name: name.into(),
            port,
        };
        assert!(
            matches!(transport("syslog+tls://siem.example"), Transport::Tls(host, _) if host == at("siem.example", 6514))
        );
        assert!(
            matches!(transport("syslog+tls://[::1]:1"), Transport::Tls(host, _) if host == at("::1", 1))
        );
        assert!(
            matches!(transport("syslog+tcp://10.0.0.1:601"), Transport::Tcp(host) if host == at("10.0.0.1", 601))
        );
        assert!(
            matches!(transport("syslog+udp://siem"), Transport::Udp(host) if host == at("siem", 514))
        );
        assert!(
            matches!(transport("syslog+unix:///dev/log"), Transport::Unix(path) if path.to_str() == Some("/dev/log"))
        );
        let file = sinks(vec![sink("file:///var/log/audit.jsonl")])
            .unwrap()
            .remove(0);
        assert!(
            matches!(file.target, Target::File(path) if path.to_str() == Some("/var/log/audit.jsonl"))
        );
    }

    #[test]
    fn what_is_no_place_for_a_log_is_refused_by_its_key() {
        for url in [
            "",
            "/dev/log",
            "https://siem.example",
            "syslog://siem.example",
            "syslog+tcp://siem.example",
            "syslog+tls://",
            "syslog+tls://siem.example:0",
            "syslog+tls://siem.example:",
            "syslog+tls://siem.example:99999",
            "syslog+tls://ann:secret@siem.example",
            "syslog+tls://siem.example/path",
            "syslog+unix://dev/log",
            "syslog+unix:///",
            "file://audit.jsonl",
        ] {
            let refused = sinks(vec![sink(url)]).expect_err(url);
            assert_eq!(refused.key, "audit_sinks[0].url", "{url}");
            assert!(!refused.problem.contains("secret"), "{url}");
        }
    }

    #[test]
    fn names_are_words_and_given_once() {
        for name in ["", "A", "a b", "\u{e4}", &"a".repeat(65)] {
            let raw = RawSink {
                name: name.into(),
                ..sink("file:///a")
            };
            let refused = sinks(vec![raw]).expect_err(name);
            assert_eq!(refused.key, "audit_sinks[0].name");
        }
        let refused = sinks(vec![sink("file:///a"), sink("file:///b")]).unwrap_err();
        assert_eq!(refused.key, "audit_sinks[1].name");
        let many = (0..17).map(|i| RawSink {
            name: format!("sink-{i}"),
            ..sink("file:///a")
        });
        assert_eq!(sinks(many.collect()).unwrap_err().key, "audit_sinks");
    }

    #[test]
    fn certificates_are_for_tls_alone() {
        let raw = RawSink {
            ca_file: Some("ca.crt".into()),
            ..sink("syslog+udp://siem")
        };
        assert_eq!(sinks(vec![raw]).unwrap_err().key, "audit_sinks[0].ca_file");
    }
}
