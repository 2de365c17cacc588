//! The masters: the store that they share, and what each process knows. Who was heard they know together: what they
//! tell each other of that goes through a server, whose clock is not simulated.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use wavry_credentials::{
    audit::{self, Action, Event},
    clock::Clock,
    signer::{Signer, sign},
    token::{Scope, SigningKey, digest},
};
use wavry_proto::{
    control::{IdentityTask, Roster},
    id::{ClusterName, NodeId, PublicKey},
};

use super::{Sabotage, chance::Chance};
use crate::{
    database::Location,
    identity::{self, Lives},
    keys::{self, Due, due},
    presence::{Presence, Report},
    ring::Ring,
    signing::Custody,
    store::{self, Admission, Announcement, RegisterError, Snapshot, Store, keys::Rotation},
};

pub(super) const SUSPECT_AFTER: u64 = 10;
const ROSTER_REFRESH: u64 = 600;
pub(super) const IDENTITY_OVERLAP: u64 = 100;
/// Longer than nodes act on a roster, by as much as clocks differ.
pub(super) const WAIT: u64 = super::node::MAX_AGE + 700;
/// Longer than any token holds.
const KEY_OVERLAP: u64 = 700;

/// What outlives a process, and a process while there is one.
pub(super) struct Master {
    file: PathBuf,
    audit_key: Arc<audit::Key>,
    custody: Custody,
    pub(super) cluster: ClusterName,
    /// What the wall clock shows is so much more than the time that it is.
    pub(super) skew: i64,
    sabotage: Option<Sabotage>,
    /// The process that is asked next.
    pub(super) running: Option<Running>,
    /// Others, on the same database.
    others: Vec<Running>,
    presence: Presence,
    /// A moment, for what measures time by the clock of the process.
    base: (u64, Instant),
    /// What the masters' wall clocks show.
    shown: Arc<AtomicU64>,
}

pub(super) struct Running {
    store: Store,
    started: u64,
    clock: Clock,
    ring: Ring,
    identities: Vec<Lives>,
    pub(super) roster: Roster,
    /// Signed.
    pub(super) token: String,
}

impl Master {
    pub(super) fn new(file: PathBuf, sabotage: Option<Sabotage>) -> Self {
        let cluster: ClusterName = "simulated".parse().unwrap();
        let audit_key = SigningKey::generate().to_paserk();
        Self {
            file,
            audit_key: Arc::new(audit::Key::from_paserk(&audit_key, cluster.clone()).unwrap()),
            custody: SigningKey::generate().into(),
            cluster,
            skew: 0,
            sabotage,
            running: None,
            others: Vec::new(),
            presence: Presence::default(),
            base: (0, Instant::now()),
            shown: Arc::default(),
        }
    }

    pub(super) async fn start(&mut self, now: u64) {
        let location: Location = self.file.clone().into();
        let opened = Store::open(&location, self.audit_key.clone());
        let store = opened.await.unwrap();
        let (nodes, base) = (store.state().await.unwrap().snapshot.nodes, Instant::now());
        self.presence = Presence::new(nodes.into_iter().map(|node| node.id), base);
        self.base = (now, base);
        self.running = Some(self.process(store.clone(), now).await);
        let other = self.process(store, now).await;
        self.others = vec![other];
    }

    /// A process that begins to work on the database.
    async fn process(&self, store: Store, now: u64) -> Running {
        let time = self.shown.clone();
        time.store(wall(now, self.skew).as_secs(), Ordering::Relaxed);
        let store = store.another(move || time.load(Ordering::Relaxed));
        let clock = Clock::default();
        let shown = clock.read(wall(now, self.skew), Duration::ZERO).as_secs();
        store.adopt(&self.custody, shown).await.unwrap();
        let store::State { snapshot, keys, .. } = store.state().await.unwrap();
        let mut running = Running {
            started: now,
            clock,
            ring: Ring::of(keys, &self.custody).unwrap(),
            identities: Vec::new(),
            roster: Roster::empty(self.cluster.clone()),
            token: String::new(),
            store,
        };
        running.serve(snapshot, &self.cluster, shown).await;
        running
    }

    /// One of several processes dies; who asks next asks another, which looks first.
    pub(super) async fn crash_one(&mut self, now: u64) {
        if let Some(other) = self.others.pop() {
            self.running = Some(other);
            self.look(now).await;
        }
    }

    /// Another process begins, beside one that there is.
    pub(super) async fn start_another(&mut self, now: u64) {
        if let Some(running) = self.running.as_ref().filter(|_| self.others.is_empty()) {
            let store = running.store.clone();
            let other = self.process(store, now).await;
            self.others.push(other);
        }
    }

    /// Who asks next asks whichever process, and is shown nothing older than what any of them answered.
    pub(super) async fn turn(&mut self, chance: &mut Chance, now: u64) {
        if chance.below(2) == 0 {
            self.ask_another(now).await;
        }
    }

    async fn ask_another(&mut self, now: u64) {
        if let (Some(running), Some(other)) = (&mut self.running, self.others.first_mut()) {
            std::mem::swap(running, other);
            self.look(now).await;
        }
    }

    /// Serves what the database holds, if that is newer.
    async fn look(&mut self, now: u64) {
        let (custody, cluster) = (&self.custody, self.cluster.clone());
        let (skew, sabotage) = (self.skew, self.sabotage);
        let Some(running) = self.running.as_mut() else {
            return;
        };
        let is_newer = running.store.versions().await.unwrap().0 > running.roster.epoch;
        if is_newer && sabotage != Some(Sabotage::DoesNotLook) {
            let store::State { snapshot, keys, .. } = running.store.state().await.unwrap();
            running.ring = Ring::of(keys, custody).unwrap();
            let elapsed = Duration::from_secs(now - running.started);
            let shown = running.clock.read(wall(now, skew), elapsed).as_secs();
            running.serve(snapshot, &cluster, shown).await;
        }
    }

    /// What it has in its file is all that is left.
    pub(super) async fn crash(&mut self) {
        self.others.clear();
        if let Some(running) = self.running.take() {
            running.store.close().await;
        }
    }

    fn at_work(&mut self, now: u64) -> Option<(&mut Running, u64, Instant)> {
        let skew = self.skew;
        let at = self.base.1 + Duration::from_secs(now - self.base.0);
        let running = self.running.as_mut()?;
        let elapsed = Duration::from_secs(now - running.started);
        let wall = wall(now, skew);
        self.shown.store(wall.as_secs(), Ordering::Relaxed);
        let shown = running.clock.read(wall, elapsed).as_secs();
        Some((running, shown, at))
    }

    /// What its clock shows.
    pub(super) fn time(&mut self, now: u64) -> Option<u64> {
        self.at_work(now).map(|(_, shown, _)| shown)
    }

    async fn publish(&mut self, changed: Option<Snapshot>, now: u64) {
        let Some(snapshot) = changed else { return };
        let (custody, cluster) = (&self.custody, self.cluster.clone());
        let skew = self.skew;
        let running = self.running.as_mut().unwrap();
        let elapsed = Duration::from_secs(now - running.started);
        let shown = running.clock.read(wall(now, skew), elapsed).as_secs();
        let keys = running.store.state().await.unwrap().keys;
        running.ring = Ring::of(keys, custody).unwrap();
        running.serve(snapshot, &cluster, shown).await;
    }

    pub(super) async fn register(
        &mut self,
        mut admission: Admission,
        now: u64,
    ) -> Result<(), RegisterError> {
        let serves_twice = self.sabotage == Some(Sabotage::TokenServesTwice);
        let (running, shown, at) = self.at_work(now).expect("somebody asked it");
        if serves_twice {
            admission.jti = format!("{}-{shown}-{}", admission.jti, admission.key);
        }
        let written = running.store.register(&admission, shown).await?;
        let (node, said) = (admission.node.clone(), admission.announcement.clone());
        self.presence.wrote(&node, said, written.revision, at);
        self.publish(written.changed, now).await;
        Ok(())
    }

    /// Takes a heartbeat of a node that speaks by `key`; `None` where it does not know the node by it.
    pub(super) async fn heartbeat(
        &mut self,
        node: &NodeId,
        key: PublicKey,
        said: Announcement,
        report: Report,
        now: u64,
    ) -> Option<Option<IdentityTask>> {
        let (running, shown, at) = self.at_work(now)?;
        if !running.roster.node(node)?.keys.contains(&key) {
            return None;
        }
        self.presence.told(node, report);
        if !self.presence.is_old_news(node, &said, at) {
            let (running, ..) = self.at_work(now)?;
            let written = running.store.heartbeat(node, &said).await.ok()?;
            self.presence.wrote(node, said, written.revision, at);
            self.publish(written.changed, now).await;
        }
        let (running, ..) = self.at_work(now)?;
        let lives = running.identities.iter().find(|lives| lives.node == *node);
        let lives = lives?.clone();
        if lives
            .in_state(identity::State::Next)
            .is_some_and(|next| next.key == key)
        {
            let shows = running
                .store
                .show_identity(node, &key, shown, IDENTITY_OVERLAP);
            let changed = shows.await.unwrap();
            self.publish(changed, now).await;
            return Some(None);
        }
        let acts_on = self.presence.others_act_on(node);
        Some(lives.task(acts_on, &PACE, shown))
    }

    /// Admits the next identity of a node; whether it did.
    pub(super) async fn admit(
        &mut self,
        node: &NodeId,
        (present, next): (PublicKey, PublicKey),
        now: u64,
    ) -> bool {
        let Some((running, shown, _)) = self.at_work(now) else {
            return false;
        };
        let event = event(node.as_str());
        let admitted = running
            .store
            .admit_identity(node, &present, &next, shown, &event);
        match admitted.await {
            Ok(changed) => {
                self.publish(changed, now).await;
                true
            }
            Err(_) => false,
        }
    }

    /// What is due as time passes, by each process.
    pub(super) async fn keep(&mut self, now: u64) {
        for _ in 0..=self.others.len() {
            self.keep_one(now).await;
            self.ask_another(now).await;
        }
    }

    async fn keep_one(&mut self, now: u64) {
        let (cluster, sabotage) = (self.cluster.clone(), self.sabotage);
        let Some((_, shown, at)) = self.at_work(now) else {
            return;
        };
        let silent = match sabotage {
            Some(Sabotage::SilentStays) => Vec::new(),
            _ => {
                let suspect_after = Duration::from_secs(SUSPECT_AFTER);
                self.presence.take_silent(suspect_after, at)
            }
        };
        if !silent.is_empty() {
            let running = self.running.as_mut().unwrap();
            let changed = running.store.silence(&silent).await.unwrap();
            self.publish(changed, now).await;
        }
        let custody = &self.custody;
        let running = self.running.as_mut().unwrap();
        let pace = pace(sabotage);
        let due = due(&running.ring.lives(), &pace, shown);
        if !due.is_empty() {
            let successor = match due.contains(&Due::Rotate) {
                true => Some(
                    custody
                        .successor(&running.ring, &cluster, false)
                        .await
                        .unwrap(),
                ),
                false => None,
            };
            let turned = running.store.turn_keys(successor.as_ref(), pace, shown);
            let (_, changed) = turned.await.unwrap();
            self.publish(changed, now).await;
        }
        let running = self.running.as_mut().unwrap();
        let over: Vec<_> = running
            .identities
            .iter()
            .filter_map(|lives| Some((lives.node.clone(), lives.over(shown)?)))
            .filter(|_| sabotage != Some(Sabotage::OldIdentityStays))
            .collect();
        if !over.is_empty() {
            let changed = running.store.retire_identities(&over).await.unwrap();
            self.publish(changed, now).await;
        }
        let running = self.running.as_mut().unwrap();
        if shown.saturating_sub(running.roster.issued_at) >= ROSTER_REFRESH {
            let renewed = running.store.renew(Some(running.roster.epoch)).await;
            self.publish(Some(renewed.unwrap()), now).await;
        }
    }

    pub(super) async fn rotate_key(&mut self, is_compromised: bool, now: u64) {
        let (cluster, sabotage, custody) = (self.cluster.clone(), self.sabotage, &self.custody);
        let (skew, running) = (self.skew, self.running.as_mut());
        let Some(running) = running else { return };
        let elapsed = Duration::from_secs(now - running.started);
        let shown = running.clock.read(wall(now, skew), elapsed).as_secs();
        let rotation = match is_compromised {
            true => Rotation::AtOnce,
            false => Rotation::InTurn(pace(sabotage)),
        };
        let order = event("").into();
        let successor = custody.successor(&running.ring, &cluster, is_compromised);
        let successor = successor.await.unwrap();
        let rotated = running.store.rotate(&successor, rotation, shown, &order);
        if let Ok(done) = rotated.await {
            self.publish(done.changed, now).await;
        }
        if sabotage == Some(Sabotage::SignsAtOnce) {
            self.keep(now).await;
        }
    }

    pub(super) async fn order_rotation(&mut self, node: &NodeId, now: u64) {
        let Some((running, shown, _)) = self.at_work(now) else {
            return;
        };
        let order = event("").into();
        let ordered = running.store.order_rotation(node, shown, &order);
        if let Ok(done) = ordered.await {
            self.publish(done.changed, now).await;
        }
    }

    /// Whether there was such a node.
    pub(super) async fn revoke_node(&mut self, node: &NodeId, now: u64) -> bool {
        let Some((running, shown, _)) = self.at_work(now) else {
            return false;
        };
        let revoked = running
            .store
            .revoke_node(node, shown, &event("").into())
            .await;
        let Ok(done) = revoked else { return false };
        self.presence.forget(node);
        self.publish(done.changed, now).await;
        true
    }

    /// Up to when the subject's tokens hold no more.
    pub(super) async fn revoke_subject(&mut self, subject: &str, now: u64) -> Option<u64> {
        let (running, shown, _) = self.at_work(now)?;
        let revoked = running
            .store
            .revoke_subject(None, digest(subject), shown, &event("").into())
            .await;
        let done = revoked.unwrap();
        self.publish(done.changed, now).await;
        Some(done.outcome.through)
    }

    pub(super) async fn succession(&self) -> Vec<String> {
        match &self.running {
            Some(running) => running.store.succession().await.unwrap(),
            None => Vec::new(),
        }
    }
}

impl Running {
    /// The key that signs now.
    pub(super) fn signing(&self) -> &dyn Signer {
        &*self.ring.signing
    }

    async fn serve(&mut self, snapshot: Snapshot, cluster: &ClusterName, shown: u64) {
        self.identities.clone_from(&snapshot.identities);
        self.roster = snapshot.into_roster(cluster.clone(), shown);
        let scope = Scope {
            cluster,
            audience: "nodes",
            binding: &[],
        };
        self.token = sign(self.signing(), &self.roster, scope).await.unwrap();
    }
}

const PACE: identity::Pace = identity::Pace {
    wait: Duration::from_secs(WAIT),
    overlap: Duration::from_secs(IDENTITY_OVERLAP),
};

fn pace(sabotage: Option<Sabotage>) -> keys::Pace {
    let unless = |which, seconds| match sabotage == Some(which) {
        true => Duration::ZERO,
        false => Duration::from_secs(seconds),
    };
    keys::Pace {
        lifetime: Duration::from_secs(20_000),
        wait: unless(Sabotage::SignsAtOnce, WAIT),
        overlap: unless(Sabotage::RetiresAtOnce, KEY_OVERLAP),
    }
}

/// What a wall clock shows.
pub(super) fn wall(now: u64, skew: i64) -> Duration {
    Duration::from_secs(now.checked_add_signed(skew).unwrap())
}

pub(super) fn event(subject: &str) -> Event {
    Event::now(Action::Register, subject, "simulation")
}
