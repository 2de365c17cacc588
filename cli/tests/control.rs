//! What operators do to a running cluster, by the commands that they use.

#![allow(
    clippy::unwrap_used,
    reason = "it is test code, outside of test functions"
)]

mod support;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use support::{
    DEADLINE,
    client::{Ask, Native, echo, within},
    cluster::Cluster,
    lossy::Lossy,
    output, stderr,
};
use wavry_credentials::token::{Scope, SigningKey};
use wavry_proto::{session::close_code, token::Validity};
use wavry_transport::{
    session::{Closed, Session as _},
    webtransport::Session,
};

/// Within which what was revoked is closed everywhere.
const REVOKED_WITHIN: Duration = Duration::from_secs(5);

fn cluster() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.add("open", "echo:", false);
    cluster.add_with_token("closed", "echo:");
    cluster.set("gateway", "sessions_per_ip = 1000");
    cluster.start()
}

async fn code(session: &Session, limit: Duration) -> u32 {
    match within(limit, "the close", session.closed()).await {
        Closed::Peer(close) => close.code,
        other => panic!("{other}"),
    }
}

/// A session with a token of a subject, that carries.
async fn live(cluster: &Cluster, native: &Native, session: &str) -> Session {
    let token = cluster.token("closed", session, "10m");
    let session = native.open(&format!("/closed?token={token}")).await;
    echo(&session, b"it carries").await.unwrap();
    session
}

#[tokio::test]
async fn a_revoked_subjects_sessions_close_within_five_seconds_and_others_go_on() {
    let cluster = cluster();
    let native = cluster.native();
    let (of_subject, other) = (
        live(&cluster, &native, "tab").await,
        native.open("/open").await,
    );
    let token = cluster.token("closed", "later", "10m");
    let operator = cluster.operator_token("operator");

    let viewer = cluster.operator_token("viewer");
    let revoke = ["token", "revoke", "--subject", "tester", "--json"];
    let refused = cluster.operate(&viewer, &revoke);
    assert!(!refused.status.success());
    assert!(
        stderr(&refused).contains("role operator"),
        "{}",
        stderr(&refused)
    );
    echo(&of_subject, b"still there").await.unwrap();

    let asked = Instant::now();
    let done = cluster.operate(&operator, &revoke);
    assert!(done.status.success(), "{}", stderr(&done));
    let code = code(&of_subject, REVOKED_WITHIN).await;
    assert_eq!(code, close_code::TOKEN_REVOKED);
    println!("closed {:?} after the command began", asked.elapsed());
    assert!(asked.elapsed() < REVOKED_WITHIN);
    echo(&other, b"not revoked").await.unwrap();

    // What was issued before opens nothing any more.
    let asked = Ask {
        path: "/closed",
        bearer: Some(&token),
        ..Ask::default()
    };
    assert_eq!(native.status(asked).await, 401);
}

#[tokio::test]
async fn a_revoked_relays_sessions_close_within_five_seconds_and_it_does_not_come_back() {
    let mut cluster = cluster();
    let native = cluster.native();
    let session = live(&cluster, &native, "tab").await;
    let operator = cluster.operator_token("operator");
    let listed = cluster.operate(&operator, &["node", "list", "--json"]);
    let nodes: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let of = |id: &str| {
        let nodes = nodes.as_array().unwrap();
        nodes.iter().find(|node| node["id"] == id).unwrap().clone()
    };
    assert_eq!(of("edge")["role"], "gateway");
    assert_eq!(of("exit")["state"], "present");
    assert_eq!(of("exit")["version"], env!("CARGO_PKG_VERSION"));

    let asked = Instant::now();
    let done = cluster.operate(&operator, &["node", "revoke", "exit"]);
    assert!(done.status.success(), "{}", stderr(&done));
    assert_eq!(code(&session, REVOKED_WITHIN).await, close_code::RELAY_LOST);
    println!("closed {:?} after the command began", asked.elapsed());
    assert!(asked.elapsed() < REVOKED_WITHIN);

    let table = cluster.operate(&operator, &["node", "list"]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.starts_with("ID") && table.contains("edge"), "{table}");
    assert!(!table.contains("exit"), "{table}");
    // Started anew with all that it has, it is not let in.
    let refused = cluster.relay_that_is_refused();
    assert!(refused.contains("not registered"), "{refused}");
    let asked = Ask {
        path: "/open",
        ..Ask::default()
    };
    assert_eq!(native.status(asked).await, 503);
}

/// The state of each key that the master ever signed with, oldest first.
fn key_states(cluster: &Cluster, token: &Path) -> Vec<String> {
    let listed = cluster.operate(token, &["key", "list", "--json"]);
    assert!(listed.status.success(), "{}", stderr(&listed));
    let keys: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let states = keys.as_array().unwrap().iter();
    states
        .map(|key| key["state"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn a_rotation_of_the_signing_key_drops_no_session_and_both_keys_tokens_open_more() {
    let cluster = cluster();
    let native = cluster.native();
    let admin = cluster.operator_token("admin");
    let by_old = cluster.token("closed", "old", "10m");
    let mut sessions = Vec::new();
    for i in 0..200 {
        sessions.push(live(&cluster, &native, &format!("tab-{i}")).await);
    }

    let rotate = [
        "master", "key", "rotate", "--reason", "request", "--wait", "2s",
    ];
    let done = cluster.operate(&admin, &rotate);
    assert!(done.status.success(), "{}", stderr(&done));
    let deadline = Instant::now() + DEADLINE;
    let mut rounds = 0;
    while key_states(&cluster, &admin) != ["accepted", "signing"] {
        assert!(Instant::now() < deadline, "the new key does not sign");
        for session in &sessions {
            echo(session, b"while keys change").await.unwrap();
        }
        rounds += 1;
    }
    assert!(rounds > 0, "nothing was sent while the key was published");
    let by_new = cluster.token_by_present_key("closed", "new", "10m");
    for token in [by_old, by_new] {
        let session = native.open(&format!("/closed?token={token}")).await;
        echo(&session, b"opened after").await.unwrap();
        sessions.push(session);
    }
    for session in &sessions {
        echo(session, b"still there").await.unwrap();
    }
}

#[tokio::test]
async fn tokens_that_a_master_issues_open_sessions_and_reach_no_further_than_who_asks() {
    let cluster = cluster();
    let native = cluster.native();
    let operator = cluster.operator_token("operator");
    let file = |name: &str| cluster.directory().join(name);
    let issue = |by: &Path, arguments: &[&str], name: &str| {
        let out = file(name);
        let all = [
            &["token", "issue"],
            arguments,
            &["--out", out.to_str().unwrap()],
        ];
        cluster.operate(by, &all.concat())
    };
    let session = ["session", "closed", "--subject", "tester", "--ttl", "10m"];
    let done = issue(&operator, &session, "client.token");
    assert!(done.status.success(), "{}", stderr(&done));
    let token = std::fs::read_to_string(file("client.token")).unwrap();
    let opened = native.open(&format!("/closed?token={token}")).await;
    echo(&opened, b"by a token that the master issued")
        .await
        .unwrap();
    // What is there is not written over.
    let again = issue(&operator, &session, "client.token");
    assert!(stderr(&again).contains("exists"), "{}", stderr(&again));

    let viewer = ["operator", "--role", "viewer", "--ttl", "12h"];
    let done = issue(&operator, &viewer, "viewer.token");
    assert!(done.status.success(), "{}", stderr(&done));
    let listed = cluster.operate(&file("viewer.token"), &["node", "list"]);
    assert!(listed.status.success(), "{}", stderr(&listed));
    for beyond in [
        &session[..],
        &["operator", "--role", "operator"],
        &["registration", "relay", "more"],
    ] {
        let refused = issue(&file("viewer.token"), beyond, "none.token");
        assert!(
            stderr(&refused).contains("this needs role"),
            "{}",
            stderr(&refused)
        );
        assert!(!file("none.token").exists());
    }
}

#[tokio::test]
async fn a_command_whose_answer_is_lost_is_sent_again_and_carried_out_once() {
    let cluster = cluster();
    let admin = cluster.operator_token("admin");
    let mut rotating = None;
    let rotate = ["key", "rotate", "--reason", "request", "--json"];
    let lossy = Lossy::before(cluster.master(), |address| {
        let command = cluster.operating(address, &admin, &rotate);
        rotating = Some(std::thread::spawn(|| output(command)));
    });
    let deadline = Instant::now() + DEADLINE;
    while key_states(&cluster, &admin) != ["signing", "published"] {
        assert!(Instant::now() < deadline, "it was not carried out");
    }
    lossy.cut();
    let done = rotating.unwrap().join().unwrap();
    assert!(done.status.success(), "{}", stderr(&done));
    assert!(stderr(&done).contains("trying again"), "{}", stderr(&done));
    let key: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(key["state"], "published");
    assert_eq!(key_states(&cluster, &admin), ["signing", "published"]);
    // Another command is another request.
    let refused = cluster.operate(&admin, &rotate);
    assert!(
        stderr(&refused).contains("published already"),
        "{}",
        stderr(&refused)
    );
}

#[tokio::test]
async fn a_compromised_key_ends_what_it_opened_within_five_seconds_and_the_cluster_goes_on() {
    let cluster = cluster();
    let native = cluster.native();
    let admin = cluster.operator_token("admin");
    let (of_old, public) = (
        live(&cluster, &native, "tab").await,
        native.open("/open").await,
    );
    let asked = Instant::now();
    let done = cluster.operate(&admin, &["key", "rotate", "--reason", "compromise"]);
    assert!(done.status.success(), "{}", stderr(&done));
    let code = code(&of_old, REVOKED_WITHIN).await;
    assert_eq!(code, close_code::TOKEN_REVOKED);
    assert!(asked.elapsed() < REVOKED_WITHIN);
    echo(&public, b"needs no token").await.unwrap();

    let refused = cluster.operate(&admin, &["key", "list"]);
    assert!(!refused.status.success(), "the key of the token was cut");
    let token = cluster.token_by_present_key("closed", "new", "10m");
    let session = native.open(&format!("/closed?token={token}")).await;
    echo(&session, b"by the new key").await.unwrap();
}

/// A request for the service that an operator makes.
fn of_made(bearer: Option<&str>) -> Ask<'_> {
    Ask {
        path: "/made",
        bearer,
        ..Ask::default()
    }
}

#[tokio::test]
async fn a_service_that_an_operator_makes_is_served_and_its_owner_signs_for_it() {
    let mut cluster = Cluster::new();
    cluster.add("open", "echo:", false);
    // The relay has it, and may announce it; the master does not know it yet.
    cluster.add_upstream_only("made", "echo:");
    let cluster = cluster.start();
    let native = cluster.native();
    let operator = cluster.operator_token("operator");
    assert_eq!(native.status(of_made(None)).await, 404);

    let owner = SigningKey::generate();
    let key = owner.public_paserk();
    let set = ["service", "set", "made", "--origin", "*", "--key", &key];
    let done = cluster.operate(&operator, &set);
    assert!(done.status.success(), "{}", stderr(&done));
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let claims = wavry_proto::token::Session {
        jti: "1".to_owned(),
        sub: "ann".to_owned(),
        sid: None,
        claims: serde_json::Map::new(),
        validity: Validity {
            iat: now,
            nbf: now,
            exp: now + 600,
        },
    };
    let of_cluster = "wavry".parse().unwrap();
    let token = |audience| {
        let scope = Scope {
            cluster: &of_cluster,
            audience,
            binding: &[],
        };
        owner.sign(&claims, scope)
    };
    let by_owner = token("made");
    let deadline = Instant::now() + DEADLINE;
    let session = loop {
        match native.ask(of_made(Some(&by_owner))).await {
            Ok((session, _)) => break session,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    };
    echo(&session, b"made by an operator").await.unwrap();
    assert_eq!(native.status(of_made(Some(&token("open")))).await, 401);
    let set = [
        "node", "set", "exit", "--weight", "50", "--region", "eu-west", "--json",
    ];
    let done = cluster.operate(&operator, &set);
    assert!(done.status.success(), "{}", stderr(&done));
    let node: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(
        (&node["region"], &node["weight"]),
        (&json!("eu-west"), &json!(50))
    );
    let done = cluster.operate(&operator, &["node", "set", "exit", "--no-region"]);
    let table = String::from_utf8(done.stdout).unwrap();
    assert!(
        table.contains("50") && !table.contains("eu-west"),
        "{table}"
    );
    let refused = cluster.operate(&operator, &["node", "set", "exit"]);
    assert!(
        stderr(&refused).contains("--weight"),
        "{}",
        stderr(&refused)
    );
    let listed = cluster.operate(&operator, &["service", "list"]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(
        listed.contains("made") && listed.contains("exit"),
        "{listed}"
    );

    let done = cluster.operate(&operator, &["service", "delete", "made"]);
    assert!(done.status.success(), "{}", stderr(&done));
    let deadline = Instant::now() + DEADLINE;
    while native.ask(of_made(Some(&by_owner))).await.is_ok() {
        assert!(Instant::now() < deadline, "it is still served");
    }
    assert_eq!(native.status(of_made(Some(&by_owner))).await, 404);
    assert_eq!(code(&session, DEADLINE).await, close_code::TOKEN_REVOKED);
    let refused = cluster.operate(&operator, &["service", "delete", "open"]);
    assert!(
        stderr(&refused).contains("configuration"),
        "{}",
        stderr(&refused)
    );
}

#[tokio::test]
async fn nodes_start_again_and_find_each_other_while_the_master_is_dead() {
    let mut cluster = cluster();
    let token = cluster.token("closed", "tab", "10m");
    let native = cluster.native();
    live(&cluster, &native, "before").await;
    cluster.kill_master();
    cluster.restart_nodes();
    let native = cluster.native();
    let deadline = Instant::now() + DEADLINE;
    let session = loop {
        let asked = Ask {
            path: "/closed",
            bearer: Some(&token),
            ..Ask::default()
        };
        match native.ask(asked).await {
            Ok((session, _)) => break session,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    };
    echo(&session, b"without any master").await.unwrap();
    let metrics = cluster.metrics("gateway");
    let value = |name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("no {name} in {metrics}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert_eq!(value("wavry_node_roster_stale "), 0.0);
    assert!(value("wavry_node_roster_age_seconds ") >= 0.0);
}
