//! Services, made, changed and taken away.

use hyper::Method;
use serde_json::json;
use wavry_credentials::{
    audit::Action,
    identity::Identity,
    token::{Scope, SigningKey},
};
use wavry_proto::{
    control::{Role, Roster},
    token::OperatorRole,
};

use super::{epoch_of, get, operator, said};
use crate::{
    audit::on_record,
    wire::{self, Wire, claims, sign, unix_time},
    world::{World, join, node_id, roster_where},
};

#[tokio::test]
async fn a_service_is_made_changed_and_taken_away_and_nodes_are_told_at_once() {
    let world = World::new();
    let master = world.start().await;
    let gateway = join(world.node(&master, "gw", Role::Gateway, &[])).await;
    let mut rosters = gateway.roster();
    let mut wire = Wire::open(&world, master.address).await;
    let bearer = operator(&world, OperatorRole::Operator);
    let key = SigningKey::generate().public_paserk();
    let path = "/v1/services/chat";
    let spec = json!({
        "hosts": ["Chat.Example"],
        "access": "token",
        "allowed_origins": ["https://app.example:443"],
        "max_sessions": 7,
        "refuse_with": "close",
        "keys": [key],
    });
    for status in [201, 200] {
        let sent = wire.send(Method::PUT, path, Some(&bearer), spec.to_string());
        let (answered, _, body) = sent.await;
        assert_eq!(answered, status);
        assert_eq!(wire::json(&body)["spec"]["hosts"], json!(["chat.example"]));
    }
    let roster = roster_where(&mut rosters, |r| r.service("chat").is_some()).await;
    let chat = roster.service("chat").unwrap();
    assert_eq!(chat.allowed_origins, ["https://app.example"]);
    assert_eq!((chat.max_sessions, &*chat.keys), (Some(7), &[key][..]));
    let shown = get(&mut wire, path, &bearer).await;
    let listed = get(&mut wire, "/v1/services", &bearer).await;
    assert_eq!(listed["services"][0], shown);
    assert_eq!(listed["services"].as_array().unwrap().len(), 2);

    // It outlives the process, and the configuration is written beside it.
    drop(wire);
    let address = master.stop().await;
    let mut config = world.config();
    config.listen = address;
    let _master = world.start_with(config).await;
    let mut wire = Wire::open(&world, address).await;
    assert_eq!(get(&mut wire, path, &bearer).await, shown);
    let outcome = wire.problem(Method::PUT, path, Some(&bearer), "{}").await;
    assert_eq!(outcome, said(200, ""));
    roster_where(&mut rosters, |r| {
        r.service("chat").is_some_and(|s| s.hosts.is_empty())
    })
    .await;
    let outcome = wire.problem(Method::DELETE, path, Some(&bearer), "").await;
    assert_eq!(outcome, said(204, ""));
    roster_where(&mut rosters, |r| r.service("chat").is_none()).await;
    let outcome = wire.problem(Method::DELETE, path, Some(&bearer), "").await;
    assert_eq!(outcome, said(404, "no-such-service"));
    let events = on_record(&world).await;
    let told = events
        .iter()
        .filter(|event| event.action == Action::Configure);
    assert!(
        told.clone()
            .all(|event| (&*event.actor, &*event.subject) == ("alice", "chat"))
    );
    assert_eq!(told.count(), 4);
}

#[tokio::test]
async fn a_service_that_cannot_be_is_refused_by_its_reason() {
    let world = World::new();
    let master = world.start().await;
    let mut wire = Wire::open(&world, master.address).await;
    let bearer = operator(&world, OperatorRole::Operator);
    let first = json!({"hosts": ["a.example"]}).to_string();
    let outcome = wire
        .problem(Method::PUT, "/v1/services/a", Some(&bearer), first)
        .await;
    assert_eq!(outcome, said(201, ""));
    for (path, body, status, word) in [
        (
            "/v1/services/b",
            json!({"hosts": ["A.example"]}),
            409,
            "host-bound",
        ),
        ("/v1/services/echo", json!({}), 409, "service-configured"),
        (
            "/v1/services/Not%20A%20Name",
            json!({}),
            400,
            "malformed-request",
        ),
        ("/v1/services/%ff", json!({}), 404, "no-such-service"),
        ("/v1/services/x'--", json!({}), 400, "malformed-request"),
        (
            "/v1/services/b",
            json!({"hosts": ["a:1"]}),
            400,
            "malformed-request",
        ),
        (
            "/v1/services/b",
            json!({"hosts": ["b", "B"]}),
            400,
            "malformed-request",
        ),
        (
            "/v1/services/b",
            json!({"access": "all"}),
            400,
            "malformed-request",
        ),
        (
            "/v1/services/b",
            json!({"refuse_with": "silence"}),
            400,
            "malformed-request",
        ),
        (
            "/v1/services/b",
            json!({"allowed_origins": ["null"]}),
            400,
            "malformed-request",
        ),
        (
            "/v1/services/b",
            json!({"max_sessions": 0}),
            400,
            "malformed-request",
        ),
        (
            "/v1/services/b",
            json!({"max_sessions": -1}),
            400,
            "malformed-request",
        ),
        (
            "/v1/services/b",
            json!({"keys": ["k4.secret.x"]}),
            400,
            "malformed-request",
        ),
        (
            "/v1/services/b",
            json!({"more": 1}),
            400,
            "malformed-request",
        ),
        ("/v1/services/b", json!([]), 400, "malformed-request"),
    ] {
        let sent = wire.problem(Method::PUT, path, Some(&bearer), body.to_string());
        assert_eq!(sent.await, said(status, word), "{path} {body}");
    }
    let outcome = wire
        .problem(Method::DELETE, "/v1/services/echo", Some(&bearer), "")
        .await;
    assert_eq!(outcome, said(409, "service-configured"));
    assert_eq!(
        get(&mut wire, "/v1/services", &bearer).await["services"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    drop(wire);
    master.stop().await;

    // A service of the configuration does not take another's host either.
    let mut config = world.config();
    config.services[0].hosts = vec!["a.example".to_owned()];
    let refused = wavry_master::Master::start(config).await.err();
    let text = format!("{refused:?}");
    assert!(
        matches!(refused, Some(wavry_master::StartError::Service(_))),
        "{text}"
    );
}

#[tokio::test]
async fn of_a_burst_of_changes_nodes_get_newer_and_newer_rosters_and_then_all_of_it() {
    let world = World::new();
    let master = world.start().await;
    let mut wire = Wire::open(&world, master.address).await;
    let identity = Identity::generate();
    let token = sign(&world, &claims("1"));
    assert_eq!(wire.register(&identity, &token, "1").await, said(201, ""));
    let admin = operator(&world, OperatorRole::Admin);
    let mut watching = Wire::open(&world, master.address).await;
    let bearer = watching.bearer(&world, &identity, &node_id("exit"));
    let keys = world.key.key_set();
    let cluster = world.cluster.clone();
    let first = epoch_of(&mut watching, &bearer).await;
    let watched = tokio::spawn(async move {
        let (mut after, mut rosters) = (first, 0);
        loop {
            let path = format!("/v1/roster?after={after}");
            let (status, tag, body) = watching.send(Method::GET, &path, Some(&bearer), "").await;
            assert_eq!(status, 200);
            let before = after.parse::<u64>().unwrap();
            after = tag.unwrap().trim_matches('"').to_owned();
            assert!(after.parse::<u64>().unwrap() > before);
            rosters += 1;
            let scope = Scope {
                cluster: &cluster,
                audience: "nodes",
                binding: &[],
            };
            let text = std::str::from_utf8(&body).unwrap();
            let roster: Roster = keys.verify(text, scope, unix_time()).unwrap();
            assert_eq!(roster.epoch.to_string(), after);
            if roster.service("burst-99").is_some() {
                return (rosters, roster.services.len());
            }
        }
    });
    for n in 0..100 {
        let path = format!("/v1/services/burst-{n}");
        let made = wire.problem(Method::PUT, &path, Some(&admin), "{}").await;
        assert_eq!(made, said(201, ""));
    }
    let (rosters, services) = watched.await.unwrap();
    assert_eq!(services, 101);
    assert!((1..=100).contains(&rosters), "{rosters} rosters");
}
