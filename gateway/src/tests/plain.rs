use wavry_credentials::{cert::file_hash, clock::since_epoch};
use wavry_transport::webtransport::plain::{Request, Response};

use super::*;
use crate::plain;

/// What is answered to a plain request.
pub(super) fn ask(world: &World, method: &str, path: &str, headers: Vec<Header>) -> Response {
    let request = Request {
        method: method.into(),
        authority: "localhost".into(),
        path: path.into(),
        headers,
        content: Default::default(),
        remote: loopback(),
    };
    plain::answer(&world.core, &request, since_epoch())
}

#[tokio::test]
async fn health_is_ok_until_the_gateway_drains() {
    let world = World::with(|raw| raw.drain_timeout = HANG);
    let (_session, _exit) = world.live(to("/open")).await;
    let healthy = ask(&world, "GET", "/healthz?x", Vec::new());
    assert_eq!((healthy.status, &*healthy.content), (200, &b"ok\n"[..]));
    world.shutdown.cancel();
    soon(world.core.draining.cancelled()).await;
    assert_eq!(ask(&world, "GET", "/healthz", Vec::new()).status, 503);
}

#[tokio::test]
async fn the_hash_that_a_page_needs_is_told() {
    let world = World::new();
    let told = ask(
        &world,
        "GET",
        "/.well-known/wavry/certificate-hashes",
        Vec::new(),
    );
    assert_eq!(told.status, 200);
    let told: serde_json::Value = serde_json::from_slice(&told.content).unwrap();
    let hash = file_hash(&world._files.path().join("gateway.crt")).unwrap();
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(told["hashes"].as_array().unwrap().len(), 1);
    assert_eq!(told["hashes"][0]["algorithm"], "sha-256");
    assert_eq!(told["hashes"][0]["value"], hash);
    assert!(told["hashes"][0]["not_after"].as_u64().unwrap() > since_epoch().as_secs());
}

#[tokio::test]
async fn what_is_not_there_is_404_and_what_cannot_be_done_405() {
    let world = World::new();
    for path in ["/", "/open", "/healthz/", "/.well-known/wavry", "*"] {
        assert_eq!(ask(&world, "GET", path, Vec::new()).status, 404, "{path}");
    }
    for (method, path, allow) in [
        ("POST", "/healthz", "GET, HEAD"),
        (
            "DELETE",
            "/.well-known/wavry/certificate-hashes",
            "GET, HEAD",
        ),
        ("GET", "/.well-known/wavry/session/refresh", "POST, OPTIONS"),
    ] {
        let refused = ask(&world, method, path, Vec::new());
        assert_eq!(refused.status, 405, "{method} {path}");
        assert_eq!(refused.headers, [header("allow", allow)]);
    }
}
