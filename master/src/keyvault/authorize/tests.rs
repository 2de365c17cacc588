use super::*;
use crate::keyvault::world::{World, at_once, text};
use serde_json::json;

/// A token for one policy.
async fn token_for(
    world: &World,
    policy: &str,
    more: serde_json::Value,
) -> wavry_credentials::bearer::Token {
    let mut body = json!({"policies": [policy], "no_default_policy": true});
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let auth = world.root().token("auth/token/create", body).await;
    auth.unwrap().client_token
}

const READ_ALL: &str = r#"path "*" { capabilities = ["read", "list", "update"] }"#;

#[tokio::test]
async fn without_a_good_token_everything_is_denied_alike() {
    let world = World::new().await;
    world.put_policy("all", READ_ALL).await;
    let bound = token_for(&world, "all", json!({})).await;
    let revoked = token_for(&world, "all", json!({})).await;
    world
        .root()
        .post("auth/token/revoke", json!({"token": text(&revoked)}))
        .await
        .unwrap();
    let made_up = wavry_credentials::bearer::Token::random("hvs.");
    let long = wavry_credentials::bearer::Token::new("x".repeat(100_000));
    assert!(
        world
            .with(&bound)
            .get("auth/token/lookup-self")
            .await
            .is_ok()
    );
    for ask in [
        world.stranger(),
        world.with(&revoked),
        world.with(&made_up),
        world.with(&long),
    ] {
        for path in [
            "auth/token/lookup-self",
            "secret/data/x",
            "sys/mounts",
            "nothing/here",
        ] {
            let refusal = ask.get(path).await.unwrap_err();
            assert!(matches!(refusal, Refusal::Denied), "{path}: {refusal}");
        }
    }
}

#[tokio::test]
async fn a_runtime_role_that_reads_a_build_path_is_denied_and_on_record() {
    let world = World::new().await;
    world
        .put_policy(
            "runtime",
            r#"path "secret/data/app/runtime/*" { capabilities = ["read"] }"#,
        )
        .await;
    for kind in ["runtime", "build"] {
        let path = format!("secret/data/app/{kind}/key");
        world
            .root()
            .post(&path, json!({"data": {"value": "s3cret"}}))
            .await
            .unwrap();
    }
    let token = token_for(&world, "runtime", json!({"display_name": "web"})).await;
    let unit = world.with(&token);
    let read = unit.get("secret/data/app/runtime/key").await.unwrap();
    assert_eq!(read["data"]["value"], "s3cret");
    let refusal = unit.get("secret/data/app/build/key").await.unwrap_err();
    assert!(matches!(refusal, Refusal::Denied));

    let log = world.log().await;
    let [read, denied] = &log[log.len() - 2..] else {
        panic!("two lines");
    };
    assert_eq!((read.action, read.outcome.as_str()), (Action::Read, "done"));
    assert_eq!(
        (denied.action, denied.outcome.as_str()),
        (Action::Deny, "denied")
    );
    assert_eq!(denied.path, "secret/data/app/build/key");
    assert_eq!(denied.actor, "token-web");
    assert_eq!(denied.source.unwrap().to_string(), "192.0.2.1:5000");
    assert_eq!(denied.request.as_deref(), Some("r1"));
    assert!(denied.token.is_some() && denied.token == read.token);
}

#[tokio::test]
async fn each_use_of_a_token_counts_once_however_many_come_at_a_time() {
    let world = Arc::new(World::new().await);
    world.put_policy("all", READ_ALL).await;
    let token = token_for(&world, "all", json!({"num_uses": 10})).await;
    let done = at_once(40, |_| {
        let (world, token) = (world.clone(), token.copied());
        async move {
            world
                .with(&token)
                .get("auth/token/lookup-self")
                .await
                .is_ok()
        }
    })
    .await;
    assert_eq!(done, 10);
    assert!(
        world
            .with(&token)
            .get("auth/token/lookup-self")
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_denied_call_is_a_use_and_a_call_from_elsewhere_is_not() {
    let world = World::new().await;
    world
        .put_policy(
            "one",
            r#"path "auth/token/lookup-self" { capabilities = ["read"] }"#,
        )
        .await;
    let role =
        json!({"allowed_policies": "one", "token_bound_cidrs": "10.0.0.0/8", "token_num_uses": 3});
    world.root().post("auth/token/roles/r", role).await.unwrap();
    let auth = world
        .root()
        .token("auth/token/create/r", json!({}))
        .await
        .unwrap();
    let here = || world.with(&auth.client_token).from("10.1.2.3");
    let left = |value: serde_json::Value| value["num_uses"].as_u64().unwrap();
    assert_eq!(left(here().get("auth/token/lookup-self").await.unwrap()), 2);
    for _ in 0..5 {
        let elsewhere = world.with(&auth.client_token).from("11.1.2.3");
        assert!(elsewhere.get("auth/token/lookup-self").await.is_err());
    }
    assert!(here().get("secret/data/x").await.is_err());
    assert_eq!(left(here().get("auth/token/lookup-self").await.unwrap()), 0);
    assert!(here().get("auth/token/lookup-self").await.is_err());
}

/// Plans an answer, and first lets something happen that overtakes the call, once.
struct Overtaken<F> {
    by: tokio::sync::Mutex<Option<F>>,
    plans: std::sync::atomic::AtomicUsize,
}

impl<F: Future<Output = ()> + Send> Overtaken<F> {
    fn by(event: F) -> Self {
        Self {
            by: Some(event).into(),
            plans: Default::default(),
        }
    }

    fn plans(&self) -> usize {
        self.plans.load(std::sync::atomic::Ordering::SeqCst)
    }
}

impl<F: Future<Output = ()> + Send> Handler for Overtaken<F> {
    async fn route(&self, call: &Call) -> Result<Route, Refusal> {
        Ok(Route {
            operation: call.operation,
            access: Access::Holder,
        })
    }

    async fn plan(&self, _: &Call, _: &Granted) -> Planned {
        self.plans.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        if let Some(event) = self.by.lock().await.take() {
            event.await;
        }
        Planned::answer(Answer::Done)
    }

    async fn has_mount(&self, _: &str) -> Result<bool, Refusal> {
        Ok(true)
    }
}

async fn a_call_that_is_overtaken_is_denied(world: &World) {
    world
        .put_policy(
            "all",
            r#"path "*" { capabilities = ["read", "create", "update", "sudo"] }"#,
        )
        .await;
    let auth = |token| async move {
        let body = json!({"policies": ["all"], "no_default_policy": true});
        let made = world.with(token).token("auth/token/create", body).await;
        made.unwrap().client_token
    };
    let parent = auth(&world.root).await;
    let child = auth(&parent).await;
    let single = auth(&world.root).await;
    let other = auth(&world.root).await;
    let revoke = |token| async move {
        let body = json!({ "token": text(token) });
        let revoked = world.root().post("auth/token/revoke", body).await;
        revoked.unwrap();
    };
    let handle = |token| {
        let call = world
            .with(token)
            .call(Operation::Read, "secret/data/x", None);
        (call, &world.vault.authorizer)
    };

    for (token, overtaken) in [
        (
            &single,
            Overtaken::by(Box::pin(revoke(&single)) as futures_util::future::BoxFuture<'_, ()>),
        ),
        (&child, Overtaken::by(Box::pin(revoke(&parent)))),
        (
            &other,
            Overtaken::by(Box::pin(async {
                world
                    .put_policy("all", r#"path "*" { capabilities = ["deny"] }"#)
                    .await;
            })),
        ),
    ] {
        let (call, authorizer) = handle(token);
        let refusal = authorizer.handle(&call, &overtaken).await;
        assert!(matches!(refusal, Err(Refusal::Denied)));
        assert_eq!(overtaken.plans(), 1);
        let log = world.log().await;
        assert_eq!(log.last().unwrap().action, Action::Deny);
    }
}

#[tokio::test]
async fn no_call_commits_behind_the_revocation_of_its_token_or_a_change_of_its_policies() {
    a_call_that_is_overtaken_is_denied(&World::new().await).await;
}

#[tokio::test]
async fn nor_does_it_on_postgresql() {
    let server = crate::keyvault::postgres_server::Server::start(false);
    a_call_that_is_overtaken_is_denied(&World::on(&server, "overtaken").await).await;
}

#[tokio::test]
async fn calls_of_one_token_at_a_time_do_not_disturb_each_other() {
    let world = Arc::new(World::new().await);
    world.put_policy("all", READ_ALL).await;
    let token = token_for(&world, "all", json!({})).await;
    let handler = Arc::new(Overtaken::by(std::future::ready(())));
    let done = at_once(200, |_| {
        let (world, token, handler) = (world.clone(), token.copied(), handler.clone());
        async move {
            let call = world
                .with(&token)
                .call(Operation::Read, "secret/data/x", None);
            world
                .vault
                .authorizer
                .handle(&call, &*handler)
                .await
                .is_ok()
        }
    })
    .await;
    assert_eq!((done, handler.plans()), (200, 200));
}

#[tokio::test]
async fn every_answer_has_one_line_on_record_before_it_is_given() {
    let world = World::new().await;
    let before = world.log().await.len();
    for i in 1..=5 {
        world.root().get("auth/token/lookup-self").await.unwrap();
        assert_eq!(world.log().await.len(), before + i);
    }
    world.vault.seal();
    let refusal = world
        .root()
        .get("auth/token/lookup-self")
        .await
        .unwrap_err();
    assert!(matches!(refusal, Refusal::Sealed));
}

#[tokio::test]
async fn sealing_is_on_record_and_is_for_those_who_may() {
    let world = World::new().await;
    world
        .put_policy(
            "seal",
            r#"path "sys/seal" { capabilities = ["update", "sudo"] }"#,
        )
        .await;
    world.put_policy("all", READ_ALL).await;
    let other = token_for(&world, "all", json!({})).await;
    assert!(
        world
            .with(&other)
            .post("sys/seal", json!({}))
            .await
            .is_err()
    );
    assert!(world.vault.barrier().is_unsealed());
    let token = token_for(&world, "seal", json!({})).await;
    world
        .with(&token)
        .post("sys/seal", json!({}))
        .await
        .unwrap();
    assert!(!world.vault.barrier().is_unsealed());
    let log = world.log().await;
    let last = log.last().unwrap();
    assert_eq!((last.action, last.outcome.as_str()), (Action::Seal, "done"));
}

#[tokio::test]
async fn strangers_fill_the_log_within_bounds_and_those_who_are_known_do_not_suffer() {
    let world = World::new().await;
    let before = world.log().await.len();
    for _ in 0..200 {
        assert!(world.stranger().get("secret/data/x").await.is_err());
    }
    let written = world.log().await.len() - before;
    assert!((32..50).contains(&written), "{written}");
    world.root().get("auth/token/lookup-self").await.unwrap();
    assert_eq!(world.log().await.len(), before + written + 1);
}

#[tokio::test]
async fn a_policy_that_changes_holds_from_then_on() {
    let world = World::new().await;
    let rule = |word: &str| format!(r#"path "secret/data/x" {{ capabilities = ["{word}"] }}"#);
    world
        .root()
        .post("secret/data/x", json!({"data": {}}))
        .await
        .unwrap();
    world.put_policy("p", &rule("read")).await;
    let token = token_for(&world, "p", json!({})).await;
    let ask = world.with(&token);
    assert!(ask.get("secret/data/x").await.is_ok());
    world.put_policy("p", &rule("deny")).await;
    assert!(ask.get("secret/data/x").await.is_err());
    world.put_policy("p", &rule("read")).await;
    assert!(ask.get("secret/data/x").await.is_ok());
    world.root().delete("sys/policies/acl/p").await.unwrap();
    assert!(ask.get("secret/data/x").await.is_err());
}

#[tokio::test]
async fn a_flood_of_logins_waits_and_renewals_pass() {
    let mut world = World::new().await;
    world.enable("approle").await;
    let limits = login::Limits {
        rate: 1,
        burst: 3,
        ..login::Limits::default()
    };
    Arc::get_mut(&mut world.vault.authorizer)
        .unwrap()
        .limit_logins(limits);
    let token = world
        .root()
        .token("auth/token/create", json!({}))
        .await
        .unwrap()
        .client_token;
    let login = json!({"role_id": "x", "secret_id": "y"});
    let mut refused = 0;
    for _ in 0..10 {
        let refusal = world
            .stranger()
            .post("auth/approle/login", login.clone())
            .await
            .unwrap_err();
        match refusal {
            Refusal::TooMany(after) => {
                assert!((1..=60).contains(&after.as_secs()));
                refused += 1;
            }
            _ => assert!(matches!(refusal, Refusal::Invalid(_)), "{refusal}"),
        }
    }
    assert!(refused >= 5, "{refused}");
    for _ in 0..10 {
        world
            .with(&token)
            .token("auth/token/renew-self", json!({}))
            .await
            .unwrap();
    }
}

#[test]
fn what_is_kept_for_administrators_is_as_vault_has_it() {
    for path in [
        "sys/seal",
        "sys/rotate",
        "sys/auth/approle",
        "sys/audit",
        "sys/audit/file",
        "auth/token/accessors/",
        "auth/token/revoke-orphan",
    ] {
        assert!(is_for_administrators(path), "{path}");
    }
    for path in [
        "sys/auth",
        "sys/mounts/x",
        "sys/policies/acl/x",
        "auth/token/create",
        "sys/seal-status",
    ] {
        assert!(!is_for_administrators(path), "{path}");
    }
}
