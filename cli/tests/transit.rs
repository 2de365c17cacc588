//! Relays that forward packets of other nodes, in real processes: they are found through the master, claimed by
//! the gateway before they are needed, left when they leave, and claimed anew when they come back.

#![allow(
    clippy::unwrap_used,
    reason = "it is test code, outside of test functions"
)]

mod support;

use std::time::{Duration, Instant};

use serde_json::Value;
use support::{client::echo, cluster::Cluster, stderr, wait_for};

const RELAYS: [&str; 2] = ["transit-a", "transit-b"];

/// A relay that is told to leave is gone within this: nobody sends through it by then.
const EMPTY_WITHIN: Duration = Duration::from_secs(10);

fn flows(cluster: &Cluster, relay: &str) -> f64 {
    cluster.metric_of(relay, "wavry_transport_transit_flows")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_behind_nat_is_found_through_the_relays_that_it_is_attached_to() {
    let mut cluster = Cluster::new();
    cluster.add("open", "echo:", false);
    for relay in RELAYS {
        cluster.add_relay(relay, "other", "echo:", &[]);
    }
    cluster.add_service_only("other");
    cluster.set("exit", "behind_nat = true");
    cluster.set("further", "[relay.transit]\nlisten = \"127.0.0.1:0\"");
    let cluster = cluster.start();
    let operator = cluster.operator_token("viewer");
    let shown = || {
        let shown = cluster.operate(&operator, &["node", "show", "exit", "--json"]);
        assert!(shown.status.success(), "{}", stderr(&shown));
        serde_json::from_slice::<Value>(&shown.stdout).unwrap()
    };
    wait_for("it is attached to both", || {
        shown()["attached"] == serde_json::json!(RELAYS)
    });
    // Both see it at the same address.
    wait_for("its address is known", || {
        shown()["addresses"].as_array().unwrap().len() == 1
    });
    for relay in RELAYS {
        let attached = || cluster.metric_of(relay, "wavry_transport_transit_attached");
        wait_for("the relay tells of it", || attached() == 1.0);
    }
    let session = cluster.native().open("/open").await;
    echo(&session, b"to nobody knows where").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn transit_relays_stand_by_for_a_session_and_may_be_killed_come_back_and_leave() {
    let mut cluster = Cluster::new();
    cluster.add("open", "echo:", false);
    for relay in RELAYS {
        cluster.add_relay(relay, "other", "echo:", &[]);
    }
    cluster.add_service_only("other");
    cluster.set("relay", "[relay.transit]\nlisten = \"127.0.0.1:0\"");
    let mut cluster = cluster.start();
    let native = cluster.native();
    let session = native.open("/open").await;
    echo(&session, b"over the direct path").await.unwrap();

    let operator = cluster.operator_token("viewer");
    let listed = |relay: &str| {
        let shown = cluster.operate(&operator, &["node", "show", relay, "--json"]);
        assert!(shown.status.success(), "{}", stderr(&shown));
        let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
        shown["transit"].as_array().map_or(0, Vec::len)
    };
    for relay in RELAYS {
        wait_for("the roster has where it forwards", || listed(relay) == 1);
        // One alone, and one with the other: each way to the exit is claimed.
        wait_for("its flows are claimed", || flows(&cluster, relay) >= 2.0);
        // Probes come through, and their answers.
        let packets = || cluster.metric_of(relay, "wavry_transport_transit_packets_total");
        wait_for("it forwards probes", || packets() >= 2.0);
        let refused = cluster.metric_of(relay, "wavry_transport_transit_dropped_total");
        let early = "flows are used once they are granted";
        assert_eq!(refused, 0.0, "{early}");
    }

    let address = cluster.kill_further("transit-a");
    echo(&session, b"without one of them").await.unwrap();
    cluster.start_further_again("transit-a", address);
    wait_for("its flows are claimed anew", || {
        flows(&cluster, "transit-a") >= 1.0
    });

    let asked = Instant::now();
    let left = cluster.stop_further("transit-b");
    assert!(left.success(), "{left}");
    let took = asked.elapsed();
    println!("left after {took:?}");
    assert!(took < EMPTY_WITHIN, "{took:?}");
    echo(&session, b"without the other").await.unwrap();
    let switches = cluster.metric("gateway", "wavry_transport_overlay_switches_total");
    let reached = cluster.metric("gateway", "wavry_gateway_exits");
    assert!(
        switches <= reached,
        "the session stayed on its path: {switches}"
    );
}
