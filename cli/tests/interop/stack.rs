//! The stacks, each behind the one interface that a session has in Wavry.
//!
//! What a stack's own calls cannot say, its adapter leaves out: nothing here stands in for it, but
//! for the mapping of application codes (draft-ietf-webtrans-http3, section 4.4) that wtransport
//! leaves to its users.

pub(crate) mod ours;
pub(crate) mod web_transport_quinn;
pub(crate) mod wtransport;

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use bytes::BytesMut;
use serde_json::{Value, json};
use wavry_credentials::cert::{self, Trust};
use wavry_proto::h3::{
    frame::{self, Message, MessageDecoder},
    message, qpack,
};

/// Where a client finds a service, and what the path of its requests begins with.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) base: String,
    pub(crate) ca_file: PathBuf,
    /// The file of the certificate that is shown there.
    pub(crate) certificate: PathBuf,
}

impl Target {
    pub(crate) fn authority(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn path(&self, path: &str) -> String {
        format!("{}/{path}", self.base)
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://{}{}", self.address, self.path(path))
    }

    /// SHA-256 of its certificate, as hexadecimal.
    pub(crate) fn certificate_hash(&self) -> String {
        let hash = cert::file_hash(&self.certificate).unwrap();
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// TLS of a client that trusts the authority of all services.
    fn tls(&self) -> rustls::ClientConfig {
        let mut tls = cert::client_config(&Trust::Authorities(self.ca_file.clone())).unwrap();
        tls.alpn_protocols = vec![b"h3".to_vec()];
        tls
    }
}

/// Files that a service shows clients who it is with.
#[derive(Debug, Clone)]
pub(crate) struct Certificate {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Certificate {
    fn tls(&self) -> rustls::ServerConfig {
        let store = cert::Store::new();
        store.load(&self.certificate, &self.key).unwrap();
        let mut tls = store.server_config();
        tls.alpn_protocols = vec![b"h3".to_vec()];
        tls
    }
}

pub(crate) fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// A GET as it may come on the connection of any session; the status of its answer.
async fn get(connection: &quinn::Connection, target: &Target) -> Value {
    let asked = async {
        let (mut send, mut recv) = connection.open_bi().await.ok()?;
        let mut section = Vec::new();
        let (authority, path) = (target.authority(), target.path("nothing-here"));
        let fields: [(&[u8], &[u8]); 4] = [
            (b":method", b"GET"),
            (b":scheme", b"https"),
            (b":authority", authority.as_bytes()),
            (b":path", path.as_bytes()),
        ];
        qpack::encode(fields, &mut section);
        let mut head = BytesMut::new();
        frame::put(&mut head, frame::kind::HEADERS, &section);
        send.write_all(&head).await.ok()?;
        send.finish().ok()?;
        let mut decoder = MessageDecoder::new(16 * 1024);
        loop {
            if let Some(Message::Headers(section)) = decoder.next().ok()? {
                let fields = qpack::decode(&section, 16 * 1024).ok()?;
                return Some(message::Response::from_fields(fields).ok()?.status);
            }
            decoder.push(&recv.read_chunk(4096, true).await.ok()??.bytes);
        }
    };
    json!(asked.await)
}

/// TLS for quinn's own endpoints.
fn quic_client(target: &Target) -> quinn::ClientConfig {
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(target.tls()).unwrap();
    quinn::ClientConfig::new(Arc::new(crypto))
}

fn quic_server(certificate: &Certificate) -> quinn::ServerConfig {
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(certificate.tls()).unwrap();
    quinn::ServerConfig::with_crypto(Arc::new(crypto))
}
