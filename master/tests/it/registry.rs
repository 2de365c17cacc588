//! Why a master does not start.

use std::fs;

use wavry_master::{Master, StartError};

use crate::world::World;

async fn refusal_to_start(config: wavry_master::Config) -> StartError {
    let Err(error) = Master::start(config).await else {
        panic!("the master started");
    };
    error
}

#[tokio::test]
async fn a_master_without_a_secret_does_not_start_and_says_where_it_looked() {
    let world = World::new();
    let mut config = world.config();
    config.master_key = None;
    let text = refusal_to_start(config).await.to_string();
    assert!(text.contains("WAVRY_MASTER_KEY_FILE"), "{text}");
    assert!(text.contains("/run/secrets/wavry_master_key"), "{text}");

    let mut config = world.config();
    config.tls_key = None;
    let text = refusal_to_start(config).await.to_string();
    assert!(text.contains("WAVRY_TLS_KEY_FILE"), "{text}");

    let mut config = world.config();
    config.master_key = Some(world.path("master.crt"));
    refusal_to_start(config).await;
}

#[tokio::test]
async fn a_master_says_which_address_or_file_it_cannot_use() {
    let world = World::new();
    let master = world.start().await;
    let mut config = world.config();
    config.listen = master.address;
    config.database = world.path("second.sqlite").into();
    let text = refusal_to_start(config).await.to_string();
    assert!(text.contains(&master.address.to_string()), "{text}");

    let mut config = world.config();
    config.database = world.path("garbage").into();
    fs::write(
        world.path("garbage"),
        "this is not a database, by any means",
    )
    .unwrap();
    let text = refusal_to_start(config).await.to_string();
    assert!(text.contains("garbage"), "{text}");
}

#[tokio::test]
async fn a_database_file_is_one_masters() {
    let world = World::new();
    let master = world.start().await;
    let refused = refusal_to_start(world.config()).await;
    let why = std::error::Error::source(&refused).expect("it says why");
    let holder = format!("in use by process {}", std::process::id());
    assert!(why.to_string().contains(&holder), "{why}");
    master.stop().await;
    world.start().await.stop().await;
}
