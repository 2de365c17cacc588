//! Which nodes are heard of. Pure: time is an argument.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use wavry_proto::id::{Epoch, NodeId};

use crate::store::Announcement;

/// When each node was last heard, and what it said.
#[derive(Debug, Default)]
pub struct Presence {
    // One entry a registered node: bounded by the registry.
    nodes: HashMap<NodeId, Heard>,
}

#[derive(Debug)]
struct Heard {
    at: Instant,
    /// What the registry holds of the node; `None` when this process has not written it, or not as the
    /// last one.
    announcement: Option<Announcement>,
    /// How often that was written.
    revision: u64,
    silent: bool,
    draining: bool,
    report: Report,
    /// Whether other masters do not know yet that it was heard.
    untold: bool,
}

/// A node as all masters of the cluster together know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) node: NodeId,
    /// Grows with each write of what the node says of itself.
    pub(crate) revision: u64,
    pub(crate) silent: bool,
    pub(crate) draining: bool,
    /// How long ago some master heard it, and what it told; `None` if none has told that yet.
    pub(crate) heard: Option<(Duration, Report)>,
}

/// What a node tells of itself that the roster does not show, and where it was when it did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Sessions live on it.
    pub sessions: u64,
    /// Epoch of the roster it acts on.
    pub epoch: Epoch,
    /// Version of its program.
    pub version: String,
    /// Address that its heartbeat came from: the node's, or that of what translates its addresses.
    pub seen_from: Option<IpAddr>,
}

/// How a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Heard of lately.
    Present,
    /// Heard of lately, and said that it leaves.
    Draining,
    /// Not heard of for `suspect_after`: it offers no service until it is.
    Suspect,
    /// Not heard of for `gone_after`.
    Gone,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Present, Self::Draining, Self::Suspect, Self::Gone];

    /// The state as it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Present => "present",
            Self::Draining => "draining",
            Self::Suspect => "suspect",
            Self::Gone => "gone",
        }
    }
}

/// What is known of a node's whereabouts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whereabouts {
    /// How it does.
    pub state: State,
    /// How long ago it was heard, or this process started.
    pub heard: Duration,
    /// What it told.
    pub report: Report,
}

impl Presence {
    /// Nodes that the registry holds at the start: each is given the time of one that was just
    /// heard.
    pub fn new(nodes: impl IntoIterator<Item = NodeId>, now: Instant) -> Self {
        let nodes = nodes.into_iter();
        Self {
            nodes: nodes.map(|node| (node, Heard::at(now))).collect(),
        }
    }

    /// Notes a heartbeat when it says nothing new, and tells whether that was so. One that does is
    /// to be written to the registry, then given to [`Presence::wrote`].
    pub fn is_old_news(&mut self, node: &NodeId, said: &Announcement, now: Instant) -> bool {
        match self.nodes.get_mut(node) {
            Some(heard) if !heard.silent && heard.announcement.as_ref() == Some(said) => {
                heard.at = now;
                heard.untold = true;
                true
            }
            _ => false,
        }
    }

    /// The registry holds what the node said, as its write number `revision`.
    pub fn wrote(&mut self, node: &NodeId, said: Announcement, revision: u64, now: Instant) {
        let before = self.nodes.remove(node);
        let heard = Heard {
            draining: said.draining,
            announcement: Some(said),
            revision,
            report: before.map(|heard| heard.report).unwrap_or_default(),
            untold: true,
            ..Heard::at(now)
        };
        self.nodes.insert(node.clone(), heard);
    }

    /// How long ago each node was heard that other masters were not told of yet, and what it told.
    pub(crate) fn untold(&self, now: Instant) -> Vec<(NodeId, Duration, Report)> {
        let untold = self.nodes.iter().filter(|(_, heard)| heard.untold);
        untold
            .map(|(node, heard)| {
                let ago = now.saturating_duration_since(heard.at);
                (node.clone(), ago, heard.report.clone())
            })
            .collect()
    }

    /// Takes over what all masters know, after they were told what was heard here by `now`.
    pub(crate) fn learn(&mut self, known: Vec<Known>, now: Instant) {
        let mut before = std::mem::take(&mut self.nodes);
        for known in known {
            let heard = before.remove(&known.node);
            // A node that nobody has heard yet is given the time of one that was just heard.
            let mut heard = heard.unwrap_or_else(|| Heard::at(now));
            if heard.revision != known.revision {
                heard.announcement = None;
                heard.revision = known.revision;
            }
            heard.silent = known.silent;
            heard.draining = known.draining;
            heard.untold &= heard.at > now;
            if let Some((ago, report)) = known.heard
                && let Some(at) = now.checked_sub(ago)
                && at > heard.at
            {
                heard.at = at;
                heard.report = report;
            }
            self.nodes.insert(known.node, heard);
        }
    }

    /// What a registered node tells beside.
    pub fn told(&mut self, node: &NodeId, report: Report) {
        if let Some(heard) = self.nodes.get_mut(node) {
            heard.report = report;
        }
    }

    /// What is known of a registered node.
    pub fn of(&self, node: &NodeId, gone_after: Duration, now: Instant) -> Option<Whereabouts> {
        let heard = self.nodes.get(node)?;
        let ago = now.saturating_duration_since(heard.at);
        let state = match heard.silent {
            true if ago >= gone_after => State::Gone,
            true => State::Suspect,
            false if heard.draining => State::Draining,
            false => State::Present,
        };
        Some(Whereabouts {
            state,
            heard: ago,
            report: heard.report.clone(),
        })
    }

    /// The epochs of the rosters that all but `node` act on, as they told this process; 0 for one that did
    /// not tell.
    pub fn others_act_on(&self, node: &NodeId) -> impl Iterator<Item = Epoch> {
        let others = self.nodes.iter().filter(move |(id, _)| *id != node);
        others.map(|(_, heard)| heard.report.epoch)
    }

    /// The node is not registered any more.
    pub fn forget(&mut self, node: &NodeId) {
        self.nodes.remove(node);
    }

    /// Nodes not heard for `suspect_after` that counted as present; from now on they do not.
    pub fn take_silent(&mut self, suspect_after: Duration, now: Instant) -> Vec<NodeId> {
        let late = |heard: &Heard| {
            !heard.silent && now.saturating_duration_since(heard.at) >= suspect_after
        };
        let mut silent = Vec::new();
        for (node, heard) in self.nodes.iter_mut().filter(|(_, heard)| late(heard)) {
            heard.silent = true;
            silent.push(node.clone());
        }
        silent
    }

    /// The registry could not note that these fell silent: they are to be taken again.
    pub fn put_back(&mut self, silent: &[NodeId]) {
        for node in silent {
            if let Some(heard) = self.nodes.get_mut(node) {
                heard.silent = false;
            }
        }
    }
}

impl Heard {
    fn at(now: Instant) -> Self {
        Self {
            at: now,
            announcement: None,
            revision: 0,
            silent: false,
            draining: false,
            report: Report::default(),
            untold: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUSPECT_AFTER: Duration = Duration::from_secs(6);

    fn node(id: &str) -> NodeId {
        id.parse().unwrap()
    }

    fn after(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn a_node_falls_silent_exactly_when_its_time_is_up_and_only_once() {
        let start = Instant::now();
        let mut presence = Presence::new([node("a")], start);
        assert!(
            presence
                .take_silent(SUSPECT_AFTER, after(start, 5_999))
                .is_empty()
        );
        assert_eq!(
            presence.take_silent(SUSPECT_AFTER, after(start, 6_000)),
            [node("a")]
        );
        assert!(
            presence
                .take_silent(SUSPECT_AFTER, after(start, 60_000))
                .is_empty()
        );
    }

    #[test]
    fn a_heartbeat_puts_the_deadline_off() {
        let start = Instant::now();
        let mut presence = Presence::default();
        let said = Announcement::default();
        presence.wrote(&node("a"), said.clone(), 1, start);
        assert!(presence.is_old_news(&node("a"), &said, after(start, 5_000)));
        assert!(
            presence
                .take_silent(SUSPECT_AFTER, after(start, 10_999))
                .is_empty()
        );
        assert_eq!(
            presence.take_silent(SUSPECT_AFTER, after(start, 11_000)),
            [node("a")]
        );
    }

    #[test]
    fn the_first_heartbeat_after_a_start_or_a_silence_is_news() {
        let start = Instant::now();
        let mut presence = Presence::new([node("a")], start);
        let said = Announcement::default();
        assert!(!presence.is_old_news(&node("a"), &said, start));
        presence.wrote(&node("a"), said.clone(), 1, start);
        assert!(presence.is_old_news(&node("a"), &said, start));

        let late = after(start, 6_000);
        presence.take_silent(SUSPECT_AFTER, late);
        assert!(!presence.is_old_news(&node("a"), &said, late));
    }

    #[test]
    fn a_node_is_present_or_draining_then_suspect_then_gone_at_the_stated_times() {
        const GONE_AFTER: Duration = Duration::from_secs(60);
        let start = Instant::now();
        let a = node("a");
        let mut presence = Presence::new([a.clone()], start);
        let mut state = |millis, said: Option<Announcement>| {
            let now = after(start, millis);
            if let Some(said) = said {
                presence.wrote(&a, said, 1, now);
            }
            presence.take_silent(SUSPECT_AFTER, now);
            presence.of(&a, GONE_AFTER, now).unwrap().state
        };
        assert_eq!(state(0, None), State::Present);
        let leaving = Announcement {
            draining: true,
            ..Announcement::default()
        };
        assert_eq!(state(1_000, Some(leaving)), State::Draining);
        assert_eq!(state(6_999, None), State::Draining);
        assert_eq!(state(7_000, None), State::Suspect);
        assert_eq!(state(60_999, None), State::Suspect);
        assert_eq!(state(61_000, None), State::Gone);
        assert_eq!(state(70_000, Some(Announcement::default())), State::Present);
        assert_eq!(presence.of(&node("b"), GONE_AFTER, start), None);
        presence.forget(&a);
        assert_eq!(presence.of(&a, GONE_AFTER, start), None);
    }

    #[test]
    fn a_different_word_is_news() {
        let start = Instant::now();
        let mut presence = Presence::default();
        presence.wrote(&node("a"), Announcement::default(), 1, start);
        let said = Announcement {
            draining: true,
            ..Announcement::default()
        };
        assert!(!presence.is_old_news(&node("a"), &said, start));
    }

    #[test]
    fn what_another_master_heard_puts_the_deadline_off_and_what_it_wrote_makes_a_word_news() {
        let start = Instant::now();
        let a = node("a");
        let mut presence = Presence::default();
        let said = Announcement::default();
        presence.wrote(&a, said.clone(), 1, start);
        assert_eq!(presence.untold(after(start, 1_000))[0].1.as_millis(), 1_000);
        let known = |revision, ago| Known {
            node: a.clone(),
            revision,
            silent: false,
            draining: false,
            heard: Some((Duration::from_millis(ago), Report::default())),
        };
        presence.learn(vec![known(1, 1_000)], after(start, 1_000));
        assert!(presence.untold(start).is_empty());
        assert!(presence.is_old_news(&a, &said, after(start, 2_000)));

        presence.learn(vec![known(1, 500)], after(start, 7_500));
        assert!(
            presence
                .take_silent(SUSPECT_AFTER, after(start, 12_999))
                .is_empty()
        );
        assert_eq!(
            presence.take_silent(SUSPECT_AFTER, after(start, 13_000)),
            std::slice::from_ref(&a)
        );

        presence.learn(vec![known(2, 0)], after(start, 14_000));
        assert!(!presence.is_old_news(&a, &said, after(start, 14_000)));
        presence.learn(Vec::new(), after(start, 15_000));
        assert_eq!(presence.of(&a, SUSPECT_AFTER, after(start, 15_000)), None);
    }

    #[test]
    fn a_silence_that_could_not_be_written_is_found_again() {
        let start = Instant::now();
        let mut presence = Presence::new([node("a")], start);
        let late = after(start, 6_000);
        let silent = presence.take_silent(SUSPECT_AFTER, late);
        presence.put_back(&silent);
        assert_eq!(presence.take_silent(SUSPECT_AFTER, late), silent);
    }
}
