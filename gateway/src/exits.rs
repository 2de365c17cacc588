//! Which exit relay a session is opened at, and what came of it.

mod choice;
#[cfg(test)]
mod tests;

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ::metrics::{counter, gauge};
use wavry_proto::{
    control::Roster,
    id::{NodeId, RegionName, ServiceName},
    placement,
    session::{Response, UNKNOWN_SERVICE},
};

use self::choice::{Choice, State};
use crate::metrics as names;

/// The exits that this gateway uses.
#[derive(Default)]
pub(crate) struct Exits {
    choice: Mutex<Choice>,
}

/// One session at an exit; counted until dropped.
pub(crate) struct Load<'a> {
    exits: &'a Exits,
    exit: NodeId,
}

/// What went wrong with an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No answer.
    Timeout,
    /// No connection, or nothing was heard over it.
    Unreachable,
    /// It refused by itself.
    Refused,
    /// The connection was lost with a session on it.
    Lost,
}

impl Failure {
    fn reason(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
            Self::Lost => "lost",
        }
    }
}

impl Exits {
    /// The exits for a session with `service` whose key is `key`, best first; ones in `region` before others.
    pub(crate) fn order(
        &self,
        roster: &Roster,
        service: &ServiceName,
        region: Option<&RegionName>,
        key: u64,
    ) -> Vec<NodeId> {
        let choice = self.choice();
        let order = choice.order(roster, service, region, key, Instant::now());
        order.into_iter().cloned().collect()
    }

    /// `exit` failed.
    pub(crate) fn failed(&self, exit: &NodeId, failure: Failure) {
        let reason = failure.reason();
        if failure != Failure::Lost {
            counter!(names::EXIT_FAILURES, "reason" => reason).increment(1);
        }
        if self.choice().failed(exit, Instant::now()) {
            counter!(names::EXIT_EJECTIONS, "reason" => reason).increment(1);
            tracing::warn!(%exit, reason, "exit ejected");
        }
    }

    /// `exit` takes no more sessions for now.
    pub(crate) fn full(&self, exit: &NodeId) {
        let reason = Failure::Refused.reason();
        counter!(names::EXIT_FAILURES, "reason" => reason).increment(1);
        let full = placement::Load::FULL;
        self.choice().told(exit, full, Instant::now());
    }

    /// `exit` has no upstream for `service`, which says nothing of what else it is an exit for.
    pub(crate) fn without(&self, exit: &NodeId, service: &ServiceName) {
        counter!(names::EXIT_FAILURES, "reason" => UNKNOWN_SERVICE).increment(1);
        if self.choice().without(exit, service, Instant::now()) {
            tracing::warn!(%exit, %service, "exit left out for a service that it does not know");
        }
    }

    /// `exit` can be reached.
    pub(crate) fn reached(&self, exit: &NodeId) {
        if self.choice().reached(exit, Instant::now()) {
            tracing::info!(%exit, "exit is back");
        }
    }

    /// `exit` took one session more with `service`, with this answer.
    pub(crate) fn took(&self, exit: NodeId, service: &ServiceName, answer: &Response) -> Load<'_> {
        self.reached(&exit);
        let now = Instant::now();
        let mut choice = self.choice();
        choice.took(&exit, service);
        if let Some(load) = load(answer) {
            choice.told(&exit, load, now);
        }
        drop(choice);
        Load { exits: self, exit }
    }

    /// Takes over round-trip times and says how exits do; gives those that are to be looked at.
    pub(crate) fn turn(
        &self,
        roster: &Roster,
        round_trip: impl Fn(&NodeId) -> Option<Duration>,
    ) -> Vec<NodeId> {
        let now = Instant::now();
        let mut choice = self.choice();
        let due = choice.turn(roster, round_trip, now);
        let states: Vec<_> = choice.states(roster, now).collect();
        drop(choice);
        for (state, label) in State::ALL {
            let count = states.iter().filter(|is| **is == state).count();
            gauge!(names::EXITS, "state" => label).set(count as f64);
        }
        due
    }

    fn choice(&self) -> MutexGuard<'_, Choice> {
        self.choice.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Load<'_> {
    /// The connection to the exit was lost with the session on it.
    pub(crate) fn lost(&self) {
        self.exits.failed(&self.exit, Failure::Lost);
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        self.exits.choice().left(&self.exit);
    }
}

/// How full an exit said that it is; nothing where it did not, or not so that it can be read.
fn load(answer: &Response) -> Option<placement::Load> {
    let mut headers = answer.headers.iter();
    let header = headers.find(|header| header.name == placement::LOAD)?;
    header.value.parse().ok()
}
