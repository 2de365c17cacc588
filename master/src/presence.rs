//! Which nodes are heard of. Pure: time is an argument.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use wavry_proto::id::NodeId;

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
    /// What the registry holds of the node; `None` when this process has not written it.
    announcement: Option<Announcement>,
    silent: bool,
}

impl Presence {
    /// Nodes that the registry holds at the start: each is given the time of one that was just
    /// heard.
    pub fn new(nodes: impl IntoIterator<Item = NodeId>, now: Instant) -> Self {
        let heard = |node| {
            let heard = Heard {
                at: now,
                announcement: None,
                silent: false,
            };
            (node, heard)
        };
        Self {
            nodes: nodes.into_iter().map(heard).collect(),
        }
    }

    /// Notes a heartbeat when it says nothing new, and tells whether that was so. One that does is
    /// to be written to the registry, then given to [`Presence::wrote`].
    pub fn is_old_news(&mut self, node: &NodeId, said: &Announcement, now: Instant) -> bool {
        match self.nodes.get_mut(node) {
            Some(heard) if !heard.silent && heard.announcement.as_ref() == Some(said) => {
                heard.at = now;
                true
            }
            _ => false,
        }
    }

    /// The registry holds what the node said.
    pub fn wrote(&mut self, node: &NodeId, said: Announcement, now: Instant) {
        let heard = Heard {
            at: now,
            announcement: Some(said),
            silent: false,
        };
        self.nodes.insert(node.clone(), heard);
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
        presence.wrote(&node("a"), said.clone(), start);
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
        presence.wrote(&node("a"), said.clone(), start);
        assert!(presence.is_old_news(&node("a"), &said, start));

        let late = after(start, 6_000);
        presence.take_silent(SUSPECT_AFTER, late);
        assert!(!presence.is_old_news(&node("a"), &said, late));
    }

    #[test]
    fn a_different_word_is_news() {
        let start = Instant::now();
        let mut presence = Presence::default();
        presence.wrote(&node("a"), Announcement::default(), start);
        let said = Announcement {
            draining: true,
            ..Announcement::default()
        };
        assert!(!presence.is_old_news(&node("a"), &said, start));
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
