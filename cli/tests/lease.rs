//! Leases of flows in real processes: a gateway has them from the master, a relay carries nothing without, and they
//! end when an operator says so.

#![allow(
    clippy::unwrap_used,
    reason = "it is test code, outside of test functions"
)]

mod support;

use std::time::{Duration, Instant};

use support::{client::echo, cluster::Cluster, stderr, wait_for};

const RELAY: &str = "transit-a";

/// A revocation is to end flows within this.
const REVOKED_WITHIN: Duration = Duration::from_secs(5);

fn claims(cluster: &Cluster, ruling: &str) -> f64 {
    let series = format!("wavry_transport_transit_claims_total{{ruling=\"{ruling}\"}}");
    cluster.metric_of(RELAY, &series)
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.add("open", "echo:", false);
    cluster.add_relay(RELAY, "other", "echo:", &[]);
    cluster.add_service_only("other");
    cluster.set("relay", "[relay.transit]\nlisten = \"127.0.0.1:0\"");
    cluster.start()
}

fn flows(cluster: &Cluster) -> f64 {
    cluster.metric_of(RELAY, "wavry_transport_transit_flows")
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_that_are_revoked_end_flows_and_those_that_come_after_do_not() {
    let cluster = cluster();
    let native = cluster.native();
    let session = native.open("/open").await;
    echo(&session, b"over the direct path").await.unwrap();
    wait_for("a flow is claimed with a lease", || flows(&cluster) >= 1.0);
    let held = || cluster.metric("gateway", "wavry_node_leases{state=\"held\"}");
    wait_for("the gateway counts its leases", || held() >= 1.0);
    assert_eq!(
        cluster.metric_of(RELAY, "wavry_transport_transit_silence"),
        0.0
    );
    assert_eq!(claims(&cluster, "no_lease"), 0.0, "it waits for its lease");

    // A gateway that runs has others in time: its flows go on.
    let operator = cluster.operator_token("operator");
    let by_signature = || {
        let series = "wavry_transport_transit_leases_total{by=\"signature\"}";
        cluster.metric_of(RELAY, series)
    };
    let signatures = by_signature();
    let asked = Instant::now();
    let said = cluster.operate(&operator, &["node", "revoke-leases", "edge"]);
    assert!(said.status.success(), "{}", stderr(&said));
    wait_for("it claims with new leases", || by_signature() > signatures);
    let took = asked.elapsed();
    println!("new leases after {took:?}");
    assert!(took < REVOKED_WITHIN, "{took:?}");
    while asked.elapsed() < REVOKED_WITHIN {
        assert!(flows(&cluster) >= 1.0, "its flow is interrupted");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    echo(&session, b"still there").await.unwrap();

    // So have what a flow may carry and a node that is revoked altogether.
    let signatures = by_signature();
    let set = ["node", "set", "edge", "--flow-bits", "5000000"];
    let said = cluster.operate(&operator, &set);
    assert!(said.status.success(), "{}", stderr(&said));
    wait_for("it claims with other rates", || by_signature() > signatures);
    let asked = Instant::now();
    let said = cluster.operate(&operator, &["node", "revoke", "edge"]);
    assert!(said.status.success(), "{}", stderr(&said));
    wait_for("the flows of a node that is revoked are gone", || {
        flows(&cluster) == 0.0
    });
    let took = asked.elapsed();
    println!("no flows after {took:?}");
    assert!(took < REVOKED_WITHIN, "{took:?}");
}
