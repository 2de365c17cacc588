//! Answers to an authority's challenges, and the listeners that give them.
//!
//! A listener is there as long as the process, and knows answers only while an order is under way. It is open
//! to the world: connections are few at once, of one address fewer, short-lived, and read little.

mod http01;
mod tls_alpn01;

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aws_lc_rs::digest;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use instant_acme::ChallengeType;
use metrics::counter;
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};

pub use tls_alpn01::PROTOCOL as TLS_ALPN_PROTOCOL;
pub(super) use tls_alpn01::config as tls;

use super::{machine::Reason, metrics as names, work::failure::Trouble};

/// Connections at once: an authority comes from some five places for each name, and a hundred names are
/// validated side by side at most.
const CONNECTIONS: usize = 512;
/// Connections at once from one IPv4 address or IPv6 /64.
const CONNECTIONS_PER_ADDRESS: usize = 128;
/// From the first byte to the last.
const DEADLINE: Duration = Duration::from_secs(10);
/// After the system has refused to accept: it is out of descriptors, most likely.
const REST: Duration = Duration::from_millis(100);

/// How an authority convinces itself that a name is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// By a request to TCP port 80 of the name (RFC 8555, section 8.3).
    #[serde(rename = "http-01")]
    Http01,
    /// By a TLS handshake with TCP port 443 of the name (RFC 8737).
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
}

impl Kind {
    /// As instant-acme has it.
    pub(super) fn challenge(self) -> ChallengeType {
        match self {
            Self::Http01 => ChallengeType::Http01,
            Self::TlsAlpn01 => ChallengeType::TlsAlpn01,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Http01 => "http-01",
            Self::TlsAlpn01 => "tls-alpn-01",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// What answers one challenge.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Answered {
    /// The name that is validated.
    pub(super) name: String,
    /// The challenge's token.
    pub(super) token: String,
    /// Token and account (RFC 8555, section 8.1).
    pub(super) key_authorization: String,
}

impl Answered {
    /// The name under whose `_acme-challenge` it is in the DNS, and the text there (RFC 8555, section 8.4). That of a
    /// wildcard is beside that of the name itself.
    pub(super) fn text(&self) -> (String, String) {
        let name = self.name.strip_prefix("*.").unwrap_or(&self.name);
        let digest = digest::digest(&digest::SHA256, self.key_authorization.as_bytes());
        (name.to_owned(), URL_SAFE_NO_PAD.encode(digest))
    }
}

/// The answers that are up. Clones share them.
#[derive(Clone)]
pub(super) struct Answers {
    kind: Kind,
    up: Arc<Mutex<Up>>,
}

#[derive(Default)]
struct Up {
    /// By token for http-01, by the name that TLS asks for otherwise.
    answers: HashMap<String, Answer>,
    /// Which of them are for which certificate.
    of: HashMap<String, Vec<String>>,
}

#[derive(Clone)]
enum Answer {
    /// The key authorization.
    Text(String),
    /// The certificate that holds its hash.
    Certificate(Arc<CertifiedKey>),
}

impl Answers {
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            kind,
            up: Arc::default(),
        }
    }

    /// Puts up what answers challenges for a certificate, in the place of what was up for it.
    pub(super) fn put_up(&self, of: &str, answers: &[Answered]) -> Result<(), Trouble> {
        let refused = |error: rcgen::Error| Trouble::new(Reason::Refused, error.to_string());
        let answer = |answered: &Answered| match self.kind {
            Kind::Http01 => {
                let text = answered.key_authorization.clone();
                Ok((answered.token.clone(), Answer::Text(text)))
            }
            Kind::TlsAlpn01 => {
                let text = answered.key_authorization.as_bytes();
                let digest = digest::digest(&digest::SHA256, text);
                let certificate = tls_alpn01::certificate(&answered.name, digest)?;
                let name = tls_alpn01::server_name(&answered.name);
                Ok((name, Answer::Certificate(Arc::new(certificate))))
            }
        };
        let new = answers.iter().map(answer).collect::<Result<Vec<_>, _>>();
        let new = new.map_err(refused)?;
        let mut up = self.table();
        up.take_down(of);
        let keys = new.iter().map(|(key, _)| key.clone()).collect();
        up.of.insert(of.to_owned(), keys);
        up.answers.extend(new);
        Ok(())
    }

    /// Takes down what is up for a certificate.
    pub(super) fn take_down(&self, of: &str) {
        self.table().take_down(of);
    }

    fn find(&self, key: &str) -> Option<Answer> {
        self.table().answers.get(key).cloned()
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Up> {
        self.up.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Up {
    fn take_down(&mut self, of: &str) {
        for key in self.of.remove(of).unwrap_or_default() {
            self.answers.remove(&key);
        }
    }
}

/// Serves answers on `listener` for as long as it is polled.
pub(super) async fn serve(listener: TcpListener, answers: Answers) {
    let kind = answers.kind;
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let guests = Guests::default();
    let tls = tls_alpn01::config(answers.clone());
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the listener for challenges cannot accept");
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        let Ok(place) = room.clone().try_acquire_owned() else {
            count(kind, "too_many");
            continue;
        };
        let Some(guest) = guests.enter(from) else {
            count(kind, "too_many_from_address");
            continue;
        };
        let (answers, tls) = (answers.clone(), tls.clone());
        tokio::spawn(async move {
            let _held = (place, guest);
            let served = timeout(DEADLINE, async {
                match kind {
                    Kind::Http01 => http01::serve(stream, answers).await,
                    Kind::TlsAlpn01 => tls_alpn01::serve(stream, tls).await,
                }
            });
            count(kind, served.await.unwrap_or("timeout"));
        });
    }
}

fn count(kind: Kind, outcome: &'static str) {
    counter!(names::CHALLENGES, "type" => kind.label(), "outcome" => outcome).increment(1);
}

/// How many connections there are of each address.
#[derive(Clone, Default)]
struct Guests(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl Guests {
    fn enter(&self, from: SocketAddr) -> Option<Guest> {
        let address = place_of(from.ip());
        let mut guests = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = guests.entry(address).or_default();
        if *count >= CONNECTIONS_PER_ADDRESS {
            return None;
        }
        *count += 1;
        Some(Guest(self.clone(), address))
    }
}

/// One connection, until it is dropped.
struct Guest(Guests, IpAddr);

impl Drop for Guest {
    fn drop(&mut self) {
        let mut guests = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = guests.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                guests.remove(&self.1);
            }
        }
    }
}

/// An IPv4 address, or the first address of an IPv6 /64.
fn place_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let network = u128::from(address) >> 64 << 64;
            std::net::Ipv6Addr::from(network).into()
        }
    }
}
