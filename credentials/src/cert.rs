//! Certificates: the store that a handshake reads from memory, and whom a client trusts.

use std::{path::Path, sync::Arc, time::SystemTime};

/// Certificates by name. A handshake reads an immutable snapshot: no lock, no file, no network.
#[derive(Debug, Clone)]
pub struct Store {}

/// Why certificates cannot be used. No variant holds key material.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that must not or cannot be used.
    #[error(transparent)]
    Source(#[from] crate::source::Error),
    /// A file's content is not what it should be.
    #[error("{file}: {problem}")]
    Malformed {
        /// The file or what it stands for.
        file: String,
        /// What is wrong.
        problem: String,
    },
}

impl Store {
    /// An empty store: every handshake fails until certificates are loaded.
    pub fn new() -> Self {
        todo!()
    }

    /// Loads a PEM chain and its PKCS#8 key for the names in the certificate, and as the default.
    /// Key and certificate are checked against each other before anything is replaced.
    pub fn load(&self, _chain: &Path, _key: &Path) -> Result<(), Error> {
        todo!()
    }

    /// Loads the files again whenever they change, until dropped; keeps the last good ones.
    pub fn watch(&self, _chain: &Path, _key: &Path) -> tokio::task::JoinHandle<()> {
        todo!()
    }

    /// TLS for a server that takes its certificates from here. No ALPN is set.
    pub fn server_config(&self) -> rustls::ServerConfig {
        todo!()
    }

    /// The earliest expiry of what is loaded.
    pub fn expiry(&self) -> Option<SystemTime> {
        todo!()
    }
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

/// Whom a client trusts.
#[derive(Debug, Clone)]
pub enum Trust {
    /// The authorities in this PEM file.
    Authorities(std::path::PathBuf),
    /// A certificate with one of these SHA-256 hashes, under the rules of W3C WebTransport's
    /// `serverCertificateHashes`: P-256, at most 14 days, valid now. The name is not checked.
    Hashes(Vec<[u8; 32]>),
    /// The authorities of the operating system.
    System,
}

/// TLS for a client. No ALPN is set.
pub fn client_config(_trust: &Trust) -> Result<rustls::ClientConfig, Error> {
    todo!()
}

/// SHA-256 of the first certificate of a PEM file.
pub fn file_hash(_chain: &Path) -> Result<[u8; 32], Error> {
    todo!()
}

/// A certificate authority for development: a local root and 14-day P-256 certificates.
pub struct DevelopmentAuthority {}

impl DevelopmentAuthority {
    /// Reads `ca.crt` and `ca.key` in `directory`, or makes them.
    pub fn open(_directory: &Path) -> Result<Self, Error> {
        todo!()
    }

    /// Writes `NAME.crt` (chain) and `NAME.key` for these DNS names and addresses: P-256, 14 days.
    pub fn issue(&self, _name: &str, _subjects: &[&str]) -> Result<(), Error> {
        todo!()
    }

    /// Whether `NAME.crt` is there, belongs to this authority and is good for another day.
    pub fn is_fresh(&self, _name: &str) -> bool {
        todo!()
    }
}

/// Installs the process-wide TLS provider (aws-lc-rs). Called once, first thing in `main`.
pub fn install_crypto_provider() {
    let _ = Arc::new(());
    todo!()
}
