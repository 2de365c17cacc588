use bytes::Bytes;
use wavry_proto::session::{Close, close_code};
use wavry_transport::webtransport::plain::Response;

use super::{close_code as code_of, plain::ask, *};

const PATH: &str = "/.well-known/wavry/session/refresh";

/// Posts a token.
fn refresh(world: &World, service: &str, token: &str, more: &[Header]) -> Response {
    let mut headers = vec![header("authorization", &format!("Bearer {token}"))];
    headers.extend_from_slice(more);
    ask(world, "POST", &format!("{PATH}?service={service}"), headers)
}

fn problem(response: &Response) -> String {
    let problem: serde_json::Value = serde_json::from_slice(&response.content).unwrap();
    assert_eq!(problem["status"], response.status);
    problem["type"].as_str().unwrap().to_owned()
}

/// A token for session `sid` of ana at `closed`.
fn token(world: &World, sid: &str, from: i64, until: i64) -> String {
    let key = &world.signing_key;
    world.token_of(key, "closed", ("ana", Some(sid)), from, until)
}

fn value<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    let found = response.headers.iter().find(|header| header.name == name)?;
    Some(&found.value)
}

#[tokio::test]
async fn a_newer_token_lets_a_session_outlive_the_one_it_was_opened_with() {
    let world = World::with(|raw| raw.expiry_notice = Duration::ZERO);
    let open = |sid| to(&format!("/closed?token={}", token(&world, sid, -60, 3)));
    let (kept, kept_exit) = world.live(open("kept")).await;
    let (left, _left_exit) = world.live(open("left")).await;
    let answer = refresh(&world, "closed", &token(&world, "kept", -30, 60), &[]);
    assert_eq!((answer.status, answer.content.len()), (204, 0));
    // The same again, as one asks who did not get the answer.
    let again = refresh(&world, "closed", &token(&world, "kept", -30, 60), &[]);
    assert_eq!(again.status, 204);
    // The other session's end shows that the first token's has come.
    assert_eq!(code_of(&left).await, close_code::TOKEN_EXPIRED);
    kept.send_datagram(Bytes::from_static(b"still there"))
        .unwrap();
    let datagram = soon(kept_exit.recv_datagram()).await.unwrap();
    assert_eq!(datagram, "still there");
}

#[tokio::test]
async fn an_extended_session_ends_with_its_newer_token_and_cannot_be_had_back() {
    let world = World::new();
    let opened = token(&world, "tab", -60, 3);
    let (client, _exit) = world.live(to(&format!("/closed?token={opened}"))).await;
    let newer = |until| refresh(&world, "closed", &token(&world, "tab", -30, until), &[]);
    assert_eq!(newer(4).status, 204);
    assert_eq!(code_of(&client).await, close_code::TOKEN_EXPIRED);
    assert_eq!(newer(60).status, 404);
}

#[tokio::test]
async fn a_session_that_was_closed_is_no_longer_known() {
    let world = World::new();
    let opened = token(&world, "tab", -60, 60);
    let (client, exit) = world.live(to(&format!("/closed?token={opened}"))).await;
    let newer = token(&world, "tab", -30, 90);
    assert_eq!(refresh(&world, "closed", &newer, &[]).status, 204);
    client.close(Default::default());
    soon(exit.closed()).await;
    soon(async {
        while refresh(&world, "closed", &newer, &[]).status != 404 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_token_that_extends_nothing_says_why_and_changes_nothing() {
    let world = World::new();
    let opened = token(&world, "tab", -60, 4);
    let (client, _exit) = world.live(to(&format!("/closed?token={opened}"))).await;
    let key = &world.signing_key;
    let of = |who, from, until| world.token_of(key, "closed", who, from, until);
    let stranger = SigningKey::generate();
    for (what, service, token, status, word) in [
        (
            "expired",
            "closed",
            token(&world, "tab", -600, -1),
            401,
            "token-expired",
        ),
        (
            "not yet valid",
            "closed",
            token(&world, "tab", 600, 900),
            401,
            "token-invalid",
        ),
        (
            "for another service",
            "closed",
            world.token_of(key, "told", ("ana", Some("tab")), -30, 60),
            401,
            "token-invalid",
        ),
        (
            "at another service",
            "told",
            world.token_of(key, "told", ("ana", Some("tab")), -30, 60),
            404,
            "unknown-session",
        ),
        (
            "by another key",
            "closed",
            world.token_of(&stranger, "closed", ("ana", Some("tab")), -30, 60),
            401,
            "token-invalid",
        ),
        (
            "for no session",
            "closed",
            of(("ana", None), -30, 60),
            400,
            "no-session",
        ),
        (
            "for another session",
            "closed",
            of(("ana", Some("tab 2")), -30, 60),
            404,
            "unknown-session",
        ),
        (
            "of another subject",
            "closed",
            of(("bob", Some("tab")), -30, 60),
            403,
            "other-subject",
        ),
        (
            "issued earlier",
            "closed",
            token(&world, "tab", -90, 60),
            409,
            "not-newer",
        ),
        (
            "that ends earlier",
            "closed",
            token(&world, "tab", -30, 2),
            409,
            "not-newer",
        ),
        (
            "nobody knows",
            "unknown",
            token(&world, "tab", -30, 60),
            404,
            "unknown-service",
        ),
    ] {
        let answer = refresh(&world, service, &token, &[]);
        assert_eq!(answer.status, status, "{what}");
        assert_eq!(
            problem(&answer),
            format!("urn:wavry:problem:{word}"),
            "{what}"
        );
        assert!(!format!("{answer:?}").contains(&token[20..40]), "{what}");
        let challenged = value(&answer, "www-authenticate").is_some();
        assert_eq!(challenged, status == 401, "{what}");
    }
    let missing = ask(
        &world,
        "POST",
        &format!("{PATH}?service=closed"),
        Vec::new(),
    );
    assert_eq!(missing.status, 401);
    assert_eq!(value(&missing, "www-authenticate"), Some("Bearer"));
    assert_eq!(code_of(&client).await, close_code::TOKEN_EXPIRED);
}

#[tokio::test]
async fn a_key_that_left_the_roster_extends_nothing() {
    let world = World::new();
    let opened = token(&world, "tab", -60, 60);
    let (_client, _exit) = world.live(to(&format!("/closed?token={opened}"))).await;
    world.roster.send_modify(|roster| {
        let mut changed = Roster::clone(roster);
        changed.token_keys.clear();
        *roster = Arc::new(changed);
    });
    let answer = refresh(&world, "closed", &token(&world, "tab", -30, 90), &[]);
    assert_eq!(answer.status, 401);
}

#[tokio::test]
async fn pages_of_the_services_origins_may_ask_and_no_others() {
    let world = World::new();
    let opened = token(&world, "tab", -60, 60);
    let (_client, _exit) = world.live(to(&format!("/closed?token={opened}"))).await;
    let newer = token(&world, "tab", -30, 90);
    let path = format!("{PATH}?service=closed");

    let page = [header("origin", "https://app.example")];
    let preflight = ask(&world, "OPTIONS", &path, page.to_vec());
    assert_eq!(preflight.status, 204);
    let allowed =
        |response: &Response| value(response, "access-control-allow-origin").map(str::to_owned);
    assert_eq!(allowed(&preflight).as_deref(), Some("https://app.example"));
    let value_of = |name| value(&preflight, name);
    assert_eq!(value_of("access-control-allow-methods"), Some("POST"));
    assert_eq!(
        value_of("access-control-allow-headers"),
        Some("authorization")
    );
    let answer = refresh(&world, "closed", &newer, &page);
    assert_eq!(answer.status, 204);
    assert_eq!(allowed(&answer).as_deref(), Some("https://app.example"));
    // It may also learn why not.
    let refused = refresh(&world, "closed", "x", &page);
    assert_eq!(refused.status, 401);
    assert_eq!(allowed(&refused).as_deref(), Some("https://app.example"));

    let other = [header("origin", "https://evil.example")];
    let preflight = ask(&world, "OPTIONS", &path, other.to_vec());
    assert_eq!((preflight.status, allowed(&preflight)), (403, None));
    let longer = token(&world, "tab", -20, 120);
    let answer = refresh(&world, "closed", &longer, &other);
    assert_eq!((answer.status, allowed(&answer)), (403, None));
    assert_eq!(problem(&answer), "urn:wavry:problem:origin");
}

#[tokio::test]
async fn at_a_bound_host_the_service_need_not_be_named() {
    let world = World::new();
    world.roster.send_modify(|roster| {
        let mut changed = Roster::clone(roster);
        changed.services[1].hosts = vec!["localhost".into()];
        *roster = Arc::new(changed);
    });
    let opened = token(&world, "tab", -60, 60);
    let (_client, _exit) = world.live(to(&format!("/?token={opened}"))).await;
    let authorization = format!("Bearer {}", token(&world, "tab", -30, 90));
    let headers = vec![header("authorization", &authorization)];
    assert_eq!(ask(&world, "POST", PATH, headers).status, 204);
}

#[tokio::test]
async fn a_page_may_ask_with_a_session_that_is_closed_at_once() {
    let world = World::new();
    let opened = token(&world, "tab", -60, 60);
    let (_client, _exit) = world.live(to(&format!("/closed?token={opened}"))).await;
    for (token, code, word) in [
        (token(&world, "tab", -30, 90), 0, "extended"),
        (
            token(&world, "tab", -90, 120),
            close_code::refused(409),
            "not_newer",
        ),
        (
            token(&world, "b", -30, 90),
            close_code::refused(404),
            "unknown_session",
        ),
        (
            token(&world, "tab", -30, -1),
            close_code::refused(401),
            "token_expired",
        ),
    ] {
        let mut request = to(&format!("{PATH}?service=closed&token={token}"));
        request.origin = Some("https://app.example".into());
        let (told, response) = world.ask(request).await.unwrap();
        assert_eq!(response.status, 200);
        let closed = soon(told.closed()).await;
        assert_eq!(closed, Closed::Peer(Close::new(code, word)));
    }
    let newer = token(&world, "tab", -20, 120);
    let mut foreign = to(&format!("{PATH}?service=closed&token={newer}"));
    foreign.origin = Some("https://evil.example".into());
    assert_eq!(world.status(foreign).await, 403);
    let unknown = to(&format!("{PATH}?service=unknown&token={newer}"));
    assert_eq!(world.status(unknown).await, 404);
}
