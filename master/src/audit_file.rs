//! A copy of the audit log as a file of JSON lines, for whatever carries logs away. It follows the
//! database, which is the log: a file that cannot be written for a while is caught up later.

use std::{
    fs::OpenOptions,
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::Notify;
use wavry_credentials::{
    audit::{Line, file::seal_file},
    source,
};

use crate::{
    metrics as names,
    store::{self, Store},
};

/// Pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);
/// What is read of the file's end to find its last line: no line is longer.
const TAIL: u64 = 32 * 1024;

/// Why the copy is behind.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("database")]
    Store(#[from] store::Error),
    #[error("file")]
    File(#[from] io::Error),
    #[error("seal")]
    Seal(#[from] source::Error),
}

/// Copies what `store` has and the file has not, and again whenever `news` says so. It never ends.
pub(crate) async fn follow(store: Store, file: PathBuf, news: Arc<Notify>) {
    let mut is_behind = false;
    loop {
        match catch_up(&store, &file).await {
            Ok(()) => {
                if is_behind {
                    tracing::info!(file = %file.display(), "audit file is caught up");
                }
                is_behind = false;
                news.notified().await;
            }
            Err(error) => {
                metrics::counter!(names::AUDIT_FILE_FAILURES).increment(1);
                if !is_behind {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, file = %file.display(), "audit file is behind");
                }
                is_behind = true;
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn catch_up(store: &Store, file: &Path) -> Result<(), Error> {
    let (start, mut length) = on_disk(file, its_end).await?;
    let mut seen = start;
    loop {
        let (lines, seal) = store.audit_lines(seen).await?;
        let Some((newest, _)) = lines.last() else {
            // Read together with there being no more lines, so it is that of the last one.
            return match seal.filter(|_| seen > start) {
                Some(seal) => Ok(source::write_public(&seal_file(file), seal.as_bytes())?),
                None => Ok(()),
            };
        };
        seen = *newest;
        length = on_disk(file, move |file| {
            let text: String = lines.iter().map(|(_, line)| format!("{line}\n")).collect();
            append(file, length, text.as_bytes())
        })
        .await?;
    }
}

/// Does something with the file where it holds up nobody.
async fn on_disk<T: Send + 'static>(
    file: &Path,
    work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let file = file.to_owned();
    tokio::task::spawn_blocking(move || work(&file))
        .await
        .map_err(io::Error::other)?
}

/// Number of the last line in the file, and the file's length in bytes; zeros if there is none. Half a
/// line at the end, which a crash left, is cut off.
fn its_end(file: &Path) -> io::Result<(u64, u64)> {
    let mut file = match OpenOptions::new().read(true).write(true).open(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((0, 0)),
        opened => opened?,
    };
    let start = file.seek(SeekFrom::End(0))?.saturating_sub(TAIL);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    (&file).take(TAIL).read_to_end(&mut tail)?;
    let whole = tail.iter().rposition(|byte| *byte == b'\n');
    let whole = whole.map_or(0, |newline| newline + 1);
    let length = start + whole as u64;
    file.set_len(length)?;
    let text = tail[..whole.saturating_sub(1)].rsplit(|byte| *byte == b'\n');
    match text.map(String::from_utf8_lossy).next() {
        Some(text) if !text.is_empty() => Line::read(&text)
            .map(|line| (line.head.seq, length))
            .map_err(|_| io::Error::other("its last line is not one of an audit log")),
        _ => Ok((0, 0)),
    }
}

/// Adds to a file of `length` bytes, and gives its new length. Another length is another file, moved
/// there meanwhile, whose end is to be looked at first.
fn append(file: &Path, length: u64, text: &[u8]) -> io::Result<u64> {
    let mut options = OpenOptions::new();
    let mut file = options.append(true).create(true).mode(0o600).open(file)?;
    if file.metadata()?.len() != length {
        return Err(io::Error::other("another file has come in its place"));
    }
    file.write_all(text)?;
    file.sync_data()?;
    Ok(length + text.len() as u64)
}
