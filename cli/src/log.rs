//! Logs, on standard error: for people, or one JSON object a line. Everything that goes there passes
//! through the redaction.

use std::{
    backtrace::BacktraceStatus,
    io::{self, Write as _},
    sync::OnceLock,
};

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use wavry_credentials::redact::{self, Panic};
use wavry_proto::config::Invalid;

/// How lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// What may stand in `[log]`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Raw {
    format: Format,
    filter: String,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            format: Format::Human,
            filter: "info".to_owned(),
        }
    }
}

/// How to log.
#[derive(Debug)]
pub(crate) struct Config {
    /// How lines look.
    pub(crate) format: Format,
    /// What is logged.
    pub(crate) filter: EnvFilter,
}

impl TryFrom<Raw> for Config {
    type Error = Invalid;

    fn try_from(raw: Raw) -> Result<Self, Invalid> {
        let filter = EnvFilter::builder().parse(&raw.filter).map_err(|_| {
            let problem = "expected tracing directives such as info,wavry_gateway=debug";
            Invalid::new("filter", problem)
        })?;
        Ok(Self {
            format: raw.format,
            filter,
        })
    }
}

/// Tells of panics from now on: where they are, and what they say if that holds no value.
pub(crate) fn report_panics() {
    redact::on_panic(|panic| match FORMAT.get() {
        Some(Format::Json) => complain(&panic_as_json(panic)),
        _ => {
            let trace = match panic.backtrace.status() {
                BacktraceStatus::Captured => format!("\n{}", panic.backtrace),
                _ => String::new(),
            };
            complain(&format!("wavry: {panic}{trace}"));
        }
    });
}

/// Writes a line to standard error.
pub(crate) fn complain(line: &str) {
    // There is nowhere to say that it cannot be said.
    let _ = writeln!(io::stderr(), "{}", redact::text(line));
}

/// The format that was chosen, for what is written past the subscriber.
static FORMAT: OnceLock<Format> = OnceLock::new();

/// In the shape that the subscriber gives to events.
fn panic_as_json(panic: &Panic<'_>) -> String {
    let now = time::OffsetDateTime::now_utc();
    let timestamp = now.format(&time::format_description::well_known::Rfc3339);
    serde_json::json!({
        "timestamp": timestamp.unwrap_or_default(),
        "level": "ERROR",
        "message": panic.to_string(),
        "target": "panic",
    })
    .to_string()
}

/// Starts logging. `RUST_LOG`, where it is set and parses, wins over the configured filter.
pub(crate) fn start(config: Config) {
    let filter = EnvFilter::try_from_default_env().unwrap_or(config.filter);
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| redact::Writer::new(io::stderr()));
    let _ = FORMAT.set(config.format);
    match config.format {
        Format::Human => subscriber
            .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
            .init(),
        Format::Json => subscriber.json().flatten_event(true).init(),
    }
}

/// Starts logging for a tool: warnings, or what `RUST_LOG` says.
pub(crate) fn start_for_tool(default: &str) {
    start(Config {
        format: Format::Human,
        filter: EnvFilter::new(default),
    });
}
