//! Figures, and what follows from them.

use std::{fmt::Write as _, fs, time::Duration};

use serde_json::{Value, json};

use crate::work::Work;

/// How often something was done, and how long it took.
pub(crate) struct Figure {
    pub(crate) store: &'static str,
    pub(crate) work: &'static str,
    pub(crate) per_second: f64,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    pub(crate) failed: u64,
    /// Of this process, for one. The database server's is not known.
    pub(crate) processor_time: Option<Duration>,
    count: usize,
}

impl Figure {
    pub(crate) fn new(
        store: &'static str,
        work: &'static str,
        mut times: Vec<Duration>,
        failed: u64,
        elapsed: Duration,
    ) -> Self {
        times.sort_unstable();
        let percentile = |percent: usize| {
            let at = (times.len() * percent / 100).min(times.len().saturating_sub(1));
            times.get(at).copied().unwrap_or_default()
        };
        Self {
            store,
            work,
            per_second: times.len() as f64 / elapsed.as_secs_f64(),
            p50: percentile(50),
            p99: percentile(99),
            failed,
            processor_time: None,
            count: times.len(),
        }
    }

    pub(crate) fn with_processor_time(self, all: Duration) -> Self {
        let each = all.checked_div(u32::try_from(self.count).unwrap_or(u32::MAX));
        Self {
            processor_time: each,
            ..self
        }
    }
}

/// One figure held against another of the same run.
pub(crate) struct Cost {
    store: &'static str,
    of: &'static str,
    how: &'static str,
    value: f64,
}

/// What parts cost, by what is done in a second with them and without.
pub(crate) fn costs(figures: &[Figure]) -> Vec<Cost> {
    let mut costs = Vec::new();
    for store in ["SQLite", "PostgreSQL"] {
        let rate = |work: Work| {
            let mut figures = figures.iter();
            let figure = figures.find(|it| it.store == store && it.work == work.name());
            figure.map(|figure| figure.per_second)
        };
        let mut add = |of, how, value: Option<f64>| {
            costs.extend(value.map(|value| Cost {
                store,
                of,
                how,
                value,
            }));
        };
        let ratio = |one, other| Some(rate(one)? / rate(other)?);
        let share = |with, without| Some(1.0 - ratio(with, without)?);
        add(
            "encryption",
            "share of an audited read",
            ratio(Work::AuditedRead, Work::Decrypt),
        );
        add(
            "audit",
            "share of an audited read",
            share(Work::AuditedRead, Work::Read),
        );
        add(
            "policy",
            "share of an authorized read",
            share(Work::AuthorizedRead, Work::AuditedRead),
        );
        add(
            "all of an answer",
            "audited reads for one call",
            ratio(Work::AuditedRead, Work::Call),
        );
        add(
            "a login",
            "audited reads for one login",
            ratio(Work::AuditedRead, Work::Login),
        );
        add(
            "group commit",
            "times as many reads as with a sync for each",
            ratio(Work::AuditedRead, Work::OwnSync),
        );
    }
    costs
}

pub(crate) fn table(figures: &[Figure], costs: &[Cost]) -> String {
    let mut table = String::from(
        "| store | work | per second | p50 | p99 | processor time, without the database's | failed |\n\
         |---|---|---:|---:|---:|---:|---:|\n",
    );
    for figure in figures {
        let processor_time = figure.processor_time;
        let processor_time = processor_time.map(|time| format!("{} µs", time.as_micros()));
        let _ = writeln!(
            table,
            "| {} | {} | {:.0} | {:.2} ms | {:.2} ms | {} | {} |",
            figure.store,
            figure.work,
            figure.per_second,
            milliseconds(figure.p50),
            milliseconds(figure.p99),
            processor_time.unwrap_or_default(),
            figure.failed
        );
    }
    if !costs.is_empty() {
        table.push_str("\n| store | cost of | | |\n|---|---|---:|---|\n");
    }
    for Cost {
        store,
        of,
        how,
        value,
    } in costs
    {
        let _ = writeln!(table, "| {store} | {of} | {value:.2} | {how} |");
    }
    table
}

pub(crate) fn to_json(figures: &[Figure], costs: &[Cost], failures: &[String]) -> String {
    let figures = figures.iter().map(|figure| {
        json!({
            "store": figure.store,
            "work": figure.work,
            "per_second": figure.per_second,
            "p50_ms": milliseconds(figure.p50),
            "p99_ms": milliseconds(figure.p99),
            "processor_us": figure.processor_time.map(|time| time.as_secs_f64() * 1e6),
            "failed": figure.failed,
        })
    });
    let costs = costs.iter().map(
        |cost| json!({"store": cost.store, "of": cost.of, "value": cost.value, "unit": cost.how}),
    );
    json!({
        "benchmark": "keyvault",
        "results": Value::from_iter(figures),
        "costs": Value::from_iter(costs),
        "failures": failures,
    })
    .to_string()
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// What this process has used, as the kernel counts it in hundredths of a second.
pub(crate) fn processor_time() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name of the program, in parentheses, may have anything in it.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let fields = fields.split_whitespace().skip(11).take(2);
    let ticks: u64 = fields.filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}
