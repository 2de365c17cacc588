//! Real browsers on the demo page of `wavry dev`: through gateway, mesh and relay to a service and
//! back, and turned away where they should be.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

#[path = "../support/mod.rs"]
mod support;

use std::process::Command;

use serde_json::Value;
use support::{Dev, output, peer::peers, stderr};

fn refused(metrics: &str, reason: &str) -> u64 {
    let series = format!("wavry_gateway_sessions_refused_total{{reason=\"{reason}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&series));
    line.map_or(0, |count| count.parse().expect("a count"))
}

fn visit(browser: &str) {
    let peers = peers();
    let directory = tempfile::tempdir().unwrap();
    let dev = Dev::start(directory.path());
    let before = dev.metrics("gateway");

    let mut node = Command::new("node");
    node.arg(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/browser/run.mjs"
    ))
    .args([browser, "demo"])
    .arg(directory.path().join("ready.json"))
    .env("WAVRY_PEERS", peers);
    let seen = output(node);
    let text = String::from_utf8_lossy(&seen.stdout);
    let after = dev.metrics("gateway");
    assert!(
        seen.status.success(),
        "{}\nsaw {text}\n{after}",
        stderr(&seen)
    );
    println!("{text}");
    let seen: Value = serde_json::from_str(&text).expect("one JSON object");
    assert_eq!(seen["checks"]["own_origin_still_served"], false, "{seen}");

    // The page sees one generic error whatever the reason; the gateway knows.
    for reason in ["unknown_service", "token_missing", "origin"] {
        let count = refused(&after, reason) - refused(&before, reason);
        assert_eq!(count, 1, "refused for {reason}:\n{after}");
    }
}

#[test]
fn chromium_carries_streams_datagrams_and_codes_through_the_mesh() {
    visit("chromium");
}

#[test]
fn firefox_carries_streams_datagrams_and_codes_through_the_mesh() {
    visit("firefox");
}
