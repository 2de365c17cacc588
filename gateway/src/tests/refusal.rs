use wavry_proto::session::{Close, close_code};

use super::*;

#[tokio::test]
async fn a_path_that_could_be_read_in_two_ways_is_400() {
    let world = World::new();
    for path in [
        "/open/../closed",
        "/open/%2e%2e/closed",
        "/open%2fclosed",
        "/open/%00",
        "//open",
        "/open/a\\b",
    ] {
        assert_eq!(world.status(to(path)).await, 400, "{path}");
    }
}

#[tokio::test]
async fn an_unknown_service_is_404() {
    let world = World::new();
    for path in ["/", "/unknown", "/unknown?token=x"] {
        assert_eq!(world.status(to(path)).await, 404, "{path}");
    }
}

#[tokio::test]
async fn a_page_of_another_origin_is_403_whatever_it_holds() {
    let world = World::new();
    let token = world.token("closed", 60);
    for origin in [
        "https://evil.example",
        "http://app.example",
        "https://app.example:444",
        "https://app.example.evil.example",
        "null",
    ] {
        let mut request = to(&format!("/closed?token={token}"));
        request.origin = Some(origin.into());
        assert_eq!(world.status(request).await, 403, "{origin}");
    }
}

#[tokio::test]
async fn a_token_that_is_missing_says_how_to_authenticate() {
    let world = World::new();
    let response = world.refusal(to("/closed")).await;
    assert_eq!(response.status, 401);
    assert!(
        response
            .headers
            .contains(&header("www-authenticate", "Bearer"))
    );
}

#[tokio::test]
async fn a_token_that_does_not_hold_is_401() {
    let world = World::new();
    let good = world.token("closed", 60);
    let stranger = SigningKey::generate();
    for (what, token) in [
        ("expired", world.token("closed", -1)),
        (
            "not yet valid",
            world.token_by(&world.signing_key, "closed", 600, 1200),
        ),
        ("for another service", world.token("open", 60)),
        (
            "by another key",
            world.token_by(&stranger, "closed", -60, 60),
        ),
        ("truncated", good[..good.len() - 8].to_owned()),
        ("no token at all", "hello".to_owned()),
        ("empty", String::new()),
        ("9 KB", format!("v4.public.{}", "A".repeat(9 * 1024))),
    ] {
        let mut request = to("/closed");
        let value = format!("Bearer {token}");
        request.headers.push(header("authorization", &value));
        assert_eq!(world.status(request).await, 401, "{what}");
        let request = to(&format!("/closed?token={token}"));
        assert_eq!(world.status(request).await, 401, "{what}, in the query");
    }
}

#[tokio::test]
async fn two_tokens_are_400() {
    let world = World::new();
    let token = world.token("closed", 60);
    let mut request = to(&format!("/closed?token={token}"));
    let value = format!("Bearer {token}");
    request.headers.push(header("authorization", &value));
    assert_eq!(world.status(request).await, 400);
}

#[tokio::test]
async fn one_session_too_many_from_an_address_is_429_until_another_ends() {
    let world = World::with(|raw| raw.sessions_per_ip = 1);
    let (only, _exit) = world.live(to("/open")).await;
    assert_eq!(world.status(to("/open")).await, 429);
    only.close(Default::default());
    until_taken(&world, "/open").await;
}

#[tokio::test]
async fn one_session_too_many_for_a_service_is_429_until_another_ends() {
    let world = World::new();
    let (only, _exit) = world.live(to("/single")).await;
    assert_eq!(world.status(to("/single")).await, 429);
    let _other = world.live(to("/open")).await;
    only.close(Default::default());
    until_taken(&world, "/single").await;
}

#[tokio::test]
async fn one_session_too_many_of_a_subject_is_429_and_another_subject_has_its_own() {
    let world = World::with(|raw| raw.sessions_per_subject = Some(1));
    let path = |subject: &str| {
        let key = &world.signing_key;
        let token = world.token_of(key, "closed", (subject, None), -60, 60);
        format!("/closed?token={token}")
    };
    let (only, _exit) = world.live(to(&path("ana"))).await;
    assert_eq!(world.status(to(&path("ana"))).await, 429);
    let _other = world.live(to(&path("bob"))).await;
    only.close(Default::default());
    until_taken(&world, &path("ana")).await;
}

/// What a session is closed with that was accepted only to say so.
async fn told(world: &World, request: Request) -> Close {
    let (session, response) = world.ask(request).await.unwrap();
    assert_eq!(response, Response::ok());
    match soon(session.closed()).await {
        Closed::Peer(close) => close,
        other => panic!("not closed by the gateway: {other}"),
    }
}

#[tokio::test]
async fn a_service_may_have_its_refusals_told_by_a_close() {
    let world = World::with(|raw| raw.sessions_per_ip = 2);
    let close = |status, word| Close::new(close_code::refused(status), word);
    assert_eq!(close(401, "").code, 0x5756_1191);
    for (what, token, expected) in [
        ("none", None, close(401, "token_missing")),
        (
            "expired",
            Some(world.token("told", -1)),
            close(401, "token_expired"),
        ),
        (
            "for another service",
            Some(world.token("open", 60)),
            close(401, "token_invalid"),
        ),
        (
            "two",
            Some("a&token=b".to_owned()),
            close(400, "token_unreadable"),
        ),
    ] {
        let token = token.map(|token| format!("?token={token}"));
        let request = to(&format!("/told{}", token.unwrap_or_default()));
        assert_eq!(told(&world, request).await, expected, "{what}");
    }
    let good = format!("/told?token={}", world.token("told", 60));
    let refuse = async {
        let requested = soon(world.exit.accept()).await.unwrap();
        requested.reject(Response::status(418)).await;
    };
    let (upstream, ()) = tokio::join!(told(&world, to(&good)), refuse);
    assert_eq!(upstream, close(418, "upstream"));
    let (_one, _exit) = world.live(to(&good)).await;
    let (_two, _exit) = world.live(to(&good)).await;
    assert_eq!(told(&world, to(&good)).await, close(429, "ip_limit"));
}

#[tokio::test]
async fn what_is_refused_before_the_service_may_say_how_is_refused_with_a_status() {
    let world = World::with(|_| {});
    assert_eq!(world.status(to("/told/../told")).await, 400);
    let mut request = to("/closed");
    request.origin = Some("https://evil.example".into());
    assert_eq!(world.status(request).await, 403);
}

#[tokio::test]
async fn an_upstreams_redirect_is_502_and_says_nothing_of_where() {
    let world = World::new();
    for status in [101, 301, 307, 399, 600] {
        let mut redirect = Response::status(status);
        redirect
            .headers
            .push(header("location", "https://10.0.0.1/"));
        let refuse = async {
            let requested = soon(world.exit.accept()).await.unwrap();
            requested.reject(redirect).await;
        };
        let (refused, ()) = tokio::join!(world.refusal(to("/open")), refuse);
        assert_eq!(refused, Response::status(502), "{status}");
    }
}

/// Asks until there is a session: the end of the one before takes its way.
async fn until_taken(world: &World, path: &str) {
    let exit = world.exit.clone();
    let taking = tokio::spawn(async move {
        let requested = exit.accept().await.unwrap();
        requested.accept(Response::ok()).await
    });
    soon(async { while world.ask(to(path)).await.is_err() {} }).await;
    taking.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_service_without_an_exit_is_503() {
    let world = World::new();
    assert_eq!(world.status(to("/nowhere")).await, 503);
}

#[tokio::test]
async fn an_exit_that_says_nothing_is_504() {
    let world = World::with(|raw| raw.open_timeout = Duration::from_millis(500));
    let mut kept = Vec::new();
    let keep = async {
        while let Some(requested) = world.exit.accept().await {
            kept.push(requested);
        }
    };
    tokio::select! {
        status = world.status(to("/open")) => assert_eq!(status, 504),
        () = keep => panic!("the exit is gone"),
    }
}

#[tokio::test]
async fn an_exit_that_is_not_there_is_503() {
    let world = World::new();
    world.exit.close().await;
    assert_eq!(world.status(to("/open")).await, 503);
}
