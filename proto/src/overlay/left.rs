//! Flows that a node drew itself and has left, so that they do not become paths again.
//!
//! Whoever is at the other end of a flow learns only from its own roster, or from silence, that it was left, and
//! probes over it until then; the relays forward that, as a flow lasts for a while after its last claim. Who drew
//! the flow and took such a probe for one over a flow of its peer's would send over what nobody claims any more: that ends
//! at a relay without a word.

use std::{
    collections::{HashSet, VecDeque},
    time::Instant,
};

use crate::overlay::{packet::Label, transit::LASTS};

/// Flows that are remembered at most: four to each of four thousand peers.
const MOST: usize = 16_384;

/// Flows that this node drew and has left, for as long as a relay may carry them.
#[derive(Debug, Default)]
pub struct Left {
    flows: HashSet<Label>,
    /// When each was left, oldest first.
    order: VecDeque<(Label, Instant)>,
}

impl Left {
    /// This one is left: it is claimed no more.
    pub fn leave(&mut self, flow: Label, now: Instant) {
        if self.flows.contains(&flow) {
            return;
        }
        let is_over = |at: Instant| now.saturating_duration_since(at) >= LASTS;
        while let Some((oldest, at)) = self.order.front()
            && (is_over(*at) || self.order.len() >= MOST)
        {
            self.flows.remove(oldest);
            self.order.pop_front();
        }
        self.flows.insert(flow);
        self.order.push_back((flow, now));
    }

    /// Whether it is one of them.
    pub fn has(&self, flow: Label) -> bool {
        self.flows.contains(&flow)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::overlay::beginning;

    fn flow(number: usize) -> Label {
        Label::from_random(number as u64)
    }

    #[test]
    fn a_flow_is_remembered_for_as_long_as_a_relay_may_carry_it() {
        let (mut left, now) = (Left::default(), beginning());
        left.leave(flow(1), now);
        left.leave(flow(2), now + LASTS - Duration::from_millis(1));
        assert!(left.has(flow(1)) && left.has(flow(2)) && !left.has(flow(3)));
        left.leave(flow(3), now + LASTS);
        assert!(!left.has(flow(1)) && left.has(flow(2)) && left.has(flow(3)));
    }

    #[test]
    fn of_too_many_the_oldest_are_forgotten() {
        let (mut left, now) = (Left::default(), beginning());
        for number in 1..=MOST + 2 {
            left.leave(flow(number), now);
            left.leave(flow(number), now);
        }
        assert_eq!((left.flows.len(), left.order.len()), (MOST, MOST));
        assert!(!left.has(flow(2)) && left.has(flow(3)));
    }
}
