//! How the gateway's certificate is validated in the DNS.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use http::Uri;
use serde::{Deserialize, Serialize};
use wavry_credentials::acme::dns::{Algorithm, Config, Provider};
use wavry_proto::config::{Invalid, required};

/// Longest wait for a record to be seen: an attempt takes no longer.
const LONGEST_PROPAGATION: Duration = Duration::from_secs(4 * 60);

/// Table `gateway.acme.dns`, as it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawDns {
    /// A DNS server that takes signed updates (RFC 2136), `HOST[:PORT]`; the key is secret `acme_dns_key`.
    pub server: Option<String>,
    /// What that server calls the key.
    pub key_name: Option<String>,
    /// What the key signs with.
    pub algorithm: Algorithm,
    /// Or a program, and what it is given before `add NAME VALUE` or `remove NAME VALUE`.
    pub hook: Option<Vec<String>>,
    /// Or a URL that changes are posted to; what it is shown is secret `acme_dns_token`.
    pub webhook: Option<String>,
    /// PEM file of the authorities that vouch for the webhook.
    pub ca_file: Option<PathBuf>,
    /// Whom to ask where a record has to be.
    pub resolver: Option<SocketAddr>,
    /// Who must have a record before the authority is told; the servers of its zone unless set.
    pub servers: Vec<SocketAddr>,
    /// How long that may take.
    #[serde(with = "wavry_proto::duration")]
    pub propagation_timeout: Duration,
}

impl Default for RawDns {
    fn default() -> Self {
        Self {
            server: None,
            key_name: None,
            algorithm: Algorithm::default(),
            hook: None,
            webhook: None,
            ca_file: None,
            resolver: None,
            servers: Vec::new(),
            propagation_timeout: Duration::from_secs(120),
        }
    }
}

impl RawDns {
    pub(super) fn check(self) -> Result<Config, Invalid> {
        let provider = match (self.server, self.hook, self.webhook) {
            (Some(server), None, None) => {
                if server.is_empty() {
                    return Err(Invalid::new("acme.dns.server", "must be HOST[:PORT]"));
                }
                Provider::Update {
                    server,
                    key_name: required("acme.dns.key_name", self.key_name)?,
                    algorithm: self.algorithm,
                    key_file: None,
                }
            }
            (None, Some(hook), None) => {
                let mut words = hook.into_iter();
                let program = words.next().map(PathBuf::from);
                let program = program.filter(|program| program.is_absolute());
                let problem = "must be the absolute path of a program, and what it is given first";
                Provider::Hook {
                    program: program.ok_or_else(|| Invalid::new("acme.dns.hook", problem))?,
                    arguments: words.collect(),
                }
            }
            (None, None, Some(url)) => {
                check_webhook(&url)?;
                Provider::Webhook {
                    url,
                    ca_file: self.ca_file,
                    token_file: None,
                }
            }
            _ => {
                let problem = "must have one of server, hook and webhook";
                return Err(Invalid::new("acme.dns", problem));
            }
        };
        if !(Duration::from_secs(1)..=LONGEST_PROPAGATION).contains(&self.propagation_timeout) {
            let problem = "must be from 1s to 4m";
            return Err(Invalid::new("acme.dns.propagation_timeout", problem));
        }
        Ok(Config {
            provider,
            resolver: self.resolver,
            servers: self.servers,
            propagation_timeout: self.propagation_timeout,
        })
    }
}

/// A token is sent there: in the clear it goes nowhere but to this machine.
fn check_webhook(url: &str) -> Result<(), Invalid> {
    let uri: Option<Uri> = url.parse().ok();
    let host = uri.as_ref().and_then(Uri::host).unwrap_or_default();
    let here = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    let is_good = match uri.as_ref().and_then(Uri::scheme_str) {
        Some("https") => !host.is_empty(),
        Some("http") => here.is_ok_and(|address| address.is_loopback()),
        _ => false,
    };
    match is_good && !url.contains('@') {
        true => Ok(()),
        false => Err(Invalid::new(
            "acme.dns.webhook",
            "must be https://HOST[:PORT]/PATH, or http:// with a loopback address",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused_key(raw: RawDns) -> String {
        raw.check().unwrap_err().key
    }

    #[test]
    fn a_server_a_program_or_a_webhook_changes_the_dns() {
        let server = RawDns {
            server: Some("ns.example".to_owned()),
            key_name: Some("acme".to_owned()),
            ..RawDns::default()
        };
        let hook = |words: &[&str]| RawDns {
            hook: Some(words.iter().map(ToString::to_string).collect()),
            ..RawDns::default()
        };
        let webhook = |url: &str| RawDns {
            webhook: Some(url.to_owned()),
            ..RawDns::default()
        };
        assert!(server.clone().check().is_ok());
        assert!(hook(&["/usr/local/bin/dns", "zone"]).check().is_ok());
        for url in [
            "https://dns.example/x",
            "http://127.0.0.1:80/",
            "http://[::1]/",
        ] {
            assert!(webhook(url).check().is_ok(), "{url}");
        }
        for url in [
            "",
            "dns.example",
            "http://dns.example/",
            "https://u:p@dns.example/",
        ] {
            assert_eq!(refused_key(webhook(url)), "acme.dns.webhook", "{url}");
        }
        for words in [&[][..], &["dns"], &["./dns"]] {
            assert_eq!(refused_key(hook(words)), "acme.dns.hook", "{words:?}");
        }
        assert_eq!(refused_key(RawDns::default()), "acme.dns");
        let both = RawDns {
            webhook: Some("https://dns.example/".to_owned()),
            ..server.clone()
        };
        assert_eq!(refused_key(both), "acme.dns");
        let mut raw = server.clone();
        raw.key_name = None;
        assert_eq!(refused_key(raw), "acme.dns.key_name");
        let mut raw = server;
        raw.propagation_timeout = Duration::from_secs(3600);
        assert_eq!(refused_key(raw), "acme.dns.propagation_timeout");
    }
}
