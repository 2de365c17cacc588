//! Ready files: written once a process answers, so that scripts and tests need not read logs.

use std::{fs, io::Write as _, net::SocketAddr, os::unix::fs::OpenOptionsExt as _, path::Path};

use anyhow::Context as _;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// What one role's process says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Role {
    /// Its role.
    pub(crate) role: String,
    /// Its process.
    pub(crate) pid: u32,
    /// Where it serves: UDP for gateway, relay and sample service, TCP for the master.
    pub(crate) address: SocketAddr,
    /// URL of its ops listener, if it has one.
    pub(crate) ops: Option<String>,
}

/// Writes `content` as JSON so that a reader sees all of it or the file that was there before. Only
/// the owner can read it: a URL in it may carry a token.
pub(crate) fn write(path: &Path, content: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_vec_pretty(content).context("ready file")?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let written = (|| {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(&text)?;
        file.write_all(b"\n")?;
        fs::rename(&beside, path)
    })();
    written.with_context(|| format!("ready file {} cannot be written", path.display()))
}

/// Reads a ready file; `None` while it is not there.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> anyhow::Result<Option<T>> {
    match fs::read(path) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text).map_err(|_| {
            anyhow::anyhow!("{} is not a ready file", path.display())
        })?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            Err(error).with_context(|| format!("ready file {} cannot be read", path.display()))
        }
    }
}
