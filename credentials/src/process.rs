//! What keeps a process's memory to itself.

use std::io;

use rustix::process::{Resource, Rlimit};

/// Why a process's memory could not be closed to others.
#[derive(Debug, thiserror::Error)]
#[error("{step}")]
pub struct Error {
    /// What was tried.
    step: &'static str,
    /// What the operating system said.
    source: io::Error,
}

/// Turns core dumps off for this process and those it starts, and lets nobody but root trace it or
/// read its memory (`PR_SET_DUMPABLE`). Called first thing in `main`.
///
/// [`crate::secret::Secret`] keeps its own pages out of dumps; this covers what libraries and the
/// stack hold while they work.
pub fn harden() -> Result<(), Error> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    rustix::process::setrlimit(Resource::Core, none)
        .map_err(|error| failed("core dumps cannot be turned off", error))?;
    #[cfg(target_os = "linux")]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|error| failed("the process cannot be made undumpable", error))?;
    Ok(())
}

fn failed(step: &'static str, error: rustix::io::Errno) -> Error {
    Error {
        step,
        source: error.into(),
    }
}

/// Who runs this process, as the audit log names them.
pub fn user() -> String {
    format!("uid {}", rustix::process::getuid().as_raw())
}
