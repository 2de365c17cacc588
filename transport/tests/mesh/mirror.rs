//! Two mesh sessions joined by a mirror: left – middle – right.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::task::JoinHandle;
use wavry_transport::{
    mesh,
    mirror::{Carried, Ended, Moved, Options, Traffic, mirror},
    session::{Close, Closed, ReadError, RecvStream, SendStream, Session, WriteError, close_code},
};

use crate::{
    nodes::{Cluster, session},
    sessions::read_all,
};

struct Joined {
    left: mesh::Session,
    right: mesh::Session,
    mirror: JoinHandle<Ended>,
    traffic: Arc<Traffic>,
    endpoints: [mesh::Endpoint; 3],
}

async fn joined(idle_timeout: Duration) -> Joined {
    let cluster = Cluster::new();
    let endpoints = [
        cluster.node("left"),
        cluster.node("middle"),
        cluster.node("right"),
    ];
    let (left, a) = session(&endpoints[0], "middle", &endpoints[1]).await;
    let (b, right) = session(&endpoints[1], "right", &endpoints[2]).await;
    let options = Options {
        idle_timeout,
        a_lost: Close::new(1001, "left lost"),
        b_lost: Close::new(1002, "right lost"),
    };
    let traffic = Arc::<Traffic>::default();
    let counted = traffic.clone();
    let mirror = tokio::spawn(async move { mirror(&a, &b, &options, &counted).await });
    Joined {
        left,
        right,
        mirror,
        traffic,
        endpoints,
    }
}

const LONG: Duration = Duration::from_secs(600);

#[tokio::test]
async fn streams_and_datagrams_cross_a_mirror_both_ways() {
    let joined = joined(LONG).await;
    for (one, other) in [(&joined.left, &joined.right), (&joined.right, &joined.left)] {
        let (mut send, mut recv) = one.open_bi().await.unwrap();
        send.write(Bytes::from_static(b"question")).await.unwrap();
        send.finish().unwrap();
        let (mut back, mut asked) = other.accept_bi().await.unwrap();
        assert_eq!(read_all(&mut asked).await, b"question");
        back.write(Bytes::from_static(b"answer")).await.unwrap();
        back.finish().unwrap();
        assert_eq!(read_all(&mut recv).await, b"answer");

        let mut uni = one.open_uni().await.unwrap();
        uni.write(Bytes::from_static(b"uni")).await.unwrap();
        uni.finish().unwrap();
        assert_eq!(
            read_all(&mut other.accept_uni().await.unwrap()).await,
            b"uni"
        );

        one.send_datagram(Bytes::from_static(b"datagram")).unwrap();
        assert_eq!(other.recv_datagram().await.unwrap(), "datagram");
    }
    // While both still live: whoever asks sees what has passed so far, and takes it once.
    let once = Carried {
        streams: 2,
        bytes: 17,
        datagrams: 1,
        datagrams_dropped: 0,
    };
    let moved = Moved {
        a_to_b: once,
        b_to_a: once,
    };
    assert_eq!(joined.traffic.take(), moved);
    assert_eq!(joined.traffic.take(), Moved::default());
    let close = Close::new(9, "enough");
    joined.left.close(close.clone());
    assert_eq!(joined.right.closed().await, Closed::Peer(close.clone()));
    let ended = joined.mirror.await.unwrap();
    assert_eq!(ended.a, Closed::Peer(close.clone()));
    assert_eq!(ended.b, Closed::Here(close));
    assert_eq!(joined.traffic.moved(), moved);
}

#[tokio::test]
async fn reset_and_stop_cross_a_mirror_with_their_codes() {
    let joined = joined(LONG).await;
    let (mut send, mut recv) = joined.left.open_bi().await.unwrap();
    send.write(Bytes::from_static(b"x")).await.unwrap();
    let (mut back, mut asked) = joined.right.accept_bi().await.unwrap();
    assert_eq!(asked.read().await.unwrap().unwrap(), "x");
    send.reset(u32::MAX);
    assert_eq!(asked.read().await, Err(ReadError::Reset(u32::MAX)));
    // The other direction is idle: a stop must cross without anything being written.
    recv.stop(7);
    assert_eq!(back.stopped().await, Some(7));

    let mut uni = joined.right.open_uni().await.unwrap();
    uni.write(Bytes::from_static(b"x")).await.unwrap();
    let mut read = joined.left.accept_uni().await.unwrap();
    assert_eq!(read.read().await.unwrap().unwrap(), "x");
    read.stop(8);
    assert_eq!(uni.stopped().await, Some(8));
    assert_eq!(
        uni.write(Bytes::from_static(b"y")).await,
        Err(WriteError::Stopped(8))
    );
}

#[tokio::test]
async fn drain_crosses_a_mirror_both_ways() {
    let joined = joined(LONG).await;
    joined.left.drain();
    joined.right.draining().await;
    joined.right.drain();
    joined.left.draining().await;
}

#[tokio::test]
async fn a_lost_side_closes_the_other_with_the_code_chosen_for_it() {
    let joined = joined(LONG).await;
    joined.endpoints[2].close().await;
    assert_eq!(
        joined.left.closed().await,
        Closed::Peer(Close::new(1002, "right lost"))
    );
    let ended = joined.mirror.await.unwrap();
    assert!(matches!(ended.b, Closed::Lost(_)));
}

#[tokio::test]
async fn a_mirror_through_which_nothing_goes_is_closed_as_idle() {
    let joined = joined(Duration::from_millis(200)).await;
    for side in [&joined.left, &joined.right] {
        assert!(
            matches!(side.closed().await, Closed::Peer(close) if close.code == close_code::IDLE)
        );
    }
}

#[tokio::test]
async fn a_reader_that_does_not_read_holds_its_writer_back() {
    let joined = joined(LONG).await;
    let mut send = joined.left.open_uni().await.unwrap();
    let writer = tokio::spawn(async move {
        let mut written = 0u64;
        loop {
            let chunk = Bytes::from_static(&[0; 65536]);
            let write = send.write(chunk);
            match tokio::time::timeout(Duration::from_millis(500), write).await {
                Ok(result) => result.unwrap(),
                Err(_) => return written,
            }
            written += 65536;
        }
    });
    let held = writer.await.unwrap();
    // Two hops, each with its session's window, and what the mirror holds in hand.
    let most = 2 * mesh::Limits::default().session_window + 2 * 65536;
    assert!(held <= most, "{held} bytes went in");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_streams_at_once_are_byte_exact() {
    const STREAMS: usize = 200;
    const CHUNK: usize = 10_000;
    const CHUNKS: usize = 32;
    let chunk = |stream: usize, n: usize| -> Bytes {
        (0..CHUNK)
            .map(|i| (stream * 31 + n * 7 + i) as u8)
            .collect::<Vec<_>>()
            .into()
    };
    let joined = joined(LONG).await;
    let right = joined.right;
    let echo = tokio::spawn(async move {
        let mut echoes = tokio::task::JoinSet::new();
        for _ in 0..STREAMS {
            let (mut send, mut recv) = right.accept_bi().await.unwrap();
            echoes.spawn(async move {
                while let Some(chunk) = recv.read().await.unwrap() {
                    send.write(chunk).await.unwrap();
                }
                send.finish().unwrap();
                // Held until the peer has everything: a session that is dropped resets.
                send.stopped().await;
            });
        }
        echoes.join_all().await;
        right
    });
    let mut streams = tokio::task::JoinSet::new();
    for stream in 0..STREAMS {
        let (mut send, mut recv) = joined.left.open_bi().await.unwrap();
        streams.spawn(async move {
            let writing = async {
                for n in 0..CHUNKS {
                    send.write(chunk(stream, n)).await.unwrap();
                }
                send.finish().unwrap();
            };
            let ((), echoed) = tokio::join!(writing, read_all(&mut recv));
            let sent: Vec<u8> = (0..CHUNKS).flat_map(|n| chunk(stream, n)).collect();
            assert!(echoed == sent, "stream {stream} differs");
        });
    }
    streams.join_all().await;
    let _right = echo.await.unwrap();
}
