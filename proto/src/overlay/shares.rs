//! What each member may have of a relay's attention, so that one that floods takes it from no other.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use crate::id::NodeId;

/// So many in a window. Half of them are members' own: each has the same share, whatever the others do. The other
/// half is whose who comes first, as most members want nothing most of the time.
#[derive(Debug)]
pub(super) struct Shares {
    half: u32,
    window: Duration,
    /// Windows so far, and when the last one began.
    number: u64,
    since: Instant,
    /// What is left in it, of either half.
    own: u32,
    common: u32,
    /// Of members that had something of their own lately.
    each: HashMap<NodeId, Used>,
}

/// What a member had of its own.
#[derive(Debug, Clone, Copy, Default)]
struct Used {
    count: u32,
    /// The window in which that counts no more.
    until: u64,
}

impl Shares {
    /// Of `most` in each `window`.
    pub(super) fn new(most: u32, window: Duration, now: Instant) -> Self {
        let half = most / 2;
        Self {
            half,
            window,
            number: 0,
            since: now,
            own: half,
            common: half,
            each: HashMap::new(),
        }
    }

    /// Takes one for `member`, which is one of `among`; `false` where it has had its share, and others the rest. It
    /// is remembered for the time of its share: whoever is no member is not asked for.
    pub(super) fn take(&mut self, member: &NodeId, among: usize, now: Instant) -> bool {
        self.refill(now);
        let among = u32::try_from(among).unwrap_or(u32::MAX).max(1);
        // Where they are more than there is in a window, each has one in several.
        let (quota, windows) = match self.half / among {
            0 => (1, among.div_ceil(self.half.max(1))),
            quota => (quota, 1),
        };
        if self.own > 0 {
            let used = self.each.entry(member.clone()).or_default();
            if used.until <= self.number {
                let until = self.number + u64::from(windows);
                *used = Used { count: 0, until };
            }
            if used.count < quota {
                used.count += 1;
                self.own -= 1;
                return true;
            }
        }
        let is_left = self.common > 0;
        self.common -= u32::from(is_left);
        is_left
    }

    /// Forgets members whose share is whole again.
    pub(super) fn retain(&mut self, now: Instant) {
        self.refill(now);
        let number = self.number;
        self.each.retain(|_, used| used.until > number);
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since);
        if passed >= self.window {
            self.number += (passed.as_nanos() / self.window.as_nanos()) as u64;
            self.since = now;
            (self.own, self.common) = (self.half, self.half);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.each.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::beginning;

    const WINDOW: Duration = Duration::from_millis(100);

    fn id(number: usize) -> NodeId {
        format!("n{number}").parse().unwrap()
    }

    /// How many of so many are granted.
    fn granted(shares: &mut Shares, member: usize, among: usize, asked: u32, now: Instant) -> u32 {
        let member = id(member);
        let granted = (0..asked).filter(|_| shares.take(&member, among, now));
        granted.count() as u32
    }

    #[test]
    fn one_alone_has_its_own_share_and_what_is_common() {
        let mut now = beginning();
        let mut shares = Shares::new(200, WINDOW, now);
        for _ in 0..3 {
            assert_eq!(granted(&mut shares, 0, 10, 1_000, now), 10 + 100);
            assert_eq!(granted(&mut shares, 0, 10, 1_000, now), 0);
            now += WINDOW;
        }
    }

    #[test]
    fn whatever_all_others_take_each_has_its_own_share_in_every_window() {
        let mut now = beginning();
        let mut shares = Shares::new(200, WINDOW, now);
        for _ in 0..5 {
            let others = (1..10).map(|other| granted(&mut shares, other, 10, 1_000, now));
            assert_eq!(others.sum::<u32>(), 9 * 10 + 100);
            assert_eq!(granted(&mut shares, 0, 10, 1_000, now), 10);
            now += WINDOW;
        }
    }

    #[test]
    fn of_more_members_than_there_is_in_a_window_each_has_one_in_several_and_all_get_theirs() {
        let mut now = beginning();
        let mut shares = Shares::new(200, WINDOW, now);
        // The others take what is common first; then everyone asks until it was granted one, for ten windows.
        let among = 1_000;
        let mut waiting: Vec<usize> = (0..among).collect();
        for window in 0..10 {
            let common = granted(&mut shares, among, among, 1_000, now);
            assert_eq!(common, 100 + u32::from(window == 0));
            waiting.retain(|member| !shares.take(&id(*member), among, now));
            now += WINDOW;
        }
        // Who took the common half had one of its own in the first of these windows, in one of the others' place.
        assert_eq!(waiting.len(), 1);
    }

    #[test]
    fn all_of_them_together_never_have_more_than_there_is() {
        let mut now = beginning();
        let mut shares = Shares::new(200, WINDOW, now);
        for among in [1, 3, 7, 100, 101, 5_000] {
            now += WINDOW;
            let members = 0..among.min(300);
            let all = members.map(|member| granted(&mut shares, member, among, 500, now));
            assert!(all.sum::<u32>() <= 200, "{among}");
        }
    }

    #[test]
    fn who_has_its_whole_share_again_is_forgotten() {
        let mut now = beginning();
        let mut shares = Shares::new(200, WINDOW, now);
        for member in 0..500 {
            shares.take(&id(member), 500, now);
        }
        shares.retain(now);
        assert_eq!(shares.len(), 100, "those that had something of their own");
        now += 5 * WINDOW;
        shares.retain(now);
        assert_eq!(shares.len(), 0);
    }
}
