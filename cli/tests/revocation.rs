//! What is revoked while sessions carry traffic is closed, all of it and soon, and nothing else is.

#![allow(
    clippy::unwrap_used,
    reason = "it is test code, outside of test functions"
)]

mod support;

use std::time::{Duration, Instant};

use support::{
    client::{Native, echo, within},
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

#[tokio::test(flavor = "multi_thread")]
async fn a_subject_and_a_relay_that_are_revoked_under_traffic_lose_all_sessions_and_nobody_else_does()
 {
    let mut cluster = Cluster::new();
    cluster.add("open", "echo:", false);
    cluster.add_with_token("closed", "echo:");
    cluster.add_service_only("second");
    cluster.add_relay("exit-2", "second", "echo:", &[]);
    cluster.set("gateway", "sessions_per_ip = 1000");
    cluster.set("gateway", "webtransport.handshake_rate_per_ip = 5000");
    let cluster = cluster.start();
    let native = cluster.native();
    let operator = cluster.operator_token("operator");
    let token = cluster.token("closed", "tab", "10m");
    let mut others = busy(&native, "/open").await;
    let of_relay = busy(&native, "/second").await;
    let of_subject = busy(&native, &format!("/closed?token={token}")).await;

    for (revoke, sessions, code) in [
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
        let revoked = Instant::now();
        let done = cluster.operate(&operator, revoke);
        assert!(done.status.success(), "{}", stderr(&done));
        let took = all_close(sessions, code, revoked).await;
        println!("all closed {took:?} after the command began");
        assert!(took < REVOKED_WITHIN);
    }
    let ended = others.try_join_next();
    assert!(ended.is_none(), "a session of others ended: {ended:?}");
}
