//! Stores of several masters on one server.

use std::time::Duration;

use tokio::{sync::Notify, time::timeout};
use wavry_credentials::{
    audit::{Key, verify::Reading},
    token::SigningKey,
};

use super::{keys::Kept, *};
use crate::{
    audit_sink::Log as _, keys::Pace, postgres_server::Server, ring::Ring, signing::Custody,
};

/// Longer than anything here takes.
const DEADLINE: Duration = Duration::from_secs(20);

struct Cluster {
    location: crate::database::Location,
    audit: Arc<Key>,
    custody: Custody,
}

impl Cluster {
    async fn on(server: &Server, database: &str) -> Self {
        let key = SigningKey::generate().to_paserk();
        let key = Key::from_paserk(&key, "test".parse().unwrap()).unwrap();
        Self {
            location: server.database(database).await.parse().unwrap(),
            audit: Arc::new(key),
            custody: SigningKey::generate().into(),
        }
    }

    async fn store(&self) -> Store {
        let opened = Store::open(&self.location, self.audit.clone()).await;
        let store = opened.unwrap();
        store.adopt(&self.custody, 1_000).await.unwrap();
        store
    }
}

async fn told(news: &Notify) {
    timeout(DEADLINE, news.notified())
        .await
        .expect("it is told");
}

#[tokio::test]
async fn a_master_is_told_of_what_another_changed_and_to_look_after_word_was_lost() {
    let server = Server::start(false);
    let cluster = Cluster::on(&server, "feed").await;
    let (one, other) = (cluster.store().await, cluster.store().await);
    let news = Notify::new();
    let work = async {
        // It is told to look once it listens.
        told(&news).await;
        one.renew(None).await.unwrap();
        told(&news).await;
        one.silence(&[]).await.unwrap();
        let quiet = timeout(Duration::from_millis(100), news.notified()).await;
        assert!(quiet.is_err(), "nothing has changed");

        let Pool::Postgres(pool) = &one.pool else {
            panic!("a server")
        };
        let listeners = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
             WHERE query LIKE 'LISTEN%' AND datname = current_database()";
        let ended: i64 = sqlx::query_scalar(listeners).fetch_one(pool).await.unwrap();
        assert_eq!(ended, 1);
        told(&news).await;
        one.renew(None).await.unwrap();
        told(&news).await;
    };
    tokio::select! {
        () = work => (),
        () = other.listen(&news) => (),
    }
}

#[tokio::test]
async fn of_masters_that_find_the_same_due_one_does_it() {
    let server = Server::start(false);
    let cluster = Cluster::on(&server, "keys").await;
    let stores = [
        cluster.store().await,
        cluster.store().await,
        cluster.store().await,
    ];
    let pace = Pace {
        lifetime: Duration::from_secs(100),
        wait: Duration::from_secs(10),
        overlap: Duration::from_secs(20),
    };
    let name = "test".parse().unwrap();
    // A new key is published; it signs, and the one before it is accepted; that is retired.
    for (now, keys) in [(1_100, 2), (1_110, 2), (1_130, 2)] {
        let ring = Ring::of(stores[0].state().await.unwrap().keys, &cluster.custody).unwrap();
        // Each has made a key, and one of those is taken.
        let turned = stores.each_ref().map(async |store| {
            let successor = cluster.custody.successor(&ring, &name, false).await;
            store.turn_keys(Some(&successor.unwrap()), pace, now).await
        });
        let turned = futures_util::future::join_all(turned).await;
        let did = |one: &Result<(Vec<_>, Option<Snapshot>), _>| one.as_ref().unwrap().1.is_some();
        assert_eq!(turned.iter().filter(|one| did(one)).count(), 1, "at {now}");
        let kept = stores[0].state().await.unwrap().keys;
        assert_eq!(kept.len(), keys);
        let signing = |key: &&Kept| key.life.state == crate::keys::State::Signing;
        let signing = kept.iter().find(signing).unwrap();
        let signer = cluster.custody.signer(signing);
        assert!(signer.is_ok(), "the key that signs can be opened");
    }
    let (lines, seal) = stores[1].page(0).await.unwrap();
    let paths: Vec<_> = lines
        .iter()
        .map(|(_, line)| {
            wavry_credentials::audit::Line::read(line)
                .unwrap()
                .event
                .path
        })
        .collect();
    assert_eq!(paths, ["schedule", "key signs", "key retired"]);
    let verifier = cluster.audit.verifier();
    let mut reading = Reading::expecting(vec![verifier.open(audit::LOG, &seal.unwrap()).unwrap()]);
    for (_, line) in &lines {
        reading.line(line).unwrap();
    }
    reading.end().unwrap();
}

#[tokio::test]
async fn a_roster_that_another_master_renewed_is_not_renewed_again() {
    let server = Server::start(false);
    let cluster = Cluster::on(&server, "renewal").await;
    let (one, other) = (cluster.store().await, cluster.store().await);
    let held = one.versions().await.unwrap().0;
    let renewed = one.renew(Some(held)).await.unwrap();
    assert!(renewed.epoch > held);
    assert_eq!(other.renew(Some(held)).await.unwrap(), renewed);
}
