//! A node's Ed25519 identity, and the TLS of the mesh that it proves itself with (RFC 7250).

use std::sync::Arc;

use tokio::sync::watch;
use wavry_proto::{control::Roster, id::PublicKey};

use crate::secret::Secret;

/// A node's Ed25519 key pair.
pub struct Identity {}

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a PKCS#8 PEM with an Ed25519 key.
    #[error("not an Ed25519 key in PKCS#8 PEM")]
    Malformed,
    /// rustls refused it.
    #[error("TLS configuration")]
    Tls(#[from] rustls::Error),
}

impl Identity {
    /// A new one from the operating system's random source.
    pub fn generate() -> Self {
        todo!()
    }

    /// Reads PKCS#8 PEM.
    pub fn from_pem(_pem: &Secret<Vec<u8>>) -> Result<Self, Error> {
        todo!()
    }

    /// As PKCS#8 PEM.
    pub fn to_pem(&self) -> Secret<Vec<u8>> {
        todo!()
    }

    /// The public half.
    pub fn public_key(&self) -> PublicKey {
        todo!()
    }

    /// An Ed25519 signature (RFC 8032).
    pub fn sign(&self, _message: &[u8]) -> [u8; 64] {
        todo!()
    }

    /// TLS for the mesh: this identity's raw public key, and a peer's key accepted if and only if
    /// the current roster lists it — for the node that is dialled, where this side dials.
    pub fn mesh_tls(&self, _roster: watch::Receiver<Arc<Roster>>) -> Result<MeshTls, Error> {
        todo!()
    }
}

/// TLS configurations for both directions of the mesh.
pub struct MeshTls {
    /// For connections that peers open.
    pub server: Arc<rustls::ServerConfig>,
    /// For connections to peers; the server name is the peer's node id.
    pub client: Arc<rustls::ClientConfig>,
}

/// Whether `signature` over `message` is by `key`.
pub fn verify(_key: &PublicKey, _message: &[u8], _signature: &[u8]) -> bool {
    todo!()
}
