//! Leases, as a transit relay and a claimant see them: without keys and clocks of their own.
//!
//! A lease is the master's word that one flow is to be carried ([`token::Lease`](crate::token::Lease)). A claim carries it, and a relay
//! has it checked by a [`Verifier`]. That costs as much as fifty claims do otherwise, so it is done last, is
//! remembered, and there is a bound on how often ([`Leases`]). Where no master answers, the roster is the
//! permission, as whoever would sign leases signed it ([`Silence`]).

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    control::{Roster, lease::Way},
    id::NodeId,
    overlay::{
        packet::{Claim, Label, Refusal},
        shares::Shares,
    },
    token::{KeyId, Lease},
};

/// Longest lease that a claim carries, in bytes; see [`pack`](crate::token::pack).
pub const MAX_PACKED_LEN: usize = crate::token::MAX_LEASE_LEN / 4 * 3;

/// Checks leases.
pub trait Verifier: Send + Sync {
    /// What a [packed](crate::token::pack) lease says, if a key that the roster lists has signed it and it holds.
    fn verify(&self, lease: &[u8]) -> Result<Verified, Unfit>;

    /// Whether the roster lists a key that signs.
    fn trusts(&self, key: &KeyId) -> bool;
}

/// A lease that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// What it says.
    pub lease: Lease,
    /// The key that signed it.
    pub key: KeyId,
    /// For how long it holds yet.
    pub left: Duration,
}

/// Why a lease does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unfit {
    /// No lease, or not by a key that is trusted.
    Forged,
    /// It does not hold yet.
    NotYet,
    /// It does not hold any more.
    Expired,
}

impl From<Unfit> for Refusal {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Forged => Self::Forged,
            Unfit::NotYet => Self::NotYet,
            Unfit::Expired => Self::Expired,
        }
    }
}

/// Where a claimant's leases come from.
pub trait Source: Send + Sync {
    /// Gets a lease for this flow, and keeps it from running out.
    fn want(&self, way: Way);

    /// It is not wanted any more.
    fn forget(&self, flow: Label);

    /// What a claim of this flow is to carry now.
    fn offer(&self, flow: Label) -> Offer;

    /// What the lease of this flow says that is offered now, if one is.
    fn terms(&self, flow: Label) -> Option<Terms>;
}

/// What a lease says, for whoever looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// For how long it holds yet.
    pub left: Duration,
    /// Bits that its flow may carry in a second.
    pub bits_per_second: u64,
    /// Packets that its flow may carry in a second.
    pub packets_per_second: u64,
}

/// What a claim carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Offer {
    /// This lease, packed.
    Lease(Arc<[u8]>),
    /// None: no master answers, so that there can be none.
    Nothing,
    /// It is not to be made before there is a lease.
    Wait,
}

/// Leases that were checked, and how many may be checked yet.
#[derive(Debug)]
pub(super) struct Leases {
    known: HashMap<Arc<[u8]>, Known>,
    /// The same, oldest first.
    order: VecDeque<Arc<[u8]>>,
    /// What may be checked yet.
    shares: Shares,
    each: HashMap<NodeId, Budget>,
    /// Signatures that were checked; and leases that were known.
    pub(super) tally: Tally,
}

/// How leases came to be believed, or not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Signatures checked.
    pub checked: u64,
    /// Leases known from before.
    pub known: u64,
}

/// A lease that was checked.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) lease: Arc<Lease>,
    pub(super) key: KeyId,
    pub(super) ends: Instant,
}

/// Leases that are remembered: of half of the flows that a relay carries at most, and some 700 bytes each. The
/// oldest makes room, and costs a check when its flow is claimed again.
const KNOWN: usize = 32_768;

/// Signatures that are checked in [`CHECKS_IN`], all told. Each takes some 50 µs, so that this is a tenth of a
/// processor, and packets of flows wait no longer than 10 ms. Each member has its [share](Shares) of them.
const CHECKS: u32 = 200;
/// See [`CHECKS`].
const CHECKS_IN: Duration = Duration::from_millis(100);

/// Of one claimant in a second: a gateway that comes with a thousand flows has them in some seconds.
const CHECKS_EACH: u32 = 200;

/// So many in a time, and as many at once.
#[derive(Debug)]
struct Budget {
    most: u32,
    time: Duration,
    left: u32,
    since: Instant,
}

impl Budget {
    fn new(most: u32, time: Duration, now: Instant) -> Self {
        Self {
            most,
            time,
            left: most,
            since: now,
        }
    }

    fn refill(&mut self, now: Instant) {
        if now.saturating_duration_since(self.since) >= self.time {
            *self = Self::new(self.most, self.time, now);
        }
    }
}

impl Leases {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            known: HashMap::new(),
            order: VecDeque::new(),
            shares: Shares::new(CHECKS, CHECKS_IN, now),
            each: HashMap::new(),
            tally: Tally::default(),
        }
    }

    /// What the lease of a claim says, if it holds and is for this claim.
    pub(super) fn check(
        &mut self,
        claim: &Claim,
        roster: &Roster,
        verifier: &dyn Verifier,
        now: Instant,
    ) -> Result<Known, Refusal> {
        let known = match self.known.get(&*claim.lease) {
            Some(known) if verifier.trusts(&known.key) => {
                self.tally.known += 1;
                known.clone()
            }
            _ => self.verify(claim, roster, verifier, now)?,
        };
        if known.ends <= now {
            return Err(Refusal::Expired);
        }
        let lease = &known.lease;
        let is_for = lease.sub == claim.from
            && lease.peer == claim.peer
            && lease.hops == claim.hops
            && lease.flow == claim.flow;
        if !is_for {
            return Err(Refusal::OtherLease);
        }
        match roster.node(&lease.sub) {
            Some(node) if lease.epoch >= node.leases_since() => Ok(known),
            _ => Err(Refusal::Revoked),
        }
    }

    fn verify(
        &mut self,
        claim: &Claim,
        roster: &Roster,
        verifier: &dyn Verifier,
        now: Instant,
    ) -> Result<Known, Refusal> {
        let each = self.each.entry(claim.from.clone());
        let each = each.or_insert_with(|| Budget::new(CHECKS_EACH, Duration::from_secs(1), now));
        each.refill(now);
        if each.left == 0 || !self.shares.take(&claim.from, roster.nodes.len(), now) {
            return Err(Refusal::Busy);
        }
        each.left -= 1;
        self.tally.checked += 1;
        let Verified { lease, key, left } = verifier.verify(&claim.lease)?;
        let known = Known {
            lease: Arc::new(lease),
            key,
            ends: now + left,
        };
        if self.order.len() >= KNOWN
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        let bytes: Arc<[u8]> = claim.lease.as_slice().into();
        if self.known.insert(bytes.clone(), known.clone()).is_none() {
            self.order.push_back(bytes);
        }
        Ok(known)
    }

    /// Forgets those that do not hold any more, and who has not come with any for a while. The oldest are looked at
    /// until one holds: there may be [`KNOWN`], and packets wait meanwhile.
    pub(super) fn retain(&mut self, now: Instant) {
        let is_over = |known: &Known| known.ends <= now;
        while let Some(oldest) = self.order.front()
            && self.known.get(oldest).is_none_or(is_over)
        {
            self.known.remove(oldest);
            self.order.pop_front();
        }
        let is_in_use = |budget: &Budget| now.saturating_duration_since(budget.since) < budget.time;
        self.each.retain(|_, budget| is_in_use(budget));
        self.shares.retain(now);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let lists = [
            self.known.len(),
            self.order.len(),
            self.each.len(),
            self.shares.len(),
        ];
        lists.into_iter().max().unwrap_or(0)
    }
}

/// Whether no master answers this node, so that it takes the roster for permission.
///
/// That begins when none has answered for [`BEGINS`](Self::BEGINS): one that is restarted is no silence. It ends
/// [`ENDS`](Self::ENDS) after one has answered again, so that claimants, who hear it at the same time, have leases
/// by then. A node is in silence from its start on until it hears of a master: it was started with a roster that it
/// has kept.
#[derive(Debug, Clone, Copy)]
pub struct Silence {
    /// Since when none answers, and whether that is silence at once.
    unanswered: Option<(Instant, bool)>,
    /// One that was lasts until then.
    until: Option<Instant>,
}

impl Silence {
    /// For how long none has answered when it begins.
    pub const BEGINS: Duration = Duration::from_secs(30);
    /// How long it lasts once one has answered again.
    pub const ENDS: Duration = Duration::from_secs(60);

    /// Of a node that starts.
    pub fn new(now: Instant) -> Self {
        Self {
            unanswered: Some((now, true)),
            until: None,
        }
    }

    /// A master answers, or none does.
    pub fn hears(&mut self, answers: bool, now: Instant) {
        if !answers {
            self.unanswered.get_or_insert((now, false));
        } else if let Some((since, _)) = self.unanswered.take()
            && now.saturating_duration_since(since) >= Self::BEGINS
        {
            self.until = Some(now + Self::ENDS);
        }
    }

    /// Whether there is silence.
    pub fn is_at(&self, now: Instant) -> bool {
        let begun = self.unanswered.is_some_and(|(since, at_once)| {
            at_once || now.saturating_duration_since(since) >= Self::BEGINS
        });
        begun || self.until.is_some_and(|until| until > now)
    }
}

#[cfg(test)]
pub(super) mod tests;
