//! A native client of a running system, over the WebTransport layer itself.

use std::{net::SocketAddr, path::Path, time::Duration};

use bytes::Bytes;
use tokio::time::timeout;
use wavry_credentials::cert::{Trust, client_config};
use wavry_transport::{
    session::{Closed, Header, RecvStream as _, Request, Response, SendStream as _, Session as _},
    webtransport::{Client, ConnectError, Limits, Session},
};

use super::{DEADLINE, Dev};

/// What a request is made of; the rest is as a native client sends it.
#[derive(Default)]
pub(crate) struct Ask<'a> {
    pub(crate) path: &'a str,
    pub(crate) origin: Option<&'a str>,
    pub(crate) bearer: Option<&'a str>,
}

/// Opens sessions to the gateway of `dev`.
pub(crate) struct Native {
    client: Client,
    gateway: SocketAddr,
}

impl Native {
    pub(crate) fn new(dev: &Dev) -> Self {
        let authority = dev.text("gateway").strip_prefix("https://").unwrap();
        let gateway = authority.trim_end_matches('/').parse().unwrap();
        Self::of(dev.text("ca_file").as_ref(), gateway)
    }

    pub(crate) fn of(ca_file: &Path, gateway: SocketAddr) -> Self {
        wavry_credentials::cert::install_crypto_provider();
        let tls = client_config(&Trust::Authorities(ca_file.into())).unwrap();
        let client = Client::new(([127, 0, 0, 1], 0).into(), tls, Limits::default()).unwrap();
        Self { client, gateway }
    }

    /// Where the gateway is.
    pub(crate) fn gateway(&self) -> SocketAddr {
        self.gateway
    }

    pub(crate) async fn ask(&self, ask: Ask<'_>) -> Result<(Session, Response), ConnectError> {
        let request = Request {
            authority: self.gateway.to_string(),
            path: ask.path.to_owned(),
            origin: ask.origin.map(str::to_owned),
            headers: ask
                .bearer
                .map(|token| Header {
                    name: "authorization".to_owned(),
                    value: format!("Bearer {token}"),
                })
                .into_iter()
                .collect(),
            subprotocols: Vec::new(),
        };
        self.client
            .connect(self.gateway, "127.0.0.1", request)
            .await
    }

    /// The session, or what refused it as text.
    pub(crate) async fn open(&self, path: &str) -> Session {
        let asked = self.ask(Ask {
            path,
            ..Ask::default()
        });
        timeout(DEADLINE, asked).await.unwrap().unwrap().0
    }

    /// The status that a request is answered with.
    pub(crate) async fn status(&self, ask: Ask<'_>) -> u16 {
        match timeout(DEADLINE, self.ask(ask)).await.unwrap() {
            Ok((_, response)) => response.status,
            Err(ConnectError::Rejected(response)) => response.status,
            Err(error) => panic!("no answer: {error}"),
        }
    }
}

/// Sends `text` on a new stream and reads it back to the end.
pub(crate) async fn echo(session: &Session, text: &'static [u8]) -> Result<(), Closed> {
    let (mut send, mut recv) = session.open_bi().await?;
    send.write(Bytes::from_static(text)).await.unwrap();
    send.finish().unwrap();
    let mut back = Vec::new();
    while let Some(chunk) = recv.read().await.unwrap() {
        back.extend_from_slice(&chunk);
    }
    assert_eq!(back, text);
    Ok(())
}

/// Waits for `future` no longer than `limit`.
pub(crate) async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> T {
    match timeout(limit, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} took longer than {limit:?}"),
    }
}
