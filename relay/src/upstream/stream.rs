//! Streams of a session that the relay itself serves.

use std::future::Future;

use tokio::task::JoinSet;
use wavry_proto::session::stream_code;
use wavry_transport::session::{
    Closed, DatagramError, ReadError, RecvStream, SendStream, Session, WriteError,
};

use super::Counts;

/// Serves each bidirectional stream in a task of its own until the session is over, when the tasks
/// are dropped. There are at most as many as the mesh lets a session have streams.
pub(super) async fn each_bi<S, F, T>(session: &S, counts: &Counts, mut serve: F) -> Closed
where
    S: Session,
    F: FnMut(S::Send, S::Recv) -> T,
    T: Future<Output = ()> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            accepted = session.accept_bi() => match accepted {
                Ok((send, recv)) => {
                    counts.streams.increment(1);
                    tasks.spawn(serve(send, recv));
                }
                Err(closed) => return closed,
            },
            Some(_) = tasks.join_next() => {}
        }
    }
}

/// Serves each unidirectional stream as [`each_bi`] does the others.
pub(super) async fn each_uni<S, F, T>(session: &S, counts: &Counts, mut serve: F) -> Closed
where
    S: Session,
    F: FnMut(S::Recv) -> T,
    T: Future<Output = ()> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            accepted = session.accept_uni() => match accepted {
                Ok(recv) => {
                    counts.streams.increment(1);
                    tasks.spawn(serve(recv));
                }
                Err(closed) => return closed,
            },
            Some(_) = tasks.join_next() => {}
        }
    }
}

/// Refuses every bidirectional stream: this upstream has none.
pub(super) async fn refuse_bi<S: Session>(session: &S, counts: &Counts) -> Closed {
    loop {
        match session.accept_bi().await {
            Ok((mut send, mut recv)) => {
                send.reset(stream_code::UNSUPPORTED);
                recv.stop(stream_code::UNSUPPORTED);
                counts.stream_refused("unsupported");
            }
            Err(closed) => return closed,
        }
    }
}

/// Refuses every unidirectional stream: this upstream has none.
pub(super) async fn refuse_uni<S: Session>(session: &S, counts: &Counts) -> Closed {
    loop {
        match session.accept_uni().await {
            Ok(mut recv) => {
                recv.stop(stream_code::UNSUPPORTED);
                counts.stream_refused("unsupported");
            }
            Err(closed) => return closed,
        }
    }
}

/// Copies a stream to its end, with FIN, reset and stop passed on. One chunk is held at a time, so
/// who does not read is not read from.
pub(super) async fn copy<R: RecvStream, W: SendStream>(mut recv: R, mut send: W, counts: &Counts) {
    loop {
        let read = tokio::select! {
            read = recv.read() => read,
            Some(code) = send.stopped() => return recv.stop(code),
        };
        match read {
            Ok(Some(chunk)) => {
                let len = chunk.len() as u64;
                counts.bytes_from_client.increment(len);
                match send.write(chunk).await {
                    Ok(()) => counts.bytes_to_client.increment(len),
                    Err(WriteError::Stopped(code)) => return recv.stop(code),
                    Err(WriteError::Finished | WriteError::Session(_)) => return,
                }
            }
            Ok(None) => {
                let _ = send.finish();
                return;
            }
            Err(ReadError::Reset(code)) => return send.reset(code),
            Err(ReadError::Session(_)) => return,
        }
    }
}

/// Why a datagram to the client was dropped, as a label; or that the session is over.
pub(super) fn drop_reason(error: DatagramError) -> Result<&'static str, Closed> {
    match error {
        DatagramError::TooLarge { .. } => Ok("too_large"),
        DatagramError::Full => Ok("send_buffer_full"),
        DatagramError::Session(closed) => Err(closed),
    }
}
