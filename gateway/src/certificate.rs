//! The gateway's certificate: read from files or a KeyVault that are watched, obtained from a public authority, or
//! signed here for clients that trust it by its hash.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::task::JoinHandle;
use wavry_credentials::{
    acme::{self, Acme, Renewal},
    cert::{self, InKeyVault, Rotation, SelfSigned, Store},
    key::ring::Ring,
    membership::Membership,
    source::{self, Finding, keyvault},
};

use crate::{
    config::{Certificate, RawKeyVault},
    error::StartError,
};

/// The secret that gateways have which share certificates.
const FLEET_KEY: &str = "fleet_key";

/// What can be checked was checked, and nobody outside was asked.
pub(crate) enum Prepared {
    Files {
        chain: PathBuf,
        key: PathBuf,
    },
    /// Looked at so often.
    KeyVault(InKeyVault, Duration),
    /// With a place in a KeyVault for what is obtained.
    Acme(Box<Acme>, Option<acme::InKeyVault>),
    /// With the keys that gateways share.
    Fleet(Box<Acme>, Ring),
    SelfSigned(SelfSigned),
}

/// What keeps the certificate current, until it is dropped.
pub(crate) enum Care {
    /// Of files, or in a KeyVault.
    Watched(JoinHandle<()>, Store),
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
            match store.load(chain, &key) {
                // Another one may come at any time.
                Err(error) if error.is_of_time() => {
                    tracing::error!(%error, "nobody is served until there is a certificate that holds");
                }
                loaded => loaded?,
            }
            let chain = chain.clone();
            Ok(Prepared::Files { chain, key })
        }
        Certificate::KeyVault(kept) => {
            locate_login()?;
            Ok(Prepared::KeyVault(in_keyvault(kept)?, kept.poll_interval))
        }
        Certificate::Acme(config) => {
            let keys = match config.is_shared() {
                true => Some(source::load(FLEET_KEY, None, Ring::read).await?),
                false => None,
            };
            let vault = match config.keyvault() {
                Some(path) => {
                    locate_login()?;
                    let keyvault = keyvault::Config::from_environment()?;
                    Some(acme::InKeyVault::new(keyvault, path)?)
                }
                None => None,
            };
            let acme = Box::new(Acme::bind(config.with_secrets()?).await?);
            Ok(match keys {
                Some(keys) => Prepared::Fleet(acme, keys),
                None => Prepared::Acme(acme, vault),
            })
        }
        Certificate::SelfSigned { directory, names } => {
            let opened = SelfSigned::open(directory.clone(), names.clone(), store)?;
            Ok(Prepared::SelfSigned(opened))
        }
    }
}

/// What a KeyVault is opened with is read at each login, and missed at the start.
fn locate_login() -> Result<(), source::Error> {
    for secret in ["keyvault_role_id", "keyvault_secret_id"] {
        source::locate(secret)?;
    }
    Ok(())
}

fn in_keyvault(kept: &RawKeyVault) -> Result<InKeyVault, source::Error> {
    let fields = (kept.chain_field.as_str(), kept.key_field.as_str());
    InKeyVault::new(
        keyvault::Config::from_environment()?,
        &kept.certificates,
        fields,
    )
}

/// Looks at what [`prepare`] would read.
pub(crate) async fn check(certificate: &Certificate) -> Vec<Finding> {
    match certificate {
        Certificate::File(chain) => vec![cert::check(chain, None)],
        Certificate::KeyVault(kept) => match in_keyvault(kept) {
            Ok(kept) => kept.check().await,
            Err(error) => vec![Finding::new("certificate", Err::<String, _>(error))],
        },
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
            Self::Acme(acme, _) | Self::Fleet(acme, _) => acme.challenge_tls(),
            Self::Files { .. } | Self::KeyVault(..) | Self::SelfSigned(_) => None,
        }
    }

    pub(crate) fn start(self, store: &Store) -> Result<Care, StartError> {
        Ok(match self {
            Self::Files { chain, key } => Care::Watched(store.watch(&chain, &key), store.clone()),
            Self::KeyVault(kept, interval) => {
                Care::Watched(kept.watch(store.clone(), interval), store.clone())
            }
            Self::Acme(acme, None) => Care::Acme(acme.start(store.clone())?),
            Self::Acme(acme, Some(vault)) => {
                Care::Acme(acme.start_in_keyvault(store.clone(), vault)?)
            }
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
        match self {
            Self::Watched(_, store) => store.filled().await,
            Self::Acme(renewal) => renewal.installed().await,
            Self::Fleet(_) | Self::SelfSigned(_) => {}
        }
    }
}

impl Drop for Care {
    fn drop(&mut self) {
        if let Self::Watched(watch, _) = self {
            watch.abort();
        }
    }
}
