//! The only master is killed and does not come back.

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
};
use tokio::time::{MissedTickBehavior, interval};
use wavry_proto::session::close_code;
use wavry_transport::session::{Closed, Session as _};

/// How long everything has to go on without a master.
const AWAY: Duration = Duration::from_secs(60);
/// Sessions that are live all that time.
const SESSIONS: usize = 20;

fn age(cluster: &Cluster, role: &str) -> f64 {
    assert_eq!(cluster.metric(role, "wavry_node_roster_stale"), 0.0);
    assert_eq!(cluster.ops(role, "/readyz").0, 200);
    cluster.metric(role, "wavry_node_roster_age_seconds")
}

/// Opens a session and sends something over it.
async fn opens(native: &Native, ask: Ask<'_>) {
    match within(DEADLINE, "the answer", native.ask(ask)).await {
        Ok((session, _)) => echo(&session, b"it carries").await.unwrap(),
        Err(error) => panic!("{error}"),
    }
}

/// Asks for a session until there is one: the gateway has to notice first that a relay is another process.
async fn opens_again(native: &Native, ask: impl Fn() -> Ask<'static>) {
    let deadline = Instant::now() + DEADLINE;
    while let Err(error) = native.ask(ask()).await {
        assert!(Instant::now() < deadline, "{error}");
    }
    opens(native, ask()).await;
}

fn public() -> Ask<'static> {
    Ask {
        path: "/open",
        ..Ask::default()
    }
}

fn of_second_relay() -> Ask<'static> {
    Ask {
        path: "/second",
        ..Ask::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_goes_on_for_a_minute_without_a_master_and_ends_where_the_roster_is_too_old() {
    let mut cluster = Cluster::new();
    cluster.add("open", "echo:", false);
    cluster.add_with_token("closed", "echo:");
    cluster.add_service_only("second");
    cluster.add_relay("exit-2", "second", "echo:", &[]);
    cluster.set("gateway", "sessions_per_ip = 1000");
    for role in ["gateway", "relay"] {
        cluster.set(role, "max_roster_age = \"85s\"");
    }
    let mut cluster = cluster.start();
    let native = cluster.native();
    let token: &'static str = cluster.token("closed", "tab", "10m").leak();
    let with_token = || Ask {
        path: "/closed",
        bearer: Some(token),
        ..Ask::default()
    };
    let mut live = Vec::new();
    for _ in 0..SESSIONS {
        live.push(native.open("/open").await);
    }
    opens(&native, of_second_relay()).await;

    cluster.kill_master();
    let killed = Instant::now();
    let at_first = age(&cluster, "gateway");
    let mut tick = interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut restarted = false;
    while killed.elapsed() < AWAY {
        tick.tick().await;
        for session in &live {
            echo(session, b"still there").await.unwrap();
        }
        opens(&native, public()).await;
        opens(&native, with_token()).await;
        if !restarted && killed.elapsed() > AWAY / 3 {
            let address = cluster.kill_further("exit-2");
            cluster.start_further_again("exit-2", address);
            opens_again(&native, of_second_relay).await;
            restarted = true;
        }
    }
    for role in ["gateway", "relay"] {
        let age = age(&cluster, role);
        println!("the {role}'s roster is {age} s old, {at_first} s when the master was killed");
        assert!(age >= at_first + AWAY.as_secs_f64() - 2.0);
        assert_eq!(cluster.metric(role, "wavry_node_master_up"), 0.0);
    }
    for session in &live {
        echo(session, b"it outlived the master").await.unwrap();
    }

    cluster.restart_gateway();
    let native = cluster.native();
    opens(&native, with_token()).await;
    let last = native.open("/open").await;
    echo(&last, b"within the bound").await.unwrap();
    assert!(age(&cluster, "gateway") >= at_first + AWAY.as_secs_f64() - 2.0);

    // Past the bound nobody acts on it any more.
    match within(DEADLINE, "the end", last.closed()).await {
        Closed::Peer(close) => assert_eq!(close.code, close_code::RELAY_LOST),
        other => panic!("{other}"),
    }
    assert_eq!(native.status(public()).await, 503);
    assert_eq!(native.status(with_token()).await, 503);
    for role in ["gateway", "relay"] {
        let deadline = Instant::now() + DEADLINE;
        while cluster.ops(role, "/readyz").0 != 503 {
            assert!(Instant::now() < deadline, "{role} is still ready");
        }
        assert_eq!(cluster.metric(role, "wavry_node_roster_stale"), 1.0);
        assert_eq!(cluster.ops(role, "/healthz").0, 200);
    }
}
