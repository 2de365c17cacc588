//! What operators may ask, and what comes of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use hyper::Method;
use serde_json::{Value, json};
use sqlx::Connection as _;
use wavry_credentials::{
    audit::Action,
    identity::Identity,
    token::{Scope, SigningKey, digest},
};
use wavry_proto::{
    control::{Role, Roster},
    token::{Operator, OperatorRole, Registration, Validity},
};

use crate::{
    audit::{database, on_record},
    wire::{self, Said, Wire, claims, heartbeat, sign, unix_time, valid_for},
    world::{Running, World, exits, join, node_id, roster_where, service},
};

fn said(status: u16, word: &str) -> Said {
    (status, word.to_owned())
}

pub(crate) fn operator(world: &World, role: OperatorRole) -> String {
    operator_for(world, role, valid_for(60))
}

pub(crate) fn operator_named(world: &World, name: &str, role: OperatorRole) -> String {
    sign_operator(world, name, role, valid_for(60))
}

fn operator_for(world: &World, role: OperatorRole, validity: Validity) -> String {
    sign_operator(world, "alice", role, validity)
}

fn sign_operator(world: &World, name: &str, role: OperatorRole, validity: Validity) -> String {
    let claims = Operator {
        jti: "op".to_owned(),
        sub: name.to_owned(),
        role,
        validity,
    };
    let scope = Scope {
        cluster: &world.cluster,
        audience: "master",
        binding: &[],
    };
    world.key.sign(&claims, scope)
}

pub(crate) async fn get(wire: &mut Wire, path: &str, bearer: &str) -> Value {
    let (status, _, body) = wire.send(Method::GET, path, Some(bearer), "").await;
    assert_eq!(status, 200, "{path}");
    wire::json(&body)
}

/// A request for each route that the document describes, right in every way but for who asks: the route's
/// path, where that goes in a test, and the body.
const REQUESTS: [(&str, &str, &str, &str); 17] = [
    ("GET", "/v1/nodes", "/v1/nodes", ""),
    ("GET", "/v1/nodes/{node}", "/v1/nodes/exit", ""),
    (
        "PATCH",
        "/v1/nodes/{node}",
        "/v1/nodes/exit",
        r#"{"weight":50}"#,
    ),
    ("GET", "/v1/revocations", "/v1/revocations", ""),
    ("GET", "/v1/services", "/v1/services", ""),
    ("GET", "/v1/services/{service}", "/v1/services/echo", ""),
    (
        "PUT",
        "/v1/services/{service}",
        "/v1/services/made",
        r#"{"access":"public"}"#,
    ),
    ("GET", "/v1/keys", "/v1/keys", ""),
    (
        "POST",
        "/v1/keys/rotate",
        "/v1/keys/rotate",
        r#"{"reason":"request"}"#,
    ),
    (
        "POST",
        "/v1/revocations",
        "/v1/revocations",
        r#"{"subject":"ann"}"#,
    ),
    (
        "POST",
        "/v1/tokens/operator",
        "/v1/tokens/operator",
        r#"{"role":"viewer"}"#,
    ),
    (
        "POST",
        "/v1/tokens/session",
        "/v1/tokens/session",
        r#"{"service":"echo","subject":"ann"}"#,
    ),
    (
        "POST",
        "/v1/tokens/registration",
        "/v1/tokens/registration",
        r#"{"node":"later","role":"gateway"}"#,
    ),
    (
        "POST",
        "/v1/nodes/{node}/rotate",
        "/v1/nodes/exit/rotate",
        "",
    ),
    (
        "POST",
        "/v1/nodes/{node}/leases/revoke",
        "/v1/nodes/exit/leases/revoke",
        "",
    ),
    // Last, as they cannot be done twice.
    ("DELETE", "/v1/services/{service}", "/v1/services/made", ""),
    (
        "POST",
        "/v1/nodes/{node}/revoke",
        "/v1/nodes/exit/revoke",
        "",
    ),
];

const ROLES: [OperatorRole; 3] = [
    OperatorRole::Viewer,
    OperatorRole::Operator,
    OperatorRole::Admin,
];

/// Every operation that the document describes, with the role that it says it needs.
async fn described(wire: &mut Wire) -> BTreeMap<(String, String), OperatorRole> {
    let (status, _, body) = wire.send(Method::GET, "/openapi.json", None, "").await;
    assert_eq!(status, 200);
    let document = wire::json(&body);
    assert!(document["components"]["securitySchemes"]["operator_token"].is_object());
    let mut described = BTreeMap::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let what = format!("{method} {path}");
            let text = operation["description"].as_str().unwrap();
            let says = |role: &OperatorRole| text.ends_with(&format!("Role {}.", role.as_str()));
            let role = ROLES.into_iter().find(says);
            let role = role.unwrap_or_else(|| panic!("{what} does not end with its role"));
            for status in ["401", "429", "503"] {
                assert!(
                    operation["responses"][status].is_object(),
                    "{what} {status}"
                );
            }
            if role > OperatorRole::Viewer {
                assert!(operation["responses"]["403"].is_object(), "{what}");
            }
            let parameters = operation["parameters"].as_array();
            let mut parameters = parameters.into_iter().flatten().map(|p| &p["name"]);
            if method != "get" {
                assert!(parameters.any(|name| name == "Idempotency-Key"), "{what}");
            }
            described.insert((method.to_uppercase(), path.clone()), role);
        }
    }
    described
}

#[tokio::test]
async fn each_route_of_the_document_serves_the_roles_that_reach_so_far_and_nobody_else() {
    let world = World::new();
    let master = world.start().await;
    let mut wire = Wire::open(&world, master.address).await;
    let roles = described(&mut wire).await;
    let known = REQUESTS.map(|(method, path, ..)| (method.to_owned(), path.to_owned()));
    assert_eq!(roles.keys().cloned().collect::<BTreeSet<_>>(), known.into());

    let identity = Identity::generate();
    let token = sign(&world, &claims("1"));
    assert_eq!(wire.register(&identity, &token, "1").await, said(201, ""));
    let session = world.issuer().session(
        &service("echo"),
        "ann".into(),
        None,
        serde_json::Map::new(),
        Duration::from_secs(60),
    );
    let strangers = [
        (None, "token-missing"),
        (Some("nonsense".to_owned()), "token-malformed"),
        (Some(world.signed(&session.unwrap())), "token-not-verified"),
        (Some(sign(&world, &claims("2"))), "token-not-verified"),
        (
            Some(wire.bearer(&world, &identity, &node_id("exit"))),
            "token-unknown-key",
        ),
        (
            Some(operator_for(
                &world,
                OperatorRole::Admin,
                valid_for(13 * 3600),
            )),
            "token-too-lasting",
        ),
        (
            Some(operator_for(
                &world,
                OperatorRole::Admin,
                Validity {
                    iat: unix_time() - 60,
                    nbf: unix_time() - 60,
                    exp: unix_time(),
                },
            )),
            "token-expired",
        ),
    ];
    for (method, route, path, body) in REQUESTS {
        let needed = roles[&(method.to_owned(), route.to_owned())];
        let method: Method = method.parse().unwrap();
        for (bearer, word) in &strangers {
            let outcome = wire
                .problem(method.clone(), path, bearer.as_deref(), body)
                .await;
            assert_eq!(outcome, said(401, word), "{method} {path}");
        }
        for role in ROLES {
            let is_once = path == "/v1/nodes/exit/revoke" || method == Method::DELETE;
            if is_once && role == OperatorRole::Admin {
                continue;
            }
            let bearer = operator(&world, role);
            let outcome = wire
                .problem(method.clone(), path, Some(&bearer), body)
                .await;
            let what = format!("{method} {path} {role:?}");
            match role >= needed {
                true => assert!((200..300).contains(&outcome.0), "{what}: {outcome:?}"),
                false => assert_eq!(outcome, said(403, "role-not-sufficient"), "{what}"),
            }
        }
    }
}

#[tokio::test]
async fn no_operator_speaks_for_a_node_and_what_is_public_needs_no_role() {
    let world = World::new();
    let master = world.start().await;
    let mut wire = Wire::open(&world, master.address).await;
    for role in ROLES {
        let bearer = operator(&world, role);
        for (method, path) in [
            (Method::GET, "/v1/roster"),
            (Method::POST, "/v1/nodes/heartbeat"),
            (Method::POST, "/v1/nodes/rotate"),
            (Method::POST, "/v1/leases"),
        ] {
            for bearer in [Some(&*bearer), None] {
                let (status, _) = wire.problem(method.clone(), path, bearer, "{}").await;
                assert_eq!(status, 401, "{path} {role:?}");
            }
        }
        for bearer in [Some(&*bearer), None] {
            for path in [
                "/.well-known/wavry/keys",
                "/.well-known/wavry/succession",
                "/openapi.json",
            ] {
                assert_eq!(
                    wire.send(Method::GET, path, bearer, "").await.0,
                    200,
                    "{path}"
                );
            }
        }
    }
}

#[tokio::test]
async fn every_list_comes_in_pages_that_have_each_entry_once() {
    let world = World::new();
    let master = world.start().await;
    let mut wire = Wire::open(&world, master.address).await;
    let admin = operator(&world, OperatorRole::Admin);
    for n in 0..3 {
        let mut claims = claims(&n.to_string());
        claims.sub = node_id(&format!("node-{n}"));
        let token = sign(&world, &claims);
        let identity = Identity::generate();
        let registered = wire.register(&identity, &token, &claims.jti).await;
        assert_eq!(registered, said(201, ""));
        let path = format!("/v1/services/a-{n}");
        let made = wire.problem(Method::PUT, &path, Some(&admin), "{}").await;
        assert_eq!(made, said(201, ""));
        let of_service = json!({"subject": "ann", "service": format!("a-{n}")});
        for body in [of_service, json!({"subject": format!("ann-{n}")})] {
            let path = "/v1/revocations";
            let sent = wire.problem(Method::POST, path, Some(&admin), body.to_string());
            assert_eq!(sent.await, said(201, ""));
        }
    }
    let body = r#"{"reason":"request"}"#;
    let rotated = wire.problem(Method::POST, "/v1/keys/rotate", Some(&admin), body);
    assert_eq!(rotated.await, said(201, ""));
    for (path, list, count) in [
        ("/v1/nodes", "nodes", 3),
        ("/v1/services", "services", 4),
        ("/v1/revocations", "revoked", 6),
        ("/v1/keys", "keys", 2),
    ] {
        let whole = get(&mut wire, path, &admin).await;
        assert_eq!(whole[list].as_array().unwrap().len(), count, "{path}");
        assert_eq!(whole["next"], Value::Null);
        for limit in [1, 2, count] {
            let mut all = Vec::new();
            let mut at = format!("{path}?limit={limit}");
            loop {
                let page = get(&mut wire, &at, &admin).await;
                let entries = page[list].as_array().unwrap();
                assert!(entries.len() <= limit);
                all.extend(entries.iter().cloned());
                match page["next"].as_str() {
                    Some(next) => at = format!("{path}?limit={limit}&after={next}"),
                    None => break,
                }
            }
            // What time has passed shows in a node.
            let steady = |list: &[Value]| {
                let mut list = list.to_vec();
                for entry in &mut list {
                    if let Some(seconds) = entry.get_mut("heard_seconds_ago") {
                        *seconds = json!(0);
                    }
                }
                list
            };
            assert_eq!(
                steady(&all),
                steady(whole[list].as_array().unwrap()),
                "{path}"
            );
        }
        for bad in [
            "limit=0",
            "limit=101",
            "limit=x",
            "limit=-1",
            "limit=1&limit=2",
        ] {
            let at = format!("{path}?{bad}");
            let outcome = wire.problem(Method::GET, &at, Some(&admin), "").await;
            assert_eq!(outcome, said(400, "malformed-request"), "{at}");
        }
    }
}

#[tokio::test]
async fn who_asks_too_often_is_told_when_to_come_back_and_others_are_served() {
    let world = World::new();
    let mut config = world.config();
    config.limits.operator_rate = 2;
    let master = world.start_with(config).await;
    let mut wire = Wire::open(&world, master.address).await;
    let of = |subject: &str| operator_named(&world, subject, OperatorRole::Viewer);
    let (hasty, calm) = (of("hasty"), of("calm"));
    let mut ask = async |bearer: &str| {
        let request = hyper::Request::builder()
            .uri("/v1/keys")
            .header("host", "master")
            .header("authorization", format!("Bearer {bearer}"));
        wire.headers(request.body(Default::default()).unwrap())
            .await
    };
    let mut served = 0;
    let refused = loop {
        let (status, headers) = ask(&hasty).await;
        match status {
            200 => served += 1,
            status => break (status, headers),
        }
    };
    assert_eq!(refused.0, 429);
    let wait: u64 = refused.1["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=2).contains(&wait), "{wait}");
    // Some seconds may have passed.
    assert!((20..60).contains(&served), "{served}");
    assert_eq!(ask(&calm).await.0, 200);
    tokio::time::sleep(Duration::from_secs(wait)).await;
    assert_eq!(ask(&hasty).await.0, 200);
    // Who has no good token is counted by address.
    let mut refused = 0;
    for _ in 0..200 {
        refused += usize::from(ask("nothing").await.0 == 429);
    }
    assert!(refused > 50, "{refused}");
}

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

/// The epoch that the node sees now.
async fn epoch_of(wire: &mut Wire, bearer: &str) -> String {
    let (status, tag, _) = wire.send(Method::GET, "/v1/roster", Some(bearer), "").await;
    assert_eq!(status, 200);
    tag.unwrap().trim_matches('"').to_owned()
}

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
