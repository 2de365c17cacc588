//! This node's places at transit relays, where nobody reaches it otherwise.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use tokio::sync::{Notify, watch};
use wavry_proto::{
    control::Roster,
    id::NodeId,
    overlay::{
        attachment::Attachment,
        packet::{Attach, Label, Verdict},
        ways,
    },
    view::Place,
};

use super::{NOTHING_DUE, Shared, table::lock};
use crate::metrics;

/// Through which transit relays a node is reached.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attached {
    /// The relays, ordered by id.
    pub relays: Vec<NodeId>,
    /// Where they see it. None where they do not see it at the same address: others would not, either (RFC 4787,
    /// section 4.1: its mapping depends on whom it sends to).
    pub seen: Option<SocketAddr>,
}

#[derive(Default)]
pub(super) struct Places {
    held: Mutex<Vec<Attachment>>,
    attached: watch::Sender<Attached>,
    /// There is something to do for whoever looks after them.
    changed: Notify,
    kept: AtomicBool,
}

impl Places {
    /// Whether a relay knows this node as this.
    pub(super) fn has(&self, place: Label) -> bool {
        lock(&self.held).iter().any(|held| held.place() == place)
    }

    /// A relay's verdict came, whose tags were checked.
    pub(super) fn told(&self, verdict: &Verdict, now: Instant) {
        let refusal = lock(&self.held)
            .iter_mut()
            .find(|held| held.place() == verdict.flow)
            .and_then(|held| held.told(verdict, now));
        if let Some(refusal) = refusal {
            let reason = refusal.as_str();
            ::metrics::counter!(metrics::OVERLAY_REFUSALS, "reason" => reason).increment(1);
            tracing::warn!(relay = %verdict.from, reason, "no place at this relay");
        }
        self.changed.notify_one();
    }

    /// What there is of them now.
    pub(super) fn view(&self, now: Instant) -> Vec<Place> {
        let held = lock(&self.held);
        let places = held.iter().map(|attachment| Place {
            relay: attachment.relay().node.clone(),
            held: attachment.is_held(now),
            seen: attachment.seen(now),
        });
        places.collect()
    }

    /// Something that should have come through the relay at this address did not.
    pub(super) fn doubt(&self, via: SocketAddr, now: Instant) {
        let mut held = lock(&self.held);
        let at = held.iter_mut().find(|held| held.relay().address == via);
        if let Some(attachment) = at {
            attachment.doubt(now);
            if attachment.next() <= now {
                self.changed.notify_one();
            }
        }
    }
}

impl Shared {
    /// Keeps places from now on, if it does not already.
    pub(super) fn attach(self: &Arc<Self>) -> watch::Receiver<Attached> {
        let places = &self.places;
        if !places.kept.swap(true, Ordering::Relaxed) {
            tokio::spawn(self.clone().keep_places());
        }
        places.attached.subscribe()
    }

    async fn keep_places(self: Arc<Self>) {
        let mut roster = self.config.roster.clone();
        let mut news = true;
        self.choose_places(&roster.borrow_and_update().clone());
        loop {
            let next = self.take_places(Instant::now());
            tokio::select! {
                () = self.stopped.cancelled() => break,
                () = tokio::time::sleep_until(next.into()) => {}
                () = self.places.changed.notified() => {}
                changed = roster.changed(), if news => match changed {
                    Ok(()) => self.choose_places(&roster.borrow_and_update().clone()),
                    // Whoever published it is gone: the last roster stays.
                    Err(_) => news = false,
                },
            }
        }
    }

    /// Keeps those places that the roster gives, and asks for others in the end.
    fn choose_places(&self, roster: &Roster) {
        let node = &self.config.node;
        let chosen = ways::places(roster, node, |at| self.reaches(at));
        let now = Instant::now();
        let mut held = lock(&self.places.held);
        held.retain(|attachment| chosen.contains(attachment.relay()));
        for relay in chosen {
            if !held.iter().any(|attachment| *attachment.relay() == relay) {
                let place = Label::from_random(self.draw());
                held.push(Attachment::new(node.clone(), relay, place, now));
            }
        }
    }

    /// Asks for what is due, and says what is held; returns when to look again.
    fn take_places(&self, now: Instant) -> Instant {
        let mut next = now + NOTHING_DUE;
        let mut attached = Attached::default();
        let mut seen = Vec::new();
        for attachment in lock(&self.places.held).iter_mut() {
            let address = attachment.relay().address;
            if let Some(attach) = attachment.poll(now, || self.draw()) {
                self.send_attach(&attach, address);
            }
            if attachment.is_held(now) {
                attached.relays.push(attachment.relay().node.clone());
                seen.extend(attachment.seen(now));
            }
            next = next.min(attachment.next());
        }
        attached.relays.sort();
        seen.dedup();
        attached.seen = match seen[..] {
            [address] => Some(address),
            _ => None,
        };
        ::metrics::gauge!(metrics::OVERLAY_PLACES).set(attached.relays.len() as f64);
        self.places.attached.send_if_modified(|before| {
            let news = *before != attached;
            if news {
                tracing::info!(relays = ?attached.relays, seen = ?attached.seen, "attached");
                *before = attached;
            }
            news
        });
        next
    }

    fn send_attach(&self, attach: &Attach, to: SocketAddr) {
        let mut packet = Vec::with_capacity(512);
        let authenticator = &self.config.authenticator;
        attach.write(&mut packet, |message, tags| {
            authenticator.tags(&attach.to, message, tags);
        });
        self.send_own(self.for_socket(to), &packet);
    }
}
