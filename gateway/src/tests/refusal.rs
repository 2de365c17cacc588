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
