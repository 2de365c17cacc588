//! A service with several exits, of which one fails and comes back.

#![allow(
    clippy::unwrap_used,
    reason = "it is test code, outside of test functions"
)]

mod support;

use std::time::{Duration, Instant};

use support::{
    DEADLINE,
    client::{Ask, Native, echo, within},
    cluster::Cluster,
    wait_for,
};
use wavry_proto::session::close_code;
use wavry_transport::{
    session::{Closed, Session as _},
    webtransport::Session,
};

const RELAYS: [&str; 3] = ["exit-a", "exit-b", "exit-c"];
/// Sessions that are live when one fails.
const SESSIONS: usize = 60;
/// Within which a new session reaches another exit.
const OPENED_WITHIN: Duration = Duration::from_secs(1);
/// For how long sessions are opened after the failure: the connection's loss is noticed meanwhile.
const OPENING: Duration = Duration::from_secs(4);

async fn opened(native: &Native) -> Session {
    let ask = Ask {
        path: "/many",
        ..Ask::default()
    };
    match within(DEADLINE, "the answer", native.ask(ask)).await {
        Ok((session, _)) => session,
        Err(error) => panic!("{error}"),
    }
}

fn sessions_at(cluster: &Cluster, relay: &str) -> f64 {
    cluster.metric_of(relay, "wavry_relay_sessions")
}

fn in_state(cluster: &Cluster, state: &str) -> f64 {
    let metrics = cluster.metrics("gateway");
    let name = format!("wavry_gateway_exits{{state=\"{state}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
    line.map_or(0.0, |value| value.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_reach_another_exit_within_a_second_of_a_kill_and_the_killed_one_comes_back() {
    let mut cluster = Cluster::new();
    cluster.add("open", "echo:", false);
    cluster.add_service_only("many");
    for relay in RELAYS {
        cluster.add_relay(relay, "many", "echo:", &[]);
    }
    cluster.set("gateway", "sessions_per_ip = 10000");
    cluster.set("gateway", "webtransport.handshake_rate_per_ip = 5000");
    cluster.set("gateway", "webtransport.connections_per_ip = 10000");
    let mut cluster = cluster.start();
    assert_eq!(in_state(&cluster, "well"), 4.0);
    let native = cluster.native();
    let mut live = Vec::new();
    for _ in 0..SESSIONS {
        let session = opened(&native).await;
        echo(&session, b"before").await.unwrap();
        live.push(session);
    }
    let spread = RELAYS.map(|relay| sessions_at(&cluster, relay));
    println!("sessions at each exit: {spread:?}");
    assert!(spread.iter().all(|sessions| *sessions >= 8.0), "{spread:?}");

    let address = cluster.kill_further("exit-b");
    let killed = Instant::now();
    let (mut slowest, mut more) = (Duration::ZERO, 0);
    while killed.elapsed() < OPENING {
        let asked = Instant::now();
        let session = opened(&native).await;
        echo(&session, b"after").await.unwrap();
        slowest = slowest.max(asked.elapsed());
        more += 1;
    }
    println!("{more} sessions opened after the kill, the slowest in {slowest:?}");
    assert!(slowest < OPENED_WITHIN, "{slowest:?}");
    assert_eq!(in_state(&cluster, "ejected"), 1.0);
    assert!(cluster.metric("gateway", "wavry_gateway_exit_ejections_total") >= 1.0);

    let mut lost = 0.0;
    for session in &live {
        if echo(session, b"still there").await.is_ok() {
            continue;
        }
        match session.closed().await {
            Closed::Peer(close) => assert_eq!(close.code, close_code::RELAY_LOST),
            other => panic!("{other}"),
        }
        lost += 1.0;
    }
    assert_eq!(lost, spread[1], "of the others none was lost");

    cluster.start_further_again("exit-b", address);
    wait_for("it is back", || in_state(&cluster, "returning") == 1.0);
    let deadline = Instant::now() + DEADLINE;
    let mut fresh = Vec::new();
    while sessions_at(&cluster, "exit-b") == 0.0 {
        assert!(Instant::now() < deadline, "it gets no session");
        fresh.push(opened(&native).await);
    }
    println!("session {} after its return was its first", fresh.len());
    for session in &fresh {
        echo(session, b"with three again").await.unwrap();
    }
}
