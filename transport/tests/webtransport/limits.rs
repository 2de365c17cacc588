//! Peers that break rules, are slow, or want too much.

use std::time::Duration;

use bytes::BytesMut;
use futures_util::FutureExt as _;
use wavry_proto::{
    h3::{code, frame::kind},
    varint,
    webtransport::{
        capsule::{self, Capsule},
        code as wt_code, stream as wt_stream,
    },
};
use wavry_transport::{
    session::{Closed, ReadError, RecvStream as _, Response, SendStream as _, Session as _},
    webtransport::{ConnectError, Limits, Session},
};

use crate::{
    raw::{Raw, answer, client_config, connect, endpoint, frames, headers, lines},
    support::{Service, close, echo, loopback, read_all, request, soon, write_all},
};

/// A session of a raw client: its CONNECT stream, and the server's end.
async fn session(raw: &Raw, service: &Service) -> (quinn::SendStream, quinn::RecvStream, Session) {
    let (send, mut recv) = raw.ask("/").await;
    let requested = soon(service.requested()).await;
    let session = requested.accept(Response::ok()).await.unwrap();
    assert_eq!(answer(&mut recv).await.status, 200);
    (send, recv, session)
}

fn data(content: &[u8]) -> Vec<u8> {
    frames(&[(kind::DATA, content)]).to_vec()
}

fn capsules(list: &[Capsule]) -> Vec<u8> {
    let mut buf = Vec::new();
    list.iter().for_each(|capsule| capsule.encode(&mut buf));
    buf
}

#[tokio::test]
async fn ordinary_requests_are_answered_and_leave_the_connection_alive() {
    let service = Service::start(Limits::default());
    let raw = Raw::connect(&service).await;
    for (method, status) in [("GET", 404), ("HEAD", 404), ("POST", 405), ("OPTIONS", 405)] {
        let fields = [
            (":method", method),
            (":scheme", "https"),
            (":authority", "localhost"),
            (":path", "/"),
        ];
        assert_eq!(raw.status(&fields).await, status, "{method}");
    }
    let websocket = [
        (":method", "CONNECT"),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", "/"),
        (":protocol", "websocket"),
    ];
    assert_eq!(raw.status(&websocket).await, 501);
    session(&raw, &service).await;
}

#[tokio::test]
async fn the_newest_name_of_the_protocol_is_taken_too() {
    let service = Service::start(Limits::default());
    let raw = Raw::connect(&service).await;
    let mut fields = connect(&request("/new"));
    fields.retain(|f| f.name != b":protocol" && f.name != b"sec-webtransport-http3-draft02");
    fields.insert(1, lines(&[(":protocol", "webtransport-h3")]).remove(0));
    let (_send, mut recv) = raw.bi(&headers(&fields)).await;
    let requested = soon(service.requested()).await;
    assert_eq!(requested.request().path, "/new");
    let _session = requested.accept(Response::ok()).await.unwrap();
    // Only a client of draft-02 is told that it is one.
    assert_eq!(answer(&mut recv).await.headers, []);
}

#[tokio::test]
async fn a_header_block_over_the_limit_is_431_and_the_connection_lives() {
    let service = Service::start(Limits::default());
    let raw = Raw::connect(&service).await;
    // Too long on the wire; then only once it is decompressed.
    let long = headers(&connect(&request(&format!("/{}", "x".repeat(17_000)))));
    let line = lines(&[(
        "content-security-policy",
        "script-src 'none'; object-src 'none'; base-uri 'none'",
    )]);
    let many = headers(&[connect(&request("/")), vec![line[0].clone(); 200]].concat());
    assert!(many.len() < 1000);
    for block in [long, many] {
        let (_send, mut recv) = raw.bi(&block).await;
        assert_eq!(answer(&mut recv).await.status, 431);
    }
    session(&raw, &service).await;
}

#[tokio::test]
async fn a_header_block_within_the_limit_is_taken_whole() {
    let service = Service::start(Limits::default());
    let raw = Raw::connect(&service).await;
    let path = format!("/?token={}", "x".repeat(9_000));
    let (_send, _recv) = raw.ask(&path).await;
    assert_eq!(soon(service.requested()).await.request().path, path);
}

#[tokio::test]
async fn a_malformed_request_costs_its_stream_only() {
    let service = Service::start(Limits::default());
    let raw = Raw::connect(&service).await;
    let mut fields = connect(&request("/"));
    fields.retain(|field| field.name != b":authority");
    let (_send, mut recv) = raw.bi(&headers(&fields)).await;
    let end = soon(recv.read_to_end(100)).await.unwrap_err();
    let expected = quinn::VarInt::from_u64(code::MESSAGE_ERROR).unwrap();
    assert!(matches!(
        end,
        quinn::ReadToEndError::Read(quinn::ReadError::Reset(code)) if code == expected
    ));
    session(&raw, &service).await;
}

#[tokio::test]
async fn violations_of_http_3_close_the_connection_with_their_code() {
    let service = Service::start(Limits::default());
    let bi_cases: [(&[u8], u64); 4] = [
        (&frames(&[(0x06, b"")]), code::FRAME_UNEXPECTED),
        (&frames(&[(kind::SETTINGS, b"")]), code::FRAME_UNEXPECTED),
        (&data(b"x"), code::FRAME_UNEXPECTED),
        (
            &frames(&[(kind::HEADERS, &[2, 0x80, 0x10])]),
            code::QPACK_DECOMPRESSION_FAILED,
        ),
    ];
    for (bytes, expected) in bi_cases {
        let raw = Raw::connect(&service).await;
        let _stream = raw.bi(bytes).await;
        assert_eq!(raw.closed().await, expected, "{bytes:x?}");
    }
    let uni_cases: [(u64, &[u8], u64); 5] = [
        (0, &frames(&[(kind::GOAWAY, b"\0")]), code::MISSING_SETTINGS),
        (
            0,
            &frames(&[(kind::SETTINGS, &[0x02, 0])]),
            code::SETTINGS_ERROR,
        ),
        (0, &frames(&[(kind::SETTINGS, &[0x33])]), code::FRAME_ERROR),
        (1, b"", code::STREAM_CREATION_ERROR),
        (wt_stream::UNI, &[1], code::ID_ERROR),
    ];
    for (kind, bytes, expected) in uni_cases {
        let raw = Raw::silent(&service).await;
        let _stream = raw.uni(kind, bytes).await;
        assert_eq!(raw.closed().await, expected, "{kind} {bytes:x?}");
    }
    let mut raw = Raw::connect(&service).await;
    raw.end_control();
    assert_eq!(raw.closed().await, code::CLOSED_CRITICAL_STREAM);
    let mut raw = Raw::connect(&service).await;
    raw.control(&frames(&[(kind::HEADERS, b"")])).await;
    assert_eq!(raw.closed().await, code::FRAME_UNEXPECTED);
    let raw = Raw::connect(&service).await;
    let _second = raw.uni(0, &frames(&[(kind::SETTINGS, b"")])).await;
    assert_eq!(raw.closed().await, code::STREAM_CREATION_ERROR);
    let raw = Raw::connect(&service).await;
    raw.quic.send_datagram(vec![0xff].into()).unwrap();
    assert_eq!(raw.closed().await, code::DATAGRAM_ERROR);
    // And the server still serves.
    soon(service.pair()).await;
}

#[tokio::test]
async fn unknown_streams_and_frames_are_left_alone() {
    let service = Service::start(Limits::default());
    let mut raw = Raw::connect(&service).await;
    raw.control(&frames(&[(0x21, b"grease"), (0x0d, b"\0")]))
        .await;
    let unknown = raw.uni(0x21 + 0x1f * 7, b"grease").await;
    let stop = soon(unknown.stopped()).await.unwrap().unwrap();
    assert_eq!(stop.into_inner(), code::STREAM_CREATION_ERROR);
    let bytes = [
        frames(&[(0x21, b"grease")]),
        headers(&connect(&request("/"))),
    ]
    .concat();
    let (mut send, mut recv) = raw.bi(&bytes).await;
    let requested = soon(service.requested()).await;
    let session = requested.accept(Response::ok()).await.unwrap();
    assert_eq!(answer(&mut recv).await.status, 200);

    // Capsules among unknown ones, in DATA frames cut anywhere, among unknown frames.
    let mut content = Vec::new();
    varint::put(&mut content, 0x17);
    varint::put(&mut content, 300);
    content.extend([0; 300]);
    content.extend(capsules(&[
        Capsule::Drain,
        Capsule::Close(close(77, "bye")),
    ]));
    for part in content.chunks(7) {
        send.write_all(&frames(&[(0x21, b"grease"), (kind::DATA, part)]))
            .await
            .unwrap();
    }
    soon(session.draining()).await;
    assert_eq!(soon(session.closed()).await, Closed::Peer(close(77, "bye")));
}

#[tokio::test]
async fn half_sent_headers_block_nobody_and_are_refused_in_time() {
    let service = Service::start(Limits {
        header_timeout: Duration::from_millis(700),
        ..Limits::default()
    });
    let raw = Raw::connect(&service).await;
    let (_connect, _recv, session) = session(&raw, &service).await;
    // Half a stream type, a type without its session, half a request.
    let mut half = soon(raw.quic.open_uni()).await.unwrap();
    half.write_all(&[0x40]).await.unwrap();
    let mut typed = raw.uni(wt_stream::UNI, b"").await;
    let (mut bi, _bi_recv) = raw.bi(&[0x40]).await;
    let (mut asked, _asked_recv) = raw.bi(&headers(&connect(&request("/")))[..9]).await;

    let header = wt_stream::header(wt_stream::UNI, 0);
    let mut whole = soon(raw.quic.open_uni()).await.unwrap();
    whole.write_all(&header).await.unwrap();
    whole.write_all(b"whole").await.unwrap();
    whole.finish().unwrap();
    assert_eq!(
        read_all(&mut soon(session.accept_uni()).await.unwrap()).await,
        b"whole"
    );
    soon(service.pair()).await;

    for stream in [&mut half, &mut typed, &mut bi, &mut asked] {
        let stop = soon(stream.stopped()).await.unwrap().unwrap();
        assert_eq!(stop.into_inner(), code::REQUEST_INCOMPLETE);
    }
    assert_eq!(
        session.max_datagram_size() > 0,
        raw.quic.close_reason().is_none()
    );
}

/// A stream exists from the moment that a later one of its kind does (RFC 9000, section 2.1), and its
/// first byte may have to wait for flow control much longer than a header may take.
#[tokio::test]
async fn a_stream_that_says_nothing_yet_is_not_refused() {
    let header_timeout = Duration::from_millis(300);
    let service = Service::start(Limits {
        header_timeout,
        ..Limits::default()
    });
    let raw = Raw::connect(&service).await;
    let (_connect, _recv, session) = session(&raw, &service).await;
    let header = wt_stream::header(wt_stream::UNI, 0);
    let mut late = soon(raw.quic.open_uni()).await.unwrap();
    // Refused after the deadline, which tells when it has passed.
    let mut half = soon(raw.quic.open_uni()).await.unwrap();
    half.write_all(&header[..1]).await.unwrap();
    soon(half.stopped()).await.unwrap().unwrap();

    late.write_all(&header).await.unwrap();
    late.write_all(b"late").await.unwrap();
    late.finish().unwrap();
    let mut recv = soon(session.accept_uni()).await.unwrap();
    assert_eq!(read_all(&mut recv).await, b"late");
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed_and_keeps_nobody_waiting() {
    let service = Service::start(Limits {
        header_timeout: Duration::from_millis(500),
        ..Limits::default()
    });
    let silent = Raw::silent(&service).await;
    soon(service.pair()).await;
    assert_eq!(silent.closed().await, code::NO_ERROR);
}

#[tokio::test]
async fn a_request_without_settings_is_not_processed() {
    let service = Service::start(Limits {
        header_timeout: Duration::from_millis(500),
        ..Limits::default()
    });
    let raw = Raw::silent(&service).await;
    let (send, _recv) = raw.ask("/").await;
    let stop = soon(send.stopped()).await;
    // The stream's deadline and the connection's are the same.
    assert!(!matches!(stop, Ok(None)), "{stop:?}");
}

#[tokio::test]
async fn streams_and_datagrams_that_come_before_their_request_are_delivered() {
    let service = Service::start(Limits::default());
    let raw = Raw::connect(&service).await;
    let (mut connect_send, mut connect_recv) = soon(raw.quic.open_bi()).await.unwrap();
    let mut early = raw.uni(wt_stream::UNI, &[0]).await;
    early.write_all(b"early").await.unwrap();
    early.finish().unwrap();
    raw.quic
        .send_datagram(wt_stream::datagram(0, b"early"))
        .unwrap();
    // Both have arrived when the server has answered what was sent after them.
    let fields = [
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "a"),
        (":path", "/"),
    ];
    assert_eq!(raw.status(&fields).await, 404);
    connect_send
        .write_all(&headers(&connect(&request("/"))))
        .await
        .unwrap();
    let session = soon(service.requested())
        .await
        .accept(Response::ok())
        .await
        .unwrap();
    assert_eq!(answer(&mut connect_recv).await.status, 200);
    assert_eq!(
        read_all(&mut soon(session.accept_uni()).await.unwrap()).await,
        b"early"
    );
    assert_eq!(soon(session.recv_datagram()).await.unwrap(), "early");
}

#[tokio::test]
async fn streams_of_sessions_nobody_asked_for_are_rejected() {
    let service = Service::start(Limits {
        header_timeout: Duration::from_millis(700),
        ..Limits::default()
    });
    let raw = Raw::connect(&service).await;
    let (_connect, _recv, _session) = session(&raw, &service).await;
    let mut streams = Vec::new();
    for _ in 0..40 {
        streams.push(raw.uni(wt_stream::UNI, &[0x40, 100]).await);
    }
    for stream in &mut streams {
        let stop = soon(stream.stopped()).await.unwrap().unwrap();
        assert_eq!(stop.into_inner(), wt_code::BUFFERED_STREAM_REJECTED);
    }
}

#[tokio::test]
async fn a_peer_can_read_the_close_before_the_connection_ends() {
    let service = Service::start(Limits::default());
    let raw = Raw::connect(&service).await;
    let (mut connect, mut recv, session) = session(&raw, &service).await;
    session.close(close(5, "enough"));
    let last = soon(recv.read_to_end(4096)).await.unwrap();
    assert_eq!(last, data(&capsules(&[Capsule::Close(close(5, "enough"))])));
    assert!(
        raw.quic.close_reason().is_none(),
        "closed before it was read"
    );
    connect.finish().unwrap();
    assert_eq!(
        soon(session.closed()).await,
        Closed::Here(close(5, "enough"))
    );
    assert_eq!(raw.closed().await, code::NO_ERROR);
}

/// Chromium loses the code, or the whole page, when its streams are reset first.
#[tokio::test]
async fn a_session_that_is_closed_resets_its_streams_after_its_last_word() {
    let service = Service::start(Limits::default());
    let raw = Raw::connect(&service).await;
    let (_other_connect, _other_recv, _other) = session(&raw, &service).await;
    let (mut connect, mut recv, session) = session(&raw, &service).await;
    let id = u64::from(connect.id());
    let header = wt_stream::header(wt_stream::BI, id);
    let (send, mut back) = raw.bi(&header).await;
    let (mut server_send, server_recv) = soon(session.accept_bi()).await.unwrap();
    server_send.write("x".into()).await.unwrap();
    back.read_exact(&mut [0]).await.unwrap();
    let (kept_send, _kept_back) = raw.bi(&header).await;
    let (mut kept, mut kept_recv) = soon(session.accept_bi()).await.unwrap();
    let (untaken, _untaken_back) = raw.bi(&header).await;

    // Dropped, reset, touched and never taken.
    session.close(close(5, "enough"));
    drop((server_send, server_recv));
    kept.reset(9);
    kept_recv.stop(9);
    let last = soon(recv.read_to_end(4096)).await.unwrap();
    assert_eq!(last, data(&capsules(&[Capsule::Close(close(5, "enough"))])));
    for stream in [&send, &kept_send, &untaken] {
        let stop = stream.stopped().now_or_never();
        assert!(stop.is_none(), "stopped before the close: {stop:?}");
    }
    let read = back.read(&mut [0]).now_or_never();
    assert!(read.is_none(), "ended before the close: {read:?}");

    connect.finish().unwrap();
    for stream in [&send, &kept_send, &untaken] {
        let stop = soon(stream.stopped()).await.unwrap().unwrap();
        assert_eq!(stop.into_inner(), wt_code::SESSION_GONE);
    }
    let gone = quinn::VarInt::from_u64(wt_code::SESSION_GONE).unwrap();
    assert_eq!(
        soon(back.read(&mut [0])).await,
        Err(quinn::ReadError::Reset(gone))
    );
}

#[tokio::test]
async fn the_ways_a_connect_stream_can_end() {
    let service = Service::start(Limits::default());

    let raw = Raw::connect(&service).await;
    let (mut send, _recv, session_a) = session(&raw, &service).await;
    send.finish().unwrap();
    assert_eq!(soon(session_a.closed()).await, Closed::Peer(close(0, "")));

    let raw = Raw::connect(&service).await;
    let (mut send, _recv, session_b) = session(&raw, &service).await;
    send.reset(7u32.into()).unwrap();
    assert!(matches!(soon(session_b.closed()).await, Closed::Lost(_)));

    let raw = Raw::connect(&service).await;
    let (mut send, mut recv, session_c) = session(&raw, &service).await;
    // A reason that is too long.
    let mut content = Vec::new();
    varint::put(&mut content, capsule::CLOSE_SESSION);
    varint::put(&mut content, 2000);
    send.write_all(&data(&content)).await.unwrap();
    assert!(matches!(soon(session_c.closed()).await, Closed::Lost(_)));
    let end = soon(recv.read_to_end(100)).await.unwrap_err();
    let expected = quinn::VarInt::from_u64(code::MESSAGE_ERROR).unwrap();
    assert!(matches!(
        end,
        quinn::ReadToEndError::Read(quinn::ReadError::Reset(code)) if code == expected
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_last_word_is_seen_though_the_connection_closes_at_once() {
    let service = Service::start(Limits::default());
    for _ in 0..20 {
        let raw = Raw::connect(&service).await;
        let (mut send, _recv, session) = session(&raw, &service).await;
        let word = data(&capsules(&[Capsule::Close(close(7, "bye"))]));
        send.write_all(&word).await.unwrap();
        send.finish().unwrap();
        assert_eq!(soon(send.stopped()).await.unwrap(), None);
        raw.quic.close(0x100u32.into(), b"");
        assert_eq!(soon(session.closed()).await, Closed::Peer(close(7, "bye")));
    }
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_leaves_no_session() {
    let service = Service::start(Limits {
        sessions_per_connection: 1,
        ..Limits::default()
    });
    let raw = Raw::connect(&service).await;
    let (_send, mut recv) = raw.ask("/gone").await;
    let requested = soon(service.requested()).await;
    recv.stop(0u32.into()).unwrap();
    // Whether the answer or the word that nobody wants it is first, the place becomes free.
    if let Ok(session) = requested.accept(Response::ok()).await {
        session.close(close(0, ""));
        soon(session.closed()).await;
    }
    let (_send, _recv) = raw.ask("/next").await;
    assert_eq!(soon(service.requested()).await.request().path, "/next");
}

#[tokio::test]
async fn a_client_that_does_not_read_the_answer_is_given_up() {
    let service = Service::start(Limits {
        header_timeout: Duration::from_millis(300),
        ..Limits::default()
    });
    let mut transport = quinn::TransportConfig::default();
    transport.stream_receive_window(1u32.into());
    let raw = Raw::connect_with(&service, transport).await;
    let (_send, _recv) = raw.ask("/").await;
    let requested = soon(service.requested()).await;
    let given_up = soon(requested.accept(Response::ok())).await;
    assert!(matches!(given_up.err(), Some(Closed::Lost(_))));
}

#[tokio::test]
async fn a_code_outside_the_mapping_is_0() {
    let service = Service::start(Limits::default());
    let raw = Raw::connect(&service).await;
    let (_connect, _recv, session) = session(&raw, &service).await;
    let mut stream = raw.uni(wt_stream::UNI, &[0]).await;
    let mut recv = soon(session.accept_uni()).await.unwrap();
    stream.reset(0x100u32.into()).unwrap();
    assert_eq!(soon(recv.read()).await, Err(ReadError::Reset(0)));
}

#[tokio::test]
async fn garbage_on_the_port_leaves_the_server_serving() {
    let service = Service::start(Limits::default());
    let socket = tokio::net::UdpSocket::bind(loopback()).await.unwrap();
    let mut seed = 1u32;
    for len in 0..400 {
        let garbage: Vec<u8> = (0..len * 3)
            .map(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (seed >> 24) as u8
            })
            .collect();
        // Also packets that look like the beginning of a QUIC connection.
        let initial = [&[0xc0, 0, 0, 0, 1, 8][..], &garbage].concat();
        for packet in [&garbage, &initial] {
            let _ = socket.send_to(packet, service.address()).await;
        }
    }
    let (client, server) = soon(service.pair()).await;
    tokio::spawn(echo(server));
    let (mut send, mut recv) = soon(client.open_bi()).await.unwrap();
    write_all(&mut send, b"still here").await;
    assert_eq!(read_all(&mut recv).await, b"still here");
}

#[tokio::test]
async fn a_client_without_alpn_h3_is_refused() {
    let service = Service::start(Limits::default());
    let endpoint = endpoint();
    for alpn in [&[][..], &[&b"h2"[..]]] {
        let config = client_config(&service.identity, alpn);
        let connecting = endpoint.connect_with(config, service.address(), "localhost");
        assert!(soon(connecting.unwrap()).await.is_err(), "{alpn:?}");
    }
    soon(service.pair()).await;
}

#[tokio::test]
async fn a_server_that_offers_no_webtransport_is_recognised() {
    let service = Service::start(Limits::default());
    let mut tls = service.identity.server_tls();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
    let config = quinn::ServerConfig::with_crypto(std::sync::Arc::new(crypto));
    let endpoint = quinn::Endpoint::server(config, loopback()).unwrap();
    let address = endpoint.local_addr().unwrap();
    tokio::spawn(async move {
        let connection = endpoint.accept().await.unwrap().await.unwrap();
        let mut control = connection.open_uni().await.unwrap();
        let mut hello = BytesMut::from(&[0][..]);
        hello.extend_from_slice(&frames(&[(kind::SETTINGS, b"")]));
        control.write_all(&hello).await.unwrap();
        connection.closed().await;
    });
    let client = service.client();
    let refused = soon(client.connect(address, "localhost", request("/"))).await;
    assert!(matches!(refused, Err(ConnectError::NotSupported)));
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up_in_time() {
    let service = Service::start(Limits::default());
    // A socket that answers no packet, and a server that answers no request.
    let deaf = std::net::UdpSocket::bind(loopback()).unwrap();
    let limits = Limits {
        header_timeout: Duration::from_millis(500),
        ..Limits::default()
    };
    let tls = service.identity.client_tls();
    let client = wavry_transport::webtransport::Client::new(loopback(), tls, limits).unwrap();
    for address in [deaf.local_addr().unwrap(), service.address()] {
        let given_up = soon(client.connect(address, "localhost", request("/"))).await;
        assert!(matches!(given_up, Err(ConnectError::Timeout(_))));
    }
}
