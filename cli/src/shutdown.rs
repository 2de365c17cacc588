//! When a process ends: on SIGTERM or SIGINT it drains, on a second one it exits at once.

use std::io::Read as _;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that the first SIGTERM or SIGINT cancels.
pub(crate) fn on_signal() -> anyhow::Result<CancellationToken> {
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let first = shutdown.clone();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            }
        };
        let signal = next().await;
        tracing::info!(signal, "shutting down");
        first.cancel();
        let signal = next().await;
        tracing::warn!(signal, "exiting without waiting any longer");
        std::process::exit(130);
    });
    Ok(shutdown)
}

/// Cancels `shutdown` when standard input ends: whoever holds its other end is gone, however it
/// went.
pub(crate) fn on_stdin_end(shutdown: CancellationToken) {
    // A thread and not a task: a pending read would keep the runtime from ending.
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while matches!(std::io::stdin().read(&mut buffer), Ok(n) if n > 0) {}
        shutdown.cancel();
    });
}
