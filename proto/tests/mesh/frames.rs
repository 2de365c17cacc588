//! Frames and headers against the vectors in `vectors/mesh`, and against everything else.

use std::net::{IpAddr, SocketAddr};

use bytes::BytesMut;
use proptest::{collection::vec, option, prelude::*};
use wavry_proto::{
    mesh::{
        Open,
        frame::{Decoder, Error, Frame, MAX_BODY},
        header::{SessionId, Side, StreamHeader, get_datagram, put_datagram, reset_code},
    },
    session::{Close, Header, MAX_CLOSE_REASON, Request, Response},
    varint,
};

fn encode(frame: &Frame) -> Vec<u8> {
    let mut buf = BytesMut::new();
    frame.put(&mut buf).unwrap();
    buf.to_vec()
}

fn decode_all(bytes: &[u8]) -> Result<Vec<Frame>, Error> {
    let mut decoder = Decoder::default();
    decoder.push(bytes);
    let mut frames = Vec::new();
    while let Some(frame) = decoder.next_frame()? {
        frames.push(frame);
    }
    Ok(frames)
}

fn known() -> Vec<(&'static str, Frame)> {
    let request = Request {
        authority: "example.test".into(),
        path: "/echo?x=1".into(),
        origin: Some("https://app.test".into()),
        headers: vec![Header {
            name: "user-agent".into(),
            value: "x".into(),
        }],
        subprotocols: vec!["a".into(), "b".into()],
    };
    let open = Open {
        service: "echo".parse().unwrap(),
        request: request.clone(),
        client: "192.0.2.1:4433".parse().unwrap(),
        subject: Some("alice".into()),
        claims: Some("{}".into()),
    };
    let least = Open {
        service: "echo".parse().unwrap(),
        request: Request {
            authority: "h".into(),
            path: "/".into(),
            ..Request::default()
        },
        client: "[2001:db8::1]:1".parse().unwrap(),
        subject: None,
        claims: None,
    };
    let answer = Response {
        status: 200,
        subprotocol: Some("b".into()),
        headers: vec![Header {
            name: "server".into(),
            value: "y".into(),
        }],
    };
    vec![
        ("open", Frame::Open(Box::new(open))),
        ("open-least", Frame::Open(Box::new(least))),
        ("answer", Frame::Answer(answer)),
        ("answer-status", Frame::Answer(Response::status(503))),
        ("max-data", Frame::MaxData(2 * 1024 * 1024)),
        ("max-streams-bidi", Frame::MaxStreamsBidi(16)),
        ("max-streams-uni", Frame::MaxStreamsUni(100)),
        (
            "stream-abandoned",
            Frame::StreamAbandoned {
                stream: 14,
                bytes: 1_000_000,
            },
        ),
        (
            "stop-stream",
            Frame::StopStream {
                stream: 4,
                code: u32::MAX,
            },
        ),
        ("drain", Frame::Drain),
        ("close", Frame::Close(Close::new(42, "done ✓"))),
        ("close-least", Frame::Close(Close::default())),
    ]
}

/// Lines of `name hex`; `#` begins a comment.
fn vectors(text: &str) -> Vec<(&str, Vec<u8>)> {
    text.lines()
        .map(|line| line.split('#').next().unwrap().trim())
        .filter(|line| !line.is_empty())
        .map(|line| {
            let (name, bytes) = line.split_once(' ').unwrap();
            (name, hex::decode(bytes.replace(' ', "")).unwrap())
        })
        .collect()
}

#[test]
fn frames_are_those_of_the_vectors() {
    let vectors = vectors(include_str!("../vectors/mesh/frames.txt"));
    let known = known();
    for (name, frame) in &known {
        let (_, bytes) = vectors
            .iter()
            .find(|(n, _)| n == name)
            .unwrap_or_else(|| panic!("no vector {name}: {}", hex::encode(encode(frame))));
        assert_eq!(hex::encode(encode(frame)), hex::encode(bytes), "{name}");
        assert_eq!(
            decode_all(bytes).unwrap(),
            std::slice::from_ref(frame),
            "{name}"
        );
    }
    assert_eq!(vectors.len(), known.len());
}

#[test]
fn what_is_not_a_frame_is_refused_as_the_vectors_say() {
    let vectors = vectors(include_str!("../vectors/mesh/not-frames.txt"));
    for (name, bytes) in &vectors {
        let outcome = decode_all(bytes);
        let expected = match name.split('.').next().unwrap() {
            "skipped" => Ok(vec![]),
            "too-long" => Err(Error::TooLong(65537)),
            "version" => Err(Error::Version(2)),
            malformed => Err(Error::Malformed(match malformed {
                "open" => "OPEN",
                "answer" => "ANSWER",
                "max-data" => "MAX_DATA",
                "stop-stream" => "STOP_STREAM",
                "drain" => "DRAIN",
                "close" => "CLOSE",
                other => panic!("unknown kind {other}"),
            })),
        };
        assert_eq!(outcome, expected, "{name}");
    }
    assert!(vectors.len() >= 10);
}

#[test]
fn headers_are_those_of_the_vectors() {
    let client = |n| SessionId::new(n, Side::Client).unwrap();
    let server = |n| SessionId::new(n, Side::Server).unwrap();
    let stream = |header: StreamHeader| {
        let mut bytes = Vec::new();
        header.put(&mut bytes);
        bytes
    };
    let datagram = |id| {
        let mut bytes = Vec::new();
        put_datagram(&mut bytes, id);
        bytes.extend_from_slice(b"payload");
        assert_eq!(get_datagram(&mut &bytes[..]), Some(id));
        bytes
    };
    let code = |id, code| {
        let mut bytes = Vec::new();
        varint::put(&mut bytes, reset_code(id, code));
        bytes
    };
    let known = [
        ("control-client-0", stream(StreamHeader::Control(client(0)))),
        ("control-server-0", stream(StreamHeader::Control(server(0)))),
        ("data-client-1", stream(StreamHeader::Data(client(1)))),
        ("data-server-100", stream(StreamHeader::Data(server(100)))),
        ("datagram-client-0", datagram(client(0))),
        ("datagram-client-1000", datagram(client(1000))),
        ("reset-client-3-code-7", code(client(3), 7)),
        (
            "reset-last-code-max",
            code(server(SessionId::MAX / 2), u32::MAX),
        ),
    ];
    let vectors = vectors(include_str!("../vectors/mesh/headers.txt"));
    for (name, bytes) in &known {
        let (_, expected) = vectors
            .iter()
            .find(|(n, _)| n == name)
            .unwrap_or_else(|| panic!("no vector {name}: {}", hex::encode(bytes)));
        assert_eq!(hex::encode(bytes), hex::encode(expected), "{name}");
    }
    assert_eq!(vectors.len(), known.len());
}

#[test]
fn a_frame_over_the_limit_is_not_sent() {
    let answer = Response {
        headers: vec![Header {
            name: "x".into(),
            value: "v".repeat(MAX_BODY),
        }],
        ..Response::ok()
    };
    let mut buf = BytesMut::new();
    assert!(Frame::Answer(answer).put(&mut buf).is_err());
    assert!(buf.is_empty());
}

fn header() -> impl Strategy<Value = Header> {
    ("[a-z-]{1,12}", ".{0,20}").prop_map(|(name, value)| Header { name, value })
}

fn open() -> impl Strategy<Value = Frame> {
    let request = (
        ".{0,30}",
        ".{0,60}",
        option::of(".{0,30}"),
        vec(header(), 0..4),
        vec(".{0,10}", 0..4),
    )
        .prop_map(|(authority, path, origin, headers, subprotocols)| Request {
            authority,
            path,
            origin,
            headers,
            subprotocols,
        });
    (
        "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?",
        request,
        any::<(IpAddr, u16)>(),
        option::of(".{0,30}"),
        option::of(".{0,60}"),
    )
        .prop_map(|(service, request, (ip, port), subject, claims)| {
            Frame::Open(Box::new(Open {
                service: service.parse().unwrap(),
                request,
                client: SocketAddr::new(ip, port),
                subject,
                claims,
            }))
        })
}

fn frame() -> impl Strategy<Value = Frame> {
    let int = 0..=varint::MAX;
    prop_oneof![
        open(),
        (100..1000u16, option::of(".{0,10}"), vec(header(), 0..4)).prop_map(
            |(status, subprotocol, headers)| Frame::Answer(Response {
                status,
                subprotocol,
                headers,
            })
        ),
        int.clone().prop_map(Frame::MaxData),
        int.clone().prop_map(Frame::MaxStreamsBidi),
        int.clone().prop_map(Frame::MaxStreamsUni),
        (int.clone(), int.clone())
            .prop_map(|(stream, bytes)| Frame::StreamAbandoned { stream, bytes }),
        (int, any::<u32>()).prop_map(|(stream, code)| Frame::StopStream { stream, code }),
        Just(Frame::Drain),
        (any::<u32>(), ".{0,300}")
            .prop_map(|(code, reason)| Frame::Close(Close::new(code, &reason))),
    ]
}

proptest! {
    #[test]
    fn frames_survive_their_encoding_in_whatever_pieces_they_come(
        frames in vec(frame(), 0..6),
        cuts in vec(any::<prop::sample::Index>(), 0..10),
    ) {
        let bytes: Vec<u8> = frames.iter().flat_map(encode).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let mut decoder = Decoder::default();
        let mut decoded = Vec::new();
        for piece in cuts.windows(2) {
            decoder.push(&bytes[piece[0]..piece[1]]);
            while let Some(frame) = decoder.next_frame().unwrap() {
                decoded.push(frame);
            }
        }
        prop_assert!(!decoder.is_mid_frame());
        prop_assert_eq!(decoded, frames);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        let _ = decode_all(&bytes);
    }

    #[test]
    fn arbitrary_bodies_never_panic_and_what_decodes_encodes_again(
        kind in 0..12u64,
        body in vec(any::<u8>(), 0..200),
    ) {
        let mut bytes = Vec::new();
        varint::put(&mut bytes, kind);
        varint::put(&mut bytes, body.len() as u64);
        bytes.extend_from_slice(&body);
        for frame in decode_all(&bytes).unwrap_or_default() {
            if let Frame::Close(close) = &frame {
                prop_assert!(close.reason.len() <= MAX_CLOSE_REASON);
            }
            prop_assert_eq!(decode_all(&encode(&frame)).unwrap(), [frame]);
        }
    }

    #[test]
    fn a_frame_with_one_byte_changed_never_panics(
        frame in frame(),
        at in any::<prop::sample::Index>(),
        to: u8,
    ) {
        let mut bytes = encode(&frame);
        let at = at.index(bytes.len());
        bytes[at] = to;
        let _ = decode_all(&bytes);
    }
}
