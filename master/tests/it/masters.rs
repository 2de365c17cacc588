//! Several masters on one server, and a server that fails.

use std::{sync::Arc, time::Duration};

use hyper::Method;
use wavry_credentials::identity::Identity;
use wavry_master::{
    Config,
    database::Location,
    operate::{NodePage, NodeStatus},
};
use wavry_proto::{control::Role, token::OperatorRole};

use crate::{
    operate::operator,
    postgres::Server,
    wire::{Wire, claims, sign},
    world::{DEADLINE, Running, World, exits, join, node_id, roster_where},
};

async fn config(world: &World, server: &Server, database: &str) -> Config {
    let location: Location = server.database(database).await.parse().unwrap();
    Config {
        database: location,
        ..world.config()
    }
}

/// How a master says that a node does.
async fn state(world: &World, master: &Running, node: &str) -> Option<String> {
    status(world, master, node).await.map(|status| status.state)
}

async fn status(world: &World, master: &Running, node: &str) -> Option<NodeStatus> {
    let mut wire = Wire::open(world, master.address).await;
    let token = operator(world, OperatorRole::Viewer);
    let (status, _, body) = wire.send(Method::GET, "/v1/nodes", Some(&token), "").await;
    assert_eq!(status, 200);
    let page: NodePage = serde_json::from_slice(&body).unwrap();
    page.nodes.into_iter().find(|status| status.id == node)
}

#[tokio::test]
async fn what_one_master_is_told_all_know_and_nodes_go_on_with_another() {
    let world = World::new();
    let server = Server::start(false);
    let config = Config {
        suspect_after: Duration::from_millis(400),
        ..config(&world, &server, "told").await
    };
    let one = world.start_with(config.clone()).await;
    let other = world.start_with(config).await;

    // A node of each: each sees the other's.
    let mut at_both = world.node(&one, "edge", Role::Gateway, &[]);
    at_both.master = format!("https://{}, https://{}", one.address, other.address);
    let edge = join(at_both).await;
    let exit = join(world.node(&other, "exit", Role::Relay, &["echo"])).await;
    exit.announce(vec!["127.0.0.1:1".parse().unwrap()]);
    let mut rosters = edge.roster();
    let with_exit = roster_where(&mut rosters, |roster| exits(roster, "echo") == 1).await;

    // It is heard by one of them, and far longer than silence would take it is so for both.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    for master in [&one, &other] {
        for node in ["edge", "exit"] {
            let status = status(&world, master, node).await.unwrap();
            assert_eq!(status.state, "present", "{node}");
            // By whichever master heard it.
            assert_eq!(status.seen_from.as_deref(), Some("127.0.0.1"), "{node}");
        }
    }
    assert_eq!(
        rosters.borrow().epoch,
        with_exit.epoch,
        "nothing has changed"
    );

    // What one is asked to do, the other's nodes see; and each says what it was asked a moment ago.
    let bearer = operator(&world, OperatorRole::Operator);
    let mut wire = Wire::open(&world, one.address).await;
    let body = r#"{"hosts": ["new.example"]}"#;
    let put = wire.send(Method::PUT, "/v1/services/new", Some(&bearer), body);
    assert_eq!(put.await.0, 201);
    let mut wire = Wire::open(&world, other.address).await;
    let shown = wire.send(Method::GET, "/v1/services/new", Some(&bearer), "");
    assert_eq!(shown.await.0, 200);
    roster_where(&mut exit.roster(), |roster| roster.service("new").is_some()).await;

    // A master leaves: its node goes on with the other, and does not fall silent.
    one.stop().await;
    let mut wire = Wire::open(&world, other.address).await;
    let delete = wire.send(Method::DELETE, "/v1/services/new", Some(&bearer), "");
    assert_eq!(delete.await.0, 204);
    roster_where(&mut rosters, |roster| roster.service("new").is_none()).await;
    let begun = std::time::Instant::now();
    while state(&world, &other, "edge").await.as_deref() != Some("present") {
        assert!(begun.elapsed() < DEADLINE, "the node is not heard again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // A node that ends falls silent, and comes back by whichever master.
    drop(exit);
    roster_where(&mut rosters, |roster| exits(roster, "echo") == 0).await;
    drop(edge);
    other.stop().await;
}

#[tokio::test]
async fn a_node_that_registered_with_one_master_is_known_to_the_other_at_once() {
    let world = World::new();
    let server = Server::start(false);
    let config = config(&world, &server, "at_once").await;
    let one = world.start_with(config.clone()).await;
    let other = world.start_with(config).await;
    for number in 0..20 {
        let identity = Identity::generate();
        let mut claims = claims(&format!("jti-{number}"));
        claims.sub = node_id(&format!("node-{number}"));
        let token = sign(&world, &claims);
        let (first, second) = match number % 2 {
            0 => (&one, &other),
            _ => (&other, &one),
        };
        let mut wire = Wire::open(&world, first.address).await;
        let registered = wire.register(&identity, &token, &claims.jti).await;
        assert_eq!(registered.0, 201, "{registered:?}");
        let mut wire = Wire::open(&world, second.address).await;
        let thief = Identity::generate();
        let again = wire.register(&thief, &token, &claims.jti).await;
        assert_eq!(again, (409, "token-used".to_owned()));
        let bearer = wire.bearer(&world, &identity, &claims.sub);
        let (status, _, _) = wire
            .send(Method::GET, "/v1/roster", Some(&bearer), "")
            .await;
        assert_eq!(status, 200);
    }
    one.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn a_server_that_fails_in_the_middle_leaves_nothing_half_done_and_is_found_again() {
    let world = World::new();
    let mut server = Server::start(true);
    let config = config(&world, &server, "fails").await;
    let url = server.url("fails");
    let master = world.start_with(config).await;
    let identity = Arc::new(Identity::generate());
    let claims = claims("jti");
    let token = sign(&world, &claims);

    // The registration has begun, and waits for its turn as the server fails.
    let mut blocker = <sqlx::PgConnection as sqlx::Connection>::connect(&url)
        .await
        .unwrap();
    sqlx::raw_sql("BEGIN; SELECT 1 FROM roster FOR UPDATE")
        .execute(&mut blocker)
        .await
        .unwrap();
    // A transaction goes on seeing the connections that it saw first.
    let mut looker = <sqlx::PgConnection as sqlx::Connection>::connect(&url)
        .await
        .unwrap();
    let mut wire = Wire::open(&world, master.address).await;
    let asked = tokio::spawn({
        let (identity, token) = (identity.clone(), token.clone());
        async move { wire.register(&identity, &token, "jti").await }
    });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    loop {
        let waiting: i64 = sqlx::query_scalar(waits)
            .fetch_one(&mut looker)
            .await
            .unwrap();
        if waiting > 0 {
            break;
        }
        assert!(!asked.is_finished(), "it did not wait");
    }
    server.crash();
    assert_eq!(asked.await.unwrap(), (503, "not-audited".to_owned()));
    let mut wire = Wire::open(&world, master.address).await;
    let refused = wire.register(&identity, &token, "jti").await;
    assert_eq!(refused, (503, "not-audited".to_owned()));
    let bearer = operator(&world, OperatorRole::Operator);
    let refused = wire
        .problem(Method::GET, "/v1/nodes", Some(&bearer), "")
        .await;
    assert_eq!(refused, (503, "behind".to_owned()));

    server.start_again();
    // The token was not used up, and the master is the same process.
    let registered = wire.register(&identity, &token, "jti").await;
    assert_eq!(registered.0, 201, "{registered:?}");
    assert_eq!(
        state(&world, &master, "exit").await.as_deref(),
        Some("present")
    );
    master.stop().await;
}
