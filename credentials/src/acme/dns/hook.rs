//! A program of the operator's that changes the DNS: `PROGRAM [ARGUMENT…] add|remove NAME VALUE`.

use std::{path::Path, process::Stdio, time::Duration};

use tokio::{
    io::AsyncReadExt as _,
    process::{ChildStderr, Command},
    time::timeout,
};

use super::{Change, Error};
use crate::redact;

/// From its start to its end.
const DEADLINE: Duration = Duration::from_secs(60);
/// What is read of its standard error, in bytes.
const MAX_SAID: u64 = 1024;
/// All that it finds in its environment.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs it, without a shell. What it writes to standard error is told if it fails, without what looks like a secret.
pub(super) async fn run(
    program: &Path,
    arguments: &[String],
    change: Change,
    name: &str,
    value: &str,
) -> Result<(), Error> {
    let failed = |problem: String| Error::Hook(program.to_owned(), problem);
    let mut child = Command::new(program)
        .args(arguments)
        .args([change.word(), name, value])
        .env_clear()
        .env("PATH", PATH)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(format!("cannot be run: {error}")))?;
    let stderr = child.stderr.take();
    let ended = timeout(DEADLINE, async {
        let said = async {
            match stderr {
                Some(stderr) => read(stderr).await,
                None => String::new(),
            }
        };
        tokio::join!(said, child.wait())
    });
    let (said, status) = ended
        .await
        .map_err(|_| failed(format!("did not end within {DEADLINE:?}")))?;
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => {
            let said = redact::text(said.trim());
            Err(failed(format!("ended with {status}: {said}")))
        }
        Err(error) => Err(failed(format!("cannot be waited for: {error}"))),
    }
}

/// The beginning of what it says; the rest is read and forgotten, so that it is not held up.
async fn read(mut from: ChildStderr) -> String {
    let mut said = Vec::new();
    let _ = (&mut from).take(MAX_SAID).read_to_end(&mut said).await;
    let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&said).into_owned()
}
