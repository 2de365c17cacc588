//! The nodes of a roster, found by id and by where they forward. A relay asks for each claim, and a node for each
//! probe of somebody new, so that strangers would otherwise have them read the list from its beginning as often as
//! they like.

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    ops::{Deref, DerefMut},
    sync::OnceLock,
};

use serde::{Deserialize, Serialize};

use super::Node;
use crate::id::NodeId;

/// A list of nodes. It is a [`Vec`] to whoever reads or changes it; the first look-up after a change makes an index.
#[derive(Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Nodes {
    list: Vec<Node>,
    #[serde(skip)]
    index: OnceLock<Index>,
}

/// Positions in the list. Where two nodes have the same, the first has it.
#[derive(Default)]
struct Index {
    by_id: HashMap<NodeId, usize>,
    by_transit: HashMap<SocketAddr, usize>,
}

impl Nodes {
    /// The node with this id.
    pub fn by_id(&self, id: &NodeId) -> Option<&Node> {
        self.index().by_id.get(id).map(|at| &self.list[*at])
    }

    /// The node that forwards packets of others at this address.
    pub fn by_transit(&self, address: &SocketAddr) -> Option<&Node> {
        let at = self.index().by_transit.get(address);
        at.map(|at| &self.list[*at])
    }

    fn index(&self) -> &Index {
        self.index.get_or_init(|| Index::of(&self.list))
    }
}

impl Index {
    fn of(list: &[Node]) -> Self {
        let mut index = Self::default();
        for (at, node) in list.iter().enumerate() {
            index.by_id.entry(node.id.clone()).or_insert(at);
            for address in &node.transit {
                index.by_transit.entry(*address).or_insert(at);
            }
        }
        index
    }
}

impl Deref for Nodes {
    type Target = Vec<Node>;

    fn deref(&self) -> &Vec<Node> {
        &self.list
    }
}

impl DerefMut for Nodes {
    /// Whoever may change the list makes the index void.
    fn deref_mut(&mut self) -> &mut Vec<Node> {
        self.index.take();
        &mut self.list
    }
}

impl From<Vec<Node>> for Nodes {
    fn from(list: Vec<Node>) -> Self {
        Self {
            list,
            index: OnceLock::new(),
        }
    }
}

impl FromIterator<Node> for Nodes {
    fn from_iter<T: IntoIterator<Item = Node>>(nodes: T) -> Self {
        Vec::from_iter(nodes).into()
    }
}

impl IntoIterator for Nodes {
    type Item = Node;
    type IntoIter = std::vec::IntoIter<Node>;

    fn into_iter(self) -> Self::IntoIter {
        self.list.into_iter()
    }
}

impl<'a> IntoIterator for &'a Nodes {
    type Item = &'a Node;
    type IntoIter = std::slice::Iter<'a, Node>;

    fn into_iter(self) -> Self::IntoIter {
        self.list.iter()
    }
}

impl<'a> IntoIterator for &'a mut Nodes {
    type Item = &'a mut Node;
    type IntoIter = std::slice::IterMut<'a, Node>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}

impl Clone for Nodes {
    /// Without the index: a copy is mostly made to be changed.
    fn clone(&self) -> Self {
        self.list.clone().into()
    }
}

impl PartialEq for Nodes {
    fn eq(&self, other: &Self) -> bool {
        self.list == other.list
    }
}

impl Eq for Nodes {}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.list.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Role;

    fn id(number: usize) -> NodeId {
        format!("n{number}").parse().unwrap()
    }

    fn address(number: usize) -> SocketAddr {
        let [a, b] = u16::try_from(number).unwrap().to_be_bytes();
        ([10, 0, a, b], 4435).into()
    }

    fn node(number: usize) -> Node {
        Node {
            id: id(number),
            role: Role::Relay,
            keys: Vec::new(),
            addresses: Vec::new(),
            transit: vec![address(number)],
            attached: Vec::new(),
            services: Vec::new(),
            registration: 1,
            leases: Default::default(),
            placement: Default::default(),
        }
    }

    /// Two thousand, in no order of their ids.
    fn many() -> Nodes {
        (0..2_000).rev().map(node).collect()
    }

    /// What look-ups find is what a search from the beginning would.
    fn check(nodes: &Nodes) {
        for number in 0..2_100 {
            let first = nodes.iter().find(|node| node.id == id(number));
            assert_eq!(nodes.by_id(&id(number)), first);
            let at = address(number);
            let first = nodes.iter().find(|node| node.transit.contains(&at));
            assert_eq!(nodes.by_transit(&at), first);
        }
    }

    #[test]
    fn a_node_is_found_by_its_id_and_by_where_it_forwards_and_the_first_of_two_alike() {
        let mut nodes = many();
        check(&nodes);
        let mut again = node(5);
        again.transit = vec![address(6), address(2_050)];
        again.registration = 2;
        nodes.push(again);
        check(&nodes);
    }

    #[test]
    fn the_index_is_made_once_for_a_list_however_often_it_is_looked_at() {
        let nodes = many();
        assert!(nodes.index.get().is_none());
        assert!(nodes.by_id(&id(2_500)).is_none());
        let made: *const Index = nodes.index();
        check(&nodes);
        assert!(std::ptr::eq(made, nodes.index()));
        // Each of a claim's questions is one look-up of a hash, and none goes through the list.
        let Index { by_id, by_transit } = nodes.index();
        assert_eq!((by_id.len(), by_transit.len()), (2_000, 2_000));
    }

    #[test]
    fn whoever_changes_the_list_finds_what_is_there_then() {
        let mut nodes = many();
        check(&nodes);
        nodes.remove(7);
        check(&nodes);
        nodes[3].id = id(2_010);
        nodes[4].transit.clear();
        check(&nodes);
        for node in &mut nodes {
            node.transit.reverse();
            node.transit.truncate(1);
        }
        nodes.retain(|node| node.id != id(1));
        check(&nodes);
        let mut copy = nodes.clone();
        copy.push(node(2_020));
        check(&copy);
        check(&nodes);
        assert_ne!(copy, nodes);
    }

    #[test]
    fn it_is_written_as_the_list_alone_whether_it_was_looked_at_or_not() {
        let nodes = many();
        let list: Vec<Node> = nodes.to_vec();
        check(&nodes);
        let text = serde_json::to_string(&nodes).unwrap();
        assert_eq!(text, serde_json::to_string(&list).unwrap());
        let back: Nodes = serde_json::from_str(&text).unwrap();
        assert_eq!(back, nodes);
        check(&back);
    }
}
