//! Flow control of sessions, and how they share a connection.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::task::JoinSet;
use wavry_proto::{
    h3::{
        frame::{MessageDecoder, kind},
        settings::{Settings, id},
        stream,
    },
    session::close_code,
    webtransport::{
        capsule::{self, Capsule},
        code as wt_code,
        flow::{Initial, Kind, MAX_STREAMS},
        stream as wt_stream,
    },
};
use wavry_transport::{
    session::{Closed, ReadError, RecvStream as _, Response, SendStream as _, Session as _},
    webtransport::{Limits, Session},
};

use crate::{
    raw::{Raw, answer, frames},
    support::{Service, read_all, request, soon, write_all},
};

/// Two sessions on one connection, each seen from both ends: client's, server's.
async fn two_sessions(service: &Service) -> [(Session, Session); 2] {
    let one = soon(service.pair()).await;
    let client = service.client();
    let (two, server) = tokio::join!(client.open_beside(&one.0, request("/two")), async {
        let requested = soon(service.requested()).await;
        requested.accept(Response::ok()).await.unwrap()
    });
    [one, (two.unwrap().0, server)]
}

/// Sends more than any window on `streams` streams that nobody reads, until it is stuck.
async fn flood(session: Arc<Session>, streams: usize) -> JoinSet<()> {
    let mut senders = JoinSet::new();
    for _ in 0..streams {
        let session = session.clone();
        senders.spawn(async move {
            let Ok(mut send) = session.open_uni().await else {
                return;
            };
            let chunk = Bytes::from(vec![7; 64 * 1024]);
            while send.write(chunk.clone()).await.is_ok() {}
        });
    }
    senders
}

/// Moves `len` bytes from one end of a session to the other.
async fn moves(from: &Session, to: &Session, len: usize) {
    let sent: Vec<u8> = (0..len).map(|i| (i / 1000) as u8).collect();
    let mut send = soon(from.open_uni()).await.unwrap();
    let read = async { read_all(&mut soon(to.accept_uni()).await.unwrap()).await };
    let (_, got) = tokio::join!(write_all(&mut send, &sent), read);
    assert!(got == sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_not_read_stalls_no_other_on_its_connection() {
    let service = Service::start(Limits::default());
    for client_sends in [true, false] {
        let [one, two] = two_sessions(&service).await;
        let (flooder, _unread) = if client_sends { one } else { (one.1, one.0) };
        let flooder = Arc::new(flooder);
        // More than a connection's window at a megabyte for each stream.
        let flooding = flood(flooder.clone(), 16).await;
        let (from, to) = if client_sends {
            (&two.0, &two.1)
        } else {
            (&two.1, &two.0)
        };
        for _ in 0..8 {
            moves(from, to, 4 << 20).await;
        }
        // And the other way.
        moves(to, from, 1 << 20).await;
        drop(flooding);
    }
}

#[tokio::test]
async fn credit_goes_on_for_as_long_as_a_session_is_read() {
    let service = Service::start(Limits::default());
    let (client, server) = soon(service.pair()).await;
    // Many times the first window and the first streams, one after the other.
    for _ in 0..200 {
        moves(&client, &server, 50_000).await;
        moves(&server, &client, 50_000).await;
    }
    moves(&client, &server, 20 << 20).await;
}

#[tokio::test]
async fn streams_that_are_reset_or_stopped_cost_a_session_nothing_for_good() {
    let service = Service::start(Limits::default());
    let (client, server) = soon(service.pair()).await;
    for (from, to) in [(&client, &server), (&server, &client)] {
        for round in 0..200 {
            let mut send = soon(from.open_uni()).await.unwrap();
            // In every other round the reset comes in the same packet, or ahead of the header.
            if round % 2 == 0 {
                soon(send.write(Bytes::from(vec![1; 100_000])))
                    .await
                    .unwrap();
                let mut recv = soon(to.accept_uni()).await.unwrap();
                if round % 4 == 0 {
                    recv.stop(3);
                }
                drop(recv);
            }
            send.reset(5);
        }
        // Streams that were seen wait to be taken.
        let taking = async {
            loop {
                drop(to.accept_uni().await);
            }
        };
        let moving = async {
            let (mut send, mut recv) = soon(from.open_bi()).await.unwrap();
            let accepted = async {
                let (mut send, mut recv) = soon(to.accept_bi()).await.unwrap();
                assert_eq!(read_all(&mut recv).await.len(), 3 << 20);
                write_all(&mut send, b"all").await;
            };
            let bytes = vec![9; 3 << 20];
            tokio::join!(write_all(&mut send, &bytes), accepted);
            assert_eq!(read_all(&mut recv).await, b"all");
        };
        tokio::select! {
            () = taking => unreachable!(),
            () = moving => {}
        }
    }
}

/// A raw client that speaks the newest draft and grants this.
async fn granting(service: &Service, initial: Initial) -> (Raw, quinn::SendStream) {
    let raw = Raw::silent(service).await;
    let mut payload = Vec::new();
    Settings::webtransport(1, 16384)
        .with_initial_flow(initial)
        .encode(&mut payload);
    let control = raw
        .uni(stream::CONTROL, &frames(&[(kind::SETTINGS, &payload)]))
        .await;
    (raw, control)
}

/// A raw client's CONNECT stream.
struct Connect {
    send: quinn::SendStream,
    recv: quinn::RecvStream,
    frames: MessageDecoder,
    capsules: capsule::Decoder,
}

impl Connect {
    async fn new(raw: &Raw, service: &Service) -> (Self, Session) {
        let (send, mut recv) = raw.ask("/").await;
        let requested = soon(service.requested()).await;
        let session = requested.accept(Response::ok()).await.unwrap();
        assert_eq!(answer(&mut recv).await.status, 200);
        let mut frames = MessageDecoder::new(0);
        frames.tunnel();
        let connect = Self {
            send,
            recv,
            frames,
            capsules: capsule::Decoder::new(capsule::Flow::Enabled),
        };
        (connect, session)
    }

    fn id(&self) -> u64 {
        self.send.id().into()
    }

    async fn say(&mut self, capsule: &Capsule) {
        let mut encoded = Vec::new();
        capsule.encode(&mut encoded);
        let bytes = frames(&[(kind::DATA, &encoded)]);
        self.send.write_all(&bytes).await.unwrap();
    }

    /// The next capsule, or the code the stream is reset with.
    async fn hears(&mut self) -> Result<Capsule, u64> {
        loop {
            if let Some(capsule) = self.capsules.next().unwrap() {
                return Ok(capsule);
            }
            match soon(self.recv.read_chunk(4096, true)).await {
                Ok(Some(chunk)) => self.frames.push(&chunk.bytes),
                Ok(None) => panic!("the stream ended"),
                Err(quinn::ReadError::Reset(code)) => return Err(code.into_inner()),
                Err(error) => panic!("{error}"),
            }
            while let Some(message) = self.frames.next().unwrap() {
                let wavry_proto::h3::frame::Message::Data(content) = message else {
                    panic!("{message:?}");
                };
                self.capsules.push(&content);
            }
        }
    }
}

#[tokio::test]
async fn a_peers_credit_is_kept_to_the_byte_and_asked_for_once() {
    let service = Service::start(Limits::default());
    let initial = Initial {
        data: 10,
        bidi: 1,
        uni: 1,
    };
    let (raw, _control) = granting(&service, initial).await;
    let (mut connect, session) = Connect::new(&raw, &service).await;
    let mut send = soon(session.open_uni()).await.unwrap();
    let writing = tokio::spawn(async move {
        write_all(&mut send, &[7; 100]).await;
    });
    assert_eq!(connect.hears().await, Ok(Capsule::DataBlocked(10)));
    let header = wt_stream::header(wt_stream::UNI, connect.id());
    // Our control stream came first.
    let _settings = soon(raw.quic.accept_uni()).await.unwrap();
    let mut recv = soon(raw.quic.accept_uni()).await.unwrap();
    let mut got = vec![0; header.len() + 10];
    soon(recv.read_exact(&mut got)).await.unwrap();
    assert_eq!(got, [&header[..], &[7; 10]].concat());
    assert!(recv.read(&mut [0]).now_or_never().is_none());
    connect.say(&Capsule::MaxData(50)).await;
    assert_eq!(connect.hears().await, Ok(Capsule::DataBlocked(50)));
    connect.say(&Capsule::MaxData(1000)).await;
    assert_eq!(soon(recv.read_to_end(1000)).await.unwrap(), [7; 90]);
    soon(writing).await.unwrap();

    // And streams the same.
    let session = Arc::new(session);
    let opening = tokio::spawn({
        let session = session.clone();
        async move { session.open_uni().await.unwrap() }
    });
    assert_eq!(
        connect.hears().await,
        Ok(Capsule::StreamsBlocked(Kind::Uni, 1))
    );
    assert!(!opening.is_finished());
    connect.say(&Capsule::MaxStreams(Kind::Uni, 2)).await;
    let mut second = soon(opening).await.unwrap();
    write_all(&mut second, b"second").await;
    let mut recv = soon(raw.quic.accept_uni()).await.unwrap();
    let bytes = soon(recv.read_to_end(1000)).await.unwrap();
    assert_eq!(bytes, [&header[..], b"second"].concat());
    let _first = soon(session.open_bi()).await.unwrap();
    let second = session.open_bi();
    tokio::pin!(second);
    assert!(second.as_mut().now_or_never().is_none());
    assert_eq!(
        connect.hears().await,
        Ok(Capsule::StreamsBlocked(Kind::Bidi, 1))
    );
}

#[tokio::test]
async fn a_stream_that_is_reset_at_once_is_seen_with_its_code() {
    let service = Service::start(Limits::default());
    let (client, server) = soon(service.pair()).await;
    for (from, to) in [(&client, &server), (&server, &client)] {
        soon(from.open_uni()).await.unwrap().reset(7);
        let mut recv = soon(to.accept_uni()).await.unwrap();
        assert_eq!(soon(recv.read()).await, Err(ReadError::Reset(7)));
        let (mut send, _recv) = soon(from.open_bi()).await.unwrap();
        send.reset(8);
        let (_send, mut recv) = soon(to.accept_bi()).await.unwrap();
        assert_eq!(soon(recv.read()).await, Err(ReadError::Reset(8)));
        // Dropped half written.
        drop(soon(from.open_uni()).await.unwrap());
        let mut recv = soon(to.accept_uni()).await.unwrap();
        assert_eq!(soon(recv.read()).await, Err(ReadError::Reset(0)));
    }
}

#[tokio::test]
async fn what_is_read_is_granted_again() {
    let service = Service::start(Limits::default());
    let (raw, _control) = granting(
        &service,
        Initial {
            data: 1,
            ..Initial::default()
        },
    )
    .await;
    let (mut connect, session) = Connect::new(&raw, &service).await;
    let header = wt_stream::header(wt_stream::UNI, connect.id());
    let mut send = raw.uni(wt_stream::UNI, &header[2..]).await;
    send.write_all(&[1; 100_000]).await.unwrap();
    send.finish().unwrap();
    let mut recv = soon(session.accept_uni()).await.unwrap();
    assert_eq!(read_all(&mut recv).await.len(), 100_000);
    let Ok(Capsule::MaxData(total)) = connect.hears().await else {
        panic!("not granted");
    };
    assert!(total > 256 * 1024 + 65_536, "{total}");
}

#[tokio::test]
async fn a_peer_that_breaks_flow_control_loses_its_session_and_no_other() {
    let service = Service::start(Limits {
        streams: 20,
        ..Limits::default()
    });
    let wide = Initial {
        data: 1000,
        bidi: 100,
        uni: 100,
    };
    for capsule in [
        Capsule::MaxData(999),
        Capsule::MaxStreams(Kind::Bidi, 99),
        Capsule::MaxStreams(Kind::Uni, MAX_STREAMS + 1),
        Capsule::StreamsBlocked(Kind::Bidi, MAX_STREAMS + 1),
    ] {
        let (raw, _control) = granting(&service, wide).await;
        let (mut other, other_session) = Connect::new(&raw, &service).await;
        let (mut connect, session) = Connect::new(&raw, &service).await;
        connect.say(&capsule).await;
        assert_eq!(
            connect.hears().await,
            Err(wt_code::FLOW_CONTROL_ERROR),
            "{capsule:?}"
        );
        let stopped = soon(connect.send.stopped()).await.unwrap();
        assert_eq!(
            stopped.map(quinn::VarInt::into_inner),
            Some(wt_code::FLOW_CONTROL_ERROR)
        );
        assert!(matches!(soon(session.closed()).await, Closed::Lost(_)));
        other.say(&Capsule::Drain).await;
        soon(other_session.draining()).await;
    }

    // More streams than were granted, though QUIC would allow them.
    let (raw, _control) = granting(&service, wide).await;
    let (mut connect, session) = Connect::new(&raw, &service).await;
    let header = wt_stream::header(wt_stream::UNI, connect.id());
    let mut streams = Vec::new();
    for _ in 0..21 {
        streams.push(raw.uni(wt_stream::UNI, &header[2..]).await);
    }
    let error = loop {
        match connect.hears().await {
            Ok(Capsule::MaxStreams(Kind::Uni, total)) => assert!(total <= 20, "{total}"),
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert_eq!(error, wt_code::FLOW_CONTROL_ERROR);
    assert!(matches!(soon(session.closed()).await, Closed::Lost(_)));

    // More data than was granted, thrown away before more could be.
    let (raw, _control) = granting(&service, wide).await;
    let (mut connect, session) = Connect::new(&raw, &service).await;
    let header = wt_stream::header(wt_stream::UNI, connect.id());
    let mut send = raw.uni(wt_stream::UNI, &header[2..]).await;
    send.write_all(&[1; 600_000]).await.unwrap();
    send.finish().unwrap();
    assert_eq!(soon(send.stopped()).await.unwrap(), None);
    soon(session.accept_uni()).await.unwrap().stop(0);
    assert_eq!(connect.hears().await, Err(wt_code::FLOW_CONTROL_ERROR));
    assert!(matches!(soon(session.closed()).await, Closed::Lost(_)));
}

#[tokio::test]
async fn a_session_without_flow_control_that_is_not_read_is_closed_once_it_holds_up_others() {
    let service = Service::start(Limits {
        header_timeout: Duration::from_millis(800),
        ..Limits::default()
    });
    let raw = Raw::silent(&service).await;
    let settings: Settings = [
        (id::H3_DATAGRAM, 1),
        (id::WEBTRANSPORT_MAX_SESSIONS_DRAFT07, 4),
    ]
    .into_iter()
    .collect();
    let mut payload = Vec::new();
    settings.encode(&mut payload);
    let hello = frames(&[(kind::SETTINGS, &payload)]);
    let _control = raw.uni(stream::CONTROL, &hello).await;
    let (unread_connect, unread) = Connect::new(&raw, &service).await;
    let (connect, session) = Connect::new(&raw, &service).await;

    let mut flooding = JoinSet::new();
    for _ in 0..20 {
        let header = wt_stream::header(wt_stream::UNI, unread_connect.id());
        let mut send = raw.uni(wt_stream::UNI, &header[2..]).await;
        flooding.spawn(async move {
            let chunk = [7; 64 * 1024];
            while send.write_all(&chunk).await.is_ok() {}
        });
    }
    let header = wt_stream::header(wt_stream::UNI, connect.id());
    let mut send = raw.uni(wt_stream::UNI, &header[2..]).await;
    let writing = tokio::spawn(async move {
        for _ in 0..64 {
            send.write_all(&[1; 1 << 18]).await.unwrap();
        }
        send.finish().unwrap();
    });
    let mut recv = soon(session.accept_uni()).await.unwrap();
    assert_eq!(read_all(&mut recv).await.len(), 16 << 20);
    soon(writing).await.unwrap();
    let Closed::Here(close) = soon(unread.closed()).await else {
        panic!("lost");
    };
    assert_eq!(close.code, close_code::UNREAD);
    while let Some(ended) = soon(flooding.join_next()).await {
        ended.unwrap();
    }
}
