//! The load test against a cluster that it starts for itself: what it claims is checked here, how
//! fast it is is not.

mod support;

use serde_json::Value;
use support::{output, stderr, wavry};

/// Runs a scenario that must hold; its report.
fn run(arguments: &[&str]) -> Value {
    let mut command = wavry(&["loadtest"]);
    command.args(arguments).arg("--json");
    let done = output(command);
    assert!(done.status.success(), "{}", stderr(&done));
    serde_json::from_slice(&done.stdout).expect("one JSON object")
}

/// The figure in a row's column.
fn figure(report: &Value, name: &str, column: &str) -> f64 {
    let rows = report["results"].as_array().expect("an array of rows");
    let row = rows.iter().find(|row| row["name"] == name);
    let value = row.and_then(|row| row[column].as_f64());
    value.unwrap_or_else(|| panic!("no {column} of {name} in {report}"))
}

#[test]
fn echo_is_measured_beside_bare_quic() {
    let report = run(&["echo", "--baseline", "--rounds", "1", "--round-ms", "200"]);
    assert_eq!(report["scenario"], "echo");
    for name in [
        "stream_round_trip_p50",
        "stream_round_trip_p99",
        "datagram_round_trip_p50",
        "datagram_round_trip_p99",
        "stream_throughput",
        "datagram_rate",
    ] {
        for column in ["wavry", "baseline", "ratio", "goal"] {
            assert!(figure(&report, name, column) > 0.0, "{column} of {name}");
        }
    }
}

#[test]
fn a_gibibyte_in_two_hundred_streams_comes_back_byte_for_byte() {
    let report = run(&["transfer", "--bytes", "1073741824", "--streams", "200"]);
    assert_eq!(
        figure(&report, "bytes_back_exact", "wavry"),
        1_073_741_824.0
    );
    assert_eq!(figure(&report, "streams_exact", "wavry"), 200.0);
}

#[test]
fn every_datagram_of_a_hundred_thousand_is_accounted_for() {
    let report = run(&["datagrams", "--count", "100000", "--rate", "20000"]);
    assert_eq!(figure(&report, "datagrams", "wavry"), 100_000.0);
    assert!(figure(&report, "received", "wavry") > 0.0, "{report}");
    assert_eq!(figure(&report, "unaccounted", "wavry"), 0.0, "{report}");
}

#[test]
fn the_session_layer_is_measured_beside_bare_quinn_as_servers() {
    let report = run(&[
        "servers",
        "--rounds",
        "1",
        "--round-ms",
        "50",
        "--sessions",
        "100",
    ]);
    assert_eq!(report["scenario"], "servers");
    for name in ["handshakes", "upload", "echo", "datagrams", "datagram_echo"] {
        for column in ["wavry", "baseline", "ratio", "goal"] {
            assert!(figure(&report, name, column) > 0.0, "{column} of {name}");
        }
    }
    for column in ["wavry", "baseline", "ratio"] {
        let bytes = figure(&report, "idle_session_memory", column);
        assert!(bytes > 0.0, "{column} of idle_session_memory");
    }
}

#[test]
fn idle_sessions_are_weighed_on_every_node() {
    let report = run(&["idle", "--sessions", "200"]);
    assert_eq!(figure(&report, "sessions", "wavry"), 200.0);
    assert!(figure(&report, "gateway_memory", "wavry") > 0.0, "{report}");
}

#[test]
fn a_herd_of_units_logs_in_at_a_keyvault_and_reads_on() {
    let report = run(&["keyvault", "--units", "100", "--seconds", "1"]);
    assert_eq!(figure(&report, "units_served", "wavry"), 100.0);
    assert_eq!(figure(&report, "units_refused", "wavry"), 0.0);
    for name in ["herd", "log_in_and_read_p99", "audited_reads"] {
        assert!(figure(&report, name, "wavry") > 0.0, "{name} in {report}");
    }
}
