//! Joins two sessions so that each sees what the other's peer does.

mod traffic;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{task::JoinSet, time::Instant};

use self::traffic::Counts;
pub use self::traffic::{Carried, Ledger, Moved, Traffic};
use crate::session::{
    Close, Closed, ReadError, RecvStream, SendStream, Session, WriteError, close_code,
};

/// How two sessions are joined.
#[derive(Debug, Clone)]
pub struct Options {
    /// Nothing moved either way for so long: both are closed with `close_code::IDLE`.
    pub idle_timeout: Duration,
    /// What `a` is closed with when `b`'s connection is lost.
    pub b_lost: Close,
    /// What `b` is closed with when `a`'s connection is lost.
    pub a_lost: Close,
}

/// How a mirrored pair ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// What `a` said last.
    pub a: Closed,
    /// What `b` said last.
    pub b: Closed,
}

/// Mirrors `a` and `b` until one of them is over, then ends the other the same way.
///
/// Streams, of both kinds and opened by either side, end as they end on the other side: with FIN,
/// or with RESET_STREAM and STOP_SENDING of the same code. A chunk is read only after the one
/// before was written. What goes through is counted in `traffic`. Nothing of this goes on when the
/// returned future is over or dropped.
pub async fn mirror<A: Session, B: Session>(
    a: &A,
    b: &B,
    options: &Options,
    traffic: &Traffic,
) -> Ended {
    let Traffic { a_to_b, b_to_a, .. } = traffic;
    let pumps = Mutex::new(JoinSet::new());
    let carrying = async {
        tokio::join!(
            carry(a, b, a_to_b, b_to_a, &pumps),
            carry(b, a, b_to_a, a_to_b, &pumps),
        )
    };
    tokio::select! {
        biased;
        closed = a.closed() => b.close(answer(closed, &options.a_lost)),
        closed = b.closed() => a.close(answer(closed, &options.b_lost)),
        () = idle(options.idle_timeout, traffic) => {
            let close = Close::new(close_code::IDLE, "idle");
            a.close(close.clone());
            b.close(close);
        }
        never = carrying => match never.0 {},
    }
    let mut pumps = pumps.into_inner().unwrap_or_else(PoisonError::into_inner);
    pumps.shutdown().await;
    Ended {
        a: a.closed().await,
        b: b.closed().await,
    }
}

/// How one side is closed when the other is over.
fn answer(closed: Closed, lost: &Close) -> Close {
    match closed {
        Closed::Peer(close) | Closed::Here(close) => close,
        Closed::Lost(_) => lost.clone(),
    }
}

/// Looks so often in an idle timeout whether anything moved: a session is idle after the timeout
/// and at most an eighth.
const LOOKS: u32 = 8;

async fn idle(timeout: Duration, traffic: &Traffic) {
    let mut before = traffic.moved();
    let mut since = Instant::now();
    loop {
        tokio::time::sleep(timeout / LOOKS).await;
        let now = traffic.moved();
        if now != before {
            before = now;
            since = Instant::now();
        } else if since.elapsed() >= timeout {
            return;
        }
    }
}

enum Never {}

/// Carries what `from`'s peer begins to `to`. Waits for ever once either session is over.
async fn carry<F: Session, T: Session>(
    from: &F,
    to: &T,
    forth: &Arc<Counts>,
    back: &Arc<Counts>,
    pumps: &Mutex<JoinSet<()>>,
) -> Never {
    let bidi = async {
        while let Ok((send_back, recv)) = from.accept_bi().await {
            let Ok((send, recv_back)) = to.open_bi().await else {
                break;
            };
            Counts::add(&forth.streams, 1);
            let mut pumps = pumps.lock().unwrap_or_else(PoisonError::into_inner);
            while pumps.try_join_next().is_some() {}
            pumps.spawn(pump(recv, send, forth.clone()));
            pumps.spawn(pump(recv_back, send_back, back.clone()));
        }
    };
    let uni = async {
        while let Ok(recv) = from.accept_uni().await {
            let Ok(send) = to.open_uni().await else {
                break;
            };
            Counts::add(&forth.streams, 1);
            let mut pumps = pumps.lock().unwrap_or_else(PoisonError::into_inner);
            while pumps.try_join_next().is_some() {}
            pumps.spawn(pump(recv, send, forth.clone()));
        }
    };
    let datagrams = async {
        while let Ok(payload) = from.recv_datagram().await {
            match to.send_datagram(payload) {
                Ok(()) => Counts::add(&forth.datagrams, 1),
                Err(_) => Counts::add(&forth.datagrams_dropped, 1),
            }
            tokio::task::coop::consume_budget().await;
        }
    };
    let drain = async {
        from.draining().await;
        to.drain();
    };
    tokio::join!(bidi, uni, datagrams, drain);
    std::future::pending().await
}

/// Carries one direction of one stream to its end. When a session is over, it holds on to both
/// halves until it is ended itself, so that the session's close comes before their resets.
async fn pump<R: RecvStream, S: SendStream>(mut recv: R, mut send: S, counts: Arc<Counts>) {
    let mut watch_stop = true;
    loop {
        let read = tokio::select! {
            biased;
            read = recv.read() => read,
            stopped = send.stopped(), if watch_stop => match stopped {
                Some(code) => {
                    recv.stop(code);
                    send.reset(code);
                    return;
                }
                // Its session is over.
                None => {
                    watch_stop = false;
                    continue;
                }
            },
        };
        match read {
            Ok(Some(chunk)) => {
                let bytes = chunk.len() as u64;
                match send.write(chunk).await {
                    Ok(()) => Counts::add(&counts.bytes, bytes),
                    Err(WriteError::Stopped(code)) => {
                        recv.stop(code);
                        send.reset(code);
                        return;
                    }
                    Err(WriteError::Finished) => return,
                    Err(WriteError::Session(_)) => break,
                }
            }
            Ok(None) => {
                if send.finish().is_ok() {
                    return;
                }
                break;
            }
            Err(ReadError::Reset(code)) => {
                send.reset(code);
                return;
            }
            Err(ReadError::Session(_)) => break,
        }
        tokio::task::coop::consume_budget().await;
    }
    std::future::pending().await
}
