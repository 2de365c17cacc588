//! A transit relay's socket: takes packets of flows that other nodes claimed, and sends them on as they are.
//!
//! [`Transit`] looks at the 8 bytes before each packet and at nothing behind them. What the kernel has put
//! together (GRO) goes on together (GSO), in runs of one flow; nothing is copied and nothing allocated, but where
//! the link is full: then packets wait, and flows take turns ([`wavry_proto::overlay::egress`]).
//! Claims are checked against the roster ([`wavry_proto::overlay::transit`]) and answered on the same socket.

mod news;
mod view;

use std::{
    collections::BTreeMap,
    future::{Future, poll_fn},
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{BATCH_SIZE, EcnCodepoint, RecvMeta, Transmit},
};
use rustls::crypto::SecureRandom;
use tokio::sync::{mpsc, watch};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use wavry_proto::{
    control::Roster,
    id::NodeId,
    overlay::{
        Authenticator,
        egress::{Class, Egress, Overdue, Pace},
        lease::{Tally as LeasesSeen, Verifier},
        packet::{Attach, Claim, Header, Kind, Label, Received, Ruling, Verdict},
        transit::{Flows, Limits},
    },
};

use self::news::{NEWS, News, Sources};
pub use self::view::Viewer;
use crate::{
    metrics::{self, transit_drop},
    overlay::{canonical, draw, for_socket},
};

/// Largest UDP payload that is taken: the overlay's packets have 1,288 bytes.
const LARGEST: usize = 1500;

/// How often the socket is read before anything else has its turn, where there always is something: news wait
/// meanwhile, for some 30 MB at the most, where each time all buffers come full.
const TURNS: usize = 16;

/// A relay that leaves has forwarded nothing for so long: longer than from one probe to the next.
pub const QUIET: Duration = Duration::from_secs(3);

/// What a transit relay needs to know.
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// Between which nodes and addresses packets are forwarded.
    pub roster: watch::Receiver<Arc<Roster>>,
    /// Checks the tags of claims, and makes those of verdicts.
    pub authenticator: Arc<dyn Authenticator>,
    /// Checks the leases of claims.
    pub verifier: Arc<dyn Verifier>,
    /// Whether a master answers this node. While none does, the roster is what permits flows.
    pub master: watch::Receiver<bool>,
    /// What is carried at most.
    pub limits: Limits,
    /// Bytes that the link carries in a second, where that is known: flows share them. Otherwise packets wait only
    /// when the kernel takes no more.
    pub link: Option<u64>,
}

/// A transit relay. See the [module](self).
pub struct Transit {
    socket: Arc<dyn AsyncUdpSocket>,
    address: SocketAddr,
    config: Config,
    flows: Flows,
    egress: Egress<Batch>,
    /// What came from the queue and was not taken by the kernel.
    refused: Option<Batch>,
    pace: Option<Pace>,
    paced: Pin<Box<tokio::time::Sleep>>,
    writable: Pin<Box<dyn UdpPoller>>,
    random: &'static dyn SecureRandom,
    tally: Tally,
    /// What was done since the start, but for what is in `tally`.
    total: Tally,
    drops: Drops,
    /// For whoever looks, and for the task that hears the rest.
    tell: mpsc::Sender<News>,
    news: mpsc::Receiver<News>,
}

/// What a relay comes to.
enum Next {
    Told(News),
    /// Packets were taken; there may be more.
    Turn,
}

/// Packets of one flow that wait.
struct Batch {
    to: SocketAddr,
    ecn: Option<EcnCodepoint>,
    packets: Vec<u8>,
    stride: usize,
}

impl Batch {
    fn count(&self) -> usize {
        self.packets.len().div_ceil(self.stride)
    }
}

/// What was done since the last sweep.
#[derive(Default)]
struct Tally {
    packets: u64,
    bytes: u64,
}

/// Packets that were not forwarded, by reason.
#[derive(Default)]
struct Drops(BTreeMap<&'static str, u64>);

impl Drops {
    fn count(&mut self, reason: &'static str, packets: u64) {
        *self.0.entry(reason).or_default() += packets;
        ::metrics::counter!(metrics::TRANSIT_DROPPED, "reason" => reason).increment(packets);
    }

    fn overdue(&mut self, batch: &Batch, reason: Overdue) {
        self.count(reason.as_str(), batch.count() as u64);
    }
}

impl Transit {
    /// One on `socket`, which is from [`mesh::bind`](crate::mesh::bind).
    pub fn new(socket: Arc<dyn AsyncUdpSocket>, config: Config) -> io::Result<Self> {
        let (tell, news) = mpsc::channel(NEWS);
        Ok(Self {
            tell,
            news,
            total: Tally::default(),
            drops: Drops::default(),
            address: socket.local_addr()?,
            writable: socket.clone().create_io_poller(),
            socket,
            egress: Egress::default(),
            refused: None,
            pace: config.link.map(|rate| Pace::new(rate, Instant::now())),
            paced: Box::pin(tokio::time::sleep(Duration::ZERO)),
            flows: Flows::new(config.node.clone(), config.limits, Instant::now()),
            config,
            random: rustls::crypto::aws_lc_rs::default_provider().secure_random,
            tally: Tally::default(),
        })
    }

    /// The socket's address.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Looks at it while it runs.
    pub fn viewer(&self) -> Viewer {
        Viewer::new(self.tell.clone())
    }

    /// Forwards until `stopped`. Once `draining`, no flow is granted or prolonged, and it ends as soon as nothing
    /// came for [`QUIET`]: by then all have found other ways.
    pub async fn run(mut self, draining: CancellationToken, stopped: CancellationToken) {
        let segments = self.socket.max_receive_segments().max(1);
        let mut memory = vec![0; segments * LARGEST * BATCH_SIZE];
        let sources = Sources {
            roster: self.config.roster.clone(),
            master: self.config.master.clone(),
            draining,
            stopped,
        };
        let _telling = AbortOnDropHandle::new(tokio::spawn(sources.tell(self.tell.clone())));
        let mut forwarded = Instant::now();
        loop {
            let told = match poll_fn(|cx| self.poll_next(cx, &mut memory)).await {
                Next::Told(news) => news,
                Next::Turn => {
                    tokio::task::yield_now().await;
                    continue;
                }
            };
            match told {
                News::Drain => self.flows.drain(),
                News::Roster(roster) => {
                    let verifier = &*self.config.verifier;
                    self.flows.retain(&roster, verifier, Instant::now());
                }
                News::Master(answers) => self.flows.hears_master(answers, Instant::now()),
                News::Look(look) => self.show(look),
                News::Sweep => {
                    if self.sweep() {
                        forwarded = Instant::now();
                    }
                    if self.flows.is_draining() && forwarded.elapsed() >= QUIET {
                        break;
                    }
                }
                News::Stop => break,
            }
        }
        self.sweep();
        ::metrics::gauge!(metrics::TRANSIT_FLOWS).set(0.0);
        ::metrics::gauge!(metrics::TRANSIT_ATTACHED).set(0.0);
    }

    /// Whether anything was forwarded since the last one.
    fn sweep(&mut self) -> bool {
        let now = Instant::now();
        self.flows.expire(now);
        let silence = f64::from(u8::from(self.flows.is_in_silence(now)));
        ::metrics::gauge!(metrics::TRANSIT_SILENCE).set(silence);
        let LeasesSeen { checked, known } = self.flows.take_tally();
        ::metrics::counter!(metrics::TRANSIT_LEASES, "by" => "signature").increment(checked);
        ::metrics::counter!(metrics::TRANSIT_LEASES, "by" => "memory").increment(known);
        ::metrics::gauge!(metrics::TRANSIT_FLOWS).set(self.flows.len() as f64);
        ::metrics::gauge!(metrics::TRANSIT_ATTACHED)
            .set(self.flows.attached(Instant::now()) as f64);
        ::metrics::gauge!(metrics::TRANSIT_QUEUED).set(self.egress.bytes() as f64);
        let Tally { packets, bytes } = std::mem::take(&mut self.tally);
        self.total.packets += packets;
        self.total.bytes += bytes;
        ::metrics::counter!(metrics::TRANSIT_PACKETS).increment(packets);
        ::metrics::counter!(metrics::TRANSIT_BYTES).increment(bytes);
        packets > 0
    }

    /// The next of what is told, or the end of a turn of packets.
    fn poll_next(&mut self, cx: &mut Context<'_>, memory: &mut [u8]) -> Poll<Next> {
        if let Poll::Ready(Some(told)) = self.news.poll_recv(cx) {
            return Poll::Ready(Next::Told(told));
        }
        if let Err(error) = ready!(self.poll_work(cx, memory)) {
            // A datagram's own error (ICMP) is no reason to stop.
            tracing::debug!(%error, "transit socket");
        }
        Poll::Ready(Next::Turn)
    }

    /// Sends what waits, and takes what is there, [`TURNS`] times; ready when there may be more.
    fn poll_work(&mut self, cx: &mut Context<'_>, memory: &mut [u8]) -> Poll<io::Result<()>> {
        for _ in 0..TURNS {
            if self.refused.is_some() || !self.egress.is_empty() {
                self.flush(cx);
            }
            ready!(self.poll_forward(cx, memory))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Takes what is there, once, and forwards it.
    fn poll_forward(&mut self, cx: &mut Context<'_>, memory: &mut [u8]) -> Poll<io::Result<()>> {
        let mut meta = [RecvMeta::default(); BATCH_SIZE];
        let each = memory.len() / BATCH_SIZE;
        let count = {
            let mut parts = memory.chunks_mut(each);
            let mut bufs: [IoSliceMut<'_>; BATCH_SIZE] =
                std::array::from_fn(|_| IoSliceMut::new(parts.next().unwrap_or_default()));
            ready!(self.socket.poll_recv(cx, &mut bufs, &mut meta))?
        };
        let now = Instant::now();
        for (part, meta) in memory.chunks(each).zip(&meta).take(count) {
            self.forward(&part[..meta.len], meta, now);
        }
        Poll::Ready(Ok(()))
    }

    /// Forwards a buffer of packets, in runs of one flow.
    fn forward(&mut self, packets: &[u8], meta: &RecvMeta, now: Instant) {
        let stride = meta.stride.max(1);
        let source = canonical(meta.addr);
        let mut run: Option<(Header, usize, usize)> = None;
        let mut at = 0;
        while at < packets.len() {
            let end = packets.len().min(at + stride);
            let packet = &packets[at..end];
            let header = Header::read(packet).map(|(header, _)| header);
            // A run is of one kind: probes are not to wait behind what came with them.
            let of = match header {
                // Nobody is reached here directly.
                None
                | Some(Header {
                    kind: Kind::Direct, ..
                }) => {
                    self.drops.count(transit_drop::MALFORMED, 1);
                    None
                }
                Some(header) if header.kind == Kind::Claim && self.claimed(packet, source, now) => {
                    None
                }
                Some(header) if header.kind == Kind::Attach => {
                    self.attached(packet, source, now);
                    None
                }
                Some(header) => Some(header),
            };
            match (run, of) {
                (Some((of, start, _)), Some(next)) if of == next => run = Some((of, start, end)),
                (before, next) => {
                    if let Some((of, start, end)) = before {
                        let id = of.label;
                        self.send_on(id, source, &packets[start..end], stride, meta.ecn, now);
                    }
                    run = next.map(|of| (of, at, end));
                }
            }
            at = end;
        }
        if let Some((of, start, end)) = run {
            self.send_on(
                of.label,
                source,
                &packets[start..end],
                stride,
                meta.ecn,
                now,
            );
        }
    }

    fn send_on(
        &mut self,
        id: Label,
        source: SocketAddr,
        packets: &[u8],
        stride: usize,
        ecn: Option<EcnCodepoint>,
        now: Instant,
    ) {
        // What one call to the kernel takes: what came together may be more.
        let most = stride.saturating_mul(self.socket.max_transmit_segments().max(1));
        for batch in packets.chunks(most) {
            let count = batch.len().div_ceil(stride);
            let to = match self.flows.forward(id, source, count, batch.len(), now) {
                Ok(to) => to,
                Err(reason) => {
                    self.drops.count(reason.as_str(), count as u64);
                    continue;
                }
            };
            let is_free = self.refused.is_none() && self.egress.is_empty();
            let may = self.pace.as_ref().is_none_or(|pace| pace.at() <= now);
            if !(is_free && may && self.send(to, ecn, batch, stride, now)) {
                let waiting = Batch {
                    to,
                    ecn,
                    packets: batch.to_vec(),
                    stride,
                };
                self.queue(id, waiting, now);
            }
        }
    }

    /// Sends a batch; `false` where it has to wait.
    fn send(
        &mut self,
        to: SocketAddr,
        ecn: Option<EcnCodepoint>,
        packets: &[u8],
        stride: usize,
        now: Instant,
    ) -> bool {
        let count = packets.len().div_ceil(stride);
        let sent = self.socket.try_send(&Transmit {
            destination: for_socket(self.address, to),
            ecn,
            contents: packets,
            segment_size: (count > 1).then_some(stride),
            src_ip: None,
        });
        match sent {
            Ok(()) => {
                self.tally.packets += count as u64;
                self.tally.bytes += packets.len() as u64;
                if let Some(pace) = &mut self.pace {
                    pace.sent(packets.len(), now);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(_) => self.drops.count(transit_drop::SEND_FAILED, count as u64),
        }
        true
    }

    fn queue(&mut self, flow: Label, batch: Batch, now: Instant) {
        let probes = |packet: &[u8]| {
            let kind = Header::read(packet).map(|(header, _)| header.kind);
            kind.is_some_and(|kind| kind != Kind::Flow)
        };
        let class = match batch.packets.chunks(batch.stride).all(probes) {
            true => Class::Urgent,
            false => Class::Data,
        };
        let bytes = batch.packets.len();
        let drops = &mut self.drops;
        let overdue = |batch: Batch, reason| drops.overdue(&batch, reason);
        self.egress.push(flow, class, batch, bytes, now, overdue);
    }

    /// Sends what waits until the link or the kernel takes no more; whoever polls is woken when it does.
    fn flush(&mut self, cx: &mut Context<'_>) {
        loop {
            let now = Instant::now();
            if let Some(pace) = &self.pace
                && pace.at() > now
            {
                self.paced.as_mut().reset(pace.at().into());
                if self.paced.as_mut().poll(cx).is_pending() {
                    return;
                }
            }
            let refused = self.refused.take();
            let drops = &mut self.drops;
            let overdue = |batch: Batch, reason| drops.overdue(&batch, reason);
            let Some(batch) = refused.or_else(|| self.egress.pop(now, overdue)) else {
                return;
            };
            if !self.send(batch.to, batch.ecn, &batch.packets, batch.stride, now) {
                self.refused = Some(batch);
                if self.writable.as_mut().poll_writable(cx).is_pending() {
                    return;
                }
            }
        }
    }

    /// Rules on a claim; `false` where it is for another relay, and is to be forwarded as any packet.
    fn claimed(&mut self, packet: &[u8], source: SocketAddr, now: Instant) -> bool {
        let Ok(received) = Claim::read(packet) else {
            self.drops.count(transit_drop::MALFORMED, 1);
            return true;
        };
        let claim = &received.said;
        if claim.to != self.config.node {
            return false;
        }
        let Some(roster) = self.authentic(&received, claim.flow, &claim.from, source, now) else {
            return true;
        };
        let random = self.random;
        let verifier = &*self.config.verifier;
        let draw = || draw(random);
        let ruling = self
            .flows
            .claim(claim, source, &roster, verifier, draw, now);
        let word = ruling.as_str();
        ::metrics::counter!(metrics::TRANSIT_CLAIMS, "ruling" => word).increment(1);
        tracing::debug!(claimant = %claim.from, peer = %claim.peer, hops = ?claim.hops, ruling = word, "claim");
        self.answer(claim.flow, claim.nonce, ruling, &claim.from, source, None);
        true
    }

    /// Rules on an attach.
    fn attached(&mut self, packet: &[u8], source: SocketAddr, now: Instant) {
        let Ok(received) = Attach::read(packet) else {
            return self.drops.count(transit_drop::MALFORMED, 1);
        };
        let attach = &received.said;
        if attach.to != self.config.node {
            return self.drops.count(transit_drop::MALFORMED, 1);
        }
        let Some(roster) = self.authentic(&received, attach.place, &attach.from, source, now)
        else {
            return;
        };
        let random = self.random;
        let ruling = self
            .flows
            .attach(attach, source, &roster, || draw(random), now);
        let word = ruling.as_str();
        ::metrics::counter!(metrics::TRANSIT_ATTACHES, "ruling" => word).increment(1);
        tracing::debug!(node = %attach.from, %source, ruling = word, "attach");
        let (place, nonce, from) = (attach.place, attach.nonce, &attach.from);
        self.answer(place, nonce, ruling, from, source, Some(source));
    }

    /// The roster, if the message, which names a flow or a place, is by `from`, which it lists. The cheap questions
    /// come first.
    fn authentic<M>(
        &mut self,
        received: &Received<M>,
        named: Label,
        from: &NodeId,
        source: SocketAddr,
        now: Instant,
    ) -> Option<Arc<Roster>> {
        let roster = self.config.roster.borrow().clone();
        if roster.node(from).is_none() {
            self.drops.count(transit_drop::UNKNOWN_SENDER, 1);
            return None;
        }
        if !self.flows.may_check(named, from, source, &roster, now) {
            self.drops.count(transit_drop::TOO_MANY_CLAIMS, 1);
            return None;
        }
        let authenticator = &self.config.authenticator;
        if !authenticator.verify(from, &received.covered, &received.tags) {
            self.drops.count(transit_drop::UNAUTHENTICATED, 1);
            return None;
        }
        Some(roster)
    }

    fn answer(
        &self,
        flow: Label,
        nonce: u64,
        ruling: Ruling,
        to: &NodeId,
        source: SocketAddr,
        seen: Option<SocketAddr>,
    ) {
        let verdict = Verdict {
            flow,
            nonce,
            ruling,
            from: self.config.node.clone(),
            to: to.clone(),
            seen,
        };
        // No longer than what it answers: nobody gets more than was sent.
        let mut packet = Vec::with_capacity(512);
        let authenticator = &self.config.authenticator;
        verdict.write(&mut packet, |message, tags| {
            authenticator.tags(to, message, tags);
        });
        let _ = self.socket.try_send(&Transmit {
            destination: self.for_socket(source),
            ecn: None,
            contents: &packet,
            segment_size: None,
            src_ip: None,
        });
    }

    /// An address as the socket wants it.
    fn for_socket(&self, address: SocketAddr) -> SocketAddr {
        for_socket(self.address, address)
    }
}
