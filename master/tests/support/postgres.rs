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
    process: Child,
}

impl Server {
    /// Starts one. Whether what it commits outlives a power cut costs what it costs.
    pub(crate) fn start(durable: bool) -> Self {
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
        let process = as_owner(&program("postgres"), owner)
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(directory.path())
            .args(["-c", "listen_addresses=", "-c", "max_connections=100"])
            .args(["-c", if durable { "fsync=on" } else { "fsync=off" }])
            .current_dir(directory.path())
            .stdout(Stdio::null())
            .stderr(fs::File::create(directory.path().join("log")).expect("a log"))
            .spawn()
            .expect("postgres starts");
        let server = Self { directory, process };
        let deadline = Instant::now() + DEADLINE;
        while !server.is_ready() {
            assert!(
                Instant::now() < deadline,
                "PostgreSQL is not ready: {}",
                server.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    /// Makes a database, and gives its URL.
    pub(crate) async fn database(&self, name: &str) -> String {
        use sqlx::{Connection as _, Executor as _};
        let mut admin = sqlx::PgConnection::connect(&self.url("postgres"))
            .await
            .expect("the server is ready");
        let create = format!("CREATE DATABASE {name}");
        admin
            .execute(sqlx::AssertSqlSafe(create))
            .await
            .expect("a database is made");
        self.url(name)
    }

    fn url(&self, database: &str) -> String {
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
        // It ends its own processes when it is asked to.
        let pid = self.process.id().to_string();
        let asked = Command::new("kill").args(["-INT", &pid]).status();
        if !asked.is_ok_and(|asked| asked.success()) {
            let _ = self.process.kill();
        }
        let _ = self.process.wait();
    }
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
