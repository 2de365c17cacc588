//! Our own layer.

use std::net::SocketAddr;

use serde_json::{Value, json};
use wavry_transport::{
    session::{Request, Response, SendStream as _, Session as _},
    socket,
    webtransport::{Client, ConnectError, Limits, Server, Session},
};

use super::{Certificate, Target, loopback};
use crate::{
    answer,
    script::{Dial, Refused},
    seen::{Asked, Seen},
};

/// Starts the interop service; where it is.
pub(crate) fn start(certificate: &Certificate, seen: Seen) -> SocketAddr {
    let socket = socket::bind(loopback()).unwrap();
    let server = Server::new(socket, certificate.tls(), Limits::default()).unwrap();
    let address = server.local_addr().unwrap();
    tokio::spawn(async move {
        while let Some(requested) = server.accept().await {
            let seen = seen.clone();
            tokio::spawn(async move {
                let request = requested.request();
                let asked = Asked::new(&request.path);
                if let Some(status) = asked.status() {
                    seen.note(&asked, json!(status));
                    return requested.reject(Response::status(status)).await;
                }
                let mut response = Response::ok();
                if !request.subprotocols.is_empty() {
                    seen.note(&asked, json!(request.subprotocols));
                    response.subprotocol = request.subprotocols.last().cloned();
                }
                let client = requested.remote_address().to_string();
                if let Ok(session) = requested.accept(response).await {
                    // So that a page can tell whether its sessions share a connection.
                    if asked.words()[0] == "two"
                        && let Ok(mut send) = session.open_uni().await
                    {
                        let _ = send.write(client.into()).await;
                        let _ = send.finish();
                    }
                    answer::serve(session, asked, seen).await;
                }
            });
        }
    });
    address
}

/// Our client.
pub(crate) struct Dialler {
    client: Client,
    target: Target,
    silent: &'static [&'static str],
}

impl Dialler {
    /// `silent` are features at which the service is known to say nothing.
    pub(crate) fn new(target: Target, silent: &'static [&'static str]) -> Self {
        let client = Client::new(loopback(), target.tls(), Limits::default()).unwrap();
        Self {
            client,
            target,
            silent,
        }
    }

    fn request(&self, path: &str, offered: &[&str]) -> Request {
        Request {
            authority: self.target.authority(),
            path: self.target.path(path),
            subprotocols: offered.iter().map(|&name| name.to_owned()).collect(),
            ..Request::default()
        }
    }
}

fn refused(error: ConnectError) -> Refused {
    Refused(match error {
        ConnectError::Rejected(response) => json!(response.status),
        error => json!(error.to_string()),
    })
}

impl Dial for Dialler {
    type Session = Session;
    const DRAINS: bool = true;

    fn is_silent(&self, feature: &str) -> bool {
        self.silent.contains(&feature)
    }

    async fn dial(&self, path: &str, offered: &[&str]) -> Result<(Session, Value), Refused> {
        let asked = self.request(path, offered);
        let (session, response) = self
            .client
            .connect(self.target.address, "127.0.0.1", asked)
            .await
            .map_err(refused)?;
        Ok((session, json!(response.subprotocol)))
    }

    async fn dial_beside(&self, session: &Session, path: &str) -> Result<Session, Refused> {
        let asked = self.request(path, &[]);
        let opened = self.client.open_beside(session, asked).await;
        Ok(opened.map_err(refused)?.0)
    }
}
