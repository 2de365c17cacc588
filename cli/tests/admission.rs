//! Who gets a session, end to end: every request goes to a running gateway over the network.

#![allow(
    clippy::unwrap_used,
    reason = "it is test code, outside of test functions"
)]

mod support;

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use support::{
    DEADLINE, Dev,
    client::{Ask, Native},
    output, plain, wavry,
};
use wavry_credentials::{
    source,
    token::{Scope, SigningKey},
};
use wavry_proto::{
    control::{Problem, Role},
    session::close_code,
    token::{Registration, Session, Validity},
};
use wavry_transport::session::{Closed, SendStream as _, Session as _};

/// The cluster of `wavry dev`.
const CLUSTER: &str = "wavry";

struct Mint {
    key: SigningKey,
    now: u64,
}

impl Mint {
    fn of(dev: &Dev) -> Self {
        let file = source::read_file(&dev.state.join("master/master.key")).unwrap();
        Self::with(SigningKey::from_paserk(&file).unwrap())
    }

    fn with(key: SigningKey) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        Self {
            key,
            now: now.as_secs(),
        }
    }

    fn validity(&self, from: i64, until: i64) -> Validity {
        let from = self.now.saturating_add_signed(from);
        Validity {
            iat: from,
            nbf: from,
            exp: self.now.saturating_add_signed(until),
        }
    }

    fn session(&self, cluster: &str, service: &str, from: i64, until: i64) -> String {
        self.session_with(cluster, service, from, until, String::new())
    }

    fn session_with(
        &self,
        cluster: &str,
        service: &str,
        from: i64,
        until: i64,
        padding: String,
    ) -> String {
        let mut claims = serde_json::Map::new();
        if !padding.is_empty() {
            claims.insert("padding".to_owned(), padding.into());
        }
        let claims = Session {
            jti: "one".to_owned(),
            sub: "alice".to_owned(),
            sid: None,
            claims,
            validity: self.validity(from, until),
        };
        let scope = Scope {
            cluster: &cluster.parse().unwrap(),
            audience: service,
            binding: &[],
        };
        self.key.sign(&claims, scope)
    }
}

#[tokio::test]
async fn only_a_token_for_this_service_and_this_moment_opens_a_session() {
    let directory = tempfile::tempdir().unwrap();
    let dev = Dev::start(directory.path());
    let native = Native::new(&dev);
    let mint = Mint::of(&dev);
    let good = mint.session(CLUSTER, "sample", -10, 60);
    let registration = mint.key.sign(
        &Registration {
            placement: Default::default(),
            jti: "one".to_owned(),
            sub: "sample".parse().unwrap(),
            role: Role::Relay,
            services: Vec::new(),
            validity: mint.validity(-10, 60),
        },
        Scope {
            cluster: &CLUSTER.parse().unwrap(),
            audience: "sample",
            binding: &[],
        },
    );
    let truncated = &good[..good.len() - 9];
    let mut flipped = good.clone().into_bytes();
    let middle = flipped.len() / 2;
    flipped[middle] = if flipped[middle] == b'A' { b'B' } else { b'A' };
    let flipped = String::from_utf8(flipped).unwrap();
    let long = mint.session_with(CLUSTER, "sample", -10, 60, "x".repeat(9 * 1024));

    for (what, token) in [
        ("nothing at all", None),
        (
            "an expired one",
            Some(mint.session(CLUSTER, "sample", -600, -1)),
        ),
        (
            "one from the future",
            Some(mint.session(CLUSTER, "sample", 120, 600)),
        ),
        (
            "one for another service",
            Some(mint.session(CLUSTER, "echo", -10, 60)),
        ),
        (
            "one for another cluster",
            Some(mint.session("other", "sample", -10, 60)),
        ),
        ("a registration token", Some(registration)),
        (
            "one signed by somebody else",
            Some(Mint::with(SigningKey::generate()).session(CLUSTER, "sample", -10, 60)),
        ),
        ("one cut short", Some(truncated.to_owned())),
        ("one with a changed byte", Some(flipped)),
        ("one of nine kilobytes", Some(long)),
        ("no token but a word", Some("word".to_owned())),
    ] {
        let bearer = token.as_deref();
        let in_header = native.status(Ask {
            path: "/sample",
            bearer,
            ..Ask::default()
        });
        assert_eq!(in_header.await, 401, "{what} in the header");
        let Some(token) = &token else { continue };
        let path = format!("/sample?token={token}");
        let in_query = native.status(Ask {
            path: &path,
            ..Ask::default()
        });
        assert_eq!(in_query.await, 401, "{what} in the query");
    }
    let path = format!("/sample?token={good}");
    for ask in [
        Ask {
            path: "/sample",
            bearer: Some(&good),
            ..Ask::default()
        },
        Ask {
            path: &path,
            ..Ask::default()
        },
    ] {
        assert_eq!(native.status(ask).await, 200);
    }

    let metrics = dev.metrics("gateway");
    assert!(metrics.contains("reason=\"token_expired\""), "{metrics}");
}

#[tokio::test]
async fn a_session_is_closed_when_its_token_expires() {
    let directory = tempfile::tempdir().unwrap();
    let dev = Dev::start(directory.path());
    let native = Native::new(&dev);
    let token = Mint::of(&dev).session(CLUSTER, "sample", -10, 2);
    let session = native.open(&format!("/sample?token={token}")).await;
    let closed = support::client::within(Duration::from_secs(10), "expiry", session.closed());
    match closed.await {
        Closed::Peer(close) => assert_eq!(close.code, close_code::TOKEN_EXPIRED),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn what_a_session_carries_is_counted_while_it_lives() {
    let directory = tempfile::tempdir().unwrap();
    let dev = Dev::start(directory.path());
    let native = Native::new(&dev);
    let token = Mint::of(&dev).session(CLUSTER, "sample", -10, 600);
    let session = native.open(&format!("/sample?token={token}")).await;
    let (mut send, _recv) = session.open_bi().await.unwrap();
    send.write("eleven byte".into()).await.unwrap();
    let webtransport = "upstream=\"webtransport\",";
    for (roles, name, upstream) in [
        (&["gateway"][..], "gateway", ""),
        (&["relay-a", "relay-b"], "relay", webtransport),
    ] {
        let counted =
            format!("wavry_{name}_session_bytes_total{{{upstream}direction=\"from_client\"}} 11");
        let counting = async {
            while !roles
                .iter()
                .any(|role| dev.metrics(role).contains(&counted))
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        support::client::within(DEADLINE, &counted, counting).await;
    }
    drop(session);
}

/// A session is named in its token, and goes on with a newer one that comes over any connection.
#[tokio::test]
async fn a_session_outlives_its_token_with_a_newer_one() {
    let directory = tempfile::tempdir().unwrap();
    let dev = Dev::start(directory.path());
    let native = Native::new(&dev);
    let mint = |session: &str, ttl: &str| {
        let mut made = wavry(&["token", "session", "sample", "--subject", "alice"]);
        made.args(["--session", session, "--ttl", ttl])
            .env("WAVRY_MASTER_KEY_FILE", dev.state.join("master/master.key"))
            .env("WAVRY_AUDIT_KEY_FILE", dev.state.join("master/audit.key"));
        String::from_utf8(output(made).stdout)
            .unwrap()
            .trim()
            .to_owned()
    };
    let path = |session| format!("/sample?token={}", mint(session, "10s"));
    let kept = native.open(&path("kept")).await;
    let left = native.open(&path("left")).await;

    let gateway = dev.text("gateway").strip_prefix("https://").unwrap();
    let gateway: SocketAddr = gateway.trim_end_matches('/').parse().unwrap();
    let ask = async |method, path, bearer: Option<&str>| {
        let bearer = bearer.map(|token| format!("Bearer {token}"));
        let authorization = bearer.iter().map(|b| ("authorization", b.as_str()));
        let headers: Vec<_> = authorization.collect();
        plain::ask(
            dev.text("ca_file").as_ref(),
            gateway,
            method,
            path,
            &headers,
        )
        .await
    };
    let refresh = "/.well-known/wavry/session/refresh?service=sample";
    let longer = mint("kept", "5m");
    assert_eq!(ask("POST", refresh, Some(&longer)).await, (204, Vec::new()));
    let (status, problem) = ask("POST", refresh, Some(&mint("other", "5m"))).await;
    let problem: Problem = serde_json::from_slice(&problem).unwrap();
    assert_eq!((status, problem.status), (404, 404));
    assert_eq!(problem.r#type, "urn:wavry:problem:unknown-session");
    assert_eq!(ask("POST", refresh, None).await.0, 401);

    let healthy = ask("GET", "/healthz", None).await;
    assert_eq!(healthy, (200, b"ok\n".to_vec()));
    let (status, hashes) = ask("GET", "/.well-known/wavry/certificate-hashes", None).await;
    let hashes: serde_json::Value = serde_json::from_slice(&hashes).unwrap();
    assert_eq!(status, 200);
    assert_eq!(
        hashes["hashes"][0]["value"],
        dev.ready["certificate_hashes"][0]
    );
    assert_eq!(ask("GET", "/nothing", None).await.0, 404);

    // The other session's end shows that the time of both first tokens has come.
    match support::client::within(DEADLINE, "expiry", left.closed()).await {
        Closed::Peer(close) => assert_eq!(close.code, close_code::TOKEN_EXPIRED),
        other => panic!("{other}"),
    }
    kept.send_datagram("still there".into()).unwrap();
    let back = support::client::within(DEADLINE, "a datagram", kept.recv_datagram()).await;
    assert_eq!(back.unwrap(), "still there");
    let metrics = dev.metrics("gateway");
    for outcome in ["extended", "unknown_session", "token_missing"] {
        let counted = format!("wavry_gateway_refreshes_total{{outcome=\"{outcome}\"}} 1");
        assert!(metrics.contains(&counted), "{metrics}");
    }
}

#[tokio::test]
async fn what_a_page_or_a_path_must_not_do_is_refused_with_its_status() {
    let directory = tempfile::tempdir().unwrap();
    let dev = Dev::start(directory.path());
    let native = Native::new(&dev);
    let origin = dev.text("demo").trim_end_matches('/').to_owned();
    for (path, from, status) in [
        ("/echo", None, 200),
        ("/echo", Some(origin.as_str()), 200),
        ("/echo", Some("https://evil.example"), 403),
        ("/echo", Some("null"), 403),
        ("/echo", Some("http://127.0.0.1"), 403),
        ("/unknown", None, 404),
        ("/", None, 404),
        ("/ECHO", None, 404),
        ("/echo/../sample", None, 400),
        ("/echo/%2e%2e/sample", None, 400),
        ("/echo/%2E./sample", None, 400),
        ("/echo%2fsample", None, 400),
        ("/echo/%00", None, 400),
        ("/echo//x", None, 400),
        ("/echo/a\\b", None, 400),
    ] {
        let asked = native.status(Ask {
            path,
            origin: from,
            ..Ask::default()
        });
        assert_eq!(asked.await, status, "{path} from {from:?}");
    }
    let metrics = dev.metrics("gateway");
    for reason in ["origin", "unknown_service", "bad_path"] {
        assert!(
            metrics.contains(&format!("reason=\"{reason}\"")),
            "refusals by {reason} are not counted: {metrics}"
        );
    }
}

/// Nothing that a stranger can send by UDP disturbs the gateway.
#[tokio::test]
async fn garbage_on_the_gateways_port_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let dev = Dev::start(directory.path());
    let native = Native::new(&dev);
    let gateway = dev.text("gateway").strip_prefix("https://").unwrap();
    let session = native.open("/echo").await;
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut state = 0x9e37_79b9_u32;
    for length in (0..1400).step_by(7) {
        let garbage: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .take(length)
        .collect();
        socket.send_to(&garbage, gateway).unwrap();
    }
    support::client::echo(&session, b"still there")
        .await
        .unwrap();
    assert_eq!(
        native
            .status(Ask {
                path: "/echo",
                ..Ask::default()
            })
            .await,
        200
    );
}
