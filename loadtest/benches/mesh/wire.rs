//! What decides which ways there are: sockets that do not reach everybody.

use std::{
    collections::HashSet,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use wavry_transport::mesh;

use super::loopback;

/// A socket from which nothing goes to some addresses.
#[derive(Debug)]
pub(crate) struct Wire {
    inner: Arc<dyn AsyncUdpSocket>,
    cut: Mutex<HashSet<SocketAddr>>,
}

impl Wire {
    pub(crate) fn bind() -> Arc<Self> {
        Arc::new(Self {
            inner: mesh::bind(loopback()).unwrap(),
            cut: Mutex::default(),
        })
    }

    /// Several on one port.
    pub(crate) fn bind_shards(count: usize) -> Vec<Arc<Self>> {
        let sockets = mesh::bind_shards(loopback(), count).unwrap().into_iter();
        let wires = sockets.map(|inner| {
            Arc::new(Self {
                inner,
                cut: Mutex::default(),
            })
        });
        wires.collect()
    }

    pub(crate) fn cut(&self, to: SocketAddr) {
        self.cut.lock().unwrap().insert(to);
    }
}

impl AsyncUdpSocket for Wire {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.cut.lock().unwrap().contains(&transmit.destination) {
            return Ok(());
        }
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [io::IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
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
