//! `--check`: what a role would find if it started.

use std::io::{self, Write as _};

use wavry_credentials::source::Finding;

/// Prints what was found, and fails when something cannot be used.
pub(crate) fn report(findings: &[Finding]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "ok    configuration")?;
    for Finding { what, outcome } in findings {
        match outcome {
            Ok(place) => writeln!(out, "ok    {what}: {place}")?,
            Err(why) => writeln!(out, "FAIL  {what}: {why}")?,
        }
    }
    let failed = findings.iter().filter(|it| it.outcome.is_err()).count();
    anyhow::ensure!(
        failed == 0,
        "{failed} of {} cannot be used",
        findings.len() + 1
    );
    Ok(())
}
