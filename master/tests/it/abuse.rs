//! What a master is sent by who means it ill, or has a clock that is wrong.

use std::time::Duration;

use hyper::Method;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, split},
    task::JoinSet,
    time::timeout,
};
use wavry_credentials::{
    identity::Identity,
    token::{Scope, SigningKey},
};
use wavry_master::Config;
use wavry_proto::{
    control::Role,
    token::{NodeRequest, OperatorRole, Validity},
};

use crate::{
    operate::{get, operator},
    postgres::Server,
    wire::{Wire, claims, heartbeat, sign, tls, unix_time},
    world::{DEADLINE, World, join, node_id},
};

const GIBIBYTE: usize = 1 << 30;

#[tokio::test]
async fn a_body_of_a_gibibyte_is_refused_long_before_its_end() {
    let world = World::new();
    let master = world.start().await;
    let piece = vec![b'{'; 64 * 1024];
    let chunk = [b"10000\r\n", &piece[..], b"\r\n"].concat();
    for (framing, piece) in [
        (format!("content-length: {GIBIBYTE}"), &piece),
        ("transfer-encoding: chunked".to_owned(), &chunk),
    ] {
        for path in ["/v1/nodes/register", "/v1/revocations"] {
            let (mut from, mut to) = split(tls(&world, master.address).await);
            let head = format!("POST {path} HTTP/1.1\r\nhost: m\r\n{framing}\r\n\r\n");
            to.write_all(head.as_bytes()).await.unwrap();
            let sending = tokio::spawn({
                let piece = piece.clone();
                async move {
                    let mut sent = 0;
                    while sent < GIBIBYTE && to.write_all(&piece).await.is_ok() {
                        sent += piece.len();
                    }
                    sent
                }
            });
            let mut answer = vec![0; 12];
            let answered = timeout(DEADLINE, from.read_exact(&mut answer)).await;
            answered.expect("an answer comes").unwrap();
            // Of a request without a token, that is what is said of it.
            let expected: &[u8] = match path {
                "/v1/revocations" => b"HTTP/1.1 401",
                _ => b"HTTP/1.1 413",
            };
            assert_eq!(answer, expected, "{path} {framing}");
            drop(from);
            let sent = timeout(DEADLINE, sending).await;
            let sent = sent.expect("the connection is closed").unwrap();
            assert!(sent < GIBIBYTE / 16, "{sent} bytes of {path} were taken");
        }
    }
}

#[tokio::test]
async fn a_flood_of_forged_registrations_keeps_no_node_out() {
    let world = World::new();
    let mut config = world.config();
    config.limits.registration_rate = wavry_master::config::Limits::default().registration_rate;
    let master = world.start_with(config).await;
    let mut flood = JoinSet::new();
    for _ in 0..16 {
        let mut wire = Wire::open(&world, master.address).await;
        let scope = Scope {
            cluster: &world.cluster,
            audience: "master",
            binding: &[],
        };
        let forged = SigningKey::generate().sign(&claims("1"), scope);
        flood.spawn(async move {
            let identity = Identity::generate();
            for _ in 0..50 {
                let refused = wire.register(&identity, &forged, "1").await;
                let words = [(401, "token-unknown-key"), (429, "too-many-registrations")];
                assert!(words.contains(&(refused.0, &*refused.1)), "{refused:?}");
            }
        });
    }
    // It waits for nothing but its turn.
    let node = join(world.node(&master, "exit", Role::Relay, &["echo"])).await;
    assert!(node.roster().borrow().node(&node_id("exit")).is_some());
    while let Some(done) = flood.join_next().await {
        done.unwrap();
    }
}

#[tokio::test]
async fn who_registers_too_often_is_told_when_to_come_back_and_registers_then() {
    let world = World::new();
    let mut config = world.config();
    // One a second of an address, and ten at once.
    config.limits.registration_rate = 5;
    let master = world.start_with(config).await;
    let mut wire = Wire::open(&world, master.address).await;
    let identity = Identity::generate();
    let token = sign(&world, &claims("1"));
    let mut refused = 0;
    for _ in 0..30 {
        let (status, word) = wire.register(&identity, "nonsense", "1").await;
        match status {
            429 => {
                assert_eq!(word, "too-many-registrations");
                refused += 1;
            }
            _ => assert_eq!((status, &*word), (401, "token-malformed")),
        }
    }
    assert!(refused >= 10, "{refused}");
    let began = std::time::Instant::now();
    while wire.register(&identity, &token, "1").await.0 == 429 {
        assert!(began.elapsed() < DEADLINE);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let viewer = operator(&world, OperatorRole::Viewer);
    let node = get(&mut wire, "/v1/nodes/exit", &viewer).await;
    assert_eq!(node["id"], "exit");
}

#[tokio::test]
async fn a_node_whose_clock_is_five_minutes_off_is_told_so() {
    let world = World::new();
    let master = world.start().await;
    let identity = Identity::generate();
    let mut wire = Wire::open(&world, master.address).await;
    let off = |seconds: i64, lasting: u64| {
        let now = unix_time().saturating_add_signed(seconds);
        Validity {
            iat: now,
            nbf: now,
            exp: now + lasting,
        }
    };
    let registration = |seconds| {
        let mut claims = claims(&format!("off {seconds}"));
        claims.validity = off(seconds, 60);
        sign(&world, &claims)
    };
    for (seconds, status, word) in [
        (300, 401, "token-not-yet-valid"),
        (-300, 401, "token-expired"),
        (25, 201, ""),
    ] {
        let jti = format!("off {seconds}");
        let outcome = wire.register(&identity, &registration(seconds), &jti).await;
        assert_eq!(outcome, (status, word.to_owned()), "{seconds}");
    }
    for (seconds, status, word) in [
        (300, 401, "token-not-yet-valid"),
        (-300, 401, "token-expired"),
        (25, 200, ""),
        (-25, 200, ""),
    ] {
        let request = NodeRequest {
            sub: node_id("exit"),
            validity: off(seconds, 60),
        };
        let scope = Scope {
            cluster: &world.cluster,
            audience: "master",
            binding: &wire.exporter,
        };
        let bearer = SigningKey::from(&identity).sign(&request, scope);
        let outcome = wire.heartbeat(Some(&bearer), &heartbeat()).await;
        assert_eq!(outcome, (status, word.to_owned()), "{seconds}");
    }
}

/// Quotes, comments and ends of statements, as a query's value and as text.
const SQL: [&str; 4] = [
    "'; DROP TABLE node; --",
    "\" OR 1=1 --",
    "\\'; /*",
    "$1; COMMIT",
];

#[tokio::test]
async fn sql_is_text_wherever_text_is_taken() {
    let world = World::new();
    let server = Server::start(false);
    for database in [
        world.database(),
        server.database("sql").await.parse().unwrap(),
    ] {
        let config = Config {
            database,
            ..world.config()
        };
        let master = world.start_with(config).await;
        let mut wire = Wire::open(&world, master.address).await;
        let identity = Identity::generate();
        let mut token = claims("'; DROP TABLE used_token; --");
        token.sub = node_id("exit");
        let signed = sign(&world, &token);
        let registered = wire.register(&identity, &signed, &token.jti).await;
        assert_eq!(registered, (201, String::new()));
        let other = Identity::generate();
        let again = wire.register(&other, &signed, &token.jti).await;
        assert_eq!(again, (409, "token-used".to_owned()));

        let admin = operator(&world, OperatorRole::Admin);
        let bearer = wire.bearer(&world, &identity, &node_id("exit"));
        for sql in SQL {
            let mut told = heartbeat();
            told.version = sql.to_owned();
            let heard = wire.heartbeat(Some(&bearer), &told).await;
            assert_eq!(heard, (200, String::new()), "{sql}");
            let body = serde_json::json!({"subject": sql, "service": "echo"});
            for path in ["/v1/revocations", "/v1/tokens/session"] {
                let asked = wire.problem(Method::POST, path, Some(&admin), body.to_string());
                assert_eq!(asked.await, (201, String::new()), "{path} {sql}");
            }
            let value: String = sql.bytes().map(|byte| format!("%{byte:02x}")).collect();
            for list in ["nodes", "services", "revocations", "keys"] {
                let path = format!("/v1/{list}?after={value}");
                get(&mut wire, &path, &admin).await;
            }
            for (method, path) in [
                (Method::GET, format!("/v1/nodes/{value}")),
                (Method::POST, format!("/v1/nodes/{value}/revoke")),
                (Method::GET, format!("/v1/services/{value}")),
                (Method::DELETE, format!("/v1/services/{value}")),
            ] {
                let (status, _) = wire.problem(method, &path, Some(&admin), "").await;
                assert_eq!(status, 404, "{path}");
            }
            let path = format!("/v1/services/{value}");
            let put = wire.problem(Method::PUT, &path, Some(&admin), "{}");
            assert_eq!(put.await, (400, "malformed-request".to_owned()));
        }
        let node = get(&mut wire, "/v1/nodes/exit", &admin).await;
        assert_eq!(node["version"], SQL[3]);
        let revoked = get(&mut wire, "/v1/revocations", &admin).await;
        assert_eq!(revoked["revoked"].as_array().unwrap().len(), SQL.len());
        master.stop().await;
    }
}
