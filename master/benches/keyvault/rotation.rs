//! Two instances on one PostgreSQL that are asked a thousand times a second, while the master key is
//! replaced.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sqlx::{Connection as _, PgConnection};
use tokio::task::JoinSet;
use wavry_credentials::{
    audit::{self, Action, Event},
    key::aead,
    secret::Secret,
};
use wavry_master::keyvault::{
    KeyVault,
    barrier::{Error, Rotate},
    call::Operation,
    store::Location,
};

use crate::{
    report::Figure,
    vault::{World, audit_key, call, entry_path, open, secret_path},
};

/// Reads in a second, by both together.
const RATE: u32 = 1000;
/// Of which so many are to be made: a generator that comes late does not show what it claims.
const LEAST: f64 = 0.99;

/// Reads as units do, through policies and on record, and replaces the master key a third of the way.
/// Gives the figure, and what does not hold.
pub(crate) async fn run(
    location: Location,
    url: &str,
    duration: Duration,
) -> (Vec<Figure>, Vec<String>) {
    let audit = audit_key();
    let old = aead::Key::generate();
    let new = aead::Key::generate();
    let (old_id, new_id) = (old.id(), new.id());
    let (old_text, new_text) = (old.to_paserk(), new.to_paserk());
    let world = Arc::new(World::with(location.clone(), old, &audit).await);
    let other = open(location.clone(), &audit).await;
    let key = aead::Key::read(&old_text).expect("a key");
    other.unseal(key).await.expect("it is unsealed");

    let rotation = tokio::spawn(replace_the_key(world.vault.clone(), new, duration / 3));
    let began = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_secs(1) / RATE);
    let mut reads = JoinSet::new();
    let (mut times, mut failed) = (Vec::new(), 0);
    let mut count = |read: Result<(Duration, bool), tokio::task::JoinError>| {
        let (time, is_done) = read.expect("no reader panics");
        times.push(time);
        failed += u64::from(!is_done);
    };
    let mut at = 0;
    while began.elapsed() < duration {
        tick.tick().await;
        at += 1;
        let vault = if at % 2 == 0 { &world.vault } else { &other };
        let (vault, world) = (vault.clone(), world.clone());
        reads.spawn(async move {
            let began = Instant::now();
            let call = call(Operation::Read, &secret_path(at), &world.token, None);
            let is_done = vault.handle(call).await.is_ok();
            (began.elapsed(), is_done)
        });
        while let Some(read) = reads.try_join_next() {
            count(read);
        }
    }
    while let Some(read) = reads.join_next().await {
        count(read);
    }
    let elapsed = began.elapsed();
    let took = rotation.await.expect("it does not panic");
    other.close().await;
    world.vault.close().await;

    let figure = Figure::new(
        "PostgreSQL, two instances",
        "calls across a rotation",
        times,
        failed,
        elapsed,
    );
    let mut failures = Vec::new();
    if figure.per_second < LEAST * f64::from(RATE) {
        failures.push(format!("only {:.0} reads a second", figure.per_second));
    }
    if took > duration / 3 {
        failures.push(format!("the rotation took {took:.1?}"));
    }
    failures.extend(opens_something(location, &audit, &old_text, &new_text).await);
    failures.extend(is_left(url, &old_id, &new_id, at as i64).await);
    println!("{at} reads, {failed} failed; the master key was replaced in {took:.1?}");
    (vec![figure], failures)
}

/// Gives how long it took.
async fn replace_the_key(vault: KeyVault, new: aead::Key, after: Duration) -> Duration {
    tokio::time::sleep(after).await;
    let began = Instant::now();
    let rotate = Rotate {
        master_key: Some(new),
        seal: None,
        event: Event::now(Action::Rekey, "master key", "bench"),
    };
    let barrier = vault.barrier();
    barrier.rotate(rotate).await.expect("it begins");
    while barrier.rotation().await.expect("it is unsealed").is_running {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    began.elapsed()
}

/// Tries both keys on the store.
async fn opens_something(
    location: Location,
    audit: &Arc<audit::Key>,
    old: &Secret<Vec<u8>>,
    new: &Secret<Vec<u8>>,
) -> Option<String> {
    let vault = open(location, audit).await;
    let with_old = vault.unseal(aead::Key::read(old).expect("a key")).await;
    let with_new = vault.unseal(aead::Key::read(new).expect("a key")).await;
    let read = vault.barrier().read(&entry_path(0)).await;
    vault.close().await;
    match (with_old, with_new, read) {
        (Err(Error::Keyring(_)), Ok(()), Ok(Some(_))) => None,
        (old, new, _) => Some(format!(
            "the store opens with the old key: {}, with the new one: {}",
            old.is_ok(),
            new.is_ok()
        )),
    }
}

/// Looks for what the old key could open, and whether each read is on record.
async fn is_left(url: &str, old: &str, new: &str, reads: i64) -> Option<String> {
    let mut database = PgConnection::connect(url).await.expect("it is there");
    let (under_old, under_new): (i64, i64) = sqlx::query_as(
        "SELECT count(*) FILTER (WHERE master_key = $1), count(*) FILTER (WHERE master_key = $2)
         FROM keyring",
    )
    .bind(old)
    .bind(new)
    .fetch_one(&mut database)
    .await
    .expect("it is read");
    let terms: i64 = sqlx::query_scalar("SELECT count(DISTINCT term) FROM entry")
        .fetch_one(&mut database)
        .await
        .expect("it is read");
    let lines: i64 = sqlx::query_scalar("SELECT count(*) FROM audit_line")
        .fetch_one(&mut database)
        .await
        .expect("it is read");
    database.close().await.expect("it ends");
    let is_well = (under_old, under_new, terms) == (0, 1, 1) && lines >= reads;
    (!is_well).then(|| {
        format!(
            "terms under the old key: {under_old}, under the new one: {under_new}; terms of \
             entries: {terms}; {lines} audit lines"
        )
    })
}
