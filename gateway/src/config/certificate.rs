//! Where the gateway's certificate comes from.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use wavry_credentials::{acme, source};
use wavry_proto::config::Invalid;

use super::RawDns;

/// Most authorities that are tried one after the other.
const MAX_AUTHORITIES: usize = 8;

/// Most certificates in a KeyVault: each is a request at each look.
const MAX_IN_KEYVAULT: usize = 100;

/// Table `gateway.acme`, as it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawAcme {
    /// What the certificate is for: host names and addresses.
    pub names: Vec<String>,
    /// Whether each name has a certificate of its own.
    pub separate: bool,
    /// Which hosts of services have a certificate of their own, too.
    pub service_hosts: acme::When,
    /// How many of those may get their first certificate in an hour.
    pub new_hosts_per_hour: u32,
    /// Whether gateways of the cluster share certificates: one orders, all use them.
    pub fleet: bool,
    /// Where accounts, certificates and keys are in a KeyVault: mount and path of a KV engine of version 2; on disk unless
    /// set.
    pub keyvault: Option<String>,
    /// Whether the operator agrees to the authorities' terms of service.
    pub terms_of_service_agreed: bool,
    /// How an authority is convinced that the names are ours.
    pub challenge: RawChallenge,
    /// TCP address of the listener for that; port 80 or 443 of every address unless set.
    pub listen: Option<SocketAddr>,
    /// How the DNS is changed, for `dns-01`.
    pub dns: Option<RawDns>,
    /// `mailto:` URLs that an authority may write to.
    pub contacts: Vec<String>,
    /// Whom to ask, in this order; Let's Encrypt unless set.
    pub authorities: Vec<RawAuthority>,
}

/// How an authority is convinced that names are ours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RawChallenge {
    /// By a request to TCP port 80 of the name.
    #[default]
    #[serde(rename = "http-01")]
    Http01,
    /// By a TLS handshake with TCP port 443 of the name.
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
    /// By a text in the DNS.
    #[serde(rename = "dns-01")]
    Dns01,
}

/// Table `gateway.self_signed`, as it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawSelfSigned {
    /// What its certificates are for: host names and addresses.
    pub names: Vec<String>,
}

/// Table `gateway.keyvault`, as it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawKeyVault {
    /// Where certificates and their keys are: mount and path of a KV engine of version 2.
    pub certificates: Vec<String>,
    /// The field there that is the PEM chain.
    pub chain_field: String,
    /// The field there that is its PEM key.
    pub key_field: String,
    /// How often they are looked at.
    #[serde(with = "wavry_proto::duration")]
    pub poll_interval: Duration,
}

/// One of `gateway.acme.authorities`, as it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawAuthority {
    /// What it is called here.
    pub name: String,
    /// URL of its directory.
    pub directory: String,
    /// PEM file of the authorities that vouch for its HTTPS.
    pub ca_file: Option<PathBuf>,
    /// Which of its profiles.
    pub profile: Option<String>,
    /// Id of the key that binds accounts to one that the operator has there; the key is secret
    /// `acme_key_NAME`.
    pub external_key_id: Option<String>,
}

impl Default for RawSelfSigned {
    fn default() -> Self {
        Self {
            names: vec!["localhost".to_owned()],
        }
    }
}

impl Default for RawKeyVault {
    fn default() -> Self {
        Self {
            certificates: Vec::new(),
            chain_field: "certificate".to_owned(),
            key_field: "private_key".to_owned(),
            poll_interval: Duration::from_secs(30),
        }
    }
}

impl Default for RawAcme {
    fn default() -> Self {
        Self {
            names: Vec::new(),
            separate: false,
            service_hosts: acme::When::Never,
            new_hosts_per_hour: 20,
            fleet: false,
            keyvault: None,
            terms_of_service_agreed: false,
            challenge: RawChallenge::default(),
            listen: None,
            dns: None,
            contacts: Vec::new(),
            authorities: Vec::new(),
        }
    }
}

/// Where the certificate comes from.
#[derive(Debug, Clone)]
pub enum Certificate {
    /// A PEM file with the chain; the key is secret `tls_key`.
    File(PathBuf),
    /// A public authority.
    Acme(Box<Wanted>),
    /// A KeyVault.
    KeyVault(RawKeyVault),
    /// The gateway itself.
    SelfSigned {
        /// Where they are kept.
        directory: PathBuf,
        /// What they are for.
        names: Vec<String>,
    },
}

impl Certificate {
    /// With challenges of TLS answered by the listener for HTTPS, where there is one: both want port 443.
    pub(super) fn beside_https(mut self, has_https: bool) -> Result<Self, Invalid> {
        if let (Self::Acme(wanted), true) = (&mut self, has_https)
            && let acme::Challenge::Listener {
                kind: acme::Kind::TlsAlpn01,
                ..
            } = wanted.config.challenge
        {
            if wanted.has_listen {
                let problem = "must be left out: https_listen answers the authority as well";
                return Err(Invalid::new("acme.listen", problem));
            }
            wanted.config.challenge = acme::Challenge::Tls;
        }
        Ok(self)
    }
}

/// What is wanted of public authorities, but for the secrets that it takes.
#[derive(Debug, Clone)]
pub struct Wanted {
    config: acme::Config,
    /// Whether the address of a listener was given.
    has_listen: bool,
    /// Whether gateways share it.
    is_shared: bool,
    /// Where it is kept in a KeyVault.
    keyvault: Option<String>,
    /// For each authority, the id of the key of an external account.
    external_key_ids: Vec<Option<String>>,
}

impl Wanted {
    /// With the places of the secrets, each of which must be there.
    pub(crate) fn with_secrets(&self) -> Result<acme::Config, source::Error> {
        let mut config = self.config.clone();
        for (authority, key_id) in config.authorities.iter_mut().zip(&self.external_key_ids) {
            if let Some(key_id) = key_id {
                let secret = secret_of(authority);
                authority.external_account = Some(acme::ExternalAccount {
                    key_id: key_id.clone(),
                    key_file: source::locate(&secret)?,
                });
            }
        }
        // It is read each time that it is used, and missed at the start.
        if let Some(secret) = self.dns().and_then(acme::dns::Provider::secret) {
            source::find(secret, None)?;
        }
        Ok(config)
    }

    /// Who changes the DNS.
    pub(crate) fn dns(&self) -> Option<&acme::dns::Provider> {
        match &self.config.challenge {
            acme::Challenge::Dns(dns) => Some(&dns.provider),
            acme::Challenge::Listener { .. } | acme::Challenge::Tls => None,
        }
    }

    /// Whether gateways share it.
    pub(crate) fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// Where it is kept in a KeyVault, if it is.
    pub(crate) fn keyvault(&self) -> Option<&str> {
        self.keyvault.as_deref()
    }

    /// Which secrets are read.
    pub(crate) fn secrets(&self) -> impl Iterator<Item = String> {
        let authorities = self.config.authorities.iter().zip(&self.external_key_ids);
        authorities.filter_map(|(authority, id)| id.as_ref().map(|_| secret_of(authority)))
    }
}

/// The secret that is the key of an external account.
fn secret_of(authority: &acme::Authority) -> String {
    format!("acme_key_{}", authority.name.replace('-', "_"))
}

/// What may be given for it.
#[derive(Debug, Default)]
pub(super) struct Given {
    pub(super) file: Option<PathBuf>,
    pub(super) keyvault: Option<RawKeyVault>,
    pub(super) acme: Option<RawAcme>,
    pub(super) self_signed: Option<RawSelfSigned>,
}

impl Given {
    /// One of them, and no other.
    pub(super) fn choose(self, state_dir: &Path) -> Result<Certificate, Invalid> {
        let Self {
            file,
            keyvault,
            acme,
            self_signed,
        } = self;
        match (file, keyvault, acme, self_signed) {
            (Some(file), None, None, None) => Ok(Certificate::File(file)),
            (None, Some(raw), None, None) => Ok(Certificate::KeyVault(raw.check()?)),
            (None, None, Some(raw), None) => Ok(Certificate::Acme(Box::new(raw.check(state_dir)?))),
            (None, None, None, Some(raw)) => Ok(Certificate::SelfSigned {
                directory: state_dir.join("self-signed"),
                names: check_names("self_signed", raw.names, acme::MAX_NAMES, check_own_name)?,
            }),
            (None, None, None, None) => Err(Invalid::new(
                "certificate",
                "is needed, or one of the tables keyvault, acme and self_signed",
            )),
            _ => Err(Invalid::new(
                "certificate",
                "and the tables keyvault, acme and self_signed are sources of one certificate: leave but one",
            )),
        }
    }
}

impl RawKeyVault {
    fn check(self) -> Result<Self, Invalid> {
        let invalid =
            |key: &str, problem: &str| Err(Invalid::new(format!("keyvault.{key}"), problem));
        if !(1..=MAX_IN_KEYVAULT).contains(&self.certificates.len()) {
            let problem = format!("must be from 1 to {MAX_IN_KEYVAULT} paths");
            return invalid("certificates", &problem);
        }
        for (index, path) in self.certificates.iter().enumerate() {
            if self.certificates[..index].contains(path) {
                return invalid(&format!("certificates[{index}]"), "is there twice");
            }
        }
        if self.chain_field == self.key_field {
            return invalid("key_field", "must be another one than chain_field");
        }
        if self.poll_interval < Duration::from_secs(1) {
            return invalid("poll_interval", "must be at least 1s");
        }
        Ok(self)
    }
}

/// The names of a certificate, under `table`.
fn check_names(
    table: &str,
    names: Vec<String>,
    most: usize,
    check: fn(&str) -> Result<(), &'static str>,
) -> Result<Vec<String>, Invalid> {
    if names.is_empty() || names.len() > most {
        let problem = format!("must be from 1 to {most} names");
        return Err(Invalid::new(format!("{table}.names"), problem));
    }
    for (index, name) in names.iter().enumerate() {
        let key = || format!("{table}.names[{index}]");
        check(name).map_err(|problem| Invalid::new(key(), problem))?;
        if names[..index].contains(name) {
            return Err(Invalid::new(key(), "is there twice"));
        }
    }
    Ok(names)
}

/// One label is enough: no authority has to find it.
fn check_own_name(name: &str) -> Result<(), &'static str> {
    let is_address = name.parse::<IpAddr>().is_ok();
    match is_address || acme::check_name(&format!("{name}.example")).is_ok() {
        true => Ok(()),
        false => Err("is neither an address nor a host name in lower case"),
    }
}

impl RawAcme {
    fn check(self, state_dir: &Path) -> Result<Wanted, Invalid> {
        let check = match self.challenge {
            RawChallenge::Dns01 => acme::check_dns_name,
            _ => acme::check_name,
        };
        if self.new_hosts_per_hour == 0 {
            return Err(Invalid::new(
                "acme.new_hosts_per_hour",
                "must be 1 at least",
            ));
        }
        let most = match self.separate {
            true => acme::MAX_CERTIFICATES,
            false => acme::MAX_NAMES,
        };
        let names = check_names("acme", self.names, most, check)?;
        if !self.terms_of_service_agreed {
            return Err(Invalid::new(
                "acme.terms_of_service_agreed",
                "must be true: authorities issue to nobody who does not agree to their terms",
            ));
        }
        if self.fleet && self.keyvault.is_some() {
            let problem = "and fleet are two places: gateways that share certificates keep them at the master";
            return Err(Invalid::new("acme.keyvault", problem));
        }
        for (index, contact) in self.contacts.iter().enumerate() {
            if !contact.starts_with("mailto:") {
                let key = format!("acme.contacts[{index}]");
                return Err(Invalid::new(key, "must be mailto:ADDRESS"));
            }
        }
        let authorities = match self.authorities.is_empty() {
            true => vec![lets_encrypt()],
            false => self.authorities,
        };
        if authorities.len() > MAX_AUTHORITIES {
            let problem = format!("must be {MAX_AUTHORITIES} at most");
            return Err(Invalid::new("acme.authorities", problem));
        }
        for (index, authority) in authorities.iter().enumerate() {
            let invalid = |key: &str, problem: &str| {
                let key = format!("acme.authorities[{index}].{key}");
                Err(Invalid::new(key, problem))
            };
            let is_one =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            let name = &authority.name;
            if !(1..=32).contains(&name.len()) || !name.bytes().all(is_one) {
                return invalid("name", "must be 1 to 32 of a-z, 0-9 and -");
            }
            if authorities[..index].iter().any(|other| other.name == *name) {
                return invalid("name", "is there twice");
            }
            if !authority.directory.starts_with("https://") {
                return invalid("directory", "must be https://HOST[:PORT]/PATH");
            }
        }
        let listener = |kind, port| acme::Challenge::Listener {
            kind,
            listen: self.listen.unwrap_or(([0, 0, 0, 0], port).into()),
        };
        let challenge = match (self.challenge, self.dns) {
            (RawChallenge::Http01, None) => listener(acme::Kind::Http01, 80),
            (RawChallenge::TlsAlpn01, None) => listener(acme::Kind::TlsAlpn01, 443),
            (RawChallenge::Dns01, Some(_)) if self.listen.is_some() => {
                let problem = "is for http-01 and tls-alpn-01: nobody comes for dns-01";
                return Err(Invalid::new("acme.listen", problem));
            }
            (RawChallenge::Dns01, Some(dns)) => acme::Challenge::Dns(dns.check()?),
            (RawChallenge::Dns01, None) => {
                let problem = "is needed: it says how the DNS is changed";
                return Err(Invalid::new("acme.dns", problem));
            }
            (_, Some(_)) => {
                let problem = "must be dns-01 where table acme.dns is given";
                return Err(Invalid::new("acme.challenge", problem));
            }
        };
        Ok(Wanted {
            has_listen: self.listen.is_some(),
            is_shared: self.fleet,
            keyvault: self.keyvault,
            external_key_ids: authorities
                .iter()
                .map(|authority| authority.external_key_id.clone())
                .collect(),
            config: acme::Config {
                directory: state_dir.join("acme"),
                names,
                separate: self.separate,
                service_hosts: self.service_hosts,
                new_hosts_per_hour: self.new_hosts_per_hour,
                authorities: authorities.into_iter().map(Into::into).collect(),
                contacts: self.contacts,
                challenge,
            },
        })
    }
}

impl From<RawAuthority> for acme::Authority {
    fn from(raw: RawAuthority) -> Self {
        Self {
            name: raw.name,
            directory: raw.directory,
            ca_file: raw.ca_file,
            profile: raw.profile,
            external_account: None,
        }
    }
}

fn lets_encrypt() -> RawAuthority {
    RawAuthority {
        name: "letsencrypt".to_owned(),
        directory: acme::LETS_ENCRYPT.to_owned(),
        ca_file: None,
        profile: None,
        external_key_id: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete() -> RawAcme {
        RawAcme {
            names: vec!["gateway.example".to_owned(), "192.0.2.1".to_owned()],
            terms_of_service_agreed: true,
            ..RawAcme::default()
        }
    }

    fn other(name: &str) -> RawAuthority {
        RawAuthority {
            name: name.to_owned(),
            ..lets_encrypt()
        }
    }

    fn refused_key(raw: RawAcme) -> String {
        raw.check("state".as_ref()).unwrap_err().key
    }

    #[test]
    fn names_and_the_agreement_are_enough() {
        let wanted = complete().check("state".as_ref()).unwrap().config;
        assert_eq!(wanted.directory, Path::new("state/acme"));
        assert_eq!(wanted.authorities[0].directory, acme::LETS_ENCRYPT);
        let listens_at = |raw: RawAcme| match raw.check("state".as_ref()).unwrap().config.challenge
        {
            acme::Challenge::Listener { listen, .. } => listen,
            acme::Challenge::Dns(_) | acme::Challenge::Tls => panic!("nobody comes"),
        };
        assert_eq!(listens_at(complete()), ([0, 0, 0, 0], 80).into());
        let mut raw = complete();
        raw.challenge = RawChallenge::TlsAlpn01;
        assert_eq!(listens_at(raw).port(), 443);
    }

    #[test]
    fn the_listener_for_https_answers_an_authority_as_well() {
        let mut raw = complete();
        raw.challenge = RawChallenge::TlsAlpn01;
        let choose = |raw: RawAcme| {
            let given = Given {
                acme: Some(raw),
                ..Given::default()
            };
            given.choose("s".as_ref()).unwrap()
        };
        let challenge = |certificate| match certificate {
            Certificate::Acme(wanted) => wanted.config.challenge,
            _ => panic!("it is obtained"),
        };
        let beside = choose(raw.clone()).beside_https(true).unwrap();
        assert!(matches!(challenge(beside), acme::Challenge::Tls));
        let alone = choose(raw.clone()).beside_https(false).unwrap();
        assert!(matches!(challenge(alone), acme::Challenge::Listener { .. }));
        let http = choose(complete()).beside_https(true).unwrap();
        assert!(matches!(challenge(http), acme::Challenge::Listener { .. }));
        raw.listen = Some(([0, 0, 0, 0], 443).into());
        let twice = choose(raw).beside_https(true).unwrap_err();
        assert_eq!(twice.key, "acme.listen");
    }

    #[test]
    fn wildcards_are_validated_in_the_dns_and_addresses_are_not() {
        let in_dns = || RawAcme {
            names: vec!["gateway.example".to_owned(), "*.gateway.example".to_owned()],
            challenge: RawChallenge::Dns01,
            dns: Some(RawDns {
                hook: Some(vec!["/bin/hook".to_owned()]),
                ..RawDns::default()
            }),
            ..complete()
        };
        let wanted = in_dns().check("state".as_ref()).unwrap();
        assert!(wanted.dns().is_some());
        let mut raw = in_dns();
        raw.names.push("192.0.2.1".to_owned());
        assert_eq!(refused_key(raw), "acme.names[2]");
        let mut raw = in_dns();
        raw.dns = None;
        assert_eq!(refused_key(raw), "acme.dns");
        let mut raw = in_dns();
        raw.listen = Some(([127, 0, 0, 1], 80).into());
        assert_eq!(refused_key(raw), "acme.listen");
        let mut raw = in_dns();
        raw.names.truncate(1);
        raw.challenge = RawChallenge::Http01;
        assert_eq!(refused_key(raw), "acme.challenge");
    }

    #[test]
    fn many_names_have_certificates_of_their_own() {
        let mut raw = complete();
        raw.names = (0..101).map(|n| format!("n{n}.example")).collect();
        assert_eq!(refused_key(raw.clone()), "acme.names");
        raw.separate = true;
        raw.fleet = true;
        let wanted = raw.clone().check("state".as_ref()).unwrap();
        assert!(wanted.is_shared() && wanted.config.separate);
        raw.names = (0..1001).map(|n| format!("n{n}.example")).collect();
        assert_eq!(refused_key(raw), "acme.names");
    }

    #[test]
    fn a_certificate_comes_from_one_place() {
        let file = || Given {
            file: Some("a.crt".into()),
            ..Given::default()
        };
        let choose = |given: Given| given.choose("s".as_ref());
        assert!(matches!(choose(file()), Ok(Certificate::File(_))));
        let acme = || Given {
            acme: Some(complete()),
            ..Given::default()
        };
        assert!(matches!(choose(acme()), Ok(Certificate::Acme(_))));
        let own = || Given {
            self_signed: Some(RawSelfSigned::default()),
            ..Given::default()
        };
        let Ok(Certificate::SelfSigned { directory, names }) = choose(own()) else {
            panic!("it is not self-signed");
        };
        assert_eq!(directory, Path::new("s/self-signed"));
        assert_eq!(names, ["localhost"]);
        let kept = || Given {
            keyvault: Some(in_keyvault(&["secret/a"])),
            ..Given::default()
        };
        assert!(matches!(choose(kept()), Ok(Certificate::KeyVault(_))));
        for refused in [
            Given::default(),
            Given {
                file: file().file,
                ..acme()
            },
            Given {
                file: file().file,
                ..own()
            },
            Given {
                acme: acme().acme,
                ..own()
            },
            Given {
                acme: acme().acme,
                ..kept()
            },
        ] {
            assert_eq!(choose(refused).unwrap_err().key, "certificate");
        }
    }

    fn in_keyvault(paths: &[&str]) -> RawKeyVault {
        RawKeyVault {
            certificates: paths.iter().map(|path| (*path).to_owned()).collect(),
            ..RawKeyVault::default()
        }
    }

    #[test]
    fn what_is_in_a_keyvault_has_places_of_its_own() {
        let refused = |raw: RawKeyVault| raw.check().unwrap_err().key;
        assert_eq!(refused(in_keyvault(&[])), "keyvault.certificates");
        let twice = in_keyvault(&["secret/a", "secret/a"]);
        assert_eq!(refused(twice), "keyvault.certificates[1]");
        let mut raw = in_keyvault(&["secret/a"]);
        raw.key_field = raw.chain_field.clone();
        assert_eq!(refused(raw), "keyvault.key_field");
        let mut raw = in_keyvault(&["secret/a"]);
        raw.poll_interval = Duration::from_millis(999);
        assert_eq!(refused(raw), "keyvault.poll_interval");
    }

    #[test]
    fn a_name_of_ones_own_may_have_one_label() {
        let choose = |name: &str| {
            let own = RawSelfSigned {
                names: vec![name.to_owned()],
            };
            let given = Given {
                self_signed: Some(own),
                ..Given::default()
            };
            given.choose("s".as_ref())
        };
        for name in ["gateway", "gateway.lan", "192.0.2.1", "::1"] {
            assert!(choose(name).is_ok(), "{name}");
        }
        for name in ["", "*", "*.lan", "Gateway", "a b", "-a"] {
            assert_eq!(
                choose(name).unwrap_err().key,
                "self_signed.names[0]",
                "{name}"
            );
        }
    }

    #[test]
    fn what_no_authority_would_take_is_refused_by_key() {
        let mut raw = complete();
        raw.names.clear();
        assert_eq!(refused_key(raw), "acme.names");
        let mut raw = complete();
        raw.names.push("*.gateway.example".to_owned());
        assert_eq!(refused_key(raw), "acme.names[2]");
        let mut raw = complete();
        raw.names.push("192.0.2.1".to_owned());
        assert_eq!(refused_key(raw), "acme.names[2]");
        let mut raw = complete();
        raw.terms_of_service_agreed = false;
        assert_eq!(refused_key(raw), "acme.terms_of_service_agreed");
        let mut raw = complete();
        raw.contacts = vec!["operator@example".to_owned()];
        assert_eq!(refused_key(raw), "acme.contacts[0]");
        let mut raw = complete();
        raw.keyvault = Some("secret/acme".to_owned());
        assert!(raw.clone().check("state".as_ref()).is_ok());
        raw.fleet = true;
        assert_eq!(refused_key(raw), "acme.keyvault");
    }

    #[test]
    fn authorities_have_names_of_their_own_that_can_be_file_names() {
        for (names, key) in [
            (vec!["a", "a"], "acme.authorities[1].name"),
            (vec!["a", "../b"], "acme.authorities[1].name"),
            (vec![""], "acme.authorities[0].name"),
            (
                vec!["a", "b", "c", "d", "e", "f", "g", "h", "i"],
                "acme.authorities",
            ),
        ] {
            let mut raw = complete();
            raw.authorities = names.into_iter().map(other).collect();
            assert_eq!(refused_key(raw), key);
        }
        let mut raw = complete();
        raw.authorities = vec![RawAuthority {
            directory: "http://authority.example/dir".to_owned(),
            ..other("a")
        }];
        assert_eq!(refused_key(raw), "acme.authorities[0].directory");
    }
}
