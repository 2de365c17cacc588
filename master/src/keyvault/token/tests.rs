use crate::keyvault::{
    call::{Auth, Refusal},
    world::{World, text},
};
use serde_json::{Value, json};
use wavry_credentials::bearer::Token;

async fn create(world: &World, by: &Token, body: Value) -> Result<Auth, Refusal> {
    world.with(by).token("auth/token/create", body).await
}

async fn is_good(world: &World, token: &Token) -> bool {
    world
        .with(token)
        .get("auth/token/lookup-self")
        .await
        .is_ok()
}

async fn world() -> World {
    let world = World::new().await;
    let text = r#"path "auth/token/*" { capabilities = ["create", "read", "update", "list"] }"#;
    world.put_policy("tokens", text).await;
    world
}

#[tokio::test]
async fn children_end_with_their_parent_and_orphans_do_not() {
    let world = world().await;
    let parent = create(&world, &world.root, json!({"policies": "tokens"}))
        .await
        .unwrap();
    let child = create(&world, &parent.client_token, json!({}))
        .await
        .unwrap();
    let grandchild = create(&world, &child.client_token, json!({}))
        .await
        .unwrap();
    let orphan = world
        .with(&parent.client_token)
        .token("auth/token/create-orphan", json!({}))
        .await;
    let orphan = orphan.unwrap();
    assert!(orphan.orphan && !child.orphan);
    for token in [&parent, &child, &grandchild, &orphan] {
        assert!(is_good(&world, &token.client_token).await);
    }
    let named = json!({"accessor": parent.accessor});
    world
        .root()
        .post("auth/token/revoke-accessor", named)
        .await
        .unwrap();
    for token in [&parent, &child, &grandchild] {
        assert!(!is_good(&world, &token.client_token).await);
    }
    assert!(is_good(&world, &orphan.client_token).await);
    // What is swept away were the two that ended with it.
    let swept = world
        .root()
        .post("auth/token/tidy", json!({}))
        .await
        .unwrap();
    assert_eq!(swept["swept"], 2);
    assert!(is_good(&world, &orphan.client_token).await);
}

#[tokio::test]
async fn a_token_can_be_revoked_without_those_that_it_made() {
    let world = world().await;
    let parent = create(&world, &world.root, json!({"policies": "tokens"}))
        .await
        .unwrap();
    let child = create(&world, &parent.client_token, json!({}))
        .await
        .unwrap();
    let grandchild = create(&world, &child.client_token, json!({}))
        .await
        .unwrap();
    let named = json!({"token": text(&parent.client_token)});
    world
        .root()
        .post("auth/token/revoke-orphan", named)
        .await
        .unwrap();
    assert!(!is_good(&world, &parent.client_token).await);
    assert!(
        create(&world, &parent.client_token, json!({}))
            .await
            .is_err()
    );
    for _ in 0..2 {
        for token in [&child, &grandchild] {
            assert!(is_good(&world, &token.client_token).await);
        }
        world
            .root()
            .post("auth/token/tidy", json!({}))
            .await
            .unwrap();
    }
    world
        .with(&child.client_token)
        .post("auth/token/revoke-self", json!({}))
        .await
        .unwrap();
    assert!(!is_good(&world, &grandchild.client_token).await);
    // Child, grandchild, and what was left of the parent for their sake: in two sweeps.
    let mut swept = 0;
    for _ in 0..2 {
        let tidy = world
            .root()
            .post("auth/token/tidy", json!({}))
            .await
            .unwrap();
        swept += tidy["swept"].as_u64().unwrap();
    }
    assert_eq!(swept, 2);
    let left = world
        .vault
        .barrier()
        .list("token/", None, 100)
        .await
        .unwrap();
    assert_eq!(left.len(), 1, "the root token");
}

#[tokio::test]
async fn a_token_is_kept_as_its_hmac_only() {
    let world = world().await;
    let made = create(&world, &world.root, json!({})).await.unwrap();
    let named = text(&made.client_token);
    let named = named.as_str().unwrap();
    for name in world
        .vault
        .barrier()
        .list("token/", None, 100)
        .await
        .unwrap()
    {
        let path = format!("token/{name}");
        let (_, record) = world
            .vault
            .barrier()
            .read_record::<Value>(&path)
            .await
            .unwrap()
            .unwrap();
        assert!(!path.contains(named) && !record.to_string().contains(&named[4..]));
    }
}

#[tokio::test]
async fn nobody_makes_a_token_that_may_more_than_its_maker() {
    let world = world().await;
    let by = create(&world, &world.root, json!({"policies": "tokens"}))
        .await
        .unwrap()
        .client_token;
    for body in [
        json!({"policies": ["root"]}),
        json!({"policies": ["other"]}),
        json!({"policies": ["tokens", "Other"]}),
        json!({"no_parent": true}),
        json!({"period": "1h"}),
        json!({"id": "chosen-by-me"}),
        json!({"type": "batch"}),
    ] {
        let refusal = create(&world, &by, body.clone()).await.err().unwrap();
        assert!(matches!(refusal, Refusal::Invalid(_)), "{body}: {refusal}");
    }
    let same = create(&world, &by, json!({"policies": ["tokens"]}))
        .await
        .unwrap();
    assert_eq!(same.policies, ["default", "tokens"]);
    let few = create(
        &world,
        &world.root,
        json!({"policies": "tokens", "num_uses": 5}),
    )
    .await
    .unwrap();
    assert!(create(&world, &few.client_token, json!({})).await.is_err());
    assert!(
        world
            .with(&by)
            .post("auth/token/revoke-orphan", json!({"token": "x"}))
            .await
            .is_err()
    );
    assert!(world.with(&by).list("auth/token/accessors").await.is_err());
    let accessors = world.root().list("auth/token/accessors").await.unwrap();
    assert!(accessors["keys"].as_array().unwrap().len() >= 3);
}

#[tokio::test]
async fn tokens_make_tokens_so_deep_and_no_deeper() {
    let world = world().await;
    let mut token = create(&world, &world.root, json!({"policies": "tokens"}))
        .await
        .unwrap();
    for _ in 1..super::MAX_DEPTH {
        token = create(&world, &token.client_token, json!({}))
            .await
            .unwrap();
    }
    assert!(is_good(&world, &token.client_token).await);
    assert!(
        create(&world, &token.client_token, json!({}))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn what_expired_is_not_good_again_when_the_clock_is_set_back() {
    let world = world().await;
    let made = create(&world, &world.root, json!({"ttl": "10s"}))
        .await
        .unwrap();
    assert_eq!(made.lease_duration.as_secs(), 10);
    let tokens = world.vault.authorizer.tokens();
    tokens.clock().has_been(tokens.now() + 10);
    assert!(!is_good(&world, &made.client_token).await);
    // The wall's clock is ten seconds behind from now on.
    tokens.forget();
    assert!(!is_good(&world, &made.client_token).await);
    let swept = world
        .root()
        .post("auth/token/tidy", json!({}))
        .await
        .unwrap();
    assert_eq!(swept["swept"], 1);
    let kept = world
        .vault
        .barrier()
        .read_record::<u64>("token-time")
        .await
        .unwrap();
    assert!(kept.unwrap().1 >= crate::registry::unix_time() + 9);
}

#[tokio::test]
async fn renewals_last_as_long_as_the_token_may() {
    let world = world().await;
    let made = create(
        &world,
        &world.root,
        json!({"ttl": "1m", "explicit_max_ttl": "90s"}),
    )
    .await
    .unwrap();
    let renewed = world
        .with(&made.client_token)
        .token("auth/token/renew-self", json!({"increment": "1h"}))
        .await;
    let renewed = renewed.unwrap();
    assert!((85..=90).contains(&renewed.lease_duration.as_secs()));
    let fixed = create(&world, &world.root, json!({"renewable": false}))
        .await
        .unwrap();
    let refusal = world
        .with(&fixed.client_token)
        .token("auth/token/renew-self", json!({}))
        .await;
    assert_eq!(refusal.err().unwrap().to_string(), "lease is not renewable");
}

#[tokio::test]
async fn roles_say_what_tokens_they_make() {
    let world = world().await;
    let role = json!({
        "allowed_policies": ["web"], "allowed_policies_glob": "team-*", "disallowed_policies": "team-x",
        "orphan": true, "token_period": "30m", "path_suffix": "s", "renewable": true,
    });
    world
        .root()
        .post("auth/token/roles/Web", role)
        .await
        .unwrap();
    let by = create(&world, &world.root, json!({"policies": "tokens"}))
        .await
        .unwrap()
        .client_token;
    let with = |body| {
        let ask = world.with(&by);
        async move { ask.token("auth/token/create/web", body).await }
    };
    let made = with(json!({})).await.unwrap();
    assert_eq!(made.policies, ["default", "web"]);
    assert!(made.orphan);
    assert_eq!(made.lease_duration.as_secs(), 1800);
    assert_eq!(
        with(json!({"policies": "team-a"})).await.unwrap().policies,
        ["default", "team-a"]
    );
    assert!(with(json!({"policies": "team-x"})).await.is_err());
    assert!(with(json!({"policies": "tokens"})).await.is_err());
    let shown = world.root().get("auth/token/roles/web").await.unwrap();
    assert_eq!(shown["path_suffix"], "s");
    world.root().delete("auth/token/roles/web").await.unwrap();
    assert!(matches!(
        world.root().list("auth/token/roles").await,
        Err(Refusal::Absent)
    ));
}
