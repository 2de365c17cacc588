//! What every scenario ends in.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use serde::Serialize;

/// The figures of one scenario.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The scenario's name.
    pub scenario: &'static str,
    /// One row for each figure.
    pub results: Vec<Row>,
    /// What was checked and did not hold. Empty, and then left out, when all is well.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<String>,
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// Unit of `wavry` and `baseline`.
    pub unit: &'static str,
    /// Measured through Wavry.
    pub wavry: f64,
    /// Measured on the baseline in the same run; `None` when there is none.
    pub baseline: Option<f64>,
    /// `wavry` against `baseline`, turned so that 1 is the baseline and more is better.
    pub ratio: Option<f64>,
    /// The ratio aimed at.
    pub goal: Option<f64>,
    /// What `wavry` is to keep to, where that is no ratio; left out where there is nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limit>,
    /// Measured on others in the same run. Empty, and then left out, when there are none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub others: BTreeMap<&'static str, f64>,
}

/// Which way a figure is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// Times, losses.
    Less,
    /// Rates.
    More,
}

/// What a figure is to keep to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub enum Limit {
    /// It is no more than this.
    #[serde(rename = "most")]
    Most(f64),
    /// It is no less.
    #[serde(rename = "least")]
    Least(f64),
}

impl Row {
    /// A figure that stands alone.
    pub fn plain(name: impl Into<String>, unit: &'static str, value: f64) -> Self {
        Self {
            name: name.into(),
            unit,
            wavry: value,
            baseline: None,
            ratio: None,
            goal: None,
            limit: None,
            others: BTreeMap::new(),
        }
    }

    /// A figure that is to be no more than `limit`, or no less, whichever way is better.
    pub fn bounded(
        name: impl Into<String>,
        unit: &'static str,
        better: Better,
        value: f64,
        limit: f64,
    ) -> Self {
        let limit = match better {
            Better::Less => Limit::Most(limit),
            Better::More => Limit::Least(limit),
        };
        Self {
            limit: Some(limit),
            ..Self::plain(name, unit, value)
        }
    }

    /// What is to be said if the figure does not keep to its limit, or its ratio to its goal. One that is no
    /// number keeps to nothing.
    pub fn missed(&self) -> Option<String> {
        let (name, value, unit) = (&self.name, figure(self.wavry), self.unit);
        if let (Some(_), Some(goal)) = (self.baseline, self.goal)
            && self.ratio.is_none_or(|ratio| ratio < goal)
        {
            let ratio = self.ratio.unwrap_or(f64::NAN);
            return Some(format!("{name}: {ratio:.2} of the baseline, not {goal:.2}"));
        }
        let (kept, said) = match self.limit? {
            Limit::Most(most) => (self.wavry <= most, format!("over {}", figure(most))),
            Limit::Least(least) => (self.wavry >= least, format!("under {}", figure(least))),
        };
        (!kept).then(|| format!("{name}: {value} {unit}, {said}"))
    }

    /// A figure beside its baseline.
    pub fn compared(
        name: impl Into<String>,
        unit: &'static str,
        better: Better,
        wavry: f64,
        baseline: f64,
        goal: f64,
    ) -> Self {
        let ratio = match better {
            Better::Less => baseline / wavry,
            Better::More => wavry / baseline,
        };
        Self {
            name: name.into(),
            unit,
            wavry,
            baseline: Some(baseline),
            ratio: ratio.is_finite().then_some(ratio),
            goal: Some(goal),
            limit: None,
            others: BTreeMap::new(),
        }
    }
}

impl Report {
    /// As one JSON object.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("names and finite numbers are JSON")
    }

    /// As a table for people.
    pub fn to_table(&self) -> String {
        let others: BTreeSet<_> = self.results.iter().flat_map(|r| r.others.keys()).collect();
        let mut heads = ["", "unit", "wavry", "baseline", "ratio", "goal", "limit"].to_vec();
        heads.extend(others.iter().copied());
        let mut lines = vec![heads.into_iter().map(String::from).collect::<Vec<_>>()];
        for row in &self.results {
            let figure = |value: Option<f64>| value.map(figure).unwrap_or_default();
            let ratio = |value: Option<f64>| value.map(|v| format!("{v:.2}")).unwrap_or_default();
            let mut line = vec![
                row.name.clone(),
                row.unit.to_owned(),
                figure(Some(row.wavry)),
                figure(row.baseline),
                ratio(row.ratio),
                ratio(row.goal),
                match row.limit {
                    None => String::new(),
                    Some(Limit::Most(most)) => format!("≤ {}", self::figure(most)),
                    Some(Limit::Least(least)) => format!("≥ {}", self::figure(least)),
                },
            ];
            line.extend(others.iter().map(|o| figure(row.others.get(*o).copied())));
            lines.push(line);
        }
        // Columns that nothing stands in are left out.
        let shown: Vec<usize> = (0..lines[0].len())
            .filter(|&column| lines[1..].iter().any(|line| !line[column].is_empty()))
            .collect();
        let length = |line: &[String], column: usize| line[column].chars().count();
        let width = |column: usize| lines.iter().map(|l| length(l, column)).max().unwrap_or(0);
        let mut table = format!("scenario {}\n", self.scenario);
        for line in &lines {
            let mut text = String::new();
            for &column in &shown {
                let cell = &line[column];
                let width = width(column);
                let _ = match column {
                    0 | 1 => write!(text, "{cell:<width$}  "),
                    _ => write!(text, "{cell:>width$}  "),
                };
            }
            table.push_str(text.trim_end());
            table.push('\n');
        }
        table.truncate(table.trim_end().len());
        table
    }
}

/// Four digits that say something; whole numbers are not rounded.
fn figure(value: f64) -> String {
    if !value.is_finite() {
        return "–".to_owned();
    }
    if value.fract() == 0.0 && value.abs() < 1e15 {
        return format!("{value:.0}");
    }
    let digits = (3 - value.abs().log10().floor() as i32).clamp(0, 6) as usize;
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_more_when_wavry_is_better_whichever_way_the_figure_is_good() {
        let slower = Row::compared("rtt", "ms", Better::Less, 2.0, 1.0, 0.5);
        assert_eq!(slower.ratio, Some(0.5));
        let faster = Row::compared("rate", "bytes/s", Better::More, 3.0, 1.5, 0.5);
        assert_eq!(faster.ratio, Some(2.0));
        let nothing = Row::compared("rate", "bytes/s", Better::More, 3.0, 0.0, 0.5);
        assert_eq!(nothing.ratio, None, "JSON has no infinity");
    }

    #[test]
    fn the_json_has_the_shape_that_every_benchmark_keeps() {
        let report = Report {
            scenario: "echo",
            results: vec![
                Row::compared("rtt", "ms", Better::Less, 2.0, 1.0, 0.5),
                Row::plain("lost", "datagrams", 0.0),
            ],
            failures: Vec::new(),
        };
        assert_eq!(
            report.to_json(),
            r#"{"scenario":"echo","results":[{"name":"rtt","unit":"ms","wavry":2.0,"baseline":1.0,"ratio":0.5,"goal":0.5},{"name":"lost","unit":"datagrams","wavry":0.0,"baseline":null,"ratio":null,"goal":null}]}"#
        );
    }

    #[test]
    fn the_table_leaves_out_columns_that_are_empty() {
        let report = Report {
            scenario: "datagrams",
            results: vec![
                Row::plain("sent", "datagrams", 100_000.0),
                Row::plain("rate", "1/s", 19_876.543),
                Row::plain("rtt", "ms", 0.123_456),
            ],
            failures: Vec::new(),
        };
        assert_eq!(
            report.to_table(),
            "scenario datagrams\n      unit        wavry\nsent  datagrams  100000\nrate  1/s         19877\nrtt   ms         0.1235"
        );
    }

    #[test]
    fn a_figure_that_misses_its_limit_says_so_and_one_that_is_no_number_keeps_to_nothing() {
        let stall = |value| Row::bounded("stall", "ms", Better::Less, value, 400.0);
        assert_eq!(stall(400.0).missed(), None);
        let missed = stall(401.5).missed();
        assert_eq!(missed.as_deref(), Some("stall: 401.5 ms, over 400"));
        assert!(stall(f64::NAN).missed().is_some());
        let rate = Row::bounded("rate", "1/s", Better::More, 8.0, 10.0);
        assert_eq!(rate.missed().as_deref(), Some("rate: 8 1/s, under 10"));
        let ratio = |value| Row::compared("kept", "1/s", Better::More, value, 10.0, 0.9);
        assert_eq!(ratio(9.0).missed(), None);
        let missed = ratio(5.0).missed();
        assert_eq!(
            missed.as_deref(),
            Some("kept: 0.50 of the baseline, not 0.90")
        );
        assert_eq!(Row::plain("lost", "%", 50.0).missed(), None);
        let table = Report {
            scenario: "mesh",
            results: vec![stall(10.0), rate],
            failures: Vec::new(),
        };
        assert_eq!(
            table.to_table(),
            "scenario mesh\n       unit  wavry  limit\nstall  ms       10  ≤ 400\nrate   1/s       8   ≥ 10"
        );
    }

    #[test]
    fn others_have_columns_of_their_own() {
        let mut row = Row::compared("rate", "1/s", Better::More, 3.0, 2.0, 0.5);
        row.others = BTreeMap::from([("other", 1.0)]);
        let report = Report {
            scenario: "servers",
            results: vec![row, Row::plain("lost", "%", 0.0)],
            failures: Vec::new(),
        };
        assert_eq!(
            report.to_table(),
            "scenario servers\n      unit  wavry  baseline  ratio  goal  other\nrate  1/s       3         2   1.50  0.50      1\nlost  %         0"
        );
        assert!(report.to_json().contains(r#""others":{"other":1.0}"#));
    }
}
