//! What is on record, what happens when nothing can be, and what is found when the record was changed.

use std::time::Instant;

use hyper::Method;
use sqlx::{Connection as _, SqliteConnection};
use wavry_credentials::{
    audit::{Action, Event, file},
    identity::Identity,
};
use wavry_master::{
    Master, StartError,
    audit_reader::Reader,
    audit_sink::{self, RawSink},
    provision,
    store::audit::ReadError,
};
use wavry_proto::control::Role;

use crate::{
    wire::{Wire, claims, heartbeat, sign},
    world::{DEADLINE, World},
};

/// The master's log, which must verify.
pub(crate) async fn on_record(world: &World) -> Vec<Event> {
    let reader = Reader::open(&world.database()).await.unwrap();
    let mut events = Vec::new();
    let verifier = world.audit_key().verifier();
    let show = |_: &str, line: wavry_credentials::audit::Line| events.push(line.event);
    reader.verify(&verifier, show).await.unwrap();
    events
}

pub(crate) async fn database(world: &World) -> SqliteConnection {
    let url = format!("sqlite://{}", world.path("master.sqlite").display());
    SqliteConnection::connect(&url).await.unwrap()
}

#[tokio::test]
async fn a_token_is_on_record_when_it_is_issued_and_when_it_is_used_under_one_name() {
    let world = World::new();
    let token = world.token("exit", Role::Relay, &["echo"]);
    let mut issued = Vec::new();
    let verifier = world.audit_key().verifier();
    let log = world.path("provision.jsonl");
    let head = file::read(&log, provision::LOG, &verifier, |_, line| {
        issued.push(line.event);
    });
    assert_eq!(head.unwrap().seq, 1);
    assert_eq!(issued[0].action, Action::Issue);
    assert_eq!((&*issued[0].subject, &*issued[0].actor), ("exit", "tester"));

    let master = world.start().await;
    let joined = crate::world::join(membership(&world, &master, &token)).await;
    let events = on_record(&world).await;
    assert_eq!(events.len(), 1);
    let event = &events[0];
    assert_eq!(event.action, Action::Register);
    assert_eq!((&*event.subject, &*event.actor), ("exit", "exit"));
    assert_eq!(
        (&*event.path, &*event.outcome),
        ("/v1/nodes/register", "done")
    );
    assert!(event.source.unwrap().ip().is_loopback());
    assert!(event.request.is_some());
    assert!(event.secret.is_some());
    assert_eq!(event.secret, issued[0].secret);
    drop(joined);
    let database = std::fs::read(world.path("provision.jsonl")).unwrap();
    assert!(!String::from_utf8_lossy(&database).contains(&token[20..60]));
}

fn membership(
    world: &World,
    master: &crate::world::Running,
    token: &str,
) -> wavry_credentials::membership::Config {
    let config = world.node(master, "exit", Role::Relay, &["echo"]);
    let file = config.registration_token.as_ref().unwrap();
    wavry_credentials::source::write_private(file, token.as_bytes()).unwrap();
    config
}

#[tokio::test]
async fn a_refusal_is_on_record_with_its_word_and_the_id_that_its_answer_has() {
    let world = World::new();
    let master = world.start().await;
    let mut wire = Wire::open(&world, master.address).await;
    let (identity, token) = (Identity::generate(), sign(&world, &claims("1")));
    assert_eq!(wire.register(&identity, &token, "1").await.0, 201);
    let thief = Identity::generate();
    assert_eq!(wire.register(&thief, &token, "1").await.0, 409);
    assert_eq!(wire.heartbeat(None, &heartbeat()).await.0, 401);
    let malformed = wire
        .problem(Method::POST, "/v1/nodes/register", None, "{}")
        .await;
    assert_eq!(malformed.0, 400);

    let events = on_record(&world).await;
    let told: Vec<_> = events
        .iter()
        .map(|event| {
            (
                event.action,
                &*event.subject,
                &*event.actor,
                &*event.outcome,
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            (Action::Register, "exit", "exit", "done"),
            (Action::Deny, "exit", "exit", "token-used"),
            (Action::Deny, "", "stranger", "token-missing"),
        ]
    );
    assert_eq!(events[0].secret, events[1].secret);
    assert_ne!(events[0].request, events[1].request);
    let answered = wire.request_id(Method::POST, "/v1/nodes/heartbeat").await;
    assert_eq!(on_record(&world).await[3].request, Some(answered));
}

#[tokio::test]
async fn strangers_cannot_fill_the_log() {
    let world = World::new();
    let master = world.start().await;
    let mut wire = Wire::open(&world, master.address).await;
    let started = Instant::now();
    for _ in 0..200 {
        assert_eq!(wire.heartbeat(None, &heartbeat()).await.0, 401);
    }
    let allowed = 32 + started.elapsed().as_secs() + 1;
    let lines = on_record(&world).await.len() as u64;
    assert!((32..=allowed).contains(&lines), "{lines} of {allowed}");
}

#[tokio::test]
async fn what_cannot_be_put_on_record_is_answered_with_503_and_undone_and_can_be_tried_again() {
    let world = World::new();
    let master = world.start().await;
    let mut wire = Wire::open(&world, master.address).await;
    let (identity, token) = (Identity::generate(), sign(&world, &claims("1")));

    let mut other = database(&world).await;
    let blocked = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let attempts = async {
        let not_audited = (503, "not-audited".to_owned());
        assert_eq!(wire.register(&identity, &token, "1").await, not_audited);
        assert_eq!(wire.heartbeat(None, &heartbeat()).await, not_audited);
    };
    tokio::time::timeout(DEADLINE, attempts).await.unwrap();
    blocked.rollback().await.unwrap();

    assert_eq!(wire.register(&identity, &token, "1").await.0, 201);
    let events = on_record(&world).await;
    assert_eq!(events.len(), 1, "{events:?}");
}

#[tokio::test]
async fn a_line_that_cannot_be_written_undoes_the_registration() {
    let world = World::new();
    let master = world.start().await;
    let mut wire = Wire::open(&world, master.address).await;
    let (identity, token) = (Identity::generate(), sign(&world, &claims("1")));
    let mut other = database(&world).await;
    let refuse =
        "CREATE TRIGGER no_lines BEFORE INSERT ON audit_line BEGIN SELECT RAISE(ABORT, 'no'); END";
    sqlx::query(refuse).execute(&mut other).await.unwrap();
    assert_eq!(wire.register(&identity, &token, "1").await.0, 500);
    sqlx::query("DROP TRIGGER no_lines")
        .execute(&mut other)
        .await
        .unwrap();
    assert_eq!(wire.register(&identity, &token, "1").await.0, 201);
}

#[tokio::test]
async fn a_new_master_key_is_on_record() {
    let world = World::new();
    world.start().await.stop().await;
    assert!(on_record(&world).await.is_empty());
    let key = wavry_credentials::token::SigningKey::generate();
    wavry_credentials::source::write_secret(&world.path("master_key"), &key.to_paserk()).unwrap();
    world.start().await.stop().await;
    let events = on_record(&world).await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].action, Action::Rotate);
    assert_eq!(events[0].subject, key.public_paserk());
}

#[tokio::test]
async fn a_database_whose_log_was_changed_is_found_line_by_line() {
    for (change, first) in [
        (
            "UPDATE audit_line SET line = replace(line, 'node-2', 'node-7') WHERE seq = 2",
            2,
        ),
        ("DELETE FROM audit_line WHERE seq = 2", 2),
        ("DELETE FROM audit_line WHERE seq > 3", 4),
        (
            "UPDATE audit_line SET seq = 100 WHERE seq = 2; \
             UPDATE audit_line SET seq = 2 WHERE seq = 3; \
             UPDATE audit_line SET seq = 3 WHERE seq = 100",
            2,
        ),
    ] {
        let world = World::new();
        let master = world.start().await;
        for i in 1..=4 {
            let mut wire = Wire::open(&world, master.address).await;
            let token = world.token(&format!("node-{i}"), Role::Relay, &["echo"]);
            let jti = jti(&token);
            let registered = wire.register(&Identity::generate(), &token, &jti).await;
            assert_eq!(registered.0, 201);
        }
        master.stop().await;
        let mut database = database(&world).await;
        sqlx::raw_sql(change).execute(&mut database).await.unwrap();
        database.close().await.unwrap();

        let reader = Reader::open(&world.database()).await.unwrap();
        let verifier = world.audit_key().verifier();
        match reader.verify(&verifier, |_, _| ()).await {
            Err(ReadError::Damaged(bad)) => assert_eq!(bad.line(), first, "{change}: {bad}"),
            other => panic!("{change}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_master_does_not_start_on_a_log_whose_end_was_cut_off_or_that_another_key_sealed() {
    let world = World::new();
    let master = world.start().await;
    let mut wire = Wire::open(&world, master.address).await;
    let token = sign(&world, &claims("1"));
    wire.register(&Identity::generate(), &token, "1").await;
    master.stop().await;

    let key = std::fs::read(world.path("audit_key")).unwrap();
    let other = wavry_credentials::token::SigningKey::generate();
    wavry_credentials::source::write_secret(&world.path("audit_key"), &other.to_paserk()).unwrap();
    let refused = Master::start(world.config()).await.err();
    assert!(
        matches!(refused, Some(StartError::Audit { .. })),
        "{refused:?}"
    );
    wavry_credentials::source::write_private(&world.path("audit_key"), &key).unwrap();
    world.start().await.stop().await;

    let mut database = database(&world).await;
    sqlx::query("DELETE FROM audit_line")
        .execute(&mut database)
        .await
        .unwrap();
    database.close().await.unwrap();
    let refused = Master::start(world.config()).await.err();
    assert!(
        matches!(refused, Some(StartError::Audit { .. })),
        "{refused:?}"
    );
}

fn sinks(raw: &[RawSink]) -> Vec<audit_sink::Config> {
    audit_sink::sinks(raw.to_vec()).unwrap()
}

/// The id in a token that was just made.
pub(crate) fn jti(token: &str) -> String {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let body = token.split('.').nth(2).unwrap();
    let body = URL_SAFE_NO_PAD.decode(body).unwrap();
    let payload = &body[..body.len() - 64];
    let claims: serde_json::Value = serde_json::from_slice(payload).unwrap();
    claims["jti"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_file_follows_the_database_and_catches_up_after_it_could_not_be_written() {
    let world = World::new();
    let file = world.path("audit.jsonl");
    let config = || wavry_master::Config {
        audit_sinks: sinks(&[RawSink {
            name: "copy".into(),
            url: format!("file://{}", file.display()),
            ..RawSink::default()
        }]),
        ..world.config()
    };
    let register = async |address, node: &str| {
        let mut wire = Wire::open(&world, address).await;
        let token = world.token(node, Role::Relay, &["echo"]);
        let jti = jti(&token);
        let registered = wire.register(&Identity::generate(), &token, &jti).await;
        assert_eq!(registered.0, 201);
    };
    let caught_up = async |lines: u64| {
        let verifier = world.audit_key().verifier();
        let log = wavry_master::store::audit::LOG;
        let started = Instant::now();
        while file::read(&file, log, &verifier, |_, _| ()).map_or(0, |head| head.seq) != lines {
            assert!(
                started.elapsed() < DEADLINE,
                "the file has no {lines} lines"
            );
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let master = world.start_with(config()).await;
    register(master.address, "one").await;
    register(master.address, "two").await;
    caught_up(2).await;
    // A directory in its place cannot be written. It is a link, so that the file can come back in one
    // step.
    let (kept, directory) = (world.path("kept"), world.path("directory"));
    std::fs::create_dir(&directory).unwrap();
    std::fs::rename(&file, &kept).unwrap();
    std::os::unix::fs::symlink(&directory, &file).unwrap();
    register(master.address, "three").await;
    std::fs::rename(&kept, &file).unwrap();
    caught_up(3).await;
    master.stop().await;
    let without_sinks = world.start().await;
    register(without_sinks.address, "four").await;
    without_sinks.stop().await;
    let master = world.start_with(config()).await;
    caught_up(4).await;
    master.stop().await;
}
