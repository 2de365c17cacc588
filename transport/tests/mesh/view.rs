//! What a node tells of its part of the mesh to whoever looks.

use std::time::{Duration, Instant};

use wavry_proto::{
    overlay::{
        paths::{Cause, Standing},
        transit::Limits,
    },
    view::{Lease, Trace, Way},
};
use wavry_transport::mesh::{NoTrace, Of, Sessions};

use crate::{
    nodes::id,
    transit::{DEADLINE, Ends, Relay, proved_flows, question_and_answer},
};

fn of_b() -> Of {
    Of::Peer(id("b"))
}

/// How long ago each hop of the path in use was measured, and the peer last.
fn ages(trace: &Trace) -> Vec<f64> {
    let path = &trace.paths[0];
    let hops = path.hops.iter().map(|hop| hop.round_trip);
    let all = hops.chain([path.end]);
    all.map(|timing| timing.expect("it was measured").seconds_ago)
        .collect()
}

#[tokio::test]
async fn whoever_looks_is_told_of_paths_flows_leases_connections_and_what_a_relay_carries() {
    let ends = Ends::new();
    let relay = Relay::start(&ends.cluster, "t1", Limits::default());
    let (here, there) = ends.session().await;
    question_and_answer(&here, &there).await;
    ends.until("the relay stands by", |views| proved_flows(views) == 1)
        .await;
    let viewer = ends.a.viewer().with_transit(Some(relay.viewer.clone()));
    let told = viewer.mesh(None, 10).await.unwrap();
    assert_eq!((told.node, told.peers_left_out), (id("a"), 0));
    let [peer] = &told.peers[..] else {
        panic!("{:?}", told.peers);
    };
    assert!(peer.reached && peer.wanted, "{peer:?}");
    // The one in use comes first.
    let [direct, standby] = &peer.paths[..] else {
        panic!("{:?}", peer.paths);
    };
    assert_eq!(direct.way, Way::Direct(ends.b.local_addr()));
    assert!(direct.in_use && !standby.in_use);
    assert_eq!(standby.way, Way::Relays(vec![id("t1")]));
    assert_eq!(standby.standing, Standing::Proved);
    assert!(
        standby
            .round_trip
            .is_some_and(|timing| timing.last_ms > 0.0)
    );
    // A trace is of the path in use, or of both.
    for (all, paths) in [(false, 1), (true, 2)] {
        let trace = viewer.trace(of_b(), all).await.unwrap();
        assert_eq!(trace.paths.len(), paths, "{trace:?}");
        assert!(trace.paths[0].in_use && trace.paths[0].hops.is_empty());
        assert!(trace.paths[0].end.is_some(), "{trace:?}");
        let hops = trace.paths.get(1).map(|path| path.hops.len());
        assert_eq!(hops, all.then_some(1));
    }
    let last = peer.last_switch.as_ref().unwrap();
    assert_eq!((peer.switches, last.cause), (1, Cause::First));
    assert_eq!((&last.to, &last.from), (&direct.way, &None));
    let flow = &peer.flows[0];
    assert_eq!(flow.hops[0].ruling.as_deref(), Some("granted"));
    assert!(flow.open_seconds.is_some_and(|open| open > 0.0));
    let bits_per_second = 8_000_000_000;
    let is_held =
        matches!(flow.lease, Lease::Held { bits_per_second: told, .. } if told == bits_per_second);
    assert!(is_held, "{:?}", flow.lease);
    let sessions: usize = peer.connections.iter().map(|on| on.sessions).sum();
    assert_eq!(sessions, 1, "{:?}", peer.connections);
    let transit = told.transit.unwrap();
    assert_eq!((transit.flows, transit.claimants.len()), (1, 1));
    assert_eq!(transit.claimants[0].node, id("a"));
    assert!(transit.packets >= 2, "{transit:?}");

    // The other side did not claim it: it knows by which relay it comes.
    let told = ends.b.viewer().mesh(Some(&id("a")), 10).await.unwrap();
    let ways: Vec<_> = told.peers[0].paths.iter().map(|path| &path.way).collect();
    assert!(ways.contains(&&Way::PeersFlow(Some(id("t1")))), "{ways:?}");
    assert!(told.peers[0].flows.is_empty() && told.transit.is_none());
}

#[tokio::test]
async fn who_asks_for_few_peers_is_told_how_many_more_there_are() {
    let ends = Ends::new();
    let _session = ends.session().await;
    let told = ends.a.viewer().mesh(None, 0).await.unwrap();
    assert_eq!((told.peers.len(), told.peers_left_out), (0, 1));
    let told = ends.a.viewer().mesh(Some(&id("c")), 10).await.unwrap();
    assert_eq!((told.peers.len(), told.peers_left_out), (0, 0));
}

#[tokio::test]
async fn a_trace_measures_each_hop_anew() {
    let ends = Ends::new();
    let _relay = Relay::start(&ends.cluster, "t1", Limits::default());
    ends.cut();
    let (here, there) = ends.session().await;
    question_and_answer(&here, &there).await;
    let viewer = ends.a.viewer();
    // Until nothing that was measured is new enough any more.
    let measured = async {
        loop {
            let told = viewer.mesh(None, 1).await.unwrap();
            let hop = &told.peers[0].flows[0].hops[0];
            if hop
                .round_trip
                .is_some_and(|timing| timing.seconds_ago > 1.5)
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(DEADLINE, measured).await.unwrap();
    let asked = Instant::now();
    let trace = viewer.trace(of_b(), false).await.unwrap();
    let took = asked.elapsed().as_secs_f64();
    assert_eq!(trace.paths[0].way, Way::Relays(vec![id("t1")]));
    // The relay's answer is to this; the peer is probed all the time.
    assert!(ages(&trace)[0] <= took, "{trace:?}");
    assert!(ages(&trace)[1] <= took + 1.0, "{trace:?}");
}

#[tokio::test]
async fn a_session_is_traced_by_its_number_while_it_is_there() {
    let ends = Ends::new();
    let (here, _there) = ends.session().await;
    let sessions = Sessions::default();
    let viewer = ends.a.viewer().with_sessions(sessions.clone());
    let noted = sessions.note(7, &here);
    let trace = viewer.trace(Of::Session(7), false).await.unwrap();
    let on = trace.session.unwrap();
    assert_eq!((trace.peer, on.session), (id("b"), 7));
    assert_eq!(on.connection, here.connection());
    drop(noted);
    let refused = viewer.trace(Of::Session(7), false).await;
    assert!(matches!(refused, Err(NoTrace::NoSession(7))), "{refused:?}");
    let refused = viewer.trace(Of::Peer(id("c")), true).await;
    assert!(matches!(refused, Err(NoTrace::NoPeer(_))), "{refused:?}");
}
