use wavry_proto::session::REFUSED_BY_RELAY;

use super::*;

#[tokio::test]
async fn the_exit_gets_the_request_without_its_credentials() {
    let world = World::with(|raw| raw.forward_headers = vec!["x-app".into()]);
    let token = world.token("closed", 60);
    let mut in_query = to(&format!("/closed/rest/?a=1&token={token}&b=2"));
    in_query.origin = Some("https://app.example".into());
    in_query.subprotocols = vec!["chat-1".into(), "chat-2".into()];
    let mut in_header = to("/closed/rest/?a=1&b=2");
    let value = format!("Bearer {token}");
    in_header.headers.push(header("authorization", &value));
    for mut request in [in_query, in_header] {
        let sent = request.clone();
        request.headers.extend([
            header("user-agent", "test"),
            header("cookie", "id=1"),
            header("x-app", "1"),
            header("x-wavry-subject", "root"),
        ]);
        let seen = async {
            let requested = soon(world.exit.accept()).await.unwrap();
            let open = requested.open().clone();
            (open, requested.accept(Response::ok()).await.unwrap())
        };
        let (asked, (open, _exit)) = tokio::join!(world.ask(request), seen);
        let (_session, _) = asked.unwrap();
        assert_eq!(open.service.as_str(), "closed");
        assert_eq!(open.request.authority, "localhost");
        assert_eq!(open.request.path, "/rest/?a=1&b=2");
        assert_eq!(open.request.origin, sent.origin);
        assert_eq!(open.request.subprotocols, sent.subprotocols);
        let forwarded = [header("user-agent", "test"), header("x-app", "1")];
        assert_eq!(open.request.headers, forwarded);
        assert_eq!(open.subject.as_deref(), Some("ana"));
        assert_eq!(open.claims.as_deref(), Some(r#"{"room":1}"#));
        assert!(open.client.ip().is_loopback());
        assert!(!format!("{open:?}").contains(&token[20..40]));
    }
}

#[tokio::test]
async fn a_public_service_needs_no_token_and_passes_none_on() {
    let world = World::new();
    let seen = async {
        let requested = soon(world.exit.accept()).await.unwrap();
        let open = requested.open().clone();
        (open, requested.accept(Response::ok()).await.unwrap())
    };
    let (asked, (open, _exit)) = tokio::join!(world.ask(to("/open?token=rubbish")), seen);
    asked.unwrap();
    assert_eq!(open.request.path, "/");
    assert_eq!((open.subject, open.claims), (None, None));
}

#[tokio::test]
async fn a_bound_host_takes_the_whole_path() {
    let world = World::new();
    let mut request = to("/closed/a?b");
    request.authority = "chat.example:443".into();
    let seen = async {
        let requested = soon(world.exit.accept()).await.unwrap();
        let open = requested.open().clone();
        (open, requested.accept(Response::ok()).await.unwrap())
    };
    let (asked, (open, _exit)) = tokio::join!(world.ask(request), seen);
    asked.unwrap();
    assert_eq!(open.service.as_str(), "chat");
    assert_eq!(open.request.path, "/closed/a?b");
}

#[tokio::test]
async fn the_exits_answer_is_the_clients() {
    let world = World::new();
    let headers = vec![header("x-request-id", "5"), header("set-cookie", "a=b")];
    let response = |status, subprotocol: Option<&str>| Response {
        status,
        subprotocol: subprotocol.map(Into::into),
        headers: headers.clone(),
    };
    let refuse = async {
        let requested = soon(world.exit.accept()).await.unwrap();
        requested.reject(response(418, None)).await;
    };
    let (refused, ()) = tokio::join!(world.refusal(to("/open")), refuse);
    assert_eq!(refused.status, 418);
    assert!(refused.headers.contains(&headers[0]));
    assert!(!refused.headers.contains(&headers[1]));

    let mut request = to("/open");
    request.subprotocols = vec!["one".into(), "two".into()];
    let take = async {
        let requested = soon(world.exit.accept()).await.unwrap();
        requested.accept(response(200, Some("two"))).await.unwrap()
    };
    let (asked, _exit) = tokio::join!(world.ask(request), take);
    let (_session, taken) = asked.unwrap();
    assert_eq!(taken.status, 200);
    assert_eq!(taken.subprotocol.as_deref(), Some("two"));
    assert!(taken.headers.contains(&headers[0]));
    assert!(!taken.headers.contains(&headers[1]));
}

#[tokio::test]
async fn an_exit_without_an_address_is_passed_over() {
    let world = World::new();
    world.add_exit("away", &Identity::generate(), None);
    for _ in 0..2 {
        world.live(to("/open")).await;
    }
}

#[tokio::test]
async fn an_exit_that_does_not_answer_its_address_is_passed_over() {
    let world = World::new();
    let silent = std::net::UdpSocket::bind(loopback()).unwrap();
    let address = silent.local_addr().unwrap();
    world.add_exit("silent", &Identity::generate(), Some(address));
    for _ in 0..2 {
        world.live(to("/open")).await;
    }
}

#[tokio::test]
async fn an_exit_that_refuses_by_itself_is_passed_over_and_an_upstream_that_does_is_not() {
    let world = World::new();
    let identity = Identity::generate();
    let full = endpoint("full", &identity, &world.roster.subscribe());
    world.add_exit("full", &identity, Some(full.local_addr()));
    let refusing = tokio::spawn(async move {
        while let Some(requested) = full.accept().await {
            let mut response = Response::status(503);
            response
                .headers
                .push(header(REFUSED_BY_RELAY, "relay_limit"));
            requested.reject(response).await;
        }
    });
    for _ in 0..2 {
        world.live(to("/open")).await;
    }
    refusing.abort();
    let refuse = async {
        let requested = soon(world.exit.accept()).await.unwrap();
        requested.reject(Response::status(503)).await;
    };
    let (status, ()) = tokio::join!(world.status(to("/open")), refuse);
    assert_eq!(status, 503);
}
