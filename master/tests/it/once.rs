//! Requests with an idempotency key.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request};
use serde_json::{Value, json};
use sqlx::Connection as _;
use wavry_credentials::{audit::Action, identity::Identity};
use wavry_master::{Config, database::Location};
use wavry_proto::token::OperatorRole;

use crate::{
    audit::{database, on_record},
    operate::{get, operator, operator_named},
    postgres::Server,
    wire::{Wire, claims, sign},
    world::World,
};

/// Status, and the body; of a problem its word.
pub(crate) type Said = (u16, Value);

/// Sends a request that bears `key`, as it is written in the header.
pub(crate) async fn ask(
    wire: &mut Wire,
    bearer: &str,
    key: &str,
    (method, path, body): Ask<'_>,
) -> Said {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "master")
        .header("authorization", format!("Bearer {bearer}"))
        .header("idempotency-key", key);
    let body = Bytes::copy_from_slice(body.as_bytes());
    let answer = wire.answer(request.body(Full::new(body)).unwrap()).await;
    let status = answer.status().as_u16();
    let body = answer.collect().await.unwrap().to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    match body["type"].as_str().and_then(|t| t.rsplit_once(':')) {
        Some((_, word)) => (status, json!(word)),
        None => (status, body),
    }
}

pub(crate) type Ask<'a> = (Method, &'a str, &'a str);

const ROTATE: Ask<'_> = (Method::POST, "/v1/keys/rotate", r#"{"reason":"request"}"#);

#[tokio::test]
async fn whatever_changes_something_does_so_once_for_a_key_and_answers_the_same_again() {
    let world = World::new();
    let master = world.start().await;
    let mut wire = Wire::open(&world, master.address).await;
    let token = sign(&world, &claims("1"));
    assert_eq!(
        wire.register(&Identity::generate(), &token, "1").await.0,
        201
    );
    let admin = operator(&world, OperatorRole::Admin);
    // Without a key, each of them is refused the second time or says something else.
    let asks: [Ask<'_>; 7] = [
        (Method::PUT, "/v1/services/made", r#"{"access":"public"}"#),
        (Method::DELETE, "/v1/services/made", ""),
        (Method::POST, "/v1/revocations", r#"{"subject":"ann"}"#),
        ROTATE,
        (Method::POST, "/v1/nodes/exit/rotate", ""),
        (Method::PATCH, "/v1/nodes/exit", r#"{"weight":50}"#),
        (Method::POST, "/v1/nodes/exit/revoke", ""),
    ];
    for (n, request) in asks.into_iter().enumerate() {
        let key = format!("\"key {n}\"");
        let mut first = ask(&mut wire, &admin, &key, request.clone()).await;
        assert!((200..300).contains(&first.0), "{request:?}: {first:?}");
        let mut again = ask(&mut wire, &admin, &key, request.clone()).await;
        // What time has passed shows in a node.
        for said in [&mut first, &mut again] {
            if let Some(seconds) = said.1.get_mut("heard_seconds_ago") {
                *seconds = json!(0);
            }
        }
        assert_eq!(first, again, "{request:?}");
        let (method, path, body) = request;
        let other = (method, path, &*format!("{body} "));
        let reused = ask(&mut wire, &admin, &key, other).await;
        assert_eq!(reused, (422, json!("idempotency-key-reused")), "{path}");
    }
    let keys = get(&mut wire, "/v1/keys", &admin).await;
    assert_eq!(keys["keys"].as_array().unwrap().len(), 2);
    let events = on_record(&world).await;
    let outcomes = |action, outcome| {
        let all = events.iter();
        all.filter(|e| e.action == action && e.outcome == outcome)
            .count()
    };
    for (action, count) in [
        (Action::Revoke, 2),
        (Action::Rotate, 2),
        (Action::Configure, 3),
    ] {
        assert_eq!(outcomes(action, "done"), count, "{action:?}");
        assert_eq!(outcomes(action, "repeated"), count, "{action:?}");
    }
}

#[tokio::test]
async fn a_key_is_its_operators_own_and_is_kept_over_a_restart() {
    let world = World::new();
    let master = world.start().await;
    let mut wire = Wire::open(&world, master.address).await;
    let admin = operator(&world, OperatorRole::Admin);
    let other = operator_named(&world, "bob", OperatorRole::Admin);
    let (status, made) = ask(&mut wire, &admin, "\"k\"", ROTATE).await;
    assert_eq!(status, 201);
    let refused = ask(&mut wire, &other, "\"k\"", ROTATE).await;
    assert_eq!(refused, (409, json!("rotation-under-way")));
    master.stop().await;
    let master = world.start().await;
    let mut wire = Wire::open(&world, master.address).await;
    assert_eq!(ask(&mut wire, &admin, "\"k\"", ROTATE).await, (201, made));
    // Who may not ask for it is not told what came of it.
    let viewer = operator(&world, OperatorRole::Viewer);
    let refused = ask(&mut wire, &viewer, "\"k\"", ROTATE).await;
    assert_eq!(refused, (403, json!("role-not-sufficient")));
    for malformed in ["k", "\"\"", "\"a\";x", &format!("\"{}\"", "k".repeat(129))] {
        let refused = ask(&mut wire, &admin, malformed, ROTATE).await;
        assert_eq!(refused, (400, json!("malformed-request")), "{malformed}");
    }
}

#[tokio::test]
async fn while_a_request_is_under_way_another_with_its_key_is_refused_and_both_may_be_asked_again()
{
    let world = World::new();
    let master = world.start().await;
    let mut first = Wire::open(&world, master.address).await;
    let mut second = Wire::open(&world, master.address).await;
    let admin = operator(&world, OperatorRole::Admin);
    let mut other = database(&world).await;
    let blocked = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let (a, b) = tokio::join!(
        ask(&mut first, &admin, "\"k\"", ROTATE),
        ask(&mut second, &admin, "\"k\"", ROTATE),
    );
    // One of them came first, and could not be put on record in time.
    let mut both = [a, b];
    both.sort_by_key(|(status, _)| *status);
    let under_way = (409, json!("idempotency-key-under-way"));
    assert_eq!(both, [under_way, (503, json!("not-audited"))]);
    drop(blocked);
    other.close().await.unwrap();
    let (status, made) = ask(&mut second, &admin, "\"k\"", ROTATE).await;
    assert_eq!(status, 201);
    assert_eq!(ask(&mut first, &admin, "\"k\"", ROTATE).await, (201, made));
    let keys = get(&mut first, "/v1/keys", &admin).await;
    assert_eq!(keys["keys"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn what_one_of_several_masters_did_for_a_key_none_does_again() {
    let world = World::new();
    let server = Server::start(false);
    let location: Location = server.database("once").await.parse().unwrap();
    let config = Config {
        database: location,
        ..world.config()
    };
    let one = world.start_with(config.clone()).await;
    let other = world.start_with(config).await;
    let admin = operator(&world, OperatorRole::Admin);
    // At both at once, many times: each key has one outcome.
    for n in 0..10 {
        let key = format!("\"{n}\"");
        let body = format!(r#"{{"subject":"ann-{n}"}}"#);
        let revoke: Ask<'_> = (Method::POST, "/v1/revocations", &body);
        let (mut a, mut b) = (
            Wire::open(&world, one.address).await,
            Wire::open(&world, other.address).await,
        );
        let (a, b) = tokio::join!(
            ask(&mut a, &admin, &key, revoke.clone()),
            ask(&mut b, &admin, &key, revoke),
        );
        assert_eq!(a.0, 201);
        assert_eq!(a, b);
    }
    let mut wire = Wire::open(&world, one.address).await;
    let (status, made) = ask(&mut wire, &admin, "\"k\"", ROTATE).await;
    assert_eq!(status, 201);
    one.stop().await;
    let mut wire = Wire::open(&world, other.address).await;
    assert_eq!(ask(&mut wire, &admin, "\"k\"", ROTATE).await, (201, made));
    let keys = get(&mut wire, "/v1/keys", &admin).await;
    assert_eq!(keys["keys"].as_array().unwrap().len(), 2);
}
