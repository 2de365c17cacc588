//! `wavry audit`: reads the audit logs of masters and of those who issue tokens.

use std::{
    collections::VecDeque, io::Write as _, path::PathBuf, process::ExitCode, time::Duration,
};

use anyhow::Context as _;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use wavry_credentials::{
    audit::{Action, Event, Head, Key, Line, Verifier, file, syslog::line_within},
    source,
};
use wavry_master::{
    audit_reader::Reader, database::Location, keyvault, provision, store::audit::ReadError,
};
use wavry_proto::id::ClusterName;

use crate::{log, provision::DEFAULT_CLUSTER, shutdown};

/// What to do with a log.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Print the newest lines
    Tail(Tail),
    /// Print the lines that all of the given conditions hold for
    Query(Query),
    /// Check every line, and name the first that is bad; exit code 1 if one is
    Verify(Verify),
}

/// Which log.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Log {
    /// The database of a master or KeyVault: a SQLite file, or postgres://USER@HOST/DATABASE
    #[arg(long, value_name = "DATABASE")]
    database: Option<Location>,
    /// What `wavry provision` and `wavry token` wrote, or an audit sink that is a file
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// What a syslog receiver kept of an audit sink's messages, one a line
    #[arg(long, value_name = "FILE")]
    syslog: Option<PathBuf>,
}

/// `wavry audit tail`.
#[derive(Debug, clap::Args)]
pub(crate) struct Tail {
    #[command(flatten)]
    log: Log,
    /// How many lines
    #[arg(long, short = 'n', default_value_t = 10, value_name = "N")]
    lines: usize,
    /// Go on with lines as they are written
    #[arg(long, short)]
    follow: bool,
}

/// `wavry audit query`.
#[derive(Debug, clap::Args)]
pub(crate) struct Query {
    #[command(flatten)]
    log: Log,
    /// What was done: issue, read, deny, …
    #[arg(long)]
    action: Option<Action>,
    /// To whom or what
    #[arg(long)]
    subject: Option<String>,
    /// By whom
    #[arg(long)]
    actor: Option<String>,
    /// How it ended: done, or the word of the problem
    #[arg(long)]
    outcome: Option<String>,
    /// About which secret, as its HMAC in another line
    #[arg(long)]
    secret: Option<String>,
    /// By the holder of which token, as its HMAC in another line
    #[arg(long)]
    token: Option<String>,
    /// Id of the request
    #[arg(long)]
    request: Option<String>,
    /// At this time or later: 2026-11-22T10:00:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<OffsetDateTime>,
    /// Before this time
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<OffsetDateTime>,
}

/// `wavry audit verify`.
#[derive(Debug, clap::Args)]
pub(crate) struct Verify {
    #[command(flatten)]
    log: Log,
    /// Public half of the audit key (PASERK k4.public); the secret audit_key if not given
    #[arg(long, value_name = "PASERK")]
    public_key: Option<String>,
    /// Seal to hold a log of --syslog to, as from beside a file or from a backup: without one, a cut-off
    /// end is not seen
    #[arg(long, value_name = "FILE", requires = "syslog")]
    seal: Option<PathBuf>,
    /// Cluster the log is of
    #[arg(long, default_value = DEFAULT_CLUSTER)]
    cluster: ClusterName,
}

/// How often a log is looked at for new lines.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);

/// Runs a command; the exit code says whether what was checked holds.
pub(crate) async fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Tail(args) => tail(args).await?,
        Command::Query(args) => {
            let print = |text: &str, event: &Event| match args.matches(event) {
                true => say(text),
                false => Ok(()),
            };
            args.log.source().await?.each(0, print).await?;
        }
        Command::Verify(args) => return verify(args).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn tail(args: &Tail) -> anyhow::Result<()> {
    let source = args.log.source().await?;
    let mut newest = VecDeque::new();
    let mut seen = source
        .each(0, |text, _| {
            newest.push_back(text.to_owned());
            if newest.len() > args.lines {
                newest.pop_front();
            }
            Ok(())
        })
        .await?;
    for line in newest {
        say(&line)?;
    }
    if !args.follow {
        return Ok(());
    }
    let stop = shutdown::on_signal()?;
    loop {
        let pause = tokio::time::sleep(FOLLOW_INTERVAL);
        if stop.run_until_cancelled(pause).await.is_none() {
            return Ok(());
        }
        seen = source.each(seen, |text, _| say(text)).await?;
    }
}

async fn verify(args: &Verify) -> anyhow::Result<ExitCode> {
    let verifier = match &args.public_key {
        Some(text) => Verifier::from_paserk(text, args.cluster.clone()).context("--public-key")?,
        None => {
            let cluster = args.cluster.clone();
            source::load("audit_key", None, |text| Key::read(text, cluster))
                .await?
                .verifier()
        }
    };
    let shown = args.log.shown();
    let bad = match args.log.source().await? {
        Source::Database(reader) => match reader.verify(&verifier, |_, _| ()).await {
            Ok(head) => Ok(head),
            Err(ReadError::Damaged(bad)) => Err(bad.to_string()),
            Err(error) => return Err(error).context(shown),
        },
        Source::File(path) => first_bad(under_its_name(|name| {
            file::read(&path, name, &verifier, |_, _| ())
        }))?,
        Source::Syslog(path) => first_bad(under_its_name(|name| {
            file::read_messages(&path, args.seal.as_deref(), name, &verifier, |_, _| ())
        }))?,
    };
    match bad {
        Ok(head) => {
            let hash: String = head.hash.iter().map(|byte| format!("{byte:02x}")).collect();
            say(&format!("{shown}: {} lines hold, head {hash}", head.seq))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(bad) => {
            log::complain(&format!("{shown}: {bad}"));
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Tells what is wrong with a log from what is wrong with reading it.
fn first_bad(read: Result<Head, file::Error>) -> anyhow::Result<Result<Head, String>> {
    match read {
        Ok(head) => Ok(Ok(head)),
        Err(file::Error::Damaged { bad, .. }) => Ok(Err(bad.to_string())),
        Err(error) => Err(error.into()),
    }
}

/// Reads a log of which only its seal knows whose it is.
fn under_its_name(read: impl Fn(&str) -> Result<Head, file::Error>) -> Result<Head, file::Error> {
    let others = [wavry_master::store::audit::LOG, keyvault::LOG];
    others
        .iter()
        .fold(read(provision::LOG), |outcome, name| match outcome {
            Err(file::Error::Foreign { .. }) => read(name),
            outcome => outcome,
        })
}

/// A log, open for reading.
enum Source {
    Database(Reader),
    File(PathBuf),
    Syslog(PathBuf),
}

impl Log {
    /// As it is told of.
    fn shown(&self) -> String {
        let database = self.database.as_ref().map(Location::to_string);
        let file = self.file.as_ref().or(self.syslog.as_ref());
        let shown = database.or(file.map(|file| file.display().to_string()));
        shown.expect("clap sees to it that one is given")
    }

    async fn source(&self) -> anyhow::Result<Source> {
        if let Some(database) = &self.database {
            let reader = Reader::open(database).await;
            return reader
                .map(Source::Database)
                .with_context(|| database.to_string());
        }
        let file = |path: &PathBuf| Source::File(path.clone());
        let syslog = |path: &PathBuf| Source::Syslog(path.clone());
        let file = self.file.as_ref().map(file);
        let source = file.or(self.syslog.as_ref().map(syslog));
        Ok(source.expect("clap sees to it that one is given"))
    }
}

impl Source {
    /// Gives each line that can be read after the first `seen` ones to `show`; how many have been seen
    /// then. Nothing is checked: that is what `verify` is for.
    async fn each(
        &self,
        mut seen: u64,
        mut show: impl FnMut(&str, &Event) -> anyhow::Result<()>,
    ) -> anyhow::Result<u64> {
        let mut one = |text: &str| match Line::read(text) {
            Ok(line) => show(text, &line.event),
            Err(why) => {
                log::complain(&format!("a line {why}"));
                Ok(())
            }
        };
        match self {
            Self::Database(reader) => loop {
                let lines = reader.lines(seen).await?;
                for (number, text) in &lines {
                    one(text)?;
                    seen = *number;
                }
                if lines.is_empty() {
                    return Ok(seen);
                }
            },
            Self::File(path) | Self::Syslog(path) => {
                let text =
                    std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
                // Half a line at the end is still being written.
                let whole = text.rfind('\n').map_or("", |end| &text[..end]);
                let skipped = usize::try_from(seen).unwrap_or(usize::MAX);
                for line in whole.lines().skip(skipped) {
                    match self {
                        Self::Syslog(_) => one(line_within(line))?,
                        _ => one(line)?,
                    }
                    seen += 1;
                }
                Ok(seen)
            }
        }
    }
}

impl Query {
    fn matches(&self, event: &Event) -> bool {
        let is = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|w| w == found);
        let has =
            |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || wanted == found;
        self.action.is_none_or(|action| action == event.action)
            && is(&self.subject, &event.subject)
            && is(&self.actor, &event.actor)
            && is(&self.outcome, &event.outcome)
            && has(&self.secret, &event.secret)
            && has(&self.token, &event.token)
            && has(&self.request, &event.request)
            && self.since.is_none_or(|since| event.time >= since)
            && self.until.is_none_or(|until| event.time < until)
    }
}

fn parse_time(text: &str) -> Result<OffsetDateTime, String> {
    OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|_| "expected a time such as 2026-11-22T10:00:00Z".to_owned())
}

fn say(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{text}").context("standard output")
}
