//! Connections between two nodes: sessions are spread over several, and outlive those of others.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;
use wavry_transport::{
    mesh::{Endpoint, Limits},
    session::{Closed, Session as _},
};

use crate::{
    nodes::{Cluster, Key, session},
    transit::{DEADLINE, numbers, question_and_answer},
    wire::{ConnectionId, Wire},
};

/// Two nodes with two connections at most from one to the other.
struct Pair {
    ends: [Endpoint; 2],
    wires: [Arc<Wire>; 2],
}

impl Pair {
    fn new() -> Self {
        let limits = Limits {
            shards: 2,
            ..Limits::default()
        };
        let cluster = Cluster::new();
        let wires = [Wire::new(), Wire::new()];
        let end = |name: &str, wire: &Arc<Wire>| {
            let key = Arc::new(Key::generate());
            let config = cluster.config(name, &key, limits.clone());
            let endpoint = Endpoint::sharded(wire.sockets(), config).unwrap();
            cluster.list(name, key.public, endpoint.local_addr());
            endpoint
        };
        Self {
            ends: [end("a", &wires[0]), end("b", &wires[1])],
            wires,
        }
    }

    async fn session(
        &self,
    ) -> (
        wavry_transport::mesh::Session,
        wavry_transport::mesh::Session,
    ) {
        session(&self.ends[0], "b", &self.ends[1]).await
    }

    /// The connections that each end has sent over, by the ids that it names them by: who dialled has one for each,
    /// who was dialled takes another one once it has the choice.
    fn connections(&self) -> [HashSet<ConnectionId>; 2] {
        self.wires.each_ref().map(|wire| wire.connections())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_dies_takes_its_own_sessions_and_another_takes_its_place() {
    let pair = Pair::new();
    let (here, there) = pair.session().await;
    question_and_answer(&here, &there).await;
    let first = pair.connections();
    assert_eq!(first[0].len(), 1);
    let other = pair.session().await;
    question_and_answer(&other.0, &other.1).await;
    assert_eq!(pair.connections()[0].len(), 2, "each has its own");

    let stop = CancellationToken::new();
    let dying = async {
        for (wire, ids) in pair.wires.iter().zip(first) {
            wire.lose(ids);
        }
        let died = Instant::now();
        // Whoever comes meanwhile has a session on the other.
        let mut later = Vec::new();
        for _ in 0..4 {
            later.push(pair.session().await);
        }
        let opened = died.elapsed();
        let closed = (here.closed().await, there.closed().await);
        let noticed = died.elapsed();
        assert!(matches!(closed, (Closed::Lost(_), Closed::Lost(_))));
        while pair.connections()[0].len() < 3 {
            later.push(pair.session().await);
        }
        for (here, there) in &later {
            question_and_answer(here, there).await;
        }
        stop.cancel();
        (opened, noticed)
    };
    let both = async { tokio::join!(dying, numbers(&other.0, &other.1, stop.clone())) };
    let done = tokio::time::timeout(DEADLINE, both).await;
    let ((opened, noticed), (count, longest)) = done.unwrap();
    println!("four sessions more within {opened:?}, the end of the first after {noticed:?}");
    println!("{count} numbers on the other connection, the longest pause {longest:?}");
    assert!(opened < Duration::from_secs(2), "{opened:?}");
    assert!(noticed < Duration::from_secs(3), "{noticed:?}");
    question_and_answer(&other.0, &other.1).await;
}
