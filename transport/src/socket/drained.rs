//! A UDP socket as quinn wants it, which does not ask the kernel for packets that are known not to be there.

use std::{
    fmt, io,
    io::IoSliceMut,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit, UdpSocketState},
};
use tokio::{io::Interest, net::UdpSocket};

/// Wherever packets are taken faster than they come, each wake-up takes a few and asks once more, to be told that there
/// is nothing. `recvmmsg` has said so already by giving less than it was asked for: it stops where the queue is empty.
/// The socket is taken for empty then, until the kernel tells of what comes next. The bytes that go either way are
/// those of quinn's own socket.
#[derive(Debug)]
pub(super) struct Drained {
    socket: UdpSocket,
    state: UdpSocketState,
}

impl Drained {
    pub(super) fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        let socket = UdpSocket::from_std(socket)?;
        Ok(Self { socket, state })
    }
}

impl AsyncUdpSocket for Drained {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable {
            socket: self,
            waits: None,
        })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.socket.try_io(Interest::WRITABLE, || {
            self.state.send((&self.socket).into(), transmit)
        })
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_recv_ready(cx))?;
            let mut received = None;
            // An error is nobody's here, as in quinn's own socket: who asks would give up the socket for it.
            let _ = self.socket.try_io(Interest::READABLE, || {
                let count = self.state.recv((&self.socket).into(), bufs, meta)?;
                received = Some(count);
                match count < bufs.len() {
                    // This takes the readiness back, unless the kernel has told of more since it was looked at.
                    true => Err(io::ErrorKind::WouldBlock.into()),
                    false => Ok(()),
                }
            });
            if let Some(count) = received {
                return Poll::Ready(Ok(count));
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

type Waits = Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>;

/// Waits for one task until the socket takes more.
struct Writable {
    socket: Arc<Drained>,
    waits: Option<Waits>,
}

impl fmt::Debug for Writable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writable").finish_non_exhaustive()
    }
}

impl UdpPoller for Writable {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = self.socket.clone();
        let waits = self
            .waits
            .get_or_insert_with(|| Box::pin(async move { socket.socket.writable().await }));
        let writable = ready!(waits.as_mut().poll(cx));
        self.waits = None;
        Poll::Ready(writable)
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, net::Ipv4Addr, task::Waker, thread};

    use quinn::udp::BATCH_SIZE;

    use super::*;

    fn pair() -> (Drained, std::net::UdpSocket) {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let sender = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        sender.connect(socket.local_addr().unwrap()).unwrap();
        (Drained::new(socket).unwrap(), sender)
    }

    /// What one call gives of packets of one byte.
    fn poll(socket: &Drained, cx: &mut Context<'_>) -> Poll<Vec<u8>> {
        let mut memory = [[0; 64]; BATCH_SIZE];
        let mut meta = [RecvMeta::default(); BATCH_SIZE];
        let count = {
            let mut bufs = memory.each_mut().map(|part| IoSliceMut::new(part));
            ready!(socket.poll_recv(cx, &mut bufs, &mut meta)).unwrap()
        };
        let parts = memory.iter().zip(&meta).take(count);
        Poll::Ready(
            parts
                .flat_map(|(part, meta)| part[..meta.len].to_vec())
                .collect(),
        )
    }

    async fn take(socket: &Drained) -> Vec<u8> {
        poll_fn(|cx| poll(socket, cx)).await
    }

    #[tokio::test]
    async fn a_socket_that_gave_less_than_it_could_is_asked_when_something_came() {
        let (socket, sender) = pair();
        sender.send(b"a").unwrap();
        assert_eq!(take(&socket).await, b"a");
        sender.send(b"b").unwrap();
        // It is there, and nobody has told this runtime so far.
        let mut cx = Context::from_waker(Waker::noop());
        assert!(poll(&socket, &mut cx).is_pending());
        assert_eq!(take(&socket).await, b"b");
    }

    #[tokio::test]
    async fn what_is_beyond_a_full_batch_is_taken_at_once() {
        let (socket, sender) = pair();
        let all: Vec<u8> = (0..BATCH_SIZE as u8 + 3).collect();
        all.iter().for_each(|byte| {
            sender.send(&[*byte]).unwrap();
        });
        let mut taken = take(&socket).await;
        assert_eq!(taken, all[..BATCH_SIZE]);
        let mut cx = Context::from_waker(Waker::noop());
        match poll(&socket, &mut cx) {
            Poll::Ready(more) => taken.extend(more),
            Poll::Pending => panic!("there is more"),
        }
        assert_eq!(taken, all);
    }

    /// A wake-up that is lost ends this: nothing is sent before the last one came.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_packet_is_slept_over() {
        let (socket, sender) = pair();
        let at = socket.local_addr().unwrap();
        let to = sender.local_addr().unwrap();
        let answers = thread::spawn(move || {
            let mut packet = [0; 1];
            for round in 0..20_000u32 {
                // Now and then two, so that one comes while the other is taken.
                for _ in 0..=round % 2 {
                    sender.send(&[round as u8]).unwrap();
                }
                sender.recv(&mut packet).unwrap();
                assert_eq!(packet, [round as u8]);
            }
        });
        for round in 0..20_000u32 {
            let mut left = 1 + round as usize % 2;
            while left > 0 {
                let taken = take(&socket).await;
                assert!(taken.iter().all(|byte| *byte == round as u8));
                left -= taken.len();
            }
            let answer = Transmit {
                destination: to,
                ecn: None,
                contents: &[round as u8],
                segment_size: None,
                src_ip: None,
            };
            while let Err(error) = socket.try_send(&answer) {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                socket.socket.writable().await.unwrap();
            }
        }
        answers.join().unwrap();
        assert_eq!(socket.local_addr().unwrap(), at);
    }

    #[tokio::test]
    async fn a_socket_is_writable_again_and_again() {
        let (socket, sender) = pair();
        let socket = Arc::new(socket);
        let mut poller = socket.clone().create_io_poller();
        for byte in 0..3 {
            poll_fn(|cx| poller.as_mut().poll_writable(cx))
                .await
                .unwrap();
            let packet = Transmit {
                destination: sender.local_addr().unwrap(),
                ecn: None,
                contents: &[byte],
                segment_size: None,
                src_ip: None,
            };
            socket.try_send(&packet).unwrap();
            let mut came = [0; 1];
            sender.recv(&mut came).unwrap();
            assert_eq!(came, [byte]);
        }
    }
}
