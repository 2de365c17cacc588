//! A TCP upstream: each bidirectional stream of the session is one TCP connection.
//!
//! The first connection is made before the session is answered, so that an upstream that is not
//! there is a status and not a broken stream; the first stream gets it. FIN is half-close, either
//! way. A reset from one side becomes a reset on the other, and so does a session that ends before
//! the client's FIN: a half-written stream never looks complete. A client that stops reading does
//! not stop its own sending; what the upstream still says is thrown away until the client's FIN.
//! Unidirectional streams are stopped and datagrams dropped: TCP has neither.

use std::{io, sync::Mutex, sync::PoisonError, time::Duration};

use bytes::BytesMut;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;
use wavry_proto::session::stream_code;
use wavry_transport::session::{Closed, ReadError, RecvStream, SendStream, Session, WriteError};

use super::{
    Counts, DialError, Ended,
    stream::{each_bi, refuse_uni},
};
use crate::config::HostPort;

/// Read from TCP at once. One such buffer is held per stream.
const CHUNK: usize = 64 * 1024;
/// Below so much room a new buffer is taken.
const MIN_ROOM: usize = 4 * 1024;

/// A TCP upstream that took a connection.
pub(crate) struct Dialled {
    at: HostPort,
    connect_timeout: Duration,
    first: Mutex<Option<TcpStream>>,
}

impl Dialled {
    pub(super) async fn connect(
        at: &HostPort,
        connect_timeout: Duration,
    ) -> Result<Self, DialError> {
        let first = connect(at)
            .await
            .map_err(|error| DialError::Refused(error.to_string()))?;
        Ok(Self {
            at: at.clone(),
            connect_timeout,
            first: Mutex::new(Some(first)),
        })
    }

    pub(super) async fn carry<S: Session>(&self, session: &S) -> Ended {
        let counts = Counts::new("tcp");
        let bi = each_bi(session, &counts, |send, recv| {
            let first = self
                .first
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            let (at, within, counts) = (self.at.clone(), self.connect_timeout, counts.clone());
            async move {
                match connection(first, &at, within).await {
                    Ok(tcp) => serve(tcp, send, recv, &counts).await,
                    Err(error) => {
                        debug!(%error, "the upstream takes no connection");
                        counts.stream_refused("upstream_refused");
                        refuse(send, recv);
                    }
                }
            }
        });
        let closed = tokio::select! {
            closed = session.closed() => closed,
            closed = bi => closed,
            closed = refuse_uni(session, &counts) => closed,
            closed = drop_datagrams(session, &counts) => closed,
        };
        Ended::here(closed)
    }
}

/// The connection for a stream: `first` if the upstream did not end it while it waited.
async fn connection(
    first: Option<TcpStream>,
    at: &HostPort,
    within: Duration,
) -> io::Result<TcpStream> {
    if let Some(first) = first {
        let mut byte = [0];
        match timeout(Duration::ZERO, first.peek(&mut byte)).await {
            Ok(Ok(0) | Err(_)) => debug!("the first connection ended before it was used"),
            Ok(Ok(_)) | Err(_) => return Ok(first),
        }
    }
    timeout(within, connect(at))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn connect(at: &HostPort) -> io::Result<TcpStream> {
    let tcp = TcpStream::connect((at.host.as_str(), at.port)).await?;
    tcp.set_nodelay(true)?;
    // Closed before the client's FIN was passed on, the connection is reset; see `to_upstream`.
    SockRef::from(&tcp).set_linger(Some(Duration::ZERO))?;
    Ok(tcp)
}

fn refuse(mut send: impl SendStream, mut recv: impl RecvStream) {
    send.reset(stream_code::UPSTREAM_REFUSED);
    recv.stop(stream_code::UPSTREAM_REFUSED);
}

/// The connection was reset by one side.
struct Broken;

async fn serve<W: SendStream, R: RecvStream>(
    mut tcp: TcpStream,
    send: W,
    recv: R,
    counts: &Counts,
) {
    // Halves that do not own the socket do not send a FIN when they are dropped.
    let (mut from, mut to) = tcp.split();
    // Each direction takes its stream out when it is done with it.
    let (mut send, mut recv) = (Some(send), Some(recv));
    let sent = CancellationToken::new();
    let both = tokio::try_join!(
        to_upstream(&mut recv, &mut to, sent.clone().drop_guard(), counts),
        from_upstream(&mut from, &mut send, &sent, counts),
    );
    if let Err(Broken) = both {
        counts.stream_refused("upstream_reset");
        if let Some(mut send) = send {
            send.reset(stream_code::UPSTREAM_RESET);
        }
        if let Some(mut recv) = recv {
            recv.stop(stream_code::UPSTREAM_RESET);
        }
    }
}

/// Everything from the client to the upstream, to the FIN. `_sent` says when that is over.
async fn to_upstream<R: RecvStream>(
    recv: &mut Option<R>,
    to: &mut WriteHalf<'_>,
    _sent: DropGuard,
    counts: &Counts,
) -> Result<(), Broken> {
    let Some(stream) = recv else { return Ok(()) };
    loop {
        match stream.read().await {
            Ok(Some(mut chunk)) => {
                counts.bytes_from_client.increment(chunk.len() as u64);
                if to.write_all_buf(&mut chunk).await.is_err() {
                    // It takes no more, but may have said something that is still to be read.
                    stream.stop(stream_code::UPSTREAM_RESET);
                    break;
                }
            }
            Ok(None) => {
                if to.shutdown().await.is_ok() {
                    let _ = SockRef::from(AsRef::<TcpStream>::as_ref(to)).set_linger(None);
                }
                break;
            }
            Err(ReadError::Reset(_) | ReadError::Session(_)) => {
                *recv = None;
                return Err(Broken);
            }
        }
    }
    *recv = None;
    Ok(())
}

/// Everything from the upstream to the client, to the FIN; once the client stopped it, it is read
/// and thrown away until `sent`.
async fn from_upstream<W: SendStream>(
    from: &mut ReadHalf<'_>,
    send: &mut Option<W>,
    sent: &CancellationToken,
    counts: &Counts,
) -> Result<(), Broken> {
    let mut buffer = BytesMut::new();
    while let Some(stream) = send {
        if buffer.capacity() < MIN_ROOM {
            buffer.reserve(CHUNK);
        }
        let read = tokio::select! {
            read = from.read_buf(&mut buffer) => read.map_err(|_| Broken)?,
            Some(_) = stream.stopped() => break,
        };
        if read == 0 {
            let _ = stream.finish();
            *send = None;
            return Ok(());
        }
        match stream.write(buffer.split().freeze()).await {
            Ok(()) => counts.bytes_to_client.increment(read as u64),
            Err(WriteError::Stopped(_) | WriteError::Finished) => break,
            Err(WriteError::Session(_)) => return Err(Broken),
        }
    }
    *send = None;
    let discard = async {
        loop {
            buffer.clear();
            buffer.reserve(MIN_ROOM);
            if !matches!(from.read_buf(&mut buffer).await, Ok(1..)) {
                return;
            }
        }
    };
    tokio::select! {
        () = discard => {}
        () = sent.cancelled() => {}
    }
    Ok(())
}

async fn drop_datagrams<S: Session>(session: &S, counts: &Counts) -> Closed {
    loop {
        match session.recv_datagram().await {
            Ok(_) => counts.datagram_dropped("from_client", "unsupported"),
            Err(closed) => return closed,
        }
    }
}
