//! Logs, on standard error: for people, or one JSON object a line.

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
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

/// Starts logging. `RUST_LOG`, where it is set and parses, wins over the configured filter.
pub(crate) fn start(config: Config) {
    let filter = EnvFilter::try_from_default_env().unwrap_or(config.filter);
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match config.format {
        Format::Human => subscriber
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
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
