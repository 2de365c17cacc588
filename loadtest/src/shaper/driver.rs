//! Sockets and time: takes what comes, and sends it on when it comes out.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap},
    future::poll_fn,
    io::{self, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    sync::{Arc, mpsc},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use quinn::{
    AsyncUdpSocket, Runtime as _,
    udp::{BATCH_SIZE, EcnCodepoint, RecvMeta, Transmit},
};

use super::{
    Change, Dropped,
    nat::Nat,
    network::{Network, Number, OnItsWay, Tally},
};

/// Questions that wait for an answer. Who asks waits for it, so there is one for each thread that does.
pub(super) const ASKS: usize = 64;

/// Bytes that are on their way, on all links. What 1 Gbit/s has on its way in half a second.
const MOST_BYTES: usize = 64 * 1024 * 1024;

/// Largest buffer that the kernel puts together of what came.
const LARGEST: usize = 65_536;

/// From one look at the sockets to the next while a packet is about to come out: tokio's clock is too coarse for
/// that, so the thread sleeps by itself, and not for longer than packets may be late.
const NAP: Duration = Duration::from_micros(100);

/// From one look for questions to the next while nothing happens. Who asks is a test that changes something.
const IDLE: Duration = Duration::from_millis(2);

/// Buffers that are kept for the next packets.
const KEPT: usize = 4_096;

/// What the thread is asked.
pub(super) enum Ask {
    Host(
        Vec<UdpSocket>,
        Option<Nat>,
        mpsc::SyncSender<io::Result<(Number, SocketAddr)>>,
    ),
    Attach(Number, SocketAddr, mpsc::SyncSender<()>),
    Change(Vec<(Duration, Change)>, mpsc::SyncSender<()>),
    Tally((Number, Number), mpsc::SyncSender<Tally>),
    Strangers(mpsc::SyncSender<Tally>),
    Lateness(mpsc::SyncSender<Lateness>),
    Stop,
}

/// How late packets came out, against when they should have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lateness {
    /// Packets that were late by up to 1, 2, 4, 8 … µs.
    counts: [u64; 32],
}

impl Lateness {
    /// The time by which `percent` of all packets were not late, rounded up to a power of two.
    pub fn percentile(&self, percent: u64) -> Duration {
        let rank = (self.counts.iter().sum::<u64>() * percent).div_ceil(100);
        let mut sum = 0;
        let at = self.counts.iter().position(|count| {
            sum += count;
            sum >= rank
        });
        Duration::from_micros(1 << at.unwrap_or(0))
    }

    pub(super) fn count(&mut self, late: Duration) {
        let micros = (late.as_micros() as u64).max(1);
        let at = micros.next_power_of_two().trailing_zeros() as usize;
        self.counts[at.min(self.counts.len() - 1)] += 1;
    }
}

/// A packet that waits to come out; the earliest first, and among equals the one that entered first.
struct Waiting {
    packet: OnItsWay,
    number: u64,
    payload: Vec<u8>,
    ecn: Option<EcnCodepoint>,
}

impl Waiting {
    fn key(&self) -> (Instant, u64) {
        (self.packet.out, self.number)
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

/// Packets that go together: one call to the kernel.
#[derive(Default)]
struct Batch {
    /// From which socket, to where, of which length and with which mark.
    shape: Option<(SocketAddr, SocketAddr, usize, Option<EcnCodepoint>)>,
    packets: Vec<OnItsWay>,
    contents: Vec<u8>,
}

pub(super) struct Driver {
    network: Network,
    sockets: Vec<(SocketAddr, Arc<dyn AsyncUdpSocket>)>,
    by_address: HashMap<SocketAddr, usize>,
    waiting: BinaryHeap<Reverse<Waiting>>,
    waiting_bytes: usize,
    number: u64,
    changes: BTreeMap<(Instant, u64), Change>,
    spare: Vec<Vec<u8>>,
    memory: Vec<u8>,
    batch: Batch,
    lateness: Lateness,
}

impl Driver {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            network: Network::new(seed),
            sockets: Vec::new(),
            by_address: HashMap::new(),
            waiting: BinaryHeap::new(),
            waiting_bytes: 0,
            number: 0,
            changes: BTreeMap::new(),
            spare: Vec::new(),
            memory: vec![0; LARGEST * BATCH_SIZE],
            batch: Batch::default(),
            lateness: Lateness::default(),
        }
    }

    /// Carries packets until it is told to stop.
    pub(super) async fn run(mut self, asks: mpsc::Receiver<Ask>) {
        loop {
            loop {
                match asks.try_recv() {
                    Ok(Ask::Stop) | Err(mpsc::TryRecvError::Disconnected) => return,
                    Ok(ask) => self.answer(ask),
                    Err(mpsc::TryRecvError::Empty) => break,
                }
            }
            self.turn();
            let now = Instant::now();
            let next = self.next().unwrap_or(now + IDLE).min(now + IDLE);
            let left = next.saturating_duration_since(now);
            // As far as tokio's clock goes without being late.
            let coarse = left.saturating_sub(Duration::from_millis(1));
            if coarse >= Duration::from_millis(1) {
                let _ = tokio::time::timeout(coarse, poll_fn(|cx| self.poll(cx))).await;
            } else {
                std::thread::sleep(left.min(NAP));
                // So that the runtime looks at what came.
                tokio::task::yield_now().await;
                poll_fn(|cx| {
                    let _ = self.poll(cx);
                    Poll::Ready(())
                })
                .await;
            }
        }
    }

    fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Host(sockets, nat, told) => {
                let _ = told.send(self.add(sockets, nat));
            }
            Ask::Attach(host, inside, done) => {
                self.network.attach(host, inside);
                let _ = done.send(());
            }
            Ask::Change(changes, done) => {
                let now = Instant::now();
                for (after, change) in changes {
                    self.number += 1;
                    self.changes.insert((now + after, self.number), change);
                }
                self.turn();
                let _ = done.send(());
            }
            Ask::Tally(hosts, told) => {
                let _ = told.send(self.network.tally(hosts));
            }
            Ask::Strangers(told) => {
                let _ = told.send(self.network.strangers().clone());
            }
            Ask::Lateness(told) => {
                let _ = told.send(self.lateness.clone());
            }
            Ask::Stop => {}
        }
    }

    fn add(
        &mut self,
        sockets: Vec<UdpSocket>,
        nat: Option<Nat>,
    ) -> io::Result<(Number, SocketAddr)> {
        let mut addresses = Vec::new();
        for socket in sockets {
            let address = socket.local_addr()?;
            let socket = quinn::TokioRuntime.wrap_udp_socket(socket)?;
            self.by_address.insert(address, self.sockets.len());
            self.sockets.push((address, socket));
            addresses.push(address);
        }
        let first = addresses[0];
        Ok((self.network.add(addresses, nat), first))
    }

    /// Makes the changes that are due and sends what comes out, each in its turn.
    fn turn(&mut self) {
        let now = Instant::now();
        loop {
            let change = self.changes.first_key_value().map(|(key, _)| *key);
            let packet = self.waiting.peek().map(|Reverse(packet)| packet.key());
            match (change, packet) {
                (Some(change), packet)
                    if change.0 <= now && packet.is_none_or(|packet| change < packet) =>
                {
                    self.send_batch();
                    if let Some(change) = self.changes.remove(&change) {
                        self.change(change);
                    }
                }
                (_, Some((out, _))) if out <= now => self.come_out(now),
                _ => break,
            }
        }
        self.send_batch();
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Link(from, to, link) => self.network.set((from.number, to.number), link),
            Change::Rebind(host) => self.network.rebind(host.number),
        }
    }

    /// When there is something to do.
    fn next(&self) -> Option<Instant> {
        let change = self.changes.first_key_value().map(|((at, _), _)| *at);
        let packet = self.waiting.peek().map(|Reverse(packet)| packet.packet.out);
        change.into_iter().chain(packet).min()
    }

    /// Takes what came to all sockets. Ready when anything did.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut any = Poll::Pending;
        for index in 0..self.sockets.len() {
            if self.poll_socket(index, cx) {
                any = Poll::Ready(());
            }
        }
        any
    }

    fn poll_socket(&mut self, index: usize, cx: &mut Context<'_>) -> bool {
        let (to, socket) = self.sockets[index].clone();
        let mut any = false;
        let mut memory = std::mem::take(&mut self.memory);
        loop {
            let mut meta = [RecvMeta::default(); BATCH_SIZE];
            let received = {
                let mut parts = memory.chunks_mut(LARGEST);
                let mut bufs: [IoSliceMut<'_>; BATCH_SIZE] =
                    std::array::from_fn(|_| IoSliceMut::new(parts.next().unwrap_or_default()));
                socket.poll_recv(cx, &mut bufs, &mut meta)
            };
            let Poll::Ready(received) = received else {
                break;
            };
            any = true;
            // A datagram's own error (ICMP) is about one that was sent before.
            let Ok(count) = received else { continue };
            let now = Instant::now();
            for (part, meta) in memory.chunks(LARGEST).zip(&meta).take(count) {
                for payload in part[..meta.len].chunks(meta.stride.max(1)) {
                    self.enter(meta.addr, to, payload, meta.ecn, now);
                }
            }
        }
        self.memory = memory;
        any
    }

    fn enter(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        payload: &[u8],
        ecn: Option<EcnCodepoint>,
        now: Instant,
    ) {
        let Some(packet) = self.network.enter(from, to, payload.len(), now) else {
            return;
        };
        if self.waiting_bytes + payload.len() > MOST_BYTES {
            self.network.lose(&packet, Dropped::Full);
            return;
        }
        self.waiting_bytes += payload.len();
        let mut copy = self.spare.pop().unwrap_or_default();
        copy.clear();
        copy.extend_from_slice(payload);
        self.number += 1;
        self.waiting.push(Reverse(Waiting {
            packet,
            number: self.number,
            payload: copy,
            ecn,
        }));
    }

    /// The packet whose turn it is comes out.
    fn come_out(&mut self, now: Instant) {
        let Some(Reverse(waiting)) = self.waiting.pop() else {
            return;
        };
        let Waiting {
            packet,
            payload,
            ecn,
            ..
        } = waiting;
        self.waiting_bytes -= payload.len();
        self.lateness
            .count(now.saturating_duration_since(packet.out));
        if let Some(inside) = self.network.come_out(&packet, payload.len(), now) {
            let shape = Some((packet.from, inside, payload.len(), ecn));
            let most = self
                .by_address
                .get(&packet.from)
                .map_or(1, |at| self.sockets[*at].1.max_transmit_segments());
            let fits = self.batch.packets.len() < most
                && self.batch.contents.len() + payload.len() < LARGEST - 1_000;
            if shape != self.batch.shape || !fits {
                self.send_batch();
                self.batch.shape = shape;
            }
            self.batch.packets.push(packet);
            self.batch.contents.extend_from_slice(&payload);
        }
        if self.spare.len() < KEPT {
            self.spare.push(payload);
        }
    }

    fn send_batch(&mut self) {
        let batch = &mut self.batch;
        let Some((from, to, len, ecn)) = batch.shape.take() else {
            return;
        };
        let socket = self.by_address.get(&from).map(|at| &self.sockets[*at].1);
        let sent = socket.map(|socket| {
            socket.try_send(&Transmit {
                destination: to,
                ecn,
                contents: &batch.contents,
                segment_size: (batch.packets.len() > 1).then_some(len),
                src_ip: None,
            })
        });
        if !matches!(sent, Some(Ok(()))) {
            for packet in &batch.packets {
                self.network.lose(packet, Dropped::SendFailed);
            }
        }
        batch.packets.clear();
        batch.contents.clear();
    }
}
