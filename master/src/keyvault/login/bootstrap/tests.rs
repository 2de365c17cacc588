use std::sync::Arc;

use serde_json::{Value, json};
use wavry_credentials::audit::Action;

use crate::keyvault::{
    call::Refusal,
    world::{World, at_once},
};

const LOGIN: &str = "auth/bootstrap/login";

async fn world() -> World {
    let world = World::new().await;
    world.enable("bootstrap").await;
    let role = json!({"token_policies": "first", "bootstrap_ttl": "5m"});
    world
        .root()
        .post("auth/bootstrap/role/unit", role)
        .await
        .unwrap();
    world
}

async fn issue(world: &World, body: Value) -> Value {
    let made = world
        .root()
        .post("auth/bootstrap/role/unit/token", body)
        .await
        .unwrap();
    json!({"bootstrap_token": made["bootstrap_token"]})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bootstrap_token_lets_in_once_and_its_second_use_is_an_alarm() {
    let world = Arc::new(world().await);
    let shown = issue(
        &world,
        json!({"unit": "web-1", "metadata": {"env": "prod"}}),
    )
    .await;
    let done = at_once(20, |_| {
        let (world, shown) = (world.clone(), shown.clone());
        async move { world.stranger().token(LOGIN, shown).await.is_ok() }
    })
    .await;
    assert_eq!(done, 1);
    let log = world.log().await;
    let login = log
        .iter()
        .find(|event| event.action == Action::Login)
        .unwrap();
    assert_eq!(login.actor, "bootstrap/web-1");
    assert_eq!(
        log.iter()
            .filter(|event| event.action == Action::Alarm)
            .count(),
        19
    );
}

#[tokio::test]
async fn a_bootstrap_token_is_for_its_role_its_network_and_its_minutes() {
    let world = world().await;
    let shown = issue(&world, json!({"cidr_list": "10.0.0.0/8"})).await;
    assert!(
        world
            .stranger()
            .from("11.0.0.1")
            .token(LOGIN, shown.clone())
            .await
            .is_err()
    );
    let auth = world
        .stranger()
        .from("10.0.0.1")
        .token(LOGIN, shown)
        .await
        .unwrap();
    assert_eq!(auth.policies, ["default", "first"]);

    let late = issue(&world, json!({"ttl": "1m"})).await;
    let tokens = world.vault.authorizer.tokens();
    tokens.clock().has_been(tokens.now() + 60);
    let refusal = world.stranger().post(LOGIN, late).await.unwrap_err();
    assert_eq!(refusal.to_string(), super::WRONG);
    let unknown = json!({"bootstrap_token": "wvb.unknown"});
    let refusal = world.stranger().post(LOGIN, unknown).await.unwrap_err();
    assert_eq!(refusal.to_string(), super::WRONG);
}

#[tokio::test]
async fn bootstrap_tokens_do_not_last_long_and_are_swept_away() {
    let world = world().await;
    let long = json!({"bootstrap_ttl": "48h"});
    let refusal = world.root().post("auth/bootstrap/role/unit", long).await;
    assert!(matches!(refusal, Err(Refusal::Invalid(_))));
    let made = world
        .root()
        .post("auth/bootstrap/role/unit/token", json!({"ttl": "1h"}))
        .await
        .unwrap();
    assert_eq!(made["bootstrap_token_ttl"], 300);
    let tokens = world.vault.authorizer.tokens();
    assert_eq!(
        crate::keyvault::login::sweep(&world.vault.authorizer)
            .await
            .unwrap(),
        0
    );
    tokens.clock().has_been(tokens.now() + 300);
    assert_eq!(
        crate::keyvault::login::sweep(&world.vault.authorizer)
            .await
            .unwrap(),
        1
    );
}
