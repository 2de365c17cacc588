//! Several sockets on one port, each with a QUIC endpoint, so that several cores receive.
//!
//! The kernel chooses a socket by the addresses of a packet, and a connection belongs to the shard
//! that its first packet came to, or that dialled. When its peer's address changes, or in the mesh
//! the path beneath it, its packets come to whichever socket they may, and are handed over there to
//! the shard that the connection belongs to: the connection ids that a shard gives out say which it
//! is.

use std::{
    collections::VecDeque,
    fmt,
    hash::{BuildHasher, RandomState},
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;
use quinn::{
    AsyncUdpSocket, ConnectionId, ConnectionIdGenerator, EndpointConfig, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use rustls::crypto::SecureRandom;

use crate::metrics::{PACKETS_DROPPED, PACKETS_HANDED_OVER, packet_drop};

/// Most shards that a connection id can tell apart.
pub const MAX_SHARDS: usize = 256;

/// What the shards of one port have in common.
pub(crate) struct Group {
    /// What their packets belong to: a value of the label `link`.
    pub(crate) link: &'static str,
    /// Makes connection ids.
    pub(crate) random: &'static dyn SecureRandom,
    /// Bytes that may wait to be taken over by a shard.
    pub(crate) inbox: usize,
}

impl Group {
    /// The endpoints' sockets and configurations, over these sockets of one port.
    pub(crate) fn endpoints(
        &self,
        sockets: Vec<Arc<dyn AsyncUdpSocket>>,
    ) -> io::Result<Vec<(Arc<dyn AsyncUdpSocket>, EndpointConfig)>> {
        let count = sockets.len();
        if count == 1 {
            let alone = |socket| (socket, EndpointConfig::default());
            return Ok(sockets.into_iter().map(alone).collect());
        }
        if !(1..=MAX_SHARDS).contains(&count) {
            let what = format!("{count} sockets: from 1 to {MAX_SHARDS} can be served");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let shards = self.shards(sockets).into_iter().map(|shard| {
            let mut config = EndpointConfig::default();
            let (ids, index) = (shard.ids.clone(), shard.index as u8);
            config.cid_generator(move || {
                Box::new(Generator {
                    ids: ids.clone(),
                    shard: index,
                })
            });
            (Arc::new(shard) as Arc<dyn AsyncUdpSocket>, config)
        });
        Ok(shards.collect())
    }

    fn shards(&self, sockets: Vec<Arc<dyn AsyncUdpSocket>>) -> Vec<Shard> {
        let count = sockets.len();
        let ids = Arc::new(Ids::new(count, self.random));
        let inboxes: Arc<[_]> = (0..count).map(|_| Inbox::new(self.inbox)).collect();
        let shards = sockets
            .into_iter()
            .enumerate()
            .map(|(index, socket)| Shard {
                index,
                socket,
                link: self.link,
                ids: ids.clone(),
                inboxes: inboxes.clone(),
            });
        shards.collect()
    }
}

/// Length of a connection id: what makes it unique, the shard, and a check.
const ID: usize = NONCE + 3;
/// 2⁴⁰ connection ids: enough that those in use are found unique at the first attempt.
const NONCE: usize = 5;

/// Writes and reads connection ids. To whoever does not know the key, shard and check are as random
/// as the rest, as ids of one connection must not be recognised as such (RFC 9000, section 5.1).
struct Ids {
    key: RandomState,
    count: usize,
    random: &'static dyn SecureRandom,
}

impl Ids {
    fn new(count: usize, random: &'static dyn SecureRandom) -> Self {
        Self {
            key: RandomState::new(),
            count,
            random,
        }
    }

    fn write(&self, shard: u8) -> [u8; ID] {
        let mut id = [0; ID];
        self.random.fill(&mut id[..NONCE]).expect(
            "the system has random numbers, as the keys of each handshake are made of them",
        );
        let [mask, check @ ..] = self.mask(&id[..NONCE]);
        id[NONCE] = shard ^ mask;
        id[NONCE + 1..].copy_from_slice(&check);
        id
    }

    /// The shard that gave out an id; `None` if none did.
    fn read(&self, id: &[u8; ID]) -> Option<usize> {
        let [mask, check @ ..] = self.mask(&id[..NONCE]);
        let shard = usize::from(id[NONCE] ^ mask);
        (id[NONCE + 1..] == check && shard < self.count).then_some(shard)
    }

    /// The shard of the connection that a packet is of; `None` if it names none, as the first of a
    /// connection does.
    fn shard(&self, packet: &[u8]) -> Option<usize> {
        self.read(destination(packet)?)
    }

    fn mask(&self, nonce: &[u8]) -> [u8; ID - NONCE] {
        let [a, b, c, ..] = self.key.hash_one(nonce).to_be_bytes();
        [a, b, c]
    }
}

struct Generator {
    ids: Arc<Ids>,
    shard: u8,
}

impl ConnectionIdGenerator for Generator {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&self.ids.write(self.shard))
    }

    fn cid_len(&self) -> usize {
        ID
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

/// The destination connection id of a packet, if it is as long as ours (RFC 8999, section 5).
fn destination(packet: &[u8]) -> Option<&[u8; ID]> {
    let long = packet.first()? & 0x80 != 0;
    let id = match long {
        // Type, version and the id's length come first.
        true if usize::from(*packet.get(5)?) != ID => return None,
        true => packet.get(6..6 + ID)?,
        false => packet.get(1..1 + ID)?,
    };
    id.try_into().ok()
}

/// A socket whose packets are for its own shard only, including those that others received.
struct Shard {
    index: usize,
    socket: Arc<dyn AsyncUdpSocket>,
    link: &'static str,
    ids: Arc<Ids>,
    inboxes: Arc<[Inbox]>,
}

impl Shard {
    /// Leaves in `buf` what is for this shard, and hands over what is for others. A buffer holds
    /// packets from one address, each of `stride` bytes but for the last.
    fn sort(&self, buf: &mut [u8], meta: &mut RecvMeta) {
        let received = buf.len().min(meta.len);
        let stride = meta.stride.max(1);
        let (mut kept, mut at) = (0, 0);
        while at < received {
            let shard = |at: usize| self.ids.shard(&buf[at..received.min(at + stride)]);
            // Packets of one connection come together.
            let (owner, start) = (shard(at), at);
            at = received.min(at + stride);
            while at < received && shard(at) == owner {
                at = received.min(at + stride);
            }
            match owner {
                Some(other) if other != self.index => {
                    self.hand_over(other, &buf[start..at], meta);
                }
                _ => {
                    buf.copy_within(start..at, kept);
                    kept += at - start;
                }
            }
        }
        meta.len = kept;
    }

    fn hand_over(&self, shard: usize, packets: &[u8], meta: &RecvMeta) {
        let mut meta = *meta;
        meta.len = packets.len();
        let count = meta.len.div_ceil(meta.stride.max(1)) as u64;
        match self.inboxes[shard].push(meta, packets) {
            true => metrics::counter!(PACKETS_HANDED_OVER, "link" => self.link).increment(count),
            false => {
                let reason = packet_drop::HAND_OVER_FULL;
                metrics::counter!(PACKETS_DROPPED, "link" => self.link, "reason" => reason)
                    .increment(count);
            }
        }
    }
}

impl AsyncUdpSocket for Shard {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.socket.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.socket.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let inbox = &self.inboxes[self.index];
        // Before the look into it, so that nothing is put there unnoticed.
        inbox.waker.register(cx.waker());
        // Half of the room, so that neither way in can close the other.
        let half = bufs.len().div_ceil(2);
        let taken = inbox.take(&mut bufs[..half], &mut meta[..half]);
        let (bufs, meta) = (&mut bufs[taken..], &mut meta[taken..]);
        if bufs.is_empty() {
            return Poll::Ready(Ok(taken));
        }
        match self.socket.poll_recv(cx, bufs, meta) {
            Poll::Ready(Ok(received)) => {
                for (buf, meta) in bufs.iter_mut().zip(meta).take(received) {
                    self.sort(buf, meta);
                }
                Poll::Ready(Ok(taken + received))
            }
            // What was taken is not lost for it; a socket that fails does so again.
            Poll::Ready(Err(_)) | Poll::Pending if taken > 0 => Poll::Ready(Ok(taken)),
            other => other,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shard")
            .field("index", &self.index)
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

/// Packets that other shards received.
struct Inbox {
    /// Bytes that may wait.
    bound: usize,
    waiting: Mutex<Waiting>,
    waker: AtomicWaker,
}

#[derive(Default)]
struct Waiting {
    packets: VecDeque<(RecvMeta, Box<[u8]>)>,
    bytes: usize,
}

/// What packets that wait cost, besides their bytes.
const OVERHEAD: usize = size_of::<(RecvMeta, Box<[u8]>)>();

impl Inbox {
    fn new(bound: usize) -> Self {
        Self {
            bound,
            waiting: Mutex::default(),
            waker: AtomicWaker::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds packets from one address; `false` if there is no room.
    fn push(&self, meta: RecvMeta, packets: &[u8]) -> bool {
        let cost = packets.len() + OVERHEAD;
        {
            let mut waiting = self.lock();
            if waiting.bytes + cost > self.bound {
                return false;
            }
            waiting.bytes += cost;
            waiting.packets.push_back((meta, packets.into()));
        }
        self.waker.wake();
        true
    }

    /// Moves packets into buffers; how many were filled. Shards have buffers of one size.
    fn take(&self, bufs: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) -> usize {
        let mut waiting = self.lock();
        let mut count = 0;
        for (buf, slot) in bufs.iter_mut().zip(metas) {
            let Some((meta, packets)) = waiting.packets.pop_front() else {
                break;
            };
            waiting.bytes -= packets.len() + OVERHEAD;
            let len = packets.len().min(buf.len());
            buf[..len].copy_from_slice(&packets[..len]);
            *slot = meta;
            slot.len = len;
            count += 1;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, UdpSocket};

    use metrics_exporter_prometheus::PrometheusBuilder;
    use proptest::prelude::*;
    use quinn::Runtime as _;

    use super::*;
    use crate::metrics::link;

    /// Bytes that may wait at a shard here.
    const INBOX: usize = 64 * 1024;

    fn random() -> &'static dyn SecureRandom {
        rustls::crypto::aws_lc_rs::default_provider().secure_random
    }

    fn ids(count: usize) -> Ids {
        Ids::new(count, random())
    }

    /// Shards whose sockets nothing is sent to.
    fn group(count: usize) -> Vec<Shard> {
        let sockets = (0..count).map(|_| {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            quinn::TokioRuntime.wrap_udp_socket(socket).unwrap()
        });
        let group = Group {
            link: link::MESH,
            random: random(),
            inbox: INBOX,
        };
        group.shards(sockets.collect())
    }

    fn short(id: &[u8; ID], payload: &[u8]) -> Vec<u8> {
        [&[0x40], &id[..], payload].concat()
    }

    fn long(id: &[u8], payload: &[u8]) -> Vec<u8> {
        [&[0xc0, 0, 0, 0, 1, id.len() as u8], id, payload].concat()
    }

    fn received(len: usize, stride: usize) -> RecvMeta {
        RecvMeta {
            len,
            stride,
            ..RecvMeta::default()
        }
    }

    /// What waits for a shard.
    fn waiting(shard: &Shard) -> Vec<Vec<u8>> {
        let packets = &shard.inboxes[shard.index].lock().packets;
        packets
            .iter()
            .map(|(_, packets)| packets.to_vec())
            .collect()
    }

    #[test]
    fn an_id_says_its_shard_to_who_has_the_key_only() {
        let (ours, theirs) = (ids(MAX_SHARDS), ids(MAX_SHARDS));
        let mut understood = 0;
        for shard in 0..=255 {
            let id = ours.write(shard);
            assert_eq!(ours.read(&id), Some(usize::from(shard)));
            understood += usize::from(theirs.read(&id).is_some());
        }
        // Each has a chance of 1 in 2¹⁶.
        assert!(understood < 3);
    }

    #[test]
    fn an_id_of_a_shard_that_is_not_there_is_none() {
        let ids = ids(4);
        assert_eq!(ids.read(&ids.write(4)), None);
    }

    #[tokio::test]
    async fn packets_in_one_buffer_go_each_to_their_shard() {
        let shards = group(3);
        let id = |shard| shards[0].ids.write(shard);
        let (mine, first, second) = (id(0), id(1), id(2));
        let packets = [
            short(&first, b"aa"),
            short(&mine, b"bb"),
            short(&first, b"cc"),
            short(&first, b"dd"),
            short(&mine, b"ee"),
            short(&second, b"f"),
        ];
        let mut buf = packets.concat();
        let mut meta = received(buf.len(), packets[0].len());
        shards[0].sort(&mut buf, &mut meta);
        assert_eq!(buf[..meta.len], [&packets[1][..], &packets[4]].concat());
        let expected = [packets[0].clone(), [&packets[2][..], &packets[3]].concat()];
        assert_eq!(waiting(&shards[1]), expected);
        assert_eq!(waiting(&shards[2]), [packets[5].clone()]);
        assert_eq!(meta.stride, packets[0].len());
    }

    #[tokio::test]
    async fn what_may_begin_a_connection_stays_where_it_came() {
        let shards = group(3);
        for packet in [
            long(b"", b"x"),
            long(&[7; 20], b"x"),
            short(&[7; ID], b"x"),
            vec![0xc0],
            vec![0x40],
            vec![0; 3],
        ] {
            let mut buf = packet.clone();
            let mut meta = received(buf.len(), buf.len());
            shards[0].sort(&mut buf, &mut meta);
            assert_eq!(buf[..meta.len], packet);
        }
        // A handshake goes on at the shard that began it.
        let mut buf = long(&shards[0].ids.write(2), b"x");
        let mut meta = received(buf.len(), buf.len());
        shards[0].sort(&mut buf, &mut meta);
        assert_eq!((meta.len, waiting(&shards[2])), (0, vec![buf]));
    }

    #[tokio::test]
    async fn what_a_shard_that_does_not_keep_up_has_no_room_for_is_dropped_and_counted() {
        let counts = PrometheusBuilder::new().build_recorder();
        let _recording = metrics::set_default_local_recorder(&counts);
        let shards = group(2);
        let packet = short(&shards[0].ids.write(1), &[0; 1200]);
        let room = INBOX / (2 * packet.len() + OVERHEAD);
        // Two packets at a time.
        for _ in 0..room + 3 {
            let mut buf = packet.repeat(2);
            let mut meta = received(buf.len(), packet.len());
            shards[0].sort(&mut buf, &mut meta);
            assert_eq!(meta.len, 0);
        }
        assert_eq!(waiting(&shards[1]).len(), room);
        let told = counts.handle().render();
        let (over, dropped) = (2 * room, 2 * 3);
        for line in [
            format!("{PACKETS_HANDED_OVER}{{link=\"mesh\"}} {over}"),
            format!("{PACKETS_DROPPED}{{link=\"mesh\",reason=\"hand_over_full\"}} {dropped}"),
        ] {
            assert!(told.lines().any(|told| told == line), "{line}: {told}");
        }
    }

    #[test]
    fn an_inbox_takes_no_more_than_its_bound_and_gives_it_back_in_order() {
        let inbox = Inbox::new(INBOX);
        let mut count = 0u32;
        while inbox.push(received(1200, 1200), &[count as u8; 1200]) {
            count += 1;
        }
        assert_eq!(count as usize, INBOX / (1200 + OVERHEAD));
        let mut space = vec![[0; 1200]; 16];
        let mut metas = [RecvMeta::default(); 16];
        let mut seen = 0u32;
        loop {
            let mut bufs: Vec<_> = space.iter_mut().map(|buf| IoSliceMut::new(buf)).collect();
            let taken = inbox.take(&mut bufs, &mut metas);
            for (buf, meta) in bufs.iter().zip(metas).take(taken) {
                assert_eq!((meta.len, buf[0]), (1200, seen as u8));
                seen += 1;
            }
            if taken == 0 {
                break;
            }
        }
        assert_eq!((seen, inbox.lock().bytes), (count, 0));
    }

    proptest! {
        #[test]
        fn arbitrary_packets_are_each_somewhere_once(
            packets in prop::collection::vec(
                (0..4u8, any::<bool>(), prop::collection::vec(any::<u8>(), 30)), 0..20),
            last in prop::collection::vec(any::<u8>(), 0..30),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.unwrap();
            let _entered = runtime.enter();
            let shards = group(3);
            let mut sent = Vec::new();
            for (shard, is_long, payload) in packets {
                let id = shards[0].ids.write(shard);
                let mut packet = if is_long { long(&id, &payload) } else { short(&id, &payload) };
                packet.truncate(30);
                sent.push(packet);
            }
            sent.push(last);
            let mut buf = sent.concat();
            let mut meta = received(buf.len(), 30);
            shards[1].sort(&mut buf, &mut meta);
            let mut found: Vec<Vec<u8>> = buf[..meta.len].chunks(30).map(<[u8]>::to_vec).collect();
            for shard in &shards {
                let runs = waiting(shard);
                found.extend(runs.iter().flat_map(|run| run.chunks(30)).map(<[u8]>::to_vec));
            }
            sent.retain(|packet| !packet.is_empty());
            sent.sort();
            found.sort();
            prop_assert_eq!(found, sent);
        }
    }
}
