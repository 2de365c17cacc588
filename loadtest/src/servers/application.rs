//! What every server under test does with a session: the first byte of a bidirectional stream says
//! what becomes of the rest, the first byte of a datagram whether it is sent back.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;

/// First byte of a stream.
pub(super) mod stream {
    /// The rest is sent back as it comes.
    pub(in crate::servers) const ECHO: u8 = b'e';
    /// The rest is counted; the count comes back, 8 bytes in network order.
    pub(in crate::servers) const SINK: u8 = b's';
    /// The number of datagrams received so far comes back, 8 bytes in network order.
    pub(in crate::servers) const DATAGRAMS: u8 = b'd';
}

/// First byte of a datagram.
pub(super) mod datagram {
    /// It is sent back.
    pub(in crate::servers) const ECHO: u8 = b'e';
    /// It is counted.
    pub(in crate::servers) const SINK: u8 = b's';
}

/// A session as a server's library has it. Whatever goes wrong on one ends what was asked for, and
/// the client, which misses it, says so.
pub(super) trait Served: Send + Sync + 'static {
    /// Sending half of a stream.
    type Send: Writes;
    /// Receiving half of a stream.
    type Recv: Reads;

    /// The next bidirectional stream; `None` once the session is over.
    fn accept_bi(&self) -> impl Future<Output = Option<(Self::Send, Self::Recv)>> + Send;
    /// The next datagram; `None` once the session is over.
    fn recv_datagram(&self) -> impl Future<Output = Option<Bytes>> + Send;
    /// Sends a datagram, or loses it.
    fn send_datagram(&self, payload: Bytes);
}

pub(super) trait Writes: Send + 'static {
    /// Writes the whole chunk; `false` when it cannot.
    fn write(&mut self, chunk: Bytes) -> impl Future<Output = bool> + Send;
    /// Ends the stream.
    fn finish(self) -> impl Future<Output = ()> + Send;
}

pub(super) trait Reads: Send + 'static {
    /// The next chunk; `None` at the end.
    fn read(&mut self) -> impl Future<Output = Option<Bytes>> + Send;
}

/// Serves a session to its end.
pub(super) async fn run<S: Served>(session: S) {
    let session = Arc::new(session);
    let received = Arc::new(AtomicU64::new(0));
    let datagrams = async {
        while let Some(payload) = session.recv_datagram().await {
            received.fetch_add(1, Ordering::Relaxed);
            if payload.first() == Some(&datagram::ECHO) {
                session.send_datagram(payload);
            }
            tokio::task::coop::consume_budget().await;
        }
    };
    let streams = async {
        while let Some((send, recv)) = session.accept_bi().await {
            tokio::spawn(stream(send, recv, received.clone()));
        }
    };
    tokio::join!(datagrams, streams);
}

async fn stream(mut send: impl Writes, mut recv: impl Reads, received: Arc<AtomicU64>) {
    let Some(mut first) = recv.read().await else {
        return;
    };
    let wanted = first.first().copied();
    first = first.slice(1.min(first.len())..);
    match wanted {
        Some(stream::ECHO) => {
            let mut next = Some(first);
            while let Some(chunk) = next {
                if !send.write(chunk).await {
                    return;
                }
                next = recv.read().await;
            }
        }
        Some(stream::SINK) => {
            let mut count = first.len() as u64;
            while let Some(chunk) = recv.read().await {
                count += chunk.len() as u64;
            }
            send.write(Bytes::copy_from_slice(&count.to_be_bytes()))
                .await;
        }
        Some(stream::DATAGRAMS) => {
            let count = received.load(Ordering::Relaxed).to_be_bytes();
            send.write(Bytes::copy_from_slice(&count)).await;
        }
        _ => return,
    }
    send.finish().await;
}
