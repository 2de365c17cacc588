//! Secrets in files.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    io::Errno,
};

use super::{Error, Found, Source, Version};
use crate::{
    key::format,
    random,
    secret::{Form, Secret},
};

/// Largest secret, in bytes.
pub const MAX_LEN: u64 = 64 * 1024;
/// Largest certificate file, in bytes: a bundle of every public authority is a quarter of it.
const MAX_PUBLIC_LEN: u64 = 1024 * 1024;

/// A file that holds a secret, or several as a JSON object.
pub struct File {
    path: PathBuf,
    field: Option<String>,
}

impl File {
    /// The secret is all of the file, or a field of the object in it.
    pub fn new(path: impl Into<PathBuf>, field: Option<String>) -> Self {
        Self {
            path: path.into(),
            field,
        }
    }
}

impl Source for File {
    fn place(&self) -> String {
        self.path.display().to_string()
    }

    async fn read(&self, known: Option<&Version>) -> Result<Option<Found>, Error> {
        let (path, field, known) = (self.path.clone(), self.field.clone(), known.cloned());
        let place = self.place();
        let read = move || {
            let version = version_of(&path);
            // A file that is away for a moment is being replaced.
            if known.is_some() && (version.is_none() || version == known) {
                return Ok(None);
            }
            let mut text = read_file(&path)?;
            if let Some(field) = &field {
                let found = format::field(&text, &[field.as_str()]);
                text = found.map_err(|fault| Error::Malformed {
                    name: field.clone(),
                    place,
                    fault,
                })?;
            }
            let version = version.unwrap_or_else(|| Version(String::new()));
            Ok(Some(Found { version, text }))
        };
        match tokio::task::spawn_blocking(read).await {
            Ok(read) => read,
            // The runtime is shutting down.
            Err(_) => Ok(None),
        }
    }
}

/// What tells one state of a file from another without its being read; `None` while it is away.
pub(crate) fn version_of(path: &Path) -> Option<Version> {
    let metadata = fs::metadata(path).ok()?;
    let (dev, ino, size) = (metadata.dev(), metadata.ino(), metadata.size());
    // Permissions that were put right change the second time only.
    let (written, changed) = (
        (metadata.mtime(), metadata.mtime_nsec()),
        (metadata.ctime(), metadata.ctime_nsec()),
    );
    Some(Version(format!(
        "{dev}/{ino}/{size}/{written:?}/{changed:?}"
    )))
}

/// Reads a secret from a file: opened without following links, a regular file, owned by this user
/// or root, no access for group and others, at most 64 KiB, in a directory where nobody else can put
/// another file in its place: it too belongs to this user or root, and group and others cannot write
/// to it, unless it is one in which each may move only his own (sticky, as `/tmp` and what Kubernetes
/// mounts).
///
/// One kind of link is followed: one that stays below the file's own directory, as Kubernetes lays
/// out a mounted secret (`key` → `..data/key` → `..2026_11_22/key`). The directories on that way are held
/// to the same rules.
pub fn read_file(path: &Path) -> Result<Secret<Vec<u8>>, Error> {
    let problem = |problem: String| Error::File {
        path: path.to_owned(),
        problem,
    };
    let mut file = open_no_follow(path).map_err(|refused| match refused {
        Refused::Io(error) => problem(format!("cannot be opened: {error}")),
        Refused::Directory(why) => problem(why),
    })?;
    // All checks are of what was opened; what the name points at may change meanwhile.
    let metadata = file
        .metadata()
        .map_err(|error| problem(format!("cannot be examined: {error}")))?;
    let us = rustix::process::geteuid().as_raw();
    if !metadata.is_file() {
        return Err(problem("is not a regular file".into()));
    }
    if metadata.uid() != us && metadata.uid() != 0 {
        return Err(problem(format!(
            "belongs to user {}: it must belong to user {us} or root (chown {us})",
            metadata.uid()
        )));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(problem(format!(
            "is open to group or others (mode {:04o}): chmod 600",
            metadata.mode() & 0o7777
        )));
    }
    if metadata.len() > MAX_LEN {
        return Err(problem(format!(
            "has {} bytes: a secret has {MAX_LEN} at most",
            metadata.len()
        )));
    }
    // One byte more than expected shows that there are no more.
    Secret::filled(metadata.len() as usize + 1, |room| {
        match read_up_to(&mut file, room) {
            Ok(length) if length < room.len() => Ok(length),
            Ok(_) => Err(problem("grew while it was read: try again".into())),
            Err(error) => Err(problem(format!("cannot be read: {error}"))),
        }
    })
}

/// Reads a file that is no secret, at most 1 MiB.
pub fn read_public(path: &Path) -> Result<Vec<u8>, Error> {
    let problem = |problem: String| Error::File {
        path: path.to_owned(),
        problem,
    };
    let cannot = |error: io::Error| problem(format!("cannot be read: {error}"));
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_PUBLIC_LEN + 1).read_to_end(&mut bytes))
        .map_err(cannot)?;
    if bytes.len() as u64 > MAX_PUBLIC_LEN {
        return Err(problem(format!("has more than {MAX_PUBLIC_LEN} bytes")));
    }
    Ok(bytes)
}

/// Writes a secret to a file as [`write_private`] does.
pub fn write_secret<T: Form>(path: &Path, secret: &Secret<T>) -> Result<(), Error> {
    write(path, |file| secret.write_to(file), 0o600)
}

/// Writes a file that only its owner can read: to a new file beside it, synced, then renamed over.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    write(path, |file| file.write_all(bytes), 0o600)
}

/// Writes a file that everyone may read, in the same way.
pub fn write_public(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    write(path, |file| file.write_all(bytes), 0o644)
}

/// Why a file was not opened.
enum Refused {
    Io(io::Error),
    /// What is wrong with a directory.
    Directory(String),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Errno> for Refused {
    fn from(error: Errno) -> Self {
        match error {
            Errno::XDEV => Self::Io(io::Error::other("it is a link that leaves its directory")),
            error => Self::Io(error.into()),
        }
    }
}

/// Opens a file in a directory that was opened and checked before: what is checked is what is used.
fn open_no_follow(path: &Path) -> Result<fs::File, Refused> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput);
    let name = name.map_err(io::Error::from)?;
    let flags = DIRECTORY | OFlags::CLOEXEC;
    let directory = fs::File::from(rustix::fs::open(directory_of(path), flags, Mode::empty())?);
    check_directory(&directory, "its directory")?;
    match open_in(&directory, name, OFlags::NOFOLLOW) {
        Err(Errno::LOOP) => open_beneath(&directory, name),
        opened => Ok(opened?),
    }
}

/// How a directory is opened that may be one to pass through and not to list.
#[cfg(target_os = "linux")]
const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::PATH);
#[cfg(not(target_os = "linux"))]
const DIRECTORY: OFlags = OFlags::DIRECTORY;

fn open_in(directory: &fs::File, name: &OsStr, flags: OFlags) -> Result<fs::File, Errno> {
    // Not blocking: opening a FIFO would wait for whoever writes to it.
    let flags = flags | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::empty()).map(fs::File::from)
}

/// Follows a link, as long as it stays below the directory it is in; the kernel sees to that in the
/// same step as it opens the file.
#[cfg(target_os = "linux")]
fn open_beneath(directory: &fs::File, name: &OsStr) -> Result<fs::File, Refused> {
    let within = |path: &Path, flags| {
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::CLOEXEC;
        rustix::fs::openat2(directory, path, flags, Mode::empty(), how).map(fs::File::from)
    };
    // Kubernetes changes where the link leads in one step, by `..data`; each file that is behind it has
    // a directory of its own name there. Where it leads now is looked at before it is gone through.
    let target = rustix::fs::readlinkat(directory, name, Vec::new())?;
    let target = PathBuf::from(OsStr::from_bytes(target.as_bytes()));
    if let Some(parent) = target
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        let parent = within(parent, DIRECTORY)?;
        check_directory(&parent, "the directory behind its link")?;
        let last = target.file_name().ok_or(io::ErrorKind::InvalidInput);
        let last = last.map_err(io::Error::from)?;
        return match open_in(&parent, last, OFlags::NOFOLLOW) {
            Err(Errno::LOOP) => Err(io::Error::other("it is a link to a link").into()),
            opened => Ok(opened?),
        };
    }
    Ok(within(Path::new(name), OFlags::RDONLY | OFlags::NONBLOCK)?)
}

#[cfg(not(target_os = "linux"))]
fn open_beneath(_directory: &fs::File, _name: &OsStr) -> Result<fs::File, Refused> {
    Err(io::Error::other("it is a link").into())
}

/// Whether somebody else could put another file in the place of one in this directory.
fn check_directory(directory: &fs::File, what: &str) -> Result<(), Refused> {
    const STICKY: u32 = 0o1000;
    let metadata = directory.metadata()?;
    let us = rustix::process::geteuid().as_raw();
    if metadata.uid() != us && metadata.uid() != 0 {
        return Err(Refused::Directory(format!(
            "can be replaced by user {}, to whom {what} belongs: it must belong to user {us} or root",
            metadata.uid()
        )));
    }
    if metadata.mode() & 0o022 != 0 && metadata.mode() & STICKY == 0 {
        return Err(Refused::Directory(format!(
            "can be replaced by others, who may write to {what} (mode {:04o}): chmod go-w",
            metadata.mode() & 0o7777
        )));
    }
    Ok(())
}

fn read_up_to(file: &mut fs::File, bytes: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < bytes.len() {
        match file.read(&mut bytes[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    }
}

fn write(
    path: &Path,
    content: impl FnOnce(&mut fs::File) -> io::Result<()>,
    mode: u32,
) -> Result<(), Error> {
    let problem = |problem: String| Error::File {
        path: path.to_owned(),
        problem,
    };
    let name = path
        .file_name()
        .ok_or_else(|| problem("is not the name of a file".into()))?;
    let mut temporary_name = OsString::from(".");
    temporary_name.push(name);
    temporary_name.push(format!(".{}", hex::encode(random::bytes::<8>())));
    let directory = directory_of(path);
    let temporary = directory.join(temporary_name);
    let written = write_new(&temporary, content, mode)
        .and_then(|()| fs::rename(&temporary, path))
        // The rename itself is only durable once its directory is.
        .and_then(|()| fs::File::open(directory)?.sync_all());
    written.map_err(|error| {
        // What matters is why the file was not written; a stray temporary file harms nobody.
        let _ = fs::remove_file(&temporary);
        problem(format!("cannot be written: {error}"))
    })
}

fn write_new(
    path: &Path,
    content: impl FnOnce(&mut fs::File) -> io::Result<()>,
    mode: u32,
) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    content(&mut file)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn file(directory: &Path, name: &str, mode: u32) -> PathBuf {
        let path = directory.join(name);
        fs::write(&path, b"s3cret").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn refusal(path: &Path) -> String {
        match read_file(path) {
            Ok(_) => panic!("{} was read", path.display()),
            Err(error) => {
                let text = error.to_string();
                assert!(text.starts_with(&path.display().to_string()), "{text}");
                assert!(!text.contains("s3cret"), "{text}");
                text
            }
        }
    }

    #[test]
    fn a_private_file_is_read_whole() {
        let directory = tempfile::tempdir().unwrap();
        for mode in [0o600, 0o400] {
            let path = file(directory.path(), &format!("key{mode}"), mode);
            assert!(read_file(&path).unwrap().matches(b"s3cret"));
        }
        let empty = directory.path().join("empty");
        write_private(&empty, b"").unwrap();
        assert!(read_file(&empty).unwrap().matches(b""));
        let full = directory.path().join("full");
        write_private(&full, &[7; MAX_LEN as usize]).unwrap();
        assert!(read_file(&full).unwrap().matches(&[7; MAX_LEN as usize]));
    }

    #[test]
    fn a_file_that_others_may_open_is_refused_with_the_way_out() {
        let directory = tempfile::tempdir().unwrap();
        for mode in [0o644, 0o640, 0o604, 0o620, 0o601] {
            let path = file(directory.path(), &format!("key{mode}"), mode);
            assert!(refusal(&path).contains("chmod 600"));
        }
    }

    #[test]
    fn a_file_of_another_user_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = file(directory.path(), "key", 0o600);
        // Only root can give a file away; for anyone else there is nothing to try.
        if std::os::unix::fs::chown(&path, Some(12345), None).is_ok() {
            assert!(refusal(&path).contains("belongs to user 12345"));
        }
    }

    #[test]
    fn what_is_not_a_regular_file_of_reasonable_size_is_refused_without_waiting() {
        let directory = tempfile::tempdir().unwrap();
        assert!(refusal(directory.path()).contains("not a regular file"));
        assert!(refusal(&directory.path().join("gone")).contains("cannot be opened"));

        let fifo = directory.path().join("fifo");
        let file_type = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, file_type, Mode::RUSR, 0).unwrap();
        assert!(refusal(&fifo).contains("not a regular file"));

        let large = directory.path().join("large");
        write_private(&large, &[0; MAX_LEN as usize + 1]).unwrap();
        assert!(refusal(&large).contains("65536 at most"));
    }

    #[test]
    fn a_link_that_stays_below_its_directory_is_followed_as_kubernetes_lays_secrets_out() {
        let directory = tempfile::tempdir().unwrap();
        let first = directory.path().join("..2026_11_22");
        fs::create_dir(&first).unwrap();
        file(&first, "key", 0o400);
        symlink("..2026_11_22", directory.path().join("..data")).unwrap();
        let path = directory.path().join("key");
        symlink("..data/key", &path).unwrap();
        assert!(read_file(&path).unwrap().matches(b"s3cret"));

        // What is behind the link is held to the same rules.
        fs::set_permissions(first.join("key"), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(refusal(&path).contains("chmod 600"));
    }

    #[test]
    fn a_link_that_leaves_its_directory_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (inside, outside) = (directory.path().join("in"), directory.path().join("out"));
        fs::create_dir(&inside).unwrap();
        fs::create_dir(&outside).unwrap();
        let target = file(&outside, "key", 0o600);
        for (name, to) in [
            ("relative", PathBuf::from("../out/key")),
            ("absolute", target),
            ("loop", PathBuf::from("loop")),
        ] {
            let link = inside.join(name);
            symlink(to, &link).unwrap();
            assert!(refusal(&link).contains("cannot be opened"));
        }
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused_but_for_a_sticky_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = file(directory.path(), "key", 0o600);
        for mode in [0o770, 0o707, 0o777, 0o720] {
            fs::set_permissions(directory.path(), fs::Permissions::from_mode(mode)).unwrap();
            assert!(refusal(&path).contains("chmod go-w"), "{mode:o}");
        }
        for mode in [0o700, 0o755, 0o1777, 0o1770] {
            fs::set_permissions(directory.path(), fs::Permissions::from_mode(mode)).unwrap();
            assert!(read_file(&path).is_ok(), "{mode:o}");
        }
        // Only root can give a directory away; for anyone else there is nothing to try.
        if std::os::unix::fs::chown(directory.path(), Some(12345), None).is_ok() {
            assert!(refusal(&path).contains("replaced by user 12345"));
        }
    }

    #[test]
    fn a_mounted_secret_is_read_whichever_version_its_link_leads_to() {
        let mount = tempfile::tempdir().unwrap();
        fs::set_permissions(mount.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        let path = mount.path().join("key");
        symlink("..data/key", &path).unwrap();
        for (version, text) in [("..one", "1"), ("..two", "2")] {
            let directory = mount.path().join(version);
            fs::create_dir(&directory).unwrap();
            write_private(&directory.join("key"), text.as_bytes()).unwrap();
            // As the kubelet does it: the new link takes the old one's place in one step.
            symlink(version, mount.path().join("..data_tmp")).unwrap();
            fs::rename(mount.path().join("..data_tmp"), mount.path().join("..data")).unwrap();
            assert!(read_file(&path).unwrap().matches(text.as_bytes()));
        }
        let behind = mount.path().join("..two");
        fs::set_permissions(&behind, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(refusal(&path).contains("behind its link"));
    }

    #[test]
    fn a_written_file_is_private_replaces_the_old_one_and_leaves_nothing_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = file(directory.path(), "key", 0o644);
        write_private(&path, b"new").unwrap();
        assert!(read_file(&path).unwrap().matches(b"new"));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_write_that_fails_names_the_file_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::create_dir(&path).unwrap();
        let text = write_private(&path, b"s3cret").unwrap_err().to_string();
        assert!(text.contains("cannot be written"), "{text}");
        assert!(!text.contains("s3cret"), "{text}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
