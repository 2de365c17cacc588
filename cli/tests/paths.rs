//! `wavry loadtest mesh`, at a modest size: sessions of real nodes over real transit relays and a network that
//! loses, delays and changes. That they live on and that every byte comes is checked here; how fast is a matter
//! of the host, and is not.

mod support;

use std::time::Duration;

use serde_json::Value;
use support::{output_within, stderr, wavry};

/// A stream that is told to end sends what it holds first: a mebibyte, at whatever a lossy path lets through.
const LIMIT: Duration = Duration::from_secs(150);

/// The report of a case.
fn run(case: &str, arguments: &[&str]) -> Value {
    let mut command = wavry(&["loadtest", "mesh", "--only", case, "--json"]);
    command.args(arguments);
    let done = output_within(command, LIMIT);
    let report = serde_json::from_slice(&done.stdout);
    report.unwrap_or_else(|_| panic!("no report of {case}: {}", stderr(&done)))
}

/// A figure, and what it is to keep to.
fn row<'a>(report: &'a Value, name: &str) -> &'a Value {
    let rows = report["results"].as_array().expect("an array of rows");
    let row = rows.iter().find(|row| row["name"] == name);
    row.unwrap_or_else(|| panic!("no {name} in {report}"))
}

fn figure(report: &Value, name: &str) -> f64 {
    let figure = row(report, name)["wavry"].as_f64();
    figure.unwrap_or_else(|| panic!("{name} is no number in {report}"))
}

/// Every session is there, and has every byte.
fn all_live(report: &Value, case: &str, sessions: f64) {
    assert_eq!(figure(report, &format!("{case}_sessions")), sessions);
    assert_eq!(figure(report, &format!("{case}_closed")), 0.0, "{report}");
    let name = format!("{case}_messages_exact");
    let sent = row(report, &name)["limit"]["least"].as_f64();
    let sent = sent.expect("what was sent is the limit");
    assert!(sent > 20.0 * sessions, "{report}");
    assert_eq!(figure(report, &name), sent, "{report}");
}

const FEW: [&str; 2] = ["--sessions", "10"];

#[test]
fn sessions_live_on_byte_for_byte_when_a_relay_on_their_way_is_killed() {
    let report = run("kill", &FEW);
    all_live(&report, "kill", 10.0);
    assert!(figure(&report, "kill_gateway_changed_after") > 0.0);
}

#[test]
fn sessions_live_on_when_their_path_loses_everything_in_one_direction() {
    let report = run("blackhole", &FEW);
    all_live(&report, "blackhole", 10.0);
    assert!(figure(&report, "blackhole_gateway_changed_after") > 0.0);
}

#[test]
fn a_relay_that_leaves_under_traffic_closes_no_session_and_ends_by_itself() {
    let report = run("drain", &FEW);
    all_live(&report, "drain", 10.0);
    // Paths are left at once, not when the relay has gone.
    assert!(figure(&report, "drain_gateway_changed_after") > 0.0);
    assert!(figure(&report, "drain_empty_within") > 0.0);
}

#[test]
fn nodes_whose_routers_give_them_other_addresses_keep_their_sessions() {
    let report = run("rebind", &FEW);
    for side in ["rebind_gateway", "rebind_exit"] {
        all_live(&report, side, 10.0);
    }
}

#[test]
fn a_link_that_comes_and_goes_makes_few_changes_and_breaks_no_stream() {
    let report = run("flap", &["--seconds", "2"]);
    assert_eq!(figure(&report, "flap_streams_exact"), 1.0, "{report}");
    // Each half second one would make 24; that of the host's own hiccups are a few.
    assert!(figure(&report, "flap_changes") < 12.0, "{report}");
    assert!(figure(&report, "flap_goodput") > 0.0, "{report}");
}

#[test]
fn no_stream_breaks_however_much_is_lost() {
    let report = run("loss", &["--seconds", "2", "--rounds", "1"]);
    for percent in [2, 10, 25] {
        let name = |what| format!("loss_{percent}_percent_{what}");
        assert_eq!(figure(&report, &name("broken")), 0.0, "{report}");
        assert!(figure(&report, &name("goodput")) > 0.0, "{report}");
    }
}

#[test]
fn a_stream_is_whole_while_paths_of_40_ms_and_of_1_ms_take_turns() {
    let report = run("switch", &["--seconds", "4"]);
    assert_eq!(figure(&report, "switch_streams_exact"), 1.0, "{report}");
    assert!(figure(&report, "switch_changes") >= 3.0, "{report}");
}

#[test]
fn a_path_that_became_narrow_is_left_and_the_stream_goes_on() {
    let report = run("mtu", &["--seconds", "4"]);
    assert_eq!(figure(&report, "mtu_streams_exact"), 1.0, "{report}");
    assert!(figure(&report, "mtu_goodput_after") > 0.0, "{report}");
}

#[test]
fn a_relay_forwards_no_flood_beyond_its_rate_answers_no_stranger_and_counts_what_it_drops() {
    let report = run("flood", &["--seconds", "2", "--rounds", "1"]);
    assert!(figure(&report, "flood_member_over_rate") > 0.0, "{report}");
    assert!(figure(&report, "flood_strangers_came") > 0.0, "{report}");
    assert!(figure(&report, "flood_strangers_refused") > 0.0, "{report}");
    assert_eq!(figure(&report, "flood_strangers_answered"), 0.0, "{report}");
    assert_eq!(figure(&report, "flood_streams_broken"), 0.0, "{report}");
    assert!(figure(&report, "flood_relay_memory") <= 32.0, "{report}");
}

#[test]
fn a_relay_looks_at_few_of_many_forged_leases_grants_none_and_counts_all_that_comes() {
    let report = run("forge", &["--seconds", "2", "--rounds", "1"]);
    for name in [
        "signatures_checked",
        "claims_asked_for_proof",
        "claims_refused",
    ] {
        assert!(figure(&report, &format!("forge_{name}")) > 0.0, "{report}");
    }
    // 2,000 in each second of the relay's, of which two and a bit touch four.
    assert!(
        figure(&report, "forge_signatures_checked") <= 8_000.0,
        "{report}"
    );
    for name in ["claims_granted", "strangers_answered", "streams_broken"] {
        assert_eq!(figure(&report, &format!("forge_{name}")), 0.0, "{report}");
    }
    assert!(figure(&report, "forge_relay_memory") <= 32.0, "{report}");
    // A busy host may keep the relay from taking what comes.
    let not_taken = figure(&report, "forge_batches_not_taken");
    let uncounted = figure(&report, "forge_packets_uncounted");
    assert!(uncounted >= not_taken, "{report}");
    assert!(not_taken > 0.0 || uncounted == 0.0, "{report}");
}

#[test]
fn flipped_bits_and_repeated_packets_gain_nothing_but_loss() {
    let report = run("tamper", &["--sessions", "10", "--seconds", "3"]);
    all_live(&report, "tamper", 10.0);
}

#[test]
fn twelve_relays_stand_by_and_two_of_them_may_be_killed() {
    let report = run("twelve", &["--seconds", "2"]);
    assert!(figure(&report, "twelve_converged_after") > 0.0);
    assert!(figure(&report, "twelve_converged_again_after") > 0.0);
}
