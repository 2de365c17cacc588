//! What two nodes authenticate with between themselves, outside of TLS: a key that follows from their
//! identities and that nobody else can make. It is there before they ever spoke, and is checked in a
//! microsecond, so that a flood of forgeries costs little.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use subtle::ConstantTimeEq;
use tokio::sync::watch;
use wavry_proto::{
    control::Roster,
    id::{NodeId, PublicKey},
    overlay::{Authenticator, MAX_TAGS, Tag},
};

use super::Present;
use crate::key::MacKey;

const PURPOSE: &str = "wavry overlay v1";

/// Keys that are kept rather than made anew, which takes some 50 µs each. Those of 1,000 nodes whose
/// identities rotate, and as many again; when there are more, all are forgotten.
const KEPT: usize = 4096;

/// The keys of one node with all others.
pub(super) struct Pairs {
    present: watch::Receiver<Arc<Present>>,
    roster: watch::Receiver<Arc<Roster>>,
    keys: Mutex<HashMap<Pair, Option<Arc<MacKey>>>>,
}

/// This node's public key, and the other's.
type Pair = (PublicKey, PublicKey);

impl Pairs {
    pub(super) fn new(
        present: watch::Receiver<Arc<Present>>,
        roster: watch::Receiver<Arc<Roster>>,
    ) -> Self {
        Self {
            present,
            roster,
            keys: Mutex::default(),
        }
    }

    /// The keys with a peer: one for each of its own that the roster lists.
    fn with(&self, peer: &NodeId) -> impl Iterator<Item = Arc<MacKey>> {
        let present = self.present.borrow().clone();
        let listed = self
            .roster
            .borrow()
            .node(peer)
            .filter(|node| node.role.is_in_mesh())
            .map_or_else(Vec::new, |node| node.keys.clone());
        listed
            .into_iter()
            .take(MAX_TAGS)
            .filter_map(move |theirs| self.key(&present, theirs))
    }

    fn key(&self, present: &Present, theirs: PublicKey) -> Option<Arc<MacKey>> {
        let identity = &present.identity;
        let pair = (identity.public_key(), theirs);
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = keys.get(&pair) {
            return key.clone();
        }
        if keys.len() >= KEPT {
            keys.clear();
        }
        let key = identity.key().common_mac_key(&theirs.0, PURPOSE);
        let key = key.map(Arc::new);
        keys.insert(pair, key.clone());
        key
    }
}

impl Authenticator for Pairs {
    fn tags(&self, peer: &NodeId, message: &[u8], tags: &mut Vec<Tag>) {
        tags.extend(self.with(peer).map(|key| tag(&key, message)));
    }

    fn verify(&self, peer: &NodeId, message: &[u8], tags: &[Tag]) -> bool {
        self.with(peer).any(|key| {
            let expected = tag(&key, message);
            tags.iter()
                .any(|tag| bool::from(tag.as_slice().ct_eq(&expected)))
        })
    }
}

fn tag(key: &MacKey, message: &[u8]) -> Tag {
    let mac = key.mac(message);
    *mac.first_chunk().expect("SHA-256 gives 32 bytes")
}

#[cfg(test)]
mod tests {
    use wavry_proto::{
        control::{Node, Role},
        overlay::TAG_LEN,
    };

    use super::*;
    use crate::identity::{Identity, Shown};

    struct Cluster {
        roster: watch::Sender<Arc<Roster>>,
    }

    impl Cluster {
        fn new() -> Self {
            let roster = Roster::empty("c1".parse().unwrap());
            Self {
                roster: watch::Sender::new(Arc::new(roster)),
            }
        }

        fn list(&self, id: &str, keys: &[PublicKey]) {
            self.list_as(Role::Relay, id, keys);
        }

        fn list_as(&self, role: Role, id: &str, keys: &[PublicKey]) {
            self.roster.send_modify(|roster| {
                let mut next = (**roster).clone();
                next.nodes.retain(|node| node.id.as_str() != id);
                next.nodes.push(Node {
                    id: id.parse().unwrap(),
                    role,
                    keys: keys.to_vec(),
                    addresses: Vec::new(),
                    transit: Vec::new(),
                    attached: Vec::new(),
                    services: Vec::new(),
                    registration: 1,
                    leases: Default::default(),
                    placement: Default::default(),
                });
                *roster = Arc::new(next);
            });
        }

        fn node(&self, id: &str) -> (Shown, Arc<dyn Authenticator>) {
            let identity = Identity::generate();
            self.list(id, &[identity.public_key()]);
            let shown = Shown::new(identity).unwrap();
            let tls = shown.mesh_tls(self.roster.subscribe()).unwrap();
            (shown, tls.authenticator)
        }
    }

    fn id(id: &str) -> NodeId {
        id.parse().unwrap()
    }

    fn tags(by: &Arc<dyn Authenticator>, peer: &str, message: &[u8]) -> Vec<Tag> {
        let mut tags = Vec::new();
        by.tags(&id(peer), message, &mut tags);
        tags
    }

    #[test]
    fn a_message_is_its_senders_for_its_recipient_and_for_nobody_else() {
        let cluster = Cluster::new();
        let [(_, a), (_, b), (_, c)] = ["a", "b", "c"].map(|id| cluster.node(id));
        let tags = tags(&a, "b", b"hello");
        assert!(b.verify(&id("a"), b"hello", &tags));
        assert!(!b.verify(&id("a"), b"hullo", &tags));
        assert!(!b.verify(&id("c"), b"hello", &tags));
        assert!(!c.verify(&id("a"), b"hello", &tags));
        assert!(!b.verify(&id("a"), b"hello", &[]));
        assert!(!b.verify(&id("a"), b"hello", &[[0; TAG_LEN]; 2]));
    }

    #[test]
    fn whom_the_roster_does_not_list_has_no_tags_and_is_not_believed() {
        let cluster = Cluster::new();
        let [(_, a), (_, b)] = ["a", "b"].map(|id| cluster.node(id));
        let made = tags(&a, "b", b"hello");
        cluster.list("a", &[]);
        assert!(!b.verify(&id("a"), b"hello", &made));
        assert!(tags(&b, "a", b"hello").is_empty());
        assert!(tags(&b, "nobody", b"hello").is_empty());
        // The neutral element is on the curve, and everybody knows what comes of it.
        let mut weak = [0; 32];
        weak[0] = 1;
        cluster.list("a", &[PublicKey(weak)]);
        assert!(tags(&b, "a", b"hello").is_empty());
    }

    #[test]
    fn a_keyvault_has_no_tags_and_is_not_believed() {
        let cluster = Cluster::new();
        let [(shown, a), (_, b)] = ["a", "b"].map(|id| cluster.node(id));
        let made = tags(&a, "b", b"hello");
        let key = shown.present().identity.public_key();
        cluster.list_as(Role::KeyVault, "a", &[key]);
        assert!(!b.verify(&id("a"), b"hello", &made));
        assert!(tags(&b, "a", b"hello").is_empty());
    }

    #[test]
    fn at_every_step_of_a_rotation_both_understand_each_other() {
        let cluster = Cluster::new();
        let [(_, a), (shown, b)] = ["a", "b"].map(|id| cluster.node(id));
        let identity = Identity::generate();
        let old = shown.present().identity.public_key();
        let next = identity.public_key();
        let both_understand = || {
            assert!(b.verify(&id("a"), b"1", &tags(&a, "b", b"1")));
            assert!(a.verify(&id("b"), b"2", &tags(&b, "a", b"2")));
        };
        both_understand();
        cluster.list("b", &[old, next]);
        both_understand();
        shown.show(identity).unwrap();
        both_understand();
        cluster.list("b", &[next, old]);
        both_understand();
        cluster.list("b", &[next]);
        both_understand();
    }
}
