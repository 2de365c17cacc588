//! What is agreed on with peers of each draft, and what each draft allows.

use bytes::Bytes;
use wavry_proto::{
    h3::{
        code,
        frame::{Message, MessageDecoder, kind},
        message, qpack,
        settings::{Settings, id},
        stream,
    },
    webtransport::{
        agreement::Draft,
        capsule::Capsule,
        code as wt_code,
        request::{Asked, head_in},
    },
};
use wavry_transport::{
    session::{Request, Response, Session as _},
    webtransport::{ConnectError, Limits},
};

use crate::{
    raw::{self, Raw, answer, frames, headers, lines},
    support::{Service, request, soon},
};

const DATAGRAMS: (u64, u64) = (id::H3_DATAGRAM, 1);
const CONNECT: (u64, u64) = (id::ENABLE_CONNECT_PROTOCOL, 1);
const NEWEST: (u64, u64) = (id::WT_ENABLED, 1);

fn hello(settings: &[(u64, u64)]) -> Bytes {
    let mut payload = Vec::new();
    settings
        .iter()
        .copied()
        .collect::<Settings>()
        .encode(&mut payload);
    frames(&[(kind::SETTINGS, &payload)])
}

/// A raw client with these settings, and its control stream.
async fn client(service: &Service, settings: &[(u64, u64)]) -> (Raw, quinn::SendStream) {
    let raw = Raw::silent(service).await;
    let control = raw.uni(stream::CONTROL, &hello(settings)).await;
    (raw, control)
}

/// Asks for a session in this draft.
async fn ask(raw: &Raw, draft: Draft) -> (quinn::SendStream, quinn::RecvStream) {
    raw.bi(&headers(&head_in(draft, &request("/")).to_fields()))
        .await
}

async fn accepted(service: &Service) -> wavry_transport::webtransport::Session {
    let requested = soon(service.requested()).await;
    requested.accept(Response::ok()).await.unwrap()
}

async fn reset_code(recv: &mut quinn::RecvStream) -> u64 {
    match soon(recv.read(&mut [0])).await {
        Err(quinn::ReadError::Reset(code)) => code.into_inner(),
        other => panic!("not reset: {other:?}"),
    }
}

#[tokio::test]
async fn each_draft_has_as_many_sessions_on_a_connection_as_it_allows() {
    let service = Service::start(Limits {
        sessions_per_connection: 3,
        ..Limits::default()
    });
    let max = |id| (id, 9);
    let limited = (id::WT_INITIAL_MAX_DATA, 1);
    // Settings, draft, sessions, and what becomes of one more: a status, or the stream is reset.
    for (settings, draft, sessions, more) in [
        (vec![], Draft::Draft02, 1, Ok(429)),
        (
            vec![(id::WEBTRANSPORT_DRAFT02, 1)],
            Draft::Draft02,
            1,
            Ok(429),
        ),
        (
            vec![max(id::WEBTRANSPORT_MAX_SESSIONS_DRAFT07)],
            Draft::Draft07,
            3,
            Ok(429),
        ),
        (
            vec![(id::WT_MAX_SESSIONS_DRAFT13, 1)],
            Draft::Draft13,
            1,
            Err(code::REQUEST_REJECTED),
        ),
        (
            vec![max(id::WT_MAX_SESSIONS_DRAFT13)],
            Draft::Draft13,
            3,
            Ok(429),
        ),
        (vec![NEWEST], Draft::Draft15, 1, Err(code::REQUEST_REJECTED)),
        (vec![NEWEST, limited], Draft::Draft15, 3, Ok(429)),
    ] {
        let (raw, _control) = client(&service, &[&[DATAGRAMS], &settings[..]].concat()).await;
        let mut held = Vec::new();
        for _ in 0..sessions {
            let (send, mut recv) = ask(&raw, draft).await;
            let session = accepted(&service).await;
            assert_eq!(answer(&mut recv).await.status, 200, "{draft:?}");
            held.push((send, recv, session));
        }
        let (_send, mut recv) = ask(&raw, draft).await;
        match more {
            Ok(status) => assert_eq!(answer(&mut recv).await.status, status, "{draft:?}"),
            Err(code) => assert_eq!(reset_code(&mut recv).await, code, "{draft:?}"),
        }
        for (.., session) in &held {
            assert!(session.send_datagram(Bytes::new()).is_ok());
        }
    }
}

#[tokio::test]
async fn a_client_of_the_newest_draft_that_lacks_what_it_demands_is_refused() {
    let service = Service::start(Limits::default());
    let (raw, _control) = client(&service, &[NEWEST]).await;
    let (_send, mut recv) = ask(&raw, Draft::Draft15).await;
    assert_eq!(reset_code(&mut recv).await, code::MESSAGE_ERROR);
    // Without QUIC datagrams; an older draft is taken all the same.
    for (draft, settings) in [
        (Draft::Draft15, [DATAGRAMS, NEWEST]),
        (Draft::Draft02, [DATAGRAMS, (id::WEBTRANSPORT_DRAFT02, 1)]),
    ] {
        let mut transport = quinn::TransportConfig::default();
        transport.datagram_receive_buffer_size(None);
        let raw = Raw::silent_with(&service, transport).await;
        let _control = raw.uni(stream::CONTROL, &hello(&settings)).await;
        let (_send, mut recv) = ask(&raw, draft).await;
        if draft == Draft::Draft15 {
            assert_eq!(reset_code(&mut recv).await, code::MESSAGE_ERROR);
        } else {
            assert_eq!(accepted(&service).await.max_datagram_size(), 0);
        }
    }
}

#[tokio::test]
async fn a_goaway_of_the_client_drains_the_sessions_it_has_and_will_have() {
    let service = Service::start(Limits::default());
    let (raw, mut control) = client(
        &service,
        &[DATAGRAMS, (id::WEBTRANSPORT_MAX_SESSIONS_DRAFT07, 9)],
    )
    .await;
    let (_send, _recv) = ask(&raw, Draft::Draft07).await;
    let session = accepted(&service).await;
    control
        .write_all(&frames(&[(kind::GOAWAY, &[0])]))
        .await
        .unwrap();
    soon(session.draining()).await;
    let (_send, _recv) = ask(&raw, Draft::Draft07).await;
    soon(accepted(&service).await.draining()).await;
}

#[tokio::test]
async fn a_datagram_in_a_capsule_reaches_the_session() {
    let service = Service::start(Limits::default());
    let raw = Raw::connect(&service).await;
    let (mut send, _recv) = raw.ask("/").await;
    let session = accepted(&service).await;
    let mut content = Vec::new();
    Capsule::Datagram(Bytes::from_static(b"reliably")).encode(&mut content);
    let bytes = frames(&[(kind::DATA, &content)]);
    send.write_all(&bytes).await.unwrap();
    assert_eq!(soon(session.recv_datagram()).await.unwrap(), "reliably");
}

/// What our client asks of a server with these settings, how that answers, and how it all ends: the
/// request, what the client has, and the code of its connection.
async fn serve(
    settings: &[(u64, u64)],
    answer: &[(&str, &str)],
) -> (
    Option<(String, Request, bool)>,
    Result<Response, ConnectError>,
    u64,
) {
    let service = Service::start(Limits::default());
    let endpoint = raw::server(&service.identity);
    let address = endpoint.local_addr().unwrap();
    let client = service.client();
    let asked = Request {
        subprotocols: vec!["a".into(), "b".into()],
        ..request("/")
    };
    let connecting = async {
        let connected = client.connect(address, "localhost", asked).await;
        let connected = connected.map(|(session, response)| {
            session.close(crate::support::close(0, ""));
            (session, response)
        });
        match connected {
            Ok((session, response)) => {
                session.closed().await;
                client.close().await;
                Ok(response)
            }
            Err(error) => Err(error),
        }
    };
    let serving = async {
        let quic = soon(endpoint.accept()).await.unwrap().await.unwrap();
        let mut control = quic.open_uni().await.unwrap();
        let bytes = [&[0][..], &hello(settings)].concat();
        control.write_all(&bytes).await.unwrap();
        let mut seen = None;
        if let Ok((mut send, mut recv)) = quic.accept_bi().await {
            seen = Some(head(&mut recv).await);
            send.write_all(&headers(&lines(answer))).await.unwrap();
            // Over, or the connection is.
            let _ = soon(send.stopped()).await;
        }
        let closed = match soon(quic.closed()).await {
            quinn::ConnectionError::ApplicationClosed(close) => close.error_code.into_inner(),
            other => panic!("{other}"),
        };
        (seen, closed)
    };
    let (connected, (seen, closed)) = tokio::join!(soon(connecting), serving);
    (seen, connected, closed)
}

/// The `:protocol` and the request at the head of a stream, and whether it names draft-02.
async fn head(recv: &mut quinn::RecvStream) -> (String, Request, bool) {
    let mut decoder = MessageDecoder::new(1 << 16);
    loop {
        if let Some(Message::Headers(section)) = decoder.next().unwrap() {
            let fields = qpack::decode(&section, 1 << 16).unwrap();
            let head = message::Request::from_fields(fields).unwrap();
            let protocol = head.protocol.clone().unwrap();
            let Asked::Session { request, draft02 } = Asked::new(head).unwrap() else {
                panic!("not a session");
            };
            return (protocol, request, draft02);
        }
        let chunk = soon(recv.read_chunk(4096, true)).await.unwrap().unwrap();
        decoder.push(&chunk.bytes);
    }
}

#[tokio::test]
async fn our_client_asks_in_the_servers_newest_draft() {
    for (setting, protocol, draft02) in [
        (id::WEBTRANSPORT_DRAFT02, "webtransport", true),
        (id::WEBTRANSPORT_MAX_SESSIONS_DRAFT07, "webtransport", true),
        (id::WT_MAX_SESSIONS_DRAFT13, "webtransport", true),
        (id::WT_ENABLED, "webtransport-h3", false),
    ] {
        let settings = [CONNECT, DATAGRAMS, (setting, 1)];
        let (seen, connected, ..) = serve(&settings, &[(":status", "200")]).await;
        connected.unwrap();
        let (asked, request, names_draft02) = seen.unwrap();
        assert_eq!((&asked[..], names_draft02), (protocol, draft02));
        assert_eq!(request.subprotocols, ["a", "b"]);
    }
}

#[tokio::test]
async fn our_client_tells_a_server_what_it_lacks() {
    for settings in [
        &[][..],
        &[CONNECT, DATAGRAMS],
        &[NEWEST, DATAGRAMS],
        &[NEWEST, CONNECT],
        &[(id::WEBTRANSPORT_DRAFT02, 1), CONNECT],
    ] {
        let (seen, connected, closed) = serve(settings, &[]).await;
        assert!(seen.is_none());
        assert!(matches!(connected, Err(ConnectError::NotSupported)));
        assert_eq!(closed, wt_code::REQUIREMENTS_NOT_MET, "{settings:x?}");
    }
}

#[tokio::test]
async fn a_subprotocol_that_was_not_offered_ends_the_session_of_the_newest_draft() {
    let answer = [(":status", "200"), ("wt-protocol", "\"c\"")];
    let settings = [CONNECT, DATAGRAMS, NEWEST];
    let (_, connected, closed) = serve(&settings, &answer).await;
    assert!(matches!(connected, Err(ConnectError::Connection(_))));
    assert_eq!(closed, wt_code::ALPN_ERROR);
    // An older one has no code for it.
    let settings = [CONNECT, DATAGRAMS, (id::WEBTRANSPORT_DRAFT02, 1)];
    let (_, connected, ..) = serve(&settings, &answer).await;
    assert_eq!(connected.unwrap().subprotocol, None);
}
