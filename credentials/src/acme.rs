//! Certificates that are obtained from public authorities, and renewed, without anybody's help (ACME,
//! RFC 8555).
//!
//! * `machine`: what to do next, from no account to an installed certificate and to the next one; sans-IO.
//! * `schedule`: when; sans-IO.
//! * `work`: does what the machine says, over `instant-acme`, which knows the protocol.
//! * `challenge`: answers an authority that wants to be convinced that a name is ours; [`dns`]: does so in the DNS.
//! * [`request`]: what operators want of it.
//! * `storage`: where all of it is kept, and who may order: `directory` and `keyvault`, where that is this gateway alone,
//!   or `fleet`, where gateways share certificates.
//! * `kept`, and `cert::pairs`: what is on disk. A certificate is there with its key or not at all.
//! * `demand`: certificates for hosts that services are bound to.
//! * `http`: the way to the authority.
//!
//! [`Acme::bind`] opens the directory and the listener for challenges; [`Acme::start`] installs the certificate
//! that was kept, if it still holds, and goes on from there. Whatever fails, the certificate in use stays.

mod challenge;
mod demand;
mod directory;
pub mod dns;
mod fleet;
mod http;
mod kept;
mod keyvault;
mod machine;
pub(crate) mod metrics;
pub mod request;
mod schedule;
mod storage;
mod work;

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use aws_lc_rs::digest;
use instant_acme::ChallengeType;
use rustls::ServerConfig;
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
    task::JoinSet,
};
use wavry_proto::{
    control::{Roster, fleet::EntryName},
    id::ClusterName,
};

pub use challenge::{Kind, TLS_ALPN_PROTOCOL};
pub use demand::When;
pub use keyvault::InKeyVault;

use challenge::Answers;
use demand::{Demand, Hosts, Pace};
use directory::Directory;
use fleet::{Fleet, Share};
use kept::Kept;
use keyvault::Vaulted;
use request::Inbox;
use storage::Storage;
use work::{Authorities, Work};

use crate::{
    cert::{self, Store, Trust},
    key::ring::Ring,
    membership::Requests,
    source,
};

/// Directory of the authority that is asked unless told otherwise.
pub const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
/// Most names in one certificate; Let's Encrypt's limit.
pub const MAX_NAMES: usize = 100;
/// Most certificates: each is a task, and some files.
pub const MAX_CERTIFICATES: usize = 1000;

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where accounts, keys and certificates are kept.
    pub directory: PathBuf,
    /// Host names in lower case, and addresses; one at least.
    pub names: Vec<String>,
    /// Whether each name has a certificate of its own.
    pub separate: bool,
    /// Which hosts of services have one beside.
    pub service_hosts: When,
    /// How many of those may get their first certificate in an hour.
    pub new_hosts_per_hour: u32,
    /// Whom to ask, in this order; one at least.
    pub authorities: Vec<Authority>,
    /// Where an authority may write to: `mailto:` URLs.
    pub contacts: Vec<String>,
    /// How it is convinced that the names are ours.
    pub challenge: Challenge,
}

/// How an authority convinces itself that names are ours.
#[derive(Debug, Clone)]
pub enum Challenge {
    /// It comes to a listener.
    Listener {
        /// What it asks there.
        kind: Kind,
        /// TCP address.
        listen: SocketAddr,
    },
    /// It comes to a listener of the caller's for TLS (RFC 8737), which lets [`Acme::challenge_tls`] answer.
    Tls,
    /// It looks into the DNS (dns-01).
    Dns(dns::Config),
}

impl Challenge {
    /// As instant-acme has it.
    fn of(&self) -> ChallengeType {
        match self {
            Self::Listener { kind, .. } => kind.challenge(),
            Self::Tls => ChallengeType::TlsAlpn01,
            Self::Dns(_) => ChallengeType::Dns01,
        }
    }
}

impl fmt::Display for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listener { kind, .. } => kind.fmt(f),
            Self::Tls => Kind::TlsAlpn01.fmt(f),
            Self::Dns(_) => f.write_str("dns-01"),
        }
    }
}

/// An authority that issues certificates.
#[derive(Debug, Clone)]
pub struct Authority {
    /// What it is called here: a file name, and a label in metrics.
    pub name: String,
    /// URL of its directory (RFC 8555, section 7.1.1).
    pub directory: String,
    /// PEM file of the authorities that vouch for its HTTPS; those of the system if `None`.
    pub ca_file: Option<PathBuf>,
    /// Which of its profiles (draft-ietf-acme-profiles).
    pub profile: Option<String>,
    /// Binds accounts to one that the operator has with it.
    pub external_account: Option<ExternalAccount>,
}

/// An operator's account with an authority (RFC 8555, section 7.3.4).
#[derive(Debug, Clone)]
pub struct ExternalAccount {
    /// The id of its key.
    pub key_id: String,
    /// File of the key, in base64url.
    pub key_file: PathBuf,
}

/// Why certificates cannot be looked after.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory cannot be used.
    #[error("{directory} cannot be used: {source}", directory = .directory.display())]
    Directory {
        /// Which.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The listener for challenges cannot be had.
    #[error("cannot listen on TCP {address} for challenges: {source}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The authorities that vouch for an authority cannot be read.
    #[error("authority {name}: {source}")]
    Trust {
        /// Its name here.
        name: String,
        /// Why.
        source: cert::Error,
    },
    /// The key of an external account cannot be read.
    #[error("authority {name}: {source}")]
    ExternalAccount {
        /// Its name here.
        name: String,
        /// Why.
        source: source::Error,
    },
}

/// Ready to look after certificates.
pub struct Acme {
    authorities: Arc<Authorities>,
    answers: Answers,
    /// None where nobody comes.
    listener: Option<TcpListener>,
    /// What answers handshakes that somebody else's listener takes.
    tls: Option<Arc<ServerConfig>>,
}

/// What gateways that share certificates have beside.
pub struct Shared {
    /// The way to the master.
    pub requests: Requests,
    /// Keys that all of them have, and the master has not.
    pub keys: Ring,
    /// The cluster.
    pub cluster: ClusterName,
}

impl Acme {
    /// Opens the directory, reads what must be there, and binds the listener where one is needed.
    pub async fn bind(config: Config) -> Result<Self, Error> {
        let (mut tls, mut listener) = (None, None);
        let answers = match config.challenge {
            // Nobody asks for them.
            Challenge::Dns(_) => Answers::new(Kind::Http01),
            Challenge::Tls => {
                let answers = Answers::new(Kind::TlsAlpn01);
                tls = Some(challenge::tls(answers.clone()));
                answers
            }
            Challenge::Listener {
                kind,
                listen: address,
            } => {
                let bound = TcpListener::bind(address).await;
                listener = Some(bound.map_err(|source| Error::Bind { address, source })?);
                Answers::new(kind)
            }
        };
        Kept::open(&config.directory).map_err(|source| Error::Directory {
            directory: config.directory.clone(),
            source,
        })?;
        Ok(Self {
            authorities: Arc::new(Authorities::new(config)?),
            answers,
            listener,
            tls,
        })
    }

    /// With [`Challenge::Tls`], what handshakes are to be made with whose client offers [`TLS_ALPN_PROTOCOL`].
    pub fn challenge_tls(&self) -> Option<Arc<ServerConfig>> {
        self.tls.clone()
    }

    /// Looks after the certificates in `store` from now on.
    pub fn start(self, store: Store) -> Result<Renewal, Error> {
        let (authorities, answers) = (self.authorities.clone(), self.answers.clone());
        let directory = authorities.config.directory.clone();
        let failed = |directory: &Path| {
            let directory = directory.to_owned();
            move |source| Error::Directory { directory, source }
        };
        let accounts = Kept::open(&directory).map_err(failed(&directory))?;
        let accounts = Arc::new(accounts);
        let work = move |names: Vec<String>, is_alone| {
            let own = match is_alone {
                true => directory.clone(),
                false => directory.join("names").join(entry(&names).as_str()),
            };
            let kept = Directory::open(accounts.clone(), &own, answers.clone());
            let kept = kept.map_err(failed(&own))?;
            let inbox = inbox(&own.join(request::DIRECTORY))?;
            Ok(Work::new(authorities.clone(), names, own, kept).attending(inbox))
        };
        self.run(work, store, std::future::pending())
    }

    /// The same with accounts, certificates and keys in a KeyVault.
    pub fn start_in_keyvault(self, store: Store, vault: InKeyVault) -> Result<Renewal, Error> {
        let (authorities, answers) = (self.authorities.clone(), self.answers.clone());
        let directory = authorities.config.directory.clone();
        let failed = |directory: &Path| {
            let directory = directory.to_owned();
            move |source| Error::Directory { directory, source }
        };
        let counts = Arc::new(Kept::open(&directory).map_err(failed(&directory))?);
        let work = move |names: Vec<String>, is_alone| {
            let entry = entry(&names);
            let own = match is_alone {
                true => directory.clone(),
                false => directory.join("names").join(entry.as_str()),
            };
            let kept = Vaulted::open(
                vault.clone(),
                entry.as_str(),
                counts.clone(),
                &own,
                answers.clone(),
            );
            let kept = kept.map_err(failed(&own))?;
            let inbox = inbox(&own.join(request::DIRECTORY))?;
            Ok(Work::new(authorities.clone(), names, own, kept).attending(inbox))
        };
        self.run(work, store, std::future::pending())
    }

    /// Looks after certificates that this gateway shares with others, in `store` from now on.
    pub fn start_in_fleet(self, store: Store, shared: Shared) -> Result<Renewal, Error> {
        let authorities = self.authorities.clone();
        let directory = authorities.config.directory.join("fleet");
        let fleet = Arc::new(Fleet::new(shared, self.answers.clone(), directory.clone()));
        let following = fleet.clone();
        // What is in the other directory are pairs.
        let requests = authorities.config.directory.join(request::DIRECTORY);
        let work = move |names: Vec<String>, _| {
            let entry = entry(&names);
            let own = directory.join(entry.as_str());
            let inbox = inbox(&requests.join(entry.as_str()))?;
            let share = Share::open(fleet.clone(), entry);
            let share = share.map_err(|source| Error::Directory {
                directory: own.clone(),
                source,
            })?;
            Ok(Work::new(authorities.clone(), names, own, share).attending(inbox))
        };
        self.run(work, store, async move { following.follow().await })
    }

    /// `work` is what looks after a certificate for such names; the only one has the directory for itself.
    fn run<S: Storage>(
        self,
        work: impl Fn(Vec<String>, bool) -> Result<Work<S>, Error> + Send + 'static,
        store: Store,
        follow: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Renewal, Error> {
        let config = self.authorities.config.clone();
        let (installed, watched) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let certificates = certificates(&config);
        let room = MAX_CERTIFICATES.saturating_sub(certificates.len());
        for names in certificates {
            let work = work(names, !config.separate)?;
            tasks.spawn(work.run(store.clone(), installed.clone()));
        }
        if let Some(listener) = self.listener {
            tasks.spawn(challenge::serve(listener, self.answers));
        }
        tasks.spawn(follow);
        let (rosters, joined) = oneshot::channel();
        if config.service_hosts != When::Never {
            let hosts = Arc::new(Hosts::default());
            let asked = hosts.clone();
            store.tell_of_missed(move |name| asked.asked(name));
            let pace = Pace {
                per_hour: config.new_hosts_per_hour,
            };
            let of_host = move |host: String, wanted| {
                let made = work(vec![host], false);
                let told = |error: &Error| tracing::error!(%error, "no certificate for a host");
                let work = made.inspect_err(told).ok()?.on(Demand { wanted, pace });
                Some(work.run(store.clone(), installed.clone()))
            };
            let bounds = (
                config.service_hosts,
                config.names.into_iter().collect(),
                room,
            );
            tasks.spawn(async move {
                if let Ok(rosters) = joined.await {
                    demand::follow(hosts, rosters, bounds, of_host).await;
                }
            });
        }
        Ok(Renewal {
            _tasks: tasks,
            watched,
            rosters: Some(rosters),
        })
    }
}

/// Where operators ask for something of one certificate.
fn inbox(directory: &Path) -> Result<Inbox, Error> {
    Inbox::open(directory).map_err(|source| Error::Directory {
        directory: directory.to_owned(),
        source,
    })
}

/// The names of each certificate.
fn certificates(config: &Config) -> Vec<Vec<String>> {
    match config.separate {
        true => config.names.iter().map(|name| vec![name.clone()]).collect(),
        false => vec![config.names.clone()],
    }
}

/// What a certificate is called among gateways, and on disk: the name that it is for, or the first of them and
/// a hash of all.
fn entry(names: &[String]) -> EntryName {
    let mut sorted = names.to_vec();
    sorted.sort_unstable();
    let text = match sorted.as_slice() {
        [name] => name.clone(),
        several => {
            let hash = digest::digest(&digest::SHA256, several.join("\n").as_bytes());
            let first: String = several[0].chars().take(200).collect();
            format!("{first}+{}", hex::encode(&hash.as_ref()[..8]))
        }
    };
    text.parse()
        .expect("names are host names in lower case, and addresses")
}

/// Certificates that are looked after, until this is dropped.
pub struct Renewal {
    _tasks: JoinSet<()>,
    watched: watch::Receiver<bool>,
    rosters: Option<oneshot::Sender<watch::Receiver<Arc<Roster>>>>,
}

impl Renewal {
    /// Looks after certificates for hosts of the rosters' services, too, as far as that is wanted.
    pub fn joined(&mut self, rosters: watch::Receiver<Arc<Roster>>) {
        if let Some(sender) = self.rosters.take() {
            // Nobody takes it where no host has a certificate of its own.
            let _ = sender.send(rosters);
        }
    }

    /// Waits for the first certificate that holds.
    pub async fn installed(&mut self) {
        // The task does not end while this is here; if it did, there would never be one.
        if self.watched.wait_for(|installed| *installed).await.is_err() {
            std::future::pending().await
        }
    }
}

/// As [`check_name`], for names that are validated in the DNS: a host name or a wildcard of one, `*.NAME`.
pub fn check_dns_name(name: &str) -> Result<(), &'static str> {
    if name.parse::<IpAddr>().is_ok() {
        return Err("is an address, which dns-01 cannot validate");
    }
    check_name(name.strip_prefix("*.").unwrap_or(name))
}

/// Whether `name` can be in a certificate: an address, or a host name in lower case. `Err` says what is wrong.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    if name.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    if name.starts_with("*.") {
        return Err("is a wildcard, which http-01 and tls-alpn-01 cannot validate");
    }
    let is_label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (1..=63).contains(&label.len())
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    match name.len() <= 253 && name.split('.').count() > 1 && name.split('.').all(is_label) {
        true => Ok(()),
        false => Err("is neither an address nor a public host name in lower case"),
    }
}

fn trust(authority: &Authority) -> Trust {
    match &authority.ca_file {
        Some(file) => Trust::Authorities(file.clone()),
        None => Trust::System,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_public_hosts_in_lower_case_and_addresses() {
        for name in [
            "gateway.example",
            "a-b.c1.example",
            "192.0.2.1",
            "2001:db8::1",
        ] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        let long = format!("{}.example", "a".repeat(64));
        for name in [
            "",
            "localhost",
            "Gateway.example",
            "a..example",
            ".example",
            "example.",
            "a b.example",
            "-a.example",
            "a-.example",
            "*.gateway.example",
            "a/b.example",
            &long,
        ] {
            assert!(check_name(name).is_err(), "{name}");
        }
        for name in ["gateway.example", "*.gateway.example"] {
            assert_eq!(check_dns_name(name), Ok(()), "{name}");
        }
        for name in ["192.0.2.1", "*.*.example", "a.*.example", "*", "*.example"] {
            assert!(check_dns_name(name).is_err(), "{name}");
        }
    }
}
