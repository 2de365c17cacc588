//! Requests that ask for no session.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;
use wavry_proto::h3::{
    code,
    frame::{Message, MessageDecoder, kind},
    message, qpack,
};
use wavry_transport::{
    session::Response as Answer,
    webtransport::{
        Limits,
        plain::{Request, Response},
    },
};

use crate::{
    raw::{Raw, answer, frames, headers, lines},
    support::{Service, soon},
};

/// A service that answers `/hello`, tells on `/told` what it was told, and has nothing else.
fn service(limits: Limits) -> Service {
    let service = Service::start(limits);
    service
        .server
        .answer(|request| async move { reply(&request) });
    service
}

fn reply(request: &Request) -> Response {
    match (request.path.as_str(), request.method.as_str()) {
        ("/hello", "GET" | "HEAD") => {
            Response::content(200, "text/plain", "hello").with("x-answer", "1")
        }
        ("/hello", _) => Response::method_not_allowed("GET, HEAD"),
        ("/told", "POST") => Response::content(
            200,
            "text/plain",
            format!(
                "{} {} {} {}",
                request.authority,
                request.header("x-ask").unwrap_or("-"),
                request.remote.ip(),
                String::from_utf8_lossy(&request.content),
            ),
        ),
        ("/nothing", _) => Response::content(204, "text/plain", "not sent"),
        ("/impossible", _) => Response::status(101),
        _ => Response::status(404),
    }
}

/// The field lines of a request, and its header fields.
fn head(method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let mut fields = vec![
        (":method", method),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", path),
    ];
    fields.extend(more);
    headers(&lines(&fields)).to_vec()
}

fn data(content: &[u8]) -> Vec<u8> {
    frames(&[(kind::DATA, content)]).to_vec()
}

/// Sends a whole request.
async fn send(raw: &Raw, bytes: &[u8]) -> quinn::RecvStream {
    let (mut send, recv) = raw.bi(bytes).await;
    send.finish().unwrap();
    recv
}

/// The whole answer: its head and its content.
async fn whole(mut recv: quinn::RecvStream) -> (message::Response, String) {
    let bytes = soon(recv.read_to_end(1 << 16)).await.unwrap();
    let mut decoder = MessageDecoder::new(1 << 16);
    decoder.push(&bytes);
    let Ok(Some(Message::Headers(section))) = decoder.next() else {
        panic!("no answer in {bytes:x?}");
    };
    let fields = qpack::decode(&section, 1 << 16).unwrap();
    let mut content = Vec::new();
    while let Some(message) = decoder.next().unwrap() {
        let Message::Data(data) = message else {
            panic!("not content: {message:?}");
        };
        content.extend_from_slice(&data);
    }
    assert!(decoder.at_boundary());
    let head = message::Response::from_fields(fields).unwrap();
    (head, String::from_utf8(content).unwrap())
}

async fn ask(raw: &Raw, bytes: &[u8]) -> (message::Response, String) {
    whole(send(raw, bytes).await).await
}

fn header<'a>(head: &'a message::Response, name: &str) -> Option<&'a str> {
    let header = head.headers.iter().find(|header| header.name == name)?;
    Some(&header.value)
}

/// The code that a request is refused with.
async fn refused(raw: &Raw, bytes: &[u8]) -> u64 {
    let mut recv = send(raw, bytes).await;
    match soon(recv.read_to_end(1 << 16)).await {
        Err(quinn::ReadToEndError::Read(quinn::ReadError::Reset(code))) => code.into_inner(),
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_request_is_answered_with_status_headers_and_content() {
    let service = service(Limits::default());
    let raw = Raw::connect(&service).await;
    let (head, content) = ask(&raw, &head("GET", "/hello", &[])).await;
    assert_eq!((head.status, content.as_str()), (200, "hello"));
    assert_eq!(header(&head, "content-length"), Some("5"));
    assert_eq!(header(&head, "content-type"), Some("text/plain"));
    assert_eq!(header(&head, "x-answer"), Some("1"));
}

#[tokio::test]
async fn head_is_told_the_length_and_gets_no_content() {
    let service = service(Limits::default());
    let raw = Raw::connect(&service).await;
    let (answer, content) = ask(&raw, &head("HEAD", "/hello", &[])).await;
    assert_eq!((answer.status, content.as_str()), (200, ""));
    assert_eq!(header(&answer, "content-length"), Some("5"));
    let (answer, content) = ask(&raw, &head("GET", "/nothing", &[])).await;
    assert_eq!((answer.status, content.as_str()), (204, ""));
    assert_eq!(header(&answer, "content-length"), None);
}

#[tokio::test]
async fn what_is_not_there_is_404_and_a_wrong_method_learns_the_right_ones() {
    let service = service(Limits::default());
    let raw = Raw::connect(&service).await;
    let (answer, _) = ask(&raw, &head("GET", "/other", &[])).await;
    assert_eq!(answer.status, 404);
    let (answer, _) = ask(&raw, &head("DELETE", "/hello", &[])).await;
    assert_eq!(answer.status, 405);
    assert_eq!(header(&answer, "allow"), Some("GET, HEAD"));
    // An answer that no request can have is the handler's fault.
    let (answer, _) = ask(&raw, &head("GET", "/impossible", &[])).await;
    assert_eq!(answer.status, 500);
}

#[tokio::test]
async fn a_server_that_answers_nothing_else_knows_no_path() {
    let service = Service::start(Limits::default());
    let raw = Raw::connect(&service).await;
    let (answer, _) = ask(&raw, &head("GET", "/hello", &[])).await;
    assert_eq!(answer.status, 404);
    let (answer, _) = ask(&raw, &head("POST", "/hello", &[])).await;
    assert_eq!(answer.status, 405);
    assert_eq!(header(&answer, "allow"), Some("GET, HEAD"));
}

#[tokio::test]
async fn content_comes_whole_however_it_is_cut() {
    let service = service(Limits::default());
    let raw = Raw::connect(&service).await;
    let trailers = headers(&lines(&[("x-trailer", "1")])).to_vec();
    let bytes = [
        head("POST", "/told", &[("x-ask", "a"), ("content-length", "6")]),
        frames(&[(0x21, b"grease")]).to_vec(),
        data(b"ab"),
        data(b""),
        data(b"cdef"),
        trailers,
    ]
    .concat();
    let (_, content) = ask(&raw, &bytes).await;
    assert_eq!(content, "localhost a 127.0.0.1 abcdef");

    let (mut send, recv) = raw.bi(b"").await;
    for byte in &bytes {
        send.write_all(&[*byte]).await.unwrap();
    }
    send.finish().unwrap();
    assert_eq!(whole(recv).await.1, "localhost a 127.0.0.1 abcdef");
}

#[tokio::test]
async fn content_over_the_limit_is_413_as_soon_as_that_is_known() {
    let service = service(Limits {
        max_content: 100,
        ..Limits::default()
    });
    let raw = Raw::connect(&service).await;
    // Neither request ever ends.
    let declared = head("POST", "/told", &[("content-length", "101")]);
    let sent = [head("POST", "/told", &[]), data(&[0; 101])].concat();
    for bytes in [declared, sent] {
        let (send, mut recv) = raw.bi(&bytes).await;
        assert_eq!(answer(&mut recv).await.status, 413);
        let stop = soon(send.stopped()).await.unwrap().unwrap();
        assert_eq!(stop.into_inner(), code::NO_ERROR);
    }
    let fits = [head("POST", "/told", &[]), data(&[b'x'; 100])].concat();
    assert_eq!(ask(&raw, &fits).await.0.status, 200);
}

#[tokio::test]
async fn a_malformed_request_is_a_stream_error() {
    let service = service(Limits::default());
    let raw = Raw::connect(&service).await;
    let post = |length| head("POST", "/told", &[("content-length", length)]);
    let pseudo = headers(&lines(&[(":path", "/")])).to_vec();
    let cases = [
        ("less than declared", [post("5"), data(b"four")].concat()),
        (
            "nothing of it",
            head("GET", "/hello", &[("content-length", "1")]),
        ),
        ("more than declared", [post("3"), data(b"four")].concat()),
        ("no number", post("x")),
        ("two lengths", post("1, 2")),
        ("pseudo-header in trailers", [post("0"), pseudo].concat()),
        (
            "connection-specific field",
            head("GET", "/hello", &[("connection", "close")]),
        ),
    ];
    for (what, bytes) in cases {
        assert_eq!(refused(&raw, &bytes).await, code::MESSAGE_ERROR, "{what}");
    }
    assert_eq!(ask(&raw, &head("GET", "/hello", &[])).await.0.status, 200);
}

#[tokio::test]
async fn frames_that_cannot_be_are_a_connection_error() {
    let service = service(Limits::default());
    let trailers = headers(&lines(&[("x-trailer", "1")])).to_vec();
    let head = head("POST", "/told", &[]);
    let cases = [
        ([&head[..], &data(b"cut")[..4]].concat(), code::FRAME_ERROR),
        (head[..head.len() - 1].to_vec(), code::FRAME_ERROR),
        (
            [&head[..], &trailers, &data(b"late")].concat(),
            code::FRAME_UNEXPECTED,
        ),
        (
            [&head[..], &frames(&[(kind::SETTINGS, b"")])].concat(),
            code::FRAME_UNEXPECTED,
        ),
    ];
    for (bytes, expected) in cases {
        let raw = Raw::connect(&service).await;
        let _recv = send(&raw, &bytes).await;
        assert_eq!(raw.closed().await, expected, "{bytes:x?}");
    }
}

#[tokio::test]
async fn another_scheme_is_misdirected() {
    let service = service(Limits::default());
    let raw = Raw::connect(&service).await;
    let http = [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "localhost"),
        (":path", "/hello"),
    ];
    assert_eq!(raw.status(&http).await, 421);
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_503_and_holds_up_no_session() {
    let service = Service::start(Limits {
        header_timeout: Duration::from_millis(700),
        ..Limits::default()
    });
    service.server.answer(|_| std::future::pending());
    let raw = Raw::connect(&service).await;
    let waiting = send(&raw, &head("GET", "/hello", &[])).await;
    let (connect, _recv) = raw.ask("/").await;
    let requested = soon(service.requested()).await;
    let _session = requested.accept(Answer::ok()).await.unwrap();
    assert_eq!(whole(waiting).await.0.status, 503);
    drop(connect);
}

#[tokio::test]
async fn content_that_does_not_come_is_given_up_in_time() {
    let service = service(Limits {
        header_timeout: Duration::from_millis(500),
        ..Limits::default()
    });
    let raw = Raw::connect(&service).await;
    let (send, _recv) = raw.bi(&head("POST", "/told", &[])).await;
    let stop = soon(send.stopped()).await.unwrap().unwrap();
    assert_eq!(stop.into_inner(), code::REQUEST_INCOMPLETE);
}

#[tokio::test]
async fn a_connection_answers_a_bounded_number_of_requests_at_once() {
    let service = Service::start(Limits::default());
    let (running, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let most = Arc::new(AtomicUsize::new(0));
    let (counted, released, highest) = (running.clone(), go.clone(), most.clone());
    service.server.answer(move |_| {
        let (running, go, most) = (counted.clone(), released.clone(), highest.clone());
        async move {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            go.notified().await;
            running.fetch_sub(1, Ordering::SeqCst);
            Response::status(200)
        }
    });
    let raw = Raw::connect(&service).await;
    let mut asked = Vec::new();
    for _ in 0..20 {
        asked.push(send(&raw, &head("GET", "/", &[])).await);
    }
    // Each answer makes room for one request more.
    let release = async {
        while running.load(Ordering::SeqCst) < 8 {
            tokio::task::yield_now().await;
        }
        loop {
            go.notify_one();
            tokio::task::yield_now().await;
        }
    };
    let answers = futures_util::future::join_all(asked.into_iter().map(whole));
    tokio::select! {
        answers = answers => assert!(answers.iter().all(|(head, _)| head.status == 200)),
        () = release => {}
    }
    assert_eq!(most.load(Ordering::SeqCst), 8);
}

#[tokio::test]
async fn after_goaway_no_request_is_taken() {
    let service = service(Limits::default());
    let raw = Raw::connect(&service).await;
    // A session holds the connection.
    let (_connect, _recv) = raw.ask("/").await;
    let requested = soon(service.requested()).await;
    let _session = requested.accept(Answer::ok()).await.unwrap();
    let before = raw.bi(&head("GET", "/hello", &[])[..4]).await;
    // It has arrived when the server has answered what was sent after it.
    ask(&raw, &head("GET", "/hello", &[])).await;
    service.server.drain();
    // GOAWAY is sent once a later request is refused.
    loop {
        let mut recv = send(&raw, &head("GET", "/hello", &[])).await;
        match soon(recv.read_to_end(1 << 16)).await {
            Ok(_) => {}
            Err(quinn::ReadToEndError::Read(quinn::ReadError::Reset(refused))) => {
                assert_eq!(refused.into_inner(), code::REQUEST_REJECTED);
                break;
            }
            Err(other) => panic!("{other}"),
        }
    }
    let (mut rest, recv) = before;
    rest.write_all(&head("GET", "/hello", &[])[4..])
        .await
        .unwrap();
    rest.finish().unwrap();
    assert_eq!(whole(recv).await.1, "hello");
}

#[tokio::test]
async fn an_answer_that_takes_time_keeps_its_connection() {
    let service = Service::start(Limits {
        header_timeout: Duration::from_secs(1),
        ..Limits::default()
    });
    service.server.answer(|_| std::future::pending());
    let raw = Raw::connect(&service).await;
    // The answer is given up later than the connection would be for want of a session.
    let waiting = send(&raw, &head("GET", "/hello", &[])).await;
    assert_eq!(whole(waiting).await.0.status, 503);
    assert!(raw.quic.close_reason().is_none());
}
