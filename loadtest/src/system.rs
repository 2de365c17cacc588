//! A system that a scenario starts for itself: a process of this executable, and its files.

use std::{
    io,
    process::Stdio,
    time::{Duration, Instant},
};

use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::Error;

/// How long it may take to answer.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long it may drain when it is told to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// A process that ends with its standard input, and so when this is dropped.
pub(crate) struct System {
    process: Child,
    _state: TempDir,
}

impl System {
    /// A directory for its files.
    pub(crate) fn directory() -> Result<TempDir, Error> {
        tempfile::tempdir().map_err(failed)
    }

    /// Starts what `arrange` asks for, and gives its ready file, which is written when it answers.
    pub(crate) async fn start<R: DeserializeOwned>(
        state: TempDir,
        arrange: impl FnOnce(&mut Command),
    ) -> Result<(Self, R), Error> {
        let ready_file = state.path().join("ready.json");
        let log_file = state.path().join("log");
        let log = std::fs::File::create(&log_file).map_err(failed)?;
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        arrange(&mut command);
        let mut process = command
            .args(["--until-stdin-closes", "--ready-file"])
            .arg(&ready_file)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log)
            .spawn()
            .map_err(failed)?;
        let start = Instant::now();
        loop {
            // Written at once and whole.
            if let Ok(text) = tokio::fs::read(&ready_file).await {
                let ready = serde_json::from_slice(&text)
                    .map_err(|_| Error::Start("its ready file cannot be read".to_owned()))?;
                let system = Self {
                    process,
                    _state: state,
                };
                return Ok((system, ready));
            }
            let ended = process.try_wait().map_err(failed)?;
            if ended.is_some() || start.elapsed() > START_TIMEOUT {
                let log = tokio::fs::read_to_string(&log_file)
                    .await
                    .unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let last = lines[lines.len().saturating_sub(20)..].join("\n");
                let how = ended.map_or("it is silent".to_owned(), |s| format!("it ended with {s}"));
                return Err(Error::Start(format!("{how}\n{last}")));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Stops it and waits until it is gone.
    pub(crate) async fn stop(mut self) -> Result<(), Error> {
        drop(self.process.stdin.take());
        match tokio::time::timeout(STOP_TIMEOUT, self.process.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(Error::Start(format!("it ended with {status}"))),
            Ok(Err(error)) => Err(failed(error)),
            Err(_) => Err(Error::Start(format!(
                "still there {STOP_TIMEOUT:?} after it was told to stop"
            ))),
        }
    }
}

fn failed(error: io::Error) -> Error {
    Error::Start(error.to_string())
}
