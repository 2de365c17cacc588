//! The gateway's certificate: read from files that are watched, or obtained from a public authority.

use std::path::PathBuf;

use tokio::task::JoinHandle;
use wavry_credentials::{
    acme::{Acme, Renewal},
    cert::Store,
    source,
};

use crate::{config::Certificate, error::StartError};

/// What can be checked was checked, and nobody outside was asked.
pub(crate) enum Prepared {
    Files { chain: PathBuf, key: PathBuf },
    Acme(Box<Acme>),
}

/// What keeps the certificate current, until it is dropped.
pub(crate) enum Care {
    Files(JoinHandle<()>),
    Acme(Renewal),
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
            let acme = Acme::bind(config.with_secrets()?).await?;
            Ok(Prepared::Acme(Box::new(acme)))
        }
    }
}

impl Prepared {
    pub(crate) fn start(self, store: &Store) -> Care {
        match self {
            Self::Files { chain, key } => Care::Files(store.watch(&chain, &key)),
            Self::Acme(acme) => Care::Acme(acme.start(store.clone())),
        }
    }
}

impl Care {
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
