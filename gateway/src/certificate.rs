//! The gateway's certificate: read from files that are watched, obtained from a public authority, or signed
//! here for clients that trust it by its hash.

use std::{path::PathBuf, sync::Arc};

use tokio::task::JoinHandle;
use wavry_credentials::{
    acme::{self, Acme, Renewal},
    cert::{self, Rotation, SelfSigned, Store},
    key::ring::Ring,
    membership::Membership,
    source::{self, Finding},
};

use crate::{config::Certificate, error::StartError};

/// The secret that gateways have which share certificates.
const FLEET_KEY: &str = "fleet_key";

/// What can be checked was checked, and nobody outside was asked.
pub(crate) enum Prepared {
    Files {
        chain: PathBuf,
        key: PathBuf,
    },
    Acme(Box<Acme>),
    /// With the keys that gateways share.
    Fleet(Box<Acme>, Ring),
    SelfSigned(SelfSigned),
}

/// What keeps the certificate current, until it is dropped.
pub(crate) enum Care {
    Files(JoinHandle<()>),
    Acme(Renewal),
    /// Certificates are shared once the gateway has joined its cluster.
    Fleet(Option<(Box<Acme>, Ring)>),
    SelfSigned(#[expect(dead_code, reason = "it ends when it is dropped")] Rotation),
}

/// Loads the certificate from its files, or opens what it is obtained with.
pub(crate) async fn prepare(
    certificate: &Certificate,
    store: &Store,
) -> Result<Prepared, StartError> {
    match certificate {
        Certificate::File(chain) => {
            let key = source::locate("tls_key")?;
            store.load(chain, &key)?;
            let chain = chain.clone();
            Ok(Prepared::Files { chain, key })
        }
        Certificate::Acme(config) => {
            let keys = match config.is_shared() {
                true => Some(source::load(FLEET_KEY, None, Ring::read).await?),
                false => None,
            };
            let acme = Box::new(Acme::bind(config.with_secrets()?).await?);
            Ok(match keys {
                Some(keys) => Prepared::Fleet(acme, keys),
                None => Prepared::Acme(acme),
            })
        }
        Certificate::SelfSigned { directory, names } => {
            let opened = SelfSigned::open(directory.clone(), names.clone(), store)?;
            Ok(Prepared::SelfSigned(opened))
        }
    }
}

/// Looks at what [`prepare`] would read.
pub(crate) async fn check(certificate: &Certificate) -> Vec<Finding> {
    match certificate {
        Certificate::File(chain) => vec![cert::check(chain, None)],
        Certificate::Acme(wanted) => {
            let keys = wanted
                .secrets()
                .map(|secret| source::check_file(&secret, None, |_| Ok::<_, source::Error>(())));
            let mut findings: Vec<_> = keys.collect();
            if let Some(dns) = wanted.dns() {
                findings.extend(dns.check().await);
            }
            if wanted.is_shared() {
                findings.push(source::check(FLEET_KEY, None, Ring::read).await);
            }
            findings
        }
        // It makes what is not there.
        Certificate::SelfSigned { .. } => Vec::new(),
    }
}

impl Prepared {
    /// TLS that answers an authority, where somebody else's listener is to.
    pub(crate) fn challenges(&self) -> Option<Arc<rustls::ServerConfig>> {
        match self {
            Self::Acme(acme) | Self::Fleet(acme, _) => acme.challenge_tls(),
            Self::Files { .. } | Self::SelfSigned(_) => None,
        }
    }

    pub(crate) fn start(self, store: &Store) -> Result<Care, StartError> {
        Ok(match self {
            Self::Files { chain, key } => Care::Files(store.watch(&chain, &key)),
            Self::Acme(acme) => Care::Acme(acme.start(store.clone())?),
            Self::Fleet(acme, keys) => Care::Fleet(Some((acme, keys))),
            Self::SelfSigned(own) => Care::SelfSigned(own.start()),
        })
    }
}

impl Care {
    /// The gateway has joined its cluster: what is shared in it is shared from now on.
    pub(crate) fn joined(
        &mut self,
        store: &Store,
        membership: &Membership,
    ) -> Result<(), StartError> {
        if let Self::Fleet(prepared) = self
            && let Some((acme, keys)) = prepared.take()
        {
            let shared = acme::Shared {
                requests: membership.requests(),
                keys,
                cluster: membership.cluster().clone(),
            };
            *self = Self::Acme(acme.start_in_fleet(store.clone(), shared)?);
        }
        if let Self::Acme(renewal) = self {
            renewal.joined(membership.roster());
        }
        Ok(())
    }

    /// Waits until there is a certificate that holds.
    pub(crate) async fn has_certificate(&mut self) {
        if let Self::Acme(renewal) = self {
            renewal.installed().await;
        }
    }
}

impl Drop for Care {
    fn drop(&mut self) {
        if let Self::Files(watch) = self {
            watch.abort();
        }
    }
}
