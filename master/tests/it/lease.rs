//! Leases of flows, asked of real masters.

use std::time::Duration;

use hyper::Method;
use wavry_credentials::{
    audit::Action,
    master::Failure,
    membership::{Membership, Requests},
    token::lease::Verifier,
};
use wavry_proto::{
    control::{
        Role,
        lease::{Answer, AskLeases, LEASES, Leases, MAX_LEASES, MAX_LEASES_LEN, NoLease, Way},
    },
    overlay::{
        lease::{Unfit, Verifier as _},
        packet::Label,
    },
    token::{Lease, OperatorRole, pack},
};

use crate::{
    operate::operator,
    wire::Wire,
    world::{World, join, node_id, roster_where},
};

fn way(flow: u64, peer: &str, hops: &[&str]) -> Way {
    Way {
        flow: Label::from_random(flow),
        peer: node_id(peer),
        hops: hops.iter().map(|hop| node_id(hop)).collect(),
    }
}

async fn ask(requests: &Requests, ways: Vec<Way>) -> Result<Vec<Answer>, Failure> {
    let ask = AskLeases { ways };
    let answered = requests.send::<Leases>(Method::POST, LEASES, &ask, MAX_LEASES_LEN);
    Ok(answered.await?.leases)
}

fn word<T: std::fmt::Debug>(refused: Result<T, Failure>) -> String {
    match refused {
        Err(Failure::Refused { word, .. }) => word,
        other => panic!("{other:?}"),
    }
}

/// A lease that this node, as any, takes for one.
fn verified(node: &Membership, answer: &Answer) -> Result<Lease, Unfit> {
    let Answer::Lease(token) = answer else {
        panic!("{answer:?}");
    };
    let verifier: Verifier = node.lease_verifier();
    let verified = verifier.verify(&pack(token).unwrap())?;
    assert!(verified.left <= Duration::from_secs(3600));
    Ok(verified.lease)
}

/// Relay `t1`, which forwards packets.
async fn forwarding(world: &World, master: &crate::world::Running) -> Membership {
    let relay = join(world.node(master, "t1", Role::Relay, &[])).await;
    relay.offer_transit(vec!["127.0.0.1:4435".parse().unwrap()]);
    let listed = |roster: &wavry_proto::control::Roster| {
        let node = roster.node(&node_id("t1"));
        node.is_some_and(|node| !node.transit.is_empty())
    };
    roster_where(&mut relay.roster(), listed).await;
    relay
}

#[tokio::test]
async fn a_node_is_given_leases_for_ways_of_its_own_and_reasons_for_the_others() {
    let world = World::new();
    let master = world.start().await;
    let relay = forwarding(&world, &master).await;
    let exit = join(world.node(&master, "exit", Role::Relay, &["echo"])).await;
    let edge = join(world.node(&master, "edge", Role::Gateway, &[])).await;
    let ways = vec![
        way(1, "exit", &["t1"]),
        way(2, "nobody", &["t1"]),
        way(3, "t1", &["exit"]),
        way(4, "exit", &["t1", "t1"]),
        way(5, "edge", &["t1"]),
    ];
    let answers = ask(&edge.requests(), ways.clone()).await.unwrap();
    let lease = verified(&relay, &answers[0]).unwrap();
    let said = (&lease.sub, &lease.peer, &lease.hops, lease.flow);
    let asked = (&node_id("edge"), &ways[0].peer, &ways[0].hops, ways[0].flow);
    assert_eq!(said, asked);
    assert_eq!((lease.bps, lease.pps), (1_000_000_000, 125_000));
    assert_eq!(
        answers[1..],
        [
            Answer::Refused(NoLease::NotListed),
            Answer::Refused(NoLease::NotListed),
            Answer::Refused(NoLease::NotAWay),
            Answer::Refused(NoLease::NotAWay),
        ]
    );
    // Nobody gets one for another claimant, and who asks again is given another one of the same flow.
    let again = ask(&exit.requests(), vec![way(1, "edge", &["t1"])]).await;
    assert_eq!(
        verified(&relay, &again.unwrap()[0]).unwrap().sub,
        node_id("exit")
    );

    for ways in [vec![], vec![way(1, "exit", &["t1"]); MAX_LEASES + 1]] {
        assert_eq!(word(ask(&edge.requests(), ways).await), "malformed-request");
    }
    let most = vec![way(1, "exit", &["t1"]); MAX_LEASES];
    let most = ask(&edge.requests(), most).await.unwrap();
    assert!(most.iter().all(|answer| verified(&relay, answer).is_ok()));

    let mut wire = Wire::open(&world, master.address).await;
    let body = serde_json::to_string(&AskLeases { ways }).unwrap();
    let admin = operator(&world, OperatorRole::Admin);
    for (bearer, problem) in [(None, "token-missing"), (Some(&*admin), "node-unknown")] {
        let refused = wire
            .problem(Method::POST, LEASES, bearer, body.clone())
            .await;
        assert_eq!(refused, (401, problem.to_owned()));
    }
    master.stop().await;
    // A request has one line, however many leases it was answered with.
    let lines = crate::audit::on_record(&world).await;
    let issued = lines.iter().filter(|event| event.path == LEASES);
    let issued: Vec<_> = issued
        .filter(|event| event.action == Action::Issue)
        .map(|event| event.subject.as_str())
        .collect();
    assert_eq!(issued, ["edge", "exit", "edge"]);
}

#[tokio::test]
async fn what_an_operator_says_of_a_nodes_flows_is_in_its_next_leases_and_voids_those_before() {
    let world = World::new();
    let master = world.start().await;
    let relay = forwarding(&world, &master).await;
    let edge = join(world.node(&master, "edge", Role::Gateway, &[])).await;
    let exit = join(world.node(&master, "exit", Role::Relay, &[])).await;
    let mut wire = Wire::open(&world, master.address).await;
    let bearer = operator(&world, OperatorRole::Operator);
    let lease = async || {
        let answers = ask(&edge.requests(), vec![way(1, "exit", &["t1"])]).await;
        verified(&relay, &answers.unwrap()[0]).unwrap()
    };
    let mut rosters = exit.roster();
    // Whether it holds, by the first roster under which those before do not.
    let mut holds = async |lease: &Lease, after: u64| {
        let roster = roster_where(&mut rosters, |roster| {
            let node = roster.node(&node_id("edge"));
            node.is_some_and(|node| node.leases.since > after)
        });
        let roster = roster.await;
        lease.epoch >= roster.node(&node_id("edge")).unwrap().leases_since()
    };
    let first = lease().await;
    let body = r#"{"flow_bits_per_second":5000000}"#;
    let path = "/v1/nodes/edge";
    let (status, _, said) = wire.send(Method::PATCH, path, Some(&bearer), body).await;
    assert_eq!(status, 200);
    assert_eq!(crate::wire::json(&said)["flow_bits_per_second"], 5_000_000);
    assert!(!holds(&first, 0).await);
    let second = lease().await;
    assert_eq!((second.bps, second.pps), (5_000_000, 125_000));
    assert!(holds(&second, 0).await);

    // Where it is and what it takes is no matter of its leases.
    let body = r#"{"region":"here"}"#;
    assert_eq!(
        wire.send(Method::PATCH, path, Some(&bearer), body).await.0,
        200
    );
    assert!(holds(&second, 0).await);
    let path = "/v1/nodes/edge/leases/revoke";
    let (status, ..) = wire.send(Method::POST, path, Some(&bearer), "").await;
    assert_eq!(status, 204);
    assert!(!holds(&second, second.epoch.0).await);
    assert!(holds(&lease().await, 0).await);

    for (path, body, status) in [
        ("/v1/nodes/edge", r#"{"flow_bits_per_second":null}"#, 200),
        ("/v1/nodes/edge", r#"{"flow_bits_per_second":999999}"#, 400),
        ("/v1/nodes/edge", r#"{"flow_packets_per_second":0}"#, 400),
        ("/v1/nodes/edge", "{}", 400),
    ] {
        let said = wire.send(Method::PATCH, path, Some(&bearer), body).await.0;
        assert_eq!(said, status, "{body}");
    }
    assert_eq!(lease().await.bps, 1_000_000_000);
    let nobody = "/v1/nodes/nobody/leases/revoke";
    let refused = wire.problem(Method::POST, nobody, Some(&bearer), "").await;
    assert_eq!(refused, (404, "no-such-node".to_owned()));
    master.stop().await;
}

#[tokio::test]
async fn a_node_that_asks_too_often_waits_and_others_do_not() {
    let world = World::new();
    let mut config = world.config();
    config.limits.lease_rate = 1;
    let master = world.start_with(config).await;
    let _relay = forwarding(&world, &master).await;
    let edge = join(world.node(&master, "edge", Role::Gateway, &[])).await;
    let exit = join(world.node(&master, "exit", Role::Relay, &[])).await;
    let mut refused = 0;
    for _ in 0..30 {
        match ask(&edge.requests(), vec![way(1, "exit", &["t1"])]).await {
            Ok(_) => {}
            other => {
                assert_eq!(word(other), "too-many-requests");
                refused += 1;
            }
        }
    }
    assert!(refused > 0);
    assert!(
        ask(&exit.requests(), vec![way(1, "edge", &["t1"])])
            .await
            .is_ok()
    );
    master.stop().await;
}

#[tokio::test]
async fn a_master_that_signs_no_more_for_a_node_is_any_master_that_shares_its_database() {
    let world = World::new();
    let server = crate::postgres::Server::start(false);
    let config = wavry_master::Config {
        database: server.database("leases").await.parse().unwrap(),
        ..world.config()
    };
    let one = world.start_with(config.clone()).await;
    let other = world.start_with(config).await;
    let relay = forwarding(&world, &one).await;
    let exit = join(world.node(&other, "exit", Role::Relay, &[])).await;
    let edge = join(world.node(&other, "edge", Role::Gateway, &[])).await;
    let answers = ask(&edge.requests(), vec![way(1, "exit", &["t1"])]).await;
    let before = verified(&relay, &answers.unwrap()[0]).unwrap();
    // Revoked at one, asked of the other at once.
    let mut wire = Wire::open(&world, one.address).await;
    let bearer = operator(&world, OperatorRole::Operator);
    let path = "/v1/nodes/edge/leases/revoke";
    let (status, ..) = wire.send(Method::POST, path, Some(&bearer), "").await;
    assert_eq!(status, 204);
    let answers = ask(&edge.requests(), vec![way(1, "exit", &["t1"])]).await;
    let after = verified(&relay, &answers.unwrap()[0]).unwrap();
    let mut rosters = exit.roster();
    let roster = roster_where(&mut rosters, |roster| {
        let node = roster.node(&node_id("edge"));
        node.is_some_and(|node| node.leases.since > 0)
    });
    let roster = roster.await;
    let since = roster.node(&node_id("edge")).unwrap().leases_since();
    assert!(before.epoch < since && after.epoch >= since);

    let path = "/v1/nodes/edge/revoke";
    let (status, ..) = wire.send(Method::POST, path, Some(&bearer), "").await;
    assert_eq!(status, 204);
    let refused = word(ask(&edge.requests(), vec![way(1, "exit", &["t1"])]).await);
    assert!(
        ["node-unknown", "token-unknown-key"].contains(&&*refused),
        "{refused}"
    );
    one.stop().await;
    other.stop().await;
}
