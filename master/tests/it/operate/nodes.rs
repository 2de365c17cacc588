//! Nodes, listed, revoked, and given another place.

use std::{net::SocketAddr, time::Duration};

use hyper::Method;
use serde_json::{Value, json};
use wavry_credentials::{audit::Action, identity::Identity};
use wavry_proto::{
    control::Role,
    token::{OperatorRole, Registration, Validity},
};

use super::{epoch_of, get, operator, said};
use crate::{
    audit::on_record,
    wire::{self, Wire, claims, heartbeat, sign, unix_time},
    world::{World, exits, join, node_id, roster_where},
};

#[tokio::test]
async fn nodes_are_listed_in_pages_with_what_they_told() {
    let world = World::new();
    let master = world.start().await;
    let mut wire = Wire::open(&world, master.address).await;
    let identity = Identity::generate();
    for (jti, node) in [("1", "a"), ("2", "b"), ("3", "exit")] {
        let mut claims = claims(jti);
        claims.sub = node_id(node);
        let key = if node == "exit" {
            &identity
        } else {
            &Identity::generate()
        };
        assert_eq!(
            wire.register(key, &sign(&world, &claims), jti).await,
            said(201, "")
        );
    }
    let mut told = heartbeat();
    told.sessions = 7;
    told.draining = true;
    let bearer = wire.bearer(&world, &identity, &node_id("exit"));
    assert_eq!(wire.heartbeat(Some(&bearer), &told).await, said(200, ""));
    told.version = "x".repeat(65);
    assert_eq!(wire.heartbeat(Some(&bearer), &told).await.0, 400);

    let viewer = operator(&world, OperatorRole::Viewer);
    let page = get(&mut wire, "/v1/nodes?limit=2", &viewer).await;
    let ids: Vec<_> = page["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| &n["id"])
        .collect();
    assert_eq!(ids, ["a", "b"]);
    assert_eq!(page["next"], "b");
    let page = get(&mut wire, "/v1/nodes?limit=2&after=b", &viewer).await;
    assert_eq!(page["next"], Value::Null);
    let exit = &page["nodes"][0];
    assert_eq!(exit["id"], "exit");
    assert_eq!(exit["state"], "draining");
    assert_eq!(exit["sessions"], 7);
    assert_eq!(exit["version"], "1.2.3");
    // Where it is heard from, whatever it says of its addresses.
    assert_eq!(exit["seen_from"], "127.0.0.1");
    let key = identity.public_key().to_string();
    assert_eq!(exit["identities"][0]["key"], json!(key));
    assert_eq!(exit["identities"][0]["state"], "present");
    assert_eq!(*exit, get(&mut wire, "/v1/nodes/exit", &viewer).await);

    for nobody in [
        "/v1/nodes/nobody",
        "/v1/nodes/%00",
        "/v1/nodes/%ff",
        "/v1/nodes/A'--",
    ] {
        let outcome = wire.problem(Method::GET, nobody, Some(&viewer), "").await;
        assert_eq!(outcome, said(404, "no-such-node"), "{nobody}");
    }
    let outcome = wire
        .problem(Method::GET, "/v1/nodes?limit=x", Some(&viewer), "")
        .await;
    assert_eq!(outcome, said(400, "malformed-request"));
}

#[tokio::test]
async fn a_revoked_node_leaves_the_roster_and_comes_back_with_nothing_it_has() {
    let world = World::new();
    let master = world.start().await;
    let mut wire = Wire::open(&world, master.address).await;
    let identity = Identity::generate();
    let token = sign(&world, &claims("1"));
    assert_eq!(wire.register(&identity, &token, "1").await, said(201, ""));
    // Issued before the revocation, and not used yet.
    let spare = sign(&world, &claims("spare"));
    let gateway = join(world.node(&master, "gw", Role::Gateway, &[])).await;
    let mut rosters = gateway.roster();
    roster_where(&mut rosters, |r| exits(r, "echo") == 1).await;
    let mut polling = Wire::open(&world, master.address).await;
    let bearer = polling.bearer(&world, &identity, &node_id("exit"));
    let held = tokio::spawn(async move {
        // Further than any epoch but the one that is to come.
        let path = format!("/v1/roster?after={}", epoch_of(&mut polling, &bearer).await);
        polling.problem(Method::GET, &path, Some(&bearer), "").await
    });

    let admin = operator(&world, OperatorRole::Operator);
    let revoke = "/v1/nodes/exit/revoke";
    let asked = std::time::Instant::now();
    let outcome = wire.problem(Method::POST, revoke, Some(&admin), "").await;
    assert_eq!(outcome, said(204, ""));
    roster_where(&mut rosters, |r| r.node(&node_id("exit")).is_none()).await;
    assert!(asked.elapsed() < Duration::from_secs(5));
    assert_eq!(held.await.unwrap(), said(401, "node-unknown"));
    let again = wire.problem(Method::POST, revoke, Some(&admin), "").await;
    assert_eq!(again, said(404, "no-such-node"));

    // Neither its identity, nor an old token with another, nor a new token with its identity.
    let bearer = wire.bearer(&world, &identity, &node_id("exit"));
    let outcome = wire.heartbeat(Some(&bearer), &heartbeat()).await;
    assert_eq!(outcome, said(401, "node-unknown"));
    let other = Identity::generate();
    let outcome = wire.register(&other, &spare, "spare").await;
    assert_eq!(outcome, said(403, "node-revoked"));
    let fresh = |jti: &str| {
        let later = unix_time() + 30;
        Registration {
            placement: Default::default(),
            validity: Validity {
                iat: later,
                nbf: later,
                exp: later + 60,
            },
            ..claims(jti)
        }
    };
    // As far ahead as clocks may be.
    let token = loop {
        let token = fresh("2");
        let outcome = wire.register(&identity, &sign(&world, &token), "2").await;
        if outcome != said(403, "node-revoked") {
            assert_eq!(outcome, said(403, "key-revoked"));
            break token;
        }
    };
    let outcome = wire.register(&other, &sign(&world, &token), "2").await;
    assert_eq!(outcome, said(201, ""));

    let events = on_record(&world).await;
    let revoked: Vec<_> = events
        .iter()
        .filter(|e| e.action == Action::Revoke)
        .collect();
    assert_eq!(revoked.len(), 1);
    assert_eq!(
        (&*revoked[0].subject, &*revoked[0].actor),
        ("exit", "alice")
    );
    assert!(revoked[0].secret.is_some());
    let denied = |word: &str| {
        events
            .iter()
            .any(|e| e.action == Action::Deny && e.outcome == word)
    };
    assert!(denied("node-revoked") && denied("key-revoked"));
}

#[tokio::test]
async fn a_node_is_given_another_region_and_weight_and_nodes_are_told_at_once() {
    let world = World::new();
    let master = world.start().await;
    let gateway = join(world.node(&master, "gw", Role::Gateway, &[])).await;
    let relay = join(world.node(&master, "exit", Role::Relay, &["echo"])).await;
    relay.announce(vec![SocketAddr::from(([127, 0, 0, 1], 4444))]);
    let mut rosters = gateway.roster();
    let mut wire = Wire::open(&world, master.address).await;
    let bearer = operator(&world, OperatorRole::Operator);
    let path = "/v1/nodes/exit";
    for (body, region, weight) in [
        (
            json!({"region": "eu-west", "weight": 50}),
            Some("eu-west"),
            50,
        ),
        // What is left out stays.
        (json!({"weight": 1000}), Some("eu-west"), 1000),
        (json!({"region": null}), None, 1000),
    ] {
        let asked = std::time::Instant::now();
        let sent = wire.send(Method::PATCH, path, Some(&bearer), body.to_string());
        let (status, _, answer) = sent.await;
        assert_eq!(status, 200);
        let node = wire::json(&answer);
        assert_eq!(
            (node["region"].as_str(), node["weight"].as_u64()),
            (region, Some(weight))
        );
        roster_where(&mut rosters, |r| {
            let placement = &r.node(&node_id("exit")).unwrap().placement;
            let named = placement.region.as_ref().map(|region| region.as_str());
            named == region && u64::from(placement.weight.get()) == weight
        })
        .await;
        assert!(asked.elapsed() < Duration::from_secs(5));
    }
    for body in [
        json!({}),
        json!({"weight": 0}),
        json!({"weight": 1001}),
        json!({"weight": null}),
        json!({"region": "Not A Region"}),
        json!({"region": ""}),
        json!({"services": ["echo"]}),
    ] {
        let outcome = wire
            .problem(Method::PATCH, path, Some(&bearer), body.to_string())
            .await;
        assert_eq!(outcome, said(400, "malformed-request"), "{body}");
    }
    let nobody = "/v1/nodes/nobody";
    let outcome = wire.problem(Method::PATCH, nobody, Some(&bearer), r#"{"weight":5}"#);
    assert_eq!(outcome.await, said(404, "no-such-node"));
    let changed = on_record(&world).await.into_iter();
    let changed = changed.filter(|e| e.action == Action::Configure && e.outcome == "done");
    assert!(
        changed
            .clone()
            .all(|e| e.subject == "exit" && e.actor == "alice")
    );
    assert_eq!(changed.count(), 3);
}
