//! Cookies, by which who claims or attaches shows that it receives where it sends from.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::id::NodeId;

/// For how long a cookie is good: some round trips.
pub(super) const LASTS: Duration = Duration::from_secs(10);

/// Cookies that are remembered. Only members get one, after their tags were checked; the oldest makes room. That is
/// what 1.6 s of checks can give, and longer than the cookie takes to come back, whoever floods.
const MOST: usize = 16_384;

/// Cookies that were given. Each is good once, for whom and for where it was given.
#[derive(Debug, Default)]
pub(super) struct Cookies {
    given: HashMap<u64, Cookie>,
    /// The same, oldest first, and those that were taken since.
    order: VecDeque<u64>,
}

#[derive(Debug)]
struct Cookie {
    to: NodeId,
    source: SocketAddr,
    given: Instant,
}

impl Cookies {
    /// Whether the cookie is good; it is no more from now on.
    pub(super) fn take(
        &mut self,
        cookie: u64,
        from: &NodeId,
        source: SocketAddr,
        now: Instant,
    ) -> bool {
        let is = self.given.get(&cookie).is_some_and(|given| {
            given.to == *from
                && given.source == source
                && now.saturating_duration_since(given.given) < LASTS
        });
        is && self.given.remove(&cookie).is_some()
    }

    /// A cookie for `to` at `source`, from the number that was `drawn`.
    pub(super) fn give(
        &mut self,
        to: &NodeId,
        source: SocketAddr,
        drawn: u64,
        now: Instant,
    ) -> u64 {
        if self.order.len() == MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.given.remove(&oldest);
        }
        let cookie = drawn.max(1);
        self.order.push_back(cookie);
        let (to, given) = (to.clone(), now);
        self.given.insert(cookie, Cookie { to, source, given });
        cookie
    }
}
