//! Sessions between two nodes.

use bytes::Bytes;
use wavry_proto::session::{Header, Response};
use wavry_transport::{
    mesh::OpenError,
    session::{Close, Closed, ReadError, RecvStream, SendStream, Session, WriteError},
};

use crate::nodes::{Cluster, id, one_connection, request, session};

pub(crate) async fn read_all(recv: &mut impl RecvStream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(chunk) = recv.read().await.unwrap() {
        all.extend_from_slice(&chunk);
    }
    all
}

#[tokio::test]
async fn a_session_is_what_the_peer_answers() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node("a"), cluster.node("b"));
    let to = id("b");
    let asked = request("/echo?x=1");
    let answer = Response {
        status: 200,
        subprotocol: Some("b".into()),
        headers: vec![Header {
            name: "x-answer".into(),
            value: "yes".into(),
        }],
    };
    let (opened, _accepted) = tokio::join!(a.open(&to, asked.clone()), async {
        let requested = b.accept().await.unwrap();
        assert_eq!(requested.open(), &asked);
        assert_eq!(requested.peer(), &id("a"));
        requested.accept(answer.clone()).await.unwrap()
    });
    assert_eq!(opened.unwrap().1, answer);
}

#[tokio::test]
async fn a_refused_session_has_the_peers_status_and_an_unanswered_one_503() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node("a"), cluster.node("b"));
    let to = id("b");
    let (opened, ()) = tokio::join!(a.open(&to, request("/")), async {
        let requested = b.accept().await.unwrap();
        requested.reject(Response::status(404)).await;
    });
    assert!(matches!(opened, Err(OpenError::Rejected(answer)) if answer.status == 404));
    let (opened, ()) = tokio::join!(a.open(&to, request("/")), async {
        drop(b.accept().await.unwrap());
    });
    assert!(matches!(opened, Err(OpenError::Rejected(answer)) if answer.status == 503));
}

#[tokio::test]
async fn streams_of_both_kinds_carry_bytes_both_ways() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node("a"), cluster.node("b"));
    let (here, there) = session(&a, "b", &b).await;
    for (opener, accepter) in [(&here, &there), (&there, &here)] {
        let (mut send, mut recv) = opener.open_bi().await.unwrap();
        send.write(Bytes::from_static(b"question")).await.unwrap();
        send.finish().unwrap();
        let (mut back, mut asked) = accepter.accept_bi().await.unwrap();
        assert_eq!(read_all(&mut asked).await, b"question");
        back.write(Bytes::from_static(b"answer")).await.unwrap();
        back.finish().unwrap();
        assert_eq!(read_all(&mut recv).await, b"answer");

        let mut uni = opener.open_uni().await.unwrap();
        let writing = async {
            // More than a session's window.
            uni.write(Bytes::from(vec![7; 3_000_000])).await.unwrap();
            uni.finish().unwrap();
        };
        let reading = async {
            let mut recv = accepter.accept_uni().await.unwrap();
            read_all(&mut recv).await
        };
        let ((), read) = tokio::join!(writing, reading);
        assert!(read == vec![7; 3_000_000]);
    }
}

#[tokio::test]
async fn codes_of_reset_and_stop_arrive_as_given() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node("a"), cluster.node("b"));
    let (here, there) = session(&a, "b", &b).await;
    for code in [0, 42, u32::MAX] {
        let (mut send, mut recv) = here.open_bi().await.unwrap();
        send.write(Bytes::from_static(b"half")).await.unwrap();
        let (mut back, mut asked) = there.accept_bi().await.unwrap();
        assert_eq!(asked.read().await.unwrap().unwrap(), "half");
        send.reset(code);
        assert_eq!(asked.read().await, Err(ReadError::Reset(code)));
        recv.stop(code);
        assert_eq!(back.stopped().await, Some(code));
        assert_eq!(
            back.write(Bytes::from_static(b"late")).await,
            Err(WriteError::Stopped(code))
        );
    }
}

#[tokio::test]
async fn a_stream_dropped_half_written_is_reset_and_one_dropped_unread_is_stopped() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node("a"), cluster.node("b"));
    let (here, there) = session(&a, "b", &b).await;
    let (mut send, recv) = here.open_bi().await.unwrap();
    send.write(Bytes::from_static(b"half")).await.unwrap();
    let (mut back, mut asked) = there.accept_bi().await.unwrap();
    drop(recv);
    assert_eq!(back.stopped().await, Some(0));
    assert_eq!(asked.read().await.unwrap().unwrap(), "half");
    drop(send);
    assert_eq!(asked.read().await, Err(ReadError::Reset(0)));
}

#[tokio::test]
async fn datagrams_reach_their_session_and_no_other() {
    let cluster = Cluster::new();
    let a = cluster.node_with("a", one_connection());
    let b = cluster.node("b");
    let (one, one_there) = session(&a, "b", &b).await;
    let (two, two_there) = session(&a, "b", &b).await;
    one.send_datagram(Bytes::from_static(b"one")).unwrap();
    two.send_datagram(Bytes::from_static(b"two")).unwrap();
    assert_eq!(one_there.recv_datagram().await.unwrap(), "one");
    assert_eq!(two_there.recv_datagram().await.unwrap(), "two");
    let largest = vec![1; two_there.max_datagram_size()];
    assert!(
        largest.len() >= 1224,
        "Firefox sends 1,224 bytes, this takes {}",
        largest.len()
    );
    two_there.send_datagram(largest.clone().into()).unwrap();
    assert_eq!(two.recv_datagram().await.unwrap(), largest);
    let over = vec![1; largest.len() + 1];
    assert!(two_there.send_datagram(over.into()).is_err());
}

#[tokio::test]
async fn drain_and_close_reach_the_other_side() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node("a"), cluster.node("b"));
    let (here, there) = session(&a, "b", &b).await;
    here.drain();
    there.draining().await;
    there.drain();
    here.draining().await;
    let close = Close::new(77, "done");
    there.close(close.clone());
    there.close(Close::new(78, "too late"));
    assert_eq!(here.closed().await, Closed::Peer(close.clone()));
    assert_eq!(there.closed().await, Closed::Here(close.clone()));
    assert_eq!(here.open_uni().await.err(), Some(Closed::Peer(close)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_a_session_that_is_closed_end_with_it_and_not_by_a_reset_or_stop() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node("a"), cluster.node("b"));
    for _ in 0..20 {
        let (here, there) = session(&a, "b", &b).await;
        let (mut send, recv) = there.open_bi().await.unwrap();
        send.write(Bytes::from_static(b"x")).await.unwrap();
        let (mut seen_send, mut seen) = here.accept_bi().await.unwrap();
        assert_eq!(seen.read().await.unwrap().unwrap(), "x");
        let close = Close::new(77, "done");
        // Waiting already, as a mirror is.
        let (read, stopped, ()) = tokio::join!(seen.read(), seen_send.stopped(), async {
            there.close(close.clone());
            drop((send, recv));
        });
        assert_eq!(read, Err(ReadError::Session(Closed::Peer(close))));
        assert_eq!(stopped, None);
    }
}

#[tokio::test]
async fn a_close_is_known_to_the_peer_even_when_the_endpoint_closes_next() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node("a"), cluster.node("b"));
    let (here, there) = session(&a, "b", &b).await;
    here.close(Close::new(5, "bye"));
    a.close().await;
    assert_eq!(there.closed().await, Closed::Peer(Close::new(5, "bye")));
}

#[tokio::test]
async fn a_session_left_open_is_lost_when_the_endpoint_closes() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node("a"), cluster.node("b"));
    let (here, there) = session(&a, "b", &b).await;
    a.close().await;
    assert!(matches!(there.closed().await, Closed::Lost(_)));
    assert!(matches!(here.closed().await, Closed::Lost(_)));
}
