//! Which exit relay a session is opened at.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use wavry_proto::{
    control::Roster,
    id::{NodeId, ServiceName},
};

/// For so long an exit that failed is tried after those that did not.
const FAILURE_MEMORY: Duration = Duration::from_secs(5);

/// What this gateway knows of the exits it uses. Bounded by the nodes of the roster.
#[derive(Default)]
pub(crate) struct Exits {
    known: Mutex<HashMap<NodeId, Known>>,
    turn: AtomicUsize,
}

#[derive(Default, Clone, Copy)]
struct Known {
    sessions: u32,
    failed: Option<Instant>,
}

/// One session at an exit; counted until dropped.
pub(crate) struct Load<'a> {
    exits: &'a Exits,
    exit: NodeId,
}

impl Exits {
    /// The exits for `service`, best first: those that did not just fail, and among them the one
    /// with the fewest of this gateway's sessions. Equals take turns. An exit that failed is still
    /// there at the end, so that a service's only exit is tried as soon as it is back.
    pub(crate) fn choose(
        &self,
        roster: &Roster,
        service: &ServiceName,
        now: Instant,
    ) -> Vec<NodeId> {
        let known = self.known();
        let mut exits: Vec<_> = roster
            .exits(service)
            .map(|node| {
                let known = known.get(&node.id).copied().unwrap_or_default();
                let failed = known.failed.filter(|at| now < *at + FAILURE_MEMORY);
                ((failed, known.sessions), node.id.clone())
            })
            .collect();
        drop(known);
        if !exits.is_empty() {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) % exits.len();
            exits.rotate_left(turn);
        }
        exits.sort_by_key(|(cost, _)| *cost);
        exits.into_iter().map(|(_, id)| id).collect()
    }

    /// `exit` could not be reached or did not answer.
    pub(crate) fn failed(&self, exit: &NodeId, now: Instant) {
        let mut known = self.known();
        known.retain(|_, k| k.sessions > 0 || k.failed.is_some_and(|at| now < at + FAILURE_MEMORY));
        known.entry(exit.clone()).or_default().failed = Some(now);
    }

    /// `exit` took one session more.
    pub(crate) fn took(&self, exit: NodeId) -> Load<'_> {
        let mut known = self.known();
        let entry = known.entry(exit.clone()).or_default();
        entry.sessions += 1;
        entry.failed = None;
        Load { exits: self, exit }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<NodeId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        let mut known = self.exits.known();
        if let Some(entry) = known.get_mut(&self.exit) {
            entry.sessions -= 1;
            if entry.sessions == 0 && entry.failed.is_none() {
                known.remove(&self.exit);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use wavry_proto::control::{Node, Role};

    use super::*;

    fn roster(exits: &[&str]) -> Roster {
        let mut roster = Roster::empty("test".parse().unwrap());
        roster.nodes = exits
            .iter()
            .map(|id| Node {
                id: id.parse().unwrap(),
                role: Role::Relay,
                keys: Vec::new(),
                addresses: Vec::new(),
                services: vec!["echo".parse().unwrap()],
                registration: 1,
            })
            .collect();
        roster
    }

    fn chosen(exits: &Exits, roster: &Roster, now: Instant) -> Vec<String> {
        let service = "echo".parse().unwrap();
        let chosen = exits.choose(roster, &service, now);
        chosen.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn equals_take_turns() {
        let (exits, roster, now) = (Exits::default(), roster(&["a", "b"]), Instant::now());
        assert_eq!(chosen(&exits, &roster, now), ["a", "b"]);
        assert_eq!(chosen(&exits, &roster, now), ["b", "a"]);
        assert!(chosen(&exits, &self::roster(&[]), now).is_empty());
    }

    #[test]
    fn the_exit_with_fewer_sessions_is_first() {
        let (exits, roster, now) = (Exits::default(), roster(&["a", "b"]), Instant::now());
        let load = exits.took("a".parse().unwrap());
        for _ in 0..3 {
            assert_eq!(chosen(&exits, &roster, now), ["b", "a"]);
        }
        drop(load);
        assert!(exits.known().is_empty());
    }

    #[test]
    fn an_exit_that_failed_is_last_for_a_while_and_never_gone() {
        let (exits, roster, now) = (Exits::default(), roster(&["a", "b"]), Instant::now());
        let _load = exits.took("b".parse().unwrap());
        let a = "a".parse().unwrap();
        exits.failed(&a, now);
        assert_eq!(chosen(&exits, &roster, now), ["b", "a"]);
        assert_eq!(chosen(&exits, &roster, now + FAILURE_MEMORY), ["a", "b"]);
        exits.failed(&a, now);
        drop(exits.took(a));
        assert_eq!(chosen(&exits, &roster, now), ["a", "b"]);
    }
}
