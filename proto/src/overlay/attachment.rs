//! A node's place at a transit relay, as the node sees it: the relay sends what comes for the node to where it was
//! heard from last. The node says again where it is before what translates its addresses forgets them, and at once
//! when nothing comes any more: then it may have another address.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::{
    id::NodeId,
    overlay::{
        asking::{Asking, patience},
        packet::{Attach, Label, Refusal, Ruling, Verdict},
        round_trip::RoundTrip,
        ways::Hop,
    },
};

/// From a relay's cookie to the next attach, where it was not content with the one before: not in a circle.
const NOT_CONTENT: Duration = Duration::from_millis(250);
/// After a refusal, which the roster or the relay's end has to change.
const AFTER_REFUSAL: Duration = Duration::from_secs(5);
/// From one that was granted to the next. Translators forget an address that is not used after 30 s, as some do.
const KEEP: Duration = Duration::from_secs(15);
/// And at the least, however soon it ends.
const APART: Duration = Duration::from_secs(1);
/// One that was granted so lately is not doubted: what is missed was sent before.
const FRESH: Duration = Duration::from_millis(200);
/// So many that were not answered, over three seconds at least, and the place is none any more.
const TRIES: u32 = 6;

/// A place at a transit relay.
#[derive(Debug)]
pub struct Attachment {
    node: NodeId,
    relay: Hop,
    place: Label,
    asking: Asking,
    round_trip: Option<RoundTrip>,
    cookie: u64,
    ask_at: Instant,
    held: Option<Held>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    since: Instant,
    ends: Instant,
    seen: Option<SocketAddr>,
}

impl Attachment {
    /// Of `node`, at `relay`, which knows it as `place`.
    pub fn new(node: NodeId, relay: Hop, place: Label, now: Instant) -> Self {
        Self {
            node,
            relay,
            place,
            asking: Asking::default(),
            round_trip: None,
            cookie: 0,
            ask_at: now,
            held: None,
        }
    }

    /// The relay.
    pub fn relay(&self) -> &Hop {
        &self.relay
    }

    /// What the relay knows it as.
    pub fn place(&self) -> Label {
        self.place
    }

    /// Whether the relay sends here what comes for the node.
    pub fn is_held(&self, now: Instant) -> bool {
        self.asking.tries() < TRIES && self.held.is_some_and(|held| held.ends > now)
    }

    /// Where the relay sees the node, while it is held.
    pub fn seen(&self, now: Instant) -> Option<SocketAddr> {
        self.held.filter(|_| self.is_held(now))?.seen
    }

    /// What is to be sent to the relay now. `draw` gives random numbers.
    pub fn poll(&mut self, now: Instant, draw: impl FnOnce() -> u64) -> Option<Attach> {
        if self.ask_at > now {
            return None;
        }
        let nonce = draw();
        let patience = patience(self.round_trip, None);
        self.ask_at = self.asking.ask(nonce, patience, now);
        Some(Attach {
            place: self.place,
            nonce,
            cookie: self.cookie,
            from: self.node.clone(),
            to: self.relay.node.clone(),
        })
    }

    /// The relay's answer, whose tags were checked: a refusal, if it was one to what was asked.
    pub fn told(&mut self, verdict: &Verdict, now: Instant) -> Option<Refusal> {
        if verdict.from != self.relay.node {
            return None;
        }
        let answered = self.asking.answered(verdict.nonce, now)?;
        self.round_trip = Some(RoundTrip::after(self.round_trip, answered.took, now));
        let has_proved = self.cookie != 0;
        self.cookie = 0;
        match verdict.ruling {
            Ruling::Prove { cookie } => {
                self.cookie = cookie;
                // A relay that is not content with its own cookie is not asked in a circle.
                self.ask_at = if has_proved { now + NOT_CONTENT } else { now };
                None
            }
            Ruling::Granted { lasts } => {
                let lasts = Duration::from_secs(lasts.into());
                self.held = Some(Held {
                    since: now,
                    ends: now + lasts,
                    seen: verdict.seen,
                });
                self.ask_at = now + KEEP.min(lasts / 4).max(APART);
                None
            }
            Ruling::Refused(refusal) => {
                self.held = None;
                self.ask_at = now + AFTER_REFUSAL;
                Some(refusal)
            }
        }
    }

    /// Something that should have come through the relay did not.
    pub fn doubt(&mut self, now: Instant) {
        let is_old = |held: Held| now.saturating_duration_since(held.since) >= FRESH;
        if self.asking.tries() == 0 && self.held.is_some_and(is_old) {
            self.ask_at = now;
        }
    }

    /// When to look again, unless something comes before.
    pub fn next(&self) -> Instant {
        self.ask_at
    }
}

#[cfg(test)]
mod tests;
