//! Sessions that share a connection do not hold each other up.

use std::time::Duration;

use bytes::Bytes;
use wavry_transport::{
    mesh::Limits,
    session::{RecvStream, SendStream, Session},
};

use crate::nodes::{Cluster, one_connection, session};

/// Carries `bytes` over streams of 16 MiB, one after the other.
async fn carry(from: &impl Session, to: &impl Session, bytes: usize) {
    const STREAM: usize = 16 * 1024 * 1024;
    static ZEROS: [u8; 65536] = [0; 65536];
    for _ in 0..bytes / STREAM {
        let writing = async {
            let mut send = from.open_uni().await.unwrap();
            for _ in 0..STREAM / ZEROS.len() {
                send.write(Bytes::from_static(&ZEROS)).await.unwrap();
            }
            send.finish().unwrap();
        };
        let reading = async {
            let mut recv = to.accept_uni().await.unwrap();
            let mut read = 0;
            while let Some(chunk) = recv.read().await.unwrap() {
                read += chunk.len();
            }
            assert_eq!(read, STREAM);
        };
        tokio::join!(writing, reading);
    }
}

/// Writes to new streams until nothing more goes.
async fn stuff(session: &impl Session) {
    let mut streams = Vec::new();
    let stuffing = async {
        loop {
            let mut send = session.open_uni().await.unwrap();
            send.write(Bytes::from(vec![0; 100_000])).await.unwrap();
            streams.push(send);
        }
    };
    let _ = tokio::time::timeout(Duration::from_millis(500), stuffing).await;
    // Dropped, they would be reset and their credit returned.
    std::mem::forget(streams);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_never_read_or_accept_do_not_hold_another_up() {
    let cluster = Cluster::new();
    let a = cluster.node_with("a", one_connection());
    let b = cluster.node("b");
    let (mover, mover_there) = session(&a, "b", &b).await;
    let mut stalled = Vec::new();
    for _ in 0..12 {
        // More than the connection's send buffer could hold, were it to hold any of it.
        let pair = session(&a, "b", &b).await;
        stuff(&pair.0).await;
        stalled.push(pair);
    }
    let moved = carry(&mover, &mover_there, 128 * 1024 * 1024);
    tokio::time::timeout(Duration::from_secs(60), moved)
        .await
        .expect("a session that reads must move");
}

#[tokio::test]
async fn a_session_cannot_open_more_streams_than_its_peer_accepts_and_another_can() {
    let cluster = Cluster::new();
    let limits = Limits {
        session_streams: 20,
        ..one_connection()
    };
    let a = cluster.node_with("a", limits.clone());
    let b = cluster.node_with("b", limits);
    let (one, one_there) = session(&a, "b", &b).await;
    let (two, two_there) = session(&a, "b", &b).await;
    let mut open = Vec::new();
    let opening = async {
        loop {
            open.push(one.open_bi().await.unwrap());
        }
    };
    let stuck = tokio::time::timeout(Duration::from_millis(500), opening).await;
    assert!(stuck.is_err());
    assert_eq!(open.len(), 20);
    for _ in 0..100 {
        let mut uni = two.open_uni().await.unwrap();
        uni.finish().unwrap();
        assert_eq!(two_there.accept_uni().await.unwrap().read().await, Ok(None));
    }
    // Ended on both sides, streams make room.
    open.clear();
    for _ in 0..20 {
        drop(one_there.accept_bi().await.unwrap());
    }
    for _ in 0..20 {
        open.push(one.open_bi().await.unwrap());
    }
}

#[tokio::test]
async fn credit_of_streams_that_were_reset_or_stopped_returns() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node("a"), cluster.node("b"));
    let (here, there) = session(&a, "b", &b).await;
    // Far more than a window in all, little of it read.
    for round in 0..400u32 {
        let mut send = here.open_uni().await.unwrap();
        send.write(Bytes::from(vec![0; 50_000])).await.unwrap();
        match round % 4 {
            0 => send.reset(round),
            1 => send.finish().unwrap(),
            2 => drop(there.accept_uni().await.unwrap()),
            _ => {
                let mut recv = there.accept_uni().await.unwrap();
                let _ = recv.read().await.unwrap();
                recv.stop(round);
                assert_eq!(send.stopped().await, Some(round));
            }
        }
        if round % 4 == 1 {
            drop(there.accept_uni().await.unwrap());
        }
    }
    // All of a window is there again: it can be written to a stream that nobody reads.
    let mut send = here.open_uni().await.unwrap();
    let window = Limits::default().session_window as usize;
    let writing = send.write(Bytes::from(vec![0; window / 2]));
    tokio::time::timeout(Duration::from_secs(10), writing)
        .await
        .expect("at least half of a window is granted when all of it is consumed")
        .unwrap();
}
