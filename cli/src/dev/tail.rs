//! Prints the logs of all processes as they come, each line after its process's name.

use std::{io::Write as _, path::PathBuf, time::Duration};

use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::state::State;

/// How often a log that was read to its end is looked at again.
const INTERVAL: Duration = Duration::from_millis(100);

/// Starts a task for each of `names`, whose logs are emptied first.
pub(crate) fn start(state: &State, names: &[&'static str]) -> std::io::Result<()> {
    for name in names {
        let file = super::log_file(state, name);
        std::fs::File::create(&file)?;
        tokio::spawn(follow(name, file));
    }
    Ok(())
}

async fn follow(name: &'static str, file: PathBuf) -> std::io::Result<()> {
    let mut reader = BufReader::new(tokio::fs::File::open(file).await?);
    let mut line = Vec::new();
    loop {
        // What is there of a line stays until the rest of it comes.
        reader.read_until(b'\n', &mut line).await?;
        if line.ends_with(b"\n") {
            let text = String::from_utf8_lossy(&line);
            write!(std::io::stderr(), "{name:8} | {text}")?;
            line.clear();
        } else {
            tokio::time::sleep(INTERVAL).await;
        }
    }
}
