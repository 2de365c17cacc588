//! dns-01 (RFC 8555, section 8.4): a text in the DNS at `_acme-challenge.NAME`. It needs no listener, and is the
//! one challenge that wildcards can be validated by.
//!
//! * `zone`: where a record has to be, which a CNAME may say, and whether the servers of its zone have it.
//! * `update`, `hook`, `webhook`: three ways to change the DNS. `exchange` carries messages of its own protocol.
//!
//! What is to be removed is on disk before it is added: a process that ends in an attempt removes it when it starts
//! again.

mod answer;
mod exchange;
mod hook;
mod update;
mod webhook;
mod zone;

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hickory_proto::{ProtoError, op::ResponseCode, rr::Name};
use serde::{Deserialize, Serialize};
use tokio::{net::lookup_host, time::Instant};

pub use crate::key::tsig::Algorithm;
use crate::{
    acme::{http::Client, machine::Time},
    bearer::Token,
    cert::{self, Trust},
    key::{format::Fault, tsig},
    redact::Place,
    source,
};

/// The label under which an authority looks.
const LABEL: &str = "_acme-challenge";
/// Where DNS servers listen.
const PORT: u16 = 53;
/// File of the records that are to be removed.
const PUBLISHED: &str = "published.json";
/// Says whom this machine asks.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Between two attempts to remove what could not be removed.
const REMOVE_AGAIN: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(60 * 60));

/// How records come to be in the DNS.
#[derive(Debug, Clone)]
pub struct Config {
    /// Who changes it.
    pub provider: Provider,
    /// Whom to ask where a record has to be; who this machine asks if `None`.
    pub resolver: Option<SocketAddr>,
    /// Who must have a record before the authority is told; the servers of its zone if empty.
    pub servers: Vec<SocketAddr>,
    /// How long that may take.
    pub propagation_timeout: Duration,
}

/// Who changes the DNS.
#[derive(Debug, Clone)]
pub enum Provider {
    /// A server that takes signed updates (RFC 2136).
    Update {
        /// Its address, `HOST[:PORT]`.
        server: String,
        /// What it calls the key.
        key_name: String,
        /// What the key signs with.
        algorithm: Algorithm,
        /// File of secret `acme_dns_key`; found where the variables say if `None`.
        key_file: Option<PathBuf>,
    },
    /// A program.
    Hook {
        /// Its path.
        program: PathBuf,
        /// What it is given before `add NAME VALUE` or `remove NAME VALUE`.
        arguments: Vec<String>,
    },
    /// A service that takes HTTP requests.
    Webhook {
        /// Where to: `https://`, or `http://` on this machine.
        url: String,
        /// PEM file of the authorities that vouch for it; those of the system if `None`.
        ca_file: Option<PathBuf>,
        /// File of secret `acme_dns_token`; found where the variables say if `None`.
        token_file: Option<PathBuf>,
    },
}

/// The secret that signs updates.
pub const KEY: &str = "acme_dns_key";
/// The secret that a webhook is shown.
pub const TOKEN: &str = "acme_dns_token";

impl Provider {
    /// The secret that it takes.
    pub fn secret(&self) -> Option<&'static str> {
        match self {
            Self::Update { .. } => Some(KEY),
            Self::Hook { .. } => None,
            Self::Webhook { .. } => Some(TOKEN),
        }
    }

    /// Looks at its secret, where the variables say that it is.
    pub async fn check(&self) -> Option<source::Finding> {
        match self {
            Self::Update {
                key_file,
                algorithm,
                ..
            } => {
                let read = |text: &_| tsig::Key::read(text, Name::root(), *algorithm).map(drop);
                Some(source::check(KEY, key_file.as_deref(), read).await)
            }
            Self::Hook { .. } => None,
            Self::Webhook { token_file, .. } => {
                Some(source::check(TOKEN, token_file.as_deref(), token).await)
            }
        }
    }
}

/// Why the DNS is not as it is wanted.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("DNS server {0} does not answer")]
    Silent(SocketAddr),
    #[error("DNS server {0} cannot be reached: {1}")]
    Unreachable(SocketAddr, io::Error),
    #[error("DNS server {0} answers what is no DNS, or not to what was asked")]
    Malformed(SocketAddr),
    #[error("DNS server {0} refuses: {1}")]
    Refused(SocketAddr, ResponseCode),
    #[error("DNS server {0}: {1}")]
    Unverified(SocketAddr, Box<tsig::Unverified>),
    #[error("{0} is not the name of a DNS server: {1}")]
    Server(String, io::Error),
    #[error(
        "no DNS server is known to ask: set gateway.acme.dns.resolver, or `nameserver` in {RESOLV_CONF}"
    )]
    NoResolver,
    #[error("{0:?} is no name: {1}")]
    Name(String, ProtoError),
    #[error("more CNAME records than an authority would follow lead to {0}")]
    Aliases(Box<Name>),
    #[error("{0} is in no zone that can be found")]
    NoZone(Box<Name>),
    #[error("zone {0} has no servers that can be found")]
    NoServers(Box<Name>),
    #[error("the record of {0} was not to be seen at DNS server {1} in time")]
    NotSeen(Box<Name>, SocketAddr),
    #[error("{program} {1}", program = .0.display())]
    Hook(PathBuf, String),
    #[error("the webhook for the DNS: {0}")]
    Webhook(String),
    #[error(transparent)]
    Source(#[from] source::Error),
    #[error(transparent)]
    Trust(#[from] cert::Error),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Add,
    Remove,
}

impl Change {
    fn word(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Remove => "remove",
        }
    }
}

/// A text in the DNS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// Where it is, after CNAMEs, in ASCII.
    name: String,
    /// The zone that this is in.
    zone: String,
    value: String,
    /// Whether an attempt under way needs it. One that ended with its process does not.
    #[serde(skip)]
    is_needed: bool,
}

impl Record {
    fn is_at(&self, other: &Self) -> bool {
        (&self.name, &self.value) == (&other.name, &other.value)
    }
}

/// Puts records into the DNS, and removes what it put there. Shared by all certificates.
pub(super) struct Publisher {
    config: Config,
    file: PathBuf,
    /// What is there, or may be.
    published: Mutex<Vec<Record>>,
    /// Held while the file is written: an older state must not follow a newer one.
    writing: tokio::sync::Mutex<()>,
    /// When removing what could not be removed is tried again, and the pause after that.
    again: Mutex<(Time, Duration)>,
}

impl Publisher {
    /// With what a process before this one left, in `directory`. A file that cannot be read is told of: what it told of
    /// stays in the DNS, where it does no harm.
    pub(super) fn open(config: Config, directory: &Path) -> Self {
        let file = directory.join(PUBLISHED);
        let published = match file.exists() {
            false => Vec::new(),
            true => {
                let text = source::read_public(&file).ok();
                let read = text.and_then(|text| serde_json::from_slice(&text).ok());
                read.unwrap_or_else(|| {
                    tracing::warn!(file = %file.display(), "cannot be read; records that it is about stay in the DNS");
                    Vec::new()
                })
            }
        };
        Self {
            config,
            file,
            published: Mutex::new(published),
            writing: tokio::sync::Mutex::default(),
            again: Mutex::new((Time::ZERO, REMOVE_AGAIN.0)),
        }
    }

    /// Publishes a text for each name, and waits until all are to be seen.
    pub(super) async fn publish(&self, wanted: &[(String, String)]) -> Result<(), Error> {
        let resolver = self.resolver()?;
        let mut records = Vec::new();
        for (name, value) in wanted {
            let challenged = format!("{LABEL}.{name}.");
            let located = zone::locate(resolver, parse(&challenged)?).await?;
            let record = Record {
                name: located.name.to_ascii(),
                zone: located.zone.to_ascii(),
                value: value.clone(),
                is_needed: true,
            };
            {
                let mut published = locked(&self.published);
                published.retain(|other| !other.is_at(&record));
                published.push(record.clone());
            }
            self.write().await?;
            self.change(Change::Add, &record).await?;
            records.push(record);
        }
        let deadline = Instant::now() + self.config.propagation_timeout;
        for record in &records {
            let servers = match self.config.servers.as_slice() {
                [] => {
                    let addresses = zone::servers(resolver, &parse(&record.zone)?).await?;
                    let at = |address: IpAddr| SocketAddr::new(address, PORT);
                    addresses.into_iter().map(at).collect()
                }
                servers => servers.to_vec(),
            };
            zone::wait(&servers, &parse(&record.name)?, &record.value, deadline).await?;
        }
        Ok(())
    }

    /// The attempt that needed these texts is over.
    pub(super) fn leave(&self, values: &[String]) {
        let mut published = locked(&self.published);
        let left = published
            .iter_mut()
            .filter(|record| values.contains(&record.value));
        for record in left {
            record.is_needed = false;
            *locked(&self.again) = (Time::ZERO, REMOVE_AGAIN.0);
        }
    }

    /// Removes what nobody needs. What cannot be removed is told of, and tried again when `now` is some time later.
    pub(super) async fn tidy(&self, now: Time) {
        let (at, pause) = *locked(&self.again);
        let left: Vec<_> = locked(&self.published)
            .iter()
            .filter(|r| !r.is_needed)
            .cloned()
            .collect();
        if left.is_empty() || now < at {
            return;
        }
        let mut is_done = true;
        for record in left {
            match self.change(Change::Remove, &record).await {
                Ok(()) => locked(&self.published).retain(|other| !other.is_at(&record)),
                Err(error) => {
                    tracing::warn!(name = record.name, %error, "a record stays in the DNS for now");
                    is_done = false;
                }
            }
        }
        *locked(&self.again) = match is_done {
            true => (Time::ZERO, REMOVE_AGAIN.0),
            false => (now + pause, (pause * 2).min(REMOVE_AGAIN.1)),
        };
        if let Err(error) = self.write().await {
            tracing::warn!(%error, "records are removed once more at the next start");
        }
    }

    async fn change(&self, change: Change, record: &Record) -> Result<(), Error> {
        let Record {
            name, zone, value, ..
        } = record;
        let plain = name.trim_end_matches('.');
        match &self.config.provider {
            Provider::Update {
                server,
                key_name,
                algorithm,
                key_file,
            } => {
                let key_name = parse(key_name)?;
                let read = |text: &_| tsig::Key::read(text, key_name, *algorithm);
                let key = source::load(KEY, key_file.as_deref(), read).await?;
                let server = address_of(server).await?;
                update::update(server, &key, &parse(zone)?, change, &parse(name)?, value).await
            }
            Provider::Hook { program, arguments } => {
                hook::run(program, arguments, change, plain, value).await
            }
            Provider::Webhook {
                url,
                ca_file,
                token_file,
            } => {
                let trust = match ca_file {
                    Some(file) => Trust::Authorities(file.clone()),
                    None => Trust::System,
                };
                let client = Client::new(&trust)?.with_plain_loopback();
                let token = source::load(TOKEN, token_file.as_deref(), token).await?;
                webhook::post(&client, url, &token, change, plain, value).await
            }
        }
    }

    fn resolver(&self) -> Result<SocketAddr, Error> {
        let configured = self.config.resolver;
        let known = configured.or_else(|| resolver_in(&fs::read_to_string(RESOLV_CONF).ok()?));
        known.ok_or(Error::NoResolver)
    }

    async fn write(&self) -> Result<(), source::Error> {
        let _one_at_a_time = self.writing.lock().await;
        let text =
            serde_json::to_vec(&*locked(&self.published)).expect("plain data with text keys");
        let file = self.file.clone();
        let written = tokio::task::spawn_blocking(move || source::write_private(&file, &text));
        // It ends early only if the process does.
        written.await.unwrap_or(Ok(()))
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn token(text: &crate::secret::Secret<Vec<u8>>) -> Result<Token, Fault> {
    Token::read(text).map_err(|_| Fault {
        place: Place::of("", 0),
        expected: "a token",
    })
}

fn parse(name: &str) -> Result<Name, Error> {
    let mut parsed = Name::from_ascii(name).map_err(|error| Error::Name(name.to_owned(), error))?;
    parsed.set_fqdn(true);
    Ok(parsed)
}

/// The first `nameserver` of a resolver's configuration, resolv.conf(5).
fn resolver_in(text: &str) -> Option<SocketAddr> {
    let mut servers = text.lines().filter_map(|line| {
        let address = line.trim().strip_prefix("nameserver")?;
        address.trim().parse::<IpAddr>().ok()
    });
    servers.next().map(|address| SocketAddr::new(address, PORT))
}

/// The address of a server that is told of as `HOST[:PORT]`.
async fn address_of(server: &str) -> Result<SocketAddr, Error> {
    if let Ok(address) = server.parse() {
        return Ok(address);
    }
    let bare = server.trim_matches(['[', ']']).parse::<IpAddr>();
    if let Ok(address) = bare {
        return Ok(SocketAddr::new(address, PORT));
    }
    let place = match server.contains(':') {
        true => server.to_owned(),
        false => format!("{server}:{PORT}"),
    };
    let found = lookup_host(&place).await.and_then(|mut found| {
        let none = || io::Error::new(io::ErrorKind::NotFound, "it has no address");
        found.next().ok_or_else(none)
    });
    found.map_err(|error| Error::Server(server.to_owned(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resolver_of_this_machine_is_the_first_that_is_named() {
        let text = "# nameserver 192.0.2.1\nsearch example\n nameserver 2001:db8::1\nnameserver 192.0.2.2\n";
        assert_eq!(resolver_in(text), Some("[2001:db8::1]:53".parse().unwrap()));
        assert_eq!(resolver_in("nameserver\nnameserver x\n"), None);
    }

    #[tokio::test]
    async fn a_server_is_told_of_with_its_port_or_without() {
        for (text, address) in [
            ("192.0.2.1", "192.0.2.1:53"),
            ("192.0.2.1:5353", "192.0.2.1:5353"),
            ("2001:db8::1", "[2001:db8::1]:53"),
            ("[2001:db8::1]", "[2001:db8::1]:53"),
            ("[2001:db8::1]:5353", "[2001:db8::1]:5353"),
        ] {
            assert_eq!(address_of(text).await.unwrap(), address.parse().unwrap());
        }
        assert_eq!(address_of("localhost").await.unwrap().port(), PORT);
        assert!(address_of("localhost:x").await.is_err());
    }

    #[tokio::test]
    async fn what_could_not_be_removed_is_kept_and_tried_again_with_pauses() {
        let directory = tempfile::tempdir().unwrap();
        let hook = directory.path().join("hook");
        let config = Config {
            provider: Provider::Hook {
                program: hook.clone(),
                arguments: vec!["zone".to_owned()],
            },
            resolver: None,
            servers: Vec::new(),
            propagation_timeout: Duration::from_secs(1),
        };
        let open = || Publisher::open(config.clone(), directory.path());
        let record = |value: &str| Record {
            name: "_acme-challenge.gateway.example.".to_owned(),
            zone: "example.".to_owned(),
            value: value.to_owned(),
            is_needed: false,
        };
        let publisher = open();
        *locked(&publisher.published) = vec![record("-one"), record("two")];
        publisher.write().await.unwrap();

        // What another process left.
        let publisher = open();
        let at = Duration::from_secs;
        let again = || locked(&publisher.again).0;
        publisher.tidy(at(1000)).await;
        assert_eq!(again(), at(1060));
        publisher.tidy(at(1059)).await;
        assert_eq!(again(), at(1060));
        publisher.tidy(at(1060)).await;
        assert_eq!(again(), at(1180));

        let told = directory.path().join("told");
        let script = format!(
            "#!/bin/sh\nprintf '%s ' \"$@\" >>{}\n[ \"$4\" != two ] || {{ echo busy >&2; exit 7; }}\n",
            told.display()
        );
        fs::write(&hook, script).unwrap();
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(&hook, executable).unwrap();
        publisher.tidy(at(1180)).await;
        let name = "_acme-challenge.gateway.example";
        let expected = format!("zone remove {name} -one zone remove {name} two ");
        assert_eq!(fs::read_to_string(&told).unwrap(), expected);
        assert_eq!(*locked(&open().published), [record("two")]);
        let error = publisher.change(Change::Add, &record("two")).await;
        let error = error.unwrap_err().to_string();
        assert!(
            error.ends_with("hook ended with exit status: 7: busy"),
            "{error}"
        );
    }
}
