//! Runs a case against our server.

use std::time::Duration;

use wavry_proto::{
    h3::{code, frame::kind, stream},
    varint,
};
use wavry_transport::{
    session::{Response, Session as _},
    webtransport::{Limits, Server, Session},
};

use super::script::{Expected, Start, Step, get, session, wt_bi};
use crate::{
    raw::{self, Raw, answer, headers, lines},
    support::{Service, echo, read_all, request, soon, write_all},
};

pub(super) async fn run(start: Start, steps: Vec<Step>, expected: Expected) {
    let header_timeout = match start {
        Start::ReadyHasty | Start::SilentHasty => Duration::from_millis(400),
        _ => Limits::default().header_timeout,
    };
    let service = Service::start(Limits {
        header_timeout,
        ..Limits::default()
    });
    tokio::spawn(serve(service.server.clone()));
    let client = service.client();
    let canary = soon(service.connect(&client, request("/canary"))).await;
    let canary = canary.unwrap().0;
    tokio::select! {
        () = case(&service, start, steps, expected) => {}
        () = sing(&canary) => {}
    }
    round_trip(&canary).await;
}

/// Accepts every session and echoes what comes on it.
async fn serve(server: Server) {
    while let Some(requested) = server.accept().await {
        tokio::spawn(async move {
            if let Ok(session) = requested.accept(Response::ok()).await {
                echo(session).await;
            }
        });
    }
}

/// Never stops, and fails when the session does not echo.
pub(super) async fn sing(canary: &Session) {
    // Paced, as others want the processor.
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    loop {
        pace.tick().await;
        round_trip(canary).await;
    }
}

pub(super) async fn round_trip(session: &Session) {
    let (mut send, mut recv) = soon(session.open_bi()).await.unwrap();
    write_all(&mut send, b"still here").await;
    assert_eq!(read_all(&mut recv).await, b"still here");
}

/// A connection of the case, and what was opened on it.
struct Case {
    raw: Raw,
    /// The session beside the case's own.
    beside: Option<u64>,
    kept: Option<Stream>,
    /// The CONNECT stream of the case's own session.
    connect: Option<Stream>,
    /// Opened by steps.
    streams: Vec<Stream>,
    last: Last,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Control,
    Connect,
    Opened,
    Datagram,
}

pub(super) struct Stream {
    pub(super) send: quinn::SendStream,
    pub(super) recv: Option<quinn::RecvStream>,
    /// Its first bytes, which say what it is.
    pub(super) first: Vec<u8>,
    pub(super) ended: bool,
}

async fn case(service: &Service, start: Start, steps: Vec<Step>, expected: Expected) {
    let mut case = Case {
        raw: Raw::silent(service).await,
        beside: None,
        kept: None,
        connect: None,
        streams: Vec::new(),
        last: Last::Opened,
    };
    match start {
        Start::Silent | Start::SilentHasty => {}
        Start::Older => {
            case.raw.say(&raw::settings(&raw::SETTINGS)).await;
            case.open_beside().await;
        }
        _ => case.settle().await,
    }
    if matches!(start, Start::Session | Start::Older) {
        case.connect = Some(case.ask().await);
    }
    for step in steps {
        case.step(step).await;
    }
    case.expect(expected).await;
}

impl Case {
    /// Says the settings and opens the session beside.
    async fn settle(&mut self) {
        self.raw.say_settings().await;
        self.open_beside().await;
    }

    async fn open_beside(&mut self) {
        let connect = self.ask().await;
        self.beside = Some(id(&connect.send));
        // Open for as long as the connection.
        self.kept = Some(connect);
    }

    /// Whether a step has opened the control stream.
    fn said_settings(&self) -> bool {
        let is_control = |s: &Stream| s.first.first() == Some(&(stream::CONTROL as u8));
        self.streams
            .iter()
            .any(|s| s.recv.is_none() && is_control(s))
    }

    async fn ask(&self) -> Stream {
        let first = headers(&lines(&session())).to_vec();
        let (send, mut recv) = self.raw.bi(&first).await;
        assert_eq!(answer(&mut recv).await.status, 200);
        Stream {
            send,
            recv: Some(recv),
            first,
            ended: false,
        }
    }

    /// The stream that was written last.
    fn last(&mut self) -> &mut Stream {
        match self.last {
            Last::Connect => self.connect.as_mut().unwrap(),
            _ => self.streams.last_mut().unwrap(),
        }
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Uni(first) => {
                let mut send = soon(self.raw.quic.open_uni()).await.unwrap();
                // The server may have closed the connection by now.
                let _ = send.write_all(&first).await;
                self.streams.push(Stream {
                    send,
                    recv: None,
                    first,
                    ended: false,
                });
                self.last = Last::Opened;
            }
            Step::Bi(first) => {
                let (mut send, recv) = soon(self.raw.quic.open_bi()).await.unwrap();
                let _ = send.write_all(&first).await;
                self.streams.push(Stream {
                    send,
                    recv: Some(recv),
                    first,
                    ended: false,
                });
                self.last = Last::Opened;
            }
            Step::Beside => self.open_beside().await,
            Step::Control(bytes) => {
                self.raw.control(&bytes).await;
                self.last = Last::Control;
            }
            Step::Connect(bytes) => {
                self.last = Last::Connect;
                let _ = self.last().send.write_all(&bytes).await;
            }
            Step::More(bytes) => {
                self.last = Last::Opened;
                let _ = self.last().send.write_all(&bytes).await;
            }
            Step::Fin if self.last == Last::Control => self.raw.end_control(),
            Step::Fin => {
                let last = self.last();
                last.ended = true;
                let _ = last.send.finish();
            }
            Step::Reset if self.last == Last::Control => self.raw.reset_control(),
            Step::Reset => {
                let last = self.last();
                last.ended = true;
                let _ = last.send.reset(varint_of(code::REQUEST_CANCELLED));
            }
            Step::Stop(kind) => {
                let mut recv = self.raw.server_stream(kind).await;
                recv.stop(varint_of(code::NO_ERROR)).unwrap();
            }
            Step::Datagram(bytes) => {
                self.raw.quic.send_datagram(bytes.into()).unwrap();
                self.last = Last::Datagram;
            }
            Step::Meanwhile => self.expect_life().await,
            Step::Ended => {
                let recv = self.last().recv.as_mut().unwrap();
                let _ = soon(recv.read_to_end(1 << 16)).await;
            }
        }
    }

    async fn expect(mut self, expected: Expected) {
        match expected {
            Expected::Connection(code) => {
                assert_eq!(self.raw.closed().await, code);
                return;
            }
            Expected::Stream(code) => self.last().expect_refused(code).await,
            Expected::Answer(status) => {
                let recv = self.last().recv.as_mut().unwrap();
                assert_eq!(answer(recv).await.status, status);
            }
            Expected::Closed => {
                let recv = self.last().recv.as_mut().unwrap();
                soon(recv.read_to_end(1 << 16)).await.unwrap();
            }
            Expected::Ignored => {}
        }
        self.expect_life().await;
        if expected == Expected::Ignored {
            self.probe().await;
        }
    }

    /// The connection lives: the session beside goes on, or one can still be opened.
    async fn expect_life(&mut self) {
        if self.beside.is_none() && !self.said_settings() {
            self.settle().await;
        }
        let Some(beside) = self.beside else {
            // With those settings there may be no session.
            assert_eq!(self.raw.status(&get()).await, 404);
            return;
        };
        for _ in 0..2 {
            let bytes = wt_bi(beside, b"neighbour");
            let (mut send, mut recv) = self.raw.bi(&bytes).await;
            send.finish().unwrap();
            assert_eq!(soon(recv.read_to_end(100)).await.unwrap(), b"neighbour");
        }
        assert!(self.raw.quic.close_reason().is_none());
    }

    /// Everything that was ignored was read, where that can be seen: what follows it is not ignored.
    async fn probe(&mut self) {
        let after = match self.last {
            Last::Control => Some((frame_of(kind::DATA), code::FRAME_UNEXPECTED)),
            Last::Opened => match self.streams.last().filter(|s| s.recv.is_none() && !s.ended) {
                Some(opened) => match varint::get(&mut &opened.first[..]) {
                    Some(stream::CONTROL) => Some((frame_of(kind::DATA), code::FRAME_UNEXPECTED)),
                    Some(stream::QPACK_ENCODER) => {
                        Some((vec![0], code::QPACK_ENCODER_STREAM_ERROR))
                    }
                    Some(stream::QPACK_DECODER) => {
                        Some((vec![0], code::QPACK_DECODER_STREAM_ERROR))
                    }
                    _ => None,
                },
                None => None,
            },
            Last::Connect | Last::Datagram => None,
        };
        let Some((bytes, code)) = after else { return };
        match self.last {
            Last::Control => self.raw.control(&bytes).await,
            _ => self.last().send.write_all(&bytes).await.unwrap(),
        }
        assert_eq!(self.raw.closed().await, code);
    }
}

impl Stream {
    pub(super) async fn expect_refused(&mut self, code: u64) {
        if let Some(recv) = &mut self.recv {
            let refused = soon(recv.read_to_end(1 << 16)).await.unwrap_err();
            let quinn::ReadToEndError::Read(quinn::ReadError::Reset(reset)) = refused else {
                panic!("not reset: {refused}");
            };
            assert_eq!(reset.into_inner(), code, "RESET_STREAM");
        }
        if !self.ended {
            let stopped = soon(self.send.stopped()).await.unwrap();
            let stopped = stopped.expect("everything was taken");
            assert_eq!(stopped.into_inner(), code, "STOP_SENDING");
        }
    }
}

fn frame_of(kind: u64) -> Vec<u8> {
    super::script::frame(kind, b"")
}

fn id(send: &quinn::SendStream) -> u64 {
    quinn::VarInt::from(send.id()).into_inner()
}

pub(super) fn varint_of(code: u64) -> quinn::VarInt {
    quinn::VarInt::from_u64(code).unwrap()
}
