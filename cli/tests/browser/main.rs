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
use support::{Dev, cluster::Cluster, output, peer::peers, stderr};
use wavry_proto::session::close_code;

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
    assert_eq!(seen["checks"]["own_origin_refused"], false, "{seen}");

    // The page sees one generic error whatever the reason; the gateway knows.
    for reason in ["unknown_service", "token_missing", "origin"] {
        let count = refused(&after, reason) - refused(&before, reason);
        assert_eq!(count, 1, "refused for {reason}:\n{after}");
    }
}

/// A page cannot see a status. It sees the code and the reason of a close, and with a session of its
/// own it lets another live longer.
fn told(browser: &str) {
    let mut cluster = Cluster::new();
    cluster.add_with_token("closed", "echo:");
    cluster.tell_refusals_by_a_close();
    let cluster = cluster.start();
    let url = |token: &str| cluster.url(&format!("closed?token={token}"));
    let refresh = |token: &str| {
        cluster.url(&format!(
            ".well-known/wavry/session/refresh?service=closed&token={token}"
        ))
    };
    let (first, newer) = (
        cluster.token("closed", "tab", "1h"),
        cluster.token("closed", "tab", "2h"),
    );
    let spec = serde_json::json!({
        "urls": [
            url(&first),
            cluster.url("closed"),
            url("v4.public.x"),
            refresh(&newer),
            refresh(&first),
        ],
        "certificate_hashes": [cluster.certificate_hash()],
    });
    let file = cluster.directory().join("spec.json");
    std::fs::write(&file, spec.to_string()).unwrap();
    let mut node = Command::new("node");
    node.arg(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/browser/run.mjs"
    ))
    .args([browser, "tokens"])
    .arg(&file)
    .env("WAVRY_PEERS", peers());
    let seen = output(node);
    assert!(seen.status.success(), "{}", stderr(&seen));
    let seen: Value = serde_json::from_slice(&seen.stdout).expect("one JSON object");
    let expected = serde_json::json!([
        [close_code::refused(401), "token_missing"],
        [close_code::refused(401), "token_invalid"],
        [0, "extended"],
        [close_code::refused(409), "not_newer"],
        7,
    ]);
    assert_eq!(seen["checks"]["closed"], expected);
}

#[test]
fn chromium_tells_a_page_of_a_refusal_and_of_its_sessions_new_token() {
    told("chromium");
}

#[test]
fn firefox_tells_a_page_of_a_refusal_and_of_its_sessions_new_token() {
    told("firefox");
}

#[test]
fn chromium_carries_streams_datagrams_and_codes_through_the_mesh() {
    visit("chromium");
}

#[test]
fn firefox_carries_streams_datagrams_and_codes_through_the_mesh() {
    visit("firefox");
}
