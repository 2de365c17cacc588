//! Processes that nobody here wrote, which scripts/test.sh installs.

use std::{
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use serde_json::Value;

/// Where scripts/test.sh put Python's and JavaScript's packages.
pub(crate) fn peers() -> PathBuf {
    let peers = std::env::var_os("WAVRY_PEERS");
    peers
        .expect("WAVRY_PEERS is not set: run ./scripts/test.sh, which installs browsers and peers")
        .into()
}

/// A process in a group of its own. Dropped, it is killed with whatever it started.
pub(crate) struct Process(Child);

impl Process {
    /// Starts it, with a pipe for its input and one for its output.
    pub(crate) fn start(command: &mut Command) -> (Self, BufReader<ChildStdout>) {
        let mut child = command
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        let stdout = child.stdout.take().expect("piped");
        (Self(child), BufReader::new(stdout))
    }

    /// One that was started in a group of its own.
    pub(crate) fn of(child: Child) -> Self {
        Self(child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let group = format!("-{}", self.0.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
        let _ = self.0.wait();
    }
}

/// A script of the tests, for the Python in `place` among the peers.
pub(crate) fn python(place: &str, script: &str) -> Command {
    let mut command = Command::new(peers().join(place).join("bin/python"));
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    command.arg("-B").arg(tests.join(script));
    command
}

/// The interop service on aioquic (`interop/aioquic_server.py`).
pub(crate) struct Aioquic {
    _process: Process,
    pub(crate) port: u16,
}

impl Aioquic {
    /// Starts it with a certificate; `note` is given every line about what it saw.
    pub(crate) fn start(
        certificate: &Path,
        key: &Path,
        note: impl Fn(Value) + Send + 'static,
    ) -> Self {
        let mut command = python("venv", "interop/aioquic_server.py");
        let (process, output) = Process::start(command.args([certificate, key]));
        let mut lines = output.lines().map_while(Result::ok);
        let mut line = move || -> Option<Value> {
            Some(serde_json::from_str(&lines.next()?).expect("one JSON object a line"))
        };
        let ready = line().expect("it starts");
        std::thread::spawn(move || {
            while let Some(saw) = line() {
                note(saw);
            }
        });
        let port = ready["port"].as_u64().expect("a port");
        Self {
            _process: process,
            port: port.try_into().expect("a port"),
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://localhost:{}/", self.port)
    }
}
