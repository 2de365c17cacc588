//! What is to be told of a node's part of the mesh, for its ops listener.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
};

use wavry_proto::{
    id::NodeId,
    view::{Mesh, OnConnection, Peer, Trace},
};

use super::{Inner, core::lock, session::Session};
use crate::transit;

/// Looks at a mesh endpoint, and at what belongs to it. It keeps none of them.
#[derive(Clone)]
pub struct Viewer {
    inner: Weak<Inner>,
    transit: Option<transit::Viewer>,
    sessions: Sessions,
}

/// Of which peer the way is traced.
#[derive(Debug, Clone)]
pub enum Of {
    /// This one.
    Peer(NodeId),
    /// The one that this session is with.
    Session(u64),
}

/// Why there is no trace.
#[derive(Debug, thiserror::Error)]
pub enum NoTrace {
    /// The endpoint is closed.
    #[error("the node stops")]
    Gone,
    /// There is no such session.
    #[error("there is no session {0} here")]
    NoSession(u64),
    /// The peer is not looked after.
    #[error("nobody here wants to reach {0}, nor is it heard")]
    NoPeer(NodeId),
}

impl Viewer {
    pub(super) fn new(inner: &Arc<Inner>) -> Self {
        Self {
            inner: Arc::downgrade(inner),
            transit: None,
            sessions: Sessions::default(),
        }
    }

    /// The node is this transit relay as well.
    pub fn with_transit(mut self, transit: Option<transit::Viewer>) -> Self {
        self.transit = transit;
        self
    }

    /// These are its sessions.
    pub fn with_sessions(mut self, sessions: Sessions) -> Self {
        self.sessions = sessions;
        self
    }

    /// The node's part of the mesh: this peer alone, or `limit` peers at most, and as many claimants. `None` once the
    /// endpoint is closed.
    pub async fn mesh(&self, only: Option<&NodeId>, limit: usize) -> Option<Mesh> {
        let transit = match &self.transit {
            Some(transit) => transit.look(limit).await,
            None => None,
        };
        let inner = self.inner.upgrade()?;
        let (mut peers, peers_left_out) = inner.overlay.peers(only, limit);
        inner.tell_connections(&mut peers);
        Some(Mesh {
            node: inner.config.node.clone(),
            epoch: inner.config.roster.borrow().epoch,
            peers,
            peers_left_out,
            places: inner.overlay.held_places(),
            transit,
        })
    }

    /// How long packets take to each hop on the path to a peer that is in use, or on all that carry something, measured
    /// now.
    pub async fn trace(&self, of: Of, all: bool) -> Result<Trace, NoTrace> {
        let (peer, session) = match of {
            Of::Peer(peer) => (peer, None),
            Of::Session(number) => {
                let (peer, connection) = self
                    .sessions
                    .find(number)
                    .ok_or(NoTrace::NoSession(number))?;
                let session = OnConnection {
                    session: number,
                    connection,
                };
                (peer, Some(session))
            }
        };
        let inner = self.inner.upgrade().ok_or(NoTrace::Gone)?;
        let paths = inner.overlay.trace(&peer, all).await;
        Ok(Trace {
            node: inner.config.node.clone(),
            paths: paths.ok_or_else(|| NoTrace::NoPeer(peer.clone()))?,
            peer,
            session,
        })
    }
}

impl Inner {
    fn tell_connections(&self, peers: &mut [Peer]) {
        let links: Vec<_> = lock(&self.links)
            .iter()
            .filter_map(Weak::upgrade)
            .filter(|link| link.is_alive())
            .collect();
        for peer in peers {
            let of_it = links.iter().filter(|link| link.peer == peer.node);
            peer.connections = of_it.map(|link| link.view()).collect();
            peer.connections.sort_by_key(|connection| connection.number);
        }
    }
}

/// Where sessions are: with which peer, and on which connection. They have the numbers under which they are in the
/// node's log; there are as many as the node takes sessions.
#[derive(Clone, Default)]
pub struct Sessions {
    places: Arc<Mutex<HashMap<u64, (NodeId, u64)>>>,
}

impl Sessions {
    /// Notes where the session with this number is, until that is dropped.
    pub fn note(&self, number: u64, session: &Session) -> Noted {
        let place = (session.peer().clone(), session.connection());
        lock(&self.places).insert(number, place);
        Noted {
            sessions: self.clone(),
            number,
        }
    }

    fn find(&self, number: u64) -> Option<(NodeId, u64)> {
        lock(&self.places).get(&number).cloned()
    }
}

/// A session that is noted.
pub struct Noted {
    sessions: Sessions,
    number: u64,
}

impl Drop for Noted {
    fn drop(&mut self) {
        lock(&self.sessions.places).remove(&self.number);
    }
}
