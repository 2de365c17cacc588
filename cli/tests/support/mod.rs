//! Runs the `wavry` binary. What a test starts ends with the test, by its process id.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(
    clippy::unwrap_used,
    reason = "it is test code, outside of test functions"
)]

pub(crate) mod client;
pub(crate) mod cluster;
pub(crate) mod filesystem;
pub(crate) mod frames;
pub(crate) mod front;
pub(crate) mod https;
pub(crate) mod keyvault;
pub(crate) mod lossy;
pub(crate) mod peer;
pub(crate) mod plain;
pub(crate) mod scanner;
pub(crate) mod witness;

use std::{
    io::{BufRead as _, BufReader, Read, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde_json::Value;

/// How long anything may take; far more than it does on a slow machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A command of the binary, without any configuration of the test's own environment.
pub(crate) fn wavry(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wavry"));
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"WAVRY_") {
            command.env_remove(name);
        }
    }
    command.args(arguments).env_remove("RUST_LOG");
    command
}

/// Runs a command to its end.
pub(crate) fn output(command: Command) -> Output {
    output_within(command, DEADLINE)
}

/// The same, of a command that takes its time.
pub(crate) fn output_within(mut command: Command, limit: Duration) -> Output {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    // Read while it runs: a pipe that is full would have it wait.
    let stdout = drained(child.stdout.take().expect("piped"));
    let stderr = drained(child.stderr.take().expect("piped"));
    let mut child = Guard(Some(child));
    let deadline = Instant::now() + limit;
    let status = loop {
        let status = child.get().try_wait().expect("a child can be waited for");
        if let Some(status) = status {
            break status;
        }
        assert!(Instant::now() < deadline, "does not end: {command:?}");
        std::thread::sleep(Duration::from_millis(5));
    };
    Output {
        status,
        stdout: stdout.join().expect("its output"),
        stderr: stderr.join().expect("its errors"),
    }
}

fn drained(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut read = Vec::new();
        pipe.read_to_end(&mut read).expect("a pipe can be read");
        read
    })
}

/// Standard error of a finished command.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A child that is killed when dropped.
pub(crate) struct Guard(Option<Child>);

impl Guard {
    pub(crate) fn of(child: Child) -> Self {
        Self(Some(child))
    }

    pub(crate) fn get(&mut self) -> &mut Child {
        self.0
            .as_mut()
            .expect("the child is here until it was waited for")
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// `wavry dev`, running.
pub(crate) struct Dev {
    child: Guard,
    ready_file: PathBuf,
    /// The ready file's content, as last read.
    pub(crate) ready: Value,
    /// The state directory.
    pub(crate) state: PathBuf,
}

impl Dev {
    /// Starts it on free ports in `directory`, and waits until everything answers.
    pub(crate) fn start(directory: &Path) -> Self {
        let state = directory.join("state");
        let ready_file = directory.join("ready.json");
        let child = wavry(&["dev", "--port", "0"])
            .arg("--state-dir")
            .arg(&state)
            .arg("--ready-file")
            .arg(&ready_file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut dev = Self {
            child: Guard(Some(child)),
            ready_file,
            ready: Value::Null,
            state,
        };
        dev.wait_until(|_| true);
        dev
    }

    /// Reads the ready file until it is there and `holds` of it.
    pub(crate) fn wait_until(&mut self, holds: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let ended = self
                .child
                .get()
                .try_wait()
                .expect("a child can be waited for");
            if let Some(status) = ended {
                let mut text = String::new();
                if let Some(mut stderr) = self.child.get().stderr.take() {
                    let _ = stderr.read_to_string(&mut text);
                }
                panic!("wavry dev ended with {status}: {text}");
            }
            if let Ok(text) = std::fs::read(&self.ready_file) {
                self.ready = serde_json::from_slice(&text).expect("a ready file is whole");
                if holds(&self.ready) {
                    return;
                }
            }
            assert!(
                Instant::now() < deadline,
                "no ready file that fits: {}",
                self.ready
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Its own process id.
    pub(crate) fn pid(&mut self) -> u32 {
        self.child.get().id()
    }

    /// The process id of a role.
    pub(crate) fn pid_of(&self, role: &str) -> u32 {
        let pid = self.ready["pids"][role]
            .as_u64()
            .expect("a pid for each role");
        pid.try_into().expect("a pid")
    }

    /// A text of the ready file.
    pub(crate) fn text(&self, key: &str) -> &str {
        self.ready[key].as_str().expect("a text in the ready file")
    }

    /// The URL of a service, with its token.
    pub(crate) fn service(&self, name: &str) -> &str {
        self.ready["services"][name]
            .as_str()
            .expect("a URL for each service")
    }

    /// Probes a URL, trusting this cluster's authority.
    pub(crate) fn probe(&self, url: &str, more: &[&str]) -> Output {
        let mut arguments = vec!["probe", url, "--ca", self.text("ca_file"), "--json"];
        arguments.extend(more);
        output(wavry(&arguments))
    }

    /// Probes a service and gives the report.
    pub(crate) fn report(&self, name: &str, more: &[&str]) -> Value {
        let more = [&["--duration", "600ms"], more].concat();
        let output = self.probe(self.service(name), &more);
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_slice(&output.stdout).expect("one JSON object")
    }

    /// The text at a role's metrics URL.
    pub(crate) fn metrics(&self, role: &str) -> String {
        let url = self.ready["ops"][role].as_str().expect("a metrics URL");
        http_get(url).1
    }

    /// Sends a signal to it and waits for its end.
    pub(crate) fn signal_and_wait(&mut self, name: &str) -> ExitStatus {
        signal_and_wait(&mut self.child, name)
    }
}

/// Sends a signal to a child and waits for its end.
pub(crate) fn signal_and_wait(child: &mut Guard, name: &str) -> ExitStatus {
    signal(child.get().id(), name);
    wait_for_end(child, name)
}

fn wait_for_end(child: &mut Guard, after: &str) -> ExitStatus {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(status) = child.get().try_wait().expect("a child can be waited for") {
            return status;
        }
        assert!(Instant::now() < deadline, "does not end after {after}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A role's own process, started from a configuration.
pub(crate) struct RoleProcess {
    child: Guard,
    /// What its ready file says.
    pub(crate) ready: Value,
}

impl RoleProcess {
    /// Starts `command`, to which `--ready-file` is added, and waits until it serves.
    pub(crate) fn start(mut command: Command, ready_file: &Path) -> Self {
        let _ = std::fs::remove_file(ready_file);
        let child = command
            .arg("--ready-file")
            .arg(ready_file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut child = Guard(Some(child));
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Ok(text) = std::fs::read(ready_file) {
                let ready = serde_json::from_slice(&text).expect("a ready file is whole");
                // Its log is read on, so that it never waits for a full pipe.
                let stderr = child.get().stderr.take().expect("piped");
                std::thread::spawn(move || {
                    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                        let _ = writeln!(std::io::stderr(), "{line}");
                    }
                });
                return Self { child, ready };
            }
            if let Some(status) = child.get().try_wait().expect("a child can be waited for") {
                let mut text = String::new();
                let _ = child
                    .get()
                    .stderr
                    .take()
                    .expect("piped")
                    .read_to_string(&mut text);
                panic!("ended with {status}: {text}");
            }
            assert!(Instant::now() < deadline, "does not serve");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Its process id.
    pub(crate) fn pid(&mut self) -> u32 {
        self.child.get().id()
    }

    /// Tells it to leave, and waits until it has.
    pub(crate) fn stop(mut self) -> ExitStatus {
        signal_and_wait(&mut self.child, "TERM")
    }

    /// Waits until it has left, which it was told to.
    pub(crate) fn left(mut self) -> ExitStatus {
        wait_for_end(&mut self.child, "TERM")
    }

    /// Where it serves.
    pub(crate) fn address(&self) -> SocketAddr {
        let text = self.ready["address"].as_str().expect("an address");
        text.parse().expect("an address")
    }
}

/// Sends a signal (`TERM`, `KILL`) to a process that this test started.
pub(crate) fn signal(pid: u32, name: &str) {
    let status = Command::new("kill")
        .args([format!("-{name}"), pid.to_string()])
        .status()
        .expect("kill runs");
    assert!(status.success(), "kill -{name} {pid} failed");
}

/// Whether a process is there and not a zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .is_some_and(|rest| rest.starts_with(" Z"))
    })
}

/// Waits until none of `pids` is alive.
pub(crate) fn wait_until_gone(pids: &[u32]) {
    let deadline = Instant::now() + DEADLINE;
    while pids.iter().any(|pid| is_alive(*pid)) {
        assert!(Instant::now() < deadline, "still alive: {pids:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until something holds.
pub(crate) fn wait_for(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether a process ended by itself and without failure.
pub(crate) fn ended_well(status: ExitStatus) -> bool {
    status.success() && status.signal().is_none()
}

/// Status and whole answer of an HTTP GET.
pub(crate) fn http_get(url: &str) -> (u16, String) {
    let rest = url.strip_prefix("http://").expect("plain HTTP");
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let mut stream = TcpStream::connect(host).expect("somebody listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    write!(
        stream,
        "GET /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
    )
    .expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let status = text
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse().ok())
        .expect("a status");
    (status, text)
}
