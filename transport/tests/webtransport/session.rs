//! Our client and our server.

use std::time::Duration;

use bytes::Bytes;
use wavry_proto::h3::frame::kind;
use wavry_transport::{
    session::{
        Closed, DatagramError, Header, ReadError, RecvStream as _, Request, Response,
        SendStream as _, Session as _, WriteError,
    },
    webtransport::{ConnectError, Limits},
};

use crate::{
    raw::{Raw, frames},
    support::{Service, close, echo, read_all, request, soon, write_all},
};

#[tokio::test]
async fn bidirectional_streams_carry_bytes_both_ways_whoever_opens_them() {
    let service = Service::start(Limits::default());
    let (client, server) = soon(service.pair()).await;
    for (opener, acceptor) in [(&client, &server), (&server, &client)] {
        let (mut send, mut recv) = soon(opener.open_bi()).await.unwrap();
        let (mut peer_send, mut peer_recv) = soon(acceptor.accept_bi()).await.unwrap();
        let sent = vec![7; 300_000];
        let (_, got) = tokio::join!(write_all(&mut send, &sent), read_all(&mut peer_recv));
        assert!(got == sent);
        write_all(&mut peer_send, b"answer").await;
        assert_eq!(read_all(&mut recv).await, b"answer");
    }
}

#[tokio::test]
async fn unidirectional_streams_carry_bytes_whoever_opens_them() {
    let service = Service::start(Limits::default());
    let (client, server) = soon(service.pair()).await;
    for (opener, acceptor) in [(&client, &server), (&server, &client)] {
        let mut send = soon(opener.open_uni()).await.unwrap();
        let mut recv = soon(acceptor.accept_uni()).await.unwrap();
        write_all(&mut send, b"word").await;
        assert_eq!(read_all(&mut recv).await, b"word");
        assert_eq!(soon(send.stopped()).await, None);
    }
}

#[tokio::test]
async fn what_arrived_in_several_packets_is_read_as_one_chunk() {
    let service = Service::start(Limits::default());
    let (client, server) = soon(service.pair()).await;
    let mut send = soon(client.open_uni()).await.unwrap();
    let sent: Vec<u8> = (0..20_000_u32).map(|n| (n % 251) as u8).collect();
    write_all(&mut send, &sent).await;
    // Acknowledged to its end, all of it is there.
    assert_eq!(soon(send.stopped()).await, None);
    let mut recv = soon(server.accept_uni()).await.unwrap();
    let (mut got, mut chunks) = (Vec::new(), 0);
    while let Some(chunk) = soon(recv.read()).await.unwrap() {
        got.extend_from_slice(&chunk);
        chunks += 1;
    }
    assert!(got == sent);
    // The first is what came with the header.
    assert!(chunks <= 2, "{chunks} chunks");
}

#[tokio::test]
async fn a_stream_without_a_byte_is_seen_by_the_peer() {
    let service = Service::start(Limits::default());
    let (client, server) = soon(service.pair()).await;
    let (_send, mut recv) = soon(client.open_bi()).await.unwrap();
    let (mut peer_send, _peer_recv) = soon(server.accept_bi()).await.unwrap();
    write_all(&mut peer_send, b"greeting").await;
    assert_eq!(read_all(&mut recv).await, b"greeting");
}

#[tokio::test]
async fn datagrams_go_both_ways_and_those_too_large_are_refused() {
    let service = Service::start(Limits::default());
    let (client, server) = soon(service.pair()).await;
    for (sender, receiver) in [(&client, &server), (&server, &client)] {
        let max = sender.max_datagram_size();
        assert!(max > 1000, "max is {max}");
        sender.send_datagram(Bytes::from(vec![5; max])).unwrap();
        assert_eq!(soon(receiver.recv_datagram()).await.unwrap(), vec![5; max]);
        let refused = sender
            .send_datagram(Bytes::from(vec![5; 70_000]))
            .unwrap_err();
        assert!(matches!(
            refused,
            DatagramError::TooLarge { len: 70_000, .. }
        ));
    }
}

#[tokio::test]
async fn reset_and_stop_codes_arrive_exactly() {
    let service = Service::start(Limits::default());
    let (client, server) = soon(service.pair()).await;
    for code in [0, 29, 30, 0x1234_5678, u32::MAX] {
        let (mut send, mut recv) = soon(client.open_bi()).await.unwrap();
        let (mut peer_send, mut peer_recv) = soon(server.accept_bi()).await.unwrap();
        send.reset(code);
        assert_eq!(soon(peer_recv.read()).await, Err(ReadError::Reset(code)));
        recv.stop(code);
        assert_eq!(soon(peer_send.stopped()).await, Some(code));
        let stopped = soon(peer_send.write(Bytes::from_static(b"x"))).await;
        assert_eq!(stopped, Err(WriteError::Stopped(code)));
    }
}

#[tokio::test]
async fn a_stream_dropped_half_written_never_looks_complete() {
    let service = Service::start(Limits::default());
    let (client, server) = soon(service.pair()).await;
    let mut send = soon(client.open_uni()).await.unwrap();
    send.write(Bytes::from_static(b"half")).await.unwrap();
    // A reset overtakes what was written, the stream's header too.
    let mut recv = soon(server.accept_uni()).await.unwrap();
    drop(send);
    let end = loop {
        match soon(recv.read()).await {
            Ok(Some(_)) => {}
            end => break end,
        }
    };
    assert_eq!(end, Err(ReadError::Reset(0)));
}

#[tokio::test]
async fn close_code_and_reason_reach_the_peer_from_either_side() {
    let service = Service::start(Limits::default());
    let reason = "ü".repeat(512);
    for from_client in [true, false] {
        let (client, server) = soon(service.pair()).await;
        let (closer, other) = if from_client {
            (&client, &server)
        } else {
            (&server, &client)
        };
        let (mut send, mut recv) = soon(other.open_bi()).await.unwrap();
        send.write(Bytes::from_static(b"x")).await.unwrap();
        closer.close(close(0xdead_beef, &reason));
        closer.close(close(1, "too late"));
        let word = close(0xdead_beef, &reason);
        assert_eq!(soon(other.closed()).await, Closed::Peer(word.clone()));
        assert_eq!(soon(closer.closed()).await, Closed::Here(word.clone()));
        assert_eq!(
            soon(recv.read()).await,
            Err(ReadError::Session(Closed::Peer(word.clone())))
        );
        assert_eq!(
            soon(send.write(Bytes::from_static(b"x"))).await,
            Err(WriteError::Session(Closed::Peer(word.clone())))
        );
        assert_eq!(
            soon(other.accept_uni()).await.err(),
            Some(Closed::Peer(word.clone()))
        );
        assert_eq!(soon(other.open_bi()).await.err(), Some(Closed::Peer(word)));
    }
}

#[tokio::test]
async fn dropping_a_session_closes_it_with_code_0() {
    let service = Service::start(Limits::default());
    let (client, server) = soon(service.pair()).await;
    drop(client);
    assert_eq!(soon(server.closed()).await, Closed::Peer(close(0, "")));
}

#[tokio::test]
async fn a_drain_is_seen_by_the_peer_and_the_session_goes_on() {
    let service = Service::start(Limits::default());
    let (client, server) = soon(service.pair()).await;
    for (asker, other) in [(&client, &server), (&server, &client)] {
        asker.drain();
        asker.drain();
        soon(other.draining()).await;
        let mut send = soon(asker.open_uni()).await.unwrap();
        write_all(&mut send, b"still here").await;
        let mut recv = soon(other.accept_uni()).await.unwrap();
        assert_eq!(read_all(&mut recv).await, b"still here");
        asker.send_datagram(Bytes::from_static(b"d")).unwrap();
        assert_eq!(soon(other.recv_datagram()).await.unwrap(), "d");
    }
    client.close(close(3, "done"));
    assert_eq!(soon(server.closed()).await, Closed::Peer(close(3, "done")));
}

#[tokio::test]
async fn a_draining_server_tells_its_clients_and_takes_no_more_sessions() {
    let service = Service::start(Limits::default());
    let (client, server) = soon(service.pair()).await;
    service.server.drain();
    soon(client.draining()).await;
    let again = service.client();
    for refused in [
        soon(service.connect(&again, request("/"))).await,
        soon(again.open_beside(&client, request("/"))).await,
    ] {
        assert!(matches!(refused, Err(ConnectError::Connection(_))));
    }
    let mut send = soon(client.open_uni()).await.unwrap();
    write_all(&mut send, b"still here").await;
    assert_eq!(
        read_all(&mut soon(server.accept_uni()).await.unwrap()).await,
        b"still here"
    );
}

#[tokio::test]
async fn a_peer_has_no_more_streams_open_than_granted() {
    let service = Service::start(Limits {
        streams: 40,
        ..Limits::default()
    });
    let (client, server) = soon(service.pair()).await;
    let mut open = Vec::new();
    for _ in 0..40 {
        open.push(soon(client.open_uni()).await.unwrap());
    }
    let one_more = client.open_uni();
    tokio::pin!(one_more);
    let wait = Duration::from_millis(300);
    // The three that HTTP/3 may have on top were granted as well.
    let mut extra = Vec::new();
    while let Ok(stream) = tokio::time::timeout(wait, &mut one_more).await {
        extra.push(stream.unwrap());
        one_more.set(client.open_uni());
    }
    assert!(extra.len() <= 3, "{} more", extra.len());
    // QUIC grants new streams in batches of an eighth.
    for stream in &mut open {
        stream.finish().unwrap();
    }
    for _ in 0..10 {
        let mut ended = soon(server.accept_uni()).await.unwrap();
        assert_eq!(read_all(&mut ended).await, b"");
    }
    soon(one_more).await.unwrap();
}

#[tokio::test]
async fn request_and_answer_arrive_as_they_were_sent() {
    let service = Service::start(Limits::default());
    let header = |name: &str, value: &str| Header {
        name: name.into(),
        value: value.into(),
    };
    let request = Request {
        authority: "a.example:4433".into(),
        path: "/chat?room=1&x=%2e".into(),
        origin: Some("https://a.example".into()),
        headers: vec![
            header("x-one", "1"),
            header("x-one", "2"),
            header("cookie", "ä=b"),
        ],
        subprotocols: vec!["v1".into(), "v\"2\"".into()],
    };
    let mut answer = Response::status(204);
    answer.subprotocol = Some("v\"2\"".into());
    answer.headers = vec![header("server", "test")];
    let client = service.client();
    let (connected, asked) = tokio::join!(soon(service.connect(&client, request.clone())), async {
        let requested = soon(service.requested()).await;
        let asked = requested.request().clone();
        (requested.accept(answer.clone()).await.unwrap(), asked)
    });
    assert_eq!(asked.1, request);
    assert_eq!(connected.unwrap().1, answer);
}

#[tokio::test]
async fn a_refusal_reaches_the_client_with_status_and_headers() {
    let service = Service::start(Limits::default());
    let client = service.client();
    for status in [300, 401, 404, 599] {
        let mut answer = Response::status(status);
        answer.headers = vec![Header {
            name: "retry-after".into(),
            value: "7".into(),
        }];
        let (connected, ()) = tokio::join!(soon(service.connect(&client, request("/"))), async {
            soon(service.requested()).await.reject(answer.clone()).await;
        });
        match connected {
            Err(ConnectError::Rejected(response)) => assert_eq!(response, answer),
            other => panic!("{:?}", other.map(|(_, response)| response)),
        }
    }
}

#[tokio::test]
async fn a_request_dropped_unanswered_is_503() {
    let service = Service::start(Limits::default());
    let client = service.client();
    let (connected, ()) = tokio::join!(soon(service.connect(&client, request("/"))), async {
        drop(soon(service.requested()).await);
    });
    assert!(matches!(connected, Err(ConnectError::Rejected(r)) if r.status == 503));
}

#[tokio::test]
async fn sessions_on_one_connection_do_not_see_each_other() {
    let service = Service::start(Limits::default());
    let client = service.client();
    let (one, server_one) = soon(service.pair()).await;
    let (two, server_two) = tokio::join!(client.open_beside(&one, request("/two")), async {
        soon(service.requested())
            .await
            .accept(Response::ok())
            .await
            .unwrap()
    });
    let two = two.unwrap().0;
    for (session, server, word) in [(&one, &server_one, b"1"), (&two, &server_two, b"2")] {
        let (mut send, _recv) = soon(session.open_bi()).await.unwrap();
        write_all(&mut send, word).await;
        let (_send, mut recv) = soon(server.accept_bi()).await.unwrap();
        assert_eq!(read_all(&mut recv).await, word);
        session.send_datagram(Bytes::copy_from_slice(word)).unwrap();
        assert_eq!(soon(server.recv_datagram()).await.unwrap(), &word[..]);
    }
    one.close(close(1, "one"));
    assert_eq!(
        soon(server_one.closed()).await,
        Closed::Peer(close(1, "one"))
    );
    soon(one.closed()).await;
    let mut send = soon(server_two.open_uni()).await.unwrap();
    write_all(&mut send, b"two lives").await;
    assert_eq!(
        read_all(&mut soon(two.accept_uni()).await.unwrap()).await,
        b"two lives"
    );
}

#[tokio::test]
async fn one_session_more_than_allowed_is_429() {
    let service = Service::start(Limits {
        sessions_per_connection: 1,
        ..Limits::default()
    });
    let (one, _server) = soon(service.pair()).await;
    let refused = soon(service.client().open_beside(&one, request("/"))).await;
    assert!(matches!(refused, Err(ConnectError::Rejected(r)) if r.status == 429));
}

#[tokio::test]
async fn a_lost_connection_loses_the_session() {
    let service = Service::start(Limits::default());
    let (client, _server) = soon(service.pair()).await;
    let (mut send, mut recv) = soon(client.open_bi()).await.unwrap();
    service.server.close().await;
    assert!(matches!(soon(client.closed()).await, Closed::Lost(_)));
    let read = soon(recv.read()).await;
    assert!(
        matches!(read, Err(ReadError::Session(Closed::Lost(_)))),
        "{read:?}"
    );
    let written = soon(send.write(Bytes::from_static(b"x"))).await;
    assert!(
        matches!(written, Err(WriteError::Session(Closed::Lost(_)))),
        "{written:?}"
    );
    assert!(service.server.accept().await.is_none());
}

#[tokio::test]
async fn a_peer_that_falls_silent_is_lost_after_the_idle_timeout() {
    let service = Service::start(Limits {
        idle_timeout: Duration::from_millis(300),
        ..Limits::default()
    });
    let identity = &service.identity;
    // The smaller of both timeouts holds, so this client keeps alive too rarely.
    let client = wavry_transport::webtransport::Client::new(
        crate::support::loopback(),
        identity.client_tls(),
        Limits::default(),
    )
    .unwrap();
    let (session, server) = tokio::join!(soon(service.connect(&client, request("/"))), async {
        soon(service.requested())
            .await
            .accept(Response::ok())
            .await
            .unwrap()
    });
    let _session = session.unwrap();
    assert!(matches!(soon(server.closed()).await, Closed::Lost(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_at_once_are_byte_exact() {
    let service = Service::start(Limits::default());
    let (client, server) = soon(service.pair()).await;
    let server = tokio::spawn(echo(server));
    let client = std::sync::Arc::new(client);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..400u32 {
        let client = client.clone();
        tasks.spawn(async move {
            let (mut send, mut recv) = client.open_bi().await.unwrap();
            let sent: Vec<u8> = (0..40_000).map(|i: u32| (i * 31 + n) as u8).collect();
            let (_, got) = tokio::join!(write_all(&mut send, &sent), read_all(&mut recv));
            assert!(got == sent, "stream {n}");
        });
    }
    while let Some(done) = soon(tasks.join_next()).await {
        done.unwrap();
    }
    client.close(close(9, "all done"));
    assert_eq!(
        soon(server).await.unwrap(),
        Closed::Peer(close(9, "all done"))
    );
}

#[tokio::test]
async fn a_goaway_of_a_client_drains_its_sessions_and_those_it_still_asks_for() {
    let service = Service::start(Limits::default());
    let mut raw = Raw::connect(&service).await;
    let asked = raw.ask("/").await;
    let requested = soon(service.requested()).await;
    let session = requested.accept(Response::ok()).await.unwrap();
    raw.control(&frames(&[(kind::GOAWAY, b"\0")])).await;
    soon(session.draining()).await;
    let _again = raw.ask("/").await;
    let requested = soon(service.requested()).await;
    let another = requested.accept(Response::ok()).await.unwrap();
    soon(another.draining()).await;
    drop(asked);
}
