//! What is done over and over: parts of an answer, and all of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Mutex;
use wavry_credentials::key::aead;
use wavry_master::keyvault::{
    barrier::Change,
    call::{Answer, Operation},
    path::Canonical,
    policy::Request,
};

use crate::{
    report::{Figure, processor_time},
    vault::{World, call, entry_path, event, login, secret_path, value},
};

/// Who asks at the same time: units behind keep-alive connections.
const CLIENTS: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Nothing is kept and nothing is told: two decryptions.
    Decrypt,
    /// An entry is read, and nobody told.
    Read,
    /// Somebody is told, and nothing read.
    Audit,
    /// An entry is read once that is on record.
    AuditedRead,
    /// The same, and nobody shares a commit with anyone: each waits for a sync of its own.
    OwnSync,
    /// An audited read of who shows a token whose policies allow it.
    AuthorizedRead,
    /// A unit's read of a secret (KV version 2), as it comes out of HTTP.
    Call,
    /// An entry gets a new version, on record.
    AuditedWrite,
    /// A unit logs in with the secret-id of its role (AppRole) and is given a token, on record.
    Login,
}

pub(crate) const ALL: [Work; 9] = [
    Work::Decrypt,
    Work::Read,
    Work::Audit,
    Work::AuditedRead,
    Work::OwnSync,
    Work::AuthorizedRead,
    Work::Call,
    Work::AuditedWrite,
    Work::Login,
];

impl Work {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Decrypt => "decrypt",
            Self::Read => "read",
            Self::Audit => "audit",
            Self::AuditedRead => "audited read",
            Self::OwnSync => "audited read, own sync",
            Self::AuthorizedRead => "authorized read",
            Self::Call => "call",
            Self::AuditedWrite => "audited write",
            Self::Login => "login",
        }
    }
}

/// Does it with all clients for some time.
pub(crate) async fn run(
    store: &'static str,
    work: Work,
    world: &Arc<World>,
    duration: Duration,
) -> Figure {
    let stop = Arc::new(AtomicBool::new(false));
    let turn = Arc::new(Mutex::new(()));
    let (began, used) = (Instant::now(), processor_time());
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (stop, mut client) = (stop.clone(), Client::new(world, &turn, number));
            tokio::spawn(async move {
                let (mut times, mut failed) = (Vec::new(), 0);
                while !stop.load(Ordering::Relaxed) {
                    // What waits for nothing lets others run all the same.
                    tokio::task::yield_now().await;
                    let began = Instant::now();
                    let is_done = client.does(work).await;
                    times.push(began.elapsed());
                    failed += u64::from(!is_done);
                }
                (times, failed)
            })
        })
        .collect();
    tokio::time::sleep(duration).await;
    stop.store(true, Ordering::Relaxed);
    let (mut times, mut failed) = (Vec::new(), 0);
    for client in clients {
        let (its_times, its_failed) = client.await.expect("no client panics");
        times.extend(its_times);
        failed += its_failed;
    }
    Figure::new(store, work.name(), times, failed, began.elapsed())
        .with_processor_time(processor_time().saturating_sub(used))
}

struct Client {
    world: Arc<World>,
    turn: Arc<Mutex<()>>,
    at: usize,
    key: aead::Key,
    wrapped: Vec<u8>,
    sealed: Vec<u8>,
}

impl Client {
    fn new(world: &Arc<World>, turn: &Arc<Mutex<()>>, number: usize) -> Self {
        let key = aead::Key::generate();
        Self {
            world: world.clone(),
            turn: turn.clone(),
            at: number * 7919,
            wrapped: key.wrap(b"place", &key),
            sealed: key.seal(b"place", &value()),
            key,
        }
    }

    /// Does it once. Gives whether it went well.
    async fn does(&mut self, work: Work) -> bool {
        self.at += 1;
        match work {
            Work::Decrypt => {
                let key = self.key.unwrap(b"place", &self.wrapped);
                key.and_then(|key| key.open(b"place", &self.sealed)).is_ok()
            }
            Work::Read => self.read().await,
            Work::Audit => self.tell().await,
            Work::AuditedRead => self.read().await && self.tell().await,
            Work::OwnSync => {
                let is_read = self.read().await;
                let _turn = self.turn.lock().await;
                is_read && self.tell().await
            }
            Work::AuthorizedRead => {
                self.is_allowed().await && self.read().await && self.tell().await
            }
            Work::Call => {
                let path = secret_path(self.at);
                let call = call(Operation::Read, &path, &self.world.token, None);
                self.world.vault.handle(call).await.is_ok()
            }
            Work::AuditedWrite => {
                let mut change = Change::default();
                change.put(entry_path(self.at), value());
                change.record(event(self.at));
                self.world.barrier().commit(change).await.is_ok()
            }
            Work::Login => {
                let answer = self.world.vault.handle(login(self.at)).await;
                matches!(answer, Ok(Answer::Auth(_)))
            }
        }
    }

    async fn read(&self) -> bool {
        let entry = self.world.barrier().read(&entry_path(self.at)).await;
        entry.is_ok_and(|entry| entry.is_some())
    }

    async fn tell(&self) -> bool {
        let mut change = Change::default();
        change.record(event(self.at));
        self.world.barrier().commit(change).await.is_ok()
    }

    /// Finds the token, and asks its policies.
    async fn is_allowed(&self) -> bool {
        let World {
            tokens,
            policies,
            token,
            ..
        } = &*self.world;
        let Ok(Some(found)) = tokens.find(token).await else {
            return false;
        };
        let Ok(acl) = policies
            .acl(&mut Change::default(), &found.record.scope)
            .await
        else {
            return false;
        };
        let path = Canonical::parse(&secret_path(self.at)).expect("a path");
        acl.allows(&Request {
            operation: Operation::Read,
            path: &path,
            sudo: false,
            parameters: None,
            wrap_ttl: None,
        })
    }
}
