//! Keys that sign take each other's place, and nodes find their way from one to the next.

use std::{fs, sync::Arc, time::Duration};

use hyper::Method;
use serde_json::json;
use tokio::time::{sleep, timeout};
use wavry_credentials::{
    audit::Action,
    identity::Identity,
    signer::{self, Signer},
    source,
    token::{Scope, SigningKey, id_of, paserk_of},
};
use wavry_master::{StartError, signing};
use wavry_proto::{control::Role, token::OperatorRole};

use crate::{
    audit::on_record,
    operate::{get, operator},
    wire::{Wire, claims, json as read_json, sign},
    world::{DEADLINE, Running, World, join, roster_where},
};

/// Rotates the key with a token by the master key of the file; the answer.
async fn rotate(world: &World, master: &Running, request: serde_json::Value) -> serde_json::Value {
    let mut wire = Wire::open(world, master.address).await;
    let bearer = operator(world, OperatorRole::Admin);
    let sent = wire.send(
        Method::POST,
        "/v1/keys/rotate",
        Some(&bearer),
        request.to_string(),
    );
    let (status, _, body) = sent.await;
    assert_eq!(status, 201, "{body:?}");
    read_json(&body)
}

/// The key that the master signs with now, as one who has its database and its secret reads it.
async fn signing_key(world: &World) -> Arc<dyn Signer> {
    let (database, master_key) = (world.database(), world.path("master_key"));
    let signer = signing::signer(&database, Some(&master_key), None);
    signer.await.unwrap()
}

async fn signing_paserk(world: &World) -> String {
    paserk_of(&signing_key(world).await.public())
}

async fn states(world: &World, master: &Running, bearer: &str) -> Vec<String> {
    let mut wire = Wire::open(world, master.address).await;
    let keys = get(&mut wire, "/v1/keys", bearer).await;
    let keys = keys["keys"].as_array().unwrap().clone();
    keys.iter()
        .map(|key| key["state"].as_str().unwrap().to_owned())
        .collect()
}

async fn by(world: &World, key: &dyn Signer, jti: &str) -> String {
    let scope = Scope {
        cluster: &world.cluster,
        audience: "master",
        binding: &[],
    };
    signer::sign(key, &claims(jti), scope).await.unwrap()
}

#[tokio::test]
async fn a_new_key_is_published_then_signs_and_the_old_one_is_accepted_and_then_is_not() {
    let world = World::new();
    let master = world.start().await;
    let config = world.node(&master, "gw", Role::Gateway, &[]);
    let node = join(config.clone()).await;
    let mut rosters = node.roster();
    let old = world.key.public_paserk();

    let request = json!({"reason": "request", "wait_seconds": 3, "overlap_seconds": 6});
    let made = rotate(&world, &master, request.clone()).await;
    assert_eq!(made["state"], "published");
    let published = roster_where(&mut rosters, |r| r.token_keys.len() == 2).await;
    assert_eq!(published.roster_keys.len(), 2);
    assert!(published.roster_keys.contains(&old));
    assert_eq!(signing_paserk(&world).await, old);
    // One at a time.
    let mut wire = Wire::open(&world, master.address).await;
    let bearer = operator(&world, OperatorRole::Admin);
    let again = wire.problem(
        Method::POST,
        "/v1/keys/rotate",
        Some(&bearer),
        request.to_string(),
    );
    assert_eq!(again.await, (409, "rotation-under-way".to_owned()));

    let signs = roster_where(&mut rosters, |r| r.roster_keys.len() == 1).await;
    let new = signing_key(&world).await;
    assert_eq!(signs.roster_keys, [paserk_of(&new.public())]);
    assert_eq!(
        id_of(&new.public()).to_string(),
        made["kid"].as_str().unwrap()
    );
    assert_eq!(signs.token_keys.len(), 2);
    assert_eq!(
        states(&world, &master, &bearer).await,
        ["accepted", "signing"]
    );
    let identity = Identity::generate();
    let outcome = wire
        .register(&identity, &sign(&world, &claims("1")), "1")
        .await;
    assert_eq!(outcome.0, 201, "the old key is accepted");
    let outcome = wire
        .register(&identity, &by(&world, &*new, "2").await, "2")
        .await;
    assert_eq!(outcome.0, 201, "and so is the new one");

    let retired = roster_where(&mut rosters, |r| r.token_keys.len() == 1).await;
    assert_eq!(retired.token_keys, [paserk_of(&new.public())]);
    let outcome = wire
        .register(&identity, &sign(&world, &claims("3")), "3")
        .await;
    assert_eq!(outcome, (401, "token-unknown-key".to_owned()));
    let outcome = wire
        .register(&identity, &by(&world, &*new, "4").await, "4")
        .await;
    assert_eq!(outcome.0, 201);

    let lines = on_record(&world).await;
    let rotations = lines.iter().filter(|event| event.action == Action::Rotate);
    let told: Vec<_> = rotations
        .map(|event| (&*event.actor, &*event.path))
        .collect();
    assert_eq!(
        told,
        [
            ("alice", "/v1/keys/rotate request"),
            ("master", "key signs"),
            ("master", "key retired"),
        ]
    );
    // The node goes on with the new key alone, over a restart too.
    drop(node);
    let kept = fs::read_to_string(config.state_dir.join("membership.json")).unwrap();
    assert!(
        kept.contains(&paserk_of(&new.public())) && !kept.contains(&old),
        "{kept}"
    );
    join(config).await;
}

#[tokio::test]
async fn a_key_that_somebody_else_may_hold_is_cut_at_once_and_live_nodes_go_on() {
    let world = World::new();
    let master = world.start().await;
    let node = join(world.node(&master, "gw", Role::Gateway, &[])).await;
    let mut rosters = node.roster();
    let spare = sign(&world, &claims("1"));
    let bearer = operator(&world, OperatorRole::Admin);

    let made = rotate(&world, &master, json!({"reason": "compromise"})).await;
    assert_eq!(made["state"], "signing");
    let new = signing_key(&world).await;
    let paserk = paserk_of(&new.public());
    let roster = roster_where(&mut rosters, |r| r.token_keys == [paserk.clone()]).await;
    assert_eq!(roster.roster_keys, [paserk]);
    let mut wire = Wire::open(&world, master.address).await;
    let unknown = (401, "token-unknown-key".to_owned());
    let identity = Identity::generate();
    assert_eq!(wire.register(&identity, &spare, "1").await, unknown);
    let operating = wire
        .problem(Method::GET, "/v1/keys", Some(&bearer), "")
        .await;
    assert_eq!(
        operating, unknown,
        "an operator's token by that key is cut too"
    );
    assert_eq!(
        wire.register(&identity, &by(&world, &*new, "2").await, "2")
            .await
            .0,
        201
    );
    // What comes next is taken as before.
    roster_where(&mut rosters, |r| r.nodes.len() == 2).await;

    // The secret stays what it was, and opens the new key.
    drop(wire);
    master.stop().await;
    let master = world.start().await;
    assert_eq!(
        id_of(&signing_key(&world).await.public()),
        id_of(&new.public())
    );
    master.stop().await;
}

#[tokio::test]
async fn a_node_that_was_away_finds_its_way_over_several_keys() {
    let world = World::new();
    let master = world.start().await;
    let mut config = world.node(&master, "gw", Role::Gateway, &[]);
    drop(join(config.clone()).await);
    let first = rotate(
        &world,
        &master,
        json!({"reason": "request", "wait_seconds": 0, "overlap_seconds": 60}),
    );
    let kid = first.await["kid"].as_str().unwrap().to_owned();
    let signs = async {
        while id_of(&signing_key(&world).await.public()).to_string() != kid {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(DEADLINE, signs).await.unwrap();
    rotate(&world, &master, json!({"reason": "compromise"})).await;

    let node = join(config.clone()).await;
    let newest = signing_paserk(&world).await;
    assert_eq!(node.roster().borrow().roster_keys, [newest]);
    drop(node);

    // What does not lead to the present key leads nowhere.
    let file = config.state_dir.join("membership.json");
    let record = fs::read_to_string(&file).unwrap();
    let mut record: serde_json::Value = serde_json::from_str(&record).unwrap();
    record["roster_keys"] = json!([SigningKey::generate().public_paserk()]);
    fs::write(&file, record.to_string()).unwrap();
    config.registration_token = None;
    let joining = timeout(
        Duration::from_millis(500),
        wavry_credentials::membership::Membership::join(config),
    );
    assert!(
        joining.await.is_err(),
        "joined with a key that leads nowhere"
    );
}

#[tokio::test]
async fn a_key_is_rotated_when_it_has_served_for_its_lifetime_also_over_a_restart() {
    let world = World::new();
    let config = || {
        let mut config = world.config();
        config.key_pace.lifetime = Duration::from_secs(2);
        config.key_pace.wait = Duration::from_secs(1);
        config.key_pace.overlap = Duration::from_secs(3600);
        config
    };
    let first = world.key.key_id();
    world.start_with(config()).await.stop().await;
    sleep_until_old().await;
    let master = world.start_with(config()).await;
    let signs = async {
        while id_of(&signing_key(&world).await.public()) == first {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(DEADLINE, signs).await.unwrap();
    master.stop().await;
    let lines = on_record(&world).await;
    assert!(lines.iter().any(|event| event.path == "schedule"));
}

/// A key's age is counted in whole seconds of the system's clock.
async fn sleep_until_old() {
    sleep(Duration::from_secs(2)).await;
}

#[tokio::test]
async fn a_master_key_that_was_replaced_cuts_all_before_it_and_does_not_come_back() {
    let world = World::new();
    world.start().await.stop().await;
    let file = world.path("master_key");
    let replaced = fs::read(&file).unwrap();
    source::write_secret(&file, &SigningKey::generate().to_paserk()).unwrap();
    world.start().await.stop().await;
    source::write_private(&file, &replaced).unwrap();
    let refused = wavry_master::Master::start(world.config()).await.err();
    assert!(
        matches!(refused, Some(StartError::Store { .. })),
        "{refused:?}"
    );
}
