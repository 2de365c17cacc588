//! A way through transit relays, as the node that wants it sees it: each relay is asked for the flow in its
//! turn, the later ones through those that have granted it, and asked again before it ends.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::{
    control::lease,
    id::NodeId,
    overlay::{
        asking::{Asking, patience},
        lease::Offer,
        packet::{Claim, Label, Next, Refusal, Ruling, Verdict},
        paths::Route,
        round_trip::RoundTrip,
        ways::{Hop, Way},
    },
};

/// From a relay's cookie to the next claim, where it was not content with the one before: not in a circle.
const NOT_CONTENT: Duration = Duration::from_millis(250);
/// Claims to a later relay that came to nothing, until the first one is asked again: it may have been started anew,
/// and forward none of them.
const FROM_THE_FIRST: u32 = 4;
/// After a refusal, which the roster that the relay has or other claimants have to change; doubled each time.
const AFTER_REFUSAL: Duration = Duration::from_millis(500);
/// Where it stops doubling.
const AFTER_REFUSAL_MOST: Duration = Duration::from_secs(5);

/// When to look for a lease again that is not there, unless its coming is told.
const NO_LEASE_YET: Duration = Duration::from_secs(5);
/// From a claim that was granted to the next one at the least, however soon the flow ends.
const APART: Duration = Duration::from_secs(1);
/// From one time that all relays have granted it to the next, while packets do not come through.
const NOT_PROVED: Duration = Duration::from_secs(5);
/// From a claim out of turn to the next one, at the least.
pub const MEASURES_APART: Duration = Duration::from_secs(1);

/// A way to a peer through transit relays, on which the node at its end makes a flow.
#[derive(Debug)]
pub struct Passage {
    from: NodeId,
    peer: NodeId,
    way: Way,
    flow: Label,
    /// The lease that the last claim carried.
    lease: Vec<u8>,
    /// It waits for one.
    waits: bool,
    /// Claims that were made.
    count: u32,
    /// The relay that is asked, or is to be.
    step: usize,
    /// What it was asked.
    asking: Asking,
    /// What each relay said last.
    told: Vec<Told>,
    /// When it was last claimed out of turn.
    measured_at: Option<Instant>,
    cookie: u64,
    /// Refusals in a row.
    refusals: u32,
    claim_at: Instant,
    /// Whether all relays have granted it, and until when the first of them does.
    open: bool,
    ends: Option<Instant>,
    /// When the last of them did.
    granted_at: Instant,
}

/// What is known of a relay on the way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Told {
    /// What it said last.
    pub ruling: Option<Ruling>,
    /// From a claim to its verdict, which take the way of packets: through all relays before it, and back. In that
    /// is what the relay needs for its tags, and at first for the lease's signature.
    pub round_trip: Option<RoundTrip>,
}

impl Passage {
    /// From `from` to `peer`.
    pub fn new(from: NodeId, way: Way, peer: NodeId, flow: Label, now: Instant) -> Self {
        Self {
            told: vec![Told::default(); way.hops.len()],
            measured_at: None,
            from,
            peer,
            way,
            flow,
            lease: Vec::new(),
            waits: false,
            count: 0,
            step: 0,
            asking: Asking::default(),
            cookie: 0,
            refusals: 0,
            claim_at: now,
            open: false,
            ends: None,
            granted_at: now,
        }
    }

    /// The flow.
    pub fn flow(&self) -> Label {
        self.flow
    }

    /// What it is to have a lease for.
    pub fn to_lease(&self) -> lease::Way {
        lease::Way {
            flow: self.flow,
            peer: self.peer.clone(),
            hops: self.way.hops.iter().map(|hop| hop.node.clone()).collect(),
        }
    }

    /// The way that it goes.
    pub fn way(&self) -> &Way {
        &self.way
    }

    /// The relays on the way, in their order, and what each said.
    pub fn hops(&self) -> impl Iterator<Item = (&Hop, Told)> {
        self.way.hops.iter().zip(self.told.iter().copied())
    }

    /// Until when all relays carry it; `None` where they do not.
    pub fn open_until(&self, now: Instant) -> Option<Instant> {
        self.ends.filter(|ends| self.open && *ends > now)
    }

    /// Claims it now, although it is not due, so that the round trip to each relay is measured. That is done each
    /// [`MEASURES_APART`] at most, and only while all relays carry it and none is being asked.
    pub fn measure(&mut self, now: Instant) {
        let is_idle = self.open && self.step == 0 && self.asking.tries() == 0;
        let rested = self
            .measured_at
            .is_none_or(|at| now.saturating_duration_since(at) >= MEASURES_APART);
        if is_idle && rested {
            self.measured_at = Some(now);
            self.claim_at = self.claim_at.min(now);
        }
    }

    /// As a path, while all relays carry it.
    pub fn route(&self, now: Instant) -> Option<Route> {
        self.open_until(now).map(|_| Route::Flow {
            via: self.way.hops[0].address,
            id: self.flow,
        })
    }

    /// The claim that is due, and where it is to be sent. It carries what is offered. `draw` gives random numbers.
    pub fn poll(
        &mut self,
        now: Instant,
        offer: impl FnOnce() -> Offer,
        draw: impl FnOnce() -> u64,
    ) -> Option<(Claim, SocketAddr)> {
        if self.claim_at > now {
            return None;
        }
        let offer = offer();
        self.waits = offer == Offer::Wait;
        self.lease = match offer {
            Offer::Lease(lease) => lease.to_vec(),
            Offer::Nothing => Vec::new(),
            Offer::Wait => {
                self.claim_at = now + NO_LEASE_YET;
                return None;
            }
        };
        let is_over = self.ends.is_none_or(|ends| ends <= now);
        if self.step > 0 && (is_over || self.asking.tries() >= FROM_THE_FIRST) {
            self.step = 0;
            self.asking.forget();
        }
        self.count += 1;
        let nonce = u64::from(self.count) << 32 | draw() & 0xffff_ffff;
        self.claim_at = self.asking.ask(nonce, self.patience(), now);
        let hops = &self.way.hops;
        let next = hops.get(self.step + 1);
        let claim = Claim {
            flow: self.flow,
            nonce,
            cookie: self.cookie,
            from: self.from.clone(),
            to: hops[self.step].node.clone(),
            peer: self.peer.clone(),
            hops: hops.iter().map(|hop| hop.node.clone()).collect(),
            next: next.map_or(self.way.last, |next| Next::At(next.address)),
            lease: self.lease.clone(),
        };
        Some((claim, hops[0].address))
    }

    /// What is offered has changed: it is claimed at once if it waits for that, or has another lease.
    pub fn offered(&mut self, offer: &Offer, now: Instant) {
        let is_news = match offer {
            Offer::Lease(lease) => self.waits || (self.open && self.lease != **lease),
            Offer::Nothing => self.waits,
            Offer::Wait => false,
        };
        if is_news {
            self.claim_at = now;
        }
    }

    /// A relay's answer, whose tags were checked: a refusal, if it was one to what was asked.
    pub fn told(&mut self, verdict: &Verdict, now: Instant) -> Option<Refusal> {
        if verdict.from != self.way.hops[self.step].node {
            return None;
        }
        let answered = self.asking.answered(verdict.nonce, now)?;
        let told = &mut self.told[self.step];
        told.round_trip = Some(RoundTrip::after(told.round_trip, answered.took, now));
        if !answered.is_newest && matches!(verdict.ruling, Ruling::Refused(_)) {
            // A later claim may have overtaken it, and been granted.
            return None;
        }
        told.ruling = Some(verdict.ruling);
        self.asking.forget();
        let has_proved = self.cookie != 0;
        self.cookie = 0;
        match verdict.ruling {
            Ruling::Prove { cookie } => {
                self.cookie = cookie;
                // A relay that is not content with its own cookie is not asked in a circle.
                self.claim_at = if has_proved { now + NOT_CONTENT } else { now };
                None
            }
            Ruling::Granted { lasts } => {
                let lasts = Duration::from_secs(lasts.into());
                if self.step == 0 {
                    self.ends = Some(now + lasts);
                }
                self.ends = self.ends.map(|ends| ends.min(now + lasts));
                self.step += 1;
                self.claim_at = now;
                if self.step == self.way.hops.len() {
                    self.open = true;
                    self.granted_at = now;
                    self.refusals = 0;
                    self.step = 0;
                    self.claim_at = now + (lasts / 2).max(APART);
                }
                None
            }
            Ruling::Refused(refusal) => {
                let doubled = AFTER_REFUSAL * (1 << self.refusals.min(8));
                self.refusals = self.refusals.saturating_add(1);
                self.again(now + doubled.min(AFTER_REFUSAL_MOST));
                Some(refusal)
            }
        }
    }

    /// Nothing comes through: the first relay may have been started anew, and know nothing of it.
    pub fn fell_silent(&mut self, now: Instant) {
        if self.open {
            self.again(now);
        }
    }

    /// Nothing came through yet: a relay may have been started anew before anything did. It is claimed sooner, as often
    /// as a path that is too narrow may be worth.
    pub fn stays_unproved(&mut self) {
        if self.open && self.step == 0 && self.asking.tries() == 0 {
            self.claim_at = self.claim_at.min(self.granted_at + NOT_PROVED);
        }
    }

    /// The roster changed: what a relay refused or did not understand, it may grant now. One that is being asked
    /// has time to answer.
    pub fn roster_changed(&mut self, now: Instant) {
        if self.open {
            return;
        }
        // What was refused under rosters before counts no more, even if the next claim is due anyway.
        self.refusals = 0;
        if self.claim_at > now + self.patience() {
            self.again(now);
        }
    }

    /// When to look again, unless something comes before.
    pub fn next(&self) -> Instant {
        self.claim_at
    }

    fn again(&mut self, at: Instant) {
        self.open = false;
        self.ends = None;
        self.step = 0;
        self.asking.forget();
        self.cookie = 0;
        self.claim_at = at;
    }

    /// For how long the relay that is asked may take to answer.
    fn patience(&self) -> Duration {
        let before = self.step.checked_sub(1);
        let before = before.and_then(|before| self.told[before].round_trip);
        patience(self.told[self.step].round_trip, before)
    }
}

#[cfg(test)]
mod tests;
