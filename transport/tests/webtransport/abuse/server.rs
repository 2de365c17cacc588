//! Runs a case against our client.

use std::time::Duration;

use wavry_proto::h3::{code, settings::id};
use wavry_transport::webtransport::{Client, ConnectError, Limits};

use super::{
    run::{Stream, round_trip, sing, varint_of},
    script::{Expected, Start, Step, control, headers, wt_bi},
};
use crate::{
    raw,
    support::{Identity, Service, echo, loopback, request, soon},
};

/// Settings of a server that takes sessions.
pub(super) const SETTINGS: [(u64, u64); 3] = [
    (id::ENABLE_CONNECT_PROTOCOL, 1),
    (id::H3_DATAGRAM, 1),
    (id::WEBTRANSPORT_MAX_SESSIONS_DRAFT07, 1),
];

/// Settings of a server that takes sessions of the newest draft.
pub(super) const NEWEST: [(u64, u64); 3] = [
    (id::ENABLE_CONNECT_PROTOCOL, 1),
    (id::H3_DATAGRAM, 1),
    (id::WT_ENABLED, 1),
];

/// The case is told from the server's side; its session is the one that the client asks for.
pub(super) async fn run(start: Start, steps: Vec<Step>, expected: Expected) {
    let header_timeout = match start {
        Start::ReadyHasty | Start::SilentHasty => Duration::from_millis(400),
        _ => Limits::default().header_timeout,
    };
    let service = Service::start(Limits::default());
    let limits = Limits {
        header_timeout,
        ..Limits::default()
    };
    let client = Client::new(loopback(), service.identity.client_tls(), limits).unwrap();
    let (canary, server) = tokio::join!(service.connect(&client, request("/canary")), async {
        let requested = service.requested().await;
        requested
            .accept(wavry_transport::session::Response::ok())
            .await
    });
    let canary = canary.unwrap().0;
    tokio::spawn(echo(server.unwrap()));
    tokio::select! {
        () = case(&client, &service.identity, start, steps, expected) => {}
        () = sing(&canary) => {}
    }
    round_trip(&canary).await;
}

async fn case(
    client: &Client,
    identity: &Identity,
    start: Start,
    steps: Vec<Step>,
    expected: Expected,
) {
    let endpoint = raw::server(identity);
    let address = endpoint.local_addr().unwrap();
    let connect = async {
        match client.connect(address, "localhost", request("/case")).await {
            Ok((session, _)) => {
                tokio::spawn(echo(session));
                Ok(())
            }
            Err(error) => Err(error),
        }
    };
    let serve = async {
        let incoming = soon(endpoint.accept()).await.unwrap();
        let quic = soon(incoming.accept().unwrap()).await.unwrap();
        let mut case = Case {
            quic,
            control: None,
            connect: None,
            streams: Vec::new(),
            last: Last::Opened,
        };
        if !matches!(start, Start::Silent | Start::SilentHasty) {
            case.settle().await;
        }
        if start == Start::Session {
            case.step(Step::Connect(headers(&[(":status", "200")])))
                .await;
        }
        for step in steps {
            case.step(step).await;
        }
        case.expect(expected).await;
        case
    };
    let (connected, case) = tokio::join!(soon(connect), serve);
    match expected {
        Expected::Answer(status) => match connected {
            Err(ConnectError::Rejected(response)) => assert_eq!(response.status, status),
            other => panic!("not refused: {other:?}"),
        },
        Expected::Connection(_) if start != Start::Session => {
            connected.expect_err("there is a session");
        }
        Expected::Connection(_) => {}
        Expected::Stream(_) | Expected::Ignored => {
            connected.unwrap();
            case.expect_life().await;
        }
        Expected::Closed => panic!("not about a client"),
    }
}

struct Case {
    quic: quinn::Connection,
    control: Option<quinn::SendStream>,
    connect: Option<Stream>,
    streams: Vec<Stream>,
    last: Last,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Connect,
    Opened,
}

impl Case {
    /// Says the settings and waits for the request.
    async fn settle(&mut self) {
        let mut send = soon(self.quic.open_uni()).await.unwrap();
        send.write_all(&control(&SETTINGS)).await.unwrap();
        self.control = Some(send);
        self.wait_for_request().await;
    }

    async fn wait_for_request(&mut self) {
        let (send, mut recv) = soon(self.quic.accept_bi()).await.unwrap();
        let mut first = vec![0];
        soon(recv.read_exact(&mut first)).await.unwrap();
        self.connect = Some(Stream {
            send,
            recv: Some(recv),
            first,
            ended: false,
        });
    }

    fn last(&mut self) -> &mut Stream {
        match self.last {
            Last::Connect => self.connect.as_mut().unwrap(),
            Last::Opened => self.streams.last_mut().unwrap(),
        }
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Uni(first) => {
                let mut send = soon(self.quic.open_uni()).await.unwrap();
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
                let (mut send, recv) = soon(self.quic.open_bi()).await.unwrap();
                let _ = send.write_all(&first).await;
                self.streams.push(Stream {
                    send,
                    recv: Some(recv),
                    first,
                    ended: false,
                });
                self.last = Last::Opened;
            }
            Step::Control(bytes) => {
                let control = self.control.as_mut().unwrap();
                control.write_all(&bytes).await.unwrap();
            }
            Step::Connect(bytes) => {
                if self.connect.is_none() {
                    self.wait_for_request().await;
                }
                self.last = Last::Connect;
                let _ = self.last().send.write_all(&bytes).await;
            }
            Step::More(bytes) => {
                let _ = self.last().send.write_all(&bytes).await;
            }
            Step::Fin => {
                let last = self.last();
                last.ended = true;
                let _ = last.send.finish();
            }
            Step::Reset => {
                let last = self.last();
                last.ended = true;
                let _ = last.send.reset(varint_of(code::INTERNAL_ERROR));
            }
            Step::Datagram(bytes) => self.quic.send_datagram(bytes.into()).unwrap(),
            _ => panic!("not about a client"),
        }
    }

    async fn expect(&mut self, expected: Expected) {
        match expected {
            Expected::Connection(code) => match soon(self.quic.closed()).await {
                quinn::ConnectionError::ApplicationClosed(close) => {
                    assert_eq!(close.error_code.into_inner(), code);
                }
                other => panic!("not closed by the application: {other}"),
            },
            Expected::Stream(code) => self.last().expect_refused(code).await,
            Expected::Answer(_) | Expected::Ignored | Expected::Closed => {}
        }
    }

    /// The client echoes on the session.
    async fn expect_life(&self) {
        for _ in 0..2 {
            let (mut send, mut recv) = soon(self.quic.open_bi()).await.unwrap();
            send.write_all(&wt_bi(0, b"neighbour")).await.unwrap();
            send.finish().unwrap();
            assert_eq!(soon(recv.read_to_end(100)).await.unwrap(), b"neighbour");
        }
    }
}
