use std::time::Duration;

use serde_json::{Value, json};
use wavry_credentials::{audit::Action, bearer::Token};

use crate::keyvault::{
    call::{Answer, Operation, Refusal, Wrapped},
    world::{World, at_once, text},
};

async fn wrapped(world: &World, operation: Operation, path: &str, body: Option<Value>) -> Wrapped {
    let root = world.root();
    let mut call = root.call(operation, path, body.as_ref());
    call.wrap_ttl = Some(Duration::from_secs(60));
    match world.vault.handle(call).await {
        Ok(Answer::Wrapped(wrapped)) => wrapped,
        Ok(_) => panic!("the answer is not wrapped"),
        Err(refusal) => panic!("{refusal}"),
    }
}

async fn unwrap(world: &World, token: &Token) -> Result<Value, Refusal> {
    let body = json!({"token": text(token)});
    world.stranger().post("sys/wrapping/unwrap", body).await
}

async fn alarms(world: &World) -> usize {
    let log = world.log().await;
    log.iter()
        .filter(|line| line.action == Action::Alarm)
        .count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_hundred_who_unwrap_at_once_one_gets_the_answer_and_the_others_raise_the_alarm() {
    let world = World::new().await;
    let body = json!({"data": {"value": "s3cret"}});
    world.root().post("secret/data/a", body).await.unwrap();
    let wrapped = wrapped(&world, Operation::Read, "secret/data/a", None).await;
    let done = at_once(100, |_| {
        let vault = world.vault.clone();
        let body = json!({"token": text(&wrapped.token)});
        let call = world
            .stranger()
            .call(Operation::Update, "sys/wrapping/unwrap", Some(&body));
        async move {
            match vault.handle(call).await {
                Ok(_) => true,
                Err(Refusal::Invalid(_)) => false,
                Err(other) => panic!("{other}"),
            }
        }
    })
    .await;
    assert_eq!(done, 1);
    assert_eq!(alarms(&world).await, 99);
}

#[tokio::test]
async fn a_wrapped_answer_is_told_of_before_it_is_opened_and_opens_once() {
    let world = World::new().await;
    let body = json!({"data": {"value": "s3cret"}});
    world.root().post("secret/data/a", body).await.unwrap();
    let wrapped = wrapped(&world, Operation::Read, "secret/data/a", None).await;
    assert_eq!(wrapped.creation_path, "secret/data/a");
    let named = json!({"token": text(&wrapped.token)});
    let known = world
        .stranger()
        .post("sys/wrapping/lookup", named)
        .await
        .unwrap();
    assert_eq!(known["creation_path"], "secret/data/a");
    assert_eq!(known["creation_ttl"], 60);

    let answer = unwrap(&world, &wrapped.token).await.unwrap();
    assert_eq!(answer["data"]["data"]["value"], "s3cret");
    assert!(matches!(
        unwrap(&world, &wrapped.token).await,
        Err(Refusal::Invalid(_))
    ));
    assert_eq!(alarms(&world).await, 1);
}

#[tokio::test]
async fn a_token_that_was_made_up_is_refused_without_an_alarm() {
    let world = World::new().await;
    let refused = unwrap(&world, &Token::random("hvs.")).await;
    assert!(matches!(refused, Err(Refusal::Invalid(_))));
    assert_eq!(alarms(&world).await, 0);
}

#[tokio::test]
async fn rewrapping_gives_a_new_token_for_the_same_answer_and_ends_the_old_one() {
    let world = World::new().await;
    let wrapped = wrapped(
        &world,
        Operation::Update,
        "sys/wrapping/wrap",
        Some(json!({"a": 1})),
    )
    .await;
    let body = json!({"token": text(&wrapped.token)});
    let call = world
        .stranger()
        .call(Operation::Update, "sys/wrapping/rewrap", Some(&body));
    let Ok(Answer::Wrapped(again)) = world.vault.handle(call).await else {
        panic!("it is not wrapped again");
    };
    assert_eq!(again.creation_path, "sys/wrapping/wrap");
    assert!(unwrap(&world, &wrapped.token).await.is_err());
    assert_eq!(unwrap(&world, &again.token).await.unwrap()["data"]["a"], 1);
}

#[tokio::test]
async fn a_wrapping_token_does_nothing_else() {
    let world = World::new().await;
    let wrapped = wrapped(
        &world,
        Operation::Update,
        "sys/wrapping/wrap",
        Some(json!({"a": 1})),
    )
    .await;
    let holder = world.with(&wrapped.token);
    assert!(matches!(
        holder.get("secret/data/a").await,
        Err(Refusal::Denied)
    ));
    assert!(matches!(
        holder.get("auth/token/lookup-self").await,
        Err(Refusal::Denied)
    ));
    // Refused, it is as good as before.
    assert!(unwrap(&world, &wrapped.token).await.is_ok());
}

#[tokio::test]
async fn a_refusal_is_not_wrapped() {
    let world = World::new().await;
    let root = world.root();
    let mut call = root.call(Operation::Read, "secret/data/nothing", None);
    call.wrap_ttl = Some(Duration::from_secs(60));
    assert!(matches!(
        world.vault.handle(call).await,
        Err(Refusal::Absent)
    ));
}
