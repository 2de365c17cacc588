//! Authorities in a store, on SQLite and on PostgreSQL.

use std::{sync::Arc, time::Duration};

use wavry_credentials::token::SigningKey;

use super::*;
use crate::{authority::successor, database::Location, postgres_server::Server};

const PACE: Pace = Pace {
    lifetime: Duration::from_secs(1000),
    wait: Duration::from_secs(100),
    overlap: Duration::from_secs(200),
};

fn made(custody: &Custody) -> Successor {
    successor(custody, &"test".parse().unwrap(), &PACE).unwrap()
}

async fn opened(location: &Location, custody: &Custody, now: u64) -> Store {
    let key = SigningKey::generate().to_paserk();
    let audit = Key::from_paserk(&key, "test".parse().unwrap()).unwrap();
    let store = Store::open(location, Arc::new(audit)).await.unwrap();
    store.adopt(custody, now).await.unwrap();
    adopt(&store, custody, now).await;
    store
}

async fn adopt(store: &Store, custody: &Custody, now: u64) {
    let adopted = store.adopt_authority(custody, || Ok(made(custody)), now);
    adopted.await.unwrap();
}

async fn states(store: &Store) -> Vec<State> {
    let kept = read(&store.pool).await.unwrap();
    kept.iter().map(|kept| kept.life.state).collect()
}

async fn turn(store: &Store, custody: &Custody, now: u64) -> Option<Snapshot> {
    let next = made(custody);
    let turned = store.turn_authorities(Some(&next), PACE, now).await;
    turned.unwrap().1
}

async fn authorities_take_turns_and_their_keys_go_when_they_sign_no_more(location: Location) {
    use State::{Accepted, Published, Retired, Signing};
    let custody = Custody::from(SigningKey::generate());
    let store = opened(&location, &custody, 1_000).await;
    let first = store.snapshot().await.unwrap();
    assert_eq!(first.authorities.trusted.len(), 1);
    // It is there, and stays.
    adopt(&store, &custody, 1_001).await;
    assert_eq!(store.snapshot().await.unwrap(), first);

    for (now, expected) in [
        (1_999, vec![Signing]),
        (2_000, vec![Signing, Published]),
        (2_099, vec![Signing, Published]),
        (2_100, vec![Accepted, Signing]),
        (2_299, vec![Accepted, Signing]),
        (2_300, vec![Retired, Signing]),
    ] {
        let before = store.snapshot().await.unwrap();
        let was = states(&store).await;
        let changed = turn(&store, &custody, now).await;
        assert_eq!(states(&store).await, expected, "at {now}");
        // Nodes and other masters are told of each turn.
        assert_eq!(changed.is_some(), was != expected, "at {now}");
        let after = store.snapshot().await.unwrap();
        assert_eq!(after.epoch > before.epoch, was != expected, "at {now}");
    }
    let after = store.snapshot().await.unwrap().authorities;
    assert_eq!(after.trusted.len(), 1);
    assert_ne!(after.trusted, first.authorities.trusted);
    assert!(after.revoked.is_empty());
    let kept = read(&store.pool).await.unwrap();
    assert!(kept[0].sealed.is_none() && authority::open(&custody, &kept[0]).is_err());
    assert!(authority::open(&custody, &kept[1]).is_ok());
    store.close().await;
}

async fn after_a_compromise_one_signs_at_once_and_the_others_are_named(location: Location) {
    let custody = Custody::from(SigningKey::generate());
    let store = opened(&location, &custody, 1_000).await;
    turn(&store, &custody, 2_000).await;
    let before = read(&store.pool).await.unwrap();
    let next = made(&custody);
    let order = Order::from(Event::now(Action::Rotate, "", "test"));
    let again = store.rotate_authority(&next, Rotation::InTurn(PACE), 2_001, &order);
    assert!(matches!(again.await, Err(RotateError::UnderWay)));
    let rotated = store.rotate_authority(&next, Rotation::AtOnce, 2_001, &order);
    assert_eq!(rotated.await.unwrap().outcome.0, next.hash);
    let shown = store.snapshot().await.unwrap().authorities;
    assert_eq!(shown.trusted, [STANDARD.encode(&next.certificate)]);
    let mut named: Vec<_> = before.iter().map(|kept| kept.life.kid.clone()).collect();
    named.reverse();
    assert_eq!(shown.revoked, named);
    store.close().await;
}

async fn an_authority_that_does_not_open_or_has_expired_is_followed_at_once(location: Location) {
    let custody = Custody::from(SigningKey::generate());
    let store = opened(&location, &custody, 1_000).await;
    let other = Custody::from(SigningKey::generate());
    adopt(&store, &other, 1_001).await;
    assert_eq!(states(&store).await, [State::Revoked, State::Signing]);
    let kept = read(&store.pool).await.unwrap();
    let signing = authority::open(&other, &kept[1]).unwrap();
    adopt(&store, &other, authority::expiry(&signing) - 1).await;
    assert_eq!(states(&store).await.len(), 2);
    adopt(&store, &other, authority::expiry(&signing)).await;
    assert_eq!(
        states(&store).await,
        [State::Revoked, State::Revoked, State::Signing]
    );
    store.close().await;
}

macro_rules! on_both {
    ($($name:ident)*) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $name() {
                let directory = tempfile::tempdir().unwrap();
                super::$name(directory.path().join("store.sqlite").into()).await;
            })*
        }

        #[tokio::test]
        async fn postgresql_keeps_authorities_as_sqlite_does() {
            let server = Server::start(false);
            $(
                let database = server.database(stringify!($name)).await;
                $name(database.parse().unwrap()).await;
            )*
        }
    };
}

on_both! {
    authorities_take_turns_and_their_keys_go_when_they_sign_no_more
    after_a_compromise_one_signs_at_once_and_the_others_are_named
    an_authority_that_does_not_open_or_has_expired_is_followed_at_once
}
