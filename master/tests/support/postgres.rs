//! A PostgreSQL server of a test's own, in a directory of its own, reached through a socket there.

use std::{
    ffi::OsStr,
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) struct Server {
    directory: tempfile::TempDir,
    settings: Vec<String>,
    process: Child,
}

impl Server {
    /// Starts one. Whether what it commits outlives a power cut costs what it costs.
    pub(crate) fn start(durable: bool) -> Self {
        let fsync = if durable { "fsync=on" } else { "fsync=off" };
        Self::configured(|_| vec!["listen_addresses=".to_owned(), fsync.to_owned()])
    }

    /// Starts one with the settings that `prepare` gives, once it was shown the directory of the data. What
    /// it puts there belongs to the server.
    pub(crate) fn configured(prepare: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let owner = owner();
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::chown(directory.path(), Some(uid), Some(gid)).expect("root may");
        }
        let data = directory.path().join("data");
        let made = as_owner(&program("initdb"), owner)
            .args([
                "--no-sync",
                "--auth=trust",
                "--username=postgres",
                "--pgdata",
            ])
            .arg(&data)
            .current_dir(directory.path())
            .stdout(Stdio::null())
            .status()
            .expect("initdb starts");
        assert!(made.success(), "initdb failed");
        let settings = prepare(&data);
        if let Some((uid, gid)) = owner {
            for entry in fs::read_dir(&data).expect("a directory").flatten() {
                std::os::unix::fs::chown(entry.path(), Some(uid), Some(gid)).expect("root may");
            }
        }
        let process = serve(directory.path(), &settings);
        let server = Self {
            directory,
            settings,
            process,
        };
        server.wait_until_ready();
        server
    }

    /// Has it end at once, whatever its clients are doing, as when its machine fails.
    #[allow(dead_code, reason = "not every test that has a server has it fail")]
    pub(crate) fn crash(&mut self) {
        self.signal("-QUIT");
        self.process.wait().expect("it ends");
    }

    /// Starts it again, with the same data at the same place.
    #[allow(dead_code, reason = "not every test that has a server has it fail")]
    pub(crate) fn start_again(&mut self) {
        self.process = serve(self.directory.path(), &self.settings);
        self.wait_until_ready();
    }

    /// Has what serves its clients stand still, or go on (`-STOP`, `-CONT`); new ones are not served, either.
    #[allow(
        dead_code,
        reason = "not every test that has a server has it stand still"
    )]
    pub(crate) fn signal_backends(&self, signal: &str) {
        // First what starts them: it would start another one meanwhile.
        assert!(self.signal(signal));
        let pid = self.process.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let sent = Command::new("kill")
            .arg(signal)
            .args(children.expect("its children").split_whitespace())
            .status();
        assert!(sent.expect("kill starts").success());
    }

    fn wait_until_ready(&self) {
        let deadline = Instant::now() + DEADLINE;
        while !self.is_ready() {
            assert!(
                Instant::now() < deadline,
                "PostgreSQL is not ready: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, signal: &str) -> bool {
        let pid = self.process.id().to_string();
        let asked = Command::new("kill").args([signal, &pid]).status();
        asked.is_ok_and(|asked| asked.success())
    }

    /// Makes a database, and gives its URL.
    pub(crate) async fn database(&self, name: &str) -> String {
        let (directory, owned) = (self.directory.path().to_owned(), name.to_owned());
        let make = move || {
            let made = Command::new(program("createdb"))
                .args(["--username=postgres", "--host"])
                .arg(directory)
                .arg(owned)
                .status();
            assert!(made.expect("createdb starts").success(), "no database");
        };
        let made = tokio::task::spawn_blocking(make).await;
        made.expect("a database is made");
        self.url(name)
    }

    /// Where a database of it is.
    pub(crate) fn url(&self, database: &str) -> String {
        let socket = self.directory.path().display();
        format!("postgres://postgres@localhost/{database}?host={socket}")
    }

    fn is_ready(&self) -> bool {
        let status = Command::new(program("pg_isready"))
            .args(["--quiet", "--host"])
            .arg(self.directory.path())
            .status();
        status.is_ok_and(|status| status.success())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A test that failed may have left all of it standing still.
        let pid = self.process.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let _ = Command::new("kill")
            .args(["-CONT", &pid.to_string()])
            .args(children.unwrap_or_default().split_whitespace())
            .status();
        // It ends its own processes when it is asked to.
        if !self.signal("-INT") {
            let _ = self.process.kill();
        }
        let _ = self.process.wait();
    }
}

fn serve(directory: &Path, settings: &[String]) -> Child {
    as_owner(&program("postgres"), owner())
        .arg("-D")
        .arg(directory.join("data"))
        .arg("-k")
        .arg(directory)
        .args(["-c", "max_connections=100"])
        .args(settings.iter().flat_map(|setting| ["-c", setting]))
        .current_dir(directory)
        .stdout(Stdio::null())
        .stderr(fs::File::create(directory.join("log")).expect("a log"))
        .spawn()
        .expect("postgres starts")
}

/// PostgreSQL does not run as root.
fn owner() -> Option<(u32, u32)> {
    let id = |arguments: &[&str]| -> u32 {
        let output = Command::new("id")
            .args(arguments)
            .output()
            .expect("id runs");
        let text = String::from_utf8_lossy(&output.stdout);
        text.trim()
            .parse()
            .expect("PostgreSQL's user is there: install Debian's postgresql")
    };
    (id(&["-u"]) == 0).then(|| (id(&["-u", "postgres"]), id(&["-g", "postgres"])))
}

fn as_owner(program: &Path, owner: Option<(u32, u32)>) -> Command {
    let mut command = Command::new(program);
    if let Some((uid, gid)) = owner {
        command.uid(uid).gid(gid);
    }
    command
}

/// Debian keeps the server's programs where no search path leads.
fn program(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let mut found: Vec<PathBuf> = versions
        .map(|version| version.path().join("bin").join(name))
        .filter(|program| program.is_file())
        .collect();
    found.sort();
    found
        .pop()
        .unwrap_or_else(|| PathBuf::from(OsStr::new(name)))
}
