//! The API as HTTP, without sockets.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tower::ServiceExt as _;
use wavry_credentials::bearer::Token;
use wavry_proto::control::EXPORTER_LEN;

use super::*;
use crate::keyvault::{login, world::World};

struct Asked {
    status: StatusCode,
    retry_after: Option<u64>,
    body: Value,
}

async fn ask(world: &World, method: &str, path: &str, token: Option<&Token>, body: Body) -> Asked {
    let channel = Channel::new([0; EXPORTER_LEN], "192.0.2.1:5000".parse().unwrap());
    let mut request = http::Request::builder()
        .method(method)
        .uri(path)
        .extension(Arc::new(channel));
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, token.authorization());
    }
    // As the server has it from whoever says so.
    if let Some(length) = axum::body::HttpBody::size_hint(&body).exact() {
        request = request.header(header::CONTENT_LENGTH, length);
    }
    let router = router(world.vault.clone());
    let response = router.oneshot(request.body(body).unwrap()).await.unwrap();
    let (head, body) = response.into_parts();
    assert_eq!(head.headers[header::CACHE_CONTROL], "no-store");
    let retry_after = head.headers.get(header::RETRY_AFTER);
    let body = body.collect().await.unwrap().to_bytes();
    Asked {
        status: head.status,
        retry_after: retry_after.map(|value| value.to_str().unwrap().parse().unwrap()),
        body: serde_json::from_slice(&body).unwrap_or_default(),
    }
}

#[tokio::test]
async fn a_flood_of_logins_is_told_when_to_come_again_and_renewals_pass() {
    let mut world = World::new().await;
    world.enable("approle").await;
    let limits = login::Limits {
        rate: 1,
        burst: 3,
        ..login::Limits::default()
    };
    Arc::get_mut(&mut world.vault.authorizer)
        .unwrap()
        .limit_logins(limits);
    let made = world.root().token("auth/token/create", json!({})).await;
    let token = made.unwrap().client_token;
    let mut waits = 0;
    for (attempt, path) in ["/v1/auth/approle/login", "/v1/auth"]
        .iter()
        .cycle()
        .take(20)
        .enumerate()
    {
        let login = json!({"role_id": attempt.to_string(), "secret_id": "y"}).to_string();
        let asked = ask(&world, "POST", path, None, login.into()).await;
        match asked.status {
            StatusCode::TOO_MANY_REQUESTS => {
                assert!((1..=60).contains(&asked.retry_after.unwrap()));
                waits += 1;
            }
            status => assert_eq!((status, asked.retry_after), (StatusCode::BAD_REQUEST, None)),
        }
        let path = "/v1/auth/token/renew-self";
        let renewed = ask(&world, "POST", path, Some(&token), Body::empty()).await;
        assert_eq!(renewed.status, StatusCode::OK);
        assert!(renewed.body["auth"]["lease_duration"].as_u64() > Some(0));
    }
    assert!(waits >= 10, "{waits}");
}

#[tokio::test]
async fn who_guesses_too_often_is_told_to_wait_and_another_role_is_not() {
    let world = World::new().await;
    world.enable("approle").await;
    let mut last = None;
    for _ in 0..6 {
        let login = json!({"role_id": "guessed", "secret_id": "y"}).to_string();
        let asked = ask(&world, "POST", "/v1/auth/approle/login", None, login.into()).await;
        last = Some((asked.status, asked.retry_after.is_some()));
    }
    assert_eq!(last, Some((StatusCode::TOO_MANY_REQUESTS, true)));
    let login = json!({"role_id": "another", "secret_id": "y"}).to_string();
    let asked = ask(&world, "POST", "/v1/auth/approle/login", None, login.into()).await;
    assert_eq!(asked.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let world = World::new().await;
    let first: Result<Bytes, Infallible> = Ok("{".into());
    let stalled = futures_util::stream::once(std::future::ready(first));
    let stalled = futures_util::StreamExt::chain(stalled, futures_util::stream::pending());
    let began = tokio::time::Instant::now();
    let body = Body::from_stream(stalled);
    let asked = ask(&world, "POST", "/v1/secret/a", Some(&world.root), body).await;
    assert_eq!(asked.status, StatusCode::REQUEST_TIMEOUT);
    assert!(began.elapsed() >= BODY_TIMEOUT);
}

#[tokio::test]
async fn a_body_is_taken_up_to_its_limit_and_not_beyond() {
    let world = World::new().await;
    let with = |length: usize| {
        let rest = json!({"value": ""}).to_string().len();
        json!({"value": "x".repeat(length - rest)}).to_string()
    };
    for (body, status) in [
        (with(MAX_BODY), StatusCode::OK),
        (with(MAX_BODY + 1), StatusCode::PAYLOAD_TOO_LARGE),
        (
            format!("{{\"value\":{}1{}}}", "[".repeat(63), "]".repeat(63)),
            StatusCode::OK,
        ),
        (
            format!("{{\"value\":{}1{}}}", "[".repeat(64), "]".repeat(64)),
            StatusCode::BAD_REQUEST,
        ),
    ] {
        let length = body.len();
        let asked = ask(
            &world,
            "POST",
            "/v1/secret/a",
            Some(&world.root),
            body.into(),
        )
        .await;
        assert_eq!(asked.status, status, "{length}: {}", asked.body);
    }
}

#[tokio::test]
async fn a_message_as_long_as_the_longest_roster_is_signed_and_only_who_is_known_may_send_it() {
    let world = World::new().await;
    let root = world.root();
    root.post("sys/mounts/transit", json!({"type": "transit"}))
        .await
        .unwrap();
    root.post("transit/keys/k", json!({"type": "ed25519"}))
        .await
        .unwrap();
    let with = |length: usize| {
        let rest = json!({"input": ""}).to_string().len();
        json!({"input": "A".repeat((length - rest) / 4 * 4)}).to_string()
    };
    let stranger = Token::new("hvs.nobody".to_owned());
    let (longest, too_long) = (with(MAX_MESSAGE_BODY), with(MAX_MESSAGE_BODY + 8));
    let sign = "/v1/transit/sign/k";
    for (path, token, body, status) in [
        (sign, Some(&world.root), &longest, StatusCode::OK),
        (
            sign,
            Some(&world.root),
            &too_long,
            StatusCode::PAYLOAD_TOO_LARGE,
        ),
        (
            sign,
            Some(&stranger),
            &longest,
            StatusCode::PAYLOAD_TOO_LARGE,
        ),
        (sign, None, &longest, StatusCode::PAYLOAD_TOO_LARGE),
        (
            "/v1/transit/verify/k",
            Some(&world.root),
            &longest,
            StatusCode::PAYLOAD_TOO_LARGE,
        ),
        (
            "/v1/secret/data/sign",
            Some(&world.root),
            &longest,
            StatusCode::PAYLOAD_TOO_LARGE,
        ),
    ] {
        let asked = ask(&world, "POST", path, token, body.clone().into()).await;
        assert_eq!(asked.status, status, "{path} {}", asked.body);
    }
    assert_eq!(world.vault.long_bodies.available_permits(), LONG_BODIES);
}
