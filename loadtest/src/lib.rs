//! Drives the system as real clients do and prints the figures the project claims.
//!
//! Each benchmark is a [`Scenario`] and ends in a [`Report`]. A scenario runs against a system that
//! is up (`--url`), or starts one of its own from the current executable. Where it compares, both
//! sides run in turns in the same process, so that whatever else the machine does hits both.
//!
//! * [`target`]: the system under test; [`system`]: one that is started here. [`raw`]: the baseline, bare
//!   QUIC.
//! * [`measure`]: what is measured, on either side by the same code.
//! * [`servers`]: session layers under test, and one client for all.
//! * [`ops`]: counters read from the nodes, for scenarios that account for every loss.
//! * [`shaper`]: a network between real sockets, for what is tested on worse ones than loopback.

mod measure;
mod ops;
mod pattern;
mod raw;
mod report;
mod scenario;
mod servers;
pub mod shaper;
mod system;
mod target;

use std::{io::Write as _, process::ExitCode, time::Duration};

use wavry_transport::{
    session::{Closed, ReadError, WriteError},
    webtransport::ConnectError,
};

pub use report::{Better, Report, Row};
pub use scenario::Scenario;

/// Why a scenario has no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The arguments do not fit together.
    #[error("{0}")]
    Argument(String),
    /// The system that the scenario starts for itself did not come up.
    #[error("the system under test did not start: {0}")]
    Start(String),
    /// No session to the service.
    #[error("no session")]
    Connect(#[source] ConnectError),
    /// The session ended while it was measured.
    #[error("the session ended")]
    Session(#[from] Closed),
    /// A stream could not be written.
    #[error("a stream could not be written")]
    Write(#[from] WriteError),
    /// A stream could not be read.
    #[error("a stream could not be read")]
    Read(#[from] ReadError),
    /// A stream ended before everything came back.
    #[error("a stream ended {missing} bytes early")]
    Short {
        /// Bytes that should have followed.
        missing: u64,
    },
    /// The other side said nothing.
    #[error("{what}: nothing for {waited:?}")]
    Silent {
        /// What was waited for.
        what: &'static str,
        /// How long.
        waited: Duration,
    },
    /// A node's counters cannot be read.
    #[error("metrics of {url} cannot be read: {problem}")]
    Metrics {
        /// The address.
        url: String,
        /// What is wrong.
        problem: String,
    },
    /// A KeyVault did not answer as it should. Holds nothing that it answered.
    #[error("KeyVault, {what}: {problem}")]
    KeyVault {
        /// What was asked.
        what: String,
        /// What is wrong.
        problem: String,
    },
    /// The baseline could not be set up.
    #[error("the baseline could not be set up: {0}")]
    Baseline(String),
}

/// Runs a scenario, with its progress on standard error and its report on standard output. The exit
/// code is a failure when something the scenario checks does not hold.
pub async fn run(scenario: &Scenario) -> Result<ExitCode, Error> {
    let Some(report) = scenario.run().await? else {
        return Ok(ExitCode::SUCCESS);
    };
    let text = if scenario.json() {
        report.to_json()
    } else {
        report.to_table()
    };
    // A reader that went away wants no more.
    let _ = writeln!(std::io::stdout(), "{text}");
    for failure in &report.failures {
        progress(&format!("FAILED: {failure}"));
    }
    Ok(if report.failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Tells whoever waits how far things are.
fn progress(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
