//! A server in a process of its own: what it costs is its alone.

use std::{net::SocketAddr, path::Path, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use super::Kind;
use crate::Error;

/// How long a server may take to be there.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// How long it may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// A server's process. It ends with its standard input, and so when this is dropped.
pub(crate) struct Process {
    child: Child,
    address: SocketAddr,
}

impl Process {
    /// Starts a server from the current executable.
    pub(crate) async fn start(kind: Kind, certificates: &Path) -> Result<Self, Error> {
        let failed = |error: &dyn std::fmt::Display| {
            Error::Start(format!("server {}: {error}", kind.name()))
        };
        let mut child = Command::new(std::env::current_exe().map_err(|e| failed(&e))?)
            .args(["loadtest", "server", kind.name(), "--certificates"])
            .arg(certificates)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| failed(&e))?;
        let mut line = String::new();
        let stdout = child.stdout.take();
        let mut stdout = BufReader::new(stdout.ok_or_else(|| failed(&"no standard output"))?);
        tokio::time::timeout(START_TIMEOUT, stdout.read_line(&mut line))
            .await
            .map_err(|_| failed(&"it is silent"))?
            .map_err(|e| failed(&e))?;
        let address = line.trim().parse().map_err(|e| failed(&e))?;
        Ok(Self { child, address })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it and waits until it is gone.
    pub(crate) async fn stop(mut self) {
        drop(self.child.stdin.take());
        if tokio::time::timeout(STOP_TIMEOUT, self.child.wait())
            .await
            .is_err()
        {
            let _ = self.child.kill().await;
        }
    }

    /// Bytes of memory that it has in use (`VmRSS`).
    pub(crate) fn resident(&self) -> Result<u64, Error> {
        let pid = self.pid()?;
        resident(pid)
    }

    /// Processor time that it has used. `None` where the kernel does not say.
    pub(crate) fn processor_time(&self) -> Option<Duration> {
        processor_time(self.pid().ok()?)
    }

    fn pid(&self) -> Result<u32, Error> {
        let pid = self.child.id();
        pid.ok_or_else(|| Error::Start("a server has ended".to_owned()))
    }
}

/// Bytes of memory that a process has in use.
pub(crate) fn resident(pid: u32) -> Result<u64, Error> {
    let unknown = |problem: &dyn std::fmt::Display| {
        Error::Baseline(format!(
            "the memory of process {pid} is not known: {problem}"
        ))
    };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(|e| unknown(&e))?;
    let kibibytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"))
        .and_then(|figure| figure.parse::<u64>().ok());
    Ok(kibibytes.ok_or_else(|| unknown(&"no VmRSS"))? * 1024)
}

/// Time on a processor of all threads, as the scheduler counts it.
fn processor_time(pid: u32) -> Option<Duration> {
    let mut nanoseconds = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let text = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        nanoseconds += text.split(' ').next()?.parse::<u64>().ok()?;
    }
    Some(Duration::from_nanos(nanoseconds))
}
