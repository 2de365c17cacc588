//! Sockets of a node on which things happen to packets: nothing goes to some addresses, or over some connections, or at
//! all.

use std::{
    collections::HashSet,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use wavry_proto::overlay::packet::{Header, Kind};
use wavry_transport::mesh;

use crate::SOCKETS;

/// The id by which a packet of QUIC names its connection to who receives it. quinn's have 8 bytes.
pub(crate) type ConnectionId = [u8; 8];

/// The first of them, by which all are told what is to happen.
#[derive(Debug)]
pub(crate) struct Wire {
    inner: Arc<dyn AsyncUdpSocket>,
    others: Vec<Arc<dyn AsyncUdpSocket>>,
    fate: Arc<Fate>,
}

/// What happens.
#[derive(Debug, Default)]
struct Fate {
    /// As when its host is dead: nothing goes, and nothing comes.
    dead: AtomicBool,
    cut: Mutex<HashSet<SocketAddr>>,
    /// The next packet of this kind is lost.
    loses: Mutex<Option<Kind>>,
    /// Connections that packets were sent over.
    connections: Mutex<HashSet<ConnectionId>>,
    /// Those whose packets are lost.
    lost: Mutex<HashSet<ConnectionId>>,
    seen: Option<Mutex<Vec<u8>>>,
}

impl Wire {
    pub(crate) fn new() -> Arc<Self> {
        Self::sharded(SOCKETS, Fate::default())
    }

    /// One that keeps what is sent over it.
    pub(crate) fn that_captures() -> Arc<Self> {
        let seen = Some(Mutex::default());
        Self::sharded(
            1,
            Fate {
                seen,
                ..Fate::default()
            },
        )
    }

    fn sharded(count: usize, fate: Fate) -> Arc<Self> {
        let mut sockets = mesh::bind_shards("127.0.0.1:0".parse().unwrap(), count).unwrap();
        Arc::new(Self {
            inner: sockets.remove(0),
            others: sockets,
            fate: Arc::new(fate),
        })
    }

    /// All of them.
    pub(crate) fn sockets(self: &Arc<Self>) -> Vec<Arc<dyn AsyncUdpSocket>> {
        let other = |inner: &Arc<dyn AsyncUdpSocket>| {
            Arc::new(Self {
                inner: inner.clone(),
                others: Vec::new(),
                fate: self.fate.clone(),
            }) as Arc<dyn AsyncUdpSocket>
        };
        let others = self.others.iter().map(other);
        std::iter::once(self.clone() as _).chain(others).collect()
    }

    /// Dies, or lives again.
    pub(crate) fn set_dead(&self, dead: bool) {
        self.fate.dead.store(dead, Ordering::SeqCst);
    }

    /// Nothing goes to this address from now on.
    pub(crate) fn cut(&self, to: SocketAddr) {
        self.fate.cut.lock().unwrap().insert(to);
    }

    /// Everything goes to every address.
    pub(crate) fn mend(&self) {
        self.fate.cut.lock().unwrap().clear();
    }

    /// The next packet of this kind is lost.
    pub(crate) fn lose_next(&self, kind: Kind) {
        *self.fate.loses.lock().unwrap() = Some(kind);
    }

    /// Whether one that was to be lost was not sent yet.
    pub(crate) fn is_to_lose(&self) -> bool {
        self.fate.loses.lock().unwrap().is_some()
    }

    /// Connections over which something was sent once their handshakes were done.
    pub(crate) fn connections(&self) -> HashSet<ConnectionId> {
        self.fate.connections.lock().unwrap().clone()
    }

    /// Nothing is sent over these from now on.
    pub(crate) fn lose(&self, connections: impl IntoIterator<Item = ConnectionId>) {
        self.fate.lost.lock().unwrap().extend(connections);
    }

    /// What was sent over one that captures.
    pub(crate) fn seen(&self) -> Vec<u8> {
        let seen = self.fate.seen.as_ref().expect("it captures");
        seen.lock().unwrap().clone()
    }

    /// Whether this is lost. What is sent at once is of one connection.
    fn loses(&self, transmit: &Transmit<'_>) -> bool {
        if self.fate.dead.load(Ordering::SeqCst)
            || self
                .fate
                .cut
                .lock()
                .unwrap()
                .contains(&transmit.destination)
        {
            return true;
        }
        let kind = Header::read(transmit.contents).map(|(header, _)| header.kind);
        let mut loses = self.fate.loses.lock().unwrap();
        if loses.is_some() && *loses == kind {
            *loses = None;
            return true;
        }
        drop(loses);
        let Some(connection) = connection(transmit.contents) else {
            return false;
        };
        self.fate.connections.lock().unwrap().insert(connection);
        self.fate.lost.lock().unwrap().contains(&connection)
    }
}

/// The connection of a packet with a short header (RFC 9000, section 17.3).
fn connection(packet: &[u8]) -> Option<ConnectionId> {
    let (header, quic) = Header::read(packet)?;
    let is_quic = matches!(header.kind, Kind::Direct | Kind::Flow);
    let (first, rest) = quic.split_first()?;
    let is_short = first & 0x80 == 0;
    rest.first_chunk().filter(|_| is_quic && is_short).copied()
}

impl AsyncUdpSocket for Wire {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.loses(transmit) {
            return Ok(());
        }
        if let Some(seen) = &self.fate.seen {
            seen.lock().unwrap().extend_from_slice(transmit.contents);
        }
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [io::IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let received = ready!(self.inner.poll_recv(cx, bufs, meta));
            if !self.fate.dead.load(Ordering::SeqCst) {
                return Poll::Ready(received);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }
}
