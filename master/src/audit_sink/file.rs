//! A file of JSON lines, with its seal beside it. Where it is, it tells itself: its last line has a
//! number.

use std::{
    convert::Infallible,
    fs::OpenOptions,
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    time::Duration,
};

use wavry_credentials::{
    audit::{Line, file::seal_file},
    source,
};

use super::{Error, Log, News, Progress, next};

/// What is read of the file's end to find its last line: no line is longer.
const TAIL: u64 = 32 * 1024;
/// How long lines that are already in the log gather before a sync of their own: news comes with every
/// line, and a copy need not cost as many syncs as the log.
const GATHER: Duration = Duration::from_millis(20);

/// Copies what the log has and the file has not, and again whenever there is news.
pub(super) async fn follow(
    log: &impl Log,
    path: &Path,
    news: &mut News,
    progress: &mut Progress<'_>,
) -> Result<Infallible, Error> {
    loop {
        news.mark_unchanged();
        catch_up(log, path, progress).await?;
        progress.caught_up();
        next(news).await;
        tokio::time::sleep(GATHER).await;
    }
}

async fn catch_up(log: &impl Log, path: &Path, progress: &Progress<'_>) -> Result<(), Error> {
    let (start, mut length) = on_disk(path, its_end).await?;
    let mut seen = start;
    loop {
        let (lines, seal) = log.page(seen).await.map_err(Error::log)?;
        let Some((newest, _)) = lines.last() else {
            // Read together with there being no more lines, so it is that of the last one.
            return match seal.filter(|_| seen > start) {
                Some(seal) => Ok(source::write_public(&seal_file(path), seal.as_bytes())?),
                None => Ok(()),
            };
        };
        seen = *newest;
        let count = lines.len();
        length = on_disk(path, move |file| {
            let text: String = lines.iter().map(|(_, line)| format!("{line}\n")).collect();
            append(file, length, text.as_bytes())
        })
        .await?;
        progress.wrote(count, seen);
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
