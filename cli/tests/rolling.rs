//! A cluster whose nodes are started anew, one after the other, under sessions: those that have nothing to do with a node
//! notice nothing of it, and those that do are asked to finish, and told at the deadline.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "it is test code, outside of test functions"
)]

mod support;

use std::time::{Duration, Instant};

use support::{
    DEADLINE,
    client::{Ask, Native, echo, within},
    cluster::Cluster,
    frames::Frames,
    wait_for,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use wavry_proto::{
    h3::{code, frame::Control},
    session::close_code,
    webtransport::capsule::Capsule,
};
use wavry_transport::{
    session::{Closed, Session as _},
    transit::QUIET,
    webtransport::Session,
};

/// Sessions with each service at each gateway.
const SESSIONS: usize = 10;

/// How long sessions may go on at a node that leaves.
const DRAIN: Duration = Duration::from_secs(2);

/// What ends a session that a client was asked to finish, and did not.
const DRAIN_ENDS_WITHIN: Duration = Duration::from_secs(8);

/// Sessions that send and receive until they are told to stop.
struct Busy {
    stop: CancellationToken,
    running: JoinSet<Result<u64, Closed>>,
}

impl Busy {
    async fn start(native: &Native, path: &str) -> Self {
        let (stop, mut running) = (CancellationToken::new(), JoinSet::new());
        for _ in 0..SESSIONS {
            let session = native.open(path).await;
            let stop = stop.clone();
            running.spawn(async move {
                let mut echoes = 0;
                while !stop.is_cancelled() {
                    echo(&session, b"on and on").await?;
                    echoes += 1;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Ok(echoes)
            });
        }
        Self { stop, running }
    }

    /// None of them has ended.
    fn all_live(&mut self, when: &str) {
        let ended = self.running.try_join_next();
        assert!(ended.is_none(), "{when}: {ended:?}");
    }

    /// All of them were there to the end.
    async fn stop(self) {
        self.stop.cancel();
        for ended in self.running.join_all().await {
            assert!(ended.unwrap() > 0);
        }
    }
}

/// Sessions that do nothing but wait.
async fn waiting(native: &Native, path: &str) -> Vec<Session> {
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        sessions.push(native.open(path).await);
    }
    sessions
}

/// All are asked to finish; one does, and the others are told that the node is gone.
async fn drained(sessions: Vec<Session>, asked: Instant) {
    for session in &sessions {
        within(
            DRAIN_ENDS_WITHIN,
            "the request to finish",
            session.draining(),
        )
        .await;
    }
    println!(
        "all were asked to finish {:?} after the signal",
        asked.elapsed()
    );
    for session in sessions {
        match within(DRAIN_ENDS_WITHIN, "the close", session.closed()).await {
            Closed::Peer(close) => assert_eq!(close.code, close_code::DRAINED),
            other => panic!("{other}"),
        }
    }
    let took = asked.elapsed();
    println!("all were closed {took:?} after the signal");
    assert!((DRAIN..DRAIN_ENDS_WITHIN).contains(&took), "{took:?}");
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.add("open", "echo:", false);
    for (relay, service) in [("exit-2", "second"), ("transit-a", "other")] {
        cluster.add_service_only(service);
        cluster.add_relay(relay, service, "echo:", &[]);
    }
    cluster.set("further", "[relay.transit]\nlisten = \"127.0.0.1:0\"");
    let drain = format!("drain_timeout = {:?}", format!("{}s", DRAIN.as_secs()));
    for role in ["gateway", "relay"] {
        cluster.set(role, &drain);
    }
    cluster.set("gateway", "sessions_per_ip = 1000");
    cluster.start()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_node_is_started_anew_in_its_turn_and_sessions_elsewhere_notice_nothing() {
    let mut cluster = cluster();
    let (first, second) = (cluster.native(), cluster.start_gateway("edge-2"));
    let mut elsewhere = Busy::start(&first, "/open").await;

    // A transit relay: sessions may have a way through it.
    let flows = |cluster: &Cluster| cluster.metric_of("transit-a", "wavry_transport_transit_flows");
    wait_for("ways lead through the relay", || flows(&cluster) >= 1.0);
    let asked = Instant::now();
    let address = cluster.further_address("transit-a");
    let left = cluster.stop_further("transit-a");
    println!("the transit relay has left after {:?}", asked.elapsed());
    assert!(left.success(), "{left}");
    cluster.start_further_again("transit-a", address);
    elsewhere.all_live("without the transit relay");

    // An exit: it is asked for no sessions any more, and those that it has are asked to finish.
    let mut at_exit = waiting(&first, "/second").await;
    at_exit.extend(waiting(&second, "/second").await);
    let address = cluster.further_address("exit-2");
    let asked = Instant::now();
    cluster.tell_further_to_leave("exit-2");
    let refused = async {
        within(DRAIN_ENDS_WITHIN, "the drain", at_exit[0].draining()).await;
        first.status(to("/second")).await
    };
    assert_eq!(refused.await, 503, "an exit that leaves takes a session");
    drained(at_exit, asked).await;
    let left = cluster.further_left("exit-2");
    assert!(left.success(), "{left}");
    cluster.start_further_again("exit-2", address);
    opens_again(&second, "/second").await;
    elsewhere.all_live("without the other exit");

    // A gateway: who has a session there is asked to finish, and who comes to it goes elsewhere.
    let at_gateway = waiting(&second, "/open").await;
    let asked = Instant::now();
    cluster.tell_last_gateway_to_leave();
    within(DRAIN_ENDS_WITHIN, "the drain", at_gateway[0].draining()).await;
    assert!(
        second.ask(to("/open")).await.is_err(),
        "a gateway that leaves takes a session"
    );
    drained(at_gateway, asked).await;
    let left = cluster.last_gateway_left();
    assert!(left.success(), "{left}");
    let third = cluster.start_gateway("edge-3");
    echo(&third.open("/open").await, b"in its place")
        .await
        .unwrap();
    elsewhere.all_live("without the other gateway");

    // And what signs for all of them.
    cluster.restart_master();
    let operator = cluster.operator_token("viewer");
    let answers = || {
        cluster
            .operate(&operator, &["node", "list"])
            .status
            .success()
    };
    wait_for("the master answers", answers);
    opens_again(&first, "/second").await;
    elsewhere.all_live("without the master");
    elsewhere.stop().await;
}

#[tokio::test]
async fn a_gateway_that_leaves_says_so_in_each_session_and_on_each_connection_and_closes_at_its_deadline()
 {
    let mut cluster = Cluster::new();
    cluster.add("open", "echo:", false);
    // Longer than all that is asked for before it takes on a busy machine.
    let drain = Duration::from_secs(6);
    cluster.set("gateway", "drain_timeout = \"6s\"");
    let mut cluster = cluster.start();
    let gateway = cluster.start_gateway("edge-2").gateway();
    let ca_file = cluster.directory().join("ca.crt");
    let mut two = Frames::connect(&ca_file, gateway).await;
    let (mut first, mut second) = (two.open("/open").await, two.open("/open").await);
    let mut one = Frames::connect(&ca_file, gateway).await;
    let mut only = one.open("/open").await;
    let mut none = Frames::connect(&ca_file, gateway).await;

    let asked = Instant::now();
    cluster.tell_last_gateway_to_leave();
    // Each session is asked to finish (WT_DRAIN_SESSION), and each connection takes no request after those that it
    // has (GOAWAY; RFC 9114, section 5.2).
    for session in [&mut first, &mut second, &mut only] {
        let capsule = within(DEADLINE, "the capsule", session.capsule()).await;
        assert_eq!(capsule, Some(Capsule::Drain));
    }
    for (connection, id) in [(&mut two, 8), (&mut one, 4), (&mut none, 0)] {
        let control = within(DEADLINE, "the frame", connection.control()).await;
        assert_eq!(control, Control::GoAway(id));
    }
    println!("all of it was there {:?} after the signal", asked.elapsed());
    assert_eq!((first.id, second.id, only.id), (0, 4, 0));
    let mut late = two.ask("/open").await;
    assert_eq!(late.id, 8);
    let refused = within(DEADLINE, "the refusal", late.refused()).await;
    assert_eq!(refused, code::REQUEST_REJECTED);
    // One that finishes is over, and the others go on until the deadline.
    first.finish();
    assert_eq!(within(DEADLINE, "the end", first.capsule()).await, None);
    for session in [&mut second, &mut only] {
        let capsule = within(DEADLINE, "the close", session.capsule()).await;
        let took = asked.elapsed();
        let closed =
            matches!(&capsule, Some(Capsule::Close(close)) if close.code == close_code::DRAINED);
        assert!(closed, "{capsule:?}");
        assert!(took >= drain, "closed after {took:?}");
        assert_eq!(session.capsule().await, None);
    }
    for connection in [&two, &one, &none] {
        assert_eq!(connection.closed().await, code::NO_ERROR);
    }
    let left = cluster.last_gateway_left();
    println!("the gateway has left after {:?}", asked.elapsed());
    assert!(left.success(), "{left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transit_relay_forwards_until_its_flows_were_left_however_soon_its_own_sessions_end() {
    let mut cluster = Cluster::new();
    cluster.add("open", "echo:", false);
    cluster.add_service_only("other");
    cluster.add_relay("transit-a", "other", "echo:", &[]);
    let transit = "drain_timeout = \"100ms\"\n[relay.transit]\nlisten = \"127.0.0.1:0\"";
    cluster.set("further", transit);
    let mut cluster = cluster.start();
    let client = cluster.native();
    let mut elsewhere = Busy::start(&client, "/open").await;
    let of_transit = |cluster: &Cluster, name: &str| cluster.metric_of("transit-a", name);
    let packets = "wavry_transport_transit_packets_total";
    wait_for("probes go through the relay", || {
        of_transit(&cluster, packets) >= 1.0
    });
    let asked = Instant::now();
    let left = cluster.stop_further("transit-a");
    let took = asked.elapsed();
    println!("the transit relay has left after {took:?}");
    assert!(left.success(), "{left}");
    // It was probed half a second before at the latest, and looks each second how long it was quiet.
    let looked = Duration::from_secs(1) + Duration::from_millis(500);
    assert!(took >= QUIET - looked, "{took:?}");
    assert!(took < DRAIN_ENDS_WITHIN * 2, "{took:?}");
    elsewhere.all_live("without the transit relay");
    elsewhere.stop().await;
}

fn to(path: &str) -> Ask<'_> {
    Ask {
        path,
        ..Ask::default()
    }
}

/// A session is opened once the nodes know of each other.
async fn opens_again(native: &Native, path: &str) {
    let deadline = Instant::now() + DEADLINE;
    let session = loop {
        match native.ask(to(path)).await {
            Ok((session, _)) => break session,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    };
    echo(&session, b"it is back").await.unwrap();
}
