//! What happens to sessions when something happens to their path, on a shaped network with real nodes.
//!
//! Each [`Case`] has a figure that it is to keep to; the report has both, and a failure where it is missed.

mod forge;
mod hostile;
mod loss;
mod paths;
mod size;

use std::time::Duration;

use crate::{Error, Report, Row, measure::Times, mesh::Outcome, progress, report::Better};

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Run these cases alone
    #[arg(long, value_enum)]
    only: Vec<Case>,
    /// Sessions that a path is lost under
    #[arg(long, default_value_t = 200)]
    sessions: usize,
    /// Time for which each throughput is measured; links flap for six times as long
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Rounds in which what is compared takes turns
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Which packets are lost follows from this
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub(super) json: bool,
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Case {
    /// Nothing: how precise the network itself is, and what it costs
    Shaper,
    /// The transit relay in use is killed
    Kill,
    /// The path in use loses everything in one direction
    Blackhole,
    /// The transit relay in use is told to leave
    Drain,
    /// A link comes and goes each half second
    Flap,
    /// Packets are lost in bursts
    Loss,
    /// Paths of 40 ms and of 1 ms take turns
    Switch,
    /// The path in use carries smaller packets than before
    Mtu,
    /// A member and a stranger send more than they may
    Flood,
    /// Members show forged leases, and strangers forge all, as fast as they can
    Forge,
    /// A link flips bits and repeats packets
    Tamper,
    /// A translator gives a node another address
    Rebind,
    /// Twelve transit relays, some of which are killed
    Twelve,
}

impl Case {
    const ALL: [Self; 13] = [
        Self::Shaper,
        Self::Kill,
        Self::Blackhole,
        Self::Drain,
        Self::Flap,
        Self::Loss,
        Self::Switch,
        Self::Mtu,
        Self::Flood,
        Self::Forge,
        Self::Tamper,
        Self::Rebind,
        Self::Twelve,
    ];

    async fn run(self, args: &Args) -> Result<Vec<Row>, Error> {
        match self {
            Self::Shaper => size::shaper(args).await,
            Self::Kill => paths::kill(args).await,
            Self::Blackhole => paths::blackhole(args).await,
            Self::Drain => paths::drain(args).await,
            Self::Flap => paths::flap(args).await,
            Self::Loss => loss::run(args).await,
            Self::Switch => paths::switch(args).await,
            Self::Mtu => paths::mtu(args).await,
            Self::Flood => hostile::flood(args).await,
            Self::Forge => forge::forge(args).await,
            Self::Tamper => hostile::tamper(args).await,
            Self::Rebind => paths::rebind(args).await,
            Self::Twelve => size::twelve(args).await,
        }
    }
}

impl Args {
    fn time(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

pub(super) async fn run(args: &Args) -> Result<Report, Error> {
    wavry_credentials::cert::install_crypto_provider();
    let mut report = Report {
        scenario: "mesh",
        results: Vec::new(),
        failures: Vec::new(),
    };
    for case in Case::ALL {
        if !args.only.is_empty() && !args.only.contains(&case) {
            continue;
        }
        progress(&format!("{case:?} …"));
        for row in case.run(args).await? {
            if let Some(missed) = row.missed() {
                report.failures.push(missed);
            }
            report.results.push(row);
        }
    }
    Ok(report)
}

/// The rows that every case has in which sessions have to live on.
fn survival(name: &str, outcomes: &[Outcome]) -> Vec<Row> {
    let count = |is: fn(&Outcome) -> bool| outcomes.iter().filter(|o| is(o)).count() as f64;
    let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>() as f64;
    for closed in outcomes
        .iter()
        .filter_map(|outcome| outcome.closed.as_ref())
    {
        progress(&format!("{name}: a session ended: {closed}"));
    }
    vec![
        Row::plain(
            format!("{name}_sessions"),
            "sessions",
            outcomes.len() as f64,
        ),
        Row::bounded(
            format!("{name}_closed"),
            "sessions",
            Better::Less,
            count(|outcome| outcome.closed.is_some()),
            0.0,
        ),
        Row::bounded(
            format!("{name}_messages_exact"),
            "messages",
            Better::More,
            sum(|outcome| outcome.exact),
            sum(|outcome| outcome.sent),
        ),
        Row::plain(
            format!("{name}_datagrams_lost"),
            "%",
            100.0 - 100.0 * sum(|o| o.datagrams_exact) / sum(|o| o.datagrams_sent).max(1.0),
        ),
    ]
}

/// The 99th percentile and the longest of stalls.
fn stall_rows(name: &str, stalls: Vec<Duration>, p99: f64, most: f64) -> Vec<Row> {
    let times = Times::new(stalls);
    vec![
        Row::bounded(
            format!("{name}_stall_p99"),
            "ms",
            Better::Less,
            times.percentile(99),
            p99,
        ),
        Row::bounded(
            format!("{name}_stall_max"),
            "ms",
            Better::Less,
            times.percentile(100),
            most,
        ),
    ]
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
