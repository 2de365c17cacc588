//! Servers under test, each a process of its own, and one client for all of them.
//!
//! They have the same certificate, TLS settings and socket buffers, and the same little application
//! ([`application`]): what differs is the session layer. Bare quinn serves what the others do with
//! as many streams and round trips ([`bare`]); [`client`] speaks to it and to the others over bare
//! quinn, so that the client costs the same whatever the server is. Each other library is set up as
//! it comes and used as its documentation shows.

mod application;
mod bare;
mod client;
mod process;
mod wavry;
#[cfg(any(test, feature = "peers"))]
mod web_transport_quinn;
#[cfg(any(test, feature = "peers"))]
mod wtransport;

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use wavry_credentials::cert::{DevelopmentAuthority, Store, Trust, client_config};
use wavry_transport::socket;

pub(crate) use self::{
    client::{Client, Moved, Session},
    process::{Process, resident},
};
use crate::Error;

/// Which session layer serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// Bare QUIC
    Quinn,
    /// This one
    Wavry,
    /// The crate `wtransport`
    #[cfg(any(test, feature = "peers"))]
    Wtransport,
    /// The crate `web-transport-quinn`
    #[cfg(any(test, feature = "peers"))]
    WebTransportQuinn,
}

impl Kind {
    /// As it is written on the command line and in reports.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Quinn => "quinn",
            Self::Wavry => "wavry",
            #[cfg(any(test, feature = "peers"))]
            Self::Wtransport => "wtransport",
            #[cfg(any(test, feature = "peers"))]
            Self::WebTransportQuinn => "web-transport-quinn",
        }
    }
}

/// How long a session may be silent. The client keeps its own alive three times as often.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// A certificate for `localhost` and the authority that clients trust it by.
pub(crate) struct Certificates(PathBuf);

impl Certificates {
    /// Makes them in `directory`.
    pub(crate) fn issue(directory: &Path) -> Result<Self, Error> {
        let failed = |error: &dyn std::fmt::Display| Error::Baseline(error.to_string());
        let authority = DevelopmentAuthority::open(directory).map_err(|e| failed(&e))?;
        authority
            .issue("server", &["localhost", "127.0.0.1"])
            .map_err(|e| failed(&e))?;
        Ok(Self(directory.to_owned()))
    }

    /// Those that were made in `directory` before.
    pub(crate) fn of(directory: &Path) -> Self {
        Self(directory.to_owned())
    }

    fn server_tls(&self) -> Result<rustls::ServerConfig, Error> {
        let store = Store::new();
        store
            .load(&self.0.join("server.crt"), &self.0.join("server.key"))
            .map_err(|error| Error::Baseline(error.to_string()))?;
        Ok(store.server_config())
    }

    /// Every handshake is a full one.
    fn client_tls(&self) -> Result<rustls::ClientConfig, Error> {
        let mut tls = client_config(&Trust::Authorities(self.0.join("ca.crt")))
            .map_err(|error| Error::Baseline(error.to_string()))?;
        tls.resumption = rustls::client::Resumption::disabled();
        Ok(tls)
    }
}

/// Serves until the future is dropped, on a port of the system's choosing, which `ready` is told.
pub(crate) async fn serve(
    kind: Kind,
    certificates: &Certificates,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), Error> {
    let tls = certificates.server_tls()?;
    let failed = |error: io::Error| Error::Baseline(error.to_string());
    let socket = socket::bind(SocketAddr::from(([127, 0, 0, 1], 0))).map_err(failed)?;
    ready(socket.local_addr().map_err(failed)?);
    let served = match kind {
        Kind::Quinn => bare::serve(socket, tls).await,
        Kind::Wavry => wavry::serve(socket, tls).await,
        #[cfg(any(test, feature = "peers"))]
        Kind::Wtransport => wtransport::serve(socket, tls).await,
        #[cfg(any(test, feature = "peers"))]
        Kind::WebTransportQuinn => web_transport_quinn::serve(socket, tls).await,
    };
    served.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every measurement on every server, each small: what is counted on both sides is equal.
    async fn is_measured(kind: Kind) {
        wavry_credentials::cert::install_crypto_provider();
        let directory = tempfile::tempdir().unwrap();
        let certificates = Certificates::issue(directory.path()).unwrap();
        let (ready, address) = tokio::sync::oneshot::channel();
        let at = directory.path().to_owned();
        let server = tokio::spawn(async move {
            let ready = |address| ready.send(address).unwrap();
            serve(kind, &Certificates::of(&at), ready).await
        });
        let client = Client::new(kind, address.await.unwrap(), &certificates).unwrap();
        let session = client.connect().await.unwrap();
        let short = Duration::from_millis(50);
        assert!(session.upload(short).await.unwrap().count > 0);
        assert!(session.echo(short).await.unwrap().count > 0);
        assert!(session.datagrams(short).await.unwrap().count > 0);
        assert!(session.datagram_echo(short).await.unwrap().count > 0);
        // A second one beside it, as idle sessions are.
        client.connect().await.unwrap().close();
        session.close();
        client.close().await;
        server.abort();
    }

    #[tokio::test]
    async fn bare_quinn_is_measured() {
        is_measured(Kind::Quinn).await;
    }

    #[tokio::test]
    async fn our_own_server_is_measured() {
        is_measured(Kind::Wavry).await;
    }

    #[tokio::test]
    async fn wtransport_is_measured() {
        is_measured(Kind::Wtransport).await;
    }

    #[tokio::test]
    async fn web_transport_quinn_is_measured() {
        is_measured(Kind::WebTransportQuinn).await;
    }
}
