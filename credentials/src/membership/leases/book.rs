//! Which leases a node wants and has, and when to ask for which. Pure: time is since the Unix epoch, and chance
//! an argument.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use wavry_proto::{
    control::lease::{MAX_LEASES, Way},
    id::Epoch,
    overlay::{
        lease::{Offer, Terms},
        packet::Label,
    },
    token::Lease,
};

/// After the master said that there is none: a node or a relay may register, or begin to forward.
const AFTER_REFUSAL: Duration = Duration::from_secs(5);

/// The leases of one node's flows.
#[derive(Debug, Default)]
pub(super) struct Book {
    entries: BTreeMap<Label, Entry>,
    /// Leases that were signed under a roster of an older epoch hold no more.
    since: Epoch,
    /// Whether the last request came to nothing, as no master answers or can sign.
    is_unanswered: bool,
    /// No request before.
    not_before: Duration,
}

#[derive(Debug)]
struct Entry {
    way: Way,
    held: Option<Held>,
    due: Duration,
}

#[derive(Debug)]
struct Held {
    packed: Arc<[u8]>,
    epoch: Epoch,
    ends: Duration,
    bits_per_second: u64,
    packets_per_second: u64,
}

/// What the master said of one way.
#[derive(Debug)]
pub(super) enum Said {
    /// A lease, verified; as bytes, too.
    Lease(Lease, Vec<u8>),
    /// There is none, or it cannot be made out.
    Nothing,
}

impl Held {
    fn holds(&self, since: Epoch, now: Duration) -> bool {
        self.ends > now && self.epoch >= since
    }
}

impl Book {
    /// Wants a lease of this flow. Whether that is new.
    pub(super) fn want(&mut self, way: Way, now: Duration) -> bool {
        let entry = Entry {
            due: now,
            held: None,
            way,
        };
        let is_new = !self.entries.contains_key(&entry.way.flow);
        self.entries.entry(entry.way.flow).or_insert(entry);
        is_new
    }

    pub(super) fn forget(&mut self, flow: Label) {
        self.entries.remove(&flow);
    }

    /// What a claim of this flow is to carry.
    pub(super) fn offer(&self, flow: Label, now: Duration) -> Offer {
        match self.held(flow, now) {
            Some(held) => Offer::Lease(held.packed.clone()),
            None if self.is_unanswered => Offer::Nothing,
            None => Offer::Wait,
        }
    }

    /// What the lease says that is offered.
    pub(super) fn terms(&self, flow: Label, now: Duration) -> Option<Terms> {
        let held = self.held(flow, now)?;
        Some(Terms {
            left: held.ends.saturating_sub(now),
            bits_per_second: held.bits_per_second,
            packets_per_second: held.packets_per_second,
        })
    }

    fn held(&self, flow: Label, now: Duration) -> Option<&Held> {
        let held = self.entries.get(&flow)?.held.as_ref();
        held.filter(|held| held.holds(self.since, now))
    }

    /// Leases that were signed before hold no more.
    pub(super) fn revoked(&mut self, since: Epoch) {
        self.since = self.since.max(since);
    }

    /// For which a lease is to be asked now, as many as one request may have.
    pub(super) fn due(&self, now: Duration) -> Vec<Way> {
        if self.not_before > now {
            return Vec::new();
        }
        let due = self
            .entries
            .values()
            .filter(|entry| self.is_due(entry, now));
        due.take(MAX_LEASES)
            .map(|entry| entry.way.clone())
            .collect()
    }

    /// When the next one is due, unless something comes before.
    pub(super) fn next(&self, now: Duration) -> Option<Duration> {
        let at = |entry: &Entry| match self.is_due(entry, now) {
            true => now,
            false => entry.due,
        };
        let next = self.entries.values().map(at).min()?;
        Some(next.max(self.not_before))
    }

    fn is_due(&self, entry: &Entry, now: Duration) -> bool {
        let is_revoked = |held: &Held| held.epoch < self.since;
        entry.due <= now || entry.held.as_ref().is_some_and(is_revoked)
    }

    /// A master answered. `chance` is from 0 to 1, anew for each.
    pub(super) fn answered(
        &mut self,
        said: impl IntoIterator<Item = (Way, Said)>,
        now: Duration,
        mut chance: impl FnMut() -> f64,
    ) {
        self.is_unanswered = false;
        for (way, said) in said {
            // It may have been forgotten meanwhile.
            let Some(entry) = self.entries.get_mut(&way.flow) else {
                continue;
            };
            let again = AFTER_REFUSAL.mul_f64(1.0 + chance());
            entry.due = match said {
                Said::Lease(lease, packed) => {
                    // By how long it holds and not until when: what this node's clock shows is no matter.
                    let validity = lease.validity;
                    let life = validity.exp.saturating_sub(validity.iat);
                    let life = Duration::from_secs(life);
                    let ends = now + life;
                    entry.held = Some(Held {
                        packed: packed.into(),
                        epoch: lease.epoch,
                        ends,
                        bits_per_second: lease.bps,
                        packets_per_second: lease.pps,
                    });
                    // At half of its life, and a while before so that many do not come at once. One under a roster
                    // that is older than a revocation is none, and asked for again.
                    now + life
                        .mul_f64(0.5 - 0.1 * chance())
                        .max(Duration::from_secs(1))
                }
                Said::Nothing => now + again,
            };
            let is_revoked = |held: &Held| held.epoch < self.since;
            if entry.held.as_ref().is_some_and(is_revoked) {
                // The master that signed it was behind.
                entry.held = None;
                entry.due = now + Duration::from_millis(200);
            }
        }
    }

    /// A request came to nothing: whether that is because no master answers or can sign. None is made before
    /// `pause` is over.
    pub(super) fn failed(&mut self, is_unanswered: bool, now: Duration, pause: Duration) {
        self.is_unanswered = is_unanswered;
        self.not_before = now + pause;
    }

    /// Leases that hold, and those that are wanted.
    pub(super) fn counts(&self, now: Duration) -> (usize, usize) {
        let holds = |entry: &&Entry| {
            let held = entry.held.as_ref();
            held.is_some_and(|held| held.holds(self.since, now))
        };
        (
            self.entries.values().filter(holds).count(),
            self.entries.len(),
        )
    }
}

#[cfg(test)]
mod tests {
    use wavry_proto::token::Validity;

    use super::*;

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    fn way(flow: u64) -> Way {
        Way {
            flow: Label::from_random(flow),
            peer: "b".parse().unwrap(),
            hops: vec!["t".parse().unwrap()],
        }
    }

    /// Signed at [`NOW`].
    fn lease(flow: u64, epoch: u64, lasts: u64) -> (Way, Said) {
        let way = way(flow);
        let lease = Lease {
            sub: "a".parse().unwrap(),
            peer: way.peer.clone(),
            hops: way.hops.clone(),
            flow: way.flow,
            bps: 1,
            pps: 1,
            epoch: Epoch(epoch),
            validity: Validity {
                iat: NOW.as_secs(),
                nbf: NOW.as_secs(),
                exp: NOW.as_secs() + lasts,
            },
        };
        (way, Said::Lease(lease, vec![epoch as u8]))
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn offered(epoch: u8) -> Offer {
        Offer::Lease(vec![epoch].into())
    }

    #[test]
    fn a_lease_is_asked_for_at_once_and_anew_before_half_of_it_is_over() {
        let mut book = Book::default();
        let flow = Label::from_random(1);
        assert!(book.want(way(1), NOW) && !book.want(way(1), NOW));
        assert_eq!(book.offer(flow, NOW), Offer::Wait);
        assert_eq!(book.due(NOW), [way(1)]);
        book.answered([lease(1, 7, 100)], NOW, || 1.0);
        assert_eq!(book.offer(flow, NOW), offered(7));
        let terms = book.terms(flow, NOW + seconds(30)).unwrap();
        assert_eq!((terms.left, terms.bits_per_second), (seconds(70), 1));
        assert_eq!(book.next(NOW), Some(NOW + seconds(40)));
        assert!(book.due(NOW + seconds(39)).is_empty());
        assert_eq!(book.due(NOW + seconds(40)), [way(1)]);
        // It is offered for as long as it holds.
        assert_eq!(book.offer(flow, NOW + seconds(99)), offered(7));
        assert_eq!(book.offer(flow, NOW + seconds(100)), Offer::Wait);
        assert_eq!(book.terms(flow, NOW + seconds(100)), None);
        book.answered([lease(1, 8, 100)], NOW + seconds(40), || 0.0);
        assert_eq!(book.offer(flow, NOW + seconds(139)), offered(8));
        assert_eq!(book.next(NOW), Some(NOW + seconds(90)));
        book.forget(flow);
        assert_eq!((book.next(NOW), book.counts(NOW)), (None, (0, 0)));
    }

    #[test]
    fn where_no_master_answers_a_lease_is_offered_while_it_holds_and_nothing_after() {
        let mut book = Book::default();
        let flow = Label::from_random(1);
        book.want(way(1), NOW);
        book.answered([lease(1, 7, 100)], NOW, || 0.0);
        book.failed(true, NOW + seconds(50), seconds(4));
        assert!(book.due(NOW + seconds(53)).is_empty());
        assert_eq!(book.next(NOW + seconds(50)), Some(NOW + seconds(54)));
        assert_eq!(book.offer(flow, NOW + seconds(99)), offered(7));
        assert_eq!(book.offer(flow, NOW + seconds(100)), Offer::Nothing);
        // One that says that it is too much is one that answers.
        book.failed(false, NOW + seconds(101), seconds(4));
        assert_eq!(book.offer(flow, NOW + seconds(101)), Offer::Wait);
    }

    #[test]
    fn what_was_revoked_is_offered_no_more_and_asked_for_at_once() {
        let mut book = Book::default();
        let flow = Label::from_random(1);
        book.want(way(1), NOW);
        book.answered([lease(1, 7, 100)], NOW, || 0.0);
        book.revoked(Epoch(7));
        assert_eq!(book.offer(flow, NOW), offered(7));
        book.revoked(Epoch(8));
        assert_eq!(book.offer(flow, NOW), Offer::Wait);
        assert_eq!(book.due(NOW), [way(1)]);
        // A master that is behind signs under an older roster.
        book.answered([lease(1, 7, 100)], NOW, || 0.0);
        assert_eq!(book.offer(flow, NOW), Offer::Wait);
        assert_eq!(book.next(NOW), Some(NOW + Duration::from_millis(200)));
        book.answered([lease(1, 8, 100)], NOW, || 0.0);
        assert_eq!(book.offer(flow, NOW), offered(8));
        assert!(book.due(NOW).is_empty());
    }

    #[test]
    fn many_are_asked_for_in_pieces_and_a_refusal_is_asked_again_later() {
        let mut book = Book::default();
        for flow in 0..100 {
            book.want(way(flow), NOW);
        }
        let first = book.due(NOW);
        assert_eq!(first.len(), MAX_LEASES);
        let refused = first.into_iter().map(|way| (way, Said::Nothing));
        book.answered(refused.collect::<Vec<_>>(), NOW, || 0.5);
        assert_eq!(book.due(NOW).len(), 100 - MAX_LEASES);
        assert_eq!(book.due(NOW + seconds(8)).len(), MAX_LEASES);
        assert_eq!(book.counts(NOW), (0, 100));
    }
}
