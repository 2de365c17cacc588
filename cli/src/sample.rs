//! The sample WebTransport service: a clock that also answers.
//!
//! Subprotocol `wavry-clock.v1`. The service opens one unidirectional stream and writes a line with
//! the time to it every second. It sends every line of a bidirectional stream back in upper case;
//! the lines `close CODE REASON` and `reset CODE` do what they say. A datagram `ping TEXT` is
//! answered with `pong TEXT TIME`, any other comes back as it is.

use std::{future::Future, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::task::JoinSet;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wavry_credentials::{cert, source};
use wavry_transport::{
    session::{Close, Closed, ReadError, RecvStream, Response, SendStream, Session, WriteError},
    webtransport::{Limits, Requested, Server},
};

use crate::{log, ready, shutdown};

/// `wavry sample`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// UDP address to serve on
    #[arg(long, default_value = "127.0.0.1:4434")]
    listen: SocketAddr,
    /// PEM file with the certificate chain; its key is the secret tls_key
    #[arg(long, value_name = "FILE")]
    certificate: PathBuf,
    /// Write {"role","pid","address","ops"} to FILE once the service serves
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Also shut down when standard input ends
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
}

/// The subprotocol it speaks.
pub(crate) const SUBPROTOCOL: &str = "wavry-clock.v1";
/// Longest line of a stream; a longer one is sent back in parts.
const MAX_LINE: usize = 4096;
/// Streams of one session answered at once; more wait to be accepted.
const STREAMS_AT_ONCE: usize = 64;
/// How long sessions have to end once the service shuts down.
const DRAIN: Duration = Duration::from_secs(5);

/// Serves until told to stop.
pub(crate) async fn run(args: &Args) -> anyhow::Result<()> {
    log::start_for_tool("info");
    let shutdown = shutdown::on_signal()?;
    if args.until_stdin_closes {
        shutdown::on_stdin_end(shutdown.clone());
    }
    let store = cert::Store::new();
    store.load(&args.certificate, &source::locate("tls_key")?)?;
    let socket = std::net::UdpSocket::bind(args.listen)
        .with_context(|| format!("cannot bind UDP {}", args.listen))?;
    // Every session comes from a relay, and so from one address.
    let limits = Limits::default();
    let limits = Limits {
        connections_per_ip: limits.connections,
        handshake_rate_per_ip: limits.handshake_rate,
        ..limits
    };
    let server = Server::new(socket, store.server_config(), limits)?;
    let address = server.local_addr()?;
    tracing::info!(%address, subprotocol = SUBPROTOCOL, "sample service serves");
    if let Some(file) = &args.ready_file {
        let content = ready::Role {
            role: "sample".to_owned(),
            pid: std::process::id(),
            address,
            ops: None,
        };
        ready::write(file, &content)?;
    }

    let sessions = TaskTracker::new();
    while let Some(Some(requested)) = shutdown.run_until_cancelled(server.accept()).await {
        sessions.spawn(serve(requested, shutdown.clone()));
    }
    server.drain();
    sessions.close();
    let _ = tokio::time::timeout(DRAIN, sessions.wait()).await;
    server.close().await;
    Ok(())
}

async fn serve(requested: Requested, shutdown: CancellationToken) {
    let request = requested.request();
    let path = request
        .path
        .split('?')
        .next()
        .unwrap_or_default()
        .to_owned();
    let chosen = request
        .subprotocols
        .iter()
        .any(|offered| offered == SUBPROTOCOL);
    let response = Response {
        subprotocol: chosen.then(|| SUBPROTOCOL.to_owned()),
        ..Response::ok()
    };
    let Ok(session) = requested.accept(response).await else {
        return;
    };
    tracing::info!(path, "session opened");
    let over = answer(Arc::new(session), shutdown).await;
    tracing::info!(path, %over, "session over");
}

/// Answers one session until it is over.
async fn answer<S: Session>(session: Arc<S>, shutdown: CancellationToken) -> Closed {
    let draining = async {
        shutdown.cancelled().await;
        session.drain();
        tokio::time::sleep(DRAIN / 2).await;
        session.close(Close::new(0, "the sample service shuts down"));
        std::future::pending::<()>().await;
    };
    tokio::select! {
        over = session.closed() => over,
        () = quietly(clock(session.clone())) => session.closed().await,
        () = quietly(datagrams(session.clone())) => session.closed().await,
        () = quietly(streams(session.clone())) => session.closed().await,
        () = quietly(unidirectional(session.clone())) => session.closed().await,
        () = draining => session.closed().await,
    }
}

/// Part of a session that ends with the session, or before it without ending it.
async fn quietly(part: impl Future<Output = Result<(), Closed>>) {
    let _ = part.await;
    std::future::pending().await
}

async fn clock(session: Arc<impl Session>) -> Result<(), Closed> {
    let mut stream = session.open_uni().await?;
    let mut interval = tokio::time::interval(Duration::from_secs(1));
    loop {
        interval.tick().await;
        match stream.write(format!("{}\n", now()).into()).await {
            Ok(()) => {}
            Err(WriteError::Session(closed)) => return Err(closed),
            // The client has had enough of the time.
            Err(_) => return Ok(()),
        }
    }
}

async fn datagrams(session: Arc<impl Session>) -> Result<(), Closed> {
    loop {
        let payload = session.recv_datagram().await?;
        let pong = payload.strip_prefix(b"ping").map(|rest| {
            let time = now();
            Bytes::from([b"pong", rest.trim_ascii_end(), b" ", time.as_bytes()].concat())
        });
        // One that does not fit or does not go now is lost, as datagrams are.
        let _ = session.send_datagram(pong.unwrap_or(payload));
    }
}

async fn streams<S: Session>(session: Arc<S>) -> Result<(), Closed> {
    let mut answering = JoinSet::new();
    loop {
        while answering.len() >= STREAMS_AT_ONCE {
            answering.join_next().await;
        }
        let (send, recv) = session.accept_bi().await?;
        let session = session.clone();
        answering.spawn(async move { lines(&*session, send, recv).await });
        while answering.try_join_next().is_some() {}
    }
}

/// Reads what the client sends on its unidirectional streams, so that it can send all of it.
async fn unidirectional<S: Session>(session: Arc<S>) -> Result<(), Closed> {
    let mut reading = JoinSet::new();
    loop {
        while reading.len() >= STREAMS_AT_ONCE {
            reading.join_next().await;
        }
        let mut recv = session.accept_uni().await?;
        reading.spawn(async move { while let Ok(Some(_)) = recv.read().await {} });
        while reading.try_join_next().is_some() {}
    }
}

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Answer(Bytes),
    Close(Close),
    Reset(u32),
}

fn understand(line: &[u8]) -> Line {
    let text = String::from_utf8_lossy(line);
    let mut words = text.trim_end().splitn(3, ' ');
    let command = words.next();
    let code = words.next().and_then(|word| word.parse().ok());
    match (command, code) {
        (Some("close"), Some(code)) => {
            Line::Close(Close::new(code, words.next().unwrap_or_default()))
        }
        (Some("reset"), Some(code)) => Line::Reset(code),
        _ => Line::Answer(line.to_ascii_uppercase().into()),
    }
}

async fn lines<S: Session>(
    session: &S,
    mut send: S::Send,
    mut recv: S::Recv,
) -> Result<(), WriteError> {
    let mut buffer = BytesMut::new();
    loop {
        let chunk = match recv.read().await {
            Ok(chunk) => chunk,
            Err(ReadError::Reset(code)) => {
                send.reset(code);
                return Ok(());
            }
            Err(ReadError::Session(closed)) => return Err(closed.into()),
        };
        let ended = chunk.is_none();
        buffer.extend_from_slice(&chunk.unwrap_or_default());
        let mut answers = BytesMut::new();
        loop {
            let line = match buffer.iter().take(MAX_LINE).position(|byte| *byte == b'\n') {
                Some(at) => buffer.split_to(at + 1),
                None if buffer.len() >= MAX_LINE => buffer.split_to(MAX_LINE),
                None if ended && !buffer.is_empty() => buffer.split(),
                None => break,
            };
            match understand(&line) {
                Line::Answer(answer) => answers.extend_from_slice(&answer),
                Line::Close(close) => {
                    session.close(close);
                    return Ok(());
                }
                Line::Reset(code) => {
                    send.reset(code);
                    recv.stop(code);
                    return Ok(());
                }
            }
        }
        if !answers.is_empty() {
            send.write(answers.freeze()).await?;
        }
        if ended {
            return send.finish();
        }
    }
}

fn now() -> String {
    OffsetDateTime::now_utc()
        .format(&Rfc3339)
        .unwrap_or_else(|_| "the time cannot be told".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_comes_back_in_upper_case_or_is_a_command() {
        assert_eq!(understand(b"abc 1\n"), Line::Answer(b"ABC 1\n"[..].into()));
        assert_eq!(understand(b"close\n"), Line::Answer(b"CLOSE\n"[..].into()));
        assert_eq!(understand(b"reset 9\n"), Line::Reset(9));
        assert_eq!(
            understand(b"close 7 all done\n"),
            Line::Close(Close::new(7, "all done"))
        );
    }

    #[test]
    fn digits_and_other_octets_are_kept() {
        assert_eq!(understand(b"123\n"), Line::Answer(b"123\n"[..].into()));
        assert_eq!(
            understand(&[0xff, 0, b'a']),
            Line::Answer(vec![0xff, 0, b'A'].into())
        );
    }
}
