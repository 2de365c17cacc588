//! Upstreams that fail, and a master that is gone: what clients see through three processes.

#![allow(
    clippy::unwrap_used,
    reason = "it is test code, outside of test functions"
)]

mod support;

use std::{
    net::{TcpListener, UdpSocket},
    time::Duration,
};

use support::{
    DEADLINE,
    client::{Ask, echo, within},
    cluster::Cluster,
};
use wavry_credentials::cert;
use wavry_proto::session::{Response, close_code};
use wavry_transport::{
    session::{Closed, Session as _},
    webtransport::{Limits, Server},
};

/// A WebTransport server with the cluster's certificate for services.
fn server(cluster: &Cluster) -> Server {
    let at = |name: &str| cluster.directory().join(name);
    let store = cert::Store::new();
    store.load(&at("service.crt"), &at("service.key")).unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    Server::new(socket, store.server_config(), Limits::default()).unwrap()
}

fn url(server: &Server) -> String {
    format!("https://localhost:{}/", server.local_addr().unwrap().port())
}

#[tokio::test]
async fn an_upstream_that_refuses_or_says_nothing_is_answered_for() {
    let mut cluster = Cluster::new();
    // Its handshake is never answered.
    let deaf = UdpSocket::bind("127.0.0.1:0").unwrap();
    // Closed at once: nobody listens there.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = listener.local_addr().unwrap();
    drop(listener);
    // Its handshake is answered, and its request never.
    let silent = server(&cluster);
    cluster.add(
        "deaf",
        &format!("https://{}/", deaf.local_addr().unwrap()),
        true,
    );
    cluster.add("gone", &format!("tcp://{gone}"), false);
    cluster.add("silent", &url(&silent), true);
    cluster.add("echo", "echo:", false);
    let cluster = cluster.start();
    let native = cluster.native();

    let held = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Some(requested) = silent.accept().await {
            held.push(requested);
        }
    });
    for (path, status) in [
        ("/echo", 200),
        ("/gone", 502),
        ("/deaf", 504),
        ("/silent", 504),
    ] {
        let asked = native.status(Ask {
            path,
            ..Ask::default()
        });
        assert_eq!(asked.await, status, "{path}");
    }
    held.abort();
}

#[tokio::test]
async fn an_upstream_that_vanishes_closes_the_session_with_a_code_of_ours() {
    let mut cluster = Cluster::new();
    let upstream = server(&cluster);
    cluster.add("service", &url(&upstream), true);
    let cluster = cluster.start();
    let serving = tokio::spawn(async move {
        let requested = upstream.accept().await.unwrap();
        let session = requested.accept(Response::ok()).await.unwrap();
        (upstream, session)
    });
    let session = cluster.native().open("/service").await;
    let (upstream, theirs) = serving.await.unwrap();
    // The connection is cut without a word about the session.
    upstream.close().await;
    match within(DEADLINE, "the close", session.closed()).await {
        Closed::Peer(close) => assert_eq!(close.code, close_code::UPSTREAM_LOST),
        other => panic!("{other}"),
    }
    drop(theirs);
}

#[tokio::test]
async fn a_drain_passes_either_way_and_so_does_an_upstreams_goaway() {
    let mut cluster = Cluster::new();
    let upstream = server(&cluster);
    cluster.add("service", &url(&upstream), true);
    let cluster = cluster.start();
    let native = cluster.native();
    let take = || async {
        let requested = upstream.accept().await.unwrap();
        requested.accept(Response::ok()).await.unwrap()
    };
    let (one, theirs) = tokio::join!(native.open("/service"), take());
    let (other, _others) = tokio::join!(native.open("/service"), take());
    theirs.drain();
    within(DEADLINE, "the upstream's drain", one.draining()).await;
    one.drain();
    within(DEADLINE, "the client's drain", theirs.draining()).await;
    // Neither is the end of it.
    one.send_datagram("still there".into()).unwrap();
    let datagram = within(DEADLINE, "a datagram", theirs.recv_datagram()).await;
    assert_eq!(datagram.unwrap(), "still there");
    upstream.drain();
    within(DEADLINE, "the drain of a GOAWAY", other.draining()).await;
}

#[tokio::test]
async fn a_killed_master_stops_nothing() {
    let mut cluster = Cluster::new();
    cluster.add("open", "echo:", false);
    cluster.add_with_token("closed", "echo:");
    let mut cluster = cluster.start();
    let token = std::fs::read_to_string(cluster.session_token("closed")).unwrap();
    let native = cluster.native();
    let old = native.open("/open").await;
    echo(&old, b"before").await.unwrap();

    cluster.kill_master();
    echo(&old, b"the old session goes on").await.unwrap();
    let new = native.open("/open").await;
    echo(&new, b"a new one opens").await.unwrap();
    let (authorised, _) = native
        .ask(Ask {
            path: "/closed",
            bearer: Some(token.trim()),
            ..Ask::default()
        })
        .await
        .unwrap();
    echo(&authorised, b"also with a token").await.unwrap();
    // Heartbeats fail meanwhile; what is live is not touched by that.
    let over = tokio::time::timeout(Duration::from_secs(4), old.closed()).await;
    assert!(over.is_err(), "{over:?}");
    echo(&old, b"and goes on").await.unwrap();
}
