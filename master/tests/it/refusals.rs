use std::{sync::Arc, time::Duration};

use hyper::Method;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use wavry_credentials::{
    identity::Identity,
    token::{KeySet, Scope, SigningKey},
};
use wavry_proto::{
    control::{Roster, possession_message},
    token::{NodeRequest, Registration, Validity},
};

use crate::{
    wire::{Said, Wire, claims, heartbeat, json, sign, tls, unix_time, valid_for},
    world::{DEADLINE, World, node_id, service},
};

fn said(status: u16, word: &str) -> Said {
    (status, word.to_owned())
}

#[tokio::test]
async fn a_token_registers_once() {
    let world = World::new();
    let master = world.start().await;
    let token = sign(&world, &claims("1"));
    let mut wire = Wire::open(&world, master.address).await;
    let identity = Identity::generate();
    assert_eq!(wire.register(&identity, &token, "1").await, said(201, ""));
    let thief = Identity::generate();
    let used = said(409, "token-used");
    assert_eq!(wire.register(&thief, &token, "1").await, used);
}

#[tokio::test]
async fn who_lost_the_answer_registers_again_over_another_connection() {
    let world = World::new();
    let master = world.start().await;
    let token = sign(&world, &claims("1"));
    let identity = Identity::generate();
    let mut wire = Wire::open(&world, master.address).await;
    assert_eq!(wire.register(&identity, &token, "1").await, said(201, ""));
    drop(wire);
    let mut wire = Wire::open(&world, master.address).await;
    assert_eq!(wire.register(&identity, &token, "1").await, said(201, ""));
}

#[tokio::test]
async fn a_used_token_stays_used_when_the_master_restarts() {
    let world = World::new();
    let master = world.start().await;
    let token = sign(&world, &claims("1"));
    let identity = Identity::generate();
    let mut wire = Wire::open(&world, master.address).await;
    assert_eq!(wire.register(&identity, &token, "1").await, said(201, ""));
    drop(wire);
    master.stop().await;

    let master = world.start().await;
    let mut wire = Wire::open(&world, master.address).await;
    let again = wire.register(&Identity::generate(), &token, "1").await;
    assert_eq!(again, said(409, "token-used"));
}

#[tokio::test]
async fn of_many_that_register_with_one_token_at_once_one_succeeds() {
    let world = World::new();
    let master = world.start().await;
    let token = sign(&world, &claims("1"));
    let mut attempts = JoinSet::new();
    for _ in 0..50 {
        let mut wire = Wire::open(&world, master.address).await;
        let token = token.clone();
        attempts.spawn(async move { wire.register(&Identity::generate(), &token, "1").await });
    }
    let mut outcomes = attempts.join_all().await;
    outcomes.sort();
    assert_eq!(outcomes[0], said(201, ""));
    assert!(outcomes[1..].iter().all(|o| *o == said(409, "token-used")));
}

#[tokio::test]
async fn a_registration_token_that_does_not_hold_is_refused_by_its_reason() {
    let world = World::new();
    let master = world.start().await;
    let identity = Identity::generate();
    let mut wire = Wire::open(&world, master.address).await;

    let good = sign(&world, &claims("1"));
    let scoped = |key: &SigningKey, cluster: &str, audience: &str| {
        let scope = Scope {
            cluster: &cluster.parse().unwrap(),
            audience,
            binding: &[],
        };
        key.sign(&claims("1"), scope)
    };
    let valid = |nbf: u64, exp: u64| {
        let validity = Validity { iat: nbf, nbf, exp };
        sign(
            &world,
            &Registration {
                placement: Default::default(),
                validity,
                ..claims("1")
            },
        )
    };
    let now = unix_time();
    let session = world.issuer().session(
        &service("echo"),
        "somebody".into(),
        None,
        serde_json::Map::new(),
        Duration::from_secs(60),
    );
    let session = world.signed(&session.unwrap());
    let mut flipped = good.clone().into_bytes();
    let middle = flipped.len() / 2;
    flipped[middle] = if flipped[middle] == b'A' { b'B' } else { b'A' };

    for (what, token, status, word) in [
        ("nothing", String::new(), 401, "token-malformed"),
        ("no token", "v4.public.!".into(), 401, "token-malformed"),
        (
            "truncated",
            good[..good.len() - 9].into(),
            401,
            "token-malformed",
        ),
        (
            "9 KB",
            format!("v4.public.{}", "A".repeat(9000)),
            401,
            "token-malformed",
        ),
        (
            "changed",
            String::from_utf8(flipped).unwrap(),
            401,
            "token-not-verified",
        ),
        ("a session's", session, 401, "token-not-verified"),
        (
            "of another cluster",
            scoped(&world.key, "elsewhere", "master"),
            401,
            "token-not-verified",
        ),
        (
            "for another audience",
            scoped(&world.key, "test", "gateway"),
            401,
            "token-not-verified",
        ),
        (
            "by another key",
            scoped(&SigningKey::generate(), "test", "master"),
            401,
            "token-unknown-key",
        ),
        ("expired", valid(now - 60, now), 401, "token-expired"),
        (
            "of the future",
            valid(now + 300, now + 600),
            401,
            "token-not-yet-valid",
        ),
    ] {
        let outcome = wire.register(&identity, &token, "1").await;
        assert_eq!(outcome, said(status, word), "{what}");
    }
    // None of that used the token up.
    assert_eq!(wire.register(&identity, &good, "1").await, said(201, ""));
}

#[tokio::test]
async fn possession_is_proved_by_this_key_for_this_token_nonce_and_connection_only() {
    let world = World::new();
    let master = world.start().await;
    let token = sign(&world, &claims("1"));
    let identity = Identity::generate();
    let mut wire = Wire::open(&world, master.address).await;
    let mut other = Wire::open(&world, master.address).await;
    let unproved = said(403, "possession-not-proved");
    let no_nonce = said(403, "nonce-not-accepted");

    let nonce = wire.nonce().await;
    let mut request = wire.registration(&Identity::generate(), &token, "1", &nonce);
    request.public_key = identity.public_key();
    assert_eq!(
        wire.post_registration(&request).await,
        unproved,
        "another's signature"
    );

    let request = wire.registration(&identity, &token, "1", &nonce);
    assert_eq!(
        wire.post_registration(&request).await,
        no_nonce,
        "a nonce again"
    );

    let nonce = wire.nonce().await;
    let request = wire.registration(&identity, &token, "2", &nonce);
    assert_eq!(
        wire.post_registration(&request).await,
        unproved,
        "another token's id"
    );

    let nonce = wire.nonce().await;
    let request = other.registration(&identity, &token, "1", &nonce);
    assert_eq!(
        other.post_registration(&request).await,
        no_nonce,
        "another connection's nonce"
    );
    assert_eq!(
        wire.post_registration(&request).await,
        unproved,
        "another connection's exporter"
    );

    let nonce = wire.nonce().await;
    let mut request = wire.registration(&identity, &token, "1", &nonce);
    let message = possession_message("1", &nonce, &[]);
    request.signature = hex::encode(identity.sign(&message));
    assert_eq!(
        wire.post_registration(&request).await,
        unproved,
        "no exporter"
    );

    for signature in ["", "zz", "00", &"0".repeat(128), &"f".repeat(4000)] {
        let nonce = wire.nonce().await;
        let mut request = wire.registration(&identity, &token, "1", &nonce);
        request.signature = signature.to_owned();
        let (status, _) = wire.post_registration(&request).await;
        assert!(matches!(status, 400 | 403), "{status}");
    }
    assert_eq!(wire.register(&identity, &token, "1").await, said(201, ""));
}

#[tokio::test]
async fn a_registration_announces_only_what_is_granted_and_reachable() {
    let world = World::new();
    let master = world.start().await;
    let token = sign(&world, &claims("1"));
    let identity = Identity::generate();
    let mut wire = Wire::open(&world, master.address).await;

    let nonce = wire.nonce().await;
    let mut request = wire.registration(&identity, &token, "1", &nonce);
    request.services.push(service("other"));
    let outcome = wire.post_registration(&request).await;
    assert_eq!(outcome, said(403, "service-not-allowed"));

    for address in ["0.0.0.0:1", "224.0.0.1:1", "127.0.0.1:0", "[::]:9"] {
        let nonce = wire.nonce().await;
        let mut request = wire.registration(&identity, &token, "1", &nonce);
        request.addresses = vec![address.parse().unwrap()];
        let outcome = wire.post_registration(&request).await;
        assert_eq!(outcome, said(400, "address-not-usable"), "{address}");
    }
}

#[tokio::test]
async fn a_key_is_known_as_one_node() {
    let world = World::new();
    let master = world.start().await;
    let identity = Identity::generate();
    let mut wire = Wire::open(&world, master.address).await;
    let first = sign(&world, &claims("1"));
    assert_eq!(wire.register(&identity, &first, "1").await, said(201, ""));
    let mut other = claims("2");
    other.sub = node_id("other");
    let second = sign(&world, &other);
    let outcome = wire.register(&identity, &second, "2").await;
    assert_eq!(outcome, said(409, "key-in-use"));
}

#[tokio::test]
async fn a_new_token_for_a_node_replaces_its_key() {
    let world = World::new();
    let master = world.start().await;
    let [old, new] = [Identity::generate(), Identity::generate()];
    let mut wire = Wire::open(&world, master.address).await;
    for (jti, identity) in [("1", &old), ("2", &new)] {
        let token = sign(&world, &claims(jti));
        assert_eq!(wire.register(identity, &token, jti).await, said(201, ""));
    }
    let exit = node_id("exit");
    let bearer = wire.bearer(&world, &old, &exit);
    let outcome = wire.heartbeat(Some(&bearer), &heartbeat()).await;
    assert_eq!(outcome, said(401, "node-unknown"));
    let bearer = wire.bearer(&world, &new, &exit);
    let outcome = wire.heartbeat(Some(&bearer), &heartbeat()).await;
    assert_eq!(outcome, said(200, ""));
}

#[tokio::test]
async fn a_heartbeat_speaks_for_its_own_node_on_its_own_connection() {
    let world = World::new();
    let master = world.start().await;
    let [a, b] = [Identity::generate(), Identity::generate()];
    let mut wire = Wire::open(&world, master.address).await;
    let token = sign(&world, &claims("1"));
    assert_eq!(wire.register(&a, &token, "1").await, said(201, ""));
    let mut second = claims("2");
    second.sub = node_id("other");
    let token = sign(&world, &second);
    assert_eq!(wire.register(&b, &token, "2").await, said(201, ""));
    let exit = node_id("exit");

    let good = wire.bearer(&world, &a, &exit);
    let for_other_node = wire.bearer(&world, &b, &exit);
    let by_stranger = wire.bearer(&world, &Identity::generate(), &exit);
    let for_stranger = wire.bearer(&world, &a, &node_id("nobody"));
    let lasting = {
        let scope = Scope {
            cluster: &world.cluster,
            audience: "master",
            binding: &wire.exporter,
        };
        let request = NodeRequest {
            sub: exit.clone(),
            validity: valid_for(3600),
        };
        SigningKey::from(&a).sign(&request, scope)
    };
    for (what, bearer, status, word) in [
        ("none", None, 401, "token-missing"),
        ("garbage", Some("x"), 401, "token-malformed"),
        (
            "another node's",
            Some(&*for_other_node),
            401,
            "token-unknown-key",
        ),
        ("a stranger's", Some(&by_stranger), 401, "node-unknown"),
        ("for a stranger", Some(&for_stranger), 401, "node-unknown"),
        ("lasting", Some(&lasting), 401, "token-too-lasting"),
        ("good", Some(&good), 200, ""),
    ] {
        let outcome = wire.heartbeat(bearer, &heartbeat()).await;
        assert_eq!(outcome, said(status, word), "{what}");
    }
    let mut elsewhere = Wire::open(&world, master.address).await;
    let outcome = elsewhere.heartbeat(Some(&good), &heartbeat()).await;
    assert_eq!(
        outcome,
        said(401, "token-not-verified"),
        "another connection's"
    );

    let mut greedy = heartbeat();
    greedy.services.push(service("other"));
    let outcome = wire.heartbeat(Some(&good), &greedy).await;
    assert_eq!(outcome, said(403, "service-not-allowed"));
    let mut nowhere = heartbeat();
    nowhere.addresses = vec!["0.0.0.0:1".parse().unwrap()];
    let outcome = wire.heartbeat(Some(&good), &nowhere).await;
    assert_eq!(outcome, said(400, "address-not-usable"));
}

#[tokio::test]
async fn the_roster_is_for_nodes_and_is_sent_when_it_is_newer() {
    let world = World::new();
    let mut config = world.config();
    config.limits.poll_timeout = Duration::from_millis(100);
    let master = world.start_with(config).await;
    let identity = Identity::generate();
    let mut wire = Wire::open(&world, master.address).await;
    let path = "/v1/roster";
    let outcome = wire.problem(Method::GET, path, None, "").await;
    assert_eq!(outcome, said(401, "token-missing"));

    let token = sign(&world, &claims("1"));
    assert_eq!(wire.register(&identity, &token, "1").await, said(201, ""));
    let bearer = wire.bearer(&world, &identity, &node_id("exit"));
    let (status, tag, body) = wire.send(Method::GET, path, Some(&bearer), "").await;
    assert_eq!(status, 200);
    let keys = KeySet::from_paserk(&[world.key.public_paserk()]).unwrap();
    let scope = Scope {
        cluster: &world.cluster,
        audience: "nodes",
        binding: &[],
    };
    let text = std::str::from_utf8(&body).unwrap();
    let roster: Roster = keys.verify(text, scope, unix_time()).unwrap();
    assert_eq!(tag.unwrap(), format!("\"{}\"", roster.epoch));
    assert!(unix_time() - roster.issued_at < 60);

    let same = format!("{path}?after={}", roster.epoch);
    let (status, ..) = wire.send(Method::GET, &same, Some(&bearer), "").await;
    assert_eq!(status, 204);
    let older = format!("{path}?after={}", roster.epoch.0 - 1);
    let (status, ..) = wire.send(Method::GET, &older, Some(&bearer), "").await;
    assert_eq!(status, 200);
    let outcome = wire
        .problem(Method::GET, "/v1/roster?after=x", Some(&bearer), "")
        .await;
    assert_eq!(outcome, said(400, "malformed-request"));
}

#[tokio::test]
async fn a_heartbeat_that_says_nothing_new_leaves_the_epoch() {
    let world = World::new();
    let master = world.start().await;
    let identity = Identity::generate();
    let mut wire = Wire::open(&world, master.address).await;
    let token = sign(&world, &claims("1"));
    assert_eq!(wire.register(&identity, &token, "1").await, said(201, ""));
    let bearer = wire.bearer(&world, &identity, &node_id("exit"));
    let (_, before, _) = wire
        .send(Method::GET, "/v1/roster", Some(&bearer), "")
        .await;
    for sessions in 0..5 {
        let mut said_again = heartbeat();
        said_again.sessions = sessions;
        let outcome = wire.heartbeat(Some(&bearer), &said_again).await;
        assert_eq!(outcome, said(200, ""));
    }
    let (_, after, _) = wire
        .send(Method::GET, "/v1/roster", Some(&bearer), "")
        .await;
    assert_eq!(before, after);
}

#[tokio::test]
async fn keys_are_published() {
    let world = World::new();
    let master = world.start().await;
    let mut wire = Wire::open(&world, master.address).await;
    let path = "/.well-known/wavry/keys";
    let (status, _, body) = wire.send(Method::GET, path, None, "").await;
    assert_eq!(status, 200);
    let keys = json(&body);
    assert_eq!(keys[0]["paserk"], world.key.public_paserk());
    assert!(keys[0]["kid"].as_str().unwrap().starts_with("k4.pid."));
    assert_eq!(keys.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn what_is_no_request_is_refused_as_such() {
    let world = World::new();
    let master = world.start().await;
    let mut wire = Wire::open(&world, master.address).await;
    let register = "/v1/nodes/register";
    let secret = "{\"token\":\"v4.public.hush\",\"nonce\":1}";
    for (method, path, body, status, word) in [
        (Method::GET, "/", "", 404, "not-found"),
        (Method::GET, register, "", 405, "method-not-allowed"),
        (Method::POST, "/v1/roster", "", 405, "method-not-allowed"),
        (Method::POST, register, "", 400, "malformed-request"),
        (Method::POST, register, "{}", 400, "malformed-request"),
        (Method::POST, register, secret, 400, "malformed-request"),
    ] {
        let outcome = wire.problem(method, path, None, body).await;
        assert_eq!(outcome, said(status, word), "{path} {body}");
    }
    let (_, _, body) = wire.send(Method::POST, register, None, secret).await;
    assert!(!String::from_utf8_lossy(&body).contains("hush"));
}

#[tokio::test]
async fn a_body_over_64_kib_is_refused() {
    let world = World::new();
    let master = world.start().await;
    let mut wire = Wire::open(&world, master.address).await;
    let body = vec![b' '; 64 * 1024 + 1];
    let outcome = wire
        .problem(Method::POST, "/v1/nodes/register", None, body)
        .await;
    assert_eq!(outcome, said(413, "body-too-large"));
}

#[tokio::test]
async fn a_client_that_is_slow_to_say_what_it_wants_is_cut_off() {
    let world = World::new();
    let mut config = world.config();
    config.limits.handshake_timeout = Duration::from_millis(300);
    config.limits.header_timeout = Duration::from_millis(300);
    config.limits.request_timeout = Duration::from_millis(300);
    let master = world.start_with(config).await;

    // Says nothing at all.
    let mut silent = TcpStream::connect(master.address).await.unwrap();
    let mut rest = Vec::new();
    let ended = timeout(DEADLINE, silent.read_to_end(&mut rest)).await;
    ended.expect("a handshake has a deadline").ok();

    // Stops in the middle of a head.
    let mut slow = tls(&world, master.address).await;
    slow.write_all(b"GET / HTTP/1.1\r\nhost: ma").await.unwrap();
    slow.flush().await.unwrap();
    let ended = timeout(DEADLINE, slow.read_to_end(&mut rest)).await;
    ended.expect("a head has a deadline").ok();

    // Stops in the middle of a body.
    let mut slow = tls(&world, master.address).await;
    let head = b"POST /v1/nodes/register HTTP/1.1\r\nhost: m\r\ncontent-length: 9\r\n\r\n{";
    slow.write_all(head).await.unwrap();
    slow.flush().await.unwrap();
    let mut answer = vec![0; 12];
    timeout(DEADLINE, slow.read_exact(&mut answer))
        .await
        .expect("a body has a deadline")
        .unwrap();
    assert_eq!(answer, b"HTTP/1.1 408");
}

#[tokio::test]
async fn a_client_below_tls_1_3_is_not_served() {
    let world = World::new();
    let master = world.start().await;
    let mut authorities = RootCertStore::empty();
    for authority in CertificateDer::pem_file_iter(world.path("ca.crt")).unwrap() {
        authorities.add(authority.unwrap()).unwrap();
    }
    let old = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS12])
        .with_root_certificates(authorities)
        .with_no_client_auth();
    let name = master.address.ip().to_string().try_into().unwrap();
    let stream = TcpStream::connect(master.address).await.unwrap();
    let Ok(mut stream) = TlsConnector::from(Arc::new(old))
        .connect(name, stream)
        .await
    else {
        return;
    };
    let head = b"POST /v1/nodes/challenge HTTP/1.1\r\nhost: m\r\ncontent-length: 0\r\n\r\n";
    stream.write_all(head).await.ok();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok();
    assert!(answer.is_empty());
}

#[tokio::test]
async fn a_head_longer_than_any_token_needs_is_refused() {
    let world = World::new();
    let master = world.start().await;
    let mut wire = Wire::open(&world, master.address).await;
    let token = "a".repeat(20_000);
    let request = hyper::Request::get("/v1/roster")
        .header("authorization", format!("Bearer {token}"))
        .body(http_body_util::Full::default())
        .unwrap();
    let status = wire.raw(request).await;
    assert_eq!(status, 431);
}

#[tokio::test]
async fn connections_over_the_limit_wait_their_turn() {
    let world = World::new();
    let mut config = world.config();
    config.limits.max_connections = 1;
    let master = world.start_with(config).await;
    let first = Wire::open(&world, master.address).await;
    let mut waiting = std::pin::pin!(Wire::open(&world, master.address));
    let early = timeout(Duration::from_millis(200), waiting.as_mut()).await;
    assert!(early.is_err(), "a second connection was served");
    drop(first);
    let mut second = timeout(DEADLINE, waiting).await.expect("its turn comes");
    second.nonce().await;
}

#[tokio::test]
async fn a_stopping_master_ends_held_requests() {
    let world = World::new();
    let master = world.start().await;
    let identity = Identity::generate();
    let mut wire = Wire::open(&world, master.address).await;
    let token = sign(&world, &claims("1"));
    assert_eq!(wire.register(&identity, &token, "1").await, said(201, ""));
    let bearer = wire.bearer(&world, &identity, &node_id("exit"));
    let held = tokio::spawn(async move {
        wire.problem(
            Method::GET,
            "/v1/roster?after=99999999999",
            Some(&bearer),
            "",
        )
        .await
    });
    // The answer to a second connection shows that the master had time for the first.
    Wire::open(&world, master.address).await.nonce().await;
    master.stop().await;
    assert_eq!(held.await.unwrap(), said(503, "leaving"));
}
