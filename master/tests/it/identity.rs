//! Identities of nodes take each other's place.

use std::time::Duration;

use hyper::Method;
use tokio::time::{sleep, timeout};
use wavry_credentials::{audit::Action, identity::Identity};
use wavry_proto::{
    control::{Heard, IdentityTask, Role, Rotate, rotation_message},
    id::{Epoch, NodeId},
    token::OperatorRole,
};

use crate::{
    audit::on_record,
    operate::{get, operator},
    wire::{Said, Wire, claims, heartbeat, json, sign},
    world::{DEADLINE, Running, World, join, node_id, roster_where},
};

const ROTATE: &str = "/v1/nodes/rotate";
const ORDER: &str = "/v1/nodes/exit/rotate";

fn said(status: u16, word: &str) -> Said {
    (status, word.to_owned())
}

fn admitted() -> Said {
    said(200, "")
}

impl Wire {
    /// A rotation that is right in every way, for this connection.
    async fn rotation(&mut self, node: &NodeId, present: &Identity, next: &Identity) -> Rotate {
        let nonce = self.nonce().await;
        let (from, to) = (present.public_key(), next.public_key());
        let message = rotation_message(node, &from, &to, &nonce, &self.exporter);
        Rotate {
            public_key: to,
            nonce,
            signature: hex::encode(present.sign(&message)),
            next_signature: hex::encode(next.sign(&message)),
        }
    }

    async fn post_rotation(&mut self, bearer: &str, request: &Rotate) -> Said {
        let body = serde_json::to_vec(request).unwrap();
        self.problem(Method::POST, ROTATE, Some(bearer), body).await
    }

    /// Asks as a node does.
    async fn rotate(
        &mut self,
        world: &World,
        node: &str,
        present: &Identity,
        next: &Identity,
    ) -> Said {
        let node = node_id(node);
        let request = self.rotation(&node, present, next).await;
        let bearer = self.bearer(world, present, &node);
        self.post_rotation(&bearer, &request).await
    }

    /// What relay `exit` is told about its identity when it speaks by `identity`; the refusal's word where
    /// it is refused.
    async fn task(
        &mut self,
        world: &World,
        identity: &Identity,
        epoch: u64,
    ) -> Result<Option<IdentityTask>, Said> {
        let bearer = self.bearer(world, identity, &node_id("exit"));
        let mut heartbeat = heartbeat();
        heartbeat.epoch = Epoch(epoch);
        let body = serde_json::to_vec(&heartbeat).unwrap();
        let path = "/v1/nodes/heartbeat";
        let (status, _, body) = self.send(Method::POST, path, Some(&bearer), body).await;
        if status.is_success() {
            return Ok(serde_json::from_slice::<Heard>(&body).unwrap().identity);
        }
        let problem = json(&body)["type"].as_str().unwrap().to_owned();
        let word = problem.rsplit(':').next().unwrap();
        Err(said(status.as_u16(), word))
    }
}

/// A master whose overlap is a second, and relay `exit` registered at it.
async fn registered(world: &World) -> (Running, Wire, Identity) {
    let mut config = world.config();
    config.identity_pace.overlap = Duration::from_secs(1);
    let master = world.start_with(config).await;
    let mut wire = Wire::open(world, master.address).await;
    let identity = Identity::generate();
    let token = sign(world, &claims("1"));
    assert_eq!(wire.register(&identity, &token, "1").await.0, 201);
    (master, wire, identity)
}

/// Waits until an identity that spoke for `exit` speaks for it no more.
async fn refused(world: &World, wire: &mut Wire, identity: &Identity) {
    let refused = async {
        loop {
            match wire.task(world, identity, 0).await {
                Ok(_) => sleep(Duration::from_millis(20)).await,
                Err(refusal) => break refusal,
            }
        }
    };
    let refusal = timeout(DEADLINE, refused).await.expect("it is refused");
    assert_eq!(refusal, said(401, "node-unknown"));
}

#[tokio::test]
async fn a_key_signed_by_both_speaks_for_the_node_and_the_old_one_no_more_once_its_overlap_is_over()
{
    let world = World::new();
    let (master, mut wire, old) = registered(&world).await;
    let new = Identity::generate();
    let bearer = operator(&world, OperatorRole::Viewer);
    assert_eq!(wire.task(&world, &old, 0).await, Ok(None));

    assert_eq!(wire.rotate(&world, "exit", &old, &new).await, admitted());
    // An answer that was lost is asked for again.
    assert_eq!(wire.rotate(&world, "exit", &old, &new).await, admitted());
    let show = Ok(Some(IdentityTask::Show(new.public_key())));
    assert_eq!(
        wire.task(&world, &old, 0).await,
        show,
        "there is nobody else to know it"
    );
    let node = get(&mut wire, "/v1/nodes/exit", &bearer).await;
    let mut states: Vec<_> = [0, 1]
        .map(|i| node["identities"][i]["state"].clone())
        .into();
    states.sort_by_key(ToString::to_string);
    assert_eq!(states, ["next", "present"]);

    assert_eq!(wire.task(&world, &new, 0).await, Ok(None));
    assert_eq!(
        wire.task(&world, &old, 0).await,
        Ok(None),
        "accepted for its overlap"
    );
    let late = wire
        .rotate(&world, "exit", &old, &Identity::generate())
        .await;
    assert_eq!(late, said(403, "key-not-present"));
    let early = wire
        .rotate(&world, "exit", &new, &Identity::generate())
        .await;
    assert_eq!(early, said(409, "identity-rotation-under-way"));
    refused(&world, &mut wire, &old).await;
    let node = get(&mut wire, "/v1/nodes/exit", &bearer).await;
    assert_eq!(node["identities"].as_array().unwrap().len(), 1);
    assert_eq!(node["identities"][0]["key"], new.public_key().to_string());

    // What was rotated out comes back by no way, also over a restart.
    let back = wire.rotate(&world, "exit", &new, &old).await;
    assert_eq!(back, said(403, "key-retired"));
    drop(wire);
    master.stop().await;
    let master = world.start().await;
    let mut wire = Wire::open(&world, master.address).await;
    let anew = wire.register(&old, &sign(&world, &claims("2")), "2").await;
    assert_eq!(anew, said(403, "key-retired"));
    assert_eq!(wire.task(&world, &new, 0).await, Ok(None));
    let lines = on_record(&world).await;
    let rotations = lines.iter().filter(|event| event.action == Action::Rotate);
    let told: Vec<_> = rotations
        .map(|event| (event.actor.as_str(), event.path.split(':').next().unwrap()))
        .collect();
    let expected = [
        ("exit", ROTATE),
        ("master", "identity shown"),
        ("master", "identity retired"),
    ];
    assert_eq!(told, expected);
}

#[tokio::test]
async fn a_rotation_that_is_not_right_in_every_way_is_refused_by_its_reason() {
    let world = World::new();
    let (master, mut wire, present) = registered(&world).await;
    let exit = node_id("exit");
    let (next, thief) = (Identity::generate(), Identity::generate());
    let bearer = wire.bearer(&world, &present, &exit);

    let mut wrong = wire.rotation(&exit, &present, &next).await;
    wrong.signature = wire.rotation(&exit, &thief, &next).await.signature;
    let outcome = wire.post_rotation(&bearer, &wrong).await;
    assert_eq!(outcome, said(403, "present-key-not-proved"));
    let mut wrong = wire.rotation(&exit, &present, &next).await;
    wrong.next_signature.clone_from(&wrong.signature);
    let outcome = wire.post_rotation(&bearer, &wrong).await;
    assert_eq!(outcome, said(403, "possession-not-proved"));
    // Signed for another node, by both.
    let wrong = wire.rotation(&node_id("other"), &present, &next).await;
    let outcome = wire.post_rotation(&bearer, &wrong).await;
    assert_eq!(outcome, said(403, "present-key-not-proved"));
    let mut wrong = wire.rotation(&exit, &present, &next).await;
    wrong.signature = "xyz".to_owned();
    let outcome = wire.post_rotation(&bearer, &wrong).await;
    assert_eq!(outcome, said(400, "malformed-request"));

    // A nonce serves once, whatever came of it, and on its own connection.
    let good = wire.rotation(&exit, &present, &next).await;
    let mut elsewhere = Wire::open(&world, master.address).await;
    let there = elsewhere.bearer(&world, &present, &exit);
    let stolen = said(403, "nonce-not-accepted");
    assert_eq!(elsewhere.post_rotation(&there, &good).await, stolen);
    assert_eq!(wire.post_rotation(&bearer, &good).await, admitted());
    assert_eq!(wire.post_rotation(&bearer, &good).await, stolen, "replayed");

    // By whom.
    let outcome = wire.rotate(&world, "exit", &thief, &next).await;
    assert_eq!(outcome, said(401, "node-unknown"));
    let outcome = wire.problem(Method::POST, ROTATE, None, "{}").await;
    assert_eq!(outcome, said(401, "token-missing"));
    for body in ["", "[]", "{}", "{\"public_key\":1}", "\u{0}"] {
        let outcome = wire
            .problem(Method::POST, ROTATE, Some(&bearer), body)
            .await;
        assert_eq!(outcome, said(400, "malformed-request"), "{body:?}");
    }
}

#[tokio::test]
async fn a_key_that_is_somebodys_or_was_revoked_or_comes_too_soon_is_not_admitted() {
    let world = World::new();
    let (master, mut wire, present) = registered(&world).await;
    let neighbour = join(world.node(&master, "gw", Role::Gateway, &[])).await;
    let gone = join(world.node(&master, "gone", Role::Gateway, &[])).await;
    let [of_neighbour, of_gone] = ["gw", "gone"].map(|node| {
        let file = world.path(&format!("{node}.identity"));
        Identity::from_pem(&wavry_credentials::source::read_file(&file).unwrap()).unwrap()
    });
    let bearer = operator(&world, OperatorRole::Operator);
    let revoke = "/v1/nodes/gone/revoke";
    let revoked = wire.problem(Method::POST, revoke, Some(&bearer), "").await;
    assert_eq!(revoked.0, 204);
    drop(gone);

    for (next, expected) in [
        (&of_neighbour, said(409, "key-in-use")),
        (&present, said(409, "key-in-use")),
        (&of_gone, said(403, "key-revoked")),
    ] {
        assert_eq!(wire.rotate(&world, "exit", &present, next).await, expected);
    }
    let (next, other) = (Identity::generate(), Identity::generate());
    assert_eq!(
        wire.rotate(&world, "exit", &present, &next).await,
        admitted()
    );
    let second = wire.rotate(&world, "exit", &present, &other).await;
    assert_eq!(second, said(409, "identity-rotation-under-way"));
    // A key that waits to be shown is in use, too.
    let token = sign(&world, &registration("third"));
    let anew = wire.register(&next, &token, "3").await;
    assert_eq!(anew, said(409, "key-in-use"));
    drop(neighbour);
}

/// What a registration token for another relay says.
fn registration(node: &str) -> wavry_proto::token::Registration {
    wavry_proto::token::Registration {
        placement: Default::default(),
        sub: node_id(node),
        ..claims("3")
    }
}

#[tokio::test]
async fn an_operator_has_a_node_rotate_and_one_that_was_lost_makes_way() {
    let world = World::new();
    let (_master, mut wire, present) = registered(&world).await;
    let viewer = operator(&world, OperatorRole::Viewer);
    let bearer = operator(&world, OperatorRole::Operator);
    let outcome = wire.problem(Method::POST, ORDER, Some(&viewer), "").await;
    assert_eq!(outcome, said(403, "role-not-sufficient"));
    let nobody = "/v1/nodes/nobody/rotate";
    let outcome = wire.problem(Method::POST, nobody, Some(&bearer), "").await;
    assert_eq!(outcome, said(404, "no-such-node"));

    let outcome = wire.problem(Method::POST, ORDER, Some(&bearer), "").await;
    assert_eq!(outcome, said(202, ""));
    let rotate = Ok(Some(IdentityTask::Rotate));
    assert_eq!(wire.task(&world, &present, 0).await, rotate);
    assert_eq!(
        wire.task(&world, &present, 0).await,
        rotate,
        "until it does"
    );
    let lost = Identity::generate();
    assert_eq!(
        wire.rotate(&world, "exit", &present, &lost).await,
        admitted()
    );
    assert_ne!(wire.task(&world, &present, 0).await, rotate);

    let next = Identity::generate();
    let outcome = wire.rotate(&world, "exit", &present, &next).await;
    assert_eq!(outcome, said(409, "identity-rotation-under-way"));
    assert_eq!(
        wire.problem(Method::POST, ORDER, Some(&bearer), "").await.0,
        202
    );
    assert_eq!(
        wire.rotate(&world, "exit", &present, &next).await,
        admitted()
    );
    let show = Ok(Some(IdentityTask::Show(next.public_key())));
    assert_eq!(wire.task(&world, &present, 0).await, show);
    assert!(wire.task(&world, &lost, 0).await.is_err());
    let back = wire.rotate(&world, "exit", &present, &lost).await;
    assert_eq!(back, said(409, "identity-rotation-under-way"));
    let lines = on_record(&world).await;
    let ordered = |event: &&wavry_credentials::audit::Event| {
        event.path == "/v1/nodes/{node}/rotate" && event.action == Action::Rotate
    };
    let ordered: Vec<_> = lines.iter().filter(ordered).collect();
    assert_eq!(ordered.len(), 2);
    assert!(
        ordered
            .iter()
            .all(|line| line.actor == "alice" && line.subject == "exit")
    );
}

#[tokio::test]
async fn an_identity_waits_for_every_node_to_act_on_a_roster_that_lists_it() {
    let world = World::new();
    let (master, mut wire, present) = registered(&world).await;
    let mut late = Wire::open(&world, master.address).await;
    let gateway = Identity::generate();
    let token = wavry_proto::token::Registration {
        placement: Default::default(),
        role: Role::Gateway,
        ..registration("gw")
    };
    assert_eq!(
        late.register(&gateway, &sign(&world, &token), "3").await.0,
        201
    );
    let next = Identity::generate();
    assert_eq!(
        wire.rotate(&world, "exit", &present, &next).await,
        admitted()
    );
    assert_eq!(
        wire.task(&world, &present, u64::MAX >> 1).await,
        Ok(None),
        "its own word does not count"
    );

    let bearer = late.bearer(&world, &gateway, &node_id("gw"));
    let mut told = heartbeat();
    told.epoch = Epoch(1);
    assert_eq!(late.heartbeat(Some(&bearer), &told).await.0, 200);
    assert_eq!(wire.task(&world, &present, 0).await, Ok(None));
    let viewer = operator(&world, OperatorRole::Viewer);
    let nodes = get(&mut wire, "/v1/nodes/exit", &viewer).await;
    assert_eq!(nodes["identities"].as_array().unwrap().len(), 2);
    told.epoch = Epoch(u64::MAX >> 1);
    assert_eq!(late.heartbeat(Some(&bearer), &told).await.0, 200);
    let show = Ok(Some(IdentityTask::Show(next.public_key())));
    assert_eq!(wire.task(&world, &present, 0).await, show);
}

#[tokio::test]
async fn a_node_rotates_when_its_time_has_come_and_starts_again_by_what_it_shows() {
    let world = World::new();
    let mut config = world.config();
    config.identity_pace.overlap = Duration::from_secs(1);
    let master = world.start_with(config).await;
    let peer = join(world.node(&master, "gw", Role::Gateway, &[])).await;
    let mut node = world.node(&master, "exit", Role::Relay, &["echo"]);
    node.identity_lifetime = Duration::from_secs(1);
    let relay = join(node.clone()).await;
    let first = relay.identity().public_key();
    let mut rosters = peer.roster();
    let keys = |roster: &wavry_proto::control::Roster| {
        let exit = roster.node(&node_id("exit"));
        exit.map(|node| (node.keys.clone(), node.registration))
    };
    let listed = roster_where(&mut rosters, |r| keys(r).is_some()).await;
    let registration = keys(&listed).unwrap().1;
    roster_where(&mut rosters, |r| {
        keys(r).is_some_and(|(keys, _)| keys.len() == 2)
    })
    .await;
    let rotated = roster_where(&mut rosters, |r| {
        keys(r).is_some_and(|(keys, _)| !keys.contains(&first))
    });
    let rotated = rotated.await;
    let rotated = keys(&rotated).unwrap();
    assert_eq!(rotated.1, registration, "it is the same node");
    assert_ne!(relay.identity().public_key(), first);

    drop(relay);
    node.identity_lifetime = Duration::from_secs(3600);
    let again = join(node).await;
    assert_ne!(again.identity().public_key(), first);
}
