//! What a store owes, on SQLite and on PostgreSQL.

use std::sync::Arc;

use sqlx::{Connection as _, PgConnection, SqliteConnection};
use tempfile::TempDir;
use time::OffsetDateTime;
use wavry_credentials::{
    audit::{self, Action, Event},
    token::SigningKey,
};
use wavry_master::{
    database::Location,
    identity::State,
    store::{
        Admission, Announcement, FleetError, MAX_KEPT, Once, OnceError, Order, RegisterError,
        RevokeError, RotateIdentityError, Snapshot, Store,
    },
};
use wavry_proto::{
    control::{
        Access, Role, Service,
        fleet::{Leased, TakeLease, WriteEntry},
    },
    id::PublicKey,
    placement::Placement,
};

use crate::{
    postgres::Server,
    world::{node_id, service},
};

/// Tests of both databases: on SQLite each of its own, on PostgreSQL one after the other with one server.
macro_rules! contract {
    ($($name:ident)*) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $name() {
                super::$name(&super::Place::sqlite()).await;
            })*
        }

        #[tokio::test]
        async fn postgresql_owes_the_same() {
            let server = Server::start(false);
            $(
                println!("{}", stringify!($name));
                $name(&Place::postgres(&server, stringify!($name)).await).await;
            )*
        }
    };
}

contract! {
    the_epoch_grows_with_what_the_roster_shows_and_with_nothing_else
    a_registration_places_its_node_and_the_next_one_places_it_anew
    a_refused_registration_leaves_no_trace_and_does_not_use_the_token_up
    a_used_token_is_remembered_past_its_expiry
    a_node_whose_answer_was_lost_registers_again_and_changes_nothing
    a_revoked_node_does_not_register_again_with_the_token_that_it_came_with
    a_token_that_was_forgotten_is_not_taken_when_the_clock_is_set_back
    a_revocation_of_a_subject_only_grows_and_goes_when_all_it_revokes_has_expired
    the_epoch_of_a_restored_database_passes_those_that_nodes_have_seen
    identities_take_each_others_place_and_none_that_was_rotated_out_comes_back
    services_are_those_of_the_configuration
    an_order_with_a_key_is_carried_out_once_and_its_outcome_kept_for_a_day
    outcomes_are_kept_in_bounds_and_each_operators_for_itself
    a_lease_of_the_fleet_has_one_holder_and_outlives_the_process
    the_registry_outlives_the_process
}

/// A database, which may be opened several times.
struct Place {
    location: Location,
    url: String,
    audit_key: Arc<audit::Key>,
    _directory: TempDir,
}

impl Place {
    fn sqlite() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("db");
        let url = format!("sqlite://{}", file.display());
        Self::at(file.into(), url, directory)
    }

    async fn postgres(server: &Server, name: &str) -> Self {
        // The server cuts longer ones.
        let name = &name[..name.len().min(60)];
        let url = server.database(name).await;
        Self::at(url.parse().unwrap(), url, tempfile::tempdir().unwrap())
    }

    fn at(location: Location, url: String, directory: TempDir) -> Self {
        let key = SigningKey::generate().to_paserk();
        let key = audit::Key::from_paserk(&key, "test".parse().unwrap()).unwrap();
        Self {
            location,
            url,
            audit_key: Arc::new(key),
            _directory: directory,
        }
    }

    /// Keeps as many outcomes more as there is one.
    async fn keep_more(&self, count: usize) {
        match &self.location {
            Location::Sqlite(_) => {
                let mut database = SqliteConnection::connect(&self.url).await.unwrap();
                sqlx::query(
                    "WITH RECURSIVE more (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM more WHERE n < $1)
                     INSERT INTO idempotency_key
                     SELECT CAST('more ' || n AS BLOB), operator, request, outcome, expires_at
                     FROM idempotency_key, more",
                )
                .bind(i64::try_from(count).unwrap())
                .execute(&mut database)
                .await
                .unwrap();
            }
            Location::Postgres(_) => {
                let mut database = PgConnection::connect(&self.url).await.unwrap();
                sqlx::query(
                    "INSERT INTO idempotency_key
                     SELECT ('more ' || n)::bytea, operator, request, outcome, expires_at
                     FROM idempotency_key, generate_series(1, $1) n",
                )
                .bind(i64::try_from(count).unwrap())
                .execute(&mut database)
                .await
                .unwrap();
            }
        }
    }

    async fn store(&self) -> Store {
        let opened = Store::open(&self.location, self.audit_key.clone()).await;
        opened.unwrap()
    }
}

fn admission(jti: &str, key: u8) -> Admission {
    Admission {
        jti: jti.to_owned(),
        issued_at: 900,
        expires_at: 1_000,
        node: node_id("exit"),
        role: Role::Relay,
        granted: vec![service("echo")],
        placement: placement(5),
        key: PublicKey([key; 32]),
        announcement: announcement(),
        event: Event::now(Action::Register, "exit", "/v1/nodes/register"),
    }
}

fn placement(weight: u16) -> Placement {
    Placement {
        region: Some("eu-west".parse().unwrap()),
        weight: weight.try_into().unwrap(),
        names: Vec::new(),
    }
}

fn announcement() -> Announcement {
    Announcement {
        addresses: vec!["127.0.0.1:1".parse().unwrap()],
        transit: Vec::new(),
        attached: Vec::new(),
        services: vec![service("echo")],
        draining: false,
    }
}

fn named(name: &str) -> Service {
    Service {
        name: service(name),
        hosts: vec![format!("{name}.example")],
        access: Access::Public,
        allowed_origins: vec!["*".to_owned()],
        max_sessions: Some(7),
        refuse_with: Default::default(),
        keys: Vec::new(),
    }
}

async fn the_epoch_grows_with_what_the_roster_shows_and_with_nothing_else(place: &Place) {
    let store = place.store().await;
    let first = store.snapshot().await.unwrap().epoch;

    let registered = store
        .register(&admission("1", 1), 0)
        .await
        .unwrap()
        .changed
        .unwrap();
    assert!(registered.epoch > first);

    let node = node_id("exit");
    let same = store.heartbeat(&node, &announcement()).await.unwrap();
    assert_eq!(same.changed, None);

    let mut draining = announcement();
    draining.draining = true;
    let drained = store.heartbeat(&node, &draining).await.unwrap();
    let drained = drained.changed.unwrap();
    assert!(drained.epoch > registered.epoch);
    assert!(drained.nodes[0].services.is_empty());
    assert_eq!(drained.nodes[0].keys, registered.nodes[0].keys);

    // Its services are gone already: that it also falls silent shows nowhere.
    assert_eq!(
        store.silence(std::slice::from_ref(&node)).await.unwrap(),
        None
    );

    let back = store
        .heartbeat(&node, &announcement())
        .await
        .unwrap()
        .changed
        .unwrap();
    assert_eq!(back.nodes, registered.nodes);
    let silent = store.silence(&[node]).await.unwrap().unwrap();
    assert!(silent.nodes[0].services.is_empty());
    assert_eq!(store.snapshot().await.unwrap(), silent);
}

async fn a_registration_places_its_node_and_the_next_one_places_it_anew(place: &Place) {
    let store = place.store().await;
    store.register(&admission("1", 1), 0).await.unwrap();
    let placed = |snapshot: Snapshot| snapshot.nodes[0].placement.clone();
    assert_eq!(placed(store.snapshot().await.unwrap()), placement(5));

    let anew = Admission {
        placement: Placement::default(),
        ..admission("2", 1)
    };
    let written = store.register(&anew, 0).await.unwrap();
    assert_eq!(placed(written.changed.unwrap()), Placement::default());
    assert_eq!(
        placed(store.snapshot().await.unwrap()),
        Placement::default()
    );
}

async fn a_refused_registration_leaves_no_trace_and_does_not_use_the_token_up(place: &Place) {
    let store = place.store().await;
    store.register(&admission("1", 1), 0).await.unwrap();
    let before = store.snapshot().await.unwrap();

    let mut same_key = admission("2", 1);
    same_key.node = node_id("other");
    let refused = store.register(&same_key, 0).await;
    assert!(
        matches!(refused, Err(RegisterError::KeyInUse)),
        "{refused:?}"
    );
    assert_eq!(store.snapshot().await.unwrap(), before);

    same_key.key = PublicKey([2; 32]);
    store.register(&same_key, 0).await.unwrap();
}

async fn a_used_token_is_remembered_past_its_expiry(place: &Place) {
    let store = place.store().await;
    store.register(&admission("1", 1), 0).await.unwrap();
    for now in [999, 1_000, 1_000 + 3_600] {
        let again = store.register(&admission("1", 2), now).await;
        assert!(matches!(again, Err(RegisterError::TokenUsed)), "{again:?}");
    }
}

async fn a_node_whose_answer_was_lost_registers_again_and_changes_nothing(place: &Place) {
    let store = place.store().await;
    store.register(&admission("1", 1), 0).await.unwrap();
    let node = admission("1", 1).node;
    let moved = Announcement {
        addresses: vec!["192.0.2.9:1".parse().unwrap()],
        ..announcement()
    };
    let announced = store.heartbeat(&node, &moved).await.unwrap();
    let before = store.snapshot().await.unwrap();
    let again = store.register(&admission("1", 1), 0).await.unwrap();
    assert_eq!(again.changed, None);
    assert_eq!(again.revision, announced.revision);
    assert_eq!(store.snapshot().await.unwrap(), before);

    // Once another token has registered the node, the first one is of no more use.
    store.register(&admission("2", 1), 0).await.unwrap();
    let old = store.register(&admission("1", 1), 0).await;
    assert!(matches!(old, Err(RegisterError::TokenUsed)), "{old:?}");
}

async fn a_revoked_node_does_not_register_again_with_the_token_that_it_came_with(place: &Place) {
    let store = place.store().await;
    store.register(&admission("1", 1), 0).await.unwrap();
    let node = admission("1", 1).node;
    let event = admission("1", 1).event;
    let order = event.into();
    store.revoke_node(&node, 0, &order).await.unwrap();
    let again = store.register(&admission("1", 1), 0).await;
    assert!(matches!(again, Err(RegisterError::TokenUsed)), "{again:?}");
}

async fn a_token_that_was_forgotten_is_not_taken_when_the_clock_is_set_back(place: &Place) {
    let store = place.store().await;
    store.register(&admission("1", 1), 0).await.unwrap();
    // Five hours on, another registration has the first one's token forgotten.
    let mut later = admission("2", 2);
    later.node = node_id("later");
    later.expires_at = 20_000;
    store.register(&later, 18_000).await.unwrap();
    for now in [999, 0] {
        let again = store.register(&admission("1", 1), now).await;
        assert!(
            matches!(again, Err(RegisterError::TokenExpired)),
            "{again:?}"
        );
    }
}

async fn a_revocation_of_a_subject_only_grows_and_goes_when_all_it_revokes_has_expired(
    place: &Place,
) {
    let store = place.store().await;
    let order = Event::now(Action::Revoke, "ann", "/v1/revocations").into();
    let ann = wavry_credentials::token::digest("ann");
    let revoke = async |now| store.revoke_subject(None, ann, now, &order).await.unwrap();
    assert_eq!(revoke(1_000).await.outcome.through, 1_030);
    let earlier = revoke(500).await;
    assert_eq!((earlier.outcome.through, earlier.changed), (1_030, None));
    let later = revoke(2_000).await;
    assert_eq!(later.outcome.through, 2_030);
    assert_eq!(later.changed.unwrap().revoked, [later.outcome]);

    let bob = wavry_credentials::token::digest("bob");
    let week = 7 * 24 * 3600;
    let echo = service("echo");
    let revoke = async |now| {
        let revoked = store.revoke_subject(Some(&echo), bob, now, &order).await;
        revoked.unwrap().changed.unwrap().revoked
    };
    assert_eq!(revoke(2_030 + week).await.len(), 2);
    let one = revoke(2_031 + week).await;
    assert_eq!(one.len(), 1);
    assert_eq!(one[0].subject, bob);
}

async fn the_epoch_of_a_restored_database_passes_those_that_nodes_have_seen(place: &Place) {
    let store = place.store().await;
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let first = store.renew(None).await.unwrap();
    assert!(first.epoch.0 >= now);
    let second = store.renew(None).await.unwrap();
    assert!(second.epoch > first.epoch);
    assert_eq!(store.snapshot().await.unwrap(), second);
}

async fn services_are_those_of_the_configuration(place: &Place) {
    let store = place.store().await;
    let [a, b] = [named("a"), named("b")];
    let both = store.configure(&[a.clone(), b.clone()]).await.unwrap();
    assert_eq!(*both.services, [a.clone(), b.clone()]);
    let again = store.configure(&[a, b.clone()]).await.unwrap();
    assert_eq!(again, both);
    let one = store.configure(std::slice::from_ref(&b)).await.unwrap();
    assert_eq!(*one.services, [b]);
    assert!(one.epoch > both.epoch);
}

async fn a_lease_of_the_fleet_has_one_holder_and_outlives_the_process(place: &Place) {
    let store = place.store().await;
    let (one, other) = (node_id("one"), node_id("other"));
    let event = Event::now(Action::Read, "one", "/v1/fleet/lease");
    let take = |fence| TakeLease {
        entry: "a.example".parse().unwrap(),
        fence,
    };
    let write = |fence, release| WriteEntry {
        entry: "a.example".parse().unwrap(),
        fence,
        draft: Some("ZHJhZnQ=".to_owned()),
        answers: None,
        product: Some("cGFpcg==".to_owned()),
        release,
    };
    let granted = store.take_lease(&one, &take(None), &event).await.unwrap();
    assert!(
        matches!(granted, Leased::Granted { fence: 1, .. }),
        "{granted:?}"
    );
    let held = store.take_lease(&other, &take(None), &event).await.unwrap();
    assert!(matches!(held, Leased::Held { .. }), "{held:?}");
    let passed = store.write_entry(&other, &write(1, false), &event).await;
    assert!(matches!(passed, Err(FleetError::Passed(_))), "{passed:?}");
    let written = store.write_entry(&one, &write(1, false), &event).await;
    assert_eq!(written.unwrap().revision, 1);
    store.close().await;

    let store = place.store().await;
    let held = store.take_lease(&other, &take(None), &event).await.unwrap();
    assert!(matches!(held, Leased::Held { .. }), "{held:?}");
    let more = store
        .take_lease(&one, &take(Some(1)), &event)
        .await
        .unwrap();
    let same = Leased::Granted {
        fence: 1,
        lasts_ms: 15_000,
        draft: None,
        product: None,
    };
    assert_eq!(more, same);
    store
        .write_entry(&one, &write(1, true), &event)
        .await
        .unwrap();
    let next = store.take_lease(&other, &take(None), &event).await.unwrap();
    match next {
        Leased::Granted { fence, draft, .. } => {
            assert_eq!((fence, draft.as_deref()), (2, Some("ZHJhZnQ=")));
        }
        Leased::Held { .. } => panic!("{next:?}"),
    }
    let changes = store.changes(0, &event).await.unwrap();
    assert_eq!(changes.revision, 2);
    assert_eq!(changes.entries[0].product.as_deref(), Some("cGFpcg=="));
    assert_eq!(store.changes(2, &event).await.unwrap().entries, []);
}

/// An order of `operator` with the key 1, so many seconds after 2033 began.
fn order(operator: &str, key: &str, asks: &str, seconds: i64) -> Order {
    let mut event = Event::now(Action::Revoke, "ann", "/v1/revocations");
    event.actor = operator.to_owned();
    event.time = OffsetDateTime::from_unix_timestamp(1_990_000_000 + seconds).unwrap();
    let request = [b"POST", b"/v1/revocations".as_slice(), asks.as_bytes()];
    Order {
        event,
        once: Some(Once::new(operator, key, request)),
    }
}

async fn an_order_with_a_key_is_carried_out_once_and_its_outcome_kept_for_a_day(place: &Place) {
    let store = place.store().await;
    let ann = wavry_credentials::token::digest("ann");
    let revoke =
        async |store: &Store, now, order: &Order| store.revoke_subject(None, ann, now, order).await;
    let first = order("op", "1", "ann", 0);
    let done = revoke(&store, 1_000, &first).await.unwrap();
    assert!(!done.is_repeated && done.changed.is_some());
    let again = revoke(&store, 2_000, &first).await.unwrap();
    assert!(again.is_repeated);
    assert_eq!((again.outcome, again.changed), (done.outcome, None));
    // Something else with the key, and the same of somebody else.
    let reused = revoke(&store, 2_000, &order("op", "1", "bob", 1)).await;
    let reused = reused.unwrap_err().to_string();
    assert_eq!(reused, OnceError::Reused.to_string());
    let other = revoke(&store, 3_000, &order("po", "1", "ann", 1)).await;
    assert!(!other.unwrap().is_repeated);

    store.close().await;
    let store = place.store().await;
    let day = 24 * 3600;
    let late = order("op", "1", "ann", day - 1);
    assert!(revoke(&store, 4_000, &late).await.unwrap().is_repeated);
    let later = order("op", "1", "ann", day);
    let done = revoke(&store, 4_000, &later).await.unwrap();
    assert!(!done.is_repeated);
    assert_eq!(done.outcome.through, 4_030);
    // What was refused is not kept, and can be asked again.
    let nobody = order("op", "2", "nobody", 0);
    for _ in 0..2 {
        let refused = store.revoke_node(&node_id("exit"), 0, &nobody).await;
        assert!(
            matches!(refused, Err(RevokeError::UnknownNode)),
            "{refused:?}"
        );
    }
    store.register(&admission("1", 1), 0).await.unwrap();
    let revoked = store
        .revoke_node(&node_id("exit"), 0, &nobody)
        .await
        .unwrap();
    assert!(!revoked.is_repeated);
    let again = store.revoke_node(&node_id("exit"), 0, &nobody).await;
    assert!(again.unwrap().is_repeated);
    store.check_audit().await.unwrap();
}

async fn outcomes_are_kept_in_bounds_and_each_operators_for_itself(place: &Place) {
    let store = place.store().await;
    let put = async |operator: &str, key: usize, seconds| {
        let order = order(operator, &key.to_string(), "", seconds);
        store.put_service(&named("a"), &order).await
    };
    put("op", 0, 0).await.unwrap();
    place.keep_more(MAX_KEPT - 1).await;
    let full = put("op", 1, 100).await.unwrap_err().to_string();
    let wait = 24 * 3600 - 100;
    assert_eq!(full, OnceError::TooMany { wait }.to_string());
    assert!(put("op", 0, 100).await.unwrap().is_repeated);
    assert!(!put("po", 1, 100).await.unwrap().is_repeated);
    assert!(!put("op", 1, 24 * 3600).await.unwrap().is_repeated);
}

async fn the_registry_outlives_the_process(place: &Place) {
    let store = place.store().await;
    store.register(&admission("1", 1), 0).await.unwrap();
    let before = store.snapshot().await.unwrap();
    store.close().await;
    let store = place.store().await;
    assert_eq!(store.snapshot().await.unwrap(), before);
}

/// Which identities node `exit` has, by the first byte of their keys, and whether another is wanted.
fn identities(snapshot: &Snapshot) -> (Vec<(u8, State)>, bool) {
    let lives = &snapshot.identities[0];
    let states = lives.lives.iter().map(|life| (life.key.0[0], life.state));
    (states.collect(), lives.ordered.is_some())
}

async fn identities_take_each_others_place_and_none_that_was_rotated_out_comes_back(place: &Place) {
    use State::{Before, Next, Present};
    let store = place.store().await;
    let exit = node_id("exit");
    let event = Event::now(Action::Rotate, "exit", "/v1/nodes/rotate");
    let key = |number| PublicKey([number; 32]);
    let admit = async |present, next| {
        let (present, next) = (key(present), key(next));
        store
            .admit_identity(&exit, &present, &next, 10, &event)
            .await
    };
    let registered = store.register(&admission("1", 1), 0).await.unwrap();
    let registration = registered.changed.unwrap().nodes[0].registration;

    let admitted = admit(1, 2).await.unwrap().unwrap();
    assert_eq!(
        identities(&admitted),
        (vec![(1, Present), (2, Next)], false)
    );
    assert_eq!(admitted.nodes[0].keys, [key(1), key(2)]);
    assert!(admitted.epoch > admitted.identities[0].lives[1].after_epoch);
    assert_eq!(admit(1, 2).await.unwrap(), None, "it is admitted already");
    let second = admit(1, 3).await;
    assert!(
        matches!(second, Err(RotateIdentityError::UnderWay)),
        "{second:?}"
    );

    let order = event.clone().into();
    let ordered = store.order_rotation(&exit, 20, &order).await.unwrap();
    assert!(identities(&ordered.changed.unwrap()).1);
    let replaced = admit(1, 3).await.unwrap().unwrap();
    assert_eq!(
        identities(&replaced),
        (vec![(1, Present), (3, Next)], false)
    );
    assert_eq!(
        store.show_identity(&exit, &key(2), 30, 5).await.unwrap(),
        None
    );
    let shown = store.show_identity(&exit, &key(3), 30, 5).await.unwrap();
    let shown = shown.unwrap();
    assert_eq!(identities(&shown), (vec![(1, Before), (3, Present)], false));
    assert_eq!(shown.identities[0].lives[0].until, Some(35));
    assert_eq!(shown.nodes[0].registration, registration);
    let early = admit(3, 4).await;
    assert!(
        matches!(early, Err(RotateIdentityError::UnderWay)),
        "{early:?}"
    );
    let late = admit(1, 4).await;
    assert!(
        matches!(late, Err(RotateIdentityError::NotPresent)),
        "{late:?}"
    );

    // The present one is not retired by mistake.
    let kept = store.retire_identities(&[(exit.clone(), key(3))]).await;
    assert_eq!(kept.unwrap(), None);
    let over = store.retire_identities(&[(exit.clone(), key(1))]).await;
    assert_eq!(identities(&over.unwrap().unwrap()).0, [(3, Present)]);
    for gone in [1, 2] {
        let back = admit(3, gone).await;
        assert!(
            matches!(back, Err(RotateIdentityError::KeyRetired)),
            "{back:?}"
        );
        let jti = format!("back {gone}");
        let back = store.register(&admission(&jti, gone), 0).await;
        assert!(matches!(back, Err(RegisterError::KeyRetired)), "{back:?}");
    }
    let anew = store.register(&admission("2", 9), 0).await.unwrap();
    let anew = anew.changed.unwrap();
    assert_ne!(
        anew.nodes[0].registration, registration,
        "it is another now"
    );

    let nobody = store.order_rotation(&node_id("nobody"), 40, &order).await;
    assert!(matches!(nobody, Err(RotateIdentityError::UnknownNode)));
}
