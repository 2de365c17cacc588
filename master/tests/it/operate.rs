//! What operators may ask, and what comes of it.

mod nodes;
mod revocations;
mod services;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use hyper::Method;
use serde_json::{Value, json};
use wavry_credentials::{identity::Identity, token::Scope};
use wavry_master::authority::RawAuthority;
use wavry_proto::token::{Operator, OperatorRole, Validity};

use crate::{
    wire::{self, Said, Wire, claims, sign, unix_time, valid_for},
    world::{World, node_id, service},
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
const REQUESTS: [(&str, &str, &str, &str); 19] = [
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
    ("GET", "/v1/authorities", "/v1/authorities", ""),
    (
        "POST",
        "/v1/authorities/rotate",
        "/v1/authorities/rotate",
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
    let config = wavry_master::Config {
        authority: Some(RawAuthority::default().try_into().unwrap()),
        ..world.config()
    };
    let master = world.start_with(config).await;
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

/// The epoch that the node sees now.
async fn epoch_of(wire: &mut Wire, bearer: &str) -> String {
    let (status, tag, _) = wire.send(Method::GET, "/v1/roster", Some(bearer), "").await;
    assert_eq!(status, 200);
    tag.unwrap().trim_matches('"').to_owned()
}
