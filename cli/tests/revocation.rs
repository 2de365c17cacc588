//! What is revoked while sessions carry traffic is closed, all of it and soon, and nothing else is.

#![allow(
    clippy::unwrap_used,
    reason = "it is test code, outside of test functions"
)]

mod support;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use support::{
    client::{Ask, Native, echo, within},
    cluster::Cluster,
    stderr,
};
use tokio::task::JoinSet;
use wavry_proto::session::close_code;
use wavry_transport::session::{Closed, Session as _};

/// Within which what was revoked is closed everywhere.
const REVOKED_WITHIN: Duration = Duration::from_secs(5);
/// Sessions of each kind.
const SESSIONS: usize = 30;

/// Sessions that send and receive until they are closed, each with the code that it is closed with, and
/// when.
async fn busy(native: &Native, path: &str) -> JoinSet<(u32, Instant)> {
    let mut sessions = JoinSet::new();
    for _ in 0..SESSIONS {
        let session = native.open(path).await;
        echo(&session, b"it carries").await.unwrap();
        sessions.spawn(async move {
            let traffic = async {
                loop {
                    let datagram = bytes::Bytes::from_static(b"on and on");
                    let _ = session.send_datagram(datagram);
                    let _ = session.recv_datagram().await;
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            let closed = tokio::select! {
                closed = session.closed() => closed,
                () = traffic => unreachable!("it goes on"),
            };
            match closed {
                Closed::Peer(close) => (close.code, Instant::now()),
                other => panic!("{other}"),
            }
        });
    }
    sessions
}

/// All of them are closed with `code`; how long after `revoked` the last one was.
async fn all_close(sessions: JoinSet<(u32, Instant)>, code: u32, revoked: Instant) -> Duration {
    let all = within(REVOKED_WITHIN, "the close of all", sessions.join_all()).await;
    assert!(all.iter().all(|(with, _)| *with == code), "{all:?}");
    let last = all.iter().map(|(_, at)| *at).max().unwrap();
    last - revoked
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.add("open", "echo:", false);
    cluster.add_with_token("closed", "echo:");
    cluster.add_service_only("second");
    cluster.add_relay("exit-2", "second", "echo:", &[]);
    cluster.set("gateway", "sessions_per_ip = 1000");
    cluster.set("gateway", "webtransport.handshake_rate_per_ip = 5000");
    cluster.start()
}

fn revoke(cluster: &Cluster, operator: &Path, what: &[&str]) -> Instant {
    let began = Instant::now();
    let done = cluster.operate(operator, what);
    assert!(done.status.success(), "{}", stderr(&done));
    began
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subject_and_a_relay_that_are_revoked_under_traffic_lose_all_sessions_at_each_gateway_and_nobody_else_does()
 {
    let mut cluster = cluster();
    let gateways = [cluster.native(), cluster.start_gateway("edge-2")];
    let operator = cluster.operator_token("operator");
    let token = cluster.token("closed", "tab", "10m");
    let (mut others, mut of_relay, mut of_subject) = (Vec::new(), Vec::new(), Vec::new());
    for gateway in &gateways {
        others.push(busy(gateway, "/open").await);
        of_relay.push(busy(gateway, "/second").await);
        of_subject.push(busy(gateway, &format!("/closed?token={token}")).await);
    }

    for (what, sessions, code) in [
        (
            ["token", "revoke", "--subject", "tester"].as_slice(),
            of_subject,
            close_code::TOKEN_REVOKED,
        ),
        (
            ["node", "revoke", "exit-2"].as_slice(),
            of_relay,
            close_code::RELAY_LOST,
        ),
    ] {
        let began = revoke(&cluster, &operator, what);
        for (gateway, sessions) in sessions.into_iter().enumerate() {
            let took = all_close(sessions, code, began).await;
            println!("{what:?}: all closed at gateway {gateway} {took:?} after the command began");
            assert!(took < REVOKED_WITHIN);
        }
    }
    for others in &mut others {
        let ended = others.try_join_next();
        assert!(ended.is_none(), "a session of others ended: {ended:?}");
    }
}

/// A gateway that was revoked may be in the hands of somebody who has it take no notice: it is the relays that
/// cut it off.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_revoked_is_cut_off_by_the_relays_and_the_other_gateway_goes_on() {
    let mut cluster = cluster();
    let (first, second) = (cluster.native(), cluster.start_gateway("edge-2"));
    let operator = cluster.operator_token("operator");
    let (mut others, of_revoked) = (busy(&first, "/open").await, busy(&second, "/open").await);
    let began = revoke(&cluster, &operator, &["node", "revoke", "edge-2"]);
    let took = all_close(of_revoked, close_code::RELAY_LOST, began).await;
    println!("all closed {took:?} after the command began");
    assert!(took < REVOKED_WITHIN);
    let asked = second.status(Ask {
        path: "/open",
        ..Ask::default()
    });
    assert_ne!(asked.await, 200, "no relay takes a session of it");
    let ended = others.try_join_next();
    assert!(ended.is_none(), "a session of the other ended: {ended:?}");
}
