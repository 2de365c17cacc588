//! Tokens that operators have the master sign.

use std::fs;

use hyper::Method;
use serde_json::{Value, json};
use wavry_credentials::{
    audit::Action,
    identity::Identity,
    token::{KeySet, Scope},
};
use wavry_proto::token::{Operator, OperatorRole, Session};

use crate::{
    audit::on_record,
    once::ask,
    operate::{get, operator, operator_named},
    wire::{self, Wire, unix_time},
    world::World,
};

/// Status, and the answer, or the word of the problem.
async fn issue(wire: &mut Wire, bearer: &str, kind: &str, request: &Value) -> (u16, Value) {
    let path = format!("/v1/tokens/{kind}");
    let body = request.to_string();
    let sent = wire.send(Method::POST, &path, Some(bearer), body).await;
    let (status, body) = (sent.0.as_u16(), wire::json(&sent.2));
    match body["type"].as_str().and_then(|t| t.rsplit_once(':')) {
        Some((_, word)) => (status, json!(word)),
        None => (status, body),
    }
}

fn scope<'a>(world: &'a World, audience: &'a str) -> Scope<'a> {
    Scope {
        cluster: &world.cluster,
        audience,
        binding: &[],
    }
}

fn keys(world: &World) -> KeySet {
    world.key.key_set()
}

#[tokio::test]
async fn nobody_gets_an_operators_token_above_their_own_role_or_beyond_their_own_time() {
    use OperatorRole::{Admin, Operator as Op, Viewer};
    let world = World::new();
    let master = world.start().await;
    let mut wire = Wire::open(&world, master.address).await;
    let insufficient = (403, json!("role-not-sufficient"));
    for asks in [Viewer, Op, Admin] {
        let bearer = operator_named(&world, "ann", asks);
        for role in [Viewer, Op, Admin] {
            for subject in [None, Some("ann"), Some("bob")] {
                let request = json!({"role": role.as_str(), "subject": subject});
                let said = issue(&mut wire, &bearer, "operator", &request).await;
                let may = role <= asks && (subject != Some("bob") || asks == Admin);
                let what = format!("{asks:?} for {subject:?} of {role:?}");
                if !may {
                    assert_eq!(said, insufficient, "{what}");
                    continue;
                }
                assert_eq!(said.0, 201, "{what}: {}", said.1);
                let token = said.1["token"].as_str().unwrap();
                let claims: Operator = keys(&world)
                    .verify(token, scope(&world, "master"), unix_time())
                    .unwrap();
                assert_eq!(claims.role, role, "{what}");
                assert_eq!(claims.sub, subject.unwrap_or("ann"), "{what}");
                assert_eq!(said.1["id"], json!(claims.jti));
                // The one that asks holds for a minute.
                assert!(claims.validity.exp <= unix_time() + 60, "{what}");
                assert_eq!(said.1["expires_at"], json!(claims.validity.exp));
                // It is good, and gets nothing that holds for longer either.
                get(&mut wire, "/v1/nodes", token).await;
                let request = json!({"role": "viewer", "ttl_seconds": 43_200});
                let (status, next) = issue(&mut wire, token, "operator", &request).await;
                assert_eq!(status, 201);
                assert!(next["expires_at"].as_u64().unwrap() <= claims.validity.exp);
            }
        }
    }
    let admin = operator(&world, Admin);
    for bad in [
        json!({"role": "root"}),
        json!({"role": "viewer", "ttl_seconds": 0}),
        json!({"role": "viewer", "ttl_seconds": 43_201}),
        json!({"role": "viewer", "subject": ""}),
        json!({"role": "viewer", "subject": "a".repeat(6_000)}),
        json!({"role": "viewer", "more": 1}),
    ] {
        let said = issue(&mut wire, &admin, "operator", &bad).await;
        assert_eq!(said, (400, json!("malformed-request")), "{bad}");
    }
}

#[tokio::test]
async fn an_operator_gets_tokens_for_clients_of_services_that_are_there() {
    let world = World::new();
    let master = world.start().await;
    let mut wire = Wire::open(&world, master.address).await;
    let bearer = operator(&world, OperatorRole::Operator);
    let claims = json!({"plan": "gold", "list": [1, null, "\u{0}'; DROP TABLE node --"]});
    let subject = "bob'; DROP TABLE node --\u{0}";
    let request = json!({
        "service": "echo", "subject": subject, "session": "tab", "claims": claims, "ttl_seconds": 600,
    });
    let (status, issued) = issue(&mut wire, &bearer, "session", &request).await;
    assert_eq!(status, 201, "{issued}");
    let token = issued["token"].as_str().unwrap();
    let verified: Session = keys(&world)
        .verify(token, scope(&world, "echo"), unix_time())
        .unwrap();
    assert_eq!(verified.sub, subject);
    assert_eq!(verified.sid.as_deref(), Some("tab"));
    assert_eq!(Value::Object(verified.claims), claims);
    assert!((590..=600).contains(&(verified.validity.exp - unix_time())));

    for service in ["none", "", "A'--", "\u{0}"] {
        let request = json!({"service": service, "subject": "ann"});
        let said = issue(&mut wire, &bearer, "session", &request).await;
        assert_eq!(said, (404, json!("no-such-service")), "{service:?}");
    }
    for (name, value) in [
        ("ttl_seconds", json!(604_801)),
        ("subject", json!("")),
        ("claims", json!({"a": "b".repeat(6_000)})),
        ("claims", json!([])),
    ] {
        let mut request = json!({"service": "echo", "subject": "ann"});
        request[name] = value;
        let said = issue(&mut wire, &bearer, "session", &request).await;
        assert_eq!(said, (400, json!("malformed-request")), "{name}");
    }
}

#[tokio::test]
async fn an_admin_gets_a_token_with_which_a_node_registers_once() {
    let world = World::new();
    let master = world.start().await;
    let mut wire = Wire::open(&world, master.address).await;
    let admin = operator(&world, OperatorRole::Admin);
    let request = json!({"node": "exit", "role": "relay", "services": ["echo"]});
    let (status, issued) = issue(&mut wire, &admin, "registration", &request).await;
    assert_eq!(status, 201, "{issued}");
    let (token, id) = (
        issued["token"].as_str().unwrap(),
        issued["id"].as_str().unwrap(),
    );
    let registered = wire.register(&Identity::generate(), token, id).await;
    assert_eq!(registered, (201, String::new()));
    let again = wire.register(&Identity::generate(), token, id).await;
    assert_eq!(again, (409, "token-used".to_owned()));
    for bad in [
        json!({"node": "A", "role": "relay"}),
        json!({"node": "a", "role": "master"}),
        json!({"node": "a", "role": "relay", "services": ["A'--"]}),
        json!({"node": "a", "role": "relay", "region": "A'--"}),
        json!({"node": "a", "role": "relay", "weight": 1001}),
    ] {
        let said = issue(&mut wire, &admin, "registration", &bad).await;
        assert_eq!(said, (400, json!("malformed-request")), "{bad}");
    }
}

#[tokio::test]
async fn a_token_that_is_asked_for_again_is_the_same_and_is_nowhere_in_the_database() {
    let world = World::new();
    let master = world.start().await;
    let mut wire = Wire::open(&world, master.address).await;
    let admin = operator(&world, OperatorRole::Admin);
    let body = r#"{"node":"exit","role":"relay"}"#;
    let request = (Method::POST, "/v1/tokens/registration", body);
    let first = ask(&mut wire, &admin, "\"k\"", request.clone()).await;
    assert_eq!(first.0, 201);
    master.stop().await;
    let master = world.start().await;
    let mut wire = Wire::open(&world, master.address).await;
    assert_eq!(ask(&mut wire, &admin, "\"k\"", request).await, first);
    master.stop().await;

    let token = first.1["token"].as_str().unwrap();
    // The end of the payload's part has the signature in it.
    let signature = &token[token.rfind('.').unwrap() - 40..token.rfind('.').unwrap()];
    for entry in fs::read_dir(world.path("")).unwrap() {
        let file = fs::read(entry.unwrap().path()).unwrap_or_default();
        let held = file
            .windows(40)
            .any(|window| window == signature.as_bytes());
        assert!(!held, "the token is kept");
    }
    let events = on_record(&world).await;
    let issued = events.iter().filter(|e| e.action == Action::Issue);
    let issued: Vec<_> = issued
        .map(|e| (&*e.outcome, &*e.subject, e.secret.clone(), e.token.clone()))
        .collect();
    let name = world
        .audit_key()
        .identifier(first.1["id"].as_str().unwrap());
    let asked = Some(world.audit_key().identifier("op"));
    let line = |outcome| (outcome, "exit", Some(name.clone()), asked.clone());
    assert_eq!(issued, [line("done"), line("repeated")]);
}
