use std::sync::Arc;

use serde_json::{Value, json};
use wavry_credentials::audit::Action;

use crate::keyvault::{
    call::Refusal,
    postgres_server::Server,
    world::{World, at_once},
};

async fn world() -> World {
    let world = World::new().await;
    world.enable("approle").await;
    world
}

/// A role with this role-id, and one secret-id of it.
async fn role(world: &World, name: &str, body: Value) -> Value {
    world
        .root()
        .post(&format!("auth/approle/role/{name}"), body)
        .await
        .unwrap();
    let id = world
        .root()
        .get(&format!("auth/approle/role/{name}/role-id"))
        .await
        .unwrap();
    let path = format!("auth/approle/role/{name}/secret-id");
    let made = world
        .root()
        .post(&path, json!({"metadata": {"env": "prod"}}))
        .await
        .unwrap();
    json!({"role_id": id["role_id"], "secret_id": made["secret_id"], "accessor": made["secret_id_accessor"]})
}

const LOGIN: &str = "auth/approle/login";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_logins_at_once_with_a_secret_id_for_one_use_are_one() {
    let world = Arc::new(world().await);
    let shown = role(&world, "web", json!({"secret_id_num_uses": 1})).await;
    let done = at_once(100, |_| {
        let (world, shown) = (world.clone(), shown.clone());
        async move { world.stranger().token(LOGIN, shown).await.is_ok() }
    })
    .await;
    assert_eq!(done, 1);
    let log = world.log().await;
    let logins = log
        .iter()
        .filter(|event| event.action == Action::Login && event.outcome == "done");
    assert_eq!(logins.count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_they_are_with_two_instances_on_postgresql() {
    let server = Server::start(false);
    let one = World::on(&server, "logins").await;
    let worlds = [Arc::new(one.another().await), Arc::new(one)];
    worlds[0].enable("approle").await;
    let shown = role(&worlds[0], "web", json!({"secret_id_num_uses": 1})).await;
    let few = json!({"num_uses": 5});
    let token = worlds[0].root().token("auth/token/create", few).await;
    let token = Arc::new(token.unwrap().client_token);
    let logins = at_once(100, |i| {
        let (world, shown) = (worlds[i % 2].clone(), shown.clone());
        async move { world.stranger().token(LOGIN, shown).await.is_ok() }
    })
    .await;
    assert_eq!(logins, 1);
    let uses = at_once(20, |i| {
        let (world, token) = (worlds[i % 2].clone(), token.clone());
        async move {
            world
                .with(&token)
                .get("auth/token/lookup-self")
                .await
                .is_ok()
        }
    })
    .await;
    assert_eq!(uses, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_id_is_used_as_often_as_it_may_be() {
    let world = Arc::new(world().await);
    let shown = role(&world, "web", json!({"secret_id_num_uses": 7})).await;
    let done = at_once(30, |_| {
        let (world, shown) = (world.clone(), shown.clone());
        async move { world.stranger().token(LOGIN, shown).await.is_ok() }
    })
    .await;
    assert_eq!(done, 7);
}

#[tokio::test]
async fn a_login_gives_a_token_for_its_role_for_thirty_minutes_and_eight_hours_at_most() {
    let world = world().await;
    let shown = role(&world, "Web", json!({"token_policies": "a,b"})).await;
    let auth = world.stranger().token(LOGIN, shown).await.unwrap();
    assert_eq!(auth.policies, ["a", "b", "default"]);
    assert_eq!(auth.lease_duration.as_secs(), 1800);
    assert!(auth.renewable && auth.orphan);
    assert_eq!(auth.metadata["env"], "prod");
    assert_eq!(auth.metadata["role_name"], "web");
    let wish = json!({"increment": "1000h"});
    let renewed = world
        .with(&auth.client_token)
        .token("auth/token/renew-self", wish)
        .await
        .unwrap();
    assert!((28_790..=28_800).contains(&renewed.lease_duration.as_secs()));
    let log = world.log().await;
    let login = log
        .iter()
        .find(|event| event.action == Action::Login)
        .unwrap();
    assert_eq!(login.actor, "approle/web");
}

#[tokio::test]
async fn whatever_is_wrong_is_refused_alike() {
    let world = world().await;
    let good = role(&world, "web", json!({})).await;
    let other = role(&world, "other", json!({})).await;
    let refusal = |shown: Value| {
        let ask = world.stranger();
        async move { ask.post(LOGIN, shown).await.unwrap_err().to_string() }
    };
    let expected = "invalid role or secret ID";
    for shown in [
        json!({"role_id": "unknown", "secret_id": good["secret_id"]}),
        json!({"role_id": good["role_id"], "secret_id": "wrong"}),
        json!({"role_id": good["role_id"], "secret_id": other["secret_id"]}),
        json!({"role_id": good["role_id"]}),
        json!({"role_id": "", "secret_id": ""}),
        json!({"role_id": good["role_id"], "secret_id": "x".repeat(10_000)}),
    ] {
        assert_eq!(refusal(shown.clone()).await, expected, "{shown}");
    }
    assert!(world.stranger().token(LOGIN, good).await.is_ok());
}

#[tokio::test]
async fn from_a_wrong_network_nothing_is_used_up_and_nobody_is_locked_out() {
    let world = world().await;
    let body = json!({"secret_id_num_uses": 1, "secret_id_bound_cidrs": "10.0.0.0/8", "token_bound_cidrs": ["10.0.0.0/8"]});
    let shown = role(&world, "web", body).await;
    for _ in 0..10 {
        let refusal = world
            .stranger()
            .from("11.0.0.1")
            .post(LOGIN, shown.clone())
            .await
            .unwrap_err();
        assert_eq!(refusal.to_string(), "invalid role or secret ID");
    }
    let auth = world
        .stranger()
        .from("10.0.0.1")
        .token(LOGIN, shown)
        .await
        .unwrap();
    let from = |address| {
        let ask = world.with(&auth.client_token).from(address);
        async move { ask.get("auth/token/lookup-self").await.is_ok() }
    };
    assert!(from("10.9.9.9").await);
    assert!(!from("11.0.0.1").await);
    let wider = json!({"cidr_list": "11.0.0.0/8"});
    assert!(
        world
            .root()
            .post("auth/approle/role/web/secret-id", wider)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn who_guesses_waits_whether_the_role_is_there_or_not() {
    let world = world().await;
    let good = role(&world, "web", json!({})).await;
    let other = role(&world, "other", json!({})).await;
    for role_id in [good["role_id"].clone(), json!("unknown")] {
        let guess = json!({"role_id": role_id, "secret_id": "guess"});
        for _ in 0..5 {
            let refusal = world
                .stranger()
                .post(LOGIN, guess.clone())
                .await
                .unwrap_err();
            assert!(matches!(refusal, Refusal::Invalid(_)), "{refusal}");
        }
        let refusal = world.stranger().post(LOGIN, guess).await.unwrap_err();
        assert!(matches!(refusal, Refusal::TooMany(after) if (50..=60).contains(&after.as_secs())));
    }
    assert!(matches!(
        world.stranger().token(LOGIN, good).await,
        Err(Refusal::TooMany(_))
    ));
    assert!(world.stranger().token(LOGIN, other).await.is_ok());
    let alarms = world
        .log()
        .await
        .into_iter()
        .filter(|event| event.action == Action::Alarm);
    assert_eq!(alarms.count(), 2);
}

#[tokio::test]
async fn a_role_that_is_made_again_does_not_know_what_was_before() {
    let world = world().await;
    let before = role(&world, "web", json!({"role_id": "chosen"})).await;
    let auth = world.stranger().token(LOGIN, before.clone()).await.unwrap();
    world.root().delete("auth/approle/role/web").await.unwrap();
    assert!(world.stranger().token(LOGIN, before.clone()).await.is_err());
    let after = role(&world, "web", json!({"role_id": "chosen"})).await;
    assert!(world.stranger().token(LOGIN, before).await.is_err());
    assert!(world.stranger().token(LOGIN, after).await.is_ok());
    // With its mount, what was let in there ends.
    assert!(
        world
            .with(&auth.client_token)
            .get("auth/token/lookup-self")
            .await
            .is_ok()
    );
    world.root().delete("sys/auth/approle").await.unwrap();
    assert!(
        world
            .with(&auth.client_token)
            .get("auth/token/lookup-self")
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_role_id_belongs_to_one_role() {
    let world = world().await;
    role(&world, "web", json!({})).await;
    role(&world, "other", json!({"role_id": "taken"})).await;
    let refusal = world
        .root()
        .post("auth/approle/role/web/role-id", json!({"role_id": "taken"}))
        .await;
    assert!(matches!(refusal, Err(Refusal::Invalid(_))));
    world
        .root()
        .post("auth/approle/role/web/role-id", json!({"role_id": "free"}))
        .await
        .unwrap();
    let shown = world
        .root()
        .get("auth/approle/role/web/role-id")
        .await
        .unwrap();
    assert_eq!(shown["role_id"], "free");
}

#[tokio::test]
async fn secret_ids_are_listed_looked_up_and_destroyed_by_accessor() {
    let world = world().await;
    let shown = role(&world, "web", json!({"secret_id_ttl": "1h"})).await;
    let keys = world
        .root()
        .list("auth/approle/role/web/secret-id")
        .await
        .unwrap();
    assert_eq!(keys["keys"], json!([shown["accessor"]]));
    let named = json!({"secret_id_accessor": shown["accessor"]});
    let path = "auth/approle/role/web/secret-id-accessor";
    let held = world
        .root()
        .post(&format!("{path}/lookup"), named.clone())
        .await
        .unwrap();
    assert_eq!(held["secret_id_ttl"], 3600);
    assert_eq!(held["metadata"]["env"], "prod");
    let custom = json!({"secret_id": "chosen", "num_uses": 2});
    world
        .root()
        .post("auth/approle/role/web/custom-secret-id", custom.clone())
        .await
        .unwrap();
    assert!(
        world
            .root()
            .post("auth/approle/role/web/custom-secret-id", custom)
            .await
            .is_err()
    );
    world
        .root()
        .post(&format!("{path}/destroy"), named)
        .await
        .unwrap();
    assert!(world.stranger().token(LOGIN, shown.clone()).await.is_err());
    let login = json!({"role_id": shown["role_id"], "secret_id": "chosen"});
    assert!(world.stranger().token(LOGIN, login).await.is_ok());
    let left = world
        .root()
        .post(
            "auth/approle/role/web/secret-id/lookup",
            json!({"secret_id": "chosen"}),
        )
        .await;
    assert_eq!(left.unwrap()["secret_id_num_uses"], 1);
}

#[tokio::test]
async fn secret_ids_expire_and_are_tidied_away() {
    let world = world().await;
    let shown = role(&world, "web", json!({"secret_id_ttl": "10s"})).await;
    role(&world, "gone", json!({})).await;
    let tokens = world.vault.authorizer.tokens();
    tokens.clock().has_been(tokens.now() + 10);
    assert!(world.stranger().token(LOGIN, shown).await.is_err());
    world
        .root()
        .post("auth/approle/tidy/secret-id", json!({}))
        .await
        .unwrap();
    let keys = world.root().list("auth/approle/role/web/secret-id").await;
    assert!(matches!(keys, Err(Refusal::Absent)));
    assert!(
        world
            .root()
            .list("auth/approle/role/gone/secret-id")
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_role_needs_a_constraint_and_gives_no_root() {
    let world = world().await;
    for body in [
        json!({"bind_secret_id": false}),
        json!({"token_policies": "root"}),
        json!({"token_ttl": "2h", "token_max_ttl": "1h"}),
        json!({"token_type": "batch"}),
        json!({"token_bound_cidrs": "x"}),
    ] {
        let refusal = world
            .root()
            .post("auth/approle/role/web", body.clone())
            .await;
        assert!(matches!(refusal, Err(Refusal::Invalid(_))), "{body}");
    }
    let open =
        json!({"bind_secret_id": false, "token_bound_cidrs": "192.0.2.0/24", "role_id": "r"});
    world
        .root()
        .post("auth/approle/role/web", open)
        .await
        .unwrap();
    let login = json!({"role_id": "r"});
    assert!(world.stranger().token(LOGIN, login.clone()).await.is_ok());
    assert!(
        world
            .stranger()
            .from("11.0.0.1")
            .token(LOGIN, login)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn whatever_is_wrong_with_a_login_the_store_is_asked_as_often_and_finds_as_much() {
    let world = world().await;
    let shown = role(&world, "web", json!({})).await;
    let bound = role(
        &world,
        "bound",
        json!({"secret_id_bound_cidrs": "10.0.0.0/8"}),
    )
    .await;
    let brief = role(&world, "brief", json!({"secret_id_ttl": 1})).await;
    let at_home = json!({"token_bound_cidrs": "10.0.0.0/8"});
    let at_home = role(&world, "at-home", at_home).await;
    let tokens = world.vault.authorizer.tokens();
    tokens.clock().has_been(tokens.now() + 10);
    let barrier = world.vault.barrier();
    let with =
        |role_id: &Value, secret_id: &Value| json!({"role_id": role_id, "secret_id": secret_id});
    let (unknown, wrong) = (json!("unknown"), json!("wrong"));
    let mut seen = Vec::new();
    for (what, body, succeeds) in [
        ("good", shown.clone(), true),
        ("unknown role", with(&unknown, &shown["secret_id"]), false),
        (
            "unknown role again",
            with(&unknown, &shown["secret_id"]),
            false,
        ),
        ("wrong secret", with(&shown["role_id"], &wrong), false),
        ("wrong secret again", with(&shown["role_id"], &wrong), false),
        (
            "another's secret",
            with(&shown["role_id"], &bound["secret_id"]),
            false,
        ),
        ("elsewhere", bound.clone(), false),
        ("token for elsewhere", at_home, false),
        ("expired", brief, false),
    ] {
        let before = barrier.asked();
        let lines = world.log().await.len();
        let answer = world.stranger().token(LOGIN, body).await;
        assert_eq!(answer.is_ok(), succeeds, "{what}");
        assert_eq!(world.log().await.len(), lines + 1, "{what}");
        let after = barrier.asked();
        seen.push((what, [after[0] - before[0], after[1] - before[1]]));
    }
    assert!(
        seen.iter().all(|(_, asked)| *asked == [2, 3]),
        "not there, there: {seen:?}"
    );
}
