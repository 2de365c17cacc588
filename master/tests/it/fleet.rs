//! What gateways share, asked of real masters.

use std::time::{Duration, Instant};

use hyper::Method;
use wavry_credentials::{master::Failure, membership::Requests};
use wavry_master::{Config, database::Location};
use wavry_proto::control::{
    Role,
    fleet::{
        ACKNOWLEDGED, Acknowledged, CHANGES, Changes, ENTRY, LEASE, Leased, MAX_CHANGES,
        MAX_CHANGES_LEN, MAX_SEALED, TakeLease, WriteEntry, Written,
    },
};

use crate::{
    postgres::Server,
    wire::Wire,
    world::{DEADLINE, World, join},
};

fn ask(entry: &str, fence: Option<u64>) -> TakeLease {
    TakeLease {
        entry: entry.parse().unwrap(),
        fence,
    }
}

fn write(entry: &str, fence: u64) -> WriteEntry {
    WriteEntry {
        entry: entry.parse().unwrap(),
        fence,
        draft: None,
        answers: None,
        product: None,
        release: false,
    }
}

async fn take(requests: &Requests, ask: TakeLease) -> Result<Leased, Failure> {
    requests.send(Method::POST, LEASE, &ask, 1 << 20).await
}

async fn put(requests: &Requests, write: WriteEntry) -> Result<Written, Failure> {
    requests.send(Method::PUT, ENTRY, &write, 1 << 20).await
}

async fn changes(requests: &Requests, after: u64) -> Changes {
    let path = format!("{CHANGES}?after={after}");
    let told = requests.get(&path, DEADLINE, MAX_CHANGES_LEN);
    told.await.unwrap()
}

async fn behind(requests: &Requests, revision: u64) -> u64 {
    let path = format!("{ACKNOWLEDGED}?revision={revision}");
    let asked = requests.get::<Acknowledged>(&path, DEADLINE, 1 << 20);
    asked.await.unwrap().behind
}

fn fence(leased: Result<Leased, Failure>) -> u64 {
    match leased {
        Ok(Leased::Granted { fence, .. }) => fence,
        other => panic!("{other:?}"),
    }
}

fn word<T: std::fmt::Debug>(refused: Result<T, Failure>) -> String {
    match refused {
        Err(Failure::Refused { word, .. }) => word,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn gateways_of_two_masters_share_what_one_of_them_writes_and_know_who_has_it() {
    let world = World::new();
    let server = Server::start(false);
    let location: Location = server.database("fleet").await.parse().unwrap();
    let config = Config {
        database: location,
        ..world.config()
    };
    let one = world.start_with(config.clone()).await;
    let other = world.start_with(config).await;
    let near = join(world.node(&one, "near", Role::Gateway, &[])).await;
    let far = join(world.node(&other, "far", Role::Gateway, &[])).await;
    let (near, far) = (near.requests(), far.requests());

    assert_eq!(fence(take(&near, ask("a.example", None)).await), 1);
    let held = take(&far, ask("a.example", None)).await.unwrap();
    assert!(
        matches!(
            held,
            Leased::Held {
                wait_ms: 1..=15_000
            }
        ),
        "{held:?}"
    );
    let waiting = {
        let far = far.clone();
        tokio::spawn(async move {
            let told = changes(&far, 0).await;
            (told, Instant::now())
        })
    };
    // Nobody has asked yet but for who waits.
    let began = Instant::now();
    while behind(&near, 1).await != 1 {
        assert!(began.elapsed() < DEADLINE, "it does not ask");
    }
    let answers = WriteEntry {
        answers: Some("YW5zd2Vycw==".to_owned()),
        draft: Some("ZHJhZnQ=".to_owned()),
        ..write("a.example", 1)
    };
    let written = put(&near, answers.clone()).await.unwrap();
    let at = Instant::now();
    let (told, when) = waiting.await.unwrap();
    assert!(when.saturating_duration_since(at) < Duration::from_secs(2));
    assert_eq!(told.revision, written.revision);
    assert_eq!(told.entries.len(), 1);
    assert_eq!(told.entries[0].answers, answers.answers);
    assert_eq!(told.entries[0].product, None);

    // It was told; that it has taken it in shows when it asks for more.
    assert_eq!(behind(&near, written.revision).await, 1);
    let asking = {
        let far = far.clone();
        tokio::spawn(async move { changes(&far, told.revision).await })
    };
    let began = Instant::now();
    while behind(&near, written.revision).await != 0 {
        assert!(began.elapsed() < DEADLINE, "it is not acknowledged");
    }

    // What is given back is another's at once, with what was left, and who had it writes nothing more.
    let product = WriteEntry {
        product: Some("cGFpcg==".to_owned()),
        answers: Some(String::new()),
        release: true,
        ..write("a.example", 1)
    };
    put(&near, product).await.unwrap();
    let told = asking.await.unwrap();
    assert_eq!(told.entries[0].answers.as_deref(), Some(""));
    assert_eq!(told.entries[0].product.as_deref(), Some("cGFpcg=="));
    match take(&far, ask("a.example", None)).await.unwrap() {
        Leased::Granted {
            fence: 2,
            draft,
            product,
            ..
        } => {
            assert_eq!(draft.as_deref(), Some("ZHJhZnQ="));
            assert_eq!(product.as_deref(), Some("cGFpcg=="));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(word(put(&near, answers).await), "fence-passed");
    one.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn many_changes_come_in_pieces_and_all_of_them_after_a_restore() {
    let world = World::new();
    let master = world.start().await;
    let edge = join(world.node(&master, "edge", Role::Gateway, &[])).await;
    let edge = edge.requests();
    let count = MAX_CHANGES + 3;
    for number in 0..count {
        let name = format!("n{number}.example");
        let fence = fence(take(&edge, ask(&name, None)).await);
        let product = WriteEntry {
            product: Some("cGFpcg==".to_owned()),
            release: true,
            ..write(&name, fence)
        };
        put(&edge, product).await.unwrap();
    }
    let first = changes(&edge, 0).await;
    assert_eq!(first.entries.len(), MAX_CHANGES);
    let rest = changes(&edge, first.revision).await;
    assert_eq!(rest.entries.len(), 3);
    assert_eq!(
        rest.entries[2].entry.as_str(),
        format!("n{}.example", count - 1)
    );
    // A gateway has seen more than the database that was restored has.
    let all = changes(&edge, rest.revision + 1000).await;
    assert_eq!(all, first);
    master.stop().await;
}

#[tokio::test]
async fn whoever_is_no_gateway_shares_nothing_and_what_is_malformed_is_refused() {
    let world = World::new();
    let master = world.start().await;
    let relay = join(world.node(&master, "exit", Role::Relay, &["echo"])).await;
    let relay = relay.requests();
    assert_eq!(
        word(take(&relay, ask("a.example", None)).await),
        "no-gateway"
    );
    assert_eq!(word(put(&relay, write("a.example", 1)).await), "no-gateway");
    for path in [
        format!("{CHANGES}?after=0"),
        format!("{ACKNOWLEDGED}?revision=0"),
    ] {
        let asked = relay.get::<Changes>(&path, DEADLINE, 4096).await;
        assert_eq!(word(asked), "no-gateway", "{path}");
    }
    let mut stranger = Wire::open(&world, master.address).await;
    for (method, path) in [
        (Method::POST, LEASE),
        (Method::PUT, ENTRY),
        (Method::GET, CHANGES),
        (Method::GET, ACKNOWLEDGED),
    ] {
        let said = stranger.problem(method, path, None, "{}").await;
        assert_eq!(said, (401, "token-missing".to_owned()), "{path}");
    }

    let edge = join(world.node(&master, "edge", Role::Gateway, &[])).await;
    let edge = edge.requests();
    let fence = fence(take(&edge, ask("a.example", None)).await);
    for value in ["not base64!".to_owned(), "A".repeat(MAX_SEALED * 4 / 3 + 4)] {
        let malformed = WriteEntry {
            product: Some(value),
            ..write("a.example", fence)
        };
        assert_eq!(word(put(&edge, malformed).await), "malformed-request");
    }
    let unnamed = serde_json::json!({ "entry": "A.example" });
    let asked = edge
        .send::<Leased>(Method::POST, LEASE, &unnamed, 4096)
        .await;
    assert_eq!(word(asked), "malformed-request");
    // Nobody has leased it.
    assert_eq!(
        word(put(&edge, write("b.example", 1)).await),
        "fence-passed"
    );
    master.stop().await;
}
