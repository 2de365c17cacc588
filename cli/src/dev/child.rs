//! One process of `wavry dev`: started, watched, restarted when it dies, drained when told to.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom},
    net::SocketAddr,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use tokio::{
    process::{Child, ChildStdin, Command},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

use crate::ready;

/// How long a process may take to serve.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How often its ready file is looked for.
const READY_INTERVAL: Duration = Duration::from_millis(10);
/// Between its death and the next start; doubled each time it dies again soon.
const FIRST_BACK_OFF: Duration = Duration::from_millis(200);
/// The longest it gets.
const LAST_BACK_OFF: Duration = Duration::from_secs(10);
/// A process that lived for so long starts from the first back-off again.
const STABLE_AFTER: Duration = Duration::from_secs(30);
/// How long it may drain before it is killed; longer than any drain timeout of its own.
const DRAIN_DEADLINE: Duration = Duration::from_secs(8);
/// Lines of its log that an error shows.
const SHOWN_LINES: usize = 8;

/// How to start a process.
pub(crate) struct Spec {
    /// What it is called: `relay-a`.
    pub(crate) name: &'static str,
    /// Subcommand and arguments of this same executable.
    pub(crate) arguments: Vec<std::ffi::OsString>,
    /// Secrets it reads: variable and file.
    pub(crate) secrets: Vec<(&'static str, PathBuf)>,
    /// Address it is to serve on; the port it got is kept for its next start.
    pub(crate) listen: SocketAddr,
    /// Its log, on disk.
    pub(crate) log: PathBuf,
    /// Its ready file.
    pub(crate) ready_file: PathBuf,
}

/// Something that happened to a process.
pub(crate) enum Event {
    /// It serves again, as a new process.
    Restarted(&'static str, ready::Role),
    /// It died.
    Died(&'static str, String),
}

/// A process that serves.
pub(crate) struct Running {
    spec: Spec,
    process: Process,
    role: ready::Role,
    started: Instant,
}

/// A child and the pipe that keeps it running. Waiting for a [`Child`] closes its own pipe first,
/// so it is not left there.
struct Process {
    child: Child,
    keep_running: Option<ChildStdin>,
}

impl Spec {
    /// Starts it, and waits until it serves.
    pub(crate) async fn start(mut self) -> anyhow::Result<Running> {
        File::create(&self.log).with_context(|| format!("{}", self.log.display()))?;
        let started = Instant::now();
        let (process, role) = self.spawn().await?;
        self.keep(&role);
        Ok(Running {
            spec: self,
            process,
            role,
            started,
        })
    }

    /// Where it serves stays where it serves: others were told.
    fn keep(&mut self, role: &ready::Role) {
        self.listen = role.address;
        let ops = role.ops.as_deref().and_then(|url| {
            let rest = url.strip_prefix("http://")?;
            rest.split('/').next()
        });
        if let Some(ops) = ops
            && !self
                .arguments
                .iter()
                .any(|argument| argument == "--ops-listen")
        {
            self.arguments.extend(["--ops-listen".into(), ops.into()]);
        }
    }

    async fn spawn(&self) -> anyhow::Result<(Process, ready::Role)> {
        if let Err(error) = fs::remove_file(&self.ready_file)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(error).with_context(|| format!("{}", self.ready_file.display()));
        }
        let mut child = self
            .command()?
            .spawn()
            .with_context(|| format!("{} cannot start", self.name))?;
        let keep_running = child.stdin.take();
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            if let Some(status) = child.try_wait()? {
                return Err(anyhow!(
                    "{} {}{}",
                    self.name,
                    ended(status),
                    self.last_lines()
                ));
            }
            if let Some(role) = ready::read::<ready::Role>(&self.ready_file)? {
                let process = Process {
                    child,
                    keep_running,
                };
                return Ok((process, role));
            }
            if Instant::now() > deadline {
                let _ = child.kill().await;
                return Err(anyhow!(
                    "{} does not serve after {START_DEADLINE:?}{}",
                    self.name,
                    self.last_lines()
                ));
            }
            tokio::time::sleep(READY_INTERVAL).await;
        }
    }

    fn command(&self) -> anyhow::Result<Command> {
        let executable = std::env::current_exe().context("own executable")?;
        let log = OpenOptions::new()
            .append(true)
            .open(&self.log)
            .with_context(|| format!("{}", self.log.display()))?;
        let mut command = Command::new(executable);
        // Nothing of this process's own configuration reaches it, and only its own secrets do.
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"WAVRY_") {
                command.env_remove(name);
            }
        }
        command
            .args(&self.arguments)
            .arg("--listen")
            .arg(self.listen.to_string())
            .arg("--ready-file")
            .arg(&self.ready_file)
            .arg("--until-stdin-closes")
            .envs(self.secrets.iter().map(|(name, file)| (name, file)))
            // It ends when this pipe does: when it is told to, and when this process is killed.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            // A Ctrl-C is for this process alone: it drains the others in their order.
            .process_group(0)
            .kill_on_drop(true);
        Ok(command)
    }

    /// The end of its log, to follow an error.
    fn last_lines(&self) -> String {
        const TAIL_BYTES: u64 = 8 * 1024;
        let mut text = Vec::new();
        if let Ok(mut file) = File::open(&self.log) {
            let len = file.metadata().map_or(0, |metadata| metadata.len());
            let _ = file.seek(SeekFrom::Start(len.saturating_sub(TAIL_BYTES)));
            let _ = file.take(TAIL_BYTES).read_to_end(&mut text);
        }
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let first = lines.len().saturating_sub(SHOWN_LINES);
        let lines: String = lines[first..]
            .iter()
            .map(|line| format!("\n  {line}"))
            .collect();
        format!("; log {}:{lines}", self.log.display())
    }
}

impl Running {
    /// What it says of itself.
    pub(crate) fn role(&self) -> &ready::Role {
        &self.role
    }

    /// Its name.
    pub(crate) fn name(&self) -> &'static str {
        self.spec.name
    }

    /// Starts it again whenever it dies, until `stop`; then lets it drain.
    pub(crate) async fn supervise(mut self, events: mpsc::Sender<Event>, stop: CancellationToken) {
        let mut back_off = FIRST_BACK_OFF;
        loop {
            let status = tokio::select! {
                status = self.process.child.wait() => status,
                () = stop.cancelled() => return self.drain().await,
            };
            let status = status.map_or_else(|error| error.to_string(), ended);
            if self.started.elapsed() > STABLE_AFTER {
                back_off = FIRST_BACK_OFF;
            }
            let mut why = status;
            loop {
                let _ = events.send(Event::Died(self.spec.name, why)).await;
                if stop
                    .run_until_cancelled(tokio::time::sleep(back_off))
                    .await
                    .is_none()
                {
                    return;
                }
                back_off = (back_off * 2).min(LAST_BACK_OFF);
                self.started = Instant::now();
                // Cancelled half-way, the process is killed as its handle is dropped.
                match stop.run_until_cancelled(self.spec.spawn()).await {
                    None => return,
                    Some(Ok((process, role))) => {
                        self.process = process;
                        self.role = role;
                        break;
                    }
                    Some(Err(error)) => why = format!("{error:#}"),
                }
            }
            let _ = events
                .send(Event::Restarted(self.spec.name, self.role.clone()))
                .await;
        }
    }

    /// Tells it to stop, waits, and kills it at the deadline.
    async fn drain(mut self) {
        drop(self.process.keep_running.take());
        let waited = tokio::time::timeout(DRAIN_DEADLINE, self.process.child.wait()).await;
        if waited.is_err() {
            tracing::warn!(
                process = self.spec.name,
                "did not drain within {DRAIN_DEADLINE:?}; killed"
            );
            let _ = self.process.child.kill().await;
        }
    }
}

fn ended(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}
