//! Who may write an entry of the fleet, and for how long. Pure: time is an argument, in milliseconds since the
//! Unix epoch by the database's clock.
//!
//! A lease has a fence, which grows with each new holder. A holder that was away for too long, and does not
//! know that another one took over, writes with a fence that has passed, and is refused.

use wavry_proto::id::NodeId;

/// How long a lease lasts unless it is renewed: some renewals may be lost, and the next holder is to go on well
/// within the time in which authorities forget a validation under way.
pub const LASTS: u64 = 15_000;

/// The lease of one entry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lease {
    /// Of the last holder.
    pub fence: u64,
    /// Who has it; nobody if it was given back.
    pub holder: Option<NodeId>,
    /// Until when.
    pub until: u64,
}

/// Another node has it, for so many milliseconds more at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// It lapses then, unless it is renewed.
    pub wait: u64,
}

/// The fence with which something was to be written is not that of the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("another gateway has taken the lease over")]
pub struct Passed;

impl Lease {
    /// Gives it to `node` at `now`, or more of it where the node has the lease with this `fence`. Whether the
    /// node is a new holder: so is one that was started again, and has forgotten its fence.
    pub fn take(&mut self, node: &NodeId, fence: Option<u64>, now: u64) -> Result<bool, Held> {
        let holds = self.holder.as_ref() == Some(node);
        if holds && fence == Some(self.fence) {
            self.until = now + LASTS;
            return Ok(false);
        }
        // What is further away than a lease lasts was written before the clock was set back.
        let left = self.until.saturating_sub(now);
        if !holds && self.holder.is_some() && (1..=LASTS).contains(&left) {
            return Err(Held { wait: left });
        }
        *self = Self {
            fence: self.fence + 1,
            holder: Some(node.clone()),
            until: now + LASTS,
        };
        Ok(true)
    }

    /// Whether `node` may write with `fence`: it may while nobody else has taken the lease, though it may have
    /// lapsed. It is renewed, or given back.
    pub fn write(
        &mut self,
        node: &NodeId,
        fence: u64,
        release: bool,
        now: u64,
    ) -> Result<(), Passed> {
        if self.holder.as_ref() != Some(node) || self.fence != fence {
            return Err(Passed);
        }
        match release {
            true => self.holder = None,
            false => self.until = now + LASTS,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(number: u8) -> NodeId {
        format!("gateway-{number}").parse().unwrap()
    }

    #[test]
    fn a_lease_is_one_nodes_until_it_lapses_or_is_given_back() {
        let mut lease = Lease::default();
        assert_eq!(lease.take(&node(0), None, 1000), Ok(true));
        assert_eq!(lease.take(&node(1), None, 1000), Err(Held { wait: LASTS }));
        assert_eq!(lease.take(&node(0), Some(1), 9000), Ok(false));
        assert_eq!(lease.take(&node(1), None, 23_999), Err(Held { wait: 1 }));
        assert_eq!(lease.take(&node(1), None, 24_000), Ok(true));
        assert_eq!(lease.fence, 2);
        assert_eq!(lease.write(&node(0), 1, false, 24_001), Err(Passed));
        assert!(lease.take(&node(0), Some(1), 24_001).is_err());
        assert_eq!(lease.write(&node(1), 2, true, 24_001), Ok(()));
        assert_eq!(lease.write(&node(1), 2, false, 24_001), Err(Passed));
        assert_eq!(lease.take(&node(0), Some(1), 24_001), Ok(true));
        assert_eq!(lease.fence, 3);
    }

    #[test]
    fn a_node_that_was_started_again_has_a_new_fence_at_once() {
        let mut lease = Lease::default();
        assert_eq!(lease.take(&node(0), None, 1000), Ok(true));
        assert_eq!(lease.take(&node(0), None, 1001), Ok(true));
        assert_eq!(lease.write(&node(0), 1, false, 1002), Err(Passed));
        assert_eq!(lease.write(&node(0), 2, false, 1002), Ok(()));
    }

    #[test]
    fn who_comes_late_may_write_while_nobody_took_over() {
        let mut lease = Lease::default();
        lease.take(&node(0), None, 0).unwrap();
        assert_eq!(lease.write(&node(0), 1, false, 10 * LASTS), Ok(()));
        assert!(lease.take(&node(1), None, 10 * LASTS + 1).is_err());
    }

    #[test]
    fn a_clock_that_was_set_back_holds_nobody_up() {
        let mut lease = Lease::default();
        lease.take(&node(0), None, 1_000_000).unwrap();
        assert_eq!(lease.take(&node(1), None, 10), Ok(true));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Take { node: u8 },
        Renew { node: u8 },
        Write { node: u8, release: bool },
        Forget { node: u8 },
        Pass { time: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        let node = || 0..3_u8;
        prop_oneof![
            3 => node().prop_map(|node| Step::Take { node }),
            2 => node().prop_map(|node| Step::Renew { node }),
            3 => (node(), any::<bool>()).prop_map(|(node, release)| Step::Write { node, release }),
            1 => node().prop_map(|node| Step::Forget { node }),
            2 => (0..2 * LASTS).prop_map(|time| Step::Pass { time }),
        ]
    }

    proptest! {
        /// Nodes that take, renew, write late, and die; writes reach the entry in the order of their fences, and
        /// within a lease that was not lapsed nobody else is let in.
        #[test]
        fn whatever_nodes_do_what_is_written_has_the_fence_of_the_last_who_took_it(
            steps in prop::collection::vec(step(), 1..200),
        ) {
            let (mut lease, mut now) = (Lease::default(), 0);
            let mut fences = [None::<u64>; 3];
            let (mut newest, mut sure): (u64, Option<(u8, u64)>) = (0, None);
            for step in steps {
                match step {
                    Step::Pass { time } => now += time,
                    Step::Forget { node } => fences[usize::from(node)] = None,
                    Step::Take { node: n } => {
                        let before = lease.fence;
                        let taken = lease.take(&node(n), None, now);
                        if let Some((holder, until)) = sure
                            && now < until && holder != n
                        {
                            prop_assert!(taken.is_err(), "{holder} still has it");
                        }
                        if taken.is_ok() {
                            prop_assert!(lease.fence > before);
                            fences[usize::from(n)] = Some(lease.fence);
                            (newest, sure) = (lease.fence, Some((n, now + LASTS)));
                        }
                    }
                    Step::Renew { node: n } => {
                        let Some(fence) = fences[usize::from(n)] else { continue };
                        if fence == newest && lease.holder == Some(node(n)) {
                            prop_assert_eq!(lease.take(&node(n), Some(fence), now), Ok(false));
                            sure = Some((n, now + LASTS));
                        }
                    }
                    Step::Write { node: n, release } => {
                        let Some(fence) = fences[usize::from(n)] else { continue };
                        let written = lease.write(&node(n), fence, release, now);
                        let held = sure.is_some_and(|(holder, _)| holder == n);
                        prop_assert_eq!(written.is_ok(), fence == newest && held);
                        if written.is_ok() {
                            sure = (!release).then_some((n, now + LASTS));
                        }
                    }
                }
            }
        }
    }
}
