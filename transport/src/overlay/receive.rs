//! What comes in: QUIC's packets are handed on under their peer's address, probes are answered.

use std::{
    collections::VecDeque,
    io::{self, IoSliceMut},
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use quinn::udp::{EcnCodepoint, RecvMeta};
use wavry_proto::overlay::{
    packet::{HEADER_LEN, Header, Kind, Label, Probe, Verdict},
    paths::Route,
};

use super::{FULL, Shared, Socket, canonical, dropped, forwards, table};
use crate::metrics::{self, overlay_drop};

/// Packets that wait because the buffer that they came in was another peer's: the kernel puts together what
/// comes from one address, which is a transit relay's for many peers. As many as fit one such buffer, twice.
const OVERFLOW: usize = 128;

/// Packets that wait.
pub(super) type Overflow = VecDeque<Waiting>;

/// A packet that waits to be handed on.
pub(super) struct Waiting {
    from: SocketAddr,
    packet: Vec<u8>,
    ecn: Option<EcnCodepoint>,
}

impl Socket {
    pub(super) fn receive(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut overflow = table::lock(&self.overflow);
        if !overflow.is_empty() {
            return Poll::Ready(Ok(hand_on(&mut overflow, bufs, meta)));
        }
        loop {
            let count = ready!(self.beneath.poll_recv(cx, bufs, meta))?;
            let mut kept = 0;
            for index in 0..count {
                if let Some(sorted) = self.sort(&mut bufs[index], meta[index], &mut overflow) {
                    bufs.swap(kept, index);
                    meta[kept] = sorted;
                    kept += 1;
                }
            }
            if kept > 0 {
                return Poll::Ready(Ok(kept));
            }
            if !overflow.is_empty() {
                return Poll::Ready(Ok(hand_on(&mut overflow, bufs, meta)));
            }
        }
    }

    /// Takes the headers out of a buffer, and all that is not QUIC's. What is left is one peer's; what is
    /// another's goes to `overflow`. `None` when nothing is left.
    fn sort(&self, buf: &mut [u8], meta: RecvMeta, overflow: &mut Overflow) -> Option<RecvMeta> {
        let stride = meta.stride.max(1);
        let mut kept: Option<SocketAddr> = None;
        let mut last: Option<(Kind, Label, SocketAddr)> = None;
        let mut end = 0;
        let mut at = 0;
        while at < meta.len {
            let segment = at..meta.len.min(at + stride);
            at += stride;
            let Some((header, _)) = Header::read(&buf[segment.clone()]) else {
                dropped(overlay_drop::MALFORMED);
                continue;
            };
            match header.kind {
                Kind::Direct | Kind::Flow => {}
                Kind::Ping | Kind::Pong => {
                    self.shared
                        .heard(&buf[segment], canonical(meta.addr), self.number);
                    continue;
                }
                Kind::Verdict => {
                    self.shared.ruled(&buf[segment]);
                    continue;
                }
                // Nothing is forwarded here.
                Kind::Claim | Kind::Attach => {
                    dropped(overlay_drop::MALFORMED);
                    continue;
                }
            }
            // A run of packets is mostly of one peer: it is looked up once.
            let from = match last {
                Some((kind, label, from)) if (kind, label) == (header.kind, header.label) => from,
                _ => {
                    let Some(from) = self.sender(header) else {
                        dropped(overlay_drop::UNKNOWN_LABEL);
                        continue;
                    };
                    last = Some((header.kind, header.label, from));
                    from
                }
            };
            let packet = segment.start + HEADER_LEN..segment.end;
            if *kept.get_or_insert(from) == from {
                let len = packet.len();
                buf.copy_within(packet, end);
                end += len;
            } else if overflow.len() < OVERFLOW {
                overflow.push_back(Waiting {
                    from,
                    packet: buf[packet].to_vec(),
                    ecn: meta.ecn,
                });
            } else {
                dropped(overlay_drop::OVERFLOW);
            }
        }
        let stride = stride.saturating_sub(HEADER_LEN);
        Some(under(kept?, end, stride, meta.ecn)).filter(|meta| meta.len > 0)
    }

    /// The address of QUIC's under which the sender of a packet is known.
    fn sender(&self, header: Header) -> Option<SocketAddr> {
        let table = table::read(&self.shared.table);
        let peer = match header.kind {
            Kind::Flow => table.flow(header.label),
            _ => table.labelled(header.label),
        };
        let peer = peer?;
        peer.came_to(self.number);
        Some(peer.address)
    }
}

/// Puts packets that wait into buffers, one each.
fn hand_on(overflow: &mut Overflow, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> usize {
    let mut count = 0;
    for (buf, meta) in bufs.iter_mut().zip(meta.iter_mut()) {
        let Some(waiting) = overflow.pop_front() else {
            break;
        };
        let len = waiting.packet.len().min(buf.len());
        buf[..len].copy_from_slice(&waiting.packet[..len]);
        *meta = under(waiting.from, len, len, waiting.ecn);
        count += 1;
    }
    count
}

fn under(addr: SocketAddr, len: usize, stride: usize, ecn: Option<EcnCodepoint>) -> RecvMeta {
    RecvMeta {
        addr,
        len,
        stride,
        ecn,
        // With one, QUIC would want to send from it.
        dst_ip: None,
    }
}

impl Shared {
    /// A transit relay's verdict came.
    fn ruled(&self, packet: &[u8]) {
        let Ok(received) = Verdict::read(packet) else {
            return dropped(overlay_drop::MALFORMED);
        };
        let now = Instant::now();
        let verdict = received.said;
        let peer = table::read(&self.table).flow(verdict.flow).cloned();
        if peer.is_none() && !self.places.has(verdict.flow) {
            return dropped(overlay_drop::UNKNOWN_LABEL);
        }
        if verdict.to != self.config.node {
            return dropped(overlay_drop::UNKNOWN_SENDER);
        }
        if !self.may_check(now) {
            return dropped(overlay_drop::TOO_MANY_PROBES);
        }
        let authenticator = &self.config.authenticator;
        if !authenticator.verify(&verdict.from, &received.covered, &received.tags) {
            return dropped(overlay_drop::UNAUTHENTICATED);
        }
        let Some(peer) = peer else {
            return self.places.told(&verdict, now);
        };
        let refusal = table::lock(&peer.passages)
            .iter_mut()
            .find(|passage| passage.flow() == verdict.flow)
            .and_then(|passage| passage.told(&verdict, now));
        if let Some(refusal) = refusal {
            let reason = refusal.as_str();
            ::metrics::counter!(metrics::OVERLAY_REFUSALS, "reason" => reason).increment(1);
            tracing::warn!(peer = %peer.id, relay = %verdict.from, reason, "no flow through this relay");
        }
        peer.answered.notify_waiters();
        peer.changed.notify_one();
    }

    /// A probe came from `source` to the socket with this number.
    fn heard(self: &Arc<Self>, packet: &[u8], source: SocketAddr, socket: usize) {
        let Ok(received) = Probe::read(packet) else {
            return dropped(overlay_drop::MALFORMED);
        };
        let now = Instant::now();
        let probe = received.said;
        // The cheap questions come first: whoever is not listed is not worth a look at its tags.
        let (known, has_left) = {
            let table = table::read(&self.table);
            let known = table.peer(&probe.from).is_some();
            (known, table.has_left(probe.flow))
        };
        let listed = || self.config.roster.borrow().node(&probe.from).is_some();
        if probe.to != self.config.node || probe.from == probe.to || !(known || listed()) {
            return dropped(overlay_drop::UNKNOWN_SENDER);
        }
        if has_left {
            // Without an answer its peer leaves it, too, before relays carry it no more.
            return dropped(overlay_drop::LEFT_FLOW);
        }
        if !self.may_check(now) {
            return dropped(overlay_drop::TOO_MANY_PROBES);
        }
        let authenticator = &self.config.authenticator;
        if !authenticator.verify(&probe.from, &received.covered, &received.tags) {
            return dropped(overlay_drop::UNAUTHENTICATED);
        }
        let Some(peer) = self.peer(&probe.from) else {
            return dropped(overlay_drop::UNKNOWN_SENDER);
        };
        let route = match probe.flow {
            Label::NONE => Route::Direct(source),
            id => Route::Flow { via: source, id },
        };
        if let Route::Flow { id, .. } = route {
            let known = table::lock(&peer.paths).knows(route);
            if !known && !forwards(&self.config.roster.borrow(), route) {
                return dropped(overlay_drop::UNKNOWN_RELAY);
            }
            if !table::write(&self.table).heard_over(&peer, id) {
                return dropped(overlay_drop::UNKNOWN_LABEL);
            }
        }
        // Before the path is one that somebody may dial over.
        let in_use = table::lock(&peer.paths).sending(now).over;
        if in_use.is_none_or(|over| over == route) {
            peer.came_to(socket);
        }
        match probe.kind {
            Kind::Ping => {
                // As long as the ping: nobody gets more than was sent.
                self.probe(&peer, Kind::Pong, route, probe.nonce, packet.len());
                if packet.len() >= FULL {
                    let mut paths = table::lock(&peer.paths);
                    // It may have been left meanwhile; what is left later is taken off these paths later.
                    if !table::read(&self.table).has_left(probe.flow) {
                        paths.heard(route, now);
                    }
                }
            }
            // Its label counts only here, where it answers a number of ours: an old ping may be replayed.
            _ => {
                if !table::lock(&peer.paths).answered(probe.nonce, probe.label, now) {
                    return;
                }
                peer.answered.notify_waiters();
            }
        }
        // At once, not when its task gets to run: a QUIC packet may be behind it.
        self.turn(&peer, now);
        peer.changed.notify_one();
    }
}
