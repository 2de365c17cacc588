//! Strangers, revoked nodes, peers that vanish.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use wavry_transport::{
    mesh::{Endpoint, Limits, OpenError},
    session::{Closed, Session},
};

use crate::{
    nodes::{Cluster, Key, id, request, session},
    wire::Wire,
};

#[tokio::test]
async fn a_node_that_the_roster_does_not_list_gets_no_session() {
    let cluster = Cluster::new();
    let b = cluster.node("b");
    let key = Arc::new(Key::generate());
    let stranger = cluster.stranger("a", &key, Limits::default());
    let opened = stranger.open(&id("b"), request("/")).await;
    assert!(matches!(opened, Err(OpenError::Unreachable { .. })));
    cluster.list("a", key.public, stranger.local_addr());
    session(&stranger, "b", &b).await;
}

#[tokio::test]
async fn a_peer_that_is_another_node_than_the_one_dialled_is_refused() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node("a"), cluster.node("b"));
    // The address of b under the name of c, whose key b does not have.
    cluster.list("c", Key::generate().public, b.local_addr());
    let opened = a.open(&id("c"), request("/")).await;
    assert!(matches!(opened, Err(OpenError::Unreachable { .. })));
}

#[tokio::test]
async fn a_node_that_is_not_listed_or_has_no_address_is_unknown() {
    let cluster = Cluster::new();
    let a = cluster.node("a");
    let opened = a.open(&id("nobody"), request("/")).await;
    assert!(matches!(opened, Err(OpenError::Unknown(node)) if node == id("nobody")));
}

#[tokio::test]
async fn live_connections_of_a_revoked_node_are_closed_and_others_stay() {
    let cluster = Cluster::new();
    let (a, b, c) = (cluster.node("a"), cluster.node("b"), cluster.node("c"));
    let (from_a, at_b) = session(&a, "b", &b).await;
    let (from_c, _at_b) = session(&c, "b", &b).await;
    cluster.unlist("a");
    assert!(matches!(at_b.closed().await, Closed::Lost(_)));
    let Closed::Lost(reason) = from_a.closed().await else {
        panic!("it is cut");
    };
    assert!(reason.contains("(code 1)"), "it is told why: {reason}");
    assert!(a.open(&id("b"), request("/")).await.is_err());
    assert!(
        tokio::time::timeout(Duration::from_millis(200), from_c.closed())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_key_that_is_added_and_removed_again_leaves_the_sessions_of_the_other_alone() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node("a"), cluster.node("b"));
    let (from_a, _at_b) = session(&a, "b", &b).await;
    let next = Key::generate().public;
    cluster.change(|roster| roster.nodes[0].keys.insert(0, next));
    cluster.change(|roster| roster.nodes[0].keys.retain(|key| *key != next));
    assert!(
        tokio::time::timeout(Duration::from_millis(200), from_a.closed())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_peer_that_vanishes_without_a_word_is_noticed_within_two_seconds() {
    let cluster = Cluster::new();
    let a = cluster.node("a");
    let (key, wire) = (Arc::new(Key::generate()), Wire::new());
    let b =
        Endpoint::sharded(wire.sockets(), cluster.config("b", &key, Limits::default())).unwrap();
    cluster.list("b", key.public, b.local_addr());
    let (here, _there) = session(&a, "b", &b).await;
    wire.set_dead(true);
    let vanished = Instant::now();
    assert!(matches!(here.closed().await, Closed::Lost(_)));
    let took = vanished.elapsed();
    assert!(took <= Duration::from_secs(2), "took {took:?}");
    // And it is found again under the same address once it is back.
    wire.set_dead(false);
    session(&a, "b", &b).await;
}

#[tokio::test]
async fn a_peer_that_has_vanished_is_given_up_within_a_second_by_who_can_do_with_another() {
    const SOON: Duration = Duration::from_millis(500);
    let cluster = Cluster::new();
    let a = cluster.node("a");
    let (key, wire) = (Arc::new(Key::generate()), Wire::new());
    let b =
        Endpoint::sharded(wire.sockets(), cluster.config("b", &key, Limits::default())).unwrap();
    cluster.list("b", key.public, b.local_addr());
    let (here, _there) = session(&a, "b", &b).await;
    assert!(a.round_trip_time(&id("b")).is_some());
    a.reach(&id("b")).await.unwrap();

    wire.set_dead(true);
    // Over the connection that is there, then without one: each a second attempt's time at most.
    for connected in [true, false] {
        if !connected {
            here.closed().await;
        }
        let asked = Instant::now();
        let opened = a.open_soon(&id("b"), request("/"), SOON).await;
        assert!(matches!(opened, Err(OpenError::Unreachable { .. })));
        let took = asked.elapsed();
        assert!(took < Duration::from_secs(1), "took {took:?}");
    }
    assert_eq!(a.round_trip_time(&id("b")), None);
    wire.set_dead(false);
    session(&a, "b", &b).await;
}

#[tokio::test]
async fn garbage_on_the_port_changes_nothing() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node("a"), cluster.node("b"));
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for len in 0..1200usize {
        let garbage: Vec<u8> = (0..len).map(|i| (i * 31 + len * 7) as u8).collect();
        socket.send_to(&garbage, b.local_addr()).unwrap();
    }
    session(&a, "b", &b).await;
}
