//! A node: what it keeps on its disk, and what a process of it knows.

use std::{collections::HashSet, ops::Range, time::Duration};

use wavry_credentials::{
    clock::Clock,
    identity::rotation::{self, Act, Heard, Keys, Step},
    membership::roster::{Pinned, is_too_old},
    token::Standing,
};
use wavry_proto::{
    control::{IdentityTask, Role, Roster},
    id::{Epoch, NodeId, PublicKey},
};

use super::{
    Sabotage,
    chance::Chance,
    master::{Master, event, wall},
};
use crate::{
    presence::Report,
    store::{Admission, Announcement},
};

pub(super) const NODES: usize = 4;
pub(super) const GATEWAYS: Range<usize> = 0..2;
/// How long a node acts on a roster, in seconds.
pub(super) const MAX_AGE: u64 = 3600;

const PACE: rotation::Pace = rotation::Pace {
    lifetime: Duration::from_secs(6000),
};

pub(super) struct Node {
    pub(super) id: NodeId,
    role: Role,
    disk: Disk,
    pub(super) running: Option<Running>,
    /// No master reaches it.
    pub(super) is_cut: bool,
    /// What its wall clock shows is so much more than the time that it is.
    pub(super) skew: i64,
    /// It dies instead of writing once more after so many writes.
    pub(super) dies_after: Option<u32>,
    sabotage: Option<Sabotage>,

    // What whoever looks on knows.
    /// The newest roster that it took, whichever process of it did.
    pub(super) newest_epoch: Epoch,
    /// When the master heard it last.
    pub(super) heard: u64,
    /// The key by which the master heard it last.
    pub(super) spoke_by: Option<PublicKey>,
    /// The farthest that its wall clock was, since its process began.
    pub(super) latest: u64,
}

/// What outlives a process.
#[derive(Default)]
struct Disk {
    keys: HashSet<PublicKey>,
    record: Option<Keys>,
    token: Option<RegistrationToken>,
    /// Keys that sign rosters, once it has registered.
    pinned: Vec<String>,
    kept: Option<String>,
}

/// What a registration token says.
#[derive(Debug, Clone)]
pub(super) struct RegistrationToken {
    pub(super) jti: String,
    pub(super) issued_at: u64,
}

pub(super) struct Running {
    started: u64,
    clock: Clock,
    keys: Keys,
    pub(super) shown: PublicKey,
    task: Option<IdentityTask>,
    newest: Option<Roster>,
}

/// What came of a node's contact with the master.
#[derive(Default)]
pub(super) struct Contact {
    /// It registered with this token, by this key.
    pub(super) registered: Option<(RegistrationToken, PublicKey)>,
    /// Another identity than before spoke for it; the one before.
    pub(super) left: Option<PublicKey>,
}

impl Node {
    pub(super) fn new(number: usize, sabotage: Option<Sabotage>) -> Self {
        let (id, role) = match GATEWAYS.contains(&number) {
            true => (format!("gateway-{number}"), Role::Gateway),
            false => (format!("relay-{number}"), Role::Relay),
        };
        Self {
            id: id.parse().unwrap(),
            role,
            disk: Disk::default(),
            running: None,
            is_cut: false,
            skew: 0,
            dies_after: None,
            sabotage,
            newest_epoch: Epoch(0),
            heard: 0,
            spoke_by: None,
            latest: 0,
        }
    }

    /// A new first identity and a registration token, on an empty disk.
    pub(super) fn provision(&mut self, token: RegistrationToken, chance: &mut Chance) {
        let key = PublicKey(chance.bytes());
        self.running = None;
        self.newest_epoch = Epoch(0);
        self.spoke_by = None;
        self.disk = Disk {
            keys: [key].into(),
            record: Some(Keys::one(key, token.issued_at)),
            token: Some(token),
            ..Disk::default()
        };
    }

    /// Starts a process, if there is none and the node was provisioned. The error says what is wrong with
    /// what it kept.
    pub(super) fn start(&mut self, now: u64) -> Result<(), &'static str> {
        let Some(keys) = self.disk.record.clone().filter(|_| self.running.is_none()) else {
            return Ok(());
        };
        if !self.disk.keys.contains(&keys.present)
            || keys
                .next
                .is_some_and(|next| !self.disk.keys.contains(&next))
        {
            return Err("a key that is named is not kept");
        }
        self.latest = 0;
        self.running = Some(Running {
            started: now,
            clock: Clock::default(),
            shown: keys.present,
            keys,
            task: None,
            newest: None,
        });
        let time = self.time(now).as_secs();
        let newest = self.pinned().and_then(|pinned| {
            let kept = self.disk.kept.as_ref()?;
            pinned.accept(kept.as_bytes(), Epoch(0), time).ok()
        });
        if let Some(running) = &mut self.running {
            running.newest = newest;
        }
        Ok(())
    }

    pub(super) fn crash(&mut self) {
        self.running = None;
    }

    /// What its process takes for the time.
    fn time(&mut self, now: u64) -> Duration {
        let wall = wall(now, self.skew);
        self.latest = self.latest.max(wall.as_secs());
        match &self.running {
            Some(running) if self.sabotage != Some(Sabotage::ClockGoesBack) => {
                let elapsed = Duration::from_secs(now - running.started);
                running.clock.read(wall, elapsed)
            }
            _ => wall,
        }
    }

    pub(super) fn time_secs(&mut self, now: u64) -> u64 {
        self.time(now).as_secs()
    }

    /// The roster that it acts on.
    pub(super) fn acts_on(&mut self, now: u64) -> Option<&Roster> {
        let time = self.time(now);
        let never = self.sabotage == Some(Sabotage::NeverTooOld);
        let newest = self.running.as_ref()?.newest.as_ref()?;
        let is_too_old = is_too_old(newest, Duration::from_secs(MAX_AGE), time);
        (never || !is_too_old).then_some(newest)
    }

    /// Which session tokens hold, for a gateway.
    pub(super) fn standing(&mut self, now: u64) -> Option<Standing> {
        Some(Standing::of(self.acts_on(now)?).unwrap())
    }

    /// Whether it is still there to write once more.
    fn writes(&mut self) -> bool {
        match &mut self.dies_after {
            None => true,
            Some(0) => {
                self.dies_after = None;
                self.running = None;
                false
            }
            Some(writes) => {
                *writes -= 1;
                true
            }
        }
    }

    fn pinned(&self) -> Option<Pinned> {
        match self.disk.pinned.as_slice() {
            [] => None,
            keys => Some(Pinned::new("simulated".parse().unwrap(), keys).unwrap()),
        }
    }

    /// Everything that a node says to a master and hears of it, once.
    pub(super) async fn contact(
        &mut self,
        master: &mut Master,
        now: u64,
        chance: &mut Chance,
    ) -> Contact {
        let mut contact = Contact::default();
        if self.is_cut || master.running.is_none() || self.running.is_none() {
            return contact;
        }
        if self.disk.pinned.is_empty() {
            contact.registered = self.register(master, now).await;
        }
        if let Some(task) = self.heartbeat(master, now).await {
            let shown = self.running.as_ref().map(|running| running.shown);
            if self.spoke_by != shown {
                contact.left = self.spoke_by;
                self.spoke_by = shown;
            }
            self.heard = now;
            if let Some(running) = &mut self.running {
                running.task = task;
            }
            if let Some(running) = &master.running {
                let token = running.token.clone();
                let succession = master.succession().await;
                self.offer(&token, &succession, now);
            }
            self.rotate(master, now, chance).await;
        }
        contact
    }

    async fn register(
        &mut self,
        master: &mut Master,
        now: u64,
    ) -> Option<(RegistrationToken, PublicKey)> {
        let token = self.disk.token.clone()?;
        let key = self.running.as_ref()?.shown;
        let admission = admission(&token, self.id.clone(), self.role, key);
        master.register(admission, now).await.ok()?;
        self.heard = now;
        let keys = master.running.as_ref()?.roster.roster_keys.clone();
        if self.writes() {
            self.disk.pinned = keys;
        }
        Some((token, key))
    }

    async fn heartbeat(&self, master: &mut Master, now: u64) -> Option<Option<IdentityTask>> {
        let running = self.running.as_ref()?;
        let report = Report {
            epoch: running.newest.as_ref().map(|r| r.epoch).unwrap_or_default(),
            ..Report::default()
        };
        let said = announcement(self.role);
        master
            .heartbeat(&self.id, running.shown, said, report, now)
            .await
    }

    /// Offers a roster to the node, and the statements of succession that it would ask for.
    pub(super) fn offer(&mut self, token: &str, succession: &[String], now: u64) {
        let time = self.time_secs(now);
        let (Some(mut pinned), Some(running)) = (self.pinned(), &self.running) else {
            return;
        };
        let held = running.newest.as_ref().map(|roster| roster.epoch);
        let least = match self.sabotage {
            Some(Sabotage::AnyEpoch) => Epoch(0),
            _ => held.map_or(Epoch(0), |held| Epoch(held.0 + 1)),
        };
        let mut roster = pinned.accept(token.as_bytes(), least, time);
        if matches!(roster, Err("unknown_key")) && pinned.follow(succession, time) {
            roster = pinned.accept(token.as_bytes(), least, time);
        }
        let Ok(roster) = roster else { return };
        if pinned.after(&roster).unwrap().is_some() && self.disk.pinned != roster.roster_keys {
            if !self.writes() {
                return;
            }
            self.disk.pinned.clone_from(&roster.roster_keys);
        }
        if !self.writes() {
            return;
        }
        self.disk.kept = Some(token.to_owned());
        if let Some(running) = &mut self.running {
            running.newest = Some(roster);
        }
    }

    async fn rotate(&mut self, master: &mut Master, now: u64, chance: &mut Chance) {
        let time = self.time_secs(now);
        let Some(running) = &self.running else { return };
        let listed = running.newest.as_ref().and_then(|r| r.node(&self.id));
        let mut task = running.task;
        if self.sabotage == Some(Sabotage::ShowsAtOnce)
            && let Some(next) = running.keys.next
            && listed.is_some_and(|node| node.keys.contains(&next))
        {
            task = Some(IdentityTask::Show(next));
        }
        let heard = Heard {
            task,
            listed: listed.map(|node| node.keys.as_slice()),
        };
        match running.keys.step(heard, &PACE, time) {
            None => {}
            Some(Step::Make) => {
                let acts = running.keys.made(PublicKey(chance.bytes()));
                self.act(acts);
            }
            Some(Step::Ask(next)) => {
                let present = running.keys.present;
                master.admit(&self.id, (present, next), now).await;
            }
            Some(Step::Do(acts)) => self.act(acts),
        }
    }

    fn act(&mut self, mut acts: [Act; 2]) {
        if self.sabotage == Some(Sabotage::RecordBeforeKey) {
            acts.reverse();
        }
        for act in acts {
            if !matches!(act, Act::Show(_)) && !self.writes() {
                return;
            }
            let Some(running) = &mut self.running else {
                return;
            };
            match act {
                Act::WriteKey(key) => {
                    self.disk.keys.insert(key);
                }
                Act::WriteRecord(keys) => {
                    self.disk.record = Some(keys.clone());
                    running.keys = keys;
                }
                Act::Show(key) => running.shown = key,
                Act::RemoveKey(key) => {
                    self.disk.keys.remove(&key);
                }
            }
        }
    }
}

/// What a token lets a node ask for.
pub(super) fn admission(
    token: &RegistrationToken,
    node: NodeId,
    role: Role,
    key: PublicKey,
) -> Admission {
    let said = announcement(role);
    Admission {
        jti: token.jti.clone(),
        issued_at: token.issued_at,
        expires_at: token.issued_at + 600_000,
        event: event(node.as_str()),
        node,
        role,
        granted: said.services.clone(),
        placement: Default::default(),
        key,
        announcement: said,
    }
}

fn announcement(role: Role) -> Announcement {
    match role {
        Role::Gateway | Role::KeyVault => Announcement::default(),
        Role::Relay => Announcement {
            addresses: vec![([192, 0, 2, 1], 1).into()],
            transit: Vec::new(),
            attached: Vec::new(),
            services: vec!["echo".parse().unwrap()],
            draining: false,
        },
    }
}
