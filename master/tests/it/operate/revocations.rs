//! Revocations of subjects.

use std::net::SocketAddr;

use hyper::Method;
use serde_json::json;
use sqlx::Connection as _;
use wavry_credentials::token::digest;
use wavry_proto::{control::Role, token::OperatorRole};

use super::{get, operator, said};
use crate::{
    audit::database,
    wire::{self, Wire, unix_time},
    world::{Running, World, join, roster_where, service},
};

#[tokio::test]
async fn a_revoked_subject_is_in_the_roster_at_once_as_a_digest_and_stays_over_a_restart() {
    let world = World::new();
    let master = world.start().await;
    let gateway = join(world.node(&master, "gw", Role::Gateway, &[])).await;
    let mut rosters = gateway.roster();
    let mut wire = Wire::open(&world, master.address).await;
    let bearer = operator(&world, OperatorRole::Operator);
    let now = unix_time();
    for body in [
        json!({"subject": "ann"}),
        json!({"subject": "bob'; DROP TABLE node --", "service": "echo"}),
    ] {
        let sent = wire.send(
            Method::POST,
            "/v1/revocations",
            Some(&bearer),
            body.to_string(),
        );
        let (status, _, answer) = sent.await;
        assert_eq!(status, 201);
        let through = wire::json(&answer)["through"].as_u64().unwrap();
        assert!((now + 30..now + 60).contains(&through));
    }
    let roster = roster_where(&mut rosters, |r| r.revoked.len() == 2).await;
    assert_eq!(roster.revoked[0].subject, digest("ann"));
    assert_eq!(roster.revoked[0].service, None);
    assert_eq!(
        roster.revoked[1].subject,
        digest("bob'; DROP TABLE node --")
    );
    assert_eq!(roster.revoked[1].service, Some(service("echo")));

    for body in [
        json!({}),
        json!({"subject": ""}),
        json!({"subject": "a".repeat(9000)}),
        json!({"subject": "ann", "service": "Not A Name"}),
        json!({"subject": "ann", "more": 1}),
    ] {
        let body = body.to_string();
        let outcome = wire
            .problem(Method::POST, "/v1/revocations", Some(&bearer), body)
            .await;
        assert_eq!(outcome, said(400, "malformed-request"));
    }
    drop(wire);
    master.stop().await;

    let master = world.start().await;
    let mut wire = Wire::open(&world, master.address).await;
    let listed = get(&mut wire, "/v1/revocations", &bearer).await;
    assert_eq!(listed["revoked"].as_array().unwrap().len(), 2);
    assert_eq!(
        listed["revoked"][0]["subject_digest"],
        digest("ann").to_string()
    );
}

#[tokio::test]
async fn a_revocation_that_cannot_be_put_on_record_is_not_done() {
    let world = World::new();
    let master: Running = world.start().await;
    let relay = join(world.node(&master, "exit", Role::Relay, &["echo"])).await;
    relay.announce(vec![SocketAddr::from(([127, 0, 0, 1], 4444))]);
    let mut wire = Wire::open(&world, master.address).await;
    let bearer = operator(&world, OperatorRole::Operator);
    let mut other = database(&world).await;
    let blocked = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let revoke = "/v1/nodes/exit/revoke";
    let outcome = wire.problem(Method::POST, revoke, Some(&bearer), "").await;
    assert_eq!(outcome, said(503, "not-audited"));
    blocked.rollback().await.unwrap();
    assert_eq!(
        get(&mut wire, "/v1/nodes/exit", &bearer).await["id"],
        "exit"
    );
}
