//! The lives of nodes' identities: the next one, the present one, the one before. Pure: time is an argument.
//!
//! A node has its next identity admitted, which the roster then lists beside the present one. It is told to
//! show it once every node that may meet it acts on such a roster. When it does, the one before is listed
//! for an overlap more, and then it is not.

use std::time::Duration;

use wavry_proto::{
    control::IdentityTask,
    id::{Epoch, NodeId, PublicKey},
};

/// Where in its life an identity is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Admitted, and not shown yet.
    Next,
    /// Shown.
    Present,
    /// Shown no more, and still accepted.
    Before,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Next, Self::Present, Self::Before];

    /// The state as it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Next => "next",
            Self::Present => "present",
            Self::Before => "before",
        }
    }
}

/// An identity of a node. Times are in seconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    /// The key.
    pub key: PublicKey,
    /// Where in its life it is.
    pub state: State,
    /// When it became what it is; 0 where that was not kept.
    pub since: u64,
    /// Rosters of later epochs list it.
    pub after_epoch: Epoch,
    /// When it is to leave the roster, if that is settled.
    pub until: Option<u64>,
}

/// The identities of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lives {
    /// The node.
    pub node: NodeId,
    /// Since when an operator wants another identity, if one does.
    pub ordered: Option<u64>,
    /// One; two while it rotates. Ordered by key.
    pub lives: Vec<Life>,
}

/// How long a rotation's parts take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// A node that was not heard of for so long after an identity was admitted cannot hold it up any more:
    /// as long as nodes act on a roster.
    pub wait: Duration,
    /// How long the one before is accepted once the next one is shown.
    pub overlap: Duration,
}

impl Default for Pace {
    /// A day, which is the longest that nodes act on a roster unless they are told otherwise; an hour.
    fn default() -> Self {
        Self {
            wait: Duration::from_secs(24 * 3600),
            overlap: Duration::from_secs(3600),
        }
    }
}

impl Lives {
    /// The one in this state.
    pub fn in_state(&self, state: State) -> Option<&Life> {
        self.lives.iter().find(|life| life.state == state)
    }

    /// What the node is to be told at `now`. `acts_on` has the epoch of the roster that each other node
    /// acts on, as far as is known.
    pub fn task(
        &self,
        acts_on: impl IntoIterator<Item = Epoch>,
        pace: &Pace,
        now: u64,
    ) -> Option<IdentityTask> {
        if let Some(next) = self.in_state(State::Next) {
            let waited = now >= next.since.saturating_add(pace.wait.as_secs());
            let mut acts_on = acts_on.into_iter();
            let is_known = waited || acts_on.all(|epoch| epoch > next.after_epoch);
            return is_known.then_some(IdentityTask::Show(next.key));
        }
        self.ordered.map(|_| IdentityTask::Rotate)
    }

    /// The identity whose time is over at `now`.
    pub fn over(&self, now: u64) -> Option<PublicKey> {
        let before = self.in_state(State::Before)?;
        let is_over = before.until.is_some_and(|until| now >= until);
        is_over.then_some(before.key)
    }
}

#[cfg(test)]
mod tests;
