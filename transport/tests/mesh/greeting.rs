//! What a connection says over a path that its packets did not take before: an empty datagram, for whose
//! acknowledgement it learns what was lost on the other.

use std::time::{Duration, Instant};

use wavry_proto::overlay::{
    paths::{Standing, View},
    transit::Limits,
};
use wavry_transport::mesh::Endpoint;

use crate::{
    datagrams::Counts,
    nodes::id,
    transit::{DEADLINE, Ends, Relay, proved_flows, question_and_answer},
};

/// Whether packets to the peer take one path, which is well.
fn is_calm(views: &[View]) -> bool {
    let doubted = |at: Option<Instant>| at.is_some_and(|at| at <= Instant::now());
    let mut active = views.iter().filter(|view| view.active);
    active.any(|view| view.standing == Standing::Proved && !doubted(view.doubt_at))
}

/// Waits until both ends have a path in use that is well, and another through the relay.
async fn calm(ends: &Ends) {
    let is = |from: &Endpoint, to: &str| {
        let views = from.paths(&id(to));
        is_calm(&views) && proved_flows(&views) >= 1
    };
    let waiting = async {
        while !(is(&ends.a, "b") && is(&ends.b, "a")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, waiting).await.unwrap();
}

// One thread: the recorder is that thread's.
#[tokio::test]
async fn each_connection_greets_its_peer_over_a_path_that_packets_did_not_take_before() {
    let counts = Counts::default();
    let _recording = metrics::set_default_local_recorder(&counts);
    let ends = Ends::new();
    let _relay = Relay::start(&ends.cluster, "t1", Limits::default());
    let mut sessions = Vec::new();
    for _ in 0..2 {
        sessions.push(ends.session().await);
    }
    let connections = sessions.len() as u64;
    calm(&ends).await;

    // The sessions have no datagrams of their own, so that all of these are greetings: of each connection, at
    // either end, over the relay.
    let (sent, received) = (counts.passed("sent"), counts.passed("received"));
    ends.cut();
    let greeted = async {
        while counts.passed("sent") < sent + 2 * connections
            || counts.passed("received") < received + 2 * connections
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(DEADLINE, greeted).await;
    let (sent, received) = (counts.passed("sent"), counts.passed("received"));
    assert!(waited.is_ok(), "{sent} sent, {received} received");
    println!("{sent} greetings in all");
    // Whoever is greeted takes it for that, and for nothing else.
    assert_eq!(counts.dropped("malformed"), 0);
    assert_eq!(counts.dropped("unknown_session"), 0);
    for (here, there) in &sessions {
        question_and_answer(here, there).await;
    }
}
