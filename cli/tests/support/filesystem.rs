//! A small filesystem in a mount namespace of its own, and what happens to filesystems.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
};

/// A filesystem of 2 MiB, which only commands of [`Filesystem::command`] see. It is gone when dropped.
pub(crate) struct Filesystem {
    /// Keeps the namespace.
    holder: Child,
    directory: PathBuf,
}

impl Filesystem {
    /// Mounts it at a directory, which is made.
    pub(crate) fn small(directory: &Path) -> Self {
        std::fs::create_dir(directory).unwrap();
        // cat ends when its input does, with this process at the latest.
        let script = "mount -t tmpfs -o size=2m,mode=700 none \"$0\" && echo mounted && exec cat";
        let mut holder = as_root("unshare")
            .args(["--mount", "sh", "-c", script])
            .arg(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("util-linux is installed");
        let mut said = String::new();
        let stdout = holder.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut said).unwrap();
        assert_eq!(said, "mounted\n", "a filesystem cannot be mounted here");
        Self {
            holder,
            directory: directory.to_owned(),
        }
    }

    /// `command`, where the filesystem is seen.
    pub(crate) fn command(&self, command: &Command) -> Command {
        let mut within = as_root("nsenter");
        let holder = self.holder.id().to_string();
        within.args(["--mount", "--target", &holder, "--"]);
        within.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => within.env(name, value),
                None => within.env_remove(name),
            };
        }
        within
    }

    /// Leaves no byte of room.
    pub(crate) fn fill(&self) {
        // It ends with "no space left".
        let filled = self.shell("cat /dev/zero > fill");
        assert!(!filled, "the filesystem has no end");
    }

    /// Gives the room back.
    pub(crate) fn empty(&self) {
        assert!(self.shell("rm fill"));
    }

    fn shell(&self, script: &str) -> bool {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("cd \"$0\" && {script}")]);
        shell.arg(&self.directory);
        let done = self.command(&shell).output().unwrap();
        done.status.success()
    }
}

impl Drop for Filesystem {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A process whose system calls go as a test has them, until this is dropped.
pub(crate) struct Meddled {
    strace: Child,
    /// Where it tells of each new thread: it would end if nobody could read that.
    _said: BufReader<ChildStderr>,
}

impl Meddled {
    /// It finds every file read-only, as after a filesystem was remounted so.
    pub(crate) fn read_only(pid: u32) -> Self {
        let calls = "pwrite64,pwritev,ftruncate,fallocate,fsync,fdatasync";
        Self::with(pid, calls, "error=EROFS")
    }

    /// It is killed where a thread of it begins the next of these calls.
    pub(crate) fn killed_at(pid: u32, call: &str) -> Self {
        Self::with(pid, call, "signal=SIGKILL:when=1")
    }

    fn with(pid: u32, calls: &str, what: &str) -> Self {
        let mut strace = as_root("strace")
            .args(["--follow-forks", "--output=/dev/null"])
            .arg(format!("--trace={calls}"))
            .arg(format!("--inject={calls}:{what}"))
            .arg(format!("--attach={pid}"))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace is installed");
        // It says of each thread that it is attached.
        let mut said = BufReader::new(strace.stderr.take().expect("piped"));
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert!(line.contains("attached"), "{line}");
        Self {
            strace,
            _said: said,
        }
    }
}

impl Drop for Meddled {
    fn drop(&mut self) {
        // Killed by force, it would leave the process stopped.
        super::signal(self.strace.id(), "TERM");
        let _ = self.strace.wait();
    }
}

fn as_root(program: &str) -> Command {
    use std::os::unix::fs::MetadataExt as _;
    if std::fs::metadata("/proc/self").is_ok_and(|us| us.uid() == 0) {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    sudo.args(["-n", "--preserve-env", program]);
    sudo
}
