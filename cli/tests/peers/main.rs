//! Services that nobody here wrote, behind master, gateway and relay as separate processes: an
//! aioquic and a web-transport-quinn server, and socat's TCP and UDP echoes — reached by the probe,
//! by a native session, and by a browser.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../support/mod.rs"]
mod support;

mod rsyslog;
mod service;

use std::process::Command;

use serde_json::{Value, json};
use support::{cluster::Cluster, output, peer::peers, stderr};

fn positive(report: &Value, key: &str) {
    let value = report[key].as_f64();
    assert!(value.is_some_and(|value| value > 0.0), "{key} in {report}");
}

#[test]
fn an_aioquic_service_answers_through_three_processes() {
    let mut cluster = Cluster::new();
    let service = service::aioquic(&cluster);
    cluster.add("aioquic", &service.url(), true);
    let cluster = cluster.start();

    let report = cluster.probe(
        "aioquic",
        &["--subprotocol", "first", "--subprotocol", "last"],
    );
    assert_eq!(report["status"], 200);
    assert_eq!(
        report["subprotocol"], "last",
        "the upstream chooses, and it chooses the last: {report}"
    );
    for key in [
        "datagram_rtt_p50_ms",
        "stream_rtt_p50_ms",
        "stream_up_bytes_per_second",
        "stream_down_bytes_per_second",
    ] {
        positive(&report, key);
    }

    let refused = cluster.try_probe("aioquic/run/status/418", &[]);
    assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("418"), "{}", stderr(&refused));
}

#[test]
fn a_web_transport_quinn_service_answers_through_three_processes() {
    let mut cluster = Cluster::new();
    let service = service::WebTransportQuinn::start(&cluster);
    cluster.add("wtq", &service.url(), true);
    let cluster = cluster.start();

    let report = cluster.probe("wtq", &[]);
    assert_eq!(report["status"], 200);
    for key in [
        "datagram_rtt_p50_ms",
        "stream_rtt_p50_ms",
        "stream_up_bytes_per_second",
    ] {
        positive(&report, key);
    }
}

#[test]
fn a_tcp_service_answers_on_streams_and_has_no_datagrams() {
    let mut cluster = Cluster::new();
    let service = service::Socat::tcp();
    cluster.add("tcp", &service.url(), false);
    let cluster = cluster.start();

    let report = cluster.probe("tcp", &[]);
    assert_eq!(report["status"], 200);
    positive(&report, "stream_rtt_p50_ms");
    positive(&report, "stream_up_bytes_per_second");
    assert!(report["datagram_rtt_p50_ms"].is_null(), "{report}");
}

#[test]
fn a_udp_service_answers_datagrams() {
    let mut cluster = Cluster::new();
    let service = service::Socat::udp();
    cluster.add("udp", &service.url(), false);
    let cluster = cluster.start();

    let report = cluster.probe("udp", &[]);
    assert_eq!(report["status"], 200);
    positive(&report, "datagram_rtt_p50_ms");
    assert!(report["stream_rtt_p50_ms"].is_null(), "{report}");
}

#[test]
fn a_service_that_needs_a_token_is_reached_with_one_alone() {
    let mut cluster = Cluster::new();
    let service = service::Socat::tcp();
    cluster.add_with_token("tcp", &service.url());
    let cluster = cluster.start();

    let without = cluster.try_probe("tcp", &[]);
    assert_eq!(without.status.code(), Some(2));
    assert!(stderr(&without).contains("401"), "{}", stderr(&without));
    let file = cluster.session_token("tcp");
    let report = cluster.probe("tcp", &["--token-file", file.to_str().unwrap()]);
    assert_eq!(report["status"], 200);
}

#[test]
fn a_browser_reaches_services_of_every_kind() {
    let mut cluster = Cluster::new();
    let aioquic = service::aioquic(&cluster);
    let (tcp, udp) = (service::Socat::tcp(), service::Socat::udp());
    cluster.add("aioquic", &aioquic.url(), true);
    cluster.add("tcp", &tcp.url(), false);
    cluster.add("udp", &udp.url(), false);
    let cluster = cluster.start();

    for (service, streams, datagrams) in [
        ("aioquic", true, true),
        ("tcp", true, false),
        ("udp", false, true),
    ] {
        let seen = visit(&cluster, service);
        let text = &seen["checks"]["bidirectional"];
        assert_eq!(text == "a line of text\n", streams, "{service}: {seen}");
        let text = &seen["checks"]["datagram"];
        assert_eq!(text == "a datagram", datagrams, "{service}: {seen}");
    }
}

/// Opens a session to `service` in Chromium and tells what came back.
fn visit(cluster: &Cluster, service: &str) -> Value {
    let spec = cluster.directory().join("session.json");
    let text = json!({
        "url": cluster.url(service),
        "certificate_hashes": [cluster.certificate_hash()],
    });
    std::fs::write(&spec, text.to_string()).unwrap();
    let mut node = Command::new("node");
    node.arg(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/browser/run.mjs"
    ))
    .args(["chromium", "session"])
    .arg(&spec)
    .env("WAVRY_PEERS", peers());
    let seen = output(node);
    let text = String::from_utf8_lossy(&seen.stdout);
    assert!(seen.status.success(), "{}\nsaw {text}", stderr(&seen));
    serde_json::from_str(&text).expect("one JSON object")
}
