//! Backups, taken from either kind of database and restored to either.

use std::{fs, sync::Arc};

use wavry_credentials::{
    audit::{Action, Line},
    identity::Identity,
};
use wavry_master::{
    Config,
    audit_reader::Reader,
    backup::{self, Error},
    database::Location,
};
use wavry_proto::token::OperatorRole;

use crate::{
    operate::{get, operator},
    postgres::Server,
    wire::{Wire, claims, sign, unix_time},
    world::{World, node_id},
};

/// A master on `location` with something of everything; the epoch that it ends with.
async fn fill(world: &World, location: &Location) -> u64 {
    let master = world
        .start_with(Config {
            database: location.clone(),
            ..world.config()
        })
        .await;
    let admin = operator(world, OperatorRole::Admin);
    let mut wire = Wire::open(world, master.address).await;
    for (method, path, body, status) in [
        (
            "PUT",
            "/v1/services/made",
            r#"{"hosts": ["a'b\"; --.example"]}"#,
            400,
        ),
        (
            "PUT",
            "/v1/services/made",
            r#"{"hosts": ["made.example"]}"#,
            201,
        ),
        (
            "POST",
            "/v1/revocations",
            r#"{"subject": "ann'; DROP TABLE node; --"}"#,
            201,
        ),
        ("POST", "/v1/keys/rotate", r#"{"reason": "request"}"#, 201),
    ] {
        let method = method.parse().unwrap();
        let answer = wire.send(method, path, Some(&admin), body).await;
        assert_eq!(answer.0, status, "{path}");
    }
    for (node, jti) in [("exit", "used"), ("gone", "of gone")] {
        let mut claims = claims(jti);
        claims.sub = node_id(node);
        let token = sign(world, &claims);
        let registered = wire.register(&Identity::generate(), &token, jti).await;
        assert_eq!(registered.0, 201, "{registered:?}");
    }
    let path = "/v1/nodes/gone/revoke";
    let revoked = wire
        .send("POST".parse().unwrap(), path, Some(&admin), "")
        .await;
    assert_eq!(revoked.0, 204);
    master.stop().await;
    let key = Arc::new(world.audit_key());
    let store = wavry_master::store::Store::open(location, key)
        .await
        .unwrap();
    let epoch = store.snapshot().await.unwrap().epoch.0;
    store.close().await;
    epoch
}

#[tokio::test]
async fn what_is_restored_is_what_was_there_on_either_kind_of_database() {
    let world = World::new();
    let server = Server::start(false);
    let places: [Location; 4] = [
        world.database(),
        server.database("copy").await.parse().unwrap(),
        world.path("back.sqlite").into(),
        server.database("again").await.parse().unwrap(),
    ];
    let epoch = fill(&world, &places[0]).await;
    let key = Arc::new(world.audit_key());
    let mut contents = Vec::new();
    for (number, pair) in places.windows(2).enumerate() {
        let file = world.path(&format!("{number}.backup"));
        let summary = backup::backup(&pair[0], key.clone(), "carol", &file)
            .await
            .unwrap();
        assert!(summary.epoch >= epoch, "{summary:?}");
        let restored = backup::restore(&pair[1], key.clone(), "carol", &file).await;
        assert_eq!(restored.unwrap(), summary);
        // But for what backing up and restoring add: the log, the epoch, the time of the restoring.
        let text = fs::read_to_string(&file).unwrap();
        let lasting = text.lines().filter(|line| line.starts_with("{\"table\""));
        let lasting = lasting.filter(|line| {
            !["audit_", "forgotten"]
                .iter()
                .any(|table| line.contains(table))
        });
        contents.push(lasting.map(str::to_owned).collect::<Vec<_>>());
    }
    assert!(contents[0].len() > 10, "{contents:#?}");
    assert!(contents.iter().all(|content| *content == contents[0]));

    let restored_at = unix_time();

    // It is on record, in a log that holds, in both.
    for (place, actions) in [
        (&places[0], vec![Action::Backup]),
        (
            &places[1],
            vec![Action::Backup, Action::Restore, Action::Backup],
        ),
    ] {
        let reader = Reader::open(place).await.unwrap();
        let mut found = Vec::new();
        let show = |_: &str, line: Line| {
            if [Action::Backup, Action::Restore].contains(&line.event.action) {
                assert_eq!(line.event.actor, "carol");
                found.push(line.event.action);
            }
        };
        reader.verify(&key.verifier(), show).await.unwrap();
        assert_eq!(found, actions);
    }

    // A master serves it: with the node, the service and the new key, and by an epoch that nobody has seen.
    let master = world
        .start_with(Config {
            database: places[1].clone(),
            ..world.config()
        })
        .await;
    let viewer = operator(&world, OperatorRole::Viewer);
    let mut wire = Wire::open(&world, master.address).await;
    assert_eq!(
        get(&mut wire, "/v1/nodes", &viewer).await["nodes"][0]["id"],
        "exit"
    );
    assert_eq!(
        get(&mut wire, "/v1/keys", &viewer).await["keys"][1]["state"],
        "published"
    );
    get(&mut wire, "/v1/services/made", &viewer).await;
    // What was used, or may have been used since, registers nobody; what is issued later does.
    for jti in ["used", "unused"] {
        let token = sign(&world, &claims(jti));
        let refused = wire.register(&Identity::generate(), &token, jti).await;
        assert_eq!(refused, (403, "token-before-restore".to_owned()));
    }
    // By a clock that is ahead by as much as clocks may differ.
    while unix_time() <= restored_at {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let mut later = claims("later");
    later.validity.iat = unix_time() + 30;
    later.validity.nbf = unix_time();
    let token = sign(&world, &later);
    let registered = wire.register(&Identity::generate(), &token, "later").await;
    assert_eq!(registered.0, 201, "{registered:?}");
    master.stop().await;
}

#[tokio::test]
async fn nothing_is_overwritten_and_what_was_changed_is_not_restored() {
    let world = World::new();
    let key = Arc::new(world.audit_key());
    fill(&world, &world.database()).await;
    let file = world.path("a.backup");
    let take = async |file| backup::backup(&world.database(), key.clone(), "carol", file).await;
    take(&file).await.unwrap();
    let again = take(&file).await;
    assert!(matches!(again, Err(Error::File { .. })), "{again:?}");
    let full = backup::restore(&world.database(), key.clone(), "carol", &file).await;
    assert!(matches!(full, Err(Error::NotEmpty)), "{full:?}");
    let (none, copy) = (world.path("none"), world.path("b"));
    let nothing = backup::backup(&none.clone().into(), key.clone(), "carol", &copy).await;
    assert!(matches!(nothing, Err(Error::Store(_))), "{nothing:?}");
    assert!(!none.exists() && !copy.exists());

    let whole = fs::read(&file).unwrap();
    let lines: Vec<_> = whole.split_inclusive(|byte| *byte == b'\n').collect();
    let without = |left_out: usize| {
        let kept = lines
            .iter()
            .enumerate()
            .filter(|(line, _)| *line != left_out);
        kept.flat_map(|(_, line)| line.to_vec()).collect::<Vec<_>>()
    };
    let mut changed = vec![
        without(0),
        without(3),
        without(lines.len() - 1),
        [&whole[..], b"{}\n"].concat(),
        whole[..whole.len() - 1].to_vec(),
        Vec::new(),
        b"no backup\n".to_vec(),
        vec![b'x'; 2 * 1024 * 1024],
    ];
    // A bit of each line.
    for line in &lines {
        let start = line.as_ptr().addr() - whole.as_ptr().addr();
        let mut one = whole.clone();
        one[start + line.len() / 2] ^= 1;
        changed.push(one);
    }
    let bad = world.path("bad.backup");
    let target: Location = world.path("new.sqlite").into();
    for content in changed {
        fs::write(&bad, &content).unwrap();
        let refused = backup::restore(&target, key.clone(), "carol", &bad).await;
        let is_refused = matches!(refused, Err(Error::Damaged { .. } | Error::Schema { .. }));
        assert!(is_refused, "{refused:?}");
    }
    assert!(!world.path("new.sqlite").exists());
    let other = World::new();
    let refused = backup::restore(&target, Arc::new(other.audit_key()), "carol", &file).await;
    assert!(matches!(refused, Err(Error::Damaged { .. })), "{refused:?}");
    backup::restore(&target, key, "carol", &file).await.unwrap();
}
